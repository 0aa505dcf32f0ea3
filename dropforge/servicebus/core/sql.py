"""The expressions of SQL filters and actions: text in, something that is evaluated per message out.

https://learn.microsoft.com/azure/service-bus-messaging/service-bus-messaging-sql-filter. An unknown value is None here;
logic has three values, as there. Numbers follow C#: whole ones are 64 bits wide and divide to whole ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dropforge.servicebus.core.operators import (
    add,
    compare,
    divide,
    equal,
    like,
    member,
    multiply,
    negate,
    new_id,
    remainder,
    subtract,
    truth,
)
from dropforge.servicebus.core.properties import is_system, system_reader, user_exists, user_value
from dropforge.servicebus.errors import BrokerError, bad_field
from dropforge.servicebus.message import Message
from dropforge.servicebus.settings import Value

Evaluate = Callable[[Message], Any]

# The service's limit for a filter or an action.
MAX_LENGTH = 1_024
MAX_DEPTH = 32

_KEYWORDS = {"AND", "OR", "NOT", "IN", "LIKE", "ESCAPE", "IS", "NULL", "EXISTS", "TRUE", "FALSE"}
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)
      | '(?P<text>(?:[^']|'')*)'
      | (?P<sign><>|!=|<=|>=|[=<>()+\-*/%,;.])
      | \[(?P<bracketed>(?:[^\]]|\]\])+)\]
      | "(?P<quoted>(?:[^"]|"")+)"
      | @(?P<parameter>\w+)
      | (?P<word>[^\W\d]\w*)
    )""",
    re.VERBOSE,
)
_COMPARISONS = ("=", "<>", "!=", "<=", ">=", "<", ">")


class Token(NamedTuple):
    kind: str
    text: str
    at: int


class Property(NamedTuple):
    """A property by name; `system` for one of the message's own."""

    name: str
    system: bool

    def reader(self) -> Evaluate:
        if self.system:
            return system_reader(self.name)
        name = self.name
        return lambda message: user_value(message, name)


def parse_predicate(text: str, parameters: Mapping[str, Value]) -> Evaluate:
    """What says True, False or None for each message. Raises `BrokerError` for a text that is no filter."""
    parser = Parser(text, parameters)
    predicate = parser.predicate()
    parser.end()
    return predicate


