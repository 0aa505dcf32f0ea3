"""What each storage event does to the ledger and to the dataset; the table in docs/storage-events.md, line by line."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.domain.arrivals import Arrival, ArrivalState
from dropforge.domain.errors import Unavailable
from dropforge.ports import Drop, Json
from dropforge.steps import arrivals, books, control, intake, pipelines, storage
from dropforge.wire import from_builtins
from tests.unit.flows.world import World, blob_created

A = "https://local.blob.localhost/drops/demo/a.csv"
B = "https://local.dfs.core.windows.net/drops/demo/b.csv"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def created(drop: Drop, sequencer: int | None = None, **more: Any) -> Json:
    """The event of a write, with its place in the blob's history."""
    event = blob_created(drop.url, drop.etag, drop.size_bytes, **more)
    if sequencer is not None:
        event["data"]["sequencer"] = f"{sequencer:032x}"
    return event


def event(kind: str, sequencer: int | None = None, **data: str) -> Json:
    told = {"id": f"{kind} {data}", "eventType": f"Microsoft.Storage.{kind}", "data": dict(data)}
    if sequencer is not None:
        told["data"]["sequencer"] = f"{sequencer:032x}"  # type: ignore[index]
    return told


def rows(text: str) -> bytes:
    return f"x,y\n{text}\n".encode()


def files(world: World) -> dict[str, list[str]]:
    """The states of the arrivals under each path, oldest first."""
    found: dict[str, list[str]] = {}
    known = [from_builtins(Arrival, row.value) for row in books.every(world.ports.ledger, "p.demo", "arrival/")]
    for each in sorted(known, key=lambda each: (each.arrived_at, each.etag)):
        found.setdefault(each.url.rpartition("/")[2], []).append(each.state.value)
    return found


def gone(world: World, version: int = 1) -> list[tuple[str, str]]:
    batch = books.dataset_version(world.ports.ledger, "p.demo", version).batch
    told = arrivals.gone_of(world.ports.ledger, "p.demo", batch)
    return sorted((each["url"].rpartition("/")[2], each["why"]) for each in told)


def counts(world: World) -> Json:
    told: Json = storage.report(world.ports)["counts"]
    return told


def table_rows(world: World) -> int:
    version = world.head()["version"]
    return books.dataset_version(world.ports.ledger, "p.demo", version).total_rows if version else 0


