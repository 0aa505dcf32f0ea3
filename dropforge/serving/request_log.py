"""Requests with their answers, for monitoring: a sample of them as Parquet files in the state folder or storage account.

    logs/<endpoint>/date=2026-01-31/hour=07/<replica>-<n>.parquet

One row per row that was asked about. A request costs the server a place in a queue; a thread of its own does the rest. What
does not fit is dropped and counted: nothing waits for the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dropforge.domain.errors import BadInput, DropforgeError
from dropforge.serving.batching import Answer, Job
from dropforge.serving.models import Model, ModelFailed
from dropforge.serving.priority import BEHIND, give_way
from dropforge.serving.results import Rows
from dropforge.serving.tensors import Array, Tensor
from dropforge.serving.traffic import Turns

log = logging.getLogger(__name__)

# Bytes of arrays, and requests, that may be on their way to a file.
WAITING_BYTES = 64 * 2**20
WAITING = 100_000
# What an entry takes besides, and a text besides its letters.
ENTRY_BYTES = 1000
TEXT_BYTES = 50
# A file is written when it has so many rows, its first one is so old, or half of what may wait does.
FILE_ROWS = 50_000
FILE_SECONDS = 60.0
LOOK_SECONDS = 0.25
# Files that the store did not take and that are kept to be offered again.
KEPT_FILES = 8
LAST_SECONDS = 5.0

Shares = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One request. `arrays` is None when the model failed."""

    request_id: str
    at_ns: int
    seconds: float
    rows: int
    feeds: Mapping[str, Array]
    names: tuple[str, ...]
    arrays: Sequence[Array] | None
    size: int


@dataclass
class _Group:
    """What goes to one file."""

    model: Model
    since: float
    entries: list[_Entry] = field(default_factory=list)
    rows: int = 0


