"""The deployed package: its size, whether its bytes come out again, and what a cold start costs with nothing else around.

    python -m benchmarks.package

Every import runs in a fresh interpreter on the packaged files, the kinds alternating; compared are the medians. Ends with 1
when a limit is broken.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts import package
from tests import azurite

ROUNDS = 15
APP = "import function_app"
# What a start may cost beside the SDKs that it cannot do without.
IMPORT_RATIO = 1.3
HARNESS = Path(__file__).parent.parent / "tests" / "e2e" / "packaged_runtime.py"


def imports(app: Path) -> dict[str, float]:
    """Seconds to import the SDKs, the app, and the app from source alone."""
    found: dict[str, list[float]] = {"sdks": [], "app": [], "app_from_source": []}
    with tempfile.TemporaryDirectory() as nothing:
        package.import_seconds(app, APP, rounds=1)
        for _ in range(ROUNDS):
            found["sdks"].append(package.import_seconds(app, package.SDKS, rounds=1))
            found["app"].append(package.import_seconds(app, APP, rounds=1))
            # Bytecode is looked for where there is none.
            from_source = f"sys.pycache_prefix = {nothing!r}; {APP}"
            found["app_from_source"].append(package.import_seconds(app, from_source, rounds=1))
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def first_answer(app: Path) -> float:
    """Seconds from the start of the interpreter to the first answer out of Table storage, in Azure's own runtime."""
    python = package.python_313()
    runtime = python.parent.parent / "lib" / "python3.13" / "site-packages"
    with azurite.running(azurite.installed()) as storage:
        environment = {
            "PATH": os.environ["PATH"],
            "DROPFORGE_ADAPTERS": "azure",
            "DROPFORGE_STORAGE": storage.connection_string,
        }
        found = []
        for _ in range(5):
            start = time.perf_counter()
            command = [python, "-I", "-S", HARNESS, app, runtime, "/api/v1/pipelines"]
            subprocess.run(command, env=environment, check=True, capture_output=True)
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def remote_build(folder: Path) -> float:
    """Seconds that pip takes for requirements.txt as a build on Azure runs it: nothing is cached, all is compiled."""
    start = time.perf_counter()
    command = [package.python_313(), "-m", "pip", "install", "--quiet", "--no-cache-dir", "--require-hashes"]
    subprocess.run([*command, "--target", folder, "--requirement", package.LOCK], check=True, capture_output=True)
    return time.perf_counter() - start


def built(out: Path) -> tuple[Path, Path]:
    out.mkdir()
    app = package.build(out)
    package.pack(app, out / "app.zip")
    return app, out / "app.zip"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="dropforge-package-") as made:
        place = Path(made)
        app, packed = built(place / "one")
        amount = package.figures(app, packed)
        seconds = imports(app)
        answer = first_answer(app)
        shutil.rmtree(package.dependencies(package.python_313()))
        start = time.perf_counter()
        _, again = built(place / "two")
        build_seconds = time.perf_counter() - start
        same = packed.read_bytes() == again.read_bytes()
        remote = remote_build(place / "remote")
    figures = {
        "files": amount.files,
        "size_mb": round(amount.size_bytes / 1e6, 1),
        "zip_mb": round((amount.zip_bytes or 0) / 1e6, 1),
        "largest_mb": {name: round(size / 1e6, 1) for name, size in amount.largest},
        "same_bytes_again": same,
        "build_seconds": round(build_seconds, 1),
        "remote_build_seconds": round(remote, 1),
        "sdk_import_seconds": round(seconds["sdks"], 3),
        "app_import_seconds": round(seconds["app"], 3),
        "app_import_from_source_seconds": round(seconds["app_from_source"], 3),
        "import_ratio": round(seconds["app"] / seconds["sdks"], 3),
        "first_answer_seconds": round(answer, 3),
    }
    for name, value in figures.items():
        print(f"{name:<32} {value}")
    print(json.dumps(figures))
    if figures["import_ratio"] > IMPORT_RATIO or not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
