"""CSV, Parquet and JSON Lines as they come: good, broken, hostile; and laws that hold for any of them."""

from __future__ import annotations

import codecs
import csv
import errno
import gzip
import io
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dropforge.adapters.tabular import csv_source, jsonl_source
from dropforge.adapters.tabular.checks import check_file
from dropforge.adapters.tabular.kinds import convert, infer_text
from dropforge.domain.datasets import Column
from dropforge.ports import ColumnRule, FileCheck, TableRules
from tests.unit.looks import Format, Look, checked, only, types


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Checks content as a file; rules are given by name."""
    return lambda content, kind="csv", **rules: checked(tmp_path / "drop", content, kind, **rules)


# ------------------------------------------------------------------------------------------------ CSV
def test_a_good_file_has_rows_columns_and_no_problem(look: Look) -> None:
    check = look("origin,distance,late\nEWR,719,1\nJFK,1065.5,\n", label="late")

    assert check == FileCheck(2, (Column("origin", "string"), Column("distance", "double"), Column("late", "int64")))


@pytest.mark.parametrize(
    ("content", "rule", "says"),
    [
        (b"", "format", "found an empty file (0 bytes)"),
        (b"\n\n\n", "format", "found no complete line"),
        (b"a,b\n", "min_rows", "wanted at least 1 data rows (dataset.min_rows), found 0: nothing but a header"),
        (b"a;b;c\n1;2;3\n", "delimiter", "wanted columns separated by ',', found 3 separated by ';'"),
        (b"a\tb\n1\t2\n", "delimiter", "found 2 separated by '\\t'"),
        (b"a,b,a\n1,2,3\n", "columns", "found 'a' twice"),
        (b"Late,late\n1,2\n", "columns", "found 'late' beside 'Late', and tables do not tell cases apart"),
        (b",a\n0,1\n", "columns", "column 1 has no name (a pandas index? write it with index=False)"),
        (b"_source,a\n1,2\n", "columns", "belong to the platform; rename it"),
        (b"_Arrived_at,a\n1,2\n", "columns", "belong to the platform; rename it"),
        (b'"a\nb",c\n1,2\n', "columns", "on one line, found 'a\\\\nb'"),
        ("a,b\n1,é\n".encode("utf-16"), "format", "found UTF-16 text; save it as UTF-8"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "format", "found gzip"),
        (b"PK\x03\x04...", "format", "a zip archive or an Excel workbook"),
        (b"PAR1....PAR1", "format", "found Parquet"),
        (b"caf\xe9,b\n1,2\n", "encoding", "found other bytes in the header"),
        (b'a,b\n1,"two\n2,x\n3,y\n', "quotes", "a quote is opened and never closed"),
        (b'a,b\n1,"' + b"x\n" * 3_000_000, "row_length", "is a quote opened and never closed?"),
        (",".join(f"c{index}" for index in range(10_001)).encode() + b"\n", "columns", "found 10,001"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_file_that_is_not_a_table_says_why(look: Look, content: bytes, rule: str, says: str) -> None:
    problem = only(look(content))

    assert problem.rule == rule and says in problem.message


def test_ragged_rows_are_named_and_the_rows_after_them_keep_their_number(look: Look) -> None:
    content = 'a,b\n1,2\n3\n"4\n4",5\n\n6,7,8\n9,x\n'
    check = look(content, columns=(ColumnRule("b", "int"),))

    ragged, wrong = check.problems
    assert (ragged.rule, ragged.count, ragged.rows, ragged.values) == ("ragged", 2, (2, 4), ("3", "6,7,8"))
    assert ragged.message == "wanted 2 cells in every row, as in the header, found 1"
    assert (wrong.rule, wrong.column, wrong.rows, wrong.values) == ("type", "b", (5,), ("x",))
    assert check.rows == 3


def test_rows_are_numbered_across_blocks(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "BLOCK_BYTES", 256)
    lines = [f"{index},{index}" for index in range(1, 1001)]
    lines[99], lines[499], lines[500], lines[899] = "100", "500,1,2", "501", "900,x"
    check = look("a,b\n" + "\n".join(lines) + "\n", columns=(ColumnRule("b", "int"),))

    assert check.problems[0].rows == (100, 500, 501) and check.problems[1].rows == (900,)
    assert check.rows == 997


def test_a_file_of_nothing_but_broken_rows_is_not_read_to_its_end(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "MAX_RAGGED", 100)
    problem = only(look("a,b\n" + "1\n" * 5000))

    assert problem.rule == "ragged" and 100 <= problem.count < 5000 and len(problem.rows) == 20


def test_bytes_that_are_not_utf8_are_named_by_row(look: Look) -> None:
    problem = only(look(b"n,name\n1,ok\n2,caf\xe9\n3,\xff\n"))

    assert (problem.rule, problem.column, problem.count, problem.rows) == ("encoding", "name", 2, (2, 3))
    assert "save the file as UTF-8" in problem.message


def test_a_broken_row_in_a_file_that_is_not_utf8_is_named_too(look: Look) -> None:
    check = look(b"n,name\n1,caf\xe9\n2,\xff,3\n4,x\n")

    assert [(problem.rule, problem.rows) for problem in check.problems] == [("ragged", (2,))]


def test_nul_bytes_are_named_by_row(look: Look) -> None:
    problem = only(look(b"n,name\n1,a\n2,b\x00c\n"))

    assert (problem.rule, problem.column, problem.rows, problem.values) == ("nul", "name", (2,), ("b\\x00c",))


def test_byte_order_marks_quotes_line_ends_and_empty_lines_are_fine(look: Look) -> None:
    content = codecs.BOM_UTF8 + b'a,"b, c"\r\n1,"x\r\ny ""z"""\r\n\r\n2,\r\n'

    assert look(content) == FileCheck(2, (Column("a", "int64"), Column("b, c", "string")))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-2", ""], "int64"),
        (["1", "2", "2.5"], "double"),
        (["1", "NA", "nan"], "int64"),
        ([" 1 ", "2"], "int64"),
        (["1e5", "inf"], "double"),
        (["1", "x"], "string"),
        (["007", "8"], "string"),
        (["0.5", "0"], "double"),
        (["12345678901234567890"], "string"),
        (["9223372036854775807"], "int64"),
        (["0x1F"], "string"),
        (["true", "FALSE"], "bool"),
        (["true", "2"], "string"),
        (["2013-01-31"], "date32"),
        (["2013-01-31", "2013-01-31 05:00"], "timestamp"),
        (["2013-01-31T05:00:00Z", "2013-01-31T05:00:00.123456789+02:00"], "timestamp"),
        (["2013-01-31", "soon"], "string"),
        (["31/01/2013"], "string"),
        (["NA"], None),
    ],
    ids=str,
)
def test_the_type_of_a_column_is_what_fits_all_of_its_values(values: list[str], kind: str | None) -> None:
    whole = infer_text(None, pa.array(values))
    piecewise: str | None = None
    for value in values:
        piecewise = infer_text(piecewise, pa.array([value]))

    assert whole == piecewise == kind


