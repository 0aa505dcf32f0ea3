"""Runs as jobs of Azure ML: two hosts at once, crashes between calls, a service that fails, and nodes that are lost."""

from __future__ import annotations

import io
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from azure.storage.blob import BlobServiceClient

from dropforge.adapters.azure.aml_compute import AzureMLCompute, _read_tail
from dropforge.adapters.azure.run_files import table_path
from dropforge.domain.errors import BadInput, RunFailed, Unavailable
from dropforge.domain.runs import ENDED, ChampionRef, RunSpec, RunState, SweepPlan
from dropforge.domain.verdicts import Evidence
from dropforge.settings import AzureML
from dropforge.wire import from_json
from tests.azure.aml_bench import IMAGE, SDK_WARNINGS, AzureMLBench, azure_ml, image
from tests.azure.control_plane import ControlPlane, control_plane
from tests.azurite import Azurite, azurite
from tests.bundles import packed
from tests.contract.web import web
from tests.unit.training.bench import TRAIN, days_table, write_table
from tests.unit.training.bench import spec as real_spec

__all__ = ["azurite"]
pytestmark = SDK_WARNINGS
Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def plane(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(azurite, image=image(tmp_path_factory.mktemp("image")), grace_seconds=1.0) as made:
        yield made


@pytest.fixture
def bench(azurite: Azurite, plane: ControlPlane, tmp_path: Path) -> Iterator[AzureMLBench]:
    with azure_ml(azurite, tmp_path, plane) as made:
        yield made
        assert plane.invalid == []


def jobs_made(bench: AzureMLBench) -> list[str]:
    """The jobs that were accepted, in order."""
    asked = [each for each in bench.plane.requests if each.method == "PUT" and "/jobs/" in each.path]
    return [each.path.rsplit("/", 1)[1] for each in asked if each.status == 201]


def body(bench: AzureMLBench, run: str = "r1") -> dict[str, object]:
    """What was asked of Azure ML for the run."""
    asked = [each for each in bench.plane.requests if each.method == "PUT" and each.path.endswith(f"/jobs/{run}")]
    properties: dict[str, object] = asked[0].body["properties"]
    return properties


# ------------------------------------------------------------------------------------------------ what is asked
def test_a_job_names_all_it_reads_by_where_it_lies_and_uploads_nothing(bench: AzureMLBench) -> None:
    bench.artifacts.put("models/flights/r0/model.onnx", b"old")
    champion = ChampionRef("flights", 3, "models/flights/r0/model.onnx", "0" * 64)
    spec = replace(bench.spec("succeed"), champion=champion, environment={"DEPTH": "7"}, tracking_uri="https://mlflow")
    bench.compute.submit(spec)

    asked = body(bench)
    store = "azureml://datastores/dropforge_"
    assert {name: each["uri"] for name, each in asked["inputs"].items()} == {  # type: ignore[attr-defined]
        "run": f"{store}runs/paths/r1/run.json",
        "code": f"{store}artifacts/paths/code/flights.zip",
        "champion": f"{store}artifacts/paths/models/flights/r0/model.onnx",
        "table": f"{store}tables/paths/flights/",
    }
    assert asked["outputs"]["output"]["uri"] == f"{store}runs/paths/r1/output/"  # type: ignore[index]
    assert asked["environmentVariables"] == {"DEPTH": "7", "MLFLOW_TRACKING_URI": "https://mlflow"}
    assert asked["experimentName"] == "flights" and asked["displayName"] == "r1"
    tags = asked["tags"]
    assert tags["dropforge.champion_version"] == "3" and tags["dropforge.seed"] == "0"  # type: ignore[index]
    assert bench.ended().state is RunState.SUCCEEDED


def test_every_key_of_the_compute_reaches_the_job(bench: AzureMLBench) -> None:
    keys: dict[str, Any] = {
        "cluster": "gpu-cluster",
        "instance_count": 2,
        "shm_size": "2g",
        "distribution": "pytorch",
        "processes": 4,
    }
    compute = AzureMLCompute(
        replace(settings(bench), job_client_id="11111111-2222-3333-4444-555555555555"), bench.files
    )
    compute.submit(bench.spec("fail", **keys))

    asked = body(bench)
    assert str(asked["computeId"]).endswith("/computes/gpu-cluster")
    assert asked["distribution"] == {"distributionType": "PyTorch", "processCountPerInstance": 4}
    assert {"instanceCount": 2, "shmSize": "2g"}.items() <= asked["resources"].items()  # type: ignore[attr-defined]
    assert asked["identity"]["identityType"] == "Managed"  # type: ignore[index]


def settings(bench: AzureMLBench) -> AzureML:
    return AzureML(bench.plane.workspace, cluster="cpu-cluster", train_image=IMAGE)


def test_serverless_compute_is_asked_for_by_name_and_may_be_spot(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("succeed", cluster="serverless", instance_type="Standard_DS3_v2", tier="spot"))

    asked = body(bench)
    assert asked.get("computeId") is None and asked["queueSettings"] == {"jobTier": "Spot"}
    assert bench.ended().state is RunState.SUCCEEDED


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ({"clutser": "x"}, "clutser: Azure ML knows target, timeout, cluster,"),
        ({"tier": "spot"}, "settled when the cluster is made"),
        ({"processes": 2}, "add `distribution: pytorch`"),
        ({"distribution": "horovod"}, "choose one of pytorch, mpi"),
        ({"instance_count": 0}, "instance_count"),
        ({"shm_size": "much"}, "such as 2g"),
        ({"queue_timeout": "soon"}, "queue_timeout: found 'soon'"),
        ({"environment": "trainer"}, "azureml:<name>:<version>"),
        ({"environment": "azureml:a:1", "image": "b"}, "not both"),
    ],
)
def test_what_can_never_run_is_refused_before_anything_is_written(
    bench: AzureMLBench, compute: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        bench.compute.submit(bench.spec("succeed", **compute))
    assert said in caught.value.message
    assert bench.files.read("r1", "run.json") is None and bench.plane.jobs == {}


def test_a_table_that_is_not_in_the_storage_account_is_refused(bench: AzureMLBench) -> None:
    with pytest.raises(BadInput, match="is not in container 'tables'"):
        bench.compute.submit(replace(bench.spec("succeed"), table_uri="file:///tables/flights"))


@pytest.mark.parametrize(
    "uri",
    [
        "az://tables/a/flights",
        "abfss://tables@lake.dfs.core.windows.net/a/flights",
        "https://lake.blob.core.windows.net/tables/a/flights",
        "http://127.0.0.1:10000/local/tables/a/flights/",
    ],
)
def test_a_table_is_found_whichever_way_it_is_named(bench: AzureMLBench, uri: str) -> None:
    assert table_path(replace(bench.spec("succeed"), table_uri=uri), "Azure ML") == "a/flights"


# ------------------------------------------------------------------------------------------------ hosts and crashes
def test_hosts_that_submit_at_once_make_one_job(bench: AzureMLBench) -> None:
    spec, together = bench.spec("succeed"), threading.Barrier(6)

    def submit(n: int) -> None:
        together.wait()
        (bench.compute if n % 2 else bench.another).submit(spec)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(submit, range(6)))
    assert bench.ended().state is RunState.SUCCEEDED
    assert jobs_made(bench) == ["r1"] and bench.plane.jobs["r1"].attempts == 1