class RequestLog:
    """`put` writes a file, whole; it may raise. `shares` are the shares (0 to 1) of the requests that are kept, by endpoint;
    that of `*` is for all others."""

    def __init__(
        self, put: Callable[[str, bytes], None], replica: str, shares: Shares, *, file_seconds: float = FILE_SECONDS
    ) -> None:
        self.rows = self.files = 0
        self.dropped: dict[str, int] = {}
        self._put = put
        self._replica = replica
        self._shares = shares
        self._file_seconds = file_seconds
        self._turns: dict[str, Turns] = {}
        self._queue: deque[tuple[str, Model, _Entry]] = deque()
        # Each written on one side only: what is on its way is the difference.
        self._taken = self._taken_bytes = 0
        self._over = self._over_bytes = 0
        self._groups: dict[tuple[str, int, str], _Group] = {}
        self._kept: deque[tuple[str, bytes, int]] = deque()
        self._retry_at = 0.0
        self._number = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="request log", daemon=True)
        self._thread.start()

    # -------------------------------------------------------------------------------------------- on the event loop
    def take(self, endpoint: str, job: Job, answer: Answer, request_id: str, began_ns: int, seconds: float) -> None:
        """Keep a request that a model answered or failed, if it is its turn."""
        turns = self._turns.get(endpoint)
        if turns is None:
            turns = self._turns[endpoint] = Turns(self._shares.get(endpoint, self._shares.get("*", 0.0)))
        if not turns.mine():
            return
        if isinstance(answer, DropforgeError) and not isinstance(answer, ModelFailed):
            # It was never asked.
            return
        ask = job.ask
        arrays = None if isinstance(answer, DropforgeError) else answer.arrays
        # Inputs may be views of the whole request, and the letters of their texts are among its bytes.
        size = max(ask.size, sum(map(_bytes, ask.feeds.values()))) + ENTRY_BYTES
        size += sum([_bytes(array) + _letters(array) for array in arrays or ()])
        if self._taken - self._over >= WAITING or self._taken_bytes - self._over_bytes + size > WAITING_BYTES:
            self._drop("full", ask.rows)
            return
        self._taken += 1
        self._taken_bytes += size
        if isinstance(answer, Rows) and not answer.batch.whole:
            # A view would keep the answers of the whole batch.
            arrays = [np.array(array) for array in answer.arrays]
        entry = _Entry(request_id, began_ns, seconds, ask.rows, ask.feeds, ask.wanted.names, arrays, size)
        self._queue.append((endpoint, job.model, entry))

    def close(self) -> None:
        """Write what is left, for a while."""
        self._ending.set()
        self._thread.join(LAST_SECONDS)

    def _drop(self, why: str, rows: int) -> None:
        self.dropped[why] = self.dropped.get(why, 0) + rows

    # -------------------------------------------------------------------------------------------- on its thread
    def _work(self) -> None:
        give_way(BEHIND)
        while True:
            ending = self._ending.wait(LOOK_SECONDS)
            try:
                self._gather()
                now = time.monotonic()
                much = self._taken_bytes - self._over_bytes > WAITING_BYTES / 2
                for key, group in [*self._groups.items()]:
                    if ending or much or group.rows >= FILE_ROWS or now - group.since >= self._file_seconds:
                        del self._groups[key]
                        self._write(key, group)
                self._offer(now if not ending else self._retry_at)
            except Exception:
                log.exception("the log of requests goes on without what it was about to write")
            if ending:
                return

    def _gather(self) -> None:
        while self._queue:
            endpoint, model, entry = self._queue.popleft()
            key = (endpoint, id(model), _hour(entry.at_ns))
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = _Group(model, time.monotonic())
            group.entries.append(entry)
            group.rows += entry.rows

    def _write(self, key: tuple[str, int, str], group: _Group) -> None:
        try:
            table = table_of(key[0], group.model, group.entries)
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
        except Exception as error:  # noqa: BLE001 - one odd answer must not end the log
            log.warning("%s: %d rows cannot be logged: %r", key[0], group.rows, error)
            self._drop("unfit", group.rows)
        else:
            # Also after a restart no name comes twice.
            self._number = max(self._number + 1, time.time_ns() // 1_000_000)
            name = f"logs/{key[0]}/{key[2]}/{self._replica}-{self._number}.parquet"
            self._kept.append((name, sink.getvalue().to_pybytes(), table.num_rows))
        finally:
            self._over += len(group.entries)
            self._over_bytes += sum(entry.size for entry in group.entries)
        while len(self._kept) > KEPT_FILES:
            self._drop("store", self._kept.popleft()[2])

    def _offer(self, now: float) -> None:
        while self._kept and now >= self._retry_at:
            name, data, rows = self._kept[0]
            try:
                self._put(name, data)
            except (OSError, DropforgeError) as error:
                log.warning("cannot write %s: %s; it is offered again", name, error)
                self._retry_at = time.monotonic() + self._file_seconds / 4
                return
            self._kept.popleft()
            self.rows += rows
            self.files += 1


def _bytes(array: Array) -> int:
    """What it takes, but for the letters of texts."""
    return array.nbytes + (TEXT_BYTES * array.size if array.dtype.kind == "O" else 0)


def _letters(array: Array) -> int:
    return sum(map(len, array.flat)) if array.dtype.kind == "O" else 0


def _hour(at_ns: int) -> str:
    at = datetime.fromtimestamp(at_ns / 1e9, UTC)
    return f"date={at:%Y-%m-%d}/hour={at:%H}"


# ------------------------------------------------------------------------------------------------ tables
def table_of(endpoint: str, model: Model, entries: Sequence[_Entry]) -> pa.Table:
    """One row for each row of the requests; of a model whose first dimension is not the rows, one for each request."""
    tensors = (*model.inputs, *model.outputs)
    by_row = all(each.dims and not isinstance(each.dims[0], int) for each in tensors)
    sizes = [entry.rows if by_row else 1 for entry in entries]
    deployment, total = model.deployment, sum(sizes)
    outputs = [_outputs(entry) for entry in entries]
    columns: dict[str, Any] = {
        "request_id": pa.array([entry.request_id for entry in entries]).take(_repeated(sizes)),
        "row": pa.array(np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])),
        "endpoint": pa.array([endpoint] * total),
        "model": pa.array([deployment.model] * total),
        "version": pa.array(np.full(total, deployment.version, np.int64)),
        "dataset_version": pa.array(np.full(total, deployment.dataset_version, np.int64)),
        "at": pa.array([entry.at_ns // 1000 for entry in entries], pa.timestamp("us", "UTC")).take(_repeated(sizes)),
        "seconds": pa.array([entry.seconds for entry in entries]).take(_repeated(sizes)),
        "failed": pa.array([entry.arrays is None for entry in entries]).take(_repeated(sizes)),
    }
    inputs = {
        each.name: _column(each, [entry.feeds.get(each.name) for entry in entries], sizes) for each in model.inputs
    }
    answers = {each.name: _column(each, [found.get(each.name) for found in outputs], sizes) for each in model.outputs}
    for name, found in (("inputs", inputs), ("outputs", answers)):
        if found:
            columns[name] = pa.StructArray.from_arrays([*found.values()], [*found])
    return pa.table(columns)


def _outputs(entry: _Entry) -> dict[str, Array]:
    return {} if entry.arrays is None else dict(zip(entry.names, entry.arrays, strict=True))


def _repeated(sizes: Sequence[int]) -> Any:
    return pa.array(np.repeat(np.arange(len(sizes)), sizes))


def _column(tensor: Tensor, arrays: Sequence[Array | None], sizes: Sequence[int]) -> Any:
    """What a tensor was in each row: one value where each row has one, else a list in row-major order; null where the
    request has none."""
    kind = _kind(tensor)
    single = len(tensor.dims) == 1 or (len(tensor.dims) == 2 and tensor.dims[1] == 1)
    pieces: list[Any] = []
    # What lies together is made in one go.
    together: list[Array] = []

    def close() -> None:
        if together:
            pieces.append(_piece(np.concatenate(together), kind, single))
            together.clear()

    for array, size in zip(arrays, sizes, strict=True):
        if array is None:
            close()
            pieces.append(pa.nulls(size, kind if single else pa.list_(kind)))
            continue
        rows = array.reshape(size, -1)
        if together and together[0].shape[1] != rows.shape[1]:
            close()
        together.append(rows)
    close()
    return pa.concat_arrays(pieces)


def _piece(rows: Array, kind: Any, single: bool) -> Any:
    flat = rows.reshape(-1)
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    values = pa.array(flat.tolist() if flat.dtype.kind == "O" else flat, kind)
    if single:
        if rows.shape[1] != 1:
            raise BadInput(f"wanted one value in each row, found {rows.shape[1]}")
        return values
    return pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]), values)


def _kind(tensor: Tensor) -> Any:
    dtype = tensor.kind.dtype
    if dtype.kind == "O":
        return pa.string()
    return pa.float32() if dtype == np.float16 else pa.from_numpy_dtype(dtype)
