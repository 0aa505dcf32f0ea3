"""Batch scoring: every row answered or told of, parts that are whole, and the same bytes each time."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from onnx import TensorProto, helper

from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused, Unavailable
from dropforge.serving import score as scoring_module
from dropforge.serving.models import load
from dropforge.serving.score import Scoring, score
from dropforge.serving.score_inputs import find, pieces
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment

CSV = "id,origin,distance,seats,late\na,EWR,719,150,true\nb,,NA,2,false\nc,JFK,far,3,true\nd,LGA,1,,true\ne,LGA,1.5,9,false\n"


def asked(folder: Path, data: bytes, where: str | Path, **more: Any) -> Scoring:
    return Scoring(deployment(folder, data, 3), find(str(where)), folder / "out", **more)


def results(folder: Path) -> list[dict[str, Any]]:
    parts = sorted((folder / "out/parts").glob("*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def rejects(folder: Path) -> list[tuple[Any, str]]:
    files = sorted((folder / "out/rejects").glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [(line["row"], line["reason"]) for line in lines]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in sorted(folder.rglob("*")) if each.is_file()}


def numbers(rows: int, start: int = 0) -> pa.Table:
    first = np.arange(start, start + rows, dtype=np.float64)
    return pa.table({"a": first, "b": first + 0.5, "c": first * 2, "id": np.arange(start, start + rows)})


NUMBERS = onnx_models.scaled(2, 3, ["a", "b", "c"])


def parquet_that(act: Callable[[], None], where: str, after: int = 0) -> type[pq.ParquetFile]:
    """Parquet files of which the footer, or the rows, are read after that many others only once `act` is done."""
    reads = iter(range(1_000_000))

    class Acting(pq.ParquetFile):  # type: ignore[misc]
        @property
        def metadata(self) -> Any:
            if where == "footer" and next(reads) >= after:
                act()
            return super().metadata

        def iter_batches(self, *told: Any, **named: Any) -> Iterator[Any]:
            if where == "rows" and next(reads) >= after:
                act()
            yield from super().iter_batches(*told, **named)

    return Acting


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "a share")


def test_rows_are_answered_beside_their_keys_and_bad_ones_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "flights.csv").write_text(CSV)
    found = score(asked(tmp_path, onnx_models.columns(), tmp_path / "flights.csv", keys=("id",)))
    assert (found.rows, found.rejected, found.unreadable) == (3, 2, ())
    first, second, last = results(tmp_path)
    assert first == {
        "id": "a",
        "_file": "flights.csv",
        "_row": 1,
        "origin_out": "EWR",
        "distance_out": 719.0,
        "seats_out": 150,
        "late_out": True,
        "_model": "flights",
        "_version": 3,
    }
    assert second["origin_out"] == "" and np.isnan(second["distance_out"])
    assert (last["id"], last["_row"]) == ("e", 5)
    assert rejects(tmp_path) == [
        (3, "column 'distance' wants FP32: a number, true, false or null (NaN); found \"far\""),
        (4, "column 'seats' wants INT64: a whole number; found null"),
    ]


def test_all_formats_give_the_same_answers(tmp_path: Path) -> None:
    table = pa.table({"a": [1.0, None, 3.5], "b": [1, 2, 3], "c": [True, False, True]})
    pq.write_table(table, tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    # Of true and false CSV has no numbers: they are words there.
    rows = [f"{'' if row['a'] is None else row['a']},{row['b']},{int(row['c'])}\n" for row in table.to_pylist()]
    (tmp_path / "x.csv").write_text("a,b,c\n" + "".join(rows))
    score(asked(tmp_path, NUMBERS, f"{tmp_path}/x.*"))
    found = results(tmp_path)
    assert {row["_file"] for row in found} == {"x.csv", "x.jsonl", "x.parquet"}
    for row in found:
        want = [[2, 2, 2], [np.nan, 4, 0], [7, 6, 2]][row["_row"] - 1]
        np.testing.assert_array_equal(row["y"], want)


def test_an_answer_is_the_one_that_the_model_gives_row_by_row(tmp_path: Path) -> None:
    pq.write_table(numbers(1000), tmp_path / "x.parquet", row_group_size=100)
    score(asked(tmp_path, NUMBERS, tmp_path / "x.parquet", batch_rows=64, part_rows=300, keys=("id",)))
    model = load(deployment(tmp_path, NUMBERS))
    found = results(tmp_path)
    assert [row["id"] for row in found] == list(range(1000)) == [row["_row"] - 1 for row in found]
    for row in found[::97]:
        (y,) = model.run(["y"], {"x": np.array([[row["id"], row["id"] + 0.5, row["id"] * 2]], np.float32)})
        assert row["y"] == y[0].tolist()


def test_broken_lines_and_other_bytes_do_not_stop_the_rest(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a,b,c\n1,2,3\n1,2\n\xff,2,3\n4,5,6\n7,8,9,10\n")
    (tmp_path / "x.jsonl").write_text('{"a":1,"b":2,"c":3}\nnonsense\n{"a":4,"b":5}\n{"a":"x","b":1,"c":1}\n')
    found = score(asked(tmp_path, NUMBERS, f"{tmp_path}/x.jsonl"))
    assert [row["_row"] for row in results(tmp_path)] == [1, 3]
    assert [row for row, _ in rejects(tmp_path)] == [2, 4] and found.rejected == 2

    (tmp_path / "y.csv").write_bytes(b"a,b,c\n1,2,3\n1,2\nx,2,3\n4,5,6\n7,8,9,10\n")
    again = replace(asked(tmp_path, NUMBERS, tmp_path / "y.csv"), output=tmp_path / "csv/out")
    found = score(again)
    assert [row["_row"] for row in results(tmp_path / "csv")] == [1, 4]
    assert [row for row, _ in rejects(tmp_path / "csv")] == [2, 3, 5] and found.rejected == 3


def test_every_value_that_is_no_text_rejects_its_row(tmp_path: Path) -> None:
    lines = b"".join(b"\xff,2,3\n" if number % 2 else b"1,2,3\n" for number in range(100))
    (tmp_path / "x.csv").write_bytes(b"a,b,c\n" + lines)
    found = score(asked(tmp_path, NUMBERS, tmp_path / "x.csv"))
    assert (found.rows, found.rejected) == (50, 50)
    assert [row for row, _ in rejects(tmp_path)] == list(range(2, 101, 2))


def test_a_file_that_cannot_be_read_is_told_of_and_the_others_are_scored(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(numbers(5), tmp_path / "in/a.parquet")
    (tmp_path / "in/b.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "in/c.csv").write_text("a,b\n1,2\n")
    found = score(asked(tmp_path, NUMBERS, tmp_path / "in"))
    assert found.rows == 5
    assert [file for file, _ in found.unreadable] == ["b.parquet", "c.csv"]
    assert "columns ['c'] are missing" in found.unreadable[1][1]
    assert [row for row, _ in rejects(tmp_path)] == [None, None]


def test_rows_that_the_model_fails_on_are_found_among_those_that_it_answers(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [0, 9, 1, 2, 7, 0, 1]}), tmp_path / "x.parquet")
    found = score(asked(tmp_path, onnx_models.picky(3), tmp_path / "x.parquet"))
    assert [row["y"] for row in results(tmp_path)] == [0, 1, 2, 0, 1]
    assert [row for row, _ in rejects(tmp_path)] == [2, 5]
    assert found.first_reason is not None and "flights v3 failed" in found.first_reason


def test_a_model_whose_rows_change_each_other_s_answers_is_asked_row_by_row(tmp_path: Path) -> None:
    data = onnx_models.model(
        [helper.make_node("ReduceSum", ["x"], ["s"], keepdims=1), helper.make_node("Div", ["x", "s"], ["y"])],
        {"x": (TensorProto.FLOAT, ["N", 1])},
        {"y": (TensorProto.FLOAT, ["N", 1])},
    )
    pq.write_table(pa.table({"x": [1.0, 2.0, 5.0]}), tmp_path / "x.parquet")
    score(asked(tmp_path, data, tmp_path / "x.parquet"))
    assert [row["y"] for row in results(tmp_path)] == [1, 1, 1]
    assert json.loads((tmp_path / "out/plan.json").read_text())["together"] is False


def test_a_table_is_scored_at_the_version_named(tmp_path: Path) -> None:
    table = tmp_path / "table"
    write_deltalake(str(table), numbers(10))
    wider = numbers(5, start=10).append_column("extra", pa.array(["x"] * 5))
    write_deltalake(str(table), wider, mode="append", schema_mode="merge")
    before = Scoring(deployment(tmp_path, NUMBERS), find(str(table), 0), tmp_path / "out")
    assert score(before).rows == 10
    after = replace(before, inputs=find(table.as_uri()), output=tmp_path / "new/out", keys=("id", "extra"))
    assert score(after).rows == 15
    found = {row["id"]: row["extra"] for row in results(tmp_path / "new")}
    assert (found[0], found[12]) == (None, "x")
    assert json.loads((tmp_path / "new/out/manifest.json").read_text())["table_version"] == 1
    with pytest.raises(NotFound, match="no version 7"):
        find(str(table), 7)


def test_equal_inputs_make_equal_bytes_by_however_many_threads(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        pq.write_table(numbers(700, number * 700), tmp_path / f"in/{number}.parquet", row_group_size=200)
    (tmp_path / "in/x.csv").write_text("id,a,b,c\n" + "".join(f"{n},{n},x{n % 7},3\n" for n in range(900)))
    one = asked(tmp_path, NUMBERS, tmp_path / "in", keys=("id",), part_rows=250)
    found = score(one)
    assert (found.parts, found.rows, found.rejected, found.pieces, found.of_pieces) == (16, 2100, 900, 7, 7)
    other = replace(one, output=tmp_path / "other")
    score(other, 4)
    assert tree(other.output) == tree(one.output)


def test_what_is_whole_stays_and_what_is_missing_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b,c\n" + "".join(f"{n},1,{n % 5 or 'x'}\n" for n in range(1000)))
    one = asked(tmp_path, NUMBERS, tmp_path / "x.csv", part_rows=200)
    score(one)
    whole = tree(one.output)
    kept = (one.output / "parts/00000-0001.parquet").stat().st_mtime_ns
    for lost in ("done/00000-0002.json", "parts/00000-0003.parquet", "manifest.json", "done/00000-0004.json"):
        (one.output / lost).unlink()
    (one.output / "parts/00000-0002.parquet").write_bytes(b"half")
    score(one)
    assert tree(one.output) == whole
    assert (one.output / "parts/00000-0001.parquet").stat().st_mtime_ns == kept


def test_another_scoring_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    pq.write_table(numbers(5), tmp_path / "x.parquet")
    one = asked(tmp_path, NUMBERS, tmp_path / "x.parquet")
    score(one)
    for other, what in (
        (replace(one, model=replace(one.model, version=4)), "version"),
        (replace(one, keys=("id",)), "keys"),
        (replace(one, part_rows=7), "part_rows"),
    ):
        with pytest.raises(Refused, match=f"with other {what}; name another folder"):
            score(other)
    pq.write_table(numbers(6), tmp_path / "x.parquet")
    with pytest.raises(Refused, match="with other inputs"):
        score(replace(one, inputs=find(str(tmp_path / "x.parquet"))))


def test_a_cell_that_is_no_number_costs_its_own_row_only_however_many_there_are(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b,c\n" + "".join(f"{n if n % 2 else '?'},1,2\n" for n in range(8000)))
    found = score(asked(tmp_path, NUMBERS, tmp_path / "x.csv"))
    assert (found.rows, found.rejected) == (4000, 4000)
    assert [(row["_row"], row["y"][0]) for row in results(tmp_path)] == [(n + 1, 2.0 * n) for n in range(1, 8000, 2)]
    assert [row for row, _ in rejects(tmp_path)] == list(range(1, 8001, 2))


@pytest.mark.parametrize(("where", "after"), [("footer", 0), ("footer", 3), ("rows", 0), ("rows", 3)])
@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "no answer"), OSError(errno.EMFILE, "too many"), MemoryError(), pa.ArrowMemoryError("x")],
)
def test_what_may_pass_ends_the_scoring_and_is_no_word_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str, after: int
) -> None:
    pq.write_table(numbers(1000), tmp_path / "x.parquet", row_group_size=100)
    one = asked(tmp_path, NUMBERS, tmp_path / "x.parquet", part_rows=300)
    score(replace(one, output=tmp_path / "whole"))

    def fail() -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(pq, "ParquetFile", parquet_that(fail, where, after))
        with pytest.raises(Unavailable, match=r"x.parquet cannot be read now: .*; score into the same folder again"):
            score(one)
    assert not (one.output / "manifest.json").exists()
    score(one)
    assert tree(one.output) == tree(tmp_path / "whole")


@pytest.mark.parametrize("content", ["", 'a,b,c\n1,2,3\n4,"5,6\n', "a,b,c\n" + "1,2,3\n" * 300])
def test_a_file_that_ends_before_what_is_there_of_it_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.csv").write_text("a,b,c\n" + "".join(f"{n},1,2\n" for n in range(1000)))
    one = asked(tmp_path, NUMBERS, tmp_path / "x.csv", part_rows=200)
    score(one)
    for lost in ("done/00000-0003.json", "manifest.json"):
        (one.output / lost).unlink()
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(Unavailable, match="was read to another row before"):
        score(one)
    assert not (one.output / "manifest.json").exists()


def test_a_manifest_is_written_of_whole_pieces_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring_module, "_LOOK_SECONDS", 0.0)
    pq.write_table(numbers(5), tmp_path / "x.parquet")
    one = asked(tmp_path, NUMBERS, tmp_path / "x.parquet")
    first = one.output / "done/00000-0000.json"
    with pytest.raises(Conflict, match="of 1 pieces 0 are whole"):
        score(one, progress=lambda _: first.unlink(missing_ok=True))
    assert not (one.output / "manifest.json").exists()


def test_pieces_that_are_cut_otherwise_on_going_on_do_not_mix(tmp_path: Path) -> None:
    table = tmp_path / "table"
    for start in (0, 100):
        write_deltalake(str(table), numbers(6, start), mode="append")
    inputs = find(str(table))
    path = Path(inputs.files[0].path)
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    one = Scoring(deployment(tmp_path, NUMBERS), inputs, tmp_path / "out", keys=("id",), part_rows=2)
    assert (score(one).rows, len(pieces(inputs, 2))) == (12, 4)
    # A file of a table is known by its name; what was three pieces is one now, which cannot be read.
    path.write_bytes(path.read_bytes()[:-20])
    found = score(one)
    assert (found.rows, found.pieces) == (6, 2) and found.unreadable[0][0] == inputs.files[0].name
    assert {row["_file"] for row in results(tmp_path)} == {inputs.files[1].name}
    listed = json.loads((one.output / "manifest.json").read_text())["parts"]
    assert sum(part["rows"] for part in listed) == len(results(tmp_path)) == 6
    assert len(list((one.output / "done").iterdir())) == len(listed)


def test_parts_of_an_earlier_version_that_do_not_name_their_file_are_refused(tmp_path: Path) -> None:
    pq.write_table(numbers(5), tmp_path / "x.parquet")
    one = asked(tmp_path, NUMBERS, tmp_path / "x.parquet")
    score(one)
    path = one.output / "done/00000-0000.json"
    told = json.loads(path.read_text())
    assert (told["file"], told["first_row"], told["groups"]) == ("x.parquet", 0, [0])
    path.write_text(json.dumps({name: told[name] for name in told if name not in ("file", "first_row", "groups")}))
    with pytest.raises(Refused, match=r"parts of an earlier version .*; name another folder"):
        score(one)


@pytest.mark.parametrize("links", [True, False])
def test_of_two_scorings_that_start_at_once_in_one_folder_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    pq.write_table(numbers(5), tmp_path / "x.parquet")
    one = asked(tmp_path, NUMBERS, tmp_path / "x.parquet")
    other = replace(one, keys=("id",))

    def meanwhile() -> None:
        monkeypatch.undo()
        if not links:
            monkeypatch.setattr(os, "link", no_links)
        score(other)

    monkeypatch.setattr(pq, "ParquetFile", parquet_that(meanwhile, "rows"))
    with pytest.raises(Refused, match="holds a scoring with other keys; name another folder"):
        score(one)
    assert [row["id"] for row in results(tmp_path)] == list(range(5))
    assert json.loads((one.output / "plan.json").read_text())["keys"] == ["id"]
    assert not list(one.output.rglob("*.part"))


def test_whole_numbers_of_json_lines_are_not_rounded_by_the_fractions_beside_them(tmp_path: Path) -> None:
    data = onnx_models.columns()
    lines = [{"seats": 2**53 + 1}, {"seats": 1.0}, {"seats": 1.5}, {"seats": 4}]
    whole = {"origin": "EWR", "distance": 1.5, "late": True}
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(whole | line) + "\n" for line in lines))
    score(asked(tmp_path, data, tmp_path / "x.jsonl"))
    assert [(row["_row"], row["seats_out"]) for row in results(tmp_path)] == [(1, 2**53 + 1), (2, 1), (4, 4)]


def test_large_files_are_cut_where_they_can_be(tmp_path: Path) -> None:
    pq.write_table(numbers(1000), tmp_path / "x.parquet", row_group_size=100)
    cut = pieces(find(str(tmp_path / "x.parquet")), 250)
    assert [(piece.groups, piece.first_row) for piece in cut] == [
        ((0, 1, 2), 0),
        ((3, 4, 5), 300),
        ((6, 7, 8), 600),
        ((9,), 900),
    ]


def test_names_that_would_be_there_twice_are_refused(tmp_path: Path) -> None:
    pq.write_table(numbers(5).append_column("y", pa.array([1] * 5)), tmp_path / "x.parquet")
    for keys in (("y",), ("id", "id"), ("_row",)):
        with pytest.raises(BadInput, match="two columns of the result"):
            score(asked(tmp_path, NUMBERS, tmp_path / "x.parquet", keys=keys))


def test_a_matrix_that_names_no_columns_is_fed_with_those_that_are_named(tmp_path: Path) -> None:
    pq.write_table(numbers(3), tmp_path / "x.parquet")
    with pytest.raises(BadInput, match="--columns"):
        score(asked(tmp_path, onnx_models.scaled(2, 2), tmp_path / "x.parquet"))
    score(asked(tmp_path, onnx_models.scaled(2, 2), tmp_path / "x.parquet", columns=("c", "a")))
    assert [row["y"] for row in results(tmp_path)] == [[0, 0], [4, 2], [8, 4]]


def test_what_is_nowhere_is_not_scored(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no table and no file"):
        find(str(tmp_path / "*.csv"))
    with pytest.raises(BadInput, match="lies in a store"):
        find("abfss://tables/flights")
