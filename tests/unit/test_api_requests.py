"""What the API makes of a request before any step sees it: parameters, bodies, ETags, tokens, errors."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

import azure.durable_functions as df
import azure.functions as func
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.domain.arrivals import ArrivalState
from dropforge.domain.commands import Kind
from dropforge.domain.errors import BadInput, NotFound, Unavailable
from dropforge.domain.roles import Role
from functions import alerts, api_read, api_write, bodies, operations, paging, parameters, tags
from functions.answers import Problem, answer, refused
from functions.operations import Call, Operation, answered
from functions.parameters import Parameter

KEY = {"x-functions-key": "a-key"}
# These fill the table of operations.
assert alerts.bp and api_read.bp and api_write.bp


def request(
    method: str = "GET",
    headers: dict[str, str] | None = None,
    params: dict[str, str] | None = None,
    route: dict[str, str] | None = None,
    body: bytes = b"",
) -> func.HttpRequest:
    return func.HttpRequest(
        method, "http://h/api/x", headers={**KEY, **(headers or {})}, params=params, route_params=route, body=body
    )


def operation_of(**more: Any) -> Operation:
    made: dict[str, Any] = {
        "name": "test_operation", "method": "GET", "path": "v1/things/{name}", "role": Role.READER,
        "description": "A test.", "gives": {200: "object"},
    }  # fmt: skip
    return Operation(**(made | more))


def answer_of(wanted: Operation, req: func.HttpRequest, raises: Exception | None = None) -> tuple[int, Any]:
    async def handler(call: Call) -> func.HttpResponse:
        if raises is not None:
            raise raises
        return answer({"values": call.values, "body": call.body})

    response = asyncio.run(answered(wanted, handler, req, None))
    return response.status_code, json.loads(response.get_body())


# ------------------------------------------------------------------------------------------------ parameters
def test_an_unknown_query_parameter_is_named_with_the_choices() -> None:
    wanted = operation_of(query=(parameters.LIMIT, parameters.TOKEN))
    status, told = answer_of(wanted, request(params={"limt": "5"}, route={"name": "coin"}))
    assert (status, told["parameter"]) == (400, "limt")
    assert "limit, token" in told["detail"]


def test_what_the_host_takes_out_of_a_query_is_left_to_it() -> None:
    status, _ = answer_of(operation_of(), request(params={"code": "k", "clientId": "default"}, route={"name": "coin"}))
    assert status == 200


@pytest.mark.parametrize("given", ["0", "-1", "201", "1e2", "x", "5.0", "٣", "9" * 5000, "1,2"])
def test_a_limit_that_is_none_is_bad_input_that_names_it(given: str) -> None:
    with pytest.raises(BadInput, match=r"query 'limit' is .* from 1 to 200"):
        parameters.LIMIT.read(given)


def test_what_is_not_given_is_its_default() -> None:
    assert (parameters.LIMIT.read(None), parameters.TOKEN.read(None)) == (50, None)
    assert parameters.QUESTION_STATE.read(None) == "open"


@pytest.mark.parametrize("name", ["", "Coin", "-coin", "coin-", "a/b", "coin\n", "c" * 41, "côin", "\x00"])
def test_a_name_that_is_none_is_refused_in_a_path(name: str) -> None:
    assert answer_of(operation_of(), request(route={"name": name}))[0] == 400


@given(st.text(max_size=300))
def test_text_that_a_parameter_takes_matches_its_schema_and_fits_a_ledger_key(text: str) -> None:
    for parameter in (*parameters.PATH.values(), parameters.KEY, parameters.TOKEN, parameters.HOPS):
        try:
            taken = parameter.read(text)
        except BadInput:
            continue
        assert isinstance(taken, int) or (text.isascii() and text.isprintable() and len(text) <= parameter.longest)


def test_the_states_of_files_are_those_there_are() -> None:
    assert set(parameters.ARRIVAL_STATE.choices) == {state.value for state in ArrivalState}


@pytest.mark.parametrize("parameter", [parameters.LIMIT, parameters.QUESTION_STATE, *parameters.PATH.values()])
def test_an_example_and_a_default_are_taken(parameter: Parameter) -> None:
    for value in (parameter.example, parameter.default):
        if value is not None:
            assert parameter.read(str(value)) == value


# ------------------------------------------------------------------------------------------------ bodies
def body_of(made: bodies.Body, raw: bytes, media_type: str | None = "application/json") -> Any:
    return made.of(request("POST", {"content-type": media_type} if media_type else {}, body=raw))


@pytest.mark.parametrize("raw", [b"{", b"[]", b"null", b"5", b"\xff\xfe", b'"x"', b"[" * 60_000, b'{"a":' * 10_000])
def test_a_body_that_is_no_json_object_is_bad_input(raw: bytes) -> None:
    with pytest.raises(BadInput):
        body_of(bodies.asker(), raw)


def test_json_deeper_than_anything_means_is_bad_input() -> None:
    raw = b'{"a": ' + b"[" * 20 + b"]" * 20 + b"}"
    with pytest.raises(BadInput, match="deeper than 16"):
        body_of(bodies.asker(), raw)


@pytest.mark.parametrize("raw", [b'{"by": "a", "by": "b"}', b'{"by": NaN}'])
def test_json_that_says_two_things_or_no_number_is_bad_input(raw: bytes) -> None:
    with pytest.raises(BadInput):
        body_of(bodies.asker(), raw)


def test_no_body_is_an_empty_object_and_a_whole_number_is_one_however_it_is_written() -> None:
    assert body_of(bodies.arguments(Kind.TRAIN), b"", None) == {}
    assert body_of(bodies.arguments(Kind.PROMOTE), b'{"version": 3.0, "x": [1.5, {"y": 2e0}]}') == {
        "version": 3,
        "x": [1.5, {"y": 2}],
    }


def test_a_body_of_another_type_is_415_and_one_that_is_too_large_413() -> None:
    with pytest.raises(Problem) as refused:
        body_of(bodies.asker(), b"by=ada", "application/x-www-form-urlencoded")
    assert refused.value.status == 415
    with pytest.raises(Problem) as refused:
        body_of(bodies.asker(), b" " * (bodies.MAX_JSON_BYTES + 1))
    assert refused.value.status == 413
    assert body_of(bodies.asker(), b"{}", "Application/JSON; charset=utf-8") == {}


# ------------------------------------------------------------------------------------------------ ETags
@pytest.mark.parametrize(
    ("if_match", "if_none_match", "there", "goes_on"),
    [
        (None, None, None, True),
        (None, None, "3", True),
        ('"3"', None, "3", True),
        ("3", None, "3", True),
        ('"1", "3"', None, "3", True),
        ('"2"', None, "3", False),
        ('W/"3"', None, "3", False),
        ('"3"', None, None, False),
        ("*", None, "3", True),
        ("*", None, None, False),
        (None, "*", None, True),
        (None, "*", "3", False),
        (None, '"3"', "3", False),
        (None, 'W/"3"', "3", False),
        (None, '"2"', "3", True),
        ("junk", None, "3", False),
    ],
)
def test_preconditions_as_rfc_9110_has_them(
    if_match: str | None, if_none_match: str | None, there: str | None, goes_on: bool
) -> None:
    check = tags.precondition(if_match, if_none_match)
    if goes_on:
        check(there)
        return
    with pytest.raises(Problem) as refused:
        check(there)
    assert refused.value.status == 412


@pytest.mark.parametrize(("tag", "status"), [(None, 200), ('"3"', 304), ('W/"3"', 304), ("*", 304), ('"2"', 200)])
def test_what_the_asker_has_is_not_sent_again(tag: str | None, status: int) -> None:
    call = Call(operation_of(), request(), operations.Caller(Role.READER), {"If-None-Match": tag})
    response = tags.tagged(call, {"x": 1}, "3")
    assert (response.status_code, response.headers["ETag"]) == (status, '"3"')
    assert bool(response.get_body()) == (status == 200)


# ------------------------------------------------------------------------------------------------ pages
def listing(token: str | None, *, name: str = "list_things", of: str = "coin") -> dict[str, Any]:
    def found(_: object, pipeline: str, limit: int, after: str) -> tuple[list[Any], str | None]:
        return [{"pipeline": pipeline, "after": after}], f"{after}x"

    call = Call(operation_of(name=name), request(), operations.Caller(Role.READER), {"token": token, "limit": 7})
    response = asyncio.run(paging.page("things", call, found, of))
    told: dict[str, Any] = json.loads(response.get_body())
    return told


@pytest.fixture(autouse=True)
def _no_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functions.paging.ports", lambda: None)


def test_a_token_goes_on_where_the_page_before_ended_and_is_of_one_list_only() -> None:
    token = listing(None)["next"]
    assert listing(token)["things"] == [{"pipeline": "coin", "after": "x"}]
    for other in ({"name": "list_others"}, {"of": "flights"}):
        with pytest.raises(Problem) as refused:
            listing(token, **other)
        assert (refused.value.status, refused.value.about) == (404, {"parameter": "token"})


def forged(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize("value", [5, None, [], ["a"], ["a", "b"], {"a": 1}, ["a", "b", "c"]])
def test_a_token_that_no_list_gave_names_no_page(value: object) -> None:
    with pytest.raises(Problem):
        listing(forged(value))


@pytest.mark.parametrize("after", ["", "a\x00", "é", "x" * 500, 5, None])
def test_a_token_with_a_place_that_no_key_has_names_no_page(after: object) -> None:
    mark = json.loads(base64.urlsafe_b64decode(listing(None)["next"] + "=="))[0]
    if after == 5:
        assert listing(forged([mark, after]))["things"][0]["after"] == "5"
        return
    if after is None:
        assert listing(forged([mark, after]))["things"][0]["after"] == "None"
        return
    with pytest.raises(Problem):
        listing(forged([mark, after]))


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (NotFound("no run 'x'", run="x"), 404, "not-found"),
        (BadInput("no"), 400, "bad-input"),
        (Unavailable("the ledger did not answer"), 503, "unavailable"),
        (Problem(418, "teapot", "short and stout"), 418, "teapot"),
        (RuntimeError("secret"), 500, "fault"),
        (KeyError("secret"), 500, "fault"),
    ],
)
def test_every_error_is_a_problem(error: Exception, status: int, kind: str) -> None:
    found, told = answer_of(operation_of(), request(route={"name": "coin"}), raises=error)
    assert (found, told["status"], told["type"]) == (status, status, f"urn:dropforge:problem:{kind}")
    assert "secret" not in json.dumps(told)


def test_an_error_tells_the_ids_it_is_about_and_when_to_try_again() -> None:
    async def handler(call: Call) -> func.HttpResponse:
        raise Unavailable("the ledger did not answer", partition="p.coin")

    response = asyncio.run(answered(operation_of(role=None, path="health"), handler, request(), None))
    assert response.mimetype == "application/problem+json"
    assert response.headers["Retry-After"] == "5"
    assert json.loads(response.get_body())["partition"] == "p.coin"


def test_a_role_that_is_not_enough_is_told_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = hashlib.sha256(b"a-key").hexdigest()[:16]
    settings = operations.settings()
    monkeypatch.setattr(
        operations, "settings", lambda: type(settings)(**{**vars(settings), "key_roles": ((listed, Role.READER),)})
    )
    wanted = operation_of(role=Role.APPROVER, body=bodies.asker())
    status, told = answer_of(wanted, request(route={"name": "NO NAME"}, params={"x": "y"}, body=b"{"))
    assert (status, told["type"]) == (403, "urn:dropforge:problem:forbidden")


def test_what_a_step_has_refused_is_told_as_it_said_it() -> None:
    response = refused({"type": "RunFailed", "status": 422, "detail": "no"}, command="c1")
    assert response.status_code == 422
    assert json.loads(response.get_body()) == {
        "type": "urn:dropforge:problem:run-failed",
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "no",
        "command": "c1",
    }


# ------------------------------------------------------------------------------------------------ what there is not
@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "v1/nothing", 404, None),
        ("DELETE", "v1/pipelines", 405, "GET, HEAD, OPTIONS"),
        ("POST", "v1/pipelines/coin", 405, "GET, HEAD, OPTIONS, PUT"),
        ("GET", "v1/pipelines/coin/train", 405, "OPTIONS, POST"),
        ("OPTIONS", "v1/pipelines/coin/train", 204, "OPTIONS, POST"),
        ("POST", "health", 405, "GET, HEAD, OPTIONS"),
        ("GET", "", 404, None),
        ("GET", "v1/pipelines/a/b/c/d", 404, None),
    ],
)
def test_what_no_operation_takes_is_404_or_405_with_what_there_is(
    method: str, path: str, status: int, allow: str | None
) -> None:
    response = operations.nothing(request(method, route={"path": path}))
    assert (response.status_code, response.headers.get("Allow")) == (status, allow)


def test_nothing_is_told_of_what_there_is_to_who_has_no_key() -> None:
    bare = func.HttpRequest("GET", "http://h/api/x", route_params={"path": "v1/nothing"}, body=b"")
    assert operations.nothing(bare).status_code == 401


def test_a_function_has_the_bindings_that_its_operation_needs() -> None:
    bp = df.Blueprint()
    before = len(operations.OPERATIONS)

    @operations.operation(bp, "POST", "v1/tests/{name}", gives="object", role=Role.OPERATOR, starts=True)
    async def start_test(call: Call) -> func.HttpResponse:
        """Start a test."""
        return answer({})

    del operations.OPERATIONS[before:]
    app = df.DFApp()
    app.register_functions(bp)
    (made,) = app.get_functions()
    kinds = {binding.type for binding in made.get_bindings()}
    assert made.get_function_name() == "start_test"
    assert kinds == {"httpTrigger", "http", "durableClient"}
