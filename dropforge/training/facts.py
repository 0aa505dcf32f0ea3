"""What ran: versions and hashes, enough to make the same environment again."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

# Shown by name; all others are in the hash only.
_MAIN = frozenset(
    [
        "deltalake",
        "dropforge",
        "lightgbm",
        "numpy",
        "onnx",
        "onnxmltools",
        "onnxruntime",
        "pandas",
        "polars",
        "pyarrow",
        "scikit-learn",
        "scipy",
        "skl2onnx",
        "torch",
        "transformers",
        "xgboost",
    ]
)


def installed() -> dict[str, str]:
    """Every installed distribution with its version; of two with one name the first on the path, as Python imports it.

    Read from folder names: opening the metadata of each takes a hundred times as long.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        folder = Path(place or ".")
        if not folder.is_dir():
            continue
        for entry in sorted(folder.iterdir()):
            if entry.suffix == ".dist-info":
                name, _, version = entry.stem.partition("-")
                found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return found


def environment(code_sha256: str) -> dict[str, Any]:
    """Python, platform, packages and code of this run."""
    packages = installed()
    listing = "\n".join(f"{name}=={version}" for name, version in sorted(packages.items()))
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: packages[name] for name in sorted(_MAIN & packages.keys())},
        "packages_sha256": hashlib.sha256(listing.encode()).hexdigest(),
        "packages_count": len(packages),
        "code_sha256": code_sha256,
    }
