"""The `dropforge` command: one machine's host, and everything a person asks of the platform."""

from __future__ import annotations

import sys
import time


def main() -> None:
    """The command that was typed. A training node has none of the libraries that the others need."""
    started = time.monotonic()
    if sys.argv[1:2] == ["train-node"]:
        from dropforge.training.mounted import main as train_node

        sys.exit(train_node(sys.argv[2:], started))
    from dropforge.cli.commands import main as typed

    typed()
