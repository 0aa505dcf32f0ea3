"""HTTP/2 frame by frame: what a client may do, what it may not, and what a hostile one gets."""

from __future__ import annotations

import random
import struct

import pytest
from hpack import Encoder

from dropforge.serving import bodies
from dropforge.serving.grpc import frames, http2
from dropforge.serving.grpc.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
)
from dropforge.serving.http1 import Connections, Limits
from tests.unit.serving.h2_wire import Client, Echo, asks, named, split

BLOCK = frames.block(named())
MESSAGE = b"\0\0\0\0\x03abc"


def test_a_call_is_answered_on_its_stream() -> None:
    client = Client(Echo())
    client.feed(asks(1, MESSAGE) + asks(3, b""))
    assert client.answers[1].data == MESSAGE
    assert client.answers[1].headers == {":status": "200", "grpc-status": "0"}
    assert client.answers[1].ended
    assert client.answers[3].ended
    assert client.goodbye is None


def test_frames_may_come_in_any_pieces() -> None:
    data = asks(1, MESSAGE) + frames.frame(PING, 0, 0, b"12345678") + asks(3, b"x" * 500)
    whole = Client(Echo())
    whole.feed(data)
    for size in (1, 2, 3, 7, 8, 9, 10, 64):
        client = Client(Echo())
        for at in range(0, len(data), size):
            client.feed(data[at : at + size])
        assert client.answers == whole.answers


