"""The parameters of a trial as they come on a command line, as the values that the pipeline's file names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dropforge.domain.runs import RunSpec
from dropforge.training.contract import ExitCode, NodeFailed


def typed_parameters(trial: str | None, pairs: Sequence[str], spec: RunSpec) -> dict[str, Any] | None:
    """The trial's parameters; None when none are given. Raises `NodeFailed` for what is no parameter of the sweep, or
    outside what the sweep tries."""
    found = _object(trial) if trial is not None else {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise _wrong(f"found --parameter {pair!r}; wanted name=value")
        found[name] = text
    if trial is None and not pairs:
        return None
    if spec.sweep is None:
        raise _wrong("found a trial's parameters, and the run spec has no sweep")
    space = spec.sweep.space
    if set(found) != set(space):
        raise _wrong(f"found the parameters {sorted(found)}; a trial of this sweep has {sorted(space)}")
    return {name: _typed(name, found[name], space[name]) for name in space}


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _wrong(f"found --trial {text!r}, which is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise _wrong(f"found --trial {text!r}; wanted a JSON object")
    return found


def _typed(name: str, value: Any, axis: Mapping[str, Any]) -> Any:
    """Services write every value as text, true as True, and 16 as 16.0 now and then."""
    choices = axis.get("choice")
    if choices is not None:
        same = [each for each in choices if _plain(each) == _plain(value)]
        if not same:
            raise _wrong(f"found {name}={value!r}; the sweep tries {list(choices)}")
        return same[0]
    number, low, high = _number(value), axis["min"], axis["max"]
    # A service that works with logarithms may come out just beside a bound.
    if number is not None and (math.isclose(number, low) or math.isclose(number, high)):
        number = min(max(number, float(low)), float(high))
    if number is None or not low <= number <= high:
        raise _wrong(f"found {name}={value!r}; the sweep tries numbers from {low} to {high}")
    if axis.get("int") and not number.is_integer():
        raise _wrong(f"found {name}={value!r}; the sweep tries whole numbers")
    return int(number) if axis.get("int") else number


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    number = _number(value)
    if number is not None:
        return number
    text = str(value)
    return text.lower() if text.lower() in ("true", "false") else text


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not re.fullmatch(r"\s*[-+]?[0-9.]+(e[-+]?[0-9]+)?\s*", str(value), re.IGNORECASE):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _wrong(message: str) -> NodeFailed:
    return NodeFailed(ExitCode.SPEC_WRONG, message)
