"""The management API as the SDK's own administration client sees it, over a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.core.pipeline.transport import RequestsTransport
from azure.servicebus._base_handler import ServiceBusSharedKeyCredential
from azure.servicebus.management import (
    CorrelationRuleFilter,
    FalseRuleFilter,
    ServiceBusAdministrationClient,
    SqlRuleAction,
    SqlRuleFilter,
    TrueRuleFilter,
)

from dropforge.servicebus.admin.server import AdminServer
from dropforge.servicebus.core.broker import Broker
from dropforge.servicebus.errors import StoreFailed
from dropforge.servicebus.sas import AccessKey
from dropforge.servicebus.settings import Namespace, QueueSettings, Status
from dropforge.servicebus.store import Store

NOW = 1_800_000_000_000
KEYS = {"root": AccessKey("secret"), "sender": AccessKey("secret", frozenset({"Send"}))}


class PlainHttp(RequestsTransport):
    """The client writes https:// into every URL; the admin port has no TLS."""

    def send(self, request: object, **kwargs: object) -> object:
        request.url = request.url.replace("https://", "http://", 1)  # type: ignore[attr-defined]
        return super().send(request, **kwargs)


@dataclass
class Served:
    """A broker behind an admin port."""

    broker: Broker
    port: int
    commits: list[str]
    # What the next commit raises.
    failure: list[Exception]

    @contextlib.contextmanager
    def client(self, name: str = "root", key: str = "secret") -> Iterator[ServiceBusAdministrationClient]:
        credential = ServiceBusSharedKeyCredential(name, key)
        host = f"127.0.0.1:{self.port}"
        with ServiceBusAdministrationClient(host, credential, transport=PlainHttp(), retry_total=0) as client:
            yield client

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()


@pytest.fixture
def served() -> Iterator[Served]:
    with running(KEYS) as one:
        yield one


