"""The steps, each module imported when it is first used: doors and activities name them all, a trigger needs few."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dropforge.steps import (
        alerts,
        approvals,
        arrivals,
        books,
        canary,
        commands,
        control,
        deploy,
        intake,
        lanes,
        outbox,
        pipelines,
        rehearsal,
        reports,
        score,
        storage,
        train,
    )

__all__ = [
    "alerts",
    "approvals",
    "arrivals",
    "books",
    "canary",
    "commands",
    "control",
    "deploy",
    "intake",
    "lanes",
    "outbox",
    "pipelines",
    "rehearsal",
    "reports",
    "score",
    "storage",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")
