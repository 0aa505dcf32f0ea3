"""What is in memory: loaded and unloaded by hand, kept for a way back, bounded by a budget; and what keeps a model out."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dropforge.domain.endpoints import Deployment, Desired, ReplicaState
from dropforge.domain.errors import BadInput, DropforgeError, NotFound, Refused, Unavailable
from dropforge.serving.converge import Converger
from dropforge.serving.memory import Budget
from dropforge.serving.models import Model, fetch_file
from dropforge.serving.provider import CPU
from dropforge.serving.repository import Repository
from dropforge.serving.slots import Slot, line_up
from tests.unit.serving import onnx_models
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_server import Store, until

KIB = 1024


class Files(Store):
    """A store whose golden requests are files, and that counts what is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[int] = []

    def want(self, endpoint: str, revision: int, *deployments: Deployment, signature: str = "same") -> None:
        desired = Desired(endpoint, revision, deployments, datetime.now(UTC), signature=signature)
        self.pending = {**self.pending, endpoint: desired}

    def fetch(self, deployment: Deployment, keep: Any) -> Path:
        self.fetched.append(deployment.version)
        return super().fetch(deployment, keep)

    def read(self, uri: str, limit_bytes: int) -> bytes:
        return fetch_file(uri).read_bytes()


class Slow(Files):
    """A store that keeps who fetches or reports waiting until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.reporting = threading.Event(), threading.Event()

    def fetch(self, deployment: Deployment, keep: Any) -> Path:
        path = super().fetch(deployment, keep)
        assert self.go_on.wait(10)
        return path

    def report(self, state: ReplicaState) -> None:
        self.reporting.set()
        assert self.go_on.wait(10)
        super().report(state)


class Exact(Budget):
    """Counts models by their files, which no other test's memory can change."""

    def loaded(self, model: Model, file_bytes: int, before: tuple[int, int | None]) -> None:
        super().loaded(model, file_bytes, before)
        model.memory_bytes = file_bytes

    def wanted_bytes(self, deployment: Deployment, file_bytes: int) -> int:
        return file_bytes


@asynccontextmanager
async def converging(store: Store, budget: Budget | None = None, **options: Any) -> AsyncIterator[Converger]:
    converger = Converger(store, "r1", 0.005, CPU, budget, **options)
    task = asyncio.create_task(converger.run())
    try:
        yield converger
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await converger.close()


async def serving(converger: Converger, revision: int, endpoint: str = "flights") -> Slot:
    def there() -> bool:
        slot = converger.slots.get(endpoint)
        return slot is not None and slot.lineup is not None and slot.lineup.revision == revision

    await until(there)
    return converger.slots[endpoint]


async def failed(converger: Converger, message: str, endpoint: str = "flights") -> Slot:
    await until(lambda: endpoint in converger.slots and message in (converger.slots[endpoint].error or ""))
    return converger.slots[endpoint]


