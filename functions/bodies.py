"""What a request may carry: one value makes both the check and the document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import azure.functions as func

from dropforge.domain import commands as words
from dropforge.domain.commands import Kind
from dropforge.domain.errors import BadInput
from functions.answers import Problem

JSON = "application/json"
YAML = ("application/yaml", "text/plain")
MAX_JSON_BYTES = 64 * 1024
MAX_JSON_DEPTH = 16
MAX_YAML_BYTES = 256 * 1024
MAX_BUNDLE_BYTES = 50 * 1024 * 1024


@dataclass(frozen=True)
class Body:
    """A request's body: its media types, its schema, how it is read."""

    media_types: tuple[str, ...]
    schema: Callable[[], dict[str, Any]]
    max_bytes: int
    read: Callable[[bytes], Any]
    required: bool = False
    example: Any = None

    def of(self, req: func.HttpRequest) -> Any:
        """What the request carries. Raises the problems 413 and 415, and `BadInput`."""
        raw = req.get_body()
        if len(raw) > self.max_bytes:
            raise Problem(413, "too-large", f"the body has {len(raw)} bytes; allowed here are {self.max_bytes}")
        media_type = req.headers.get("content-type", "").partition(";")[0].strip().lower()
        if raw and media_type and media_type not in self.media_types:
            raise Problem(
                415,
                "unsupported-media-type",
                f"the body is of type {media_type[:100]!r}; send {' or '.join(self.media_types)} and say so in the header "
                "content-type",
            )
        return self.read(raw)


def bundle() -> Body:
    """A pipeline's folder as a zip."""
    return Body(
        media_types=("application/zip", "application/octet-stream"),
        schema=lambda: {"type": "string", "format": "binary", "contentMediaType": "application/zip"},
        max_bytes=MAX_BUNDLE_BYTES,
        read=lambda raw: raw,
        required=True,
    )


def pipeline_yaml() -> Body:
    """The text of a pipeline.yaml."""

    def read(raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise BadInput(f"the body is not UTF-8 text: {error}") from None

    return Body(YAML, lambda: {"type": "string"}, MAX_YAML_BYTES, read, required=True)


def arguments(kind: Kind) -> Body:
    """The arguments of one kind of command, and who asks."""

    def schema() -> dict[str, Any]:
        found = words.arguments_schema(kind)
        return {**found, "properties": {**found["properties"], "by": _BY}}

    required = any(each.required for each in words.FORMS[kind].arguments.values())
    return _json(schema, required=required, example=words.example(kind).get("arguments"))


def any_command() -> Body:
    """A command as the queue `commands` takes it."""

    def schema() -> dict[str, Any]:
        return {"oneOf": list(words.schema()["$defs"].values())}

    return _json(schema, required=True, example=words.example(Kind.PROMOTE))


def given_answer() -> Body:
    """The answer to a question."""

    def schema() -> dict[str, Any]:
        reason = words.FORMS[Kind.APPROVE].arguments["reason"].schema()
        answer = {"type": "string", "enum": [Kind.APPROVE.value, Kind.REJECT.value], "description": "One of `allowed`."}
        properties = {"answer": answer, "reason": reason, "by": _BY}
        return {"type": "object", "properties": properties, "required": ["answer"], "additionalProperties": False}

    return _json(schema, required=True, example={"answer": "approve", "reason": "checked the slices by hand"})


def asker() -> Body:
    """Nothing but who asks."""
    return _json(lambda: {"type": "object", "properties": {"by": _BY}, "additionalProperties": False})


_BY = words.or_null(
    {
        "type": "string",
        "minLength": 1,
        "maxLength": words.MAX_ID,
        "description": "Who asks; recorded as a claim of the key's holder. Whoever signs in is recorded by his own name.",
    }
)


def _json(schema: Callable[[], dict[str, Any]], *, required: bool = False, example: Any = None) -> Body:
    return Body((JSON,), schema, MAX_JSON_BYTES, read_object, required, example)


def read_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in a body; an empty body is an empty object. Raises `BadInput`."""
    if not raw:
        return {}
    # Loaded with the first body: half of the app's answers need none of it.
    from dropforge.steps import commands

    value = commands.read(raw)
    if not isinstance(value, dict):
        raise BadInput(f"the body is a JSON {type(value).__name__}; it must be an object")
    return {name: _plain(each, 1) for name, each in value.items()}


def _plain(value: object, depth: int) -> Any:
    """The value with whole numbers as such: to JSON schema, 3.0 is one. Raises `BadInput` for JSON that is nested deeper
    than anything here means."""
    if depth > MAX_JSON_DEPTH:
        raise BadInput(f"the body's JSON is nested deeper than {MAX_JSON_DEPTH} levels")
    if isinstance(value, dict):
        return {name: _plain(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, depth + 1) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
