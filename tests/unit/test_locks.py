"""What is deployed runs with the versions that were tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent.parent / "requirements"
TESTED = "dev"
OTHERS = ("app", "serve", "train", "train-azureml", "runtime")
# What a lock holds in another version, because something in it demands that.
APART = {"train-azureml": {"azure-storage-blob", "mlflow-skinny", "python-dateutil"}}

_PIN = re.compile(r"(?m)^(?P<name>[a-z0-9-]+)(?:\[[^\]]*\])?==(?P<version>\S+)(?P<rest>[^\n]*(?:\n    [^\n]*)*)")


def pins(lock: str) -> dict[str, set[str]]:
    """Package -> its versions: more than one where they differ by Python or platform."""
    found: dict[str, set[str]] = {}
    for pin in _PIN.finditer((FOLDER / f"{lock}.txt").read_text()):
        found.setdefault(pin["name"], set()).add(pin["version"])
    return found


@pytest.mark.parametrize("lock", OTHERS)
def test_a_lock_has_the_versions_that_were_tested(lock: str) -> None:
    tested = pins(TESTED)
    different = {
        name: (versions, tested[name]) for name, versions in pins(lock).items() if versions - tested.get(name, versions)
    }
    assert set(different) == APART.get(lock, set())


@pytest.mark.parametrize("lock", (TESTED, *OTHERS))
def test_every_pin_has_a_hash_and_no_lock_names_an_index(lock: str) -> None:
    text = (FOLDER / f"{lock}.txt").read_text()
    bare = [pin["name"] for pin in _PIN.finditer(text) if "--hash=sha256:" not in pin["rest"]]
    assert not bare
    assert not re.search(r"(?m)^\s*--(?:extra-)?index|^\s*-i |https?://|find-links", text)


@pytest.mark.parametrize(
    ("lock", "there", "absent"),
    [
        (
            "app",
            {"azure-functions", "azure-ai-ml", "azure-data-tables", "deltalake"},
            {"onnxruntime", "typer", "pytest"},
        ),
        ("serve", {"aiohttp", "onnxruntime", "azure-identity", "azure-storage-blob"}, {"azure-ai-ml", "deltalake"}),
        ("train", {"deltalake", "onnx", "onnxruntime"}, {"azure-ai-ml", "azure-identity", "scikit-learn", "torch"}),
    ],
)
def test_a_place_gets_what_it_runs_and_nothing_else(lock: str, there: set[str], absent: set[str]) -> None:
    found = set(pins(lock))
    assert there <= found
    assert not absent & found
