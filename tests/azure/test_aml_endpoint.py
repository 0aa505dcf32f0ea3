"""A managed online endpoint: made, rolled out beside what answers, rolled back, by hosts that are killed between any two calls."""

from __future__ import annotations

import http.client
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from dropforge.adapters.azure import identity
from dropforge.adapters.azure.aml_client import asking as sdk_asking
from dropforge.adapters.azure.aml_client import ml_client
from dropforge.adapters.azure.aml_endpoint import EndpointOperator, ManagedEndpointServing
from dropforge.adapters.azure.aml_rollout import Plan
from dropforge.adapters.azure.serving import BlobServing, ServingBlobs
from dropforge.cli.commands import app
from dropforge.domain.endpoints import ReplicaState
from dropforge.domain.errors import BadInput, NotFound, Refused
from dropforge.settings import AzureML, settings
from tests.azure.aml_bench import SDK_WARNINGS
from tests.azure.control_plane import ControlPlane, control_plane, used
from tests.azurite import ACCOUNT, Azurite, azurite
from tests.contract.test_serving import wanted
from tests.contract.web import web

__all__ = ["azurite"]

pytestmark = SDK_WARNINGS

IDENTITY = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/"
    "Microsoft.ManagedIdentity/userAssignedIdentities/serving"
)
WAIT_SECONDS = 20


class World:
    """The workspace, the storage account, and replicas that report what a test says."""

    def __init__(self, plane: ControlPlane, azurite: Azurite, blobs: ServingBlobs) -> None:
        self.plane = plane
        self.account = azurite.connection_string
        self.account_url = f"{azurite.url}/{ACCOUNT}"
        self.blobs = blobs
        self.now = datetime.now(UTC)
        self.settings = AzureML(
            plane.workspace,
            endpoint="online",
            serve_image="r.azurecr.io/serving:1",
            serve_identity=IDENTITY,
            serve_client_id="client",
        )
        self.revision = 0

    @contextmanager
    def host(self, settings: AzureML | None = None) -> Iterator[ManagedEndpointServing]:
        """A host that has just started."""
        nothing = timedelta(0)
        made = ManagedEndpointServing(
            BlobServing(self.account), settings or self.settings, self.account, nothing, clock=lambda: self.now
        )
        with closing(made):
            yield made

    def upgraded(self, image: str = "r.azurecr.io/serving:2", **more: Any) -> AzureML:
        self.settings = replace(self.settings, serve_image=image, **more)
        return self.settings

    def publish(self) -> None:
        """The next revision, as a flow begins."""
        self.revision += 1
        with self.host() as host:
            host.publish(wanted(self.revision))

    def observe(self) -> list[ReplicaState]:
        """As a host does that is killed after every look."""
        with self.host() as host:
            return host.observe("flights")

    def report(self, deployment: str, revision: int | None = None, **more: Any) -> None:
        """A replica of the deployment serves."""
        at = self.revision if revision is None else revision
        state = ReplicaState(f"{deployment}-0", "flights", at, at, (1,), True, 0, 0, 0, datetime.now(UTC))
        self.blobs.write_report(replace(state, detail={"deployment": deployment}, **more))

    def wait(self, told: Callable[[list[ReplicaState]], bool]) -> list[ReplicaState]:
        """Looks until what is observed is as told; what is provisioned reports at once that it serves."""
        until = time.monotonic() + WAIT_SECONDS
        while not told(states := self.observe()):
            assert time.monotonic() < until, (states, self.plane.invalid)
            for name, each in self.plane.deployments("online").items():
                if each["properties"]["provisioningState"] == "Succeeded":
                    self.report(name)
            time.sleep(0.01)
        return states

    def deployed(self) -> str:
        """Published, and brought to the state that a flow calls ready; the deployment that answers then."""
        self.publish()
        (state,) = self.wait(lambda states: ready(states, self.revision))
        return state.detail["deployment"]

    def idle(self) -> None:
        """Until the last change of the endpoint is done."""
        self.settled(lambda: self.plane.endpoints["online"]["properties"]["provisioningState"] == "Succeeded")

    def provisioned(self, name: str) -> None:
        """Until the deployment is."""
        self.settled(
            lambda: (
                self.plane.deployments("online").get(name, {"properties": {}})["properties"].get("provisioningState")
                == "Succeeded"
            )
        )

    def wanted_deployment(self) -> str:
        return Plan(self.settings, self.account_url).name

    @property
    def traffic(self) -> dict[str, int]:
        return {name: share for name, share in self._shares("traffic").items() if share}

    @property
    def mirror(self) -> dict[str, int]:
        return {name: share for name, share in self._shares("mirrorTraffic").items() if share}

    def _shares(self, which: str) -> dict[str, int]:
        return dict(self.plane.endpoints["online"]["properties"].get(which, {}))

    @property
    def deployments(self) -> set[str]:
        return set(self.plane.deployments("online"))

    def settled(self, what: Callable[[], bool]) -> None:
        """Wait until operations that run have got there."""
        until = time.monotonic() + WAIT_SECONDS
        while not what():
            assert time.monotonic() < until
            time.sleep(0.01)