def test_a_crash_before_the_job_is_made_is_healed_by_whoever_looks(bench: AzureMLBench) -> None:
    bench.files.put_spec(bench.spec("succeed"))

    assert bench.another.status("r1").state is RunState.SUBMITTED
    assert bench.ended().state is RunState.SUCCEEDED and jobs_made(bench) == ["r1"]


def test_an_answer_that_is_lost_after_the_job_was_made_makes_no_second_one(bench: AzureMLBench) -> None:
    bench.plane.faults.lose_answer("PUT", "/jobs/r1")
    bench.compute.submit(bench.spec("succeed"))
    bench.another.submit(bench.spec("succeed"))

    assert bench.ended().state is RunState.SUCCEEDED and bench.plane.jobs["r1"].attempts == 1


def test_a_service_that_fails_every_fifth_call_makes_the_same_run(bench: AzureMLBench) -> None:
    bench.plane.faults.fail(0.2, seed=7, each_kind=True)
    runs = ["r1", "r2", "r3"]
    for run in runs:
        patiently(partial(bench.compute.submit, bench.spec("succeed", run)))
    for run in runs:
        while patiently(partial(bench.another.status, run)).state not in ENDED:
            time.sleep(0.1)
        assert patiently(partial(bench.compute.result, run)).metrics == {"mae": 1.5}
    assert bench.plane.faults.met >= {("PUT", "jobs"), ("GET", "jobs")}
    assert [bench.plane.jobs[run].attempts for run in runs] == [1, 1, 1]


