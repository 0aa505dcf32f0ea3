"""Batch scoring: every row of a table version, or of files, answered by one model version, with the server's own engine.

    <output>/plan.json                  what is scored, with what; another plan in the same folder is refused
             parts/00003-0001.parquet   key columns, `_file`, `_row`, the model's outputs, `_model`, `_version`
             rejects/00003-0001.jsonl   rows that could not be answered, each with the reason; only where there are any
             done/00003-0001.json       written last: that part is whole
             manifest.json              written at the very end: all parts, counted and with their sha256

Whatever is killed is begun again by scoring into the same folder: parts that are whole stay. Equal inputs make equal bytes,
in whatever order and by however many threads. Memory holds some blocks of rows for each of them, never a file.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dropforge.adapters.local.atomic import make_folders, remove_stale, whole_file
from dropforge.adapters.tabular.kinds import ARROW, EMPTY, TEXT, convert
from dropforge.adapters.tabular.problems import Problems, Unreadable
from dropforge.adapters.tabular.sources import Block
from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import BadInput, Refused, Unavailable
from dropforge.serving.mixing import prove_batching
from dropforge.serving.models import Model, ModelFailed, load
from dropforge.serving.provider import CPU, Provider
from dropforge.serving.score_columns import Feeder, Mask, output_column, output_type
from dropforge.serving.score_inputs import Inputs, Opened, Piece, pieces
from dropforge.serving.score_output import (
    FOLDERS,
    Done,
    Plan,
    Scored,
    finish,
    is_done,
    part_done,
    part_name,
    pretty,
    publish,
    remove_others,
    so_far,
)
from dropforge.serving.tensors import Array, Feeds

FILE, ROW, MODEL, VERSION = "_file", "_row", "_model", "_version"
_OURS = (FILE, ROW, MODEL, VERSION)
# Rows that are written at once.
_GROUP_ROWS = 65_536
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Scoring:
    """What to score, with what. `columns` feed a model's one matrix where it does not name them itself; `keys` are columns of
    the input that are written beside the answers."""

    model: Deployment
    inputs: Inputs
    output: Path
    keys: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    # Rows in one run of the model, and rows read for one part of the output.
    batch_rows: int = 1024
    part_rows: int = 250_000
    provider: Provider = CPU


# ------------------------------------------------------------------------------------------------ all of it
def score(scoring: Scoring, threads: int = 1, progress: Callable[[Scored], None] | None = None) -> Scored:
    """Score what is not scored yet. Raises `BadInput` for what can never be scored, `Refused` for a folder that holds
    something else, `Unavailable` where reading fails for now, and what `load` raises."""
    output = scoring.output
    for name in FOLDERS:
        make_folders(output / name)
        remove_stale(output / name)
    engine = _Engine(scoring)
    cut = pieces(scoring.inputs, scoring.part_rows)
    plan = _planned(scoring, engine, cut)
    engine.run_together(plan.together)
    remove_others(output, cut)
    missing = [piece for piece in cut if not is_done(output, piece)]
    looked_at = 0.0
    for _ in _work(scoring, engine, missing, threads):
        if progress is not None and time.monotonic() - looked_at >= _LOOK_SECONDS:
            progress(so_far(output, cut))
            looked_at = time.monotonic()
    return finish(scoring.output, plan, cut)


def _work(scoring: Scoring, engine: _Engine, missing: Sequence[Piece], threads: int) -> Iterator[None]:
    """Score the pieces; now and then the caller may look how far they are. In threads: reading, running and writing all let
    go of the interpreter, and processes, with a model each, gained nothing over them."""
    stop = Event()
    with ThreadPoolExecutor(threads, "score") as pool:
        waiting = {pool.submit(_score, scoring, engine, piece, stop) for piece in missing}
        try:
            while waiting:
                done, waiting = wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED)
                for each in done:
                    each.result()
                yield
        finally:
            stop.set()
            for future in waiting:
                future.cancel()


def _planned(scoring: Scoring, engine: _Engine, cut: Sequence[Piece]) -> Plan:
    """The plan in the folder, which must be this one; written now where there is none."""
    path = scoring.output / "plan.json"
    model = scoring.model
    wanted = Plan(
        model.model,
        model.version,
        model.sha256.lower(),
        [(file.name, file.mark) for file in scoring.inputs.files],
        scoring.inputs.version,
        list(scoring.keys),
        list(scoring.columns) if scoring.columns is not None else None,
        scoring.batch_rows,
        scoring.part_rows,
        False,
    )
    if not path.exists():
        wanted = msgspec.structs.replace(wanted, together=engine.find_out(scoring, cut))
        publish(path, wanted)
    # What lies there counts: another scoring may have been faster.
    found = msgspec.json.decode(path.read_bytes(), type=Plan)
    wanted = msgspec.structs.replace(wanted, together=found.together)
    differing = [name for name in wanted.__struct_fields__ if getattr(wanted, name) != getattr(found, name)]
    if differing:
        raise Refused(
            f"{scoring.output} holds a scoring with other {', '.join(differing)}; name another folder for this one"
        )
    return found


# ------------------------------------------------------------------------------------------------ the model
class _Engine:
    """The model version, loaded as the server loads it."""

    def __init__(self, scoring: Scoring) -> None:
        self.model: Model = load(scoring.model, provider=scoring.provider)
        told = self.model.columns
        if told is not None and scoring.columns is not None and told != scoring.columns:
            raise BadInput(f"the model says that it is fed with {list(told)}; leave --columns out")
        self.feeder = Feeder(self.model.inputs, told or scoring.columns)
        self.names = [tensor.name for tensor in self.model.outputs]
        self.types = [output_type(tensor) for tensor in self.model.outputs]
        self._batch_rows = scoring.batch_rows
        twice = [name for name in self.names if name in (*scoring.keys, *_OURS)]
        twice += [name for name in scoring.keys if name in _OURS or scoring.keys.count(name) > 1]
        if twice:
            raise BadInput(f"two columns of the result would be called {twice[0]!r}; leave it out of the keys")

    def find_out(self, scoring: Scoring, cut: Sequence[Piece]) -> bool:
        """Whether rows may be run together, tried on the first row that there is."""
        sample = next(iter(_first_rows(scoring, self.feeder, cut)), None)
        prove_batching(self.model, sample)
        return self.model.batches

    def run_together(self, together: bool) -> None:
        if together:
            self.model.let_batch()
        else:
            self._batch_rows = 1

    def answers(self, feeds: Feeds, rows: int) -> tuple[list[Array], dict[int, str]]:
        """The outputs of the rows that the model answers, and by their place why it does not answer the others."""
        parts: list[list[Array]] = []
        failed: dict[int, str] = {}
        for start in range(0, rows, self._batch_rows):
            self._run(feeds, start, min(start + self._batch_rows, rows), parts, failed)
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)], failed

    def _run(self, feeds: Feeds, start: int, end: int, parts: list[list[Array]], failed: dict[int, str]) -> None:
        """Halve what fails until what fails stands alone."""
        try:
            found = self.model.run(self.names, {name: array[start:end] for name, array in feeds.items()})
        except ModelFailed as error:
            if end - start == 1:
                failed[start] = error.message
                return
            middle = (start + end) // 2
            self._run(feeds, start, middle, parts, failed)
            self._run(feeds, middle, end, parts, failed)
            return
        for name, array in zip(self.names, found, strict=True):
            if array.ndim == 0 or array.shape[0] != end - start:
                raise BadInput(
                    f"{self.model}: output {name!r} has shape {array.shape} for {end - start} rows; wanted one line a row"
                )
        parts.append(found)


def _first_rows(scoring: Scoring, feeder: Feeder, cut: Sequence[Piece]) -> Iterator[Feeds]:
    for piece in cut:
        try:
            opened = Opened(piece, Problems())
            _check(scoring, feeder, opened, Problems())
            for block in opened.blocks(feeder.names, Problems()):
                fed = feeder.feed(_with_absent(block, feeder.names), block.length)
                if fed.fits.any():
                    yield {name: array[:1] for name, array in fed.feeds.items()}
        except Unreadable:
            continue


# ------------------------------------------------------------------------------------------------ a piece
class _Rejects(Problems):
    """What a source says of its rows, each of them remembered: no row may go unmentioned."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[int, str] = {}

    def add(
        self,
        rule: str,
        column: str | None,
        message: str,
        *,
        count: int = 1,
        rows: Any = (),
        values: Any = (),
    ) -> None:
        for row in rows:
            self.reasons.setdefault(row, message)

    def taken(self, until: int | None) -> dict[int, str]:
        """The reasons up to that row (None: all that are left), which are taken away."""
        rows = [row for row in self.reasons if until is None or row <= until]
        return {row: self.reasons.pop(row) for row in rows}


