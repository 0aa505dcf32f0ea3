"""One trace from the door to the swap, through processes that know nothing of each other."""

from __future__ import annotations

from pathlib import Path

from tests.collector import collector
from tests.e2e.machine import COIN, Platform, eventually, throws
from tests.e2e.test_platform import pipeline

# Door, dataset version, hand-over, training, verdict, swap, and what the replica did for it.
WANTED = ("write dataset version", "submit run", "run training job", "judge run", "swap model", "load and swap")


def test_a_drop_is_one_trace_from_the_door_to_the_swap(tmp_path: Path) -> None:
    script = (COIN / "train.py").read_text() + '\nprint("told", os.environ["TRACEPARENT"])\n'
    with (
        collector() as found,
        Platform(tmp_path / "state", OTEL_EXPORTER_OTLP_ENDPOINT=found.url, OTEL_BSP_SCHEDULE_DELAY="100") as platform,
    ):
        platform.client.apply("traced", pipeline(tmp_path, "traced", script))
        platform.drop("traced/", throws(tmp_path, 0, days=14))
        run = platform.settled("traced", 1)["runs"][0]["run"]
        told = platform.client.request("GET", f"pipelines/traced/runs/{run}/logs").decode()
        eventually(lambda: {*WANTED} <= {span.name for span in found.spans}, 20, platform.log)
        spans = {span.name: span for span in found.spans}
        # The listing that follows an apply may find the file before its event comes.
        (door,) = (span for span in found.spans if span.name.startswith(("storage ", "reconcile ")))
        assert {spans[name].trace_id for name in WANTED} == {door.trace_id}
        assert {spans[name].parent_span_id for name in WANTED[:-1]} == {door.span_id}
        assert spans["load and swap"].parent_span_id == spans["swap model"].span_id
        job = spans["run training job"]
        assert f"told 00-{job.trace_id.hex()}-{job.span_id.hex()}-01" in told
        assert job.start_time_unix_nano < job.end_time_unix_nano <= spans["swap model"].end_time_unix_nano
        assert found.services == {"dropforge", "dropforge-serving"}
