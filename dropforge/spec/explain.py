"""Pydantic's errors in the words of a pipeline.yaml."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dropforge.spec.problems import Path, Problem, dotted, guess, listed
from dropforge.spec.tree import Tree

# What pydantic calls it, and what it wants.
_WANTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list, as in [a, b]",
    "dict_type": "a mapping of names to values",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "string_too_short": "text that is not empty",
    "string_too_long": "at most {max_length} characters",
}


def explained(error: ErrorDetails, tree: Tree, root: type[BaseModel]) -> Problem:
    """One error of pydantic's as a problem with its line."""
    # The key of a mapping that does not fit is marked so, at the end.
    path = tuple(part for part in error["loc"] if part != "[key]")
    return Problem(tree.line(path), dotted(path), _message(error, path, tree, root))


def _message(error: ErrorDetails, path: Path, tree: Tree, root: type[BaseModel]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        keys = list(section_at(root, path[:-1]).model_fields)
        return f"unknown key{guess(path[-1], keys) or '.'} Keys here: {', '.join(keys)}"
    if kind == "missing":
        return f"is missing; wanted {_meaning(root, path)}"
    found = shown(error["input"], path, tree)
    if kind in ("literal_error", "enum"):
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"found {found}; allowed: {listed(choices)}{guess(error['input'], choices)}"
    if kind == "model_type":
        return f"found {found}; wanted {_meaning(root, path)}"
    if kind == "unfit":
        hint = quote_hint(error["input"], path, tree) if isinstance(error["input"], date) else ""
        return f"found {found}; wanted {context['wanted']}{hint}"
    wanted = _WANTED[kind].format(**context) if kind in _WANTED else error["msg"]
    return f"found {found}; wanted {wanted}{quote_hint(error['input'], path, tree) if kind == 'string_type' else ''}"


def shown(value: object, path: Path, tree: Tree) -> str:
    """What stands in the file, short."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    written = tree.unquoted.get(path)
    text = repr(value) if isinstance(value, str) else written if written is not None else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def quote_hint(value: object, path: Path, tree: Tree) -> str:
    """How to write as text what YAML took for something else."""
    written = tree.unquoted.get(path)
    if written is None or not isinstance(value, bool | int | float | date):
        return ""
    read_as = {bool: "true or false", int: "a number", float: "a number"}.get(type(value), "a date")
    return f" (YAML reads {written} as {read_as}; with quotes, '{written}', it is text)"


def section_at(root: type[BaseModel], path: Path) -> type[BaseModel]:
    """The model of the section at that path."""
    return _place(root, path)[0]


def _meaning(root: type[BaseModel], path: Path) -> str:
    """What belongs at a path."""
    section, field = _place(root, path)
    if field is not None and field.description:
        return f"{field.description[:1].lower()}{field.description[1:]}"
    return f"a section. Keys here: {', '.join(section.model_fields)}"


def _place(root: type[BaseModel], path: Path) -> tuple[type[BaseModel], FieldInfo | None]:
    """The section at that path, and its key; no key at an item of a list and at a name that the pipeline gives."""
    section, field = root, None
    for part in path:
        if isinstance(part, int) or (field is not None and get_origin(field.annotation) is dict):
            field = None
        else:
            field = section.model_fields.get(part)
            section = (_model_in(field.annotation) if field else None) or section
    return section, field


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (tuple, dict, Annotated, Union, types.UnionType):
        return next(filter(None, map(_model_in, get_args(annotation))), None)
    return None
