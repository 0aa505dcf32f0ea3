"""YAML text to plain data that remembers its lines. Safe against whatever a text may hold: it is loaded, never run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import yaml

from dropforge.spec.problems import Path, Problem, dotted

MAX_BYTES = 256 * 1024
# An anchor that is used again and again could stand for billions of values.
MAX_VALUES = 10_000
MAX_DEPTH = 20
_STANDARD = "tag:yaml.org,2002:"
# YAML 1.1 has no 1e-3: it would be text, and a learning rate with it.
_EXPONENT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$")
# YAML 1.1 reads 010 as 8 and 1:30 as 90.
_SURPRISING = re.compile(r"(?=.{1,30}$)[-+]?(?:0[0-9_]+|[0-9][0-9_]*(?::[0-9.]+)+)$")


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"found more than {MAX_DEPTH} levels inside each other", self.get_mark()
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.add_implicit_resolver(f"{_STANDARD}float", _EXPONENT, list("-+.0123456789"))


class NotYaml(Exception):
    """The text as a whole cannot be read; nothing more can be said about it."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(line, "", message)


@dataclass
class Tree:
    """The data, with the line of every key or list item, and what each unquoted value looks like in the text."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Path, int] = field(default_factory=dict)
    unquoted: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of the key, or of the nearest one above it that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_tree(text: str) -> Tree:
    """What the text holds. Raises `NotYaml` when it is not a YAML mapping; smaller troubles are `problems`."""
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise NotYaml(1, f"found more than {MAX_BYTES // 1024} KB; a pipeline.yaml is a page of text")
    with _loading(text) as loader:
        try:
            node = loader.get_single_node()
        except (ValueError, OverflowError) as error:
            said = "not YAML: found an escape (\\U...) of a character that does not exist"
            raise NotYaml(loader.line + 1, said) from error
        if node is None:
            raise NotYaml(1, "found nothing; wanted at least the keys name, dataset and training")
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise NotYaml(node.start_mark.line + 1, f"found {kind}; wanted keys with values, as in `name: flights`")
        reader = _Reader(loader)
        reader.tree.data = reader.value(node, ())
        return reader.tree


@contextmanager
def _loading(text: str) -> Iterator[_Loader]:
    try:
        # Making the loader reads the first characters already.
        loader = _Loader(text)
        try:
            yield loader
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotYaml(line, f"found the character {chr(int(error.character))!a}, which YAML does not allow") from error
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from error


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> NotYaml:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines()
    if line < len(lines) and lines[line][column : column + 1] == "\t":
        return NotYaml(line + 1, f"not YAML: found a tab (column {column + 1}); indent with spaces")
    said = error.problem or error.context or "cannot be read"
    hint = "; text with ': ' in it needs quotes" if said.startswith("mapping values are not allowed") else ""
    opened = error.context_mark
    if opened and opened.line != line:
        hint += f"; it belongs to what starts on line {opened.line + 1}"
    return NotYaml(line + 1, f"not YAML: {said} (column {column + 1}){hint}")


class _Reader:
    """Walks the nodes of one text."""

    def __init__(self, loader: _Loader) -> None:
        self.loader = loader
        self.tree = Tree()
        self.values = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise NotYaml(node.start_mark.line + 1, f"found more than {MAX_VALUES} values; anchors (&) multiply them")
        if len(path) > MAX_DEPTH:
            raise NotYaml(node.start_mark.line + 1, "found an anchor (&) that contains itself")
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_STANDARD}map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_STANDARD}seq":
            return self._sequence(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._problem(node, path, f"found the tag {node.tag.replace(_STANDARD, '!!')}; only plain values are allowed")
        return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            here = (*path, key)
            if key in found:
                self._problem(key_node, here, f"is there twice; the first is on line {self.tree.lines[here]}")
                continue
            self.tree.lines[here] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, here)
        return found

    def _key(self, node: yaml.Node, path: Path) -> str | None:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_STANDARD}merge":
            self._problem(node, path, "found a merge key (<<); write its keys out")
        elif not isinstance(node, yaml.ScalarNode):
            self._problem(node, path, "found a list or a mapping as a key; wanted text")
        elif node.tag != f"{_STANDARD}str":
            kind = node.tag.removeprefix(_STANDARD)
            read_as = {"null": "nothing", "bool": "true or false", "timestamp": "a date"}.get(
                kind, f"a number ({kind})"
            )
            self._problem(
                node, path, f"found the key {node.value!r}, which YAML reads as {read_as}; in quotes it is text"
            )
        else:
            return self._text(node, path, node.value)
        return None

    def _sequence(self, node: yaml.SequenceNode, path: Path) -> list[Any]:
        found = []
        for index, item in enumerate(node.value):
            self.tree.lines[(*path, index)] = item.start_mark.line + 1
            found.append(self.value(item, (*path, index)))
        return found

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        # Unquoted (`style` is None), a value is what it looks like to YAML.
        if node.style is None:
            self.tree.unquoted[path] = node.value
        try:
            value = self.loader.construct_object(node)
        except (yaml.constructor.ConstructorError, ValueError, OverflowError, AttributeError, KeyError) as error:
            said = getattr(error, "problem", None) or error
            if isinstance(error, AttributeError | KeyError):
                # PyYAML takes a tag's word for what its text looks like.
                said = f"it is no {node.tag.removeprefix(_STANDARD)}"
            self._problem(node, path, f"found {_short(node.value)}: {said}; in quotes, and without a tag, it is text")
            return None
        if isinstance(value, int | float) and not isinstance(value, bool) and _SURPRISING.match(node.value):
            self._problem(
                node,
                path,
                f"found {node.value}, which YAML reads as {value:g}; write that, or '{node.value}' in quotes",
            )
        if not isinstance(value, str | int | float | date | None):
            self._problem(
                node, path, f"found the tag {node.tag.replace(_STANDARD, '!!')}; only plain values are allowed"
            )
            return None
        return self._text(node, path, value) if isinstance(value, str) else value

    def _text(self, node: yaml.Node, path: Path, text: str) -> str | None:
        """The text, its characters whole: JSON writes those beyond 16 bits as two escapes, and YAML reads two halves."""
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            self._problem(node, path, f"found {_short(text)}, half a character; write the character itself")
            return None

    def _problem(self, node: yaml.Node, path: Path, message: str) -> None:
        self.tree.problems.append(Problem(node.start_mark.line + 1, dotted(path), message))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