def ready(states: list[ReplicaState], revision: int) -> bool:
    """As `steps.deploy` sees it."""
    return bool(states) and all(each.revision == revision and each.ready for each in states)


@pytest.fixture(scope="module")
def shared(azurite: Azurite) -> Iterator[ControlPlane]:
    with control_plane() as plane, used(plane):
        identity.credential.cache_clear()
        yield plane
    identity.credential.cache_clear()


@pytest.fixture
def world(shared: ControlPlane, azurite: Azurite) -> Iterator[World]:
    shared.reset()
    with azurite.container("serving"), closing(ServingBlobs(azurite.connection_string)) as blobs:
        yield World(shared, azurite, blobs)
    assert shared.invalid == []


def writes(world: World) -> list[str]:
    """What was asked to change since the last call, without the throttled ones."""
    found = [
        f"{each.method} {each.path.partition('/workspaces/ws/')[2]}"
        for each in world.plane.requests
        if each.method != "GET" and "/msi/" not in each.path
    ]
    world.plane.requests.clear()
    return found


# ---------------------------------------------------------------------------------------------- from nothing
def test_the_first_deployment_of_a_model_makes_the_endpoint_and_its_deployment(world: World) -> None:
    name = world.deployed()
    endpoint = world.plane.endpoints["online"]
    assert endpoint["properties"]["authMode"] == "Key"
    assert endpoint["properties"]["publicNetworkAccess"] == "Enabled"
    assert list(endpoint["identity"]["userAssignedIdentities"]) == [IDENTITY]
    assert (world.traffic, world.deployments) == ({name: 100}, {name})
    made = world.plane.deployments("online")[name]["properties"]
    assert made["instanceType"] == "Standard_DS3_v2" and "model" not in made
    assert made["requestSettings"]["maxConcurrentRequestsPerInstance"] == 256
    assert made["environmentVariables"] == {
        "DROPFORGE_STORAGE": world.account_url,
        "DROPFORGE_SERVE_NO_KEY": "true",
        "DROPFORGE_SERVE_WORKERS": "0",
        "DROPFORGE_DEPLOYMENT": name,
        "AZURE_CLIENT_ID": "client",
    }
    (environment,) = world.plane.environments["dropforge-serving"].values()
    assert environment["properties"]["image"] == "r.azurecr.io/serving:1"
    assert environment["properties"]["inferenceConfig"]["readinessRoute"] == {"path": "/v2/health/ready", "port": 8000}


def test_each_look_takes_one_step(world: World) -> None:
    world.publish()
    assert writes(world) == ["PUT onlineEndpoints/online"]
    world.idle()
    (waiting,) = world.observe()
    assert (waiting.ready, waiting.error, waiting.wanted_revision) == (False, None, 1)
    assert waiting.replica.startswith("online/s") and waiting.replica.endswith("(the deployment is being made)")
    name = waiting.detail["deployment"]
    assert [each.partition("/versions/")[0] for each in writes(world)] == [
        "PUT environments/dropforge-serving",
        f"PUT onlineEndpoints/online/deployments/{name}",
    ]
    world.provisioned(name)
    assert "0 report" in world.observe()[0].replica and writes(world) == []
    world.report(name)
    assert "all traffic is being moved" in world.observe()[-1].replica
    assert writes(world) == ["PUT onlineEndpoints/online"]


def test_no_thread_is_left_behind_to_poll(world: World) -> None:
    before = {thread.name for thread in threading.enumerate()}
    world.deployed()
    left = {thread.name for thread in threading.enumerate()} - before
    assert not [name for name in left if "LRO" in name]


def test_nothing_secret_is_sent(world: World) -> None:
    world.deployed()
    assert "AccountKey" not in json.dumps([each.body for each in world.plane.requests], default=str)


