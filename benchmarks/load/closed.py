"""Closed loop: each connection sends its request again as soon as it has the answer. `python -m benchmarks.load.closed`.

Reads one JSON object (`port`, `request` in base64, `connections`, `seconds`, and `depth`: requests that a connection sends in
one piece, before it waits for their answers; with one connection it looks for them without sleeping), writes one: answers,
seconds, and of what it saw such a piece take the median and the 99th percentile in microseconds. Every answer must be the first
one again.
"""

from __future__ import annotations

import base64
import json
import select
import socket
import sys
import time


def connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def first_answer(port: int, request: bytes) -> bytes:
    """The answer to a request asked alone."""
    with connected(port) as connection:
        connection.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(1 << 16)
        head, _, body = data.partition(b"\r\n\r\n")
        size = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        while len(body) < size:
            body += connection.recv(1 << 16)
    if not head.startswith(b"HTTP/1.1 200 "):
        raise AssertionError(data)
    return head + b"\r\n\r\n" + body


def drive(port: int, request: bytes, connections: int, seconds: float, depth: int) -> dict[str, float]:
    wanted = first_answer(port, request) * depth
    size, request = len(wanted), request * depth
    poller = select.epoll()
    sockets = {each.fileno(): each for each in (connected(port) for _ in range(connections))}
    calls = {number: (each.recv, each.sendall) for number, each in sockets.items()}
    parts: dict[int, bytes] = {}
    clock, poll, took = time.perf_counter, poller.poll, list[float]()
    # A lone connection's time is to be that of the server: its caller is not to be woken first.
    patience = 0 if connections == 1 else 1.0
    began = clock()
    sent = dict.fromkeys(sockets, began)
    for number, each in sockets.items():
        poller.register(number, select.EPOLLIN)
        each.sendall(request)
    end = began + seconds
    while (now := clock()) < end:
        for number, _ in poll(patience):
            receive, send = calls[number]
            # No more than that: from 128 KiB on, glibc maps each buffer anew, 15 us a time.
            data = receive(size)
            if len(data) != size:
                data = parts.pop(number, b"") + data
                if len(data) < size:
                    if not data:
                        raise AssertionError("the server closed a connection")
                    parts[number] = data
                    continue
            if data != wanted:
                raise AssertionError(f"another answer than the first: {data[:500]!r}")
            took.append(now - sent[number])
            sent[number] = now
            send(request)
    spent = clock() - began
    for each in sockets.values():
        each.close()
    took.sort()
    return {
        "answers": len(took) * depth,
        "seconds": spent,
        "p50_us": took[len(took) // 2] * 1e6,
        "p99_us": took[int(len(took) * 0.99)] * 1e6,
    }


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    request_ = base64.b64decode(asked["request"])
    print(json.dumps(drive(asked["port"], request_, asked["connections"], asked["seconds"], asked["depth"])))
