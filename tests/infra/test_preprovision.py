"""The endpoint is made once: `infra/hooks/preprovision.py` with an `az` and an `azd` that are scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

HOOK = Path(__file__).parents[2] / "infra" / "hooks" / "preprovision.py"
WORKSPACE = {
    "id": "/subscriptions/s/resourceGroups/rg/providers/Microsoft.MachineLearningServices/workspaces/ws",
    "tags": {"azd-env-name": "dev"},
}


def provision(
    tmp_path: Path, *, az: str | None, group: str | None = "rg", subscription: str | None = "s"
) -> tuple[int, str, str]:
    """Exit code, what azd was told, and what was complained of."""
    programs, told = tmp_path / "bin", tmp_path / "told"
    programs.mkdir()
    if az is not None:
        _program(programs / "az", az)
    _program(programs / "azd", f'echo "$@" > {told}')
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "AZURE_ENV_NAME": "dev"}
    if group:
        environment["AZURE_RESOURCE_GROUP"] = group
    if subscription:
        environment["AZURE_SUBSCRIPTION_ID"] = subscription
    done = subprocess.run([sys.executable, HOOK], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, told.read_text().strip() if told.exists() else "", done.stderr


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    assert os.access(path, os.X_OK)


def az(workspaces: list[dict[str, object]], endpoints: list[str]) -> str:
    listed, found = json.dumps(workspaces), json.dumps({"value": [{"name": name} for name in endpoints]})
    return f"if [ $1 = resource ]; then echo '{listed}'; else echo '{found}'; fi"


def test_without_an_endpoint_the_template_makes_it(tmp_path: Path) -> None:
    code, told, _ = provision(tmp_path, az=az([WORKSPACE], []))
    assert (code, told) == (0, "env set DROPFORGE_CREATE_ENDPOINT true")


def test_an_endpoint_that_is_there_is_left_alone(tmp_path: Path) -> None:
    code, told, _ = provision(tmp_path, az=az([WORKSPACE], ["ep-1"]))
    assert (code, told) == (0, "env set DROPFORGE_CREATE_ENDPOINT false")


def test_before_the_first_provisioning_there_is_none(tmp_path: Path) -> None:
    code, told, _ = provision(tmp_path, az="echo '(ResourceGroupNotFound) rg could not be found.' >&2; exit 3")
    assert (code, told) == (0, "env set DROPFORGE_CREATE_ENDPOINT true")


def test_the_endpoint_of_another_environment_does_not_count(tmp_path: Path) -> None:
    other = {**WORKSPACE, "tags": {"azd-env-name": "prod"}}
    code, told, _ = provision(tmp_path, az=az([other], ["ep-1"]))
    assert (code, told) == (0, "env set DROPFORGE_CREATE_ENDPOINT true")


def test_the_group_is_looked_for_in_the_subscription_of_the_environment(tmp_path: Path) -> None:
    # Signed in to another one, where there is no such group.
    elsewhere = "echo '(ResourceGroupNotFound) rg could not be found.' >&2; exit 3"
    script = f'case "$*" in rest*|*"--subscription s "*) ;; *) {elsewhere};; esac; {az([WORKSPACE], ["ep-1"])}'
    code, told, _ = provision(tmp_path, az=script)
    assert (code, told) == (0, "env set DROPFORGE_CREATE_ENDPOINT false")


def test_a_subscription_that_is_not_found_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    script = "echo '(SubscriptionNotFound) The subscription s could not be found.' >&2; exit 3"
    code, told, complaint = provision(tmp_path, az=script)
    assert (code, told) == (1, "")
    assert "SubscriptionNotFound" in complaint


def test_where_it_cannot_be_told_nothing_is_provisioned(tmp_path: Path) -> None:
    code, told, complaint = provision(tmp_path, az="echo 'Please run az login' >&2; exit 1")
    assert (code, told) == (1, "")
    assert "az login" in complaint


def test_a_failure_after_the_workspace_was_found_is_not_taken_for_none(tmp_path: Path) -> None:
    script = (
        f"if [ $1 = resource ]; then echo '{json.dumps([WORKSPACE])}'; else echo 'could not be found' >&2; exit 1; fi"
    )
    code, told, _ = provision(tmp_path, az=script)
    assert (code, told) == (1, "")


def test_without_a_group_a_subscription_or_az_it_says_what_to_do(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    assert "azd env set AZURE_RESOURCE_GROUP" in provision(tmp_path / "a", az=az([], []), group=None)[2]
    assert "install the Azure CLI" in provision(tmp_path / "b", az=None)[2]
    assert "azd env set AZURE_SUBSCRIPTION_ID" in provision(tmp_path / "c", az=az([], []), subscription=None)[2]
