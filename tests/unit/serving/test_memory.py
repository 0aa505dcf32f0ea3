"""What models leave behind goes back to the system, but not a little at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge.serving import memory
from dropforge.serving.memory import TRIM_BYTES, Budget
from dropforge.serving.models import Model, load
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment


def kept(folder: Path, budget: Budget, size: int) -> list[Model]:
    model = load(deployment(folder, onnx_models.scaled(1.0), 1))
    budget.loaded(model, size, budget.before())
    model.memory_bytes = size
    return [model]


def test_small_models_are_handed_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, trimmed = list[int](), list[int]()
    budget = Budget()
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(len(gone)))
    for number in range(1, 9):
        models = kept(tmp_path, budget, TRIM_BYTES // 4)
        gone.append(number)
        budget.let_go(models.clear)
        assert budget.used_bytes() == 0
    assert trimmed == [4, 8]


def test_a_large_model_is_handed_back_at_once_and_one_that_stays_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[bool] = []
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(True))
    budget = Budget()
    models = kept(tmp_path, budget, TRIM_BYTES)
    still = [*models]
    budget.let_go(models.clear)
    assert (trimmed, budget.used_bytes()) == ([], TRIM_BYTES)
    budget.let_go(still.clear)
    assert (trimmed, budget.used_bytes()) == ([True], 0)