def patiently(call: Callable[[], Answer]) -> Answer:
    """As a flow does: what is unavailable is asked again."""
    for _ in range(5):
        try:
            return call()
        except Unavailable:
            continue
    return call()


# ------------------------------------------------------------------------------------------------ ends of runs
def test_a_preempted_run_goes_on_from_its_checkpoints(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("long"))
    for step in (b"1", b"2"):
        keeps(bench, step)
        bench.plane.faults.preempt("r1")

    assert bench.ended().state is RunState.SUCCEEDED and jobs_made(bench) == ["r1"]
    assert "goes on after step 2" in bench.compute.logs("r1")
    assert bench.compute.result("r1").metrics == {"mae": 1.5}


def keeps(bench: AzureMLBench, step: bytes) -> None:
    """Wait until the run has kept the step that it is at."""
    bench.until(lambda _: bench.files.read("r1", "output/checkpoints/steps") == step)


def test_a_run_whose_node_is_lost_goes_on_as_another_job(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("long"))
    for job, step in (("r1", b"1"), ("r1_2", b"2")):
        keeps(bench, step)
        bench.plane.faults.lose_node(job)
        bench.plane.wait(job)
        bench.another.status("r1")

    assert bench.ended().state is RunState.SUCCEEDED
    assert jobs_made(bench) == ["r1", "r1_2", "r1_3"] and bench.compute.result("r1").seconds == 2.5


def test_a_run_that_loses_three_nodes_has_failed(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("hang"))
    for job in ("r1", "r1_2", "r1_3"):
        bench.plane.faults.lose_node(job)
        bench.until(lambda _, job=job: job in bench.plane.jobs)  # type: ignore[misc]
        bench.plane.wait(job)
        status = bench.compute.status("r1")

    assert status.state is RunState.FAILED and jobs_made(bench) == ["r1", "r1_2", "r1_3"]
    assert status.reason is not None
    assert "the node it ran on was lost" in status.reason and "given up after 3 attempts" in status.reason
    with pytest.raises(RunFailed, match="node it ran on was lost"):
        bench.compute.result("r1")


def test_a_run_that_fails_by_itself_is_not_tried_again_whatever_it_printed(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("exit"))

    status = bench.ended()
    assert status.state is RunState.FAILED and jobs_made(bench) == ["r1"]
    assert status.reason is not None and "exited with status code 1" in status.reason and "eggs" in status.reason
    assert "see https://ml.azure.com/runs/r1" in status.reason and status.url is not None


def test_quota_that_is_used_up_when_a_job_is_made_fails_the_run_for_good(bench: AzureMLBench) -> None:
    bench.plane.faults.quota()
    with pytest.raises(BadInput, match="request more quota"):
        bench.compute.submit(bench.spec("succeed"))

    # There would be quota now; but what was told stays told, and no job starts behind it.
    status = bench.another.status("r1")
    assert status.state is RunState.FAILED and status.ended_at is not None
    assert status.reason is not None and "quota" in status.reason
    with pytest.raises(BadInput, match="request more quota"):
        bench.another.submit(bench.spec("succeed"))
    with pytest.raises(RunFailed, match="request more quota"):
        bench.compute.result("r1")
    assert bench.plane.jobs == {}


