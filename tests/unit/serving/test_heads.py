"""The head of a request, read strictly and remembered."""

from __future__ import annotations

from typing import Any

import pytest

from dropforge.serving.heads import KEPT_HEAD_BYTES, KEPT_HEADS, MAX_HEADERS, Head, HeadRefused, Heads
from tests.unit.serving.wire import get, post


def read(raw: bytes) -> Head[Any]:
    return Heads[Any](lambda head: None).read(raw)


@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b"GET /\r\n\r\n", 400, "no HTTP/1.1"),  # HTTP/0.9
        (b"PRI * HTTP/2.0\r\n\r\n", 505, "HTTP/2.0 is not spoken here; use HTTP/1.1"),
        (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505, "HTTP/1.2"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "`Host` is missing"),
        (b"PLAY / RTSP/1.0\r\nHost: x\r\n\r\n", 400, "no HTTP/1.1"),
        (b"SOURCE / ICE/1.0\r\nHost: x\r\n\r\n", 400, "no HTTP/1.1"),
        (b"FOO / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no HTTP/1.1"),
        (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "is no path"),
        (b"GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET ftp://x/y HTTP/1.1\r\nHost: x\r\n\r\n", 400, "is no path"),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405, "no proxy"),
        (b"GET / HTTP/1.1\nHost: x\n\nGET /b HTTP/1.1\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400, "no HTTP/1.1"),  # obs-fold
        (b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nnothing\r\n\r\n", 400, "no HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400, "'host' is there twice"),
        (get("/", "Authorization: a", "authorization: b"), 400, "'authorization' is there twice"),
        (get("/", *[f"A{i}: b" for i in range(MAX_HEADERS)]), 431, f"more than {MAX_HEADERS} headers"),
        (get("/", "Content-Length: 5", "Content-Length: 5"), 400, "Content-Length"),
        (get("/", "Content-Length: 5, 5"), 400, "Content-Length"),
        (get("/", "Content-Length: +5"), 400, "Content-Length"),
        (get("/", "Content-Length: -5"), 400, "Content-Length"),
        (get("/", "Content-Length: 0x5"), 400, "Content-Length"),
        (get("/", "Content-Length: 5 5"), 400, "Content-Length"),
        (get("/", "Content-Length: "), 400, "Content-Length"),
        (get("/", "Content-Length: 9999999999999999999"), 400, "Content-Length"),
        (get("/", "Content-Length: 5", "Transfer-Encoding: chunked"), 400, "Transfer-Encoding"),
        (get("/", "Transfer-Encoding: chunked", "Content-Length: 5"), 400, "Transfer-Encoding"),
        (get("/", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400, "Transfer-Encoding"),
        (get("/", "Transfer-Encoding: gzip, chunked"), 400, "no other coding"),
        (get("/", "Transfer-Encoding: xchunked"), 400, "Transfer-Encoding"),
        (get("/", "Transfer-Encoding: chunked", version="1.0"), 400, "from HTTP/1.1 on"),
    ],
)
def test_a_head_that_two_readers_could_read_differently_is_refused(raw: bytes, status: int, message: str) -> None:
    with pytest.raises(HeadRefused) as refused:
        read(raw)
    assert refused.value.status == status
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("target", "path", "query", "parts"),
    [
        ("/", "/", "", []),
        ("/v2/", "/v2/", "", ["v2"]),
        ("/a/b?c=/d", "/a/b", "c=/d", ["a", "b"]),
        ("/%66/a%2Fb/%C3%A9", "/%66/a%2Fb/%C3%A9", "", ["f", "a/b", "é"]),
        ("/%", "/%", "", ["%"]),
        ("/%ff", "/%ff", "", ["\ufffd"]),
        ("/%00", "/%00", "", ["\x00"]),
        ("/a//b", "/a//b", "", ["a", "", "b"]),
        ("/../a", "/../a", "", ["..", "a"]),
        ("http://y:1/a?b", "/a", "b", ["a"]),
        ("HTTPS://y", "/", "", []),
    ],
)
def test_a_path_is_decoded_after_it_is_parted(target: str, path: str, query: str, parts: list[str]) -> None:
    head = read(get(target))
    assert (head.path, head.query, head.parts) == (path, query, parts)


def test_a_star_is_a_target_of_options_only() -> None:
    assert read(post("*", None, method="OPTIONS")).path == "*"


@pytest.mark.parametrize(
    ("version", "header", "keep_alive", "said"),
    [
        ("1.1", "A: b", True, b""),
        ("1.1", "Connection: close", False, b"Connection: close\r\n"),
        ("1.1", "Connection: x, Close", False, b"Connection: close\r\n"),
        ("1.1", "Connection: closed", True, b""),
        ("1.0", "A: b", False, b"Connection: close\r\n"),
        ("1.0", "Connection: Keep-Alive", True, b"Connection: keep-alive\r\n"),
        ("1.0", "Connection: keep-alive, close", False, b"Connection: close\r\n"),
    ],
)
def test_both_sides_know_whether_the_connection_goes_on(
    version: str, header: str, keep_alive: bool, said: bytes
) -> None:
    head = read(get("/", header, version=version))
    assert (head.keep_alive, head.connection) == (keep_alive, said)


def test_an_offer_of_another_protocol_is_not_taken() -> None:
    head = read(post("/", b"", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAA"))
    assert (head.keep_alive, head.body_bytes) == (True, 0)


def test_headers_are_found_by_their_names_in_lower_case_and_put_together() -> None:
    head = read(get("/", "X-A:  1 \t", "x-a: 2", "X-B: é"))
    assert (head.header("x-a"), head.header("x-c")) == ("1, 2", None)
    assert head.header("x-b") == "é".encode().decode("latin-1")


def test_a_head_is_routed_once_and_another_key_is_another_head() -> None:
    routed: list[Head[Any]] = []
    heads = Heads[Any](routed.append)
    one, other = (get("/", f"Authorization: Bearer {key}") for key in ("a", "b"))
    assert heads.read(one) is heads.read(one)
    assert heads.read(other) is not heads.read(one)
    assert [head.header("authorization") for head in routed] == ["Bearer a", "Bearer b"]


def test_a_head_that_is_refused_is_refused_every_time() -> None:
    heads = Heads[Any](lambda head: None)
    for _ in range(2):
        with pytest.raises(HeadRefused):
            heads.read(get("/", "Content-Length: +5"))


def test_what_is_remembered_is_bounded_in_number_and_size() -> None:
    heads = Heads[Any](lambda head: None)
    for number in range(KEPT_HEADS + 10):
        heads.read(get(f"/{number}"))
    assert len(heads.known) == 10
    heads.read(get("/" + "a" * KEPT_HEAD_BYTES))
    assert len(heads.known) == 10
