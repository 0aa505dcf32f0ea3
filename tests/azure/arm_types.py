"""The official types of ARM request bodies as JSON Schema, and what is wrong with a body that is not of its type."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

_REQUIRED = 1
_READ_ONLY = 2
# In the path of a REST call, not in its body.
_IN_THE_PATH = frozenset({"name", "type", "apiVersion", "id"})


def path() -> Path:
    return Path(os.environ.get("DROPFORGE_ARM_TYPES") or Path(__file__).with_name("arm-types.json"))


def problems(
    resource_type: str, api_version: str, body: dict[str, Any], *, strict: bool = True, partial: bool = False
) -> list[str]:
    """What the official type says against this body of a PUT, one line each; empty: nothing.

    Strict also refuses values that an extensible enum does not list. Partial is for PATCH: nothing has to be there. A type
    that the file has of another api-version only is held to that one, and each line says so. Raises `KeyError` on a type
    that the file does not have.
    """
    name = _known(resource_type, api_version)
    found = _validator(str(path()), name, strict, partial).iter_errors(body)
    note = "" if name.endswith(f"@{api_version}") else f" (of {name.rsplit('@', 1)[1]}, sent as {api_version})"
    return sorted({f"{place}: {said}{note}" for error in found for place, said in _leaves(error)})


def known(resource_type: str) -> bool:
    return any(name.split("@")[0].lower() == resource_type.lower() for name in _file(str(path())))


def schema(resource_type: str, api_version: str, *, strict: bool = True, partial: bool = False) -> dict[str, Any]:
    """The JSON Schema (2020-12) of the body of a PUT."""
    entry = _file(str(path()))[_known(resource_type, api_version)]
    return _Schemas(entry["types"], strict, partial).of_resource(entry["root"])


@cache
def _file(where: str) -> dict[str, Any]:
    return dict(json.loads(Path(where).read_bytes()))


def _known(resource_type: str, api_version: str) -> str:
    versions = [name for name in _file(str(path())) if name.split("@")[0].lower() == resource_type.lower()]
    exact = [name for name in versions if name.split("@")[1] == api_version]
    if not versions:
        raise KeyError(f"no type {resource_type!r} in {path()}")
    return (exact or sorted(versions))[-1]


@cache
def _validator(where: str, name: str, strict: bool, partial: bool) -> Draft202012Validator:
    entry = _file(where)[name]
    return Draft202012Validator(_Schemas(entry["types"], strict, partial).of_resource(entry["root"]))


def _leaves(error: ValidationError) -> list[tuple[str, str]]:
    """Where and what, of the innermost errors."""
    if error.context:
        return [leaf for inner in error.context for leaf in _leaves(inner)]
    place = "/".join(str(part) for part in error.absolute_path) or "body"
    if error.validator == "not" and isinstance(error.schema, dict) and "title" in error.schema:
        return [(place, str(error.schema["title"]))]
    return [(place, error.message[:300])]


class _Schemas:
    """One resource type's list of types, as schemas that refer to each other."""

    def __init__(self, types: list[dict[str, Any]], strict: bool, partial: bool) -> None:
        self.types = types
        self.strict = strict
        self.partial = partial
        self.defs: dict[str, dict[str, Any]] = {}

    def of_resource(self, root: int) -> dict[str, Any]:
        body = self._object(root)
        body["properties"] = {name: value for name, value in body["properties"].items() if name not in _IN_THE_PATH}
        body["required"] = [name for name in body["required"] if name not in _IN_THE_PATH]
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **body, "$defs": self.defs}

    def _schema(self, index: int) -> dict[str, Any]:
        found = self.types[index]
        match found["$type"]:
            case "AnyType":
                return {}
            case "BooleanType":
                return {"type": "boolean"}
            case "StringLiteralType":
                return {"const": found["value"]}
            case "StringType":
                return {"type": "string"} | {k: found[k] for k in ("minLength", "maxLength", "pattern") if k in found}
            case "IntegerType":
                # Bicep has no float: what Azure calls a number is an integer here too.
                limits = {"minValue": "minimum", "maxValue": "maximum"}
                return {"type": "number"} | {limits[k]: found[k] for k in limits if k in found}
            case "UnionType":
                return self._union(found)
            case "ArrayType":
                limits = {"minLength": "minItems", "maxLength": "maxItems"}
                items = {"type": "array", "items": self._schema(_index(found["itemType"]))}
                return items | {limits[k]: found[k] for k in limits if k in found}
            case "ObjectType" | "DiscriminatedObjectType":
                return self._reference(index)
        raise NotImplementedError(found["$type"])

    def _reference(self, index: int) -> dict[str, Any]:
        key = f"t{index}"
        if key not in self.defs:
            # Before its content, which may refer to it.
            self.defs[key] = {}
            kind = self.types[index]["$type"]
            self.defs[key].update(self._object(index) if kind == "ObjectType" else self._one_of_kinds(index))
        return {"$ref": f"#/$defs/{key}"}

    def _union(self, found: dict[str, Any]) -> dict[str, Any]:
        members = [_index(member) for member in found["elements"]]
        values = [self.types[i]["value"] for i in members if self.types[i]["$type"] == "StringLiteralType"]
        others = [i for i in members if self.types[i]["$type"] != "StringLiteralType"]
        # An extensible enum is its values, or any string.
        if values and self.strict and all(self.types[i]["$type"] == "StringType" for i in others):
            return {"enum": values}
        return {"anyOf": ([{"enum": values}] if values else []) + [self._schema(i) for i in others]}

    def _properties(self, found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        properties: dict[str, Any] = {}
        for name, given in found.items():
            if given["flags"] & _READ_ONLY:
                properties[name] = {"not": {}, "title": f"{name!r} is read-only"}
            else:
                properties[name] = self._schema(_index(given["type"]))
        wanted = [
            name for name, given in found.items() if given["flags"] & _REQUIRED and not given["flags"] & _READ_ONLY
        ]
        return properties, [] if self.partial else wanted

    def _object(self, index: int, base: dict[str, Any] | None = None) -> dict[str, Any]:
        found = self.types[index]
        properties, required = self._properties({**(base or {}), **found.get("properties", {})})
        # The file has no property of this name in any type: it went with the documentation, which is keyed alike.
        properties.setdefault("description", {"type": "string"})
        others = found.get("additionalProperties")
        return {
            "type": "object",
            "properties": properties,
            "required": sorted(required),
            "additionalProperties": self._schema(_index(others)) if others else False,
        }

    def _one_of_kinds(self, index: int) -> dict[str, Any]:
        """An object whose kind one of its own properties names."""
        found = self.types[index]
        told_by = found["discriminator"]
        chosen = []
        for value, reference in found["elements"].items():
            kind = self._object(_index(reference), found.get("baseProperties", {}))
            kind["properties"][told_by] = {"const": value}
            name = f"t{_index(reference)}_of_{index}"
            self.defs[name] = kind
            told = {"properties": {told_by: {"const": value}}, "required": [told_by]}
            chosen.append({"if": told, "then": {"$ref": f"#/$defs/{name}"}})
        properties = {told_by: {"enum": list(found["elements"])}}
        return {"type": "object", "required": [told_by], "properties": properties, "allOf": chosen}


def _index(reference: dict[str, str]) -> int:
    return int(reference["$ref"].rsplit("/", 1)[1])
