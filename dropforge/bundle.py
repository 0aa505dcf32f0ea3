"""A pipeline's folder as a zip: how files stand in it; and how it is unpacked, with nothing outside the folder, nothing but
plain files, within limits."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from dropforge.domain.errors import BadInput

MAX_BYTES = 1024**3
MAX_FILES = 20_000
_CHUNK_BYTES = 1024**2


def entry_of(name: str, *, executable: bool) -> zipfile.ZipInfo:
    """How a file stands in the zip: without its time, so that equal files make equal zips."""
    made = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    if executable:
        made.external_attr = (stat.S_IFREG | 0o755) << 16
    return made


def is_executable(entry: zipfile.ZipInfo) -> bool:
    """Whether it is a program that can be started by its name."""
    mode = entry.external_attr >> 16
    return stat.S_IFMT(mode) in (0, stat.S_IFREG) and bool(mode & stat.S_IXUSR)


def unpack(bundle: Path, folder: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Unpack into the folder, which must not be there yet. Raises `BadInput`, and leaves no folder, for a zip that is
    broken, too large once unpacked, or that holds links or paths that lead out of it."""
    try:
        folder.mkdir(parents=True)
        with zipfile.ZipFile(bundle) as archive:
            entries = archive.infolist()
            if len(entries) > max_files:
                raise BadInput(f"wanted a bundle of at most {max_files:,} files, found {len(entries):,}")
            left = max_bytes
            for entry in entries:
                left -= _unpack_one(archive, entry, folder, left, max_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError, ValueError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadInput(f"the pipeline's code cannot be unpacked: {error}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack_one(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, left: int, max_bytes: int) -> int:
    """Bytes written. Counted as they come out: what the zip claims is not believed."""
    name, mode = PurePosixPath(entry.filename), entry.external_attr >> 16
    if name.is_absolute() or ".." in name.parts or "\\" in entry.filename or "\x00" in entry.orig_filename:
        raise BadInput(f"the bundle has a file outside its folder: {entry.filename!r}")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadInput(f"the bundle holds {entry.filename!r}, which is a link or a device; put plain files in it")
    target = folder / name
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(entry) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > left:
                raise BadInput(f"wanted a bundle of at most {max_bytes:,} bytes once unpacked, found more")
            file.write(chunk)
    if is_executable(entry):
        target.chmod(0o755)
    return size