def test_quota_that_is_used_up_when_nodes_are_allocated_is_named(bench: AzureMLBench) -> None:
    bench.plane.faults.quota(at="allocation")
    bench.compute.submit(bench.spec("succeed"))

    status = bench.ended()
    assert status.state is RunState.FAILED and jobs_made(bench) == ["r1"]
    assert status.reason is not None and "no quota for its nodes" in status.reason and "smaller VM" in status.reason


def test_a_cluster_that_is_not_there_fails_the_run_and_is_named(bench: AzureMLBench) -> None:
    with pytest.raises(BadInput, match="compute target none was not found"):
        bench.compute.submit(bench.spec("succeed", cluster="none"))
    assert bench.another.status("r1").state is RunState.FAILED


def test_an_image_that_cannot_be_pulled_is_named_with_the_role_to_give(bench: AzureMLBench) -> None:
    bench.plane.faults.bad_image("registry.example/none:1")
    bench.compute.submit(bench.spec("succeed", image="registry.example/none:1"))

    status = bench.ended()
    assert status.reason is not None and "image cannot be pulled" in status.reason and "AcrPull" in status.reason


def test_a_run_that_takes_too_long_has_failed(bench: AzureMLBench) -> None:
    bench.compute.submit(replace(bench.spec("hang"), timeout_seconds=1))

    status = bench.ended()
    assert status.state is RunState.FAILED and jobs_made(bench) == ["r1"]
    assert status.reason is not None and "longer than training.compute.timeout" in status.reason


def test_a_job_that_vanished_with_nothing_left_is_made_again(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("hang"))
    bench.until(lambda status: status.state is RunState.RUNNING)
    bench.plane.faults.vanish("r1")

    # It may be that it is only not shown yet.
    assert bench.compute.status("r1").state is RunState.SUBMITTED and jobs_made(bench) == ["r1"]
    bench.clock.ahead = timedelta(minutes=2)
    bench.until(lambda status: status.state is RunState.RUNNING)
    assert jobs_made(bench) == ["r1", "r1_2"]
    bench.compute.cancel("r1")
    assert bench.ended().state is RunState.CANCELLED


def test_a_job_that_vanished_after_its_work_was_done_has_succeeded(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("succeed"))
    bench.ended()
    bench.plane.faults.vanish("r1")

    status = bench.compute.status("r1")
    assert status.state is RunState.SUCCEEDED and bench.compute.result("r1").metrics == {"mae": 1.5}
    assert jobs_made(bench) == ["r1"]


def test_a_token_that_has_expired_is_named_and_the_next_call_gets_a_new_one(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("succeed"))
    bench.plane.faults.expire_tokens()

    with pytest.raises(Unavailable, match="does not accept the app's token"):
        bench.compute.status("r1")
    assert bench.ended().state is RunState.SUCCEEDED


# ------------------------------------------------------------------------------------------------ cancelling
def test_a_run_that_is_cancelled_before_its_job_is_made_never_starts(bench: AzureMLBench) -> None:
    spec = bench.spec("succeed")
    bench.files.put_spec(spec)
    bench.another.cancel("r1")
    bench.compute.submit(spec)

    status = bench.compute.status("r1")
    assert (status.state, status.reason) == (RunState.CANCELLED, "cancelled before it started")
    assert bench.plane.jobs == {}


def test_a_run_that_lost_its_node_and_was_cancelled_is_not_tried_again(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("hang"))
    bench.until(lambda status: status.state is RunState.RUNNING)
    bench.plane.faults.lose_node("r1")
    bench.plane.wait("r1")
    bench.another.cancel("r1")

    assert bench.ended().state is RunState.CANCELLED and jobs_made(bench) == ["r1"]


