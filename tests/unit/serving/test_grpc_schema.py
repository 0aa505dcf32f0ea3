"""The `.proto` files are those that others speak, and the reader of them reads what it should."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from dropforge.serving.grpc.schema import parse, read_schema

SCHEMA = read_schema()
# What the Open Inference Protocol consists of; the rest is Triton's.
OPEN = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")


def told(*modules: Any) -> dict[str, tuple[Any, ...]]:
    """All fields, values of enums and methods, by their full names."""
    found: dict[str, tuple[Any, ...]] = {}

    def inside(scope: str, message: Any) -> None:
        for field in message.field:
            oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None
            found[f"{scope}.{field.name}"] = (field.number, field.label, field.type, field.type_name, oneof)
        for enum in message.enum_type:
            found.update({f"{scope}.{enum.name}.{value.name}": (value.number,) for value in enum.value})
        for nested in message.nested_type:
            inside(f"{scope}.{nested.name}", nested)

    for module in modules:
        file = descriptor_pb2.FileDescriptorProto()
        if isinstance(module, bytes):
            file.ParseFromString(module)
        else:
            module.DESCRIPTOR.CopyToProto(file)
        for message in file.message_type:
            inside(f"{file.package}.{message.name}", message)
        for enum in file.enum_type:
            found.update({f"{file.package}.{enum.name}.{value.name}": (value.number,) for value in enum.value})
        for service in file.service:
            for method in service.method:
                sides = (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
                found[f"{file.package}.{service.name}.{method.name}"] = sides
    return found


def test_inference_is_what_tritons_clients_speak() -> None:
    ours, theirs = told(SCHEMA.files["inference.proto"]), told(service_pb2, model_config_pb2)
    # Of the ways to schedule there is one here, so it is in no `oneof`; on the wire that is the same.
    field = "inference.ModelConfig.dynamic_batching"
    assert ours.pop(field)[:4] == theirs.pop(field)[:4]
    assert {name: theirs.get(name) for name in ours} == ours
    assert {f"inference.GRPCInferenceService.{name}" for name in OPEN} <= ours.keys()
    for message in ("ModelInferRequest", "ModelInferResponse", "InferTensorContents", "InferParameter"):
        named = {name for name in theirs if name.startswith(f"inference.{message}.")}
        assert named <= ours.keys()


def test_health_and_reflection_are_those_of_grpc() -> None:
    assert told(SCHEMA.files["health.proto"]).items() >= told(health_pb2).items() - {
        (name, each) for name, each in told(health_pb2).items() if "List" in name
    }
    ours = told(SCHEMA.files["reflection_alpha.proto"])
    assert ours == told(reflection_pb2)
    assert told(SCHEMA.files["reflection.proto"]).keys() == {name.replace("v1alpha", "v1") for name in ours}


def test_what_a_symbol_stands_in_is_known() -> None:
    assert SCHEMA.file_of["inference.ModelInferRequest.InferInputTensor"] == "inference.proto"
    assert SCHEMA.file_of["grpc.health.v1.Health.Watch"] == "health.proto"
    assert SCHEMA.file_of["grpc.health.v1.HealthCheckResponse.ServingStatus"] == "health.proto"
    assert SCHEMA.services == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]


def test_messages_made_here_are_read_there() -> None:
    infer = next(method for method in SCHEMA.methods if method.name == "ModelInfer")
    request = infer.request(model_name="m", id="7", raw_input_contents=[b"\1\2"])
    request.inputs.add(name="x", datatype="UINT8", shape=[2]).parameters["a"].int64_param = -5
    found = service_pb2.ModelInferRequest.FromString(request.SerializeToString())
    assert found.inputs[0].parameters["a"].int64_param == -5
    assert infer.request.FromString(found.SerializeToString()) == request


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('syntax = "proto2";', 'wanted "proto3", found \'"proto2"\''),
        ('syntax = "proto3"; package a; import "b.proto";', "wanted message or enum or service, found 'import'"),
        ('syntax = "proto3"; package a;\nmessage A { B b = 1; }', "unknown type 'B'"),
        ('syntax = "proto3"; package a;\nmessage A {\n optional int32 b = 1;\n}', "wanted =, found 'b'"),
        ('syntax = "proto3"; package a; message A { map<int32, string> b = 1; }', "wanted string, found 'int32'"),
        ('syntax = "proto3"; package a; message A { string b = 1 [deprecated = true]; }', "cannot read '[depr"),
    ],
)
def test_what_the_reader_does_not_know_it_refuses(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"x\.proto") as error:
        parse("x.proto", text)
    assert wrong in str(error.value)


def test_a_server_of_http_alone_loads_none_of_it() -> None:
    program = (
        "import dropforge.serving.__main__, sys; print([n for n in sys.modules if 'protobuf' in n or 'hpack' in n])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
