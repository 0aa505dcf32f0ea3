"""The serviceBus section of host.json: defaults of the extension, its names, and what is refused."""

from __future__ import annotations

import math
import os
from typing import Any

import pytest

from dropforge.host.errors import SettingsError
from dropforge.host.service_bus.settings import BusSettings, Retries


def test_an_empty_section_gives_the_defaults_of_the_extension() -> None:
    found = BusSettings.from_host_json({})
    assert found == BusSettings()
    assert (found.max_calls, found.max_sessions, found.max_calls_per_session) == (16 * (os.cpu_count() or 1), 8, 1)
    assert (found.prefetch, found.renewal_seconds, found.session_idle_seconds) == (0, 300.0, 60.0)
    assert (found.max_batch, found.min_batch, found.batch_wait_seconds) == (1000, 1, 30.0)


def test_every_setting_is_read_in_any_case() -> None:
    found = BusSettings.from_host_json(
        {
            "AutoCompleteMessages": False,
            "maxConcurrentCalls": 2,
            "maxconcurrentsessions": 3,
            "maxConcurrentCallsPerSession": 4,
            "prefetchCount": 5,
            "maxAutoLockRenewalDuration": "1.02:03:04.5",
            "sessionIdleTimeout": "00:00:06",
            "maxMessageBatchSize": 7,
            "minMessageBatchSize": 6,
            "maxBatchWaitTime": "00:00:08",
            "transportType": "AmqpWebSockets",
            "clientRetryOptions": {
                "mode": "Fixed",
                "maxRetries": 0,
                "delay": "00:00:00.25",
                "maxDelay": "00:00:09",
                "tryTimeout": "00:00:10",
            },
        }
    )
    assert found == BusSettings(
        auto_complete=False,
        max_calls=2,
        max_sessions=3,
        max_calls_per_session=4,
        prefetch=5,
        renewal_seconds=86_400 + 2 * 3600 + 3 * 60 + 4.5,
        session_idle_seconds=6.0,
        max_batch=7,
        min_batch=6,
        batch_wait_seconds=8.0,
        retries=Retries(count=0, delay_seconds=0.25, longest_delay_seconds=9.0, grows=False, try_seconds=10.0),
        web_sockets=True,
    )


def test_renewal_without_an_end_is_written_as_dotnet_does() -> None:
    found = BusSettings.from_host_json({"maxAutoLockRenewalDuration": "-00:00:00.0010000"})
    assert found.renewal_seconds == math.inf


def test_a_quiet_session_is_let_go_after_the_try_timeout_unless_said_otherwise() -> None:
    assert BusSettings.from_host_json({"clientRetryOptions": {"tryTimeout": "00:00:20"}}).session_idle_seconds == 20.0


def test_pauses_grow_up_to_the_longest() -> None:
    retries = Retries(delay_seconds=0.8, longest_delay_seconds=3.0)
    assert [retries.wait(attempt) for attempt in (1, 2, 3, 4)] == [0.8, 1.6, 3.0, 3.0]
    assert Retries(delay_seconds=0.8, grows=False).wait(4) == 0.8


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ({"maxConcurrentCalls": 0}, "maxConcurrentCalls must be a whole number from 1 up, found 0"),
        ({"maxConcurrentCalls": True}, "found True"),
        ({"prefetchCount": -1}, "from 0 up"),
        ({"autoCompleteMessages": "yes"}, "true or false"),
        ({"maxAutoLockRenewalDuration": "5 minutes"}, "hh:mm:ss"),
        ({"maxAutoLockRenewalDuration": "-00:05:00"}, "hh:mm:ss"),
        ({"transportType": "http"}, "amqpWebSockets"),
        ({"clientRetryOptions": []}, "an object"),
        ({"clientRetryOptions": {"mode": "never"}}, "clientRetryOptions.mode"),
        ({"minMessageBatchSize": 2, "maxMessageBatchSize": 1}, "must not be above"),
        ({"maxBatchWaitTime": "00:02:31"}, "00:02:30"),
    ],
)
def test_a_section_that_cannot_be_used_is_refused(section: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        BusSettings.from_host_json(section)
