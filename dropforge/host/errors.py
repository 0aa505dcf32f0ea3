"""Why the host could not start, each with the exit code of its kind.

HostError          1
  StateUnusable    1   the state folder, or what lies in it, cannot be used
  SettingsError    2   local.settings.json, host.json or keys.json cannot be used
  AppError         2   function_app.py cannot be loaded
  StateBusy        3   another host works on the same state folder
  PortInUse        4   another program listens on the port
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar


class HostError(Exception):
    """Says in one or a few lines what was wanted, what was found and what to do."""

    exit_code: ClassVar[int] = 1


class StateUnusable(HostError):
    def __init__(self, state: Path, found: Exception) -> None:
        super().__init__(
            f"the host cannot start on the state folder {state}: {found}; wanted a folder that this user may write, with "
            "room on its disk and with files as a host leaves them: repair it, or choose another with --state"
        )


class SettingsError(HostError):
    exit_code = 2


class AppError(HostError):
    exit_code = 2


class StateBusy(HostError):
    exit_code = 3


class PortInUse(HostError):
    exit_code = 4
