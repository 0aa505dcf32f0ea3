"""Runs Microsoft's own live tests of azure-servicebus against the local endpoint: `python -m tests.sdk.live`.

The tests come from the source distribution on PyPI. Exit code 0 when at least 250 of the 273 pass (passed and, of those
that Microsoft expects to fail, passed nevertheless) and, with --samples, when no sample that can run fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.sdk import samples
from tests.sdk.local import Endpoint
from tests.sdk.plugin import OUTCOMES
from tests.sdk.sdist import ROOT, fetched
from tests.sdk.server import served

ALL, WANTED = 273, 250
# Many tests at once: they sleep most of their time.
AT_ONCE = 12
# One of them sends ten large messages with pauses, and a socket that the SDK reads for 60 s at a time.
TEST_SECONDS = 900
NAMESPACE = {"UserConfig": {"Namespaces": [{"Name": "sbemulatorns", "Queues": [], "Topics": []}]}}

# The slowest first.
SUBJECTS = ("topic", "queues", "sessions", "subscriptions", "sb_client", "list_sessions")
FILES = tuple(f"test_{each}.py" for each in SUBJECTS) + tuple(f"async_tests/test_{each}_async.py" for each in SUBJECTS)

# Parts of names -> why these tests fail here, whatever the endpoint does.
KNOWN = {
    "with_ssl_context": "TLS",
    "custom_endpoint_connection_verify_exception": "TLS",
    "message_amqp_over_websocket": "WebSockets; what else asks for them is run over TCP",
    "queue_operation_negative": "the test replaces a function of the SDK by one without 7.15.0's new argument",
    "next_available_session_timeout_value": "expects to wait 65 s; the client of 7.15.0 gives up after 5 s",
    "autolockrenew_many_msgs": "300 renewals by threads within 10 s: the sync client manages them on a quiet machine only",
}

# Not among the 273: the tests of the management API, each of which wants the namespace for itself.
MANAGEMENT = ("mgmt_tests", "mgmt_tests/async")


@dataclass(frozen=True)
class Outcome:
    """How one test ended: passed, xpassed (expected to fail, passed), xfailed, skipped, failed."""

    test: str
    outcome: str
    seconds: float
    error: str


@dataclass(frozen=True)
class Result:
    """How a run ended: every test once, a failure of its set-up or its end counted as its own."""

    outcomes: Sequence[Outcome]

    @property
    def counts(self) -> Counter[str]:
        return Counter(each.outcome for each in self.outcomes)

    @property
    def good(self) -> int:
        return self.counts["passed"] + self.counts["xpassed"]

    def failed(self) -> list[Outcome]:
        return sorted((each for each in self.outcomes if each.outcome == "failed"), key=lambda each: each.test)

    def report(self) -> str:
        counts = self.counts
        told = ", ".join(f"{counts[each]} {each}" for each in ("passed", "xpassed", "xfailed", "skipped", "failed"))
        lines = [f"FAILED {each.test} ({each.seconds} s)\n       {_reason(each)}" for each in self.failed()]
        return "\n".join([*lines, f"{len(self.outcomes)} tests: {told}"])


def _reason(one: Outcome) -> str:
    known = [reason for name, reason in KNOWN.items() if name in one.test]
    told = [line for line in one.error.splitlines() if line.startswith("E ")]
    return f"known: {known[0]}" if known else told[-1][:300] if told else one.error.strip()[-300:]


def run(endpoint: Endpoint, at_once: int = AT_ONCE, select: str = "", tests: Sequence[str] = FILES) -> Result:
    """Runs tests (files, or names as pytest has them) against an endpoint that was started with `local.KEYS`."""
    folder = fetched() / "tests"
    with tempfile.TemporaryDirectory(prefix="sdk-tests-") as scratch:
        outcomes = Path(scratch) / "outcomes.jsonl"
        outcomes.touch()
        command = [sys.executable, "-m", "pytest", "-c", str(Path(__file__).with_name("microsoft.ini")), "--noconftest"]
        command += ["--rootdir", str(folder), "-p", "tests.sdk.plugin", "-p", "no:cacheprovider", "-q", "--no-header"]
        command += ["--timeout", str(TEST_SECONDS), "-n", str(at_once), "--dist", "worksteal", "--tb", "short"]
        command += (["-k", select] if select else []) + list(tests)
        paths = os.pathsep.join((str(ROOT), str(folder), str(folder / "async_tests"), str(folder / "mgmt_tests")))
        environment = {**os.environ, **endpoint.environment(), "PYTHONPATH": paths, OUTCOMES: str(outcomes)}
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        ended = [Outcome(**json.loads(line)) for line in outcomes.read_text().splitlines()]
    if not ended or done.returncode not in (0, 1):
        raise RuntimeError(f"the run of Microsoft's tests broke ({done.returncode}): {done.stdout.decode()[-3000:]}")
    by_name: dict[str, Outcome] = {}
    for each in ended:
        if each.test not in by_name or each.outcome == "failed":
            by_name[each.test] = each
    return Result(tuple(by_name.values()))


@contextlib.contextmanager
def endpoint_for_tests(wanted: argparse.Namespace) -> Iterator[Endpoint]:
    """The endpoint named on the command line, or one of our own."""
    if wanted.endpoint:
        amqp, admin = wanted.endpoint.split(",")
        yield Endpoint(amqp, admin)
        return
    with tempfile.TemporaryDirectory(prefix="sdk-endpoint-") as folder, served(Path(folder), NAMESPACE) as server:
        yield server.endpoint
        if server.process.poll() is not None:
            raise RuntimeError(f"the endpoint ended with {server.process.returncode}: {server.log()[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", default="", help="HOST:PORT,HOST:ADMINPORT of a running endpoint with our keys")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="tests running at the same time")
    parser.add_argument("--select", default="", metavar="EXPRESSION", help="only tests that match, as pytest -k")
    parser.add_argument("--errors", action="store_true", help="print the whole error of every failed test")
    parser.add_argument("--management", action="store_true", help="only the tests of the management API; for a look")
    parser.add_argument("--samples", action="store_true", help="also run the SDK's samples")
    parser.add_argument("--only-samples", action="store_true", help="run the samples and no test")
    wanted = parser.parse_args()
    good = True
    with endpoint_for_tests(wanted) as endpoint:
        if wanted.management:
            print(run(endpoint, 1, wanted.select, MANAGEMENT).report())
        elif not wanted.only_samples:
            result = run(endpoint, wanted.at_once, wanted.select)
            if wanted.errors:
                print("".join(f"---- {each.test}\n{each.error}\n" for each in result.failed()), end="")
            print(result.report())
            if wanted.select:
                good = not result.failed()
            else:
                print(f"{result.good} passed or xpassed of {ALL}; wanted are {WANTED}")
                good = len(result.outcomes) == ALL and result.good >= WANTED
        if wanted.samples or wanted.only_samples:
            ran = samples.run(endpoint)
            print(ran.report())
            good = good and not ran.failed
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
