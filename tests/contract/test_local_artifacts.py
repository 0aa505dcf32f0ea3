"""What the artifact folder promises beyond every artifact store: kills, processes, URLs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.request import urlopen

import pytest

from dropforge.adapters.local.artifacts import LocalArtifacts
from dropforge.domain.errors import BadInput
from tests.contract.writers import finished, killed, start


def test_an_artifact_is_a_file_that_any_reader_finds_by_its_uri(tmp_path: Path) -> None:
    store = LocalArtifacts(tmp_path / "with a space")
    store.put("models/day=1/model.onnx", b"content")
    assert (tmp_path / "with a space" / "models" / "day=1" / "model.onnx").read_bytes() == b"content"
    uri = store.uri("models/day=1/model.onnx")
    assert uri.startswith("file:///")
    with urlopen(uri) as reader:
        assert reader.read() == b"content"


def test_an_artifact_on_disk_is_read_only(tmp_path: Path) -> None:
    LocalArtifacts(tmp_path).put("a", b"content")
    assert (tmp_path / "a").stat().st_mode & 0o222 == 0


def test_a_kill_leaves_whole_artifacts_only_and_no_acknowledged_one_is_lost(tmp_path: Path) -> None:
    acknowledged = killed("artifacts", tmp_path, 3, 0) + killed("artifacts", tmp_path, 20, 1000)
    store = LocalArtifacts(tmp_path / "artifacts")
    names = list(store.list(""))
    assert {f"a/{number}/model" for number in acknowledged} <= set(names)
    for name in names:
        number = int(name.split("/")[1])
        assert store.read(name) == bytes([number % 256]) * 300_000
        # Whoever was killed puts it again, and it is as if nothing had happened.
        store.put(name, bytes([number % 256]) * 300_000)


def test_what_a_killed_writer_left_is_not_listed_and_goes_at_the_next_start_once_it_is_old(tmp_path: Path) -> None:
    store = LocalArtifacts(tmp_path)
    store.put("a", b"x")
    old, young = tmp_path / ".incoming" / "old.part", tmp_path / ".incoming" / "young.part"
    for left in (old, young):
        left.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert list(LocalArtifacts(tmp_path).list("")) == ["a"]
    assert (old.exists(), young.exists()) == (False, True)


def test_of_two_processes_with_other_bytes_exactly_one_wins_each_name(tmp_path: Path) -> None:
    printed = finished([start("one_artifact", tmp_path, content) for content in "ab"])
    won = {content: set(map(int, lines.split())) for content, lines in zip("ab", printed, strict=True)}
    assert won["a"] | won["b"] == set(range(40))
    assert not won["a"] & won["b"]
    store = LocalArtifacts(tmp_path / "artifacts")
    for content, numbers in won.items():
        assert all(store.read(f"race/{number}") == content.encode() * 50_000 for number in numbers)


@pytest.mark.parametrize("name", ["a", "a/b", "a/b/c/d", "a/b/c/d/e"])
def test_a_name_under_or_above_another_is_refused_by_a_folder(tmp_path: Path, name: str) -> None:
    store = LocalArtifacts(tmp_path)
    store.put("a/b/c", b"content")
    with pytest.raises(BadInput, match="another artifact"):
        store.put(name, b"content")
    assert list(store.list("")) == ["a/b/c"]
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    store = LocalArtifacts(tmp_path)
    with pytest.raises(FileNotFoundError):
        store.put("a", tmp_path / "no-such-file")
    assert list(store.list("")) == []
    assert list((tmp_path / ".incoming").iterdir()) == []


def test_a_large_file_is_copied_in_pieces(tmp_path: Path) -> None:
    content = os.urandom(3 << 20) + b"tail"
    (tmp_path / "source").write_bytes(content)
    store = LocalArtifacts(tmp_path / "store")
    wanted = hashlib.sha256(content).hexdigest()
    assert store.put("a", tmp_path / "source") == wanted
    assert store.fetch("a", tmp_path / "copy") == wanted
    assert (tmp_path / "copy").read_bytes() == content
