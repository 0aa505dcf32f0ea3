"""`python -m dropforge.host --app DIR --state DIR`: the host without the command line around it."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from dropforge.host.host import HostOptions, run_host


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dropforge.host", description="Run a Functions app on this machine."
    )
    parser.add_argument("--app", type=Path, default=Path(), help="folder with function_app.py (default: here)")
    parser.add_argument("--state", type=Path, default=Path(".dropforge"), help="folder for all that is kept")
    parser.add_argument("--port", type=int, help="0: any free port (default: local.settings.json, else 7071)")
    parser.add_argument("--bind", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--record", type=Path, metavar="FILE", help="record orchestrator episodes here")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds that running functions get at the end")
    given = parser.parse_args(argv)
    return asyncio.run(
        run_host(HostOptions(given.app, given.state, given.port, given.bind, given.record, grace_seconds=given.grace))
    )


if __name__ == "__main__":
    sys.exit(main())