def test_types_are_those_of_the_whole_file_not_of_its_first_block(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "BLOCK_BYTES", 256)
    check = look("i,f,s,e\n" + "1,1,1,\n" * 1000 + "2,2.5,two,2013-01-01\n")

    assert types(check) == {"i": "int64", "f": "double", "s": "string", "e": "date32"}
    assert check.rows == 1001 and not check.problems


def test_na_is_no_value_among_numbers_and_text_among_text(look: Look) -> None:
    rules = (ColumnRule("n", nullable=False), ColumnRule("country", nullable=False))
    check = look("n,country\nNA,NA\n1,SE\n,\n", columns=rules)

    assert types(check) == {"n": "int64", "country": "string"}
    assert [(problem.column, problem.rows) for problem in check.problems] == [("n", (1, 3)), ("country", (3,))]


# ------------------------------------------------------------------------------------------------ Parquet
def test_parquet_types_become_the_tables(look: Look) -> None:
    noon = datetime(2013, 1, 31, 12)  # noqa: DTZ001 -- as files hold it
    table = pa.table(
        {
            "i": pa.array([1, None], pa.uint8()),
            "f": pa.array([1.5, float("nan")], pa.float32()),
            "s": pa.array(["x", "y"]).dictionary_encode(),
            "l": pa.array(["x", "y"], pa.large_string()),
            "b": [True, None],
            "t": pa.array([noon, noon + timedelta(days=1)], pa.timestamp("ns", tz="Europe/Berlin")),
            "n": pa.array([noon, None], pa.timestamp("ms")),
            "d": pa.array([1, 2], pa.date64()),
            "m": pa.array([1, 2], pa.decimal128(10, 2)),
            "empty": pa.nulls(2),
        }
    )
    check = look(table, "parquet", event_time="t", label="i", columns=(ColumnRule("f", nullable=False),))

    assert types(check) == {
        **dict.fromkeys(("i",), "int64"),
        **dict.fromkeys(("f", "m"), "double"),
        **dict.fromkeys(("s", "l"), "string"),
        **dict.fromkeys(("t", "n"), "timestamp"),
        "b": "bool",
        "d": "date32",
    }
    assert check.event_time_min == "2013-01-31T12:00:00+00:00"
    assert (only(check).rule, only(check).column, only(check).rows) == ("nullable", "f", (2,))


