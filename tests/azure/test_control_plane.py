"""azure-ai-ml, unmodified, talks to the control plane; jobs really run, and faults do what they say."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import create_default_context
from typing import Any

import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceRequestError,
)
from azure.identity import DefaultAzureCredential
from azure.storage.blob import ContainerClient

from tests.azure.control_plane import ControlPlane, control_plane, used
from tests.azure.places import SUBSCRIPTION, WORKSPACE
from tests.azurite import Azurite, azurite

__all__ = ["azurite"]
pytestmark = [
    # azure-ai-ml's own, about the version of a library that it chose.
    pytest.mark.filterwarnings("ignore:The `(context|ordered)` :DeprecationWarning"),
]

IN, OUT = "azureml://datastores/dropforge_runs/paths/r1/in", "azureml://datastores/dropforge_runs/paths/r1/output"
# Logs a metric as MLflow's client does, in a tenth of its time.
LOG_METRIC = f"""#!{sys.executable} -IS
import json, os, ssl, sys, urllib.request
metric = {{"run_id": os.environ["MLFLOW_RUN_ID"], "key": sys.argv[1], "value": float(sys.argv[2]), "timestamp": 1}}
place = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow/runs/log-metric"
header = {{"Authorization": "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"], "Content-Type": "application/json"}}
trusted = ssl.create_default_context(cafile=os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"])
urllib.request.urlopen(urllib.request.Request(place, json.dumps(metric).encode(), header), context=trusted).close()
"""


@pytest.fixture(scope="module")
def shared(azurite: Azurite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    image = tmp_path_factory.mktemp("image")
    (image / "log-metric").write_text(LOG_METRIC)
    (image / "log-metric").chmod(0o755)
    (image / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (image / "python").chmod(0o755)
    with control_plane(azurite, image=image, grace_seconds=1.0) as made, used(made):
        yield made


@pytest.fixture(scope="module")
def ml(shared: ControlPlane) -> Any:
    return client()


@pytest.fixture
def plane(shared: ControlPlane) -> Iterator[ControlPlane]:
    """With nothing in it; what was sent to it must have been right."""
    yield shared
    invalid = shared.invalid
    shared.store.asynchronous, shared.store.seconds = True, 0.05
    shared.reset()
    assert invalid == []


@pytest.fixture
def runs(azurite: Azurite) -> Iterator[ContainerClient]:
    with azurite.container("runs") as container:
        container.upload_blob("r1/in/rows.csv", b"a,b\n1,2\n")
        yield container


def client() -> Any:
    """A client with a credential of its own, so with no token yet."""
    with warnings.catch_warnings():
        # azure-ai-ml's own, while it is loaded.
        warnings.simplefilter("ignore")
        from azure.ai.ml import MLClient

    return MLClient(DefaultAzureCredential(), SUBSCRIPTION, "rg", "ws", show_progress=False)


def environment(ml: Any, name: str = "train", image: str = "registry.example/train:1", **more: Any) -> str:
    from azure.ai.ml.entities import Environment

    return str(ml.environments.create_or_update(Environment(name=name, version="1", image=image, **more)).id)


def job(ml: Any, command: str, name: str = "j1", **more: Any) -> Any:
    """Submits it, with the folder `in` and the output `out`."""
    return ml.jobs.create_or_update(described(ml, command, name, **more))


def described(ml: Any, command: str, name: str = "j1", *, timeout: int = 60, **more: Any) -> Any:
    from azure.ai.ml import Input, Output
    from azure.ai.ml import command as described

    given = {
        "inputs": {"in": Input(type="uri_folder", path=IN)},
        "outputs": {"out": Output(type="uri_folder", path=OUT, mode="rw_mount")},
        **more,
    }
    made = described(name=name, command=command, environment=environment(ml), compute="cpu-cluster", **given)
    made.set_limits(timeout=timeout)
    return made


def arm(plane: ControlPlane, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """A call as a client without an SDK makes it; its path below the workspace."""
    if "Authorization" not in headers:
        headers["Authorization"] = f"Bearer {token(plane, plane.url)}"
    url = path if path.startswith("https") else f"{plane.url}{WORKSPACE}/{path}?api-version=2025-12-01"
    data = None if body is None else json.dumps(body).encode()
    return fetched(plane, urllib.request.Request(url, data, headers, method=method))


def token(plane: ControlPlane, resource: str) -> str:
    place = f"{plane.url}/msi/token?api-version=2019-08-01&resource={resource}"
    status, told = fetched(plane, urllib.request.Request(place, headers={"X-IDENTITY-HEADER": plane.identity.header}))
    assert status == 200
    return str(told["access_token"])


def fetched(plane: ControlPlane, request: urllib.request.Request) -> tuple[int, Any]:
    context = create_default_context(cafile=str(plane.ca_file))
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            status, said = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            status, said = error.code, error.read()
    try:
        return status, json.loads(said)
    except ValueError:
        return status, said.decode()


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_stored(container: ContainerClient, name: str, content: bytes | None = None) -> None:
    blob = container.get_blob_client(name)
    until(lambda: blob.exists() and content in (None, blob.download_blob().readall()))


def log(plane: ControlPlane, name: str = "j1") -> str:
    return "".join(path.read_text() for _, path in sorted(plane.jobs[name].logs.items()))


# ------------------------------------------------------------------------------------------------ what is registered
def test_the_workspace_is_there_and_no_other(plane: ControlPlane, ml: Any) -> None:
    assert ml.workspaces.get("ws").location == "westeurope"
    with pytest.raises(ResourceNotFoundError, match="workspaces/other' under resource group 'rg' was not found"):
        ml.workspaces.get("other")


def test_an_environment_does_not_change(plane: ControlPlane, ml: Any) -> None:
    routes = {
        "liveness_route": {"path": "/live", "port": 8080},
        "readiness_route": {"path": "/ready", "port": 8080},
        "scoring_route": {"path": "/score", "port": 8080},
    }
    environment(ml, "serve", inference_config=routes)
    environment(ml, "serve", inference_config=routes)

    assert ml.environments.get("serve", "1").image == "registry.example/train:1"
    assert [one.version for one in ml.environments.list("serve")] == ["1"]
    with pytest.raises(ResourceExistsError, match="immutable property image"):
        environment(ml, "serve", image="registry.example/train:2", inference_config=routes)


def test_data_takes_the_next_version_where_none_is_named(plane: ControlPlane, ml: Any) -> None:
    from azure.ai.ml.entities import Data

    for version in (None, "7", None):
        ml.data.create_or_update(Data(name="rows", version=version, type="uri_folder", path=IN))

    assert sorted(int(one.version) for one in ml.data.list("rows")) == [1, 7, 8]


def test_a_model_version_keeps_its_tags_and_is_archived(plane: ControlPlane, ml: Any) -> None:
    from azure.ai.ml.entities import Model

    for version in ("1", "2"):
        ml.models.create_or_update(
            Model(name="flights", version=version, path=f"{OUT}/model.onnx", type="custom_model")
        )
    found = ml.models.get("flights", "2")
    found.tags["champion"] = "true"
    ml.models.create_or_update(found)
    ml.models.archive("flights", "1")

    assert ml.models.get("flights", "2").tags == {"champion": "true"}
    assert [one.version for one in ml.models.list("flights")] == ["2"]
    assert plane.models["flights"]["1"]["properties"]["isArchived"] is True
    assert [one["data"]["ModelVersion"] for one in plane.events] == [1, 2]


def test_a_cluster_is_made_and_a_datastore_names_its_container(plane: ControlPlane, ml: Any) -> None:
    from azure.ai.ml.entities import AmlCompute

    made = ml.compute.begin_create_or_update(
        AmlCompute(name="spot", size="STANDARD_NC6S_V3", tier="low_priority", max_instances=2)
    ).result()

    assert made.provisioning_state == "Succeeded" and made.tier == "low_priority"
    assert ml.datastores.get("dropforge_tables").container_name == "tables"


# ------------------------------------------------------------------------------------------------ jobs
def test_a_job_reads_what_it_names_and_leaves_what_it_wrote(
    plane: ControlPlane, ml: Any, runs: ContainerClient
) -> None:
    made = job(ml, "cat ${{inputs.in}}/rows.csv > ${{outputs.out}}/copy.csv; echo $SEED $AZUREML_RUN_ID", environment_variables={"SEED": "7"})  # fmt: skip
    done = plane.wait("j1")

    assert made.status == "NotStarted" and done.status == "Completed" and log(plane) == "7 j1\n"
    assert runs.download_blob("r1/output/copy.csv").readall() == b"a,b\n1,2\n"
    assert ml.jobs.get("j1").status == "Completed"
    assert [one.name for one in ml.jobs.list()] == ["j1"]


def test_a_job_sees_nothing_of_the_process_that_runs_it(
    plane: ControlPlane, ml: Any, runs: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROPFORGE_STORAGE", "a secret")
    job(ml, "env")
    plane.wait("j1")

    assert "DROPFORGE" not in log(plane) and "MLFLOW_RUN_ID=j1\n" in log(plane)


def test_its_log_is_read_through_run_history(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    job(ml, "echo one; echo two >&2")
    plane.wait("j1")
    place = f"{plane.url}/history/v1.0{WORKSPACE}/runs/j1/details"
    status, told = arm(plane, "GET", place)
    [(name, url)] = told["logFiles"].items()

    assert (status, told["status"], name) == (200, "Completed", "user_logs/std_log.txt")
    assert fetched(plane, urllib.request.Request(url)) == (200, "one\ntwo\n")
    assert fetched(plane, urllib.request.Request(url, headers={"Range": "bytes=4-"})) == (206, "two\n")
    assert fetched(plane, urllib.request.Request(url.split("?")[0]))[0] == 403


def test_a_job_is_put_again_and_changes_in_its_tags_only(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    asked = described(ml, "true", tags={"dataset": "3"})
    ml.jobs.create_or_update(asked)
    asked.tags["dataset"] = "4"

    assert ml.jobs.create_or_update(asked).tags["dataset"] == "4"
    with pytest.raises(HttpResponseError, match="A job with this name already exists") as refused:
        job(ml, "false")
    assert refused.value.status_code == 400 and plane.wait("j1").attempts == 1


def test_a_job_that_fails_says_why_in_run_history_and_to_nobody_else(
    plane: ControlPlane, ml: Any, runs: ContainerClient
) -> None:
    job(ml, "echo no such column >&2; exit 3")
    done = plane.wait("j1")
    _, told = arm(plane, "GET", f"{plane.url}/history/v1.0{WORKSPACE}/runs/j1")

    assert (done.status, done.exit_code) == ("Failed", 3)
    assert (
        "status code 3" in told["error"]["error"]["message"] and "no such column" in told["error"]["error"]["message"]
    )
    assert [one["data"]["runStatus"] for one in plane.events] == ["Running"]


def test_a_job_that_is_done_is_told_as_microsofts_samples_tell_it(
    plane: ControlPlane, ml: Any, runs: ContainerClient
) -> None:
    job(ml, "true")
    plane.wait("j1")
    kinds = [one["eventType"].rsplit(".", 1)[1] for one in plane.events]
    payloads = Path(__file__).parent.parent / "e2e" / "payloads"

    assert kinds == ["RunStatusChanged", "RunStatusChanged", "RunCompleted"]
    for told, sample in zip(plane.events[1:], ("run_status_changed", "run_completed"), strict=True):
        [wanted] = json.loads((payloads / f"eventgrid.aml.{sample}.json").read_text())
        assert told.keys() == wanted.keys() and told["data"].keys() == wanted["data"].keys()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo '${{inputs.rate}}'", "single quotes"),
        ("echo ${{inputs.note}}", "take apart"),
    ],
)
def test_an_expression_that_means_two_things_fails_the_job(
    plane: ControlPlane, ml: Any, runs: ContainerClient, command: str, said: str
) -> None:
    job(ml, command, inputs={"rate": 0.1, "note": "a; b"})

    assert said in plane.wait("j1").error[1]


def test_literals_and_files_are_put_into_the_command(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    from azure.ai.ml import Input

    rows = Input(type="uri_file", path=f"{IN}/rows.csv")
    job(ml, 'head -1 ${{inputs.rows}}; echo ${{inputs.rate}} "${{inputs.note}}"', inputs={"rows": rows, "rate": 0.1, "note": "a; b"})  # fmt: skip
    plane.wait("j1")

    assert log(plane) == "a,b\n0.1 a; b\n"


def test_data_that_is_not_there_fails_the_job(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    runs.delete_blob("r1/in/rows.csv")
    job(ml, "true")

    assert plane.wait("j1").error[0] == "ScriptExecution.StreamAccess.NotFound"


def test_a_cancelled_job_ends_and_tells_nobody(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    job(ml, "echo kept > ${{outputs.out}}/kept; sleep 60")
    until_stored(runs, "r1/output/kept")
    ml.jobs.begin_cancel("j1").result()

    assert ml.jobs.get("j1").status == "Canceled"
    assert [one["eventType"].rsplit(".", 1)[1] for one in plane.events] == ["RunStatusChanged"]


def test_a_job_does_not_run_longer_than_it_may(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    job(ml, "sleep 60", timeout=1)

    assert plane.wait("j1").error[0] == "JobExceededTimeLimit"


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("PyTorchDistribution", "echo $RANK of $WORLD_SIZE, $LOCAL_RANK"),
        ("MpiDistribution", "echo $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE, $OMPI_COMM_WORLD_LOCAL_RANK"),
    ],
)
def test_each_process_of_a_distributed_job_knows_its_rank(
    plane: ControlPlane, ml: Any, runs: ContainerClient, kind: str, command: str
) -> None:
    from azure.ai import ml as sdk

    job(ml, command, instance_count=2, distribution=getattr(sdk, kind)(process_count_per_instance=2))
    done = plane.wait("j1")

    assert log(plane).splitlines() == ["0 of 4, 0", "1 of 4, 1", "2 of 4, 0", "3 of 4, 1"]
    assert sorted(done.logs)[3] == "user_logs/std_log_process_03.txt"


def test_one_failed_process_ends_the_others(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    from azure.ai.ml import PyTorchDistribution

    job(ml, "[ $RANK = 0 ] || exit 4; sleep 60", distribution=PyTorchDistribution(process_count_per_instance=2))

    assert plane.wait("j1").exit_code == 4


def test_the_client_of_mlflow_logs_what_a_run_measured(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    script = (
        "import mlflow; mlflow.log_params(dict(rate=0.1)); mlflow.log_metric('mae', 1.5); mlflow.log_text('a', 'a.txt')"
    )
    job(ml, f'python -c "{script}"')
    done = plane.wait("j1")

    assert done.status == "Completed", log(plane)
    assert done.metrics["mae"][0]["value"] == 1.5 and done.parameters == {"rate": "0.1"}


def test_a_model_is_registered_from_the_output_of_a_job(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    from azure.ai.ml import Input
    from azure.ai.ml.entities import Model

    job(ml, "echo onnx > ${{outputs.out}}/model.onnx")
    plane.wait("j1")
    ml.models.create_or_update(Model(name="m", version="1", path="azureml://jobs/j1/outputs/out/paths/"))
    job(ml, "cat ${{inputs.model}}/model.onnx", "j2", inputs={"model": Input(type="custom_model", path="azureml:m:1")})
    plane.wait("j2")

    assert log(plane, "j2") == "onnx\n"


# ------------------------------------------------------------------------------------------------ what befalls jobs
COUNTS = (
    'n=$(cat ${{outputs.out}}/n || echo 0); echo "from $n"; echo $((n+1)) > ${{outputs.out}}/n; [ $n = 2 ] || sleep 60'
)


def test_a_preempted_job_is_queued_again_and_finds_its_checkpoints(
    plane: ControlPlane, ml: Any, runs: ContainerClient
) -> None:
    job(ml, COUNTS)
    for attempt in (b"1\n", b"2\n"):
        until_stored(runs, "r1/output/n", attempt)
        plane.faults.preempt("j1")
    done = plane.wait("j1")

    assert (done.status, done.attempts, log(plane)) == ("Completed", 3, "from 2\n")
    assert [one["eventType"].rsplit(".", 1)[1] for one in plane.events].count("RunCompleted") == 1


def test_a_preemption_without_warning_keeps_what_was_closed(
    plane: ControlPlane, ml: Any, runs: ContainerClient
) -> None:
    job(ml, 'trap "echo told > ${{outputs.out}}/told" TERM; echo 1 > ${{outputs.out}}/n; sleep 60')
    until_stored(runs, "r1/output/n")
    plane.faults.preempt("j1", warned=False, fails=True)

    assert plane.wait("j1").error[0] == "NodePreempted"
    assert [name for name in runs.list_blob_names() if "output" in name] == ["r1/output/n"]


def test_a_lost_node_fails_the_job(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    plane.faults.lose_node("j1")
    job(ml, "sleep 60")

    assert plane.wait("j1").error[0] == "NodeLost"


def test_a_job_vanishes(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    job(ml, "sleep 60")
    plane.faults.vanish("j1")

    with pytest.raises(ResourceNotFoundError):
        ml.jobs.get("j1")


def test_quota_runs_out_when_a_job_is_submitted_or_when_it_is_to_start(
    plane: ControlPlane, ml: Any, runs: ContainerClient
) -> None:
    plane.faults.quota()
    with pytest.raises(HttpResponseError, match="quota"):
        job(ml, "true")
    plane.faults.quota(at="allocation")
    job(ml, "true")

    assert plane.wait("j1").error[0] == "AmlComputeQuotaExceeded"


def test_an_image_that_cannot_be_pulled_fails_the_job(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    plane.faults.bad_image("registry.example/train:1")
    job(ml, "true")

    assert plane.wait("j1").error[0] == "ImagePullFailure"


def test_what_a_job_needs_must_be_there(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    asked = described(ml, "true")
    asked.compute = f"{WORKSPACE}/computes/none"

    with pytest.raises(HttpResponseError, match="compute target none was not found"):
        ml.jobs.create_or_update(asked)


# ------------------------------------------------------------------------------------------------ sweeps
def sweep(ml: Any, command: str, space: dict[str, Any], goal: str = "Maximize", sampling: str = "random") -> None:
    from azure.ai.ml import Output

    place = f"{OUT}/${{{{name}}}}"
    base = described(
        ml, command, inputs=dict.fromkeys(space, 0), outputs={"out": Output(type="uri_folder", path=place)}
    )
    made = base(**space).sweep(primary_metric="score", goal=goal, sampling_algorithm=sampling, compute="cpu-cluster")
    # As the type has it; the SDK makes its letters small.
    made.name, made.objective.goal = "s1", goal
    made.set_limits(max_total_trials=4, max_concurrent_trials=2, timeout=60, trial_timeout=30)
    ml.jobs.create_or_update(made)


def test_a_sweep_names_its_best_trial(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    from azure.ai.ml.sweep import LogUniform

    sweep(ml, "log-metric score ${{inputs.rate}}; echo ${{inputs.rate}} > ${{outputs.out}}/rate", {"rate": LogUniform(-6, 0)})  # fmt: skip
    done = plane.wait("s1")
    trials = {name: float(plane.jobs[name].values["rate"]) for name in done.children}
    best = max(trials, key=lambda name: trials[name])

    assert done.status == "Completed" and sorted(trials) == ["s1_0", "s1_1", "s1_2", "s1_3"]
    assert len(set(trials.values())) == 4 and all(0.0024 < value < 1 for value in trials.values())
    assert ml.jobs.get("s1").properties["best_child_run_id"] == best
    assert float(runs.download_blob(f"r1/output/{best}/rate").readall()) == trials[best]
    assert sorted(one.name for one in ml.jobs.list(parent_job_name="s1")) == sorted(trials)


def test_a_grid_tries_each_combination_and_the_least_may_be_the_best(
    plane: ControlPlane, ml: Any, runs: ContainerClient
) -> None:
    from azure.ai.ml.sweep import Choice

    space = {"depth": Choice([3, 1]), "width": Choice([20, 10])}
    sweep(ml, "log-metric score ${{inputs.depth}}${{inputs.width}}", space, "Minimize", "grid")
    done = plane.wait("s1")

    assert [plane.jobs[name].values for name in done.children] == [
        {"depth": depth, "width": width} for depth in (3, 1) for width in (20, 10)
    ]
    assert done.properties["properties"]["best_child_run_id"] == "s1_3"


def test_a_sweep_runs_no_more_trials_at_once_than_it_may(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    from azure.ai.ml.sweep import Choice

    sweep(ml, "sleep 60 # ${{inputs.depth}}", {"depth": Choice([1, 2, 3])})
    until(lambda: [plane.jobs[name].status for name in plane.jobs["s1"].children] == ["Running"] * 2)
    ml.jobs.begin_cancel("s1").result()

    assert len(plane.jobs["s1"].children) == 2 and plane.jobs["s1_1"].status == "Canceled"


def test_a_sweep_whose_trials_all_fail_has_failed(plane: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    from azure.ai.ml.sweep import Choice

    sweep(ml, "exit ${{inputs.code}}", {"code": Choice([1, 2])})

    assert plane.wait("s1").status == "Failed" and "best_child_run_id" not in ml.jobs.get("s1").properties


# ------------------------------------------------------------------------------------------------ endpoints
@pytest.fixture
def servers() -> Iterator[Callable[[str], str]]:
    """Servers that answer their name, and the path and body of what they were asked."""
    made: list[ThreadingHTTPServer] = []

    def serve(name: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
                said = json.dumps({"by": name, "path": self.path, "asked": asked}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
                return None

        made.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=made[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{made[-1].server_port}"

    yield serve
    for server in made:
        server.shutdown()
        server.server_close()


def settled(ml: Any, deployment: str | None = None) -> Any:
    """The endpoint, or a deployment of it, once its operation has ended: the SDK's poller looks each second only."""

    def found() -> Any:
        return ml.online_deployments.get(deployment, "flights") if deployment else ml.online_endpoints.get("flights")

    until(lambda: found().provisioning_state in ("Succeeded", "Failed"))
    return found()


def endpoint(ml: Any) -> Any:
    from azure.ai.ml.entities import ManagedOnlineEndpoint

    ml.online_endpoints.begin_create_or_update(ManagedOnlineEndpoint(name="flights", auth_mode="key"))
    return settled(ml)


def deploy(ml: Any, name: str, instances: int = 1) -> Any:
    ml.online_deployments.begin_create_or_update(deployment(ml, name, instances))
    return settled(ml, name)


def deployment(ml: Any, name: str, instances: int = 1) -> Any:
    from azure.ai.ml.entities import ManagedOnlineDeployment, OnlineRequestSettings

    return ManagedOnlineDeployment(
        name=name,
        endpoint_name="flights",
        environment=environment(ml),
        instance_type="Standard_DS3_v2",
        instance_count=instances,
        environment_variables={"DROPFORGE_ENDPOINT": "flights"},
        request_settings=OnlineRequestSettings(request_timeout_ms=5000, max_concurrent_requests_per_instance=4),
    )


def share(ml: Any, traffic: dict[str, int], mirror: dict[str, int] | None = None) -> Any:
    found = ml.online_endpoints.get("flights")
    found.traffic, found.mirror_traffic = traffic, mirror or {}
    ml.online_endpoints.begin_create_or_update(found)
    return settled(ml)


def score(plane: ControlPlane, **headers: str) -> tuple[int, Any]:
    place = plane.endpoints["flights"]["properties"]["scoringUri"]
    return arm(plane, "POST", place, {"rows": []}, Authorization=f"Bearer {plane.scoring_key('flights')}", **headers)


def test_an_endpoint_answers_by_its_traffic(plane: ControlPlane, ml: Any, servers: Callable[[str], str]) -> None:
    made = endpoint(ml)
    for name in ("blue", "green"):
        plane.serve(name, servers(name))
        assert deploy(ml, name).provisioning_state == "Succeeded"
    share(ml, {"blue": 75, "green": 25})
    answers = [score(plane)[1] for _ in range(20)]

    assert made.scoring_uri.startswith(plane.url) and answers[0] == {
        "by": "blue",
        "path": "/score",
        "asked": '{"rows": []}',
    }
    assert [one["by"] for one in answers].count("green") == 5
    assert score(plane, **{"azureml-model-deployment": "green"})[1]["by"] == "green"
    assert ml.online_endpoints.get_keys("flights").primary_key == plane.scoring_key("flights")
    assert arm(plane, "POST", made.scoring_uri, {}, Authorization="Bearer wrong")[0] == 401


def test_mirrored_calls_are_answered_by_who_has_the_traffic(
    plane: ControlPlane, ml: Any, servers: Callable[[str], str]
) -> None:
    endpoint(ml)
    for name in ("blue", "green"):
        plane.serve(name, servers(name))
        deploy(ml, name)
    share(ml, {"blue": 100}, {"green": 50})

    assert [score(plane)[1]["by"] for _ in range(4)] == ["blue"] * 4
    assert plane.mirrored == {("flights", "green"): 2}


@pytest.mark.parametrize(
    ("traffic", "mirror", "said"),
    [
        ({"blue": 60}, None, "must sum to 100"),
        ({"blue": 60, "none": 40}, None, "do not exist"),
        ({"blue": 100}, {"green": 60}, "at most 50"),
        ({"blue": 100}, {"blue": 10}, "not both"),
    ],
)
def test_traffic_that_cannot_be_is_refused(
    plane: ControlPlane, ml: Any, traffic: dict[str, int], mirror: dict[str, int] | None, said: str
) -> None:
    endpoint(ml)
    deploy(ml, "blue")
    deploy(ml, "green")

    with pytest.raises(HttpResponseError, match=said):
        share(ml, traffic, mirror)


def test_a_deployment_with_traffic_is_not_deleted(plane: ControlPlane, ml: Any) -> None:
    endpoint(ml)
    deploy(ml, "blue")
    share(ml, {"blue": 100})
    with pytest.raises(HttpResponseError, match="has traffic") as refused:
        ml.online_deployments.begin_delete("blue", "flights")
    share(ml, {"blue": 0})
    ml.online_deployments.begin_delete("blue", "flights").result()

    assert refused.value.status_code == 400 and plane.deployments("flights") == {}
    ml.online_deployments.begin_delete("blue", "flights").result()
    ml.online_endpoints.begin_delete("flights").result()
    assert plane.endpoints == {}


def test_a_deployment_is_scaled(plane: ControlPlane, ml: Any) -> None:
    endpoint(ml)
    deploy(ml, "blue")
    assert deploy(ml, "blue", instances=3).instance_count == 3

    assert (
        arm(plane, "PATCH", "onlineEndpoints/flights/deployments/blue", {"sku": {"name": "Default", "capacity": 2}})[0]
        == 202
    )
    until(lambda: plane.deployments("flights")["blue"]["properties"]["provisioningState"] == "Succeeded")
    assert plane.deployments("flights")["blue"]["sku"]["capacity"] == 2


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_deployment_that_fails_says_so_however_its_operation_is_told(
    plane: ControlPlane, ml: Any, asynchronous: bool
) -> None:
    plane.store.asynchronous = asynchronous
    endpoint(ml)
    plane.faults.fail_deployment("blue")

    with pytest.raises(HttpResponseError, match="readiness probe"):
        ml.online_deployments.begin_create_or_update(deployment(ml, "blue")).result()
    assert ml.online_deployments.get("blue", "flights").provisioning_state == "Failed"


def test_two_operations_on_one_deployment_are_one_too_many(plane: ControlPlane, ml: Any) -> None:
    endpoint(ml)
    deploy(ml, "blue")
    plane.store.seconds = 30
    body = {**plane.deployments("flights")["blue"]}
    asked = {key: body[key] for key in ("location", "sku")} | {"properties": {"endpointComputeType": "Managed"}}

    assert arm(plane, "PUT", "onlineEndpoints/flights/deployments/blue", asked)[0] == 200
    status, told = arm(plane, "PUT", "onlineEndpoints/flights/deployments/blue", asked)
    assert (status, told["error"]["code"]) == (409, "Conflict")


def test_traffic_that_was_changed_is_read_as_it_was_for_a_while(plane: ControlPlane, ml: Any) -> None:
    endpoint(ml)
    deploy(ml, "blue")
    plane.faults.stale_traffic(2)
    put = arm(plane, "PUT", "onlineEndpoints/flights", {"location": "westeurope", "properties": {"authMode": "Key", "traffic": {"blue": 100}}})  # fmt: skip
    read = [arm(plane, "GET", "onlineEndpoints/flights")[1]["properties"]["traffic"] for _ in range(3)]

    assert put[0] == 200 and read == [{}, {}, {"blue": 100}]


# ------------------------------------------------------------------------------------------------ faults
def test_the_sdk_gets_through_a_service_that_fails_often_and_sees_each_write_once(
    plane: ControlPlane, ml: Any, runs: ContainerClient
) -> None:
    plane.faults.fail(0.3, seed=2)
    for number in range(4):
        job(ml, "true", f"j{number}")
    done = [plane.wait(f"j{number}") for number in range(4)]

    assert plane.faults.injected > 3 and [one.attempts for one in done] == [1] * 4
    assert {one.fault for one in plane.requests} > {"lost_before", "lost_after"}


def test_the_same_seed_fails_the_same_calls(plane: ControlPlane) -> None:
    def drawn(seed: int) -> list[str | None]:
        plane.requests.clear()
        plane.faults.fail(0.5, seed, kinds=("throttled", "unavailable"))
        for number in range(20):
            arm(plane, "GET", f"models/m{number}")
        return [one.fault for one in plane.requests if "/models/" in one.path]

    first = drawn(1)

    assert drawn(1) == first and drawn(2) != first and set(first) == {None, "throttled", "unavailable"}


def test_the_first_call_of_each_kind_fails_whatever_its_name(plane: ControlPlane) -> None:
    plane.faults.fail(0, seed=1, kinds=("throttled", "unavailable"), each_kind=True)
    for path in ("models/m/versions/1", "models/m/versions/2", "models/n/versions/1", "jobs/a", "jobs/b"):
        for _ in range(2):
            arm(plane, "GET", path)

    failed = [bool(one.fault) for one in plane.requests if "/models/" in one.path or "/jobs/" in one.path]
    assert failed == [True, *[False] * 5, True, *[False] * 3]
    assert plane.faults.met == {("GET", "models/versions"), ("GET", "jobs")}


def test_an_answer_gets_lost_after_the_work_was_done(plane: ControlPlane) -> None:
    plane.faults.lose_answer("PUT", "/models/m/versions/1")
    with pytest.raises(OSError):
        arm(plane, "PUT", "models/m/versions/1", {"properties": {"modelUri": OUT}})

    assert list(plane.models["m"]) == ["1"]
    assert [one.status for one in plane.requests if one.method == "PUT"] == [0]


def test_expired_tokens_are_refused_until_a_new_one_is_asked_for(plane: ControlPlane) -> None:
    ml = client()
    ml.workspaces.get("ws")
    plane.faults.expire_tokens()
    with pytest.raises(ClientAuthenticationError, match="ExpiredAuthenticationToken"):
        ml.workspaces.get("ws")

    assert client().workspaces.get("ws").name == "ws"


def test_the_sdk_answers_a_challenge_with_a_new_token(plane: ControlPlane) -> None:
    ml = client()
    ml.workspaces.get("ws")
    plane.faults.expire_tokens(challenge=True)

    assert ml.workspaces.get("ws").name == "ws"


def test_a_call_without_a_token_for_this_service_is_refused(plane: ControlPlane) -> None:
    def refused(header: str) -> str:
        status, told = arm(plane, "GET", "models", Authorization=header)
        assert status == 401
        return str(told["error"]["code"])

    assert refused("") == "AuthenticationFailed"
    assert refused("Bearer x") == "InvalidAuthenticationToken"
    assert refused(f"Bearer {token(plane, 'https://ml.azure.com')}") == "InvalidAuthenticationTokenAudience"
    old = plane.identity.issue(plane.url, int(time.time()) - 1)
    assert refused(f"Bearer {old}") == "ExpiredAuthenticationToken"


def test_a_name_has_its_letters(plane: ControlPlane) -> None:
    body = {"properties": {"modelUri": OUT}}

    assert arm(plane, "PUT", "models/a-b/versions/1.0", body)[0] == 201
    assert arm(plane, "PUT", "models/a.b/versions/1", body)[0] == 400


def test_without_a_role_nothing_is_allowed(plane: ControlPlane, ml: Any) -> None:
    plane.faults.forbid()

    with pytest.raises(HttpResponseError, match="does not have authorization") as refused:
        ml.models.get("m", "1")
    assert refused.value.status_code == 403


def test_a_body_that_is_not_of_its_type_is_told(shared: ControlPlane) -> None:
    arm(shared, "PUT", "models/m/versions/1", {"properties": {"modelUri": OUT, "modelTyp": "custom_model"}})
    found = shared.invalid
    shared.reset()

    assert len(found) == 1 and "'modelTyp' was unexpected" in found[0]


def test_after_a_reset_nothing_is_there(shared: ControlPlane, ml: Any, runs: ContainerClient) -> None:
    job(ml, "sleep 60")
    shared.reset()

    assert not shared.jobs and not shared.requests and not shared.events and list(ml.jobs.list()) == []


def test_a_closed_control_plane_answers_nobody(azurite: Azurite) -> None:
    started = time.monotonic()
    with control_plane(azurite) as made:
        assert time.monotonic() - started < 3
        assert arm(made, "GET", "jobs")[1] == {"value": []}
    with pytest.raises((ServiceRequestError, OSError)):
        fetched_from_nobody(made)


def fetched_from_nobody(made: ControlPlane) -> None:
    urllib.request.urlopen(f"{made.url}/discovery", timeout=2)
