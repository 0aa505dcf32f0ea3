"""Where the workspace of the tests is."""

from __future__ import annotations

from datetime import UTC, datetime

PROVIDER = "Microsoft.MachineLearningServices"
SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
WORKSPACE = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg/providers/{PROVIDER}/workspaces/ws"
LOCATION = "westeurope"


def now() -> str:
    """As the service writes times."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
