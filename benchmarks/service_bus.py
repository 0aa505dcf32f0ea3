"""How fast the local Service Bus endpoint is with the real sync SDK, durably stored. Run: `python -m benchmarks.service_bus`.

The endpoint is a process of its own, the client is this one; messages of 1 kB. Each figure is the median over rounds in
which the durable endpoint and one that stores nothing take turns: a busy machine disturbs both alike. The last line is
one JSON object:

    send_per_second               one by one, each acknowledged
    batch_per_second              messages sent in batches of 100
    receive_complete_per_second   received 100 at a time, each completed, each completion confirmed
    ..._best_per_second           the round that other work on the machine disturbed least
    ..._of_memory                 the same figure / that of the endpoint that stores nothing (the limit: client and protocol)
    ..._server_us                 CPU time of the durable endpoint per message, microseconds
    rss_start_mb, rss_end_mb      memory of the durable endpoint before and after --memory-messages went through it
    rss_bytes_per_message         slope of that memory over the second half, by least squares
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from azure.servicebus import ServiceBusClient, ServiceBusMessage, ServiceBusReceiver

from tests.sdk.local import ROOT_KEY
from tests.sdk.server import Server, served

QUEUE = "speed"
BODY = b"x" * 1024
BATCH = 100
CONFIG = {"UserConfig": {"Namespaces": [{"Name": "sbemulatorns", "Queues": [{"Name": QUEUE}], "Topics": []}]}}
MEGABYTE = 1024**2

# The endpoint, and the same with a store that keeps nothing.
OURS, FORGETFUL = "dropforge.servicebus", "tests.sdk.memory"


@dataclass
class Side:
    """One endpoint, and what this process does with it. Every piece of work opens the one connection that it needs: the
    SDK has a thread for each, and idle ones would slow down the one that is measured."""

    server: Server
    client: ServiceBusClient

    def send(self, count: int) -> float:
        """Seconds."""
        with self.client.get_queue_sender(QUEUE) as sender:
            return timed(lambda: [sender.send_messages(ServiceBusMessage(BODY)) for _ in range(count)])

    def batch(self, count: int) -> float:
        """Seconds."""
        with self.client.get_queue_sender(QUEUE) as sender:
            return timed(
                lambda: [
                    sender.send_messages([ServiceBusMessage(BODY) for _ in range(BATCH)]) for _ in range(count // BATCH)
                ]
            )

    def receive(self, count: int) -> float:
        """Seconds."""
        with self.client.get_queue_receiver(QUEUE) as receiver:
            return timed(lambda: take(receiver, count))

    def cpu_seconds(self) -> float:
        """CPU time that the endpoint's process used so far."""
        fields = Path(f"/proc/{self.server.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Resident memory of the endpoint's process, bytes."""
        pages = int(Path(f"/proc/{self.server.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def take(receiver: ServiceBusReceiver, count: int) -> None:
    while count > 0:
        got = receiver.receive_messages(min(BATCH, count), max_wait_time=10)
        if not got:
            raise AssertionError(f"{count} messages did not come back")
        for message in got:
            receiver.complete_message(message)
        count -= len(got)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@contextlib.contextmanager
def side(folder: Path, module: str) -> Iterator[Side]:
    """An endpoint that has already carried messages, and a client of it."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served(folder, CONFIG, module))
        told = ROOT_KEY.connection_string(server.endpoint)
        one = Side(server, stack.enter_context(ServiceBusClient.from_connection_string(told)))
        one.send(BATCH)
        one.receive(BATCH)
        yield one


@dataclass(frozen=True)
class Turn:
    """One measure of one side."""

    per_second: float
    server_us: float


def turn(one: Side, work: Callable[[int], float], count: int) -> Turn:
    cpu = one.cpu_seconds()
    seconds = work(count)
    return Turn(count / seconds, (one.cpu_seconds() - cpu) / count * 1e6)


def speeds(durable: Side, folder: Path, rounds: int, count: int) -> dict[str, float]:
    """Every figure in turns: durable, memory, durable, memory."""
    turns: dict[str, list[tuple[Turn, Turn]]] = {"send": [], "batch": [], "receive_complete": []}
    with side(folder, FORGETFUL) as memory:
        for number in range(rounds):
            turns["send"].append((turn(durable, durable.send, count), turn(memory, memory.send, count)))
            turns["batch"].append((turn(durable, durable.batch, count), turn(memory, memory.batch, count)))
            both = turn(durable, durable.receive, 2 * count), turn(memory, memory.receive, 2 * count)
            turns["receive_complete"].append(both)
            told = ", ".join(f"{name} {pairs[-1][0].per_second:,.0f}/s" for name, pairs in turns.items())
            print(f"round {number + 1}: {told}", flush=True)
    figures: dict[str, float] = {}
    for name, pairs in turns.items():
        figures[f"{name}_per_second"] = round(statistics.median(a.per_second for a, _ in pairs), 1)
        figures[f"{name}_best_per_second"] = round(max(a.per_second for a, _ in pairs), 1)
        figures[f"{name}_of_memory"] = round(statistics.median(a.per_second / b.per_second for a, b in pairs), 3)
        figures[f"{name}_server_us"] = round(statistics.median(a.server_us for a, _ in pairs), 1)
    return figures


def memory_over(one: Side, messages: int) -> dict[str, float]:
    """The endpoint's memory while so many messages go in and out, a thousand at a time."""
    step = max(messages // 20, BATCH)
    points = [(0, one.rss())]
    for done in range(step, messages + 1, step):
        left = step
        while left > 0:
            one.batch(min(left, 1000))
            one.receive(min(left, 1000))
            left -= 1000
        points.append((done, one.rss()))
        print(f"{done:>8} messages: {points[-1][1] / MEGABYTE:6.1f} MB", flush=True)
    half = points[len(points) // 2 :]
    slope, _ = statistics.linear_regression([n for n, _ in half], [bytes_ for _, bytes_ in half])
    return {
        "rss_start_mb": round(points[0][1] / MEGABYTE, 1),
        "rss_end_mb": round(points[-1][1] / MEGABYTE, 1),
        "rss_bytes_per_message": round(slope, 2),
        "memory_messages": points[-1][0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5, help="turns between the durable endpoint and the other")
    parser.add_argument("--messages", type=int, default=4_000, help="messages in each turn of each kind")
    parser.add_argument("--memory-messages", type=int, default=200_000, help="messages for the memory figure")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="service-bus-") as name, side(Path(name) / "durable", OURS) as durable:
        figures = speeds(durable, Path(name) / "memory", wanted.rounds, wanted.messages)
        figures |= memory_over(durable, wanted.memory_messages)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
