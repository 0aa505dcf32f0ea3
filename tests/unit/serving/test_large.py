"""Large bodies read in pieces are read as small ones are."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.errors import BadInput
from dropforge.serving import large
from dropforge.serving.protocol import Codec
from dropforge.serving.tensors import KINDS, Tensor

FLOATS = Tensor("x", KINDS["tensor(float)"], ("N", "W"))
TEXTS = Tensor("x", KINDS["tensor(string)"], ("N", "W"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large."""
    monkeypatch.setattr(large, "LARGE_BYTES", 8)
    monkeypatch.setattr(large, "PIECE_BYTES", 16)
    monkeypatch.setattr(large, "PAUSE_SECONDS", 0)
    monkeypatch.setattr("dropforge.serving.protocol.ROWS_BYTES", 16)


def codec(tensor: Tensor, columns: tuple[str, ...] | None = None) -> Codec:
    return Codec((tensor,), (tensor,), columns)


def read(tensor: Tensor, body: bytes, columns: tuple[str, ...] | None = None) -> Any:
    """The values of the one input, or what is wrong."""
    try:
        return codec(tensor, columns).read(body).feeds["x"].tolist()
    except BadInput as error:
        return error.message


def in_both_ways(tensor: Tensor, body: bytes, columns: tuple[str, ...] | None = None) -> tuple[Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "LARGE_BYTES", 10**9)
        whole = read(tensor, body, columns)
    return whole, read(tensor, body, columns)


def request(data: object, shape: object = (2, 2), **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}], **more}


NASTY = st.sampled_from(['"', "\\", "},{", '","', "],[", '"data":[', '"rows":[', "[1,2]", "é", "\n", ","])


@pytest.mark.usefixtures("tiny")
@given(
    rows=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1
    ),
    nested=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    note=NASTY,
)
def test_numbers_are_read_alike_in_pieces(rows: list[list[float]], nested: bool, indent: int | None, note: str) -> None:
    data = rows if nested else [value for row in rows for value in row]
    asked = request(data, [len(rows), 3], id=note, parameters={"data": [1, 2, note, [3] * 9], note: note})
    whole, pieces = in_both_ways(FLOATS, json.dumps(asked, indent=indent).encode())
    assert whole == pieces == rows


@pytest.mark.usefixtures("tiny")
@given(
    rows=st.lists(st.lists(st.text(max_size=5) | NASTY, min_size=2, max_size=2), min_size=1),
    nested=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_texts_are_read_alike_in_pieces(rows: list[list[str]], nested: bool, indent: int | None) -> None:
    data = rows if nested else [value for row in rows for value in row]
    asked = request(data, [len(rows), 2])
    asked["inputs"][0]["datatype"] = "BYTES"
    whole, pieces = in_both_ways(TEXTS, json.dumps(asked, indent=indent).encode())
    assert whole == pieces == rows


@pytest.mark.usefixtures("tiny")
@given(
    rows=st.lists(st.lists(st.text(max_size=4) | NASTY, min_size=2, max_size=2), min_size=1),
    as_objects=st.booleans(),
    first=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_rows_are_read_alike_in_pieces(
    rows: list[list[str]], as_objects: bool, first: bool, indent: int | None
) -> None:
    given_: list[Any] = [dict(zip(("a", "b"), row, strict=True)) for row in rows] if as_objects else rows
    outputs = {"outputs": [{"name": "x"}]}
    asked = {"rows": given_, **outputs} if first else {**outputs, "rows": given_}
    whole, pieces = in_both_ways(TEXTS, json.dumps(asked, indent=indent).encode(), ("a", "b"))
    assert whole == pieces == rows


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 6), (1, 2, 3), (2, 3, 2), (2, 1, 2, 2), (1, 1, 1)])
def test_lists_of_any_depth_are_read_alike_in_pieces(shape: tuple[int, ...]) -> None:
    values = (np.arange(np.prod(shape)) * 1000.5).reshape(shape)
    tensor = Tensor("x", FLOATS.kind, (None,) * len(shape))
    whole, pieces = in_both_ways(tensor, json.dumps(request(values.tolist(), shape)).encode())
    assert whole == pieces == values.tolist()


