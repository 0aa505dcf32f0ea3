"""The loop closes on one machine: real files, sockets and processes, nothing replaced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropforge.client import bundle
from tests.e2e.machine import COIN, ROOT, Platform, eventually, throws


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with Platform(tmp_path_factory.mktemp("platform") / "state") as running:
        yield running


def cli(platform: Platform, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a person types it."""
    return subprocess.run(
        [sys.executable, "-m", "dropforge.cli", *words, "--state", str(platform.state)],
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        timeout=120,
    )


def pipeline(folder: Path, name: str, train: str | None = None, **changes: str) -> Path:
    """A copy of the coin pipeline under another name, with parts of its pipeline.yaml replaced."""
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    text = (COIN / "pipeline.yaml").read_text().replace("name: coin", f"name: {name}")
    for old, new in {"max_files: 3": "max_files: 1", **changes}.items():
        assert old in text
        text = text.replace(old, new)
    (target / "pipeline.yaml").write_text(text)
    (target / "train.py").write_text(train if train is not None else (COIN / "train.py").read_text())
    return target


# ------------------------------------------------------------------------------------------------ the main job
def test_a_dropped_file_answers(platform: Platform, tmp_path: Path) -> None:
    platform.client.apply("first", pipeline(tmp_path, "first"))
    platform.drop("first/", throws(tmp_path, 0, days=14))
    told = platform.settled("first", 1)
    assert told["champion"] == 1
    assert told["runs"][0]["verdict"] == "better"
    status, answer = platform.score("first", [{"box": 1}, {"box": 2}])
    assert (status, answer["model_version"]) == (200, "1")
    (output,) = (each for each in answer["outputs"] if each["name"] == "probabilities")
    assert output["shape"] == [2, 2]
    assert output["data"][1] > 0.7 > 0.3 > output["data"][3]
    why = platform.client.get("pipelines/first/why")
    assert why["model"]["sha256"] and why["dataset"]["files"] == 1
    # The same model again is not better: registered, and kept out.
    platform.drop("first/", throws(tmp_path, 7, days=2))
    told = platform.settled("first", 2)
    assert (told["champion"], told["runs"][0]["outcome"]) == (1, "kept_champion")
    assert len(platform.client.get("pipelines/first/models")["models"]) == 2


def test_promote_and_rollback_by_hand(platform: Platform, tmp_path: Path) -> None:
    platform.client.apply("hand", pipeline(tmp_path, "hand"))
    for number, start in enumerate((0, 7)):
        platform.drop("hand/", throws(tmp_path, start, days=2 if number else 14))
        platform.settled("hand", number + 1)
    assert cli(platform, "promote", "hand", "2").returncode == 0
    eventually(lambda: platform.status("hand")["champion"] == 2, 20, platform.log)
    assert platform.score("hand", [{"box": 1}])[1]["model_version"] == "2"
    assert cli(platform, "rollback", "hand").returncode == 0
    eventually(lambda: platform.status("hand")["champion"] == 1, 20, platform.log)
    assert platform.score("hand", [{"box": 1}])[1]["model_version"] == "1"
    refused = cli(platform, "promote", "hand", "99")
    assert refused.returncode == 1
    assert "99" in refused.stderr


def test_init_drop_status_as_the_readme_says(platform: Platform, tmp_path: Path) -> None:
    lines = ["size,colour,price"]
    lines += [f"{n % 17},{'red' if n % 3 else 'blue'},{(n % 17) * 3 + (5 if n % 3 else 0)}" for n in range(400)]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    made = cli(platform, "init", "my-model", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "my-model" / "pipeline.yaml").is_file()
    dropped = cli(platform, "drop", "my-model", "data.csv", cwd=tmp_path)
    assert dropped.returncode == 0, dropped.stderr
    again = cli(platform, "drop", "my-model", "data.csv", cwd=tmp_path)
    assert "nothing to do" in again.stdout
    eventually(
        lambda: platform.status("my-model")["champion"] == 1, 60, lambda: json.dumps(platform.status("my-model"))
    )
    shown = cli(platform, "status", "my-model", cwd=tmp_path)
    assert "version 1" in shown.stdout
    assert json.loads(cli(platform, "status", "my-model", "--json", cwd=tmp_path).stdout)["champion"] == 1
    status, answer = platform.score("my-model", [{"size": 4, "colour": "red"}])
    assert status == 200, answer


