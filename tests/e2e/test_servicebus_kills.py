"""SIGKILL at any moment, under the unmodified SDK: what was acknowledged holds, and nothing happens twice."""

from __future__ import annotations

import datetime as dt
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from azure.servicebus import (
    ServiceBusClient,
    ServiceBusMessage,
    ServiceBusReceivedMessage,
    ServiceBusReceiver,
    ServiceBusSender,
)

KEY = "a key for tests"
LONG = "PT5M"
CONFIG = {
    "UserConfig": {
        "Namespaces": [
            {
                "Queues": [
                    {
                        "Name": name,
                        "Properties": {
                            "RequiresDuplicateDetection": True,
                            "DuplicateDetectionHistoryTimeWindow": LONG,
                            "RequiresSession": name == "steps",
                            "MaxDeliveryCount": 1_000,
                            "LockDuration": LONG,
                        },
                    }
                    for name in ("work", "steps")
                ]
            }
        ]
    }
}
SESSION = "a"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Endpoint:
    """The process, its folder, and the port that it keeps over all its lives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        (folder / "config.json").write_text(json.dumps(CONFIG))

    def start(self) -> None:
        arguments = ["--config", str(self.folder / "config.json"), "--state", str(self.folder / "state")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dropforge.servicebus", *arguments, "--port", str(self.port), "--admin-port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "DROPFORGE_SERVICE_BUS_KEY": KEY},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the endpoint did not start; exit code {self.process.wait(10)}"
        assert json.loads(line)["port"] == self.port

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None and self.process.stdout is not None
        self.process.send_signal(how)
        code = self.process.wait(10)
        self.process.stdout.close()
        self.process = None
        return code

    @contextmanager
    def client(self) -> Iterator[ServiceBusClient]:
        text = (
            f"Endpoint=sb://127.0.0.1:{self.port};SharedAccessKeyName=RootManageSharedAccessKey;"
            f"SharedAccessKey={KEY};UseDevelopmentEmulator=true;"
        )
        with ServiceBusClient.from_connection_string(text, retry_total=0) as client:
            yield client


class Truth:
    """What the clients were told, over all lives of the endpoint; and what of it turned out to be false."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.over = threading.Event()
        # No new messages: only what is there is brought to its end.
        self.draining = False
        self.acknowledged: dict[str, set[int]] = {"work": set(), "steps": set()}
        self.attempted = {"work": 0, "steps": 0}
        self.completed: dict[str, set[int]] = {"work": set(), "steps": set()}
        # What was to be completed when the endpoint died: gone or not, and either is right.
        self.doubtful: dict[str, set[int]] = {"work": set(), "steps": set()}
        self.idle = {"work": False, "steps": False}
        self.numbers: dict[str, dict[int, set[int]]] = {"work": defaultdict(set), "steps": defaultdict(set)}
        self.broken: list[str] = []

    def unsure(self, queue: str) -> list[int]:
        """What was sent and not acknowledged: there or not, and sent again in any case."""
        return [n for n in range(self.attempted[queue]) if n not in self.acknowledged[queue]]

    def delivered(self, queue: str, number: int, sequence: int) -> None:
        if number in self.completed[queue]:
            self.broken.append(f"{queue} {number} came again after its completion was acknowledged")
        self.numbers[queue][number].add(sequence)

    def finished(self) -> bool:
        return all(not self.unsure(queue) and not self.missing(queue) and self.idle[queue] for queue in self.idle)

    def missing(self, queue: str) -> set[int]:
        return self.acknowledged[queue] - self.completed[queue] - self.doubtful[queue]

    def complete(self, queue: str, receiver: ServiceBusReceiver, message: ServiceBusReceivedMessage) -> None:
        number = int(str(message))
        self.doubtful[queue].add(number)
        receiver.complete_message(message)
        self.doubtful[queue].discard(number)
        self.completed[queue].add(number)

    def receive(self, queue: str, receiver: ServiceBusReceiver) -> list[ServiceBusReceivedMessage]:
        messages = receiver.receive_messages(20, 0.3)
        for message in messages:
            self.delivered(queue, int(str(message)), message.sequence_number or 0)
        self.idle[queue] = not messages
        return messages


def send_work(client: ServiceBusClient, truth: Truth) -> None:
    """One by one, in batches, and scheduled; what is in doubt is sent again first."""
    with client.get_queue_sender("work", keep_alive=0) as sender:
        for number in truth.unsure("work"):
            sender.send_messages(_message("work", number))
            truth.acknowledged["work"].add(number)
        while not truth.draining and not truth.over.is_set():
            count = truth.random.choice((1, 1, 1, 1, 1, 1, 20))
            numbers = range(truth.attempted["work"], truth.attempted["work"] + count)
            truth.attempted["work"] += count
            _send_some(sender, [_message("work", number) for number in numbers], truth.random.random() < 0.1)
            truth.acknowledged["work"].update(numbers)


def _send_some(sender: ServiceBusSender, messages: list[ServiceBusMessage], later: bool) -> None:
    if later:
        sender.schedule_messages(messages, dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.7))
    else:
        sender.send_messages(messages)


def _message(queue: str, number: int) -> ServiceBusMessage:
    session = SESSION if queue == "steps" else None
    return ServiceBusMessage(str(number), message_id=f"{queue}-{number}", session_id=session)


def do_work(client: ServiceBusClient, truth: Truth) -> None:
    with client.get_queue_receiver("work", keep_alive=0) as receiver:
        while not truth.over.is_set():
            for message in truth.receive("work", receiver):
                truth.complete("work", receiver, message)


