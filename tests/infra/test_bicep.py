"""infra/ as far as it can be checked without Azure, and that the check sees what it should."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.infra import bicep_rules
from tests.infra.bicep_check import check
from tests.infra.bicep_source import known_types

INFRA = Path(__file__).parents[2] / "infra"

# Types that arm-types.json does not have. Their shape is not checked here, so each was read up on by hand.
NOT_CHECKED = frozenset(
    {
        "Microsoft.Consumption/budgets@2023-11-01",
        "Microsoft.Databricks/accessConnectors@2024-05-01",
        "Microsoft.Databricks/workspaces@2024-05-01",
        "Microsoft.EventGrid/topics@2025-02-15",
        "Microsoft.Insights/diagnosticSettings@2021-05-01-preview",
        "Microsoft.Insights/metricAlerts@2018-03-01",
        "Microsoft.Network/privateDnsZones/virtualNetworkLinks@2024-06-01",
        "Microsoft.Network/privateDnsZones@2024-06-01",
        "Microsoft.Network/privateEndpoints/privateDnsZoneGroups@2024-05-01",
        "Microsoft.Network/privateEndpoints@2024-05-01",
        "Microsoft.Network/virtualNetworks/subnets@2024-05-01",
        "Microsoft.Network/virtualNetworks@2024-05-01",
        "Microsoft.ServiceBus/namespaces/networkRuleSets@2024-01-01",
        "Microsoft.Storage/storageAccounts/managementPolicies@2024-01-01",
        "Microsoft.Storage/storageAccounts/tableServices/tables@2024-01-01",
        "Microsoft.Storage/storageAccounts/tableServices@2024-01-01",
    }
)


def test_the_templates_hold() -> None:
    assert check(INFRA, NOT_CHECKED) == []


def test_a_type_that_can_be_checked_is_not_among_those_that_are_not() -> None:
    known = known_types()
    assert [name for name in NOT_CHECKED if name.split("@")[0].lower() in known] == []


def test_no_type_is_left_unchecked_that_is_not_used() -> None:
    text = "".join(path.read_text() for path in INFRA.rglob("*.bicep"))
    assert [name for name in sorted(NOT_CHECKED) if f"'{name}'" not in text] == []


# File, what stands there, what is planted, and what must be said of it.
PLANTED = [
    ("storage", "  kind: 'StorageV2'", "  kind: 'StorageV2' 'x'", "does not parse"),
    ("storage", "allowSharedKeyAccess: false", "allowSharedKeyAcess: false", "unknown property 'allowSharedKeyAcess'"),
    ("storage", "  kind: 'StorageV2'\n", "", "property 'kind' is missing"),
    ("storage", "accessTier: 'Hot'", "accessTier: 'Hott'", "wanted is one of Hot, Cool"),
    ("storage", "accessTier: 'Hot'", "accessTier: 'Hot', provisioningState: 'Succeeded'", "'provisioningState' can be read only"),
    ("storage", "isHnsEnabled: hierarchical", "isHnsEnabled: name", "wanted is true or false, found a text"),
    ("storage", "name: container\n", "name: contaner\n", "'contaner' is defined nowhere"),
    ("storage", "storageAccounts@2024-01-01' = {", "storageAccounts@2023-01-01' = {", "is checked as 2024-01-01, not as 2023-01-01"),
    ("storage", "blobServices@2024-01-01' = {\n  parent: account", "blobServices@2024-01-01' = {", "wants a parent"),
    ("storage", "    parent: blobs\n", "    parent: account\n", "has the parent Microsoft.Storage/storageAccounts"),
    ("storage", "output id string = account.id", "output id string = account", "found a resource"),
    ("storage", "account.properties.primaryEndpoints.blob", "account.properties.primaryEndpoint.blob", "no property 'primaryEndpoint'"),
    ("storage", "@description('Tables to make.')\n", "", "has no @description"),
    ("storage", "param tables array = []", "param tables array = 'x'", "wanted is an array, found 'x'"),
    ("storage", "'TLS1_2'", "'TLS1_0'", "must be TLS1_2 or TLS1_3"),
    ("storage", "allowBlobPublicAccess: false", "allowBlobPublicAccess: hierarchical", "allowBlobPublicAccess must be false"),
    ("storage", "allowSharedKeyAccess: false", "allowSharedKeyAccess: true", "allowSharedKeyAccess must be false"),
    ("storage", "publicAccess: 'None'", "publicAccess: 'Blob'", "publicAccess must be None"),
    ("storage", "output id string = account.id", "output id string = account.listKeys().keys[0].value", "reads a key or a secret"),
    ("storage", "output id string", "output primaryKey string", "gives away a secret"),
    ("messaging", "disableLocalAuth: true", "disableLocalAuth: false", "disableLocalAuth must be true"),
    ("messaging", "queues@2024-01-01' = {", "queue@2024-01-01' = {", "nor among those not checked"),
    ("messaging", "'PT10M'\n    deadLetter", "10\n    deadLetter", "duplicateDetectionHistoryTimeWindow: wanted is a text, found 10"),
    ("identities", "output appId string = app.id", "output appId int = app.id", "wanted is a number, found a text"),
    ("registry", "  tags: tags\n", "", "has no tags"),
    ("registry", "param tags object", "param tags object\n@description('x')\nparam more object", "'more' is used nowhere"),
    ("topic", "    principalType: 'ServicePrincipal'\n", "", "principalType must be"),
    ("topic", "// The app tells what happened.\n", "", "say in a comment above what this role is for"),
    ("topic", "  scope: topic\n", "", "on the whole resource group"),
    ("topic", "roles.eventGridDataSender)\n    principalId", "roles.eventGridSender)\n    principalId", "no property 'eventGridSender'"),
    ("roles", "  // The app takes commands.\n", "", "say in a comment above what this role is for"),
    ("roles", "roles.acrPull)\n    scope", "'7f951dda-4ed3-4680-a7ca-43fe172d538d')\n    scope", "put the role into roles.json"),
    ("roles", "granted[i].id", "granted.id", "there are several of 'granted'"),
    ("events", "'StorageBlob'", "'StorageBlobs'", "endpointType: wanted is one of StorageBlob"),
    ("workspace", "credentialsType: 'None'", "credentialsType: 'AccountKey'", "property 'secrets' is missing"),
    ("workspace", "minNodeCount: 0", "minNodes: 0", "unknown property 'minNodes'"),
    ("durable", "schedulers@2025-11-01'", "schedulers@2025-04-01-preview'", "is a preview"),
    ("main", "tags: tags, privateNetworking: privateNetworking }\n}\n\nmodule topic", "tags: tags }\n}\n\nmodule topic", "parameter 'privateNetworking' is missing"),
    ("main", "location: location, token: token, tags: tags }", "location: location, token: token, tags: 'x' }", "parameter tags: wanted is an object, found 'x'"),
    ("main", "retentionDays: logDays", "retention: logDays", "has no parameter 'retention'"),
    ("main", "'modules/vault.bicep'", "'modules/vaults.bicep'", "there is no file 'modules/vaults.bicep'"),
    ("main", "'modules/vault.bicep'", "'br/public:avm/res/key-vault/vault:0.1.0'", "is fetched from elsewhere"),
    ("main", "identities.outputs.jobsId", "identities.outputs.jobId", "there is no property 'jobId'"),
    ("main", "durableBackend == 'durableTaskScheduler'", "durableBackend == 'scheduler'", "these are never equal"),
    ("main", "param durableBackend string = 'azureStorage'", "param durableBackend string = 'storage'", "found 'storage'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "said"), PLANTED)
def test_a_planted_error_is_seen(name: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    # Of the other modules main.bicep needs what they take and give; a module stands for itself.
    if name == "main":
        infra = Path(shutil.copytree(INFRA, tmp_path / "infra"))
        place = infra / "main.bicep"
    else:
        place = tmp_path / "modules" / f"{name}.bicep"
        place.parent.mkdir()
        shutil.copy(INFRA / "roles.json", tmp_path)
        shutil.copy(INFRA / "modules" / place.name, place)
        infra = tmp_path
    text = place.read_text()
    assert old in text
    place.write_text(text.replace(old, new, 1))
    problems = [str(problem) for problem in check(infra, NOT_CHECKED)]
    assert any(said in problem for problem in problems), problems


def test_a_role_that_is_not_what_its_name_says_is_seen(tmp_path: Path) -> None:
    infra = Path(shutil.copytree(INFRA, tmp_path / "infra"))
    roles = infra / "roles.json"
    roles.write_text(
        roles.read_text().replace(bicep_rules.KNOWN_ROLES["acrPull"], bicep_rules.KNOWN_ROLES["contributor"])
    )
    assert any("acrPull is b24988ac" in problem.said for problem in check(infra, NOT_CHECKED))