def test_a_cancellation_whose_host_died_before_it_told_azure_is_told_by_the_next_look(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("hang"))
    stop = b'{"state": "cancelled", "reason": "cancelled", "at": "2026-11-22T10:00:00+00:00"}'
    bench.files.put_mark("r1", "stop.json", stop)

    assert bench.ended().state is RunState.CANCELLED


def test_a_run_that_waits_too_long_for_a_node_is_cancelled_and_says_for_what_it_waited(
    azurite: Azurite, tmp_path: Path
) -> None:
    with (
        control_plane(azurite, image=image(tmp_path), queue_seconds=60) as plane,
        azure_ml(azurite, tmp_path, plane) as bench,
    ):
        bench.compute.submit(bench.spec("succeed", cluster="gpu-cluster", queue_timeout="30m"))
        assert bench.compute.status("r1").state is RunState.SUBMITTED
        bench.clock.ahead = timedelta(minutes=31)

        status = bench.ended()
        assert status.state is RunState.CANCELLED and status.reason is not None
        assert "waited 31 min for 1 node of cluster 'gpu-cluster'" in status.reason


# ------------------------------------------------------------------------------------------------ sweeps
def swept(bench: AzureMLBench, **changes: object) -> RunSpec:
    plan = SweepPlan(3, 2, "grid", {"depth": {"choice": [0.1, 0.45, 0.9]}})
    return replace(bench.spec("try"), sweep=replace(plan, **changes))  # type: ignore[arg-type]


def test_a_sweep_leaves_the_model_of_its_best_trial(bench: AzureMLBench) -> None:
    bench.compute.submit(swept(bench))

    assert bench.ended().state is RunState.SUCCEEDED
    result = bench.compute.result("r1")
    assert bench.artifacts.read(result.model) == b"depth=0.45"
    assert bench.compute.logs("r1") == "started r1\n" and bench.compute.result("r1") == result


def test_a_sweep_whose_second_attempt_was_made_by_a_host_that_died_leaves_that_ones_model(
    bench: AzureMLBench, azurite: Azurite
) -> None:
    bench.compute.submit(swept(bench))
    bench.plane.faults.vanish("r1")
    bench.clock.ahead = timedelta(minutes=2)
    bench.compute.status("r1")
    assert jobs_made(bench) == ["r1", "r1_a2"]
    # As if it had died before it wrote down that the job was made.
    with BlobServiceClient.from_connection_string(azurite.connection_string) as service:
        service.get_blob_client("runs", "r1/jobs/r1_a2").delete_blob()

    assert bench.ended().state is RunState.SUCCEEDED
    assert bench.artifacts.read(bench.compute.result("r1").model) == b"depth=0.45"
    assert bench.compute.logs("r1") == "started r1\n" and jobs_made(bench) == ["r1", "r1_a2"]


def test_a_sweep_asks_for_its_ranges_as_azure_means_them(bench: AzureMLBench) -> None:
    space = {
        "rate": {"min": 0.001, "max": 0.1, "log": True},
        "depth": {"min": 1, "max": 9, "int": True},
        "share": {"min": 0.5, "max": 1.0},
        "kind": {"choice": ["gbt", "linear"]},
    }
    bench.compute.submit(swept(bench, sampler="random", space=space, trials=5, parallel=9))

    asked = body(bench)
    assert asked["searchSpace"] == {
        "rate": ["loguniform", [pytest.approx(-6.9078, abs=1e-3), pytest.approx(-2.3026, abs=1e-3)]],
        "depth": ["quniform", [1.0, 9.0, 1]],
        "share": ["uniform", [0.5, 1.0]],
        "kind": ["choice", [["gbt", "linear"]]],
    }
    assert asked["objective"] == {"goal": "Maximize", "primaryMetric": "dropforge_validation_score"}
    assert asked["trial"]["command"].endswith(  # type: ignore[index]
        "--parameter depth=${{search_space.depth}} --parameter kind=${{search_space.kind}} "
        "--parameter rate=${{search_space.rate}} --parameter share=${{search_space.share}} --output ${{outputs.output}}"
    )
    bench.compute.cancel("r1")


