"""The registry in one ledger file, shared by processes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.adapters.local.ledger import SqliteLedger
from dropforge.adapters.registry import LedgerRegistry
from tests.contract.writers import finished, start


def test_two_processes_that_register_the_same_runs_make_one_version_of_each(tmp_path: Path) -> None:
    store = LocalArtifacts(tmp_path / "artifacts")
    store.put("model", b"x")
    one, two = finished([start("register", tmp_path, "flights") for _ in range(2)])
    assert one == two
    with closing(SqliteLedger(tmp_path / "ledger.db")) as ledger:
        found = LedgerRegistry(ledger, store).list("flights", limit=100)
    assert [each.version for each in found] == list(range(20, 0, -1))
    assert {each.lineage.run for each in found} == {f"r{n}" for n in range(20)}
