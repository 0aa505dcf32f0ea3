"""The messages and methods of the `.proto` files beside this, as protobuf classes made when they are first needed.

No generated code: what `protoc` makes is tied to the version of the protobuf that was at hand, and nobody reads it. The
files are read by the few rules that they need; whatever else stands in one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

FOLDER = Path(__file__).parent / "protos"

# Of protobuf, which carries no types.
Message: TypeAlias = Any
Proto: TypeAlias = Any

_TOKEN = re.compile(r'//[^\n]*|\s+|("[^"]*"|[\w.]+|[{}()<>=;,])')
_SCALARS = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("double", "float", "int64", "uint64", "int32", "bool", "string", "bytes", "uint32")
}


@dataclass(frozen=True)
class Method:
    """One method of a service. A `streaming` one takes or gives any number of messages."""

    service: str
    name: str
    request: Message
    response: Message
    streaming: bool

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


@dataclass(frozen=True)
class Schema:
    """All files together: their bytes by their names, and by the names of all that they declare."""

    files: dict[str, bytes]
    file_of: dict[str, str]
    methods: tuple[Method, ...]

    @property
    def services(self) -> list[str]:
        return sorted({method.service for method in self.methods})


def read_schema(folder: Path = FOLDER) -> Schema:
    """What the folder's files declare. Raises `ValueError` naming the place in a file that holds anything but what is
    needed here."""
    texts = {path.name: path.read_text() for path in sorted(folder.glob("*.proto"))}
    # Clients of before 2023 know reflection by this name.
    texts["reflection_alpha.proto"] = texts["reflection.proto"].replace("reflection.v1;", "reflection.v1alpha;")
    pool = descriptor_pool.DescriptorPool()
    files, file_of, methods = {}, dict[str, str](), []
    for name, text in texts.items():
        proto = parse(name, text)
        files[name] = proto.SerializeToString()
        pool.AddSerializedFile(files[name])
        file_of |= dict.fromkeys(_names(proto), name)
        for service in pool.FindFileByName(name).services_by_name.values():
            file_of[service.full_name] = name
            for method in service.methods:
                file_of[method.full_name] = name
                request, response = map(message_factory.GetMessageClass, (method.input_type, method.output_type))
                streaming = method.client_streaming or method.server_streaming
                methods.append(Method(service.full_name, method.name, request, response, streaming))
    return Schema(files, file_of, tuple(methods))


def parse(name: str, text: str) -> Proto:
    """The file as protobuf describes it. Raises `ValueError`."""
    file = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3")
    _File(_Tokens(name, text)).read(file)
    _resolve(file)
    return file


def _names(file: Proto) -> Iterator[str]:
    def inside(scope: str, message: Proto) -> Iterator[str]:
        yield f"{scope}.{message.name}"
        for nested in (*message.nested_type, *message.enum_type):
            yield f"{scope}.{message.name}.{nested.name}"

    for message in file.message_type:
        yield from inside(file.package, message)
    yield from (f"{file.package}.{enum.name}" for enum in file.enum_type)


class _Tokens:
    def __init__(self, name: str, text: str) -> None:
        self._name, self._text, self._at = name, text, 0
        self.next = ""
        self.take()

    def take(self, *wanted: str) -> str:
        """The next token, which is one of those wanted, if any are named."""
        taken = self.next
        if wanted and taken not in wanted:
            line = self._text.count("\n", 0, self._at) + 1
            raise ValueError(f"{self._name}, line {line}: wanted {' or '.join(wanted)}, found {taken!r}")
        self.next = ""
        while self._at < len(self._text) and not self.next:
            found = _TOKEN.match(self._text, self._at)
            if found is None:
                raise ValueError(f"{self._name}: cannot read {self._text[self._at : self._at + 20]!r}")
            self.next, self._at = found[1] or "", found.end()
        return taken


class _File:
    """Reads one file's tokens into its description."""

    def __init__(self, tokens: _Tokens) -> None:
        self._tokens = tokens
        self._take = tokens.take

    def read(self, file: Proto) -> None:
        for token in ("syntax", "=", '"proto3"', ";", "package"):
            self._take(token)
        file.package = self._take()
        self._take(";")
        while self._tokens.next:
            match self._take("message", "enum", "service"):
                case "message":
                    self._message(file.message_type.add())
                case "enum":
                    self._enum(file.enum_type.add())
                case "service":
                    self._service(file.service.add())

    def _message(self, message: Proto) -> None:
        message.name = self._take()
        self._take("{")
        while (kind := self._tokens.next) != "}":
            match kind:
                case "message":
                    self._take()
                    self._message(message.nested_type.add())
                case "enum":
                    self._take()
                    self._enum(message.enum_type.add())
                case "oneof":
                    self._take()
                    message.oneof_decl.add(name=self._take())
                    self._take("{")
                    while self._tokens.next != "}":
                        self._field(message).oneof_index = len(message.oneof_decl) - 1
                    self._take("}")
                case _:
                    self._field(message)
        self._take("}")

    def _field(self, message: Proto) -> Proto:
        kind = self._take()
        field = message.field.add(label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL)
        if kind == "repeated":
            kind, field.label = self._take(), descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
        value = ""
        if kind == "map":
            for token in ("<", "string", ","):
                self._take(token)
            value = self._take()
            self._take(">")
        field.name = self._take()
        self._take("=")
        field.number = int(self._take())
        self._take(";")
        if value:
            kind = "".join(part.capitalize() for part in field.name.split("_")) + "Entry"
            field.label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
            entry = message.nested_type.add(name=kind)
            entry.options.map_entry = True
            for number, (name, what) in enumerate((("key", "string"), ("value", value)), 1):
                _set_kind(entry.field.add(name=name, number=number, label=1), what)
        _set_kind(field, kind)
        return field

    def _enum(self, enum: Proto) -> None:
        enum.name = self._take()
        self._take("{")
        while self._tokens.next != "}":
            name = self._take()
            self._take("=")
            enum.value.add(name=name, number=int(self._take()))
            self._take(";")
        self._take("}")

    def _service(self, service: Proto) -> None:
        service.name = self._take()
        self._take("{")
        while self._tokens.next != "}":
            self._take("rpc")
            method = service.method.add(name=self._take())
            method.input_type, method.client_streaming = self._side()
            self._take("returns")
            method.output_type, method.server_streaming = self._side()
            self._take(";")
        self._take("}")

    def _side(self) -> tuple[str, bool]:
        self._take("(")
        kind = self._take()
        streaming = kind == "stream"
        if streaming:
            kind = self._take()
        self._take(")")
        return kind, streaming


