"""The drop store as a folder: `<root>/flights/day.csv` is `https://local.blob.localhost/drops/flights/day.csv`."""

from __future__ import annotations

import errno
import heapq
import logging
import os
import shutil
import stat as modes
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from dropforge.adapters.local.atomic import make_folders, remove_stale, whole_file
from dropforge.adapters.local.finished import SETTLE_SECONDS, UNSAYABLE, etag_of, is_finished, is_ignored
from dropforge.domain.blobs import BlobRef, parse_url
from dropforge.domain.errors import BadInput, Conflict, NotFound, Unavailable
from dropforge.ports import Drop

__all__ = ["LocalDrops", "etag_of", "is_finished", "is_ignored"]

ACCOUNT = "local"
# Names of one folder held in memory at a time while it is listed.
PAGE = 10_000
_CHUNK = 1 << 20
_IMPOSSIBLE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
# Gone meanwhile, a dangling link or a circle of them, or longer than any path that can have been listed.
_NOTHING_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}

log = logging.getLogger(__name__)


class LocalDrops:
    """`Drops` over a folder. What counts as finished, and what is ignored, is said in `finished.py`.

    The container is the folder itself. Links to files inside the folder are followed, all other links are ignored.
    """

    def __init__(
        self,
        root: Path,
        container: str = "drops",
        settle_seconds: float = SETTLE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        make_folders(root)
        self._root = root.resolve()
        self._container = container
        self._settle_seconds = settle_seconds
        self._clock = clock
        # Hidden, so that nothing lists it; inside the root, so that a rename out of it is atomic.
        self._incoming = self._root / ".incoming"
        remove_stale(self._incoming, clock())

    def locate(self, url: str) -> BlobRef:
        ref = parse_url(url)
        if ref.account != ACCOUNT or ref.container != self._container:
            raise NotFound(
                f"{url} is not in the drop folder of this machine, which is account {ACCOUNT!r}, container "
                f"{self._container!r}",
                url=url,
            )
        return ref

    def look(self, url: str) -> Drop | None:
        path = self.locate(url).path
        # As `list` sees it: what that passes over is not there.
        return None if is_ignored(path) or not self._is_ours(self._root / path, path) else self._look(path)

    def list(self, container: str, prefix: str) -> Iterator[Drop]:
        self._check_container(container)
        folder = prefix.rpartition("/")[0]
        if folder and (is_ignored(f"{folder}/x") or not self._is_ours(self._root / folder, folder)):
            return iter(())
        return self._walk(f"{folder}/" if folder else "", prefix)

    def fetch(self, url: str, etag: str, to: Path) -> None:
        source = self._path_of(url)
        try:
            # Not blocking: opening a FIFO would wait for its writer.
            fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"{url} is gone", url=url) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                # A circle of links: from Python 3.13 on, `Path.resolve` follows it no further and says nothing.
                raise NotFound(f"{url} is not a file", url=url) from error
            raise Unavailable(f"{url} cannot be read: {error.strerror}; check its permissions", url=url) from error
        before = os.fstat(fd)
        if not modes.S_ISREG(before.st_mode):
            os.close(fd)
            raise NotFound(f"{url} is not a file", url=url)
        with os.fdopen(fd, "rb") as reader:
            self._check_etag(url, etag, before)
            to.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(to, durable=False) as writer:
                shutil.copyfileobj(reader, writer, _CHUNK)
                # A file renamed over the path leaves the one we read as it was; a write in place shows here.
                self._check_etag(url, etag, os.fstat(fd))

    def put(self, container: str, path: str, source: Path) -> Drop:
        self._check_container(container)
        ref = self._checked_ref(path)
        target = self._root / path
        with source.open("rb") as reader:
            try:
                if not self._is_ours(target.parent, path):
                    raise BadInput(f"drop path {path!r} leaves the drop folder through a link", path=path)
                make_folders(self._incoming)
                make_folders(target.parent)
                with whole_file(target, through=self._incoming) as writer:
                    shutil.copyfileobj(reader, writer, _CHUNK)
                    writer.flush()
                    stat = os.fstat(writer.fileno())
            except OSError as error:
                if error.errno in _IMPOSSIBLE:
                    raise BadInput(
                        f"drop path {path!r} is too long, runs through a file or names a folder; choose another"
                    ) from error
                raise Unavailable(f"{path!r} cannot be dropped: {error}", path=path) from error
        return _drop(ref, stat)

    # -------------------------------------------------------------------------------------------- walking
    def _walk(self, folder: str, prefix: str) -> Iterator[Drop]:
        """Depth first, a folder sorting as its name with a slash: exactly the order of the full paths."""
        last = ""
        while page := heapq.nsmallest(PAGE, (name for name in self._names(folder, prefix) if name > last)):
            for name in page:
                if name.endswith("/"):
                    yield from self._walk(folder + name, prefix)
                elif (drop := self._look(folder + name)) and drop.finished:
                    yield drop
            if len(page) < PAGE:
                return
            last = page[-1]

    def _names(self, folder: str, prefix: str) -> Iterator[str]:
        try:
            entries = os.scandir(f"{self._root}/{folder}")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            # Passed over, all that lies in it would count as deleted.
            raise Unavailable(
                f"the folder {folder or '.'!r} of the drop folder cannot be listed: {error.strerror}; check its permissions, "
                "or move it away"
            ) from error
        with entries:
            for entry in entries:
                # A linked folder is not walked: it could lead out of the root, or round in a circle.
                is_folder = entry.is_dir(follow_symlinks=False)
                name = entry.name + "/" if is_folder else entry.name
                path = folder + name
                if not (path.startswith(prefix) or (is_folder and prefix.startswith(path))):
                    continue
                if entry.name.startswith("."):
                    continue
                if UNSAYABLE.search(entry.name):
                    log.warning("%r is ignored: its name is not UTF-8 or holds control characters", path)
                    continue
                if not is_folder and is_ignored(entry.name):
                    continue
                yield name

    def _look(self, path: str) -> Drop | None:
        # As text: a path object would intern every name it meets.
        file = f"{self._root}/{path}"
        try:
            stat = os.lstat(file)
            if modes.S_ISLNK(stat.st_mode):
                if not self._is_ours(Path(file), path):
                    return None
                stat = os.stat(file)  # noqa: PTH116
        except OSError as error:
            if error.errno in _NOTHING_THERE:
                return None
            raise Unavailable(
                f"{path!r} in the drop folder cannot be looked at: {error.strerror}; check the permissions of its folder"
            ) from error
        if not modes.S_ISREG(stat.st_mode):
            return None
        finished = is_finished(file, stat, self._clock(), self._settle_seconds)
        return _drop(BlobRef(ACCOUNT, self._container, path), stat, finished)

    # -------------------------------------------------------------------------------------------- checks
    def _check_container(self, container: str) -> None:
        if container != self._container:
            raise NotFound(f"no container {container!r}; this machine has one: {self._container!r}")

    def _check_etag(self, url: str, etag: str, stat: os.stat_result) -> None:
        found = etag_of(stat)
        if found != etag:
            raise Conflict(f"{url} has been written again: wanted etag {etag}, found {found}", url=url, etag=found)

    def _checked_ref(self, path: str) -> BlobRef:
        ref = BlobRef(ACCOUNT, self._container, path)
        if is_ignored(path) or path.endswith("/") or parse_url(ref.url) != ref:
            raise BadInput(
                f"drop path {path!r} cannot be dropped; use a relative path such as 'flights/day.csv', "
                "no part of it hidden, not ending in .tmp, .part, .crdownload or ~",
                path=path,
            )
        return ref

    def _path_of(self, url: str) -> Path:
        ref = self.locate(url)
        path = self._root / ref.path
        if not self._is_ours(path, ref.path):
            raise NotFound(f"{url} leads out of the drop folder of this machine", url=url)
        return path

    def _is_ours(self, path: Path, relative: str) -> bool:
        """Whether the path stays under the root once links are followed, and away from the hidden folder."""
        if relative.startswith("/") or ".." in relative.split("/"):
            return False
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError, ValueError):  # a circle of links, a name too long, a NUL
            return False
        return resolved.is_relative_to(self._root) and not resolved.is_relative_to(self._incoming)


def _drop(ref: BlobRef, stat: os.stat_result, finished: bool = True) -> Drop:
    modified = datetime.fromtimestamp(stat.st_mtime, UTC)
    return Drop(ref.url, etag_of(stat), stat.st_size, modified, finished)
