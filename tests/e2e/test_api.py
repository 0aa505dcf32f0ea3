"""The API over HTTP on one machine: roles by key, ETags, keys that make a request one, problems, pages, commands."""

from __future__ import annotations

import base64
import http.client
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from dropforge.client import Client, Connection, bundle
from dropforge.domain.errors import Unavailable
from tests.e2e.machine import COIN, Platform, eventually, throws


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with a pipeline `coin`, whose first model answers."""
    folder = tmp_path_factory.mktemp("api")
    with Platform(folder / "state") as running:
        running.client.apply("coin", pipeline(folder, "coin"))
        running.drop("coin/", throws(folder / "files", 0, days=14))
        running.settled("coin", 1)
        yield running


def pipeline(folder: Path, name: str) -> Path:
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    text = (COIN / "pipeline.yaml").read_text().replace("name: coin", f"name: {name}")
    (target / "pipeline.yaml").write_text(text.replace("max_files: 3", "max_files: 1"))
    (target / "train.py").write_text((COIN / "train.py").read_text())
    return target


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    platform: Platform,
    method: str,
    path: str,
    body: object = None,
    *,
    key: str | None = "default",
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request; `key` names one of the host keys. A body that is not bytes is sent as JSON."""
    sent = dict(headers or {})
    if key is not None:
        sent["x-functions-key"] = platform.connection["host_keys"][key]
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("content-type", "application/json")
    place = urlsplit(platform.connection["url"])
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        connection.request(method, path if path.startswith("/api") else f"/api/v1/{path}", body, sent)
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def problem(answer: Answer) -> tuple[int, str]:
    """Status and kind of a refusal, which must be a problem as RFC 9457 has it."""
    assert answer.headers["content-type"] == "application/problem+json", answer
    told = answer.json()
    assert told["status"] == answer.status
    assert told["title"] and told["detail"]
    return answer.status, told["type"].removeprefix("urn:dropforge:problem:")


# ------------------------------------------------------------------------------------------------ roles
@pytest.mark.parametrize(
    ("method", "path", "body", "least"),
    [
        ("GET", "pipelines", None, "reader"),
        ("GET", "pipelines/coin/status", None, "reader"),
        ("GET", "nothing/here", None, "reader"),
        ("POST", "pipelines/coin/resume", {}, "operator"),
        ("POST", "commands", {"command": "resume", "pipeline": "coin"}, "operator"),
        ("POST", "pipelines/coin/promote", {"version": 99}, "default"),
        ("POST", "commands", {"command": "promote", "pipeline": "coin", "arguments": {"version": 99}}, "default"),
        ("POST", "pipelines/coin/approvals/coin-1-abcdef", {"answer": "approve"}, "default"),
        ("PUT", "pipelines/coin", b"no zip", "operator"),
    ],
)
def test_each_key_may_do_what_its_role_may(
    platform: Platform, method: str, path: str, body: object, least: str
) -> None:
    roles = ["reader", "operator", "default"]
    headers = {"content-type": "application/zip"} if isinstance(body, bytes) else {}
    for role in roles:
        answer = ask(platform, method, path, body, key=role, headers=headers)
        if roles.index(role) < roles.index(least):
            assert problem(answer) == (403, "forbidden")
            assert "needs the role" in answer.json()["detail"]
        else:
            assert answer.status not in (401, 403)
    assert ask(platform, method, path, body, key=None, headers=headers).status == 401


def test_a_principal_that_nobody_vouches_for_is_not_believed(platform: Platform) -> None:
    claims = "eyJjbGFpbXMiOlt7InR5cCI6InJvbGVzIiwidmFsIjoiRHJvcGZvcmdlLkFwcHJvdmVyIn1dfQ=="
    headers = {"x-ms-client-principal": claims, "x-ms-client-principal-name": "ada"}
    answer = ask(platform, "POST", "pipelines/coin/resume", {}, key="reader", headers=headers)
    assert problem(answer) == (403, "forbidden")


