"""Artifacts in memory: for tests and rehearsals."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from dropforge.adapters.artifact_names import checked_artifact
from dropforge.domain.errors import Conflict, NotFound


class MemoryArtifacts:
    """`Artifacts` that live as long as the object. Nobody outside the process finds them by their `uri`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._contents: dict[str, bytes] = {}

    def put(self, name: str, source: bytes | Path) -> str:
        checked_artifact(name)
        content = source if isinstance(source, bytes) else source.read_bytes()
        with self._lock:
            found = self._contents.setdefault(name, content)
        if found != content:
            raise Conflict(
                f"artifact {name!r} holds other bytes; artifacts never change: choose another name", name=name
            )
        return hashlib.sha256(content).hexdigest()

    def read(self, name: str) -> bytes:
        try:
            return self._contents[checked_artifact(name)]
        except KeyError:
            raise NotFound(f"no artifact {name!r}", name=name) from None

    def fetch(self, name: str, to: Path) -> str:
        content = self.read(name)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def uri(self, name: str) -> str:
        return f"memory:///{checked_artifact(name)}"

    def list(self, prefix: str) -> Iterator[str]:
        with self._lock:
            return iter(sorted(name for name in self._contents if name.startswith(prefix)))
