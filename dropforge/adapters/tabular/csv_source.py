"""CSV files: UTF-8, comma, one header line, quotes as in RFC 4180."""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from dropforge.adapters.tabular.kinds import TEXT
from dropforge.adapters.tabular.problems import MAX_SAMPLES, Problems, Unreadable
from dropforge.adapters.tabular.sources import Block, check_names, look_at_start

# pyarrow reads up to 32 blocks ahead of the one it hands out, so this is a thirty-third of the memory a file takes. A row
# of more than a block is refused.
BLOCK_BYTES = 1024**2
# A file with more broken rows than this is not worth counting further.
MAX_RAGGED = 10_000
_OTHER_DELIMITERS = ";\t|"
_BROKEN_ROW = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")

Handler: TypeAlias = Callable[[Any], str]


class CsvSource:
    """Every value is text here; what it becomes is decided by the rules, the table or a look at the whole column."""

    def __init__(self, path: Path, problems: Problems) -> None:
        look_at_start(path, "CSV", problems)
        self._path = path
        self._is_utf8, self._has_nul, self._open_quote = _scan_bytes(path)
        names = self._header(problems)
        check_names(names, problems)
        self.columns: dict[str, str | None] = dict.fromkeys(names, TEXT)
        self.strange: dict[str, str] = {}

    def _header(self, problems: Problems) -> list[str]:
        with _errors(problems), _reader(self._path, None, self._handler(lambda row: "skip")) as reader:
            names: list[str] = reader.schema.names
        for delimiter in _OTHER_DELIMITERS:
            if len(names) == 1 and delimiter in names[0]:
                found = f"{names[0].count(delimiter) + 1} separated by {delimiter!r}"
                message = f"wanted columns separated by ',', found {found}; save the file with commas"
                raise problems.stop("delimiter", None, message)
        return names

    def _handler(self, on_ragged: Handler) -> Handler | None:
        # pyarrow cannot hand a row that is not UTF-8 to a handler; without one it stops at the first broken row.
        return on_ragged if self._is_utf8 else None

    def blocks(self, names: Collection[str], problems: Problems) -> Iterator[Block]:
        ragged = _Ragged(problems)
        wanted = [name for name in self.columns if name in names]
        # The last column shows whether a quote was left open; without any column there would be no rows to count.
        last = list(self.columns)[-1]
        read = wanted if last in wanted else [*wanted, last]
        start, tail = 0, None
        with _errors(problems), _reader(self._path, read, self._handler(ragged)) as reader:
            for batch in reader:
                if batch.num_rows == 0:
                    continue
                block = Block({}, batch.num_rows, ragged.numbers(start))
                for index, name in enumerate(wanted):
                    block.values[name] = self._text(name, batch.column(index), block, problems)
                yield block
                start += batch.num_rows
                tail = batch.column(read.index(last))[-1].as_py()
            if self._open_quote and b"\n" in (tail or b""):
                message = "a quote is opened and never closed: the last value runs to the end of the file"
                raise problems.stop("quotes", last, message, rows=[ragged.numbers(start)(-1)])

    def _text(self, name: str, values: pa.Array, block: Block, problems: Problems) -> pa.Array:
        bad: list[int]
        try:
            text = values.cast(pa.string())
        except pa.ArrowInvalid:
            items = [_decoded(value) for value in values.to_pylist()]
            bad = [index for index, item in enumerate(items) if isinstance(item, bytes)]
            message = f"wanted UTF-8, found other bytes in column {name!r} (Latin-1?); save the file as UTF-8"
            _report(problems, "encoding", name, message, bad, block, values)
            text = pa.array([None if isinstance(item, bytes) else item for item in items], pa.string())
        if self._has_nul:
            bad = pc.indices_nonzero(pc.fill_null(pc.match_substring(text, "\x00"), False)).to_pylist()
            _report(problems, "nul", name, f"wanted text, found NUL bytes in column {name!r}", bad, block, text)
        return text


class _Ragged:
    """Counts rows with too few or too many cells, which are left out, so that the rows after them keep their number."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._rows: list[int] = []

    def __call__(self, row: Any) -> str:
        number = row.number - 1
        self._rows.append(number)
        message = f"wanted {row.expected_columns} cells in every row, as in the header, found {row.actual_columns}"
        self._problems.add("ragged", None, message, rows=[number], values=[row.text])
        return "skip" if len(self._rows) < MAX_RAGGED else "error"

    def numbers(self, start: int) -> Callable[[int], int]:
        """Data row numbers of a block whose first row is good row number `start`, from 0."""

        def row(index: int) -> int:
            good = start + index + 1
            # Broken row number b, the k-th (from 0), comes before good row number g when b - k <= g.
            return good + bisect_right(range(len(self._rows)), good, key=lambda k: self._rows[k] - k)

        return row


@contextmanager
def _errors(problems: Problems) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise _unreadable(str(error), problems) from error


def _unreadable(text: str, problems: Problems) -> Unreadable:
    if broken := _BROKEN_ROW.search(text):
        row, wanted, found = (int(number) for number in broken.groups())
        message = f"wanted {wanted} cells in every row, as in the header, found {found}; reading stopped there"
        return problems.stop("ragged", None, message, rows=[row - 1])
    if "straddling" in text:
        message = f"a row is longer than {BLOCK_BYTES // 1024**2} MB; is a quote opened and never closed?"
        return problems.stop("row_length", None, message)
    if "utf-8" in text.lower() or "utf8" in text.lower():
        return problems.stop("encoding", None, "wanted UTF-8, found other bytes in the header; save the file as UTF-8")
    if "Empty CSV" in text:
        return problems.stop("format", None, "wanted a CSV file with a header line, found no complete line")
    return problems.stop("format", None, f"wanted a CSV file, found something else: {text}")


@contextmanager
def _reader(path: Path, wanted: list[str] | None, on_ragged: Handler | None) -> Iterator[Any]:
    """Values as bytes, so that one that is not UTF-8 is found with its row; without `wanted` only the header counts."""
    reader = pa_csv.open_csv(
        # Not closed here: a thread of the reader may still be reading ahead, and would go on reading from whatever file
        # is opened next under the same descriptor. The last of the two to let go of it closes it.
        pa.OSFile(str(path)),
        # One thread, so that broken rows are numbered.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=on_ragged),
        convert_options=pa_csv.ConvertOptions(
            column_types=None if wanted is None else dict.fromkeys(wanted, pa.binary()),
            include_columns=wanted,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            check_utf8=False,
        ),
    )
    try:
        yield reader
    finally:
        reader.close()


def _report(
    problems: Problems, rule: str, name: str, message: str, bad: list[int], block: Block, values: pa.Array
) -> None:
    if bad:
        # All rows: how many of them are shown is for `problems` to say.
        rows = [block.row(index) for index in bad]
        shown = values.take(pa.array(bad[:MAX_SAMPLES])).to_pylist()
        problems.add(rule, name, message, count=len(bad), rows=rows, values=shown)


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _scan_bytes(path: Path) -> tuple[bool, bool, bool]:
    """Whether the file is UTF-8, whether it holds NUL bytes, and whether it holds an odd number of quotes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8, has_nul, quotes = True, False, 0
    with path.open("rb") as file:
        while True:
            chunk = file.read(BLOCK_BYTES)
            has_nul = has_nul or b"\x00" in chunk
            quotes += chunk.count(b'"')
            try:
                if is_utf8:
                    decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                is_utf8 = False
            if not chunk:
                return is_utf8, has_nul, quotes % 2 == 1
