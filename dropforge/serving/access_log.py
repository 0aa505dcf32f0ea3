"""A line of JSON for every request over HTTP/1.1, whatever became of it. Off, it is not there: it stands in front of the app.

{"at":"2026-01-31T07:00:00.123456Z","method":"POST","path":"/v2/models/flights/infer","status":200,"seconds":0.00031,...}
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import msgspec

from dropforge.domain.errors import BadInput
from dropforge.serving.callers import REQUEST_ID
from dropforge.serving.heads import Head, Heads
from dropforge.serving.http1 import App, Owed

log = logging.getLogger(__name__)

GATHERED = 512
FLUSH_SECONDS = 0.5
# Characters of a path that are told.
PATH = 500
# Of an answer's own headers, those that are told.
_TOLD = {
    b"dropforge-model": "model",
    b"dropforge-version": "version",
    b"dropforge-dataset-version": "dataset_version",
    REQUEST_ID.encode(): "request_id",
}


class AccessLog:
    """Lines gather for a moment and are written together."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._lines: list[bytes] = []

    def of(self, app: App) -> App:
        """The app, and a line for each of its answers."""
        return _Logged(app, self)

    async def run(self) -> None:
        """Write what has gathered, again and again."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            self.flush()

    def flush(self) -> None:
        """Write what has gathered. What cannot be written is let go: no request waits for its line."""
        lines, self._lines = self._lines, []
        if lines:
            try:
                self._out.write(b"".join(lines))
                self._out.flush()
            except OSError as error:
                log.warning("%d lines of the access log are lost: %s", len(lines), error)

    def close(self) -> None:
        self.flush()
        if self._out is not sys.stdout.buffer:
            self._out.close()

    def add(self, told: dict[str, Any]) -> None:
        self._lines.append(msgspec.json.encode(told) + b"\n")
        if len(self._lines) >= GATHERED:
            self.flush()


def open_access_log(place: str) -> AccessLog:
    """To the end of a file, or (`-`) to standard output. Raises `BadInput`."""
    if place == "-":
        return AccessLog(sys.stdout.buffer)
    try:
        # In one piece, so that several processes may write to one file.
        return AccessLog(Path(place).open("ab", buffering=0))
    except OSError as error:
        raise BadInput(f"cannot write the access log to {place}: {error.strerror}; name another file") from error


class _Logged:
    """An app, looked at from the front."""

    def __init__(self, app: App, lines: AccessLog) -> None:
        self.heads: Heads[Any] = app.heads
        self._app = app
        self._lines = lines

    @property
    def now(self) -> float:
        return self._app.now

    def refusal(self, head: Head[Any]) -> bytes | None:
        data = self._app.refusal(head)
        if data is not None:
            self._tell(head, data, 0, 0.0)
        return data

    def answer(self, head: Head[Any], body: bytes, owe: Callable[[], Owed]) -> bytes | None:
        began = time.perf_counter()

        def watched() -> Any:
            return _Watched(owe(), lambda data: self._tell(head, data, len(body), time.perf_counter() - began))

        data = self._app.answer(head, body, watched)
        if data is not None:
            self._tell(head, data, len(body), time.perf_counter() - began)
        return data

    def error(self, status: int, message: str) -> bytes:
        data = self._app.error(status, message)
        self._tell(None, data, 0, 0.0)
        return data

    def _tell(self, head: Head[Any] | None, data: bytes, body_bytes: int, seconds: float) -> None:
        first, _, rest = data.partition(b"\r\n\r\n")[0].partition(b"\r\n")
        told: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "method": head.method if head is not None else None,
            "path": head.path[:PATH] if head is not None else None,
            "status": int(first[9:12]),
            "seconds": round(seconds, 6),
            "received_bytes": body_bytes,
            "sent_bytes": len(data),
        }
        if head is not None and (request_id := head.header(REQUEST_ID)) is not None:
            told["request_id"] = request_id
        for line in rest.split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if (key := _TOLD.get(name.lower())) is not None:
                told[key] = value.decode("latin-1")
        self._lines.add(told)


class _Watched:
    """A place for an answer that is told of."""

    __slots__ = ("_place", "_tell")

    def __init__(self, place: Owed, tell: Callable[[bytes], None]) -> None:
        self._place = place
        self._tell = tell

    @property
    def connection(self) -> Any:
        return self._place.connection

    @property
    def gone(self) -> bool:
        return self._place.gone

    def give(self, data: bytes) -> None:
        self._tell(data)
        self._place.give(data)
