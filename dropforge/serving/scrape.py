"""What a replica tells Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dropforge.serving.metrics import family, histogram
from dropforge.serving.slots import Slot


def scrape(slots: Sequence[Slot], refused: Mapping[tuple[str, int], int]) -> str:
    """The metrics of the slots, and of the requests answered with an error, by endpoint and status."""
    return "\n".join(_lines(slots, refused)) + "\n"


def _lines(slots: Sequence[Slot], refused: Mapping[tuple[str, int], int]) -> Iterator[str]:
    counted = [
        ({"endpoint": slot.endpoint, "model": model, "version": str(version)}, counts)
        for slot in slots
        for (model, version), counts in slot.counts.items()
    ]
    yield from family(
        "dropforge_requests_total",
        "counter",
        "Inference requests a model version answered or failed.",
        [(labels, counts.requests) for labels, counts in counted],
    )
    yield from family(
        "dropforge_failures_total",
        "counter",
        "Inference requests that failed by the model's fault.",
        [(labels, counts.failed) for labels, counts in counted],
    )
    yield from histogram("dropforge_request_seconds", "From the request's headers to its answer.", counted)
    yield from family(
        "dropforge_refused_total",
        "counter",
        "Requests answered with an error, by status.",
        [({"endpoint": endpoint, "status": str(status)}, number) for (endpoint, status), number in refused.items()],
    )
    yield from family(
        "dropforge_swaps_total",
        "counter",
        "Times other models took the place of those that served.",
        [({"endpoint": slot.endpoint}, slot.swaps) for slot in slots],
    )
    yield from family(
        "dropforge_loaded_version", "gauge", "Percent of the traffic that each loaded version answers.", _traffic(slots)
    )
    yield from family(
        "dropforge_revision",
        "gauge",
        "Revision of the desired state that serves.",
        [({"endpoint": slot.endpoint}, slot.lineup.revision if slot.lineup else 0) for slot in slots],
    )


def _traffic(slots: Sequence[Slot]) -> Iterator[tuple[dict[str, str], float]]:
    for slot in slots:
        for each in slot.lineup.deployments if slot.lineup is not None else ():
            labels = {"endpoint": slot.endpoint, "model": each.model, "version": str(each.version)}
            yield {**labels, "dataset_version": str(each.dataset_version)}, each.traffic
