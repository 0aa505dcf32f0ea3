"""Who may do what: keys by their hashes, people by what App Service says of them, and nobody by saying it himself."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from dropforge.domain.errors import BadInput
from dropforge.domain.roles import Role
from dropforge.settings import Settings, read
from functions import access
from functions.answers import Problem


def digest(key: str, length: int = 64) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:length]


def chosen(**environment: str) -> Settings:
    listed = f"{digest('r', 16)}=reader, {digest('o')}=operator,{digest('a')}=approver"
    return read({"DROPFORGE_KEY_ROLES": listed, **environment})


def principal(*roles: str, **claims: str) -> str:
    told = [{"typ": "roles", "val": role} for role in roles]
    told += [{"typ": name, "val": value} for name, value in claims.items()]
    return base64.b64encode(json.dumps({"auth_typ": "aad", "claims": told}).encode()).decode()


def role(headers: dict[str, str], settings: Settings, **query: str) -> Role | None:
    return access.caller_of({"x-other": "x", **headers}, query, settings).role


# ------------------------------------------------------------------------------------------------ keys
@pytest.mark.parametrize(
    ("given", "wanted"),
    [("r", Role.READER), ("o", Role.OPERATOR), ("a", Role.APPROVER), ("unlisted", Role.APPROVER)],
)
def test_a_key_gives_the_role_its_hash_is_listed_with(given: str, wanted: Role) -> None:
    assert role({"x-functions-key": given}, chosen()) is wanted
    assert role({}, chosen(), code=given) is wanted


def test_a_key_that_is_not_listed_has_the_default_role() -> None:
    assert role({"x-functions-key": "x"}, chosen(DROPFORGE_DEFAULT_KEY_ROLE="reader")) is Role.READER
    assert role({"x-functions-key": "x"}, chosen(DROPFORGE_DEFAULT_KEY_ROLE="none")) is None


@pytest.mark.parametrize(
    ("header", "code"),
    [("r", "x"), ("x", "r"), ("r,x", None), ("x, r", None), (None, "x,r"), ("a", "r"), ("r", "a"), (" r ", " x ")],
)
def test_a_second_key_beside_a_readers_makes_nobody_more_than_a_reader(header: str | None, code: str | None) -> None:
    headers = {"x-functions-key": header} if header is not None else {}
    assert role(headers, chosen(), **({"code": code} if code is not None else {})) is Role.READER


def test_an_unlisted_key_beside_another_gives_no_role_where_it_gives_none_alone() -> None:
    assert role({"x-functions-key": "a,x"}, chosen(DROPFORGE_DEFAULT_KEY_ROLE="none")) is None


@pytest.mark.parametrize("headers", [{}, {"x-functions-key": ""}, {"x-functions-key": " , "}])
def test_nobody_without_a_key(headers: dict[str, str]) -> None:
    with pytest.raises(Problem) as refused:
        role(headers, chosen())
    assert refused.value.status == 401


# ------------------------------------------------------------------------------------------------ people
def test_app_service_says_who_it_is_and_what_he_may() -> None:
    on = chosen(WEBSITE_AUTH_ENABLED="True")
    headers = {
        "x-ms-client-principal": principal("Dropforge.Reader", "Dropforge.Operator", "Somebody.Else"),
        "x-ms-client-principal-name": "ada@example.com",
        # A key opens the door, but whoever is known by name is who he is.
        "x-functions-key": "a",
    }
    caller = access.caller_of(headers, {}, on)
    assert (caller.role, caller.by("somebody else")) == (Role.OPERATOR, "ada@example.com")


def test_nobody_is_believed_who_he_is_while_app_service_authentication_is_off() -> None:
    headers = {"x-ms-client-principal": principal("Dropforge.Approver"), "x-ms-client-principal-name": "ada"}
    with pytest.raises(Problem) as refused:
        role(headers, chosen())
    assert refused.value.status == 401
    caller = access.caller_of({**headers, "x-functions-key": "r"}, {}, chosen())
    assert (caller.role, caller.name) == (Role.READER, None)


def test_a_name_alone_is_no_principal() -> None:
    headers = {"x-ms-client-principal-name": "ada"}
    with pytest.raises(Problem):
        role(headers, chosen(WEBSITE_AUTH_ENABLED="True"))


def test_a_program_without_a_name_is_known_by_its_application() -> None:
    headers = {"x-ms-client-principal": principal("Dropforge.Approver", appid="4711")}
    assert access.caller_of(headers, {}, chosen(WEBSITE_AUTH_ENABLED="True")).by() == "4711"


def test_the_roles_may_be_called_as_the_token_calls_them() -> None:
    told = {"role_typ": "http://roles", "claims": [{"typ": "http://roles", "val": "Dropforge.Approver"}]}
    header = base64.b64encode(json.dumps(told).encode()).decode()
    assert role({"x-ms-client-principal": header}, chosen(WEBSITE_AUTH_ENABLED="True")) is Role.APPROVER


@pytest.mark.parametrize(
    "header",
    ["!!!", "bnVsbA==", "e30=", base64.b64encode(b'{"claims": 5}').decode(), base64.b64encode(b"[" * 40_000).decode()],
)
def test_a_principal_that_app_service_did_not_write_is_nobody(header: str) -> None:
    with pytest.raises(Problem) as refused:
        role({"x-ms-client-principal": header, "x-functions-key": "a"}, chosen(WEBSITE_AUTH_ENABLED="True"))
    assert refused.value.status == 401


@pytest.mark.parametrize("claims", [[5, None, "x"], [{"typ": "roles"}], [{"val": "Dropforge.Approver"}]])
def test_claims_that_say_no_role_give_none(claims: list[Any]) -> None:
    header = base64.b64encode(json.dumps({"claims": claims}).encode()).decode()
    assert role({"x-ms-client-principal": header}, chosen(WEBSITE_AUTH_ENABLED="True")) is None


def test_with_entra_a_key_opens_nothing() -> None:
    for more in ({}, {"WEBSITE_AUTH_ENABLED": "True"}):
        with pytest.raises(Problem) as refused:
            role({"x-functions-key": "a"}, chosen(DROPFORGE_HTTP_AUTH="entra", **more))
        assert refused.value.status == 401


# ------------------------------------------------------------------------------------------------ may he
@pytest.mark.parametrize("has", [None, *Role])
@pytest.mark.parametrize("wanted", Role)
def test_each_role_may_do_what_the_one_before_may(has: Role | None, wanted: Role) -> None:
    order = [None, *Role]
    if order.index(has) >= order.index(wanted):
        access.check(access.Caller(has), wanted)
        return
    with pytest.raises(Problem) as refused:
        access.check(access.Caller(has), wanted)
    assert refused.value.status == 403
    assert f"needs the role {wanted.value}" in refused.value.detail


def test_what_a_keys_holder_claims_to_be_is_marked_as_a_claim() -> None:
    assert access.Caller(Role.APPROVER).by("ada") == "ada (with key approver)"
    assert access.Caller(Role.APPROVER).by() == "holder of a key (approver)"


# ------------------------------------------------------------------------------------------------ settings
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DROPFORGE_KEY_ROLES", "abc=reader"),
        ("DROPFORGE_KEY_ROLES", f"{digest('r')}=king"),
        ("DROPFORGE_KEY_ROLES", f"{digest('r')}"),
        ("DROPFORGE_KEY_ROLES", f"{digest('r')}0=reader"),
        ("DROPFORGE_DEFAULT_KEY_ROLE", "king"),
        ("DROPFORGE_HTTP_AUTH", "none"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name: str, value: str) -> None:
    with pytest.raises(BadInput, match=name):
        read({name: value})


def test_a_key_that_was_put_where_its_hash_belongs_is_not_shown() -> None:
    with pytest.raises(BadInput) as refused:
        read({"DROPFORGE_KEY_ROLES": "my-secret-key=reader"})
    assert "my-secret-key" not in refused.value.message