def test_the_preface_may_come_in_pieces_and_must_be_it() -> None:
    for wrong in (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSN", b"\x16\x03\x01\x02"):
        other = _fresh()
        other.feed(wrong)
        assert other.goodbye is not None
        assert other.goodbye.code == frames.PROTOCOL_ERROR
        assert other.transport.closed
    other = _fresh()
    for byte in frames.PREFACE + frames.settings({}) + asks(1, MESSAGE):
        other.feed(bytes((byte,)))
    assert other.answers[1].data == MESSAGE


def _fresh(app: Echo | None = None, limits: Limits | None = None) -> Client:
    """A client that has said nothing yet."""
    client = Client(app or Echo(), limits)
    client.connection = http2.Connection(app or Echo(), client.connections)
    client.transport = type(client.transport)()
    client.connection.connection_made(client.transport)  # type: ignore[arg-type]
    return client


def test_settings_pings_and_priorities_are_answered_as_they_should_be() -> None:
    client = Client(Echo())
    client.frame(PING, 0, 0, b"abcdefgh")
    client.frame(PING, ACK, 0, b"abcdefgh")
    client.frame(PRIORITY, 0, 1, b"\0\0\0\0\x10")
    client.frame(SETTINGS, ACK, 0)
    client.frame(0x77, 0xFF, 5, b"of a type that nobody knows")
    client.feed(asks(1, MESSAGE))
    assert [each.payload for each in client.of(PING)] == [b"abcdefgh"]
    assert [each.flags for each in client.of(SETTINGS)] == [0, ACK]
    assert client.answers[1].data == MESSAGE


def test_headers_may_be_padded_weighted_and_split() -> None:
    client = Client(Echo())
    weighted = bytes((4,)) + b"\0\0\0\0\x10" + BLOCK + b"\0" * 4
    client.frame(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, weighted)
    client.frame(DATA, END_STREAM | PADDED, 1, bytes((2,)) + MESSAGE + b"\0\0")
    client.frame(HEADERS, 0, 3, BLOCK[:10])
    client.frame(CONTINUATION, 0, 3, BLOCK[10:20])
    client.frame(CONTINUATION, END_HEADERS, 3, BLOCK[20:])
    client.frame(DATA, 0, 3, MESSAGE[:4])
    client.frame(DATA, 0, 3, MESSAGE[4:])
    client.frame(HEADERS, END_HEADERS | END_STREAM, 3, frames.block([("x-trailer", "1")]))
    assert client.answers[1].data == client.answers[3].data == MESSAGE


def test_a_block_is_decoded_once_for_as_long_as_the_table_stays() -> None:
    app, encoder = Echo(), Encoder()
    client = Client(app)
    for stream in range(1, 21, 2):
        block = encoder.encode(named())
        client.feed(frames.frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
    # The first fills the table, the second uses it, and the others are the second.
    assert len(app.heads) == 2
    assert app.heads[0] == app.heads[1] == [(name.encode(), value.encode()) for name, value in named()]


def test_equal_bytes_that_mean_something_else_by_now_are_read_again() -> None:
    app, encoder, stream = Echo(), Encoder(), 1
    client, random_ = Client(app), random.Random(1)
    expected = []
    for _ in range(400):
        if random_.random() < 0.05:
            encoder.header_table_size = random_.choice((0, 60, 200, 4096))
        headers = [*named(), ("x-key", str(random_.randrange(3))), ("x-other", str(random_.randrange(4)))]
        block = encoder.encode(headers)
        expected.append(dict(headers))
        before = len(app.heads)
        client.feed(frames.frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
        call, _ = app.calls[-1]
        call.head.headers = dict(app.heads[-1]) if len(app.heads) > before else call.head.headers
        assert {k.decode(): v.decode() for k, v in call.head.headers.items()} == expected[-1]
        stream += 2
    assert 100 < len(app.heads) < 300
    assert client.goodbye is None


def test_what_is_remembered_of_blocks_is_bounded() -> None:
    app = Echo()
    client = Client(app)
    for number in range(2000):
        block = frames.block(named(x_key=f"{number:0500d}"))
        client.frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, block)
    assert len(app.heads) == 2000
    assert 10 < len(client.connection._known) < 200


# ---------------------------------------------------------------------------------------------------- broken rules
def _break(*sent: bytes) -> Client:
    client = Client(Echo(later=True))
    for each in sent:
        client.feed(each)
    return client


HALF = frames.frame(HEADERS, END_HEADERS, 1, BLOCK)
PROTOCOL, SIZE, FLOW = frames.PROTOCOL_ERROR, frames.FRAME_SIZE_ERROR, frames.FLOW_CONTROL_ERROR
CONNECTION_ERRORS = {
    "data on stream 0": ([frames.frame(DATA, 0, 0, b"x")], PROTOCOL),
    "data on a stream that is not open": ([frames.frame(DATA, 0, 1, b"x")], PROTOCOL),
    "headers on stream 0": ([frames.frame(HEADERS, END_HEADERS, 0, BLOCK)], PROTOCOL),
    "headers on an even stream": ([frames.frame(HEADERS, END_HEADERS, 2, BLOCK)], PROTOCOL),
    "headers on an older stream": ([asks(5, b""), asks(3, b"")], frames.STREAM_CLOSED),
    "headers of a call that was ended": ([asks(1, b""), HALF], frames.STREAM_CLOSED),
    "a frame that is too long": ([frames.frame(DATA, 0, 1, b"x" * 16_385)], SIZE),
    "a frame that says it is very long": ([b"\xff\xff\xff\0\0\0\0\0\1"], SIZE),
    "padding beyond the frame": ([HALF, frames.frame(DATA, PADDED, 1, b"\x05abc")], PROTOCOL),
    "padding of nothing": ([frames.frame(HEADERS, END_HEADERS | PADDED, 1, b"")], PROTOCOL),
    "half a priority in headers": ([frames.frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"abc")], SIZE),
    "priority on stream 0": ([frames.frame(PRIORITY, 0, 0, b"\0" * 5)], PROTOCOL),
    "priority of another size": ([frames.frame(PRIORITY, 0, 1, b"\0" * 4)], SIZE),
    "reset of stream 0": ([frames.rst_stream(0, 8)], PROTOCOL),
    "reset of a stream that is not open": ([frames.rst_stream(1, 8)], PROTOCOL),
    "reset of another size": ([HALF, frames.frame(RST_STREAM, 0, 1, b"\0" * 3)], SIZE),
    "settings on a stream": ([frames.frame(SETTINGS, 0, 1, b"")], PROTOCOL),
    "half a setting": ([frames.frame(SETTINGS, 0, 0, b"\0" * 5)], SIZE),
    "an acknowledgement with settings": ([frames.frame(SETTINGS, ACK, 0, b"\0" * 6)], SIZE),
    "a window beyond 2^31-1": ([frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31})], FLOW),
    "frames below the least": ([frames.settings({frames.MAX_FRAME_SIZE: 16_383})], PROTOCOL),
    "frames beyond the most": ([frames.settings({frames.MAX_FRAME_SIZE: 2**24})], PROTOCOL),
    "a push that is neither on nor off": ([frames.settings({frames.ENABLE_PUSH: 2})], PROTOCOL),
    "a pushed promise": ([frames.frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + BLOCK)], PROTOCOL),
    "a ping on a stream": ([frames.frame(PING, 0, 1, b"\0" * 8)], PROTOCOL),
    "a ping of another size": ([frames.frame(PING, 0, 0, b"\0" * 7)], SIZE),
    "a good-bye on a stream": ([frames.frame(GOAWAY, 0, 1, b"\0" * 8)], PROTOCOL),
    "a window that grows by nothing": ([frames.window_update(0, 0)], PROTOCOL),
    "a window update of another size": ([frames.frame(WINDOW_UPDATE, 0, 0, b"\0" * 3)], SIZE),
    "a window update of a stream that is not open": ([frames.window_update(7, 5)], PROTOCOL),
    "a connection's window beyond 2^31-1": ([frames.window_update(0, 2**31 - 1)], FLOW),
    "a continuation of nothing": ([frames.frame(CONTINUATION, END_HEADERS, 1, BLOCK)], PROTOCOL),
    "another frame between headers": (
        [frames.frame(HEADERS, 0, 1, BLOCK), frames.frame(PING, 0, 0, b"8" * 8)],
        PROTOCOL,
    ),
    "another stream between headers": (
        [frames.frame(HEADERS, 0, 1, BLOCK), frames.frame(CONTINUATION, END_HEADERS, 3, BLOCK)],
        PROTOCOL,
    ),
    "a block that is none": (
        [frames.frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")],
        frames.COMPRESSION_ERROR,
    ),
    "an index into nothing": ([frames.frame(HEADERS, END_HEADERS, 1, b"\xbf\xff\x01")], frames.COMPRESSION_ERROR),
    "a table above what is allowed": (
        [frames.frame(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f")],
        frames.COMPRESSION_ERROR,
    ),
}


@pytest.mark.parametrize("what", CONNECTION_ERRORS)
def test_what_breaks_the_connection_is_told_and_ends_it(what: str) -> None:
    sent, code = CONNECTION_ERRORS[what]
    client = _break(*sent)
    assert client.goodbye is not None
    assert client.goodbye.code == code, client.goodbye
    assert client.goodbye.payload[8:], "no reason given"
    assert client.transport.closed
    client.connection.connection_lost(None)
    assert client.connections.open == set()


def test_before_its_settings_a_client_says_nothing() -> None:
    for first in (asks(1, b""), frames.frame(PING, 0, 0, b"8" * 8)):
        client = _fresh()
        client.feed(frames.PREFACE + first)
        assert client.goodbye is not None
        assert client.goodbye.code == PROTOCOL


def test_what_breaks_one_stream_ends_that_one_alone() -> None:
    half = frames.frame(HEADERS, END_HEADERS, 3, BLOCK)
    for sent, code in (
        (half + frames.window_update(3, 0), PROTOCOL),
        (half + frames.window_update(3, 2**31 - 1), FLOW),
        (half + frames.frame(HEADERS, END_HEADERS, 3, BLOCK), PROTOCOL),
        (asks(3, b"") + frames.frame(DATA, 0, 3, b"x"), frames.STREAM_CLOSED),
    ):
        app = Echo(later=True)
        client = Client(app)
        client.feed(asks(1, MESSAGE) + sent + asks(5, MESSAGE))
        assert client.resets() == {3: code}
        for call, data in app.calls:
            app.reply(call, data)
        client.connection.flush()
        assert client.answers.keys() == {1, 5}
        assert client.goodbye is None


# ---------------------------------------------------------------------------------------------------- flow control
def test_an_answer_waits_for_room() -> None:
    answer = bytes(range(256)) * 1024
    client = Client(Echo(answer=answer), wide=False)
    client.feed(asks(1, MESSAGE))
    assert client.answers[1].data == answer[: frames.FIRST_WINDOW]
    client.feed(frames.window_update(1, 10))
    assert len(client.answers[1].data) == frames.FIRST_WINDOW
    client.feed(frames.window_update(0, 5))
    assert len(client.answers[1].data) == frames.FIRST_WINDOW + 5
    client.feed(frames.window_update(1, 300_000) + frames.window_update(0, 300_000))
    assert client.answers[1].data == answer
    assert client.answers[1].ended


def test_rooms_of_a_byte_get_a_byte_each() -> None:
    client = Client(Echo(answer=b"0123456789"), wide=False)
    client.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    client.feed(asks(1, MESSAGE))
    assert client.answers[1].data == b""
    for place in range(10):
        client.feed(frames.window_update(1, 1))
        assert client.answers[1].data == b"0123456789"[: place + 1]
    assert client.answers[1].ended


def test_a_change_of_the_first_window_reaches_calls_that_are_open() -> None:
    client = Client(Echo(answer=b"x" * 100), wide=False)
    client.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 40}) + asks(1, b""))
    client.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 20}))
    client.feed(frames.window_update(1, 20))
    assert len(client.answers[1].data) == 40
    client.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 80}))
    assert client.answers[1].ended


