"""docs/cost.md is what scripts/cost.py computes from prices that say where they are from."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from types import ModuleType

import pytest

from tests.infra.bicep_check import File, Files
from tests.infra.bicep_source import text, values_of
from tests.infra.test_agreement import ROOT, module
from tests.infra.test_bicep import INFRA


@pytest.fixture(scope="module")
def cost() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dropforge_cost", ROOT / "scripts" / "cost.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def read() -> dict[str, dict[str, object]]:
    return dict(json.loads((INFRA / "prices.json").read_text())["prices"])


def test_the_page_is_what_the_script_prints() -> None:
    printed = subprocess.run([sys.executable, ROOT / "scripts" / "cost.py"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "cost.md").read_text() == printed.stdout


def test_every_price_says_where_and_when_it_is_from() -> None:
    for name, each in read().items():
        if each.get("price", 0) is None:
            assert set(each) == {"what", "price", "unit"}, name
        else:
            assert {"what", "unit", "region", "as_of", "source"} <= set(each), name
            # Of no date of its own: the commit in its address is one.
            assert each["as_of"] or re.search(r"/blob/[0-9a-f]{40}/", str(each["source"])), name


def test_the_sums_are_of_their_lines(cost: ModuleType) -> None:
    prices = cost.Prices(json.loads((INFRA / "prices.json").read_text()))
    (app, bus, registry, *alerts) = cost.idle(prices)
    assert app.usd == pytest.approx((2 * (43_800 + 8_760) - 100_000) * 0.000026)
    assert bus.usd == pytest.approx(730 * 0.013441)
    assert registry.usd == 5
    assert [each.usd for each in alerts] == pytest.approx([0.7, 1.0])
    assert [each.usd for each in cost.run(prices)] == [
        pytest.approx(0.526 * 65 / 60),
        None,
        pytest.approx(3.673 * 65 / 60),
        None,
    ]


def test_a_price_that_was_not_found_is_in_no_sum(cost: ModuleType) -> None:
    lines = [cost.Line("a", 1.0), cost.Line("b", None)]
    assert "| b | not found |" in cost.table(lines, "a month")
    assert "| **together** | **1.00** |" in cost.table(lines, "a month")


def test_it_counts_what_the_templates_make(cost: ModuleType, files: Files) -> None:
    def listed(name: str, variable: str) -> int:
        file: File = module(files, f"modules/{name}.bicep")
        return len(values_of(file.declared[variable].value))

    assert listed("private-endpoints", "wanted") == cost.PRIVATE_ENDPOINTS
    assert listed("network", "zoneNames") == cost.PRIVATE_ZONES
    messaging, alerts = (module(files, f"modules/{name}.bicep") for name in ("messaging", "alerts"))
    queues = [
        each for each in messaging.of_kind("resource") if messaging.type_of(each).split("@")[0].endswith("/queues")
    ]
    # `undelivered` is one rule for each of the two topics; errors and latency are one series each.
    assert len(queues) + 2 + 2 == cost.METRIC_SERIES
    rules = [each for each in alerts.of_kind("resource") if "scheduledQueryRules" in alerts.type_of(each)]
    assert len(rules) == cost.LOG_ALERTS
    main = module(files, "main.bicep")
    assert text(main.declared["gpuIdleTime"].value) == f"'PT{cost.IDLE_MINUTES}M'"
