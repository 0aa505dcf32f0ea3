"""Entra tokens: which count, what they let their bearer do, and for how long that is believed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

from dropforge.domain.errors import BadInput
from dropforge.serving.keys import Keys, Role, Verdict
from dropforge.serving.tokens import BETWEEN_FETCHES_SECONDS, KEPT_SECONDS, EntraTokens, tenant_of
from tests.unit.serving.entra import APP, AUDIENCE, TENANT, Issuer, published, signing_key


@dataclass
class Clock:
    now: float

    def __call__(self) -> float:
        return self.now


def reader(issuer: Issuer, apps: str = "", clock: Callable[[], float] = time.time) -> EntraTokens:
    return EntraTokens(tenant_of(TENANT, f"{AUDIENCE}, another", apps, issuer.authority), clock, issuer.fetch)


async def asked(tokens: EntraTokens, token: str) -> Verdict:
    """The verdict, by one who tries again as long as he is told to."""
    found = tokens.verdict(token)
    while found.refusal is not None and "try again" in found.refusal[1] and tokens._fetching is not None:
        await tokens.refresh()
        found = tokens.verdict(token)
    return found


def verdict(issuer: Issuer, token: str, **more: Any) -> Verdict:
    async def scenario() -> Verdict:
        return await asked(reader(issuer, **more), token)

    return asyncio.run(scenario())


@pytest.fixture
def issuer() -> Issuer:
    return Issuer("k1")


@pytest.mark.parametrize(
    ("changes", "role"),
    [
        ({}, Role.CALLER),
        ({"roles": ["Dropforge.Admin", "Other"]}, Role.ADMIN),
        ({"aud": ["x", "another"]}, Role.CALLER),
        ({"iss": f"https://sts.windows.net/{TENANT}/"}, Role.CALLER),
        ({"exp": timedelta(seconds=-30)}, Role.CALLER),
        ({"nbf": timedelta(seconds=30)}, Role.CALLER),
        ({"roles": None, "azp": APP}, Role.CALLER),
        ({"roles": None, "appid": APP.upper()}, Role.CALLER),
    ],
    ids=["infer", "admin", "audiences", "version 1", "slow clock", "fast clock", "app", "app of version 1"],
)
def test_a_good_token_gives_its_role(issuer: Issuer, changes: dict[str, Any], role: Role) -> None:
    found = verdict(issuer, issuer.token(**changes), apps=APP)
    assert (found.role, found.refusal) == (role, None)


@pytest.mark.parametrize(
    ("changes", "status", "why"),
    [
        ({"aud": "api://other"}, 401, "another audience; wanted api://dropforge or another"),
        ({"iss": "https://evil.example/v2.0"}, 401, "another issuer"),
        ({"exp": timedelta(seconds=-120)}, 401, "expired"),
        ({"nbf": timedelta(seconds=120)}, 401, "not valid yet"),
        ({"exp": "soon"}, 401, "exp"),
        ({"tid": APP}, 401, "another tenant"),
        ({"without": "exp"}, 401, "exp"),
        ({"without": "aud"}, 401, "aud"),
        ({"without": "nbf"}, 401, "nbf"),
        ({"roles": ["dropforge.infer"]}, 403, "neither has the role"),
        ({"roles": "Dropforge.Admin"}, 403, "neither has the role"),
        ({"roles": None, "azp": TENANT}, 403, "neither has the role"),
        ({"key": "stranger", "kid": "k1"}, 401, "signature is wrong"),
        ({"key": "stranger"}, 401, "none of the tenant's"),
    ],
)
def test_a_token_that_does_not_count_is_refused_with_the_reason(
    issuer: Issuer, changes: dict[str, Any], status: int, why: str
) -> None:
    found = verdict(issuer, issuer.token(**changes), apps=APP)
    assert found.role is Role.NOBODY and found.refusal is not None
    assert found.refusal[0] == status and why in found.refusal[1]


def _encoded(part: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")


def test_a_token_cannot_choose_how_it_is_checked(issuer: Issuer) -> None:
    public = signing_key("k1").public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    claims = _encoded(issuer.claims(roles=["Dropforge.Admin"]))
    unsigned = b"%b.%b." % (_encoded({"alg": "none", "kid": "k1"}), claims)
    signed = b"%b.%b" % (_encoded({"alg": "HS256", "kid": "k1"}), claims)
    mac = base64.urlsafe_b64encode(hmac.digest(pem, signed, hashlib.sha256)).rstrip(b"=")
    for token in (unsigned.decode(), f"{signed.decode()}.{mac.decode()}"):
        found = verdict(issuer, token)
        assert found.role is Role.NOBODY and found.refusal is not None and "wanted RS256" in found.refusal[1]
    good = issuer.token().split(".")
    forged = ".".join([good[0], claims.decode(), good[2]])
    assert verdict(issuer, forged).refusal == (401, "the token does not count here: its signature is wrong")


def test_a_new_signing_key_is_fetched_for_the_first_token_that_names_it(issuer: Issuer) -> None:
    async def scenario() -> None:
        clock = Clock(time.time())
        tokens = reader(issuer, clock=clock)
        assert (await asked(tokens, issuer.token())).role is Role.CALLER
        issuer.names = ["k2"]
        clock.now += BETWEEN_FETCHES_SECONDS
        found = await asyncio.gather(*(asked(tokens, issuer.token("k2")) for _ in range(20)))
        assert {each.role for each in found} == {Role.CALLER}
        assert issuer.asked == 2
        # The key that was withdrawn opens nothing any more, also for a token that it opened something for before.
        assert (await asked(tokens, issuer.token())).role is Role.NOBODY

    asyncio.run(scenario())


def test_unknown_keys_do_not_make_it_ask_the_tenant_again_and_again(issuer: Issuer) -> None:
    async def scenario() -> None:
        tokens = reader(issuer, clock=Clock(time.time()))
        for number in range(50):
            assert (await asked(tokens, issuer.token("stranger", f"kid{number}"))).role is Role.NOBODY
        assert issuer.asked == 1

    asyncio.run(scenario())


def test_while_the_tenant_does_not_answer_the_keys_that_are_known_go_on(issuer: Issuer) -> None:
    async def scenario() -> None:
        clock = Clock(time.time())
        tokens = reader(issuer, clock=clock)
        issuer.is_down = True
        found = await asked(tokens, issuer.token())
        assert found.refusal is not None and found.refusal[0] == 503 and "no route to host" in found.refusal[1]
        issuer.is_down, clock.now = False, clock.now + BETWEEN_FETCHES_SECONDS
        assert (await asked(tokens, issuer.token())).role is Role.CALLER
        issuer.is_down, clock.now = True, clock.now + BETWEEN_FETCHES_SECONDS
        assert (await asked(tokens, issuer.token("k2"))).role is Role.NOBODY
        assert (await asked(tokens, issuer.token())).role is Role.CALLER

    asyncio.run(scenario())


def test_a_verdict_is_believed_until_the_token_ends_and_not_for_long(issuer: Issuer) -> None:
    async def scenario() -> None:
        clock = Clock(time.time())
        tokens = reader(issuer, clock=clock)
        long, short = issuer.token(), issuer.token(exp=int(clock.now) + 5)
        assert (await asked(tokens, long)).until == clock.now + KEPT_SECONDS
        assert (await asked(tokens, short)).until == int(clock.now) + 65
        clock.now += 64
        assert (await asked(tokens, short)).role is Role.CALLER
        clock.now += 2
        assert (await asked(tokens, short)).refusal == (401, "the token has expired; ask for a new one")

    asyncio.run(scenario())


def test_no_token_is_logged(issuer: Issuer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [issuer.token(), issuer.token("stranger"), issuer.token(aud="x"), issuer.token()[:-9] + "xxxxxxxxx"]
    said = [verdict(issuer, token) for token in tokens]
    text = caplog.text + repr(said)
    assert "k1" in text
    assert not any(part in text for token in tokens for part in token.split("."))


def test_the_keys_come_over_http() -> None:
    with published(Issuer("k1")) as issuer:

        async def scenario() -> Verdict:
            tokens = EntraTokens(tenant_of(TENANT, AUDIENCE, "", issuer.authority))
            await tokens.refresh()
            return tokens.verdict(issuer.token())

        assert asyncio.run(scenario()).role is Role.CALLER


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("common", AUDIENCE), "must be the tenant's id"),
        ((TENANT, " , "), "wants an --entra-audience"),
        ((TENANT, AUDIENCE, "x"), "--entra-apps has 'x'"),
        ((TENANT, AUDIENCE, f"{APP}=owner"), "infer or"),
        ((TENANT, AUDIENCE, "", "http://login.example"), "must start with https"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: tuple[str, ...], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        tenant_of(*arguments)


def header(value: str) -> Callable[[str], str | None]:
    return {"authorization": f"Bearer {value}"}.get


def test_keys_and_tokens_open_the_same_doors(issuer: Issuer) -> None:
    async def scenario() -> None:
        tokens = reader(issuer)
        await tokens.refresh()
        keys = Keys("correct horse", None, tokens)
        admin = keys.verdict(header(issuer.token(roles=["Dropforge.Admin"])))
        caller = keys.verdict(header(issuer.token()))
        by_key = keys.verdict(header("correct horse"))
        assert keys.refusal(admin, Role.ADMIN) is keys.refusal(by_key, Role.CALLER) is None
        assert keys.refusal(caller, Role.CALLER) is None
        assert (keys.refusal(caller, Role.ADMIN) or (0,))[0] == (keys.refusal(by_key, Role.ADMIN) or (0,))[0] == 403
        assert (keys.refusal(keys.verdict(header("wrong")), Role.CALLER) or (0,))[0] == 401
        # Where tokens are asked for and there is no key, none opens.
        for text in ("", "wrong", jwt.encode({}, "x" * 32, "HS256")):
            assert Keys(None, None, tokens).verdict(header(text)).role is Role.NOBODY

    asyncio.run(scenario())