def test_frames_are_no_longer_than_the_client_takes() -> None:
    app = Echo(answer=b"x" * 100_000)
    client = Client(app)
    written: list[bytes] = []
    client.transport.write = written.append  # type: ignore[method-assign]
    client.feed(asks(1, b"") + frames.settings({frames.MAX_FRAME_SIZE: 40_000}) + asks(3, b""))
    lengths: dict[int, int] = {}
    for each in split(b"".join(written)):
        if each.kind == DATA:
            lengths[each.stream] = max(lengths.get(each.stream, 0), len(each.payload))
    assert lengths == {1: 16_384, 3: 40_000}


def test_a_client_hears_of_room_before_it_has_none() -> None:
    client = Client(Echo())
    client.feed(frames.frame(HEADERS, END_HEADERS, 1, BLOCK))
    sent, message = 0, b"\0" + (9_000_000).to_bytes(4, "big") + b"x" * 9_000_000
    for at in range(0, len(message), 16_384):
        piece = message[at : at + 16_384]
        client.frame(DATA, 0, 1, piece)
        sent += len(piece)
        for stream, first in ((0, http2.CONNECTION_WINDOW), (1, http2.CALL_WINDOW)):
            grown = [int.from_bytes(each.payload, "big") for each in client.of(WINDOW_UPDATE) if each.stream == stream]
            # The first of the connection's makes its window what it is.
            assert first + sum(grown[1:] if stream == 0 else grown) - sent >= 16_384
    client.frame(DATA, END_STREAM, 1)
    assert client.answers[1].data == message


