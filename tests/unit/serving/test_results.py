"""Each request's share of a batch, as arrays, as bytes and in JSON: the same as if it had been cut out first."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.serving import answers, results
from dropforge.serving.answers import Wanted, Writer
from dropforge.serving.protocol import Ask
from dropforge.serving.results import Batch, Rows
from dropforge.serving.tensors import KINDS, Array, Tensor

TYPES = ["int8", "uint16", "int64", "float16", "float32", "float64", "bool"]


def array_of(dtype: str, shape: tuple[int, ...], start: int) -> Array:
    values = np.arange(start, start + int(np.prod(shape))).reshape(shape)
    return (values % 2 == 0) if dtype == "bool" else (values % 100).astype(dtype)


@st.composite
def shared(draw: st.DrawFn, types: list[str] = TYPES) -> tuple[list[Array], list[int]]:
    """The outputs of a run, and how many rows each request has."""
    rows = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    tails = draw(st.lists(st.lists(st.integers(0, 3), max_size=2), min_size=1, max_size=3))
    made = [array_of(draw(st.sampled_from(types)), (sum(rows), *tail), number * 7) for number, tail in enumerate(tails)]
    if draw(st.booleans()):
        # As onnxruntime may give them: not in the order of their rows.
        made = [np.asfortranarray(array) for array in made]
    return made, rows


def shares(arrays: list[Array], rows: list[int]) -> list[tuple[Rows, list[Array]]]:
    batch, found, start = Batch(arrays), [], 0
    for count in rows:
        found.append((Rows(batch, start, start + count), [array[start : start + count] for array in arrays]))
        start += count
    return found


@given(shared())
def test_a_share_is_what_would_have_been_cut_out(given_: tuple[list[Array], list[int]]) -> None:
    for share, cut in shares(*given_):
        assert all(np.array_equal(one, other) for one, other in zip(share.arrays, cut, strict=True))
        assert share.shapes == tuple(array.shape for array in cut)
        assert share.parts() == [array.tobytes() for array in cut]
        assert share.data() == b"".join(share.parts())
        assert [json.loads(text) for text in share.json()] == [array.ravel().tolist() for array in cut]


def test_one_request_has_all_whatever_the_shapes() -> None:
    arrays = [np.array(2.5, np.float32), np.arange(6).reshape(2, 3), np.zeros((0,), np.int8)]
    share = Batch(arrays, whole=True).of_all()
    assert share.shapes == ((), (2, 3), (0,))
    assert [one is other for one, other in zip(share.arrays, arrays, strict=True)] == [True] * 3
    assert share.data() == b"".join(array.tobytes() for array in arrays)
    assert share.json() == [b"[2.5]", b"[0,1,2,3,4,5]", b"[]"]


def test_texts_keep_their_line_ends_and_their_rows() -> None:
    texts = np.array([["a\nb", "c"], ["\u2028", '"'], ["", "%b"]], object)
    found = [json.loads(share.json()[0]) for share, _ in shares([texts], [1, 1, 1])]
    assert found == [["a\nb", "c"], ["\u2028", '"'], ["", "%b"]]


def test_what_is_too_much_to_be_taken_in_one_go_is_written_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "PIECE", 5)
    for share, cut in shares([np.arange(12, dtype=np.float32).reshape(4, 3)], [1, 2, 1]):
        assert share.batch.texts == []
        assert [json.loads(text) for text in share.json()] == [array.ravel().tolist() for array in cut]


# ------------------------------------------------------------------------------------------------ as responses
KIND_OF = {kind.dtype: kind for kind in KINDS.values()}


def wanted(arrays: list[Array], *, binary: bool) -> Wanted:
    tensors = tuple(Tensor(f"o%b{n}", KIND_OF[array.dtype], ()) for n, array in enumerate(arrays))
    return Wanted(tensors, (binary,) * len(tensors))


def read(response: bytes, outputs: int) -> tuple[dict[str, str], Any, bytes]:
    """Headers, JSON and what is behind it."""
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert status == "HTTP/1.1 200 OK"
    headers = dict(line.split(": ") for line in lines)
    assert int(headers["Content-Length"]) == len(body)
    end = int(headers.get("Inference-Header-Content-Length", len(body)))
    said = json.loads(body[:end])
    assert len(said["outputs"]) == outputs
    return headers, said, body[end:]


@given(shared(), st.booleans(), st.sampled_from([None, 'a"%d']), st.sampled_from([b"", b"X-Request-Id: 7\r\n"]))
def test_a_response_says_what_the_share_holds(
    given_: tuple[list[Array], list[int]], binary: bool, id_: str | None, more: bytes
) -> None:
    writer, asked = Writer("e%s", "3", {"dropforge-model": "m%d"}), wanted(given_[0], binary=binary)
    for share, cut in shares(*given_) * 2:
        ask = Ask({}, share.stop - share.start, asked, id_)
        headers, said, data = read(writer.response(ask, share, more), len(cut))
        assert (said["model_name"], said["model_version"], said.get("id")) == ("e%s", "3", id_)
        assert headers["dropforge-model"] == "m%d" and headers.get("X-Request-Id") == ("7" if more else None)
        for number, (output, array) in enumerate(zip(said["outputs"], cut, strict=True)):
            assert (output["name"], tuple(output["shape"])) == (f"o%b{number}", array.shape)
            if binary:
                assert output["parameters"]["binary_data_size"] == array.nbytes
            else:
                assert output["data"] == array.ravel().tolist()
        assert data == (b"".join(array.tobytes() for array in cut) if binary else b"")


def test_what_is_remembered_of_one_kind_of_answer_is_not_said_of_another() -> None:
    writer = Writer("e", "1")
    arrays = [np.arange(4, dtype=np.int64)]
    for _ in range(2):
        for binary in (False, True):
            # A new one each time, where the one before was: what was remembered of that is not for this.
            asked = wanted(arrays, binary=binary)
            batch = Batch(arrays)
            _, said, data = read(writer.response(Ask({}, 1, asked), Rows(batch, 2, 3)), 1)
            assert (said["outputs"][0].get("data"), data) == (None, arrays[0][2:3].tobytes()) if binary else ([2], b"")
            # Another writer, for the same batch.
            _, said, _ = read(Writer("f", "2").response(Ask({}, 1, asked), Rows(batch, 2, 3)), 1)
            assert (said["model_name"], said["model_version"]) == ("f", "2")
            _, said, _ = read(writer.response(Ask({}, 4, asked), Batch(arrays, whole=True).of_all()), 1)
            assert said["outputs"][0]["shape"] == [4]


def test_what_a_writer_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "KEPT_FRAMES", 20)
    writer, arrays = Writer("e", "1"), [np.arange(50, dtype=np.float64)]
    held: list[Wanted] = []
    for count in range(1, 50):
        held.append(wanted(arrays, binary=count % 2 == 0))
        _, said, _ = read(writer.response(Ask({}, count, held[-1]), Rows(Batch(arrays), 0, count)), 1)
        assert said["outputs"][0]["shape"] == [count]
        frames = [
            frame for each in writer._frames.values() for rows in each.by_shapes.values() for frame in rows.values()
        ]
        assert len(frames) + sum(len(frame.heads) for frame in frames) <= 20
