"""Commands: what people and programs may ask of a pipeline, with the arguments each takes. One table makes it all."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal, NoReturn

from dropforge.domain.causes import MAX_HOPS_GIVEN, Cause, hops_of
from dropforge.domain.errors import BadCommand
from dropforge.domain.names import NAME, is_unicode


class Kind(Enum):
    TRAIN = "train"
    EVALUATE = "evaluate"
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    APPROVE = "approve"
    REJECT = "reject"
    CANCEL = "cancel"
    REPLAY = "replay"
    RECONCILE = "reconcile"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True)
class Command:
    """One request, whichever door it came through. The same `id` again is the same request."""

    # The message's id, the request's Idempotency-Key, or one made up by the door.
    id: str
    kind: Kind
    pipeline: str
    arguments: dict[str, Any]
    # Who asked, as far as the door can tell.
    by: str
    cause: Cause
    # The queue that waits for the answer, and the session it waits in.
    reply_to: str | None = None
    reply_session: str | None = None


@dataclass(frozen=True)
class Argument:
    """What a command may say besides its pipeline: a number from 1 on, the id of something, or a text."""

    type: Literal["number", "id", "text"]
    description: str
    example: int | str
    required: bool = False

    def schema(self) -> dict[str, Any]:
        """As JSON schema."""
        found = {**_TYPES[self.type], "description": self.description, "examples": [self.example]}
        return found if self.required else or_null(found)


MAX_NUMBER = 10**9
MAX_TEXT = 2000
ID = re.compile(r"[!-~]{1,128}")
_TYPES: Mapping[str, dict[str, Any]] = {
    "number": {"type": "integer", "minimum": 1, "maximum": MAX_NUMBER},
    "id": {"type": "string", "pattern": f"^{ID.pattern}$"},
    "text": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT},
}


@dataclass(frozen=True)
class Form:
    """What a command does, and its arguments by name."""

    description: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)


_RUN = Argument("id", "The run that asks; `ApprovalRequested` names it.", "flights-12-3fa9c1", required=True)
_REASON = Argument("text", "Why; kept beside the answer.", "checked the slices by hand")

FORMS: Mapping[Kind, Form] = {
    Kind.TRAIN: Form("Train on the newest dataset version, also when it has been trained on before."),
    Kind.EVALUATE: Form(
        "Compare a model version with the champion on the newest dataset version; nothing is promoted.",
        {"version": Argument("number", "The model version; without it, the newest one.", 3)},
    ),
    Kind.PROMOTE: Form(
        "Put a model version behind the pipeline's endpoint and make it the champion.",
        {"version": Argument("number", "The model version.", 3, required=True)},
    ),
    Kind.ROLLBACK: Form("Put the champion before this one back."),
    Kind.APPROVE: Form("Answer a run's question: promote its model.", {"run": _RUN, "reason": _REASON}),
    Kind.REJECT: Form("Answer a run's question: keep the champion.", {"run": _RUN, "reason": _REASON}),
    Kind.CANCEL: Form(
        "End a run; the pipeline goes on without its model.",
        {"run": Argument("id", "The run.", "flights-12-3fa9c1", required=True)},
    ),
    Kind.REPLAY: Form(
        "Check quarantined files again, by the rules as they are now.",
        {"arrival": Argument("id", "One file's arrival id; without it, every file in quarantine.", "ab" * 16)},
    ),
    Kind.RECONCILE: Form("Compare the drop folder with the ledger, and take in what events missed."),
    Kind.PAUSE: Form(
        "Hold the pipeline: files and events are taken down, nothing is cut, trained or promoted by itself.",
        {"reason": Argument("text", "Why; shown in `status`.", "the supplier sends wrong units")},
    ),
    Kind.RESUME: Form("Let a paused pipeline go on with what has been waiting."),
}

_KEYS = ("command", "pipeline", "arguments", "by", "correlationId", "causationId", "hops")
# Characters of an id or a name that a caller gives; Service Bus takes no longer ids.
MAX_ID = 128


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A key that may be left out may also be null: many programs write what they leave out that way."""
    return {**schema, "type": [schema["type"], "null"]}


def arguments_schema(kind: Kind) -> dict[str, Any]:
    """The JSON schema of a command's `arguments`."""
    arguments = FORMS[kind].arguments
    found: dict[str, Any] = {
        "type": "object",
        "properties": {name: each.schema() for name, each in arguments.items()},
        "additionalProperties": False,
    }
    required = [name for name, each in arguments.items() if each.required]
    return {**found, "required": required} if required else found


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a command message's body."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Dropforge command",
        "description": "The body of a message on the `commands` queue. See docs/commands.md.",
        "oneOf": [{"$ref": f"#/$defs/{kind.value}"} for kind in Kind],
        "$defs": {kind.value: _schema_of(kind) for kind in Kind},
    }


