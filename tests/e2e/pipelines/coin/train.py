"""The share of heads in each box, smoothed, as an ONNX model: a table and a lookup."""

import os
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper

runs = os.environ.get("COIN_RUNS")
if runs:
    # One line for each time the command really ran: the tests count them.
    with open(runs, "a") as file:
        file.write(os.environ["DROPFORGE_RUN"] + "\n")

data = pq.read_table(os.environ["DROPFORGE_TRAIN_DATA"])
box, heads = data["box"].to_numpy(), data["heads"].to_numpy().astype(float)
share = np.array([(heads[box == n].sum() + 1) / ((box == n).sum() + 2) for n in range(10)], dtype=np.float32)
table = np.stack([1 - share, share], axis=1)
graph = helper.make_graph(
    [
        helper.make_node("Squeeze", ["box", "axis"], ["index"]),
        helper.make_node("Gather", ["table", "index"], ["probabilities"], axis=0),
    ],
    "coin",
    [helper.make_tensor_value_info("box", TensorProto.INT64, [None, 1])],
    [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
    [
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
        numpy_helper.from_array(table, "table"),
    ],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.save(model, Path(os.environ["DROPFORGE_OUTPUT"]) / "model.onnx")
print(f"trained on {len(heads)} throws")
