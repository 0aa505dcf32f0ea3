"""The admin port's HTTP server: what it reads, what it refuses, when it hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge.servicebus.admin.http1 import HttpServer, Limits, Request, Response

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


def echo(request: Request) -> Response:
    told = f"{request.method} {request.path} {dict(request.query)} {len(request.body)}"
    return Response(200, told.encode(), "text/plain")


def refuse(status: int, detail: str) -> Response:
    return Response(status, detail.encode(), "text/plain")


def served(talk: Talk, limits: Limits | None = None) -> bytes:
    """What `talk` returns after it had a connection to a server of its own."""

    async def run() -> bytes:
        server = HttpServer(echo, refuse, limits)
        port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(10):
                return await talk(reader, writer)
        finally:
            writer.close()
            await server.stop()

    return asyncio.run(run())


def sent(data: bytes, limits: Limits | None = None) -> bytes:
    """Everything the server answers to `data` until it hangs up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(data)
        writer.write_eof()
        return await reader.read()

    return served(talk, limits)


def test_a_path_is_decoded_and_a_query_is_read() -> None:
    answer = sent(b"GET /a%2Fb%20c?$top=5&x HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"GET a/b c {'$top': '5', 'x': ''} 0")


def test_one_connection_carries_many_requests_with_bodies() -> None:
    one = b"PUT /q HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
    assert sent(one * 3).count(b"PUT q {} 3") == 3


def test_a_request_that_asks_to_close_ends_the_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        return await reader.read()

    assert b"Connection: close" in served(talk)


def test_a_client_that_expects_a_go_ahead_gets_it_before_it_sends_the_body() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"PUT /q HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ab")
        writer.write_eof()
        return await reader.read()

    assert served(talk).endswith(b"PUT q {} 2")


def test_the_answer_to_head_has_no_body() -> None:
    assert sent(b"HEAD /q HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nspace : x\r\n\r\n", b"400"),
        (b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"PUT / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", b"400"),
        (b"PUT / HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n", b"413"),
        (b"PUT / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"413"),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: x\r\n" % n for n in range(70)) + b"\r\n", b"431"),
        (b"GET /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /?" + b"&".join(b"a=%d" % n for n in range(100)) + b" HTTP/1.1\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", b"400"),
    ],
)
def test_what_cannot_be_read_is_refused_and_the_connection_ends(data: bytes, status: bytes) -> None:
    answer = sent(data)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"Connection: close" in answer


def test_a_request_that_is_not_finished_in_time_is_hung_up_on() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nHost: ")
        return await reader.read()

    assert served(talk, Limits(request_seconds=0.05)) == b""


def test_a_connection_that_stays_idle_is_hung_up_on() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        return await reader.read()

    assert served(talk, Limits(idle_seconds=0.05)) == b""


def test_a_connection_too_many_is_told_so() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        return await reader.read()

    assert served(talk, Limits(connections=0)).startswith(b"HTTP/1.1 503")


def test_stopping_hangs_up_on_everybody_and_may_be_repeated() -> None:
    async def run() -> bytes:
        server = HttpServer(echo, refuse)
        port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await server.stop()
        await server.stop()
        rest = await reader.read()
        writer.close()
        return rest

    assert asyncio.run(run()) == b"GET  {} 0"


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_server(data: bytes) -> None:
    answer = sent(data + b"\r\n\r\n")
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))
