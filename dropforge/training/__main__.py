"""`python -m dropforge.training spec.json`: one training run, from its files to its files."""

import time

# Before the heavy imports: their time is part of the run's.
STARTED = time.monotonic()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from dropforge.training.node import main  # noqa: E402

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dropforge.training <spec.json>")
    sys.exit(main(Path(sys.argv[1]), STARTED))
