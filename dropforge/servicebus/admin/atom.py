"""Atom entries and feeds as the management API of Service Bus writes them; reading what clients send, safely.

The elements carry their namespace as a default one: the JavaScript client knows them by their bare names.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote
from xml.sax.saxutils import escape, quoteattr

from dropforge.servicebus.errors import BrokerError, bad_field

ATOM = "http://www.w3.org/2005/Atom"
SERVICE = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"
COUNTS = "http://schemas.microsoft.com/netservices/2011/06/servicebus"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
SCHEMA = "http://www.w3.org/2001/XMLSchema"

TYPE = f"{{{INSTANCE}}}type"
MAX_DEPTH = 16
_UNPRINTABLE = re.compile("[^\t\n\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entity as an answer shows it: its path, the element that describes it, when it was made and changed."""

    path: str
    title: str
    content: str
    created_ms: int
    updated_ms: int


def tag(name: str) -> str:
    """The name of a Service Bus element as ElementTree has it."""
    return f"{{{SERVICE}}}{name}"


def local(name: str) -> str:
    """An element's or a type's name without its namespace or prefix."""
    return name.rpartition("}")[2].rpartition(":")[2]


def time_text(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def element(name: str, value: str | Iterable[str], attributes: str = "") -> str:
    """An element: text is escaped, a list is of elements made here."""
    inner = escape(_printable(value), {"\r": "&#13;"}) if isinstance(value, str) else "".join(value)
    opened = f"{name} {attributes}" if attributes else name
    return f"<{opened}>{inner}</{name}>" if inner else f"<{opened}/>"


def attribute(name: str, value: str) -> str:
    return f"{name}={quoteattr(value)}"


def description(name: str, parts: Iterable[str]) -> str:
    """The element inside `content`."""
    return element(name, parts, f'xmlns="{SERVICE}" xmlns:i="{INSTANCE}"')


def entry(base: str, namespace: str, one: Entry, *, root: bool = True) -> str:
    """An Atom entry. `base` is the URL of the namespace, without a slash at the end."""
    href = f"{base}/{quote(one.path)}"
    parts = (
        element("id", href),
        element("title", one.title, 'type="text"'),
        element("published", time_text(one.created_ms)),
        element("updated", time_text(one.updated_ms)),
        element("author", [element("name", namespace)]),
        element("link", [], f'rel="self" {attribute("href", href)}'),
        element("content", [one.content], 'type="application/xml"'),
    )
    return element("entry", parts, f'xmlns="{ATOM}"' if root else "")


def feed(base: str, namespace: str, title: str, entries: Sequence[Entry], links: Sequence[tuple[str, str]]) -> str:
    """An Atom feed with links by relation (`self`, `next`)."""
    updated = max((one.updated_ms for one in entries), default=0)
    parts = [
        element("title", title, 'type="text"'),
        element("id", f"{base}/{quote(title)}"),
        element("updated", time_text(updated)),
        *(element("link", [], f"{attribute('rel', rel)} {attribute('href', href)}") for rel, href in links),
        *(entry(base, namespace, one, root=False) for one in entries),
    ]
    return element("feed", parts, f'xmlns="{ATOM}"')


def error(status: int, detail: str) -> str:
    return element("Error", [element("Code", str(status)), element("Detail", detail)])


def read_content(body: bytes) -> ET.Element:
    """The description inside the entry a client sent. Raises `BrokerError` for what is not such an entry."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _bad("The request body is not UTF-8.") from None
    # Entities can be declared only there; without it, nothing expands and nothing is fetched.
    if "<!DOCTYPE" in text:
        raise _bad("The request body has a document type declaration, which is not allowed.")
    try:
        root = ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise _bad(f"The request body is not well-formed XML: {error}.") from None
    content = root.find(f"{{{ATOM}}}content") if root.tag == f"{{{ATOM}}}entry" else None
    if content is None or len(content) != 1:
        raise _bad("The request body is not an Atom entry with one description in its content.")
    for depth, _ in _walk(content[0]):
        if depth > MAX_DEPTH:
            raise _bad(f"The request body nests more than {MAX_DEPTH} elements.")
    return content[0]


def _walk(root: ET.Element) -> Iterator[tuple[int, ET.Element]]:
    waiting = [(1, root)]
    while waiting:
        depth, one = waiting.pop()
        yield depth, one
        waiting.extend((depth + 1, child) for child in one)


def _printable(text: str) -> str:
    """Without the characters that XML cannot carry."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _bad(text: str) -> BrokerError:
    return bad_field(f"SubCode=40000. {text}")
