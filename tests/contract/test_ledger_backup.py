"""The ledger of Table storage in a file and back, on Azurite."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dropforge.adapters.azure.ledger import PLAIN_BYTES, TableLedger
from dropforge.ports import Insert, Row
from scripts import ledger_backup
from tests.azurite import Azurite
from tests.contract.conftest import fresh

LARGE = {"text": "ü" * PLAIN_BYTES}
PARTITIONS = ("pipelines", "p.flights", "m.flights")


@pytest.fixture
def account(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DROPFORGE_LEDGER", azurite.connection_string)
    return azurite.connection_string


@pytest.fixture
def old(account: str) -> Iterator[TableLedger]:
    """A ledger with more rows than a transaction takes, and one that is packed."""
    with closing(TableLedger(account, fresh("old"))) as ledger:
        for start in range(0, 250, 50):
            ledger.commit("p.flights", [Insert(f"arrival/{n:05}", {"n": n}) for n in range(start, start + 50)])
        ledger.commit("p.flights", [Insert("batch/1 #?", LARGE)])
        ledger.commit("m.flights", [Insert("head", {"next": 3})])
        ledger.commit("pipelines", [Insert("pipeline/flights", {"name": "flights"})])
        yield ledger


def rows(ledger: TableLedger) -> dict[str, list[tuple[str, object]]]:
    def plain(row: Row) -> tuple[str, object]:
        return row.key, row.value

    return {partition: [plain(row) for row in ledger.scan(partition, limit=5000)] for partition in PARTITIONS}


def run(what: str, file: Path, table: str, *more: str) -> int:
    return ledger_backup.main([what, str(file), "--table", table, *more])


def test_a_ledger_comes_back_as_it_was(account: str, old: TableLedger, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl.gz"
    assert run("save", file, old._place.name) == 0
    with closing(TableLedger(account, fresh("new"))) as new:
        new._create()
        assert run("restore", file, new._place.name) == 0
        assert rows(new) == rows(old)
        assert len(rows(new)["p.flights"]) == 251


def test_a_table_with_rows_is_left_alone(
    account: str, old: TableLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ledger.jsonl.gz"
    run("save", file, old._place.name)
    with closing(TableLedger(account, fresh("used"))) as used:
        used.commit("pipelines", [Insert("pipeline/other", {})])
        assert run("restore", file, used._place.name) == 1
        assert "the table has rows" in capsys.readouterr().err
        assert used.get("m.flights", "head") is None


@pytest.mark.parametrize("what", ["save", "restore"])
def test_a_table_that_is_not_there_is_told_of_in_one_line(
    account: str, old: TableLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    file = tmp_path / "ledger.jsonl.gz"
    run("save", file, old._place.name)
    capsys.readouterr()
    assert run(what, file, fresh("none")) == 1
    assert "DROPFORGE_LEDGER" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1


def test_a_file_that_cannot_be_written_is_told_of_in_one_line(
    account: str, old: TableLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("save", tmp_path / "none" / "ledger.jsonl.gz", old._place.name) == 1
    assert (said := capsys.readouterr().err).startswith("ledger_backup: ")
    assert "No such file or directory" in said


def test_a_restore_that_was_interrupted_goes_on(account: str, old: TableLedger, tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl.gz"
    run("save", file, old._place.name)
    with closing(TableLedger(account, fresh("half"))) as half:
        half.commit("p.flights", [Insert("arrival/00000", {"n": 0})])
        assert run("restore", file, half._place.name, "--again") == 0
        assert rows(half) == rows(old)


def test_a_file_that_was_cut_off_is_not_restored(
    account: str, old: TableLedger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, cut = tmp_path / "ledger.jsonl.gz", tmp_path / "cut.gz"
    run("save", file, old._place.name)
    cut.write_bytes(file.read_bytes()[:-20])
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    short = tmp_path / "short.gz"
    short.write_bytes(gzip.compress(b"".join(lines[:-2] + lines[-1:])))
    with closing(TableLedger(account, fresh("none"))) as none:
        none._create()
        for broken in (cut, short):
            assert run("restore", broken, none._place.name) == 1
            assert "whole" in (said := capsys.readouterr().err) or "cut off" in said
        assert rows(none) == {partition: [] for partition in PARTITIONS}
