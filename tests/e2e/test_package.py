"""The package that is deployed, loaded as Azure's own Python 3.13 worker loads it, with nothing else around."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import package
from tests.azurite import Azurite, azurite
from tests.e2e.machine import ROOT
from tests.secret_shapes import unexplained

__all__ = ["azurite"]

# What costs seconds or a hundred megabytes, and no trigger's first answer needs.
HEAVY = (
    "azure.ai.ml",
    "databricks",
    "deltalake",
    "pyarrow",
    "numpy",
    "onnxruntime",
    "torch",
    "mlflow",
    "opentelemetry.sdk",
)
# What the first trigger that needs it may load, but no app that only starts.
LATER = (*HEAVY, "azure.core", "azure.identity", "azure.storage", "azure.data", "azure.servicebus", "pydantic", "yaml")
WORKSPACE = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg"
    "/providers/Microsoft.MachineLearningServices/workspaces/ws"
)


@pytest.fixture(scope="module")
def app() -> Iterator[Path]:
    """The packaged app. Skips where there is no Python 3.13; in CI that is a failure."""
    try:
        package.python_313()
    except package.CannotPackage as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    # Beside what it links to.
    package.CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".package-", dir=package.CACHE, ignore_cleanup_errors=True) as out:
        yield package.build(Path(out), linked=True)


@pytest.fixture(scope="module")
def told(app: Path, azurite: Azurite) -> dict[str, Any]:
    """What the worker found in the package, and what two requests were answered."""
    python = package.python_313()
    runtime = python.parent.parent / "lib" / "python3.13" / "site-packages"
    harness = Path(__file__).parent / "packaged_runtime.py"
    settings = {
        "DROPFORGE_ADAPTERS": "azure",
        "DROPFORGE_STORAGE": azurite.connection_string,
        "DROPFORGE_AML_WORKSPACE": WORKSPACE,
        "DROPFORGE_AML_ENDPOINT": "flights",
        "DROPFORGE_DATABRICKS_HOST": "https://adb-1.azuredatabricks.net",
        "DROPFORGE_DATABRICKS_VOLUMES": "/Volumes/main/dropforge",
    }
    done = subprocess.run(
        [python, "-I", "-S", harness, app, runtime, "/api/openapi.json", "/api/v1/pipelines"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], **settings},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["log"] = done.stderr
    return found


def loaded(modules: list[str], unwanted: tuple[str, ...]) -> list[str]:
    return [name for name in modules if any(name == each or name.startswith(f"{each}.") for each in unwanted)]


def test_the_worker_finds_every_function_in_the_package(told: dict[str, Any]) -> None:
    program = "import function_app; print(*(each.get_function_name() for each in function_app.app.get_functions()))"
    here = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(told["functions"]) == sorted(here.stdout.split())


def test_nothing_comes_from_outside_the_package(told: dict[str, Any]) -> None:
    assert told["strangers"] == []


def test_starting_loads_no_client_of_anything(told: dict[str, Any]) -> None:
    assert loaded(told["modules"], LATER) == []


def test_a_request_is_answered_from_table_storage(told: dict[str, Any]) -> None:
    answer = told["answers"]["/api/v1/pipelines"]
    assert answer["status"] == 200, told["log"][-3000:]
    assert json.loads(answer["body"]) == {"pipelines": [], "next": None}


def test_the_first_answer_loads_neither_azure_ml_nor_the_table_engine(told: dict[str, Any]) -> None:
    assert loaded(told["answers"]["/api/v1/pipelines"]["modules"], HEAVY) == []


def test_the_package_describes_its_own_api(told: dict[str, Any]) -> None:
    answer = told["answers"]["/api/openapi.json"]
    assert answer["status"] == 200
    assert "/v1/pipelines" in json.loads(answer["body"])["paths"]


def test_the_package_holds_what_azure_needs_and_nothing_of_the_repository_beside(app: Path) -> None:
    (wheel,) = app.glob("*.whl")
    assert {path.name for path in app.iterdir()} == {
        ".funcignore",
        ".python_packages",
        "function_app.py",
        "functions",
        "host.json",
        "orchestrators",
        "requirements.txt",
        wheel.name,
    }
    packages = app / package.DEPENDENCIES
    assert not {"tests", "examples", "docs", "bin", "typer", "onnxruntime"} & {path.name for path in packages.iterdir()}


def test_nothing_of_ours_in_the_package_looks_like_a_secret(app: Path) -> None:
    packages = app / package.DEPENDENCIES
    ours = [path for path in app.rglob("*") if not path.is_relative_to(packages)]
    ours += [path for each in packages.glob("dropforge*") for path in each.rglob("*")]
    files = [path for path in ours if path.is_file() and path.suffix not in (".whl", ".pyc")]
    assert len(files) > 200
    found = {}
    for path in files:
        place = path.relative_to(packages if path.is_relative_to(packages) else app).as_posix()
        if told := unexplained(place, path.read_text(encoding="utf-8")):
            found[place] = list(map(str, told))
    assert found == {}


def test_every_module_is_compiled_for_the_python_that_runs_it_and_names_its_place_there(app: Path) -> None:
    modules = [
        path for path in app.rglob("*.py") if path.is_relative_to(app / package.DEPENDENCIES) or path.parent != app
    ]
    bare = [str(path) for path in modules if not _bytecode(path).exists()]
    # A few files of others are templates, or in the syntax of a Python to come.
    assert [path for path in bare if "/dropforge/" in path or "/functions/" in path] == []
    assert len(bare) < 5
    assert b"/home/site/wwwroot/functions/datasets.py" in _bytecode(app / "functions" / "datasets.py").read_bytes()


def _bytecode(module: Path) -> Path:
    return module.parent / "__pycache__" / f"{module.stem}.cpython-313.pyc"


def test_the_package_has_the_bytes_it_had_before(app: Path, tmp_path: Path) -> None:
    """The dependencies are left out: two times half a gigabyte; benchmarks/package.py compares them too."""
    again = package.build(tmp_path, remote=True)
    for path in again.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (app / path.relative_to(again)).read_bytes(), path
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    package.pack(again, first)
    for path in again.rglob("*"):
        os.utime(path, (10**9, 10**9))
    package.pack(again, second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert "host.json" in archive.namelist()


def test_a_build_on_azure_would_find_our_wheel_under_its_hash(app: Path) -> None:
    """pip itself checks the hash, against an index that is not there: nothing is installed or fetched but our wheel."""
    (wheel,) = app.glob("*.whl")
    (line,) = (each for each in (app / "requirements.txt").read_text().splitlines() if each.startswith("./"))
    only = app.parent / "only.txt"
    only.write_text(line.replace("./", f"{app}/") + "\n")
    command = [str(package.python_313()), "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "--quiet"]
    good = subprocess.run([*command, "--require-hashes", "-r", str(only)], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    only.write_text(only.read_text().replace("sha256:", "sha256:0")[:-2] + "\n")
    assert subprocess.run([*command, "--require-hashes", "-r", str(only)], capture_output=True).returncode != 0
    assert wheel.name in line
