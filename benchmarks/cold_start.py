"""Cold start: what importing `function_app` costs beyond importing the two SDKs it cannot do without.

    python -m benchmarks.cold_start

Each import runs in a fresh interpreter, the two kinds alternating; compared are the medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROUNDS = 15
SDKS = "import azure.functions, azure.durable_functions"
PROGRAM = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def seconds(statement: str) -> float:
    """How long the statement takes in a fresh interpreter, the interpreter's own start not counted."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(statement)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def loaded(statement: str) -> set[str]:
    """Top-level modules in memory after the statement."""
    program = f"{statement}; import sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def main() -> None:
    seconds("import function_app")  # compiles what is not compiled yet
    sdks, app = [], []
    for _ in range(ROUNDS):
        sdks.append(seconds(SDKS))
        app.append(seconds("import function_app"))
    heavy = {"pydantic", "pyarrow", "deltalake", "numpy", "onnxruntime", "sklearn", "torch", "yaml"}
    brought = sorted(loaded("import function_app") & heavy - (loaded(SDKS) & heavy))
    figures = {
        "sdk_import_seconds": round(statistics.median(sdks), 4),
        "app_import_seconds": round(statistics.median(app), 4),
        "import_ratio": round(statistics.median(app) / statistics.median(sdks), 3),
        "heavy_modules_loaded": brought,
    }
    print(f"the SDKs alone  {figures['sdk_import_seconds'] * 1000:7.1f} ms")
    print(f"function_app    {figures['app_import_seconds'] * 1000:7.1f} ms")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
