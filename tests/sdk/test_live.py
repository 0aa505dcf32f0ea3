"""Microsoft's own tests and samples of azure-servicebus, run against the local endpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdk import live, samples
from tests.sdk.sdist import NotFetched, fetched, must_be_had
from tests.sdk.server import Server, served

# Some of every subject, sync and aio, none of which sleeps for long. Substrings of names, as pytest -k takes them.
QUICK = (
    "inner_amqp_properties",
    "peek_and_receive",
    "broken_receiver_link",
    "state_scheduled",
    "message_batch_large",
    "handler_peeklock_abandon",
    "session_message_connection_closed",
    "subscription_sessions_with_active_messages",
    "writeonly_credentials",
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    try:
        fetched()
    except NotFetched as error:
        if must_be_had():
            raise
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="sdk-endpoint-") as folder, served(Path(folder), live.NAMESPACE) as one:
        yield one
        assert one.process.poll() is None, one.log()[-3000:]


def test_some_of_microsoft_s_tests_pass(server: Server) -> None:
    result = live.run(server.endpoint, at_once=3, select=" or ".join(QUICK))
    assert result.good >= 15 and not result.failed(), result.report()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_of_microsoft_s_273_tests_at_least_250_pass(server: Server) -> None:
    result = live.run(server.endpoint)
    assert len(result.outcomes) == live.ALL and result.good >= live.WANTED, result.report()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_sample_of_the_sdk_that_can_run_runs_to_its_end(server: Server) -> None:
    ran = samples.run(server.endpoint)
    assert len(ran.samples) >= samples.WANTED and not ran.failed, ran.report()
