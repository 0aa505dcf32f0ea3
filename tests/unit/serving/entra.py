"""A tenant for tests: it signs tokens, and publishes its keys on a port of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

TENANT = "11111111-2222-3333-4444-555555555555"
APP = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
AUDIENCE = "api://dropforge"


@cache
def signing_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


class Issuer:
    """Its keys as a JWKS, and tokens signed with any of them; `asked` counts how often the keys were fetched."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.authority = "http://127.0.0.1:1"
        self.asked = 0
        self.is_down = False

    def jwks(self) -> bytes:
        keys = []
        for name in self.names:
            told: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(signing_key(name).public_key(), as_dict=True)
            keys.append({**told, "kid": name, "use": "sig"})
        return json.dumps({"keys": keys}).encode()

    def fetch(self, url: str) -> bytes:
        self.asked += 1
        if self.is_down:
            raise OSError("no route to host")
        assert url == f"{self.authority}/{TENANT}/discovery/v2.0/keys"
        return self.jwks()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good token, but for the changes; a `timedelta` is so long from now."""
        now = int(time.time())
        changes = {k: now + int(v.total_seconds()) if isinstance(v, timedelta) else v for k, v in changes.items()}
        return {
            "iss": f"{self.authority}/{TENANT}/v2.0",
            "aud": AUDIENCE,
            "tid": TENANT,
            "nbf": now - 10,
            "iat": now - 10,
            "exp": now + 3600,
            "roles": ["Dropforge.Infer"],
            **changes,
        }

    def token(self, key: str = "k1", kid: str | None = None, without: str = "", **changes: Any) -> str:
        claims = {name: value for name, value in self.claims(**changes).items() if name != without}
        return jwt.encode(claims, signing_key(key), "RS256", headers={"kid": kid or key})


@contextmanager
def published(issuer: Issuer) -> Iterator[Issuer]:
    """The issuer with its keys on a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                body, status = issuer.fetch(issuer.authority + self.path), 200
            except (OSError, AssertionError):
                body, status = b"", 503
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    issuer.authority = f"http://127.0.0.1:{server.server_port}"
    try:
        yield issuer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
