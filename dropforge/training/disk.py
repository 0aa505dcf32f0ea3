"""Files that appear whole, and what an error of the file system means to a person."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What mounted folders say that have no renaming.
_NO_RENAMING = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EPERM, errno.EXDEV})


def put(target: Path, content: bytes | Path) -> None:
    """Write or copy, whole or not at all. Where a folder cannot rename, a file is there once it is closed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    _write(part, content)
    try:
        part.replace(target)
    except OSError as error:
        if error.errno not in _NO_RENAMING:
            raise
        _write(target, content)
        part.unlink(missing_ok=True)


def part_of(target: Path) -> Path:
    """What a file is called while it is being written."""
    return target.with_name(f".{target.name}.part")


def _write(path: Path, content: bytes | Path) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)


def why(error: OSError) -> str:
    """One line, with the file when it is known."""
    said = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
    return f"the disk is full: {said}" if error.errno in FULL else said
