"""Keys and the signatures made with them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import quote

import pytest
from azure.servicebus._base_handler import ServiceBusSharedKeyCredential

from dropforge.servicebus.errors import BrokerError
from dropforge.servicebus.sas import ALL, AccessKey, check_token, entity_path, parse_key, within

KEYS = {"Root": AccessKey("secret"), "Reader": AccessKey("half", frozenset({"Listen"}))}
NOW = 1_700_000_000.0


def _signed(resource: str, expires: str, name: str = "Root", secret: str = "secret") -> str:
    signature = base64.b64encode(hmac.new(secret.encode(), f"{resource}\n{expires}".encode(), hashlib.sha256).digest())
    return f"SharedAccessSignature sr={resource}&sig={quote(signature, safe='')}&se={expires}&skn={name}"


def test_a_token_made_by_the_sdk_is_valid() -> None:
    token = ServiceBusSharedKeyCredential("Root", "secret").get_token("sb://localhost:5672/Orders")
    grant = check_token(token.token, KEYS, token.expires_on - 60)
    assert (grant.resource, grant.rights) == ("orders", ALL)
    with pytest.raises(BrokerError, match="Expired"):
        check_token(token.token, KEYS, token.expires_on)


def test_a_grant_holds_for_its_resource_its_rights_and_its_time() -> None:
    grant = check_token(_signed(quote("sb://h/T/Subscriptions/S", safe=""), "1700000060", "Reader", "half"), KEYS, NOW)
    assert grant.allows("t/Subscriptions/S", "Listen", NOW)
    assert grant.allows("T/subscriptions/s/$DeadLetterQueue", "Listen", NOW)
    assert not grant.allows("t/Subscriptions/S", "Send", NOW)
    assert not grant.allows("t/Subscriptions/S2", "Listen", NOW)
    assert not grant.allows("t", "Listen", NOW)
    assert not grant.allows("t/Subscriptions/S", "Listen", NOW + 60)


@pytest.mark.parametrize("expires", ["nan", "inf", "-1", "soon"])
def test_an_expiry_that_is_no_time_to_come_is_refused(expires: str) -> None:
    with pytest.raises(BrokerError) as refused:
        check_token(_signed("x", expires), KEYS, NOW)
    assert refused.value.status == 401


def test_a_key_is_written_with_or_without_rights() -> None:
    assert parse_key("Root:a=b") == ("Root", AccessKey("a=b"))
    assert parse_key("r:k:send, LISTEN") == ("r", AccessKey("k", frozenset({"Send", "Listen"})))
    assert parse_key("r:k:Manage")[1].rights == ALL
    for wrong in ("", "name", "name:", ":key", "name:key:Fly"):
        with pytest.raises(ValueError, match="NAME:KEY"):
            parse_key(wrong)


def test_paths_are_compared_by_their_segments() -> None:
    assert entity_path("amqps://host:5672/Q/$management") == "Q/$management"
    assert entity_path("q/") == "q"
    assert entity_path("sb://host") == ""
    assert within("anything", "")
    assert within("a/b", "a")
    assert not within("ab", "a")
