"""Every setting, read once from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dropforge.domain.errors import BadInput


@dataclass(frozen=True)
class Settings:
    """What the environment says. On Azure these are app settings; the embedded host sets them for one machine."""

    # Which family of adapters: see `wiring.FAMILIES`.
    adapters: str
    # Where local adapters keep their files.
    state: Path
    # The container (or local folder) that people drop files into.
    drop_container: str
    # Run events wake a waiting flow at once; this poll only catches the ones that never came.
    run_poll_seconds: float
    # How often a deployment looks at its replicas.
    deploy_poll_seconds: float
    # NCRONTAB of the sweep that finds what events missed.
    sweep_schedule: str
    # Experiment tracking; handed to the training node.
    tracking_uri: str | None


def read(environment: Mapping[str, str]) -> Settings:
    """The settings, with defaults for one machine. Raises `BadInput` that names the variable."""
    return Settings(
        adapters=environment.get("DROPFORGE_ADAPTERS", "local"),
        state=Path(environment.get("DROPFORGE_STATE", ".dropforge")).absolute(),
        drop_container=environment.get("DROPFORGE_DROP_CONTAINER", "drops"),
        run_poll_seconds=_seconds(environment, "DROPFORGE_RUN_POLL_SECONDS", 30.0),
        deploy_poll_seconds=_seconds(environment, "DROPFORGE_DEPLOY_POLL_SECONDS", 0.2),
        sweep_schedule=environment.get("DROPFORGE_SWEEP_SCHEDULE", "0 * * * * *"),
        tracking_uri=environment.get("MLFLOW_TRACKING_URI") or None,
    )


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.01 <= value <= 3600:
        raise BadInput(f"setting {name} is {text!r}; it must be a number of seconds between 0.01 and 3600")
    return value


@cache
def settings() -> Settings:
    """The settings of this process."""
    return read(os.environ)
