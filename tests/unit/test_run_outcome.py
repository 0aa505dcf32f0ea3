"""What a run left in its output folder, as its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from dropforge.adapters.memory.artifacts import MemoryArtifacts
from dropforge.adapters.run_outcome import collected
from dropforge.domain.runs import EvaluationPlan, RunSpec, RunState
from dropforge.training.contract import EVIDENCE, GOLDEN, MODEL, RESULT, NodeResult
from dropforge.wire import to_json


@pytest.mark.parametrize("golden", [None, b'{"requests": []}'])
def test_golden_requests_are_kept_beside_the_model_where_there_are_any(tmp_path: Path, golden: bytes | None) -> None:
    plan = EvaluationPlan("auc", "file", 3)
    spec = RunSpec("run-1", "demo", "demo", 1, "", 1, "", "", ("true",), None, None, (), plan, 0, 60)
    artifacts = MemoryArtifacts()
    left = NodeResult(spec.run, RunState.SUCCEEDED, 0, None, 1.0, 0.5, features=("x", "n"))
    files = {RESULT: to_json(left), MODEL: b"model", EVIDENCE: b"{}", GOLDEN: golden}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    result = collected(spec, tmp_path, artifacts)
    assert collected(spec, tmp_path, artifacts) == result
    assert result.features == ("x", "n")
    if golden is None:
        assert result.golden is None
    else:
        assert result.golden == result.model.replace(MODEL, GOLDEN)
        assert artifacts.read(result.golden) == golden