def test_anybody_may_read_the_document_and_ask_for_health(platform: Platform) -> None:
    assert ask(platform, "GET", "/api/health", key=None).json() == {"status": "ok"}
    document = ask(platform, "GET", "/api/openapi.json", key=None)
    assert document.json()["openapi"] == "3.1.0"
    again = ask(platform, "GET", "/api/openapi.json", key=None, headers={"if-none-match": document.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


# ------------------------------------------------------------------------------------------------ problems
@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "pipelines/nope", (404, "not-found")),
        ("GET", "pipelines/Nope", (400, "bad-input")),
        ("GET", "nothing", (404, "not-found")),
        ("GET", "/api/v2/pipelines", (404, "not-found")),
        ("DELETE", "pipelines/coin", (405, "method-not-allowed")),
        ("PATCH", "commands", (405, "method-not-allowed")),
        ("POST", "/api/health", (405, "method-not-allowed")),
        ("GET", "pipelines?limit=0", (400, "bad-input")),
        ("GET", "pipelines?colour=red", (400, "bad-input")),
        ("GET", "pipelines?token=bm9uZQ", (404, "not-found")),
        ("GET", "pipelines/coin/datasets/x", (400, "bad-input")),
        ("GET", "pipelines/coin/datasets/99", (404, "not-found")),
        ("GET", "pipelines/coin/arrivals?state=lost", (400, "bad-input")),
        ("GET", "pipelines/co%0Ain", (400, "bad-input")),
        ("GET", "pipelines/a%2Fb", (400, "bad-input")),
        ("GET", "commands/nobody-gave-it", (404, "not-found")),
    ],
)
def test_every_refusal_is_a_problem(platform: Platform, method: str, path: str, expected: tuple[int, str]) -> None:
    answer = ask(platform, method, path)
    assert problem(answer) == expected
    if answer.status == 405:
        assert method not in answer.headers["allow"]


@pytest.mark.parametrize(
    ("body", "media_type", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"version": 0}', "application/json", 400),
        (b'{"version": "1"}', "application/json", 400),
        (b'{"version": 1, "verison": 2}', "application/json", 400),
        (b'{"version": 1, "version": 2}', "application/json", 400),
        (b"[" * 5000, "application/json", 400),
        (b"", "application/json", 400),
        (b"version=1", "application/x-www-form-urlencoded", 415),
        (b'{"by": "' + b"x" * 70_000 + b'"}', "application/json", 413),
        (b'{"version": 1, "by": "\\ud800"}', "application/json", 400),
    ],
)
def test_a_body_that_makes_no_sense_is_refused_and_says_why(
    platform: Platform, body: bytes, media_type: str, status: int
) -> None:
    answer = ask(platform, "POST", "pipelines/coin/promote", body, headers={"content-type": media_type})
    assert problem(answer)[0] == status


