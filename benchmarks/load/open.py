"""Open loop: a request is due so many times a second, whatever became of those before it. `python -m benchmarks.load.open`.

Reads one JSON object: `port`; `request` in base64; `phases`, each a rate a second and its seconds; `connections`; and
`answers`, which are the FP32 that answers end in, in base64, by the remainder of their version after division by their
number. Writes one: for each answer when it was due (seconds since 1970) and the microseconds from then until it was there, in
order; the same of those that were told 429; and how many failed or were not what their version says. One that has to wait for a
free connection waits on the clock of its caller: nothing is left out.
"""

from __future__ import annotations

import base64
import json
import math
import re
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator

from benchmarks.load.closed import connected

VERSION = re.compile(rb"dropforge-version: (\d+)\r\n")


def due_times(began: float, phases: list[list[float]]) -> Iterator[float]:
    for rate, seconds in phases:
        yield from (began + count / rate for count in range(int(rate * seconds)))
        began += seconds
    yield math.inf


def drive(
    port: int, request: bytes, phases: list[list[float]], connections: int, answers: list[bytes]
) -> dict[str, object]:
    poller = select.epoll()
    sockets = {each.fileno(): each for each in (connected(port) for _ in range(connections))}
    for number in sockets:
        poller.register(number, select.EPOLLIN)
    free, waiting = deque(sockets), deque[float]()
    asked: dict[int, float] = {}
    parts: dict[int, bytes] = {}
    due: list[float] = []
    took: list[float] = []
    refused: list[float] = []
    failed = wrong = 0
    clock = time.perf_counter
    offset, began = time.time() - clock(), clock()
    end, coming = began + sum(seconds for _, seconds in phases), due_times(began, phases)
    following = next(coming)
    while True:
        now = clock()
        while following <= now:
            waiting.append(following)
            following = next(coming)
        while waiting and free:
            number = free.popleft()
            asked[number] = waiting.popleft()
            sockets[number].sendall(request)
        if now >= end and not waiting and not asked:
            break
        if now > end + 30:
            failed += len(waiting) + len(asked)
            break
        for number, _ in poller.poll(0):
            data = parts.pop(number, b"") + sockets[number].recv(1 << 16)
            if not _is_whole(data):
                parts[number] = data
                continue
            was_due = asked.pop(number)
            free.append(number)
            if data.startswith(b"HTTP/1.1 429 "):
                refused.append(clock() - was_due)
                continue
            due.append(was_due)
            took.append(clock() - was_due)
            version = VERSION.search(data)
            if not data.startswith(b"HTTP/1.1 200 ") or version is None:
                failed += 1
            elif not _alike(data, answers[int(version[1]) % len(answers)]):
                wrong += 1
    for each in sockets.values():
        each.close()
    return {
        "began": offset + began,
        "due": [offset + each for each in due],
        "took_us": [each * 1e6 for each in took],
        "refused_us": [each * 1e6 for each in refused],
        "failed": failed,
        "wrong": wrong,
    }


def _alike(data: bytes, answer: bytes) -> bool:
    """Equal but for the last bits, which differ with the size of a batch."""
    if data.endswith(answer):
        return True
    layout = f"<{len(answer) // 4}f"
    pairs = zip(struct.unpack(layout, data[-len(answer) :]), struct.unpack(layout, answer), strict=True)
    return all(math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-6) for one, other in pairs)


def _is_whole(data: bytes) -> bool:
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        if not data:
            raise AssertionError("the server closed a connection")
        return False
    at = head.index(b"Content-Length: ") + 16
    return len(body) >= int(head[at:].split(b"\r\n", 1)[0])


if __name__ == "__main__":
    given = json.load(sys.stdin)
    tails = [base64.b64decode(each) for each in given["answers"]]
    asked_for = base64.b64decode(given["request"])
    print(json.dumps(drive(given["port"], asked_for, given["phases"], given["connections"], tails)))
