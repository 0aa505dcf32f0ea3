"""HTTP/1.1 as a client sees it, well-behaved or not; no sockets."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.serving import bodies as bodies_of_requests
from dropforge.serving.heads import MAX_HEAD_BYTES
from dropforge.serving.http1 import (
    LINGER_SECONDS,
    MAX_OWED,
    STUCK_SECONDS,
    TURN_REQUESTS,
    Connection,
    Connections,
    Limits,
)
from tests.unit.serving.wire import Clock, Dialogue, Echo, chunked, get, post

MIXED = b"".join(
    (
        get("/now/a"),
        post("/later/b", b"body\r\n\r\n"),
        b"\r\n",
        post("/now/c", b""),
        chunked("/later/d", b"one", b"\r\n\r\n", b"x" * 20, extension=";a=b"),
        get("/none"),
        chunked("/now/e"),
        post("/now/f", b"z" * 100),
    )
)
BODIES = [
    b"GET now/a ",
    b"POST later/b body\r\n\r\n",
    b"POST now/c ",
    b"POST later/d one\r\n\r\n" + b"x" * 20,
    b"no such route",
    b"POST now/e ",
    b"POST now/f " + b"z" * 100,
]


def bodies(dialogue: Dialogue) -> list[bytes]:
    dialogue.app.give_all()
    return [answer.body for answer in dialogue.answers]


# ---------------------------------------------------------------------------------------------------- requests
@pytest.mark.parametrize("cut", range(len(MIXED) + 1))
def test_requests_cut_anywhere_are_answered_in_their_order(cut: int) -> None:
    dialogue = Dialogue().send(*filter(None, (MIXED[:cut], MIXED[cut:])))
    assert bodies(dialogue) == BODIES
    assert dialogue.is_open


def test_requests_that_come_byte_by_byte_are_answered_in_their_order() -> None:
    assert bodies(Dialogue().send(*(MIXED[i : i + 1] for i in range(len(MIXED))))) == BODIES


@dataclass(frozen=True)
class Asked:
    data: bytes
    answer: bytes


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    path = draw(st.sampled_from(["now", "later", "now/a%2Fb"]))
    said = path.replace("%2F", "/").encode()
    blank = draw(st.sampled_from([b"", b"", b"\r\n"]))
    if draw(st.booleans()):
        chunks = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
        extension = draw(st.sampled_from(["", ";a", '; a="b"', "  "]))
        data = chunked(f"/{path}", *chunks, extension=extension)
        return Asked(blank + data, b"POST %b %b" % (said, b"".join(chunks)))
    body = draw(st.none() | st.binary(max_size=60))
    return Asked(blank + post(f"/{path}", body), b"POST %b %b" % (said, body or b""))


@given(asked=st.lists(requests(), max_size=6), data=st.data())
def test_any_split_of_any_requests_gives_the_same_answers(asked: list[Asked], data: st.DataObject) -> None:
    stream = b"".join(each.data for each in asked)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    dialogue = Dialogue()
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        if end > start:
            dialogue.send(stream[start:end])
        if data.draw(st.booleans()):
            dialogue.app.give_all()
    assert bodies(dialogue) == [each.answer for each in asked]
    assert dialogue.all.arriving.bytes == 0


def test_answers_that_are_there_at_once_wait_for_those_before_them() -> None:
    dialogue = Dialogue().send(get("/later/1") + get("/now/2") + get("/later/3") + get("/none"))
    assert dialogue.answers == []
    (first, said), (third, later) = dialogue.app.later
    third.give(later)
    third.connection.flush()
    assert dialogue.answers == []
    first.give(said)
    first.connection.flush()
    assert [answer.body for answer in dialogue.answers] == [
        b"GET later/1 ",
        b"GET now/2 ",
        b"GET later/3 ",
        b"no such route",
    ]


# ---------------------------------------------------------------------------------------------------- what is none
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 20, 400),  # a TLS hello
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
        (b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET /" + b"a" * MAX_HEAD_BYTES, 431),
        (get("/now", "A: " + "b" * MAX_HEAD_BYTES), 431),
        (get("/now", *(f"A{i}: b" for i in range(101))), 431),
        (post("/now", None, "Content-Length: 2000000000"), 413),
        (post("/none", None, "Content-Length: 5") + b"12345", 404),
        (post("/now", None, "Content-Length: 5", "Transfer-Encoding: chunked"), 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"-1\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"0x1\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"1 1\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"g\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"1\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"1\r\nab\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"2\r\na\r\n\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"0\r\nTrailer: x\r\n\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"1;" + b"a" * 300, 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"ffffffffffffffff\r\n", 413),
        (post("/now", None, "Transfer-Encoding: chunked") + b"fffffffffffffffff\r\n", 400),
        (post("/now", None, "Transfer-Encoding: chunked") + b"f\r\n" + b"a" * 15 + b"\r\n186a0\r\n", 413),
    ],
)
def test_what_is_no_request_is_answered_once_and_ends_the_connection(sent: bytes, status: int) -> None:
    for pieces in ((sent,), (sent[:-1], sent[-1:])):
        dialogue = Dialogue().send(*pieces)
        (answer,) = dialogue.answers
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert not dialogue.is_open
        assert dialogue.app.asked == []
        assert dialogue.all.arriving.bytes == 0
        assert dialogue.send(get()).statuses == [status]


def test_a_request_line_that_is_none_is_not_waited_for_to_end() -> None:
    assert Dialogue().send(b"\x80" * 17).statuses == [400]


def test_what_comes_after_a_refusal_is_thrown_away_for_a_while_so_that_it_is_read() -> None:
    dialogue = Dialogue().send(post("/now", None, "Content-Length: 200000") + b"x")
    assert (dialogue.statuses, dialogue.wire.ended, dialogue.wire.closed) == ([413], True, False)
    dialogue.send(b"x" * 100_000).end()
    assert (dialogue.statuses, dialogue.wire.closed) == ([413], True)


def test_who_sends_on_for_ever_after_a_refusal_is_cut_off() -> None:
    dialogue = Dialogue().send(b"GET /\r\n\r\n")
    for _ in range(int(LINGER_SECONDS) + 1):
        dialogue.send(b"x" * 1000).wait(1)
    assert dialogue.wire.aborted
    assert dialogue.all.open == set()


def test_a_refusal_waits_for_the_answers_before_it() -> None:
    dialogue = Dialogue().send(get("/later") + b"GET /\r\n\r\n" + get())
    assert dialogue.answers == [] and not dialogue.wire.ended
    dialogue.app.give_all()
    assert dialogue.statuses == [200, 400]
    assert dialogue.wire.ended


def test_two_gigabytes_that_are_promised_set_nothing_aside() -> None:
    dialogue = Dialogue(Limits(body_bytes=2**32), Echo(body_bytes=2**32)).send(
        post("/now", None, "Content-Length: 2000000000")
    )
    assert dialogue.answers == []
    body = dialogue.connection._body
    assert body is not None and sys.getsizeof(body.data) < 200


def test_a_large_body_is_put_together() -> None:
    body = bytes(range(256)) * 300
    data = post("/now", body) + get("/now/b")
    dialogue = Dialogue().send(*(data[i : i + 1000] for i in range(0, len(data), 1000)))
    assert [answer.body for answer in dialogue.answers] == [b"POST now " + body, b"GET now/b "]


def test_all_bodies_that_arrive_are_bounded_together_and_small_ones_come_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies_of_requests, "LARGE_BYTES", 100)
    among = Connections(Limits(arriving_bytes=1000), Clock())
    first = Dialogue(among=among).send(post("/now", None, "Content-Length: 5000"), b"x" * 950)
    second = Dialogue(among=among).send(post("/now", None, "Content-Length: 5000"), b"x" * 99)
    small = Dialogue(among=among).send(post("/now", None, "Content-Length: 3"), b"x", b"xx")
    assert (first.statuses, small.statuses) == ([], [200])
    assert second.send(b"x" * 50).statuses == [503]
    assert first.send(b"x").statuses == []
    assert first.send(b"x" * 50).statuses == [503]
    assert among.arriving.bytes == 0


# ---------------------------------------------------------------------------------------------------- connections
@pytest.mark.parametrize(
    ("request_", "goes_on", "said"),
    [
        (get("/now"), True, None),
        (get("/now", "Connection: close"), False, "close"),
        (get("/now", version="1.0"), False, "close"),
        (get("/now", "Connection: keep-alive", version="1.0"), True, "keep-alive"),
        (get("/none", "Connection: close"), False, "close"),
    ],
)
@pytest.mark.parametrize("path", [b"/now", b"/later"])
def test_a_connection_goes_on_as_both_have_said(request_: bytes, goes_on: bool, said: str | None, path: bytes) -> None:
    dialogue = Dialogue().send(request_.replace(b"/now", path))
    dialogue.app.give_all()
    (answer,) = dialogue.answers
    assert (dialogue.is_open, answer.headers.get("connection")) == (goes_on, said)


def test_nothing_is_read_after_the_last_request_and_its_answer_is_not_lost() -> None:
    dialogue = Dialogue().send(get("/now", "Connection: close") + get("/now/b"))
    assert bodies(dialogue) == [b"GET now "]
    assert dialogue.wire.ended and not dialogue.wire.closed


def test_who_asks_before_he_sends_is_told_to() -> None:
    dialogue = Dialogue().send(post("/now", None, "Expect: 100-continue", "Content-Length: 2"))
    assert bytes(dialogue.wire.sent) == b"HTTP/1.1 100 Continue\r\n\r\n"
    dialogue.wire.sent.clear()
    assert bodies(dialogue.send(b"ab")) == [b"POST now ab"]


def test_who_does_not_wait_to_be_told_is_not() -> None:
    head = post("/now", None, "Expect: 100-continue", "Content-Length: 2")
    assert bodies(Dialogue().send(head + b"a", b"b")) == [b"POST now ab"]
    assert Dialogue().send(head.replace(b"th: 2", b"th: 200000")).statuses == [413]
    assert Dialogue().send(head.replace(b"1.1", b"1.0")).answers == []


def test_above_their_limit_connections_are_told_and_closed() -> None:
    among = Connections(Limits(connections=2), Clock())
    first, second, third = (Dialogue(among=among) for _ in range(3))
    assert (first.is_open, second.is_open, third.is_open) == (True, True, False)
    assert third.statuses == [503]
    assert Dialogue(among=among).statuses == [503]
    second.connection.connection_lost(None)
    assert Dialogue(among=among).is_open


def test_an_idle_connection_is_closed_without_a_word() -> None:
    dialogue = Dialogue(Limits(idle_seconds=60)).send(get())
    assert dialogue.wait(59).is_open
    assert dialogue.send(get()).wait(59).is_open
    assert not dialogue.wait(4).is_open
    assert dialogue.statuses == [200, 200]


def test_a_connection_that_is_refused_what_it_asks_for_is_not_idle() -> None:
    dialogue = Dialogue(Limits(idle_seconds=60, head_seconds=5))
    for _ in range(3):
        assert dialogue.send(get("/none")).wait(59).is_open
    assert dialogue.statuses == [404] * 3
    assert not dialogue.wait(4).is_open


def test_a_connection_without_a_request_is_not_waited_for_as_long() -> None:
    dialogue = Dialogue(Limits(idle_seconds=60, head_seconds=5))
    assert dialogue.wait(5).is_open
    assert not dialogue.wait(1).is_open
    assert dialogue.answers == []


def test_a_head_that_comes_a_byte_at_a_time_gets_no_more_time() -> None:
    dialogue = Dialogue(Limits(head_seconds=5)).send(get())
    for byte in get()[:7]:
        dialogue.send(bytes([byte])).wait(1)
    assert dialogue.statuses == [200, 408]
    assert not dialogue.is_open


def test_a_body_that_comes_a_byte_at_a_time_gets_no_more_time() -> None:
    dialogue = Dialogue(Limits(body_seconds=5)).send(post("/now", None, "Content-Length: 10"))
    for _ in range(7):
        dialogue.send(b"x").wait(1)
    assert dialogue.statuses == [408]
    assert (dialogue.all.open, dialogue.all.arriving.bytes) == (set(), 0)


def test_a_client_is_not_late_while_it_waits_for_us() -> None:
    dialogue = Dialogue(Limits(idle_seconds=5, head_seconds=5)).send(get("/later") + b"GET /now")
    assert dialogue.wait(60).is_open
    dialogue.app.give_all()
    assert dialogue.wait(3).is_open
    assert dialogue.wait(4).statuses == [200, 408]


def test_who_has_sent_all_still_gets_his_answers() -> None:
    dialogue = Dialogue().send(get("/later") + get("/now")).end()
    assert (dialogue.answers, dialogue.wire.closed) == ([], False)
    dialogue.app.give_all()
    assert dialogue.statuses == [200, 200]
    assert dialogue.wire.closed


@pytest.mark.parametrize("rest", [post("/now", b"12345")[:-1], get()[:-1], chunked("/now", b"a")[:-1]])
@pytest.mark.parametrize("before", [b"", get("/later")])
def test_half_a_request_is_told_to_be_half(rest: bytes, before: bytes) -> None:
    dialogue = Dialogue().send(before + rest).end()
    dialogue.app.give_all()
    assert dialogue.statuses == [*([200] if before else []), 400]
    assert b"in the middle of" in dialogue.answers[-1].body
    assert dialogue.wire.closed
    assert len(dialogue.app.asked) == (1 if before else 0)


def test_nobody_waits_for_answers_when_the_connection_is_lost() -> None:
    dialogue = Dialogue().send(get("/later"))
    ((place, said),) = dialogue.app.later
    before = place.gone
    dialogue.connection.connection_lost(None)
    assert (before, place.gone) == (False, True)
    place.give(said)
    place.connection.flush()
    assert dialogue.answers == []


def test_at_the_end_what_is_whole_is_answered_and_nothing_else_waited_for() -> None:
    among = Connections(Limits(body_bytes=100), Clock())
    idle, half, owed, body = (Dialogue(among=among) for _ in range(4))
    idle.send(get())
    half.send(get()[:-1])
    owed.send(get("/later") + get("/later/b"))
    body.send(post("/later", b"123")[:-1])
    among.end()
    assert not idle.is_open and not half.is_open
    assert owed.is_open and body.is_open
    owed.app.give_all()
    body.send(b"3")
    body.app.give_all()
    assert [owed.statuses, body.statuses] == [[200, 200], [200]]
    assert body.answers[0].headers["connection"] == "close"
    assert among.open == set()
    assert Dialogue(among=among).statuses == [503]


# ---------------------------------------------------------------------------------------------------- back-pressure
def test_a_client_that_does_not_read_is_not_read_from() -> None:
    dialogue = Dialogue()
    dialogue.wire.stuck = True
    request = post("/now", b"x" * 50_000)
    dialogue.send(request, request, request, request)
    # Two filled the buffer; the others have to wait.
    assert (dialogue.wire.reading, len(dialogue.app.asked)) == (False, 2)
    dialogue.wire.unstick()
    assert dialogue.wire.reading
    assert dialogue.statuses == [200] * 4


def test_a_client_that_takes_no_byte_of_its_answers_is_cut_off() -> None:
    dialogue = Dialogue(Limits(idle_seconds=20))
    dialogue.wire.stuck = True
    dialogue.send(get())
    assert not dialogue.wait(21 + STUCK_SECONDS).wire.aborted
    dialogue.wire.unsent -= 1
    assert not dialogue.wait(STUCK_SECONDS).wire.aborted
    assert dialogue.wait(3).wire.aborted
    assert dialogue.all.open == set()


def test_a_closed_connection_whose_answer_is_not_taken_is_cut_off() -> None:
    dialogue = Dialogue(Limits(idle_seconds=5))
    dialogue.wire.stuck = True
    dialogue.send(get("/now", "Connection: close"))
    assert dialogue.wire.closed and dialogue.all.open
    assert dialogue.wait(30).all.open == set()


@pytest.mark.parametrize("path", ["/later", "/none"])
def test_a_client_is_owed_so_many_answers_and_no_more(path: str) -> None:
    async def scenario() -> None:
        dialogue = Dialogue().send(get("/later"))
        for _ in range(10):
            dialogue.send(get(path) * 100)
            await asyncio.sleep(0)
        assert not dialogue.wire.reading
        assert len(dialogue.connection._owed or ()) == MAX_OWED
        for _ in range(20):
            dialogue.app.give_all()
            await asyncio.sleep(0)
        assert len(dialogue.answers) == 1001
        assert dialogue.wire.reading

    asyncio.run(scenario())


def test_a_client_has_so_many_requests_in_a_turn_and_then_others_have_theirs() -> None:
    async def scenario() -> None:
        flood, other = Dialogue(), Dialogue()
        flood.send(get() * (2 * TURN_REQUESTS + 1))
        assert len(flood.app.asked) == TURN_REQUESTS
        assert not flood.wire.reading
        other.send(get())
        assert other.statuses == [200]
        flood.end()
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(flood.answers) == 2 * TURN_REQUESTS + 1
        assert flood.wire.closed

    asyncio.run(scenario())


def test_a_body_of_very_many_chunks_takes_more_than_one_turn() -> None:
    async def scenario() -> None:
        dialogue = Dialogue().send(chunked("/now", *[b"x"] * 1000) + get("/now/b"))
        assert dialogue.app.asked == []
        for _ in range(10):
            await asyncio.sleep(0)
        assert bodies(dialogue) == [b"POST now " + b"x" * 1000, b"GET now/b "]

    asyncio.run(scenario())


def test_a_connection_lost_while_it_waits_for_its_turn_is_left_alone() -> None:
    async def scenario() -> None:
        dialogue = Dialogue().send(get() * (TURN_REQUESTS + 1))
        dialogue.connection.connection_lost(None)
        await asyncio.sleep(0)
        assert len(dialogue.app.asked) == TURN_REQUESTS

    asyncio.run(scenario())


def test_an_idle_connection_holds_next_to_nothing() -> None:
    dialogue = Dialogue().send(get("/now") + get("/later"))
    dialogue.app.give_all()
    connection = dialogue.connection
    assert not hasattr(connection, "__dict__")
    held = [getattr(connection, name) for name in Connection.__slots__ if name not in ("_app", "_all", "_transport")]
    assert sys.getsizeof(connection) + sum(sys.getsizeof(each) for each in held if each) < 400
