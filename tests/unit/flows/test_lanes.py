"""Lanes lose no wake-up, wherever bringer and leaver meet: every interleaving of their ledger operations is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Thread

from hypothesis import given
from hypothesis import strategies as st

from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.ports import Insert, Row, Write
from dropforge.steps import lanes


class Stepped:
    """A ledger that lets one actor make one operation at a time, in an order the test chooses."""

    def __init__(self, inner: MemoryLedger, turn: Callable[[], None]) -> None:
        self._inner, self._turn = inner, turn

    def get(self, partition: str, key: str) -> Row | None:
        self._turn()
        return self._inner.get(partition, key)

    def scan(self, partition: str, prefix: str = "", after: str = "", limit: int = 1000) -> list[Row]:
        self._turn()
        return self._inner.scan(partition, prefix, after, limit)

    def commit(self, partition: str, writes: Sequence[Write]) -> None:
        self._turn()
        self._inner.commit(partition, writes)


def interleave(order: list[bool], actors: Sequence[Callable[[Callable[[], None]], None]]) -> None:
    """Run both actors, an operation of one or the other as `order` says; then whatever is left."""
    from threading import Semaphore

    go = [Semaphore(0), Semaphore(0)]
    did = Semaphore(0)
    over = [False, False]

    def run(index: int) -> None:
        def turn() -> None:
            did.release()
            go[index].acquire()

        go[index].acquire()
        actors[index](turn)
        over[index] = True
        did.release()

    threads = [Thread(target=run, args=(index,), daemon=True) for index in (0, 1)]
    for thread in threads:
        thread.start()

    def choices() -> Iterator[int]:
        yield from (int(each) for each in order)
        while not all(over):
            yield from (0, 1)

    for index in choices():
        if not over[index]:
            go[index].release()
            did.acquire()
    for thread in threads:
        thread.join(10)


@given(st.lists(st.booleans(), max_size=24))
def test_whoever_brings_work_while_the_flow_leaves_it_is_done_by_exactly_one_flow(order: list[bool]) -> None:
    ledger = MemoryLedger()
    assert lanes.enter(ledger, "p", "lane") == 1
    told: dict[str, object] = {}

    def bringer(turn: Callable[[], None]) -> None:
        stepped = Stepped(ledger, turn)
        stepped.commit("p", [Insert("work/1", {})])
        told["epoch"] = lanes.enter(stepped, "p", "lane")

    def leaver(turn: Callable[[], None]) -> None:
        stepped = Stepped(ledger, turn)
        told["left"] = lanes.leave(stepped, "p", "lane", 1, lambda: bool(stepped.scan("p", "work/")))

    interleave(order, [bringer, leaver])
    if told["left"]:
        # The first flow went: the bringer must have opened the next epoch, and starts its flow.
        assert told["epoch"] == 2
        assert lanes.live_epoch(ledger, "p", "lane") == 2
    else:
        # The first flow stays and does the work; nobody may have opened a second.
        assert told["epoch"] == 1
        assert lanes.live_epoch(ledger, "p", "lane") == 1


def test_leaving_again_after_a_crash_is_leaving_once() -> None:
    ledger = MemoryLedger()
    epoch = lanes.enter(ledger, "p", "lane")
    assert lanes.leave(ledger, "p", "lane", epoch, lambda: False)
    assert lanes.leave(ledger, "p", "lane", epoch, lambda: False)
    assert lanes.enter(ledger, "p", "lane") == epoch + 1
    assert lanes.leave(ledger, "p", "lane", epoch, lambda: True)


def test_entering_a_lane_that_is_alive_names_the_flow_that_lives() -> None:
    ledger = MemoryLedger()
    assert [lanes.enter(ledger, "p", "lane") for _ in range(3)] == [1, 1, 1]
    assert lanes.live_epoch(ledger, "p", "other") is None
