"""What an HTTP door makes of a body that is no JSON object."""

from __future__ import annotations

import azure.functions as func
import pytest

from dropforge.domain.errors import BadInput
from functions.answers import body_of


def request(body: bytes) -> func.HttpRequest:
    return func.HttpRequest("POST", "http://h/api/x", body=body)


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"5", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 50_000])
def test_a_body_that_is_no_json_object_is_bad_input(body: bytes) -> None:
    with pytest.raises(BadInput, match="the request body is"):
        body_of(request(body))


def test_no_body_is_an_empty_object() -> None:
    assert body_of(request(b"")) == {}
