"""Route templates of HTTP functions: `start/{name}`, `runs/{id:int}`, `files/{*path}`, `page/{n?}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote

_PARAMETER = re.compile(r"\{(?P<star>\*{0,2})(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<constraints>(?::[^{}]*)?)\}")

_INTEGER = r"-?[0-9]+"
_NUMBER = r"-?[0-9]+(\.[0-9]+)?"

# The constraints of ASP.NET Core routing that make sense for a path. Those with arguments take integers.
_SIMPLE: Mapping[str, str] = {
    "int": _INTEGER,
    "long": _INTEGER,
    "decimal": _NUMBER,
    "double": _NUMBER,
    "float": _NUMBER,
    "bool": r"(?i:true|false)",
    "alpha": r"[A-Za-z]*",
    "guid": r"[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}",
    "datetime": r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+Z?)?",
    "required": r".+",
}
_WITH_ARGUMENTS: Mapping[str, Callable[[str, list[int]], bool]] = {
    "min": lambda text, limits: _is_integer(text) and int(text) >= limits[0],
    "max": lambda text, limits: _is_integer(text) and int(text) <= limits[0],
    "range": lambda text, limits: _is_integer(text) and limits[0] <= int(text) <= limits[1],
    "minlength": lambda text, limits: len(text) >= limits[0],
    "maxlength": lambda text, limits: len(text) <= limits[0],
    "length": lambda text, limits: limits[0] <= len(text) <= limits[-1],
}
_ARGUMENT_COUNTS = {"min": {1}, "max": {1}, "range": {2}, "minlength": {1}, "maxlength": {1}, "length": {1, 2}}
# A 64-bit number has at most 19 digits; longer texts are no numbers to ASP.NET either.
_LONGEST_NUMBER = 20


class BadTemplate(ValueError):
    """A route template that says nothing this host understands; the message names the part."""


@dataclass(frozen=True)
class RouteTemplate:
    """A compiled template. `match` gives the route parameters or None. Literal text matches in any case."""

    template: str
    _pattern: re.Pattern[str]
    _checks: tuple[tuple[str, Callable[[str], bool]], ...]
    _defaults: Mapping[str, str]
    # Sorts the more specific template first: literal before mixed, before constrained, before free, before catch-all.
    specificity: tuple[int, ...]

    def match(self, path: str) -> dict[str, str] | None:
        """The parameters when the path (as `decode_path` gives it) fits."""
        found = self._pattern.fullmatch(path)
        if found is None:
            return None
        values = {name: text for name, text in found.groupdict().items() if text is not None}
        if any(name in values and not check(values[name]) for name, check in self._checks):
            return None
        return {**self._defaults, **values}


def decode_path(raw: str) -> str:
    """A path from the wire as templates match it: no outer slashes, percent-decoded except for `%2F`.

    An encoded slash stays encoded, as in ASP.NET Core: it separates nothing.
    """
    return "%2F".join(unquote(piece) for piece in re.split("%2[Ff]", raw.strip("/")))


def compile_template(template: str) -> RouteTemplate:
    """Compile one template. Raises `BadTemplate`."""
    segments = template.strip("/").split("/") if template.strip("/") else []
    pattern, checks, defaults, specificity = "", [], {}, []
    for position, segment in enumerate(segments):
        part = _compile_segment(segment, last=position == len(segments) - 1)
        separator = "/" if position else ""
        pattern += f"(?:{separator}{part.pattern})?" if part.may_be_missing else f"{separator}{part.pattern}"
        checks += part.checks
        defaults.update(part.defaults)
        specificity.append(part.rank)
    names = [name for name, _ in re.findall(r"\?P<([A-Za-z_][A-Za-z0-9_]*)>(.)", pattern)]
    if len(names) != len(set(names)):
        raise BadTemplate(f"route {template!r} names a parameter twice")
    # A longer literal prefix wins over a shorter one: the missing tail counts as least specific.
    return RouteTemplate(template, re.compile(pattern, re.DOTALL), tuple(checks), defaults, (*specificity, 9))


@dataclass(frozen=True)
class _Segment:
    pattern: str
    rank: int
    checks: list[tuple[str, Callable[[str], bool]]]
    defaults: dict[str, str]
    may_be_missing: bool = False


def _compile_segment(segment: str, last: bool) -> _Segment:
    whole = _whole_parameter(segment)
    if whole is not None:
        return _compile_parameter(segment, *whole, last=last)
    pattern, checks, end = "", [], 0
    for found in _PARAMETER.finditer(segment):
        if found["star"]:
            raise BadTemplate(f"a catch-all must be a whole segment, not part of {segment!r}")
        pattern += _literal(segment[end : found.start()]) + f"(?P<{found['name']}>[^/]+?)"
        checks += [(found["name"], check) for check in _constraints(found["constraints"], segment)]
        end = found.end()
    pattern += _literal(segment[end:])
    if "{" in segment[end:] or "}" in segment[end:]:
        raise BadTemplate(f"the braces in {segment!r} do not form a parameter")
    return _Segment(pattern, rank=1 if checks or end else 0, checks=checks, defaults={})


def _whole_parameter(segment: str) -> tuple[str, str, str] | None:
    """(stars, name, rest) of a segment that is one parameter; the rest holds constraints, `?` or `=default`."""
    found = re.fullmatch(r"\{(\*{0,2})([A-Za-z_][A-Za-z0-9_]*)((?:[:=?].*)?)\}", segment)
    # Braces may stand inside the parentheses of a constraint only; anywhere else a second parameter begins.
    if found is None or re.search(r"[{}]", re.sub(r"\(.*\)", "", found[3])):
        return None
    return found[1], found[2], found[3]


def _compile_parameter(segment: str, stars: str, name: str, rest: str, last: bool) -> _Segment:
    rest, equals, default = rest.partition("=")
    optional = rest.endswith("?")
    constraints = rest.removesuffix("?")
    may_be_missing = optional or bool(equals)
    if stars and not last:
        raise BadTemplate(f"the catch-all {segment!r} must be the last segment")
    if may_be_missing and not last:
        raise BadTemplate(f"the optional {segment!r} must be the last segment")
    checks = [(name, check) for check in _constraints(constraints, segment)]
    defaults = {name: default} if equals else {}
    if stars:
        return _Segment(f"(?P<{name}>.+)", 4, checks, defaults, may_be_missing=True)
    return _Segment(f"(?P<{name}>[^/]+)", 2 if checks else 3, checks, defaults, may_be_missing)


def _constraints(text: str, segment: str) -> list[Callable[[str], bool]]:
    checks = []
    for constraint in re.findall(r":((?:[^:(]|\((?:[^()]|\([^()]*\))*\))+)", text):
        name, _, arguments = constraint.partition("(")
        arguments = arguments.removesuffix(")")
        if name == "regex":
            checks.append(_matches(arguments, whole=False))
        elif name in _SIMPLE:
            checks.append(_matches(_SIMPLE[name], whole=True))
        elif name in _WITH_ARGUMENTS:
            checks.append(_limited(name, arguments, segment))
        else:
            choices = sorted([*_SIMPLE, *_WITH_ARGUMENTS, "regex"])
            raise BadTemplate(f"unknown route constraint {name!r} in {segment!r}; choose one of {choices}")
    return checks


def _limited(name: str, arguments: str, segment: str) -> Callable[[str], bool]:
    try:
        limits = [int(argument) for argument in arguments.split(",")]
    except ValueError:
        limits = []
    if len(limits) not in _ARGUMENT_COUNTS[name]:
        raise BadTemplate(f"route constraint {name!r} in {segment!r} wants whole numbers, found ({arguments})")
    return lambda text: _WITH_ARGUMENTS[name](text, limits)


def _matches(pattern: str, whole: bool) -> Callable[[str], bool]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadTemplate(f"route constraint regex({pattern}) is no regular expression: {error}") from error
    return (lambda text: bool(compiled.fullmatch(text))) if whole else (lambda text: bool(compiled.search(text)))


def _is_integer(text: str) -> bool:
    return len(text) <= _LONGEST_NUMBER and re.fullmatch(_INTEGER, text) is not None


def _literal(text: str) -> str:
    return f"(?i:{re.escape(text)})" if text else ""
