"""The project's own rules for infra/: no keys, no secrets, nothing public, every role with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tests.infra.bicep_source import Problem
from tests.infra.bicep_types import READ_ONLY, Bag, Kind, Resource, Text, Truth, named, settled

if TYPE_CHECKING:
    from tree_sitter import Node

    from tests.infra.bicep_check import File
    from tests.infra.bicep_source import Declared

# https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
KNOWN_ROLES = {
    "acrPull": "7f951dda-4ed3-4680-a7ca-43fe172d538d",
    "azureMLDataScientist": "f6c7c914-8db3-469d-8ca1-694a8f32e121",
    "azureMLMetricsWriter": "635dd51f-9968-44d3-b7fb-6d9a6bd613ae",
    "contributor": "b24988ac-6180-42a0-ab88-20f7382dd24c",
    "durableTaskDataContributor": "0ad04412-c4d5-4796-b79c-f76d14c8d402",
    "eventGridDataSender": "d5a91429-5739-47e2-a06b-3470a27159e7",
    "keyVaultAdministrator": "00482a5a-887f-4fb3-b363-3b7fe8e74483",
    "managedIdentityOperator": "f1a07417-d97a-45cb-824c-7a7467783830",
    "monitoringMetricsPublisher": "3913510d-42f4-4e42-8a64-420c390055eb",
    "networkConnectionApprover": "b556d68e-0be0-4f35-a333-ad7ee1ce17ea",
    "serviceBusDataReceiver": "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0",
    "serviceBusDataSender": "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39",
    "storageBlobDataContributor": "ba92f5b4-2d11-453d-a403-e96b0029c9fe",
    "storageBlobDataOwner": "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
    "storageBlobDataReader": "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1",
    "storageQueueDataContributor": "974c5e8b-45b9-4653-ba55-5f855dd0fb88",
    "storageTableDataContributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
}
ROLE_ASSIGNMENT = "Microsoft.Authorization/roleAssignments"
# What must be said, and what it may be.
MUST: dict[str, dict[str, bool | tuple[str, ...]]] = {
    "Microsoft.ContainerRegistry/registries": {"properties.adminUserEnabled": False},
    "Microsoft.EventGrid/topics": {
        "properties.disableLocalAuth": True,
        "properties.minimumTlsVersionAllowed": ("1.2", "1.3"),
    },
    "Microsoft.Insights/components": {"properties.DisableLocalAuth": True},
    "Microsoft.KeyVault/vaults": {
        "properties.enablePurgeProtection": True,
        "properties.enableRbacAuthorization": True,
        "properties.enableSoftDelete": True,
    },
    "Microsoft.MachineLearningServices/workspaces": {"properties.systemDatastoresAuthMode": ("Identity",)},
    "Microsoft.MachineLearningServices/workspaces/computes": {"properties.disableLocalAuth": True},
    "Microsoft.MachineLearningServices/workspaces/datastores": {"properties.credentials.credentialsType": ("None",)},
    "Microsoft.MachineLearningServices/workspaces/onlineEndpoints": {"properties.authMode": ("AADToken",)},
    "Microsoft.OperationalInsights/workspaces": {"properties.features.disableLocalAuth": True},
    "Microsoft.ServiceBus/namespaces": {
        "properties.disableLocalAuth": True,
        "properties.minimumTlsVersion": ("1.2", "1.3"),
    },
    "Microsoft.Storage/storageAccounts": {
        "properties.allowBlobPublicAccess": False,
        "properties.allowSharedKeyAccess": False,
        "properties.minimumTlsVersion": ("TLS1_2", "TLS1_3"),
        "properties.supportsHttpsTrafficOnly": True,
    },
    "Microsoft.Storage/storageAccounts/blobServices/containers": {"properties.publicAccess": ("None",)},
    "Microsoft.Web/sites": {
        "properties.httpsOnly": True,
        "properties.siteConfig.minTlsVersion": ("1.2", "1.3"),
        "properties.siteConfig.scmMinTlsVersion": ("1.2", "1.3"),
    },
    ROLE_ASSIGNMENT: {"properties.principalType": ("ServicePrincipal", "User", "Group")},
}
# Types that arm-types.json does not have, and that take tags.
TAGGED = {
    "Microsoft.Databricks/accessConnectors",
    "Microsoft.Databricks/workspaces",
    "Microsoft.EventGrid/topics",
    "Microsoft.Insights/metricAlerts",
    "Microsoft.Network/privateDnsZones",
    "Microsoft.Network/privateDnsZones/virtualNetworkLinks",
    "Microsoft.Network/privateEndpoints",
    "Microsoft.Network/virtualNetworks",
}
# There is no other version of it.
PREVIEWS = {"Microsoft.Insights/diagnosticSettings@2021-05-01-preview"}
_SECRET = re.compile(
    r"secret|password|connection_?string|(access|primary|secondary|account|admin)_?key|sas_?token", re.IGNORECASE
)
_LISTS = re.compile(r"\blist[A-Z]\w*\s*\(")
_GUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def check(file: File) -> None:
    """Add to the file's problems what breaks a rule."""
    for line, said in enumerate((file.root.text or b"").decode().splitlines(), 1):
        code = said.split("//", 1)[0] if "'" not in said.split("//", 1)[0] else said
        if _LISTS.search(code):
            _at(file, line, "reads a key or a secret; use an identity")
        if _GUID.search(code):
            _at(file, line, "a GUID: put the role into roles.json under its name")
    for declared in file.declared.values():
        _RULES[declared.kind](file, declared)


