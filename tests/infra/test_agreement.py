"""infra/ and the code say the same: queues, containers, settings, doors, and what azd is told."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from dropforge import settings
from dropforge.adapters.azure import places, serving
from functions.access import APP_ROLES
from tests.infra.bicep_check import File, Files
from tests.infra.bicep_source import Declared, Node, literal, part, text, values_of
from tests.infra.bicep_types import Bag, Text, Truth, Whole
from tests.infra.test_bicep import INFRA

ROOT = INFRA.parent
# App settings that the host or the SDKs know, and our code does not read by these names.
OF_THE_HOST = {
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "AZURE_CLIENT_ID",
    "AzureFunctionsJobHost__extensions__durableTask__hubName",
    "AzureFunctionsJobHost__extensions__durableTask__storageProvider__connectionStringName",
    "AzureFunctionsJobHost__extensions__durableTask__storageProvider__type",
    "AzureWebJobsStorage__accountName",
    "AzureWebJobsStorage__clientId",
    "AzureWebJobsStorage__credential",
    "DURABLE_TASK_SCHEDULER_CONNECTION_STRING",
    "SERVICE_BUS__credential",
}
WORKSPACE = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/"
    "Microsoft.MachineLearningServices/workspaces/ws"
)


def module(files: Files, name: str) -> File:
    file = files.get(INFRA / name)
    assert file is not None
    return file


def resources(file: File, type_: str) -> Iterator[Bag]:
    for declared in file.of_kind("resource"):
        if file.type_of(declared).split("@")[0] == type_ and not file.existing(declared):
            yield file.body(declared)


def at(file: File, declared: Declared, path: str) -> Node:
    """The node at a path in the object of a declaration."""
    node, _ = file.bodies(declared) if declared.kind in ("resource", "module") else (declared.value, {})
    for name in path.split(".") if path else ():
        fields = {text(each.named_children[0]): each.named_children[-1] for each in values_of(node)}
        node = fields[name]
    return node


def plain(value: object) -> object:
    match value:
        case Text(of=(only,)) | Whole(of=(only,)):
            return only
        case Truth(of=bool() as told):
            return told
        case Bag(fields=fields):
            return {name: plain(each) for name, each in fields.items()}
    raise AssertionError(f"{value} is not written out")


def keys(node: Node) -> list[str]:
    return [text(each.named_children[0]) for each in values_of(node)]


def app_settings(files: Files) -> set[str]:
    """Every setting that the app can be given."""
    main, app = module(files, "main.bicep"), module(files, "modules/app.bicep")
    found = keys(main.declared["always"].value)
    for name in ("onScheduler", "onDatabricks"):
        found += keys(part(main.declared[name].value, "consequence"))
    _, laid_over = values_of(part(at(app, app.declared["settings"], "properties"), "arguments"))
    return {*found, *keys(laid_over)}


def test_the_namespace_has_the_queues_of_servicebus_json(files: Files) -> None:
    (declared,) = json.loads((ROOT / "servicebus.json").read_text())["UserConfig"]["Namespaces"]
    wanted = {
        queue["Name"]: {name[0].lower() + name[1:]: value for name, value in queue.get("Properties", {}).items()}
        for queue in declared["Queues"]
    }
    messaging = module(files, "modules/messaging.bicep")
    found = {
        plain(body.fields["name"]): plain(body.fields["properties"])
        for body in resources(messaging, "Microsoft.ServiceBus/namespaces/queues")
    }
    assert found == wanted
    topics = {plain(body.fields["name"]) for body in resources(messaging, "Microsoft.ServiceBus/namespaces/topics")}
    assert topics == {topic["Name"] for topic in declared.get("Topics", [])}


def test_the_app_may_receive_from_every_queue_that_triggers_it(files: Files) -> None:
    triggers = {
        keyword.value.value
        for path in (ROOT / "functions").glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "queue_name" and isinstance(keyword.value, ast.Constant)
    }
    grants = text(module(files, "modules/roles.bicep").declared["onQueues"].value)
    assert set(re.findall(r"queue: '(\w+)', role: roles.serviceBusDataReceiver", grants)) == triggers


def test_every_setting_that_the_app_is_given_is_one_that_somebody_reads(files: Files) -> None:
    source = Path(settings.__file__).read_text()
    connection = {f"SERVICE_BUS{part}" for part in re.findall(r'_connection\(environment, "(\w*)"\)', source)}
    ours = {*re.findall(r'"(DROPFORGE_\w+)"', source), *connection}
    assert app_settings(files) - ours - OF_THE_HOST == set()


def test_the_app_is_given_everything_that_the_azure_adapters_want(files: Files) -> None:
    main = module(files, "main.bicep")
    placeholder = {
        "DROPFORGE_AML_WORKSPACE": WORKSPACE,
        "DROPFORGE_SERVE_INSTANCES": "2",
        "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": "ClientId=x;Authorization=AAD",
        "DROPFORGE_SERVE_WORKERS": "0",
        "DROPFORGE_SERVE_LOG_REQUESTS": "0.01",
        "DROPFORGE_HTTP_AUTH": "entra",
        "DROPFORGE_KEY_ROLES": "0123456789abcdef=reader",
        "DROPFORGE_DEFAULT_KEY_ROLE": "none",
        "DROPFORGE_DATABRICKS_VOLUMES": "/Volumes/main/dropforge",
    }
    always = main.symbol("always")
    assert isinstance(always, Bag)
    # What one value stands for; the rest is only known when it is deployed.
    written = {
        name: value.of[0]
        for name, value in always.fields.items()
        if isinstance(value, Text) and value.of and len(value.of) == 1 and value.of[0]
    }
    environment = {name: written.get(name) or placeholder.get(name, "x") for name in app_settings(files)}

    read = settings.read(environment)

    assert (read.adapters, read.drops, read.http_auth) == ("azure", "azure", "entra")
    assert None not in (read.storage, read.ledger, read.service_bus_namespace, read.service_bus_client_id)
    assert read.events_topic_endpoint is not None
    assert read.azureml is not None and None not in vars(read.azureml).values()
    assert read.databricks is not None and None not in vars(read.databricks).values()


def test_containers_and_their_datastores_are_those_of_the_adapters(files: Files) -> None:
    main, workspace = module(files, "main.bicep"), module(files, "modules/workspace.bicep")
    kept = {places.ARTIFACTS, places.TABLES, places.RUNS, places.SERVING}
    made = [text(each).strip("'") for each in values_of(at(main, main.declared["lake"], "params.containers"))]
    assert set(made) == {"dropContainer", *kept}

    loop = workspace.declared["datastores"].value
    containers = [literal(each) for each in values_of(values_of(loop)[1])]
    assert {each: f"dropforge_{each}" for each in containers} == places.DATASTORES
    assert literal(at(workspace, workspace.declared["datastores"], "name")) == "dropforge_${container}"

    tables = [literal(each) for each in values_of(at(main, main.declared["hostStorage"], "params.tables"))]
    assert tables == [places.LEDGER]


# The data actions of Storage Blob Data Contributor:
# https://learn.microsoft.com/azure/role-based-access-control/built-in-roles/storage#storage-blob-data-contributor
BLOB_ACTIONS = ("read", "write", "delete", "add/action", "move/action")
BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs"


def lets(condition: str, action: str, container: str, path: str) -> bool:
    """What a condition of a role assignment comes to; of its language what is used here."""
    said = {f"{BLOBS}:path": path, f"{BLOBS.removesuffix('/blobs')}:name": container}
    told = re.sub(r"ActionMatches\{'([^']+)'\}", lambda found: str(found[1] == f"{BLOBS}/{action}"), condition)
    told = re.sub(
        r"@Resource\[([^\]]+)\] (StringLike|StringEquals) '([^']+)'",
        lambda found: str(fnmatchcase(said[found[1]], found[3])),
        told,
    )
    told = told.replace("!", " not ").replace("AND", "and").replace("OR", "or")
    assert set(re.findall(r"\w+", told)) <= {"True", "False", "not", "and", "or"}
    return bool(eval(" ".join(told.split())))


def test_replicas_write_their_reports_and_logs_and_nothing_else(files: Files) -> None:
    roles = module(files, "modules/roles.bicep")
    (grant,) = (each for each in roles.of_kind("resource") if each.name == "replicasReport")
    assert text(at(roles, grant, "properties.condition")) == "onlyReports"
    assert literal(at(roles, grant, "properties.conditionVersion")) == "2.0"
    condition = text(roles.declared["onlyReports"].value).strip("'")

    def may(path: str) -> set[str]:
        return {action for action in BLOB_ACTIONS if lets(condition, action, places.SERVING, path)}

    assert may(serving._report_name("r1", "flights")) == {"read", "write", "delete", "add/action"}
    assert may("logs/flights/date=2026-01-31/hour=07/r1-1.parquet") == {"read", "write", "delete", "add/action"}
    assert may(serving._desired_name("flights")) == {"read"}
    # It is the only role there that they are given.
    assert "replicasPrincipalId" not in re.findall(
        r"container: 'serving',\s+principal: (\w+)", text(roles.declared["onContainers"].value)
    )


def test_the_app_may_use_every_container(files: Files) -> None:
    grants = text(module(files, "modules/roles.bicep").declared["onContainers"].value)
    granted = re.findall(r"container: '?(\w+)'?,\s+principal: appPrincipalId", grants)
    assert set(granted) == {"dropContainer", places.ARTIFACTS, places.TABLES, places.RUNS, places.SERVING}


def test_an_endpoint_that_the_app_makes_is_like_the_one_of_the_template(files: Files) -> None:
    main, workspace = module(files, "main.bicep"), module(files, "modules/workspace.bicep")
    made = workspace.declared["endpoint"]
    assert literal(at(main, main.declared["always"], "DROPFORGE_AML_ENDPOINT_AUTH")) == "aad_token"
    assert literal(at(workspace, made, "properties.authMode")) == "AADToken"
    assert text(at(main, main.declared["always"], "DROPFORGE_AML_ENDPOINT_PUBLIC")) == (
        "privateNetworking ? 'false' : 'true'"
    )
    assert text(at(workspace, made, "properties.publicNetworkAccess")) == ("privateNetworking ? 'Disabled' : 'Enabled'")


def test_the_scheduler_has_the_task_hub_of_host_json(files: Files) -> None:
    host = json.loads((ROOT / "host.json").read_text())
    hub = module(files, "modules/durable.bicep").declared["hub"]
    assert (
        literal(at(module(files, "modules/durable.bicep"), hub, "name")) == host["extensions"]["durableTask"]["hubName"]
    )


def test_alerts_are_sent_to_a_door_that_is_there(files: Files) -> None:
    alerts = (INFRA / "modules" / "alerts.bicep").read_text()
    (path,) = re.findall(r"serviceUri: 'https://\$\{appHost\}(/[\w/]+)'", alerts)
    prefix = json.loads((ROOT / "host.json").read_text())["extensions"]["http"]["routePrefix"]
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
    assert "post" in paths[path.removeprefix(f"/{prefix}")]


def test_azd_fills_parameters_that_there_are_and_all_that_have_no_default(files: Files) -> None:
    main = module(files, "main.bicep")
    given = json.loads((INFRA / "main.parameters.json").read_text())["parameters"]
    declared = {each.name: each for each in main.of_kind("parameter")}
    assert set(given) <= set(declared)
    assert {name for name, each in declared.items() if not main.has_default(each)} <= set(given)


def test_azd_gives_what_the_template_gives_where_nothing_is_set(files: Files) -> None:
    main = module(files, "main.bicep")
    given = json.loads((INFRA / "main.parameters.json").read_text())["parameters"]
    for name, each in given.items():
        variable = re.fullmatch(r"\$\{(\w+)(?:=(.*))?\}", each["value"])
        assert variable is not None, name
        declared = main.declared[name]
        if main.has_default(declared) and not variable[1].startswith("AZURE_"):
            assert (variable[2] or "") == text(declared.value).strip("'"), name


def test_no_two_parameters_are_one_variable() -> None:
    values = [each["value"] for each in json.loads((INFRA / "main.parameters.json").read_text())["parameters"].values()]
    assert len({value.partition("=")[0].rstrip("}") for value in values}) == len(values)


def test_azure_yaml_is_as_azd_wants_it(files: Files) -> None:
    wanted = json.loads(Path(__file__).with_name("azure-yaml.schema.json").read_text())
    told = yaml.safe_load((ROOT / "azure.yaml").read_text())
    assert [error.message for error in Draft202012Validator(wanted).iter_errors(told)] == []

    (service,) = told["services"]
    tags = text(at(module(files, "modules/app.bicep"), module(files, "modules/app.bicep").declared["app"], "tags"))
    assert f"'azd-service-name': '{service}'" in tags
    for hook in told["hooks"].values():
        for script in re.findall(r"[\w/]+\.py", json.dumps(hook)):
            assert (ROOT / script).is_file()


@pytest.mark.parametrize(
    "broken", [{"name": "X Y"}, {"services": {"app": {"host": "function"}}}, {"hooks": {"preprovison": {}}}]
)
def test_an_azure_yaml_that_azd_would_refuse_is_seen(broken: dict[str, object]) -> None:
    wanted = json.loads(Path(__file__).with_name("azure-yaml.schema.json").read_text())
    told = yaml.safe_load((ROOT / "azure.yaml").read_text()) | broken
    assert not Draft202012Validator(wanted).is_valid(told)


def test_the_entra_application_has_the_roles_that_the_app_knows() -> None:
    told = json.loads((INFRA / "entra" / "app-roles.json").read_text())
    assert [each["value"] for each in told] == list(APP_ROLES)
    assert len({each["id"] for each in told}) == len(told)


def test_the_guide_names_variables_that_there_are() -> None:
    given = json.dumps(json.loads((INFRA / "main.parameters.json").read_text()))
    known = {
        *re.findall(r"\$\{(\w+)", given),
        *re.findall(r"^output (\w+)", (INFRA / "main.bicep").read_text(), re.MULTILINE),
    }
    # Of the command line, of scripts/images.sh, and of azd itself.
    known |= {"DROPFORGE_URL", "DROPFORGE_KEY", "DROPFORGE_AUDIENCE", "AZURE_RESOURCE_GROUP"}
    guide = (ROOT / "docs" / "deploy.md").read_text()
    assert set(re.findall(r"\b(?:DROPFORGE|AZURE)_[A-Z_]*[A-Z]", guide)) <= known


@pytest.mark.parametrize("guide", ["deploy.md", "operate.md"])
def test_the_guides_know_every_alert(files: Files, guide: str) -> None:
    alerts = module(files, "modules/alerts.bicep")
    names = [literal(at(alerts, each, "name")) for each in alerts.of_kind("resource") if each.value.type == "object"]
    told = (ROOT / "docs" / guide).read_text()
    assert [name for name in names if name.startswith("dropforge-") and f"`{name}`" not in told] == []


@pytest.mark.parametrize("guide", ["security.md", "operate.md"])
def test_what_a_guide_rests_on_is_there(guide: str) -> None:
    told = (ROOT / "docs" / guide).read_text()
    folders = ("dropforge", "functions", "tests", "scripts", "infra")
    there = [path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")]
    named = re.findall(r"\w[\w/]*\.(?:py|bicep)\b", told)
    assert named
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)] == []


def test_files_of_infra_that_something_names_are_there() -> None:
    places = [ROOT / "azure.yaml", *INFRA.rglob("*.bicep"), *INFRA.rglob("*.json"), *(ROOT / "docs").glob("*.md")]
    named = {name for place in places for name in re.findall(r"(?<![\w/])infra/[\w./-]*\w\.\w+", place.read_text())}
    assert "infra/hooks/preprovision.py" in named
    assert [name for name in sorted(named) if not any((at / name).exists() for at in (ROOT, ROOT / "tests"))] == []


def test_addresses_have_no_blanks_and_none_is_empty(files: Files) -> None:
    split = module(files, "main.bicep").declared["emails"].value.text
    assert split == b"filter(map(split(alertEmails, ','), each => trim(each)), each => !empty(each))"


def test_who_may_do_what_is_told_of_every_role(files: Files) -> None:
    told = (ROOT / "docs" / "security.md").read_text()
    roles = "".join(
        (INFRA / "modules" / f"{name}.bicep").read_text() for name in ("roles", "workspace", "events", "topic")
    )
    for identity in ("app", "jobs", "replicas", "workspace"):
        assert f"{identity} `id-{identity}-…`" in told
    spelled = re.sub(r"[^a-z]", "", told.lower())
    given = set(re.findall(r"roles\.(\w+)", roles)) - {"networkConnectionApprover"}
    # "Storage Blob Data Owner, Queue and Table Data Contributor" is how two of them are written.
    short = {"storageQueueDataContributor": "queue", "storageTableDataContributor": "tabledatacontributor"}
    assert [role for role in given if short.get(role, role.lower()) not in spelled] == []


def test_paths_that_app_service_leaves_open_are_those_that_the_app_leaves_open() -> None:
    (paths,) = re.findall(r"excludedPaths: \[(.*)\]", (INFRA / "modules" / "app.bicep").read_text())
    described = json.loads((ROOT / "docs" / "openapi.json").read_text())["paths"]
    open_ = {f"/api{path}" for path, item in described.items() if item.get("get", {}).get("security") == []}
    assert {path.strip().strip("'") for path in paths.split(",")} == open_
