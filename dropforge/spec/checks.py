"""What must hold between the keys of a pipeline.yaml.

The checks look at the plain data, not at the model: they find what they can also when another key is wrong, so that
one reading tells everything. What does not have its right type is passed over here; the model says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeGuard

from pydantic import TypeAdapter, ValidationError

from dropforge.domain.bootstrap import fewest_blocks
from dropforge.spec.explain import quote_hint, shown
from dropforge.spec.model import Batching, Compute, Evaluation, Gate
from dropforge.spec.problems import Path, Problem, dotted, guess, listed
from dropforge.spec.tree import Tree
from dropforge.spec.values import Duration, duration_text

Found: TypeAlias = Iterator[tuple[Path, str]]

_LABELS = {
    "log_loss": ("string", "int", "bool"),
    "brier": ("string", "int", "bool"),
    "error_rate": ("string", "int", "bool"),
    "auc": ("string", "int", "bool"),
    "mae": ("int", "float"),
    "mse": ("int", "float"),
    "auto": ("string", "int", "bool", "float"),
}
_TYPES_OF = {"string": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
_DURATION: TypeAdapter[Any] = TypeAdapter(Duration)


def check(tree: Tree) -> list[Problem]:
    """Everything that does not fit together, in no particular order."""
    checks: tuple[Callable[[Tree], Found], ...] = (
        _columns, _roles, _listed_once, _label_type, _event_time_type, _slice_types,
        _waits, _enough_blocks, _parameter_names, _sweep, _near_misses, _alert_rules,
    )  # fmt: skip
    return [Problem(tree.line(path), dotted(path), message) for one in checks for path, message in one(tree)]


def _at(tree: Tree, *path: str) -> Any:
    found: Any = tree.data
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _texts(tree: Tree, *path: str) -> list[tuple[Path, str]]:
    """The texts of a list, with their places."""
    found = _at(tree, *path)
    items = found if isinstance(found, list) else []
    return [((*path, index), item) for index, item in enumerate(items) if isinstance(item, str)]


def _declared(tree: Tree) -> dict[str, dict[str, Any]]:
    """The declared columns by name, the first of a name."""
    found: dict[str, dict[str, Any]] = {}
    for _, column in _column_items(tree):
        if isinstance(column.get("name"), str):
            found.setdefault(column["name"], column)
    return found


def _column_items(tree: Tree) -> list[tuple[Path, dict[str, Any]]]:
    columns = _at(tree, "dataset", "columns")
    items = columns if isinstance(columns, list) else []
    return [(("dataset", "columns", index), item) for index, item in enumerate(items) if isinstance(item, dict)]


def _type_of(tree: Tree, name: object) -> str | None:
    kind = _declared(tree).get(name, {}).get("type") if isinstance(name, str) else None
    return kind if isinstance(kind, str) else None


# ------------------------------------------------------------------------------------------------ columns
def _columns(tree: Tree) -> Found:
    seen: dict[str, int] = {}
    for path, column in _column_items(tree):
        name, kind = column.get("name"), column.get("type")
        if isinstance(name, str):
            if name in seen:
                yield (*path, "name"), f"column {name!r} is declared twice; the first is on line {seen[name]}"
            seen.setdefault(name, tree.line((*path, "name")))
        low, high = column.get("min"), column.get("max")
        for key, value in (("min", low), ("max", high)):
            if value is not None and kind not in ("int", "float", None):
                yield (*path, key), f"found a bound for a column of type {kind}; only int and float columns have one"
        if _is_number(low) and _is_number(high) and low > high:
            yield (*path, "min"), f"found {low}, above max {high}; wanted min <= max"
        if column.get("pattern") is not None and kind not in ("string", None):
            yield (*path, "pattern"), f"found a pattern for a column of type {kind}; only string columns have one"
        yield from _allowed(tree, path, column)


def _allowed(tree: Tree, path: Path, column: dict[str, Any]) -> Found:
    kind, allowed = column.get("type"), column.get("allowed")
    if not isinstance(allowed, list):
        return
    if kind in ("timestamp", "date"):
        yield (
            (*path, "allowed"),
            f"found a list for a column of type {kind}; only string, int, float and bool columns have one",
        )
        return
    wanted = _TYPES_OF.get(kind) if isinstance(kind, str) else None
    seen = set()
    for index, value in enumerate(allowed):
        place = (*path, "allowed", index)
        # True and False are numbers to Python.
        fits = wanted is None or (isinstance(value, wanted) and (kind == "bool" or not isinstance(value, bool)))
        if value is not None and not fits:
            hint = quote_hint(value, place, tree) if kind == "string" else ""
            yield place, f"found {shown(value, place, tree)}; wanted a value of a column of type {kind}{hint}"
        elif isinstance(value, str | int | float) and (type(value), value) in seen:
            yield place, f"found {shown(value, place, tree)} twice"
        elif isinstance(value, str | int | float):
            seen.add((type(value), value))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------------ roles of columns
def _roles(tree: Tree) -> Found:
    label, event_time = _at(tree, "dataset", "label"), _at(tree, "dataset", "event_time")
    features, slices = _texts(tree, "training", "features"), _texts(tree, "evaluation", "slices")
    declared = _declared(tree)
    # Of a column whose name is wrong nobody knows what it would have been.
    all_named = all(isinstance(column.get("name"), str) for _, column in _column_items(tree))
    if declared and all_named and _at(tree, "dataset", "extra_columns") in ("drop", "refuse"):
        for path, name in [(("dataset", "label"), label), (("dataset", "event_time"), event_time), *features, *slices]:
            if isinstance(name, str) and name not in declared:
                hint = guess(name, declared) or "."
                yield (
                    path,
                    f"found {name!r}, which is not a declared column, and others are not kept{hint} "
                    f"Columns: {listed(list(declared))}",
                )
    for path, name in features:
        if name == label:
            yield path, f"found {name!r}, which is the label; a model must not see what it is to predict"
    if isinstance(label, str) and label == event_time:
        yield ("dataset", "event_time"), f"found {label!r}, which is the label; wanted another column"


def _listed_once(tree: Tree) -> Found:
    for section, key in (("training", "features"), ("evaluation", "slices")):
        seen = set()
        for path, name in _texts(tree, section, key):
            if name in seen:
                yield path, f"found {name!r} twice"
            seen.add(name)


def _label_type(tree: Tree) -> Found:
    kind = _type_of(tree, _at(tree, "dataset", "label"))
    metric = _at(tree, "evaluation", "metric") or "auto"
    fitting = _LABELS.get(metric) if isinstance(metric, str) else None
    if kind is None or fitting is None or kind in fitting or kind not in ("float", "timestamp", "date", *_TYPES_OF):
        return
    place = ("evaluation", "metric") if tree.lines.get(("evaluation", "metric")) else ("dataset", "label")
    metrics = [name for name, kinds in _LABELS.items() if kind in kinds]
    advice = f"metrics for it: {', '.join(metrics)}" if metrics else "a label is a string, int, float or bool"
    yield place, f"found {metric}, which does not fit the label, a column of type {kind}; {advice}"


def _event_time_type(tree: Tree) -> Found:
    kind = _type_of(tree, _at(tree, "dataset", "event_time"))
    if kind in _TYPES_OF:
        yield ("dataset", "event_time"), f"found a column of type {kind}; wanted one of type timestamp or date"


def _slice_types(tree: Tree) -> Found:
    for path, name in _texts(tree, "evaluation", "slices"):
        if (kind := _type_of(tree, name)) in ("float", "timestamp"):
            yield (
                path,
                f"found {name!r}, a column of type {kind}; wanted one with few values: string, int, bool or date",
            )


# ------------------------------------------------------------------------------------------------ the rest
def _waits(tree: Tree) -> Found:
    try:
        quiet, wait = (
            _DURATION.validate_python(_at(tree, "batching", key) or Batching.model_fields[key].default)
            for key in ("quiet_period", "max_wait")
        )
    except ValidationError:
        return
    if quiet > wait:
        key = "quiet_period" if ("batching", "quiet_period") in tree.lines else "max_wait"
        yield (
            ("batching", key),
            f"found quiet_period {duration_text(quiet)} and max_wait {duration_text(wait)}; "
            "a batch cannot wait longer for quiet than it may wait at all",
        )


def _enough_blocks(tree: Tree) -> Found:
    held, confidence = (
        Evaluation.model_fields[key].default if (value := _at(tree, "evaluation", key)) is None else value
        for key in ("holdout_blocks", "confidence")
    )
    unsure = _at(tree, "gate", "cannot_tell") or Gate.model_fields["cannot_tell"].default.value
    if not _is_number(held) or not _is_number(confidence) or not 0.5 <= confidence <= 0.999 or unsure != "keep":
        return
    fewest = fewest_blocks(confidence)
    if 1 <= held < fewest:
        key = "holdout_blocks" if ("evaluation", "holdout_blocks") in tree.lines else "confidence"
        yield (
            ("evaluation", key),
            f"found {held} held-out blocks and confidence {confidence:g}; no verdict comes from fewer than {fewest}, "
            "so nothing would ever be promoted. Hold out more, or set gate.cannot_tell to ask or promote",
        )


def _parameter_names(tree: Tree) -> Found:
    found = _at(tree, "training", "parameters")
    seen: dict[str, str] = {}
    for name in found if isinstance(found, dict) else {}:
        if name.upper() in seen:
            yield (
                ("training", "parameters", name),
                f"found {name!r} and {seen[name.upper()]!r}; both would be DROPFORGE_PARAM_{name.upper()}",
            )
        seen.setdefault(name.upper(), name)


def _sweep(tree: Tree) -> Found:
    place = ("training", "sweep", "parameters")
    found, fixed = _at(tree, *place), _at(tree, "training", "parameters")
    seen: dict[str, str] = {name.upper(): name for name in fixed} if isinstance(fixed, dict) else {}
    for name, axis in found.items() if isinstance(found, dict) else ():
        if name.upper() in seen:
            yield (
                (*place, name),
                f"found {name!r}, and {seen[name.upper()]!r} is a parameter already; remove one of them",
            )
        seen.setdefault(name.upper(), name)
        if isinstance(axis, dict):
            yield from _axis((*place, name), axis, _at(tree, "training", "sweep", "sampler"))


def _axis(path: Path, axis: dict[str, Any], sampler: object) -> Found:
    low, high, choice = axis.get("min"), axis.get("max"), axis.get("choice")
    if choice is not None and not (low is None and high is None):
        yield path, "found both `choice` and bounds; wanted one of them"
    if choice is None and (low is None or high is None):
        yield path, "wanted `choice`, or both `min` and `max`"
    if choice is None and sampler == "grid":
        yield path, "found no `choice`; a grid is made of listed values. List them, or set sampler: random"
    if isinstance(choice, list):
        for index, value in enumerate(choice):
            if any(type(value) is type(other) and value == other for other in choice[:index]):
                yield (*path, "choice", index), f"found {value!r} twice"
        for key in ("log", "int"):
            if axis.get(key) is True:
                yield (*path, key), "found it beside `choice`; it is for `min` and `max`"
    if not _is_number(low) or not _is_number(high):
        return
    if low >= high:
        yield (*path, "min"), f"found {low}, and max is {high}; wanted min < max"
    if axis.get("log") is True and low <= 0:
        yield (*path, "min"), f"found {low}; with `log` it must be above 0"
    if axis.get("int") is True:
        for key, value in (("min", low), ("max", high)):
            if isinstance(value, float) and math.isfinite(value) and not value.is_integer():
                yield (*path, key), f"found {value}; with `int` it must be a whole number"


def _near_misses(tree: Tree) -> Found:
    """Any key is allowed in `compute`, so a slip of the pen would go unnoticed."""
    found = _at(tree, "training", "compute")
    keys = list(Compute.model_fields)
    for name in found if isinstance(found, dict) else {}:
        if name not in keys and (hint := guess(name, keys, cutoff=0.75)):
            yield (
                ("training", "compute", name),
                f"unknown key{hint}",
            )


# ------------------------------------------------------------------------------------------------ alerts
def _alert_rules(tree: Tree) -> Found:
    found = _at(tree, "alerts")
    before: list[tuple[int, dict[str, Any]]] = []
    for index, rule in enumerate(found if isinstance(found, list) else []):
        if not isinstance(rule, dict):
            continue
        action = rule.get("action")
        if rule.get("until") is not None and action in ("retrain", "rollback", "notify"):
            yield (
                ("alerts", index, "until"),
                f"found it for {action}; only a pause ends. Remove it, or set action: pause",
            )
        severity = rule["severity"] if isinstance(rule.get("severity"), list) else []
        for place, each in enumerate(severity):
            if each in severity[:place]:
                yield ("alerts", index, "severity", place), f"found {each!r} twice"
        earlier = next((number for number, other in before if _covers(other, rule)), None)
        if earlier is not None:
            yield (
                ("alerts", index),
                f"never acts: alerts[{earlier}], on line {tree.line(('alerts', earlier))}, fits every alert that it fits, "
                "and the first that fits acts. Put the narrower rule first, or remove it",
            )
        before.append((index, rule))


def _covers(wide: dict[str, Any], narrow: dict[str, Any]) -> bool:
    """Whether every alert that the one fits is one that the other fits, as far as equal words and `*` tell."""
    name, severity = wide.get("rule"), wide.get("severity")
    if not isinstance(name, str) or not isinstance(narrow.get("rule"), str):
        return False
    if name != "*" and name.casefold() != narrow["rule"].casefold():
        return False
    if severity and not (
        isinstance(severity, list)
        and isinstance(narrow.get("severity"), list)
        and narrow["severity"]
        and all(each in severity for each in narrow["severity"])
    ):
        return False
    dimensions, others = wide.get("dimensions"), narrow.get("dimensions")
    if not dimensions:
        return True
    return (
        isinstance(dimensions, dict)
        and isinstance(others, dict)
        and all(name in others and others[name] == value for name, value in dimensions.items())
    )