def test_head_is_get_without_the_body_and_options_says_what_there_is(platform: Platform) -> None:
    head = ask(platform, "HEAD", "pipelines/coin")
    assert (head.status, head.body, head.headers["etag"]) == (
        200,
        b"",
        ask(platform, "GET", "pipelines/coin").headers["etag"],
    )
    options = ask(platform, "OPTIONS", "pipelines/coin")
    assert (options.status, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS, PUT")


# ------------------------------------------------------------------------------------------------ ETags
def test_a_pipeline_is_made_and_changed_only_by_who_has_seen_it(platform: Platform, tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "tagged")

    def put(**headers: str) -> Answer:
        sent = {"content-type": "application/zip", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return ask(platform, "PUT", "pipelines/tagged", bundle(folder), headers=sent)

    assert problem(put(if_match='"1"')) == (412, "precondition-failed")
    made = put(if_none_match="*")
    assert (made.status, made.headers["etag"], made.headers["location"]) == (201, '"1"', "/api/v1/pipelines/tagged")
    assert problem(put(if_none_match="*")) == (412, "precondition-failed")
    (folder / "train.py").write_text((folder / "train.py").read_text() + "# changed\n")
    assert problem(put(if_match='"7"')) == (412, "precondition-failed")
    changed = put(if_match='"1"')
    assert (changed.status, changed.json()) == (200, {"pipeline": "tagged", "revision": 2})
    assert problem(put(if_match='"1"')) == (412, "precondition-failed")
    read = ask(platform, "GET", "pipelines/tagged")
    assert read.headers["etag"] == '"2"'
    assert read.json()["text"].startswith("name: tagged")
    assert ask(platform, "GET", "pipelines/tagged", headers={"if-none-match": '"2"'}).status == 304
    assert ask(platform, "GET", "pipelines/tagged", headers={"if-none-match": '"1"'}).status == 200


# ------------------------------------------------------------------------------------------------ commands
def test_a_request_with_a_key_has_one_effect_and_one_answer(platform: Platform) -> None:
    key = str(uuid.uuid4())

    def train(body: object, path: str = "pipelines/coin/train") -> Answer:
        return ask(platform, "POST", path, body, headers={"idempotency-key": key})

    first = train({"by": "ada"})
    assert first.status == 202
    again = train({"by": "ada"})
    assert (again.status, again.headers["idempotency-replayed"]) == (202, "true")
    assert {**again.json(), "repeated": False} == first.json()
    assert problem(train({"version": 1}, "pipelines/coin/evaluate")) == (409, "reused")
    place = first.headers["location"]
    assert place == f"/api/v1/commands/{key}?pipeline=coin"

    def over() -> dict[str, Any] | None:
        told: dict[str, Any] = ask(platform, "GET", place).json()
        return told if told["work"] and told["work"]["over"] else None

    told = eventually(over, 40, platform.log)
    assert (told["command"], told["state"], told["by"]) == ("train", "done", "ada (with key approver)")
    assert told["work"]["kind"] == "run"
    run = ask(platform, "GET", f"pipelines/coin/runs/{told['work']['id']}").json()
    assert run["outcome"] == told["work"]["state"] == "kept_champion"
    assert ask(platform, "GET", f"commands/{key}").json() == told


def test_a_command_is_the_same_by_its_own_path_and_by_the_queues_words(platform: Platform) -> None:
    held = ask(platform, "POST", "pipelines/coin/pause", {"reason": "wrong units"})
    assert held.status == 200
    assert ask(platform, "GET", "pipelines").json()["pipelines"][0]["paused"]
    refused = ask(platform, "POST", "commands", {"command": "train", "pipeline": "coin"})
    assert problem(refused) == (409, "refused")
    assert "wrong units" in refused.json()["detail"]
    assert ask(platform, "POST", "commands", {"command": "resume", "pipeline": "coin"}).status == 200
    assert platform.status("coin")["control"]["paused"] is None


def test_what_acts_on_the_platforms_own_news_too_often_is_refused(platform: Platform) -> None:
    for headers in ({"x-dropforge-hops": "99"}, {"x-dropforge-causation-id": "0f" * 16 + ".99"}):
        answer = ask(platform, "POST", "pipelines/coin/train", {}, headers=headers)
        assert problem(answer) == (409, "refused")
        assert "99 hops" in answer.json()["detail"]


def test_a_key_may_stand_in_quotes(platform: Platform) -> None:
    key = str(uuid.uuid4())
    first = ask(platform, "POST", "pipelines/coin/resume", {}, headers={"idempotency-key": f'"{key}"'})
    again = ask(platform, "POST", "pipelines/coin/resume", {}, headers={"idempotency-key": key})
    assert (first.json()["id"], again.headers["idempotency-replayed"]) == (key, "true")


def test_a_slip_in_the_name_leaves_the_key_free(platform: Platform) -> None:
    headers = {"idempotency-key": str(uuid.uuid4())}
    assert problem(ask(platform, "POST", "pipelines/coni/resume", {}, headers=headers)) == (404, "not-found")
    assert ask(platform, "POST", "pipelines/coin/resume", {}, headers=headers).status == 200


def test_a_question_is_answered_over_http_with_name_and_reason(platform: Platform, tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "asks")
    text = (folder / "pipeline.yaml").read_text()
    (folder / "pipeline.yaml").write_text(text.replace("gate: {", "gate: {first: ask, "))
    platform.client.apply("asks", folder)
    platform.drop("asks/", throws(tmp_path, 0, days=14))
    (asked,) = eventually(lambda: ask(platform, "GET", "approvals").json()["approvals"], 40, platform.log)
    place = f"pipelines/asks/approvals/{asked['run']}"
    assert problem(ask(platform, "POST", place, {"answer": "maybe"})) == (400, "bad-input")
    answered = ask(platform, "POST", place, {"answer": "approve", "reason": "looks good", "by": "ada"})
    assert answered.status == 202
    told = ask(platform, "GET", place).json()
    assert (told["answer"], told["by"], told["reason"]) == ("approve", "ada (with key approver)", "looks good")
    assert problem(ask(platform, "POST", place, {"answer": "reject"})) == (409, "refused")
    eventually(lambda: platform.status("asks")["champion"] == 1, 20, platform.log)
    assert platform.client.get("pipelines/asks/why")["approval"]["answer"] == "approve"


# ------------------------------------------------------------------------------------------------ pages
def test_lists_go_on_by_token(platform: Platform, tmp_path: Path) -> None:
    for name in ("page-a", "page-b", "page-c"):
        platform.client.apply(name, pipeline(tmp_path, name))
    whole = [each["pipeline"] for each in ask(platform, "GET", "pipelines?limit=200").json()["pipelines"]]
    assert [each["pipeline"] for each in platform.client.each("pipelines", "pipelines", limit=1)] == whole
    token = ask(platform, "GET", "pipelines?limit=1").json()["next"]
    assert problem(ask(platform, "GET", f"endpoints?token={token}")) == (404, "not-found")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("pipelines/coin/arrivals", "arrivals"),
        ("pipelines/coin/datasets", "datasets"),
        ("pipelines/coin/runs", "runs"),
        ("pipelines/coin/models", "models"),
        ("pipelines/coin/aliases", "aliases"),
        ("endpoints", "endpoints"),
    ],
)
def test_what_a_pipeline_holds_is_listed(platform: Platform, path: str, key: str) -> None:
    assert ask(platform, "GET", path).json()[key]