# ---------------------------------------------------------------------------------------------------- bounds
def test_a_message_above_the_limit_is_refused_by_its_length_alone() -> None:
    app = Echo()
    client = Client(app, Limits(body_bytes=1000))
    client.feed(frames.frame(HEADERS, END_HEADERS, 1, BLOCK))
    client.frame(DATA, 0, 1, b"\0\0\0")
    client.frame(DATA, 0, 1, b"\x04\x00")
    assert [str(each) for each in app.errors] == [
        "a message of 1024 bytes is above the limit of 1000 bytes for this call; send less in one, as fewer rows"
    ]
    assert client.answers[1].status == 8
    assert client.resets() == {1: frames.NO_ERROR}
    # What was under way is read over.
    client.frame(DATA, 0, 1, b"x" * 500)
    client.feed(asks(3, MESSAGE))
    assert client.answers[3].ended


def test_all_messages_of_a_connection_together_are_bounded() -> None:
    app = Echo()
    client = Client(app, Limits(body_bytes=50_000))
    for stream in range(1, 41, 2):
        client.feed(frames.frame(HEADERS, END_HEADERS, stream, BLOCK))
        client.frame(DATA, 0, stream, b"\0\0\0\x80\0" + b"x" * 10_000)
    assert len(app.errors) == 11
    assert [each.status for each in client.answers.values()] == [8] * 11
    assert client.goodbye is None


