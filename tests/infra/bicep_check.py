"""What a reader of infra/ can know without Azure's compiler: `python -m tests.infra.bicep_check infra`.

Every file parses (tree-sitter-bicep); every name is defined and every parameter and variable used; modules are given the
parameters that they have; properties are those of the official types (arm-types.json, see tests/azure/arm_types.py), with
values of the right type; and the project's own rules hold (bicep_rules.py). It is no compiler: see docs/deploy.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.infra import bicep_rules
from tests.infra.bicep_functions import FUNCTIONS
from tests.infra.bicep_source import (
    Declared,
    Node,
    Problem,
    arguments_of,
    arm_of,
    broken,
    known_types,
    literal,
    loops,
    parser,
    part,
    plain,
    text,
    values_of,
)
from tests.infra.bicep_types import (
    ANYTHING,
    NULL,
    TEXT,
    TRUTH,
    WHOLE,
    Anything,
    Bag,
    Kind,
    Module,
    Resource,
    Row,
    Text,
    Truth,
    Whole,
    either,
    member,
    misfits,
    mismatch,
    named,
    settled,
)

# Beside the properties of its type, what Bicep lets a resource and a module say.
META = frozenset({"parent", "scope", "dependsOn"})
MODULE_META = frozenset({"name", "params", "scope", "dependsOn"})
PRIMITIVES: dict[str, Kind] = {
    "string": TEXT,
    "int": WHOLE,
    "bool": TRUTH,
    "object": Bag(open=True),
    "array": Row(ANYTHING),
}


class File:
    """One .bicep file. Its problems gather while it is looked at."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path, self.files = path, files
        self.root = parser().parse(path.read_bytes()).root_node
        self.problems: set[Problem] = set()
        self.used: set[str] = set()
        self._kinds: dict[str, Kind] = {}
        self.declared = {each.name: each for each in self._declarations()}

    def problem(self, node: Node, said: str) -> None:
        name = self.path.relative_to(self.files.folder).as_posix()
        self.problems.add(Problem(name, int(node.start_point[0]) + 1, said))

    # -------------------------------------------------------------------------------------------- declarations
    def _declarations(self) -> Iterator[Declared]:
        decorators: list[Node] = []
        seen: set[str] = set()
        for node in self.root.named_children:
            if node.type == "decorators":
                decorators = list(node.named_children)
                continue
            kind = node.type.removesuffix("_declaration")
            if node.type.endswith("_declaration") and kind in ("parameter", "variable", "resource", "module", "output"):
                name = text(node.named_children[0])
                # An output may be called as something else is.
                key = f"output {name}" if kind == "output" else name
                if key in seen:
                    self.problem(node, f"{name!r} is declared twice")
                seen.add(key)
                yield Declared(key, node, kind, decorators)
            elif node.type not in ("target_scope_assignment", "comment"):
                self.problem(node, f"this check does not know {node.type}; write it otherwise")
            if node.type != "comment":
                decorators = []

    def of_kind(self, kind: str) -> list[Declared]:
        return [each for each in self.declared.values() if each.kind == kind]

    def parameter(self, declared: Declared) -> Kind:
        """What a parameter takes."""
        given = declared.child("type")
        kind = PRIMITIVES.get(text(given), ANYTHING) if given is not None else ANYTHING
        if given is not None and text(given) not in PRIMITIVES:
            self.problem(
                declared.node,
                f"this check does not know the type {text(given)!r}; write one of {', '.join(PRIMITIVES)}",
            )
        allowed = declared.decorator("allowed")
        if allowed is not None:
            choices = self.infer(arguments_of(allowed)[0], {})
            item = choices.item if isinstance(choices, Row) else ANYTHING
            return item if isinstance(item, Text | Whole) else kind
        return kind

    def has_default(self, declared: Declared) -> bool:
        return declared.value.type != "type"

    @cached_property
    def outputs(self) -> dict[str, Kind]:
        return {text(each.node.named_children[0]): self._output(each) for each in self.of_kind("output")}

    def _output(self, declared: Declared) -> Kind:
        found = self.infer(declared.value, {})
        given = declared.child("type")
        wanted = PRIMITIVES.get(text(given), ANYTHING) if given is not None else ANYTHING
        why = mismatch(found, wanted)
        if why:
            self.problem(declared.node, f"output {text(declared.node.named_children[0])}: {why}")
        # A text that is known says more than the type that is declared.
        return found if isinstance(wanted, Bag | Row) and isinstance(found, Bag | Row) else wanted

    def symbol(self, name: str) -> Kind | None:
        """What a name at the top of the file stands for."""
        if name in self._kinds:
            return self._kinds[name]
        declared = self.declared.get(name)
        if declared is None or declared.kind == "output":
            return None
        self._kinds[name] = ANYTHING
        match declared.kind:
            case "parameter":
                self._kinds[name] = self.parameter(declared)
            case "variable":
                self._kinds[name] = self.infer(declared.value, {})
            case "resource":
                type_ = self.type_of(declared)
                self._kinds[name] = Resource(type_.split("@")[0], arm_of(type_), loops(declared.value))
            case "module":
                other = self.files.get(self.module_path(declared))
                self._kinds[name] = Module(other.outputs if other else {}, loops(declared.value))
        return self._kinds[name]

    def type_of(self, declared: Declared) -> str:
        given = declared.child("string")
        return text(given)[1:-1] if given is not None else ""

    def module_path(self, declared: Declared) -> Path:
        return (self.path.parent / self.type_of(declared)).resolve()

    def existing(self, declared: Declared) -> bool:
        return any(each.type == "existing" for each in declared.node.children)

    # -------------------------------------------------------------------------------------------- expressions
    def infer(self, node: Node, local: Mapping[str, Kind]) -> Kind:
        """What an expression is; what is wrong in it becomes a problem."""
        match node.type:
            case "string":
                for each in node.named_children:
                    if each.type == "interpolation":
                        self._told(each, self.infer(each.named_children[0], local))
                return Text((literal(node),)) if plain(node) else TEXT
            case "number":
                return Whole((int(text(node)),))
            case "boolean":
                return Truth(text(node) == "true")
            case "null":
                return NULL
            case "identifier" | "property_identifier" | "loop_variable":
                return self._name(node, local)
            case "parenthesized_expression":
                return self.infer(node.named_children[0], local)
            case "member_expression":
                return self._member(node, local)
            case "subscript_expression":
                return self._subscript(node, local)
            case "ternary_expression":
                self._truth(part(node, "condition"), local)
                return either(
                    (self.infer(part(node, "consequence"), local), self.infer(part(node, "alternative"), local))
                )
            case "binary_expression":
                return self._binary(node, local)
            case "unary_expression":
                found = self.infer(part(node, "argument"), local)
                return TRUTH if text(node).startswith("!") else found
            case "array":
                items = tuple(self.infer(each, local) for each in values_of(node))
                return Row(either(items) if items else ANYTHING)
            case "object":
                return self._object(node, local)
            case "for_statement":
                return Row(self.infer(part(node, "body"), {**local, **self._loop(node, local)}))
            case "call_expression":
                return self._call(node, local)
            case "lambda_expression":
                *names, body = node.named_children
                self.infer(body, {**local, **{text(each): ANYTHING for each in names}})
                return ANYTHING
        self.problem(node, f"this check does not know {node.type}; write it otherwise")
        return ANYTHING

    def _told(self, node: Node, kind: Kind) -> None:
        """An interpolated value must be something that has a text."""
        if isinstance(kind, Resource | Module):
            self.problem(node, f"{named(kind)} has no text; say which property of it")

    def _name(self, node: Node, local: Mapping[str, Kind]) -> Kind:
        name = text(node)
        if name in local:
            return local[name]
        found = self.symbol(name)
        if found is None:
            self.problem(node, f"{name!r} is defined nowhere")
            return ANYTHING
        self.used.add(name)
        return found

    def _member(self, node: Node, local: Mapping[str, Kind]) -> Kind:
        owner = self.infer(part(node, "object"), local)
        name = text(part(node, "property"))
        if isinstance(owner, Resource | Module) and owner.many:
            self.problem(node, f"there are several of {text(part(node, 'object'))!r}; say which, as [i]")
            return ANYTHING
        found = member(owner, name)
        if isinstance(found, str):
            self.problem(node, f"{text(node)}: {found}")
            return ANYTHING
        return found

    def _subscript(self, node: Node, local: Mapping[str, Kind]) -> Kind:
        owner, index = self.infer(part(node, "object"), local), self.infer(part(node, "index"), local)
        if isinstance(owner, Resource):
            return Resource(owner.type, owner.body)
        if isinstance(owner, Module):
            return Module(owner.outputs)
        owner = settled(owner)
        if isinstance(owner, Row):
            return owner.item
        if isinstance(index, Text) and index.of and len(index.of) == 1:
            found = member(owner, index.of[0])
            if isinstance(found, str):
                self.problem(node, f"{text(node)}: {found}")
            return ANYTHING if isinstance(found, str) else found
        return ANYTHING

    def _binary(self, node: Node, local: Mapping[str, Kind]) -> Kind:
        left, right = self.infer(part(node, "left"), local), self.infer(part(node, "right"), local)
        operator = text(part(node, "operator")) if node.child_by_field_name("operator") else text(node.children[1])
        if operator == "??":
            return either((left, right))
        if operator in ("&&", "||"):
            for side in (left, right):
                if mismatch(side, TRUTH):
                    self.problem(node, f"{operator} is between conditions, found {named(settled(side))}")
        if operator in ("==", "!="):
            self._comparable(node, left, right)
        return WHOLE if operator in ("+", "-", "*", "/", "%") else TRUTH

    def _comparable(self, node: Node, left: Kind, right: Kind) -> None:
        """A comparison with a value that can never be: a slip of the pen."""
        left, right = settled(left), settled(right)
        if (
            isinstance(left, Text)
            and isinstance(right, Text)
            and left.of
            and right.of
            and not set(left.of) & set(right.of)
        ):
            self.problem(node, f"{text(node)}: these are never equal; wanted is {named(left)}")

    def _truth(self, node: Node, local: Mapping[str, Kind]) -> None:
        found = self.infer(node, local)
        if mismatch(found, TRUTH):
            self.problem(node, f"wanted is a condition, found {named(settled(found))}")

    def _object(self, node: Node, local: Mapping[str, Kind]) -> Bag:
        fields: dict[str, Kind] = {}
        more = False
        for each in node.named_children:
            if each.type == "comment":
                continue
            key, value = each.named_children[0], each.named_children[-1]
            found = self.infer(value, local)
            if key.type == "string" and not plain(key):
                self.infer(key, local)
                more = True
                continue
            name = literal(key) if key.type == "string" else text(key)
            if name in fields:
                self.problem(key, f"property {name!r} is there twice")
            fields[name] = found
        return Bag(fields, more)

    def _loop(self, node: Node, local: Mapping[str, Kind]) -> dict[str, Kind]:
        """The variables of a loop."""
        parts = [each for each in node.named_children if each.type != "comment"]
        over = settled(self.infer(parts[1], local))
        if not isinstance(over, Row | Anything):
            self.problem(parts[1], f"wanted is an array to go through, found {named(over)}")
        item = over.item if isinstance(over, Row) else ANYTHING
        names = (
            [text(each) for each in parts[0].named_children]
            if parts[0].type == "for_loop_parameters"
            else [text(parts[0])]
        )
        return dict(zip(names, (item, WHOLE), strict=False))

    def _call(self, node: Node, local: Mapping[str, Kind]) -> Kind:
        name = text(part(node, "function"))
        arguments = [self.infer(each, local) for each in arguments_of(node)]
        if name == "loadJsonContent":
            return self._loaded(node, arguments)
        if name not in FUNCTIONS:
            self.problem(node, f"{name!r} is no function that this check knows")
            return ANYTHING
        result = FUNCTIONS[name]
        return result(arguments) if callable(result) else result

    def _loaded(self, node: Node, arguments: list[Kind]) -> Kind:
        given = arguments[0] if arguments else ANYTHING
        place = self.path.parent / given.of[0] if isinstance(given, Text) and given.of else None
        if place is None or not place.is_file():
            self.problem(node, f"{text(node)}: there is no such file")
            return ANYTHING
        return _of_json(json.loads(place.read_text()))

    # -------------------------------------------------------------------------------------------- the check
    def check(self) -> None:
        for node in broken(self.root):
            self.problem(node, f"does not parse: {text(node)[:60]!r}")
        if self.problems:
            return
        for each in self.of_kind("parameter"):
            self._check_parameter(each)
        for each in self.of_kind("variable"):
            self.symbol(each.name)
        for each in self.of_kind("resource"):
            self._check_resource(each)
        for each in self.of_kind("module"):
            self._check_module(each)
        _ = self.outputs
        for each in (*self.of_kind("parameter"), *self.of_kind("variable")):
            if each.name not in self.used:
                self.problem(each.node, f"{each.name!r} is used nowhere")
        for each in self.of_kind("resource"):
            if self.existing(each) and each.name not in self.used:
                self.problem(each.node, f"{each.name!r} is used nowhere")

    def _check_parameter(self, declared: Declared) -> None:
        wanted = self.symbol(declared.name) or ANYTHING
        if self.has_default(declared):
            why = mismatch(self.infer(declared.value, {}), wanted)
            if why:
                self.problem(declared.node, f"default of {declared.name}: {why}")

    def bodies(self, declared: Declared) -> tuple[Node, dict[str, Kind]]:
        """The object of a resource or module, without the condition and the loop around it, and the loop's variables."""
        local: dict[str, Kind] = {}
        node = declared.value
        while node.type != "object":
            if node.type == "for_statement":
                local |= self._loop(node, local)
                node = part(node, "body")
            elif node.type == "if_statement":
                condition, node = node.named_children[0], node.named_children[-1]
                self._truth(condition, local)
            else:
                self.problem(node, "wanted is an object, with a condition or a loop around it")
                return declared.node, local
        return node, local

    def body(self, declared: Declared) -> Bag:
        node, local = self.bodies(declared)
        return self._object(node, local) if node.type == "object" else Bag(open=True)

    def _check_resource(self, declared: Declared) -> None:
        type_, _, version = self.type_of(declared).partition("@")
        body = self.body(declared)
        self._check_place(declared, type_, body)
        arm = arm_of(f"{type_}@{version}")
        if arm is None:
            others = known_types().get(type_.lower())
            if others:
                self.problem(declared.node, f"{type_} is checked as {', '.join(others)}, not as {version}")
            elif f"{type_}@{version}" not in self.files.unchecked:
                self.problem(
                    declared.node, f"the type {type_}@{version} is not in arm-types.json, nor among those not checked"
                )
            return
        if self.existing(declared):
            for name in set(body.fields) - META - {"name"}:
                self.problem(declared.node, f"an existing resource has a name and a place only, not {name!r}")
            return
        mine = Bag({name: value for name, value in body.fields.items() if name not in META}, body.open)
        for said in misfits(mine, arm.types, arm.index):
            self.problem(declared.node, f"{declared.name} ({type_}): {said}")

    def _check_place(self, declared: Declared, type_: str, body: Bag) -> None:
        """A child has a parent of the right type, or the parent's name in its own."""
        depth, parent, name = type_.count("/") - 1, body.fields.get("parent"), body.fields.get("name")
        if name is None:
            self.problem(declared.node, f"{declared.name} has no name")
        if depth and parent is None and not (isinstance(name, Text) and name.of is None):
            self.problem(declared.node, f"{declared.name} ({type_}) wants a parent")
        if parent is not None:
            found = parent.type if isinstance(parent, Resource) else named(settled(parent))
            if found.lower() != type_.rsplit("/", 1)[0].lower():
                self.problem(declared.node, f"{declared.name} ({type_}) has the parent {found}")

    def _check_module(self, declared: Declared) -> None:
        body = self.body(declared)
        for name in set(body.fields) - MODULE_META:
            self.problem(declared.node, f"module {declared.name}: unknown property {name!r}")
        other = self.files.get(self.module_path(declared))
        if other is None:
            self.problem(declared.node, f"module {declared.name}: there is no file {self.type_of(declared)!r}")
            return
        given = body.fields.get("params", Bag())
        fields = given.fields if isinstance(given, Bag) else {}
        wanted = {each.name: each for each in other.of_kind("parameter")}
        for name in set(fields) - set(wanted):
            self.problem(
                declared.node, f"module {declared.name} has no parameter {name!r}; it has {', '.join(sorted(wanted))}"
            )
        for name, each in wanted.items():
            if name not in fields:
                if not other.has_default(each):
                    self.problem(declared.node, f"module {declared.name}: parameter {name!r} is missing")
                continue
            why = mismatch(fields[name], other.symbol(name) or ANYTHING)
            if why:
                self.problem(declared.node, f"module {declared.name}: parameter {name}: {why}")


