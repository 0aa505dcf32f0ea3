"""What it takes to serve one type of trigger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aiohttp import web

from dropforge.host.app import AppFunction
from dropforge.host.host_json import HostJson
from dropforge.host.invocation import Call, Invocations
from dropforge.host.keys import Keys


@dataclass(frozen=True)
class Surroundings:
    """What a trigger type gets to work with."""

    # The functions of this type.
    functions: tuple[AppFunction, ...]
    invocations: Invocations
    keys: Keys
    host_json: HostJson
    state: Path
    environment: Mapping[str, str]


class TriggerService(Protocol):
    """Calls the functions of one trigger type when what they wait for happens."""

    @property
    def problems(self) -> Sequence[str]:
        """Why some of the functions cannot run, one sentence each; the others do."""

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        """What the server answers for it."""

    async def start(self) -> None:
        """Begin; the server listens already. Returns at once."""

    async def stop(self) -> None:
        """Call no function any more. Those that run are waited for elsewhere."""

    async def close(self) -> None:
        """Let go of everything; functions that still run are not waited for any longer."""

    def by_hand(self, function: AppFunction, text: str) -> Call:
        """The call that `POST /admin/functions/<name>` makes with this input. Raises `ValueError` with the reason."""
