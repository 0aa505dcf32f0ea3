"""Links: messages in, messages out, what their receivers make of them, and the windows around all that."""

from __future__ import annotations

from typing import Any

import pytest

from dropforge.servicebus.amqp.decode import decode
from dropforge.servicebus.amqp.encode import described, encode
from dropforge.servicebus.amqp.values import Described, Symbol, UInt, ULong
from dropforge.servicebus.server.deliveries import CREDIT
from dropforge.servicebus.server.links import BATCH_FORMAT
from tests.unit.servicebus.amqp_client import Client, Said, World, body_of, delivered, in_a_loop, message

ACCEPTED = Described(ULong(0x24), [])
RELEASED = Described(ULong(0x26), [])
SESSION = Symbol("com.microsoft:session-filter")


def _modified(failed: bool, undeliverable: bool, changes: Any = None) -> Described:
    return Described(ULong(0x27), [failed, undeliverable, changes])


def _rejected(condition: str, info: Any) -> Described:
    return Described(ULong(0x25), [Described(ULong(0x1D), [Symbol(condition), None, info])])


def _refusal(said: list[Said]) -> str:
    """The condition of a refused attach: a link without ends, then its detach."""
    attached, detached = said
    assert (attached.code, attached[5], attached[6]) == (0x12, None, None)
    assert (detached.code, detached[1]) == (0x16, True)
    return str(detached[2].value[0])


def _error(said: Said) -> str | None:
    """The condition in a disposition that refuses."""
    state = said[4]
    return str(state.value[0].value[0]) if state.descriptor == 0x25 and state.value else None


def _pair() -> tuple[World, Client, Client]:
    """A sender to `q` and a receiver from it with credit."""
    world = World()
    sender, receiver = world.client(), world.client()
    sender.attach("amqps://localhost:5672/q")
    receiver.attach("q", receives=True)
    receiver.flow(0, 10)
    receiver.heard()
    return world, sender, receiver


@in_a_loop
async def test_a_sender_hears_its_limits_and_may_send() -> None:
    attached, flow = World().client().attach("amqps://localhost:5672/Q", handle=3)
    assert (attached[1], attached[2], attached[10]) == (3, True, attached[13]["com.microsoft:max-message-batch-size"])
    assert attached[6].value[0] == "amqps://localhost:5672/Q"
    assert (flow.code, flow[4], flow[6]) == (0x13, 3, CREDIT)


@pytest.mark.parametrize(
    ("address", "receives", "condition"),
    [
        ("nowhere", False, "amqp:not-found"),
        ("nowhere", True, "amqp:not-found"),
        ("t/Subscriptions/none", True, "amqp:not-found"),
        ("t", True, "amqp:not-allowed"),
        ("t/Subscriptions/all", False, "amqp:not-allowed"),
        ("s", True, "amqp:not-allowed"),
        ("nowhere/$management", True, None),
        ("nowhere/$management", False, "amqp:not-found"),
    ],
)
def test_a_link_that_cannot_be_is_refused_with_the_reason(address: str, receives: bool, condition: str | None) -> None:
    @in_a_loop
    async def attempt() -> None:
        client = World().client()
        said = client.attach(address, receives=receives)
        if condition is None:
            assert said[0][5] is not None
            return
        assert _refusal(said) == condition
        # The client answers with its own detach and may use the handle again.
        client.frame(0x16, [UInt(0), True], channel=1)
        assert client.heard() == []
        assert client.attach("q")[0][6] is not None

    attempt()


@in_a_loop
async def test_transactions_are_refused_as_not_implemented() -> None:
    client = World().client()
    coordinator = Described(ULong(0x30), [None])
    source = Described(ULong(0x28), [None])
    client.frame(0x12, ["tx", UInt(0), False, None, None, source, coordinator, None, None, UInt(0)], channel=1)
    assert _refusal(client.heard()) == "amqp:not-implemented"