def _score(scoring: Scoring, engine: _Engine, piece: Piece, stop: Event) -> None:
    """Write the parts of the piece that are not there; of what is half done when it is to stop, nothing."""
    rejects = _Rejects()
    part: _Part | None = None
    number, is_full, unreadable = 0, False, None
    try:
        opened = Opened(piece, rejects)
        _check(scoring, engine.feeder, opened, rejects)
        schema = _schema(scoring, engine, opened)
        names = [*dict.fromkeys([*engine.feeder.names, *scoring.keys])]
        for block, ends in _cut(opened.blocks(names, rejects), scoring.part_rows):
            if stop.is_set():
                return
            if is_full and part is not None:
                part.close(rejects.taken(part.until))
                part, number = None, number + 1
            if part is None:
                part = _Part(scoring, engine, piece, number, schema)
            part.add(_with_absent(block, names), block.length, _numbers(block), rejects)
            is_full = ends
    except Unreadable as error:
        unreadable = str(error)
        if part is None:
            part = _Part(scoring, engine, piece, number, None)
    if part is None:
        part = _Part(scoring, engine, piece, number, schema)
    part.close(rejects.taken(None), last=True, unreadable=unreadable)


def _check(scoring: Scoring, feeder: Feeder, opened: Opened, problems: Problems) -> None:
    """Raises `Unreadable` for a file that lacks a column which no table fills up."""
    table = scoring.inputs.columns or {}
    missing = [name for name in (*feeder.names, *scoring.keys) if name not in opened.names and name not in table]
    if missing:
        raise problems.stop("missing", None, f"columns {missing} are missing; the file has {list(opened.names)[:50]}")


