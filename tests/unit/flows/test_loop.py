"""The loop closes: flows and steps that ship, in a world in memory."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.bundle import is_executable
from dropforge.domain.arrivals import ArrivalState
from dropforge.domain.causes import Cause
from dropforge.domain.endpoints import PROVISIONING, Desired, ReplicaState
from dropforge.domain.errors import BadInput, Conflict, NotFound, Refused
from dropforge.domain.runs import RunOutcome, RunState
from dropforge.domain.verdicts import BlockScore, Evidence
from dropforge.steps import approvals, books, deploy, intake, pipelines, reports, storage, train
from dropforge.wire import to_json
from tests.bundles import packed
from tests.unit.flows.world import YAML, World, blob_created, bundle_of

GOOD = "x,y\n1,0\n2,1\n"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_dropped_file_becomes_a_version_a_run_a_model_and_the_answer(world: World) -> None:
    world.drop("demo/a.csv")
    world.run()
    assert world.manifests() == [["demo/a.csv"]]
    assert [run.outcome for run in world.runs()] == [RunOutcome.PROMOTED]
    assert world.champion() == 1
    desired = world.serving.desired("demo")
    assert desired is not None and [each.version for each in desired.deployments] == [1]
    assert not any(instance.alive for instance in world.instances.values())


def test_files_that_come_within_the_quiet_period_become_one_version(world: World) -> None:
    world.drop("demo/a.csv")
    world.run(timedelta(seconds=5))
    world.now += timedelta(seconds=5)
    world.drop("demo/b.csv")
    world.run()
    assert world.manifests() == [["demo/a.csv", "demo/b.csv"]]


def test_a_steady_trickle_is_cut_after_max_wait(world: World) -> None:
    for n in range(12):
        if n:
            world.run(timedelta(seconds=9))
            world.now = max(world.now, world.now)
        world.drop(f"demo/{n:02}.csv")
        world.now += timedelta(seconds=9)
    world.run()
    # max_files is 3, so no version holds more; nothing is lost, and nothing is in two.
    assert sorted(path for files in world.manifests() for path in files) == [f"demo/{n:02}.csv" for n in range(12)]
    assert max(len(files) for files in world.manifests()) <= 3


def test_a_full_batch_does_not_wait_for_quiet(world: World) -> None:
    begun = world.now
    world.drop("demo/a.csv")
    world.run(timedelta(seconds=1))
    for name in "bc":
        world.drop(f"demo/{name}.csv")
    world.run(timedelta(seconds=2))
    assert world.manifests() == [["demo/a.csv", "demo/b.csv", "demo/c.csv"]]
    assert world.now - begun < timedelta(seconds=10)


def test_a_wake_up_that_a_crash_swallowed_is_given_again_by_the_sweep(world: World) -> None:
    world.drop("demo/a.csv")
    world.run(timedelta(seconds=1))
    for name in "bc":
        drop = world.drops.write(f"demo/{name}.csv", GOOD.encode())
        # The door wrote the arrival and that the batch is full, and died before it told the flow.
        storage.heed(world.ports, [blob_created(drop.url, drop.etag, drop.size_bytes)], "drops", world.now)
    world.run(timedelta(seconds=2))
    assert world.manifests() == []
    world.sweep()
    world.run(timedelta(seconds=2))
    assert world.manifests() == [["demo/a.csv", "demo/b.csv", "demo/c.csv"]]


def test_an_event_told_five_times_is_one_arrival(world: World) -> None:
    world.drop("demo/a.csv", announce=5)
    world.run()
    url = world.drop("demo/b.csv", announce=1)
    world.run()
    drop = next(each for each in world.drops.list("drops", "demo/") if each.url == url)
    world.tell(blob_created(drop.url, f'"{drop.etag}"', drop.size_bytes))  # hours late, etag in quotes
    world.run()
    assert world.manifests() == [["demo/a.csv"], ["demo/b.csv"]]
    assert len(list(books.every(world.ports.ledger, "p.demo", "arrival/"))) == 2


def test_a_file_whose_event_was_lost_is_found_by_the_sweep(world: World) -> None:
    world.drop("demo/a.csv", announce=0)
    world.drop("elsewhere/b.csv", announce=1)
    world.run()
    assert world.manifests() == []
    world.sweep()
    world.run()
    assert world.manifests() == [["demo/a.csv"]]


def test_a_name_without_content_and_other_events_start_nothing(world: World) -> None:
    url = "https://local.blob.localhost/drops/demo/a.csv"
    world.tell(
        blob_created(url, "0x1", 0, api="CreateFile"),
        {"id": "1", "eventType": "Microsoft.Storage.BlobDeleted", "data": {"url": url}},
        blob_created("https://local.blob.localhost/other/demo/a.csv", "0x1", 9),
        blob_created("nonsense", "0x1", 1),
    )
    assert world.started == []
    assert books.head(world.ports.ledger, "p.demo").value["batch"] == 0


def test_a_file_written_over_before_it_was_read_is_superseded(world: World) -> None:
    world.drop("demo/a.csv", "x,y\n9,9\n")
    world.drop("demo/a.csv", GOOD)
    world.run()
    states = {each["state"] for each in reports.arrivals(world.ports, "demo")[0]}
    assert states == {ArrivalState.SUPERSEDED.value, ArrivalState.ACCEPTED.value}
    assert world.manifests() == [["demo/a.csv"]]


def test_a_bad_file_is_quarantined_whole_and_the_rest_goes_on(world: World) -> None:
    world.drop("demo/a.csv")
    world.drop("demo/bad.csv", "x,z\n1,2\n")
    world.run()
    assert world.manifests() == [["demo/a.csv"]]
    status = reports.status(world.ports, "demo")
    (bad,) = status["quarantined"]
    assert "y" in bad["reason"]
    report = reports.quarantine(world.ports, "demo", bad["id"])
    assert report["problems"][0]["message"]
    assert world.events.of("FileQuarantined")


def test_a_quarantined_file_is_put_back_after_the_fix_even_when_the_drop_is_gone(world: World) -> None:
    world.drop("demo/a.csv")
    world.run()
    world.drop("demo/bad.csv", "x,z\n1,2\n")
    world.run()
    assert world.manifests() == [["demo/a.csv"]]
    world.drops.remove("demo/bad.csv")
    fixed = YAML.replace("label: y", "label: y\n  columns: [{name: y, nullable: true}]")
    pipelines.apply(world.ports, "demo", bundle_of({"pipeline.yaml": fixed, "train.py": "1"}), world.now)
    again = intake.replay(world.ports, "demo", None, world.now)
    assert len(again["replayed"]) == 1
    world.start(again["start"])
    world.run()
    # Still without its label column: quarantined again, with a second report, and still not lost.
    (bad,) = reports.status(world.ports, "demo")["quarantined"]
    assert bad["report"].endswith("-1.json")
    assert intake.replay(world.ports, "demo", bad["id"], world.now)["replayed"] == [bad["id"]]


def test_a_file_put_back_while_its_batch_is_still_open_is_in_the_next_one(world: World) -> None:
    world.drop("demo/a.csv")
    world.drop("demo/bad.csv", "x,z\n1,2\n")
    number = intake.cut_batch(world.ports, "demo", world.now)
    assert number == 1
    intake.check_batch(world.ports, "demo", number, world.now)
    world.now += timedelta(seconds=1)
    (bad,) = intake.replay(world.ports, "demo", None, world.now)["replayed"]
    intake.write_version(world.ports, "demo", number, world.now)
    waiting = [row.value["id"] for row in world.ports.ledger.scan("p.demo", "pending/")]
    assert waiting == [bad]
    world.run()
    assert [each["id"] for each in reports.status(world.ports, "demo")["quarantined"]] == [bad]
    assert world.manifests() == [["demo/a.csv"]]
    assert world.ports.ledger.scan("p.demo", "pending/") == []


def test_a_batch_of_bad_files_makes_no_version_and_no_run(world: World) -> None:
    world.drop("demo/bad.csv", "nonsense\n")
    world.run()
    assert world.head()["version"] == 0
    assert world.runs() == []
    world.drop("demo/a.csv")
    world.run()
    assert world.manifests() == [["demo/a.csv"]]


# ------------------------------------------------------------------------------------------------ training
def test_drops_during_a_run_become_the_next_run_and_never_two_at_once(world: World) -> None:
    world.trainer = None
    world.drop("demo/a.csv")
    world.run(timedelta(minutes=5))
    for name in "bcde":
        world.drop(f"demo/{name}.csv")
        world.run(timedelta(minutes=2))
    assert [each.run for each in world.compute.submitted] == [world.runs()[0].spec.run]
    assert world.head()["version"] == 5
    world.trainer = lambda w, run: w.succeed(run, better=True)
    world.succeed(world.compute.submitted[0].run, better=True)
    world.run()
    assert [run.spec.dataset_version for run in world.runs()] == [1, 5]
    assert world.champion() == 2


def test_a_challenger_that_is_worse_is_registered_and_not_promoted(world: World) -> None:
    world.drop("demo/a.csv")
    world.run()
    world.trainer = lambda w, run: w.succeed(run, better=False)
    world.drop("demo/b.csv")
    world.run()
    assert [run.outcome for run in world.runs()] == [RunOutcome.PROMOTED, RunOutcome.KEPT_CHAMPION]
    assert [each["version"] for each in reports.models(world.ports, "demo")[0]] == [2, 1]
    assert world.champion() == 1


def test_a_failed_run_says_why_and_the_pipeline_goes_on(world: World) -> None:
    world.trainer = lambda w, run: w.compute.fail(run, "the training command exited with code 1: ValueError: no")
    world.drop("demo/a.csv")
    world.run()
    (failed,) = world.runs()
    assert (failed.state, failed.outcome) == (RunState.FAILED, RunOutcome.NO_MODEL)
    assert "ValueError: no" in str(reports.status(world.ports, "demo")["runs"][0]["reason"])
    world.trainer = lambda w, run: w.succeed(run, better=True)
    world.drop("demo/b.csv")
    world.run()
    assert world.champion() == 1


def test_new_code_is_trained_on_the_data_that_is_there(world: World) -> None:
    world.trainer = lambda w, run: w.compute.fail(run, "exit 1")
    world.drop("demo/a.csv")
    world.run()
    world.trainer = lambda w, run: w.succeed(run, better=True)
    applied = pipelines.apply(world.ports, "demo", bundle_of({"pipeline.yaml": YAML, "train.py": "2"}), world.now)
    assert [flow["flow"] for flow in applied["start"]] == ["train"]
    for flow in applied["start"]:
        world.start(flow)
    world.run()
    assert [run.spec.dataset_version for run in world.runs()] == [1, 1]
    assert world.champion() == 1
    # Back to the first code: that has been tried on this version.
    back = pipelines.apply(world.ports, "demo", bundle_of({"pipeline.yaml": YAML, "train.py": "1"}), world.now)
    for flow in back["start"]:
        world.start(flow)
    world.run()
    assert len(world.runs()) == 2


def test_the_days_budget_delays_a_run_and_loses_none(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + "budget: {runs_per_day: 2}\n")
    for name in "abc":
        world.drop(f"demo/{name}.csv")
        world.run(timedelta(hours=1))
    assert len(world.runs()) == 2
    world.run(timedelta(days=2))
    assert [run.spec.dataset_version for run in world.runs()] == [1, 2, 3]


def test_a_larger_budget_is_heard_by_a_flow_that_waits_for_it(tmp_path: Path) -> None:
    world = World(tmp_path, YAML + "budget: {runs_per_day: 1}\n")
    for name in "ab":
        world.drop(f"demo/{name}.csv")
        world.run(timedelta(hours=1))
    assert len(world.runs()) == 1
    more = bundle_of({"pipeline.yaml": YAML + "budget: {runs_per_day: 5}\n", "train.py": "1"})
    for flow in pipelines.apply(world.ports, "demo", more, world.now)["start"]:
        world.start(flow)
    world.run(timedelta(hours=1))
    assert [run.spec.dataset_version for run in world.runs()] == [1, 2]


# ------------------------------------------------------------------------------------------------ deployment
def test_a_replica_that_cannot_load_the_model_rolls_it_back(world: World) -> None:
    world.drop("demo/a.csv")
    world.run()

    def broken(desired: Desired) -> ReplicaState:
        if desired.deployments and desired.deployments[0].version == 2:
            return world.report(desired, desired.revision - 1, error="model.onnx: sha256 differs")
        return world.serves(desired)

    world.replica = broken
    world.drop("demo/b.csv")
    world.run()
    assert world.runs()[-1].outcome is RunOutcome.ROLLED_BACK
    assert world.champion() == 1
    desired = world.serving.desired("demo")
    assert desired is not None and [each.version for each in desired.deployments] == [1]
    assert "sha256 differs" in reports.status(world.ports, "demo")["endpoint"]["reason"]


def test_no_replica_at_all_is_said_so_after_the_timeout(world: World) -> None:
    world.replica = lambda desired: None
    world.drop("demo/a.csv")
    world.run()
    assert world.runs()[-1].outcome is RunOutcome.ROLLED_BACK
    assert "no replica" in reports.status(world.ports, "demo")["endpoint"]["reason"]
    assert world.champion() is None


BY_HAND = Cause("request-1", "http")


def test_an_older_ledger_beside_newer_artifacts_is_told_and_not_tried_without_end(world: World) -> None:
    world.ports.artifacts.put("datasets/demo/00000001/manifest.json", b"of other files")
    world.drop("demo/a.csv")
    with pytest.raises(Refused, match="the ledger is older than the artifacts beside it"):
        world.run()
    assert world.runs() == []


@pytest.mark.parametrize(("minutes", "outcome"), [(20, RunOutcome.PROMOTED), (60, RunOutcome.ROLLED_BACK)])
def test_what_is_still_provisioned_is_waited_for_longer_but_not_for_ever(
    world: World, minutes: int, outcome: RunOutcome
) -> None:
    begun = world.now

    def slow(desired: Desired) -> ReplicaState:
        state = world.serves(desired)
        if world.now - begun >= timedelta(minutes=minutes):
            return state
        return replace(state, revision=0, ready=False, detail={PROVISIONING: "the deployment is being made"})

    world.replica = slow
    world.drop("demo/a.csv")
    world.run()
    assert [run.outcome for run in world.runs()] == [outcome]
    assert world.now - begun >= timedelta(minutes=min(minutes, 45))


def test_rolling_back_by_hand_puts_the_champion_before_back(world: World) -> None:
    for name in "ab":
        world.drop(f"demo/{name}.csv")
        world.run()
    assert world.champion() == 2
    world.start(deploy.by_hand(world.ports, "demo", None, token="1", cause=BY_HAND))
    world.run()
    assert world.champion() == 1
    world.start(deploy.by_hand(world.ports, "demo", 2, token="2", cause=BY_HAND))
    world.run()
    assert world.champion() == 2
    with pytest.raises(NotFound):
        deploy.by_hand(world.ports, "demo", 9, token="3", cause=BY_HAND)


def test_there_is_nothing_to_roll_back_to_at_first(world: World) -> None:
    with pytest.raises(Refused, match="no earlier champion"):
        deploy.by_hand(world.ports, "demo", None, token="4", cause=BY_HAND)


def test_a_promotion_is_refused_when_another_champion_was_named_meanwhile(world: World) -> None:
    for name in "ab":
        world.drop(f"demo/{name}.csv")
        world.run()
    world.trainer = None
    world.drop("demo/c.csv")
    world.run(timedelta(minutes=1))
    world.start(deploy.by_hand(world.ports, "demo", 1, token="5", cause=BY_HAND))
    world.run(timedelta(minutes=1))
    world.succeed(world.compute.submitted[-1].run, better=True)
    world.run()
    assert world.runs()[-1].outcome is RunOutcome.ROLLED_BACK
    assert world.champion() == 1


# ------------------------------------------------------------------------------------------------ questions
ASK = YAML + "gate: {first: ask, ask_timeout: 1h}\n"


@pytest.mark.parametrize(("given", "champion"), [("approve", 1), ("reject", None)])
def test_a_person_is_asked_and_the_answer_counts(tmp_path: Path, given: str, champion: int | None) -> None:
    world = World(tmp_path, ASK)
    world.drop("demo/a.csv")
    world.run(timedelta(minutes=5))
    (question,) = reports.status(world.ports, "demo")["questions"]
    assert world.champion() is None
    wake = approvals.answer(world.ports, "demo", question["run"], given, "ada", world.now)
    world.raise_event(wake["flow"], wake["event"])
    world.run()
    assert world.champion() == champion
    with pytest.raises(Refused, match="by ada"):
        other = "reject" if given == "approve" else "approve"
        approvals.answer(world.ports, "demo", question["run"], other, "bob", world.now)


def test_a_question_nobody_answers_expires_as_a_rejection(tmp_path: Path) -> None:
    world = World(tmp_path, ASK)
    world.drop("demo/a.csv")
    world.run()
    assert world.runs()[-1].outcome is RunOutcome.REJECTED
    assert reports.status(world.ports, "demo")["questions"] == []


WILD = Evidence("mae", True, "baseline", None, (BlockScore("b", None, 10, 1e101, 0.4),), 1, 1, 0, None, None)


@pytest.mark.parametrize("evidence", [to_json(WILD), b'{"metric": "log_loss"}', b"not JSON"])
def test_a_run_whose_evidence_cannot_be_judged_has_no_model_and_the_next_one_goes_on(
    world: World, evidence: bytes
) -> None:
    world.trainer = lambda world, run: world.compute.succeed(run, model=b"m", evidence=evidence)
    world.drop("demo/a.csv")
    world.run()
    (run,) = world.runs()
    assert (run.state, run.outcome) == (RunState.FAILED, RunOutcome.NO_MODEL)
    assert run.reason is not None and "the evidence of the run cannot be judged" in run.reason
    world.trainer = lambda world, run: world.succeed(run, better=True)
    world.drop("demo/b.csv", "x,y\n3,0\n")
    world.run()
    assert world.runs()[-1].outcome is RunOutcome.PROMOTED


# ------------------------------------------------------------------------------------------------ applying
def test_the_same_folder_applied_again_changes_nothing(world: World) -> None:
    again = pipelines.apply(world.ports, "demo", bundle_of({"train.py": "1", "pipeline.yaml": YAML}), world.now)
    assert again == {"revision": 1, "made": False, "start": []}


def test_a_script_that_is_executable_stays_so_and_one_that_became_it_is_tried(world: World) -> None:
    files = {"pipeline.yaml": YAML.encode(), "train.py": b"1"}
    assert pipelines.apply(world.ports, "demo", packed(files), world.now)["revision"] == 1
    world.drop("demo/a.csv")
    world.run()
    applied = pipelines.apply(world.ports, "demo", packed(files, programs=("train.py",)), world.now)
    assert (applied["revision"], [flow["flow"] for flow in applied["start"]]) == (2, ["train"])
    code = world.ports.artifacts.read(books.pipeline(world.ports.ledger, "demo").code)
    with zipfile.ZipFile(io.BytesIO(code)) as archive:
        assert [info.filename for info in archive.infolist() if is_executable(info)] == ["train.py"]


@pytest.mark.parametrize(
    ("bundle", "says"),
    [
        (b"not a zip", "not a zip file"),
        (bundle_of({"train.py": "1"}), "no pipeline.yaml at its top"),
        (bundle_of({"pipeline.yaml": YAML, "../evil.py": "1"}), "outside its folder"),
        (bundle_of({"pipeline.yaml": YAML.replace("name: demo", "name: other")}), "applied as 'demo'"),
        (bundle_of({"pipeline.yaml": YAML.replace("format", "fromat")}), "fromat"),
    ],
)
def test_a_bundle_that_is_no_pipeline_is_refused_with_the_reason(world: World, bundle: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        pipelines.apply(world.ports, "demo", bundle, world.now)


def test_two_pipelines_cannot_take_files_from_one_folder(world: World) -> None:
    text = YAML.replace("name: demo", "name: second").replace("  format", "  drop: demo/\n  format")
    with pytest.raises(BadInput, match="is where pipeline 'demo' takes its files"):
        pipelines.apply(world.ports, "second", bundle_of({"pipeline.yaml": text}), world.now)


@pytest.mark.parametrize("name", ["second", "third"])
def test_two_pipelines_cannot_serve_from_one_endpoint(world: World, name: str) -> None:
    yaml = YAML + "\ndeployment: {endpoint: third}\n"
    pipelines.apply(world.ports, "demo", bundle_of({"pipeline.yaml": yaml}), world.now)
    text = YAML.replace("name: demo", f"name: {name}")
    text += "\ndeployment: {endpoint: third}\n" if name == "second" else ""
    with pytest.raises(BadInput, match="'third' is where pipeline 'demo' serves its champion"):
        pipelines.apply(world.ports, name, bundle_of({"pipeline.yaml": text}), world.now)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bundle_that_is_damaged_is_refused_or_read_whatever_byte_it_is(world: World, method: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("pipeline.yaml", YAML)
    whole, chance = buffer.getvalue(), random.Random(method)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            pipelines.apply(world.ports, "demo", bytes(damaged), world.now)
        except BadInput:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("target", "targets", "says"),
    [
        ("azureml", ("local",), "target is azureml, and this app trains on local alone"),
        ("databricks", ("azureml",), "target is databricks, and this app trains on azureml alone"),
        ("local", ("azureml", "databricks"), "needs a machine that stays, and this app trains on azureml, databricks"),
        ("azureml", (), "this app has no place to train yet"),
    ],
)
def test_a_pipeline_that_trains_where_the_app_does_not_is_refused(
    world: World, target: str, targets: tuple[str, ...], says: str
) -> None:
    text = YAML.replace("python train.py", f"python train.py\n  compute: {{target: {target}}}")
    bundle = bundle_of({"pipeline.yaml": text, "train.py": "1"})
    with pytest.raises(BadInput, match=says):
        pipelines.apply(world.ports, "demo", bundle, world.now, targets=targets)
    pipelines.apply(world.ports, "demo", bundle, world.now, targets=(target,))
    pipelines.apply(world.ports, "demo", bundle, world.now)


def test_an_unknown_pipeline_is_answered_with_those_there_are(world: World) -> None:
    with pytest.raises(NotFound, match="there are demo"):
        reports.status(world.ports, "dmeo")


def test_why_walks_back_to_every_file(world: World) -> None:
    for name in "ab":
        world.drop(f"demo/{name}.csv")
        world.run()
    told = reports.why(world.ports, "demo", None)
    assert told["model"]["version"] == 2
    assert [each["version"] for each in told["made_of"]] == [1, 2]
    assert reports.manifest(world.ports, "demo", 2)["manifest"]["parent"] == 1


# ------------------------------------------------------------------------------------------------ laws
Told = Callable[[World], None]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_duplicated_reordered_and_lost_events_end_in_the_same_state(tmp_path: Path, data: st.DataObject) -> None:
    world = World(tmp_path)
    events = []
    for n in range(12):
        drop = world.drops.write(f"demo/{n:02}.csv", f"x,y\n{n},0\n1,1\n".encode())
        events.append(blob_created(drop.url, drop.etag, drop.size_bytes))
    for event in data.draw(st.lists(st.sampled_from(events), max_size=40)):
        world.tell(event)
        if data.draw(st.booleans()):
            world.run(timedelta(seconds=data.draw(st.integers(0, 30))))
    world.run()
    world.sweep()
    world.run()
    files = [path for version in world.manifests() for path in version]
    assert sorted(files) == [f"demo/{n:02}.csv" for n in range(12)]
    assert len(list(books.every(world.ports.ledger, "p.demo", "arrival/"))) == 12
    assert not world.ports.ledger.scan("p.demo", "pending/")
    assert len({each.run for each in world.compute.submitted}) == len(world.compute.submitted)


def test_a_host_that_dies_after_every_effect_ends_in_the_same_state(tmp_path: Path) -> None:
    ends = []
    for times in (1, 2, 3):
        world = World(tmp_path)
        world.times = times
        for batch in ("abc", "de", "f"):
            for name in batch:
                world.drop(f"demo/{name}.csv", f"x,y\n{ord(name)},0\n2,1\n")
            world.run()
        ends.append(
            (
                world.manifests(),
                [
                    replace(run, planned_at=world.now, started_at=None, ended_at=None, live_at=None)
                    for run in world.runs()
                ],
                world.champion(),
                world.head(),
            )
        )
        assert len(world.compute.submitted) == 3
    assert [end[0] for end in ends] == [ends[0][0]] * 3
    assert [[run.outcome for run in end[1]] for end in ends] == [[RunOutcome.PROMOTED] * 3] * 3
    assert [end[2:] for end in ends] == [ends[0][2:]] * 3


def test_a_version_is_written_once_by_two_hosts_at_the_same_batch(world: World) -> None:
    world.drop("demo/a.csv")
    number = intake.cut_batch(world.ports, "demo", world.now)
    assert number == intake.cut_batch(world.ports, "demo", world.now) == 1
    intake.check_batch(world.ports, "demo", number, world.now)
    told = [intake.write_version(world.ports, "demo", number, world.now) for _ in range(3)]
    assert told == [{"version": 1}] * 3
    table = world.tables.find("demo", 1)
    assert table is not None and table.rows == 2
    assert train.wake_training(world.ports, "demo") is not None
    with pytest.raises((NotFound, Conflict)):
        intake.write_version(world.ports, "demo", 9, world.now)
