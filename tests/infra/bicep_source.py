"""Bicep files as trees: what is declared in them, and how their nodes are read; and the types of arm-types.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tree_sitter
import tree_sitter_bicep

from tests.azure.arm_types import path as arm_types_path
from tests.infra.bicep_types import Arm, ArmTypes

Node = tree_sitter.Node


@dataclass(frozen=True, order=True)
class Problem:
    file: str
    line: int
    said: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.said}"


@cache
def parser() -> tree_sitter.Parser:
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bicep.language()))


@cache
def _file(where: str) -> dict[str, Any]:
    return dict(json.loads(Path(where).read_bytes()))


def arm_file() -> dict[str, Any]:
    return _file(str(arm_types_path()))


def known_types() -> dict[str, list[str]]:
    """Type, in lower case -> its api-versions in the file."""
    found: dict[str, list[str]] = {}
    for name in arm_file():
        type_, version = name.split("@")
        found.setdefault(type_.lower(), []).append(version)
    return found


def arm_of(type_and_version: str) -> Arm | None:
    for name, entry in arm_file().items():
        if name.lower() == type_and_version.lower():
            types = ArmTypes(entry)
            root = types[types.root]
            # Newer files point to the body; here the root is the body.
            return Arm(types, types.ref(root["body"]) if "body" in root else types.root)
    return None


@dataclass
class Declared:
    """A declaration at the top of a file."""

    name: str
    node: Node
    kind: str
    decorators: list[Node] = field(default_factory=list)

    @property
    def line(self) -> int:
        return int(self.node.start_point[0]) + 1

    def child(self, *types: str) -> Node | None:
        return next((each for each in self.node.named_children if each.type in types), None)

    @property
    def value(self) -> Node:
        return self.node.named_children[-1]

    def decorator(self, name: str) -> Node | None:
        for each in self.decorators:
            call = each.named_children[0]
            function = call.child_by_field_name("function") or call
            if text(function) == name:
                return call
        return None


def text(node: Node) -> str:
    return (node.text or b"").decode()


def part(node: Node, name: str) -> Node:
    found = node.child_by_field_name(name)
    assert found is not None, f"a {node.type} without {name}"
    return found


def arguments_of(node: Node) -> list[Node]:
    given = node.child_by_field_name("arguments")
    return values_of(given) if given is not None else []


def values_of(node: Node) -> list[Node]:
    return [each for each in node.named_children if each.type != "comment"]


def plain(node: Node) -> bool:
    return all(each.type != "interpolation" for each in node.named_children)


def literal(node: Node) -> str:
    return text(node).strip("'").replace("\\'", "'")


def loops(node: Node) -> bool:
    return node.type == "for_statement"


def broken(node: Node) -> Iterator[Node]:
    if node.type == "ERROR" or node.is_missing:
        yield node
    elif node.has_error:
        for each in node.children:
            yield from broken(each)
