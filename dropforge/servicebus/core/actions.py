"""SQL actions: what a rule changes in the copy of a message that it lets in.

https://learn.microsoft.com/azure/service-bus-messaging/service-bus-messaging-sql-rule-action
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dropforge.servicebus.core.properties import is_settable, spelled
from dropforge.servicebus.core.sql import Evaluate, Parser, Property
from dropforge.servicebus.errors import bad_field
from dropforge.servicebus.message import Message

Step = Callable[[Message], None]


def parse_action(text: str) -> Step:
    """What does all statements to a message, in order. Raises `BrokerError` for a text that is no action."""
    parser = Parser(text, {})
    steps: list[Step] = []
    while not parser.at_end:
        steps.append(_statement(parser))
        while parser.take(";", ","):
            pass
    if not steps:
        raise parser.wrong("SET or REMOVE")

    def act(message: Message) -> None:
        for step in steps:
            step(message)

    return act


def _statement(parser: Parser) -> Step:
    if parser.take("SET"):
        target = parser.property()
        parser.need("=")
        return _set(target, parser.expression())
    if parser.take("REMOVE"):
        return _remove(parser.property())
    raise parser.wrong("SET or REMOVE")


def _set(target: Property, value: Evaluate) -> Step:
    if not target.system:
        return lambda message: _set_user(message, target.name, value(message))
    _check_settable(target)

    def set_system(message: Message) -> None:
        found = value(message)
        message.set_property(target.name, found if found is None or isinstance(found, str) else str(found))

    return set_system


def _remove(target: Property) -> Step:
    if target.system:
        _check_settable(target)
        return lambda message: message.set_property(target.name, None)

    def remove(message: Message) -> None:
        name = spelled(message, target.name)
        if name is not None:
            message.remove_application_property(name)

    return remove


def _check_settable(target: Property) -> None:
    if not is_settable(target.name):
        raise bad_field(f"an action cannot change 'sys.{target.name}'")


def _set_user(message: Message, name: str, value: Any) -> None:
    name = spelled(message, name) or name
    message.set_application_property(name, _converted(value, message.application_property(name)))


def _converted(value: Any, before: Any) -> Any:
    """The value as the type that the property had, where that loses nothing."""
    if value is None or before is None or isinstance(before, bool) or type(value) is type(before):
        return value
    try:
        if isinstance(before, str) and not isinstance(value, bytes):
            return str(value)
        if isinstance(before, int | float) and isinstance(value, int | float) and not isinstance(value, bool):
            converted = type(before)(value)
            return converted if converted == value else value
    except (ValueError, OverflowError):
        pass
    return value