# ------------------------------------------------------------------------------------------------ announced
def test_one_upload_announced_three_times_is_one_arrival(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    quoted = blob_created(drop.url.replace(".blob.", ".dfs."), f'"{drop.etag}"', drop.size_bytes, "FlushWithClose")
    world.tell(created(drop), quoted, created(drop, api="PutBlockList"))
    world.run()
    assert (files(world), world.manifests()) == ({"a.csv": ["accepted"]}, [["demo/a.csv"]])


def test_a_redelivery_after_success_changes_nothing(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    world.tell(created(drop, 1))
    world.run()
    started = list(world.started)
    for _ in range(3):
        world.tell(created(drop, 1))
    world.run()
    assert (files(world), world.started) == ({"a.csv": ["accepted"]}, started)


def test_a_redelivery_before_the_flow_started_starts_it(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    # The door died between the writing down and the start.
    storage.heed(world.ports, [created(drop)], "drops", world.now)
    world.tell(created(drop))
    world.run()
    assert world.manifests() == [["demo/a.csv"]]


def test_an_event_an_hour_late_brings_its_file_into_the_next_version(world: World) -> None:
    late = world.drops.write("demo/a.csv", rows("1,0"))
    world.drop("demo/b.csv")
    world.run()
    world.now += timedelta(hours=1)
    world.tell(created(late))
    world.run()
    assert world.manifests() == [["demo/b.csv"], ["demo/a.csv"]]


def test_a_lost_event_is_made_up_for_by_reconcile(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    told = world.reconcile()
    assert (told["found"], told["gone"], told["listed"]) == (1, 0, 1)
    world.run()
    world.tell(created(drop, 1))
    assert world.reconcile()["found"] == 0
    world.run()
    assert (files(world), world.manifests()) == ({"a.csv": ["accepted"]}, [["demo/a.csv"]])


def test_a_name_without_content_is_no_arrival_and_its_content_is_one(world: World) -> None:
    world.tell(blob_created(A, "0x1", 0, "SftpCreate"), blob_created(B, "0x1", 0, "CreateFile"))
    assert (files(world), world.started, counts(world)) == ({}, [], {"unfinished": 2})
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    world.tell(created(drop, api="SftpCommit"))
    world.run()
    assert world.manifests() == [["demo/a.csv"]]


def test_an_empty_put_blob_is_an_upload_that_has_begun_until_reconcile_finds_that_it_stayed_so(world: World) -> None:
    drop = world.drops.write("demo/a.csv", b"")
    world.tell(blob_created(drop.url, drop.etag, 0, "PutBlob"))
    assert (files(world), world.reconcile()["found"]) == ({}, 0)
    world.now += timedelta(minutes=2)
    assert world.reconcile()["found"] == 1
    world.run()
    assert files(world) == {"a.csv": ["quarantined"]}


def test_a_file_dropped_while_its_pipeline_is_paused_waits_and_is_in_the_next_version(world: World) -> None:
    control.pause(world.ports, "demo", "ada", "wrong units", world.now)
    world.drop("demo/a.csv")
    world.run()
    assert (files(world), world.started, world.manifests()) == ({"a.csv": ["pending"]}, [], [])
    for flow in pipelines.resume(world.ports, "demo"):
        world.start(flow)
    world.run()
    assert world.manifests() == [["demo/a.csv"]]


def test_the_url_is_where_a_file_is_whatever_the_subject_says(world: World, caplog: pytest.LogCaptureFixture) -> None:
    storage._tell_disagreement.cache_clear()
    for name in "ab":
        drop = world.drops.write(f"demo/{name}.csv", rows(f"{name == 'a':d},0"))
        world.tell({**created(drop), "subject": f"/blobServices/default/containers/dro-ps/blobs/demo/{name}.csv"})
    world.run()
    assert world.manifests() == [["demo/a.csv", "demo/b.csv"]]
    assert [record.message for record in caplog.records if "dro-ps" in record.message] != []
    assert sum("dro-ps" in record.message for record in caplog.records) == 1


def test_events_of_other_places_are_counted_and_not_looked_at(world: World) -> None:
    world.tell(
        blob_created("https://stranger.blob.core.windows.net/drops/demo/a.csv", "0x1", 9),
        blob_created("https://local.blob.localhost/other/demo/a.csv", "0x1", 9),
        blob_created("https://local.blob.localhost/drops/nobody/a.csv", "0x1", 9),
        event("BlobDeleted", url="https://stranger.blob.core.windows.net/drops/demo/a.csv"),
    )
    assert (files(world), counts(world)) == ({}, {"elsewhere": 4, "deleted": 1})


# ------------------------------------------------------------------------------------------------ written again
def test_a_file_written_over_before_the_batch_was_cut_is_taken_in_once_as_it_is_now(world: World) -> None:
    first = world.drops.write("demo/a.csv", rows("1,0"))
    world.tell(created(first, 1))
    second = world.drops.write("demo/a.csv", rows("2,1\n3,1"))
    world.tell(created(second, 2))
    world.run()
    assert (files(world), table_rows(world)) == ({"a.csv": ["superseded", "accepted"]}, 2)


def test_a_file_written_over_later_adds_its_rows_and_the_first_version_says_so(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 1))
    world.run()
    world.tell(created(world.drops.write("demo/a.csv", rows("2,1\n3,1")), 2))
    world.run()
    assert world.manifests() == [["demo/a.csv"], ["demo/a.csv"]]
    assert table_rows(world) == 3
    assert (gone(world, 1), gone(world, 2)) == ([("a.csv", "written over")], [])


def test_the_event_of_the_write_before_changes_nothing_when_it_comes_last(world: World) -> None:
    first = world.drops.write("demo/a.csv", rows("1,0"))
    second = world.drops.write("demo/a.csv", rows("2,1\n3,1"))
    world.tell(created(second, 2))
    world.tell(created(first, 1))
    world.run()
    assert (files(world), table_rows(world)) == ({"a.csv": ["accepted"]}, 2)
    assert counts(world) == {"doubtful": 1}


def test_without_sequencers_the_store_says_which_write_is_the_newer(world: World) -> None:
    first = world.drops.write("demo/a.csv", rows("1,0"))
    second = world.drops.write("demo/a.csv", rows("2,1\n3,1"))
    world.tell(created(second))
    world.tell(created(first))
    world.run()
    assert (files(world), table_rows(world)) == ({"a.csv": ["accepted"]}, 2)


def test_the_same_bytes_written_again_under_the_same_name_add_nothing(world: World) -> None:
    for number in (1, 2):
        world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), number))
        world.run()
    assert (files(world), table_rows(world)) == ({"a.csv": ["accepted", "unchanged"]}, 1)
    (row,) = [
        row.value
        for row in books.every(world.ports.ledger, "p.demo", "arrival/")
        if row.value["state"] == ArrivalState.UNCHANGED.value
    ]
    assert row["reason"] == "these bytes are in dataset version 1 already, as this name brought them before"
    assert len(world.runs()) == 1