def heavy(factor: float, kib: int = 512) -> bytes:
    """x [N, 3] -> y = x * factor, in a file of that size."""
    ballast = np.zeros(kib * KIB // 4, np.float32)
    return onnx_models.model(
        [
            helper.make_node("ReduceMax", ["ballast"], ["nothing"], keepdims=0),
            helper.make_node("Mul", ["x", "k"], ["scaled"]),
            helper.make_node("Add", ["scaled", "nothing"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["N", 3])},
        {"y": (TensorProto.FLOAT, ["N", 3])},
        [
            helper.make_tensor("ballast", TensorProto.FLOAT, [ballast.size], ballast.tobytes(), raw=True),
            helper.make_tensor("k", TensorProto.FLOAT, [], [factor]),
        ],
    )


# ---------------------------------------------------------------------------------------------------- a way back
def test_to_roll_back_is_to_load_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        first, second = (deployment(tmp_path, onnx_models.scaled(i), i) for i in (1, 2))
        async with converging(store) as converger:
            for revision, each in enumerate((first, second), start=1):
                store.want("flights", revision, each)
                await serving(converger, revision)
            model = converger.slots["flights"].previous[0]
            store.fetched.clear()
            os.unlink(first.uri.removeprefix("file://"))
            store.want("flights", 3, first)
            slot = await serving(converger, 3)
            assert (store.fetched, slot.lineup and slot.lineup.models) == ([], (model,))
            assert slot.detail["kept_v1"] == "was still in memory"
            # And forth again.
            store.want("flights", 4, second)
            await serving(converger, 4)
            assert store.fetched == []

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_what_is_kept_for_a_way_back_is_freed_in_time_and_not_on_the_event_loop(tmp_path: Path, seconds: float) -> None:
    async def scenario() -> None:
        store = Files()
        freed: list[str] = []
        async with converging(store, keep_previous_seconds=seconds) as converger:
            store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
            slot = await serving(converger, 1)
            assert slot.lineup is not None
            model = slot.lineup.models[0]
            weakref.finalize(model, lambda: freed.append(threading.current_thread().name))
            del model
            store.want("flights", 2, deployment(tmp_path, onnx_models.scaled(2), 2))
            await serving(converger, 2)
            await until(lambda: freed)
        assert freed != ["MainThread"]

    asyncio.run(scenario())


def test_a_lineup_that_is_cleared_holds_no_model(tmp_path: Path) -> None:
    each = deployment(tmp_path, onnx_models.scaled(1), 1)
    lineup, _ = line_up(Desired("flights", 1, (each,), datetime.now(UTC)), (), None)
    model = weakref.ref(lineup.models[0])
    lineup.clear()
    assert model() is None


# ---------------------------------------------------------------------------------------------------- by hand
def test_what_is_unloaded_by_hand_stays_so_until_it_is_loaded_or_desired_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        first = deployment(tmp_path, onnx_models.scaled(1), 1)
        async with converging(store) as converger:
            repository = Repository(converger, 256)
            store.want("flights", 1, first)
            slot = await serving(converger, 1)
            await repository.unload("flights", {"unload_dependents": False})
            with pytest.raises(Unavailable, match="it was unloaded; load it again"):
                slot.here()
            assert repository.index() == [
                {
                    "name": "flights",
                    "version": "1",
                    "state": "UNAVAILABLE",
                    "reason": "it was unloaded; load it again, or publish a newer revision",
                }
            ]
            await until(lambda: "flights" in store.reports and not store.reports["flights"].ready)
            assert "it was unloaded" in store.reports["flights"].detail["not_loaded"]
            # The same again is no other wish.
            store.want("flights", 1, first)
            await until(lambda: not store.pending)
            await asyncio.sleep(0.05)
            assert slot.lineup is None
            await repository.load("flights")
            assert slot.here().versions == ["1"]
            await repository.unload("flights")
            store.want("flights", 2, first)
            await serving(converger, 2)
            assert [each["state"] for each in repository.index(ready=True)] == ["READY"]

    asyncio.run(scenario())


def test_an_endpoint_unloaded_while_it_loads_is_not_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store) as converger:
            store.want("flights", 1, deployment(tmp_path, heavy(1), 1))
            await until(lambda: "flights" in converger.slots)
            await converger.unload("flights")
            await until(lambda: "flights" in store.reports)
            await asyncio.sleep(0.2)
            assert converger.slots["flights"].lineup is None
            assert converger.ready

    asyncio.run(scenario())


def test_an_endpoint_unloaded_while_an_older_revision_loads_waits_for_a_newer_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Slow()
        first, second, third = (deployment(tmp_path, onnx_models.scaled(i), i) for i in (1, 2, 3))
        async with converging(store) as converger:
            store.want("flights", 1, first)
            await until(lambda: store.fetched)
            slot = converger.slots["flights"]
            store.want("flights", 2, second)
            await until(lambda: slot.wanted is not None and slot.wanted.revision == 2)
            await converger.unload("flights")
            store.go_on.set()
            await until(lambda: not converger.changing)
            assert (slot.lineup, slot.held) == (None, 2)
            store.want("flights", 3, third)
            await serving(converger, 3)

    asyncio.run(scenario())


def test_a_load_finds_what_is_desired_meanwhile_and_tells_why_it_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        converger = Converger(store, "r1", 1000.0)
        task = asyncio.create_task(converger.run())
        await until(lambda: converger.ready)
        store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
        await converger.load("flights")
        assert converger.find("flights").here().versions == ["1"]
        store.want("flights", 2, deployment(tmp_path, onnx_models.scaled(2), 2, sha256="0" * 64))
        with pytest.raises(BadInput, match="wanted sha256 0000"):
            await converger.load("flights")
        assert converger.find("flights").here().versions == ["1"]
        with pytest.raises(NotFound, match=r"unknown model 'weather'; choose from \['flights'\]"):
            await converger.load("weather")
        store.pending = {"flights": None}
        with pytest.raises(NotFound):
            await converger.load("flights")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await converger.close()

    asyncio.run(scenario())


def test_parameters_bring_no_model_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        repository = Repository(Converger(Files(), "r1", 1.0), 256)
        with pytest.raises(BadInput, match=r"load takes no parameters here, found \['config'\]"):
            await repository.load("flights", {"config": "{}"})
        with pytest.raises(BadInput, match=r"takes the parameter `unload_dependents`, found \['now'\]"):
            await repository.unload("flights", {"now": True})

    asyncio.run(scenario())


def test_an_order_that_would_reach_one_of_several_processes_is_refused() -> None:
    async def scenario() -> None:
        repository = Repository(Converger(Files(), "r1", 1.0), 256, alone=False)
        for order in (repository.load, repository.unload):
            with pytest.raises(Refused, match="an order would reach one of them"):
                await order("flights")

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------- reports
def test_a_report_that_is_on_its_way_when_the_replica_ends_is_taken_away(tmp_path: Path) -> None:
    store = Slow()

    async def scenario() -> None:
        async with converging(store):
            store.want("flights", 1)
            await until(store.reporting.is_set)
            asyncio.get_running_loop().call_later(0.05, store.go_on.set)

    asyncio.run(scenario())
    assert store.reports == {}


# ---------------------------------------------------------------------------------------------------- memory
def test_a_load_tells_what_it_took(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store) as converger:
            store.want("flights", 1, deployment(tmp_path, heavy(1, kib=2048), 1))
            slot = await serving(converger, 1)
            assert slot.lineup is not None
            assert "of a file of 2.0 MiB; resident" in slot.detail["memory_v1"]
            assert slot.lineup.models[0].memory_bytes >= 2048 * KIB

    asyncio.run(scenario())


def test_a_swap_that_does_not_fit_says_so_before_it_starts(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store, Exact(1000 * KIB)) as converger:
            store.want("flights", 1, deployment(tmp_path, heavy(1), 1))
            slot = await serving(converger, 1)
            lineup = slot.lineup
            # Large enough to be no model at all: it is not even looked into.
            path = tmp_path / "large.onnx"
            path.write_bytes(b"x" * 800 * KIB)
            store.want("flights", 2, replace(deployment(tmp_path, heavy(2), 2), uri=path.as_uri()))
            await failed(converger, "no room for flights v2: wants about 0 MiB")
            assert slot.lineup is lineup

    asyncio.run(scenario())


def test_endpoints_that_load_at_once_share_one_budget(tmp_path: Path) -> None:
    async def scenario() -> None:
        store, budget = Files(), Exact(1200 * KIB)
        for number in range(4):
            store.want(f"number-{number}", 1, deployment(tmp_path, heavy(number), number))
        async with converging(store, budget) as converger:
            slots = converger.slots
            await until(lambda: converger.ready)
            assert sorted(bool(slot.lineup) for slot in slots.values()) == [False, False, True, True]
            assert budget.used_bytes() <= 1200 * KIB
            # The others are as if they had made room.
            late = next(slot for slot in slots.values() if slot.lineup is None)
            with pytest.raises(Unavailable, match="no room for it at the start"):
                late.here()
            await until(lambda: "are in use" in (late.error or ""))
            for number in range(4, 6):
                store.want(f"number-{number}", 1, deployment(tmp_path, heavy(number), number))
            await until(lambda: len(slots) == 6 and all(slots[f"number-{n}"].error for n in (4, 5)))

    asyncio.run(scenario())


def test_what_rests_since_the_start_is_loaded_once_it_is_asked_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        store, budget = Files(), Exact(1200 * KIB)
        for number in range(3):
            store.want(f"number-{number}", 1, deployment(tmp_path, heavy(number), number))
        async with converging(store, budget, idle_seconds=0.0) as converger:
            slots = converger.slots
            await until(lambda: converger.ready)
            await until(lambda: sum(slot.lineup is None for slot in slots.values()) == 1)
            late = next(slot for slot in slots.values() if slot.lineup is None)
            with pytest.raises(Unavailable):
                late.here()
            await serving(converger, 1, late.endpoint)
            assert budget.used_bytes() <= 1200 * KIB

    asyncio.run(scenario())


def test_a_model_that_would_never_fit_keeps_the_server_from_being_ready(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        store.want("small", 1, deployment(tmp_path, heavy(1), 1))
        store.want("large", 1, deployment(tmp_path, heavy(2, kib=2048), 2))
        async with converging(store, Exact(1200 * KIB)) as converger:
            await failed(converger, "no room for", "large")
            assert not converger.ready

    asyncio.run(scenario())


def test_what_is_unloaded_or_taken_away_before_its_turn_is_not_fetched_and_the_next_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Slow()
        async with converging(store, Exact(4000 * KIB)) as converger:
            store.want("first", 1, deployment(tmp_path, heavy(1), 1))
            await until(lambda: store.fetched)
            for number, endpoint in enumerate(("second", "third", "fourth"), start=2):
                store.want(endpoint, 1, deployment(tmp_path, heavy(number), number))
            await until(lambda: converger.changing == 4)
            await converger.unload("second")
            store.pending = {"third": None}
            await until(lambda: "third" not in converger.slots)
            store.go_on.set()
            await serving(converger, 1, "fourth")
            assert set(store.fetched) == {1, 4}

    asyncio.run(scenario())


def test_a_model_that_is_refused_leaves_memory_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        store, budget = Files(), Exact(4000 * KIB)
        async with converging(store, budget) as converger:
            store.want("flights", 1, deployment(tmp_path, heavy(1), 1))
            await serving(converger, 1)
            used = budget.used_bytes()
            wrong = replace(deployment(tmp_path, heavy(2), 2), golden=golden(tmp_path, [9, None, 9]))
            store.want("flights", 2, wrong)
            await failed(converger, "answers golden request 0 otherwise")
            await until(lambda: budget.used_bytes() == used)
            with pytest.raises(BadInput, match="answers golden request 0 otherwise"):
                await converger.load("flights")
            await until(lambda: budget.used_bytes() == used)

    # The server lets the collector run so seldom that it is no help.
    gc.disable()
    try:
        asyncio.run(scenario())
    finally:
        gc.enable()


def test_an_idle_endpoint_makes_room_and_comes_back_when_it_is_asked(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store, Exact(1200 * KIB), idle_seconds=0.0) as converger:
            for number, endpoint in enumerate(("first", "second", "third"), start=1):
                store.want(endpoint, 1, deployment(tmp_path, heavy(number), number))
                await serving(converger, 1, endpoint)
            # Two fit; the one that nobody asked for longest has gone.
            first, second = converger.slots["first"], converger.slots["second"]
            assert (first.lineup, second.lineup is not None) == (None, True)
            # Still what it was, for whoever deploys.
            state = first.state("r1", datetime.now(UTC))
            assert (state.ready, state.revision, state.versions) == (True, 1, (1,))
            assert "made room" in state.detail["not_loaded"]
            with pytest.raises(Unavailable, match="it made room for others; it is being loaded again"):
                first.here()
            await serving(converger, 1, "first")
            await until(lambda: second.lineup is None)
            assert converger.slots["third"].lineup is not None

    asyncio.run(scenario())


def test_who_is_in_use_makes_no_room(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store, Exact(600 * KIB), idle_seconds=1000.0) as converger:
            store.want("first", 1, deployment(tmp_path, heavy(1), 1))
            await serving(converger, 1, "first")
            store.want("second", 1, deployment(tmp_path, heavy(2), 2))
            await failed(converger, "no room for flights v2", "second")
            assert converger.slots["first"].lineup is not None
            # What is unloaded by hand is room at the next try.
            await converger.unload("first")
            await serving(converger, 1, "second")

    asyncio.run(scenario())


def test_a_version_without_traffic_goes_before_one_with_and_comes_back_when_it_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store, Exact(1200 * KIB), idle_seconds=0.0) as converger:
            store.want("first", 1, deployment(tmp_path, heavy(1), 1), deployment(tmp_path, heavy(2), 2, traffic=0))
            slot = await serving(converger, 1, "first")
            store.want("second", 1, deployment(tmp_path, heavy(3), 3))
            await serving(converger, 1, "second")
            lineup = slot.here()
            assert lineup.versions == ["1"]
            assert lineup.choose(None).deployment.version == 1
            assert {(each["version"], each["state"]) for each in Repository(converger, 256).index()} == {
                ("1", "READY"),
                ("2", "UNAVAILABLE"),
                ("3", "READY"),
            }
            with pytest.raises(Unavailable, match="version '2' made room for others; it is being loaded again"):
                lineup.version("2")
            await until(lambda: slot.lineup is not None and slot.lineup.versions == ["1", "2"])
            assert converger.slots["second"].lineup is None

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------- bad files
def unsupported_opset() -> bytes:
    proto = helper.make_model(_graph("Identity"), opset_imports=[helper.make_opsetid("", 999)], ir_version=9)
    return bytes(proto.SerializeToString())


def unknown_op() -> bytes:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
    proto = helper.make_model(_graph("Guess", domain="my.ops"), opset_imports=imports, ir_version=9)
    return bytes(proto.SerializeToString())


def outside_data() -> bytes:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "../../etc/hostname", "offset": "0", "length": "12"}.items():
        weights.external_data.add(key=key, value=value)
    return onnx_models.model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        {"x": (TensorProto.FLOAT, ["N", 3])},
        {"y": (TensorProto.FLOAT, ["N", 3])},
        [weights],
    )


