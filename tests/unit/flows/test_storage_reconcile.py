"""Reconcile: the listing laid beside the ledger."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.adapters.ledger_rows import checked_key
from dropforge.domain.errors import NotFound, Unavailable
from dropforge.ports import Drop
from dropforge.steps import arrivals, books, control, intake, pipelines
from tests.unit.flows.world import YAML, World, blob_created, bundle_of


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def write(world: World, *names: str) -> None:
    for number, name in enumerate(names):
        world.drops.write(name, f"x,y\n{number},0\n".encode())


def known(world: World, pipeline: str = "demo") -> list[str]:
    """The names that are known to be there, as the ledger orders them."""
    rows = books.every(world.ports.ledger, f"p.{pipeline}", arrivals.SEEN)
    return [row.value["url"].partition("/drops/")[2] for row in rows if row.value["gone_at"] is None]


def test_what_events_missed_is_found_and_what_is_gone_is_marked(world: World) -> None:
    write(world, "demo/a.csv", "demo/b.csv", "demo/c.csv")
    assert world.reconcile() | {"start": []} == {"found": 3, "gone": 0, "listed": 3, "start": []}
    world.run()
    world.drops.remove("demo/b.csv")
    write(world, "demo/d.csv")
    told = world.reconcile()
    assert (told["found"], told["gone"], told["listed"]) == (1, 1, 3)
    assert known(world) == ["demo/a.csv", "demo/c.csv", "demo/d.csv"]
    assert world.reconcile() == {"found": 0, "gone": 0, "listed": 3, "start": []}


def test_the_flow_is_started_where_something_waits_and_nowhere_else(world: World) -> None:
    text = YAML.replace("name: demo", "name: other").replace("label: y", "label: y\n  drop: other/")
    pipelines.apply(world.ports, "other", bundle_of({"pipeline.yaml": text, "train.py": "1"}), world.now)
    write(world, "demo/a.csv")
    assert [flow["input"]["pipeline"] for flow in world.reconcile()["start"]] == ["demo"]


def test_one_pipeline_can_be_chosen(world: World) -> None:
    text = YAML.replace("name: demo", "name: other").replace("label: y", "label: y\n  drop: other/")
    pipelines.apply(world.ports, "other", bundle_of({"pipeline.yaml": text, "train.py": "1"}), world.now)
    write(world, "demo/a.csv", "other/a.csv")
    told = intake.reconcile(world.ports, "other", "drops", world.now)
    assert (told["listed"], known(world), known(world, "other")) == (1, [], ["other/a.csv"])
    with pytest.raises(NotFound, match="there are demo, other"):
        intake.reconcile(world.ports, "nobody", "drops", world.now)


def test_a_folder_within_another_pipelines_folder_belongs_to_the_inner_one(world: World) -> None:
    write(world, "demo/a.csv", "demo/inner/b.csv")
    world.reconcile()
    assert known(world) == ["demo/a.csv", "demo/inner/b.csv"]
    text = YAML.replace("name: demo", "name: inner").replace("label: y", "label: y\n  drop: demo/inner/")
    pipelines.apply(world.ports, "inner", bundle_of({"pipeline.yaml": text, "train.py": "1"}), world.now)
    write(world, "demo/inner/c.csv")
    world.reconcile()
    # What was taken in under the outer one stays its own; it is not gone, and the new one is not its.
    assert known(world) == ["demo/a.csv", "demo/inner/b.csv"]
    assert known(world, "inner") == ["demo/inner/b.csv", "demo/inner/c.csv"]


def test_a_paused_pipeline_is_reconciled_and_starts_nothing(world: World) -> None:
    control.pause(world.ports, "demo", "ada", "wait", world.now)
    write(world, "demo/a.csv")
    assert world.reconcile() == {"found": 1, "gone": 0, "listed": 1, "start": []}


def test_a_file_being_written_again_is_neither_listed_nor_gone(world: World) -> None:
    write(world, "demo/a.csv")
    world.reconcile()
    world.run()
    world.drops.write("demo/a.csv", b"")
    told = world.reconcile()
    assert (told["listed"], told["gone"], known(world)) == (0, 0, ["demo/a.csv"])


def test_a_container_that_does_not_answer_half_way_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    write(world, *(f"demo/{number:03}.csv" for number in range(80)))
    listing = list(world.drops.list("drops", ""))

    def broken(container: str, prefix: str) -> Iterator[Drop]:
        yield from listing[:60]
        raise Unavailable("the container did not answer")

    monkeypatch.setattr(world.drops, "list", broken)
    with pytest.raises(Unavailable):
        intake.reconcile(world.ports, None, "drops", world.now)
    assert len(known(world)) == 60
    monkeypatch.undo()
    world.sweep()
    assert len(known(world)) == 80
    world.run()
    assert sum(len(files) for files in world.manifests()) == 80


def test_rows_of_a_store_that_is_no_longer_read_are_left_alone(world: World) -> None:
    write(world, "demo/a.csv")
    world.reconcile()
    row = world.ports.ledger.get("p.demo", arrivals.seen_key("demo/a.csv"))
    assert row is not None
    there = {**row.value, "url": "https://another.blob.core.windows.net/drops/demo/a.csv"}
    books.change(world.ports.ledger, "p.demo", row.key, lambda _: there)
    world.drops.remove("demo/a.csv")
    assert world.reconcile()["gone"] == 0


def test_a_ledger_from_before_there_was_an_index_gets_one(world: World) -> None:
    world.drop("demo/a.csv")
    world.run()
    row = world.ports.ledger.get("p.demo", arrivals.seen_key("demo/a.csv"))
    assert row is not None
    world.ports.ledger._partitions["p.demo"].rows.pop(row.key)  # type: ignore[attr-defined]
    world.ports.ledger._partitions["p.demo"].keys.remove(row.key)  # type: ignore[attr-defined]
    assert world.reconcile()["found"] == 0
    assert known(world) == ["demo/a.csv"]
    world.run()
    assert world.manifests() == [["demo/a.csv"]]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_listing_in_any_order_heals_all_the_same(tmp_path: Path, data: st.DataObject) -> None:
    # Data Lake sorts by folder, emulators by UTF-16; an order is only what makes a pass fast.
    world = World(tmp_path)
    names = [f"demo/{name}" for name in ("a", "a-b", "a/x", "a/y", "a.csv", "\U0001f600", "\uffee", "b")]
    write(world, *data.draw(st.lists(st.sampled_from(names), unique=True)))
    world.reconcile()
    for name in data.draw(st.lists(st.sampled_from(names), unique=True)):
        if name in world.drops._files:
            world.drops.remove(name)
        else:
            world.drops.write(name, b"x,y\n9,1\n")
    ordered = list(world.drops.list("drops", "demo/"))
    shuffled = data.draw(st.permutations(ordered))
    world.drops.list = lambda container, prefix: iter(shuffled)  # type: ignore[method-assign]
    world.reconcile()
    del world.drops.list  # type: ignore[method-assign]
    assert sorted(arrivals.seen_key(name) for name in world.drops._files) == [
        row.key for row in books.every(world.ports.ledger, "p.demo", arrivals.SEEN) if row.value["gone_at"] is None
    ]
    assert {key: world.reconcile()[key] for key in ("found", "gone")} == {"found": 0, "gone": 0}


# ------------------------------------------------------------------------------------------------ keys
PATH = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)


@given(st.lists(PATH, max_size=6))
def test_keys_sort_as_the_paths_do_and_can_be_keys(paths: list[str]) -> None:
    keys = {path: checked_key(arrivals.seen_key(path), "key") for path in paths}
    assert sorted(paths, key=lambda path: path.encode()) == sorted(paths, key=lambda path: keys[path])
    assert len(set(keys.values())) == len(set(paths))


@given(PATH, PATH)
def test_a_prefix_of_a_path_is_a_prefix_of_its_key(prefix: str, rest: str) -> None:
    assert arrivals.seen_key(prefix + rest).startswith(arrivals.seen_prefix(prefix))


@given(st.text("aé~", min_size=430, max_size=1024), st.text("aé~", min_size=1, max_size=20))
def test_names_too_long_for_a_key_have_keys_of_their_own(path: str, rest: str) -> None:
    one, other = (checked_key(arrivals.seen_key(each), "key") for each in (path, path + rest))
    assert one != other
    assert other.startswith(arrivals.seen_prefix(path)[:430])


# ------------------------------------------------------------------------------------------------ size
def test_a_pass_over_many_files_holds_a_page_of_them(world: World) -> None:
    def listing(count: int) -> Iterator[Drop]:
        for number in range(count):
            yield Drop(f"https://local.blob.localhost/drops/demo/{number:06}.csv", f"0x{number:X}", 9, world.now)

    def measured(count: int) -> int:
        world.drops.list = lambda container, prefix: listing(count)  # type: ignore[method-assign]
        tracemalloc.start()
        told = intake.reconcile(world.ports, None, "drops", world.now)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert told["listed"] == count
        return peak

    intake.reconcile(world.ports, None, "drops", world.now)
    for count in (2_000, 12_000):
        world.drops.list = lambda container, prefix, count=count: listing(count)  # type: ignore[method-assign, misc]
        intake.reconcile(world.ports, None, "drops", world.now)
        if count == 2_000:
            small = measured(count)
    assert measured(12_000) < 1.5 * small + 500_000


def test_an_event_after_reconcile_is_known_and_wakes_what_waits(world: World) -> None:
    drop = world.drops.write("demo/a.csv", b"x,y\n1,0\n")
    intake.reconcile(world.ports, None, "drops", world.now)
    world.tell(blob_created(drop.url, drop.etag, drop.size_bytes))
    world.run()
    assert world.manifests() == [["demo/a.csv"]]
