"""What the commands check on this machine, before anybody is asked, and how they show what was answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge.cli.asking import _me
from dropforge.cli.here import _check
from dropforge.cli.scoring import _meant
from dropforge.cli.shown import show
from dropforge.domain.errors import BadInput


def files(folder: Path, *names: str) -> list[Path]:
    made = [folder / name for name in names]
    for file in made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(file))
    return made


# ------------------------------------------------------------------------------------------------ drop
def test_of_two_files_of_one_name_none_is_dropped(tmp_path: Path) -> None:
    first, second = files(tmp_path, "monday/day.csv", "tuesday/day.csv")
    with pytest.raises(BadInput, match=r"both called day\.csv"):
        _check([first, second], here=True)


def test_a_file_that_is_named_twice_is_one_file(tmp_path: Path) -> None:
    (file,) = files(tmp_path, "monday/day.csv")
    _check([file, tmp_path / "monday" / ".." / "monday" / "day.csv"], here=True)


@pytest.mark.parametrize("name", [".day.csv", "day.csv.part", "day.csv~"])
def test_a_file_that_the_drop_folder_passes_over_is_not_dropped(tmp_path: Path, name: str) -> None:
    (file,) = files(tmp_path, name)
    with pytest.raises(BadInput, match="never be taken in"):
        _check([file], here=True)
    # A container has no such names.
    _check([file], here=False)


# ------------------------------------------------------------------------------------------------ who asks
@pytest.mark.parametrize("error", [KeyError("getpwuid(): uid not found: 54321"), OSError("no username set")])
def test_a_user_that_the_system_has_no_name_for_can_ask(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def nameless(_: int) -> None:
        raise error

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nameless)
    assert _me() == "somebody without a name"


# ------------------------------------------------------------------------------------------------ score
@pytest.mark.parametrize(("text", "version"), [("demo", None), ("demo@7", 7)])
def test_the_folder_of_a_pipeline_does_not_hide_its_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, version: int | None
) -> None:
    files(tmp_path, "demo/pipeline.yaml", "demo/sample.csv")
    monkeypatch.chdir(tmp_path)
    assert _meant(text) == ("demo", version, True)


@pytest.mark.parametrize("text", ["demo/", "./demo", "rows", "."])
def test_a_folder_that_is_named_as_one_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    files(tmp_path, "pipeline.yaml", "demo/pipeline.yaml", "demo/sample.csv", "rows/new.csv")
    monkeypatch.chdir(tmp_path)
    assert _meant(text) == (text, None, False)


# ------------------------------------------------------------------------------------------------ showing
@pytest.mark.parametrize("text", ["Dropped day[old].csv.", "failed: no rows in [/data/in]", "kept: a:key:b"])
def test_what_others_wrote_is_shown_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    show({}, False, lambda _: text)
    assert capsys.readouterr().out == f"{text}\n"