def _graph(kind: str, **more: Any) -> Any:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    return helper.make_graph([helper.make_node(kind, ["x"], ["y"], **more)], "g", [x], [y])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unsupported_opset, "does not load"),
        (unknown_op, "does not load"),
        (outside_data, "does not load"),
        (lambda: heavy(2)[:-1000], "does not load"),
        (lambda: heavy(2)[:3], "does not load"),
        (lambda: b"", "does not load"),
    ],
)
def test_no_file_disturbs_what_serves(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store) as converger:
            store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
            slot = await serving(converger, 1)
            lineup = slot.lineup
            store.want("flights", 2, deployment(tmp_path, make(), 2))
            await failed(converger, message)
            assert slot.lineup is lineup
            assert slot.here().models[0].run(["y"], {"x": np.ones((1, 3), np.float32)})[0].tolist() == [[1, 1, 1]]

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------- golden requests
def golden(tmp_path: Path, y: list[float | None], **more: Any) -> str:
    tensor = {"datatype": "FP32", "shape": [1, 3]}
    request = {
        "inputs": [{"name": "x", "data": [1, None, 3], **tensor}],
        "outputs": [{"name": "y", "data": y, **tensor, **more}],
    }
    path = tmp_path / "golden.json"
    path.write_text(json.dumps({"requests": [request]}))
    return path.as_uri()


