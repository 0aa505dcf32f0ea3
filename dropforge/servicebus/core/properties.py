"""The properties of a message by the names that filters and actions use; no name minds its case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dropforge.servicebus.message import READABLE, SETTABLE, Message


def is_system(name: str) -> bool:
    return name.lower() in READABLE


def is_settable(name: str) -> bool:
    return name.lower() in SETTABLE


def system_reader(name: str) -> Callable[[Message], Any]:
    key = name.lower()
    return lambda message: message.property(key)


def user_value(message: Message, name: str) -> Any:
    """The application property's value, None when there is none."""
    value = message.application_property(name)
    if value is None:
        found = spelled(message, name)
        return message.application_property(found) if found is not None and found != name else None
    return value


def user_exists(message: Message, name: str) -> bool:
    """Whether there is the property, be its value null."""
    return spelled(message, name) is not None


def spelled(message: Message, name: str) -> str | None:
    """The name as the message has it."""
    properties = message.application_properties()
    if name in properties:
        return name
    folded = name.lower()
    return next((str(key) for key in properties if key.lower() == folded), None)
