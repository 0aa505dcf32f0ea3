"""The drop store in memory: for tests and rehearsals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock

from dropforge.domain.blobs import BlobRef, parse_url
from dropforge.domain.errors import BadInput, Conflict, NotFound
from dropforge.ports import Drop


@dataclass(frozen=True)
class _File:
    drop: Drop
    content: bytes


EMPTY_SETTLE = timedelta(seconds=3)


class MemoryDrops:
    """`Drops` that live as long as the object. `write` and `remove` are what people do to a drop store."""

    def __init__(self, container: str = "drops", clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._container = container
        self._clock = clock
        self._lock = Lock()
        self._files: dict[str, _File] = {}
        self._writes = 0

    def locate(self, url: str) -> BlobRef:
        ref = parse_url(url)
        if ref != self._ref(ref.path):
            raise NotFound(f"{url} is not in this store", url=url)
        return ref

    def look(self, url: str) -> Drop | None:
        file = self._files.get(self.locate(url).path)
        return None if file is None else replace(file.drop, finished=self._is_finished(file))

    def list(self, container: str, prefix: str) -> Iterator[Drop]:
        self._check_container(container)
        with self._lock:
            found = sorted(
                path for path, file in self._files.items() if path.startswith(prefix) and self._is_finished(file)
            )
        return (file.drop for path in found if (file := self._files.get(path)))

    def _is_finished(self, file: _File) -> bool:
        # An empty file is what an upload looks like before its first byte; one that stays so is a drop.
        return bool(file.content) or file.drop.modified_at < self._clock() - EMPTY_SETTLE

    def fetch(self, url: str, etag: str, to: Path) -> None:
        file = self._files.get(self.locate(url).path)
        if file is None:
            raise NotFound(f"{url} is gone", url=url)
        if file.drop.etag != etag:
            raise Conflict(
                f"{url} has been written again: wanted etag {etag}, found {file.drop.etag}",
                url=url,
                etag=file.drop.etag,
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(file.content)

    def put(self, container: str, path: str, source: Path) -> Drop:
        self._check_container(container)
        return self.write(path, source.read_bytes())

    def write(self, path: str, content: bytes) -> Drop:
        """A file is written, or written again: each time with another etag."""
        url = self._ref(path).url
        if not path or path.endswith("/") or parse_url(url).path != path:
            raise BadInput(f"drop path {path!r} cannot be dropped; use a relative path such as 'flights/day.csv'")
        with self._lock:
            self._writes += 1
            drop = Drop(url, f"0x{self._writes:016X}", len(content), self._clock())
            self._files[path] = _File(drop, content)
        return drop

    def remove(self, path: str) -> None:
        """A file is taken away."""
        with self._lock:
            del self._files[path]

    def _ref(self, path: str) -> BlobRef:
        return BlobRef("local", self._container, path)

    def _check_container(self, container: str) -> None:
        if container != self._container:
            raise NotFound(f"no container {container!r}; there is one: {self._container!r}")
