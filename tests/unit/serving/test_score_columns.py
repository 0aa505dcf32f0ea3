"""Columns feed a model as rows do: the same arrays, and the same rows refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.errors import BadInput
from dropforge.serving.rows import feeds_of_rows
from dropforge.serving.score_columns import Feeder, output_column, output_type
from dropforge.serving.tensors import KINDS, Tensor

FLOATS = st.floats(allow_infinity=False, width=64)
CELLS: dict[str, st.SearchStrategy[Any]] = {
    "float64": st.none() | FLOATS,
    "int64": st.none() | st.integers(-(2**63), 2**63 - 1),
    "bool": st.none() | st.booleans(),
    "string": st.none() | st.text("abcäö☃", max_size=5),
}
TYPES = {"float64": pa.float64(), "int64": pa.int64(), "bool": pa.bool_(), "string": pa.string()}
NAMES = {
    "FP32": "tensor(float)",
    "FP64": "tensor(double)",
    "FP16": "tensor(float16)",
    "INT64": "tensor(int64)",
    "INT8": "tensor(int8)",
    "UINT16": "tensor(uint16)",
    "BOOL": "tensor(bool)",
    "BYTES": "tensor(string)",
}


def tensor(datatype: str, name: str = "x", dims: tuple[Any, ...] = ("N", 1)) -> Tensor:
    return Tensor(name, KINDS[NAMES[datatype]], dims)


def by_rows(one: Tensor, cells: list[Any]) -> list[Any]:
    """What the server makes of each cell alone; None for one that it refuses."""
    found: list[Any] = []
    for cell in cells:
        try:
            found.append(feeds_of_rows([one], None, [{one.name: cell}])[one.name])
        except BadInput:
            found.append(None)
    return found


@pytest.mark.parametrize("datatype", sorted(NAMES))
@pytest.mark.parametrize("column", ["float64", "int64", "bool", "string"])
def test_a_column_is_read_as_the_server_reads_its_cells(datatype: str, column: str) -> None:
    # Text where a number is wanted is read as tables read it, which JSON rows are not.
    if column == "string" and datatype != "BYTES":
        return

    @given(st.lists(CELLS[column], min_size=1, max_size=8))
    def alike(cells: list[Any]) -> None:
        one = tensor(datatype)
        # JSON has no NaN: what is one in a column is null in a row.
        asked = [None if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells]
        wanted = by_rows(one, asked)
        fed = Feeder([one], None).feed({"x": pa.array(cells, TYPES[column])}, len(cells))
        assert fed.fits.tolist() == [each is not None for each in wanted]
        assert set(fed.reasons) == {place for place, each in enumerate(wanted) if each is None}
        good = [each for each in wanted if each is not None]
        assert len(fed.feeds["x"]) == len(good)
        if good:
            right = np.concatenate(good)
            assert fed.feeds["x"].dtype == right.dtype
            np.testing.assert_array_equal(fed.feeds["x"], right)

    alike()


def test_the_reason_is_the_server_s() -> None:
    one = tensor("INT64", "seats")
    fed = Feeder([one], None).feed({"seats": pa.array([1.5, 2.0])}, 2)
    with pytest.raises(BadInput) as refused:
        feeds_of_rows([one], None, [{"seats": 1.5}])
    assert refused.value.message == f"row 0, {fed.reasons[0]}"
    assert fed.feeds["seats"].tolist() == [[2]]


def test_text_that_reads_as_a_number_feeds_a_number() -> None:
    fed = Feeder([tensor("FP32")], None).feed({"x": pa.array(["1.5", " 2 ", "NA", "many", None])}, 5)
    assert fed.fits.tolist() == [True, True, True, False, True]
    assert fed.feeds["x"][:2].tolist() == [[1.5], [2.0]] and np.isnan(fed.feeds["x"][2:]).all()
    assert fed.reasons == {3: "column 'x' wants FP32: a number, true, false or null (NaN); found \"many\""}
    fed = Feeder([tensor("BYTES")], None).feed({"x": pa.array(["007", " x"])}, 2)
    assert fed.feeds["x"].tolist() == [["007"], [" x"]]


@pytest.mark.parametrize(
    ("datatype", "good", "bad"),
    [
        ("FP32", "1.5", "?"),
        ("FP64", "inf", "2013-01-31"),
        ("INT64", "7", "1.5"),
        ("INT64", "9007199254740993", "99999999999999999999"),
        ("BOOL", "true", "yes"),
    ],
)
def test_each_of_many_bad_cells_costs_its_own_row_only(datatype: str, good: str, bad: str) -> None:
    texts = [bad if place % 3 == 1 else good for place in range(30_000)]
    fed = Feeder([tensor(datatype)], None).feed({"x": pa.array(texts)}, len(texts))
    (want,) = set(Feeder([tensor(datatype)], None).feed({"x": pa.array([good])}, 1).feeds["x"].ravel().tolist())
    assert fed.fits.tolist() == [text == good for text in texts]
    assert set(fed.feeds["x"].ravel().tolist()) == {want} and len(fed.feeds["x"]) == 20_000
    assert sorted(fed.reasons) == list(range(1, 30_000, 3))


def test_a_matrix_takes_its_columns_in_order() -> None:
    matrix = Tensor("m", KINDS["tensor(float)"], ("N", 2))
    fed = Feeder([matrix], ["b", "a"]).feed({"a": pa.array([1, 2]), "b": pa.array([3.0, None])}, 2)
    np.testing.assert_array_equal(fed.feeds["m"], np.array([[3, 1], [np.nan, 2]], np.float32))


def test_what_is_no_number_at_all_is_refused_row_by_row() -> None:
    times = pa.array([None, 1], pa.timestamp("us"))
    fed = Feeder([tensor("FP32")], None).feed({"x": times}, 2)
    assert fed.fits.tolist() == [True, False] and "1970" in fed.reasons[1]


def test_models_that_no_table_feeds_are_refused() -> None:
    image = Tensor("image", KINDS["tensor(float)"], ("N", 3, 8, 8))
    for inputs, columns in (([image], None), ([image], ["a"]), ([tensor("FP32")] * 2, ["a"])):
        with pytest.raises(BadInput):
            Feeder(inputs, columns)


@pytest.mark.parametrize(
    ("dims", "shape", "wanted"),
    [
        (("N",), (3,), [0, 1, 2]),
        (("N", 1), (3, 1), [0, 1, 2]),
        (("N", 2), (2, 2), [[0, 1], [2, 3]]),
        (("N", None), (2, 3), [[0, 1, 2], [3, 4, 5]]),
        (("N", 2, 2), (1, 2, 2), [[0, 1, 2, 3]]),
    ],
)
def test_outputs_become_columns(dims: tuple[Any, ...], shape: tuple[int, ...], wanted: list[Any]) -> None:
    one = tensor("FP32", "y", dims)
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    assert output_column(one, output_type(one), array).to_pylist() == wanted


def test_an_output_that_is_not_one_line_a_row_is_refused() -> None:
    with pytest.raises(BadInput, match="one line for each row"):
        output_type(tensor("FP32", "y", (1,)))
