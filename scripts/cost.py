"""Prints docs/cost.md: what the platform costs idle and per run, computed from the prices in infra/prices.json.

    python scripts/cost.py > docs/cost.md

A price that no source was found for is left out of every sum and said to be.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRICES = Path(__file__).parents[1] / "infra" / "prices.json"
# A sweep every minute and a reconcile every five, each billed for a second at least; an instance has 2 GB.
TIMERS_A_MONTH = 730 * 60 + 730 * 12
GB_SECONDS_OF_A_TIMER = 2.0
# As infra/ makes them: dead letters of three queues, two Event Grid topics, errors and latency of the endpoint.
METRIC_SERIES, LOG_ALERTS = 7, 2
# As infra/modules/private-endpoints.bicep and network.bicep make them.
PRIVATE_ENDPOINTS, PRIVATE_ZONES = 12, 11
# `gpuIdleTime`.
IDLE_MINUTES = 5


@dataclass(frozen=True)
class Line:
    """One line of a sum. `usd` is None where no price was found."""

    what: str
    usd: float | None


class Prices:
    def __init__(self, read: Mapping[str, Any]) -> None:
        self.looked_up: str = read["looked_up"]
        self.hours: int = read["hours_in_a_month"]
        self.by_name: dict[str, dict[str, Any]] = read["prices"]

    def price(self, name: str) -> float | None:
        found = self.by_name[name]["price"]
        return None if found is None else float(found)

    def times(self, name: str, count: float) -> float | None:
        price = self.price(name)
        return None if price is None else price * count

    def monthly(self, name: str, count: int = 1) -> float | None:
        return self.times(name, count * (self.hours if self.by_name[name]["unit"] == "hour" else 1))


def idle(prices: Prices) -> list[Line]:
    """Nothing runs but the timers; the cluster is at 0, and there is no deployment behind the endpoint."""
    billed = max(0.0, TIMERS_A_MONTH * GB_SECONDS_OF_A_TIMER - float(prices.by_name["functions_free"]["amount"]))
    return [
        Line("function app: its timers, beyond what is free", prices.times("functions_execution", billed)),
        Line("Service Bus Standard", prices.monthly("service_bus_standard")),
        Line("Container Registry Basic", prices.monthly("registry_basic")),
        Line(f"alert rules: {METRIC_SERIES} time series", prices.monthly("metric_alert", METRIC_SERIES)),
        Line(f"alert rules: {LOG_ALERTS} log queries", prices.monthly("log_alert", LOG_ALERTS)),
    ]


def private(prices: Prices) -> list[Line]:
    """What the switch adds a month, and what it takes the place of."""
    return [
        Line(f"{PRIVATE_ENDPOINTS} private endpoints", prices.monthly("private_endpoint", PRIVATE_ENDPOINTS)),
        Line(f"{PRIVATE_ZONES} private DNS zones", prices.monthly("private_dns_zone", PRIVATE_ZONES)),
        Line("Service Bus Premium, one unit", prices.monthly("service_bus_premium")),
        Line("instead of Service Bus Standard", _negative(prices.monthly("service_bus_standard"))),
        Line("Container Registry Premium", prices.monthly("registry_premium")),
        Line("instead of Container Registry Basic", _negative(prices.monthly("registry_basic"))),
    ]


def always_ready(prices: Prices) -> list[Line]:
    """`DROPFORGE_ALWAYS_READY=1`: an instance for requests and one for flows."""
    return [
        Line(
            "2 instances of 2 GB that are always there",
            prices.times("functions_always_ready", 2 * 2 * prices.hours * 3600),
        )
    ]


def endpoint(prices: Prices) -> list[Line]:
    return [
        Line("one Standard_DS3_v2 (the default, no GPU)", prices.monthly("cpu_server")),
        Line("or one Standard_NC4as_T4_v3", prices.monthly("t4")),
        Line("or one Standard_NC24ads_A100_v4", prices.monthly("a100")),
    ]


def run(prices: Prices) -> list[Line]:
    """A run of an hour on one node, which then waits for another job."""
    names = {
        "t4": "T4, dedicated",
        "t4_low_priority": "T4, low priority",
        "a100": "A100, dedicated",
        "a100_low_priority": "A100, low priority",
    }
    return [Line(what, prices.times(name, 1 + IDLE_MINUTES / 60)) for name, what in names.items()]


def _negative(usd: float | None) -> float | None:
    return None if usd is None else -usd


def money(usd: float | None) -> str:
    if usd is None:
        return "not found"
    return f"{usd:,.2f}" if usd >= 0 else f"−{-usd:,.2f}"


def table(lines: Sequence[Line], unit: str, *, total: bool = True) -> str:
    rows = [f"| | USD {unit} |", "|---|--:|", *(f"| {line.what} | {money(line.usd)} |" for line in lines)]
    known = [line.usd for line in lines if line.usd is not None]
    if total:
        rows.append(f"| **together** | **{money(sum(known))}** |")
    return "\n".join(rows)


def sources(prices: Prices) -> str:
    rows = ["| price | USD | per | region | of | source |", "|---|--:|---|---|---|---|"]
    for each in prices.by_name.values():
        if "amount" in each:
            value = f"{each['amount']:,}"
        elif each["price"] is None:
            rows.append(f"| {each['what']} | not found | {each['unit']} | | | |")
            continue
        else:
            value = f"{each['price']:.6f}".rstrip("0").rstrip(".")
        where = each["source"].removeprefix("https://").split("/")
        name = "/".join(where[1:3]) if where[0] == "github.com" else where[0]
        as_of = each["as_of"] or "its commit"
        rows.append(
            f"| {each['what']} | {value} | {each['unit']} | {each['region']} | {as_of} | [{name}]({each['source']}) |"
        )
    return "\n".join(rows)


def document(prices: Prices) -> str:
    return f"""# What it costs