def test_parquet_columns_that_no_table_has_are_named(look: Look) -> None:
    check = look(pa.table({"l": [[1]], "s": [{"a": 1}], "b": [b"x"], "n": [1]}), "parquet")

    assert [problem.column for problem in check.problems] == ["l", "s", "b"]
    assert "column 'l' holds list" in check.problems[0].message


def test_parquet_integers_too_large_for_the_table_are_named(look: Look) -> None:
    problem = only(look(pa.table({"u": pa.array([1, 2**63], pa.uint64())}), "parquet"))

    assert (problem.rule, problem.rows, problem.values) == ("type", (2,), (str(2**63),))


@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1", b"a,b\n1,2\n", b"PAR1" + b"\xff" * 100 + b"PAR1", b"PAR1\x00\x00\xff\xff\xff\x7fPAR1"],
    ids=str,
)
def test_a_file_that_is_no_parquet_is_one_problem(look: Look, content: bytes) -> None:
    assert only(look(content, "parquet")).rule == "format"


def test_parquet_that_claims_more_than_allowed_is_not_read(look: Look) -> None:
    bomb = pa.table({"a": pa.array([7] * 3_000_000), "b": pa.array(["x"] * 3_000_000).dictionary_encode()})
    problem = only(look(bomb, "parquet", max_bytes=1_000_000))

    assert problem.rule == "max_bytes" and "wanted at most 1,000,000 bytes" in problem.message


def test_a_parquet_file_that_is_not_to_blame_is_not_called_broken(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(pq.ParquetFile):  # type: ignore[misc]
        def iter_batches(self, *_: object, **__: object) -> Iterator[pa.RecordBatch]:
            raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(pq, "ParquetFile", Failing)
    with pytest.raises(OSError, match="no answer"):
        look(pa.table({"a": [1]}), "parquet")


def _good_parquet() -> bytes:
    file = io.BytesIO()
    rows = {"a": list(range(200)), "s": [str(i) for i in range(200)], "t": [datetime(2013, 1, 1, tzinfo=UTC)] * 200}
    pq.write_table(pa.table(rows), file, compression="snappy")
    return file.getvalue()


@settings(max_examples=200)
@given(st.data())
def test_damaged_parquet_never_raises(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = bytearray(_good_parquet())
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=8)
    ):
        good[position] = value
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(good))))

    check = checked(tmp_path_factory.getbasetemp() / "damaged", bytes(good[:cut]), "parquet", event_time="t")
    assert cut in (None, len(good)) or check.problems


# ------------------------------------------------------------------------------------------------ JSON Lines
def test_json_lines_are_one_object_each(look: Look) -> None:
    check = look('{"a": 1, "s": "x", "b": true}\n\n{"a": 2.5, "c": null}\n', "jsonl", label="b")

    assert check == FileCheck(2, (Column("a", "double"), Column("s", "string"), Column("b", "bool")))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{bad", "malformed"),
        ("[1, 2]", "an array (is the whole file one JSON array?)"),
        ("5", "a plain int"),
        ('{"a": NaN}', "malformed"),
        ('{"a": "\\ud800"}', "row 2"),
        ('{"a": ' + "[" * 100_000, "row 2"),
    ],
    ids=lambda value: value[:12],
)
def test_a_line_that_is_no_object_is_named(look: Look, line: str, says: str) -> None:
    check = look(f'{{"a": 1}}\n{line}\n{{"a": 3}}\n', "jsonl")

    problem = only(check)
    assert (problem.rule, problem.rows, problem.count) == ("json", (2,), 1) and says in problem.message
    assert check.rows == 2


