"""A connection: who may come in, what it may say, and how it ends."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from dropforge.servicebus.amqp import frames
from dropforge.servicebus.amqp.encode import described, encode
from dropforge.servicebus.amqp.values import Array, Described, Symbol, UInt, ULong
from dropforge.servicebus.sas import AccessKey
from dropforge.servicebus.server.connection import CHANNEL_MAX, HIGH_WATER, IDLE_MS, MAX_PARTIAL_BYTES
from dropforge.servicebus.server.listener import TRUST_S
from tests.unit.servicebus.amqp_client import Client, World, in_a_loop, message

KEYS = {"Root": AccessKey("secret"), "Reader": AccessKey("half", frozenset({"Listen"}))}


def _condition(fields: list[Any], place: int = 0) -> str:
    return str(fields[place].value[0])


@in_a_loop
async def test_a_client_is_offered_the_service_s_mechanisms_and_comes_in() -> None:
    client = World().client(opened=False)
    client.say(frames.SASL_HEADER)
    header, offer = client.heard()
    assert header[0] == frames.SASL_HEADER
    assert offer[0] == Array(Symbol, ["MSSBCBS", "ANONYMOUS", "PLAIN", "EXTERNAL"])
    client.say(frames.frame(0, described(0x41, encode([Symbol("ANONYMOUS"), b""])), frames.SASL))
    assert client.heard()[0][0] == 0
    client.say(frames.AMQP_HEADER)
    client.frame(0x10, ["me", None, UInt(1 << 20)])
    header, opened = client.heard()
    assert header[0] == frames.AMQP_HEADER
    assert (opened.code, opened[2], opened[4]) == (0x10, 65_536, IDLE_MS)


@in_a_loop
async def test_a_name_and_its_key_come_in_and_may_do_what_the_key_may() -> None:
    world = World(keys=KEYS)
    client = world.client(opened=False)
    client.sasl("PLAIN", b"\0Root\0secret")
    assert client.heard()[-1][0] == 0
    client.say(frames.AMQP_HEADER)
    client.frame(0x10, ["me"])
    client.frame(0x11, [None, UInt(0), UInt(10), UInt(10)], channel=1)
    client.heard()
    assert client.attach("q")[0][5] is not None


@pytest.mark.parametrize("response", [b"\0Root\0wrong", b"\0Nobody\0secret", b"", b"\xff\xff"])
def test_a_wrong_key_is_turned_away(response: bytes) -> None:
    @in_a_loop
    async def attempt() -> None:
        client = World(keys=KEYS).client(opened=False)
        client.sasl("PLAIN", response)
        assert client.heard()[-1][0] == 1
        assert client.transport.closed

    attempt()


@in_a_loop
async def test_a_mechanism_that_was_not_offered_is_turned_away() -> None:
    client = World().client(opened=False)
    client.sasl("GSSAPI", b"")
    assert client.heard()[-1][0] == 1
    assert client.transport.closed


@in_a_loop
async def test_another_protocol_is_answered_with_ours_and_closed() -> None:
    for data in (b"AMQP\x02\x01\x00\x00", b"AMQP\x00\x00\x09\x01"):
        client = World().client(opened=False)
        client.say(data)
        assert [each[0] for each in client.heard()] == [frames.SASL_HEADER]
        assert client.transport.closed


@in_a_loop
async def test_what_is_no_amqp_at_all_is_closed_with_a_reason() -> None:
    client = World().client(opened=False)
    client.say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    (closed,) = client.heard()
    assert (closed.code, _condition(closed.fields)) == (0x18, "amqp:connection:framing-error")
    assert client.transport.closed
    client.say(b"more")
    assert client.heard() == []


@in_a_loop
async def test_nothing_is_done_before_the_connection_is_opened() -> None:
    client = World().client(opened=False)
    client.say(frames.AMQP_HEADER)
    client.frame(0x11, [None, UInt(0), UInt(1), UInt(1)])
    assert _condition(client.heard()[-1].fields) == "amqp:not-allowed"


@pytest.mark.parametrize(
    "body",
    [
        described(0x10, encode(["again"])),
        described(0x55, encode([])),
        encode(["no performative"]),
        described(0x11, encode([None, "a string", UInt(1), UInt(1)])),
        described(0x11, encode({"a": 1})),
        b"\x00\x53\x11\xd0\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_a_frame_that_cannot_be_is_answered_with_a_close(body: bytes) -> None:
    @in_a_loop
    async def attempt() -> None:
        client = World().client()
        client.say(frames.frame(0, body))
        (closed,) = client.heard()
        assert closed.code == 0x18
        assert _condition(closed.fields).startswith("amqp:")
        assert client.transport.closed

    attempt()


@in_a_loop
async def test_a_client_that_says_goodbye_hears_it_back() -> None:
    client = World().client()
    client.frame(0x18, [None])
    assert [(each.code, each.fields) for each in client.heard()] == [(0x18, [None])]
    assert client.transport.closed


@in_a_loop
async def test_a_channel_out_of_range_or_in_use_is_refused() -> None:
    for number in (1, CHANNEL_MAX + 1):
        client = World().client()
        client.frame(0x11, [None, UInt(0), UInt(1), UInt(1)], channel=number)
        assert _condition(client.heard()[0].fields) == "amqp:not-allowed"


@in_a_loop
async def test_a_mistake_on_a_session_ends_the_session_and_not_the_connection() -> None:
    client = World().client()
    client.frame(0x14, [UInt(9), UInt(0), b"t", UInt(0)], channel=1, payload=message())
    (ended,) = client.heard()
    assert (ended.code, ended.channel, _condition(ended.fields)) == (0x17, 1, "amqp:session:unattached-handle")
    # What the client had sent already, and its own end, are ignored.
    client.frame(0x16, [UInt(0), True], channel=1)
    client.frame(0x17, [None], channel=1)
    assert client.heard() == []
    client.frame(0x11, [None, UInt(0), UInt(1), UInt(1)], channel=1)
    assert client.heard()[0].code == 0x11


@in_a_loop
async def test_a_client_that_never_says_who_it_is_is_closed_after_a_while() -> None:
    world = World(keys=KEYS)
    client, other = world.client(), world.client(opened=False)
    other.sasl("PLAIN", b"\0Root\0secret")
    other.heard()
    for one in (client, other):
        one.connection.since -= TRUST_S + 1
    world.listener.sweep()
    assert _condition(client.heard()[0].fields) == "amqp:connection:forced"
    assert (client.transport.closed, other.transport.closed) == (True, False)


@in_a_loop
async def test_a_client_that_has_gone_silent_is_closed() -> None:
    world = World()
    client, other = world.client(), world.client()
    client.connection.heard_at -= 2 * IDLE_MS / 1000 + 1
    world.listener.sweep()
    assert _condition(client.heard()[0].fields) == "amqp:connection:forced"
    assert not other.transport.closed


@in_a_loop
async def test_a_closed_client_that_does_not_read_its_goodbye_is_cut_off() -> None:
    world = World()
    client = world.client()
    client.frame(0x18, [None])
    world.listener.sweep()
    assert not client.transport.aborted
    world.listener.sweep()
    assert client.transport.aborted


@in_a_loop
async def test_parts_of_messages_are_kept_up_to_a_limit_over_all_links() -> None:
    client = World().client()
    links = MAX_PARTIAL_BYTES // 240_000 + 1
    for handle in range(links):
        client.attach("q", handle=handle)
        for _ in range(4):
            client.transfer(b"x" * 60_000, handle=handle, more=True)
    (ended,) = client.heard()
    assert (ended.code, _condition(ended.fields)) == (0x17, "amqp:resource-limit-exceeded")
    # What was kept is free again.
    client.frame(0x11, [None, UInt(0), UInt(1), UInt(1)], channel=1)
    client.attach("q")
    client.transfer(b"x" * 60_000, more=True)
    assert client.heard() == []


@in_a_loop
async def test_a_long_name_is_not_repeated_whole_in_a_refusal() -> None:
    client = World().client()
    _, detached = client.attach("x" * 30_000)
    assert len(detached[2].value[1]) == 1_000


@in_a_loop
async def test_a_client_that_asks_for_it_hears_that_the_broker_lives() -> None:
    client = World().client(opened=False)
    client.say(frames.AMQP_HEADER)
    client.frame(0x10, ["me", None, None, None, UInt(200)])
    client.heard()
    await asyncio.sleep(0.25)
    assert client.transport.written.startswith(frames.EMPTY_FRAME)
    client.connection.connection_lost(None)


@in_a_loop
async def test_a_client_that_does_not_read_is_neither_read_nor_given_messages() -> None:
    world = World()
    client, sender = world.client(), world.client()
    client.attach("q", receives=True)
    client.flow(0, 100)
    client.connection.pause_writing()
    assert (client.transport.high, client.transport.reading) == (HIGH_WATER, False)
    sender.attach("q")
    sender.transfer(message())
    assert client.heard(0x14) == []
    client.connection.resume_writing()
    world.listener.turn()
    assert client.transport.reading
    assert len(client.heard(0x14)) == 1


@in_a_loop
async def test_what_gathers_in_one_turn_is_bounded_and_the_rest_comes_with_the_next() -> None:
    world = World()
    sender, client = world.client(), world.client(max_frame=65_536)
    sender.attach("q")
    for _ in range(30):
        sender.transfer(message("x" * 60_000))
    client.attach("q", receives=True)
    client.flow(0, 100)
    first = client.heard(0x14)
    assert HIGH_WATER / 60_000 <= len(first) < 20
    world.listener.turn()
    assert len(first) + len(client.heard(0x14)) == 30


@in_a_loop
async def test_a_fuzzed_conversation_ends_in_a_clean_close_or_goes_on() -> None:
    chance = random.Random(5)
    source, target = Described(ULong(0x28), ["q"]), Described(ULong(0x29), ["q"])
    talk = [
        frames.AMQP_HEADER,
        frames.frame(0, described(0x10, encode(["me", None, UInt(65_536)]))),
        frames.frame(1, described(0x11, encode([None, UInt(0), UInt(100), UInt(100)]))),
        frames.frame(
            1, described(0x12, encode(["a", UInt(0), False, None, None, source, target, None, None, UInt(0)]))
        ),
        frames.frame(1, described(0x12, encode(["b", UInt(1), True, None, None, source, target]))),
        frames.frame(1, described(0x13, encode([UInt(0), UInt(9), UInt(0), UInt(9), UInt(1), UInt(0), UInt(9)]))),
        frames.frame(1, described(0x14, encode([UInt(0), UInt(0), b"t", UInt(0)])) + message("x", message_id="m", a=1)),
        frames.frame(1, described(0x15, encode([True, UInt(0), None, False, Described(ULong(0x24), [])]))),
        frames.frame(1, described(0x16, encode([UInt(0), True]))),
    ]
    closes = 0
    for _ in range(400):
        world = World()
        client = Client(world)
        mutant = bytearray(b"".join(talk))
        for _ in range(chance.randrange(1, 6)):
            mutant[chance.randrange(8, len(mutant))] = chance.choice((0, 0x40, 0x45, 0xD0, 0xFF, chance.randrange(256)))
        at = 0
        while at < len(mutant):
            piece = chance.randrange(1, 400)
            client.say(bytes(mutant[at : at + piece]))
            at += piece
        heard = client.heard()
        if heard[-1].code == 0x18:
            closes += 1
            assert client.transport.closed
            assert _condition(heard[-1].fields) != "amqp:internal-error"
        client.connection.connection_lost(None)
        world.broker.close()
    assert closes > 50
