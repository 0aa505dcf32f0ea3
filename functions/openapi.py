"""The OpenAPI 3.1 document, made of the table of operations and of the shapes that they answer.

python -m functions.openapi > docs/openapi.json
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from functools import cache
from typing import Any

import msgspec

from dropforge.domain import models, runs
from dropforge.steps import views
from functions import alerts, api_read, api_write
from functions.answers import phrase
from functions.operations import OPERATIONS, Operation
from functions.parameters import Parameter

VERSION = "1.0"
PROBLEM = "application/problem+json"
REF = "#/components/schemas/{name}"
DESCRIPTION = """\
Drop data, get a proven better model in production. Every refusal is a problem (RFC 9457). Lists are paged: `next` of a \
page is the `token` of the following one, and null on the last. A POST that starts work answers 202 with the place of the \
command in `Location`; sent again with the same `Idempotency-Key` it has no second effect."""
# What every operation may answer, and what only those with a role may.
ANYWHERE = (400, 500, 503)
GUARDED = (401, 403, 404)
_GENERIC: dict[str, Any] = {"type": "object", "additionalProperties": True}


@cache
def document() -> dict[str, Any]:
    """The document as JSON."""
    assert alerts and api_read and api_write  # these fill the table
    named = sorted({name for each in OPERATIONS for name in each.gives.values() if name[0].isupper()})
    _, schemas = msgspec.json.schema_components([*map(_shape, named), views.ProblemDetails], ref_template=REF)
    for schema in schemas.values():
        if "description" in schema:
            # Python 3.13 cleans docstrings itself.
            schema["description"] = inspect.cleandoc(schema["description"])
    paths: dict[str, dict[str, Any]] = {}
    for each in OPERATIONS:
        paths.setdefault(f"/{each.path}", {})[each.method.lower()] = _operation(each)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Dropforge", "version": VERSION, "description": DESCRIPTION, "license": _LICENSE},
        "servers": [{"url": "/api"}],
        "security": [{"key": []}, {"keyInQuery": []}, {"entra": []}],
        "tags": [{"name": name} for name in sorted({_tag(each) for each in OPERATIONS})],
        "paths": dict(sorted(paths.items())),
        "components": {
            "parameters": {_key(each): each.document() for each in _shared()},
            "responses": {str(status): _problem(status) for status in sorted(_refusals())},
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": _SECURITY,
        },
    }


@cache
def etag() -> str:
    """Of the document."""
    return hashlib.sha256(text().encode()).hexdigest()[:16]


def text() -> str:
    """The document as `docs/openapi.json` holds it."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


_LICENSE = {"name": "MIT", "identifier": "MIT"}
_SECURITY = {
    "key": {"type": "apiKey", "in": "header", "name": "x-functions-key", "description": "A function key."},
    "keyInQuery": {"type": "apiKey", "in": "query", "name": "code", "description": "A function key."},
    "entra": {"type": "http", "scheme": "bearer", "description": "A token of Entra, where App Service asks for one."},
}


def _shape(name: str) -> type:
    for module in (views, runs, models):
        if hasattr(module, name):
            found: type = getattr(module, name)
            return found
    raise LookupError(f"operation gives {name!r}, which is no shape in dropforge.steps.views or dropforge.domain")


def _tag(of: Operation) -> str:
    """The kind of thing that a path is about: the last fixed part of it but one that names an action."""
    parts = [part for part in of.path.removeprefix("v1/").split("/") if not part.startswith("{")]
    known = (
        "alerts",
        "misfits",
        "storage-events",
        "approvals",
        "arrivals",
        "commands",
        "datasets",
        "endpoints",
        "models",
        "runs",
        "rules",
    )
    return next((part for part in reversed(parts) if part in known), "pipelines" if "pipelines" in parts else "app")


def _operation(of: Operation) -> dict[str, Any]:
    role = f"Needs the role **{of.role.value}**." if of.role is not None else "Open to anybody."
    said: dict[str, Any] = {
        "operationId": of.name,
        "tags": [_tag(of)],
        "summary": of.description.partition(". ")[0].removesuffix("."),
        "description": f"{of.description} {role}",
        "parameters": [{"$ref": f"#/components/parameters/{_key(each)}"} for each in of.parameters],
        "responses": {str(status): answer for status, answer in sorted(_responses(of).items())},
    }
    if of.role is None:
        said["security"] = []
    if of.body is not None:
        content: dict[str, Any] = {"schema": of.body.schema()}
        if of.body.example is not None:
            content["example"] = of.body.example
        said["requestBody"] = {
            "required": of.body.required,
            "content": dict.fromkeys(of.body.media_types, content),
        }
    return said


def _responses(of: Operation) -> dict[int, dict[str, Any]]:
    headers = [each.name for each in of.headers]
    found = {status: _given(status, name, headers) for status, name in of.gives.items()}
    if "If-None-Match" in headers and of.method == "GET":
        found[304] = {"description": "It is what the asker has already.", "headers": {"ETag": _header("")}}
    return found | {status: {"$ref": f"#/components/responses/{status}"} for status in _refusals_of(of)}


def _refusals_of(of: Operation) -> set[int]:
    return {*ANYWHERE, *(GUARDED if of.role is not None else ()), *of.refusals}


def _refusals() -> set[int]:
    return {status for each in OPERATIONS for status in _refusals_of(each)}


def _shared() -> list[Parameter]:
    found = {_key(parameter): parameter for each in OPERATIONS for parameter in each.parameters}
    return [found[key] for key in sorted(found)]


def _key(of: Parameter) -> str:
    """The parameter's name in the document; two that differ and are called alike differ in what they choose from."""
    more = f".{'-'.join(of.choices)}" if of.choices else ""
    return f"{of.place}.{of.name}{more}"


def _given(status: int, name: str, headers: list[str]) -> dict[str, Any]:
    content: dict[str, Any]
    if "/" in name:
        content = {name: {"schema": {"type": "string"}}}
    else:
        schema: dict[str, Any] = {"$ref": REF.format(name=name)} if name[0].isupper() else _GENERIC
        content = {"application/json": {"schema": schema}}
    said: dict[str, Any] = {"description": phrase(status), "content": content}
    told: dict[str, Any] = {}
    if "If-None-Match" in headers:
        told["ETag"] = _header("What `If-Match` and `If-None-Match` name.")
    if "Idempotency-Key" in headers:
        told["Location"] = _header("Where the command, and how the work stands, is found.")
        told["Idempotency-Replayed"] = _header("`true` when this answers a request that was sent before.")
    return {**said, "headers": told} if told else said


def _problem(status: int) -> dict[str, Any]:
    if status == 401:
        # As a rule the host says it, without a body.
        return {"description": "It cannot be told who asks: the key is missing or wrong, or nobody is signed in."}
    schema = {"$ref": REF.format(name="ProblemDetails")}
    return {"description": phrase(status), "content": {PROBLEM: {"schema": schema}}}


def _header(description: str) -> dict[str, Any]:
    return {"schema": {"type": "string"}} | ({"description": description} if description else {})


if __name__ == "__main__":
    sys.stdout.write(text())
