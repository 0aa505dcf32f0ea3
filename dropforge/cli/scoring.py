"""`dropforge score`: a table version or files, answered by a model version, on this machine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dropforge.cli.app import AsJson, State, app, failed
from dropforge.cli.here import check_can_be_folder
from dropforge.cli.shown import count, err, facts, show
from dropforge.client import find_state
from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.endpoints import Deployment
from dropforge.domain.errors import BadInput, NotFound
from dropforge.domain.names import NAME
from dropforge.settings import settings

if TYPE_CHECKING:
    from dropforge.serving.score_output import Scored


@app.command()
def score(
    input_: Annotated[
        str,
        typer.Option(
            "--input", "-i", help="A pipeline's dataset (NAME or NAME@VERSION), a table's folder, files, a pattern."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results; scored again, it goes on.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="NAME (its champion) or NAME@VERSION.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="An ONNX file, without any platform.")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Column to write beside the answers; may be repeated.")] = None,
    columns: Annotated[str | None, typer.Option(help="a,b,c: those of a matrix input that does not name them.")] = None,
    threads: Annotated[int, typer.Option(min=0, help="How many. 0: one for each core.")] = 0,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows in one run of the model.")] = 1024,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows of the input for one file of the output.")] = 250_000,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Answer every row of a table version, or of files, with a model version. What cannot be answered is told, row by row."""
    if (model is None) == (onnx is None):
        raise BadInput("name a model of the platform with --model, or an ONNX file with --onnx")
    # onnxruntime and pyarrow, which no other command needs.
    from dropforge.serving.provider import wanted
    from dropforge.serving.score import Scoring, score
    from dropforge.serving.score_inputs import find
    from dropforge.serving.workers import cores

    check_can_be_folder(output.absolute(), "--output")
    where, version, dataset = _meant(input_)
    provider = wanted(os.environ)

    def run(deployment: Deployment, found: DatasetVersion | None) -> Scored:
        inputs = find(found.table_uri, found.table_version) if found is not None else find(where, version)
        scoring = Scoring(
            deployment,
            inputs,
            output.absolute(),
            tuple(key or ()),
            tuple(columns.split(",")) if columns else None,
            batch_rows,
            part_rows,
            provider,
        )
        with err.status("scoring") as spinner:
            return score(scoring, threads or cores(), lambda so_far: spinner.update(_told(so_far)))

    scored = run(_of_file(onnx), None) if onnx is not None else _asked(state, str(model), where, version, dataset, run)
    show(_value(scored, output), as_json, lambda _: _text(scored, output))
    if scored.unreadable:
        failed()


def _asked(state: Path | None, model: str, where: str, version: int | None, is_dataset: bool, run: Any) -> Scored:
    """With a model of the platform that this machine's state folder, or the settings, know."""
    from dropforge.steps.score import Asked, score
    from dropforge.wiring import build

    chosen = settings()
    if chosen.adapters == "local":
        folder = (state or find_state()).absolute()
        if not folder.is_dir():
            raise NotFound(f"no state folder {folder}; name it with --state, or an ONNX file with --onnx")
        chosen = replace(chosen, state=folder)
    name, number = _versioned(model)
    asked = Asked(name, number, where if is_dataset else None, version if is_dataset else None)
    scored: Scored = score(build(chosen), asked, run)
    return scored


def _meant(text: str) -> tuple[str, int | None, bool]:
    """What the input is: a place or a name, its version, and whether it is a dataset's name."""
    name, version = _versioned(text)
    for place, number in ((text, None), (name, version)):
        if Path(place).exists() and not _is_pipeline(place):
            return place, number, False
    is_place = "/" in text or Path(text).suffix != "" or any(sign in text for sign in "*?[")
    return (text, None, False) if is_place else (name, version, True)


def _is_pipeline(place: str) -> bool:
    """Whether a bare name is that of a pipeline's folder, which `init` makes where people work: its dataset is meant."""
    return NAME.fullmatch(place) is not None and (Path(place) / "pipeline.yaml").is_file()


def _versioned(text: str) -> tuple[str, int | None]:
    name, at, number = text.rpartition("@")
    return (name, int(number)) if at and number.isascii() and number.isdigit() else (text, None)


def _of_file(path: Path) -> Deployment:
    if not path.is_file():
        raise NotFound(f"no model file at {path}")
    with path.open("rb") as reader:
        sha256 = hashlib.file_digest(reader, "sha256").hexdigest()
    name = (
        "".join(sign if sign.isalnum() and sign.isascii() else "-" for sign in path.stem.lower()).strip("-") or "model"
    )
    return Deployment(name, 0, path.absolute().as_uri(), sha256, 0)


# ------------------------------------------------------------------------------------------------ shown
def _told(scored: Scored) -> str:
    rejected = f", {scored.rejected:,} rejected" if scored.rejected else ""
    return f"scoring: {count(scored.rows, 'row')}{rejected}; {scored.pieces:,} of {count(scored.of_pieces, 'piece')}"


def _value(scored: Scored, output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "rows": scored.rows,
        "rejected": scored.rejected,
        "parts": scored.parts,
        "unreadable": [{"file": file, "reason": reason} for file, reason in scored.unreadable],
        "first_reason": scored.first_reason,
    }


def _text(scored: Scored, output: Path) -> Any:
    lines: list[tuple[str, object]] = [("scored", count(scored.rows, "row")), ("written", output / "parts")]
    if scored.rejected:
        lines += [("rejected", count(scored.rejected, "row")), ("reasons", output / "rejects")]
        lines += [("the first", scored.first_reason)]
    lines += [("not read", f"{file}: {reason}") for file, reason in scored.unreadable[:10]]
    return facts(*lines)
