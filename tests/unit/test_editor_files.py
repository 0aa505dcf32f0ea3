"""The dev container and the files of VS Code name things that exist."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = (
    ".devcontainer/devcontainer.json",
    *(f".vscode/{name}.json" for name in ("extensions", "launch", "settings", "tasks")),
)


def parsed(name: str) -> Any:
    return json.loads((ROOT / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_a_make_word_exists(name: str) -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"\bmake ([a-z]+)", (ROOT / name).read_text())) <= targets


def test_what_the_debugger_starts_exists() -> None:
    tasks = {task["label"] for task in parsed(".vscode/tasks.json")["tasks"]}
    for each in parsed(".vscode/launch.json")["configurations"]:
        assert importlib.util.find_spec(each.get("module", "pytest")) is not None, each["name"]
        assert each.get("preLaunchTask", "setup") in tasks, each["name"]


def test_the_container_has_the_extensions_that_are_recommended() -> None:
    container = parsed(".devcontainer/devcontainer.json")["customizations"]["vscode"]["extensions"]
    assert container == parsed(".vscode/extensions.json")["recommendations"]


def test_a_schema_that_an_editor_uses_exists() -> None:
    for path in parsed(".vscode/settings.json")["yaml.schemas"]:
        assert (ROOT / path).is_file()
