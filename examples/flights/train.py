"""Train the flight delay model: `train.parquet` in, `model.onnx` out, with its preprocessing inside the graph."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from features import FEATURES
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder

TEXTS = ["origin", "dest", "carrier"]
NUMBERS = [name for name in FEATURES if name not in TEXTS]
# A destination or carrier that is rarer than this has no code of its own, and shares one with those never seen.
FEWEST_ROWS = 20
PARITY_ROWS = 5_000
MOST_DIFFERENCE = 1e-3


def read(path: Path, label: str) -> tuple[pd.DataFrame, pd.Series]:
    """Features as the model is asked with them: text without gaps, numbers in single precision (an empty one is NaN).

    ONNX trees compare in single precision. Trained on doubles, a split may fall between two values that are one and the
    same as singles, and rows there would go left in scikit-learn and right in the server.
    """
    table = pd.read_parquet(path, columns=[*FEATURES, label])
    rows = pd.DataFrame({name: table[name].fillna("").astype(object) for name in TEXTS})
    for name in NUMBERS:
        rows[name] = table[name].astype(np.float32)
    return rows[FEATURES], table[label].astype(int)


def pipeline(rows: pd.DataFrame, seed: int, parameters: dict[str, float]) -> Pipeline:
    common = [sorted(counts[counts >= FEWEST_ROWS].index) for counts in (rows[name].value_counts() for name in TEXTS)]
    codes = OrdinalEncoder(categories=common, handle_unknown="use_encoded_value", unknown_value=-1, dtype=np.float32)
    trees = HistGradientBoostingClassifier(
        random_state=seed,
        # Its own split would be a random one; which model is better is judged on later days anyway.
        early_stopping=False,
        **parameters,
    )
    prepare = ColumnTransformer([("texts", codes, TEXTS), ("numbers", "passthrough", NUMBERS)])
    return Pipeline([("prepare", prepare), ("trees", trees)])


def to_onnx(model: Pipeline) -> bytes:
    """The whole pipeline, one input per column; equal models give equal bytes."""
    inputs = [(name, (StringTensorType if name in TEXTS else FloatTensorType)([None, 1])) for name in FEATURES]
    graph = convert_sklearn(model, name="flights", initial_types=inputs, options={"zipmap": False})
    graph.metadata_props.add(key="classes", value=json.dumps([0, 1]))
    return graph.SerializeToString(deterministic=True)


def largest_difference(model: Pipeline, onnx: bytes, rows: pd.DataFrame) -> float:
    """How far the ONNX probabilities are from scikit-learn's, at most."""
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    feed = {name: rows[[name]].to_numpy(object if name in TEXTS else np.float32) for name in FEATURES}
    (found,) = session.run(["probabilities"], feed)
    return float(np.abs(found - model.predict_proba(rows)).max())


def main() -> None:
    started = time.perf_counter()
    label, seed = os.environ["DROPFORGE_LABEL"], int(os.environ["DROPFORGE_SEED"])
    output = Path(os.environ["DROPFORGE_OUTPUT"])
    parameters = json.loads(Path(os.environ["DROPFORGE_PARAMETERS"]).read_text())
    rows, late = read(Path(os.environ["DROPFORGE_TRAIN_DATA"]), label)
    model = pipeline(rows, seed, parameters).fit(rows, late)
    print(f"trained on {len(rows):,} flights, {late.mean():.1%} of them late, in {time.perf_counter() - started:.1f} s")

    onnx = to_onnx(model)
    sample = rows.sample(min(PARITY_ROWS, len(rows)), random_state=seed)
    difference = largest_difference(model, onnx, sample)
    print(f"ONNX and scikit-learn differ by at most {difference:.1e} on {len(sample):,} rows")
    if difference > MOST_DIFFERENCE:
        raise SystemExit(f"the ONNX model answers differently: {difference:.4f}; at most {MOST_DIFFERENCE} is allowed")
    (output / "model.onnx").write_bytes(onnx)

    answers = model.predict_proba(sample)[:, 1]
    metrics = {
        "train_log_loss": float(log_loss(late[sample.index], answers)),
        "train_auc": float(roc_auc_score(late[sample.index], answers)),
        "parity_max_difference": difference,
        "train_seconds": time.perf_counter() - started,
    }
    (output / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main()
