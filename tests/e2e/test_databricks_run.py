"""A run in a Databricks workspace with nothing replaced on its side: the real wheel, installed; the real node; a Delta table."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from azure.storage.blob import BlobServiceClient

from dropforge import wire
from dropforge.domain.runs import ChampionRef, RunState
from dropforge.domain.verdicts import Evidence
from tests.azure.databricks_bench import databricks_bench
from tests.azurite import ROOT, Azurite, azurite
from tests.bundles import packed
from tests.unit.training.bench import TRAIN, days_table, environment, spec, threshold_model, write_table

__all__ = ["azurite"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The package as it is delivered."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path.read_bytes()


def test_a_run_with_the_delivered_wheel_leaves_a_model_that_answers(
    azurite: Azurite, tmp_path: Path, wheel: bytes
) -> None:
    table = write_table(tmp_path / "table", days_table(20))
    with databricks_bench(azurite, tmp_path / "databricks", wheel) as bench:
        with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
            for path in (path for path in table.rglob("*") if path.is_file()):
                name = f"shops/{path.relative_to(table).as_posix()}"
                service.get_blob_client("tables", name).upload_blob(path.read_bytes())
        champion = threshold_model(0.6, 0.4).save(tmp_path / "champion.onnx")
        sha256 = bench.artifacts.put("models/shops/r0/model.onnx", champion.read_bytes())
        code = bench.artifacts.put("code/shops/ab.zip", packed({"train.py": TRAIN.encode()}))
        asked = replace(
            spec(
                table,
                code="code/shops/ab.zip",
                code_sha256=code,
                compute={"target": "databricks"},
                environment={"BENCH": environment()["BENCH"]},
            ),
            table_uri="az://tables/shops",
            champion=ChampionRef("shops", 3, "models/shops/r0/model.onnx", sha256),
        )
        bench.compute.submit(asked)
        status = bench.ended()

        assert (status.state, status.exit_code) == (RunState.SUCCEEDED, 0), (status, bench.compute.logs("r1"))
        result = bench.compute.result("r1")
        evidence = wire.from_json(Evidence, bench.artifacts.read(result.evidence))
        assert (evidence.against, evidence.champion_version) == ("champion", 3)
        assert "trained on 600 rows" in bench.compute.logs("r1")
        assert onnxruntime.InferenceSession(bench.artifacts.read(result.model)).get_inputs()[0].name == "x"
        # What ran was installed from the wheel, and not taken from this checkout.
        assert (bench.only().folder / "site" / "dropforge" / "training" / "wheel_task.py").is_file()
        assert "run_node" in zipfile.ZipFile(bench.only().folder / "volumes/artifacts/wheels/dropforge-0-py3-none-any.whl").read("dropforge/__init__.py").decode()  # fmt: skip
