"""The turns of the loop: what is written is committed, and what cannot be committed is never said."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dropforge.servicebus.amqp import frames
from dropforge.servicebus.config import parse
from dropforge.servicebus.core.broker import Broker
from dropforge.servicebus.errors import StoreFailed
from dropforge.servicebus.server.listener import Listener, wall_ms
from dropforge.servicebus.store import Store
from tests.unit.servicebus.amqp_client import CONFIG, World, body_of, in_a_loop, message


class FullDisk(Store):
    """A store that takes everything until the disk is full."""

    full = False

    def commit(self) -> None:
        if self.full:
            raise StoreFailed("the disk is full")
        super().commit()


@in_a_loop
async def test_nothing_is_said_about_what_could_not_be_committed() -> None:
    world = World(store=(store := FullDisk()))
    sender, receiver = world.client(), world.client()
    sender.attach("q")
    receiver.attach("q", receives=True)
    receiver.flow(0, 5)
    receiver.heard()
    sender.heard()
    store.full = True
    with pytest.raises(StoreFailed):
        sender.transfer(message())
    assert (sender.heard(), receiver.heard()) == ([], [])
    assert sender.transport.aborted
    assert receiver.transport.aborted
    # Whoever comes later hears of it too, the admin API for one.
    with pytest.raises(StoreFailed):
        world.listener.turn()


@in_a_loop
async def test_clients_that_speak_at_the_same_time_share_a_commit() -> None:
    class Counting(Store):
        commits = 0

        def commit(self) -> None:
            Counting.commits += 1
            super().commit()

    world = World(store=Counting())
    clients = [world.client() for _ in range(3)]
    for client in clients:
        client.attach("q")
    before = Counting.commits
    for client in clients:
        client.transfer(message(), at_once=False)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert Counting.commits == before + 1
    assert [len(client.heard(0x15)) for client in clients] == [1, 1, 1]


def _listener(path: Path | None = None) -> tuple[Broker, Listener]:
    broker = Broker(parse(CONFIG), Store(path), wall_ms)
    return broker, Listener(broker)


def test_a_stopped_listener_says_goodbye_and_is_gone() -> None:
    async def run() -> None:
        broker, listener = _listener()
        port = await listener.start("127.0.0.1", 0)
        waiting = asyncio.create_task(listener.wait())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(frames.AMQP_HEADER)
        assert await reader.readexactly(8) == frames.AMQP_HEADER
        await listener.stop()
        assert b"amqp:connection:forced" in await reader.read()
        await waiting
        await listener.stop()
        writer.close()
        await writer.wait_closed()
        with pytest.raises(OSError, match=r"[Cc]onnect"):
            await asyncio.open_connection("127.0.0.1", port)
        broker.close()

    asyncio.run(run())


def test_a_client_that_never_reads_does_not_hold_up_the_stop() -> None:
    async def run() -> None:
        broker, listener = _listener()
        port = await listener.start("127.0.0.1", 0)
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(frames.AMQP_HEADER)
        await asyncio.wait_for(listener.stop(), 10)
        writer.close()
        broker.close()

    asyncio.run(run())


def test_a_failed_store_ends_the_listener_with_its_reason() -> None:
    async def run() -> None:
        store = FullDisk()
        broker = Broker(parse(CONFIG), store, wall_ms)
        listener = Listener(broker)
        port = await listener.start("127.0.0.1", 0)
        store.full = True
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(frames.AMQP_HEADER)
        with pytest.raises(StoreFailed, match="full"):
            await asyncio.wait_for(listener.wait(), 10)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        await listener.stop()

    asyncio.run(run())


def test_a_port_that_is_taken_is_an_error_at_once() -> None:
    async def run() -> None:
        first_broker, first = _listener()
        second_broker, second = _listener()
        port = await first.start("127.0.0.1", 0)
        with pytest.raises(OSError, match="in use"):
            await second.start("127.0.0.1", port)
        await second.stop()
        await first.stop()
        first_broker.close()
        second_broker.close()

    asyncio.run(run())


def test_what_was_acknowledged_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "servicebus.db"

    @in_a_loop
    async def before() -> None:
        world = World(store=Store(path))
        client = world.client()
        client.attach("q")
        for text in ("a", "b"):
            client.transfer(message(text, message_id=text, color="red"))
        assert len(client.heard(0x15)) == 2
        # Not closed: what is not in the file now is lost.
        world.broker._store._connection.close()  # type: ignore[union-attr]

    @in_a_loop
    async def after() -> None:
        world = World(store=Store(path))
        client = world.client()
        client.attach("q", receives=True)
        client.flow(0, 5)
        assert [body_of(each) for each in client.heard(0x14)] == ["a", "b"]
        world.broker.close()

    before()
    after()


@in_a_loop
async def test_timers_run_when_they_are_due_and_move_forward_when_something_is_due_earlier() -> None:
    world = World(config=CONFIG.replace("PT30S", "PT0.05S"))
    sender, receiver = world.client(), world.client()
    sender.attach("q")
    receiver.attach("q", receives=True)
    receiver.flow(0, 5)
    sender.transfer(message())
    assert len(receiver.heard(0x14)) == 1
    world.clock.ms += 51
    await asyncio.sleep(0.1)
    assert len(receiver.heard(0x14)) == 1
