"""A managed identity as App Service gives one, and the check of its tokens as ARM does it."""

from __future__ import annotations

import base64
import json
import secrets
import time
from typing import Any

from tests.azure.wire import Answer, Call, Refused

TENANT = "00000000-0000-0000-0000-00000000000a"
ML = "https://ml.azure.com"
_LIFE_SECONDS = 24 * 3600


class Identity:
    """Issues tokens that look like those of Entra ID; they are signed by nobody and good for this control plane only."""

    def __init__(self) -> None:
        self.header = secrets.token_hex(16)
        self.url = ""
        # Client ids that may be asked for; None: any, and the system-assigned identity.
        self.client_ids: frozenset[str] | None = None
        self.issued = 0
        # Tokens of an older generation are refused as expired.
        self.generation = 0
        self._challenge = False
        self._refused = 0

    def expire(self, *, challenge: bool) -> None:
        self.generation += 1
        self._challenge = challenge

    def restore(self) -> None:
        """Every token that was issued is good again."""
        self.generation = 0
        self._refused = 0

    def refuse(self, times: int) -> None:
        self._refused = times

    def token(self, call: Call) -> Answer:
        """GET IDENTITY_ENDPOINT?resource=…&api-version=2019-08-01[&client_id=…], with the secret header."""
        if call.headers.get("x-identity-header") != self.header:
            return Answer(401, {"statusCode": 401, "message": "The X-IDENTITY-HEADER is missing or wrong."})
        if self._refused > 0:
            self._refused -= 1
            return Answer(
                500, {"statusCode": 500, "message": "An unexpected error occured while fetching the AAD Token."}
            )
        asked = call.query.get("client_id")
        if asked is not None and self.client_ids is not None and asked not in self.client_ids:
            return Answer(400, {"statusCode": 400, "message": "No User Assigned or Delegated Managed Identity found for specified ClientId/ResourceId/PrincipalId."})  # fmt: skip
        resource = call.query.get("resource")
        if not resource or call.query.get("api-version") != "2019-08-01":
            return Answer(400, {"statusCode": 400, "message": "Bad Request"})
        expires = int(time.time()) + _LIFE_SECONDS
        told = {"access_token": self.issue(resource, expires), "expires_on": str(expires), "resource": resource}
        return Answer(200, {**told, "token_type": "Bearer", "client_id": asked or TENANT})

    def issue(self, resource: str, expires: int) -> str:
        self.issued += 1
        claims = {
            "aud": resource,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": int(time.time()),
            "exp": expires,
            "tid": TENANT,
            "oid": "00000000-0000-0000-0000-00000000000b",
            "generation": self.generation,
            "uti": secrets.token_hex(8),
        }
        return ".".join((_encoded({"typ": "JWT", "alg": "RS256"}), _encoded(claims), secrets.token_hex(32)))

    def check(self, call: Call, *, data_plane: bool = False) -> None:
        """Raises `Refused` as ARM does: 401 with a code and a challenge. The data plane of Azure ML takes its own audience too."""
        kind, _, token = call.headers.get("authorization", "").partition(" ")
        if not kind:
            raise self._unauthorized(
                "AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing."
            )
        claims = _claims(token) if kind.lower() == "bearer" else None
        if claims is None:
            raise self._unauthorized("InvalidAuthenticationToken", "The access token is invalid.")
        allowed = {self.url} | ({ML} if data_plane else set())
        if str(claims["aud"]).rstrip("/") not in allowed:
            raise self._unauthorized(
                "InvalidAuthenticationTokenAudience",
                f"The access token has been obtained for wrong audience or resource '{claims['aud']}'. It should exactly "
                f"match with one of the allowed audiences '{self.url}/','{self.url}'.",
            )
        if claims["exp"] <= time.time() or claims["generation"] < self.generation:
            raise self._unauthorized(
                "ExpiredAuthenticationToken",
                "The access token expiry UTC time is earlier than current UTC time.",
                challenge=self._challenge,
            )

    def _unauthorized(self, code: str, message: str, *, challenge: bool = False) -> Refused:
        told = f'Bearer authorization_uri="https://login.microsoftonline.com/{TENANT}", error="invalid_token"'
        if challenge:
            # Continuous access evaluation: ask again, with these claims.
            claims = base64.b64encode(json.dumps({"access_token": {"nbf": {"value": str(int(time.time()))}}}).encode())
            told = f'Bearer authorization_uri="https://login.microsoftonline.com/{TENANT}", error="insufficient_claims", claims="{claims.decode()}"'  # fmt: skip
        return Refused(401, code, message, {"WWW-Authenticate": told})


def _encoded(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _claims(token: str) -> dict[str, Any] | None:
    parts = token.split(".")
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return {"aud": claims["aud"], "exp": int(claims["exp"]), "generation": int(claims["generation"])}
    except (IndexError, ValueError, KeyError, TypeError):
        return None
