"""ONNX Runtime in a loop, without a server. `python -m benchmarks.load.alone`.

Reads one JSON object (`model`: a file, `shape` of the rows, `seconds`), writes one: rows, seconds, seconds of processor
time, and the median microseconds of a run.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime


def drive(model: str, shape: list[int], seconds: float) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feeds = {session.get_inputs()[0].name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    session.run(names, feeds)
    run, clock, took = session.run, time.perf_counter, list[float]()
    spent, now = time.process_time(), clock()
    began, end = now, now + seconds
    while now < end:
        run(names, feeds)
        before, now = now, clock()
        took.append(now - before)
    spent = time.process_time() - spent
    took.sort()
    rows = len(took) * shape[0]
    return {"rows": rows, "seconds": now - began, "cpu_seconds": spent, "p50_us": took[len(took) // 2] * 1e6}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(drive(asked["model"], asked["shape"], asked["seconds"])))
