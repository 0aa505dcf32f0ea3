"""A topic: every message that comes in goes to the subscriptions whose rules let it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dropforge.servicebus.core.hub import Hub, Meter, Numbers
from dropforge.servicebus.core.intake import Intake
from dropforge.servicebus.core.operators import FilterError
from dropforge.servicebus.core.ports import Box, Counts, Kind
from dropforge.servicebus.core.queue import Queue
from dropforge.servicebus.core.rules import Rule
from dropforge.servicebus.core.shelf import Shelf
from dropforge.servicebus.errors import not_found
from dropforge.servicebus.message import Message, MessageState
from dropforge.servicebus.settings import RuleSettings, SubscriptionSettings, TopicSettings


class Subscription:
    """A queue, and the rules that fill it."""

    def __init__(self, settings: SubscriptionSettings, queue: Queue) -> None:
        self.queue = queue
        self.apply(settings)

    @staticmethod
    def check(settings: SubscriptionSettings) -> None:
        """Raises `BrokerError` when a rule is wrong."""
        for rule in settings.rules:
            Rule(rule)

    def apply(self, settings: SubscriptionSettings) -> None:
        """Go by new settings, rules included. Raises `BrokerError` for a wrong rule, and changes nothing then."""
        self._rules = [Rule(rule) for rule in settings.rules]
        self.settings = settings

    def offer(self, message: Message, hops: int, ttl_cap: int | None) -> None:
        """Take a copy of a topic's message if a rule lets it in: one for all rules without action together, and one
        for each rule with an action."""
        plain = False
        for rule in self._rules:
            try:
                if not rule.matches(message):
                    continue
                if rule.act is None:
                    plain = True
                    continue
                copy = _copied(message)
                rule.apply(copy)
            except FilterError as error:
                if self.settings.dead_letters_filter_errors:
                    text = f"rule '{rule.settings.name}': {error}"
                    self.queue.put_dead(_copied(message), "FilterException", text)
            else:
                self.queue.put(copy, hops, ttl_cap)
        if plain:
            self.queue.put(_copied(message), hops, ttl_cap)


class Topic:
    """Holds scheduled messages only; all others are in its subscriptions at once."""

    kind = Kind.TOPIC
    can_send = True
    can_receive = False
    requires_session = False

    def __init__(self, hub: Hub, number: int, settings: TopicSettings, numbers: Numbers) -> None:
        self.path = settings.name
        self.number = number
        self.settings = settings
        self.meter = Meter(settings)
        self._shelf = Shelf(hub.store, number, Box.MAIN, self.meter)
        self._hub = hub
        self._gone = False
        self.intake = Intake(hub, self.path, number, settings, self._shelf, numbers, self.meter, self._fan_out)
        # By name in lower case.
        self.subscriptions: dict[str, Subscription] = {}

    @property
    def max_message_bytes(self) -> int:
        return self.meter.max_message_bytes

    @property
    def described(self) -> TopicSettings:
        """The settings with those of the subscriptions."""
        return replace(self.settings, subscriptions=tuple(each.settings for each in self.subscriptions.values()))

    def send(self, message: Message, *, scheduled_at: int | None = None) -> int:
        """As `Queue.send`. The number is the topic's; each subscription gives its copy one of its own."""
        self._check((message,))
        return self.intake.take(message, scheduled_at)

    def send_all(self, messages: Sequence[Message]) -> list[int]:
        self._check(messages)
        return [self.intake.take(message) for message in messages]

    def transfer(self, message: Message, hops: int) -> None:
        self._check((message,))
        message.enqueued_sequence = message.enqueued_sequence or message.sequence
        message.delivery_count, message.expires_at = 0, None
        self.intake.take(message, hops=hops)

    def cancel_scheduled(self, sequences: Sequence[int]) -> None:
        self.intake.cancel(sequences)

    def peek(self, from_sequence: int, count: int, session_id: str | None = None) -> list[Message]:
        """The scheduled messages."""
        return self._shelf.peek(from_sequence, count, session_id)

    def counts(self) -> Counts:
        """Of the topic itself; the size includes its subscriptions."""
        return Counts(scheduled=self._shelf.count(MessageState.SCHEDULED), size_bytes=self.meter.used)

    def restore(self, message: Message, box: Box, hops: int) -> None:
        self._shelf.restore(message, hops)
        self.intake.wait(message)

    def apply(self, settings: TopicSettings) -> None:
        """Go by new settings from now on; the subscriptions stay."""
        self.settings = settings
        self.intake.apply(settings)

    def close(self) -> None:
        """The topic is deleted, and its subscriptions have been."""
        self._gone = True
        self.intake.close()
        self._shelf.clear()

    def _check(self, messages: Sequence[Message]) -> None:
        if self._gone:
            raise not_found(self.path)
        self.intake.check(messages)

    def _fan_out(self, message: Message, hops: int) -> None:
        for subscription in self.subscriptions.values():
            subscription.offer(message, hops, self.settings.ttl_ms)


def rules_with(rules: Sequence[RuleSettings], changed: RuleSettings) -> tuple[RuleSettings, ...]:
    """The rules with one put in, or put in place of the one of that name."""
    kept = {rule.name.lower(): rule for rule in rules}
    kept[changed.name.lower()] = changed
    return tuple(kept.values())


def _copied(message: Message) -> Message:
    copy = message.copy()
    copy.enqueued_sequence = message.enqueued_sequence or message.sequence
    copy.state = MessageState.ACTIVE
    return copy
