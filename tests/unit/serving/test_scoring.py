"""The scoring route of an Azure ML container."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dropforge.domain.errors import BadInput, NotFound
from dropforge.serving.scoring import as_rows, asked_endpoint


@pytest.mark.parametrize(
    ("path", "header", "body", "served", "found"),
    [
        ("", None, b"{}", ["flights"], "flights"),
        ("weather", None, b"{}", ["flights"], "weather"),
        ("weather", "flights", b"{}", ["flights", "weather"], "weather"),
        ("", "flights", b'{"model_name": "weather"}', ["flights", "weather"], "flights"),
        ("", None, b'{"model_name": "weather"}', ["flights", "weather"], "weather"),
    ],
)
def test_the_endpoint_is_named_or_the_only_one(
    path: str, header: str | None, body: bytes, served: list[str], found: str
) -> None:
    assert asked_endpoint(path, header, body, served) == found


def test_of_several_endpoints_one_must_be_named() -> None:
    with pytest.raises(BadInput, match=r"name one of \['flights', 'weather'\] as /score/<endpoint>"):
        asked_endpoint("", None, b'{"rows": []}', ["weather", "flights"])
    with pytest.raises(BadInput, match="is not an inference request"):
        asked_endpoint("", None, b'{"model_name": 3}', ["weather", "flights"])
    with pytest.raises(NotFound, match="nothing is served here yet"):
        asked_endpoint("", None, b"", [])


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({"columns": ["a", "b"], "data": [[1, "x"], [2, None]]}, [{"a": 1, "b": "x"}, {"a": 2, "b": None}]),
        ({"columns": ["a"], "index": [0], "data": [[1.5]]}, [{"a": 1.5}]),
        ([{"a": 1}], [{"a": 1}]),
        ([[1, 2]], [[1, 2]]),
    ],
)
def test_a_table_of_mlflow_is_rows(asked: Any, rows: Any) -> None:
    body = json.dumps({"input_data": asked, "params": {}}).encode()
    assert json.loads(as_rows(body)) == {"rows": rows, "id": None}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"columns": ["a", "b"], "data": [[1, 2], [1]]}, "row 1 of `data` holds 1 values, `columns` names 2"),
        ({"data": [[1]]}, "missing required field `columns`"),
        (3, "is no scoring request"),
    ],
)
def test_a_table_that_is_none_is_told(asked: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        as_rows(json.dumps({"input_data": asked}).encode())


def test_other_bodies_are_left_as_they_are() -> None:
    assert as_rows(b'{"rows": [[1]]}') == b'{"rows": [[1]]}'