def _at(file: File, line: int, said: str) -> None:
    file.problems.add(Problem(file.path.relative_to(file.files.folder).as_posix(), line, said))


def _parameter(file: File, declared: Declared) -> None:
    if declared.decorator("description") is None:
        file.problem(declared.node, f"parameter {declared.name} has no @description")


def _variable(file: File, declared: Declared) -> None:
    """Where roles come from a file, that file holds known ones only."""
    text = (declared.value.text or b"").decode()
    if "roles.json" not in text:
        return
    place = file.path.parent / text.split("'")[1]
    if place.is_file():
        for name, guid in json.loads(place.read_text()).items():
            if KNOWN_ROLES.get(name) != guid:
                file.problem(declared.node, f"{place.name}: {name} is {guid}, which is not that built-in role")


def _module(file: File, declared: Declared) -> None:
    if re.match(r"[a-z]+[:/]", file.type_of(declared)) and not (file.path.parent / file.type_of(declared)).is_file():
        file.problem(declared.node, f"module {declared.name} is fetched from elsewhere; keep it in infra/modules")


def _output(file: File, declared: Declared) -> None:
    name, text = declared.name.removeprefix("output "), (declared.value.text or b"").decode()
    secure = [each.name for each in file.of_kind("parameter") if each.decorator("secure") is not None]
    if (
        _SECRET.search(name)
        or declared.decorator("secure") is not None
        or any(re.search(rf"\b{each}\b", text) for each in secure)
    ):
        file.problem(
            declared.node, f"output {name} gives away a secret: outputs are kept in the history of deployments"
        )


def _resource(file: File, declared: Declared) -> None:
    if file.existing(declared):
        return
    type_, _, version = file.type_of(declared).partition("@")
    body = file.body(declared)
    if version.endswith("-preview") and f"{type_}@{version}" not in PREVIEWS:
        file.problem(declared.node, f"{type_}@{version} is a preview")
    for path, wanted in MUST.get(type_, {}).items():
        for said in _unlike(_at_path(body, path), wanted):
            file.problem(declared.node, f"{declared.name}: {path} {said}")
    if _takes_tags(file, declared, type_) and "tags" not in body.fields:
        file.problem(declared.node, f"{declared.name} ({type_}) has no tags")
    if type_ == ROLE_ASSIGNMENT:
        if "scope" not in body.fields:
            file.problem(declared.node, f"{declared.name} gives a role on the whole resource group; give it a scope")
        for node in _grants(file, declared):
            if not _has_comment(node):
                file.problem(node, f"{declared.name}: say in a comment above what this role is for")


def _grants(file: File, declared: Declared) -> Iterator[Node]:
    """Where a reason belongs: above the assignment, or above each object of the list that it goes through."""
    value = declared.value
    if value.type == "for_statement":
        over = file.declared.get((value.named_children[1].text or b"").decode())
        if over is not None and over.kind == "variable" and over.value.type == "array":
            yield from (each for each in over.value.named_children if each.type == "object")
            return
    yield declared.node


def _has_comment(node: Node) -> bool:
    """A comment that ends on the line above."""
    before = node.prev_named_sibling
    return before is not None and before.type == "comment" and before.end_point[0] == node.start_point[0] - 1


def _takes_tags(file: File, declared: Declared, type_: str) -> bool:
    symbol = file.symbol(declared.name)
    if not isinstance(symbol, Resource) or symbol.body is None:
        return type_ in TAGGED
    said = symbol.body.types.fields(symbol.body.index).get("tags")
    return said is not None and not said["flags"] & READ_ONLY


def _at_path(body: Bag, path: str) -> Kind | None:
    found: Kind | None = body
    for name in path.split("."):
        found = found.fields.get(name) if isinstance(found, Bag) else None
    return None if found is None else settled(found)


def _unlike(found: Kind | None, wanted: bool | tuple[str, ...]) -> Iterator[str]:
    """It is written out, so that no parameter changes it."""
    if isinstance(wanted, bool):
        if found != Truth(wanted):
            yield f"must be {str(wanted).lower()}, written out"
    elif not (isinstance(found, Text) and found.of is not None and set(found.of) <= set(wanted)):
        yield f"must be {' or '.join(wanted)}, found {named(found) if found is not None else 'nothing'}"


_RULES: dict[str, Callable[[File, Declared], None]] = {
    "parameter": _parameter,
    "variable": _variable,
    "module": _module,
    "output": _output,
    "resource": _resource,
}
