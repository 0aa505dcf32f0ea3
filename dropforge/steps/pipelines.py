"""Applying a pipeline: its folder in, its next revision out."""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dropforge.bundle import entry_of, is_executable
from dropforge.domain.errors import BadInput, Conflict
from dropforge.domain.names import checked_name, id_of
from dropforge.ports import Insert, Json, Ports, Replace
from dropforge.steps import books, control, intake, train
from dropforge.steps.books import Pipeline
from dropforge.wire import to_json

if TYPE_CHECKING:
    from dropforge.spec.model import PipelineSpec

SPEC_FILE = "pipeline.yaml"
MAX_FILES = 2_000
MAX_BYTES = 50 * 1024**2


def apply(
    ports: Ports,
    name: str,
    bundle: bytes,
    now: datetime,
    check: Callable[[int | None], None] = lambda _: None,
    targets: Sequence[str] | None = None,
) -> Json:
    """Make the pipeline what the bundle (a zip of its folder) says. The same bundle again changes nothing.

    Raises `BadInput` when the bundle is no such folder and `BadSpec` when its `pipeline.yaml` is wrong; and whatever
    `check` raises, which is given the revision that is there at that moment, or None. `targets`: where runs can go;
    None: anywhere. The flows to start come back: files may have been waiting, and new code is trained on the data that
    is there.
    """
    checked_name(name, "pipeline")
    files, programs = _unpacked(bundle)
    try:
        text = files[SPEC_FILE].decode()
    except KeyError:
        raise BadInput(f"the bundle has no {SPEC_FILE} at its top; it holds {_some(files)}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{SPEC_FILE} is not UTF-8 text: {error}") from None
    spec = books.parse_spec(text)
    if spec.name != name:
        raise BadInput(f"{SPEC_FILE} is of pipeline {spec.name!r}, applied as {name!r}; make the two equal")
    _check_alone(ports, spec)
    _check_target(spec, targets)
    packed = _packed(files, programs)
    code_sha256 = hashlib.sha256(packed).hexdigest()
    code = f"code/{name}/{code_sha256[:16]}.zip"
    ports.artifacts.put(code, packed)
    key = f"pipeline/{name}"
    while True:
        row = ports.ledger.get(books.PIPELINES, key)
        check(row.value["revision"] if row is not None else None)
        made = row is None
        if row is not None and row.value["code_sha256"] == code_sha256:
            break
        value: Json = {
            "name": name,
            "text": text,
            "code": code,
            "code_sha256": code_sha256,
            "training_key": _training_key(spec, files, programs),
            "revision": row.value["revision"] + 1 if row is not None else 1,
            "applied_at": now.isoformat(),
        }
        try:
            write = Insert(key, value) if row is None else Replace(key, value, row.etag)
            ports.ledger.commit(books.PIPELINES, [write])
        except Conflict:
            continue
        break
    applied = books.pipeline(ports.ledger, name)
    return {"revision": applied.revision, "made": made, "start": waiting(ports, applied)}


def resume(ports: Ports, name: str) -> list[Json]:
    """Let a paused pipeline go on; the flows to start come back, also when it was not paused."""
    control.resume(ports, name)
    return waiting(ports, books.pipeline(ports.ledger, name))


def waiting(ports: Ports, pipeline: Pipeline) -> list[Json]:
    """The flows to start for what waits in the pipeline."""
    flows = [train.wake_training(ports, pipeline.name, changed=True)]
    if ports.ledger.scan(pipeline.partition, "pending/", limit=1):
        flows.append(intake.wake(ports, pipeline, again=True))
    return [flow for flow in flows if flow is not None]


# What `zipfile` and what it unpacks with say of bytes that are none, whole or in part.
_NO_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    struct.error,
    IndexError,
    OverflowError,
)


def _unpacked(bundle: bytes) -> tuple[dict[str, bytes], set[str]]:
    """The files by name, and the names of those that are executable."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(bundle))
    except _NO_ZIP:
        raise BadInput("the request body is not a zip file; send the pipeline's folder as one") from None
    with archive:
        entries = [info for info in archive.infolist() if not info.is_dir()]
        size = sum(info.file_size for info in entries)
        if len(entries) > MAX_FILES or size > MAX_BYTES:
            raise BadInput(
                f"the pipeline folder holds {len(entries)} files of {size} bytes; allowed are {MAX_FILES} files of "
                f"{MAX_BYTES} bytes: keep data out of it and drop it instead"
            )
        files: dict[str, bytes] = {}
        for info in entries:
            parts = info.filename.split("/")
            if info.filename.startswith("/") or ".." in parts or "\\" in info.filename:
                raise BadInput(f"the bundle has a file outside its folder: {info.filename!r}")
            try:
                files[info.filename] = archive.read(info)
            except _NO_ZIP as error:
                raise BadInput(f"the bundle's file {info.filename!r} cannot be read: {error}") from None
    return files, {info.filename for info in entries if is_executable(info)}


def _packed(files: dict[str, bytes], programs: set[str]) -> bytes:
    """A zip whose bytes depend on nothing but names, contents and what is executable."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(entry_of(name, executable=name in programs), files[name])
    return buffer.getvalue()


def _training_key(spec: PipelineSpec, files: dict[str, bytes], programs: set[str]) -> str:
    # What became executable is worth another try; without such files the key is the one it always was.
    code = [
        f"{name}={hashlib.sha256(files[name]).hexdigest()}{'+x' if name in programs else ''}"
        for name in sorted(files)
        if name != SPEC_FILE
    ]
    # A pipeline without a sweep keeps the key it had before there were any.
    left_out = {"compute"} if spec.training.sweep is not None else {"compute", "sweep"}
    asked = {
        "training": spec.training.model_dump(mode="json", exclude=left_out),
        "evaluation": spec.evaluation.model_dump(mode="json", exclude={"confidence"}),
        "label": spec.dataset.label,
        "event_time": spec.dataset.event_time,
    }
    return id_of(*code, to_json(asked).decode())


def _check_alone(ports: Ports, spec: PipelineSpec) -> None:
    """No two pipelines have a place for drops, or an endpoint, in common."""
    endpoint = spec.deployment.endpoint or spec.name
    for other in books.pipelines(ports.ledger):
        if other.name == spec.name:
            continue
        if other.spec.dataset.drop == spec.dataset.drop:
            raise BadInput(
                f"dataset.drop {spec.dataset.drop!r} is where pipeline {other.name!r} takes its files; choose another"
            )
        if books.endpoint_name(other) == endpoint:
            raise BadInput(
                f"deployment.endpoint {endpoint!r} is where pipeline {other.name!r} serves its champion; choose another"
            )


def _check_target(spec: PipelineSpec, targets: Sequence[str] | None) -> None:
    """Better now than when the first file has come."""
    target = spec.training.compute.target
    if targets is None or target in targets:
        return
    here = f"this app trains on {', '.join(targets)} alone" if targets else "this app has no place to train yet"
    if target == "local":
        raise BadInput(
            f"training.compute.target is local, which needs a machine that stays, and {here}; set azureml or databricks"
        )
    raise BadInput(
        f"training.compute.target is {target}, and {here}; change it in {SPEC_FILE}, or set up the app for it "
        "(DROPFORGE_ADAPTERS=azure with DROPFORGE_AML_WORKSPACE or DROPFORGE_DATABRICKS_HOST)"
    )


def _some(files: dict[str, bytes]) -> str:
    names = sorted(files)
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") if names else "nothing"
