"""What happened, told twice: one readable line on the terminal, one JSON line in the log file."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

_LEVELS = {
    "trace": 5,
    "debug": logging.DEBUG,
    "information": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "none": logging.CRITICAL + 10,
}
_NAMES = {logging.DEBUG: "Debug", logging.INFO: "Information", logging.WARNING: "Warning", logging.ERROR: "Error"}
_COLOURS = {logging.DEBUG: "2", logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
# A file name or a subject may hold what moves the cursor or recolours the terminal.
_CONTROLS = dict.fromkeys((*range(9), *range(11, 32), 127, *range(128, 160)), "?")
_FILE_BYTES = 10 * 1024 * 1024
_FILES_KEPT = 5

# Frames of the host and of the standard library say nothing about where the app went wrong.
_NOT_THE_APP = (str(Path(__file__).parent), str(Path(logging.__file__).parents[1]), "<")

# They tell of each request or selector call; the last one advises hosts, not users, how to decode activity inputs.
_NOISY = ("asyncio", "aiohttp.access", "azure.functions.DurableFunctions")

_HIDDEN = "***"
# What a secret looks like when it is not one of ours: in a query, in a header, in a connection string.
_SECRET_PATTERNS = (
    re.compile(r"(?i)([?&](?:code|sig|key|token)=)[^&\s\"'<>]+"),
    re.compile(r"(?i)(\bcode=)[\w%.~+/=-]{16,}"),
    re.compile(r"(?i)(x-functions-key['\"]?\s*[:=]\s*['\"]?)[^\s'\",}]+"),
    re.compile(r"(?i)((?:AccountKey|SharedAccessKey|SharedAccessSignature)=)[^;\s\"']+"),
    re.compile(r"(?i)(\bBearer\s+)[\w.~+/=-]{8,}"),
)


@dataclass(frozen=True)
class Scope:
    """One invocation of one function: what every log record made during it is marked with."""

    function: str
    invocation_id: str
    # Found out only when a record is written: it may mean reading a long JSON text.
    find_instance: Callable[[], str | None] = lambda: None

    @cached_property
    def instance_id(self) -> str | None:
        return self.find_instance()


_scope: ContextVar[Scope | None] = ContextVar("dropforge_scope", default=None)

# Azure documents this door for threads that a function starts itself:
# `context.thread_local_storage.invocation_id = context.invocation_id`.
thread_local = threading.local()
_running: dict[str, Scope] = {}


@contextlib.contextmanager
def in_scope(scope: Scope) -> Iterator[None]:
    """Mark every record made inside, also in tasks and threads that carry the context on."""
    token = _scope.set(scope)
    _running[scope.invocation_id] = scope
    try:
        yield
    finally:
        _running.pop(scope.invocation_id, None)
        _scope.reset(token)


def current_scope() -> Scope | None:
    scope = _scope.get()
    if scope is None:
        invocation_id = getattr(thread_local, "invocation_id", None)
        scope = _running.get(invocation_id) if isinstance(invocation_id, str) else None
    return scope


class Redactor:
    """Takes secrets out of text: the ones it is told, and what looks like one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self.hide(secrets)

    def hide(self, secrets: Iterable[str]) -> None:
        """Also take these out from now on."""
        for secret in secrets:
            # A very short "secret" would take half of every line with it.
            if len(secret) >= 8:
                self._secrets |= {secret, quote(secret, safe="")}

    def clean(self, text: str) -> str:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, _HIDDEN)
        for pattern in _SECRET_PATTERNS:
            text = pattern.sub(rf"\g<1>{_HIDDEN}", text)
        return text


class LevelFilter(logging.Filter):
    """Lets through what host.json's `logging.logLevel` asks for, by category as in Azure."""

    def __init__(self, levels: Mapping[str, str]) -> None:
        super().__init__()
        self._levels = {category.lower(): _LEVELS[level.lower()] for category, level in levels.items()}
        self._default = self._levels.pop("default", logging.INFO)

    @property
    def lowest(self) -> int:
        return min([self._default, *self._levels.values()])

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self._threshold(category(record).lower())

    def _threshold(self, name: str) -> int:
        while name:
            if name in self._levels:
                return self._levels[name]
            name = name.rpartition(".")[0]
        return self._default


