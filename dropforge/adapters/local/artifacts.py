"""Artifacts as files: `models/flights/ab12/model.onnx` is that path under the root."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from dropforge.adapters.artifact_names import checked_artifact
from dropforge.adapters.local.atomic import make_folders, remove_stale, sync_folder, whole_file
from dropforge.domain.errors import BadInput, Conflict, NotFound, Unavailable

_CHUNK = 1 << 20


class LocalArtifacts:
    """`Artifacts` under a folder on a local disk, shared by the threads and processes of this machine.

    Here a name cannot also be the folder of another (`a` and `a/b`): the second of them is `BadInput`.
    """

    def __init__(self, root: Path) -> None:
        make_folders(root)
        self._root = root.resolve()
        # Hidden, so that nothing lists it; inside the root, so that a link out of it is atomic.
        self._incoming = self._root / ".incoming"
        make_folders(self._incoming)
        remove_stale(self._incoming)

    def put(self, name: str, source: bytes | Path) -> str:
        target = self._path(name)
        part = self._incoming / f"{uuid.uuid4().hex}.part"
        try:
            if target.is_file():
                sha256 = self._same(name, _sha256_of(source))
            else:
                sha256 = _write(part, source)
                make_folders(target.parent)
                try:
                    # Unlike a rename, a link never replaces: of two writers one wins, and the other compares.
                    os.link(part, target)
                except FileExistsError:
                    if target.is_dir():
                        raise
                    self._same(name, sha256)
            # Also where the bytes were there already: whoever put them may not have come as far as this.
            sync_folder(target.parent)
        except (FileExistsError, NotADirectoryError) as error:
            raise BadInput(f"artifact {name!r} lies under, or holds, another artifact; choose another name") from error
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unavailable(f"artifact {name!r} cannot be stored: {error}", name=name) from error
        finally:
            with suppress(OSError):
                part.unlink()
        return sha256

    def read(self, name: str) -> bytes:
        with self._open(name) as reader:
            return reader.read()

    def fetch(self, name: str, to: Path) -> str:
        with self._open(name) as reader:
            to.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(to, durable=False) as writer:
                return _copy(reader, writer)

    def uri(self, name: str) -> str:
        return self._path(name).as_uri()

    def list(self, prefix: str) -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        if ".." in folder.split("/") or prefix.startswith("/"):
            return iter(())
        return self._walk(f"{folder}/" if folder else "", prefix)

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        """Depth first, a folder sorting as its name with a slash: exactly the order of the whole names."""
        try:
            with os.scandir(self._root / folder) as entries:
                names = sorted(
                    each.name + "/" if each.is_dir() else each.name for each in entries if each.name[0] != "."
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in (folder + each for each in names):
            if name.endswith("/"):
                if name.startswith(prefix) or prefix.startswith(name):
                    yield from self._walk(name, prefix)
            elif name.startswith(prefix):
                yield name

    def _path(self, name: str) -> Path:
        return self._root / checked_artifact(name)

    def _open(self, name: str) -> BufferedReader:
        try:
            return self._path(name).open("rb")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"no artifact {name!r}", name=name) from error
        except OSError as error:
            raise Unavailable(f"artifact {name!r} cannot be read: {error}", name=name) from error

    def _same(self, name: str, sha256: str) -> str:
        with self._open(name) as reader:
            found = hashlib.file_digest(reader, "sha256").hexdigest()
        if found != sha256:
            raise Conflict(
                f"artifact {name!r} holds other bytes (sha256 {found}, wanted {sha256}); "
                "artifacts never change: choose another name",
                name=name,
            )
        return found


def _sha256_of(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as reader:
        return hashlib.file_digest(reader, "sha256").hexdigest()


def _write(part: Path, source: bytes | Path) -> str:
    with part.open("xb") as writer:
        if isinstance(source, bytes):
            writer.write(source)
            sha256 = hashlib.sha256(source).hexdigest()
        else:
            with source.open("rb") as reader:
                sha256 = _copy(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
        # Whoever opens it by its path is kept from changing it by mistake.
        os.fchmod(writer.fileno(), 0o444)
    return sha256


def _copy(reader: BinaryIO, writer: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := reader.read(_CHUNK):
        digest.update(chunk)
        writer.write(chunk)
    return digest.hexdigest()
