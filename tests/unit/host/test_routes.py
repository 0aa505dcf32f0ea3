"""Route templates: what matches, what it yields, and which of two wins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.host.routes import BadTemplate, compile_template, decode_path


@pytest.mark.parametrize(
    ("template", "path", "parameters"),
    [
        ("ping", "ping", {}),
        ("ping", "PING", {}),
        ("ping", "pings", None),
        ("ping", "ping/x", None),
        ("", "", {}),
        ("", "x", None),
        ("start/{name}", "start/main", {"name": "main"}),
        ("start/{name}", "start", None),
        ("start/{name}", "start/a/b", None),
        ("/start/{name}/", "start/a", {"name": "a"}),
        ("a/{x}/b/{y}", "a/1/b/2", {"x": "1", "y": "2"}),
        ("runs/{id:int}", "runs/42", {"id": "42"}),
        ("runs/{id:int}", "runs/-42", {"id": "-42"}),
        ("runs/{id:int}", "runs/x", None),
        ("runs/{id:int:min(10)}", "runs/9", None),
        ("runs/{id:range(1,5)}", "runs/5", {"id": "5"}),
        ("runs/{id:range(1,5)}", "runs/6", None),
        ("runs/{id:min(1)}", "runs/" + "9" * 5000, None),
        ("x/{ok:bool}", "x/True", {"ok": "True"}),
        ("x/{f:float}", "x/1.5", {"f": "1.5"}),
        ("x/{w:alpha}", "x/a1", None),
        ("x/{w:length(2)}", "x/ab", {"w": "ab"}),
        ("x/{w:length(2,3)}", "x/abcd", None),
        ("x/{g:guid}", "x/6d79dbfb-0e37-4fc4-981f-442c9ca65760", {"g": "6d79dbfb-0e37-4fc4-981f-442c9ca65760"}),
        ("x/{w:regex(^[a-c]+$)}", "x/abc", {"w": "abc"}),
        ("x/{w:regex(^[a-c]+$)}", "x/abd", None),
        ("page/{n?}", "page", {}),
        ("page/{n?}", "page/2", {"n": "2"}),
        ("page/{n:int?}", "page/x", None),
        ("page/{n=1}", "page", {"n": "1"}),
        ("page/{n=1}", "page/2", {"n": "2"}),
        ("{*path}", "", {}),
        ("{*path}", "a/b/c", {"path": "a/b/c"}),
        ("files/{*path}", "files", {}),
        ("files/{**path}", "files/a/b.txt", {"path": "a/b.txt"}),
        ("files/{name}.{ext}", "files/a.b.csv", {"name": "a", "ext": "b.csv"}),
        ("v{major:int}", "v12", {"major": "12"}),
        ("v{major:int}", "vx", None),
        ("a.b", "axb", None),
    ],
)
def test_matching(template: str, path: str, parameters: dict[str, str] | None) -> None:
    assert compile_template(template).match(path) == parameters


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{*path}/x", "last"),
        ("{n?}/x", "last"),
        ("x{*path}", "whole segment"),
        ("{a}/{a}", "twice"),
        ("{a:nope}", "nope"),
        ("{a:min(x)}", "whole numbers"),
        ("{a:range(1)}", "whole numbers"),
        ("{a:regex([)}", "regular expression"),
        ("{a", "braces"),
        ("a}b", "braces"),
        ("{}", "braces"),
    ],
)
def test_what_is_no_template_is_refused_with_the_reason(template: str, word: str) -> None:
    with pytest.raises(BadTemplate, match=word):
        compile_template(template)


def test_the_more_specific_template_comes_first() -> None:
    templates = ["{*path}", "runs/{id}", "runs/{id:int}", "runs/v{id}", "runs/latest", "runs", "{x}/latest"]
    ordered = sorted(map(compile_template, templates), key=lambda template: template.specificity)
    assert [template.template for template in ordered] == [
        "runs/latest", "runs/v{id}", "runs/{id:int}", "runs/{id}", "runs", "{x}/latest", "{*path}",
    ]  # fmt: skip


@given(st.lists(st.text(st.characters(exclude_characters="/"), min_size=1).filter(lambda s: s.strip("/")), min_size=1))
def test_a_catch_all_gives_the_path_back(segments: list[str]) -> None:
    path = "/".join(segments)
    assert compile_template("{*path}").match(path) == {"path": path}


def test_a_path_is_decoded_except_for_encoded_slashes() -> None:
    assert decode_path("/api/a%20b/c%2Fd%2fe/%C3%A9/") == "api/a b/c%2Fd%2Fe/é"
