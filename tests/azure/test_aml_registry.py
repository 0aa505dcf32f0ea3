"""The mirror of the registry in Azure ML: it follows the ledger, heals, and never stands in the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest

from dropforge.adapters.azure import identity
from dropforge.adapters.azure.aml_client import asking, ml_client
from dropforge.adapters.azure.aml_registry import MirroredRegistry
from dropforge.adapters.memory.artifacts import MemoryArtifacts
from dropforge.adapters.memory.ledger import MemoryLedger
from dropforge.adapters.registry import LedgerRegistry
from dropforge.domain.models import Alias
from dropforge.settings import AzureML
from tests.azure.aml_bench import SDK_WARNINGS
from tests.azure.control_plane import ControlPlane, control_plane, used
from tests.contract.samples import NOW, lineage

pytestmark = SDK_WARNINGS


@dataclass
class Mirrored:
    """A mirrored registry, the truth behind it, and Azure ML; its clock stands until it is moved."""

    plane: ControlPlane
    truth: LedgerRegistry
    artifacts: MemoryArtifacts
    seconds: float = 0.0

    def __post_init__(self) -> None:
        settings = AzureML(self.plane.workspace)
        self.registry = MirroredRegistry(
            self.truth, settings, self.artifacts, timedelta(minutes=1), lambda: self.seconds
        )

    def registered(self, run: str, registry: MirroredRegistry | LedgerRegistry | None = None) -> int:
        self.artifacts.put(f"models/flights/{run}/model.onnx", run.encode())
        chosen = registry or self.registry
        return chosen.register("flights", f"models/flights/{run}/model.onnx", lineage(run), NOW).version

    def shown(self) -> dict[str, dict[str, str]]:
        """Tags by version."""
        return {number: each["properties"]["tags"] for number, each in self.plane.models.get("flights", {}).items()}

    def champions(self) -> list[str]:
        return [number for number, tags in self.shown().items() if "alias.champion" in tags]

    def promote(self, version: int, registry: MirroredRegistry | LedgerRegistry | None = None) -> Alias:
        before = self.truth.alias("flights", "champion")
        return (registry or self.registry).set_alias("flights", "champion", version, before, NOW)

    def made_by_others(self, version: int) -> None:
        with asking(self.plane.workspace, "a model"):
            client = ml_client(self.plane.workspace)
            from azure.ai.ml.entities import Model

            place = "azureml://datastores/workspaceblobstore/paths/theirs"
            client.models.create_or_update(
                Model(name="flights", version=str(version), path=place, type="custom_model", tags={"by": "hand"})
            )


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with control_plane() as made, used(made):
        identity.credential.cache_clear()
        yield made
        identity.credential.cache_clear()


@pytest.fixture
def mirrored(plane: ControlPlane) -> Iterator[Mirrored]:
    artifacts = MemoryArtifacts()
    yield Mirrored(plane, LedgerRegistry(MemoryLedger(), artifacts), artifacts)
    assert plane.invalid == []
    plane.reset()


def test_a_version_has_the_same_number_and_its_lineage_in_azure_ml(mirrored: Mirrored) -> None:
    assert [mirrored.registered("r1"), mirrored.registered("r2")] == [1, 2]

    shown = mirrored.plane.models["flights"]
    assert set(shown) == {"1", "2"}
    properties = shown["2"]["properties"]
    assert properties["modelType"] == "custom_model"
    assert properties["modelUri"].endswith("/datastores/dropforge_artifacts/paths/models/flights/r2/model.onnx")
    assert properties["tags"]["dropforge.run"] == "r2" and properties["tags"]["dropforge.seed"] == str(
        lineage("r2").seed
    )


def test_the_alias_is_a_tag_that_moves(mirrored: Mirrored) -> None:
    for run in ("r1", "r2"):
        mirrored.registered(run)
    mirrored.promote(1)
    assert mirrored.champions() == ["1"]
    mirrored.promote(2)
    assert mirrored.champions() == ["2"]


def test_what_a_crash_left_out_is_brought_up_by_the_next_call(mirrored: Mirrored) -> None:
    # Whoever registered and promoted these did not live to mirror them.
    for run in ("r1", "r2"):
        mirrored.registered(run, mirrored.truth)
    mirrored.promote(2, mirrored.truth)

    mirrored.registered("r2")
    assert set(mirrored.shown()) == {"1", "2"} and mirrored.champions() == ["2"]


def test_a_tag_that_stayed_behind_is_taken_away_by_the_next_call(mirrored: Mirrored) -> None:
    for run in ("r1", "r2"):
        mirrored.registered(run)
    mirrored.promote(1)
    mirrored.promote(2, mirrored.truth)

    mirrored.promote(2)
    assert mirrored.champions() == ["2"]


def test_a_model_is_promoted_while_azure_ml_is_down_and_shown_once_it_is_back(
    mirrored: Mirrored, caplog: pytest.LogCaptureFixture
) -> None:
    mirrored.plane.faults.no_token(times=100)
    mirrored.plane.faults.expire_tokens()
    with caplog.at_level(logging.WARNING, "dropforge"):
        mirrored.registered("r1")
        asked = len(mirrored.plane.requests)
        assert mirrored.promote(1).version == 1
    assert "model flights is not mirrored in Azure ML for now" in caplog.text
    # Nobody waits for it a second time within the minute.
    assert len(mirrored.plane.requests) == asked and mirrored.shown() == {}

    mirrored.plane.faults.clear()
    mirrored.plane.faults.no_token(times=0)
    mirrored.seconds = 61
    mirrored.promote(1)
    assert mirrored.champions() == ["1"]


def test_a_version_that_others_made_is_not_touched(mirrored: Mirrored, caplog: pytest.LogCaptureFixture) -> None:
    mirrored.made_by_others(1)
    with caplog.at_level(logging.WARNING, "dropforge"):
        assert mirrored.registered("r1") == 1
        mirrored.promote(1)
    assert mirrored.shown()["1"] == {"by": "hand"}
    assert "version 1 in Azure ML was made by somebody else" in caplog.text
    mirrored.registered("r2")
    assert mirrored.shown()["2"]["dropforge.run"] == "r2"


def test_tags_that_people_gave_stay(mirrored: Mirrored) -> None:
    mirrored.registered("r1")
    mirrored.shown()["1"]["reviewed"] = "by Ann"
    mirrored.promote(1)

    assert mirrored.shown()["1"]["reviewed"] == "by Ann" and mirrored.champions() == ["1"]
