"""`infra/entra/register.sh` with an `az` and an `azd` that write down what they are asked."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "entra" / "register.sh"
# Knows one application after it was made, and one assignment after it was given.
AZ = """#!/bin/sh
printf '%s\\n' "$*" >> "$LOG"
case "$*" in
    "ad app list"*) cat "$STATE/app" 2>/dev/null || true ;;
    "ad app create"*) echo client-1 | tee "$STATE/app" ;;
    "ad app show"*) echo object-1 ;;
    "ad sp show"*) echo "principal-of-$5" ;;
    "ad signed-in-user show"*) echo me-1 ;;
    "rest --method get"*appRoleAssignedTo*) grep -c "$(echo "$*" | sed "s/.*principalId=='\\([^']*\\)'.*/\\1/")" "$STATE/given" 2>/dev/null || true ;;
    "rest --method post"*) echo "$*" >> "$STATE/given" ;;
esac
"""
AZD = '#!/bin/sh\nprintf "%s\\n" "$*" >> "$LOG.azd"\n'


Register = Callable[[], tuple[list[str], list[str]]]


@pytest.fixture
def register(tmp_path: Path) -> Register:
    programs, state = tmp_path / "bin", tmp_path / "state"
    programs.mkdir()
    state.mkdir()
    (state / "given").touch()
    for name, script in (("az", AZ), ("azd", AZD)):
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)

    def run() -> tuple[list[str], list[str]]:
        log = tmp_path / "log"
        for each in (log, tmp_path / "log.azd"):
            each.unlink(missing_ok=True)
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "AZURE_ENV_NAME": "dev",
            "LOG": str(log),
            "STATE": str(state),
        }
        subprocess.run([SCRIPT], env=environment, check=True, capture_output=True, text=True)
        return log.read_text().splitlines(), (tmp_path / "log.azd").read_text().splitlines()

    return run


def test_the_application_is_made_once_and_azd_is_told(register: Register) -> None:
    first, told = register()
    assert [line for line in first if line.startswith("ad app create")]
    assert told == ["env set DROPFORGE_API_CLIENT_ID client-1", "env set DROPFORGE_API_OBJECT_ID object-1"]

    second, _ = register()
    assert not [line for line in second if line.startswith(("ad app create", "rest --method post"))]


def test_azure_monitor_becomes_an_operator_and_whoever_runs_it_an_approver(register: Register) -> None:
    asked, _ = register()
    roles = {each["value"]: each["id"] for each in json.loads((SCRIPT.parent / "app-roles.json").read_text())}
    given = [json.loads(line.partition("--body ")[2]) for line in asked if line.startswith("rest --method post")]
    assert [(each["principalId"], each["appRoleId"]) for each in given] == [
        ("principal-of-461e8683-5575-4561-ac7f-899cc907d62a", roles["Dropforge.Operator"]),
        ("me-1", roles["Dropforge.Approver"]),
    ]
    assert all(each["resourceId"] == "principal-of-client-1" for each in given)


def test_tokens_have_the_issuer_that_app_service_believes_and_no_secret_is_made(register: Register) -> None:
    asked, _ = register()
    assert not [line for line in asked if "credential" in line or "password" in line]
    api, allowed = (
        json.loads((SCRIPT.parent / name).read_text())["api"] for name in ("api.json", "preauthorized.json")
    )
    sent = [line.rpartition("@")[2] for line in asked if line.startswith("rest --method patch")]
    assert sent == ["api.json", "preauthorized.json"]
    assert api["requestedAccessTokenVersion"] == 2
    (scope,), (client,) = api["oauth2PermissionScopes"], allowed["preAuthorizedApplications"]
    assert client["delegatedPermissionIds"] == [scope["id"]]