def test_json_rules_are_kept_by_row(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_source, "BLOCK_ROWS", 3)
    lines = [json.dumps({"a": index, "s": "x"}) for index in range(1, 11)]
    lines[4] = "{"
    lines[7] = '{"a": -1}'
    check = look("\n".join(lines), "jsonl", columns=(ColumnRule("a", "int", min=0), ColumnRule("s", nullable=False)))

    assert [(problem.rule, problem.rows) for problem in check.problems] == [
        ("json", (5,)),
        ("min", (8,)),
        ("nullable", (8,)),
    ]


def test_json_values_of_several_types_are_text_or_misfits(look: Look) -> None:
    content = '{"a": 1}\n{"a": "x"}\n{"a": true}\n{"a": 123456789012345678901234567890}\n'

    assert types(look(content, "jsonl")) == {"a": "string"}
    problem = only(look(content, "jsonl", columns=(ColumnRule("a", "int"),)))
    assert (problem.rows, problem.values) == ((2, 3, 4), ("x", "true", "123456789012345678901234567890"))


@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize(
    ("number", "kind"), [(2**53, "double"), (-(2**53), "double"), (2**53 + 1, "string"), (-(2**53) - 1, "string")]
)
def test_json_whole_numbers_that_a_double_would_round_make_no_double(
    look: Look, monkeypatch: pytest.MonkeyPatch, number: int, kind: str, rows: int
) -> None:
    monkeypatch.setattr(jsonl_source, "BLOCK_ROWS", rows)

    assert types(look(f'{{"a": {number}}}\n{{"a": 1.5}}\n', "jsonl")) == {"a": kind}
    assert types(look(f'{{"a": 1.5}}\n{{"a": {number}}}\n', "jsonl")) == {"a": kind}


def test_nested_json_is_a_problem(look: Look) -> None:
    problem = only(look('{"a": {"b": 1}, "c": 1}\n', "jsonl"))

    assert problem.column == "a" and "holds objects" in problem.message


def test_text_in_json_is_a_time_only_where_a_time_is_wanted(look: Look) -> None:
    content = '{"at": "2013-01-01", "s": "2013-01-01", "n": 1}\n'

    assert types(look(content, "jsonl", event_time="at")) == {"at": "timestamp", "s": "string", "n": "int64"}


# ------------------------------------------------------------------------------------------------ laws
HEADERS = [b"", b"a,b\n", b"PAR1", b'{"a":', b'"', b"\xef\xbb\xbf", b"a\n"]


@settings(max_examples=300)
@given(
    kind=st.sampled_from(["csv", "parquet", "jsonl"]),
    start=st.sampled_from(HEADERS),
    body=st.one_of(st.binary(max_size=300), st.text(alphabet='ab,"\n\r1.-{}:[] é\x00', max_size=200).map(str.encode)),
)
@example(kind="csv", start=b"a,b\n", body=b'1,"\r\n')
@example(kind="jsonl", start=b"", body=b'{"a":1e400}')
def test_no_bytes_ever_raise(tmp_path_factory: pytest.TempPathFactory, kind: Format, start: bytes, body: bytes) -> None:
    rules = {"columns": (ColumnRule("a", "int", nullable=False, min=0, unique=True), ColumnRule("b", "timestamp"))}
    path = tmp_path_factory.getbasetemp() / "any"
    for some in ({}, rules):
        check = checked(path, start + body, kind, **some)
        assert check.rows >= 0 and (check.rows or check.problems)
        for problem in check.problems:
            assert problem.count >= 1 and problem.message and len(problem.rows) <= 20 and len(problem.values) <= 20
            assert all(row >= 1 for row in problem.rows)


CELL = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\x00\r", exclude_categories=["Cs"]), max_size=8
)


