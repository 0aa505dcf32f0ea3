"""Rows a second of batch scoring, against onnxruntime alone on arrays that are in memory already.

    python -m benchmarks.score [--rows 1000000]

One line for each model, kind of input and number of threads. `raw`: one thread, batches of 1024 rows.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from dropforge.domain.endpoints import Deployment
from dropforge.serving.score import Scoring, score
from dropforge.serving.score_inputs import find

FEATURES = 30
BATCH = 1024


def _trained(kind: str) -> bytes:
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.neural_network import MLPRegressor

    random = np.random.default_rng(0)
    x = random.normal(size=(2000, FEATURES)).astype(np.float32)
    y = x[:, 0] * x[:, 1] + random.normal(size=2000)
    if kind == "gbt":
        model: Any = GradientBoostingRegressor(n_estimators=100, max_depth=3, random_state=0)
    else:
        model = MLPRegressor(hidden_layer_sizes=(256, 256), max_iter=5, random_state=0)
    model.fit(x, y)
    proto = to_onnx(model, x[:1], target_opset=17)
    names = str([f"f{index}" for index in range(FEATURES)]).replace("'", '"')
    property_ = proto.metadata_props.add()
    property_.key, property_.value = "features", names
    return bytes(proto.SerializeToString())


def _raw(model: Path, x: Any) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        for start in range(0, len(x), BATCH):
            session.run(None, {name: x[start : start + BATCH]})
        rates.append(len(x) / (time.perf_counter() - began))
    return statistics.median(rates)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    rows = options.parse_args().rows
    folder = Path(tempfile.mkdtemp(prefix="dropforge-score-"))
    x = np.random.default_rng(1).normal(size=(rows, FEATURES)).astype(np.float32)
    table = pa.table({f"f{index}": x[:, index] for index in range(FEATURES)} | {"id": np.arange(rows)})
    pq.write_table(table, folder / "x.parquet", row_group_size=100_000)
    for index in range(4):
        pa.csv.write_csv(table.slice(index * rows // 4, rows // 4), folder / f"x{index}.csv")
    try:
        for kind in ("gbt", "mlp"):
            model = folder / f"{kind}.onnx"
            model.write_bytes(_trained(kind))
            raw = _raw(model, x)
            print(f"{kind}: raw onnxruntime, 1 thread, batch {BATCH}: {raw:,.0f} rows/s")
            sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
            wanted = Deployment(kind, 1, model.as_uri(), sha256, 1)
            for what in ("x.parquet", "x*.csv"):
                for threads in (1, 2):
                    shutil.rmtree(folder / "out", ignore_errors=True)
                    began = time.perf_counter()
                    scoring = Scoring(wanted, find(str(folder / what)), folder / "out", ("id",))
                    rate = score(scoring, threads).rows / (time.perf_counter() - began)
                    print(f"  {what:10} {threads} thread(s) {rate:12,.0f} rows/s   {rate / raw:.2f} of raw")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
