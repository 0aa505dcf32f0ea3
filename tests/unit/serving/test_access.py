"""Who gets past the server's door with what, and for how long a remembered head is believed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from dropforge.serving.converge import Converger
from dropforge.serving.http1 import Limits
from dropforge.serving.server import Server
from dropforge.serving.tokens import EntraTokens, tenant_of
from tests.unit.serving.entra import AUDIENCE, TENANT, Issuer
from tests.unit.serving.test_server import Store

LOAD = "POST /v2/repository/models/flights/load"
INFER = "POST /v2/models/flights/infer"
METADATA = "GET /v2"


class Door:
    """The server, asked by the head of a request alone."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def answers(self, line: str, bearer: str = "", length: int = 0) -> int:
        """The status that the head is refused with; 200 when it gets past."""
        who = f"Authorization: Bearer {bearer}\r\n" if bearer else ""
        raw = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n{who}\r\n".encode()
        refusal = self.server.refusal(self.server.heads.read(raw))
        return 200 if refusal is None else int(refusal.split(b" ", 2)[1])


@asynccontextmanager
async def door(issuer: Issuer, key: str | None = None, admin_key: str | None = None) -> AsyncIterator[Door]:
    tokens = EntraTokens(tenant_of(TENANT, AUDIENCE, "", issuer.authority), fetch=issuer.fetch)
    await tokens.refresh()
    converger = Converger(Store(), "r1", 1.0)
    server = Server(converger, key, Limits(body_bytes=100), admin_key=admin_key, tokens=tokens)
    yield Door(server)
    server.close()
    await converger.close()


def test_a_token_opens_the_routes_of_its_role() -> None:
    async def scenario() -> None:
        issuer = Issuer("k1")
        async with door(issuer, key="correct horse") as asked:
            caller, admin = issuer.token(), issuer.token(roles=["Dropforge.Admin"])
            assert [asked.answers(line, caller) for line in (METADATA, INFER, LOAD)] == [200, 200, 403]
            assert [asked.answers(line, admin) for line in (METADATA, INFER, LOAD)] == [200, 200, 200]
            assert [asked.answers(line, "correct horse") for line in (METADATA, INFER, LOAD)] == [200, 200, 403]
            assert [asked.answers(line) for line in (METADATA, INFER, LOAD)] == [401, 401, 401]
            assert [asked.answers(line, issuer.token(roles=[])) for line in (METADATA, LOAD)] == [403, 403]
            assert asked.answers("GET /v2/health/live") == asked.answers("GET /v2/health/ready", "eyJ.x.y") == 200

    asyncio.run(scenario())


def test_a_remembered_head_is_refused_once_its_token_has_ended() -> None:
    async def scenario() -> None:
        issuer = Issuer("k1")
        async with door(issuer) as asked:
            token = issuer.token(exp=timedelta(seconds=-58))
            assert asked.answers(METADATA, token) == 200
            async with asyncio.timeout(10):
                while asked.answers(METADATA, token) == 200:  # noqa: ASYNC110 - time tells nobody
                    await asyncio.sleep(0.05)
            assert asked.answers(METADATA, token) == 401

    asyncio.run(scenario())


def test_a_remembered_head_is_looked_at_again_and_still_gets_past() -> None:
    async def scenario() -> None:
        issuer = Issuer("k1")
        async with door(issuer) as asked:
            token = issuer.token()
            assert asked.answers(INFER, token, 100) == 200
            # The time that a verdict is believed is over, and the token is good still.
            asked.server.now = time.time() + 400
            assert asked.answers(INFER, token, 100) == 200
            assert asked.answers(INFER, token, 101) == 413

    asyncio.run(scenario())


def test_a_head_that_came_before_the_tenant_s_new_key_gets_past_after_it() -> None:
    async def scenario() -> None:
        issuer = Issuer("k1")
        issuer.is_down = True
        async with door(issuer) as asked:
            token = issuer.token()
            assert asked.answers(METADATA, token) == 503
            issuer.is_down = False
            await asked.server.keys._tokens.refresh()  # type: ignore[union-attr]
            assert asked.answers(METADATA, token) == 200

    asyncio.run(scenario())
