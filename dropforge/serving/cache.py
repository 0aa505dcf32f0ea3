"""Model files from far away, kept on this machine under their sha256."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from dropforge.adapters.local.atomic import locked, remove_stale, whole_file
from dropforge.domain.errors import BadInput, Unavailable

_SHA256 = re.compile(r"[0-9a-f]{64}")

# Tells a file's size and its pieces.
Fetch = Callable[[], tuple[int, Iterator[bytes]]]


class Cache:
    """At most `limit_bytes` of model files in a folder, the ones used last; what serves always stays, so that a replica that
    is started again, or rolled back, has it at hand. All replicas of this machine may share the folder: a file is fetched by
    one of them, and stays while it serves in any. Used by one thread of each."""

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
        # By their sha256 the open files of what serves here. Each is locked as shared: whoever makes room sees that, and
        # when this process ends, however it does, the locks go with it.
        self._held: dict[str, int] = {}

    def file(self, sha256: str, fetch: Fetch, keep: Collection[str]) -> Path:
        """The file with those bytes; it is fetched when it is not here. `keep`: what serves.
        Raises `BadInput` for other bytes, `Unavailable` when they cannot be kept, and what `fetch` raises."""
        sha256 = sha256.lower()
        if not _SHA256.fullmatch(sha256):
            raise BadInput(f"sha256 {sha256[:80]!r} of a model is not 64 hex digits; publish the one of its file")
        serves = {each.lower() for each in keep} | {sha256}
        for gone in self._held.keys() - serves:
            os.close(self._held.pop(gone))
        path = self._folder / f"{sha256}.onnx"
        try:
            # By its first digit: who wants the same file waits for it, and hardly anybody else.
            with locked(self._folder / f".{sha256[0]}.lock"):
                if not self._hold(path, sha256, known=False):
                    self._take(path, sha256, fetch, serves)
                    self._hold(path, sha256, known=True)
        except OSError as error:
            raise Unavailable(f"cannot keep the model file {path}: {error.strerror or error}") from error
        return path

    def _hold(self, path: Path, sha256: str, *, known: bool) -> bool:
        """Let nobody remove the file from here on; False when it is not here. `known`: it has those bytes."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)
            status = os.fstat(file.fileno())
            # It may have been removed before it was locked.
            if not status.st_nlink:
                return False
            if not known and hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                return False
            # Read, not written: another process may be loading it, and looks whether it changes.
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
            # Only now, so that it is never free for others to remove.
            if sha256 in self._held:
                os.close(self._held[sha256])
            self._held[sha256] = os.dup(file.fileno())
        return True

    def _take(self, path: Path, sha256: str, fetch: Fetch, serves: Collection[str]) -> None:
        size, pieces = fetch()
        self._make_room(size, serves)
        digest, taken = hashlib.sha256(), 0
        with whole_file(path, durable=False) as writer:
            for piece in pieces:
                digest.update(piece)
                taken += len(piece)
                writer.write(piece)
            if digest.hexdigest() != sha256:
                raise BadInput(f"the model fetched ({taken} bytes): wanted sha256 {sha256}, found {digest.hexdigest()}")

    def _make_room(self, size: int, serves: Collection[str]) -> None:
        """Let the ones go that were used longest ago, until `size` more fit or nothing may go."""
        found = sorted(_aged(self._folder.glob("*.onnx")))
        total = size + sum(each for _, each, _ in found)
        for _, each, path in found:
            if total <= self._limit_bytes:
                return
            if path.stem not in serves and _removed(path):
                total -= each


def _aged(paths: Iterable[Path]) -> Iterator[tuple[int, int, Path]]:
    """When each was used last, its size, and the path."""
    for path in paths:
        # Others remove files as well.
        with suppress(FileNotFoundError):
            status = path.stat()
            yield status.st_atime_ns, status.st_size, path


def _removed(path: Path) -> bool:
    """Remove a file that serves nowhere."""
    # To be written, as network file systems want it of a file that is locked alone.
    with suppress(FileNotFoundError), path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.fstat(file.fileno()).st_nlink:
            path.unlink()
    return True
