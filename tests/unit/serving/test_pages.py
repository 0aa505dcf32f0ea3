"""Large pages, and a large file verified apart."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dropforge.serving.models import APART_BYTES, sha256_of
from dropforge.serving.pages import environment_with_large_pages


@pytest.mark.parametrize(
    ("environment", "libc", "tunables"),
    [
        ({}, "glibc 2.36", "glibc.malloc.hugetlb=1"),
        ({}, "glibc 2.35", "glibc.malloc.hugetlb=1"),
        ({}, "glibc 3.0", "glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "glibc 2.36", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, "glibc 2.36", None),
        ({"DROPFORGE_SERVE_HUGE_PAGES": "false"}, "glibc 2.36", None),
        ({}, "glibc 2.34", None),
        ({}, "", None),
        ({}, "musl", None),
    ],
)
def test_large_pages_are_asked_for_once_and_where_there_are_any(
    environment: dict[str, str], libc: str, tunables: str | None
) -> None:
    found = environment_with_large_pages(environment, libc)
    assert (found or {}).get("GLIBC_TUNABLES") == tunables
    if found is not None:
        assert environment_with_large_pages(found, libc) is None


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_process_starts_again_as_itself() -> None:
    code = (
        "import os, sys; print(os.getpid(), flush=True);"
        "from dropforge.serving.pages import start_again_with_large_pages as start;"
        "start(); print(os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", code, "a b", "c"], env=environment, capture_output=True, text=True, check=True
    )
    first, again, told = done.stdout.splitlines()
    assert first == again
    assert told == "glibc.malloc.hugetlb=1 a b c"


def test_a_large_file_is_verified_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"model" * 1000)
    assert sha256_of(path, APART_BYTES - 1) is None
    assert sha256_of(path, APART_BYTES) == hashlib.sha256(path.read_bytes()).hexdigest()
    # Where that cannot be had it is done here.
    assert sha256_of(tmp_path / "none", APART_BYTES) is None
