"""Settings of storage, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge import wiring
from dropforge.adapters.azure.blobs import BlobDrops
from dropforge.adapters.local.drops import LocalDrops
from dropforge.client import find_state
from dropforge.domain.errors import BadInput
from dropforge.settings import read

AZURITE = "UseDevelopmentStorage=true"


def test_files_are_dropped_into_a_folder_unless_told_otherwise(tmp_path: Path) -> None:
    chosen = read({"DROPFORGE_STATE": str(tmp_path)})
    assert (chosen.drops, chosen.reconcile_schedule) == ("local", "0 */5 * * * *")
    assert isinstance(wiring.drops(chosen), LocalDrops)


def test_an_empty_state_folder_is_none_that_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DROPFORGE_STATE", "")
    assert read({"DROPFORGE_STATE": ""}).state == read({}).state == find_state() == tmp_path / ".dropforge"


def test_lost_files_are_looked_for_as_often_as_the_sweep_unless_told_otherwise() -> None:
    assert read({"DROPFORGE_SWEEP_SCHEDULE": "*/2 * * * * *"}).reconcile_schedule == "*/2 * * * * *"
    both = {"DROPFORGE_SWEEP_SCHEDULE": "*/2 * * * * *", "DROPFORGE_RECONCILE_SCHEDULE": "0 0 * * * *"}
    assert read(both).reconcile_schedule == "0 0 * * * *"


def test_a_container_of_azure_needs_its_account() -> None:
    drops = wiring.drops(
        read({"DROPFORGE_DROPS": "azure", "DROPFORGE_STORAGE": AZURITE, "DROPFORGE_DROP_CONTAINER": "in"})
    )
    assert isinstance(drops, BlobDrops)
    assert drops.locate("http://127.0.0.1:10000/devstoreaccount1/in/a.csv").account == "devstoreaccount1"
    drops.close()
    with pytest.raises(BadInput, match="DROPFORGE_STORAGE must name the storage account"):
        read({"DROPFORGE_DROPS": "azure"})
    with pytest.raises(BadInput, match="choose local or azure"):
        read({"DROPFORGE_DROPS": "s3"})


def test_a_key_in_the_settings_is_not_shown() -> None:
    chosen = read({"DROPFORGE_DROPS": "azure", "DROPFORGE_STORAGE": "AccountName=a;AccountKey=c2VjcmV0"})
    assert "c2VjcmV0" not in repr(chosen)


def test_an_account_reached_as_the_apps_identity_is_called_what_its_url_says() -> None:
    for url in ("https://acc.blob.core.windows.net", "https://acc.dfs.core.windows.net/"):
        drops = wiring.drops(read({"DROPFORGE_DROPS": "azure", "DROPFORGE_STORAGE": url}))
        assert isinstance(drops, BlobDrops)
        ref = drops.locate("https://acc.dfs.core.windows.net/drops/a.csv")
        assert ref.url == "https://acc.blob.core.windows.net/drops/a.csv"
        drops.close()


def test_where_runs_can_go_is_what_the_settings_say() -> None:
    workspace = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers"
    workspace += "/Microsoft.MachineLearningServices/workspaces/ws"
    databricks = {
        "DROPFORGE_DATABRICKS_HOST": "https://adb-1",
        "DROPFORGE_DATABRICKS_VOLUMES": "/Volumes/main/dropforge",
    }
    azure = {"DROPFORGE_ADAPTERS": "azure"}
    assert read({}).targets == ("local",)
    assert read(azure).targets == ()
    assert read({**azure, **databricks, "DROPFORGE_AML_WORKSPACE": workspace}).targets == ("azureml", "databricks")
    # A workspace that is named changes nothing on one machine.
    assert read(databricks).targets == ("local",)
