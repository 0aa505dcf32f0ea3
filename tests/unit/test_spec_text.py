"""pipeline.yaml as text: broken, hostile or strange YAML is refused with a line, never run and never a crash."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge.domain.errors import BadSpec
from dropforge.spec.load import parse
from tests.unit.test_spec import FULL, LEAST, said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: found nothing; wanted at least the keys name, dataset and training"),
        ("# only a comment\n", ":1: found nothing"),
        ("- a\n- b\n", ":1: found a list; wanted keys with values"),
        ("\n\njust text\n", ":3: found a single value; wanted keys with values"),
        ("name: a\n\tdataset: b\n", ":2: not YAML: found a tab (column 1); indent with spaces"),
        ("name: a\ndataset:\n\tformat: csv\n", ":3: not YAML: found a tab (column 1); indent with spaces"),
        (
            "name: a: b\n",
            ":1: not YAML: mapping values are not allowed here (column 8); text with ': ' in it needs quotes",
        ),
        ("name: [a\ndataset: b\n", "it belongs to what starts on line 1"),
        ("name: 'a\n", "not YAML: found unexpected end of stream"),
        ("name: a\n---\nname: b\n", ":2: not YAML: but found another document"),
        ("name: *who\n", ":1: not YAML: found undefined alias 'who'"),
        ("name: a\n\nx: \x07\n", r":3: found the character '\x07', which YAML does not allow"),
        ("name: a\0\n", r":1: found the character '\x00'"),
        ("name: \ud800\n", r":1: found the character '\ud800'"),
        ('name: a\nx: "\\UFFFFFFFF"\n', ":2: not YAML: found an escape (\\U...) of a character that does not exist"),
    ],
)
def test_what_is_not_a_yaml_mapping_is_refused_with_its_line(text: str, message: str) -> None:
    assert message in said(text)


def test_a_character_in_the_two_halves_that_json_writes_is_one() -> None:
    text = json.dumps({**yaml.safe_load(LEAST), "description": "\U0001f6eb"})

    assert "\\ud83d\\udeeb" in text and parse(text).description == "\U0001f6eb"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("1: x", ":4: found the key '1', which YAML reads as a number (int); in quotes it is text"),
        ("yes: x", ":4: found the key 'yes', which YAML reads as true or false; in quotes it is text"),
        ("~: x", ":4: found the key '~', which YAML reads as nothing"),
        ("[a, b]: x", ":4: found a list or a mapping as a key; wanted text"),
        ("<<: {name: b}", ":4: found a merge key (<<); write its keys out"),
        ("name: b", ":4: name: is there twice; the first is on line 1"),
        ("gate: {better: ask, better: keep}", ":4: gate.better: is there twice; the first is on line 4"),
        ("description: !!python/object/apply:os.system ['true']", ":4: description: found the tag !!python/object"),
        ("description: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("description: !!timestamp soon", ":4: description: found 'soon': it is no timestamp; in quotes"),
        ("description: !!bool 1", ":4: description: found '1': it is no bool; in quotes"),
        (r'description: "\ud83d"', r":4: description: found '\ud83d', half a character; write the character itself"),
        (r'"\ud83d": 1', r":4: found '\ud83d', half a character"),
        ("description: !!binary aGVsbG8=", ":4: description: found the tag !!binary; only plain values are allowed"),
        ("evaluation: {slices: !!set {a, b}}", ":4: evaluation.slices: found the tag !!set"),
        ("description: 2024-13-45", ":4: description: found '2024-13-45': month must be in 1..12"),
        (f"budget: {{runs_per_day: {'9' * 5000}}}", ":4: budget.runs_per_day: found '9999"),
        ("description: &a [*a]", "found an anchor (&) that contains itself"),
        ("description: " + "[" * 5000, "not YAML: found more than 20 levels inside each other"),
        ("description: " + "{a: " * 5000, "not YAML: found more than 20 levels inside each other"),
    ],
)
def test_strange_yaml_is_refused_with_its_line(section: str, message: str) -> None:
    assert message in said(LEAST + section + "\n")


def test_a_number_of_any_size_is_held_against_its_bounds() -> None:
    text = LEAST.replace("train.py", f"train.py, seed: {'9' * 400}")
    assert f"training.seed: found {'9' * 77}...; wanted at most 4294967295" in said(text)


def test_a_bomb_of_anchors_is_refused_quickly() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    started = time.monotonic()
    assert "found more than 10000 values; anchors (&) multiply them" in said(LEAST + bomb)
    assert time.monotonic() - started < 20


def test_a_file_of_more_than_256_kb_is_refused_unread() -> None:
    assert said("name: " + "x" * 256 * 1024) == (
        "pipeline.yaml:1: found more than 256 KB; a pipeline.yaml is a page of text"
    )
    assert "found more than 256 KB" in said("# " + "ü" * 200 * 1024)


def test_thousands_of_mistakes_are_told_in_seconds() -> None:
    started = time.monotonic()
    text = FULL.replace("features: [origin", "features: [" + ", ".join(f"origine{n}" for n in range(4000)))
    assert said(text).count("\n") == 3999
    assert time.monotonic() - started < 30


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    assert parse("\ufeff" + FULL.replace("\n", "\r\n")) == parse(FULL)
    assert "pipeline.yaml:3: training.command" in said(LEAST.replace("python train.py", "''").replace("\n", "\r\n"))


# ------------------------------------------------------------------------------------------------ laws
@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("abc:{}[]&*!|>-#'\"\n\t ,?~0.%@`<"), max_size=60))
def test_no_text_does_anything_but_parse_or_be_refused_with_a_line(text: str) -> None:
    for whole in (text, LEAST + text):
        try:
            parse(whole)
        except BadSpec as error:
            problems = error.about["problems"]
            assert isinstance(problems, list) and problems
            lines = len(whole.splitlines()) + 1
            assert all(1 <= problem["line"] <= lines and problem["message"] for problem in problems)


WEIRD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 3.5, 10**30, float("nan"), float("inf"), "", "x", "no", "1e3", "../", "a" * 600, "\0", "\n",
     [], [None], [[]], ["x", "x"], [1, True], {}, {"x": 1}, {"x": None}, {"name": "x"}, [{"name": 1}], [{}]]
)  # fmt: skip


def _places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_spec_with_anything_put_anywhere_parses_or_is_refused_by_key(data: st.DataObject) -> None:
    tree = yaml.safe_load(FULL)
    tree["training"]["sweep"] = {"trials": 3, "parameters": {"lr": {"min": 1, "max": 9, "int": True}}}
    tree["deployment"]["canary"] = {"steps": [5], "bake": "1m"}
    tree["gate"]["approvers"] = ["ann"]
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(_places(tree)[1:]))
        spot = tree
        for key in above:
            spot = spot[key]
        spot[last] = copy.deepcopy(data.draw(WEIRD))
    text = yaml.safe_dump(tree, sort_keys=False)
    try:
        spec = parse(text)
    except BadSpec as error:
        problems = error.about["problems"]
        assert isinstance(problems, list) and problems
        assert len({problem["key"] for problem in problems}) == len(problems)
        assert all(1 <= problem["line"] <= text.count("\n") + 1 for problem in problems)
    else:
        # What was accepted can be stored and read again.
        assert parse(yaml.safe_dump(spec.model_dump(mode="json", exclude_none=True))) == spec


# ------------------------------------------------------------------------------------------------ what is printed
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "document"), [([], "docs/pipeline.schema.json"), (["reference"], "docs/pipeline-yaml.md")]
)
def test_the_documents_are_what_the_model_says(arguments: list[str], document: str) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "dropforge.spec", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    command = " ".join(["python -m dropforge.spec", *arguments])
    assert (ROOT / document).read_text() == printed, f"{document} is out of step; run `{command} > {document}`"


def test_asking_for_an_unknown_document_names_the_known_ones() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dropforge.spec", "poem"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "wanted one of: schema, reference; found 'poem'\n"


def test_the_spec_package_itself_loads_neither_pydantic_nor_yaml() -> None:
    code = (
        "import sys, dropforge.spec, dropforge.domain.gate; print('pydantic' in sys.modules or 'yaml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