@dataclass
class Files:
    """All files of a folder, by path."""

    folder: Path
    unchecked: frozenset[str]
    by_path: dict[Path, File] = field(default_factory=dict)

    def load(self) -> None:
        for path in sorted(self.folder.rglob("*.bicep")):
            self.by_path[path.resolve()] = File(path, self)

    def get(self, path: Path) -> File | None:
        return self.by_path.get(path.resolve())


def check(folder: Path, unchecked: Iterable[str]) -> list[Problem]:
    """Everything wrong with the .bicep files below a folder, in order; empty: nothing.

    `unchecked`: types with api-version whose shape arm-types.json does not have; any other such type is a problem.
    """
    files = Files(folder, frozenset(unchecked))
    files.load()
    for file in files.by_path.values():
        file.check()
        if not any(said.said.startswith("does not parse") for said in file.problems):
            bicep_rules.check(file)
    return sorted(problem for file in files.by_path.values() for problem in file.problems)


def _of_json(value: object) -> Kind:
    match value:
        case str():
            return Text((value,))
        case bool():
            return Truth(value)
        case int():
            return Whole((value,))
        case list():
            return Row(either(tuple(map(_of_json, value))) if value else ANYTHING)
        case dict():
            return Bag({name: _of_json(each) for name, each in value.items()})
    return ANYTHING


def main(arguments: list[str]) -> int:
    from tests.infra.test_bicep import NOT_CHECKED

    problems = check(Path(arguments[0] if arguments else "infra").resolve(), NOT_CHECKED)
    for problem in problems:
        print(problem)
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