@in_a_loop
async def test_a_message_sent_is_accepted_delivered_and_settled() -> None:
    _, sender, receiver = _pair()
    sent = sender.transfer(message("hello", message_id="m1"))
    (accepted,) = sender.heard()
    assert accepted.fields[:4] == [True, sent, sent, True]
    assert accepted[4] == ACCEPTED
    (transfer,) = receiver.heard()
    assert (transfer.code, transfer[4], len(transfer[2])) == (0x14, False, 16)
    assert (body_of(transfer), delivered(transfer).message_id) == ("hello", "m1")
    (echo,) = receiver.dispose(transfer[1], ACCEPTED)
    assert (echo[0], echo[1], echo[3], echo[4]) == (False, transfer[1], True, ACCEPTED)


@in_a_loop
async def test_a_second_settlement_is_not_answered() -> None:
    _, sender, receiver = _pair()
    sender.transfer(message())
    (transfer,) = receiver.heard()
    assert len(receiver.dispose(transfer[1], ACCEPTED)) == 1
    assert receiver.dispose(transfer[1], ACCEPTED) == []


@in_a_loop
async def test_a_settlement_after_the_lock_is_refused_as_lost() -> None:
    world, sender, receiver = _pair()
    sender.transfer(message())
    (transfer,) = receiver.heard()
    receiver.flow(0, 0, delivery_count=1)
    world.later(31_000)
    (refused,) = receiver.dispose(transfer[1], ACCEPTED)
    assert _error(refused) == "com.microsoft:message-lock-lost"


@in_a_loop
async def test_an_abandoned_message_comes_again_and_counts_and_a_released_one_does_not() -> None:
    _, sender, receiver = _pair()
    sender.transfer(message())
    (first,) = receiver.heard()
    echo, second = receiver.dispose(first[1], _modified(True, False, {Symbol("tried"): "once"}))
    assert echo[4] == _modified(True, False)
    assert delivered(second).application_property("tried") == "once"
    released, third = receiver.dispose(second[1], RELEASED)
    assert released[4] == RELEASED
    counts = [_delivery_count(each) for each in (first, second, third)]
    assert counts == [0, 1, 1]


def _delivery_count(said: Said) -> int:
    return int(decode(said.payload, 3)[0][4])


@in_a_loop
async def test_a_deferred_message_does_not_come_again_by_itself() -> None:
    _, sender, receiver = _pair()
    sender.transfer(message())
    (first,) = receiver.heard()
    (echo,) = receiver.dispose(first[1], _modified(True, True))
    assert echo[4] == _modified(True, True)


@in_a_loop
async def test_a_dead_letter_keeps_reason_and_description_and_is_confirmed_without_an_error() -> None:
    world, sender, receiver = _pair()
    sender.transfer(message(color="red"))
    (transfer,) = receiver.heard()
    info = {Symbol("DeadLetterReason"): "why", Symbol("DeadLetterErrorDescription"): "because", "extra": 1}
    (echo,) = receiver.dispose(transfer[1], _rejected("com.microsoft:dead-letter", info))
    assert (echo[4].descriptor, echo[4].value) == (0x25, [])
    dead = world.client()
    dead.attach("q/$DeadLetterQueue", receives=True)
    dead.flow(0, 1)
    (letter,) = dead.heard(0x14)
    properties = {
        name: delivered(letter).application_property(name) for name in delivered(letter).application_properties()
    }
    assert properties == {
        "color": "red",
        "DeadLetterReason": "why",
        "DeadLetterErrorDescription": "because",
        "extra": 1,
    }


@in_a_loop
async def test_a_range_of_deliveries_is_settled_at_once_and_an_absurd_range_costs_nothing() -> None:
    _, sender, receiver = _pair()
    for _ in range(3):
        sender.transfer(message())
    assert [each[1] for each in receiver.heard(0x14)] == [0, 1, 2]
    assert [each[1] for each in receiver.dispose(0, ACCEPTED, last=1)] == [0, 1]
    assert [each[1] for each in receiver.dispose(0, ACCEPTED, last=0xFFFFFFFF)] == [2]
    assert receiver.dispose(5, ACCEPTED, last=2) == []