def test_all_messages_of_all_connections_together_are_bounded_and_small_ones_come_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bodies, "LARGE_BYTES", 1000)
    among = Connections(Limits(arriving_bytes=30_000))
    begun = frames.frame(HEADERS, END_HEADERS, 1, BLOCK) + frames.frame(DATA, 0, 1, b"\0\0\0\x80\0" + b"x" * 9995)
    apps = [Echo() for _ in range(4)]
    clients = [Client(app, among=among) for app in apps]
    for each in clients:
        each.feed(begun)
    assert [len(app.errors) for app in apps] == [0, 0, 0, 1]
    assert "too many large bodies" in str(apps[3].errors[0])
    clients[3].feed(frames.frame(HEADERS, END_HEADERS, 3, BLOCK))
    clients[3].frame(DATA, 0, 3, MESSAGE[:3])
    clients[3].frame(DATA, END_STREAM, 3, MESSAGE[3:])
    assert clients[3].answers[3].data == MESSAGE
    # Whole, reset, and lost with its connection.
    clients[0].frame(DATA, END_STREAM, 1, b"x" * (0x8000 - 9995))
    clients[1].frame(RST_STREAM, 0, 1, bytes(4))
    clients[2].connection.connection_lost(None)
    assert among.arriving.bytes == 0


def test_settings_are_paid_for_one_by_one() -> None:
    one = struct.pack(">HI", frames.INITIAL_WINDOW_SIZE, 70_000)
    client = Client(Echo())
    client.frame(SETTINGS, 0, 0, one * 2_000)
    assert client.goodbye is not None and client.goodbye.code == frames.ENHANCE_YOUR_CALM


def test_of_several_windows_in_a_frame_the_last_counts() -> None:
    client = Client(Echo(answer=b"x" * 100), wide=False)
    client.feed(asks(1, MESSAGE))
    sizes = [struct.pack(">HI", frames.INITIAL_WINDOW_SIZE, size) for size in (10, 5_000, 30)]
    client.frame(SETTINGS, 0, 0, b"".join(sizes))
    client.feed(asks(3, MESSAGE))
    assert (len(client.answers[1].data), len(client.answers[3].data)) == (100, 30)
    client.frame(SETTINGS, 0, 0, struct.pack(">HI", frames.INITIAL_WINDOW_SIZE, 2**31))
    assert client.goodbye is not None and client.goodbye.code == frames.FLOW_CONTROL_ERROR


def test_calls_at_once_are_bounded() -> None:
    app = Echo(later=True)
    client = Client(app)
    for stream in range(1, 2 * http2.MAX_CALLS + 21, 2):
        client.feed(asks(stream, b""))
    assert len(app.calls) == http2.MAX_CALLS
    assert set(client.resets().values()) == {frames.REFUSED_STREAM}
    app.reply(*app.calls[0])
    client.feed(asks(9001, b""))
    assert len(app.calls) == http2.MAX_CALLS + 1


def test_answers_nobody_takes_are_bounded() -> None:
    app = Echo(answer=b"x" * 60_000)
    client = Client(app, Limits(body_bytes=200_000), wide=False)
    client.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    for stream in range(1, 41, 2):
        client.feed(asks(stream, b""))
    assert len(app.calls) == 4
    assert set(client.resets().values()) == {frames.REFUSED_STREAM}


FLOODS = {
    "pings": frames.frame(PING, 0, 0, b"8" * 8),
    "settings": frames.settings({}),
    "priorities": frames.frame(PRIORITY, 0, 1, b"\0" * 5),
    "frames of no known type": frames.frame(0x55, 0, 0, b""),
    "window updates": frames.window_update(0, 1),
    "empty data": frames.frame(DATA, 0, 1, b""),
}


@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_is_sent_away(what: str) -> None:
    client = Client(Echo(later=True), wide=False)
    client.feed(frames.frame(HEADERS, END_HEADERS, 1, BLOCK))
    for _ in range(1100):
        client.feed(FLOODS[what])
    assert client.goodbye is not None
    assert client.goodbye.code == frames.ENHANCE_YOUR_CALM
    assert client.transport.closed


def test_a_rapid_reset_is_sent_away_and_leaves_no_call() -> None:
    app = Echo(later=True)
    client = Client(app)
    for stream in range(1, 4001, 2):
        client.feed(asks(stream, b"") + frames.rst_stream(stream, frames.CANCEL))
    assert client.goodbye is not None
    assert client.goodbye.code == frames.ENHANCE_YOUR_CALM
    assert len(app.calls) <= 1001
    assert all(call.gone for call, _ in app.calls)


def test_who_asks_may_also_ping_and_reset_now_and_then() -> None:
    client = Client(Echo())
    for stream in range(1, 20_001, 2):
        client.feed(asks(stream, b"") + frames.frame(PING, 0, 0, b"8" * 8) + frames.rst_stream(stream, frames.CANCEL))
    assert client.goodbye is None
    assert len(client.answers) == 10_000


