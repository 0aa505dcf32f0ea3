"""JSON values to arrays and back."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.errors import BadInput
from dropforge.serving.tensors import KINDS, PIECE, Tensor, data_json, read_binary, write_binary

FP32 = KINDS["tensor(float)"]
INT64 = KINDS["tensor(int64)"]


def tensor(ort: str = "tensor(float)", *dims: int | str | None) -> Tensor:
    return Tensor("x", KINDS[ort], dims)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def values_of(ort: str) -> st.SearchStrategy[Any]:
    dtype = KINDS[ort].dtype
    if dtype.kind == "f":
        return st.floats(width=dtype.itemsize * 8, allow_infinity=False)  # type: ignore[arg-type]
    if dtype.kind in "iu":
        return st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return st.booleans() if dtype.kind == "b" else st.text()


@pytest.mark.parametrize("ort", KINDS)
@given(data=st.data())
def test_what_is_written_is_read_back_flat_nested_and_as_bytes(ort: str, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    size = int(np.prod(shape))
    values = data.draw(st.lists(values_of(ort), min_size=size, max_size=size))
    one = tensor(ort, *shape)
    array = one.array(values).reshape(shape)
    for written in (msgspec.Raw(data_json(array)), raw(array.tolist())):
        back = one.from_json(shape, written)
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)
    np.testing.assert_array_equal(read_binary(one, shape, memoryview(write_binary(array))), array)


@pytest.mark.parametrize("ort", ["tensor(float)", "tensor(int8)", "tensor(string)"])
def test_many_values_are_converted_in_pieces_to_the_same(ort: str) -> None:
    one = tensor(ort, "N")
    values = [str(i) if one.kind.python is str else i % 100 for i in range(2 * PIECE + 1)]
    array = one.from_json([len(values)], raw(values))
    assert array.dtype == one.kind.dtype and array.tolist() == values
    written = msgspec.json.decode(data_json(array))
    assert written == values


def test_a_value_out_of_range_is_seen_in_the_last_of_many_pieces() -> None:
    with pytest.raises(BadInput, match="out of the range of INT8"):
        tensor("tensor(int8)", "N").from_json([PIECE + 1], raw([0] * PIECE + [300]))


def test_a_null_is_a_nan_and_a_nan_is_a_null() -> None:
    one = tensor("tensor(double)", "N")
    array = one.from_json([2], raw([None, 1.5]))
    assert np.isnan(array[0]) and array[1] == 1.5
    assert data_json(array) == b"[null,1.5]"


def test_a_scalar_is_a_list_of_one_with_an_empty_shape() -> None:
    assert tensor().from_json([], raw([3])).shape == ()


@pytest.mark.parametrize(
    ("ort", "shape", "data", "message"),
    [
        ("tensor(float)", [2], ["a", 1], r"input 'x' of shape \[2\] wants FP32 \(numbers.*got `str`.*\$\[0\]"),
        ("tensor(float)", [2], [1, True], r"got `bool`.*\$\[1\]"),
        ("tensor(float)", [2], [1], r"wants 2 values in `data`, found 1"),
        ("tensor(float)", [2, 2], [1, 2, 3], r"wants 4 values in `data`, found 3"),
        ("tensor(float)", [2, 2], [[1, 2], [3]], r"a list in `data` holds 1.*wants 2 there"),
        ("tensor(float)", [2, 2], [[1, 2]], r"`data` holds 1 lists, shape \[2, 2\] wants 2"),
        ("tensor(float)", [1, 2], [[[1, 2]]], r"wants FP32"),
        ("tensor(float)", [1], 7, r"wants FP32 .*got `int`"),
        ("tensor(float)", [1], [1e39], r"out of the range of FP32"),
        ("tensor(float16)", [1], [1e6], r"out of the range of FP16"),
        ("tensor(int8)", [1], [128], r"out of the range of INT8"),
        ("tensor(uint8)", [1], [-1], r"out of the range of UINT8"),
        ("tensor(int64)", [1], [2**63], r"out of the range of INT64"),
        ("tensor(int64)", [1], [1.5], r"wants INT64 \(whole numbers\).*got `float`"),
        ("tensor(int64)", [1], [None], r"wants INT64.*got `null`"),
        ("tensor(bool)", [1], [1], r"wants BOOL \(true or false\).*got `int`"),
        ("tensor(string)", [1], [1], r"wants BYTES \(strings\).*got `int`"),
    ],
)
def test_wrong_data_is_refused_with_what_was_wanted_and_found(
    ort: str, shape: list[int], data: Any, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        tensor(ort, *[None] * len(shape)).from_json(shape, raw(data))


def test_nested_data_is_seen_behind_any_white_space() -> None:
    data = msgspec.Raw(b"[" + b" " * 100 + b"[1, 2]]")
    assert tensor("tensor(float)", "N", 2).from_json([1, 2], data).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("dims", "shape"),
    [(("N", 3), [2, 4]), (("N", 3), [3]), (("N", 3), [0, 3]), (("N", 3), [-1, 3]), ((), [1] * 17), ((), [0])],
)
def test_a_shape_that_does_not_fit_is_refused(dims: tuple[int | str | None, ...], shape: list[int]) -> None:
    with pytest.raises(BadInput, match=r"wants shape .*found"):
        Tensor("x", FP32, dims).check_shape(shape, {})


def test_named_dimensions_agree_over_the_inputs() -> None:
    sizes: dict[str, int] = {}
    Tensor("x", FP32, ("N", 1)).check_shape([2, 1], sizes)
    Tensor("y", INT64, ("N",)).check_shape([2], sizes)
    with pytest.raises(BadInput, match="input 'z' has size 3 where other inputs have 2"):
        Tensor("z", INT64, ("N",)).check_shape([3], sizes)


def test_every_kind_has_its_own_name() -> None:
    names = {kind.datatype for kind in KINDS.values()}
    assert len(names) == len(KINDS) == 13
