"""What an expression in a Bicep file can be, and whether that is what a place wants.

Two worlds meet here: types inferred from expressions (`Text`, `Whole`, `Bag`, ...), and the official types of ARM
(`Arm`: an index into the `types` of one entry of arm-types.json).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

REQUIRED, READ_ONLY, WRITE_ONLY = 1, 2, 4


@dataclass(frozen=True)
class Anything:
    """Not known here; fits everywhere."""


@dataclass(frozen=True)
class Text:
    """A text; `of`: the values it can have, when they are known."""

    of: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Whole:
    of: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Truth:
    of: bool | None = None


@dataclass(frozen=True)
class Null:
    pass


@dataclass(frozen=True)
class Row:
    """An array."""

    item: Kind


@dataclass(frozen=True)
class Bag:
    """An object. `open`: it may have more than is known of it."""

    fields: Mapping[str, Kind] = field(default_factory=dict, hash=False)
    open: bool = False


@dataclass(frozen=True)
class Either:
    options: tuple[Kind, ...]


@dataclass(frozen=True)
class Arm:
    """A value that ARM gives: what a resource's property reads as."""

    types: ArmTypes
    index: int

    def __hash__(self) -> int:
        return hash((id(self.types), self.index))


@dataclass(frozen=True)
class Resource:
    """The symbol of a resource. `body` is None where its type is not in the file. `many`: a loop made it."""

    type: str
    body: Arm | None
    many: bool = False


@dataclass(frozen=True)
class Module:
    outputs: Mapping[str, Kind] = field(hash=False)
    many: bool = False


Kind: TypeAlias = Anything | Text | Whole | Truth | Null | Row | Bag | Either | Arm | Resource | Module

ANYTHING, TEXT, WHOLE, TRUTH, NULL = Anything(), Text(), Whole(), Truth(), Null()


