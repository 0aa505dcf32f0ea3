"""Nonsense at every door: no 5xx, no effect without a key, no growth."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import socket
import sqlite3
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.e2e.machine import COIN, Platform, eventually

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
HOST_DOORS = (
    "/runtime/webhooks/EventGrid",
    "/runtime/webhooks/durabletask/instances",
    "/runtime/webhooks/durabletask/instances/x",
    "/runtime/webhooks/durabletask/orchestrators/intake/x",
    "/admin/functions",
    "/admin/functions/sweep",
    "/admin/host/status",
    "/nope",
    "/",
)
WORDS = (
    *("coin", "x", "1", "0", "-1", "99999999999999999999999", "a" * 300, "é", "..", "%2e%2e%2f", "%00", "%ff"),
    *("a b", "'; drop table rows; --", "${jndi:ldap://x}", "\u202e", "coin/../../etc"),
)
QUERIES = (
    *("", "limit=0", "limit=-1", "limit=1e9", "limit=x", "token=zzz", "token=%00", "state=bogus", "version=abc"),
    *("version=9999999999999999999999", "functionName=on_blob_event", "functionName=on_alert_event", "code=x"),
    *("functionName=on_run_event", "days=99999", "days=x", "a=" + "b" * 5000),
)
EVENT = {
    "topic": "t",
    "subject": "/blobServices/default/containers/drops/blobs/coin/x.csv",
    "eventType": "Microsoft.Storage.BlobCreated",
    "id": "1",
    "eventTime": "2026-01-01T00:00:00.1234567Z",
    "dataVersion": "",
    "metadataVersion": "1",
    "data": {
        "api": "PutBlob",
        "url": "https://local.blob.localhost/drops/coin/x.csv",
        "eTag": "0x1",
        "contentLength": 3,
        "sequencer": "0" * 32,
    },
}
ALERT = {
    "schemaId": "azureMonitorCommonAlertSchema",
    "data": {
        "essentials": {"alertId": "/a/1", "alertRule": "r", "severity": "Sev1", "monitorCondition": "Fired"},
        "alertContext": {},
    },
}
COMMAND = {"command": "pause", "pipeline": "coin", "arguments": {"reason": "fuzz"}}
SEEDS: tuple[Any, ...] = (
    EVENT,
    [EVENT],
    ALERT,
    COMMAND,
    {"version": 1},
    {"answer": "approve", "by": "x"},
    {"reason": "r"},
)
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0,
        1.5,
        1e308,
        2**63,
        "",
        "x" * 2000,
        "\u0000",
        "\ud7ff",
        [],
        {},
        [[]],
        {"a": {"b": []}},
        "2026-99-99",
    ),
)
RAW = (
    *(
        b"",
        b"{",
        b"[",
        b"\xff\xfe",
        b"\x00" * 1000,
        b"PK\x03\x04junk",
        b"[" * 5000,
        b'{"a":' * 60_000,
        b"nul",
        b'{"a":NaN}',
    ),
    *(b'{"a":1e400}', b'{"version":' + b"9" * 400 + b"}", b'"text"', b"\xef\xbb\xbf{}", b'{"a":"\\ud800"}'),
)


@dataclass
class Found:
    """What came back."""

    statuses: Counter[Any] = field(default_factory=Counter)
    faults: list[tuple[Any, ...]] = field(default_factory=list)


class Fuzzer:
    """Sends requests made from a seed to every HTTP door, with every kind of key and without one."""

    def __init__(self, platform: Platform, seed: int, *, with_keys: bool) -> None:
        connection = platform.connection
        self._chance = random.Random(seed)
        self._host = urlsplit(connection["url"]).netloc
        self._keys = [None, "", "bad", "x" * 9000]
        if with_keys:
            # Not the master key: that may switch the host off, which is its right.
            self._keys += [connection["function_key"]] * 4 + list(connection["system_keys"].values())
        document = platform.client.request("GET", "openapi.json")
        self._paths = [*json.loads(document)["paths"], *HOST_DOORS]
        self._socket = http.client.HTTPConnection(self._host, timeout=30)

    def send(self, requests: int) -> Found:
        found = Found()
        for _ in range(requests):
            method, path, body, headers = self._request()
            try:
                self._socket.request(method, path, body, headers)
                answer = self._socket.getresponse()
                told, status = answer.read(), answer.status
            except (http.client.HTTPException, OSError) as error:
                # The server may hang up on what it does not want to read; it must not do so without a reason.
                told, status = b"", type(error).__name__
                self._socket.close()
                self._socket = http.client.HTTPConnection(self._host, timeout=30)
            found.statuses[status] += 1
            if (isinstance(status, int) and status >= 500) or status == "TimeoutError":
                found.faults.append((status, method, path[:200], (body or b"")[:200], headers, told[:500]))
        self._socket.close()
        return found

    def _request(self) -> tuple[str, str, bytes | None, dict[str, str]]:
        chance = self._chance
        path = chance.choice(self._paths)
        if not path.startswith(("/runtime", "/admin", "/nope")):
            path = path if path.startswith("/api") else "/api" + path
        while "{" in path and "}" in path:
            before, _, rest = path.partition("{")
            path = before + quote(chance.choice(WORDS), safe="%") + rest.partition("}")[2]
        path = quote(path, safe="/%") + "?" + chance.choice(QUERIES)
        headers = {
            "content-type": chance.choice(("application/json", "text/plain", "application/zip", "", "a/b;c=\x7f"))
        }
        key = chance.choice(self._keys)
        if key is not None:
            headers["x-functions-key"] = key
        for name, values in {
            "aeg-event-type": ("Notification", "SubscriptionValidation", "Unsubscribe", "zz"),
            "Idempotency-Key": ("k", "k" * 5000, "\x7f"),
            "If-Match": ('"1"', "*", "zz", '"'),
            "If-None-Match": ('"1"', "*", "W/"),
            "x-dropforge-hops": ("1", "99", "-1", "x", "9" * 50),
            "x-dropforge-causation-id": ("a", "b" * 3000),
            "X-MS-CLIENT-PRINCIPAL": ("e30=", "!!!", "bnVsbA=="),
            "traceparent": ("00-" + "0" * 32 + "-" + "0" * 16 + "-01", "junk"),
            "accept": ("*/*", "text/html", "junk"),
        }.items():
            if chance.random() < 0.15:
                headers[name] = chance.choice(values)
        method = chance.choice(METHODS)
        return method, path, self._body(), headers

    def _body(self) -> bytes | None:
        chance = self._chance
        kind = chance.random()
        if kind < 0.25:
            return None
        if kind < 0.45:
            return chance.choice(RAW)
        if kind < 0.5:
            return chance.randbytes(chance.randrange(2000))
        value = json.loads(json.dumps(chance.choice(SEEDS)))
        for _ in range(chance.randrange(4)):
            value = _changed(value, chance)
        return json.dumps(value).encode()


def _changed(value: Any, chance: random.Random) -> Any:
    """The value with one odd thing somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.2:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        return [_changed(value[0], chance), *value[1:]]
    return chance.choice(ODD)


