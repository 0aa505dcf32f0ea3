"""Events to one HTTP address, each as a CloudEvent of its own."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import msgspec

from dropforge.adapters.patience import Patience
from dropforge.domain.errors import BadInput, Refused, Unavailable
from dropforge.domain.events import DomainEvent, cloud_event

TIMEOUT_SECONDS = 5.0
# A listener that is busy, or down behind its gateway; every other answer of 400 and more is meant.
_LATER = {408, 429}
_SHOWN_BYTES = 300


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected becomes a GET elsewhere, with the key: it is an answer like any other instead."""

    def redirect_request(self, *_: object) -> None:
        return None


class Webhook:
    """`Events` POSTed to a URL, with the key as `Authorization: Bearer` when there is one."""

    def __init__(self, url: str, key: str | None = None, source: str = "/dropforge/local") -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii():
            raise BadInput("setting DROPFORGE_EVENTS_WEBHOOK is not an http:// or https:// address")
        # A query may hold a secret of the listener's, so errors name the place without it.
        self._place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        self._url = url
        self._source = source
        self._headers = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._patience = Patience()

    def publish(self, event: DomainEvent) -> None:
        try:
            body = msgspec.json.encode(cloud_event(event, self._source))
        except (TypeError, ValueError) as error:
            raise BadInput(f"event {event.id!r} holds data that is not JSON: {error}", id=event.id) from error
        with self._patience.asking():
            self._post(body, event.id)

    def _post(self, body: bytes, id_: str) -> None:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")  # noqa: S310  checked above
        try:
            with self._opener.open(request, timeout=TIMEOUT_SECONDS):
                return
        except urllib.error.HTTPError as answer:
            with answer:
                said = answer.read(_SHOWN_BYTES).decode(errors="replace")
            message = f"webhook {self._place} answered {answer.code} to event {id_}: {said}"
            if answer.code in _LATER or answer.code >= 500:
                raise Unavailable(message, id=id_) from answer
            raise Refused(message, id=id_) from answer
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(f"webhook {self._place} does not answer: {reason}", id=id_) from error
