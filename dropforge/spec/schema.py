"""The JSON schema of `pipeline.yaml`: what an editor needs to complete keys and underline slips."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import CoreSchema, to_jsonable_python

from dropforge.spec.model import PipelineSpec
from dropforge.spec.values import duration_text


class _AsWritten(GenerateJsonSchema):
    """Defaults as they are written in the file; no titles, which only repeat the keys."""

    def encode_default(self, dft: Any) -> Any:
        return duration_text(dft) if isinstance(dft, timedelta) else to_jsonable_python(dft)

    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        found: JsonSchemaValue = _without_titles(super().generate(schema, mode))
        return found


def _without_titles(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: _without_titles(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)
        }
    return [_without_titles(item) for item in schema] if isinstance(schema, list) else schema


def schema() -> dict[str, Any]:
    """The schema as a value, for draft 2020-12."""
    found = PipelineSpec.model_json_schema(schema_generator=_AsWritten)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Dropforge pipeline.yaml", **found}


def schema_text() -> str:
    """The schema as the text of `docs/pipeline.schema.json`."""
    return json.dumps(schema(), indent=2) + "\n"