# ---------------------------------------------------------------------------------------------- a new model, a new image
def test_a_new_model_changes_nothing_at_azure_ml(world: World) -> None:
    name = world.deployed()
    writes(world)
    world.publish()
    assert not ready(world.observe(), 2)
    world.report(name)
    assert ready(world.observe(), 2)
    assert writes(world) == []


@contextmanager
def asking(world: World) -> Iterator[list[tuple[int, str]]]:
    """Somebody asks the endpoint all the time: status and deployment of each answer."""
    with sdk_asking(world.plane.workspace, "the key"):
        key = ml_client(world.plane.workspace).online_endpoints.get_keys("online").primary_key
    answers: list[tuple[int, str]] = []
    done = threading.Event()

    def ask() -> None:
        address = urlsplit(world.plane.url)
        context = ssl.create_default_context(cafile=world.plane.ca_file)
        connection = http.client.HTTPSConnection(address.hostname or "", address.port, context=context, timeout=30)
        with closing(connection):
            while not done.is_set():
                headers = {"Authorization": f"Bearer {key}"}
                connection.request("POST", "/score/online/v2/models/flights/infer", b"{}", headers)
                answer = connection.getresponse()
                answer.read()
                answers.append((answer.status, answer.getheader("azureml-model-deployment") or ""))
                time.sleep(0.002)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        done.set()
        thread.join()


def test_a_new_image_takes_over_under_traffic_and_the_old_one_goes(world: World) -> None:
    blue = world.deployed()
    world.upgraded()
    green = world.wanted_deployment()
    with web() as old, web() as new:
        world.plane.serve(blue, old.url)
        world.plane.serve(green, new.url)
        with asking(world) as answers:
            world.settled(lambda: len(answers) > 3)
            assert world.deployed() == green != blue
            world.settled(lambda: answers[-1][1] == green)
    assert {status for status, _ in answers} == {200}
    seen = [deployment for _, deployment in answers]
    assert seen.index(green) == seen.count(blue), "traffic went back"
    world.settled(lambda: world.deployments == {green})
    assert world.traffic == {green: 100}


def test_the_replicas_of_the_old_image_do_not_speak_for_the_new_one(world: World) -> None:
    blue = world.deployed()
    world.upgraded()
    world.publish()
    world.report(blue)
    states = world.observe()
    assert not ready(states, 2) and blue not in {each.detail["deployment"] for each in states}
    # An old image may not know what a new model needs: that is no reason to go back.
    world.report(blue, error="opset 25 is not supported")
    assert [each.error for each in world.observe()] == [None]
    assert world.traffic == {blue: 100}


def test_traffic_stays_until_the_replicas_of_the_new_image_serve(world: World) -> None:
    blue = world.deployed()
    world.upgraded()
    world.publish()
    name = world.observe()[0].detail["deployment"]
    world.settled(
        lambda: (
            world.plane.deployments("online").get(name, {"properties": {}})["properties"].get("provisioningState")
            == "Succeeded"
        )
    )
    world.report(name, revision=1)
    for _ in range(3):
        assert not ready(world.observe(), 2)
    assert world.traffic == {blue: 100}


def test_replicas_send_telemetry_where_the_app_does_so_without_a_secret(world: World) -> None:
    blue = world.deployed()
    world.upgraded(insights="InstrumentationKey=1;IngestionEndpoint=https://e/")
    world.publish()
    world.wait(lambda states: ready(states, 2))
    (green,) = world.traffic
    assert green != blue
    told = world.plane.deployments("online")[green]["properties"]["environmentVariables"]
    assert told["APPLICATIONINSIGHTS_CONNECTION_STRING"] == "InstrumentationKey=1;IngestionEndpoint=https://e/"
    assert told["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"] == "ClientId=client;Authorization=AAD"


def test_replicas_are_told_which_requests_to_keep_by_another_deployment(world: World) -> None:
    blue = world.deployed()
    world.upgraded(serve_log_requests="flights=0.1,0.01")
    world.publish()
    world.wait(lambda states: ready(states, 2))
    (green,) = world.traffic
    assert green != blue
    told = world.plane.deployments("online")[green]["properties"]["environmentVariables"]
    assert told["DROPFORGE_SERVE_LOG_REQUESTS"] == "flights=0.1,0.01"


def test_requests_are_copied_to_a_new_image_first_where_that_is_wanted(world: World) -> None:
    blue = world.deployed()
    world.upgraded(serve_mirror_percent=10)
    world.publish()
    states = world.wait(lambda _: bool(world.mirror))
    green = states[-1].detail["deployment"]
    assert (world.traffic, world.mirror) == ({blue: 100}, {green: 10})
    assert "copied to it" in world.wait(lambda states: "copied to it since" in states[-1].replica)[-1].replica
    world.now += timedelta(minutes=6)
    world.wait(lambda states: ready(states, 2))
    assert (world.traffic, world.mirror) == ({green: 100}, {})
    assert "dropforge-mirrored-at" not in world.plane.endpoints["online"].get("tags", {})


