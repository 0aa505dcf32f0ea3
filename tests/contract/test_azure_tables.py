"""What Delta tables on Blob Storage promise beyond every store, on Azurite: lost answers, rights, what a table is called."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient, generate_account_sas

from dropforge.adapters.azure import places
from dropforge.adapters.azure.tables import delta_tables
from dropforge.adapters.delta import DeltaTables
from dropforge.domain.errors import Unavailable
from dropforge.ports import TableFile, TableRules, TableState
from tests.azurite import ACCOUNT, KEY, ROOT, Azurite
from tests.contract.conftest import fresh
from tests.contract.lossy import lossy

RULES = TableRules("csv")
ARRIVED = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


CHILD = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from dropforge.adapters.azure.tables import delta_tables
from dropforge.ports import TableFile, TableRules
storage, container, path, batch = sys.argv[1:]
file = TableFile(Path(path), "far", datetime.now(UTC))
state = delta_tables(storage, container).append("flights", int(batch), [file], TableRules("csv"))
print(state.version, state.rows)
"""


@pytest.fixture(autouse=True)
def emulator() -> Iterator[None]:
    """Where delta-rs looks for an emulator is told to the whole process."""
    before = os.environ.get("AZURITE_BLOB_STORAGE_URL")
    yield
    os.environ.pop("AZURITE_BLOB_STORAGE_URL", None)
    if before is not None:
        os.environ["AZURITE_BLOB_STORAGE_URL"] = before


@pytest.fixture
def container(azurite: Azurite) -> Iterator[ContainerClient]:
    with azurite.container(fresh("deltas")) as client:
        yield client


def append(tables: DeltaTables, folder: Path, batch: int) -> TableState:
    (folder / "day.csv").write_text(f"a\n{batch}\n")
    return tables.append("flights", batch, [TableFile(folder / "day.csv", f"a{batch}", ARRIVED)], RULES)


def commits(container: ContainerClient) -> list[str]:
    return [name for name in container.list_blob_names() if name.endswith(".json")]


def sas(permission: str) -> str:
    return generate_account_sas(ACCOUNT, KEY, "sco", permission, datetime.now(UTC) + timedelta(hours=1))


def test_a_table_is_called_by_its_container_and_name(azurite: Azurite, tmp_path: Path) -> None:
    state = append(delta_tables(azurite.connection_string), tmp_path, 0)
    assert state.uri == f"az://{places.TABLES}/flights"


@pytest.mark.parametrize("lost", [0, 1])
def test_a_commit_whose_answer_is_lost_is_in_the_table_once(
    azurite: Azurite, container: ContainerClient, tmp_path: Path, lost: int
) -> None:
    for batch in range(lost):
        append(delta_tables(azurite.connection_string, container.container_name), tmp_path, batch)
    (tmp_path / "day.csv").write_text(f"a\n{lost}\n")
    with lossy(azurite.url) as proxy:
        storage = azurite.connection_string.replace(azurite.url, proxy.url)
        # The data, then the commit.
        proxy.fates = ["answer", "lose"]
        # In a process of its own: delta-rs keeps the interpreter while it reads a table's history.
        command = [sys.executable, "-c", CHILD, storage, container.container_name, str(tmp_path / "day.csv"), str(lost)]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=ROOT).stdout
    assert proxy.fates == []
    assert (said, len(commits(container))) == (f"{lost} {lost + 1}\n", lost + 1)


def test_a_sas_opens_the_account_it_names_and_is_told_to_nobody(
    azurite: Azurite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signed = sas("rlwc")
    with caplog.at_level(logging.DEBUG):
        tables = delta_tables(f"{azurite.url}/{ACCOUNT}?{signed}", fresh("deltas"))
        assert [append(tables, tmp_path, batch).version for batch in range(4)] == [0, 1, 2, 3]
    signature = signed.partition("sig=")[2].partition("&")[0]
    assert signature and signature not in caplog.text + repr(tables) + repr(vars(tables))


def test_who_may_only_read_is_told_what_is_missing(
    azurite: Azurite, container: ContainerClient, tmp_path: Path
) -> None:
    append(delta_tables(azurite.connection_string, container.container_name), tmp_path, 0)
    reader = delta_tables(f"{azurite.url}/{ACCOUNT}?{sas('rl')}", container.container_name)
    assert reader.read_version("flights", 0).rows == 1
    with pytest.raises(Unavailable, match="the role Storage Blob Data Contributor"):
        append(reader, tmp_path, 1)
    missing = fresh("absent")
    with pytest.raises(Unavailable, match=f"there is no container '{missing}'.*may not make it"):
        delta_tables(f"{azurite.url}/{ACCOUNT}?{sas('rl')}", missing).find("flights", 0)


def test_a_wrong_key_says_what_to_do_and_not_what_the_key_is(azurite: Azurite) -> None:
    wrong = azurite.connection_string.replace(KEY, "d3Jvbmc=")
    with pytest.raises(Unavailable, match="the role Storage Blob Data Contributor") as found:
        delta_tables(wrong).find("flights", 0)
    assert "d3Jvbmc=" not in found.value.message
