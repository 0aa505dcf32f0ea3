"""One process per state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dropforge.servicebus.errors import StateBusy


class FolderLock:
    """Holds `<folder>/servicebus.lock` while the process lives; the kernel lets go of it however the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, and make it if needed. Raises `StateBusy`, which says who has it."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor: int | None = os.open(folder / "servicebus.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            self.release()
            raise StateBusy(
                f"the state folder {folder} is in use by process {holder}; stop that one, or choose another folder"
            ) from error
        text = str(os.getpid()).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def release(self) -> None:
        """A second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