class Parser:
    """A recursive descent, one method for each strength of binding."""

    def __init__(self, text: str, parameters: Mapping[str, Value]) -> None:
        if len(text) > MAX_LENGTH:
            raise bad_field(f"a SQL expression of {len(text)} characters; at most {MAX_LENGTH} are allowed")
        self._text = text
        self._parameters = {name.lstrip("@"): value for name, value in parameters.items()}
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    # ------------------------------------------------------------------------------------------------- reading

    def take(self, *texts: str) -> str | None:
        """The next token's text in upper case, if it is one of these words or signs."""
        token = self._tokens[self._at]
        upper = token.text.upper()
        if token.kind in ("word", "sign") and upper in texts:
            self._at += 1
            return upper
        return None

    def need(self, text: str) -> None:
        if not self.take(text):
            raise self.wrong(text)

    def end(self) -> None:
        if self._tokens[self._at].kind != "end":
            raise self.wrong("the end, or an operator")

    @property
    def at_end(self) -> bool:
        return self._tokens[self._at].kind == "end"

    def wrong(self, wanted: str) -> BrokerError:
        token = self._tokens[self._at]
        found = "the end" if token.kind == "end" else f"'{token.text}' at character {token.at + 1}"
        return bad_field(f"wrong SQL expression: {wanted} was wanted, {found} was found in '{self._text}'")

    # --------------------------------------------------------------------------------------------------- logic

    def predicate(self) -> Evaluate:
        left = self._conjunction()
        while self.take("OR"):
            left = _either(left, self._conjunction())
        return left

    def _conjunction(self) -> Evaluate:
        left = self._negation()
        while self.take("AND"):
            left = _both(left, self._negation())
        return left

    def _negation(self) -> Evaluate:
        if not self.take("NOT"):
            return self._comparison()
        inner = self._deeper(self._negation)
        return lambda message: None if (value := truth(inner(message))) is None else not value

    def _comparison(self) -> Evaluate:
        left = self.expression()
        if sign := self.take(*_COMPARISONS):
            return _compared(left, sign, self.expression())
        if self.take("IS"):
            wanted = not self.take("NOT")
            self.need("NULL")
            return lambda message: (left(message) is None) is wanted
        wanted = not self.take("NOT")
        if self.take("IN"):
            return _chosen(left, self._choices(), wanted)
        if self.take("LIKE"):
            pattern = self.expression()
            escape = self.expression() if self.take("ESCAPE") else None
            return _liked(left, pattern, escape, wanted)
        if not wanted:
            raise self.wrong("IN or LIKE after NOT")
        return left

    def _choices(self) -> list[Evaluate]:
        self.need("(")
        choices = [self.expression()]
        while self.take(","):
            choices.append(self.expression())
        self.need(")")
        return choices

    # -------------------------------------------------------------------------------------------------- values

    def expression(self) -> Evaluate:
        left = self._product()
        while sign := self.take("+", "-"):
            left = _computed(left, add if sign == "+" else subtract, self._product())
        return left

    def _product(self) -> Evaluate:
        left = self._factor()
        while sign := self.take("*", "/", "%"):
            left = _computed(left, {"*": multiply, "/": divide, "%": remainder}[sign], self._factor())
        return left

    def _factor(self) -> Evaluate:
        if sign := self.take("+", "-"):
            inner = self._deeper(self._factor)
            minus = sign == "-"
            return lambda message: negate(inner(message), minus)
        if self.take("("):
            # What stands in parentheses may be a predicate or a value; both are values to what is around.
            inner = self._deeper(self.predicate)
            self.need(")")
            return inner
        return self._primary()

    def _primary(self) -> Evaluate:
        token = self._tokens[self._at]
        if token.kind == "number":
            self._at += 1
            return _constant(_number(token.text))
        if token.kind == "text":
            self._at += 1
            return _constant(token.text.replace("''", "'"))
        if token.kind == "parameter":
            return self._parameter(token)
        if token.kind == "word":
            word = token.text.upper()
            if word in ("TRUE", "FALSE", "NULL"):
                self._at += 1
                return _constant({"TRUE": True, "FALSE": False, "NULL": None}[word])
            if word == "EXISTS":
                return self._existence()
            if word not in _KEYWORDS and self._tokens[self._at + 1].text == "(":
                return self._function(word)
        return self.property().reader()

    def _parameter(self, token: Token) -> Evaluate:
        if token.text not in self._parameters:
            known = ", ".join(f"@{name}" for name in self._parameters) or "none"
            raise bad_field(f"unknown parameter '@{token.text}' in a SQL expression; there are: {known}")
        self._at += 1
        return _constant(self._parameters[token.text])

    def _existence(self) -> Evaluate:
        self.need("EXISTS")
        self.need("(")
        found = self.property()
        self.need(")")
        if found.system:
            read = found.reader()
            return lambda message: read(message) is not None
        return lambda message: user_exists(message, found.name)

    def _function(self, word: str) -> Evaluate:
        if word == "NEWID":
            self._at += 1
            self.need("(")
            self.need(")")
            return new_id
        if word not in ("PROPERTY", "P"):
            raise self.wrong("newid() or property(name)")
        self._at += 1
        self.need("(")
        name = self._deeper(self.expression)
        self.need(")")

        def value(message: Message) -> Any:
            wanted = name(message)
            return user_value(message, wanted) if isinstance(wanted, str) else None

        return value

    def property(self) -> Property:
        """`[sys.|user.]name`. Raises `BrokerError` for a system property that there is not."""
        first = self._name()
        scope = first.lower()
        if scope not in ("sys", "user") or not self.take("."):
            return Property(first, system=False)
        name = self._name()
        if scope == "sys" and not is_system(name):
            raise bad_field(f"unknown system property 'sys.{name}' in a SQL expression")
        return Property(name, scope == "sys")

    def _name(self) -> str:
        token = self._tokens[self._at]
        if token.kind == "bracketed":
            name = token.text.replace("]]", "]")
        elif token.kind == "quoted":
            name = token.text.replace('""', '"')
        elif token.kind == "word" and token.text.upper() not in _KEYWORDS:
            name = token.text
        else:
            raise self.wrong("a value or a property")
        self._at += 1
        return name

    def _deeper(self, parse: Callable[[], Evaluate]) -> Evaluate:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise bad_field(f"a SQL expression nested more than {MAX_DEPTH} deep")
        inner = parse()
        self._depth -= 1
        return inner


def _tokens(text: str) -> list[Token]:
    tokens = []
    at, end = 0, len(text.rstrip())
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise bad_field(f"wrong SQL expression: nothing known at character {at + 1} of '{text}'")
        tokens.append(Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup)))
        at = found.end()
    tokens.append(Token("end", "", end))
    return tokens


def _number(text: str) -> int | float:
    if not text.isdigit():
        return float(text)
    number = int(text)
    if number >= 1 << 63:
        raise bad_field(f"the number {text} in a SQL expression is beyond 64 bits")
    return number


def _constant(value: Any) -> Evaluate:
    return lambda _: value


def _either(left: Evaluate, right: Evaluate) -> Evaluate:
    def either(message: Message) -> bool | None:
        first = truth(left(message))
        if first is True:
            return True
        second = truth(right(message))
        return True if second is True else None if first is None or second is None else False

    return either


def _both(left: Evaluate, right: Evaluate) -> Evaluate:
    def both(message: Message) -> bool | None:
        first = truth(left(message))
        if first is False:
            return False
        second = truth(right(message))
        return False if second is False else None if first is None or second is None else True

    return both


def _compared(left: Evaluate, sign: str, right: Evaluate) -> Evaluate:
    if sign == "=":
        return lambda message: equal(left(message), right(message))
    if sign in ("<>", "!="):
        return lambda message: None if (same := equal(left(message), right(message))) is None else not same
    return lambda message: compare(left(message), sign, right(message))


def _chosen(left: Evaluate, choices: list[Evaluate], wanted: bool) -> Evaluate:
    def chosen(message: Message) -> bool | None:
        found = member(left(message), [choice(message) for choice in choices])
        return None if found is None else found is wanted

    return chosen


def _liked(left: Evaluate, pattern: Evaluate, escape: Evaluate | None, wanted: bool) -> Evaluate:
    def liked(message: Message) -> bool | None:
        found = like(left(message), pattern(message), escape(message) if escape else "")
        return None if found is None else found is wanted

    return liked


def _computed(left: Evaluate, operator: Callable[[Any, Any], Any], right: Evaluate) -> Evaluate:
    def computed(message: Message) -> Any:
        first, second = left(message), right(message)
        return None if first is None or second is None else operator(first, second)

    return computed
