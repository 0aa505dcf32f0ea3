"""local.settings.json and host.json: what counts, what is named, what is refused."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dropforge.host.errors import SettingsError
from dropforge.host.host_json import HostJson, read_host_json
from dropforge.host.local_settings import Cors, LocalSettings, read_local_settings


def local(tmp_path: Path, content: Any) -> LocalSettings:
    path = tmp_path / "local.settings.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_local_settings(path)


def host(tmp_path: Path, content: Any, environment: dict[str, str] | None = None) -> HostJson:
    path = tmp_path / "host.json"
    path.write_text(content if isinstance(content, str) else json.dumps({"version": "2.0", **content}))
    return read_host_json(path, environment or {})


# ------------------------------------------------------------------ local.settings.json
def test_values_become_variables_and_variables_that_are_set_win(tmp_path: Path) -> None:
    environment = {"A": "from outside"}
    local(tmp_path, {"IsEncrypted": False, "Values": {"A": "1", "B": "2"}}).apply(environment)
    assert environment == {"A": "from outside", "B": "2"}


def test_no_files_mean_defaults(tmp_path: Path) -> None:
    assert read_local_settings(tmp_path / "none.json") == LocalSettings()
    assert read_host_json(tmp_path / "none.json", {}) == HostJson()


def test_port_cors_and_unknown_names_are_read(tmp_path: Path) -> None:
    found = local(
        tmp_path,
        {
            "Host": {"LocalHttpPort": 7123, "CORS": "https://A.example/, http://b", "CORSCredentials": True, "X": 1},
            "ConnectionStrings": {},
        },
    )
    assert found.port == 7123
    assert found.cors == Cors(("https://a.example", "http://b"), credentials=True)
    assert found.ignored == ("ConnectionStrings", "Host.X")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"Values": {"A" "1"}}', "line 1, column 17"),
        ('{\n  "Values": tru\n}', "line 2, column 13"),
        ("[]", "list"),
        ({"IsEncrypted": True}, "func settings decrypt"),
        ({"Values": {"A": 1}}, r"Values\.A must be a string"),
        ({"Values": []}, "object of strings"),
        ({"Host": {"LocalHttpPort": "7071"}}, "LocalHttpPort"),
        ({"Host": {"LocalHttpPort": 0}}, "LocalHttpPort"),
        ({"Host": {"CORS": ["*"]}}, "commas"),
        ({"Host": {"CORS": "*", "CORSCredentials": True}}, "cannot be true"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(tmp_path: Path, content: Any, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        local(tmp_path, content)


@pytest.mark.parametrize(
    ("cors", "origin", "allowed"),
    [
        (Cors(), "http://a", None),
        (Cors(("*",)), "http://a", "*"),
        (Cors(("*",)), None, None),
        (Cors(("http://a",)), "http://A", "http://A"),
        (Cors(("http://a",)), "http://a.evil", None),
    ],
)
def test_origins(cors: Cors, origin: str | None, allowed: str | None) -> None:
    assert cors.allowed_origin(origin) == allowed


# ------------------------------------------------------------------ host.json
def test_everything_honoured_is_read_and_the_rest_is_named(tmp_path: Path) -> None:
    found = host(
        tmp_path,
        {
            "functionTimeout": "00:05:00",
            "functions": ["Ping"],
            "logging": {"logLevel": {"default": "Debug"}, "applicationInsights": {"x": 1}, "colour": True},
            "extensionBundle": {"id": "x"},
            "extensions": {
                "http": {"RoutePrefix": "/v1/", "maxConcurrentRequests": 3, "maxOutstandingRequests": -1, "fast": 1},
                "durableTask": {"hubName": "Hub"},
                "serviceBus": {"maxConcurrentCalls": 1, "webProxy": "x"},
            },
            "functionTimout": "00:00:01",
        },
    )
    assert found == HostJson(
        route_prefix="v1",
        function_timeout=timedelta(minutes=5),
        functions=frozenset({"ping"}),
        log_levels={"default": "Debug"},
        durable={"hubName": "Hub"},
        service_bus={"maxConcurrentCalls": 1, "webProxy": "x"},
        max_concurrent_requests=3,
        ignored=("extensions.http.fast", "extensions.serviceBus.webProxy", "functionTimout", "logging.colour"),
    )


def test_settings_override_the_file_as_in_azure(tmp_path: Path) -> None:
    found = host(
        tmp_path,
        {"extensions": {"http": {"routePrefix": "api"}}},
        {
            "AzureFunctionsJobHost__extensions__http__routeprefix": "v2",
            "AzureFunctionsJobHost__extensions__durableTask__hubName": "Other",
            "AzureFunctionsJobHost__extensions__durableTask__maxConcurrentActivityFunctions": "3",
            "AzureFunctionsJobHost__logging__logLevel__Function.ping": "Warning",
        },
    )
    assert found.route_prefix == "v2"
    assert found.durable == {"hubName": "Other", "maxConcurrentActivityFunctions": 3}
    assert found.log_levels == {"Function.ping": "Warning"}


def test_a_setting_whose_text_is_also_a_number_stays_text_where_text_is_wanted(tmp_path: Path) -> None:
    found = host(
        tmp_path,
        {"functionTimeout": "00:05:00"},
        {
            "AzureFunctionsJobHost__functionTimeout": "-1",
            "AzureFunctionsJobHost__extensions__http__routePrefix": "2026",
            "AzureFunctionsJobHost__extensions__http__maxConcurrentRequests": "3",
        },
    )
    assert (found.function_timeout, found.route_prefix, found.max_concurrent_requests) == (None, "2026", 3)


def test_an_empty_route_prefix_is_allowed(tmp_path: Path) -> None:
    assert host(tmp_path, {"extensions": {"http": {"routePrefix": ""}}}).route_prefix == ""


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('{"version": "2.0"', "line 1, column 18"),
        ({"version": "1.0"}, 'must be "2.0"'),
        ({"functionTimeout": "5 minutes"}, "hh:mm:ss"),
        ({"functionTimeout": 5}, "string"),
        ({"extensions": {"http": {"routePrefix": 1}}}, "string"),
        ({"extensions": {"http": {"maxConcurrentRequests": 0}}}, "above 0"),
        ({"extensions": {"http": {"maxConcurrentRequests": True}}}, "number"),
        ({"extensions": {"durableTask": []}}, "object"),
        ({"logging": {"logLevel": {"default": "loud"}}}, "loud"),
    ],
)
def test_a_host_json_that_cannot_be_used_is_refused(tmp_path: Path, content: Any, word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        host(tmp_path, content)


def test_no_function_timeout_means_none(tmp_path: Path) -> None:
    assert host(tmp_path, {"functionTimeout": "-1"}).function_timeout is None