def test_init_leaves_a_pipeline_of_that_name_as_it_is(platform: Platform, tmp_path: Path) -> None:
    platform.client.apply("taken", pipeline(tmp_path, "taken"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    refused = cli(platform, "init", "taken", cwd=elsewhere)
    assert refused.returncode == 1
    assert "pipeline 'taken' is there already" in refused.stderr
    # A folder of that name would be applied by the next `drop`.
    assert list(elsewhere.iterdir()) == []
    assert platform.status("taken")["revision"] == 1


# ------------------------------------------------------------------------------------------------ what goes wrong
def test_a_typo_in_pipeline_yaml_names_key_line_and_choices(platform: Platform, tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "typo", **{"metric: log_loss": "metrik: log_loss"})
    refused = cli(platform, "apply", "typo", str(folder))
    assert refused.returncode == 1
    assert "pipeline.yaml:16" in refused.stderr
    assert "metrik" in refused.stderr
    assert "metric" in refused.stderr


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("no-column", b"box,thrown_at\n1,2026-01-01\n", "heads"),
        ("nothing", b"", "empty"),
        ("header-only", b"box,thrown_at,heads\n", "row"),
        ("out-of-range", b"box,thrown_at,heads\n11,2026-01-01,1\n", "11"),
        ("no-text", b"\x00\xff\xfe" * 40, ""),
    ],
)
def test_a_bad_file_is_quarantined_with_a_message_and_the_next_goes_on(
    platform: Platform, tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    platform.client.apply(name, pipeline(tmp_path, name))
    (tmp_path / "bad.csv").write_bytes(content)
    platform.drop(f"{name}/", tmp_path / "bad.csv")
    eventually(lambda: platform.status(name)["files"]["quarantined"] == 1, 30, platform.log)
    (bad,) = platform.status(name)["quarantined"]
    assert says in bad["reason"]
    report = cli(platform, "report", name, bad["id"])
    assert "bad.csv" in report.stdout
    assert platform.status(name)["champion"] is None
    platform.drop(f"{name}/", throws(tmp_path, 1))
    eventually(lambda: (platform.status(name)["dataset"] or {}).get("version") == 1, 30, platform.log)


def test_replay_takes_in_what_was_quarantined_once_the_rule_is_mended(platform: Platform, tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "mend", **{"max: 9": "max: 3"})
    platform.client.apply("mend", folder)
    platform.drop("mend/", throws(tmp_path, 1))
    eventually(lambda: platform.status("mend")["files"]["quarantined"] == 1, 30, platform.log)
    text = (folder / "pipeline.yaml").read_text()
    (folder / "pipeline.yaml").write_text(text.replace("max: 3", "max: 9"))
    platform.client.apply("mend", folder)
    replayed = cli(platform, "replay", "mend")
    assert "1 file put back" in replayed.stdout, replayed.stderr
    eventually(lambda: platform.status("mend")["files"]["accepted"] == 1, 30, platform.log)


@pytest.mark.parametrize(
    ("name", "train", "says"),
    [
        ("exits", "import sys; print('no luck', file=sys.stderr); sys.exit(1)", "no luck"),
        ("nomodel", "print('done')", "model.onnx"),
        ("hangs", "import time; time.sleep(600)", "longer than"),
        ("garbage", "import os; open(os.environ['DROPFORGE_OUTPUT'] + '/model.onnx', 'w').write('x')", "model.onnx"),
    ],
)
def test_a_training_script_that_fails_says_why_and_its_mended_successor_trains(
    platform: Platform, tmp_path: Path, name: str, train: str, says: str
) -> None:
    folder = pipeline(tmp_path, name, train, **{"timeout: 1m": "timeout: 4s"})
    platform.client.apply(name, folder)
    platform.drop(f"{name}/", throws(tmp_path, 0, days=14))
    told = platform.settled(name, 1)
    (run,) = told["runs"]
    assert (run["state"], run["outcome"]) == ("failed", "no_model")
    assert says in run["reason"]
    assert platform.client.get("health") == {"status": "ok"}
    (folder / "train.py").write_text((COIN / "train.py").read_text())
    text = (folder / "pipeline.yaml").read_text().replace("timeout: 4s", "timeout: 1m")
    (folder / "pipeline.yaml").write_text(text)
    platform.client.apply(name, folder)
    eventually(lambda: platform.status(name)["champion"] == 1, 60, lambda: json.dumps(platform.status(name), indent=1))


# ------------------------------------------------------------------------------------------------ doors
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/pipelines"),
        ("PUT", "/api/v1/pipelines/first"),
        ("POST", "/api/v1/pipelines/first/promote"),
        ("POST", "/api/v1/pipelines/first/replay"),
        ("GET", "/runtime/webhooks/durabletask/instances/x"),
        ("POST", "/runtime/webhooks/durabletask/orchestrators/intake"),
        ("POST", "/runtime/webhooks/EventGrid?functionName=on_blob_event"),
        ("GET", "/admin/functions"),
    ],
)
@pytest.mark.parametrize("key", [None, "wrong"])
def test_no_door_opens_without_its_key(platform: Platform, method: str, path: str, key: str | None) -> None:
    headers = {"x-functions-key": key} if key else {}
    request = urllib.request.Request(platform.connection["url"] + path, b"{}", headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    assert refused.value.code == 401


def test_a_live_instance_is_not_started_twice_and_an_unknown_one_is_not_found(
    platform: Platform, tmp_path: Path
) -> None:
    base = platform.connection["url"] + "/runtime/webhooks/durabletask"
    key = platform.connection["system_keys"]["durabletask_extension"]
    platform.client.apply("idle", pipeline(tmp_path, "idle", **{"max_files: 3": "max_files: 9"}))
    platform.drop("idle/", throws(tmp_path, 1))
    live = eventually(lambda: platform.status("idle")["busy"]["intake"], 20, platform.log)
    assert live

    def answer(method: str, path: str) -> int:
        body = b'{"pipeline": "idle", "epoch": 1}' if method == "POST" else None
        request = urllib.request.Request(
            f"{base}{path}?code={key}", body, {"content-type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as found:
                return found.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert answer("POST", "/orchestrators/intake/intake-idle-1") == 409
    assert answer("GET", "/instances/nobody-knows-it") == 404
    assert answer("GET", "/instances/intake-idle-1") == 202


def test_a_second_host_on_the_same_state_says_so_and_ends(platform: Platform) -> None:
    second = cli(platform, "up", "--port", "0")
    assert second.returncode == 3
    assert "host" in second.stderr
    assert platform.client.get("health") == {"status": "ok"}


def test_no_key_stands_in_any_log(platform: Platform) -> None:
    keys = [platform.connection["function_key"], platform.connection["master_key"]]
    keys += [*platform.connection["system_keys"].values(), (platform.state / "inference.key").read_text().strip()]
    logs = [path.read_text(errors="replace") for path in (platform.state / "logs").rglob("*") if path.is_file()]
    assert logs
    for text in logs:
        assert not [key for key in keys if key in text]


def test_a_pipeline_is_no_bigger_than_its_files(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "small")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_bytes(b"x" * 10_000)
    (folder / ".hidden").write_text("secret")
    assert len(bundle(folder)) < 5_000
