"""The scoring route of an Azure ML container: which endpoint is asked, and the bodies that MLflow's clients send there."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from dropforge.domain.errors import BadInput, NotFound

ENDPOINT_HEADER = "dropforge-endpoint"
# A body above this is not read only to find out whom it asks.
NAMING_BYTES = 1024**2


class _Named(msgspec.Struct):
    model_name: str | None = None


class _Split(msgspec.Struct):
    """A table as pandas writes it with `orient="split"`."""

    columns: list[str]
    data: list[list[Any]]


class _InputData(msgspec.Struct):
    input_data: _Split | list[dict[str, Any] | list[Any]]
    id: str | None = None


def asked_endpoint(path: str, header: str | None, body: bytes, served: Collection[str]) -> str:
    """The endpoint of a request to `/score`: named by its path, by a header or by `model_name` in its body, or the only one
    there is. Raises `NotFound` and `BadInput`."""
    named = path or header
    if named:
        return named
    if len(served) == 1:
        return next(iter(served))
    if not served:
        raise NotFound("nothing is served here yet; publish the desired state of an endpoint")
    if len(body) <= NAMING_BYTES and b'"model_name"' in body:
        try:
            found = msgspec.json.decode(body, type=_Named).model_name
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadInput(f"the body is not an inference request: {error}") from error
        if found:
            return found
    raise BadInput(
        f"several endpoints are served here; name one of {sorted(served)} as /score/<endpoint>, in the header "
        f"`{ENDPOINT_HEADER}` or as `model_name`"
    )


def as_rows(body: bytes) -> bytes:
    """A body with `input_data` as one with `rows`; any other as it is. Raises `BadInput`."""
    if b'"input_data"' not in body:
        return body
    try:
        asked = msgspec.json.decode(body, type=_InputData)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(
            f'the body is no scoring request ({{"input_data": {{"columns": [...], "data": [[...]]}}}} or rows): {error}'
        ) from error
    table = asked.input_data
    if isinstance(table, list):
        return msgspec.json.encode({"rows": table, "id": asked.id})
    for number, row in enumerate(table.data):
        if len(row) != len(table.columns):
            raise BadInput(f"row {number} of `data` holds {len(row)} values, `columns` names {len(table.columns)}")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    return msgspec.json.encode({"rows": rows, "id": asked.id})