def test_two_files_with_equal_bytes_are_two_arrivals_and_the_table_holds_both(world: World) -> None:
    for name in "ab":
        world.drop(f"demo/{name}.csv", "x,y\n1,0\n")
        world.run()
    assert (files(world), table_rows(world)) == ({"a.csv": ["accepted"], "b.csv": ["accepted"]}, 2)


# ------------------------------------------------------------------------------------------------ deleted
def test_a_file_deleted_before_it_was_read_is_given_up(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    world.tell(created(drop, 1))
    world.drops.remove("demo/a.csv")
    world.tell(event("BlobDeleted", 2, url=A, api="DeleteBlob"))
    assert files(world) == {"a.csv": ["superseded"]}
    assert world.ports.ledger.scan("p.demo", "pending/") == []
    world.run()
    assert (world.manifests(), world.runs()) == ([], [])


def test_a_file_deleted_later_stays_in_its_version_which_says_that_it_is_gone(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    world.tell(created(drop, 1))
    world.run()
    before = world.ports.artifacts.read("datasets/demo/00000001/manifest.json")
    world.drops.remove("demo/a.csv")
    for _ in range(2):
        world.tell(event("BlobDeleted", 2, url=A))
    assert gone(world) == [("a.csv", "deleted")]
    assert world.ports.artifacts.read("datasets/demo/00000001/manifest.json") == before
    assert (world.manifests(), table_rows(world)) == ([["demo/a.csv"]], 1)


def test_a_file_deleted_between_its_check_and_its_version_is_in_neither_and_not_said_to_be_gone(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 1))
    world.tell(created(world.drops.write("demo/b.csv", rows("2,0")), 1))
    number = intake.cut_batch(world.ports, "demo", world.now)
    assert number is not None
    intake.check_batch(world.ports, "demo", number, world.now)
    world.drops.remove("demo/a.csv")
    world.tell(event("BlobDeleted", 2, url=A))
    intake.write_version(world.ports, "demo", number, world.now)
    assert (files(world), gone(world)) == ({"a.csv": ["superseded"], "b.csv": ["accepted"]}, [])
    assert (world.manifests(), table_rows(world)) == ([["demo/b.csv"]], 1)


def test_an_older_event_does_not_bring_back_what_is_gone(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    world.drops.remove("demo/a.csv")
    world.tell(event("BlobDeleted", 2, url=A))
    world.tell(created(drop, 1))
    assert (files(world), world.started, counts(world)) == ({}, [], {"deleted": 1, "doubtful": 1})


def test_an_older_delete_does_not_take_away_what_is_there(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 3))
    world.tell(event("BlobDeleted", 2, url=A))
    assert counts(world) == {"deleted": 1, "late": 1}
    # Also when nothing says that it is older: the file is there.
    world.tell(event("BlobDeleted", url=A))
    world.run()
    assert (world.manifests(), gone(world)) == ([["demo/a.csv"]], [])


def test_a_file_that_comes_back_after_a_delete_is_a_new_arrival(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 1))
    world.run()
    world.drops.remove("demo/a.csv")
    world.tell(event("BlobDeleted", 2, url=A))
    world.tell(created(world.drops.write("demo/a.csv", rows("2,0")), 3))
    world.run()
    assert (world.manifests(), gone(world)) == ([["demo/a.csv"], ["demo/a.csv"]], [("a.csv", "deleted")])