def test_a_new_image_that_fails_the_copied_requests_gets_no_traffic(world: World) -> None:
    blue = world.deployed()
    world.upgraded(serve_mirror_percent=10)
    world.publish()
    green = world.wait(lambda _: bool(world.mirror))[-1].detail["deployment"]
    world.now += timedelta(minutes=6)
    world.idle()
    world.report(green, failed=3)
    assert f"deployment {green} failed 3 of the requests copied to it" in [each.error for each in world.observe()]
    assert world.traffic == {blue: 100}


def test_an_image_that_is_taken_back_while_requests_are_copied_to_it_goes(world: World) -> None:
    blue = world.deployed()
    image = world.settings.serve_image
    world.upgraded(serve_mirror_percent=10)
    world.publish()
    world.wait(lambda _: bool(world.mirror))
    world.idle()
    assert image is not None
    world.upgraded(image)
    assert world.deployed() == blue
    world.settled(lambda: world.deployments == {blue})
    assert (world.traffic, world.mirror) == ({blue: 100}, {})
    assert "dropforge-mirrored-at" not in world.plane.endpoints["online"].get("tags", {})


# ---------------------------------------------------------------------------------------------- what goes wrong
def test_a_deployment_that_fails_is_told_and_made_anew_by_the_next_publish(world: World) -> None:
    blue = world.deployed()
    world.upgraded()
    green = world.wanted_deployment()
    world.plane.faults.fail_deployment(green)
    world.publish()
    error = next(each.error for each in world.wait(lambda states: any(each.error for each in states)) if each.error)
    assert f"deployment {green} (image r.azurecr.io/serving:2) is in state Failed" in error
    assert "the container's log" in error
    assert (world.traffic, world.deployments) == ({blue: 100}, {blue, green})
    world.plane.faults.failing_deployments.clear()
    assert world.deployed() == green
    assert world.traffic == {green: 100}


def test_without_an_image_there_is_no_deployment_and_the_setting_is_named(world: World) -> None:
    world.settings = replace(world.settings, serve_image=None)
    world.publish()
    states = world.wait(lambda states: any(each.error for each in states))
    assert "DROPFORGE_SERVE_IMAGE must name the image" in (states[-1].error or "")


def test_who_has_no_right_waits_and_names_the_role(world: World) -> None:
    world.plane.faults.forbid()
    world.publish()
    (waiting,) = world.observe()
    assert waiting.error is None and "give it the role AzureML Data Scientist" in waiting.replica
    world.plane.faults.forbid(False)
    assert world.deployed()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_service_that_throttles_and_fails_ends_in_the_same_state(world: World, seed: int) -> None:
    world.plane.faults.fail(0.25, seed, each_kind=True)
    world.deployed()
    world.upgraded()
    green = world.deployed()
    world.settled(lambda: world.deployments == {green})
    assert world.traffic == {green: 100} and ("PUT", "onlineEndpoints/deployments") in world.plane.faults.met


def test_reads_that_are_behind_the_last_change_of_traffic_end_in_the_same_state(world: World) -> None:
    world.deployed()
    world.plane.faults.stale_traffic(4)
    world.upgraded()
    green = world.deployed()
    world.settled(lambda: world.deployments == {green})
    assert world.traffic == {green: 100}


def test_two_hosts_at_once_make_one_deployment_and_move_traffic_once(world: World) -> None:
    blue = world.deployed()
    world.upgraded()
    world.publish()

    def host() -> None:
        with world.host() as one:
            rng = random.Random()
            while not ready(one.observe("flights"), 2):
                time.sleep(rng.random() / 50)

    hosts = [threading.Thread(target=host) for _ in range(2)]
    for each in hosts:
        each.start()
    world.wait(lambda states: ready(states, 2))
    for each in hosts:
        each.join()
    (green,) = world.traffic
    world.settled(lambda: world.deployments == {green})
    assert green != blue


# ---------------------------------------------------------------------------------------------- by hand
@pytest.fixture
def operator(world: World) -> EndpointOperator:
    return EndpointOperator(world.settings, world.account)


