"""How gRPC says that a call went well, or why it did not."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from dropforge.serving.grpc import frames

INTERNAL = 13
# By the status that HTTP has for the same.
CODES = {400: 3, 401: 16, 403: 7, 404: 5, 408: 4, 409: 9, 413: 8, 415: 12, 422: 9, 429: 8, 503: 14, 504: 4}
# Clients take 8 KiB of headers, and a character that is not ASCII is up to twelve of theirs.
ERROR_CHARACTERS = 1000
ERROR_BYTES = 4000
RETRY_SECONDS = 1
_PLAIN = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"

# The headers of an answer that name nobody; also those of an answer that is headers alone, before its status.
ONLY = frames.STATUS_200 + frames.block([("content-type", "application/grpc")])
# The headers after a message that is the answer.
TRAILERS = frames.block([("grpc-status", "0")])


def failed(status: int, message: str, named: Mapping[str, str] | None = None) -> bytes:
    """The headers that end an answer, by the status that HTTP has for what went wrong."""
    more = dict(named or {})
    if status in (429, 503):
        more |= {"retry-after": str(RETRY_SECONDS), "grpc-retry-pushback-ms": str(1000 * RETRY_SECONDS)}
    code = CODES.get(status, INTERNAL)
    text = quote(message[:ERROR_CHARACTERS], safe=_PLAIN, errors="replace")
    if len(text) > ERROR_BYTES:
        text = text[:ERROR_BYTES].rpartition("%")[0]
    return frames.block([("grpc-status", str(code)), ("grpc-message", text), *more.items()])
