"""What ran, told truly."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from dropforge.training import facts


def test_versions_are_those_that_python_would_import() -> None:
    packages = facts.installed()

    for name in ("numpy", "pyarrow", "onnxruntime", "dropforge"):
        assert packages[name] == metadata.version(name)


def test_the_first_on_the_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "NumPy-99.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    assert facts.installed()["numpy"] == "99.0"


def test_another_version_is_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = facts.environment("c0de")
    (tmp_path / "something_small-1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    after = facts.environment("c0de")

    assert before == facts.environment("c0de") | {k: before[k] for k in ("packages_sha256", "packages_count")}
    assert before["packages_sha256"] != after["packages_sha256"]
    assert before["code_sha256"] == "c0de"
