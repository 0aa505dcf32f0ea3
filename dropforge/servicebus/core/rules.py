"""The rules of a subscription: which messages come in, and as what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dropforge.servicebus.core.actions import Step, parse_action
from dropforge.servicebus.core.operators import FilterError, equal
from dropforge.servicebus.core.properties import user_value
from dropforge.servicebus.core.sql import parse_predicate
from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.message import Message
from dropforge.servicebus.settings import CorrelationFilter, FalseFilter, Filter, RuleSettings, SqlFilter, TrueFilter

Match = Callable[[Message], bool]


class Rule:
    """A rule ready for messages. Making one raises `BrokerError` when its filter or action is wrong."""

    __slots__ = ("act", "matches", "settings")

    def __init__(self, settings: RuleSettings) -> None:
        self.settings = settings
        self.matches = _match(settings.filter)
        self.act: Step | None = parse_action(settings.action) if settings.action is not None else None

    def apply(self, message: Message) -> None:
        """Change the copy that the rule let in. Raises `FilterError`."""
        assert self.act is not None, "a rule without action"
        try:
            self.act(message)
        except BrokerError as error:
            raise FilterError(error.description) from error
        except (TypeError, ValueError, OverflowError) as error:
            # Not foreseen, but still this rule's alone: the other subscriptions get the message all the same.
            raise FilterError(str(error)) from error
        message.set_application_property("RuleName", self.settings.name)


def _match(wanted: Filter) -> Match:
    match wanted:
        case TrueFilter():
            return lambda _: True
        case FalseFilter():
            return lambda _: False
        case SqlFilter(expression, parameters):
            predicate = parse_predicate(expression, dict(parameters))
            return lambda message: predicate(message) is True
        case CorrelationFilter():
            return _correlation(wanted)


def _correlation(wanted: CorrelationFilter) -> Match:
    system = [(name.lower(), value) for name, value in wanted.system]
    user = wanted.properties

    def matches(message: Message) -> bool:
        return all(_same(message.property(name), value) for name, value in system) and all(
            equal(user_value(message, name), value) is True for name, value in user
        )

    return matches


def _same(found: Any, wanted: str) -> bool:
    """Ids may be written as uuids or numbers; a filter has them as text."""
    return found == wanted if isinstance(found, str) else found is not None and str(found) == wanted
