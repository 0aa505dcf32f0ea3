"""Stand-ins for the modules that Microsoft's live tests import and PyPI does not have: entities are made by ATOM."""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from azure.core.exceptions import ResourceNotFoundError
from azure.servicebus.management import ServiceBusAdministrationClient

from tests.sdk.local import LISTEN_KEY, ROOT_KEY, SEND_KEY, AsyncCredential, Credential, Endpoint, administration


class AccessRights(enum.StrEnum):
    """As in azure.mgmt.servicebus.models."""

    MANAGE = manage = "Manage"
    SEND = send = "Send"
    LISTEN = listen = "Listen"


@dataclass(frozen=True)
class Resource:
    """What a preparer hands to a test: tests look at the name only."""

    name: str
    id: str = ""


class Preparer:
    """A decorator that makes something before a test and removes it after it, and passes it on by keyword.

    The `Cached...` ones of Microsoft's share an entity among tests to save cloud time; here every test gets its own.
    """

    def __init__(self, name_prefix: str = "", *, parameter_name: str = "", **options: Any) -> None:
        self._prefix = name_prefix
        self._parameter = parameter_name
        self._options = options

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(test):

            @functools.wraps(test)
            async def awaited(instance: object, **kwargs: Any) -> None:
                with self._prepared(kwargs) as more:
                    await test(instance, **{**kwargs, **more})

            return awaited

        @functools.wraps(test)
        def called(instance: object, **kwargs: Any) -> None:
            with self._prepared(kwargs) as more:
                test(instance, **{**kwargs, **more})

        return called

    @contextlib.contextmanager
    def _prepared(self, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with administration(Endpoint.from_environment()) as client:
            yield self.create(client, known)
            with contextlib.suppress(ResourceNotFoundError):
                self.remove(client, known)

    def create(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> dict[str, Any]:
        return {}

    def remove(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> None:
        """Nothing was made."""

    def _new(self, default: str) -> dict[str, Any]:
        self._name = f"{self._prefix or default}{uuid.uuid4().hex[:16]}"
        return {self._parameter or default: Resource(self._name)}


class NamespacePreparer(Preparer):
    """The one namespace there is, and its key."""

    def create(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> dict[str, Any]:
        endpoint = Endpoint.from_environment()
        return {
            "servicebus_namespace": Resource(endpoint.amqp),
            "servicebus_namespace_connection_string": ROOT_KEY.connection_string(endpoint),
            "servicebus_namespace_key_name": ROOT_KEY.name,
            "servicebus_namespace_primary_key": ROOT_KEY.value,
        }


class QueuePreparer(Preparer):
    def create(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> dict[str, Any]:
        made = self._new("servicebus_queue")
        client.create_queue(self._name, **{"lock_duration": "PT30S", **self._options})
        return made

    def remove(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> None:
        client.delete_queue(self._name)


class TopicPreparer(Preparer):
    def create(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> dict[str, Any]:
        made = self._new("servicebus_topic")
        client.create_topic(self._name, **self._options)
        return made

    def remove(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> None:
        client.delete_topic(self._name)


class SubscriptionPreparer(Preparer):
    def create(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> dict[str, Any]:
        made = self._new("servicebus_subscription")
        options = {"lock_duration": "PT60S", **self._options}
        client.create_subscription(known["servicebus_topic"].name, self._name, **options)
        return made

    def remove(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> None:
        client.delete_subscription(known["servicebus_topic"].name, self._name)


class AuthorizationRulePreparer(Preparer):
    """A connection string with the rights asked for. The keys are those that the endpoint was started with."""

    def __init__(self, entity: str, parameter: str, name_prefix: str = "", **options: Any) -> None:
        super().__init__(name_prefix, parameter_name=parameter, **options)
        self._entity = entity

    def create(self, client: ServiceBusAdministrationClient, known: dict[str, Any]) -> dict[str, Any]:
        rights = {AccessRights(each).value for each in self._options.get("access_rights", list(AccessRights))}
        key = {"Listen": LISTEN_KEY, "Send": SEND_KEY}[rights.pop()] if len(rights) == 1 else ROOT_KEY
        path = known[self._entity].name if self._entity else ""
        told = key.connection_string(Endpoint.from_environment(), path)
        return {f"{self._parameter}_connection_string": told}


class SettingsPreparer:
    """Hands a test those of the namespace's settings that it asks for."""

    def __call__(self, test: Callable[..., Any]) -> Callable[..., Any]:
        asked = inspect.signature(test).parameters
        endpoint = Endpoint.from_environment()
        known = {
            "servicebus_fully_qualified_namespace": endpoint.admin,
            "servicebus_connection_str": ROOT_KEY.connection_string(endpoint),
            "servicebus_sas_policy": ROOT_KEY.name,
            "servicebus_sas_key": ROOT_KEY.value,
        }
        anything = any(each.kind is each.VAR_KEYWORD for each in asked.values())
        given = {name: value for name, value in known.items() if anything or name in asked}
        if inspect.iscoroutinefunction(test):

            async def awaited(instance: object) -> None:
                await test(instance, **given)

            awaited.__dict__.update(test.__dict__)
            return awaited

        # Not `wraps`: pytest must not look for the settings among its fixtures.
        def called(instance: object) -> None:
            test(instance, **given)

        called.__dict__.update(test.__dict__)
        return called


def as_it_is(test: Callable[..., Any]) -> Callable[..., Any]:
    """Stands for the decorators that record and play back."""
    return test


def get_credential(is_async: bool = False, **_: Any) -> Any:
    return AsyncCredential() if is_async else Credential()


class TestCase:
    """Base of Microsoft's test classes; what it records in the cloud is not needed here."""

    __test__ = False

    def __init_subclass__(cls) -> None:
        cls.__test__ = True

    @staticmethod
    def await_prepared_test(test: Callable[..., Any]) -> Callable[..., Any]:
        """The plugin runs coroutines already."""
        return test


def _module(name: str, **attributes: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


def install() -> None:
    """Puts the stand-ins where the tests' imports find them."""
    rule = functools.partial(AuthorizationRulePreparer, "", "servicebus_authorization_rule")
    queue_rule = functools.partial(AuthorizationRulePreparer, "servicebus_queue", "servicebus_queue_authorization_rule")
    preparers = {
        "ResourceGroup": Preparer,
        "Namespace": NamespacePreparer,
        "Queue": QueuePreparer,
        "Topic": TopicPreparer,
        "Subscription": SubscriptionPreparer,
        "NamespaceAuthorizationRule": rule,
        "QueueAuthorizationRule": queue_rule,
    }
    names = {f"{cached}ServiceBus{name}Preparer": made for name, made in preparers.items() for cached in ("", "Cached")}
    _module("servicebus_preparer", SERVICEBUS_ENDPOINT_SUFFIX="", **names)
    _module(
        "devtools_testutils",
        AzureMgmtRecordedTestCase=TestCase,
        AzureRecordedTestCase=TestCase,
        RandomNameResourceGroupPreparer=Preparer,
        CachedResourceGroupPreparer=Preparer,
        get_credential=get_credential,
        recorded_by_proxy=as_it_is,
        set_custom_default_matcher=lambda **_: None,
    )
    _module("devtools_testutils.aio", recorded_by_proxy_async=as_it_is)
    _module("sb_env_loader", ServiceBusPreparer=SettingsPreparer)
    _module("azure.common", AzureHttpError=OSError, AzureConflictHttpError=OSError)
    _module("azure.mgmt")
    _module("azure.mgmt.servicebus")
    _module("azure.mgmt.servicebus.models", AccessRights=AccessRights)