def test_the_very_same_write_that_comes_back_is_taken_up_where_it_was_left(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    kept = world.drops._files.pop("demo/a.csv")
    world.tell(created(drop, 1))
    world.run()
    assert files(world) == {"a.csv": ["superseded"]}
    world.drops._files["demo/a.csv"] = kept
    assert world.reconcile()["found"] == 1
    world.run()
    assert (files(world), world.manifests()) == ({"a.csv": ["accepted"]}, [["demo/a.csv"]])
    # And gone from under a dataset version, and back.
    del world.drops._files["demo/a.csv"]
    assert world.reconcile()["gone"] == 1
    assert gone(world) == [("a.csv", "deleted")]
    world.drops._files["demo/a.csv"] = kept
    assert world.reconcile()["found"] == 0
    assert (gone(world), files(world)) == ([], {"a.csv": ["accepted"]})


def test_a_quarantined_file_keeps_its_bytes_when_it_is_deleted(world: World) -> None:
    world.drop("demo/a.csv", "nonsense\n")
    world.run()
    world.drops.remove("demo/a.csv")
    world.tell(event("BlobDeleted", url=A))
    again = intake.replay(world.ports, "demo", None, world.now)
    world.tell(event("BlobDeleted", url=A))
    assert files(world) == {"a.csv": ["pending"]}
    world.start(again["start"])
    world.run()
    assert files(world) == {"a.csv": ["quarantined"]}


# ------------------------------------------------------------------------------------------------ renamed
def rename(world: World, before: str, after: str) -> Json:
    """A file gets another name, as Data Lake does it: the event has no url and no etag."""
    content = world.drops._files[before].content
    world.drops.remove(before)
    world.drops.write(after, content)
    return event(
        "BlobRenamed",
        9,
        sourceUrl=f"https://local.dfs.core.windows.net/drops/{before}",
        destinationUrl=f"https://local.dfs.core.windows.net/drops/{after}",
    )


def test_a_file_renamed_after_it_was_taken_in_adds_nothing(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 1))
    world.run()
    world.tell(rename(world, "demo/a.csv", "demo/b.csv"))
    world.run()
    assert (files(world), table_rows(world)) == ({"a.csv": ["accepted"], "b.csv": ["unchanged"]}, 1)
    assert gone(world) == [("a.csv", "renamed")]
    assert world.reconcile()["found"] == 0


def test_a_file_renamed_before_it_was_read_is_taken_in_under_its_new_name(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 1))
    world.tell(rename(world, "demo/a.csv", "demo/b.csv"))
    world.run()
    assert (files(world), world.manifests()) == ({"a.csv": ["superseded"], "b.csv": ["accepted"]}, [["demo/b.csv"]])


def test_a_file_renamed_into_the_pipelines_folder_is_an_arrival(world: World) -> None:
    world.drops.write("staging/a.csv", rows("1,0"))
    world.tell(rename(world, "staging/a.csv", "demo/a.csv"))
    world.run()
    assert (files(world), world.manifests()) == ({"a.csv": ["accepted"]}, [["demo/a.csv"]])


def test_a_file_renamed_out_of_the_pipelines_folder_is_gone(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 1))
    world.run()
    world.tell(rename(world, "demo/a.csv", "archive/a.csv"))
    assert (files(world), gone(world)) == ({"a.csv": ["accepted"]}, [("a.csv", "renamed")])