def schema_text() -> str:
    """The schema as the text of `docs/commands.schema.json`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def example(kind: Kind) -> dict[str, Any]:
    """A body that says everything the command can say."""
    arguments = {name: each.example for name, each in FORMS[kind].arguments.items()}
    given = {"arguments": arguments} if arguments else {}
    return {"command": kind.value, "pipeline": "flights", **given, "correlationId": "ticket-4711"}


def _schema_of(kind: Kind) -> dict[str, Any]:
    arguments = arguments_schema(kind)
    text = or_null({"type": "string", "minLength": 1, "maxLength": MAX_ID})
    return {
        "type": "object",
        "description": FORMS[kind].description,
        "properties": {
            "command": {"const": kind.value},
            "pipeline": {"type": "string", "pattern": f"^(?:{NAME.pattern})$", "description": "The pipeline's name."},
            "arguments": arguments if "required" in arguments else or_null(arguments),
            "by": {**text, "description": "Who asks; recorded as claimed."},
            "correlationId": {
                **text,
                "description": "What the sender calls this piece of work: on the reply, and on every event that follows.",
            },
            "causationId": {**text, "description": "The id of the platform's event because of which this is asked."},
            "hops": {
                "type": ["integer", "null"],
                "minimum": 0,
                "maximum": MAX_HOPS_GIVEN,
                "description": "The `hops` of that event. Beyond the limit the command is refused: a loop ends there.",
            },
        },
        "required": ["command", "pipeline", *(["arguments"] if "required" in arguments else [])],
        "additionalProperties": False,
        "examples": [example(kind)],
    }


# ------------------------------------------------------------------------------------------------ understanding
def read(raw: bytes) -> object:
    """The JSON value that a message holds. Raises `BadCommand`."""
    try:
        return json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BadCommand(f"the command is not JSON: {error}") from None


def parse(
    body: object,
    *,
    id: str,  # noqa: A002  the command's
    by: str,
    cause: Cause,
    reply_to: str | None = None,
    reply_session: str | None = None,
) -> Command:
    """The command that a JSON body is; docs/commands.schema.json says what it may hold.

    What the body says of its reasons is added to the `cause`, whoever it says asks to `by`. Raises `BadCommand` that
    names the key, what was wanted and what was found.
    """
    if not isinstance(body, dict):
        raise BadCommand(f"the command is a JSON {_kind_of(body)}; it must be an object with `command` and `pipeline`")
    unknown = [key for key in body if key not in _KEYS]
    if unknown:
        raise BadCommand(f"{shown(unknown[0])} is no key of a command; choose from {', '.join(_KEYS)}")
    body = _without_nulls(body)
    kind = _kind(body.get("command"))
    pipeline = body.get("pipeline")
    if not isinstance(pipeline, str) or not NAME.fullmatch(pipeline):
        raise BadCommand(f"`pipeline` is {shown(pipeline)}; it must be the name of a pipeline")
    claimed = _text(body, "by")
    hops = max(cause.hops, _hops(body), hops_of(_text(body, "causationId")))
    return Command(
        id=id,
        kind=kind,
        pipeline=pipeline,
        arguments=_arguments(kind, body.get("arguments", {})),
        by=f"{by}: {claimed}" if claimed else by,
        cause=replace(cause, correlation=_text(body, "correlationId") or cause.correlation, hops=hops),
        reply_to=reply_to,
        reply_session=reply_session,
    )


def _kind(value: object) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        choices = ", ".join(kind.value for kind in Kind)
        raise BadCommand(f"`command` is {shown(value)}; choose one of {choices}") from None


def _arguments(kind: Kind, given: object) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise BadCommand(f"`arguments` is a JSON {_kind_of(given)}; it must be an object")
    known = FORMS[kind].arguments
    for name in given:
        if name not in known:
            wanted = f"it takes {', '.join(known)}" if known else "it takes none"
            raise BadCommand(f"{shown(name)} is no argument of `{kind.value}`; {wanted}")
    given = _without_nulls(given)
    for name, argument in known.items():
        if name in given:
            _check(f"arguments.{name}", argument, given[name])
        elif argument.required:
            raise BadCommand(f"`{kind.value}` needs `arguments.{name}`: {argument.description}")
    return given


def _check(place: str, argument: Argument, value: object) -> None:
    if argument.type == "number":
        fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_NUMBER
        wanted = f"a whole number from 1 to {MAX_NUMBER}"
    elif argument.type == "id":
        fits = isinstance(value, str) and ID.fullmatch(value) is not None
        wanted = f"an id of 1 to {MAX_ID} printable ASCII characters without spaces"
    else:
        fits = isinstance(value, str) and 1 <= len(value) <= MAX_TEXT and is_unicode(value)
        wanted = f"a text of 1 to {MAX_TEXT} characters"
    if not fits:
        raise BadCommand(f"`{place}` is {shown(value)}; it must be {wanted}")


def _without_nulls(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _hops(body: Mapping[str, Any]) -> int:
    given = body.get("hops", 0)
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= MAX_HOPS_GIVEN:
        raise BadCommand(f"`hops` is {shown(given)}; it must be a whole number from 0 to {MAX_HOPS_GIVEN}")
    return given


def _text(body: Mapping[str, Any], key: str) -> str | None:
    if key not in body:
        return None
    value = body[key]
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID or not is_unicode(value):
        raise BadCommand(f"`{key}` is {shown(value)}; it must be a text of 1 to {MAX_ID} characters")
    return value


def shown(value: object) -> str:
    """A value as a message shows it: as JSON, and not for pages."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _kind_of(value: object) -> str:
    names = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object says one key twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


if __name__ == "__main__":
    sys.stdout.write(schema_text())
