"""The `dropforge` command: one machine's host, and everything a person asks of the platform."""

from __future__ import annotations

from dropforge.cli.app import app, main

# Each makes its commands when it is loaded, in the order in which `--help` shows them.
from dropforge.cli import here, looking, asking, alerting  # isort: skip

__all__ = ["alerting", "app", "asking", "here", "looking", "main"]