def test_a_model_that_answers_as_where_it_was_judged_is_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store) as converger:
            each = deployment(tmp_path, onnx_models.scaled(2), 1)
            store.want("flights", 1, replace(each, golden=golden(tmp_path, [2.0001, None, 6])))
            slot = await serving(converger, 1)
            assert slot.detail["golden_v1"] == "answered 1 golden rows as where it was judged"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("y", "more", "message"),
    [
        ([2, None, 6.1], {}, r"answers golden request 0 otherwise: output 'y' is 6.0 at \[0, 2\], wanted 6.09"),
        ([2, 4, 6], {}, r"output 'y' is nan at \[0, 1\], wanted 4.0"),
        ([2, None], {"shape": [1, 2]}, r"output 'y' has shape \[1, 3\], wanted \[1, 2\]"),
        ([2, None, 6], {"name": "z"}, r"tells the outputs \['z'\]; flights v2 has \['y'\]"),
        ([2, None, 6, 7], {}, "wants 3 values in `data`, found 4"),
    ],
)
def test_a_model_that_answers_otherwise_is_not(
    tmp_path: Path, y: list[float | None], more: dict[str, Any], message: str
) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store) as converger:
            store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
            slot = await serving(converger, 1)
            each = deployment(tmp_path, onnx_models.scaled(2), 2)
            store.want("flights", 2, replace(each, golden=golden(tmp_path, y, **more)))
            await until(lambda: slot.error)
            with pytest.raises(BadInput, match=message):
                raise BadInput(slot.error or "")
            assert slot.here().versions == ["1"]

    asyncio.run(scenario())


