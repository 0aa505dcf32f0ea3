"""What the commands check on this machine, before anybody is asked, and how they show what was answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge.cli import asking, main
from dropforge.cli.asking import _me
from dropforge.cli.here import _check, check_can_be_folder
from dropforge.cli.looking import first
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


# ------------------------------------------------------------------------------------------------ odd input
@pytest.mark.parametrize("path", ["file", "file/below/it"])
def test_a_folder_that_would_have_to_be_in_a_file_is_refused(tmp_path: Path, path: str) -> None:
    (file,) = files(tmp_path, "file")
    with pytest.raises(BadInput, match=f"{file} is a file; choose another --output"):
        check_can_be_folder(tmp_path / path, "--output")
    check_can_be_folder(tmp_path / "new" / "below", "--output")


@pytest.mark.parametrize(
    "words",
    [
        ["init", "demo", "--folder", "x" * 300],
        ["init", "demo", "--folder", "file/below"],
        ["score", "-i", "x" * 300, "-o", "out", "--onnx", "m.onnx"],
        ["score", "-i", "rows.csv", "-o", "file", "--onnx", "m.onnx"],
    ],
)
def test_a_path_that_cannot_be_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    files(tmp_path, "file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["dropforge", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_any_number_of_lines_can_be_asked_for() -> None:
    assert [first(iter("abc"), limit) for limit in (2, 10**23)] == [["a", "b"], ["a", "b", "c"]]


# ------------------------------------------------------------------------------------------------ cancel
@pytest.mark.parametrize(
    ("state", "says"), [("running", "r is being ended."), ("succeeded", "r had ended already: succeeded.")]
)
def test_cancel_says_when_there_was_nothing_to_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str, says: str
) -> None:
    class Asked:
        def get(self, path: str) -> dict[str, str]:
            return {"state": state}

        def post(self, path: str, **_: object) -> dict[str, str]:
            return {"state": "done"}

    monkeypatch.setattr(asking, "client", lambda _: Asked())
    asking.cancel("coin", "r")
    assert capsys.readouterr().out == f"{says}\n"


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
