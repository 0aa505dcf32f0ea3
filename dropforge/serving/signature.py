"""What a model takes and gives, compared with what serves: may callers go on as they do?"""

from __future__ import annotations

from collections.abc import Sequence

from dropforge.serving.models import Model
from dropforge.serving.tensors import Tensor


def incompatible(old: Model, new: Model) -> str | None:
    """Why a request that `old` answers is none for `new`, or its answer another thing; None when there is no such reason.

    A dimension that was fixed may become free, and outputs may be added. Sizes of outputs may change: a class more is no
    other question.
    """
    parts = [
        *_inputs(old.inputs, new.inputs),
        *_outputs(old.outputs, new.outputs),
    ]
    if old.columns is not None and old.columns != new.columns:
        parts.append(f"the columns were {list(old.columns)} and are {list(new.columns or ()) or 'not told'}")
    return "; ".join(parts) or None


def differences(old: Model, new: Model) -> str | None:
    """All that differs, in words."""
    parts = [
        f"{what} changed from {[str(each) for each in before]} to {[str(each) for each in after]}"
        for what, before, after in (("inputs", old.inputs, new.inputs), ("outputs", old.outputs, new.outputs))
        if before != after
    ]
    return "; ".join(parts) or None


def _inputs(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[str]:
    before, after = {each.name: each for each in old}, {each.name: each for each in new}
    parts = [f"input {name!r} is gone" for name in before.keys() - after.keys()]
    parts += [f"input {after[name]} is new and required" for name in after.keys() - before.keys()]
    parts += [
        f"input {before[name]} became {after[name]}"
        for name in before.keys() & after.keys()
        if before[name].kind != after[name].kind or not _takes(after[name].dims, before[name].dims)
    ]
    return sorted(parts)


def _takes(new: Sequence[int | str | None], old: Sequence[int | str | None]) -> bool:
    """Whether all that fits `old` fits `new`. Without dimensions any rank fits."""
    if not new:
        return True
    return len(new) == len(old) and all(
        not isinstance(after, int) or after == before for before, after in zip(old, new, strict=True)
    )


def _outputs(old: Sequence[Tensor], new: Sequence[Tensor]) -> list[str]:
    after = {each.name: each for each in new}
    parts = []
    for tensor in old:
        found = after.get(tensor.name)
        if found is None:
            parts.append(f"output {tensor.name!r} is gone")
        elif found.kind != tensor.kind or (tensor.dims and found.dims and len(found.dims) != len(tensor.dims)):
            parts.append(f"output {tensor} became {found}")
    return parts
