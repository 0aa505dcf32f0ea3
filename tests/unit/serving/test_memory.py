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
    assert model.memory_bytes == size
    return [model]


def test_small_models_are_handed_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, trimmed = list[int](), list[int]()
    budget = Budget()
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(len(gone)))
    models = [kept(tmp_path, budget, TRIM_BYTES // 4) for _ in range(9)]
    for number, each in enumerate(models):
        gone.append(number)
        budget.let_go(each.clear)
    assert (trimmed, budget.used_bytes()) == ([4, 8], 0)


def test_what_the_next_model_takes_up_is_not_handed_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[bool] = []
    budget = Budget()
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(True))
    models = kept(tmp_path, budget, TRIM_BYTES // 2)
    for _ in range(20):
        following = kept(tmp_path, budget, TRIM_BYTES // 2)
        budget.let_go(models.clear)
        models = following
    assert not trimmed
    budget.let_go(models.clear)
    assert trimmed == [True]


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
