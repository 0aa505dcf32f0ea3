"""`pipeline.yaml` in, `PipelineSpec` out; and from there to what the ports and the gate want."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from dropforge.domain.alerts import AlertAction, Rule, Until
from dropforge.domain.canary import Rules
from dropforge.domain.datasets import Column
from dropforge.domain.errors import BadSpec
from dropforge.domain.gate import Policy
from dropforge.domain.runs import SweepPlan
from dropforge.ports import ColumnRule, TableRules
from dropforge.spec.checks import check
from dropforge.spec.explain import explained
from dropforge.spec.model import Axis, PipelineSpec
from dropforge.spec.problems import Problem
from dropforge.spec.tree import NotYaml, read_tree


def parse(text: str, where: str = "pipeline.yaml") -> PipelineSpec:
    """The pipeline a text describes.

    Raises `BadSpec` that names every problem, one on a line (`pipeline.yaml:9: dataset.format: found 'cvs'; allowed:
    csv, parquet, jsonl`), in the order of the file; `about["problems"]` has them as `{line, key, message}`.
    """
    try:
        tree = read_tree(text)
    except NotYaml as error:
        raise _bad_spec([error.problem], where) from error
    problems, spec = list(tree.problems), None
    try:
        spec = PipelineSpec.model_validate(tree.data)
    except ValidationError as error:
        problems += [explained(one, tree, PipelineSpec) for one in error.errors(include_url=False)]
    problems += check(tree)
    if problems or spec is None:
        raise _bad_spec(problems, where)
    return spec


def _bad_spec(problems: Sequence[Problem], where: str) -> BadSpec:
    # The first thing that is wrong with a key; what else is wrong with it often follows from that.
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.key or str(problem), problem)
    ordered = sorted(first.values(), key=lambda problem: problem.line)
    return BadSpec("\n".join(problem.text(where) for problem in ordered), problems=[asdict(one) for one in ordered])


def to_rules(spec: PipelineSpec, known: Sequence[Column]) -> TableRules:
    """What a dropped file must be; `known` are the columns of the table so far."""
    dataset = spec.dataset
    return TableRules(
        format=dataset.format,
        columns=tuple(ColumnRule(**column.model_dump()) for column in dataset.columns),
        extra_columns=dataset.extra_columns,
        label=dataset.label,
        event_time=dataset.event_time,
        min_rows=dataset.min_rows,
        max_bytes=dataset.max_bytes,
        known=tuple(known),
    )


def to_policy(spec: PipelineSpec) -> Policy:
    """What the gate does with each verdict."""
    gate = spec.gate
    return Policy(
        better=gate.better,
        cannot_tell=gate.cannot_tell,
        worse=gate.worse,
        slice_worse=gate.slice_worse,
        first=gate.first,
    )


def to_sweep_plan(spec: PipelineSpec) -> SweepPlan | None:
    """The search for parameters that every training makes; None without one."""
    sweep = spec.training.sweep
    if sweep is None:
        return None
    return SweepPlan(
        trials=sweep.trials,
        parallel=sweep.parallel,
        sampler=sweep.sampler,
        space={name: _axis(axis) for name, axis in sweep.parameters.items()},
    )


def _axis(axis: Axis) -> dict[str, Any]:
    if axis.choice is not None:
        return {"choice": list(axis.choice)}
    assert axis.min is not None
    assert axis.max is not None
    low, high = (int(axis.min), int(axis.max)) if axis.int else (axis.min, axis.max)
    return {"min": low, "max": high, "log": axis.log, "int": axis.int}


def to_canary_rules(spec: PipelineSpec) -> Rules | None:
    """How the traffic of a promoted model grows; None: it gets all at once."""
    canary = spec.deployment.canary
    if canary is None:
        return None
    return Rules(
        steps=canary.steps,
        bake=canary.bake,
        max_failed=canary.max_failed,
        max_latency_ratio=canary.max_latency_ratio,
        min_requests=canary.min_requests,
        mirror=canary.mirror,
    )


def to_alert_rules(spec: PipelineSpec) -> tuple[Rule, ...]:
    """What the pipeline does about alerts, in the order of the file."""
    return tuple(
        Rule(
            rule=each.rule,
            action=each.action,
            severity=tuple(each.severity),
            dimensions=dict(each.dimensions),
            until=(each.until or Until.RESUMED) if each.action is AlertAction.PAUSE else None,
        )
        for each in spec.alerts
    )