@contextlib.contextmanager
def running(keys: dict[str, AccessKey] | None) -> Iterator[Served]:
    """The client blocks, so the loop has a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> tuple[AdminServer, Served]:
        broker = Broker(Namespace("sbemulatorns", (QueueSettings(name="declared"),)), Store(None), lambda: NOW)
        one = Served(broker, 0, [], [])

        def commit() -> None:
            if one.failure:
                raise one.failure.pop()
            broker.commit()
            one.commits.append("commit")

        server = AdminServer(broker, keys, commit, clock=lambda: NOW)
        one.port = await server.start("127.0.0.1", 0)
        return server, one

    server, one = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield one
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        one.broker.close()


# The tokens of the client expire an hour from the machine's clock, which is before NOW.
@pytest.fixture(autouse=True)
def _token_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("azure.servicebus._base_handler.time.time", lambda: NOW / 1000)


def test_a_queue_is_made_with_what_was_asked_and_is_durable_before_the_answer(served: Served) -> None:
    with served.client() as client:
        made = client.create_queue(
            "orders/new",
            lock_duration=timedelta(seconds=30),
            max_delivery_count=4,
            requires_session=True,
            default_message_time_to_live="P1D",
            user_metadata="a <b> & c",
        )
    assert served.commits == ["commit"]
    assert (made.name, made.max_delivery_count, made.user_metadata) == ("orders/new", 4, "a <b> & c")
    assert served.broker.resolve("orders/new").requires_session


def test_a_queue_of_the_file_can_be_read_and_changed(served: Served) -> None:
    with served.client() as client:
        queue = client.get_queue("DECLARED")
        assert (queue.max_delivery_count, queue.default_message_time_to_live) == (3, timedelta(hours=1))
        queue.max_delivery_count = 7
        queue.status = "ReceiveDisabled"
        client.update_queue(queue)
        assert client.get_queue("declared").max_delivery_count == 7
    settings = served.broker.resolve("declared").settings
    assert isinstance(settings, QueueSettings) and settings.status is Status.RECEIVE_DISABLED


def test_what_an_entity_is_cannot_be_changed(served: Served) -> None:
    with served.client() as client:
        queue = client.get_queue("declared")
        queue.requires_session = True
        with pytest.raises(HttpResponseError, match="RequiresSession") as caught:
            client.update_queue(queue)
    assert caught.value.status_code == 400
    assert not served.broker.resolve("declared").requires_session


def test_what_exists_is_not_made_again_and_what_does_not_is_not_found(served: Served) -> None:
    with served.client() as client:
        client.create_topic("topic")
        with pytest.raises(ResourceExistsError):
            client.create_queue("DECLARED")
        with pytest.raises(ResourceExistsError):
            client.create_queue("topic")
        for missing in (
            lambda: client.get_queue("nothing"),
            lambda: client.delete_queue("nothing"),
            lambda: client.get_topic("nothing"),
            lambda: client.create_subscription("nothing", "sub"),
            lambda: client.get_subscription("topic", "sub"),
            lambda: client.delete_subscription("topic", "sub"),
            lambda: client.create_rule("topic", "sub", "rule"),
            lambda: list(client.list_rules("topic", "sub")),
            lambda: list(client.list_subscriptions("declared")),
            lambda: client.delete_topic("declared/$DeadLetterQueue"),
        ):
            with pytest.raises(ResourceNotFoundError):
                missing()
    assert served.commits == ["commit"]


def test_rules_keep_their_filters_actions_and_the_types_of_their_values(served: Served) -> None:
    values = {"text": "a", "int": 1, "long": 2**40, "double": 1.5, "bool": True}
    with served.client() as client:
        client.create_topic("topic")
        client.create_subscription("topic", "sub")
        client.create_rule(
            "topic", "sub", "sql", filter=SqlRuleFilter("a = @a", {"@a": 5}), action=SqlRuleAction("SET b = 1")
        )
        client.create_rule("topic", "sub", "corr", filter=CorrelationRuleFilter(label="x", properties=values))
        client.create_rule("topic", "sub", "none", filter=FalseRuleFilter())
        rules = {rule.name: rule for rule in client.list_rules("topic", "sub")}
        assert sorted(rules) == ["$Default", "corr", "none", "sql"]
        assert isinstance(rules["$Default"].filter, TrueRuleFilter)
        assert rules["sql"].filter.parameters == {"@a": 5}
        assert rules["sql"].action.sql_expression == "SET b = 1"
        assert rules["corr"].filter.properties == values
        assert [type(each) for each in rules["corr"].filter.properties.values()] == [str, int, int, float, bool]
        client.delete_rule("topic", "sub", "$Default")
        rule = rules["none"]
        rule.filter = SqlRuleFilter("1 = 1")
        client.update_rule("topic", "sub", rule)
        assert client.get_rule("topic", "sub", "none").filter.sql_expression == "1 = 1"
        runtime = client.get_topic_runtime_properties("topic")
    assert (runtime.subscription_count, runtime.sql_filter_count, runtime.correlation_filter_count) == (1, 2, 1)


def test_a_filter_that_cannot_be_read_is_refused_and_nothing_is_made(served: Served) -> None:
    with served.client() as client:
        client.create_topic("topic")
        client.create_subscription("topic", "sub")
        with pytest.raises(HttpResponseError) as caught:
            client.create_rule("topic", "sub", "bad", filter=SqlRuleFilter("a = = b"))
        assert caught.value.status_code == 400
        assert [rule.name for rule in client.list_rules("topic", "sub")] == ["$Default"]


def test_a_subscription_keeps_its_rules_when_its_settings_change(served: Served) -> None:
    with served.client() as client:
        client.create_topic("topic")
        subscription = client.create_subscription("topic", "sub")
        client.create_rule("topic", "sub", "more", filter=SqlRuleFilter("a = 1"))
        subscription.max_delivery_count = 2
        client.update_subscription("topic", subscription)
        assert client.get_subscription("topic", "sub").max_delivery_count == 2
        assert len(list(client.list_rules("topic", "sub"))) == 2


def test_deleting_a_topic_deletes_its_subscriptions(served: Served) -> None:
    with served.client() as client:
        client.create_topic("topic")
        client.create_subscription("topic", "sub")
        client.delete_topic("topic")
        with pytest.raises(ResourceNotFoundError):
            client.get_subscription("topic", "sub")
        assert [topic.name for topic in client.list_topics()] == []


def test_lists_come_in_pages_by_name(served: Served) -> None:
    with served.client() as client:
        for number in range(205):
            served.broker.create_queue(QueueSettings(name=f"q{number:03}"))
        names = [queue.name for queue in client.list_queues()]
    assert names == ["declared", *(f"q{number:03}" for number in range(205))]


def test_the_namespace_tells_its_name(served: Served) -> None:
    with served.client() as client:
        told = client.get_namespace_properties()
    assert (told.name, told.messaging_sku) == ("sbemulatorns", "Standard")


@pytest.mark.parametrize(("name", "key"), [("root", "wrong"), ("nobody", "secret"), ("sender", "secret")])
def test_a_wrong_key_or_one_that_may_not_manage_is_refused(served: Served, name: str, key: str) -> None:
    with served.client(name, key) as client, pytest.raises(ClientAuthenticationError):
        client.create_queue("q")
    assert served.commits == []


def test_without_a_token_nothing_is_told_but_the_health(served: Served) -> None:
    assert served.request("GET", "/$Resources/queues")[0] == 401
    status, body = served.request("GET", "/health")
    assert (status, json.loads(body)["status"]) == (200, "healthy")


def test_without_keys_everybody_may_manage() -> None:
    with running(None) as served:
        assert served.request("GET", "/$Resources/queues")[0] == 200


def test_a_change_that_is_not_durable_is_not_confirmed_and_the_endpoint_is_unhealthy(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.failure.append(StoreFailed("disk full"))
    with served.client() as client, pytest.raises(HttpResponseError) as caught:
        client.create_queue("q")
    assert caught.value.status_code == 500
    assert served.request("GET", "/health")[0] == 503


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/declared", 405),
        ("PUT", "/$Resources/queues", 405),
        ("DELETE", "/$Resources/queues", 405),
        ("DELETE", "/health", 405),
        ("GET", "/", 404),
        ("GET", "/$Resources/eventhubs", 404),
        ("GET", "/$Resources/queues?$top=many", 400),
        ("PUT", "/q", 400),
    ],
)
def test_what_the_api_does_not_have_is_refused_in_xml(method: str, path: str, status: int) -> None:
    with running(None) as served:
        got, body = served.request(method, path)
    assert got == status
    assert body == b"" or body.startswith(b"<Error><Code>%d</Code>" % status)


def test_a_description_at_the_wrong_place_is_refused() -> None:
    body = (
        b'<entry xmlns="http://www.w3.org/2005/Atom"><content type="application/xml">'
        b'<RuleDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect"/></content></entry>'
    )
    with running(None) as open_one:
        assert open_one.request("PUT", "/q", body)[0] == 400
