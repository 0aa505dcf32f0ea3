"""The endpoint with a store that keeps nothing, for the benchmark to compare with: `python -m tests.sdk.memory`."""

from __future__ import annotations

import sys
from pathlib import Path

from dropforge.servicebus import __main__ as endpoint
from dropforge.servicebus import store


class NothingKept(store.Store):
    """Takes the place of the store on disk."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(None)


if __name__ == "__main__":
    setattr(endpoint, "Store", NothingKept)  # noqa: B010
    sys.exit(endpoint.main())
