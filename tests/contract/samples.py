"""Values that tests and the processes they start write and expect. Loads no test library: processes must start fast."""

from __future__ import annotations

from datetime import UTC, datetime

from dropforge.domain.models import Lineage

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def lineage(run: str) -> Lineage:
    return Lineage(
        pipeline="flights",
        run=run,
        dataset="flights",
        dataset_version=7,
        manifest="manifests/flights/7.json",
        manifest_sha256="ab" * 32,
        code="code/flights.zip",
        code_sha256="cd" * 32,
        environment={"python": "3.11", "packages": {"numpy": "2.0"}},
        parameters={"depth": 3, "rate": 0.1},
        seed=42,
        metrics={"log_loss": 0.5, "rows": 100.0},
        verdict={"verdict": "better", "slices": [{"name": "JFK", "low": -0.1}]},
        evidence=f"runs/{run}/evidence.json",
    )
