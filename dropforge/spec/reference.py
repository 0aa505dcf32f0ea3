"""The reference of every key of `pipeline.yaml`, as Markdown, made from the model."""

from __future__ import annotations

from typing import Any

from dropforge.spec.schema import schema
from dropforge.spec.values import DURATION_PATTERN, SIZE_PATTERN, size_text

_INTRODUCTION = """\
# pipeline.yaml

<!-- Made by `python -m dropforge.spec reference > docs/pipeline-yaml.md`; a test keeps it in step with the model. -->

One file describes a pipeline. The least it can say:

```yaml
# yaml-language-server: $schema=pipeline.schema.json
name: flights
dataset: {format: csv}
training: {command: python train.py}
```

- Durations are whole numbers with a unit: `30s`, `15m`, `1h`, `2d`; at least a second, at most 366 days.
- Sizes are whole numbers of bytes, or numbers with a unit: `500KB`, `1.5GB` (1KB is 1024 bytes; also `B`, `MB`, `TB`).
- Text that looks like something else to YAML needs quotes: `"no"`, `"1.10"`, `"2024-01-01"`.
- Anchors (`&a`, `*a`) work, merge keys (`<<`) do not. A file has at most 256 KB.
- A mistake is reported with its line, what was found and what is allowed; all mistakes at once. Unknown keys are
  mistakes, also of the YAML kind: a key that is there twice, a number that YAML 1.1 reads in its own way (`010`, `1:30`).
- The JSON schema for editors is [pipeline.schema.json](pipeline.schema.json).

"""
_RULES = """\
## What must hold between keys

- With declared columns and `extra_columns: drop` or `refuse`, the columns that `label`, `event_time`, `features` and
  `slices` name must be declared.
- The label is not a feature and not the event time. An event time column is of type timestamp or date; a slice column
  is not of type float or timestamp.
- `log_loss`, `brier`, `error_rate` and `auc` want a label of type string, int or bool; `mae` and `mse` one of type int
  or float.
- `min` and `max` are for int and float columns, with `min <= max`; `pattern` is for string columns; the values of
  `allowed` are of the column's type, each there once.
- `quiet_period` is not longer than `max_wait`.
- Parameters whose names differ only in case are refused: they would be one environment variable.
- A parameter that a sweep tries is not in `training.parameters` as well. It has either a `choice` or both bounds, with
  `min < max`; `log` wants them above 0, `int` whole. A `grid` wants a `choice` for each.
- `holdout_blocks` is large enough for a verdict at this `confidence` ([verdicts](verdicts.md): 5 at 0.9), unless
  `gate.cannot_tell` is ask or promote.
"""


def reference_text() -> str:
    """The text of `docs/pipeline-yaml.md`."""
    root = schema()
    return _INTRODUCTION + "".join(_section(root, "", root)) + _RULES


def _section(root: dict[str, Any], path: str, section: dict[str, Any]) -> list[str]:
    """The table of one section, then those of the sections in it."""
    title = f"`{path}`" if path else "Top level"
    lines = [f"## {title}\n\n", *([f"{section['description']}\n\n"] if "description" in section else [])]
    lines += ["| key | what it is | default | meaning |\n", "|---|---|---|---|\n"]
    inner: list[str] = []
    for key, value in section["properties"].items():
        child = _child(root, value)
        if child is not None:
            mark = {"array": "[]", "object": ".<name>"}.get(value.get("type", ""), "")
            inner += _section(root, f"{path}.{key}".lstrip(".") + mark, child)
        kind = "section" if child is not None and "type" not in value else _kind(root, value)
        default = "**required**" if key in section.get("required", []) else _default(kind, value)
        meaning = value.get("description") or (child or {}).get("description", "")
        lines.append(f"| `{key}` | {kind} | {default} | {meaning} |\n")
    return [*lines, "\n", *inner]


def _child(root: dict[str, Any], value: dict[str, Any]) -> dict[str, Any] | None:
    optional: dict[str, Any] = next((one for one in value.get("anyOf", ()) if "$ref" in one), {})
    inside = (value, value.get("items", {}), value.get("additionalProperties", {}), optional)
    reference = next((each["$ref"] for each in inside if isinstance(each, dict) and "$ref" in each), None)
    found: dict[str, Any] = root["$defs"][reference.rpartition("/")[2]] if reference else {}
    return found if "properties" in found else None


def _kind(root: dict[str, Any], value: dict[str, Any]) -> str:
    if "$ref" in value:
        value = root["$defs"][value["$ref"].rpartition("/")[2]]
    if "anyOf" in value:
        if any(one.get("pattern") == SIZE_PATTERN for one in value["anyOf"]):
            return "size"
        kinds = [_kind(root, one) for one in value["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if value.get("pattern") == DURATION_PATTERN:
        return "duration"
    kind = value.get("type", "value")
    if isinstance(kind, list):
        return "text, number, true or false"
    if kind == "array":
        return f"list of {'sections' if _child(root, value) else _kind(root, value['items'])}"
    if kind == "object":
        return f"names with {'sections' if _child(root, value) else _kind(root, value['additionalProperties'])}"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    return words[kind] + _bounds(value)


def _bounds(value: dict[str, Any]) -> str:
    low, high = value.get("minimum"), value.get("maximum")
    if low is None:
        return ""
    return f", {low} to {high}" if high is not None else f", at least {low}"


def _default(kind: str, value: dict[str, Any]) -> str:
    default = value.get("default")
    if default is None or default == "" or default == [] or default == {}:
        return ""
    if kind == "size":
        return f"`{size_text(default)}`"
    return f"`{str(default).lower() if isinstance(default, bool) else f'{default:g}' if isinstance(default, float) else default}`"
