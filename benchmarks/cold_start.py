"""Cold start: what importing `function_app` costs beyond importing the two SDKs it cannot do without.

    python -m benchmarks.cold_start

Each import runs in a fresh interpreter, the kinds alternating; compared are the medians. `traced` is the import and the
first span told, with OpenTelemetry configured (for a collector that does not answer) and without.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parent.parent
ROUNDS = 15
SDKS = "import azure.functions, azure.durable_functions"
PROGRAM = "import time; start = time.perf_counter()\n{}\nprint(time.perf_counter() - start)"


TRACED = """import function_app
from dropforge import telemetry
from dropforge.domain.traces import Trace
telemetry.start("app")
with telemetry.span("first", Trace("1" * 32)): pass
"""
TELEMETRY = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


def seconds(statement: str, environment: Mapping[str, str] = MappingProxyType({})) -> float:
    """How long the statement takes in a fresh interpreter, the interpreter's own start and end not counted."""
    program = PROGRAM.format(statement) + "\nimport os, sys; sys.stdout.flush(); os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return float(done.stdout)


def loaded(statement: str) -> set[str]:
    """Top-level modules in memory after the statement."""
    program = f"{statement}; import sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def main() -> None:
    seconds("import function_app")  # compiles what is not compiled yet
    sdks, app, silent, traced = [], [], [], []
    for _ in range(ROUNDS):
        sdks.append(seconds(SDKS))
        app.append(seconds("import function_app"))
        silent.append(seconds(TRACED))
        traced.append(seconds(TRACED, TELEMETRY))
    heavy = {"pydantic", "pyarrow", "deltalake", "numpy", "onnxruntime", "sklearn", "torch", "yaml"}
    brought = sorted(loaded("import function_app") & heavy - (loaded(SDKS) & heavy))
    figures = {
        "sdk_import_seconds": round(statistics.median(sdks), 4),
        "app_import_seconds": round(statistics.median(app), 4),
        "import_ratio": round(statistics.median(app) / statistics.median(sdks), 3),
        "traced_ratio": round(statistics.median(traced) / statistics.median(silent), 3),
        "heavy_modules_loaded": brought,
    }
    print(f"the SDKs alone  {figures['sdk_import_seconds'] * 1000:7.1f} ms")
    print(f"function_app    {figures['app_import_seconds'] * 1000:7.1f} ms")
    print(f"with its first span told, telemetry off {statistics.median(silent) * 1000:7.1f} ms")
    print(f"                                     on {statistics.median(traced) * 1000:7.1f} ms")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