LONG = [1000.5] * 40


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "body",
    [
        request(LONG, [20, 1]),
        request([LONG, LONG], [2, 39]),
        request([LONG, LONG[:-1]], [2, 40]),
        request([LONG], [1, 39]),
        request([*LONG, None, True], [42, 1]),
        request([*LONG, "a"], [41, 1]),
        request([LONG, 5], [2, 40]),
        request([*LONG, 1e300], [41, 1]),
        request([*LONG, 10**400], [41, 1]),
        {"rows": [*[[1000.5, 2]] * 20, [1]]},
        {"rows": [*[[1000.5, 2]] * 20, {"a": 1}]},
        {"rows": [*[[1000.5, 2]] * 20, {"a": 1, "b": 1}]},
        {"rows": [*[[1000.5, 2]] * 20, [1, "a"]]},
        {"rows": [*[{"a": 1000.5, "b": 2}] * 20, {"a": 1}]},
        {"rows": [*[[1000.5, 2]] * 20], "inputs": []},
        {"rows": [*[[1000.5, 2]] * 20], "inputs": None, "id": 5},
        {"rows": None, "id": "a" * 50},
        {"rows": 5, "id": "a" * 50},
        {"rows": [], "id": "a" * 50},
        {"id": "a" * 50},
    ],
)
def test_what_is_wrong_is_told_alike(body: Any) -> None:
    whole, pieces = in_both_ways(FLOATS, json.dumps(body).encode(), ("a", "b"))
    assert isinstance(whole, str) or whole == pieces
    if isinstance(whole, str):
        assert isinstance(pieces, str)
        # Where in a JSON of another length the decoder gave up says nothing.
        for text in ("row 20", "wants", "`rows`"):
            assert (text in whole) == (text in pieces), (whole, pieces)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("cut", range(1, 200, 3))
def test_json_that_is_broken_anywhere_is_refused(cut: int) -> None:
    text = json.dumps(request([LONG[:5], LONG[:5], LONG[:5]], [3, 5], id="a")).encode()
    rows = json.dumps({"rows": [[1000.5, 2000.5]] * 12, "id": "a"}).encode()
    for body in (text, rows):
        for broken in (body[:cut], body[:cut] + b"," + body[cut:], body[:cut] + b"]" + body[cut:]):
            whole, pieces = in_both_ways(FLOATS, broken)
            assert isinstance(pieces, str) == isinstance(whole, str), broken


@pytest.mark.usefixtures("tiny")
def test_a_wrong_value_is_counted_from_the_beginning() -> None:
    message = read(FLOATS, json.dumps(request([*LONG, "a"], [41, 1])).encode())
    assert "Expected `float | null`, got `str` - at `$[40]`" in message


def test_a_mark_that_is_guessed_wrong_is_a_text_like_any_other() -> None:
    body = json.dumps(request("0123456789abcdef-0", [2, 2], id="a" * large.LARGE_BYTES)).encode()
    assert "wants FP32" in read(FLOATS, body)


def test_twenty_megabytes_are_read_while_others_have_their_turn() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 1000))
    body = json.dumps(request(values.tolist(), values.shape)).encode()
    assert len(body) > 20_000_000
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(codec(FLOATS).read(body)))
    gaps, last = [], time.perf_counter()
    thread.start()
    while thread.is_alive():
        time.sleep(0.0002)
        gaps.append(time.perf_counter() - last)
        last = time.perf_counter()
    np.testing.assert_array_equal(found[0].feeds["x"], values.astype(np.float32))
    # Read in one go it is 200 ms and more; on a machine that is busy with other things a pause may be long as well.
    assert len(gaps) > 50
    assert sorted(gaps)[-3] < 0.1
