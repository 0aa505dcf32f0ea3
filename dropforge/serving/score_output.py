"""What lies in the folder of a batch scoring: the plan, the parts that are whole, and how far all of it is."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dropforge.adapters.local.atomic import sync_folder, whole_file
from dropforge.domain.errors import Conflict, Refused
from dropforge.serving.score_inputs import Piece

FOLDERS = ("parts", "rejects", "done")


@dataclass(frozen=True)
class Scored:
    """How far it is, or what came of it. `unreadable`: files that could not be read to their end, with the reason."""

    parts: int = 0
    rows: int = 0
    rejected: int = 0
    pieces: int = 0
    of_pieces: int = 0
    unreadable: tuple[tuple[str, str], ...] = ()
    first_reason: str | None = None


class Plan(msgspec.Struct, frozen=True):
    model: str
    version: int
    sha256: str
    inputs: list[tuple[str, str]]
    table_version: int | None
    keys: list[str]
    columns: list[str] | None
    batch_rows: int
    part_rows: int
    # Whether rows are run together: only those of a model whose rows do not change each other's answers.
    together: bool


class Done(msgspec.Struct, frozen=True):
    """One part."""

    piece: int
    part: int
    rows: int
    rejected: int
    sha256: str | None
    bytes: int
    last: bool
    unreadable: str | None = None
    first_reason: str | None = None
    # What the piece was: its number is but a place, counted anew each time. None: written before this was told.
    file: str | None = None
    first_row: int = 0
    groups: tuple[int, ...] | None = None

    def is_of(self, piece: Piece) -> bool:
        return (self.file, self.first_row, self.groups) == (piece.file.name, piece.first_row, piece.groups)


def pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def publish(path: Path, plan: Plan) -> None:
    """Put the plan there, unless there is one."""
    # Where `remove_stale` finds it.
    own = path.parent / "done" / f".{uuid.uuid4().hex}.part"
    try:
        with whole_file(own) as writer:
            writer.write(pretty(plan))
        try:
            # Unlike a rename, a link never replaces.
            os.link(own, path)
        except FileExistsError:
            pass
        except OSError:
            # A share that has no links: what replaces nothing there may, of a killed writer, stay half.
            with suppress(FileExistsError), path.open("xb") as writer:
                writer.write(pretty(plan))
    finally:
        own.unlink(missing_ok=True)
    sync_folder(path.parent)


def part_name(piece: int, part: int) -> str:
    return f"{piece:05d}-{part:04d}"


def remove_others(output: Path, cut: Sequence[Piece]) -> None:
    """Take away the parts of pieces that are no more, as where a file of a table cannot be cut any longer: whoever reads the
    folder would read them beside the others. Raises `Refused` where parts do not say what they are of."""
    for path in sorted((output / "done").glob("*.json")):
        done = msgspec.json.decode(path.read_bytes(), type=Done)
        if done.file is None:
            raise Refused(
                f"{output} holds parts of an earlier version of dropforge, which do not say what file they are of; name "
                "another folder"
            )
        if done.piece < len(cut) and done.is_of(cut[done.piece]):
            continue
        name = part_name(done.piece, done.part)
        # The last word goes last, or what it speaks of might stay for ever.
        for each in ("manifest.json", f"parts/{name}.parquet", f"rejects/{name}.jsonl", f"done/{name}.json"):
            (output / each).unlink(missing_ok=True)


def part_done(output: Path, piece: Piece, part: int) -> Done | None:
    """The part's last word, if it is of that piece and what it speaks of is there."""
    name = part_name(piece.number, part)
    try:
        done = msgspec.json.decode((output / "done" / f"{name}.json").read_bytes(), type=Done)
        if done.sha256 is not None and (output / "parts" / f"{name}.parquet").stat().st_size != done.bytes:
            return None
    except FileNotFoundError:
        return None
    return done if done.is_of(piece) else None


def parts_of(output: Path, piece: Piece) -> Iterator[Done]:
    part = 0
    while (done := part_done(output, piece, part)) is not None:
        yield done
        part += 1
        if done.last:
            return


def is_done(output: Path, piece: Piece) -> bool:
    return any(done.last for done in parts_of(output, piece))


def so_far(output: Path, cut: Sequence[Piece]) -> Scored:
    found = [list(parts_of(output, piece)) for piece in cut]
    flat = [done for parts in found for done in parts]
    unreadable = [
        (piece.file.name, done.unreadable)
        for piece, parts in zip(cut, found, strict=True)
        for done in parts
        if done.unreadable is not None
    ]
    return Scored(
        parts=len(flat),
        rows=sum(done.rows for done in flat),
        rejected=sum(done.rejected for done in flat),
        pieces=sum(parts[-1].last for parts in found if parts),
        of_pieces=len(cut),
        unreadable=tuple(unreadable),
        first_reason=next((done.first_reason for done in flat if done.first_reason), None),
    )


def finish(output: Path, plan: Plan, cut: Sequence[Piece]) -> Scored:
    """Write the manifest. Raises `Conflict` unless every piece is whole."""
    scored = so_far(output, cut)
    if scored.pieces != scored.of_pieces:
        raise Conflict(
            f"of {scored.of_pieces} pieces {scored.pieces} are whole in {output}: what was there is gone; score into "
            "it again to go on"
        )
    parts = [
        {
            "file": f"parts/{part_name(done.piece, done.part)}.parquet" if done.sha256 is not None else None,
            "rejects": f"rejects/{part_name(done.piece, done.part)}.jsonl"
            if done.rejected or done.unreadable
            else None,
            "input": piece.file.name,
            "rows": done.rows,
            "rejected": done.rejected,
            "sha256": done.sha256,
            "unreadable": done.unreadable,
        }
        for piece in cut
        for done in parts_of(output, piece)
    ]
    told = {**msgspec.to_builtins(plan), "rows": scored.rows, "rejected": scored.rejected, "parts": parts}
    with whole_file(output / "manifest.json") as writer:
        writer.write(pretty(told))
    return scored
