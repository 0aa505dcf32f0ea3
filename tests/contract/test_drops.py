"""What every drop store promises."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge.domain.blobs import parse_url
from dropforge.domain.errors import BadInput, Conflict, NotFound
from dropforge.ports import Drop
from tests.contract.conftest import DropBench


def listed(bench: DropBench, prefix: str = "") -> list[str]:
    return [parse_url(drop.url).path for drop in bench.drops.list("drops", prefix)]


def only(bench: DropBench) -> Drop:
    (drop,) = bench.drops.list("drops", "")
    return drop


def test_a_dropped_file_is_listed_with_its_url_size_and_time(bench: DropBench) -> None:
    bench.write("flights/day.csv", b"a,b\n1,2\n")
    drop = only(bench)
    assert parse_url(drop.url).container == "drops"
    assert parse_url(drop.url).path == "flights/day.csv"
    assert drop.size_bytes == 8
    assert drop.etag
    assert drop.modified_at.tzinfo is not None
    assert abs((datetime.now(UTC) - drop.modified_at).total_seconds()) < 60


def test_an_empty_store_lists_nothing(bench: DropBench) -> None:
    assert listed(bench) == []


def test_files_come_in_the_order_of_their_whole_paths(bench: DropBench) -> None:
    paths = [
        "b.csv",
        "a/1.csv",
        "a/10.csv",
        "a/2.csv",
        "a-b/1.csv",
        "a.csv",
        "a0/1.csv",
        "A.csv",
        "a/b/c/d.csv",
        "ä.csv",
    ]
    for path in paths:
        bench.write(path, b"x")
    assert listed(bench) == sorted(paths)


def test_a_prefix_is_text_and_need_not_end_at_a_folder(bench: DropBench) -> None:
    for path in ("flights/jan/1.csv", "flights/feb/1.csv", "flightsold/1.csv", "fl.csv", "weather/1.csv"):
        bench.write(path, b"x")
    assert listed(bench, "flights/") == ["flights/feb/1.csv", "flights/jan/1.csv"]
    assert listed(bench, "flights") == ["flights/feb/1.csv", "flights/jan/1.csv", "flightsold/1.csv"]
    assert listed(bench, "flights/j") == ["flights/jan/1.csv"]
    assert listed(bench, "flights/jan/1.csv") == ["flights/jan/1.csv"]
    assert listed(bench, "flights/jan/1.csv/") == []
    assert listed(bench, "nothing/") == []


def test_a_file_that_is_empty_a_moment_after_it_was_made_is_not_a_finished_one(bench: DropBench) -> None:
    bench.write("a.csv", b"")
    assert listed(bench) == []
    bench.write("a.csv", b"x")
    assert listed(bench) == ["a.csv"]


def test_an_etag_stays_while_the_file_does(bench: DropBench) -> None:
    bench.write("a.csv", b"x")
    assert only(bench) == only(bench)


def test_a_file_written_again_has_another_etag_also_with_equal_bytes(bench: DropBench) -> None:
    etags = set()
    for content in (b"one", b"three", b"three"):
        bench.write("a.csv", content)
        etags.add(only(bench).etag)
    assert len(etags) == 3


def test_fetch_copies_exactly_the_bytes(bench: DropBench, tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    bench.write("a/b.bin", content)
    drop = only(bench)
    bench.drops.fetch(drop.url, drop.etag, tmp_path / "in" / "copy")
    assert (tmp_path / "in" / "copy").read_bytes() == content


def test_fetch_replaces_what_an_earlier_try_left(bench: DropBench, tmp_path: Path) -> None:
    bench.write("a.csv", b"right")
    (tmp_path / "copy").write_bytes(b"half of an earlier try")
    bench.drops.fetch(only(bench).url, only(bench).etag, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"right"


def test_fetch_of_a_file_that_is_gone_is_not_found(bench: DropBench, tmp_path: Path) -> None:
    bench.write("a.csv", b"x")
    drop = only(bench)
    bench.remove("a.csv")
    with pytest.raises(NotFound):
        bench.drops.fetch(drop.url, drop.etag, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_fetch_of_a_file_written_again_is_a_conflict_and_leaves_nothing(bench: DropBench, tmp_path: Path) -> None:
    bench.write("a.csv", b"old")
    drop = only(bench)
    bench.write("a.csv", b"newer")
    target = tmp_path / "in"
    with pytest.raises(Conflict):
        bench.drops.fetch(drop.url, drop.etag, target / "copy")
    assert not target.exists() or list(target.iterdir()) == []
    bench.drops.fetch(drop.url, only(bench).etag, target / "copy")
    assert (target / "copy").read_bytes() == b"newer"


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.blob.core.windows.net/drops/a.csv",
        "https://local.blob.localhost/other/a.csv",
        "https://local.blob.localhost/drops/a.csv/b.csv",
        "https://local.blob.localhost/drops/b.csv",
    ],
)
def test_fetch_of_a_url_that_names_no_file_here_is_not_found(bench: DropBench, tmp_path: Path, url: str) -> None:
    bench.write("a.csv", b"x")
    with pytest.raises(NotFound):
        bench.drops.fetch(url, only(bench).etag, tmp_path / "copy")


def test_look_says_what_list_says(bench: DropBench) -> None:
    bench.write("flights/day 1.csv", b"x")
    bench.write("flights/day 2.csv", b"xy")
    for drop in bench.drops.list("drops", ""):
        assert bench.drops.look(drop.url) == drop


def test_look_finds_nothing_where_nothing_is(bench: DropBench) -> None:
    bench.write("a/b.csv", b"x")
    there = only(bench)
    bench.remove("a/b.csv")
    for url in (there.url, there.url.replace("/b.csv", ""), there.url + "/c.csv"):
        assert bench.drops.look(url) is None


def test_look_sees_an_upload_that_has_only_begun_and_says_so(bench: DropBench) -> None:
    bench.write("a.csv", b"x")
    url = only(bench).url
    bench.write("a.csv", b"")
    found = bench.drops.look(url)
    assert found is not None and not found.finished and found.size_bytes == 0


@pytest.mark.parametrize("service", ["blob", "dfs"])
def test_a_file_is_the_same_whichever_service_its_url_names(bench: DropBench, service: str) -> None:
    bench.write("a b.csv", b"x")
    drop = only(bench)
    ref = bench.drops.locate(f"https://local.{service}.core.windows.net/drops/a%20b.csv")
    assert (ref.account, ref.container, ref.path) == ("local", "drops", "a b.csv")
    assert bench.drops.look(ref.url) == drop


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.blob.core.windows.net/drops/a.csv",
        "https://local.blob.core.windows.net/other/a.csv",
        "https://local.blob.core.windows.net/$root/a.csv",
    ],
)
def test_another_account_or_container_is_never_looked_at(bench: DropBench, tmp_path: Path, url: str) -> None:
    for ask in (bench.drops.locate, bench.drops.look, lambda url: bench.drops.fetch(url, "0x1", tmp_path / "copy")):
        with pytest.raises(NotFound):
            ask(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "https://",
        "https://[",
        "https://local.blob.core.windows.net",
        "https://local.blob.core.windows.net/drops",
        "https://local.blob.core.windows.net/drops/",
        "https://local/drops/a.csv",
        "https://local.example.com/drops/a.csv",
        "http://169.254.169.254/metadata/instance",
        "http://127.0.0.1:1/local/drops/a.csv",
        "file:///drops/a.csv",
        "https://local.blob.core.windows.net/drops/%ff.csv",
        "https://local.blob.core.windows.net/drops/a%00.csv",
        "https://local.blob.core.windows.net/drops/" + "a" * 1025,
    ],
)
def test_what_is_no_blob_url_is_refused_without_a_look(bench: DropBench, url: str) -> None:
    for ask in (bench.drops.locate, bench.drops.look):
        with pytest.raises(BadInput):
            ask(url)


@pytest.mark.parametrize(
    "path", ["../secret", "%2e%2e/secret", "a/../../secret", "a/%2e%2e/%2e%2e/secret", "..%2fsecret"]
)
def test_no_url_leads_out_of_the_store(bench: DropBench, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(BadInput):
        bench.drops.fetch(f"https://local.blob.localhost/drops/{path}", "0x1", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_container_that_is_not_there_is_not_found(bench: DropBench, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(NotFound, match="'drops'"):
        list(bench.drops.list("other", ""))
    with pytest.raises(NotFound, match="'drops'"):
        bench.drops.put("other", "a.csv", tmp_path / "source")


def test_put_drops_a_file_and_says_what_list_will_say(bench: DropBench, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    dropped = bench.drops.put("drops", "flights/new/day.csv", tmp_path / "source")
    assert only(bench) == dropped
    bench.drops.fetch(dropped.url, dropped.etag, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"


def test_put_on_a_path_that_is_taken_is_another_write(bench: DropBench, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"content")
    first = bench.drops.put("drops", "a.csv", tmp_path / "source")
    second = bench.drops.put("drops", "a.csv", tmp_path / "source")
    assert (first.url, first.size_bytes) == (second.url, second.size_bytes)
    assert first.etag != second.etag
    assert only(bench) == second


@pytest.mark.parametrize(
    "path", ["", "/", "/a.csv", "a/", "../a.csv", "a/../../b.csv", "a//b.csv", "./a.csv", "a\nb.csv"]
)
def test_put_refuses_a_path_no_url_leads_to(bench: DropBench, tmp_path: Path, path: str) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(BadInput):
        bench.drops.put("drops", path, tmp_path / "source")
    assert listed(bench) == []


ODD = st.text(
    # A backslash is a slash to some stores.
    st.characters(min_codepoint=32, exclude_characters="/.~\\", exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=8,
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(ODD, min_size=1, max_size=3))
def test_any_path_comes_back_from_its_url(bench: DropBench, tmp_path: Path, parts: list[str]) -> None:
    (tmp_path / "source").write_bytes(b"content")
    path = "/".join([*parts, "file.csv"])
    dropped = bench.drops.put("drops", path, tmp_path / "source")
    assert parse_url(dropped.url).path == path
    assert [drop for drop in bench.drops.list("drops", path) if drop.url == dropped.url] == [dropped]
    bench.drops.fetch(dropped.url, dropped.etag, tmp_path / "copy")