@in_a_loop
async def test_a_receiver_that_settles_without_asking_for_an_answer_gets_none() -> None:
    _, sender, receiver = _pair()
    sender.transfer(message())
    (transfer,) = receiver.heard()
    assert receiver.dispose(transfer[1], ACCEPTED, settled=True) == []
    assert receiver.dispose(transfer[1], ACCEPTED) == []


@in_a_loop
async def test_a_state_that_is_no_outcome_is_refused_and_progress_is_none() -> None:
    _, sender, receiver = _pair()
    sender.transfer(message())
    (transfer,) = receiver.heard()
    assert receiver.dispose(transfer[1], Described(ULong(0x23), [UInt(0), ULong(0)])) == []
    (refused,) = receiver.dispose(transfer[1], Described(ULong(0x99), []))
    assert _error(refused) == "amqp:invalid-field"


@in_a_loop
async def test_receive_and_delete_delivers_settled_messages_without_a_lock() -> None:
    world, sender, _ = _pair()
    receiver = world.client()
    sender.attach("other", handle=1)
    sender.transfer(message("gone"), handle=1)
    receiver.attach("other", receives=True, settled=True)
    receiver.flow(0, 5)
    (transfer,) = receiver.heard(0x14)
    assert transfer[4] is True
    assert b"x-opt-lock-token" not in transfer.payload
    assert receiver.dispose(transfer[1], ACCEPTED) == []


@in_a_loop
async def test_no_more_is_delivered_than_there_is_credit() -> None:
    world = World()
    sender, receiver = world.client(), world.client()
    sender.attach("q")
    for number in range(5):
        sender.transfer(message(str(number)))
    receiver.attach("q", receives=True)
    assert receiver.heard() == []
    receiver.flow(0, 2)
    assert [body_of(each) for each in receiver.heard(0x14)] == ["0", "1"]
    # A flow that crossed the transfers grants two in all, not two more.
    receiver.flow(0, 2, delivery_count=0)
    assert receiver.heard(0x14) == []
    receiver.flow(0, 2, delivery_count=2)
    assert [body_of(each) for each in receiver.heard(0x14)] == ["2", "3"]


@in_a_loop
async def test_a_drain_gives_what_there_is_and_then_uses_the_credit_up() -> None:
    _, sender, receiver = _pair()
    receiver.flow(0, 0)
    sender.transfer(message())
    receiver.flow(0, 10, drain=True)
    transfer, flow = receiver.heard()
    assert transfer.code == 0x14
    assert (flow.code, flow[4], flow[5], flow[6], flow[8]) == (0x13, 0, 10, 0, True)
    receiver.flow(0, 0, delivery_count=10, echo=True)
    assert [(each[5], each[6]) for each in receiver.heard()] == [(10, 0)]


@in_a_loop
async def test_a_message_larger_than_a_frame_goes_in_and_out_in_pieces() -> None:
    world = World()
    sender, receiver = world.client(), world.client(max_frame=10_000)
    sender.attach("q")
    raw = message("x" * 100_000, message_id="m")
    sender.transfer(raw[:40_000], more=True)
    assert sender.heard() == []
    sender.transfer(raw[40_000:80_000], more=True)
    sender.transfer(raw[80_000:])
    assert sender.heard()[0][4] == ACCEPTED
    receiver.attach("q", receives=True)
    receiver.flow(0, 5)
    parts = receiver.heard(0x14)
    assert len(parts) > 10
    assert all(len(part.payload) <= 10_000 for part in parts)
    assert b"".join(part.payload for part in parts).endswith(raw)


@in_a_loop
async def test_an_aborted_message_is_forgotten() -> None:
    _, sender, receiver = _pair()
    sender.transfer(message()[:5], more=True)
    sender.frame(0x14, [UInt(0), None, None, None, None, False, None, None, None, True], channel=1)
    assert (sender.heard(), receiver.heard()) == ([], [])
    sender.transfer(message("whole"))
    assert body_of(receiver.heard()[0]) == "whole"


