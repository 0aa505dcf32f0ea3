"""Model files from far away, kept on this machine under their sha256."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from dropforge.adapters.local.atomic import remove_stale, whole_file
from dropforge.domain.errors import BadInput, Unavailable

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Cache:
    """At most `limit_bytes` of model files in a folder of its own, the ones used last; what serves always stays, so that a
    replica that is started again, or rolled back, has it at hand. Used by one thread."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            remove_stale(folder)
        except OSError as error:
            raise BadInput(
                f"models cannot be kept in {folder}: {error.strerror}; name another folder in DROPFORGE_SERVE_CACHE"
            ) from error
        self._folder = folder
        self._limit_bytes = limit_bytes

    def file(self, sha256: str, fetch: Callable[[], tuple[int, Iterator[bytes]]], keep: Collection[str]) -> Path:
        """The file with those bytes; when it is not here, `fetch` tells its size and its pieces. `keep`: what serves.
        Raises `BadInput` for other bytes, `Unavailable` when they cannot be kept, and what `fetch` raises."""
        sha256 = sha256.lower()
        if not _SHA256.fullmatch(sha256):
            raise BadInput(f"sha256 {sha256[:80]!r} of a model is not 64 hex digits; publish the one of its file")
        path = self._folder / f"{sha256}.onnx"
        try:
            if self._holds(path, sha256):
                os.utime(path)
            else:
                self._take(path, sha256, fetch, keep)
        except OSError as error:
            raise Unavailable(f"cannot keep the model file {path}: {error.strerror or error}") from error
        return path

    def _holds(self, path: Path, sha256: str) -> bool:
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except FileNotFoundError:
            return False

    def _take(
        self, path: Path, sha256: str, fetch: Callable[[], tuple[int, Iterator[bytes]]], keep: Collection[str]
    ) -> None:
        size, pieces = fetch()
        self._make_room(size, {each.lower() for each in keep} | {sha256})
        digest, taken = hashlib.sha256(), 0
        with whole_file(path, durable=False) as writer:
            for piece in pieces:
                digest.update(piece)
                taken += len(piece)
                writer.write(piece)
            if digest.hexdigest() != sha256:
                raise BadInput(f"the model fetched ({taken} bytes): wanted sha256 {sha256}, found {digest.hexdigest()}")

    def _make_room(self, size: int, keep: Collection[str]) -> None:
        """Let the ones go that were used longest ago, until `size` more fit or nothing may go."""
        held = sorted((path.stat().st_mtime_ns, path) for path in self._folder.glob("*.onnx"))
        total = size + sum(path.stat().st_size for _, path in held)
        for _, path in held:
            if total <= self._limit_bytes:
                return
            if path.stem not in keep:
                total -= path.stat().st_size
                with suppress(FileNotFoundError):
                    path.unlink()
