"""GitHub Actions and Azure Pipelines: valid by their public schemas, the same words as a developer's, and no stored secret."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
GITHUB = sorted((ROOT / ".github/workflows").glob("*.yml"))
AZURE = [ROOT / "azure-pipelines.yml", *sorted((ROOT / ".azuredevops").rglob("*.yml"))]
NAMES = [str(path.relative_to(ROOT)) for path in (*GITHUB, *AZURE)]
# Where each kind of delivery is defined, once for each service.
KINDS = {
    "ci": (".github/workflows/ci.yml", ".azuredevops/templates/ci.yml"),
    "deploy": (".github/workflows/deploy.yml", ".azuredevops/templates/deploy.yml"),
    "images": (".github/workflows/images.yml", ".azuredevops/images.yml"),
    "promote": (".github/workflows/promote.yml", ".azuredevops/promote.yml"),
}


def parsed(name: str) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load((ROOT / name).read_text())
    return found


def each(value: Any, key: str) -> Iterator[Any]:
    """Every value under that key, at any depth."""
    if isinstance(value, dict):
        for name, inside in value.items():
            if name == key:
                yield inside
            yield from each(inside, key)
    elif isinstance(value, list):
        for inside in value:
            yield from each(inside, key)


def commands(name: str) -> list[str]:
    """What the file runs in a shell."""
    document = parsed(name)
    return [
        text
        for key in ("run", "bash", "script", "inlineScript")
        for text in each(document, key)
        if isinstance(text, str)
    ]


def words(name: str) -> set[str]:
    return {word for text in commands(name) for word in re.findall(r"\bmake ([a-z]+)", text)}


# ------------------------------------------------------------------------------------------------ schemas
def checked(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_the_workflows_are_what_github_takes(schema: str) -> None:
    done = checked("--builtin-schema", schema, *map(str, GITHUB))
    assert done.returncode == 0, done.stdout


# One pattern of Microsoft's schema is no regular expression to the stricter dialect.
_PIPELINES = (
    "--builtin-schema",
    "vendor.azure-pipelines",
    "--data-transform",
    "azure-pipelines",
    "--regex-variant",
    "nonunicode",
)


def test_the_pipelines_are_what_azure_takes() -> None:
    done = checked(*_PIPELINES, *map(str, AZURE))
    assert done.returncode == 0, done.stdout


def test_the_schema_of_azure_finds_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text((ROOT / ".azuredevops/images.yml").read_text().replace("AzureCLI@2", "AzureCLI@9"))
    assert checked(*_PIPELINES, str(wrong)).returncode == 1


# ------------------------------------------------------------------------------------------------ words
@pytest.mark.parametrize("name", NAMES)
def test_every_make_word_exists(name: str) -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert words(name) <= targets


@pytest.mark.parametrize("name", [*NAMES, "Makefile", "azure.yaml", ".ci/run"])
def test_every_script_and_template_that_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"(?<![\w./])((?:scripts|infra|tests|requirements)/[\w./-]+\.\w+)", text))
    templates = list(map(str, each(parsed(name), "template"))) if name in NAMES else []
    # A template's path starts where the file that names it lies.
    named |= {str(((ROOT / name).parent / template).resolve().relative_to(ROOT)) for template in templates}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    scripts = [ROOT / path for path in named if path.startswith("scripts/") and path.endswith(".sh")]
    assert all(os.access(script, os.X_OK) for script in scripts)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_both_services_say_the_same_words(kind: str) -> None:
    here, there = map(words, KINDS[kind])
    assert here == there
    assert here


# ------------------------------------------------------------------------------------------------ secrets and rights
@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_stored(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "secrets." not in text
    assert not re.search(r"(?i)client-?secret|creds:|password|issecret", text)


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.stem)
def test_an_action_is_pinned_to_a_commit_with_its_version_beside_it(path: Path) -> None:
    used = re.findall(r"(?m)^\s*-?\s*uses: (\S+)(.*)$", path.read_text())
    assert used
    for action, rest in used:
        assert action.startswith("./") or re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action
        assert action.startswith("./") or re.fullmatch(r" # v\d+\.\d+\.\d+", rest), action


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.stem)
def test_a_job_may_read_and_only_one_that_signs_in_may_ask_for_a_token(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert document["permissions"] == {"contents": "read"}
    for name, job in document["jobs"].items():
        signs_in = any("azure/login@" in step.get("uses", "") for step in job.get("steps", ()))
        wanted = {"contents": "read", "id-token": "write"} if signs_in else None
        assert job.get("permissions") == wanted, name
        # The environment holds the approvals, and Entra trusts it alone.
        assert ("environment" in job) == signs_in, name


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.stem)
def test_what_somebody_typed_reaches_a_shell_as_a_variable_only(path: Path) -> None:
    assert [text for text in commands(str(path.relative_to(ROOT))) if "${{" in text] == []


@pytest.mark.parametrize("name", [name for name in NAMES if "azure" in name])
def test_an_azure_pipeline_changes_an_environment_in_a_deployment_only(name: str) -> None:
    document = parsed(name)
    jobs = [job for listed in each(document, "jobs") for job in listed if "template" not in job]
    for job in jobs:
        signs_in = any(task == "AzureCLI@2" for task in each(job, "task"))
        assert ("deployment" in job) == signs_in
        assert ("environment" in job) == signs_in
        assert int(job["timeoutInMinutes"]) > 0
    for text in commands(name):
        assert "${{ parameters." not in text or name.endswith("python.yml")


# ------------------------------------------------------------------------------------------------ scripts
@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts alone, beside programs of Azure's names that write down how they were called."""
    (tmp_path / "bin").mkdir()
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for program in (tmp_path / "bin/az", tmp_path / "bin/azd", tmp_path / ".venv/bin/dropforge"):
        program.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            f"name = {program.name!r}\n"
            "with open(os.environ['CALLS'], 'a') as file: file.write(json.dumps([name, *sys.argv[1:]]) + '\\n')\n"
            "said = ' '.join([name, *sys.argv[1:]])\n"
            "print('sha256:42' if 'manifest' in said else 'r.azurecr.io' if 'acr show' in said else '')\n"
            "sys.exit(any(each and each in said for each in os.environ.get('FAILS', '').split(',')))\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def run(checkout: Path, *command: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    calls = checkout / "calls.jsonl"
    calls.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", f"scripts/{command[0]}", *command[1:]],
        cwd=checkout,
        env={"PATH": f"{checkout}/bin:/usr/bin:/bin", "CALLS": str(calls), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    told = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
    return done, told


PLACE = {
    "AZURE_ENV_NAME": "dev",
    "AZURE_SUBSCRIPTION_ID": "s",
    "AZURE_LOCATION": "westeurope",
    "AZURE_RESOURCE_GROUP": "rg-dev",
}


def test_the_infrastructure_is_compiled_and_shown_before_it_is_changed(checkout: Path) -> None:
    done, told = run(checkout, "azure.sh", "provision", **PLACE)
    assert done.returncode == 0, done.stderr
    assert told == [
        ["azd", "env", "select", "dev"],
        ["az", "bicep", "build", "--file", "infra/main.bicep", "--stdout"],
        ["azd", "provision", "--preview", "--no-prompt"],
        ["azd", "provision", "--no-prompt"],
    ]


def test_nothing_is_changed_when_the_infrastructure_does_not_compile(checkout: Path) -> None:
    done, told = run(checkout, "azure.sh", "provision", FAILS="bicep build", **PLACE)
    assert done.returncode != 0
    assert not [call for call in told if call[1] == "provision"]


def test_a_fresh_checkout_gets_the_environment_that_is_named(checkout: Path) -> None:
    (checkout / "dist").mkdir()
    (checkout / "dist/app.zip").touch()
    done, told = run(checkout, "azure.sh", "deploy", FAILS="env select", **PLACE)
    assert done.returncode == 0, done.stderr
    assert told[1:] == [
        ["azd", "env", "new", "dev", "--subscription", "s", "--location", "westeurope", "--no-prompt"],
        ["azd", "env", "set", "AZURE_RESOURCE_GROUP", "rg-dev", "--no-prompt"],
        ["azd", "deploy", "app", "--from-package", "dist/app.zip", "--no-prompt"],
    ]


def test_no_app_is_deployed_without_its_package(checkout: Path) -> None:
    done, told = run(checkout, "azure.sh", "deploy")
    assert done.returncode == 1
    assert "`make package` makes it" in done.stderr
    assert told == []


def test_the_images_are_named_by_digest(checkout: Path) -> None:
    done, told = run(checkout, "images.sh", AZURE_CONTAINER_REGISTRY_NAME="r", TAG="t")
    assert done.stdout.splitlines() == [
        "DROPFORGE_SERVE_IMAGE=r.azurecr.io/dropforge-serving@sha256:42",
        "DROPFORGE_TRAIN_IMAGE=r.azurecr.io/dropforge-training@sha256:42",
    ]
    files = [call[call.index("--file") + 1] for call in told if call[1:3] == ["acr", "build"]]
    assert files == ["infra/docker/serving.Dockerfile", "infra/docker/training.Dockerfile"]
    assert all((ROOT / file).is_file() for file in files)
    assert not [call for call in told if "--build-arg" in call]


def test_an_image_takes_the_arguments_that_are_given_and_its_dockerfile_has(checkout: Path) -> None:
    chosen = {"DROPFORGE_TRAIN_ACCELERATOR": "cuda13", "DROPFORGE_TRAIN_FRAMEWORKS": "torch==2.13.0 onnxscript"}
    _, told = run(checkout, "images.sh", AZURE_CONTAINER_REGISTRY_NAME="r", TAG="t", **chosen)
    serving, training = (call for call in told if call[1:3] == ["acr", "build"])
    given = [training[place + 1] for place, word in enumerate(training) if word == "--build-arg"]
    assert given == ["ACCELERATOR=cuda13", "FRAMEWORKS=torch==2.13.0 onnxscript"]
    assert "--build-arg" not in serving
    for name, wanted in (("serving", {"ACCELERATOR"}), ("training", {"ACCELERATOR", "FRAMEWORKS"})):
        text = (ROOT / f"infra/docker/{name}.Dockerfile").read_text()
        assert wanted <= set(re.findall(r"(?m)^ARG (\w+)", text))


def test_the_context_of_an_image_is_what_its_dockerfile_copies() -> None:
    let_through = set(re.findall(r"(?m)^!(.+)$", (ROOT / ".dockerignore").read_text()))
    copied: set[str] = set()
    for path in (ROOT / "infra/docker").glob("*.Dockerfile"):
        for sources in re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", path.read_text()):
            copied |= {source.split("/")[0] for source in sources.split()}
            assert all((ROOT / source).exists() for source in sources.split())
    assert copied == let_through


@pytest.mark.parametrize("fails", ["acr build", "manifest"])
def test_an_image_that_was_not_built_is_not_named(checkout: Path, fails: str) -> None:
    done, _ = run(checkout, "images.sh", AZURE_CONTAINER_REGISTRY_NAME="r", TAG="t", FAILS=fails)
    assert done.returncode != 0
    assert "IMAGE=" not in done.stdout


def test_a_folder_is_applied_before_a_version_is_promoted(checkout: Path) -> None:
    done, told = run(
        checkout, "promote.sh", PIPELINE="flights", FOLDER="examples/flights", VERSION="3", BY="ada lovelace"
    )
    assert done.returncode == 0, done.stderr
    assert told == [
        ["dropforge", "apply", "--", "flights", "examples/flights"],
        ["dropforge", "promote", "--wait", "--by", "ada lovelace", "--", "flights", "3"],
    ]


def test_a_version_that_was_rolled_back_fails_the_promotion(checkout: Path) -> None:
    done, told = run(checkout, "promote.sh", PIPELINE="flights", FOLDER=" ", VERSION="3", FAILS="promote")
    assert (done.returncode, len(told)) == (1, 1)


def test_nothing_to_promote_is_said(checkout: Path) -> None:
    done, told = run(checkout, "promote.sh", PIPELINE="flights", FOLDER=" ", VERSION=" ")
    assert (done.returncode, told) == (2, [])
    assert "FOLDER, VERSION or both" in done.stderr
