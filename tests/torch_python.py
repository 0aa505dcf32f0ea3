"""A Python that has PyTorch, for the tests of examples/digits."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@cache
def torch_python() -> str:
    """This Python, or the one that `scripts/torch.sh` made; in CI, and where DROPFORGE_TEST_TORCH says so, it is made
    now. Skips otherwise: PyTorch is gigabytes for most, and nobody asked for them."""
    if importlib.util.find_spec("torch") is not None:
        return sys.executable
    made = sorted(ROOT.glob(".dropforge-cache/torch-*/.dropforge-setup"))
    if not made and not os.environ.get("CI") and not os.environ.get("DROPFORGE_TEST_TORCH"):
        pytest.skip("no PyTorch here; `make digits` or DROPFORGE_TEST_TORCH=1 installs it")
    done = subprocess.run([ROOT / "scripts" / "torch.sh"], capture_output=True, text=True, timeout=900)
    if done.returncode:
        pytest.fail(f"scripts/torch.sh failed: {done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]
