"""Alerts as Azure Monitor sends them, built by the field tables of its documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAYLOADS = Path(__file__).parent.parent / "payloads" / "alerts"
PREFIX = "/subscriptions/11112222-0000-0000-0000-333344445555/providers/Microsoft.AlertsManagement/alerts/"


def sample(name: str) -> Any:
    """One of Microsoft's samples."""
    return json.loads((PAYLOADS / f"azuremonitor.{name}.json").read_text())


def notification(
    condition: str = "Fired", id_: str = "a1", context: dict[str, Any] | None = None, **essentials: Any
) -> dict[str, Any]:
    """A notification; `essentials` are put over the usual ones, None takes one away."""
    found = {
        "alertId": PREFIX + id_,
        "alertRule": "demo-errors",
        "severity": "Sev1",
        "signalType": "Metric",
        "monitorCondition": condition,
        "monitoringService": "Platform",
        "alertTargetIDs": ["/subscriptions/s/resourcegroups/g/providers/microsoft.web/sites/app"],
        "firedDateTime": "2026-01-05T09:00:00.1234567Z",
        "description": "too many errors",
        "essentialsVersion": "1.0",
        "alertContextVersion": "1.0",
        **essentials,
    }
    if condition == "Resolved":
        found.setdefault("resolvedDateTime", "2026-01-05T09:10:00.7654321Z")
    kept = {key: value for key, value in found.items() if value is not None}
    data = {"essentials": kept, "alertContext": context if context is not None else metric({"endpoint": "demo"})}
    return {"schemaId": "azureMonitorCommonAlertSchema", "data": data}


def metric(dimensions: dict[str, str], threshold: object = "0.3", value: object = 78.09) -> dict[str, Any]:
    """The context of a metric alert."""
    listed = [{"name": name, "value": each} for name, each in dimensions.items()]
    condition = {"metricName": "Errors", "operator": "GreaterThan", "threshold": threshold, "metricValue": value}
    return {
        "properties": None,
        "conditionType": "SingleResourceMultipleMetricCriteria",
        "condition": {"windowSize": "PT5M", "allOf": [{**condition, "dimensions": listed}]},
    }


def log_v2(dimensions: dict[str, str]) -> dict[str, Any]:
    """The context of a log search alert of API version 2020-05-01 and later."""
    listed = [{"name": name, "value": each} for name, each in dimensions.items()]
    condition = {
        "searchQuery": "AppRequests | where Success == false",
        "metricMeasureColumn": None,
        "operator": "GreaterThan",
        "threshold": "5",
        "timeAggregation": "Count",
        "dimensions": listed,
        "metricValue": 12.0,
    }
    return {
        "properties": {"team": "ops"},
        "conditionType": "LogQueryCriteria",
        "condition": {"windowSize": "PT10M", "allOf": [condition]},
    }


def log_v1(kind: str, dimensions: dict[str, str]) -> dict[str, Any]:
    """The context of an older log search alert: its keys are written in another case, and lie one level higher."""
    listed = [{"name": name, "value": each} for name, each in dimensions.items()]
    return {
        "SearchQuery": "requests | where resultCode == '500'",
        "SearchIntervalStartTimeUtc": "3/22/2026 1:36:33 PM",
        "SearchIntervalEndtimeUtc": "3/22/2026 1:51:33 PM",
        "ResultCount": 2,
        "SearchIntervalInMinutes": "15",
        "Threshold": 10000.0,
        "Operator": "Less Than",
        **({"ApplicationId": "app"} if kind == "Application Insights" else {"WorkspaceId": "workspace"}),
        "Dimensions": listed,
        "SearchResults": {"tables": [{"name": "PrimaryResult", "columns": [], "rows": [["x" * 1000] * 50]}]},
        "IncludedSearchResults": "True",
        "AlertType": "Metric measurement",
    }


def activity(source: object = "Administrative", **properties: Any) -> dict[str, Any]:
    """The context of an activity log alert; a service health alert has numbers where the others have names."""
    return {
        "authorization": None,
        "channels": 1 if source == 2 else "Operation",
        "claims": None if source == 2 else '{"aud": "https://management.core.windows.net/"}',
        "caller": None,
        "correlationId": "c",
        "eventSource": source,
        "eventTimestamp": "2026-01-05T08:59:31.0312699+00:00",
        "level": 3 if source == 2 else "Informational",
        "operationName": "Microsoft.ServiceHealth/incident/action",
        "properties": properties or None,
        "status": "Active",
        "subStatus": None,
        "ResourceType": None,
    }
