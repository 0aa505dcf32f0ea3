"""Commands of this machine: up, init, apply, drop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from dropforge.adapters.local.finished import is_ignored
from dropforge.cli.app import AsJson, Name, State, app, client
from dropforge.cli.shown import err, show
from dropforge.client import Answered, drop_file, find_state
from dropforge.domain.errors import BadInput, NotFound, Unavailable
from dropforge.domain.names import checked_name
from dropforge.settings import settings
from dropforge.wiring import drops

# From so many files, or bytes, on, dropping takes long enough to say how far it is.
_MANY_FILES, _MANY_BYTES = 10, 100 * 1024**2


@app.command()
def up(
    state: State = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the host (0: any); the inference server takes the next one.")
    ] = 7071,
    app_dir: Annotated[Path | None, typer.Option("--app", help="Folder of function_app.py.")] = None,
    record: Annotated[Path | None, typer.Option(help="Record every episode of a flow here, to replay it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say addresses and keys as one JSON object.")] = False,
) -> None:
    """Run the whole platform on this machine until Ctrl-C: host, flows, training, inference."""
    # The host is half of the program, and no other command needs it.
    from dropforge.machine import run

    sys.exit(run((state or find_state()).absolute(), port, app_dir, record, as_json=as_json))


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the new pipeline; a folder of that name is made here.")],
    folder: Annotated[Path | None, typer.Option("--folder", help="Where to make it instead.")] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make a pipeline: a folder with pipeline.yaml and a training script that works on any table."""
    checked_name(name, "pipeline")
    target = (folder or Path(name)).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(f"{target} exists and is not an empty folder; choose another name or --folder")
    check_can_be_folder(target, "--folder")
    if _is_there(state, name):
        raise BadInput(
            f"pipeline {name!r} is there already, and `init` would replace it on the running host; choose another name, or "
            f"change it from its own folder: dropforge apply {name} FOLDER"
        )
    template = Path(__file__).parent.parent / "scaffold"
    target.mkdir(parents=True, exist_ok=True)
    made = []
    for source in sorted(template.iterdir()):
        if source.is_file() and source.suffix in (".yaml", ".py", ".md") and source.name != "__init__.py":
            text = source.read_text(encoding="utf-8").replace("{name}", name)
            (target / source.name).write_text(text, encoding="utf-8")
            made.append(source.name)
    applied = _applied(state, name, target)
    value = {"pipeline": name, "folder": str(target), "files": made, "applied": applied}
    show(
        value,
        as_json,
        lambda _: (
            f"Made {target} ({', '.join(made)})"
            + (" and applied it to the running host.\n" if applied else ".\n")
            + f"Next: dropforge drop {name} data.csv && dropforge status {name} --watch"
        ),
    )


def check_can_be_folder(path: Path, option: str) -> None:
    """Raises `BadInput` when the path, or what it begins with, is a file."""
    found = next(each for each in (path, *path.parents) if each.exists())
    if not found.is_dir():
        raise BadInput(f"{path} cannot be a folder: {found} is a file; choose another {option}")


def _is_there(state: Path | None, name: str) -> bool:
    try:
        client(state).get(f"pipelines/{name}")
    except Unavailable:
        return False
    except Answered as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
        return False
    return True


def _applied(state: Path | None, name: str, folder: Path) -> bool:
    try:
        client(state).apply(name, folder)
    except Unavailable:
        return False
    return True


@app.command()
def apply(
    name: Name,
    folder: Annotated[
        Path | None, typer.Argument(help="Its folder. Default: ./<name>, then ./examples/<name>.")
    ] = None,
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Make the pipeline what its folder says; new code is trained on the data that is there."""
    where = folder or folder_of(name)
    if where is None:
        raise NotFound(f"no folder ./{name} with a pipeline.yaml; name it: dropforge apply {name} FOLDER")
    show(client(state).apply(name, where), as_json, lambda told: f"{name} is at revision {told['revision']}.")


def folder_of(name: str) -> Path | None:
    """Where the pipeline's folder lies, if it lies here."""
    for folder in (Path(name), Path("examples") / name):
        if (folder / "pipeline.yaml").is_file():
            return folder
    return None


@app.command()
def drop(
    name: Name,
    files: Annotated[list[Path], typer.Argument(help="Files to drop.")],
    state: State = None,
    as_json: AsJson = False,
) -> None:
    """Drop files for a pipeline. If its folder lies here and has changed, it is applied first.

    With DROPFORGE_DROPS=azure and DROPFORGE_STORAGE, as the host has them, the files go into the drop container.
    """
    asked = client(state)
    put = _into(asked.connection.state)
    _check(files, here=settings().drops == "local")
    folder = folder_of(name)
    if folder is not None:
        asked.apply(name, folder)
    prefix = asked.get(f"pipelines/{name}")["drop"]
    many = len(files) >= _MANY_FILES or sum(file.stat().st_size for file in files) >= _MANY_BYTES
    quiet = as_json or not many or not err.is_terminal
    dropped = []
    for file in track(files, "dropping", console=err, transient=True, disable=quiet):
        target, written = put(prefix, file)
        dropped.append({"file": str(file), "dropped": target, "written": written})
    show(dropped, as_json, lambda told: "\n".join(_dropped_line(each) for each in told))


def _check(files: list[Path], *, here: bool) -> None:
    """Raises when one of the files is none, or would lie in the drop folder and never be taken in."""
    called: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise NotFound(f"{file} is not a file; nothing was dropped")
        if here and is_ignored(file.name):
            raise BadInput(
                f"{file} would never be taken in: a name that is hidden, ends in .tmp, .part, .crdownload or ~, or that no "
                "URL can carry is passed over; give it another. Nothing was dropped"
            )
        other = called.setdefault(file.name, file)
        if other.resolve() != file.resolve():
            raise BadInput(
                f"{other} and {file} are both called {file.name}, and one would replace the other; give one another name. "
                "Nothing was dropped"
            )


def _into(state: Path | None) -> Callable[[str, Path], tuple[str, bool]]:
    """What puts a file under a prefix, and says where it lies then and whether it was written."""
    chosen = settings()
    if chosen.drops == "azure":
        store = drops(chosen)
        return lambda prefix, file: (store.put(chosen.drop_container, prefix + file.name, file).url, True)
    if state is None:
        raise BadInput(
            "this command drops into a host on this machine, or into the container of DROPFORGE_STORAGE with "
            "DROPFORGE_DROPS=azure; neither is there"
        )

    def put(prefix: str, file: Path) -> tuple[str, bool]:
        target, written = drop_file(state, prefix, file)
        return str(target), written

    return put


def _dropped_line(each: dict[str, Any]) -> str:
    name = Path(each["dropped"]).name
    return f"Dropped {name}." if each["written"] else f"{name} lies there already, byte for byte; nothing to do."
