"""The sorted numbers and the timers against the simplest models of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dropforge.servicebus.core import numbers
from dropforge.servicebus.core.numbers import SortedNumbers
from dropforge.servicebus.core.timers import SLACK, Timers


@given(st.lists(st.tuples(st.sampled_from("arp"), st.integers(0, 200)), max_size=300), st.integers(0, 200))
def test_sorted_numbers_are_a_sorted_set(steps: list[tuple[str, int]], start: int) -> None:
    found, model = SortedNumbers(), set[int]()
    size, numbers.CHUNK = numbers.CHUNK, 4
    try:
        for step, number in steps:
            if step == "a" and number not in model:
                found.add(number)
                model.add(number)
            elif step == "r" and number in model:
                found.remove(number)
                model.remove(number)
            elif step == "p" and model:
                assert found.pop_first() == min(model)
                model.remove(min(model))
            assert (number in found) is (number in model)
    finally:
        numbers.CHUNK = size
    assert list(found) == sorted(model)
    assert len(found) == len(model)
    assert list(found.since(start)) == sorted(each for each in model if each >= start)
    assert not model or found.first == min(model)


def test_a_hundred_thousand_numbers_in_any_order_come_out_sorted() -> None:
    found = SortedNumbers()
    given_numbers = [(each * 7_919) % 100_003 for each in range(100_000)]
    for each in given_numbers:
        found.add(each)
    for each in given_numbers[::2]:
        found.remove(each)
    assert list(found) == sorted(given_numbers[1::2])
    assert [found.pop_first() for _ in range(len(found))] == sorted(given_numbers[1::2])


def test_timers_call_in_the_order_of_their_times() -> None:
    timers, called = Timers(), list[object]()
    for key, due in (("late", 30), ("early", 10), ("also early", 10), ("later", 40)):
        timers.set(key, due, called.append)
    timers.run(30)
    assert called == ["early", "also early", "late"]
    assert timers.next_due() == 40


def test_a_timer_set_again_is_called_once_and_at_its_new_time() -> None:
    timers, called = Timers(), list[object]()
    timers.set("lock", 10, called.append)
    timers.set("lock", 20, called.append)
    timers.run(15)
    assert called == []
    timers.run(20)
    timers.run(30)
    assert called == ["lock"]


def test_a_call_may_cancel_another_one_that_is_due_with_it() -> None:
    timers, called = Timers(), list[object]()
    timers.set("first", 10, lambda _: timers.cancel("second"))
    timers.set("second", 10, called.append)
    timers.run(10)
    assert called == []


def test_a_timer_that_sets_itself_for_now_does_not_hang_the_run() -> None:
    timers, called = Timers(), list[object]()

    def again(key: object) -> None:
        called.append(key)
        timers.set(key, 10, again)

    timers.set("key", 10, again)
    timers.run(10)
    assert called == ["key"]
    assert timers.next_due() == 10


def test_a_crowd_of_due_timers_is_called_in_portions() -> None:
    timers, called = Timers(), list[object]()
    for key in range(25):
        timers.set(key, 10, called.append)
    timers.run(10, limit=10)
    assert called == list(range(10))
    assert timers.next_due() == 10
    timers.run(10, limit=100)
    assert called == list(range(25))


def test_cancelled_timers_leave_no_growing_heap() -> None:
    timers = Timers()
    for key in range(100_000):
        timers.set(key, 1_000_000 + key, lambda _: None)
        if key >= 10:
            timers.cancel(key - 10)
    assert len(timers) == 10
    assert timers.heap_size <= 2 * len(timers) + SLACK + 1
