"""What is asked of a run: everything a node needs, made of the pipeline, a dataset version and the champion."""

from __future__ import annotations

from dropforge.domain.causes import Cause
from dropforge.domain.datasets import DatasetVersion
from dropforge.domain.models import CHAMPION
from dropforge.domain.runs import ChampionRef, EvaluationPlan, RunRecord, RunSpec
from dropforge.domain.traces import trace_of
from dropforge.ports import Ports
from dropforge.settings import Settings
from dropforge.spec.load import to_sweep_plan
from dropforge.steps import books
from dropforge.steps.books import Pipeline
from dropforge.steps.tracing import JOB
from dropforge.wire import from_builtins


def run_spec(
    ports: Ports,
    pipeline: Pipeline,
    version: DatasetVersion,
    run: str,
    settings: Settings,
    measured: int | None = None,
    cause: Cause | None = None,
) -> RunSpec:
    """The spec of a run under that id, against the champion of now. `measured`: the model version that is only held
    against the champion, and, when it is the champion itself, against the constant baseline. `cause`: why it is run."""
    spec = pipeline.spec
    alias = ports.registry.alias(pipeline.name, CHAMPION)
    rival = alias is not None and alias.version != measured
    champion = _reference(ports, pipeline, alias.version) if alias is not None and rival else None
    return RunSpec(
        run=run,
        pipeline=pipeline.name,
        dataset=version.dataset,
        dataset_version=version.version,
        table_uri=version.table_uri,
        table_version=version.table_version,
        code=pipeline.code,
        code_sha256=pipeline.code_sha256,
        command=tuple(spec.training.command),
        label=spec.dataset.label or _last_of_first_file(ports, pipeline),
        event_time=spec.dataset.event_time,
        features=tuple(spec.training.features),
        evaluation=EvaluationPlan(
            metric=spec.evaluation.metric,
            block=spec.evaluation.block,
            holdout_blocks=spec.evaluation.holdout_blocks,
            slices=tuple(spec.evaluation.slices),
        ),
        seed=spec.training.seed,
        timeout_seconds=int(spec.training.compute.timeout.total_seconds()),
        parameters=dict(spec.training.parameters),
        environment={**_trace(settings, version, run, cause), **spec.training.environment},
        compute=spec.training.compute.model_dump(mode="json"),
        champion=champion,
        challenger=_reference(ports, pipeline, measured) if measured is not None else None,
        tracking_uri=settings.tracking_uri,
        # Whoever only measures a model looks for no parameters.
        sweep=to_sweep_plan(spec) if measured is None else None,
    )


def _last_of_first_file(ports: Ports, pipeline: Pipeline) -> str | None:
    """The label that nobody named. Not the last column of the table: a later file may have brought that."""
    first = books.dataset_version(ports.ledger, pipeline.partition, 1)
    accepted = books.batch(ports.ledger, pipeline.partition, first.batch).accepted
    columns = books.arrival(ports.ledger, pipeline.partition, accepted[0]).columns
    names = [each.name for each in columns if each.name != pipeline.spec.dataset.event_time]
    return names[-1] if names else None


def _trace(settings: Settings, version: DatasetVersion, run: str, cause: Cause | None) -> dict[str, str]:
    """The variable under which a command that tells spans of its own finds the trace of its run."""
    if not settings.telemetry:
        return {}
    return {"TRACEPARENT": trace_of(cause, version.dataset, version.version).parent(JOB, run)}


def _reference(ports: Ports, pipeline: Pipeline, version: int) -> ChampionRef:
    model = ports.registry.get(pipeline.name, version)
    features = model.lineage.features
    if not features:
        # From before the lineage kept them: what its run was asked for, if that named any.
        row = ports.ledger.get(pipeline.partition, books.run_key(model.lineage.run))
        features = from_builtins(RunRecord, row.value).spec.features if row is not None else ()
    return ChampionRef(model.model, model.version, model.artifact, model.sha256, features)