@pytest.mark.parametrize("content", ["", "[]", '{"requests": [{"inputs": 1, "outputs": []}]}'])
def test_golden_requests_that_are_none_keep_a_model_out(tmp_path: Path, content: str) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store) as converger:
            path = tmp_path / "golden.json"
            path.write_text(content)
            each = replace(deployment(tmp_path, onnx_models.scaled(2), 1), golden=path.as_uri())
            store.want("flights", 1, each)
            slot = await failed(converger, "golden request")
            assert slot.lineup is None

    asyncio.run(scenario())


# ---------------------------------------------------------------------------------------------------- signatures
def test_what_callers_send_must_go_on_to_be_taken_unless_somebody_wants_it_otherwise(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store) as converger:
            store.want("flights", 1, deployment(tmp_path, onnx_models.scaled(1), 1))
            await serving(converger, 1)
            wider = deployment(tmp_path, onnx_models.scaled(2, width=4), 2)
            store.want("flights", 2, wider)
            slot = await failed(converger, "flights v2 does not take the requests of flights v1, which serves: input x")
            assert slot.here().versions == ["1"]
            store.want("flights", 3, wider, signature="any")
            await serving(converger, 3)
            assert slot.detail["signature"].startswith("inputs changed from")

    asyncio.run(scenario())


def test_waiting_for_a_load_ends_with_the_endpoint(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = Files()
        async with converging(store) as converger:
            store.want("flights", 1, deployment(tmp_path, heavy(1), 1))
            await until(partial(converger.slots.get, "flights"))
            loading = asyncio.create_task(converger.load("flights"))
            await asyncio.sleep(0)
            store.pending = {"flights": None}
            try:
                async with asyncio.timeout(10):
                    await loading
            except DropforgeError as error:
                assert isinstance(error, NotFound)

    asyncio.run(scenario())
