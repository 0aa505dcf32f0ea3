"""The cases the ONNX project publishes, with inputs and outputs nobody here wrote, through the JSON of the protocol."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dropforge.domain.errors import BadInput
from dropforge.serving.models import load
from dropforge.serving.tensors import Array
from tests.unit.serving.onnx_models import deployment
from tests.unit.serving.test_protocol import asked, asked_in_bytes


def _published_cases() -> list[Path]:
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    return sorted(path.parent for kind in ("simple", "pytorch-*") for path in data.glob(f"{kind}/*/model.onnx"))


def test_published_cases_get_their_published_answers(tmp_path: Path) -> None:
    served = 0
    for case in _published_cases():
        try:
            model = load(deployment(tmp_path, (case / "model.onnx").read_bytes()))
        except BadInput as error:
            assert "does not load" in error.message, case
            continue
        inputs = _tensors(case, "input", len(model.inputs))
        expected = _tensors(case, "output", len(model.outputs))
        if any(array.size == 0 for array in inputs):
            continue
        feeds = dict(zip([each.name for each in model.inputs], inputs, strict=True))
        _compare(case, asked(model, feeds), expected)
        _compare(case, asked_in_bytes(model, feeds), expected)
        served += 1
    assert served > 90  # of 140; the rest want operators of opsets before 7, or a locale


def _tensors(case: Path, what: str, number: int) -> list[Array]:
    folder = case / "test_data_set_0"
    return [numpy_helper.to_array(onnx.load_tensor(str(folder / f"{what}_{i}.pb"))) for i in range(number)]


def _compare(case: Path, found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape, case
        if other.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5, err_msg=str(case))
        else:
            np.testing.assert_array_equal(one, other, err_msg=str(case))
