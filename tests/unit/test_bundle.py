"""A pipeline's code comes out of its zip as plain files inside its folder, or not at all."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from dropforge.bundle import unpack
from dropforge.client import bundle
from dropforge.domain.errors import BadInput
from tests.bundles import packed


def test_a_bundle_becomes_its_files(tmp_path: Path) -> None:
    script = zipfile.ZipInfo("run.sh")
    script.external_attr = (stat.S_IFREG | 0o755) << 16
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("src/model/train.py", "print('hello')")
        archive.writestr("data/", "")
        archive.writestr(script, "#!/bin/sh")
    unpack(tmp_path / "bundle.zip", tmp_path / "code")

    assert (tmp_path / "code/src/model/train.py").read_text() == "print('hello')"
    assert (tmp_path / "code/data").is_dir() and (tmp_path / "code/run.sh").stat().st_mode & 0o100


def test_a_script_of_a_folder_is_executable_where_the_folder_is_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    for name in ("pipeline.yaml", "run.sh"):
        (folder / name).write_text(name)
    plain = bundle(folder)
    (folder / "run.sh").chmod(0o755)
    (tmp_path / "bundle.zip").write_bytes(bundle(folder))
    unpack(tmp_path / "bundle.zip", tmp_path / "code")

    assert [(tmp_path / "code" / name).stat().st_mode & 0o100 for name in ("pipeline.yaml", "run.sh")] == [0, 0o100]
    # A folder without one is the bundle that it always was.
    assert plain == packed({"pipeline.yaml": b"pipeline.yaml", "run.sh": b"run.sh"})


@pytest.mark.parametrize("name", ["../out.py", "/etc/out.py", "a/../../out.py", "a\\..\\out.py"])
def test_a_bundle_cannot_write_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "bundle.zip").write_bytes(packed({"ok.py": b"", name: b"boo"}))

    with pytest.raises(BadInput, match="outside its folder"):
        unpack(tmp_path / "bundle.zip", tmp_path / "code")
    assert not (tmp_path / "code").exists() and not (tmp_path / "out.py").exists()


def test_a_bundle_cannot_hold_links(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")

    with pytest.raises(BadInput, match="a link or a device"):
        unpack(tmp_path / "bundle.zip", tmp_path / "code")


def test_a_bundle_has_limits(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * 3_000_000)
    (tmp_path / "many.zip").write_bytes(packed({f"{i}.py": b"" for i in range(11)}))
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 not really")

    with pytest.raises(BadInput, match="at most 2,000,000 bytes"):
        unpack(tmp_path / "bomb.zip", tmp_path / "code", max_bytes=2_000_000)
    with pytest.raises(BadInput, match="at most 10 files"):
        unpack(tmp_path / "many.zip", tmp_path / "code", max_files=10)
    with pytest.raises(BadInput, match="cannot be unpacked"):
        unpack(tmp_path / "broken.zip", tmp_path / "code")
    assert not (tmp_path / "code").exists()
