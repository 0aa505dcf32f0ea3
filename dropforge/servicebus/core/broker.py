"""All entities of a namespace: found by address, made, changed, deleted, pumped and made durable."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from dropforge.servicebus import config
from dropforge.servicebus.core.hub import Hub, Meter, Numbers
from dropforge.servicebus.core.ports import Box, Kind
from dropforge.servicebus.core.queue import Queue
from dropforge.servicebus.core.topic import Subscription, Topic, rules_with
from dropforge.servicebus.errors import BrokerError, ConfigError, already_exists, bad_field, not_allowed, not_found
from dropforge.servicebus.settings import (
    Namespace,
    QueueSettings,
    RuleSettings,
    SubscriptionSettings,
    TopicSettings,
)
from dropforge.servicebus.store import EntityRecord, Store

Entity = Queue | Topic

_SCHEME = re.compile(r"(?:amqps?|sb)://[^/]*/?", re.IGNORECASE)
_BOXES = (("/$transfer/$deadletterqueue", Box.TRANSFER_DEAD_LETTER), ("/$deadletterqueue", Box.DEAD_LETTER))
_SUBSCRIPTIONS = "/subscriptions/"


class Broker:
    """Single-threaded: called from one event loop, which commits before it tells anybody what was done.

    What the configuration declares is there from the start. A declared entity that was changed through the admin API
    stays as changed while its declaration stays the same; a new declaration wins. An entity that is declared no more
    is deleted if it is empty, and otherwise kept in the store, out of reach (`dormant`), until it is declared again.
    """

    def __init__(self, namespace: Namespace, store: Store, now: Callable[[], int]) -> None:
        self.name = namespace.name
        self._store = store
        self._now = now
        self._hub = Hub(store, now, self._find)
        # Queues, topics and subscriptions by path in lower case.
        self._entities: dict[str, Entity] = {}
        self._records: dict[int, EntityRecord] = {}
        self.dormant: tuple[str, ...] = ()
        self._following = store.numbers()
        self._next_number = 1
        self._restore_entities(namespace)
        self._restore_contents()
        self.commit()

    # ------------------------------------------------------------------------------------------- the loop's turn

    def pump(self) -> None:
        """Give messages to the receivers of the entities that changed."""
        changed = self._hub.changed
        while changed:
            entity = next(iter(changed))
            del changed[entity]
            entity.pump()

    def commit(self) -> None:
        """Make everything since the last commit durable. Raises `StoreFailed`; nothing may be acknowledged then."""
        self._store.commit()

    def next_due(self) -> int | None:
        """When `run_due` has something to do."""
        return self._hub.timers.next_due()

    def run_due(self, now: int) -> None:
        """Do what is due: locks, times to live, scheduled messages, sessions. A great many are done in several calls;
        `next_due` is then still in the past."""
        self._hub.timers.run(now)

    def close(self) -> None:
        """Commit and close the store. A second call does nothing."""
        self._store.close()

    def abandon(self) -> None:
        """Close the store as it was after the last commit."""
        self._store.abandon()

    # ---------------------------------------------------------------------------------------------------- finding

    def resolve(self, address: str) -> Entity:
        """The entity at an address or path, whatever its case. Raises `not_found`."""
        path = _SCHEME.sub("", address, count=1).strip("/")
        found = self._find(path)
        if found is None:
            raise not_found(path)
        return found

    def entities(self) -> list[QueueSettings | TopicSettings]:
        """The settings of all queues and topics; a topic's with its subscriptions and their rules."""
        found: list[QueueSettings | TopicSettings] = []
        for entity in self._entities.values():
            if isinstance(entity, Topic):
                found.append(entity.described)
            elif isinstance(entity.settings, QueueSettings):
                found.append(entity.settings)
        return found

    def times(self, path: str) -> tuple[int, int]:
        """When the queue, topic or subscription was made and when its settings were last changed. Raises `not_found`."""
        record = self._records[self.resolve(path).number]
        return record.created_at, record.updated_at

    def _find(self, path: str) -> Entity | None:
        lower = path.strip("/").lower()
        box = Box.MAIN
        for suffix, inner in _BOXES:
            if lower.endswith(suffix):
                lower, box = lower[: -len(suffix)], inner
                break
        entity = self._entities.get(lower)
        if box is Box.MAIN or entity is None:
            return entity
        if isinstance(entity, Topic):
            return None
        return entity.dead_letters if box is Box.DEAD_LETTER else entity.transfer_dead_letters

    def _topic(self, name: str) -> Topic:
        entity = self._entities.get(name.lower())
        if not isinstance(entity, Topic):
            raise not_found(name)
        return entity

    def _subscription(self, topic: str, name: str) -> Subscription:
        found = self._topic(topic).subscriptions.get(name.lower())
        if found is None:
            raise not_found(path_of(topic, name))
        return found

    # ----------------------------------------------------------------------------------------- making and changing

    def create_queue(self, settings: QueueSettings) -> Queue:
        """Raises `BrokerError`: the name is taken, or what it forwards to is not there."""
        self._check_free(settings.name)
        self._check_targets(settings.name, settings)
        return self._make_queue(self._new_record(settings.name, Kind.QUEUE, _dump(settings)), settings)

    def create_topic(self, settings: TopicSettings) -> Topic:
        """With the subscriptions that the settings name, or not at all. Raises `BrokerError`."""
        self._check_free(settings.name)
        for subscription in settings.subscriptions:
            self._check_targets(path_of(settings.name, subscription.name), subscription)
            Subscription.check(subscription)
        bare = settings.without_subscriptions()
        topic = self._make_topic(self._new_record(settings.name, Kind.TOPIC, _dump(bare)), bare)
        for subscription in settings.subscriptions:
            self.create_subscription(settings.name, subscription)
        return topic

    def create_subscription(self, topic: str, settings: SubscriptionSettings) -> Queue:
        """Raises `BrokerError`: there is no such topic, the name is taken, a rule is wrong."""
        owner = self._topic(topic)
        path = path_of(owner.path, settings.name)
        self._check_free(path)
        self._check_targets(path, settings)
        Subscription.check(settings)
        return self._make_subscription(owner, self._new_record(path, Kind.SUBSCRIPTION, _dump(settings)), settings)

    def update_queue(self, settings: QueueSettings) -> None:
        """Raises `BrokerError`; sessions and duplicate detection cannot be turned on or off."""
        queue = self._entities.get(settings.name.lower())
        if not isinstance(queue, Queue) or not isinstance(queue.settings, QueueSettings):
            raise not_found(settings.name)
        before = queue.settings
        self._check_same(settings.requires_session == before.requires_session, "RequiresSession")
        self._check_same(settings.detects_duplicates == before.detects_duplicates, "RequiresDuplicateDetection")
        self._check_targets(queue.path, settings)
        self._save(queue.number, _dump(settings))
        queue.apply(settings)

    def update_topic(self, settings: TopicSettings) -> None:
        """The topic's own settings; its subscriptions stay as they are. Raises `BrokerError`."""
        topic = self._topic(settings.name)
        same = settings.detects_duplicates == topic.settings.detects_duplicates
        self._check_same(same, "RequiresDuplicateDetection")
        bare = settings.without_subscriptions()
        self._save(topic.number, _dump(bare))
        topic.apply(bare)

    def update_subscription(self, topic: str, settings: SubscriptionSettings) -> None:
        """The subscription with its rules. Raises `BrokerError`."""
        subscription = self._subscription(topic, settings.name)
        same = settings.requires_session == subscription.settings.requires_session
        self._check_same(same, "RequiresSession")
        self._check_targets(subscription.queue.path, settings)
        subscription.apply(settings)
        subscription.queue.apply(settings)
        self._save(subscription.queue.number, _dump(settings))

    def put_rule(self, topic: str, subscription: str, rule: RuleSettings) -> None:
        """Add a rule, or change the one of that name. Raises `BrokerError` for a wrong filter or action."""
        found = self._subscription(topic, subscription)
        self.update_subscription(topic, found.settings.with_rules(rules_with(found.settings.rules, rule)))

    def delete_rule(self, topic: str, subscription: str, name: str) -> None:
        """Raises `not_found`."""
        found = self._subscription(topic, subscription)
        kept = tuple(rule for rule in found.settings.rules if rule.name.lower() != name.lower())
        if len(kept) == len(found.settings.rules):
            raise not_found(f"{path_of(topic, subscription)}/Rules/{name}")
        self.update_subscription(topic, found.settings.with_rules(kept))

    def delete(self, path: str) -> None:
        """Delete a queue, a topic with its subscriptions, or a subscription, with all messages; its links are told so.
        Raises `not_found`."""
        key = path.strip("/").lower()
        entity = self._entities.get(key)
        if entity is None:
            raise not_found(path)
        if isinstance(entity, Topic):
            for subscription in list(entity.subscriptions.values()):
                self.delete(subscription.queue.path)
        elif entity.kind is Kind.SUBSCRIPTION:
            topic, _, name = key.rpartition(_SUBSCRIPTIONS)
            del self._topic(topic).subscriptions[name]
        del self._entities[key]
        del self._records[entity.number]
        self._store.remove_entity(entity.number)
        entity.close()

    def _check_free(self, path: str) -> None:
        if path.lower() in self._entities:
            raise already_exists(path)

    def _check_targets(self, path: str, settings: QueueSettings | SubscriptionSettings) -> None:
        for target in (settings.forward_to, settings.forward_dead_letters_to):
            if target is None:
                continue
            if target.lower() == path.lower():
                raise not_allowed(f"'{path}' cannot forward to itself.")
            found = self._entities.get(target.lower())
            if found is None:
                raise not_found(target)
            if not found.can_send:
                raise not_allowed(f"'{path}' cannot forward to the subscription '{target}'; choose a queue or topic.")

    @staticmethod
    def _check_same(same: bool, name: str) -> None:
        if not same:
            raise bad_field(f"{name} cannot be changed after an entity was made; delete it and make it again.")

    # ---------------------------------------------------------------------------------------------------- records

    def _new_record(self, path: str, kind: Kind, settings: str, declared: str | None = None) -> EntityRecord:
        now = self._now()
        return self._write(EntityRecord(self._next_number, path, kind.value, declared, settings, now, now))

    def _write(self, record: EntityRecord) -> EntityRecord:
        self._next_number = max(self._next_number, record.number + 1)
        self._records[record.number] = record
        self._store.put_entity(record)
        return record

    def _save(self, number: int, settings: str) -> None:
        self._write(self._records[number].changed(settings, self._now()))

    def _make_queue(self, record: EntityRecord, settings: QueueSettings) -> Queue:
        meter, numbers = Meter(settings), self._numbers(record.number)
        queue = Queue(self._hub, settings.name, record.number, settings, meter, numbers)
        self._entities[settings.name.lower()] = queue
        return queue

    def _make_topic(self, record: EntityRecord, settings: TopicSettings) -> Topic:
        topic = Topic(self._hub, record.number, settings, self._numbers(record.number))
        self._entities[settings.name.lower()] = topic
        return topic

    def _make_subscription(self, topic: Topic, record: EntityRecord, settings: SubscriptionSettings) -> Queue:
        path = path_of(topic.path, settings.name)
        queue = Queue(self._hub, path, record.number, settings, topic.meter, self._numbers(record.number))
        topic.subscriptions[settings.name.lower()] = Subscription(settings, queue)
        self._entities[path.lower()] = queue
        return queue

    def _numbers(self, entity: int) -> Numbers:
        return Numbers(self._store, entity, self._following.get(entity, 1))

    # ------------------------------------------------------------------------------------------------- restoring

    def _restore_entities(self, namespace: Namespace) -> None:
        stored = self._store.entities()
        self._next_number = max((record.number for record in stored), default=0) + 1
        left = {(record.path.lower(), record.kind): record for record in stored}
        for queue in namespace.queues:
            record = self._declare(left, queue.name, Kind.QUEUE, _dump(queue))
            self._make_queue(record, config.queue_from(json.loads(record.settings)))
        for topic in namespace.topics:
            record = self._declare(left, topic.name, Kind.TOPIC, _dump(topic.without_subscriptions()))
            made = self._make_topic(record, config.topic_from(json.loads(record.settings)))
            for subscription in topic.subscriptions:
                path = path_of(topic.name, subscription.name)
                _check_rules(path, subscription)
                record = self._declare(left, path, Kind.SUBSCRIPTION, _dump(subscription))
                self._make_subscription(made, record, config.subscription_from(json.loads(record.settings)))
        dormant = []
        # Topics before their subscriptions, as they were made.
        for record in sorted(left.values(), key=lambda record: record.number):
            if record.declared is None and self._revive(record):
                continue
            if self._store.holds_anything(record.number):
                dormant.append(record.path)
            else:
                self._store.remove_entity(record.number)
        self.dormant = tuple(dormant)

    def _declare(self, left: dict[tuple[str, str], EntityRecord], path: str, kind: Kind, declared: str) -> EntityRecord:
        """The record of a declared entity: the stored one while its declaration is the same, else made anew."""
        record = left.pop((path.lower(), kind.value), None)
        if record is None:
            return self._new_record(path, kind, declared, declared)
        if record.declared == declared:
            self._records[record.number] = record
            return record
        return self._write(record.declared_as(path, declared, self._now()))

    def _revive(self, record: EntityRecord) -> bool:
        """Make an entity again that the admin API made; whether its place is still free."""
        settings = json.loads(record.settings)
        if record.path.lower() in self._entities:
            return False
        if record.kind == Kind.QUEUE.value:
            self._make_queue(record, config.queue_from(settings))
        elif record.kind == Kind.TOPIC.value:
            self._make_topic(record, config.topic_from(settings))
        else:
            topic = self._entities.get(record.path.lower().rpartition(_SUBSCRIPTIONS)[0])
            if not isinstance(topic, Topic):
                return False
            self._make_subscription(topic, record, config.subscription_from(settings))
        self._records[record.number] = record
        return True

    def _restore_contents(self) -> None:
        by_number = {entity.number: entity for entity in self._entities.values()}
        for entity, session_id, state, at in self._store.session_states():
            found = by_number.get(entity)
            if isinstance(found, Queue):
                found.restore_session(session_id, state, at)
        for entity, sequence, identity, at in self._store.history():
            found = by_number.get(entity)
            intake = found.intake if found is not None else None
            if intake is not None and intake.history is not None:
                intake.history.restore(identity, sequence, at)
        for stored in self._store.messages():
            found = by_number.get(stored.entity)
            if found is not None:
                found.restore(stored.message, Box(stored.box), stored.hops)
        for entity_found in by_number.values():
            if isinstance(entity_found, Queue):
                entity_found.forward_waiting()


def path_of(topic: str, subscription: str) -> str:
    return f"{topic}/Subscriptions/{subscription}"


def _check_rules(path: str, settings: SubscriptionSettings) -> None:
    try:
        Subscription.check(settings)
    except BrokerError as error:
        raise ConfigError(f"{path}: {error.description}") from error


def _dump(settings: QueueSettings | TopicSettings | SubscriptionSettings) -> str:
    if isinstance(settings, QueueSettings):
        document = config.dump_queue(settings)
    elif isinstance(settings, TopicSettings):
        document = config.dump_topic(settings)
    else:
        document = config.dump_subscription(settings)
    return json.dumps(document, sort_keys=True, separators=(",", ":"))
