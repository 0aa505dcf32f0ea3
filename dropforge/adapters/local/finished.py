"""When a file on disk counts as dropped, and the etag of one write of it. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat as modes
from pathlib import PurePath

SETTLE_SECONDS = 0.5
# An empty file is what an upload looks like before its first byte. One that stays so is a drop, and a bad one: it is
# announced, so that its quarantine can say what is wrong with it.
EMPTY_SETTLE_SECONDS = 3.0
# What editors, browsers and copy tools call a file they have not finished.
UNFINISHED_SUFFIXES = (".tmp", ".part", ".crdownload", "~")

# What no URL can carry: control characters, and bytes that are not UTF-8 as Python shows them.
UNSAYABLE = re.compile("[\x00-\x1f\ud800-\udfff]")
_MASK = 0xFFFF_FFFF_FFFF_FFFF


def etag_of(stat: os.stat_result) -> str:
    """The etag of this write of a file: another write, in place or by rename, has another one."""
    return f"0x{stat.st_mtime_ns & _MASK:016X}{stat.st_size & _MASK:016X}{stat.st_ino & _MASK:016X}"


def is_ignored(path: str | PurePath) -> bool:
    """Whether a path, relative to the drop folder, names something nobody drops: hidden (at any depth), the unfinished
    file of a copy tool, or a name no URL can carry (control characters, not UTF-8)."""
    # As text: a path object would intern every name it meets.
    parts = [part for part in str(path).split("/") if part]
    return (
        not parts
        or any(part.startswith(".") or UNSAYABLE.search(part) for part in parts)
        or parts[-1].lower().endswith(UNFINISHED_SUFFIXES)
    )


def is_finished(
    path: str | os.PathLike[str], stat: os.stat_result, now: float, settle_seconds: float = SETTLE_SECONDS
) -> bool:
    """Whether the file is a whole upload: regular, unchanged for `settle_seconds` (empty: for longer), and open for
    writing nowhere. `now` is Unix seconds. The watcher and the sweep ask the same question, so neither announces half a
    file.

    The time rule looks at ctime, which a copy that restores the old mtime cannot set back; a ctime in the future (the
    clock was set back) says nothing and passes.
    """
    if not modes.S_ISREG(stat.st_mode):
        return False
    if stat.st_size == 0:
        settle_seconds = max(settle_seconds, EMPTY_SETTLE_SECONDS)
    if 0 <= now - stat.st_ctime < settle_seconds:
        return False
    return not _is_open_for_writing(path)


def _is_open_for_writing(path: str | os.PathLike[str]) -> bool:
    """Ask the kernel for a read lease, which it refuses while any process has the file open for writing.

    False also where it cannot say: files of other users, file systems without leases, writers on other machines.
    """
    try:
        # Not blocking: the path may have become a FIFO, or another process may hold a lease of its own.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    try:
        # A writer that opens the file while the lease stands makes the kernel signal this process. The default is
        # SIGIO, which kills it; SIGURG is ignored unless somebody asks for it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    except AttributeError:  # not Linux
        return False
    else:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    finally:
        os.close(fd)
