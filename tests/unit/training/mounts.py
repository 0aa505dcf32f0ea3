"""Folders as `dropforge train-node` finds them mounted, for tests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dropforge import wire
from dropforge.domain.runs import ChampionRef, RunSpec
from dropforge.training.contract import NodeResult
from tests.bundles import packed
from tests.unit.training.bench import TRAIN, Onnx, environment


@dataclass(frozen=True)
class Mounts:
    """What is mounted, and the command line that names it."""

    folder: Path
    arguments: tuple[str, ...]

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def result(self) -> NodeResult:
        return wire.from_json(NodeResult, (self.output / "result.json").read_bytes())

    def with_words(self, *words: str) -> Mounts:
        return replace(self, arguments=(*self.arguments, *words))

    def start(self, variables: Mapping[str, str] = {}) -> subprocess.Popen[str]:
        (self.folder / "tmp").mkdir(exist_ok=True)
        own = {"TMPDIR": str(self.folder / "tmp"), **variables}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "dropforge.cli", "train-node", *self.arguments],
            cwd=self.folder,
            env={**{name: value for name, value in environment().items() if name != "MLFLOW_TRACKING_URI"}, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def run(self, variables: Mapping[str, str] = {}) -> tuple[int, str]:
        """Exit code, and what was printed."""
        with self.start(variables) as process:
            printed, _ = process.communicate(timeout=120)
        return process.returncode, printed


def mounts(folder: Path, run: RunSpec, script: str = TRAIN, champion: Onnx | None = None) -> Mounts:
    """Everything that this run reads, under the folder."""
    folder.mkdir(parents=True)
    code = packed({"train.py": script.encode()})
    (folder / "code.zip").write_bytes(code)
    run = replace(run, code_sha256=hashlib.sha256(code).hexdigest())
    words = ["--run", "run.json", "--code", "code.zip", "--table", run.table_uri.removeprefix("file://")]
    if champion is not None:
        path = champion.save(folder / "champion.onnx")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        run = replace(run, champion=ChampionRef("shops", 3, "models/shops/3", sha256))
        words += ["--champion", str(path)]
    # A node never sees where the platform itself finds the table.
    (folder / "run.json").write_bytes(wire.to_json(replace(run, table_uri="https://elsewhere/tables/shops")))
    return Mounts(folder, (*words, "--output", str(folder / "output")))


def leftovers(folder: Path) -> list[str]:
    """What train-node left in its temporary folder."""
    return [name for name in os.listdir(folder / "tmp") if name.startswith("dropforge-")]
