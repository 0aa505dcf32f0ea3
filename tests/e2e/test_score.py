"""`dropforge score`: on one machine's state folder, with an ONNX file alone, and killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.errors import NotFound
from dropforge.domain.models import CHAMPION, Lineage
from dropforge.ports import Insert, Ports, TableFile, TableRules
from dropforge.settings import read
from dropforge.steps import books
from dropforge.steps.score import Asked, score
from dropforge.wire import to_builtins
from dropforge.wiring import build
from tests.unit.serving import onnx_models

DROPFORGE = [sys.executable, "-m", "dropforge.cli", "score"]
NOW = datetime(2026, 1, 5, 9, 0, tzinfo=UTC)
YAML = "name: demo\ndataset:\n  format: csv\n  label: y\ntraining:\n  command: python train.py\nevaluation: {metric: mse}\n"
MODEL = onnx_models.scaled(2, 3, ["a", "b", "c"])


def tree(folder: Path) -> dict[str, bytes]:
    """What lies there; hidden files are what a killed writer left."""
    files = (each for each in sorted(folder.rglob("*")) if each.is_file() and not each.name.startswith("."))
    return {str(each.relative_to(folder)): each.read_bytes() for each in files}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted((folder / "parts").glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def lineage(run: str, dataset_version: int) -> Lineage:
    return Lineage("demo", run, "demo", dataset_version, "m", "0" * 64, "c", "0" * 64, {}, {}, 0, {}, {}, "e")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A platform's folder with two dataset versions and two model versions, of which the first is the champion."""
    folder = tmp_path / "state"
    folder.mkdir()
    ports = build(replace(read({}), state=folder))
    data = tmp_path / "data.csv"
    data.write_text("a,b,c,y\n1,2,3,4\n5,6,7,8\n")
    about = {"name": "demo", "text": YAML, "code": "c", "code_sha256": "0" * 64, "training_key": "k", "revision": 1}
    ports.ledger.commit(books.PIPELINES, [Insert("pipeline/demo", {**about, "applied_at": NOW.isoformat()})])
    partition = books.partition_of("demo")
    for version in (1, 2):
        made = ports.tables.append("demo", version, [TableFile(data, f"s{version}", NOW)], TableRules("csv"))
        told = DatasetVersion(
            "demo", version, version, made.uri, made.version, "m", "0" * 64, 1, 2, made.rows, made.columns, NOW
        )
        ports.ledger.commit(partition, [Insert(books.dataset_key(version), to_builtins(told))])
    ports.ledger.commit(partition, [Insert("head", {**books.EMPTY_HEAD, "version": 2})])
    for version, factor in ((1, 2.0), (2, 3.0)):
        name = f"models/demo/{version}/model.onnx"
        ports.artifacts.put(name, onnx_models.scaled(factor, 3, ["a", "b", "c"]))
        ports.registry.register("demo", name, lineage(f"run{version}", version), NOW)
    ports.registry.set_alias("demo", CHAMPION, 1, None, NOW)
    return folder


def ports_of(state: Path) -> Ports:
    return build(replace(read({}), state=state))


def test_a_step_finds_the_champion_and_the_newest_data_unless_others_are_named(state: Path) -> None:
    def told(deployment: Any, dataset: Any) -> tuple[int, int, bool]:
        return deployment.version, dataset.version, Path(deployment.uri.removeprefix("file://")).is_file()

    ports = ports_of(state)
    assert score(ports, Asked("demo", None, "demo"), told) == (1, 2, True)
    assert score(ports, Asked("demo", 2, "demo", 1), told) == (2, 1, True)
    for asked in (Asked("demo", 9, "demo"), Asked("nobody", None, "demo"), Asked("demo", None, "demo", 9)):
        with pytest.raises(NotFound):
            score(ports, asked, told)


def test_a_dataset_version_is_scored_with_a_model_of_the_platform(state: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [
        *DROPFORGE,
        "-m",
        "demo@2",
        "-i",
        "demo@1",
        "-o",
        str(output),
        "--state",
        str(state),
        "--key",
        "a",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rows"] == 2
    assert [(row["a"], row["y"], row["_version"]) for row in rows_of(output)] == [
        (1, [3, 6, 9], 2),
        (5, [15, 18, 21], 2),
    ]


def test_a_killed_scoring_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = 200_000
    numbers = np.arange(rows, dtype=np.float64)
    table = pa.table({"a": numbers, "b": numbers, "c": numbers, "id": np.arange(rows)})
    for number in range(4):
        pq.write_table(table.slice(number * 50_000, 50_000), tmp_path / f"in/{number}.parquet", row_group_size=5_000)
    (tmp_path / "model.onnx").write_bytes(MODEL)
    given = ["--onnx", str(tmp_path / "model.onnx"), "-i", str(tmp_path / "in"), "--key", "id", "--threads", "2"]
    command = [*DROPFORGE, *given, "--part-rows", "5000", "--batch-rows", "16"]

    killed = tmp_path / "killed"
    kills = 0
    while kills < 2:
        process = subprocess.Popen([*command, "-o", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        known = len(list((killed / "done").glob("*.json")))
        until = time.monotonic() + 60
        while len(list((killed / "done").glob("*.json"))) < known + 3:
            assert process.poll() is None and time.monotonic() < until, "it ended, or did nothing"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert not (killed / "manifest.json").exists()
    there = {each.name: each.stat().st_mtime_ns for each in (killed / "done").glob("*.json")}
    assert 6 <= len(there) < 40

    subprocess.run([*command, "-o", str(killed)], check=True, capture_output=True, timeout=60)
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, capture_output=True, timeout=60)
    assert tree(killed) == tree(tmp_path / "whole")
    # What was whole stayed as it was.
    assert {name: (killed / "done" / name).stat().st_mtime_ns for name in there} == there
    ids = pq.read_table(killed / "parts").column("id").to_pylist()
    assert sorted(ids) == list(range(rows))
