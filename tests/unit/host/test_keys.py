"""Keys: made once, kept private, opening what they should and nothing else."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest

from dropforge.host.errors import SettingsError
from dropforge.host.keys import DURABLE_KEY, EVENT_GRID_KEY, AuthLevel, Keys, load_keys

KEYS = Keys(
    master="master-key",
    host={"default": "host-key"},
    system={EVENT_GRID_KEY: "grid-key", DURABLE_KEY: "durable-key"},
    functions={"ping": {"default": "ping-key", "ci": "ping-key-2"}, "pong": {"default": "pong-key"}},
)
EVERY = [None, "", "wrong", "master-key", "host-key", "grid-key", "durable-key", "ping-key", "ping-key-2", "pong-key"]


@pytest.mark.parametrize(
    ("level", "accepted"),
    [
        (AuthLevel.ANONYMOUS, set(EVERY)),
        (AuthLevel.FUNCTION, {"master-key", "host-key", "ping-key", "ping-key-2"}),
        (AuthLevel.ADMIN, {"master-key"}),
    ],
)
def test_a_function_opens_with_its_own_the_host_and_the_master_key(level: AuthLevel, accepted: set[str | None]) -> None:
    assert {key for key in EVERY if KEYS.opens(level, key, "Ping")} == accepted


def test_a_webhook_opens_with_its_system_key_and_the_master_key_only() -> None:
    assert {key for key in EVERY if KEYS.opens_webhook(EVENT_GRID_KEY, key)} == {"master-key", "grid-key"}
    assert {key for key in EVERY if KEYS.opens_webhook("unknown_extension", key)} == {"master-key"}


def test_the_admin_api_opens_with_the_master_key_only() -> None:
    assert {key for key in EVERY if KEYS.opens_admin(key)} == {"master-key"}


# The second is how aiohttp gives a header that is no UTF-8.
@pytest.mark.parametrize("given", ["schlüssel", b"schl\xfcssel".decode("utf-8", "surrogateescape")])
def test_a_key_outside_of_ascii_is_wrong_and_no_error(given: str) -> None:
    assert not KEYS.opens_admin(given)


def test_keys_are_made_once_and_stay(tmp_path: Path) -> None:
    first = load_keys(tmp_path / "keys.json", ["Ping"])
    second = load_keys(tmp_path / "keys.json", ["Ping", "pong"])
    assert (second.master, second.host, second.system) == (first.master, first.host, first.system)
    assert second.functions["ping"] == first.functions["ping"]
    everything = list(second.all())
    assert len(set(everything)) == len(everything) == 8
    assert all(len(key) >= 43 for key in everything)


def test_the_file_is_private_even_if_it_was_not(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    load_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    load_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.json"]


def test_a_file_from_before_there_were_roles_gains_their_keys_and_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"master": "m", "host": {"default": "d", "ci": "c"}}))
    keys = load_keys(path)
    assert keys.host == {**keys.host, "default": "d", "ci": "c"}
    assert set(keys.host) == {"default", "ci", "operator", "reader"}
    assert all(keys.opens(AuthLevel.FUNCTION, keys.host[name], "any") for name in ("operator", "reader"))


def test_roles_are_told_by_hashes_beside_those_that_were_there() -> None:
    host = {"default": "d", "operator": "o", "reader": "r", "ci": "c"}
    told = Keys(master="m", host=host).roles("0123456789abcdef=reader")
    entries = dict(entry.split("=") for entry in told.split(","))
    assert entries.pop("0123456789abcdef") == "reader"
    assert entries == {
        hashlib.sha256(key.encode()).hexdigest(): role
        for key, role in (("m", "approver"), ("d", "approver"), ("o", "operator"), ("r", "reader"))
    }
    assert Keys(master="m", host=host).roles(told) == told


def test_keys_added_by_hand_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    load_keys(path)
    found = json.loads(path.read_text())
    found["host"]["ci"] = "key-of-the-pipeline"
    path.write_text(json.dumps(found))
    assert load_keys(path).opens(AuthLevel.FUNCTION, "key-of-the-pipeline", "any")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', '{"host": {"default": ""}}', '{"master": 5}'])
def test_a_broken_file_is_refused_and_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"keys\.json"):
        load_keys(path)
    assert path.read_text() == content