def send_steps(client: ServiceBusClient, truth: Truth) -> None:
    with client.get_queue_sender("steps", keep_alive=0) as sender:
        for number in truth.unsure("steps"):
            sender.send_messages(_message("steps", number))
            truth.acknowledged["steps"].add(number)
        while not truth.draining and not truth.over.is_set():
            number = truth.attempted["steps"]
            truth.attempted["steps"] += 1
            sender.send_messages(_message("steps", number))
            truth.acknowledged["steps"].add(number)


def take_steps(client: ServiceBusClient, truth: Truth) -> None:
    """Each step is noted in the session's state before it is completed, so a step out of turn shows."""
    with client.get_queue_receiver("steps", session_id=SESSION, keep_alive=0) as receiver:
        reached = int((receiver.session.get_state() or b"-1").decode())
        while not truth.over.is_set():
            for message in truth.receive("steps", receiver):
                number = int(str(message))
                if number not in (reached, reached + 1):
                    truth.broken.append(f"step {number} came after step {reached}")
                receiver.session.set_state(str(number))
                reached = number
                truth.complete("steps", receiver, message)


def live(endpoint: Endpoint, truth: Truth, until: Callable[[], object], ends: Callable[[], object]) -> None:
    """One life of the endpoint: everybody works until it ends."""
    truth.over.clear()
    truth.idle = dict.fromkeys(truth.idle, False)
    failures: list[BaseException] = []

    def work(task: Callable[[ServiceBusClient, Truth], None]) -> None:
        try:
            with endpoint.client() as client:
                task(client, truth)
        except Exception as error:  # noqa: BLE001 - the endpoint was killed; what that means is decided at the end
            failures.append(error)

    threads = [threading.Thread(target=work, args=(each,)) for each in (send_work, do_work, send_steps, take_steps)]
    for thread in threads:
        thread.start()
    until()
    ends()
    truth.over.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), failures
    failures.clear()
    with warnings.catch_warnings():
        # The SDK leaves the sockets of a broken connection to the collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def play(folder: Path, kills: int, seed: int) -> Truth:
    endpoint, truth = Endpoint(folder), Truth(seed)
    moments = random.Random(seed)
    try:
        for _ in range(kills):
            endpoint.start()
            # The SDK needs about half a second until its links stand.
            wait = threading.Timer(moments.uniform(0.6, 1.4), lambda: None)
            wait.start()
            live(endpoint, truth, wait.join, lambda: endpoint.end(signal.SIGKILL))
        endpoint.start()
        truth.draining = True
        live(endpoint, truth, lambda: _wait_for(truth.finished), lambda: None)
        with endpoint.client() as client, client.get_queue_receiver("work", keep_alive=0) as receiver:
            # Scheduled messages that were acknowledged have been waited for; nothing else may be left.
            assert receiver.peek_messages(10) == []
        assert endpoint.end(signal.SIGTERM) == 0
    finally:
        if endpoint.process is not None:
            endpoint.end(signal.SIGKILL)
    return truth


def _wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)


def check(truth: Truth) -> None:
    assert truth.broken == []
    for queue in ("work", "steps"):
        acknowledged, numbers = truth.acknowledged[queue], truth.numbers[queue]
        assert acknowledged == set(range(truth.attempted[queue]))
        assert truth.missing(queue) == set(), f"{queue}: acknowledged and never delivered"
        twice = {number: found for number, found in numbers.items() if len(found) != 1}
        assert twice == {}, f"{queue}: messages that were there under several numbers"
        given = [sequence for found in numbers.values() for sequence in found]
        assert len(given) == len(set(given)), f"{queue}: a sequence number was used twice"


def test_nothing_is_lost_or_done_twice_though_the_endpoint_is_killed(tmp_path: Path) -> None:
    truth = play(tmp_path, kills=4, seed=20_261_122)
    check(truth)
    assert len(truth.completed["work"]) > 100
    assert len(truth.completed["steps"]) > 20


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_done_twice_in_a_hundred_kills(tmp_path: Path, seed: int) -> None:
    check(play(tmp_path, kills=100, seed=seed))


def test_a_second_process_on_the_folder_and_a_taken_port_are_refused_in_one_line(tmp_path: Path) -> None:
    endpoint = Endpoint(tmp_path)
    endpoint.start()
    command = [sys.executable, "-m", "dropforge.servicebus", "--config", str(tmp_path / "config.json")]
    try:
        same = [*command, "--state", str(tmp_path / "state"), "--port", "0", "--admin-port", "0"]
        second = subprocess.run(same, capture_output=True, text=True, timeout=30)
        assert (second.returncode, second.stdout) == (3, "")
        assert f"is in use by process {endpoint.process.pid}" in second.stderr  # type: ignore[union-attr]
        other = [*command, "--state", str(tmp_path / "other"), "--port", str(endpoint.port), "--admin-port", "0"]
        third = subprocess.run(other, capture_output=True, text=True, timeout=30)
        assert (third.returncode, third.stdout) == (4, "")
        assert f"cannot listen on 127.0.0.1:{endpoint.port}" in third.stderr
        (tmp_path / "config.json").write_text("{}")
        fourth = subprocess.run(
            [*command, "--state", str(tmp_path / "other")], capture_output=True, text=True, timeout=30
        )
        assert (fourth.returncode, len(fourth.stderr.splitlines())) == (2, 1)
    finally:
        assert endpoint.end(signal.SIGTERM) == 0