@in_a_loop
async def test_a_message_over_the_limit_is_refused_and_its_bytes_are_not_kept() -> None:
    _, sender, receiver = _pair()
    for _ in range(6):
        sender.transfer(b"x" * 60_000, more=True)
    sender.transfer(b"x")
    (refused,) = sender.heard()
    assert _error(refused) == "amqp:link:message-size-exceeded"
    assert receiver.heard() == []
    sender.transfer(message())
    assert sender.heard()[0][4] == ACCEPTED


@in_a_loop
async def test_what_is_no_message_is_refused_and_the_link_goes_on() -> None:
    _, sender, _ = _pair()
    sender.transfer(b"no message")
    assert _error(sender.heard()[0]) == "amqp:decode-error"
    sender.transfer(message())
    assert sender.heard()[0][4] == ACCEPTED


def _batch(*messages: bytes) -> bytes:
    return b"".join(described(0x75, encode(each)) for each in messages)


@in_a_loop
async def test_a_batch_is_as_many_messages_and_only_the_format_code_makes_one() -> None:
    _, sender, receiver = _pair()
    envelope = described(0x73, encode(["id of the first"])) + _batch(
        message("a", message_id="id of the first"), message("b")
    )
    sender.transfer(envelope, message_format=BATCH_FORMAT)
    assert [body_of(each) for each in receiver.heard()] == ["a", "b"]
    sender.transfer(envelope)
    (one,) = receiver.heard()
    assert delivered(one).message_id == "id of the first"


@in_a_loop
async def test_a_batch_with_one_bad_message_leaves_none_behind() -> None:
    world = World()
    sender, receiver = world.client(), world.client()
    sender.attach("s")
    receiver.attach("s", receives=True, filters={SESSION: "A"})
    receiver.flow(0, 10)
    receiver.heard()
    for bad, condition in ((message("no session"), "amqp:not-allowed"), (b"no message", "amqp:decode-error")):
        sender.transfer(_batch(message("a", session_id="A"), bad), message_format=BATCH_FORMAT)
        assert _error(sender.heard()[0]) == condition
    assert receiver.heard() == []


