"""What a replica tells Prometheus: in words of its own, and in those of Triton that dashboards know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dropforge.serving.memory import resident_bytes
from dropforge.serving.metrics import family, histogram
from dropforge.serving.mirror import MirrorCounts
from dropforge.serving.models import Model
from dropforge.serving.slots import Slot
from dropforge.serving.statistics import Statistics

if TYPE_CHECKING:
    # Only where it is on is there pyarrow.
    from dropforge.serving.request_log import RequestLog

Labels = dict[str, str]
# Triton's word for why a request failed, by the status it was answered with.
_REASONS = {429: "REJECTED", 503: "REJECTED", 504: "CANCELED", 500: "BACKEND"}


@dataclass(frozen=True)
class Facts:
    """Of the whole server. `waiting`: requests taken on and not answered, of at most `limit`. `refused`: requests answered
    with an error, by endpoint and status."""

    waiting: int = 0
    limit: int = 0
    refused: Mapping[tuple[str, int], int] | None = None
    request_log: RequestLog | None = None


def scrape(slots: Sequence[Slot], facts: Facts) -> str:
    """The text."""
    return (
        "\n".join([*_requests(slots, facts), *_served(slots), *_batches(slots), *_mirrors(slots), *_server(facts)])
        + "\n"
    )


def _requests(slots: Sequence[Slot], facts: Facts) -> Iterator[str]:
    counted = [
        ({"endpoint": slot.endpoint, "model": model, "version": str(version)}, counts)
        for slot in slots
        for (model, version), counts in slot.counts.items()
    ]
    refused = facts.refused or {}
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
    triton = [({"model": labels["endpoint"], "version": labels["version"]}, counts) for labels, counts in counted]
    yield from family(
        "nv_inference_request_success",
        "counter",
        "Inference requests answered.",
        [(labels, counts.requests - counts.failed) for labels, counts in triton],
    )
    yield from family(
        "nv_inference_request_failure",
        "counter",
        "Inference requests not answered, by reason; without a version where none was asked.",
        [
            *(({**labels, "reason": "BACKEND"}, counts.failed) for labels, counts in triton),
            *(
                ({"model": endpoint, "version": "", "reason": reason}, number)
                for (endpoint, reason), number in _by_reason(refused).items()
            ),
        ],
    )
    yield from family(
        "nv_inference_request_duration_us",
        "counter",
        "Microseconds of all requests together, from headers to answer.",
        [(labels, round(counts.seconds * 1e6)) for labels, counts in triton],
    )


def _by_reason(refused: Mapping[tuple[str, int], int]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for (endpoint, status), number in refused.items():
        # What a model failed is counted against its version.
        if endpoint and status != 500:
            key = (endpoint, _REASONS.get(status, "OTHER"))
            found[key] = found.get(key, 0) + number
    return found


def _served(slots: Sequence[Slot]) -> Iterator[str]:
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
    yield from family(
        "dropforge_model_memory_bytes",
        "gauge",
        "Memory that a loaded version took when it was loaded.",
        [(labels, model.memory_bytes) for labels, model in _models(slots)],
    )


def _traffic(slots: Sequence[Slot]) -> Iterator[tuple[Labels, float]]:
    for slot in slots:
        for each in slot.lineup.deployments if slot.lineup is not None else ():
            labels = {"endpoint": slot.endpoint, "model": each.model, "version": str(each.version)}
            yield {**labels, "dataset_version": str(each.dataset_version)}, each.traffic


def _models(slots: Sequence[Slot]) -> list[tuple[Labels, Model]]:
    return [
        ({"endpoint": slot.endpoint, "model": model.deployment.model, "version": str(model.deployment.version)}, model)
        for slot in slots
        for model in (slot.lineup.models if slot.lineup is not None else ())
    ]


def _batches(slots: Sequence[Slot]) -> Iterator[str]:
    loaded = _models(slots)
    triton = [
        ({"model": labels["endpoint"], "version": labels["version"]}, model.statistics) for labels, model in loaded
    ]
    yield from family(
        "dropforge_batches_total",
        "counter",
        "Times a model was run, by rows (those of more than 256 with the next power of two).",
        [
            ({**labels, "rows": str(rows)}, int(times))
            for labels, model in loaded
            for rows, (times, *_) in sorted(model.statistics.sizes.items())
        ],
    )
    yield from family(
        "dropforge_queue_seconds_total",
        "counter",
        "Seconds that all requests together waited for their model.",
        [(labels, model.statistics.queue) for labels, model in loaded],
    )
    yield from family(
        "nv_inference_count", "counter", "Rows inferred.", [(labels, each.rows) for labels, each in triton]
    )
    yield from family(
        "nv_inference_exec_count",
        "counter",
        "Times a model was run.",
        [(labels, each.executions) for labels, each in triton],
    )
    durations: tuple[tuple[str, str, Callable[[Statistics], float]], ...] = (
        ("queue", "waited for their model", lambda each: each.queue),
        ("compute_input", "were put together to batches", lambda each: each.input),
        ("compute_infer", "were run by their model", lambda each: each.infer),
        ("compute_output", "had their answers written", lambda each: each.output),
    )
    for name, text, seconds in durations:
        yield from family(
            f"nv_inference_{name}_duration_us",
            "counter",
            f"Microseconds that all requests together {text}.",
            [(labels, max(0, round(seconds(each) * 1e6))) for labels, each in triton],
        )
    yield from family(
        "nv_inference_pending_request_count",
        "gauge",
        "Requests that wait for their model.",
        [
            ({"model": slot.endpoint, "version": str(queue.model.deployment.version)}, len(queue.jobs))
            for slot in slots
            for queue in (slot.lineup.queues.values() if slot.lineup is not None else ())
        ],
    )
    yield from family(
        "dropforge_in_flight",
        "gauge",
        "Requests that are being answered.",
        [({"endpoint": slot.endpoint}, slot.lineup.in_flight if slot.lineup is not None else 0) for slot in slots],
    )


def _mirrors(slots: Sequence[Slot]) -> Iterator[str]:
    counted = [
        ({"endpoint": slot.endpoint, "model": model, "version": str(version)}, counts)
        for slot in slots
        for (model, version), counts in slot.mirrored.items()
    ]
    yield from histogram(
        "dropforge_mirror_seconds", "A batch of copies, run.", [(labels, each.counts) for labels, each in counted]
    )
    yield from family(
        "dropforge_mirror_dropped_total",
        "counter",
        "Copies that were not run: the candidate was slow, or the server busy.",
        [({**labels, "reason": why}, number) for labels, each in counted for why, number in each.dropped.items()],
    )
    told: tuple[tuple[str, str, str, Callable[[MirrorCounts], float]], ...] = (
        (
            "copies_total",
            "counter",
            "Copies of live requests that a version was run on.",
            lambda each: each.counts.requests,
        ),
        ("failures_total", "counter", "Copies that the version failed.", lambda each: each.counts.failed),
        (
            "disagreements_total",
            "counter",
            "Copies whose answer disagrees with the live one.",
            lambda each: each.disagreed,
        ),
        ("rows_total", "counter", "Rows of copies that both versions decided.", lambda each: each.rows),
        ("flips_total", "counter", "Rows of copies that were decided otherwise.", lambda each: each.flipped),
        ("max_difference", "gauge", "The largest difference of a number so far.", lambda each: each.max_difference),
    )
    for name, kind, text, value in told:
        yield from family(f"dropforge_mirror_{name}", kind, text, [(labels, value(each)) for labels, each in counted])


def _server(facts: Facts) -> Iterator[str]:
    yield from family("dropforge_waiting", "gauge", "Requests taken on and not answered.", [({}, facts.waiting)])
    yield from family(
        "dropforge_waiting_limit", "gauge", "Requests from which on others are sent away.", [({}, facts.limit)]
    )
    yield from family(
        "dropforge_memory_bytes",
        "gauge",
        "Memory of the process.",
        [({}, float(resident))] if (resident := resident_bytes()) else [],
    )
    if (kept := facts.request_log) is not None:
        yield from family(
            "dropforge_log_rows_total", "counter", "Rows of requests written to the log.", [({}, kept.rows)]
        )
        yield from family("dropforge_log_files_total", "counter", "Files of the log written.", [({}, kept.files)])
        yield from family(
            "dropforge_log_dropped_total",
            "counter",
            "Rows of requests that were to be logged and were not.",
            [
                ({"reason": why}, number)
                for why, number in {**dict.fromkeys(("full", "store", "unfit"), 0), **kept.dropped}.items()
            ],
        )
