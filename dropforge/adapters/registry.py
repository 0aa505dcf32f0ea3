"""The model registry over any ledger and any artifact store.

One partition per model, `m.<model>`:

    head               {"next": 13}                               the number the next version gets
    version/000012     the `ModelVersion`
    run/<run>          {"version": 12}                            what makes registering a run twice harmless
    alias/champion     {"version": 12, "history": [9, 11], "moves": 3, "moved_at": ...}
                                                                  where it points, and where it pointed before
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from dropforge.domain.errors import Conflict, NotFound, Unavailable
from dropforge.domain.models import Alias, Lineage, ModelVersion
from dropforge.domain.names import checked_name
from dropforge.ports import Artifacts, Insert, Json, Ledger, Replace
from dropforge.wire import from_builtins, to_builtins

# Aliases remember where they pointed before, this many moves back.
KEPT_MOVES = 50
ATTEMPTS = 100


class LedgerRegistry:
    """`Registry` in ledger rows. `Alias.history` holds the versions it pointed to before, the last one last."""

    def __init__(self, ledger: Ledger, artifacts: Artifacts) -> None:
        self._ledger = ledger
        self._artifacts = artifacts

    def register(self, model: str, artifact: str, lineage: Lineage, now: datetime) -> ModelVersion:
        partition = _partition(model)
        # Looked up before the model is read: a second call costs one row.
        if (known := self._of_run(model, lineage.run)) is not None:
            return known
        sha256, size_bytes = self._measure(artifact)
        for _ in range(ATTEMPTS):
            head = self._ledger.get(partition, "head")
            number: int = head.value["next"] if head else 1
            version = ModelVersion(model, number, artifact, sha256, size_bytes, now, lineage)
            after = {"next": number + 1}
            try:
                self._ledger.commit(
                    partition,
                    [
                        Replace("head", after, head.etag) if head else Insert("head", after),
                        Insert(f"run/{lineage.run}", {"version": number}),
                        Insert(_version_key(number), to_builtins(version)),
                    ],
                )
            except Conflict:
                # Another run took the number, or another host registered this run.
                if (known := self._of_run(model, lineage.run)) is not None:
                    return known
                continue
            return version
        raise Unavailable(f"model {model!r} is being registered by too many at once; try again", model=model)

    def get(self, model: str, version: int) -> ModelVersion:
        row = self._ledger.get(_partition(model), _version_key(version))
        if row is None:
            raise NotFound(f"model {model!r} has no version {version}", model=model, version=version)
        return from_builtins(ModelVersion, row.value)

    def list(self, model: str, limit: int = 50) -> list[ModelVersion]:
        partition = _partition(model)
        head = self._ledger.get(partition, "head")
        if head is None:
            return []
        # Numbers have no gaps, so the newest are a range of keys.
        first = max(1, head.value["next"] - limit)
        rows = self._ledger.scan(partition, "version/", after=_version_key(first - 1), limit=limit)
        return [from_builtins(ModelVersion, row.value) for row in reversed(rows)]

    def alias(self, model: str, name: str) -> Alias | None:
        row = self._ledger.get(_partition(model), _alias_key(name))
        return _alias(name, row.value) if row else None

    def set_alias(self, model: str, name: str, version: int, expected: Alias | None, now: datetime) -> Alias:
        partition, key = _partition(model), _alias_key(name)
        row = self._ledger.get(partition, key)
        current = _alias(name, row.value) if row else None
        if current is not None and current.version == version:
            return current
        self.get(model, version)
        if (current and current.etag) != (expected and expected.etag):
            raise _moved(model, name, current, expected)
        value: Json = {
            "version": version,
            "history": [*current.history, current.version][-KEPT_MOVES:] if current else [],
            "moves": int(current.etag) + 1 if current else 1,
            "moved_at": to_builtins(now),
        }
        try:
            self._ledger.commit(partition, [Replace(key, value, row.etag) if row else Insert(key, value)])
        except Conflict as error:
            current = self.alias(model, name)
            # Somebody else may have moved it to the same place.
            if current is None or current.version != version:
                raise _moved(model, name, current, expected) from error
            return current
        return _alias(name, value)

    def _of_run(self, model: str, run: str) -> ModelVersion | None:
        row = self._ledger.get(_partition(model), f"run/{run}")
        return self.get(model, row.value["version"]) if row else None

    def _measure(self, artifact: str) -> tuple[str, int]:
        with tempfile.TemporaryDirectory(prefix="dropforge-register-") as folder:
            copy = Path(folder) / "artifact"
            return self._artifacts.fetch(artifact, copy), copy.stat().st_size


def _partition(model: str) -> str:
    return f"m.{checked_name(model, 'model')}"


def _version_key(version: int) -> str:
    return f"version/{version:06d}"


def _alias_key(name: str) -> str:
    return f"alias/{checked_name(name, 'alias')}"


def _alias(name: str, value: Json) -> Alias:
    # The count of moves, not the ledger's etag: so whoever moves the alias knows its new etag without reading again.
    return Alias(name, value["version"], str(value["moves"]), tuple(value["history"]))


def _moved(model: str, name: str, current: Alias | None, expected: Alias | None) -> Conflict:
    def place(alias: Alias | None) -> str:
        return f"version {alias.version} (move {alias.etag})" if alias else "nowhere"

    return Conflict(
        f"alias {name!r} of model {model!r} was expected at {place(expected)}, found at {place(current)}; "
        "read again and decide again",
        model=model,
        alias=name,
    )
