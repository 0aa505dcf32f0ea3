"""The management API: what a method on a place does to the broker, and the Atom that answers it.

https://learn.microsoft.com/rest/api/servicebus/ ; the paths, statuses and error texts are the service's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode
from xml.etree.ElementTree import Element

from dropforge.servicebus.admin import atom, reading, writing
from dropforge.servicebus.admin.atom import Entry
from dropforge.servicebus.admin.http1 import Request, Response
from dropforge.servicebus.admin.places import (
    List,
    One,
    Place,
    QueueOrTopic,
    Queues,
    Rule,
    Rules,
    Subscription,
    Subscriptions,
    TheNamespace,
    Topics,
)
from dropforge.servicebus.core.topic import Topic
from dropforge.servicebus.errors import BrokerError, not_found
from dropforge.servicebus.settings import QueueSettings, RuleSettings, SubscriptionSettings, TopicSettings

if TYPE_CHECKING:
    from dropforge.servicebus.core.broker import Broker

ATOM_XML = "application/atom+xml; type=entry; charset=utf-8"
MAX_PAGE = 100

N = TypeVar("N", SubscriptionSettings, RuleSettings)


class Api:
    """Answers what has been allowed. Raises `BrokerError` for what cannot be done; then nothing has been done."""

    def __init__(self, broker: Broker, now: Callable[[], int]) -> None:
        self._broker = broker
        self._now = now
        self._started = now()

    def get(self, place: Place, request: Request) -> Response:
        base = f"http://{request.headers.get('host', 'localhost')}"
        match place:
            case TheNamespace():
                name = self._broker.name
                entry = Entry(
                    "$namespaceinfo", name, writing.namespace(name, self._started), self._started, self._started
                )
                return _answer(200, atom.entry(base, name, entry))
            case Queues() | Topics() | Subscriptions() | Rules():
                return self._page(place, request, base)
            case QueueOrTopic(name) if self._find(name) is None:
                # The service answers a feed without entries here, and the clients make their "not found" of it.
                return _answer(200, atom.feed(base, self._broker.name, "Publicly Listed Services", [], []))
            case _:
                return _answer(200, atom.entry(base, self._broker.name, self._entry(place)))

    def put(self, place: Place, request: Request) -> Response:
        """Creates, or with `If-Match` updates. The change is not yet durable."""
        if not isinstance(place, One):
            raise BrokerError("amqp:not-allowed", "SubCode=40500. A list cannot be written.", 405)
        description = atom.read_content(request.body)
        update = "if-match" in request.headers
        self._expect(place, update)
        if update:
            self._update(place, description)
        else:
            self._create(place, description)
        base = f"http://{request.headers.get('host', 'localhost')}"
        return _answer(200 if update else 201, atom.entry(base, self._broker.name, self._entry(place)))

    def delete(self, place: Place) -> Response:
        """Deletes an entity with all that is in it. The change is not yet durable."""
        if not isinstance(place, One):
            raise BrokerError("amqp:not-allowed", "SubCode=40500. A list cannot be deleted.", 405)
        self._expect(place, True)
        match place:
            case Rule(topic, subscription, name):
                self._broker.delete_rule(topic, subscription, name)
            case _:
                self._broker.delete(_path(place))
        return Response(200)

    # ---------------------------------------------------------------------------------------------- what there is
    def _find(self, name: str) -> QueueSettings | TopicSettings | None:
        try:
            entity = self._broker.resolve(name)
        except BrokerError:
            return None
        found = entity.described if isinstance(entity, Topic) else entity.settings
        # Also found would be subscriptions, and the dead letters of a queue under the queue's own settings.
        return found if not isinstance(found, SubscriptionSettings) and found.name.lower() == name.lower() else None

    def _topic(self, name: str) -> TopicSettings:
        found = self._find(name)
        if not isinstance(found, TopicSettings):
            raise not_found(name)
        return found

    def _subscription(self, topic: str, name: str) -> SubscriptionSettings:
        found = _named(self._topic(topic).subscriptions, name)
        if found is None:
            raise not_found(f"{topic}/Subscriptions/{name}")
        return found

    def _existing(self, place: One) -> QueueSettings | TopicSettings | SubscriptionSettings | RuleSettings | None:
        """What is there. Raises `BrokerError` when that in which it would be is not there."""
        match place:
            case QueueOrTopic(name):
                return self._find(name)
            case Subscription(topic, name):
                return _named(self._topic(topic).subscriptions, name)
            case Rule(topic, subscription, name):
                return _named(self._subscription(topic, subscription).rules, name)

    def _expect(self, place: One, there: bool) -> None:
        found = self._existing(place)
        if there and found is None:
            raise not_found(_path(place))
        if not there and found is not None:
            detail = f"SubCode=40900. Conflict. The entity '{_path(place)}' already exists."
            raise BrokerError("com.microsoft:entity-already-exists", detail, 409)

    def _entry(self, place: One) -> Entry:
        found = self._existing(place)
        # A rule has no record of its own; it is as old as what it belongs to.
        owner = _path(Subscription(place.topic, place.subscription)) if isinstance(place, Rule) else _path(place)
        times, base = self._broker.times(owner), f"sb://{self._broker.name}"
        match place, found:
            case QueueOrTopic(), QueueSettings():
                content = writing.queue(found, self._broker.resolve(found.name).counts(), times, base)
            case QueueOrTopic(), TopicSettings():
                content = writing.topic(found, self._broker.resolve(found.name).counts(), times)
            case Subscription(topic, _), SubscriptionSettings():
                counts = self._broker.resolve(f"{topic}/Subscriptions/{found.name}").counts()
                content = writing.subscription(found, counts, times, base)
            case Rule(), RuleSettings():
                content = writing.rule(found, times[1])
            case _:
                raise not_found(_path(place))
        return Entry(_path(replace(place, name=found.name)), found.name, content, *times)

    def _page(self, place: List, request: Request, base: str) -> Response:
        skip, top = _number(request, "$skip", 0), min(_number(request, "$top", MAX_PAGE), MAX_PAGE)
        places = self._listed(place)
        title = request.path
        links = [("self", f"{base}/{title}")]
        if len(places) > skip + top:
            query = urlencode({"$skip": skip + top, "$top": top})
            links.append(("next", f"{base}/{title}?{query}"))
        entries = [self._entry(each) for each in places[skip : skip + top]]
        return _answer(200, atom.feed(base, self._broker.name, title, entries, links))

    def _listed(self, place: List) -> Sequence[One]:
        """The entities of a list, by name."""
        found: list[One]
        match place:
            case Queues():
                found = [QueueOrTopic(each.name) for each in self._broker.entities() if isinstance(each, QueueSettings)]
            case Topics():
                found = [QueueOrTopic(each.name) for each in self._broker.entities() if isinstance(each, TopicSettings)]
            case Subscriptions(topic):
                found = [Subscription(topic, each.name) for each in self._topic(topic).subscriptions]
            case Rules(topic, subscription):
                there = self._subscription(topic, subscription).rules
                found = [Rule(topic, subscription, each.name) for each in there]
        return sorted(found, key=lambda each: each.name.lower())

    # ---------------------------------------------------------------------------------------------- changes
    def _create(self, place: One, description: Element) -> None:
        match place, reading.kind_of(description):
            case QueueOrTopic(name), "Queue":
                self._broker.create_queue(reading.queue(name, description))
            case QueueOrTopic(name), "Topic":
                self._broker.create_topic(reading.topic(name, description))
            case Subscription(topic, name), "Subscription":
                self._broker.create_subscription(topic, reading.subscription(name, description))
            case Rule(topic, subscription, name), "Rule":
                self._broker.put_rule(topic, subscription, reading.rule(name, description))
            case _, kind:
                raise reading.bad(f"A {kind} cannot be made at '{_path(place)}'.")

    def _update(self, place: One, description: Element) -> None:
        match place, self._existing(place), reading.kind_of(description):
            case QueueOrTopic(), QueueSettings() as old, "Queue":
                queue = reading.queue(old.name, description)
                _unchanged(old, queue, "requires_session", "detects_duplicates")
                self._broker.update_queue(queue)
            case QueueOrTopic(), TopicSettings() as old, "Topic":
                topic = reading.topic(old.name, description)
                _unchanged(old, topic, "detects_duplicates")
                self._broker.update_topic(replace(topic, subscriptions=old.subscriptions))
            case Subscription(of, _), SubscriptionSettings() as old, "Subscription":
                subscription = reading.subscription(old.name, description)
                _unchanged(old, subscription, "requires_session")
                self._broker.update_subscription(of, replace(subscription, rules=old.rules))
            case Rule(of, at, _), RuleSettings() as old, "Rule":
                self._broker.put_rule(of, at, reading.rule(old.name, description))
            case _, _, kind:
                raise reading.bad(f"'{_path(place)}' is no {kind}.")


_TITLES = {"requires_session": "RequiresSession", "detects_duplicates": "RequiresDuplicateDetection"}


def _unchanged(old: object, new: object, *names: str) -> None:
    for name in names:
        if getattr(old, name) != getattr(new, name):
            raise reading.bad(f"The value for the {_TITLES[name]} property of an existing entity cannot be changed.")


def _named(several: Sequence[N], name: str) -> N | None:
    return next((each for each in several if each.name.lower() == name.lower()), None)


def _path(place: One) -> str:
    match place:
        case QueueOrTopic(name):
            return name
        case Subscription(topic, name):
            return f"{topic}/Subscriptions/{name}"
        case Rule(topic, subscription, name):
            return f"{topic}/Subscriptions/{subscription}/Rules/{name}"


def _number(request: Request, name: str, default: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise reading.bad(f"{name} is {text[:20]!r}; a number was wanted.")
    return int(text)


def _answer(status: int, text: str) -> Response:
    return Response(status, text.encode(), ATOM_XML)
