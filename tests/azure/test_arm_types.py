"""The official types say what is wrong with a body, and nothing against one that is right."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.azure import arm_types

JOBS = "Microsoft.MachineLearningServices/workspaces/jobs"
ENDPOINTS = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints"
WORKSPACE = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers"
    "/Microsoft.MachineLearningServices/workspaces/ws"
)

# As azure-ai-ml 1.35.2 sends it for a command job, without its nulls.
JOB: dict[str, Any] = {
    "properties": {
        "description": "a job",
        "displayName": "flights",
        "experimentName": "flights",
        "isArchived": False,
        "jobType": "Command",
        "tags": {"dataset": "flights@3"},
        "properties": {},
        "command": "dropforge train-node --run ${{inputs.run}} --output ${{outputs.output}}",
        "computeId": f"{WORKSPACE}/computes/gpu",
        "environmentId": f"{WORKSPACE}/environments/train/versions/1",
        "environmentVariables": {"SEED": "7"},
        "inputs": {
            "run": {
                "jobInputType": "uri_file",
                "mode": "ReadOnlyMount",
                "uri": "azureml://datastores/dropforge_runs/paths/r/run.json",
            },
            "rate": {"jobInputType": "literal", "value": "0.1"},
        },
        "outputs": {
            "output": {
                "jobOutputType": "uri_folder",
                "mode": "ReadWriteMount",
                "uri": "azureml://datastores/dropforge_runs/paths/r/output",
            }
        },
        "distribution": {"distributionType": "PyTorch", "processCountPerInstance": 2},
        "resources": {"instanceCount": 2, "shmSize": "2g", "properties": {}},
        "limits": {"jobLimitsType": "Command", "timeout": "PT1H"},
        "identity": {"identityType": "Managed", "clientId": "00000000-0000-0000-0000-000000000001"},
        "queueSettings": {"jobTier": "Standard"},
    }
}
ENDPOINT: dict[str, Any] = {
    "location": "westeurope",
    "identity": {"type": "SystemAssigned"},
    "tags": {},
    "properties": {"authMode": "Key", "traffic": {"blue": 100}, "mirrorTraffic": {}, "publicNetworkAccess": "Enabled"},
}

# Where, what stands there instead, and what is said of it. A None takes it away.
MUTATIONS: list[tuple[str, Any, str]] = [
    ("properties.command", None, "'command' is a required property"),
    ("properties.command", 3, "is not of type 'string'"),
    ("properties.environmentId", "", "should be non-empty"),
    ("properties.comand", "true", "'comand' was unexpected"),
    ("properties.status", "Running", "'status' is read-only"),
    ("systemData", {}, "'systemData' is read-only"),
    ("sku", {}, "'sku' was unexpected"),
    ("properties.jobType", "Comand", "'Comand' is not one of"),
    ("properties.jobType", None, "'jobType' is a required property"),
    ("properties.distribution.distributionType", "Horovod", "'Horovod' is not one of"),
    ("properties.distribution.processCountPerInstance", "two", "is not of type 'number'"),
    ("properties.inputs.run.jobInputType", "uri_fold", "'uri_fold' is not one of"),
    ("properties.inputs.run.uri", None, "'uri' is a required property"),
    ("properties.outputs.output.mode", "ReadWrite", "'ReadWrite' is not one of"),
    ("properties.resources.instanceCount", "2", "is not of type 'number'"),
    ("properties.resources.shmSize", "2 gigabytes", "does not match"),
    ("properties.identity.identityType", None, "'identityType' is a required property"),
    ("properties.limits.jobLimitsType", "Command ", "is not one of"),
    ("properties.description", 3, "is not of type 'string'"),
    ("properties.queueSettings.priority", 2, "'priority' was unexpected"),
    ("properties", None, "'properties' is a required property"),
]


def mutated(body: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    result = copy.deepcopy(body)
    *path, last = where.split(".")
    inner = result
    for name in path:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return result


@pytest.mark.parametrize("version", ["2025-12-01", "2025-01-01-preview"])
def test_a_job_as_the_sdk_sends_it_is_right(version: str) -> None:
    assert arm_types.problems(JOBS, version, JOB) == []


def test_an_endpoint_as_the_sdk_sends_it_is_right() -> None:
    assert arm_types.problems(ENDPOINTS, "2022-02-01-preview", ENDPOINT) == []


@pytest.mark.parametrize(("where", "value", "said"), MUTATIONS)
def test_a_mutation_of_a_job_is_caught(where: str, value: Any, said: str) -> None:
    found = arm_types.problems(JOBS, "2025-12-01", mutated(JOB, where, value))

    assert any(said in problem for problem in found), found


def test_a_number_of_azure_may_have_a_fraction() -> None:
    body = {
        "properties": {"endpointComputeType": "Managed", "dataCollector": {"collections": {}, "rollingRate": "Day"}}
    }
    body["properties"]["dataCollector"]["collections"] = {"in": {"dataCollectionMode": "Enabled", "samplingRate": 0.5}}  # type: ignore[index]

    kind = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments"
    assert arm_types.problems(kind, "2025-12-01", body) == ["body: 'location' is a required property"]


def test_a_value_that_an_extensible_enum_does_not_list_is_refused_only_strictly() -> None:
    body = mutated(JOB, "properties.queueSettings.jobTier", "Turbo")

    assert len(arm_types.problems(JOBS, "2025-12-01", body)) == 1
    assert arm_types.problems(JOBS, "2025-12-01", body, strict=False) == []


def test_a_part_of_a_body_lacks_nothing_but_holds_nothing_unknown() -> None:
    assert arm_types.problems(ENDPOINTS, "2025-12-01", {"tags": {"a": "b"}}, partial=True) == []
    assert arm_types.problems(ENDPOINTS, "2025-12-01", {"tag": {}}, partial=True) != []


def test_another_version_of_a_type_is_held_to_the_one_there_is_and_says_so() -> None:
    found = arm_types.problems(JOBS, "2024-01-01-preview", mutated(JOB, "properties.comand", "true"))

    assert [problem.endswith("(of 2025-12-01, sent as 2024-01-01-preview)") for problem in found] == [True]


def test_an_unknown_type_is_an_error() -> None:
    with pytest.raises(KeyError, match="no type"):
        arm_types.problems("Microsoft.MachineLearningServices/workspaces/job", "2025-12-01", JOB)
