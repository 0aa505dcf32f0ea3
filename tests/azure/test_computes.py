"""Runs that go where their pipeline says, and pipelines that say what there is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from dropforge.adapters.azure.computes import Computes
from dropforge.adapters.azure.run_files import RunFiles
from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.compute import LocalCompute
from dropforge.adapters.memory.artifacts import MemoryArtifacts
from dropforge.adapters.memory.compute import MemoryCompute
from dropforge.domain.errors import BadInput, NotFound
from dropforge.domain.runs import EvaluationPlan, RunSpec, RunState
from tests.azurite import Azurite, azurite

__all__ = ["azurite"]


class Bench:
    """Two places to train, each of which keeps what it was asked as the real ones do."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        artifacts = MemoryArtifacts()
        self.azureml = MemoryCompute(artifacts, files.put_spec)
        self.databricks = MemoryCompute(artifacts, files.put_spec)

    def computes(self, *targets: str) -> Computes:
        """As a host has it that knows nothing of earlier ones."""
        return Computes(self.files, {name: getattr(self, name) for name in targets})


@pytest.fixture
def bench(azurite: Azurite) -> Iterator[Bench]:
    with azurite.container("runs"), closing(RunFiles(azurite.connection_string, MemoryArtifacts())) as files:
        yield Bench(files)


def spec(run: str, target: str | None) -> RunSpec:
    return RunSpec(
        *(run, "flights", "flights", 1, "az://tables/flights", 0, "code/flights.zip", "0" * 64, ("python", "train.py")),
        label=None,
        event_time=None,
        features=(),
        evaluation=EvaluationPlan("mae", "day", 7),
        seed=0,
        timeout_seconds=60,
        compute={} if target is None else {"target": target},
    )


def test_a_run_goes_where_it_says_and_is_asked_about_there_by_every_host(bench: Bench) -> None:
    both = ("azureml", "databricks")
    for target in both:
        bench.computes(*both).submit(spec(target, target))
    assert [each.run for each in bench.azureml.submitted] == ["azureml"]
    assert [each.run for each in bench.databricks.submitted] == ["databricks"]
    bench.databricks.say("databricks", "hello")
    another = bench.computes(*both)
    assert another.status("databricks").state is RunState.SUBMITTED
    assert another.logs("databricks", 2) == "lo"
    another.cancel("databricks")
    assert bench.databricks.status("databricks").state is RunState.CANCELLED
    assert bench.azureml.status("azureml").state is RunState.SUBMITTED


def test_a_run_that_was_never_submitted_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound):
        bench.computes("azureml").status("never")


@pytest.mark.parametrize(
    ("target", "targets", "says"),
    [
        ("local", ("azureml",), "target is local, which needs a machine that stays; set azureml or databricks"),
        (None, ("azureml",), "target is local, which needs a machine that stays; set azureml or databricks"),
        (
            "databricks",
            ("azureml",),
            "for which DROPFORGE_DATABRICKS_HOST and DROPFORGE_DATABRICKS_VOLUMES must be set",
        ),
        ("databricks", ("azureml",), "this app trains on azureml"),
        ("spark", ("azureml",), "which is none of azureml, databricks"),
        ("azureml", (), "this app trains nowhere yet"),
    ],
)
def test_a_target_without_settings_is_refused_with_those_there_are(
    bench: Bench, target: str | None, targets: tuple[str, ...], says: str
) -> None:
    with pytest.raises(BadInput) as found:
        bench.computes(*targets).submit(spec("r1", target))
    assert says in found.value.message
    assert bench.azureml.submitted == []


def test_a_run_whose_target_lost_its_settings_says_which(bench: Bench) -> None:
    bench.computes("databricks").submit(spec("r1", "databricks"))
    with pytest.raises(BadInput, match="DROPFORGE_DATABRICKS_HOST"):
        bench.computes("azureml").status("r1")


@pytest.mark.parametrize("target", ["azureml", "databricks"])
def test_one_machine_does_not_train_what_is_meant_for_azure(tmp_path: Path, target: str) -> None:
    compute = LocalCompute(tmp_path / "runs", LocalArtifacts(tmp_path / "artifacts"))
    with pytest.raises(BadInput, match=f"target is {target}, and this machine trains by itself alone"):
        compute.submit(replace(spec("r1", target), code_sha256="1" * 64))
    with pytest.raises(NotFound):
        compute.status("r1")