@given(rows=st.lists(st.tuples(CELL.filter(bool), CELL), min_size=1, max_size=30))
def test_every_written_row_is_counted(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    rules = tuple(ColumnRule(name, "string") for name in "ab")

    check = checked(tmp_path_factory.getbasetemp() / "written", file.getvalue(), columns=rules)

    assert check.rows == len(rows) and check.problems == ()


@given(st.lists(st.one_of(st.none(), st.integers(-(2**70), 2**70)), min_size=1, max_size=40))
def test_integers_survive_or_are_named(values: list[int | None]) -> None:
    texts = pa.array([None if value is None else str(value) for value in values], pa.string())
    converted = convert(texts, "int64")

    fits = [value is None or -(2**63) <= value < 2**63 for value in values]
    assert converted.bad == tuple(index for index, fit in enumerate(fits) if not fit)
    assert converted.values.to_pylist() == [value if fit else None for value, fit in zip(values, fits, strict=True)]


NUMBERLIKE = st.one_of(
    st.text("019.+-eExXfain \u2009", max_size=6),
    st.integers(-(2**65), 2**65).map(str),
    st.floats().map(str),
    st.sampled_from(["NA", "", "true", "False", "yes", "9007199254740993.0", "+9007199254740993", "1e400", "nan(1)"]),
)


@pytest.mark.parametrize("kind", ["int64", "double", "bool"])
@given(texts=st.lists(NUMBERLIKE, min_size=1, max_size=30))
def test_without_a_limit_every_value_is_what_it_is_alone(kind: str, texts: list[str]) -> None:
    alone = [convert(pa.array([text]), kind) for text in texts]
    together = convert(pa.array(texts), kind, limit=None)

    assert together.bad == tuple(index for index, one in enumerate(alone) if one.bad)
    assert together.values.to_pylist() == [one.values[0].as_py() for one in alone]


NAIVE = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))  # noqa: DTZ001 -- naive on purpose


@given(st.lists(NAIVE, min_size=1, max_size=20), st.booleans())
def test_times_survive_whatever_zone_they_are_written_in(times: list[datetime], zoned: bool) -> None:
    texts = [
        f"{time.isoformat()}+02:00" if zoned and index % 2 else time.isoformat(" ") for index, time in enumerate(times)
    ]
    converted = convert(pa.array(texts), "timestamp")

    wanted = [
        (time - timedelta(hours=2) if zoned and index % 2 else time).replace(tzinfo=UTC)
        for index, time in enumerate(times)
    ]
    assert converted.bad == () and converted.values.to_pylist() == wanted


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_source, "BLOCK_BYTES", 16 * 1024)
    usual = pa.default_memory_pool()

    def peak(megabytes: int) -> int:
        path = tmp_path / "large.csv"
        line = b"2013-01-01 05:15:00,EWR,719,1.25,true\n"
        path.write_bytes(b"at,origin,distance,wind,late\n" + line * (megabytes * 1024**2 // len(line)))
        pool = pa.proxy_memory_pool(usual)
        pa.set_memory_pool(pool)
        try:
            assert check_file(path, TableRules("csv", event_time="at")).problems == ()
        finally:
            pa.set_memory_pool(usual)
        # A reader of the header alone may still be reading ahead; its memory belongs to this pool.
        deadline = time.monotonic() + 60
        while pool.bytes_allocated():
            assert time.monotonic() < deadline, "memory was not given back"
            time.sleep(0.01)
        most: int = pool.max_memory()
        return most

    # What pyarrow reads ahead, 32 blocks, and a few copies of one block; far from the file, however slow the machine.
    assert peak(2) < 2 * 1024**2 and peak(12) < 2 * 1024**2


class Closing(pa.OSFile):  # type: ignore[misc]
    """A file that knows whether it was closed, rather than let go of."""

    closed_by_hand = 0

    def close(self) -> None:
        Closing.closed_by_hand += 1
        super().close()


def test_a_file_is_not_closed_under_the_thread_that_reads_ahead(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """That thread would read on from whatever file is opened next under the same descriptor: with pyarrow 26, on busy
    cores, one in a thousand files opened after a reader that stopped half-way had lost bytes to it."""
    monkeypatch.setattr(pa, "OSFile", Closing)
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(20):
        assert only(look(b'a,b\n1,"' + b"x\n" * 3_000_000)).rule == "row_length"

    assert Closing.closed_by_hand == 0
    deadline = time.monotonic() + 60
    while len(os.listdir("/proc/self/fd")) > before:
        assert time.monotonic() < deadline, "a file was left open"
        time.sleep(0.01)
