"""What a run on Databricks may ask for, what is asked of Databricks, and what its ends mean; without a workspace."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dropforge.adapters.azure.run_files import table_path
from dropforge.adapters.databricks import task
from dropforge.adapters.databricks.endings import ending, stand
from dropforge.domain.errors import BadInput
from dropforge.domain.runs import ChampionRef, EvaluationPlan, RunSpec, SweepPlan
from dropforge.settings import Databricks

VOLUMES = "/Volumes/main/dropforge"
SETTINGS = Databricks("https://adb-1.azuredatabricks.net", VOLUMES, f"{VOLUMES}/artifacts/dropforge-1-py3-none-any.whl")


def spec(**compute: object) -> RunSpec:
    return RunSpec(
        *("flights-7-3fa2c1", "flights", "flights", 7, "az://tables/flights", 3, "code/flights/ab.zip", "0" * 64),
        command=("python", "train.py"),
        label="y",
        event_time=None,
        features=(),
        evaluation=EvaluationPlan("mae", "day", 7),
        seed=0,
        timeout_seconds=60,
        compute={"target": "databricks", "timeout": "1m", **compute},
    )


# ------------------------------------------------------------------------------------------------ what is asked
def test_champion_challenger_and_sweep_are_told_to_the_node() -> None:
    model = ChampionRef("flights", 3, "models/flights/r0/model.onnx", "0" * 64)
    plan = SweepPlan(4, 2, "random", {"depth": {"choice": [1, 2]}})
    run = replace(spec(), champion=model, challenger=model, sweep=plan)
    words = task.arguments(run, SETTINGS)
    place = f"{VOLUMES}/artifacts/models/flights/r0/model.onnx"
    assert words[words.index("--champion") + 1] == place == words[words.index("--challenger") + 1]
    (environment,) = task.request(run, SETTINGS, 1)["environments"]
    assert environment.spec.dependencies[0].endswith("[train,sweep]")


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ({"cluster": "gpu"}, "cluster: Databricks knows target, timeout, packages, environment_version, node_type"),
        ({"workers": 2}, "workers: it is of a job cluster, which needs a node_type or a policy"),
        ({"node_type": "x", "environment_version": "4"}, "environment_version: it is of serverless compute"),
        ({"node_type": 7}, "node_type: found 7, wanted text"),
        ({"node_type": "x", "workers": -1}, "workers: found -1, wanted a whole number from 0"),
        ({"node_type": "x", "spot": "yes"}, "spot: found 'yes', wanted true or false"),
        ({"environment_version": "1"}, "environment_version: found '1', wanted '2' or newer"),
        (
            {"node_type": "Standard_NC6s_v3", "spark_version": "16.4.x-scala2.12"},
            "spark_version: 16.4.x-scala2.12 has no GPU libraries, and Standard_NC6s_v3 has GPUs",
        ),
    ],
)
def test_what_databricks_cannot_do_is_named_with_its_key(compute: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as found:
        task.wanted(spec(**compute), SETTINGS)
    assert said in found.value.message


def test_jobs_need_a_wheel_to_install() -> None:
    with pytest.raises(BadInput, match="DROPFORGE_DATABRICKS_WHEEL must name the wheel"):
        task.wanted(spec(), replace(SETTINGS, wheel=None))


def test_a_table_outside_the_storage_account_is_refused() -> None:
    with pytest.raises(BadInput, match="DROPFORGE_ADAPTERS=azure"):
        table_path(replace(spec(), table_uri="file:///nowhere/tables/flights"), "Databricks")


@pytest.mark.parametrize(
    "uri",
    [
        "az://tables/a/flights",
        "abfss://tables@account.dfs.core.windows.net/a/flights",
        "https://account.blob.core.windows.net/tables/a/flights/",
        "http://127.0.0.1:10000/devstoreaccount1/tables/a/flights",
    ],
)
def test_a_table_is_found_by_any_of_its_names(uri: str) -> None:
    assert table_path(replace(spec(), table_uri=uri), "Databricks") == "a/flights"


def test_a_token_is_of_the_run_the_attempt_and_the_installation() -> None:
    other = replace(SETTINGS, volumes="/Volumes/main/another")
    tokens = [
        *(task.token(SETTINGS, "flights-7-3fa2c1", attempt) for attempt in (1, 2)),
        *(task.token(other, "flights-7-3fa2c1", 1), task.token(SETTINGS, "x" * 128, 1)),
    ]
    assert len(set(tokens)) == 4 and all(len(each) <= 64 for each in tokens)
    assert tokens[0].startswith("flights-7-3fa2c1-")


# ------------------------------------------------------------------------------------------------ what its ends mean
@pytest.mark.parametrize(
    ("code", "message", "said", "again"),
    [
        ("CLUSTER_ERROR", "Reason: SPOT_INSTANCE_TERMINATION", "its spot machine was taken away", True),
        ("CLUSTER_ERROR", "AZURE_QUOTA_EXCEEDED_EXCEPTION", "request more quota for that VM family", False),
        ("CLOUD_FAILURE", "SkuNotAvailable: not available in region", "no such machines free", True),
        ("CLUSTER_ERROR", "Unexpected launch failure", "could not be launched", True),
        ("DRIVER_ERROR", "The spark driver has stopped unexpectedly", "its driver crashed", True),
        ("DRIVER_ERROR", "Driver ran out of memory", "choose a larger training.compute.node_type", False),
        ("INTERNAL_ERROR", "Something went wrong", "an internal error of Databricks", True),
        ("UNAUTHORIZED_ERROR", "no READ VOLUME", "READ VOLUME and WRITE VOLUME on runs", False),
        ("LIBRARY_INSTALLATION_ERROR", "pip failed", "check DROPFORGE_DATABRICKS_WHEEL", False),
        ("INVALID_CLUSTER_REQUEST", "bad node", "correct training.compute.node_type", False),
        # What the user's own code printed says nothing of machines.
        ("RUN_EXECUTION_ERROR", "ValueError: the quota of spots is out of memory", "the training node failed", False),
        ("A_CODE_OF_NEXT_YEAR", "who knows", "A_CODE_OF_NEXT_YEAR: who knows", False),
        ("", "", "Databricks gives no reason", False),
    ],
)
def test_each_end_has_a_reason_and_is_tried_again_only_where_that_helps(
    code: str, message: str, said: str, again: bool
) -> None:
    details = {"code": code, "message": message}
    found = ending(stand({"status": {"state": "TERMINATED", "termination_details": details}}))
    assert said in found.reason and found.again is again


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({"life_cycle_state": "QUEUED"}, ("waiting", False, "")),
        ({"life_cycle_state": "WAITING_FOR_RETRY"}, ("waiting", False, "")),
        ({"life_cycle_state": "RUNNING"}, ("running", False, "")),
        ({"life_cycle_state": "TERMINATING", "result_state": "SUCCESS"}, ("running", False, "")),
        ({"life_cycle_state": "A_STATE_OF_NEXT_YEAR"}, ("running", False, "")),
        ({"life_cycle_state": "TERMINATED", "result_state": "SUCCESS"}, ("over", True, "")),
        ({"life_cycle_state": "TERMINATED", "result_state": "FAILED"}, ("over", False, "RUN_EXECUTION_ERROR")),
        ({"life_cycle_state": "INTERNAL_ERROR", "result_state": "FAILED"}, ("over", False, "INTERNAL_ERROR")),
        ({"life_cycle_state": "SKIPPED"}, ("over", False, "MAX_CONCURRENT_RUNS_EXCEEDED")),
    ],
)
def test_the_older_fields_say_how_a_run_stands(state: dict[str, str], found: tuple[str, bool, str]) -> None:
    told = stand({"state": state})
    assert (told.phase, told.succeeded, told.code) == found


@pytest.mark.parametrize(
    ("run", "timed_out", "cancelled"),
    [
        ({"state": {"life_cycle_state": "TERMINATED", "result_state": "TIMEDOUT"}}, True, False),
        ({"state": {"life_cycle_state": "TERMINATED", "result_state": "CANCELED"}}, False, True),
        (
            {"status": {"state": "TERMINATED", "termination_details": {"code": "CANCELED", "message": "Timed out"}}},
            True,
            False,
        ),
        ({"status": {"state": "TERMINATED", "termination_details": {"code": "USER_CANCELED"}}}, False, True),
    ],
)
def test_a_run_that_took_too_long_is_not_one_that_was_cancelled(
    run: dict[str, object], timed_out: bool, cancelled: bool
) -> None:
    told = stand(run)
    assert (told.timed_out, told.cancelled) == (timed_out, cancelled)
