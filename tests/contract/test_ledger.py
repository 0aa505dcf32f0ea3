"""What every ledger promises."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.domain.errors import BadInput, Conflict
from dropforge.ports import Delete, Insert, Json, Ledger, Replace, Row, Write

_fresh = count()


def got(ledger: Ledger, key: str, partition: str = "p") -> Row:
    row = ledger.get(partition, key)
    assert row is not None
    return row


def keys(rows: list[Row]) -> list[str]:
    return [row.key for row in rows]


def test_an_inserted_row_can_be_read(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a/b", {"n": 1, "deep": [{"ü": None}]})])
    row = got(ledger, "a/b")
    assert (row.key, row.value) == ("a/b", {"n": 1, "deep": [{"ü": None}]})
    assert row.etag


def test_a_row_that_was_never_written_is_none(ledger: Ledger) -> None:
    assert ledger.get("p", "a") is None


def test_partitions_do_not_see_each_other(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a", {"n": 1})])
    ledger.commit("q", [Insert("a", {"n": 2})])
    assert got(ledger, "a", "p").value == {"n": 1}
    assert keys(ledger.scan("q")) == ["a"]
    assert ledger.get("r", "a") is None


def test_an_insert_of_a_row_that_is_there_is_a_conflict_that_names_it(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a", {"n": 1})])
    with pytest.raises(Conflict) as caught:
        ledger.commit("p", [Insert("a", {"n": 2})])
    assert caught.value.about == {"key": "a", "partition": "p"}
    assert got(ledger, "a").value == {"n": 1}


def test_a_replace_needs_the_etag_of_the_row_as_it_is_now(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a", {"n": 1})])
    first = got(ledger, "a").etag
    ledger.commit("p", [Replace("a", {"n": 2}, first)])
    with pytest.raises(Conflict) as caught:
        ledger.commit("p", [Replace("a", {"n": 3}, first)])
    assert caught.value.about == {"key": "a", "partition": "p"}
    assert got(ledger, "a").value == {"n": 2}


def test_a_replace_of_no_row_is_a_conflict(ledger: Ledger) -> None:
    with pytest.raises(Conflict):
        ledger.commit("p", [Replace("a", {"n": 1}, "1")])
    assert ledger.get("p", "a") is None


def test_every_write_changes_the_etag_also_one_of_the_same_value(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a", {"n": 1})])
    first = got(ledger, "a").etag
    ledger.commit("p", [Replace("a", {"n": 1}, first)])
    assert got(ledger, "a").etag != first


def test_a_row_written_anew_after_a_delete_has_an_etag_it_never_had(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a", {"n": 1})])
    first = got(ledger, "a").etag
    ledger.commit("p", [Delete("a")])
    ledger.commit("p", [Insert("a", {"n": 1})])
    with pytest.raises(Conflict):
        ledger.commit("p", [Replace("a", {"n": 2}, first)])


def test_a_delete_without_an_etag_works_whether_or_not_the_row_is_there(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a", {})])
    ledger.commit("p", [Delete("a")])
    ledger.commit("p", [Delete("a")])
    assert ledger.get("p", "a") is None
    assert ledger.scan("p") == []


def test_a_delete_with_an_etag_needs_that_etag(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a", {})])
    old = got(ledger, "a").etag
    ledger.commit("p", [Replace("a", {}, old)])
    with pytest.raises(Conflict):
        ledger.commit("p", [Delete("a", old)])
    ledger.commit("p", [Delete("a", got(ledger, "a").etag)])
    with pytest.raises(Conflict):
        ledger.commit("p", [Delete("a", old)])


def test_a_commit_with_one_bad_write_writes_nothing(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("taken", {"n": 1}), Insert("gone", {})])
    with pytest.raises(Conflict) as caught:
        ledger.commit("p", [Insert("new", {}), Delete("gone"), Insert("taken", {"n": 2}), Insert("later", {})])
    assert caught.value.about["key"] == "taken"
    assert keys(ledger.scan("p")) == ["gone", "taken"]
    assert got(ledger, "taken").value == {"n": 1}


def test_a_ledger_works_on_after_a_conflict(ledger: Ledger) -> None:
    for _ in range(3):
        with pytest.raises(Conflict):
            ledger.commit("p", [Replace("a", {}, "x")])
    ledger.commit("p", [Insert("a", {})])


def test_an_empty_commit_has_no_effect(ledger: Ledger) -> None:
    ledger.commit("p", [])
    assert ledger.scan("p") == []


def test_a_hundred_writes_are_one_commit_and_one_more_is_refused(ledger: Ledger) -> None:
    ledger.commit("p", [Insert(f"{n:03}", {"n": n}) for n in range(100)])
    assert len(ledger.scan("p")) == 100
    with pytest.raises(BadInput, match="at most 100"):
        ledger.commit("q", [Insert(f"{n:03}", {"n": n}) for n in range(101)])
    assert ledger.scan("q") == []


def test_one_key_twice_in_a_commit_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BadInput, match="twice"):
        ledger.commit("p", [Insert("a", {}), Delete("a")])


def test_rows_come_in_text_order_of_their_keys(ledger: Ledger) -> None:
    written = ["b", "a/2", "a", "a-1", "A", "~", "a/10", " ", "a/1/x", "10", "9"]
    ledger.commit("p", [Insert(key, {}) for key in written])
    assert keys(ledger.scan("p")) == sorted(written)


def test_a_scan_takes_the_prefix_as_it_stands(ledger: Ledger) -> None:
    ledger.commit("p", [Insert(key, {}) for key in ("a_b", "a%b", "axb", "a_", "A_b", "a_b/c", "[a]*")])
    assert keys(ledger.scan("p", "a_b")) == ["a_b", "a_b/c"]
    assert keys(ledger.scan("p", "a%")) == ["a%b"]
    assert keys(ledger.scan("p", "[a]*")) == ["[a]*"]


def test_a_scan_goes_on_after_the_last_key_of_the_page_before(ledger: Ledger) -> None:
    written = [f"row/{n:02}" for n in range(25)]
    ledger.commit("p", [Insert(key, {}) for key in [*written, "other", "row0"]])
    seen: list[str] = []
    while page := ledger.scan("p", "row/", after=seen[-1] if seen else "", limit=10):
        assert len(page) <= 10
        seen += keys(page)
    assert seen == written


def test_a_scan_gives_a_thousand_rows_unless_told(ledger: Ledger) -> None:
    for start in range(0, 1100, 100):
        ledger.commit("p", [Insert(f"{n:04}", {}) for n in range(start, start + 100)])
    assert keys(ledger.scan("p")) == [f"{n:04}" for n in range(1000)]
    assert len(ledger.scan("p", limit=5000)) == 1100


@pytest.mark.parametrize("limit", [0, -1])
def test_a_scan_for_no_rows_is_refused(ledger: Ledger, limit: int) -> None:
    with pytest.raises(BadInput, match="limit"):
        ledger.scan("p", limit=limit)
    with pytest.raises(BadInput, match="limit"):
        ledger.count("p", "", limit)


@pytest.mark.parametrize("key", ["", "x" * 501, "ä", "a\nb", "a\x00", "a\x7f", "\ud800"])
def test_a_key_that_is_not_printable_ascii_of_1_to_500_characters_is_refused(ledger: Ledger, key: str) -> None:
    for call in (
        lambda: ledger.commit("p", [Insert(key, {})]),
        lambda: ledger.commit(key, [Insert("a", {})]),
        lambda: ledger.commit("p", [Delete(key)]),
        lambda: ledger.get("p", key),
        lambda: ledger.get(key, "a"),
        lambda: ledger.scan(key),
    ):
        with pytest.raises(BadInput):
            call()


def test_a_key_of_500_characters_and_every_printable_one_is_kept(ledger: Ledger) -> None:
    longest, odd = "k" * 500, "".join(map(chr, range(32, 127)))
    ledger.commit("p", [Insert(longest, {"n": 1}), Insert(odd, {"n": 2})])
    assert got(ledger, longest).value == {"n": 1}
    assert keys(ledger.scan("p", odd[:50])) == [odd]
    assert keys(ledger.scan("p", longest)) == [longest]


def test_a_value_of_256_kib_is_kept_and_a_byte_more_is_refused(ledger: Ledger) -> None:
    room = 256 * 1024 - len('{"x":""}')
    ledger.commit("p", [Insert("a", {"x": "x" * room})])
    assert len(got(ledger, "a").value["x"]) == room
    with pytest.raises(BadInput, match="more than 262144"):
        ledger.commit("p", [Insert("b", {"x": "x" * (room + 1)})])
    with pytest.raises(BadInput, match="more than 262144"):
        ledger.commit("p", [Insert("b", {"x": "ü" * (room // 2 + 1)})])


def test_a_commit_of_2_mib_is_kept_and_a_byte_more_is_refused(ledger: Ledger) -> None:
    room = 256 * 1024 - len('{"x":""}')
    ledger.commit("p", [Insert(f"{n}", {"x": "x" * room}) for n in range(8)])
    assert ledger.count("p", "", 100) == 8
    with pytest.raises(BadInput, match="at most 2097152 bytes"):
        ledger.commit("q", [*(Insert(f"{n}", {"x": "x" * room}) for n in range(8)), Insert("more", {})])
    assert ledger.scan("q") == []


def test_a_key_may_be_as_long_as_table_storage_spells_it(ledger: Ledger) -> None:
    for longest in ("/" * 256, "~" * 488 + "." * 12):
        ledger.commit(longest, [Insert(longest, {"n": 1})])
        assert got(ledger, longest, longest).value == {"n": 1}
        assert keys(ledger.scan(longest, longest)) == [longest]
        for key in (longest + "/", longest[:-1] + "xx/"):
            with pytest.raises(BadInput):
                ledger.commit("p", [Insert(key, {})])
            with pytest.raises(BadInput):
                ledger.get(key, "a")


@pytest.mark.parametrize(
    "value", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}, {"x": "\ud800"}, [1], None]
)
def test_a_value_that_is_no_json_object_is_refused(ledger: Ledger, value: Any) -> None:
    with pytest.raises(BadInput, match="value of ledger row 'a'"):
        ledger.commit("p", [Insert("a", value)])
    assert ledger.get("p", "a") is None


def test_a_change_of_what_was_written_or_read_does_not_change_the_row(ledger: Ledger) -> None:
    value: Json = {"list": [1]}
    ledger.commit("p", [Insert("a", value)])
    value["list"].append(2)
    got(ledger, "a").value["list"].append(3)
    ledger.scan("p")[0].value.clear()
    assert got(ledger, "a").value == {"list": [1]}


def test_many_threads_that_insert_one_key_make_one_row(ledger: Ledger) -> None:
    def insert(n: int) -> bool:
        try:
            ledger.commit("p", [Insert("lease", {"owner": n})])
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(insert, range(40)))
    assert won.count(True) == 1
    assert got(ledger, "lease").value == {"owner": won.index(True)}


def test_many_threads_that_count_lose_no_count(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("counter", {"n": 0})])
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(count_up, ledger, 20) for _ in range(6)]:
            done.result()
    assert got(ledger, "counter").value == {"n": 120}


def count_up(ledger: Ledger, times: int) -> None:
    for _ in range(times):
        while True:
            row = got(ledger, "counter")
            try:
                ledger.commit("p", [Replace("counter", {"n": row.value["n"] + 1}, row.etag)])
                break
            except Conflict:
                continue


def test_a_reader_never_sees_half_a_commit(ledger: Ledger) -> None:
    ledger.commit("p", [Insert("a", {"n": 0}), Insert("b", {"n": 0})])

    def move(last: int) -> None:
        for n in range(1, last):
            ledger.commit("p", [Replace(key, {"n": n}, got(ledger, key).etag) for key in ("a", "b")])

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(move, 60)
        while not done.done():
            first, second = ledger.scan("p")
            assert first.value == second.value
        done.result()


# ------------------------------------------------------------------------------------------ the law
KEYS = st.sampled_from(["a", "a/", "a/1", "a/10", "a/2", "a0", "b", "b/~", "~"])
CHANGES = st.lists(
    st.dictionaries(
        KEYS, st.sampled_from(["insert", "replace", "stale", "delete", "delete-if"]), min_size=1, max_size=4
    ),
    max_size=8,
)


def _write(kind: str, key: str, number: int, etag: str) -> Write:
    made: dict[str, Callable[[], Write]] = {
        "insert": lambda: Insert(key, {"n": number}),
        "replace": lambda: Replace(key, {"n": number}, etag),
        "stale": lambda: Replace(key, {"n": number}, "stale"),
        "delete": lambda: Delete(key),
        "delete-if": lambda: Delete(key, etag),
    }
    return made[kind]()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=CHANGES, prefix=st.sampled_from(["", "a", "a/", "a/1", "b/", "c", "~"]), after=st.one_of(st.just(""), KEYS)
)
def test_after_any_commits_a_ledger_holds_what_a_dictionary_would(
    ledger: Ledger, changes: list[dict[str, str]], prefix: str, after: str
) -> None:
    partition, model = f"law-{next(_fresh)}", dict[str, int]()
    for number, kinds in enumerate(changes):
        rows = {row.key: row.etag for row in ledger.scan(partition)}
        refused = any(
            (kind == "insert" and key in model)
            or (kind in ("replace", "delete-if") and key not in model)
            or kind == "stale"
            for key, kind in kinds.items()
        )
        writes = [_write(kind, key, number, rows.get(key, "none")) for key, kind in kinds.items()]
        if refused:
            with pytest.raises(Conflict):
                ledger.commit(partition, writes)
            continue
        ledger.commit(partition, writes)
        for key, kind in kinds.items():
            model.pop(key, None)
            if kind in ("insert", "replace"):
                model[key] = number
    wanted = sorted(key for key in model if key.startswith(prefix) and key > after)
    found = ledger.scan(partition, prefix, after)
    assert [(row.key, row.value) for row in found] == [(key, {"n": model[key]}) for key in wanted]
    assert keys(ledger.scan(partition, prefix, after, limit=2)) == wanted[:2]
    alike = [key for key in model if key.startswith(prefix)]
    assert [ledger.count(partition, prefix, limit) for limit in (1, 1000)] == [min(1, len(alike)), len(alike)]
    assert all(ledger.get(partition, row.key) == row for row in found)