@pytest.mark.parametrize(
    ("sampler", "each", "said"),
    [
        ("grid", {"min": 1, "max": 2}, "a grid needs a choice"),
        ("bayesian", {"min": 1e-4, "max": 1, "log": True}, "no logarithmic range"),
        ("random", {"choice": ["a", "b c"]}, "found 'b c'"),
    ],
)
def test_a_sweep_that_azure_cannot_sample_is_refused(
    bench: AzureMLBench, sampler: str, each: dict[str, object], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        bench.compute.submit(swept(bench, sampler=sampler, space={"rate": each}))


# ------------------------------------------------------------------------------------------------ the real node
def test_the_real_node_trains_on_a_real_table(azurite: Azurite, tmp_path: Path) -> None:
    table = write_table(tmp_path / "shops", days_table(20))
    script = TRAIN.replace('os.environ["BENCH"]', repr(str(Path(__file__).parents[2])))
    # The programs of this Python are the image.
    with control_plane(azurite) as plane, azure_ml(azurite, tmp_path, plane) as bench:
        bench.upload("shops", table)
        sha256 = bench.artifacts.put("code/shops.zip", packed({"train.py": script.encode()}))
        spec = replace(
            real_spec(table, command=("python", "train.py")),
            table_uri="az://tables/shops",
            code="code/shops.zip",
            code_sha256=sha256,
            compute={"target": "azureml", "timeout": "5m"},
        )
        bench.compute.submit(spec)
        plane.wait("r1", seconds=120)

        status = bench.compute.status("r1")
        assert status.state is RunState.SUCCEEDED, status
        result = bench.compute.result("r1")
        assert from_json(Evidence, bench.artifacts.read(result.evidence)).metric == "log_loss"
        assert "trained on 600 rows" in bench.compute.logs("r1")
        assert b"trained on 600 rows" in bench.artifacts.read("runs/r1/log.txt")
        assert plane.invalid == []


# ------------------------------------------------------------------------------------------------ logs
def test_no_bytes_of_a_log_are_no_text_before_and_after_the_end(bench: AzureMLBench) -> None:
    bench.compute.submit(bench.spec("succeed"))
    assert bench.compute.logs("r1", 0) == ""
    bench.ended()
    bench.files.put_mark("r1", "output/log.txt", b"started r1\n")
    assert bench.compute.logs("r1", 3) == "r1\n"
    assert bench.compute.logs("r1", 0) == bench.compute.logs("r1", -1) == ""


def test_a_log_that_breaks_off_while_it_is_read_is_unavailable() -> None:
    with web() as storage:
        storage.answers = [(200, {}, b""), (200, {"Content-Length": "100", "Connection": "close"}, b"half of")]
        with pytest.raises(Unavailable, match="the log in Azure ML cannot be read: IncompleteRead; try again"):
            _read_tail(f"{storage.url}/log?sig=test", 50)


# ------------------------------------------------------------------------------------------------ secrets
def test_no_token_is_logged_however_much_is_logged(bench: AzureMLBench) -> None:
    heard, root = io.StringIO(), logging.getLogger()
    handler, loggers = logging.StreamHandler(heard), [root, *map(logging.getLogger, logging.Logger.manager.loggerDict)]
    before = [(each, each.level) for each in loggers]
    root.addHandler(handler)
    try:
        for each in loggers:
            each.setLevel(logging.DEBUG)
        bench.compute.submit(bench.spec("succeed"))
        bench.ended()
        bench.compute.logs("r1")
    finally:
        root.removeHandler(handler)
        for each, level in before:
            each.setLevel(level)
    said = heard.getvalue()
    assert "/jobs/r1" in said
    for secret in ("eyJ", "Bearer ey", "sig=test", bench.plane.identity.header):
        assert secret not in said
