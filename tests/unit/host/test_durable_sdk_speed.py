"""The faster SDK computes the same."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime

import pytest
from dateutil.parser import parse
from hypothesis import given
from hypothesis import strategies as st

from dropforge.host.durable import clock
from dropforge.host.durable.sdk_speed import fast_parse, speed_up_sdk


@pytest.fixture(scope="module")
def fast() -> Callable[[str], datetime]:
    return fast_parse(parse)


@given(us=st.integers(0, 250_000_000_000_000_000))
def test_a_timestamp_of_a_history_is_parsed_as_dateutil_does(us: int, fast: Callable[[str], datetime]) -> None:
    text = clock.to_text(us)
    assert fast(text) == parse(text)
    assert repr(fast(text)) == repr(parse(text))
    assert clock.from_text(text) == us


@pytest.mark.parametrize("text", ["2026-11-22T12:00:00Z", "2026-11-22T12:00:00.5Z", "2026-11-22 12:00", "22 Nov 2026"])
def test_any_other_format_is_left_to_dateutil(text: str, fast: Callable[[str], datetime]) -> None:
    assert repr(fast(text)) == repr(parse(text))


def test_what_dateutil_refuses_is_refused(fast: Callable[[str], datetime]) -> None:
    with pytest.raises(ValueError, match="month"):
        fast("2026-13-22T12:00:00.0000000Z")


_SCRIPT = """
import json, sys
from tests.unit.host.durable_driver import Driver
from tests.unit.host.durable_world import invoker
from dropforge.host.durable.sdk_speed import speed_up_sdk
done = speed_up_sdk() if sys.argv[1] == "fast" else []
again = speed_up_sdk() if done else []
drivers = [Driver(invoker(), name, value) for name, value in (("clocks", None), ("parallel_retries", {"key": "p"}))]
print(json.dumps([len(done), again, [driver.run() for driver in drivers], [d.execution.history for d in drivers]]))
"""


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_flows_see_the_same_with_and_without(zone: str) -> None:
    found = []
    for mode in ("plain", "fast"):
        command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, mode]
        environment = {**os.environ, "TZ": zone}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    plain, fast = found
    assert plain[2:] == fast[2:]
    assert (fast[0], fast[1]) == (2, [])  # both places were found, once


def test_a_second_call_changes_nothing() -> None:
    speed_up_sdk()
    assert speed_up_sdk() == []
