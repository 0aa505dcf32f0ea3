"""What the drop folder promises beyond every drop store: what counts as finished, links, kills, memory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from dropforge.adapters.local import drops as drops_module
from dropforge.adapters.local.drops import LocalDrops, etag_of, is_finished, is_ignored
from dropforge.domain.blobs import BlobRef, parse_url
from dropforge.domain.errors import BadInput, Conflict, NotFound, Unavailable
from tests.contract.writers import killed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "drops"


@pytest.fixture
def store(root: Path) -> LocalDrops:
    return LocalDrops(root, settle_seconds=0)


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def listed(store: LocalDrops, prefix: str = "") -> list[str]:
    return [parse_url(drop.url).path for drop in store.list("drops", prefix)]


def test_a_file_under_the_root_has_the_url_of_a_blob(store: LocalDrops, root: Path) -> None:
    write(root / "flights" / "a b%20c?#ü.csv")
    (drop,) = store.list("drops", "")
    assert drop.url == "https://local.blob.localhost/drops/flights/a%20b%2520c%3F%23%C3%BC.csv"
    assert drop.url == BlobRef("local", "drops", "flights/a b%20c?#ü.csv").url


# ------------------------------------------------------------------------------------------ etags
def test_an_etag_is_a_hexadecimal_number_of_one_length(root: Path, store: LocalDrops) -> None:
    file = write(root / "a.csv")
    for seconds in (-1, 0, 1, 2**33):
        os.utime(file, (seconds, seconds))
        etag = etag_of(file.stat())
        assert etag.startswith("0x")
        assert len(etag) == 50
        assert int(etag, 16) >= 0


def test_time_size_and_file_each_change_the_etag(root: Path, store: LocalDrops) -> None:
    file = write(root / "a.csv")
    os.utime(file, (1, 1))
    etags = {etag_of(file.stat())}
    os.utime(file, ns=(1, 1_000_000_001))
    etags.add(etag_of(file.stat()))
    file.write_bytes(b"longer")
    os.utime(file, (1, 1))
    etags.add(etag_of(file.stat()))
    twin = write(root / "b.csv", b"longer")
    os.utime(twin, (1, 1))
    etags.add(etag_of(twin.stat()))
    assert len(etags) == 4


# ------------------------------------------------------------------------------------------ finished
@pytest.mark.parametrize(
    "path",
    [
        ".a.csv",
        "a/.b/c.csv",
        "a.csv.tmp",
        "a.csv.part",
        "a.TMP",
        "a.csv.crdownload",
        "a.csv~",
        "a\x01.csv",
        "a\udcff.csv",
    ],
)
def test_hidden_and_unfinished_names_are_ignored(store: LocalDrops, root: Path, path: str) -> None:
    write(root / path)
    assert is_ignored(path)
    assert listed(store) == []


@pytest.mark.parametrize("path", ["a.csv", "a.tmp/b.csv", "tmp", "part.csv", "a~b.csv", "b~/c.csv", "ä/ö.csv", "a"])
def test_other_names_are_not(store: LocalDrops, root: Path, path: str) -> None:
    write(root / path)
    assert not is_ignored(path)
    assert listed(store) == listed(store, path) == [path]


def test_what_is_ignored_cannot_be_put(store: LocalDrops, tmp_path: Path) -> None:
    for path in (".a.csv", "a/.b/c.csv", "a.csv.tmp", ".incoming/a.csv"):
        with pytest.raises(BadInput, match="cannot be dropped"):
            store.put("drops", path, write(tmp_path / "source"))


def test_a_file_that_changed_just_now_is_not_finished_until_it_has_settled(root: Path) -> None:
    now = time.time()
    store = LocalDrops(root, settle_seconds=60, clock=lambda: now)
    write(root / "a.csv")
    # An old modification time, as `cp -p` restores it, does not make it settled.
    os.utime(root / "a.csv", (1, 1))
    now = time.time()
    assert listed(store) == []
    now += 59
    assert listed(store) == []
    now += 2
    assert listed(store) == ["a.csv"]


def test_a_clock_that_was_set_back_does_not_hide_files(root: Path) -> None:
    file = write(root / "a.csv")
    assert is_finished(file, file.stat(), time.time() - 86_400)


def test_a_file_that_another_process_has_open_for_writing_is_not_finished(root: Path, store: LocalDrops) -> None:
    write(root / "open.csv")
    code = f"f = open({str(root / 'open.csv')!r}, 'ab'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin
        assert writer.stdout
        writer.stdout.readline()
        assert listed(store) == []
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        writer.wait(30)
    assert listed(store) == ["open.csv"]


def test_a_file_that_somebody_reads_is_finished(root: Path, store: LocalDrops) -> None:
    with write(root / "a.csv").open("rb"):
        assert listed(store) == ["a.csv"]


def test_asking_whether_a_file_is_finished_neither_kills_us_nor_holds_up_its_writer(root: Path) -> None:
    # A writer that comes while the lease stands makes the kernel signal its holder: by default, deadly.
    file = write(root / "a.csv")
    code = (
        "import sys, time\n"
        "end = time.monotonic() + 1\n"
        "n = 0\n"
        "while time.monotonic() < end:\n"
        "    open(sys.argv[1], 'ab').close()\n"
        "    n += 1\n"
        "print(n)"
    )
    asker = (
        "import sys, time\n"
        "from dropforge.adapters.local.finished import is_finished\n"
        "import os\n"
        "while True: is_finished(sys.argv[1], os.stat(sys.argv[1]), 0.0)"
    )
    with subprocess.Popen([sys.executable, "-c", asker, str(file)]) as asking:
        opened = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, check=True, timeout=60)
        assert asking.poll() is None
        asking.kill()
    assert int(opened.stdout) > 100


def test_folders_fifos_and_devices_are_no_files(root: Path, store: LocalDrops, tmp_path: Path) -> None:
    (root / "folder.csv").mkdir()
    os.mkfifo(root / "fifo.csv")
    assert listed(store) == []
    for name in ("folder.csv", "fifo.csv"):
        with pytest.raises(NotFound, match="not a file"):
            store.fetch(BlobRef("local", "drops", name).url, "0x0", tmp_path / "copy")


# ------------------------------------------------------------------------------------------ links
def test_a_link_out_of_the_root_is_neither_listed_nor_fetched(root: Path, store: LocalDrops, tmp_path: Path) -> None:
    secret = write(tmp_path / "outside" / "secret.csv")
    (root / "file.csv").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)
    (root / "nowhere.csv").symlink_to(root / "none.csv")
    (root / "circle.csv").symlink_to(root / "circle.csv")
    assert listed(store) == []
    assert listed(store, "folder/") == []
    for path in ("file.csv", "folder/secret.csv", "circle.csv"):
        with pytest.raises(NotFound):
            store.fetch(BlobRef("local", "drops", path).url, etag_of(secret.stat()), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_link_to_a_file_inside_the_root_is_a_file(root: Path, store: LocalDrops, tmp_path: Path) -> None:
    write(root / "data" / "a.csv", b"content")
    (root / "latest.csv").symlink_to("data/a.csv")
    assert listed(store) == ["data/a.csv", "latest.csv"]
    link = next(iter(store.list("drops", "latest")))
    store.fetch(link.url, link.etag, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"


def test_a_linked_folder_is_not_walked(root: Path, store: LocalDrops) -> None:
    write(root / "data" / "a.csv")
    (root / "data" / "circle").symlink_to(root)
    assert listed(store) == ["data/a.csv"]


def test_put_does_not_follow_a_link_out_of_the_root(root: Path, store: LocalDrops, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "out").symlink_to(tmp_path / "outside")
    for path in ("out/a.csv", "out/deeper/a.csv"):
        with pytest.raises(BadInput, match="leaves the drop folder"):
            store.put("drops", path, write(tmp_path / "source"))
    assert list((tmp_path / "outside").iterdir()) == []


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    store = LocalDrops(tmp_path / "linked", settle_seconds=0)
    store.put("drops", "a/b.csv", write(tmp_path / "source"))
    assert listed(store) == ["a/b.csv"]
    assert (tmp_path / "real" / "a" / "b.csv").is_file()


# ------------------------------------------------------------------------------------------ fetch and put
def test_a_file_that_changes_while_it_is_copied_is_a_conflict(
    root: Path, store: LocalDrops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(root / "a.csv", b"x" * 100)
    os.utime(file, (1, 1))
    (drop,) = store.list("drops", "")
    copy = drops_module.shutil.copyfileobj  # type: ignore[attr-defined]

    def copy_while_somebody_writes(*arguments: object) -> None:
        copy(*arguments)
        file.write_bytes(b"y" * 100)

    monkeypatch.setattr(drops_module.shutil, "copyfileobj", copy_while_somebody_writes)  # type: ignore[attr-defined]
    with pytest.raises(Conflict, match="written again"):
        store.fetch(drop.url, drop.etag, tmp_path / "in" / "copy")
    assert list((tmp_path / "in").iterdir()) == []


def test_put_replaces_a_file_whole_for_those_who_have_it_open(root: Path, store: LocalDrops, tmp_path: Path) -> None:
    write(root / "a.csv", b"old")
    with (root / "a.csv").open("rb") as reader:
        store.put("drops", "a.csv", write(tmp_path / "source", b"new"))
        assert reader.read() == b"old"
    assert (root / "a.csv").read_bytes() == b"new"


def test_fetch_replaces_its_target_whole(root: Path, store: LocalDrops, tmp_path: Path) -> None:
    dropped = store.put("drops", "a.csv", write(tmp_path / "source", b"new"))
    with write(tmp_path / "copy", b"old").open("rb") as reader:
        store.fetch(dropped.url, dropped.etag, tmp_path / "copy")
        assert reader.read() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_we_may_not_read_is_unavailable(root: Path, store: LocalDrops, tmp_path: Path) -> None:
    file = write(root / "a.csv")
    file.chmod(0)
    with pytest.raises(Unavailable, match="permissions"):
        store.fetch(BlobRef("local", "drops", "a.csv").url, etag_of(file.stat()), tmp_path / "copy")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_what_lies_in_a_folder_we_may_not_enter_is_not_gone(root: Path, store: LocalDrops, mode: int) -> None:
    file = write(root / "closed" / "a.csv")
    file.parent.chmod(mode)
    try:
        with pytest.raises(Unavailable, match="permissions"):
            listed(store)
        with pytest.raises(Unavailable, match="permissions"):
            store.look(BlobRef("local", "drops", "closed/a.csv").url)
    finally:
        file.parent.chmod(0o700)


def test_a_folder_too_deep_to_be_listed_is_unavailable_and_not_empty(root: Path, store: LocalDrops) -> None:
    write(root / "a.csv")
    folder = os.open(root, os.O_RDONLY)
    try:
        for _ in range(20):  # 5,000 characters
            os.mkdir("d" * 250, dir_fd=folder)
            outer, folder = folder, os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
            os.close(outer)
        with pytest.raises(Unavailable, match="cannot be listed: File name too long"):
            listed(store)
    finally:
        os.close(folder)
        shutil.rmtree(root / ("d" * 250))


@pytest.mark.parametrize("path", ["taken.csv/a.csv", "folder", "x" * 300 + ".csv"])
def test_a_path_the_disk_cannot_hold_is_refused(root: Path, store: LocalDrops, tmp_path: Path, path: str) -> None:
    write(root / "taken.csv")
    write(root / "folder" / "a.csv")
    with pytest.raises(BadInput, match="choose another"):
        store.put("drops", path, write(tmp_path / "source"))
    assert listed(store) == ["folder/a.csv", "taken.csv"]
    assert list((root / ".incoming").iterdir()) == []


def test_a_kill_leaves_whole_files_only_and_no_acknowledged_one_is_lost(tmp_path: Path, root: Path) -> None:
    acknowledged = killed("drops", tmp_path, 5, 0) + killed("drops", tmp_path, 20, 1000)
    drops = list(LocalDrops(root, settle_seconds=0).list("drops", ""))
    assert {f"a/{n % 3}/{n}.csv" for n in acknowledged} <= {parse_url(drop.url).path for drop in drops}
    assert {drop.size_bytes for drop in drops} == {300_000}


def test_what_a_killed_writer_left_is_taken_away_at_the_next_start_once_it_is_old(
    root: Path, store: LocalDrops
) -> None:
    old, young = write(root / ".incoming" / "old.part"), write(root / ".incoming" / "young.part")
    os.utime(old, (1, 1))
    LocalDrops(root)
    assert (old.exists(), young.exists()) == (False, True)


# ------------------------------------------------------------------------------------------ size
def test_a_folder_larger_than_a_page_is_listed_whole_and_in_order(
    root: Path, store: LocalDrops, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drops_module, "PAGE", 3)
    paths = [f"{n:02}.csv" for n in range(9)] + ["03/a.csv", "03/b.csv", "03.csv.d/c.csv", "05-/x.csv"]
    for path in paths:
        write(root / path)
    assert listed(store) == sorted(paths)


def test_memory_does_not_grow_with_the_number_of_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops_module, "PAGE", 200)
    store = LocalDrops(root, settle_seconds=0)
    source = write(root / "0" / "source.csv")
    peaks = []
    for folder in ("few", "many"):
        (root / folder).mkdir()
        for number in range(300 if folder == "few" else 3_000):
            os.link(source, root / folder / f"{number:05}-{'x' * 100}.csv")
        tracemalloc.start()
        assert sum(1 for _ in store.list("drops", f"{folder}/")) >= 300
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


def test_a_file_or_folder_that_goes_away_while_it_is_listed_is_left_out(root: Path, store: LocalDrops) -> None:
    for path in ("a.csv", "b.csv", "c/d.csv", "e.csv"):
        write(root / path)
    drops = store.list("drops", "")
    assert next(drops).url.endswith("/a.csv")
    (root / "b.csv").unlink()
    (root / "c" / "d.csv").unlink()
    (root / "c").rmdir()
    assert [parse_url(drop.url).path for drop in drops] == ["e.csv"]


def test_a_file_that_stays_empty_is_a_drop_so_that_its_quarantine_can_say_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    path.touch()
    made = path.stat()
    assert not is_finished(path, made, made.st_ctime + 2.0)
    assert is_finished(path, made, made.st_ctime + 3.5)