def test_a_rename_over_a_file_replaces_it(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 1))
    world.tell(created(world.drops.write("demo/b.csv", rows("2,0")), 1))
    world.run()
    world.tell(rename(world, "demo/a.csv", "demo/b.csv"))
    world.run()
    assert files(world) == {"a.csv": ["accepted"], "b.csv": ["accepted", "unchanged"]}
    assert gone(world) == [("a.csv", "renamed"), ("b.csv", "written over")]


def test_a_renamed_directory_is_one_event_for_many_files(world: World) -> None:
    for name in "abc":
        world.tell(created(world.drops.write(f"demo/old/{name}.csv", rows(f"{ord(name)},0")), 1))
    world.run()
    late = world.drops.write("demo/old/late.csv", rows("7,1"))
    for name in ("a", "b", "c", "late"):
        rename(world, f"demo/old/{name}.csv", f"demo/new/{name}.csv")
    urls = {
        "sourceUrl": "https://local.dfs.core.windows.net/drops/demo/old",
        "destinationUrl": "https://local.dfs.core.windows.net/drops/demo/new",
    }
    for _ in range(2):
        world.tell(event("DirectoryRenamed", 9, **urls))
    # The event of a file that was written just before, under the directory's old name.
    world.tell(created(late, 1))
    world.run()
    taken_in = sorted(path for files in world.manifests() for path in files)
    assert taken_in == ["demo/new/late.csv", "demo/old/a.csv", "demo/old/b.csv", "demo/old/c.csv"]
    assert table_rows(world) == 4
    assert gone(world) == [(f"{name}.csv", "renamed") for name in "abc"]


def test_a_directory_renamed_around_the_pipelines_folder_takes_its_files_along(world: World) -> None:
    world.tell(created(world.drops.write("demo/a.csv", rows("1,0")), 1))
    world.run()
    rename(world, "demo/a.csv", "attic/a.csv")
    local = "https://local.blob.localhost/drops"
    world.tell(event("DirectoryRenamed", sourceUrl=f"{local}/demo", destinationUrl=f"{local}/attic"))
    assert gone(world) == [("a.csv", "renamed")]
    rename(world, "attic/a.csv", "demo/a.csv")
    world.tell(event("DirectoryRenamed", sourceUrl=f"{local}/attic", destinationUrl=f"{local}/demo"))
    world.run()
    assert files(world) == {"a.csv": ["accepted", "unchanged"]}


def test_a_deleted_directory_is_one_event_for_many_files(world: World) -> None:
    for name in "ab":
        world.tell(created(world.drops.write(f"demo/x/{name}.csv", rows(f"{ord(name)},0"))))
    world.run()
    for name in "ab":
        world.drops.remove(f"demo/x/{name}.csv")
    world.tell(event("DirectoryDeleted", url="https://local.dfs.core.windows.net/drops/demo/x", recursive="true"))
    assert gone(world) == [("a.csv", "deleted"), ("b.csv", "deleted")]


# ------------------------------------------------------------------------------------------------ not acted on
def test_tier_changes_and_unknown_kinds_are_counted_and_nothing_else(world: World) -> None:
    world.tell(
        event("BlobTierChanged", url=A),
        event("BlobTierChanged", url=A),
        event("DirectoryCreated", url=A),
        {"id": "1", "eventType": "Contoso.Made", "data": {}},
    )
    assert (counts(world), files(world), world.started) == ({"ignored": 3, "unknown": 1}, {}, [])