def _schema(scoring: Scoring, engine: _Engine, opened: Opened) -> pa.Schema:
    fields = [pa.field(name, _key_type(scoring, opened, name)) for name in scoring.keys]
    fields += [pa.field(FILE, pa.string()), pa.field(ROW, pa.int64())]
    fields += [pa.field(name, kind) for name, kind in zip(engine.names, engine.types, strict=True)]
    return pa.schema([*fields, pa.field(MODEL, pa.string()), pa.field(VERSION, pa.int64())])


def _key_type(scoring: Scoring, opened: Opened, name: str) -> pa.DataType:
    """The type of a key column: the file's own; where it tells none, that of its values."""
    if name in opened.names:
        kind = opened.kinds[name]
        return opened.arrow_type(name) or (pa.string() if kind in (None, TEXT, EMPTY) else ARROW[str(kind)])
    try:
        return pa.type_for_alias((scoring.inputs.columns or {})[name])
    except ValueError:
        return pa.string()


def _with_absent(block: Block, names: Sequence[str]) -> dict[str, pa.Array]:
    """The block's columns; one that a table has and this file of it does not is empty."""
    return {name: block.values[name] if name in block.values else pa.nulls(block.length) for name in names}


def _cut(blocks: Iterator[Block], rows: int) -> Iterator[tuple[Block, bool]]:
    """The blocks, cut where a part ends; and whether it does."""
    room = rows
    for block in blocks:
        start = 0
        while start < block.length:
            end = min(block.length, start + room)
            values = {name: array.slice(start, end - start) for name, array in block.values.items()}
            room -= end - start
            yield Block(values, end - start, _shifted(block, start)), room == 0
            room, start = room or rows, end


def _shifted(block: Block, start: int) -> Callable[[int], int]:
    return block.row if not start else lambda index: block.row(start + index)


def _numbers(block: Block) -> np.ndarray[Any, np.dtype[np.int64]]:
    first, last = block.row(0), block.row(block.length - 1)
    if last - first == block.length - 1:
        return np.arange(first, last + 1, dtype=np.int64)
    return np.fromiter((block.row(index) for index in range(block.length)), np.int64, block.length)


