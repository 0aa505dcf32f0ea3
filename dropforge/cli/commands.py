"""All commands of the program."""

from __future__ import annotations

from dropforge.cli.app import app, main

# Each makes its commands when it is loaded, in the order in which `--help` shows them.
from dropforge.cli import here, looking, asking, alerting, endpoint, scoring  # isort: skip

__all__ = ["alerting", "app", "asking", "endpoint", "here", "looking", "main", "scoring"]
