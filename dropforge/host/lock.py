"""One host per state folder."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from dropforge.host.errors import StateBusy


class StateLock:
    """Holds `<state>/host.lock` while the process lives; the kernel lets go of it however the process ends."""

    def __init__(self, state: Path) -> None:
        self._path = state / "host.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the folder. Raises `StateBusy`, which says who has it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Not inherited by sidecars: an orphan must not hold the folder.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _describe(os.pread(descriptor, 4096, 0))
            os.close(descriptor)
            raise StateBusy(
                f"the state folder {self._path.parent} is in use by another host ({holder}); "
                "stop that one, or choose another folder"
            ) from error
        self._descriptor = descriptor
        self.tell(None)

    def tell(self, url: str | None) -> None:
        """Write into the lock who holds it and where it answers."""
        assert self._descriptor is not None, "acquire the lock first"
        text = json.dumps({"pid": os.getpid(), "url": url}).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        url = f" at {holder['url']}" if holder.get("url") else ", starting"
        return f"process {holder['pid']}{url}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "process unknown"
