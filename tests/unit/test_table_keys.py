"""Keys of Table storage: in the order of the ledger's, read back as they were, and never too long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.adapters.azure.table_keys import decoded, encoded, end_of
from dropforge.adapters.ledger_rows import MAX_KEY, MAX_SPELLED, SPELLED_WITH_TWO, checked_key
from dropforge.domain.errors import BadInput

PRINTABLE = [chr(code) for code in range(0x20, 0x7F)]
# Mostly the characters that are spelled with two, and their neighbours.
TEXT = st.text(st.one_of(st.sampled_from(PRINTABLE), st.sampled_from("!\"#$&'()*+,-./0>?@[\\]^~a")), max_size=12)


@given(st.text(st.sampled_from(PRINTABLE), max_size=MAX_KEY))
def test_a_key_comes_back_as_it_was(key: str) -> None:
    assert decoded(encoded(key)) == key


@given(TEXT, TEXT)
def test_keys_sort_as_what_is_made_of_them(one: str, two: str) -> None:
    assert (one < two) == (encoded(one) < encoded(two))
    assert one.startswith(two) == encoded(one).startswith(encoded(two))


@given(TEXT, TEXT)
def test_what_starts_with_a_prefix_sorts_before_its_end_and_nothing_else_after_the_prefix_does(
    one: str, two: str
) -> None:
    end = end_of(two)
    assert one.startswith(two) == (encoded(one) >= encoded(two) and (end is None or encoded(one) < end))


def test_no_character_that_table_storage_or_a_client_trips_over_is_left() -> None:
    every = "".join(encoded(character) for character in PRINTABLE)
    assert not re.search(r"[/\\#?%&'\"+ ]", every)
    assert every.isascii() and every.isprintable()


def test_common_keys_stay_readable() -> None:
    assert encoded("run/flights-000001-ab12") == "run.sflights-000001-ab12"
    assert encoded("p.flights") == "p.dflights"


def test_the_rule_for_all_ledgers_knows_what_is_spelled_with_two() -> None:
    assert {character for character in PRINTABLE if len(encoded(character)) == 2} == SPELLED_WITH_TWO
    assert {len(encoded(character)) for character in PRINTABLE} == {1, 2}


@given(st.text(st.sampled_from(PRINTABLE), min_size=1, max_size=MAX_KEY + 20))
def test_a_key_that_is_taken_is_never_spelled_too_long(key: str) -> None:
    if len(key) <= MAX_KEY and len(encoded(key)) <= MAX_SPELLED:
        assert checked_key(key, "key") == key
    else:
        with pytest.raises(BadInput):
            checked_key(key, "key")
