"""Settings of every test: the same examples on every run, so that a failure is one."""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("repeatable", derandomize=True, max_examples=50, deadline=None, database=None)
settings.register_profile(
    "soak", max_examples=2_000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# In the background of a shell Ctrl-C is ignored, and everything that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Names the folder where every host that a test starts records its episodes: `<app>--<anything>.jsonl`.
EPISODES = "DROPFORGE_TEST_EPISODES"


@pytest.fixture(scope="session", autouse=True)
def _episodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if EPISODES in os.environ:
        # One folder for all the processes of `make test`, and for the replay after them.
        yield
        return
    os.environ[EPISODES] = str(tmp_path_factory.mktemp("episodes"))
    yield
    del os.environ[EPISODES]


def episodes_of(app: str) -> Path | None:
    """A new file for the episodes of a host or an engine that a test starts; None outside a test session."""
    folder = os.environ.get(EPISODES)
    return Path(folder) / f"{app}--{secrets.token_hex(6)}.jsonl" if folder else None


# Files that take longest, for their size: begun first, so that none is left to run alone at the end.
LONG = (
    "e2e/test_azure_loop.py",
    "e2e/test_host_service_bus.py",
    "e2e/test_digits.py",
    "e2e/test_training_examples.py",
    "e2e/test_platform.py",
    "e2e/test_kills.py",
    "e2e/test_api_schemathesis.py",
    "e2e/test_package.py",
    "sdk/test_live.py",
    "e2e/test_door_kills.py",
    "e2e/test_serving.py",
    "e2e/test_commands.py",
    "e2e/",
    "sdk/",
    "contract/",
)
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(_HERE).as_posix() if item.path.is_relative_to(_HERE) else ""
        return next((number for number, start in enumerate(LONG) if path.startswith(start)), len(LONG))

    # A stable order: within a place as they were.
    items.sort(key=place)


# Names the file that `make test` wants the failed tests written to, one a line.
FAILED = "DROPFORGE_TEST_FAILED"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if file := os.environ.get(FAILED):
        reports = [*terminalreporter.stats.get("failed", ()), *terminalreporter.stats.get("error", ())]
        names = dict.fromkeys(report.nodeid for report in reports)
        Path(file).write_text("".join(f"{name}\n" for name in names))