def nonsense_for_amqp(port: int, seed: int, connections: int) -> None:
    """Frames that are none, at the Service Bus endpoint; each connection must be ended or answered."""
    chance = random.Random(seed)
    sasl, amqp = b"AMQP\x03\x01\x00\x00", b"AMQP\x00\x01\x00\x00"
    opened = struct.pack(">IBBH", 26, 2, 0, 0) + b"\x00\x53\x10\xc0\x0d\x01\xa1\x0afuzzing-me"
    for _ in range(connections):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            size = chance.choice((0, 4, 8, 20, 100, 2**31, 2**32 - 1))
            junk = struct.pack(">IBBH", size, chance.randrange(256), chance.randrange(256), chance.randrange(65536))
            junk += chance.randbytes(chance.randrange(200))
            client.sendall(chance.choice((b"", sasl, amqp, amqp + opened, b"GET / HTTP/1.1\r\n\r\n")) + junk)
            client.shutdown(socket.SHUT_WR)
            while client.recv(4096):
                pass


def ledger_of(state: Path) -> str:
    """A hash of everything the ledger holds."""
    with sqlite3.connect(f"file:{state / 'ledger.db'}?mode=ro", uri=True) as ledger:
        tables = [
            name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        ]
        rows = [row for name in tables for row in ledger.execute(f'SELECT * FROM "{name}" ORDER BY 1, 2')]
    ledger.close()
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def memory_of(state: Path) -> int:
    """Bytes that the host and what it started have in memory."""
    host = int(json.loads((state / "connection.json").read_text())["pid"])
    found, total = [host], 0
    found += [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and _parent(each) == host]
    for pid in found:
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return None


def play(state: Path, requests: int, seed: int) -> None:
    # The sweep and the watcher would change the ledger by themselves.
    quiet = {"DROPFORGE_SWEEP_SCHEDULE": "0 0 0 1 1 *", "DROPFORGE_RECONCILE_SCHEDULE": "0 0 0 1 1 *"}
    with Platform(state, **quiet) as platform:
        platform.client.apply("coin", COIN)
        eventually(lambda: platform.connection.get("service_bus"), 20, platform.log)
        before = ledger_of(state)
        shut_out = Fuzzer(platform, seed, with_keys=False).send(requests // 3)
        assert not shut_out.faults, shut_out.faults[:5]
        assert ledger_of(state) == before, shut_out.statuses
        Fuzzer(platform, seed + 1, with_keys=True).send(requests // 6)
        warm = memory_of(state)
        let_in = Fuzzer(platform, seed + 2, with_keys=True).send(requests // 2)
        assert not let_in.faults, let_in.faults[:5]
        assert let_in.statuses[200] and let_in.statuses[400] and let_in.statuses[401]
        endpoint = platform.connection["service_bus"].split(";")[0].rsplit(":", 1)[1].strip("/")
        nonsense_for_amqp(int(endpoint), seed, max(50, requests // 50))
        grown = memory_of(state) - warm
        # Queues of started work take their room once; a leak of a kilobyte a request would show.
        assert grown < 60 * 2**20 + requests * 200, f"{grown / 2**20:.0f} MiB more after {requests} requests"
        assert platform.client.get("health") == {"status": "ok"}
        assert platform.status("coin")["pipeline"] == "coin"


@pytest.mark.timeout(300)
def test_nonsense_at_every_door_is_refused_without_an_effect(tmp_path: Path) -> None:
    play(tmp_path / "state", 2_400, 1)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_a_hundred_thousand_requests_of_nonsense(tmp_path: Path) -> None:
    play(tmp_path / "state", 100_000, 7)
