"""Files of a run that others read while it is being written."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from dropforge.training.disk import put, why


def test_a_reader_sees_the_one_file_or_the_other_and_never_half(tmp_path: Path) -> None:
    target, seen = tmp_path / "result.json", set()
    contents = [b"a" * 1_000_000, b"b" * 1_000_000]
    put(target, contents[0])
    writing = threading.Thread(target=lambda: [put(target, contents[number % 2]) for number in range(40)])

    writing.start()
    while writing.is_alive():
        seen.add(target.read_bytes())
    writing.join()

    assert seen <= set(contents)
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_file_is_copied_like_bytes(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"a model")

    put(tmp_path / "deep" / "model.onnx", tmp_path / "made")

    assert (tmp_path / "deep" / "model.onnx").read_bytes() == b"a model"


def test_a_full_disk_has_a_name() -> None:
    assert why(OSError(errno.ENOSPC, "No space left on device", "/x/y")) == (
        "the disk is full: No space left on device (/x/y)"
    )
    assert why(OSError(errno.EACCES, "Permission denied", "/x/y")) == "Permission denied (/x/y)"
