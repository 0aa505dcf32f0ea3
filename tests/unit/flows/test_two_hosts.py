"""Two hosts at the same batch: one is slow, and what the other did meanwhile counts; or one dies between two writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dropforge.adapters.memory.tables import MemoryTables
from dropforge.domain.arrivals import Arrival, ArrivalState
from dropforge.domain.datasets import BatchState
from dropforge.domain.errors import BadFile, Conflict, Unavailable
from dropforge.ports import Json, Ports, TableFile, TableRules, TableState, Write
from dropforge.steps import books, intake
from dropforge.wire import from_builtins
from tests.unit.flows.world import YAML, World

# What each dropped file holds.
ROWS = 2
URL = "https://local.blob.localhost/drops/demo/a.csv"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


class Slow:
    """A port as a slow host has it: before its `nth` such call, much happens elsewhere."""

    def __init__(self, port: object, call: str, meanwhile: Callable[[], object], nth: int = 1) -> None:
        self._port, self._call, self._meanwhile, self._left = port, call, meanwhile, nth

    def __getattr__(self, name: str) -> Any:
        if name == self._call:
            self._left -= 1
            if self._left == 0:
                self._meanwhile()
        return getattr(self._port, name)


class Mortal:
    """The ledger as a host has it that dies after so many commits."""

    def __init__(self, ledger: object, commits: int) -> None:
        self._ledger: Any = ledger
        self._left = commits

    def commit(self, partition: str, writes: Sequence[Write]) -> None:
        if self._left == 0:
            die()
        self._left -= 1
        self._ledger.commit(partition, writes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)


class Picky(MemoryTables):
    """Tables in which the file that was dropped second does not fit after all."""

    misfit = ""

    def append(self, table: str, batch: int, files: Sequence[TableFile], rules: TableRules) -> TableState:
        if self.misfit in {each.source for each in files}:
            raise BadFile("it does not fit", source=self.misfit)
        return super().append(table, batch, files, rules)


def die() -> None:
    raise Unavailable("the host is dead")


def with_port(world: World, **port: Any) -> Ports:
    return replace(world.ports, **port)


def cut(world: World, *names: str) -> int:
    """A batch of files that nobody has looked at yet."""
    for n, name in enumerate(names):
        world.drop(f"demo/{name}.csv", f"x,y\n{n},0\n2,1\n")
    number = intake.cut_batch(world.ports, "demo", world.now)
    assert number is not None
    return number


def checked(world: World, *names: str) -> int:
    number = cut(world, *names)
    intake.check_batch(world.ports, "demo", number, world.now)
    return number


def write(world: World, number: int, ports: Ports | None = None) -> Json:
    return intake.write_version(ports or world.ports, "demo", number, world.now)


def append_and_die(world: World, number: int) -> None:
    """Another host gets as far as the table, and not to the ledger."""
    with pytest.raises(Unavailable):
        write(world, number, with_port(world, artifacts=Slow(world.ports.artifacts, "put", die)))


def arrived(world: World) -> dict[str, Arrival]:
    rows = books.every(world.ports.ledger, "p.demo", "arrival/")
    return {each.url.rpartition("/")[2]: each for each in (from_builtins(Arrival, row.value) for row in rows)}


def states(world: World) -> dict[str, str]:
    return {name: each.state.value for name, each in arrived(world).items()}


def table_rows(world: World, batch: int) -> int:
    table = world.tables.find("demo", batch)
    return table.rows if table is not None else 0


def agree(world: World, number: int) -> bool:
    """Whether the batch and its files say the same of what is accepted."""
    accepted = {each.id for each in arrived(world).values() if each.state is ArrivalState.ACCEPTED}
    return accepted == set(books.batch(world.ports.ledger, "p.demo", number).accepted)


# ------------------------------------------------------------------------------------------------ the version
@pytest.mark.parametrize(("port", "call"), [("tables", "find"), ("drops", "fetch"), ("tables", "append")])
def test_a_host_that_is_overtaken_makes_no_second_version_of_a_batch(world: World, port: str, call: str) -> None:
    number = checked(world, "a")
    overtaken: Any = Slow(getattr(world.ports, port), call, lambda: write(world, number))
    assert write(world, number, with_port(world, **{port: overtaken})) == {"version": 1}
    assert (world.head()["version"], world.head()["open"], table_rows(world, number)) == (1, None, ROWS)
    assert world.manifests() == [["demo/a.csv"]]
    assert len(world.events.of("DatasetVersioned")) == 1


def test_a_file_deleted_after_another_host_took_it_in_undoes_no_version(world: World) -> None:
    number = checked(world, "a")

    def meanwhile() -> None:
        write(world, number)
        world.drops.remove("demo/a.csv")

    assert write(world, number, with_port(world, drops=Slow(world.drops, "fetch", meanwhile))) == {"version": 1}
    batch = books.batch(world.ports.ledger, "p.demo", number)
    assert (batch.state, batch.version) == (BatchState.VERSIONED, 1)
    assert (states(world), world.manifests()) == ({"a.csv": "accepted"}, [["demo/a.csv"]])


def test_a_file_deleted_after_another_host_appended_it_is_in_the_version(world: World) -> None:
    number = checked(world, "a")

    def meanwhile() -> None:
        append_and_die(world, number)
        world.drops.remove("demo/a.csv")

    assert write(world, number, with_port(world, drops=Slow(world.drops, "fetch", meanwhile))) == {"version": 1}
    assert (states(world), table_rows(world, number)) == ({"a.csv": "accepted"}, ROWS)
    assert agree(world, number)


def test_a_version_says_what_the_host_appended_that_was_first(world: World) -> None:
    number = checked(world, "a", "b")

    def meanwhile() -> None:
        world.drops.remove("demo/a.csv")
        append_and_die(world, number)

    assert write(world, number, with_port(world, tables=Slow(world.tables, "append", meanwhile))) == {"version": 1}
    assert (world.manifests(), table_rows(world, number)) == ([["demo/b.csv"]], ROWS)
    assert agree(world, number)


def test_what_another_host_took_out_of_the_batch_is_not_appended(world: World) -> None:
    number = checked(world, "a", "b")

    def meanwhile() -> None:
        world.drops.remove("demo/a.csv")
        with pytest.raises(Unavailable):
            write(world, number, with_port(world, tables=Slow(world.tables, "append", die)))

    # It has read the first file, and is about to read the second.
    assert write(world, number, with_port(world, drops=Slow(world.drops, "fetch", meanwhile, nth=2))) == {"version": 1}
    assert (world.manifests(), table_rows(world, number)) == ([["demo/b.csv"]], ROWS)
    assert agree(world, number)


def test_two_hosts_that_find_that_a_file_does_not_fit_put_it_into_quarantine_once(world: World) -> None:
    number = checked(world, "a", "b")
    picky = Picky()
    picky.misfit = arrived(world)["b.csv"].id
    ports = with_port(world, tables=picky)
    # The slow one has found it, and is about to fetch the file for whoever wants to see it.
    slow = replace(ports, drops=Slow(world.drops, "fetch", lambda: write(world, number, ports), nth=3))
    assert write(world, number, slow) == {"version": 1}
    assert states(world) == {"a.csv": "accepted", "b.csv": "quarantined"}
    assert (world.manifests(), world.head()["version"]) == ([["demo/a.csv"]], 1)
    assert (len(world.events.of("FileQuarantined")), len(world.events.of("DatasetVersioned"))) == (1, 1)


def test_a_host_that_dies_after_any_commit_leaves_batch_and_files_in_agreement(tmp_path: Path) -> None:
    for commits in count():
        world = World(tmp_path / str(commits))
        number = checked(world, "a", "b", "c")
        picky = Picky()
        picky.misfit = arrived(world)["b.csv"].id
        world.ports = with_port(world, tables=picky)
        world.drops.remove("demo/a.csv")
        mortal = Mortal(world.ports.ledger, commits)
        try:
            write(world, number, with_port(world, ledger=mortal))
        except Unavailable:
            assert agree(world, number)
            assert write(world, number) == {"version": 1}
            died = True
        else:
            died = False
        assert states(world) == {"a.csv": "superseded", "b.csv": "quarantined", "c.csv": "accepted"}
        assert world.manifests() == [["demo/c.csv"]]
        assert (len(world.events.of("FileQuarantined")), len(world.events.of("DatasetVersioned"))) == (1, 1)
        if not died:
            break
    assert commits > 5


def test_more_files_that_went_than_a_commit_holds_are_taken_out(tmp_path: Path) -> None:
    world = World(tmp_path, YAML.replace("max_files: 3", "max_files: 200"))
    names = [f"{n:03}" for n in range(120)]
    number = checked(world, *names)
    for name in names[1:]:
        world.drops.remove(f"demo/{name}.csv")
    assert write(world, number) == {"version": 1}
    assert (world.manifests(), table_rows(world, number)) == ([["demo/000.csv"]], ROWS)
    assert agree(world, number)


def test_a_conflict_of_the_tables_own_making_fails_the_step(world: World) -> None:
    number = checked(world, "a")

    class Refusing(MemoryTables):
        def append(self, table: str, batch: int, files: Sequence[TableFile], rules: TableRules) -> TableState:
            raise Conflict("batch numbers only grow")

    with pytest.raises(Conflict, match="only grow"):
        write(world, number, with_port(world, tables=Refusing()))


# ------------------------------------------------------------------------------------------------ the check
def test_a_late_check_does_not_take_back_that_a_file_was_accepted(world: World) -> None:
    number = cut(world, "a")

    def meanwhile() -> None:
        intake.check_batch(world.ports, "demo", number, world.now)
        write(world, number)
        world.drops.remove("demo/a.csv")

    late = with_port(world, drops=Slow(world.drops, "fetch", meanwhile))
    told = intake.check_batch(late, "demo", number, world.now)
    assert (told["accepted"], told["superseded"], states(world)) == (1, 0, {"a.csv": "accepted"})
    # The same bytes again: the table has them.
    again = checked(world, "a")
    assert write(world, again) == {"version": None}
    assert (world.head()["version"], table_rows(world, number), table_rows(world, again)) == (1, ROWS, 0)


def test_a_file_given_up_while_it_is_looked_at_is_not_accepted(world: World) -> None:
    number = cut(world, "a", "b")

    def meanwhile() -> None:
        world.drops.remove("demo/a.csv")
        world.tell({"id": "1", "eventType": "Microsoft.Storage.BlobDeleted", "data": {"url": URL}})

    late = with_port(world, tables=Slow(world.tables, "check", meanwhile))
    told = intake.check_batch(late, "demo", number, world.now)
    assert (told["accepted"], states(world)) == (1, {"a.csv": "superseded", "b.csv": "accepted"})
    assert agree(world, number)


def test_a_late_check_decides_nothing_of_a_file_that_was_put_back_since(world: World) -> None:
    world.drop("demo/a.csv", "nonsense\n")
    number = intake.cut_batch(world.ports, "demo", world.now)
    assert number is not None

    def meanwhile() -> None:
        intake.check_batch(world.ports, "demo", number, world.now)
        write(world, number)
        intake.replay(world.ports, "demo", None, world.now)

    late = with_port(world, drops=Slow(world.drops, "fetch", meanwhile))
    told = intake.check_batch(late, "demo", number, world.now)
    assert (told["quarantined"], states(world)) == (0, {"a.csv": "pending"})
    assert len(world.events.of("FileQuarantined")) == 1
    assert len(world.ports.ledger.scan("p.demo", "pending/")) == 1