@in_a_loop
async def test_a_sender_gets_more_credit_before_it_runs_out() -> None:
    world = World()
    sender = world.client()
    sender.attach("q")
    for _ in range(CREDIT // 2 + 1):
        sender.transfer(message())
    (flow,) = sender.heard(0x13)
    assert (flow[5], flow[6]) == (CREDIT // 2 + 1, CREDIT)


@in_a_loop
async def test_messages_wait_while_the_client_s_session_window_is_closed() -> None:
    world = World()
    sender, receiver = world.client(), world.client()
    sender.attach("q")
    for number in range(3):
        sender.transfer(message(str(number)))
    receiver.attach("q", receives=True)
    receiver.frame(0x13, [UInt(0), UInt(1), UInt(0), UInt(9), UInt(0), UInt(0), UInt(10)], channel=1)
    assert [body_of(each) for each in receiver.heard(0x14)] == ["0"]
    receiver.frame(0x13, [UInt(1), UInt(1), UInt(0), UInt(9)], channel=1)
    assert [body_of(each) for each in receiver.heard(0x14)] == ["1"]
    receiver.frame(0x13, [UInt(2), UInt(9), UInt(0), UInt(9)], channel=1)
    assert [body_of(each) for each in receiver.heard(0x14)] == ["2"]


@in_a_loop
async def test_the_pieces_of_a_message_wait_for_the_window_too() -> None:
    world = World()
    sender, receiver = world.client(), world.client(max_frame=1_000)
    sender.attach("q")
    sender.transfer(message("x" * 2_500))
    receiver.attach("q", receives=True)
    receiver.frame(0x13, [UInt(0), UInt(2), UInt(0), UInt(9), UInt(0), UInt(0), UInt(10)], channel=1)
    assert [each[5] for each in receiver.heard(0x14)] == [True, True]
    receiver.frame(0x13, [UInt(2), UInt(9), UInt(0), UInt(9)], channel=1)
    assert [each[5] for each in receiver.heard(0x14)] == [False]


@in_a_loop
async def test_a_detached_receiver_keeps_its_locks_until_they_expire_and_its_dispositions_are_not_answered() -> None:
    world, sender, receiver = _pair()
    other = world.client()
    sender.transfer(message())
    (transfer,) = receiver.heard()
    receiver.frame(0x16, [UInt(0), True], channel=1)
    assert [each.code for each in receiver.heard()] == [0x16]
    assert receiver.dispose(transfer[1], ACCEPTED) == []
    other.attach("q", receives=True)
    other.flow(0, 1)
    assert other.heard(0x14) == []
    world.later(31_000)
    (again,) = other.heard(0x14)
    assert _delivery_count(again) == 1


@in_a_loop
async def test_a_connection_that_is_lost_frees_its_session() -> None:
    world = World()
    first, second = world.client(), world.client()
    (attached,) = first.attach("s", receives=True, filters={SESSION: "A"})
    assert attached[5].value[7] == {"com.microsoft:session-filter": "A"}
    assert attached[5].value[0] == "s"
    ticks = attached[13]["com.microsoft:locked-until-utc"]
    assert (ticks - 621_355_968_000_000_000) // 10_000 == world.clock.ms + 30_000
    assert (
        _refusal(second.attach("s", receives=True, filters={SESSION: "A"})) == "com.microsoft:session-cannot-be-locked"
    )
    second.frame(0x16, [UInt(0), True], channel=1)
    first.connection.connection_lost(None)
    assert second.attach("s", receives=True, filters={SESSION: "A"})[0][5] is not None


@in_a_loop
async def test_the_next_session_is_granted_when_one_has_messages() -> None:
    world = World()
    sender, receiver = world.client(), world.client()
    properties = {Symbol("com.microsoft:timeout"): UInt(5_000)}
    assert receiver.attach("s", receives=True, filters={SESSION: None}, properties=properties) == []
    sender.attach("s")
    sender.transfer(message("hi", session_id="B"))
    (attached,) = receiver.heard()
    assert attached[5].value[7] == {"com.microsoft:session-filter": "B"}
    receiver.flow(0, 1)
    (transfer,) = receiver.heard(0x14)
    assert receiver.dispose(transfer[1], ACCEPTED)[0][4] == ACCEPTED


@in_a_loop
async def test_the_wait_for_a_session_ends_with_a_timeout_or_with_the_client() -> None:
    world = World()
    waiting, gone = world.client(), world.client()
    properties = {Symbol("com.microsoft:timeout"): UInt(5_000)}
    for client in (gone, waiting):
        assert client.attach("s", receives=True, filters={SESSION: None}, properties=properties) == []
    gone.frame(0x16, [UInt(0), True], channel=1)
    gone.heard()
    world.later(5_001)
    assert _refusal(waiting.heard()) == "com.microsoft:timeout"
    assert gone.heard() == []


@in_a_loop
async def test_a_session_filter_that_is_no_text_is_refused() -> None:
    client = World().client()
    assert _refusal(client.attach("s", receives=True, filters={SESSION: 5})) == "amqp:invalid-field"


@in_a_loop
async def test_a_session_lost_by_time_ends_its_link() -> None:
    world = World()
    client = world.client()
    client.attach("s", receives=True, filters={SESSION: "A"})
    world.later(30_001)
    world.later(5_000)
    (detached,) = client.heard(0x16)
    assert detached[2].value[0] == "com.microsoft:session-lock-lost"


@in_a_loop
async def test_a_handle_in_use_and_one_too_high_end_the_session() -> None:
    for handle in (0, 5_000):
        client = World().client()
        client.attach("q")
        said = client.attach("other", handle=handle)
        assert [each.code for each in said] == [0x17]
