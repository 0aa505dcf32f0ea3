"""Model files from far away, kept on this machine."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dropforge.domain.errors import BadInput, Unavailable
from dropforge.serving.cache import Cache


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pieces(*data: bytes) -> Callable[[], tuple[int, Iterator[bytes]]]:
    return lambda: (sum(map(len, data)), iter(data))


def nothing() -> tuple[int, Iterator[bytes]]:
    raise AssertionError("fetched again")


def held(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.iterdir()}


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    path = cache.file(sha256(b"abcd"), pieces(b"ab", b"cd"), ())
    assert path.read_bytes() == b"abcd"
    assert cache.file(sha256(b"abcd").upper(), nothing, ()) == path
    assert Cache(tmp_path, 100).file(sha256(b"abcd"), nothing, ()) == path


def test_other_bytes_are_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=rf"\(2 bytes\): wanted sha256 {sha256(b'abcd')}, found {sha256(b'ab')}"):
        Cache(tmp_path, 100).file(sha256(b"abcd"), pieces(b"ab"), ())
    assert held(tmp_path) == set()


def test_a_file_that_was_damaged_here_is_fetched_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    path = cache.file(sha256(b"abcd"), pieces(b"abcd"), ())
    path.write_bytes(b"abcx")
    assert cache.file(sha256(b"abcd"), pieces(b"abcd"), ()).read_bytes() == b"abcd"


def test_a_fetch_that_ends_midway_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"ab"
        raise Unavailable("the connection ended")

    with pytest.raises(Unavailable, match="the connection ended"):
        Cache(tmp_path, 100).file(sha256(b"abcd"), lambda: (4, broken()), ())
    assert held(tmp_path) == set()


def test_what_was_used_longest_ago_goes_first_and_what_serves_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 8)
    for age, data in enumerate((b"new", b"old", b"live")):
        os.utime(cache.file(sha256(data), pieces(data), keep=[sha256(b"live")]), (1000 - age, 1000 - age))
        assert len(held(tmp_path)) == min(age + 1, 2)
    assert held(tmp_path) == {b"new", b"live"}
    cache.file(sha256(b"huge" * 9), pieces(b"huge" * 9), keep=[sha256(b"live")])
    assert held(tmp_path) == {b"live", b"huge" * 9}


def test_a_file_that_is_used_again_is_young_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 6)
    for data in (b"one", b"two"):
        os.utime(cache.file(sha256(data), pieces(data), ()), (1, 1))
    cache.file(sha256(b"one"), nothing, ())
    cache.file(sha256(b"new"), pieces(b"new"), ())
    assert held(tmp_path) == {b"one", b"new"}


@pytest.mark.parametrize("name", ["", "..", "../x", "ab" * 31, "zz" * 32])
def test_a_sha256_that_is_none_names_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="is not 64 hex digits"):
        Cache(tmp_path, 100).file(name, nothing, ())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput, match="name another folder in DROPFORGE_SERVE_CACHE"):
        Cache(tmp_path / "file" / "cache", 100)
