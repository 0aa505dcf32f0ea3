"""How fast the inference server answers, beside ONNX Runtime alone and beside a bare server. Run:
`python -m benchmarks.serving`.

The server has one core, whoever asks it another: raw sockets in a closed loop, a process of its own. Models: gradient
boosting over 30 features, dense layers (30-512-1024-512-2), and ResNet-18 at 224 x 224. In turns, so that a busy machine
disturbs all alike: JSON and binary tensors at 64 connections, one row a request, one or 8 requests at a time on each; ONNX
Runtime in a loop on the server's core, with 1 row and with 32; one connection. The bare server (`benchmarks.load.bare`) is
what any in Python comes down to: a protocol of asyncio on uvloop, httptools, batches, and nothing else. Compared are the
medians. The last line is one JSON object, of which `<what>` is `<model>_<encoding>`:

    <what>_per_second              answers at 64 connections
    <what>_of_raw                  that, in rows of ONNX Runtime alone with one row a run
    <what>_of_bare                 that, in answers of the bare server
    <what>_piped_of_raw, _of_bare  the same with 8 requests at a time on each connection
    <what>_cpu_us                  processor time of the server for each answer, and
    <model>_raw_cpu_us             of ONNX Runtime alone: these two hold on a busy machine as well
    <model>_raw_per_second         ONNX Runtime alone, one row a run; `_raw32_`: 32 rows
    <what>_over_raw_us             median at one connection, less the median of a run alone; `_bare_over_raw_us`: of the
                                   bare server
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

from benchmarks import serving_models
from benchmarks.load.replica import CLIENT, SERVER, Replica, asked, rest, started
from benchmarks.serving_models import Kind

CONNECTIONS = 64
PIPED = 8
# ResNet-18 is not asked in JSON: half a megabyte of digits a request measures the digits.
ENCODINGS = {"gbt": ("json", "binary"), "mlp": ("json", "binary"), "resnet18": ("binary",)}

Seen: TypeAlias = dict[str, list[float]]


@contextmanager
def bare(model: Path) -> Iterator[tuple[int, int]]:
    """The port and the process of a bare server of that model, on the same core."""
    command = [sys.executable, "-m", "benchmarks.load.bare", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, SERVER)
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


def turn(replica: Replica, other: tuple[int, int], kind: Kind, model: Path, seconds: float, seen: Seen) -> None:
    """Every figure of one model, once."""
    raw = asked("alone", SERVER, model=str(model), shape=[1, *kind.row], seconds=seconds)
    many = asked("alone", SERVER, model=str(model), shape=[32, *kind.row], seconds=seconds)
    raw_rate = raw["rows"] / raw["seconds"]
    bare_port, bare_pid = other
    seen[f"{kind.name}_raw_per_second"].append(raw_rate)
    seen[f"{kind.name}_raw32_per_second"].append(many["rows"] / many["seconds"])
    seen[f"{kind.name}_raw_cpu_us"].append(raw["cpu_seconds"] / raw["rows"] * 1e6)
    for encoding in ENCODINGS[kind.name]:
        name = f"{kind.name}_{encoding}"
        request = base64.b64encode(serving_models.request(kind, encoding)).decode()

        def drive(port: int, connections: int, depth: int = 1, request: str = request) -> tuple[float, float]:
            found = asked(
                "closed", CLIENT, port=port, request=request, connections=connections, seconds=seconds, depth=depth
            )
            rest(bare_pid if port == bare_port else replica.pid)
            return found["answers"] / found["seconds"], found["p50_us"]

        spent = replica.cpu_seconds
        rate, _ = drive(replica.port, CONNECTIONS)
        spent = replica.cpu_seconds - spent
        seen[f"{name}_per_second"].append(rate)
        seen[f"{name}_of_raw"].append(rate / raw_rate)
        seen[f"{name}_of_bare"].append(rate / drive(bare_port, CONNECTIONS)[0])
        seen[f"{name}_cpu_us"].append(spent / seconds / rate * 1e6)
        if kind.name != "resnet18":
            piped, _ = drive(replica.port, CONNECTIONS, PIPED)
            seen[f"{name}_piped_of_raw"].append(piped / raw_rate)
            seen[f"{name}_piped_of_bare"].append(piped / drive(bare_port, CONNECTIONS, PIPED)[0])
        seen[f"{name}_over_raw_us"].append(drive(replica.port, 1)[1] - raw["p50_us"])
        seen[f"{name}_bare_over_raw_us"].append(drive(bare_port, 1)[1] - raw["p50_us"])


def measure(folder: Path, kinds: list[Kind], rounds: int, seconds: float) -> dict[str, float]:
    seen: Seen = defaultdict(list)
    models = {kind.name: serving_models.written(folder, kind) for kind in kinds}
    with started(folder / "state") as replica, ExitStack() as stack:
        ports = {kind.name: stack.enter_context(bare(models[kind.name][0])) for kind in kinds}
        for kind in kinds:
            replica.publish(kind.name, 1, 1, *models[kind.name])
            replica.reached(kind.name, 1)
        # The first turn shows the server how long batches of each size take, and is forgotten.
        for number in range(rounds + 1):
            for kind in kinds:
                kept = defaultdict(list) if number == 0 else seen
                turn(replica, ports[kind.name], kind, models[kind.name][0], seconds, kept)
            print(f"turn {number} of {rounds}", flush=True)
    return {name: statistics.median(values) for name, values in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns that are counted")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure in a turn")
    parser.add_argument("--models", default="gbt,mlp,resnet18", help="which of them, parted by commas")
    options = parser.parse_args()
    kinds = [kind for kind in serving_models.KINDS if kind.name in options.models.split(",")]
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        figures = measure(Path(folder), kinds, options.rounds, options.seconds)
    for name, value in figures.items():
        print(f"{name:32} {value:12,.2f}")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