def test_headers_without_end_are_sent_away() -> None:
    for piece in (b"", b"x", b"x" * 16_000):
        client = Client(Echo())
        client.frame(HEADERS, 0, 1, BLOCK)
        for _ in range(40):
            client.frame(CONTINUATION, 0, 1, piece)
        assert client.goodbye is not None
        assert client.goodbye.code == frames.ENHANCE_YOUR_CALM


def test_a_small_block_that_grows_when_it_is_read_is_refused() -> None:
    # A value of 4,000 bytes into the table, and then its index again and again.
    value = b"\x40\x01a\x7f\xa1\x1e" + b"v" * 4000
    client = Client(Echo())
    client.frame(HEADERS, END_HEADERS, 1, value + b"\xbe" * 1000)
    assert client.goodbye is not None
    assert client.goodbye.code == frames.COMPRESSION_ERROR


# ---------------------------------------------------------------------------------------------------- time
def test_who_says_nothing_is_not_waited_for() -> None:
    client = _fresh(limits=Limits(head_seconds=5, idle_seconds=50))
    client.passes(4)
    assert not client.transport.closed
    client.passes(2)
    assert client.transport.closed
    quiet = Client(Echo(), Limits(head_seconds=5, idle_seconds=50))
    quiet.feed(asks(1, b""))
    quiet.passes(49)
    assert not quiet.transport.closed
    quiet.passes(2)
    assert quiet.goodbye is not None
    assert quiet.goodbye.code == frames.NO_ERROR
    assert struct.unpack(">I", quiet.goodbye.payload[:4]) == (1,)
    assert quiet.transport.closed


def test_calls_under_way_are_looked_at_once_a_second() -> None:
    app = Echo(later=True)
    client = Client(app)
    client.feed(asks(1, b"") + asks(3, b""))
    for _ in range(3):
        client.passes(1.1)
    assert app.looked == 6
    assert not client.transport.closed


def test_a_reader_that_takes_nothing_is_let_go() -> None:
    client = Client(Echo(answer=b"x" * 100_000), Limits(body_seconds=-1), wide=False)
    client.feed(asks(1, b""))
    client.passes(2)
    assert client.transport.aborted


def test_who_does_not_read_is_not_read_from() -> None:
    client = Client(Echo())
    client.connection.pause_writing()
    assert client.transport.paused
    client.feed(asks(1, MESSAGE))
    client.feed(asks(3, MESSAGE))
    assert client.answers == {}
    client.connection.resume_writing()
    assert not client.transport.paused
    assert client.answers.keys() == {1, 3}


def test_at_the_end_what_was_asked_is_answered_and_nothing_more_is_taken() -> None:
    app = Echo(later=True)
    client = Client(app)
    client.feed(asks(1, MESSAGE))
    client.connections.end()
    assert client.goodbye is not None
    assert client.goodbye.code == frames.NO_ERROR
    assert not client.transport.closed
    client.feed(asks(3, MESSAGE))
    assert len(app.calls) == 1
    app.reply(*app.calls[0])
    client.connection.flush()
    assert client.answers[1].ended
    assert client.transport.closed


def test_a_lost_connection_leaves_no_call_that_somebody_works_for() -> None:
    app = Echo(later=True)
    client = Client(app)
    client.feed(asks(1, MESSAGE) + frames.frame(HEADERS, END_HEADERS, 3, BLOCK) + frames.frame(DATA, 0, 3, b"abc"))
    client.connection.connection_lost(None)
    (call, data), *_ = app.calls
    assert call.gone
    app.reply(call, data)
    client.connection.flush()
    assert client.answers == {}
    assert client.connections.open == set()


def test_any_bytes_end_in_an_answer_or_a_good_bye() -> None:
    random_, pieces = random.Random(7), [asks(1, MESSAGE), *(b"".join(sent) for sent, _ in CONNECTION_ERRORS.values())]
    for _ in range(600):
        client = Client(Echo(), wide=False)
        data = bytearray(b"".join(random_.choices(pieces, k=3)))
        for _ in range(random_.randrange(4)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        client.feed(bytes(data))
        assert client.transport.closed == (client.goodbye is not None)
