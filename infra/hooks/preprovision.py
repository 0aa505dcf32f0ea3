"""Before azd provisions: says whether the template may make the online endpoint.

The template's PUT of an endpoint carries no traffic, so it would take all traffic away from one that answers. The endpoint
is therefore made only while the workspace has none; from then on it is the app's. Needs `az`, signed in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

SETTING = "DROPFORGE_CREATE_ENDPOINT"
WORKSPACES = "Microsoft.MachineLearningServices/workspaces"
API_VERSION = "2025-12-01"
# What `az` says before the first provisioning. Of a subscription that it does not find it says that it could not be found, too.
NOTHING_YET = re.compile(r"ResourceGroupNotFound|Resource group '.*' could not be found")


class CannotTell(Exception):
    """Why it is not known whether there is an endpoint. Nothing may be provisioned then."""


def endpoints(subscription: str, group: str, environment: str) -> list[str]:
    """The online endpoints of the workspaces that this environment has made."""
    # Not the one that `az` would take by itself: azd has a choice of its own, and where the group is not there is none.
    where = ("--subscription", subscription, "--resource-group", group)
    listed = _az("resource", "list", *where, "--resource-type", WORKSPACES)
    if listed is None:
        return []
    found = []
    for workspace in listed:
        if (workspace.get("tags") or {}).get("azd-env-name") == environment:
            url = f"{workspace['id']}/onlineEndpoints?api-version={API_VERSION}"
            found += [each["name"] for each in _az("rest", "--method", "get", "--url", url)["value"]]
    return found


def decide(environment: Mapping[str, str]) -> bool:
    """Whether the template may make the endpoint. Raises `CannotTell` with what to do."""
    group, name = environment.get("AZURE_RESOURCE_GROUP"), environment.get("AZURE_ENV_NAME")
    if not group or not name:
        raise CannotTell(
            "AZURE_RESOURCE_GROUP is not set: make the group, then `azd env set AZURE_RESOURCE_GROUP <name>`"
        )
    subscription = environment.get("AZURE_SUBSCRIPTION_ID")
    if not subscription:
        raise CannotTell("AZURE_SUBSCRIPTION_ID is not set: `azd env set AZURE_SUBSCRIPTION_ID <id>`")
    return not endpoints(subscription, group, name)


def _az(*arguments: str) -> Any:
    program = shutil.which("az")
    if program is None:
        raise CannotTell("az is not on the PATH: install the Azure CLI and sign in with `az login`")
    told = subprocess.run([program, *arguments, "--output", "json"], capture_output=True, text=True, check=False)
    if told.returncode == 0:
        return json.loads(told.stdout or "null")
    if arguments[0] == "resource" and NOTHING_YET.search(told.stderr):
        return None
    raise CannotTell(f"`az {' '.join(arguments[:2])}` failed; sign in with `az login`: {told.stderr.strip()[-400:]}")


def main() -> int:
    azd = shutil.which("azd")
    try:
        create = decide(os.environ)
        if azd is None:
            raise CannotTell("azd is not on the PATH")
    except CannotTell as error:
        sys.stderr.write(f"preprovision: {error}\n")
        return 1
    told = "the endpoint is made" if create else "there is an endpoint already, and it is left alone"
    sys.stdout.write(f"preprovision: {told}\n")
    return subprocess.run([azd, "env", "set", SETTING, str(create).lower()], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
