"""`context.call_http`: one HTTP request as an activity, polling while the answer is 202 with a Location.

On Azure each poll is an activity and a timer of its own; here all of them are one activity, so a crash in between
makes the first request again.
"""

import asyncio
import json
from urllib.parse import urljoin

import aiohttp
import msgspec

_DEFAULT_PAUSE_SECONDS = 30.0


class Request(msgspec.Struct, rename="camel"):
    method: str
    uri: str
    content: str | None = None
    headers: dict[str, str] | None = None
    token_source: msgspec.Raw = msgspec.Raw()
    asynchronous_pattern_enabled: bool = True


_decoder = msgspec.json.Decoder(Request)


async def call(request_json: str) -> str:
    """The final response as `{"statusCode", "headers", "content"}`. Raises aiohttp.ClientError, ValueError."""
    request = _decoder.decode(request_json)
    if bytes(request.token_source) not in (b"", b"null"):
        raise ValueError(
            "call_http with a token source needs the managed identity of an Azure resource, which a single machine "
            "does not have; pass an Authorization header, or make the call in an activity"
        )
    async with aiohttp.ClientSession() as session:
        response = await _send(session, request.method, request.uri, request.headers, request.content)
        while response["statusCode"] == 202 and request.asynchronous_pattern_enabled and _location(response):
            await asyncio.sleep(_pause(response))
            response = await _send(session, "GET", urljoin(request.uri, _location(response)), request.headers, None)
    return json.dumps(response)


async def _send(
    session: aiohttp.ClientSession, method: str, url: str, headers: dict[str, str] | None, content: str | None
) -> dict[str, object]:
    given = {name.lower() for name in headers or ()}
    extra = {"Content-Type": "application/json"} if content is not None and "content-type" not in given else {}
    async with session.request(method.upper(), url, data=content, headers={**(headers or {}), **extra}) as response:
        return {"statusCode": response.status, "headers": dict(response.headers), "content": await response.text()}


def _header(response: dict[str, object], name: str) -> str:
    headers = response["headers"]
    assert isinstance(headers, dict)
    return next((str(value) for key, value in headers.items() if key.lower() == name), "")


def _location(response: dict[str, object]) -> str:
    return _header(response, "location")


def _pause(response: dict[str, object]) -> float:
    try:
        return max(float(_header(response, "retry-after")), 0.0)
    except ValueError:
        return _DEFAULT_PAUSE_SECONDS