def test_one_thing_of_each_kind_is_found(platform: Platform) -> None:
    run = ask(platform, "GET", "pipelines/coin/runs").json()["runs"][-1]["run"]
    dataset = ask(platform, "GET", "pipelines/coin/datasets/1").json()
    assert (dataset["dataset"]["version"], dataset["gone"], len(dataset["manifest"]["sources"])) == (1, [], 1)
    assert ask(platform, "GET", "pipelines/coin/models/1").json()["lineage"]["run"] == run
    assert ask(platform, "GET", "endpoints/coin").json()["deployments"][0]["traffic"] == 100
    logs = ask(platform, "GET", f"pipelines/coin/runs/{run}/logs?tail=10")
    assert (logs.status, logs.headers["content-type"].partition(";")[0]) == (200, "text/plain")
    assert len(logs.body) <= 10
    dry = ask(platform, "GET", "rules/dry-run?days=1").json()
    assert "coin" in {each["pipeline"] for each in dry["pipelines"]}
    text = ask(platform, "GET", "pipelines/coin").json()["text"].encode()
    tried = ask(platform, "POST", "rules/dry-run", text, headers={"content-type": "application/yaml"})
    assert tried.status == 200


# ------------------------------------------------------------------------------------------------ keys
def test_a_clients_request_that_lost_its_answer_is_sent_again_without_a_second_effect(platform: Platform) -> None:
    class Deaf(Client):
        lost = False

        def request(self, *args: Any, **kwargs: Any) -> bytes:
            answer = super().request(*args, **kwargs)
            if not self.lost:
                self.lost = True
                raise Unavailable("the line broke")
            return answer

    client = Deaf(Connection(platform.connection["url"], platform.connection["function_key"]))
    assert client.post("pipelines/coin/pause", reason="once")["repeated"]
    assert len(platform.status("coin")["control"]["holds"]) == 1
    client.post("pipelines/coin/resume")


def test_no_host_key_stands_in_any_log(platform: Platform) -> None:
    ask(platform, "GET", f"pipelines?code={platform.connection['host_keys']['reader']}", key=None)
    keys = platform.connection["host_keys"].values()
    for path in (platform.state / "logs").rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not [key for key in keys if key in text]


def test_with_entra_a_signed_in_person_is_known_by_name_and_a_key_opens_nothing(tmp_path: Path) -> None:
    def signed_in(role: str) -> dict[str, str]:
        told = {"claims": [{"typ": "roles", "val": f"Dropforge.{role}"}]}
        header = base64.b64encode(json.dumps(told).encode()).decode()
        return {"x-ms-client-principal": header, "x-ms-client-principal-name": "ada@example.com"}

    settings = {"DROPFORGE_HTTP_AUTH": "entra", "WEBSITE_AUTH_ENABLED": "True"}
    with Platform(tmp_path / "state", **settings) as platform:
        for key in (None, "default"):
            assert problem(ask(platform, "GET", "pipelines", key=key)) == (401, "unauthorized")
        assert ask(platform, "GET", "pipelines", key=None, headers=signed_in("Reader")).status == 200
        body, headers = bundle(pipeline(tmp_path, "coin")), {"content-type": "application/zip"}
        for role, status in (("Reader", 403), ("Nobody", 403), ("Operator", 201)):
            sent = {**headers, **signed_in(role)}
            assert ask(platform, "PUT", "pipelines/coin", body, key=None, headers=sent).status == status
        paused = ask(platform, "POST", "pipelines/coin/pause", {"by": "bob"}, key=None, headers=signed_in("Operator"))
        assert paused.json()["result"]["paused"]["by"] == "ada@example.com"
