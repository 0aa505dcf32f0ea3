"""`python -m dropforge.training spec.json [parent]`: one training run, from its files to its files.

`parent`: the id of the process that must be the parent; when it ends, the run ends.
"""

import time

# Before the heavy imports: their time is part of the run's.
STARTED = time.monotonic()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from dropforge.training.node import main  # noqa: E402

if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python -m dropforge.training <spec.json> [<id of the parent process>]")
    sys.exit(main(Path(sys.argv[1]), STARTED, parent=int(sys.argv[2]) if len(sys.argv) == 3 else None))
