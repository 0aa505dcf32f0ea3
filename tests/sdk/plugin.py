"""The pytest plugin of the process that runs Microsoft's tests: stand-ins, coroutines, outcomes as JSON."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.sdk import aio_management, local, standins

OUTCOMES = "DROPFORGE_TEST_OUTCOMES"


def pytest_configure(config: pytest.Config) -> None:
    standins.install()
    local.redirect(local.Endpoint.from_environment())
    aio_management.redirect(local.Endpoint.from_environment())
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(Path(os.environ[OUTCOMES])))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(pyfuncitem.obj(**wanted))
    return True


class Outcomes:
    """Writes one JSON line per test as it ends: name, outcome, seconds, the end of the error."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(report.nodeid, "failed", 0.0, report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = self._outcome(report)
        if outcome is not None:
            self._write(report.nodeid, outcome, report.duration, report.longreprtext if outcome == "failed" else "")

    def _write(self, test: str, outcome: str, seconds: float, error: str) -> None:
        line = {"test": test, "outcome": outcome, "seconds": round(seconds, 1), "error": error[-4000:]}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _outcome(self, report: pytest.TestReport) -> str | None:
        """None while the test is still to come, or passed its set-up or its end."""
        if report.when != "call":
            return None if report.passed else report.outcome
        if hasattr(report, "wasxfail"):
            return "xpassed" if report.passed else "xfailed"
        return report.outcome