def _set_kind(field: Proto, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type_name = kind


def _resolve(file: Proto) -> None:
    """Full names for the types that were named as they read inside their message."""
    known = set(_names(file))
    enums = {f"{file.package}.{enum.name}" for enum in file.enum_type}
    enums |= {f"{file.package}.{each.name}.{enum.name}" for each in file.message_type for enum in each.enum_type}
    field_type = descriptor_pb2.FieldDescriptorProto

    def full(name: str, scope: str) -> str:
        while scope:
            if f"{scope}.{name}" in known:
                return f"{scope}.{name}"
            scope = scope.rpartition(".")[0]
        raise ValueError(f"{file.name}: unknown type {name!r}")

    def inside(scope: str, message: Proto) -> None:
        scope = f"{scope}.{message.name}"
        for field in message.field:
            if field.type_name:
                name = full(field.type_name, scope)
                field.type = field_type.TYPE_ENUM if name in enums else field_type.TYPE_MESSAGE
                field.type_name = f".{name}"
        for nested in message.nested_type:
            inside(scope, nested)

    # The entry of a map in a nested message is three levels down; the names of those are theirs alone.
    known |= {
        f"{file.package}.{outer.name}.{nested.name}.{entry.name}"
        for outer in file.message_type
        for nested in outer.nested_type
        for entry in nested.nested_type
    }
    for message in file.message_type:
        inside(file.package, message)
    for service in file.service:
        for method in service.method:
            method.input_type = "." + full(method.input_type, file.package)
            method.output_type = "." + full(method.output_type, file.package)