def halfway(world: World) -> tuple[str, str]:
    """Both images are there, the old one answers; the two deployments."""
    blue = world.deployed()
    world.upgraded()
    world.publish()
    green = world.observe()[0].detail["deployment"]
    world.settled(
        lambda: (
            world.plane.deployments("online").get(green, {"properties": {}})["properties"].get("provisioningState")
            == "Succeeded"
        )
    )
    return blue, green


def test_traffic_that_is_set_by_hand_is_left_alone_until_it_is_released(world: World) -> None:
    blue, green = halfway(world)
    operator = EndpointOperator(world.settings, world.account)
    operator.set_traffic({blue: 90, green: 10})
    world.report(blue)
    world.report(green)
    # Models are still swapped: both deployments count.
    world.settled(lambda: ready(world.observe(), 2))
    assert world.traffic == {blue: 90, green: 10}
    world.idle()
    operator.release()
    world.deployed()
    assert world.traffic == {green: 100}


def test_what_was_given_traffic_by_hand_is_given_all_of_it_without_copies_first(world: World) -> None:
    world.settings = replace(world.settings, serve_mirror_percent=10)
    blue, green = halfway(world)
    operator = EndpointOperator(world.settings, world.account)
    operator.set_traffic({blue: 90, green: 10})
    world.idle()
    operator.release()
    assert world.deployed() == green
    assert world.traffic == {green: 100}


def test_traffic_that_makes_no_sense_is_refused(world: World) -> None:
    blue, green = halfway(world)
    operator = EndpointOperator(world.settings, world.account)
    for shares in ({blue: 50}, {blue: 120, green: -20}):
        with pytest.raises(BadInput, match="percents that sum to 100"):
            operator.set_traffic(shares)
    with pytest.raises(BadInput, match="has no deployment purple; choose from"):
        operator.set_traffic({"purple": 100})
    with pytest.raises(Refused, match="has traffic of its own"):
        operator.set_mirror(blue, 10)
    with pytest.raises(BadInput, match="from 0 to 50"):
        operator.set_mirror(green, 60)
    operator.set_mirror(green, 20)
    assert world.mirror == {green: 20}


def test_a_roll_back_goes_to_the_deployment_before_while_it_is_there(world: World) -> None:
    blue, green = halfway(world)
    operator = EndpointOperator(world.settings, world.account)
    operator.set_traffic({green: 100})
    world.idle()
    assert operator.roll_back() == blue
    assert world.traffic == {blue: 100}


def test_a_roll_back_to_nothing_is_refused_with_the_way_out(world: World, operator: EndpointOperator) -> None:
    with pytest.raises(NotFound, match="there is no endpoint 'online'"):
        operator.roll_back()
    world.deployed()
    with pytest.raises(Refused, match="there is none; set DROPFORGE_SERVE_IMAGE to the image before"):
        operator.roll_back()


def test_scaling_changes_the_number_of_instances_and_nothing_else(world: World, operator: EndpointOperator) -> None:
    name = world.deployed()
    before = world.plane.deployments("online")[name]["properties"]
    operator.scale(3)
    world.provisioned(name)
    after = world.plane.deployments("online")[name]
    assert after["sku"]["capacity"] == 3 and after["properties"] == before
    writes(world)
    world.deployed()
    assert writes(world) == [] and world.plane.deployments("online")[name]["sku"]["capacity"] == 3


@pytest.fixture
def fresh_settings() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.usefixtures("fresh_settings")
def test_the_command_line_shows_and_moves_traffic(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    blue, green = halfway(world)
    told = {
        "DROPFORGE_AML_WORKSPACE": world.plane.workspace,
        "DROPFORGE_AML_ENDPOINT": "online",
        "DROPFORGE_STORAGE": world.account,
        "DROPFORGE_SERVE_IMAGE": world.settings.serve_image or "",
        "DROPFORGE_SERVE_IDENTITY": IDENTITY,
        "DROPFORGE_SERVE_CLIENT_ID": "client",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)

    def typed(*words: str) -> Any:
        return CliRunner().invoke(app, ["endpoint", *words], catch_exceptions=False)

    assert typed("traffic", f"{blue}=80", f"{green}=20").exit_code == 0
    world.idle()
    shown = typed("status").output
    assert "held: traffic was set by hand" in shown and "wanted" in shown
    found = json.loads(typed("status", "--json").output)
    assert {each["name"]: each["traffic"] for each in found["deployments"]} == {blue: 80, green: 20}
    with pytest.raises(BadInput, match="wanted <deployment>=<percent>"):
        typed("traffic", blue)
    assert typed("release").exit_code == 0
