"""Files that appear whole or not at all, folders that survive a power cut, and locks between processes."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

STALE_SECONDS = 3600.0


@contextmanager
def whole_file(target: Path, *, through: Path | None = None, durable: bool = True) -> Iterator[BinaryIO]:
    """Write to a hidden file, which takes the place of the target when the block ends well and goes away when not.

    `through`: the folder of the hidden file, on the target's file system; the target's own folder when None.
    `durable`: on return a power cut does not lose it.
    """
    part = (through or target.parent) / f".{uuid.uuid4().hex}.part"
    try:
        with part.open("xb") as writer:
            yield writer
            if durable:
                writer.flush()
                os.fsync(writer.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    if durable:
        sync_folder(target.parent)


def make_folders(folder: Path) -> None:
    """Make the folder and its parents, each entry durable before something is put inside."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in the folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_stale(folder: Path, now: float | None = None) -> None:
    """Take away what killed writers left in the folder. Whoever still writes has written within the hour."""
    before = (time.time() if now is None else now) - STALE_SECONDS
    with suppress(FileNotFoundError):
        for left in folder.iterdir():
            with suppress(FileNotFoundError):
                if left.name.endswith(".part") and left.stat().st_mtime < before:
                    left.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among threads and processes; the lock goes with its holder, however that ends."""
    # Each entry opens the file anew: these locks belong to the opening, so threads exclude each other too.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
