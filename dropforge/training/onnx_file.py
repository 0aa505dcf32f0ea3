"""The model as a file: one that needs no other file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Protocol buffers end at 2 GiB.
_MOST_BYTES = 2 * 1024**3 - 1


class ModelUnusable(Exception):
    """What is wrong with a model, as the end of the sentence "the model cannot be used: ..."."""


def self_contained(path: Path) -> None:
    """Weights that lie in files beside the model (as PyTorch exports them) are taken into the model file itself:
    it travels alone. Raises `ModelUnusable` for weights outside its folder, and for more than 2 GiB."""
    size = path.stat().st_size
    if not size:
        raise ModelUnusable("the file is empty")
    # Every tensor outside the file has an entry under this key, so most models need not be parsed here.
    if b"location" not in path.read_bytes():
        return
    # Costs 0.2 s to import and is needed for few models only.
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ModelUnusable(f"it is not an ONNX file: {error}") from error
    outside = list(_outside_tensors(model))
    if not outside:
        return
    folder = path.parent.resolve()
    for name, location in outside:
        target = (folder / location).resolve()
        if Path(location).is_absolute() or not target.is_relative_to(folder) or not target.is_file():
            raise ModelUnusable(
                f"weights {name!r} lie in {location!r}, not in a file beside the model; save them in it"
            )
        size += target.stat().st_size
    if size > _MOST_BYTES:
        raise ModelUnusable(f"with its weights it has {size:,} bytes; one ONNX file holds at most {_MOST_BYTES:,}")
    onnx.load_external_data_for_model(model, str(folder))
    whole = path.with_suffix(".whole")
    onnx.save(model, str(whole))
    whole.replace(path)


def _outside_tensors(model: Any) -> Iterator[tuple[str, str]]:
    """Name and location of every tensor kept in another file."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes.extend(graph.node)
            yield from _outside(graph.initializer)
            continue
        for attribute in nodes.pop().attribute:
            graphs.extend([attribute.g] if attribute.HasField("g") else [])
            graphs.extend(attribute.graphs)
            yield from _outside([*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors])


def _outside(tensors: Any) -> Iterator[tuple[str, str]]:
    for tensor in tensors:
        if tensor.data_location == tensor.EXTERNAL:
            yield tensor.name, next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
