"""What every artifact store promises."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.domain.errors import BadName, Conflict, NotFound
from dropforge.ports import Artifacts


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_what_was_put_is_read(artifacts: Artifacts) -> None:
    content = bytes(range(256)) * 9_000
    assert artifacts.put("models/flights/ab12/model.onnx", content) == sha256(content)
    assert artifacts.read("models/flights/ab12/model.onnx") == content


def test_a_file_can_be_put_and_stays_where_it_was(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    assert artifacts.put("a", tmp_path / "source") == sha256(b"content")
    (tmp_path / "source").write_bytes(b"changed")
    assert artifacts.read("a") == b"content"


def test_empty_bytes_are_an_artifact(artifacts: Artifacts) -> None:
    assert artifacts.put("empty", b"") == sha256(b"")
    assert artifacts.read("empty") == b""


def test_equal_bytes_again_change_nothing(artifacts: Artifacts, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    assert artifacts.put("a/b", b"content") == artifacts.put("a/b", b"content") == sha256(b"content")
    assert artifacts.put("a/b", tmp_path / "source") == sha256(b"content")
    assert list(artifacts.list("")) == ["a/b"]


def test_other_bytes_under_a_name_that_is_taken_are_a_conflict(artifacts: Artifacts) -> None:
    artifacts.put("a/b", b"content")
    for other in (b"other", b"", b"content and more"):
        with pytest.raises(Conflict, match="a/b"):
            artifacts.put("a/b", other)
    assert artifacts.read("a/b") == b"content"


def test_fetch_copies_to_a_file_and_says_its_hash(artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.put("a/b", b"content")
    assert artifacts.fetch("a/b", tmp_path / "in" / "copy") == sha256(b"content")
    assert (tmp_path / "in" / "copy").read_bytes() == b"content"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["copy"]


def test_a_fetched_copy_is_the_readers_own(artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.put("a", b"content")
    artifacts.fetch("a", tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"changed")
    assert artifacts.read("a") == b"content"
    artifacts.fetch("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["b", "a/c", "a", "a/b/c"])
def test_a_name_nothing_was_put_under_is_not_found(artifacts: Artifacts, tmp_path: Path, name: str) -> None:
    artifacts.put("a/b", b"content")
    with pytest.raises(NotFound):
        artifacts.read(name)
    with pytest.raises(NotFound):
        artifacts.fetch(name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_names_are_listed_by_prefix_and_in_order(artifacts: Artifacts) -> None:
    names = ["a/b/1", "a/b/10", "a/b/2", "a-b", "a/b=1/x", "a.b", "B", "ab/c"]
    for name in names:
        artifacts.put(name, name.encode())
    assert list(artifacts.list("")) == sorted(names)
    assert list(artifacts.list("a/")) == ["a/b/1", "a/b/10", "a/b/2", "a/b=1/x"]
    assert list(artifacts.list("a/b/1")) == ["a/b/1", "a/b/10"]
    assert list(artifacts.list("a")) == sorted(set(names) - {"B"})
    assert list(artifacts.list("a/b/1/")) == []
    assert list(artifacts.list("../")) == []
    assert list(artifacts.list("nothing")) == []


def test_a_name_has_one_uri_and_no_other_has_it(artifacts: Artifacts) -> None:
    artifacts.put("a/b", b"content")
    assert artifacts.uri("a/b") == artifacts.uri("a/b")
    assert artifacts.uri("a/b") != artifacts.uri("a/c")
    assert "://" in artifacts.uri("a/b")


BAD_NAMES = ["", "a b", "a\n", "a\x00b", "x" * 201, "x/" * 500 + "x"]
BAD_NAMES += [
    "/",
    "/a",
    "a/",
    "a//b",
    "..",
    "a/../b",
    "a/..",
    ".",
    "./a",
    ".hidden",
    "a/.hidden",
    "a\\b",
    "ä",
    "a%2Fb",
    "a:b",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_some_store_could_not_hold_is_refused(artifacts: Artifacts, tmp_path: Path, name: str) -> None:
    for call in (
        lambda: artifacts.put(name, b"x"),
        lambda: artifacts.read(name),
        lambda: artifacts.fetch(name, tmp_path / "copy"),
        lambda: artifacts.uri(name),
    ):
        with pytest.raises(BadName):
            call()
    assert list(artifacts.list("")) == []


def test_of_many_threads_with_other_bytes_exactly_one_wins(artifacts: Artifacts) -> None:
    def put(number: int) -> bool:
        try:
            artifacts.put("race/one", str(number % 8).encode() * 100_000)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(32)))
    winner = artifacts.read("race/one")
    assert winner in [str(number).encode() * 100_000 for number in range(8)]
    # The winner's bytes were put four times: the first made it, the others found it equal.
    assert [number % 8 for number, ok in enumerate(won) if ok] == [int(winner[:1])] * 4


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_bytes_come_back_with_their_hash(artifacts: Artifacts, tmp_path: Path, content: bytes) -> None:
    name = f"law/{sha256(content)}"
    assert artifacts.put(name, content) == artifacts.fetch(name, tmp_path / "copy") == sha256(content)
    assert artifacts.read(name) == (tmp_path / "copy").read_bytes() == content