def test_an_event_that_makes_no_sense_is_kept_with_the_reason_and_the_rest_goes_on(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    world.tell(
        {"id": "1", "eventType": "Microsoft.Storage.BlobCreated", "data": {"api": "PutBlob"}},
        blob_created("http://169.254.169.254/metadata", "0x1", 9),
        event("BlobDeleted", url="nonsense"),
        created(drop),
    )
    world.run()
    told = storage.report(world.ports)
    assert (told["counts"], world.manifests()) == ({"misfit": 3, "deleted": 1}, [["demo/a.csv"]])
    assert len(told["misfits"]) == 3
    assert any("'url' as text" in each["reason"] for each in told["misfits"])
    assert any("169.254" in each["event"] for each in told["misfits"])


def test_so_many_misfits_are_kept_and_no_more(world: World) -> None:
    for start in range(0, 300, 20):
        world.tell(*({"id": f"{start + number}"} for number in range(20)))
        world.now += timedelta(seconds=1)
    kept = storage.report(world.ports)["misfits"]
    assert len(kept) == storage.MOST_MISFITS
    assert counts(world) == {"misfit": 300}
    assert '"299"' in str(kept[:20]) and '"0"' not in str([each["event"] for each in kept])
    world.tell({"id": "x" * 100_000})
    assert len(storage.report(world.ports)["misfits"][0]["event"]) < 5000


def test_a_store_that_does_not_answer_fails_only_the_events_that_need_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))

    def silent(url: str) -> None:
        raise Unavailable("nobody answers")

    monkeypatch.setattr(world.drops, "look", silent)
    heeded = storage.heed(world.ports, [event("BlobDeleted", url=B), created(drop)], "drops", world.now)
    assert list(heeded.failures) == [0]
    assert [flow["flow"] for flow in heeded.start] == ["intake"]


def test_a_file_that_came_round_too_often_waits_in_quarantine_for_a_person(world: World) -> None:
    drop = world.drops.write("demo/a.csv", rows("1,0"))
    told = created(drop)
    cloud = {"specversion": "1.0", "type": told["eventType"], "id": "c", "data": told["data"], "hops": 6}
    world.tell(cloud)
    world.run()
    assert (files(world), world.manifests(), world.reconcile()["found"]) == ({"a.csv": ["quarantined"]}, [], 0)
    assert "DROPFORGE_MAX_HOPS" in control.read(world.ports.ledger, "p.demo")["refused"][0]["reason"]
    world.tell({**cloud, "id": "d", "hops": 2, "data": created(world.drops.write("demo/b.csv", rows("2,0")))["data"]})
    world.run()
    version = books.dataset_version(world.ports.ledger, "p.demo", 1)
    assert version.cause is not None and (version.cause.door, version.cause.hops) == ("storage", 2)


# ------------------------------------------------------------------------------------------------ laws
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_and_number_of_deliveries_ends_where_the_store_is(tmp_path: Path, data: st.DataObject) -> None:
    world = World(tmp_path)
    told = []
    with_sequencers = data.draw(st.booleans())
    for sequencer in range(1, 1 + data.draw(st.integers(1, 12))):
        name = data.draw(st.sampled_from(["demo/a.csv", "demo/b.csv", "demo/c.csv"]))
        number = sequencer if with_sequencers else None
        if name in world.drops._files and data.draw(st.booleans()):
            world.drops.remove(name)
            told.append(event("BlobDeleted", number, url=f"https://local.blob.localhost/drops/{name}"))
        else:
            told.append(created(world.drops.write(name, rows(f"{sequencer},0")), number))
    for each in data.draw(st.lists(st.sampled_from(told), max_size=30)):
        world.tell(each)
        if data.draw(st.integers(0, 3)) == 0:
            world.run(timedelta(seconds=data.draw(st.integers(0, 30))))
    world.reconcile()
    world.run()
    # What lies there now is known as such, and each name's newest write is in the table, once.
    seen = [row.value for row in books.every(world.ports.ledger, "p.demo", arrivals.SEEN)]
    there = {drop.url: drop.etag for drop in world.drops.list("drops", "")}
    assert {each["url"]: each["etag"] for each in seen if each["gone_at"] is None} == there
    states = {each["id"]: books.arrival(world.ports.ledger, "p.demo", each["id"]) for each in seen if each["id"]}
    assert all(states[each["id"]].state is ArrivalState.ACCEPTED for each in seen if each["gone_at"] is None)
    everything = [row.value for row in books.every(world.ports.ledger, "p.demo", "arrival/")]
    accepted = [each for each in everything if each["state"] == ArrivalState.ACCEPTED.value]
    assert sum(len(files) for files in world.manifests()) == len(accepted) == table_rows(world)
    assert world.ports.ledger.scan("p.demo", "pending/") == []
    # Another look finds nothing more to heal.
    assert {key: world.reconcile()[key] for key in ("found", "gone")} == {"found": 0, "gone": 0}