class ArmTypes:
    """One entry of arm-types.json."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.types: list[dict[str, Any]] = entry["types"]
        self.root: int = entry["root"]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.types[index]

    @staticmethod
    def ref(at: Mapping[str, Any]) -> int:
        return int(at["$ref"].rsplit("/", 1)[1])

    def fields(self, index: int) -> dict[str, dict[str, Any]]:
        """The properties of an object; of a discriminated one, those that all its forms share."""
        found = self[index]
        return found.get("properties") or found.get("baseProperties") or {}

    def every_field(self, index: int) -> dict[str, dict[str, Any]]:
        """Those of all forms."""
        found = dict(self.fields(index))
        for form in self[index].get("elements", {}).values() if "discriminator" in self[index] else ():
            found = {**self.fields(self.ref(form)), **found}
        return found

    def extra(self, index: int) -> int | None:
        """The type of what an object may have besides; None: nothing."""
        more = self[index].get("additionalProperties")
        return None if more is None else self.ref(more)

    def options(self, index: int) -> list[int]:
        return [self.ref(each) for each in self[index]["elements"]]

    def values(self, index: int) -> tuple[list[str], bool]:
        """The texts that a union lists, and whether it takes others as well."""
        literals = [self[each]["value"] for each in self.options(index) if self[each]["$type"] == "StringLiteralType"]
        return literals, any(self[each]["$type"] == "StringType" for each in self.options(index))


def mismatch(kind: Kind, wanted: Kind) -> str | None:
    """Why a value of this kind is not what a parameter or an output wants; None: it is."""
    kind, wanted = settled(kind), settled(wanted)
    said = f"wanted is {named(wanted)}, found {named(kind)}"
    match kind, wanted:
        case (Anything(), _) | (_, Anything()):
            return None
        case Either(options=options), _:
            return next((why for why in (mismatch(each, wanted) for each in options) if why), None)
        case (Text(of=values), Text(of=choices)) | (Whole(of=values), Whole(of=choices)):
            return None if choices is None or (values is not None and set(values) <= set(choices)) else said
        case Row(item=item), Row(item=want):
            return mismatch(item, want)
        case (Truth(), Truth()) | (Null(), Null()) | ((Bag() | Arm()), (Bag() | Arm())):
            return None
    return said


def named(kind: Kind) -> str:
    """How a message calls it."""
    match kind:
        case Text(of=None):
            return "a text"
        case Text(of=values):
            return " or ".join(repr(value) for value in values or ())
        case Whole(of=numbers):
            return " or ".join(map(str, numbers)) if numbers else "a number"
        case Truth():
            return "true or false"
        case Null():
            return "null"
        case Row():
            return "an array"
        case Bag() | Arm():
            return "an object"
        case Either(options=options):
            return " or ".join(dict.fromkeys(map(named, options)))
        case Resource(type=type_):
            return f"a resource ({type_})"
        case Module():
            return "a module"
    return "anything"


def settled(kind: Kind) -> Kind:
    """An ARM value as one of the plain kinds, where it is one."""
    if not isinstance(kind, Arm):
        return kind
    types, found = kind.types, kind.types[kind.index]
    match found["$type"]:
        case "StringType":
            return TEXT
        case "StringLiteralType":
            return Text((found["value"],))
        case "IntegerType":
            return WHOLE
        case "BooleanType":
            return TRUTH
        case "AnyType":
            return ANYTHING
        case "ArrayType":
            return Row(Arm(types, types.ref(found["itemType"])))
        case "UnionType":
            literals, more = types.values(kind.index)
            if more:
                return TEXT
            if len(literals) == len(found["elements"]):
                return Text(tuple(literals))
            return Either(tuple(settled(Arm(types, each)) for each in types.options(kind.index)))
    return kind


def member(kind: Kind, name: str) -> Kind | str:
    """What `kind.name` is; a text says why there is no such thing."""
    kind = settled(kind)
    match kind:
        case Anything():
            return ANYTHING
        case Bag(fields=fields, open=more):
            if name in fields:
                return fields[name]
            return ANYTHING if more else f"there is no property {name!r}; it has {', '.join(sorted(fields)) or 'none'}"
        case Either(options=options):
            found = [member(option, name) for option in options if not isinstance(option, Null)]
            good = tuple(each for each in found if not isinstance(each, str))
            return either(good) if good else next((each for each in found if isinstance(each, str)), ANYTHING)
        case Resource(body=None):
            return TEXT if name in ("id", "name", "type", "apiVersion") else ANYTHING
        case Resource(body=body) if body is not None:
            return TEXT if name in ("id", "name") else member(body, name)
        case Module(outputs=outputs):
            return Bag(outputs) if name == "outputs" else (TEXT if name == "name" else f"a module has no {name!r}")
        case Arm():
            return _arm_member(kind, name)
    return f"{named(kind)} has no property {name!r}"


def _arm_member(arm: Arm, name: str) -> Kind | str:
    fields, extra = arm.types.every_field(arm.index), arm.types.extra(arm.index)
    if name in fields:
        if fields[name]["flags"] & WRITE_ONLY:
            return f"property {name!r} can be written only"
        return Arm(arm.types, arm.types.ref(fields[name]["type"]))
    if extra is not None:
        return Arm(arm.types, extra)
    return f"there is no property {name!r}; it has {', '.join(sorted(fields))}"


def either(options: tuple[Kind, ...]) -> Kind:
    """One of several; texts with known values are put together."""
    flat: list[Kind] = []
    for option in map(settled, options):
        flat += option.options if isinstance(option, Either) else [option]
    if flat and all(isinstance(option, Text) for option in flat):
        values = [option.of for option in flat if isinstance(option, Text)]
        known = [value for value in values if value is not None]
        return (
            Text(tuple(dict.fromkeys(text for value in known for text in value))) if len(known) == len(values) else TEXT
        )
    distinct = list(
        dict.fromkeys(TRUTH if isinstance(option, Truth) and len(set(flat)) > 1 else option for option in flat)
    )
    return distinct[0] if len(distinct) == 1 else Either(tuple(distinct))


def misfits(kind: Kind, types: ArmTypes, index: int) -> Iterator[str]:
    """Why a value of this kind is not what ARM wants there, a line each."""
    kind, wanted = settled(kind), types[index]
    if isinstance(kind, Anything) or wanted["$type"] == "AnyType":
        return
    if isinstance(kind, Either):
        for option in kind.options:
            # A null leaves the property out.
            if not isinstance(option, Null):
                yield from misfits(option, types, index)
        return
    match wanted["$type"], kind:
        case "StringType", Text(of=values):
            yield from (said for value in values or () for said in _unlike(value, wanted))
        case "StringLiteralType", Text(of=values):
            if values != (wanted["value"],):
                yield f"wanted is {wanted['value']!r}, found {named(kind)}"
        case "IntegerType", Whole(of=numbers):
            low, high = wanted.get("minValue"), wanted.get("maxValue")
            for number in numbers or ():
                if (low is not None and number < low) or (high is not None and number > high):
                    yield f"wanted is a number from {low} to {high}, found {number}"
        case "BooleanType", Truth():
            pass
        case "ArrayType", Row(item=item):
            yield from misfits(item, types, types.ref(wanted["itemType"]))
        case (("ObjectType" | "DiscriminatedObjectType"), Bag()):
            yield from _bag_misfits(kind, types, index)
        case (("ObjectType" | "DiscriminatedObjectType"), Arm()):
            pass
        case "UnionType", _:
            yield from _union_misfits(kind, types, index)
        case _:
            yield f"wanted is {_wanted(types, index)}, found {named(kind)}"


def _union_misfits(kind: Kind, types: ArmTypes, index: int) -> Iterator[str]:
    literals, more = types.values(index)
    if literals and isinstance(kind, Text):
        # Also where the list is open: a value that is not on it is a slip of the pen.
        wrong = [value for value in kind.of or () if value not in literals]
        if wrong or (kind.of is None and not more):
            yield f"wanted is one of {', '.join(literals)}; found {', '.join(wrong) or 'any text'}"
        return
    tried = [list(misfits(kind, types, option)) for option in types.options(index)]
    if all(tried):
        yield f"wanted is {_wanted(types, index)}, found {named(kind)}"


def _bag_misfits(bag: Bag, types: ArmTypes, index: int) -> Iterator[str]:
    fields, extra = dict(types.fields(index)), types.extra(index)
    if "discriminator" in types[index]:
        told, forms = bag.fields.get(types[index]["discriminator"]), types[index]["elements"]
        form = told.of[0] if isinstance(told, Text) and told.of and len(told.of) == 1 else None
        if form is None and (told is not None or bag.open):
            fields = types.every_field(index)
        elif form not in forms:
            found = f"found {form!r}" if form else "there is none"
            yield f"{types[index]['discriminator']}: wanted is one of {', '.join(forms)}; {found}"
            return
        else:
            chosen = types.ref(forms[form])
            fields, extra = fields | types.fields(chosen), types.extra(chosen)
    for name, value in bag.fields.items():
        if name in fields:
            if fields[name]["flags"] & READ_ONLY:
                yield f"property {name!r} can be read only"
            else:
                yield from (f"{name}: {said}" for said in misfits(value, types, types.ref(fields[name]["type"])))
        elif extra is not None:
            yield from (f"{name}: {said}" for said in misfits(value, types, extra))
        else:
            yield f"unknown property {name!r}; choose from {', '.join(sorted(fields))}"
    if not bag.open:
        for name, said in fields.items():
            if said["flags"] & REQUIRED and not said["flags"] & READ_ONLY and name not in bag.fields:
                yield f"property {name!r} is missing"


def _unlike(value: str, wanted: Mapping[str, Any]) -> Iterator[str]:
    if len(value) < wanted.get("minLength", 0) or len(value) > wanted.get("maxLength", len(value)):
        yield f"{value!r} must have {wanted.get('minLength', 0)} to {wanted.get('maxLength', 'any number of')} characters"
    elif "pattern" in wanted and not re.search(wanted["pattern"], value):
        yield f"{value!r} is not like {wanted['pattern']}"


def _wanted(types: ArmTypes, index: int) -> str:
    found = types[index]
    match found["$type"]:
        case "StringLiteralType":
            return repr(found["value"])
        case "UnionType":
            return " or ".join(_wanted(types, each) for each in types.options(index))
    return {
        "StringType": "a text",
        "IntegerType": "a number",
        "BooleanType": "true or false",
        "ArrayType": "an array",
        "ObjectType": "an object",
        "DiscriminatedObjectType": "an object",
    }[found["$type"]]