def category(record: logging.LogRecord) -> str:
    """`Function.<name>` for what the host says of an invocation, `Function.<name>.User` for what it prints itself."""
    function = _marks(record)["function"]
    ours = record.name == "dropforge.host" or record.name.startswith("dropforge.host.")
    if function:
        return f"Function.{function}" if ours else f"Function.{function}.User"
    return "Host." + record.name.removeprefix("dropforge.host").lstrip(".") if ours else record.name


def _mark(record: logging.LogRecord) -> bool:
    """Write the scope into the record where it is made: a handler may run elsewhere."""
    scope = current_scope()
    if scope is not None:
        record.__dict__.setdefault("function", scope.function)
        record.__dict__.setdefault("invocation_id", scope.invocation_id)
        if "instance_id" not in record.__dict__ and scope.instance_id:
            record.__dict__["instance_id"] = scope.instance_id
    return True


def _marks(record: logging.LogRecord) -> dict[str, str | None]:
    return {name: record.__dict__.get(name) for name in ("function", "invocation_id", "instance_id")}


class JsonLines(logging.Formatter):
    """One JSON object per record."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": _NAMES.get(record.levelno, record.levelname.title()),
            "category": category(record),
            "message": self._redactor.clean(record.getMessage()),
            **{name: value for name, value in _marks(record).items() if value},
        }
        if record.exc_info:
            line["exception"] = self._redactor.clean(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def _told(record: logging.LogRecord) -> str:
    """What the terminal shows of a record's exception: where it came from, or for a fault of the host all of it."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return ""
    if record.levelno >= logging.ERROR and not record.__dict__.get("brief"):
        return "\n" + "".join(traceback.format_exception(error)).rstrip()
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_NOT_THE_APP)
    ]
    frames = [frame for frame in frames if "site-packages" not in frame.filename]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


class ReadableLines(logging.Formatter):
    """Time, who, what; the traceback of a failed invocation stays in the log file."""

    def __init__(self, redactor: Redactor, colour: bool) -> None:
        super().__init__()
        self._redactor = redactor
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        who = _marks(record)["function"] or record.__dict__.get("flow") or category(record).removeprefix("Host.")
        text = self._redactor.clean(record.getMessage()).translate(_CONTROLS)
        text += self._redactor.clean(_told(record))
        colour = _COLOURS.get(record.levelno)
        if self._colour:
            text = f"\033[{colour}m{text}\033[0m" if colour else text
            return f"\033[2m{clock}\033[0m  \033[36m{who or 'host':<24}\033[0m {text}"
        flag = {logging.WARNING: "warning: ", logging.ERROR: "error: ", logging.CRITICAL: "error: "}
        return f"{clock}  {who or 'host':<24} {flag.get(record.levelno, '')}{text}"


class _Rotating(RotatingFileHandler):
    """Begins a new file after the record that fills one. The base class writes every record twice to know it before."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - the name that the base class has
        return self.stream is not None and self.stream.tell() >= self.maxBytes


@dataclass(frozen=True)
class Logs:
    """The handlers of one host; `close` takes them away again."""

    redactor: Redactor
    handlers: tuple[logging.Handler, ...]
    level_before: int

    def close(self) -> None:
        root = logging.getLogger()
        for handler in self.handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(self.level_before)
        logging.captureWarnings(False)


def open_logs(folder: Path, levels: Mapping[str, str], terminal: TextIO | None = None) -> Logs:
    """Send all log records of the process to `<folder>/host.jsonl` and to the terminal (stderr unless given)."""
    folder.mkdir(parents=True, exist_ok=True)
    terminal = terminal or sys.stderr
    redactor = Redactor()
    wanted = LevelFilter(levels)
    file = _Rotating(
        folder / "host.jsonl",
        maxBytes=_FILE_BYTES,
        backupCount=_FILES_KEPT,
        encoding="utf-8",
        errors="backslashreplace",
    )
    file.setFormatter(JsonLines(redactor))
    screen = logging.StreamHandler(terminal)
    screen.setFormatter(ReadableLines(redactor, colour=terminal.isatty()))
    # The file has them: requests that only looked, and what libraries warn their programmers of.
    logging.captureWarnings(True)
    screen.addFilter(lambda record: record.name != "py.warnings" and not getattr(record, "routine", False))
    root = logging.getLogger()
    for handler in (file, screen):
        handler.addFilter(_mark)
        handler.addFilter(wanted)
        root.addHandler(handler)
    level_before = root.level
    root.setLevel(wanted.lowest)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return Logs(redactor, (file, screen), level_before)
