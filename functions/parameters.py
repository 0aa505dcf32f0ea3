"""What a request may say in its path, its query and its headers: one value makes both the check and the document."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from dropforge.domain.commands import MAX_ID, MAX_NUMBER
from dropforge.domain.errors import BadInput
from dropforge.domain.names import NAME

Place = Literal["path", "query", "header"]
# What the host takes for itself out of a query: the key, and which of several apps' keys it is.
OF_THE_HOST = ("code", "clientid")


@dataclass(frozen=True)
class Parameter:
    """One value of a request. A `number` is a whole one, its bounds inclusive; a pattern must match the whole text."""

    name: str
    place: Place
    description: str
    kind: Literal["text", "number"] = "text"
    pattern: str | None = None
    longest: int = 256
    least: int = 1
    most: int = MAX_NUMBER
    choices: tuple[str, ...] = ()
    default: str | int | None = None
    example: str | int | None = None

    def read(self, given: str | None) -> Any:
        """The value; the default when nothing is given. Raises `BadInput` that names the parameter."""
        if given is None:
            return self.default
        if self.kind == "number":
            if re.fullmatch(r"[0-9]{1,10}", given, re.ASCII) and self.least <= int(given) <= self.most:
                return int(given)
            wanted = f"a whole number from {self.least} to {self.most}"
        elif self.choices:
            if given in self.choices:
                return given
            wanted = f"one of {', '.join(self.choices)}"
        else:
            if 1 <= len(given) <= self.longest and (
                self.pattern is None or re.fullmatch(self.pattern, given, re.ASCII)
            ):
                return given
            wanted = f"1 to {self.longest} characters" + (f" that match {self.pattern}" if self.pattern else "")
        raise BadInput(f"{self.place} {self.name!r} is {given[:100]!r}; it must be {wanted}", parameter=self.name)

    def document(self) -> dict[str, Any]:
        """As OpenAPI says it."""
        said: dict[str, Any] = {
            "name": self.name,
            "in": self.place,
            "description": self.description,
            "required": self.place == "path",
            "schema": self.schema(),
        }
        if self.place == "query":
            # An empty value does not reach a function; it is as if the parameter were not there.
            said["allowEmptyValue"] = True
        return said if self.example is None else {**said, "example": self.example}

    def schema(self) -> dict[str, Any]:
        """As JSON schema."""
        said: dict[str, Any]
        if self.kind == "number":
            said = {"type": "integer", "minimum": self.least, "maximum": self.most}
        elif self.choices:
            said = {"type": "string", "enum": list(self.choices)}
        else:
            said = {"type": "string", "minLength": 1, "maxLength": self.longest}
            if self.pattern is not None:
                said["pattern"] = f"^(?:{self.pattern})$"
        return said if self.default is None else {**said, "default": self.default}


# ------------------------------------------------------------------------------------------------ in paths
_ID = r"[A-Za-z0-9._:=+@~-]+"
PATH: dict[str, Parameter] = {
    each.name: each
    for each in (
        Parameter("name", "path", "The pipeline's name.", pattern=NAME.pattern, longest=40, example="flights"),
        Parameter("run", "path", "The run's id.", pattern=r"[A-Za-z0-9-]+", longest=120, example="flights-12-3fa9c1"),
        Parameter("arrival", "path", "The file's arrival id.", pattern=r"[0-9a-f]{32}", longest=32, example="ab" * 16),
        Parameter("version", "path", "The number of the version.", kind="number", example=3),
        Parameter("endpoint", "path", "The endpoint's name.", pattern=NAME.pattern, longest=40, example="flights"),
        Parameter("command", "path", "The command's id.", pattern=_ID, longest=MAX_ID, example="ticket-4711"),
        Parameter("alert", "path", "The alert's id, as the list says it.", pattern=r"[0-9a-f]{32}", longest=32),
    )
}

# ------------------------------------------------------------------------------------------------ in queries
MAX_LIMIT = 200
LIMIT = Parameter(
    "limit", "query", "How many of them at most. A page may hold fewer, and there be more.", "number",
    most=MAX_LIMIT, default=50,
)  # fmt: skip
TOKEN = Parameter(
    "token", "query", "Where to go on: `next` of the page before.", pattern=r"[A-Za-z0-9_-]+", longest=1000
)
# Those of `ArrivalState`, which would cost the app's start more than all the routes do.
ARRIVAL_STATE = Parameter(
    "state",
    "query",
    "Only files of this state.",
    choices=("pending", "accepted", "quarantined", "superseded", "unchanged"),
)
QUESTION_STATE = Parameter(
    "state", "query", "Only those that are open, or all.", choices=("open", "all"), default="open"
)
OF_PIPELINE = Parameter("pipeline", "query", "Only of this pipeline.", pattern=NAME.pattern, longest=40)
VERSION = Parameter("version", "query", "The model version. Default: the champion.", "number")
DAYS = Parameter("days", "query", "How many days to look back.", "number", most=366, default=7)
TAIL = Parameter("tail", "query", "How many bytes of the log's end.", "number", most=1024 * 1024, default=64 * 1024)

# ------------------------------------------------------------------------------------------------ in headers
KEY = Parameter(
    "Idempotency-Key", "header",
    "Names this request: sent again, it has no second effect and gets the same answer. Quotes around it are left out. "
    "Default: a new one.",
    pattern=f'{_ID}|"{_ID}"', longest=MAX_ID,
)  # fmt: skip
IF_MATCH = Parameter("If-Match", "header", "Only if the ETag is (still) one of these; `*`: only if it is there.")
IF_NONE_MATCH = Parameter(
    "If-None-Match", "header", "Only if the ETag is none of these; `*`: only if nothing is there."
)
CORRELATION = Parameter(
    "x-correlation-id", "header", "What you call this piece of work: on every event that follows from it.",
    pattern=r"[!-~]+", longest=MAX_ID,
)  # fmt: skip
CAUSATION = Parameter(
    "x-dropforge-causation-id", "header", "The id of the platform's event because of which this is asked.",
    pattern=r"[!-~]+", longest=MAX_ID,
)  # fmt: skip
HOPS = Parameter(
    "x-dropforge-hops", "header", "The `hops` of that event. Beyond the limit the request is refused: a loop ends there.",
    # A header is text, and its reader makes a number of it.
    pattern=r"[0-9]{1,3}|1000", longest=4,
)  # fmt: skip
