"""Model files from far away, kept on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
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
    return {path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100)
    path = cache.file(sha256(b"abcd"), pieces(b"ab", b"cd"), ())
    assert path.read_bytes() == b"abcd"
    assert cache.file(sha256(b"abcd").upper(), nothing, ()) == path
    assert Cache(tmp_path, 100).file(sha256(b"abcd"), nothing, ()) == path


def test_who_takes_a_file_does_not_look_like_one_who_writes_it(tmp_path: Path) -> None:
    before = Cache(tmp_path, 100).file(sha256(b"abcd"), pieces(b"abcd"), ()).stat()
    after = Cache(tmp_path, 100).file(sha256(b"abcd"), nothing, ()).stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert after.st_atime_ns > before.st_atime_ns


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
        # After its last change, so that looking into it here is told nowhere (relatime).
        os.utime(cache.file(sha256(data), pieces(data), keep=[sha256(b"live")]), (time.time() + 1000 - age, 0))
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


# ---------------------------------------------------------------------------------------------- several replicas
def test_what_serves_in_another_replica_stays_until_it_serves_there_no_more(tmp_path: Path) -> None:
    ours, theirs = Cache(tmp_path, 4), Cache(tmp_path, 4)
    theirs.file(sha256(b"one"), pieces(b"one"), ())
    ours.file(sha256(b"two"), pieces(b"two"), ())
    assert held(tmp_path) == {b"one", b"two"}
    # It serves something else, and has no other use for the first.
    theirs.file(sha256(b"two"), nothing, ())
    ours.file(sha256(b"new"), pieces(b"new"), ())
    assert held(tmp_path) == {b"two", b"new"}


def test_what_is_kept_here_stays_when_another_makes_room(tmp_path: Path) -> None:
    ours, theirs = Cache(tmp_path, 4), Cache(tmp_path, 4)
    ours.file(sha256(b"one"), pieces(b"one"), ())
    ours.file(sha256(b"two"), pieces(b"two"), [sha256(b"one")])
    theirs.file(sha256(b"new"), pieces(b"new"), ())
    assert held(tmp_path) == {b"one", b"two", b"new"}


def test_a_file_is_fetched_by_one_replica_and_the_others_wait_for_it(tmp_path: Path) -> None:
    fetching, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[bytes]:
        fetching.set()
        assert go_on.wait(10)
        yield b"abcd"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(Cache(tmp_path, 100).file, sha256(b"abcd"), lambda: (4, slow()), ())
        assert fetching.wait(10)
        others = [pool.submit(Cache(tmp_path, 100).file, sha256(b"abcd"), nothing, ()) for _ in range(3)]
        assert not wait(others, timeout=0.05).done
        go_on.set()
        assert {each.result(10) for each in others} == {first.result(10)}


def test_a_replica_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from dropforge.serving.cache import Cache;"
        "cache = Cache(Path(sys.argv[1]), 4); cache.file(sys.argv[2], lambda: (3, iter([b'one'])), ());"
        "print('serves', flush=True);"
        "cache.file(sys.argv[3], lambda: (3, (time.sleep(60) or b'' for _ in range(1))), [sys.argv[2]])"
    )
    command = [sys.executable, "-c", code, str(tmp_path), sha256(b"one"), sha256(b"two")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serves\n"
            ours = Cache(tmp_path, 4)
            ours.file(sha256(b"new"), pieces(b"new"), ())
            assert b"one" in held(tmp_path)
        finally:
            process.kill()
    # It was fetching this one, and served the other.
    ours.file(sha256(b"two"), pieces(b"two"), [sha256(b"new")])
    assert held(tmp_path) - {b""} == {b"new", b"two"}


@pytest.mark.parametrize("name", ["", "..", "../x", "ab" * 31, "zz" * 32])
def test_a_sha256_that_is_none_names_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="is not 64 hex digits"):
        Cache(tmp_path, 100).file(name, nothing, ())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInput, match="name another folder in DROPFORGE_SERVE_CACHE"):
        Cache(tmp_path / "file" / "cache", 100)