class _Part:
    """One part on its way into its file. One that is there already reads on, and writes nothing."""

    def __init__(self, scoring: Scoring, engine: _Engine, piece: Piece, number: int, schema: pa.Schema | None) -> None:
        self._scoring = scoring
        self._engine = engine
        self._piece = piece
        self._number = number
        self._schema = schema
        self._name = part_name(piece.number, number)
        self._there = part_done(scoring.output, piece, number)
        self._reasons: dict[int, str] = {}
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        # The last row that was read.
        self.until = 0
        self._sink: _Hashed | None = None
        self._file: Any = None
        self._writer: Any = None

    def add(self, values: dict[str, pa.Array], length: int, numbers: Any, rejects: _Rejects) -> None:
        """Answer these rows."""
        self.until = int(numbers[-1])
        if self._there is not None:
            return
        fed = self._engine.feeder.feed(values, length)
        fits: Mask = fed.fits
        if rejects.reasons:
            told = np.isin(numbers, np.fromiter(rejects.reasons, np.int64, len(rejects.reasons)))
            keep = ~told[fits]
            if not keep.all():
                fed.feeds = {name: array[keep] for name, array in fed.feeds.items()}
            fits = fits & ~told
        self._reasons |= {int(numbers[place]): reason for place, reason in fed.reasons.items()}
        rows = int(fits.sum())
        if not rows:
            return
        answers, failed = self._engine.answers(fed.feeds, rows)
        places = np.flatnonzero(fits)
        if failed:
            self._reasons |= {int(numbers[places[place]]): reason for place, reason in failed.items()}
            places = np.delete(places, list(failed))
        if len(places):
            self._hold(values, places, numbers[places], answers)

    def _hold(self, values: dict[str, pa.Array], places: Any, numbers: Any, answers: list[Array]) -> None:
        assert self._schema is not None
        chosen = pa.array(places)
        rows = len(places)
        model = self._scoring.model
        columns = [self._key(values[name], name).take(chosen) for name in self._scoring.keys]
        columns += [pa.repeat(pa.scalar(self._piece.file.name), rows), pa.array(numbers)]
        columns += [
            output_column(tensor, kind, array)
            for tensor, kind, array in zip(self._engine.model.outputs, self._engine.types, answers, strict=True)
        ]
        columns += [pa.repeat(pa.scalar(model.model), rows), pa.repeat(pa.scalar(model.version, pa.int64()), rows)]
        self._held.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._rows += rows
        if sum(batch.num_rows for batch in self._held) >= _GROUP_ROWS:
            self._flush()

    def _key(self, values: pa.Array, name: str) -> pa.Array:
        assert self._schema is not None
        wanted = self._schema.field(name).type
        if values.type == wanted:
            return values
        kind = next((kind for kind, arrow in ARROW.items() if arrow == wanted), None)
        return convert(values, kind, limit=None).values if kind is not None else values.cast(wanted)

    def _flush(self) -> None:
        if self._writer is None:
            self._file = whole_file(self._scoring.output / "parts" / f"{self._name}.parquet")
            self._sink = _Hashed(self._file.__enter__())
            # Numbers that differ gain nothing by a dictionary, and it takes most of the time to find that out.
            schema = self._schema
            assert schema is not None
            texts = [field.name for field in schema if pa.types.is_string(field.type) or field.name == VERSION]
            self._writer = pq.ParquetWriter(
                self._sink, self._schema, compression="zstd", compression_level=1, use_dictionary=texts
            )
        if self._held:
            self._writer.write_table(pa.Table.from_batches(self._held, self._schema), row_group_size=2 * _GROUP_ROWS)
            self._held = []

    def close(self, told: dict[int, str], *, last: bool = False, unreadable: str | None = None) -> None:
        """The part whole in its files, and its last word after them. Raises `Unavailable` where the piece ended elsewhere
        before: what is there, or what is read now, is wrong."""
        more = last and part_done(self._scoring.output, self._piece, self._number + 1) is not None
        if more or (self._there is not None and self._there.last != last):
            raise Unavailable(
                f"{self._piece.file.name} was read to another row before: now part {self._number} of its piece is "
                f"{'' if last else 'not '}the last ({unreadable or 'no error'}); score into the same folder again, or, if that "
                "does not help, into another",
                file=self._piece.file.name,
            )
        if self._there is not None:
            return
        output, reasons = self._scoring.output, {**self._reasons, **told}
        sha256, size = None, 0
        if self._schema is not None:
            self._flush()
            assert self._sink is not None
            self._writer.close()
            self._sink.flush()
            sha256, size = self._sink.digest.hexdigest(), self._sink.tell()
            self._file.__exit__(None, None, None)
        if reasons or unreadable:
            lines = [
                msgspec.json.encode({"file": self._piece.file.name, "row": row, "reason": reasons[row]}) + b"\n"
                for row in sorted(reasons)
            ]
            if unreadable:
                lines.append(
                    msgspec.json.encode({"file": self._piece.file.name, "row": None, "reason": unreadable}) + b"\n"
                )
            with whole_file(output / "rejects" / f"{self._name}.jsonl") as writer:
                writer.writelines(lines)
        done = Done(
            self._piece.number,
            self._number,
            self._rows,
            len(reasons),
            sha256,
            size,
            last,
            unreadable,
            unreadable or (reasons[min(reasons)] if reasons else None),
            self._piece.file.name,
            self._piece.first_row,
            self._piece.groups,
        )
        with whole_file(output / "done" / f"{self._name}.json") as writer:
            writer.write(pretty(done))


class _Hashed(io.RawIOBase):
    """Writes on, and takes the sha256 of what passes."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._size = 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self._sink.write(view)
        self._size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self._size