Printed by `python scripts/cost.py` from [infra/prices.json](../infra/prices.json); do not edit. US dollars before tax; a
month has {prices.hours} hours. Microsoft's own price pages could not be read, so each price is from somebody who took it from
Microsoft's price list, looked up on {prices.looked_up}; they are of several regions and dates. Look at the
[price calculator](https://azure.microsoft.com/pricing/calculator/) before you decide, and set a
[budget](deploy.md#3-choose).

## Idle

Everything that `azd provision` makes is there, the cluster is at 0 nodes, and the endpoint has no deployment yet.

{table(idle(prices), "a month")}

Storage, Event Grid, Key Vault and Durable Functions on Azure Storage bill by use and are not in it. Nor are logs: a GB that
comes in is {money(prices.price("log_ingestion"))}, and `DROPFORGE_LOG_DAILY_LIMIT_GB` (2) is the most of a day.

The timers start {TIMERS_A_MONTH:,} times a month. Each is billed for a second of 2 GB at least, together
{TIMERS_A_MONTH * GB_SECONDS_OF_A_TIMER:,.0f} GB-seconds, of which {prices.by_name["functions_free"]["amount"]:,} are free.

## What each choice adds

**Always ready** (`DROPFORGE_ALWAYS_READY=1`): no cold start, and no free GB-seconds.

{table(always_ready(prices), "a month", total=False)}

**An endpoint that answers**, one replica. A new image is rolled out blue/green, so there are two deployments for a while; a
new model is swapped inside the replica that is there.

{table(endpoint(prices), "a month", total=False)}

**Private networking** (`DROPFORGE_PRIVATE_NETWORKING=true`). The private endpoints that Azure ML makes in its own network
are not in it.

{table(private(prices), "a month")}

**Databricks** bills its own units for each job. No price was looked up.

## A training run

An hour on one node, and the {IDLE_MINUTES} minutes that the node waits for another job. No price was found for low priority.

{table(run(prices), "a run", total=False)}

A machine of a cluster has the price of the machine
([infracost](https://github.com/infracost/infracost/pull/2902)); the same is assumed for one behind an endpoint.

## Where the prices are from

{sources(prices)}
"""


def main() -> None:
    sys.stdout.write(document(Prices(json.loads(PRICES.read_text()))))


if __name__ == "__main__":
    main()
