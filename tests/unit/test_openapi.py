"""The document says what the app does: made of one table, equal to the committed copy, valid OpenAPI 3.1."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

import function_app
from dropforge.domain.commands import FORMS, Kind, example
from dropforge.domain.roles import Role
from dropforge.host.routes import compile_template
from functions import openapi
from functions.api_write import ROLES
from functions.operations import OPERATIONS

ROOT = Path(__file__).parent.parent.parent
COMMITTED = ROOT / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi.document()


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): told for path, item in document["paths"].items() for method, told in item.items()}


def resolved(document: dict[str, Any], value: Any) -> Any:
    """The value with every reference into the document followed, for a validator that knows no document."""
    text = json.dumps(value).replace("#/components/schemas/", "#/$defs/")
    return json.loads(text) | {
        "$defs": json.loads(json.dumps(document["components"]["schemas"]).replace("#/components/schemas/", "#/$defs/"))
    }


def test_the_committed_copy_is_what_the_code_says() -> None:
    assert COMMITTED.read_text() == openapi.text(), "run: python -m functions.openapi > docs/openapi.json"


def test_it_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert [str(error) for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []


def test_every_schema_in_it_is_one(document: dict[str, Any]) -> None:
    schemas = [resolved(document, schema) for schema in document["components"]["schemas"].values()]
    schemas += [
        resolved(document, content["schema"])
        for told in operations(document).values()
        for content in told.get("requestBody", {}).get("content", {}).values()
    ]
    for schema in schemas:
        jsonschema_rs.meta.validate(schema)
        jsonschema_rs.Draft202012Validator(schema)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for place in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        found: Any = document
        for part in place.split("/"):
            found = found[part]


def test_the_examples_of_bodies_fit_their_schemas(document: dict[str, Any]) -> None:
    for (method, path), told in operations(document).items():
        for content in told.get("requestBody", {}).get("content", {}).values():
            if "example" in content:
                validator = jsonschema_rs.Draft202012Validator(resolved(document, content["schema"]))
                assert validator.is_valid(content["example"]), (method, path)


# ------------------------------------------------------------------------------------------------ one table
def routes() -> dict[tuple[str, str], dict[str, Any]]:
    """(method, path) of each HTTP function of the app -> its name and its trigger."""
    found = {}
    # `get_functions` may be called once in a process only.
    for made in (builder._function for builder in function_app.app._function_builders):
        trigger = made.get_trigger()
        if trigger is not None and trigger.type == "httpTrigger":
            told = trigger.get_dict_repr()
            for method in told.get("methods") or ["any"]:
                name = getattr(method, "value", str(method)).upper()
                found[name, f"/{told['route']}"] = {**told, "name": made.get_function_name()}
    return found


def test_the_app_serves_what_the_document_says_and_nothing_else(document: dict[str, Any]) -> None:
    served = routes()
    assert served.pop(("ANY", "/{*path}"))["name"] == "nothing_here"
    heads = {path for method, path in served if method == "HEAD"}
    assert heads == {path for method, path in served if method == "GET"}
    assert {place for place in served if place[0] != "HEAD"} == set(operations(document))
    for place, told in operations(document).items():
        assert served[place]["name"] == told["operationId"]


def test_only_health_and_the_document_are_open_to_anybody() -> None:
    open_to_all = {path for (_, path), told in routes().items() if "ANONYMOUS" in str(told["authLevel"]).upper()}
    assert open_to_all == {"/health", "/openapi.json"}
    assert {f"/{each.path}" for each in OPERATIONS if each.role is None} == open_to_all


def test_no_path_hides_another() -> None:
    """Azure and the embedded host take the more literal route first; no two may be alike but for names."""
    shapes = {re.sub(r"\{\w+\}", "{}", each.path) for each in OPERATIONS}
    assert len(shapes) == len({each.path for each in OPERATIONS})
    for each in OPERATIONS:
        sample = re.sub(r"\{\w+\}", "x-1", each.path)
        fitting = [other.path for other in OPERATIONS if compile_template(other.path).match(sample) is not None]
        assert set(fitting) == {each.path}


# ------------------------------------------------------------------------------------------------ what holds for all
def test_every_operation_says_who_may_and_how_it_refuses(document: dict[str, Any]) -> None:
    for told in operations(document).values():
        role = re.search(r"Needs the role \*\*(\w+)\*\*|Open to anybody", told["description"])
        assert role is not None
        wanted = {"400", "500", "503"} | ({"401", "403", "404"} if role[1] else set())
        assert wanted <= set(told["responses"])
        assert told["summary"]


def test_reading_needs_a_reader_and_writing_more(document: dict[str, Any]) -> None:
    for each in OPERATIONS:
        if each.method == "GET":
            assert each.role in (None, Role.READER)
        elif each.name != "dry_run_yaml":
            assert each.role in (Role.OPERATOR, Role.APPROVER)


def test_every_post_that_starts_work_takes_a_key_and_says_where_the_work_is(document: dict[str, Any]) -> None:
    for each in OPERATIONS:
        if each.method != "POST" or not each.starts:
            continue
        told = operations(document)["POST", f"/{each.path}"]
        taken = {reference["$ref"].rpartition(".")[2] for reference in told["parameters"]}
        assert "Idempotency-Key" in taken
        done = next(answer for status, answer in told["responses"].items() if status in ("200", "202"))
        assert "Location" in done["headers"]


def test_every_list_is_paged() -> None:
    lists = [each for each in OPERATIONS if each.name.startswith("list_") and each.name != "list_aliases"]
    assert len(lists) >= 8
    for each in lists:
        assert {"limit", "token"} <= {parameter.name for parameter in each.query}


def test_every_kind_of_command_has_an_operation_and_a_role() -> None:
    assert set(ROLES) == set(Kind)
    paths = " ".join(each.path for each in OPERATIONS if each.method == "POST")
    for kind in set(Kind) - {Kind.APPROVE, Kind.REJECT}:
        assert f"/{kind.value}" in paths


def test_the_schema_of_a_command_is_that_of_the_queue(document: dict[str, Any]) -> None:
    told = operations(document)["POST", "/v1/commands"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema_rs.Draft202012Validator(told)
    assert all(validator.is_valid(example(kind)) for kind in FORMS)
    assert not validator.is_valid({"command": "promote", "pipeline": "coin"})
