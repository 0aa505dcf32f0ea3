"""`training.sweep`: what may be tried, what is refused, and what a run is asked for."""

from __future__ import annotations

import pytest

from dropforge.domain.errors import BadSpec
from dropforge.domain.runs import SweepPlan
from dropforge.spec.load import parse, to_sweep_plan
from dropforge.steps.pipelines import _training_key

HEAD = "name: digits\ndataset: {format: csv}\ntraining:\n  command: python train.py\n"


def with_sweep(parameters: str, rest: str = "trials: 4") -> str:
    return f"{HEAD}  parameters: {{epochs: 3}}\n  sweep: {{{rest}, parameters: {{{parameters}}}}}\n"


def test_a_sweep_becomes_a_plan() -> None:
    text = with_sweep(
        "lr: {min: 1e-4, max: 0.1, log: true}, depth: {min: 2, max: 8, int: true}, kind: {choice: [a, 3, true]}",
        "trials: 12, parallel: 3, sampler: bayesian",
    )

    assert to_sweep_plan(parse(text)) == SweepPlan(
        trials=12,
        parallel=3,
        sampler="bayesian",
        space={
            "lr": {"min": 1e-4, "max": 0.1, "log": True, "int": False},
            "depth": {"min": 2, "max": 8, "log": False, "int": True},
            "kind": {"choice": ["a", 3, True]},
        },
    )


def test_without_a_sweep_there_is_no_plan_and_the_code_has_the_key_it_always_had() -> None:
    spec = parse(HEAD)

    assert to_sweep_plan(spec) is None
    # Of the release before there were sweeps: nothing is trained again because of an upgrade.
    assert _training_key(spec, {"train.py": b"1"}, set()) == "584d0b321b71bf48ab10893e4faeb8de"


def test_another_sweep_is_another_training() -> None:
    keys = {
        _training_key(parse(with_sweep(one)), {}, set()) for one in ("lr: {min: 1, max: 2}", "lr: {min: 1, max: 3}")
    }

    assert len(keys) == 2


REFUSED = {
    "lr: {}": "training.sweep.parameters.lr: wanted `choice`, or both `min` and `max`",
    "lr: {min: 1}": "training.sweep.parameters.lr: wanted `choice`, or both",
    "lr: {min: 1, max: 2, choice: [1]}": "found both `choice` and bounds; wanted one of them",
    "lr: {min: 2, max: 1}": "training.sweep.parameters.lr.min: found 2, and max is 1; wanted min < max",
    "lr: {min: 0, max: 1, log: true}": "lr.min: found 0; with `log` it must be above 0",
    "depth: {min: 1.5, max: 3, int: true}": "depth.min: found 1.5; with `int` it must be a whole number",
    "kind: {choice: [a, b, a]}": "kind.choice[2]: found 'a' twice",
    "kind: {choice: [a], log: true}": "kind.log: found it beside `choice`; it is for `min` and `max`",
    "kind: {choice: []}": "wanted at least one value",
    "epochs: {min: 1, max: 9}": "epochs: found 'epochs', and 'epochs' is a parameter already; remove one of them",
    "lr: {min: 1, max: 9}, LR: {min: 1, max: 9}": "found 'LR', and 'lr' is a parameter already",
    "lr: {mni: 1, max: 9}": "unknown key; did you mean 'min'?",
    "lr: 0.1": "sweep.parameters.lr: found 0.1; wanted a section. Keys here: choice, min, max, log, int",
    "max: 0.1": "sweep.parameters.max: found 0.1; wanted a section. Keys here: choice, min, max, log, int",
    "depth: {min: 1, max: .inf, int: true}": "depth.max: found .inf; wanted a finite number",
    "depth: {min: .nan, max: 3, int: true}": "depth.min: found .nan; wanted a finite number",
    f"depth: {{min: 1, max: {10**400}, int: true}}": "depth.max: found 1000",
    "": "training.sweep.parameters: found a mapping",
}


@pytest.mark.parametrize("parameters", REFUSED)
def test_what_cannot_be_tried_is_refused_with_its_place(parameters: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse(with_sweep(parameters))

    assert REFUSED[parameters] in str(caught.value)
    assert "pipeline.yaml:6: " in str(caught.value)


def test_a_grid_is_made_of_lists() -> None:
    with pytest.raises(BadSpec, match="a grid is made of listed values"):
        parse(with_sweep("lr: {min: 1, max: 2}", "sampler: grid"))
