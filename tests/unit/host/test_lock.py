"""One host per state folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from dropforge.host.errors import StateBusy
from dropforge.host.lock import StateLock


def test_the_second_taker_is_told_who_is_first(tmp_path: Path) -> None:
    first = StateLock(tmp_path)
    first.acquire()
    with pytest.raises(StateBusy, match=f"process {os.getpid()}, starting"):
        StateLock(tmp_path).acquire()
    first.tell("http://127.0.0.1:7071")
    with pytest.raises(StateBusy, match=rf"process {os.getpid()} at http://127\.0\.0\.1:7071"):
        StateLock(tmp_path).acquire()
    first.release()
    first.release()


def test_a_released_folder_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        lock = StateLock(tmp_path / "deep" / "state")
        lock.acquire()
        lock.release()
    assert stat.S_IMODE((tmp_path / "deep" / "state" / "host.lock").stat().st_mode) == 0o600


def test_a_lock_file_with_nonsense_in_it_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "host.lock").write_text("[]" * 5000)
    lock = StateLock(tmp_path)
    lock.acquire()
    (tmp_path / "host.lock").write_text("nonsense")
    with pytest.raises(StateBusy, match="process unknown"):
        StateLock(tmp_path).acquire()
    lock.release()
