"""Where the memory of models comes from, and a large file verified apart."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dropforge.serving.allocator import environment_for_models
from dropforge.serving.models import APART_BYTES, sha256_of

HUGE, ONE_HEAP = "glibc.malloc.hugetlb=1", "glibc.malloc.arena_max=1"


@pytest.mark.parametrize(
    ("environment", "libc", "tunables"),
    [
        ({}, "glibc 2.36", f"{HUGE}:{ONE_HEAP}"),
        ({}, "glibc 2.35", f"{HUGE}:{ONE_HEAP}"),
        ({}, "glibc 3.0", f"{HUGE}:{ONE_HEAP}"),
        ({}, "glibc 2.34", ONE_HEAP),
        ({}, "glibc 2.25", None),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "glibc 2.36", f"glibc.malloc.check=0:{HUGE}:{ONE_HEAP}"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc 2.36", f"glibc.malloc.hugetlb=0:{ONE_HEAP}"),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}, "glibc 2.36", f"glibc.malloc.arena_max=4:{HUGE}"),
        ({"MALLOC_ARENA_MAX": "4"}, "glibc 2.36", HUGE),
        ({"DROPFORGE_SERVE_HUGE_PAGES": "false"}, "glibc 2.36", ONE_HEAP),
        ({"DROPFORGE_SERVE_HUGE_PAGES": "false", "MALLOC_ARENA_MAX": "4"}, "glibc 2.36", None),
        ({}, "", None),
        ({}, "musl", None),
    ],
)
def test_what_glibc_knows_is_asked_for_once(environment: dict[str, str], libc: str, tunables: str | None) -> None:
    found = environment_for_models(environment, libc)
    assert (found or {}).get("GLIBC_TUNABLES") == tunables
    if found is not None:
        assert environment_for_models(found, libc) is None


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_process_starts_again_as_itself() -> None:
    code = (
        "import os, sys; print(os.getpid(), flush=True);"
        "from dropforge.serving.allocator import start_again_for_models as start;"
        "start(); print(os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:])"
    )
    unset = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code, "a b", "c"], env=environment, capture_output=True, text=True, check=True
    )
    first, again, told = done.stdout.splitlines()
    assert first == again
    assert told == f"{HUGE}:{ONE_HEAP} a b c"


def test_a_large_file_is_verified_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"model" * 1000)
    assert sha256_of(path, APART_BYTES - 1) is None
    assert sha256_of(path, APART_BYTES) == hashlib.sha256(path.read_bytes()).hexdigest()
    # Where that cannot be had it is done here.
    assert sha256_of(tmp_path / "none", APART_BYTES) is None
