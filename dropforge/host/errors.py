"""Why the host could not start, each with the exit code of its kind.

HostError          1
  SettingsError    2   local.settings.json, host.json or keys.json cannot be used
  AppError         2   function_app.py cannot be loaded
  StateBusy        3   another host works on the same state folder
  PortInUse        4   another program listens on the port
"""

from __future__ import annotations

from typing import ClassVar


class HostError(Exception):
    """Says in one or a few lines what was wanted, what was found and what to do."""

    exit_code: ClassVar[int] = 1


class SettingsError(HostError):
    exit_code = 2


class AppError(HostError):
    exit_code = 2


class StateBusy(HostError):
    exit_code = 3


class PortInUse(HostError):
    exit_code = 4
