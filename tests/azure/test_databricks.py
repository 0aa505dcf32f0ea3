"""Runs in a Databricks workspace: what is asked of it, what goes wrong there, and what becomes of the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobServiceClient

from dropforge.adapters.azure import identity
from dropforge.domain.errors import BadInput, NotFound, RunFailed, Unavailable
from dropforge.domain.runs import RunState
from tests.azure.databricks import VOLUMES
from tests.azure.databricks_bench import WHEEL, DatabricksBench, databricks_bench
from tests.azurite import Azurite, azurite

__all__ = ["azurite"]

SPOT = (
    "CLUSTER_ERROR",
    "CLOUD_FAILURE",
    "Cluster 1122 was terminated. Reason: SPOT_INSTANCE_TERMINATION (CLOUD_FAILURE).",
)


@pytest.fixture
def bench(azurite: Azurite, tmp_path: Path) -> Iterator[DatabricksBench]:
    with databricks_bench(azurite, tmp_path / "databricks") as made:
        yield made


def forget(azurite: Azurite, *marks: str) -> None:
    """As if the host had died before it wrote these down."""
    with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        for mark in marks:
            service.get_blob_client("runs", mark).delete_blob()


def sent(bench: DatabricksBench) -> dict[str, Any]:
    """The body of the newest submission."""
    body: dict[str, Any] = bench.workspace.runs[-1].body
    return body


# ------------------------------------------------------------------------------------------------ what is asked
def test_a_run_without_a_node_type_is_serverless_and_finds_its_files_on_the_volumes(bench: DatabricksBench) -> None:
    spec = replace(bench.spec("succeed", packages="torch==2.8.0 timm"), tracking_uri="databricks")
    bench.workspace.held = True
    bench.compute.submit(spec)
    body = sent(bench)
    (asked,) = body["tasks"]
    (environment,) = body["environments"]
    assert environment["spec"] == {
        "environment_version": "4",
        "dependencies": [f"{VOLUMES}/artifacts/{WHEEL}[train,tracking]", "torch==2.8.0", "timm"],
    }
    assert asked["python_wheel_task"] == {
        "package_name": "dropforge",
        "entry_point": "run_node",
        "parameters": [
            *("--run", f"{VOLUMES}/runs/r1/run.json", "--code", f"{VOLUMES}/artifacts/code/flights.zip"),
            *("--table", f"{VOLUMES}/tables/flights", "--output", f"{VOLUMES}/runs/r1/output"),
        ],
    }
    # The node keeps its own limit; this one is for machines that never come.
    assert (body["queue"], body["timeout_seconds"]) == ({"enabled": True}, 60 + 45 * 60)


def test_a_run_with_a_node_type_gets_a_cluster_of_its_own(bench: DatabricksBench) -> None:
    bench.workspace.held = True
    bench.compute.submit(bench.spec("succeed", node_type="Standard_DS3_v2", packages="polars"))
    (asked,) = sent(bench)["tasks"]
    cluster = asked["new_cluster"]
    assert (cluster["node_type_id"], cluster["num_workers"]) == ("Standard_DS3_v2", 0)
    assert cluster["spark_version"] == "16.4.x-scala2.12"
    assert cluster["azure_attributes"] == {"availability": "ON_DEMAND_AZURE", "first_on_demand": 1}
    assert cluster["data_security_mode"] == "SINGLE_USER"
    assert cluster["custom_tags"]["dropforge-run"] == "r1"
    wheel, *needed = asked["libraries"]
    names = [each["pypi"]["package"] for each in needed]
    assert wheel == {"whl": f"{VOLUMES}/artifacts/{WHEEL}"}
    assert "polars" in names and any(each.startswith("onnxruntime") for each in names)
    assert not any(each.startswith(("aiohttp", "dropforge")) for each in names)


def test_workers_spot_policy_and_gpus_are_passed_on(bench: DatabricksBench) -> None:
    bench.workspace.held = True
    gpu = {"node_type": "Standard_NC24ads_A100_v4", "spot": True}
    bench.compute.submit(bench.spec("succeed", **gpu))
    cluster = sent(bench)["tasks"][0]["new_cluster"]
    assert cluster["spark_version"] == "16.4.x-gpu-ml-scala2.12"
    assert cluster["azure_attributes"] == {"availability": "SPOT_WITH_FALLBACK_AZURE", "first_on_demand": 0}
    bench.compute.submit(bench.spec("succeed", "r2", **gpu, workers=2, policy="A-POLICY"))
    cluster = sent(bench)["tasks"][0]["new_cluster"]
    # The driver is kept, and what the policy fixes is left to it.
    assert cluster["azure_attributes"]["first_on_demand"] == 1
    assert (cluster["policy_id"], cluster["num_workers"]) == ("A-POLICY", 2)
    assert "spark_version" not in cluster and "spark_conf" not in cluster


def test_what_databricks_cannot_do_is_said_before_anything_is_asked(bench: DatabricksBench) -> None:
    for wrong in (
        bench.spec("succeed", cluster="gpu"),
        replace(bench.spec("succeed"), table_uri="file:///nowhere/tables/flights"),
    ):
        with pytest.raises(BadInput):
            bench.compute.submit(wrong)
    with pytest.raises(NotFound):
        bench.compute.status("r1")
    assert bench.workspace.requests == []


# ------------------------------------------------------------------------------------------------ once
def test_two_hosts_and_a_lost_answer_make_one_run(bench: DatabricksBench) -> None:
    bench.workspace.held = True
    bench.workspace.lose_answers("runs/submit")
    spec = bench.spec("succeed")
    bench.compute.submit(spec)
    bench.compute.submit(spec)
    assert bench.only().number == 1_000_000


def test_a_host_that_dies_between_the_submission_and_its_mark_loses_no_run(
    bench: DatabricksBench, azurite: Azurite
) -> None:
    bench.compute.submit(bench.spec("succeed"))
    forget(azurite, "r1/databricks/1.json")
    assert bench.ended().state is RunState.SUCCEEDED
    assert bench.only().code == "SUCCESS"


def test_a_run_that_is_cancelled_while_nobody_knows_its_number_is_found_and_ended(
    bench: DatabricksBench, azurite: Azurite
) -> None:
    bench.compute.submit(bench.spec("hang"))
    forget(azurite, "r1/databricks/1.json")
    bench.compute.cancel("r1")
    assert bench.ended().state is RunState.CANCELLED
    assert bench.only().code == "USER_CANCELED"


def test_a_host_that_dies_in_the_middle_of_cancelling_is_followed_by_one_that_ends_the_run(
    bench: DatabricksBench, azurite: Azurite
) -> None:
    bench.compute.submit(bench.spec("hang"))
    bench.files.put_mark("r1", "stop.json", json.dumps(
        {"state": "cancelled", "reason": "cancelled", "at": "2026-01-01T00:00:00+00:00"}
    ).encode())  # fmt: skip
    forget(azurite, "r1/databricks/1.json")
    assert bench.ended().state is RunState.CANCELLED
    assert bench.only().code == "USER_CANCELED"


def test_a_run_that_is_cancelled_before_it_was_asked_for_never_starts(bench: DatabricksBench) -> None:
    spec = bench.spec("succeed")
    bench.files.put_spec(spec)
    bench.compute.cancel("r1")
    bench.compute.submit(spec)
    status = bench.compute.status("r1")
    assert (status.state, status.reason) == (RunState.CANCELLED, "cancelled before it started")
    assert bench.workspace.runs == []


# ------------------------------------------------------------------------------------------------ machines that are lost
def test_a_run_whose_spot_machine_is_taken_goes_on_from_its_checkpoint(bench: DatabricksBench) -> None:
    bench.compute.submit(bench.spec("long", node_type="Standard_DS3_v2", spot=True))
    for step in range(2):
        bench.prints(f"goes on after step {step}")
        kept = f"{step + 1}".encode()
        while bench.files.read("r1", "output/checkpoints/steps") != kept:
            bench.until(lambda status: True)
        bench.workspace.lose_machines(*SPOT)
        bench.until(lambda status, wanted=step + 2: len(bench.workspace.runs) == wanted)  # type: ignore[misc]
    assert bench.ended().state is RunState.SUCCEEDED
    assert "goes on after step 2" in bench.compute.logs("r1")
    assert [run.body["run_name"] for run in bench.workspace.runs] == [
        "dropforge r1",
        "dropforge r1 (attempt 2)",
        "dropforge r1 (attempt 3)",
    ]
    assert len({run.token for run in bench.workspace.runs}) == 3
    assert bench.files.read("r1", "output/checkpoints/steps") is None


def test_a_run_that_loses_its_machines_again_and_again_is_given_up(bench: DatabricksBench) -> None:
    bench.workspace.fail_launch(*SPOT, times=9)
    bench.compute.submit(bench.spec("succeed"))
    status = bench.ended()
    assert status.state is RunState.FAILED and status.reason is not None
    assert "its spot machine was taken away" in status.reason and "given up after 3 attempts" in status.reason
    assert len(bench.workspace.runs) == 3
    with pytest.raises(RunFailed, match="spot machine"):
        bench.compute.result("r1")


def test_two_hosts_that_see_the_loss_start_one_attempt(bench: DatabricksBench) -> None:
    bench.workspace.fail_launch(*SPOT)
    bench.compute.submit(bench.spec("succeed"))
    first, second = bench.compute, bench.compute
    bench.until(lambda status: bench.workspace.runs[0].state == "TERMINATED")
    first.status("r1")
    second.status("r1")
    assert bench.ended().state is RunState.SUCCEEDED
    assert len(bench.workspace.runs) == 2


def test_a_result_that_was_left_counts_more_than_the_machine_that_was_lost_after_it(bench: DatabricksBench) -> None:
    bench.compute.submit(bench.spec("succeed"))
    bench.ended()
    run = bench.only()
    run.code, run.kind, run.message = "DRIVER_ERROR", "INTERNAL_ERROR", "The spark driver has stopped unexpectedly."
    assert bench.compute.status("r1").state is RunState.SUCCEEDED
    assert bench.compute.result("r1").metrics == {"mae": 1.5}


@pytest.mark.parametrize(
    ("end", "said", "attempts"),
    [
        (("CLUSTER_ERROR", "CLOUD_FAILURE", "AZURE_QUOTA_EXCEEDED: Cores quota of NCv3"), "has no quota", 1),
        (("A_CODE_OF_NEXT_YEAR", "CLIENT_ERROR", "who knows"), "A_CODE_OF_NEXT_YEAR: who knows", 1),
        (("CANCELED", "CLIENT_ERROR", "maximum run duration was exceeded"), "did not end within 60 seconds", 1),
    ],
)
def test_what_other_machines_would_not_help_ends_the_run_with_its_reason(
    bench: DatabricksBench, end: tuple[str, str, str], said: str, attempts: int
) -> None:
    bench.workspace.fail_launch(*end, times=9)
    bench.compute.submit(bench.spec("succeed"))
    status = bench.ended()
    assert status.state is RunState.FAILED and said in str(status.reason)
    assert len(bench.workspace.runs) == attempts
    assert bench.workspace.url in str(status.reason)


# ------------------------------------------------------------------------------------------------ how runs end
def test_a_run_that_takes_too_long_is_ended_by_its_own_node(bench: DatabricksBench) -> None:
    bench.compute.submit(replace(bench.spec("hang"), timeout_seconds=1))
    status = bench.ended()
    assert (status.state, status.exit_code) == (RunState.FAILED, 124)
    assert "did not end within 1 seconds (training.compute.timeout)" in str(status.reason)
    assert bench.artifacts_of_log() == b"started r1\n"


def test_the_nodes_own_reason_is_the_runs(bench: DatabricksBench) -> None:
    bench.compute.submit(bench.spec("say"))
    status = bench.ended()
    assert (status.state, status.exit_code) == (RunState.FAILED, 12)
    assert str(status.reason).startswith("the model has no input; see https://")


def test_a_result_that_says_nothing_fails_the_run(bench: DatabricksBench, azurite: Azurite) -> None:
    bench.compute.submit(bench.spec("say"))
    bench.ended()
    forget(azurite, "r1/output/result.json")
    bench.files.put_mark("r1", "output/result.json", b"{}")
    status = bench.compute.status("r1")
    assert status.state is RunState.FAILED and "left files that say something else" in str(status.reason)


def test_a_run_that_somebody_cancels_in_the_workspace_is_cancelled(bench: DatabricksBench) -> None:
    bench.compute.submit(bench.spec("hang"))
    bench.until(lambda status: status.state is RunState.RUNNING)
    bench.workspace.cancel_by_hand()
    status = bench.ended()
    assert status.state is RunState.CANCELLED and "was cancelled in Databricks" in str(status.reason)
    assert len(bench.workspace.runs) == 1


@pytest.mark.parametrize(("what", "state"), [("succeed", RunState.SUCCEEDED), ("say", RunState.FAILED)])
def test_a_workspace_that_tells_only_the_older_fields_is_understood(
    bench: DatabricksBench, what: str, state: RunState
) -> None:
    bench.workspace.hidden_details = True
    bench.compute.submit(bench.spec(what))
    assert bench.ended().state is state


def test_a_wheel_that_is_not_there_says_which_setting_names_it(bench: DatabricksBench) -> None:
    lost = replace(bench, settings=replace(bench.settings, wheel=f"{VOLUMES}/artifacts/wheels/none.whl"))
    lost.compute.submit(bench.spec("succeed"))
    status = bench.ended()
    assert status.state is RunState.FAILED and "check DROPFORGE_DATABRICKS_WHEEL" in str(status.reason)


def test_a_run_that_was_purged_is_known_by_what_it_left(bench: DatabricksBench, azurite: Azurite) -> None:
    bench.compute.submit(bench.spec("succeed"))
    bench.ended()
    bench.workspace.delete(bench.only())
    assert bench.compute.status("r1").state is RunState.SUCCEEDED
    assert bench.compute.result("r1").metrics == {"mae": 1.5}
    forget(azurite, "r1/output/result.json")
    status = bench.compute.status("r1")
    assert status.state is RunState.FAILED and "more than 60 days old" in str(status.reason)
    assert bench.workspace.runs == []


def test_a_run_goes_on_and_can_be_cancelled_when_its_first_attempt_is_deleted(bench: DatabricksBench) -> None:
    bench.workspace.fail_launch(*SPOT)
    bench.compute.submit(bench.spec("hang"))
    bench.until(lambda status: status.state is RunState.RUNNING)
    first, second = bench.workspace.runs
    bench.workspace.delete(first)
    assert bench.compute.status("r1").state is RunState.RUNNING
    bench.compute.cancel("r1")
    assert bench.ended().state is RunState.CANCELLED
    assert second.code == "USER_CANCELED"


def test_a_run_that_was_cancelled_stays_so_when_it_is_deleted(bench: DatabricksBench) -> None:
    bench.workspace.held = True
    bench.compute.submit(bench.spec("succeed"))
    bench.compute.cancel("r1")
    assert bench.ended().state is RunState.CANCELLED
    bench.workspace.delete(bench.only())
    status = bench.compute.status("r1")
    assert (status.state, status.reason) == (RunState.CANCELLED, "cancelled")


def test_the_attempts_of_a_run_that_are_all_deleted_fail_it(bench: DatabricksBench) -> None:
    bench.workspace.fail_launch(*SPOT, times=9)
    bench.compute.submit(bench.spec("succeed"))
    bench.ended()
    for run in list(bench.workspace.runs):
        bench.workspace.delete(run)
    status = bench.compute.status("r1")
    assert status.state is RunState.FAILED and "more than 60 days old" in str(status.reason)
    assert bench.workspace.runs == []


def test_a_token_whose_run_was_deleted_fails_the_run(bench: DatabricksBench, azurite: Azurite) -> None:
    bench.compute.submit(bench.spec("say"))
    bench.ended()
    bench.workspace.delete(bench.only())
    forget(azurite, "r1/databricks/1.json")
    for _ in range(2):
        status = bench.compute.status("r1")
        assert status.state is RunState.FAILED and "has been deleted" in str(status.reason)
    with pytest.raises(BadInput, match="has been deleted"):
        bench.compute.submit(bench.spec("say"))


# ------------------------------------------------------------------------------------------------ who does not answer
def test_a_workspace_that_throttles_is_asked_again(bench: DatabricksBench) -> None:
    bench.workspace.answer_with(429, "REQUEST_LIMIT_EXCEEDED", "slow down", times=2)
    bench.workspace.answer_with(503, "TEMPORARILY_UNAVAILABLE", "later", path="runs/get")
    bench.compute.submit(bench.spec("succeed"))
    assert bench.ended().state is RunState.SUCCEEDED
    assert len(bench.workspace.runs) == 1


def test_a_workspace_that_fails_is_tried_again_by_whoever_asked(bench: DatabricksBench) -> None:
    bench.workspace.answer_with(500, "INTERNAL_ERROR", "oh no", path="runs/submit")
    spec = bench.spec("succeed")
    with pytest.raises(Unavailable, match="did not answer about the submission of run 'r1'"):
        bench.compute.submit(spec)
    bench.compute.submit(spec)
    assert bench.ended().state is RunState.SUCCEEDED


def test_a_refusal_ends_the_run_and_a_missing_right_only_holds_it_up(bench: DatabricksBench) -> None:
    spec = bench.spec("succeed", node_type="Standard_DS3_v2", policy="NOT-MINE")
    with pytest.raises(Unavailable, match="CAN_USE on the policy"):
        bench.compute.submit(spec)
    bench.workspace.policies.add("NOT-MINE")
    bench.compute.submit(spec)
    assert bench.ended().state is RunState.SUCCEEDED
    bench.workspace.answer_with(400, "INVALID_PARAMETER_VALUE", "Node type x is not supported", path="runs/submit")
    with pytest.raises(BadInput, match="Node type x is not supported"):
        bench.compute.submit(bench.spec("succeed", "r2"))
    assert bench.compute.status("r2").state is RunState.FAILED


def test_what_databricks_does_not_know_ends_the_run_and_is_named(bench: DatabricksBench) -> None:
    unknown = (404, "RESOURCE_DOES_NOT_EXIST", "Can't find a cluster policy with id: GONE.")
    bench.workspace.answer_with(*unknown, path="runs/submit")
    spec = bench.spec("succeed", policy="GONE")
    with pytest.raises(BadInput, match=r"names what Databricks does not know.*policy with id: GONE"):
        bench.compute.submit(spec)
    assert bench.compute.status("r1").state is RunState.FAILED and bench.workspace.runs == []

    # Also one that was there at the first attempt.
    bench.workspace.fail_launch(*SPOT)
    bench.compute.submit(bench.spec("succeed", "r2"))
    bench.workspace.answer_with(*unknown, path="runs/submit")
    status = bench.ended("r2")
    assert status.state is RunState.FAILED and "policy with id: GONE" in str(status.reason)


def test_a_token_that_is_refused_says_which_one_and_is_shown_to_nobody(
    bench: DatabricksBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "dapi-of-somebody-else"
    monkeypatch.setenv("DATABRICKS_TOKEN", secret)
    with caplog.at_level(logging.DEBUG), pytest.raises(Unavailable, match="renew DATABRICKS_TOKEN") as found:
        bench.compute.submit(bench.spec("succeed"))
    told = caplog.text + str(found.value) + repr(found.value.__cause__)
    assert secret not in told and "/api/2.2/jobs/runs/submit" in told


def test_without_a_token_the_apps_identity_asks(bench: DatabricksBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABRICKS_TOKEN")
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{bench.workspace.url}/identity")
    monkeypatch.setenv("IDENTITY_HEADER", bench.workspace.identity.header)
    identity.credential.cache_clear()
    try:
        bench.compute.submit(bench.spec("succeed"))
        assert bench.ended().state is RunState.SUCCEEDED
    finally:
        identity.credential.cache_clear()
    # One for all these calls.
    assert bench.workspace.identity.issued == 1
