"""The registry, mirrored in Azure ML: the ledger decides numbers and aliases, Azure ML shows the same to its own tools.

Each version is a model version there with the same number, its lineage as tags; the version that an alias points to has
the tag `alias.<name>`. Nothing waits for the mirror and nothing is read from it: when Azure ML does not answer, the model is
registered and promoted all the same, and the next version or move brings up what is missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any

from dropforge.adapters.azure.aml_client import asking, ml_client
from dropforge.adapters.azure.aml_jobs import datastore
from dropforge.adapters.azure.places import ARTIFACTS
from dropforge.domain.errors import DropforgeError, NotFound
from dropforge.domain.models import CHAMPION, Alias, Lineage, ModelVersion
from dropforge.ports import Artifacts, Registry
from dropforge.settings import AzureML

if TYPE_CHECKING:
    from azure.ai.ml.entities import Model

log = logging.getLogger(__name__)

# The newest versions, in which what is missing is looked for.
NEWEST = 50
_LISTED = 1000
_ALIAS = "alias."
_RUN = "dropforge.run"
# So long it is left alone after it did not answer: promoting must not wait for it again and again.
REST = timedelta(minutes=1)


class MirroredRegistry:
    """See the top of the file. Any number of threads and hosts may use it; Azure ML has no compare-and-set, so a tag that
    two of them wrote at once may be wrong until the next move."""

    def __init__(
        self,
        registry: Registry,
        settings: AzureML,
        artifacts: Artifacts,
        rest: timedelta = REST,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._workspace = settings.workspace
        self._artifacts = artifacts
        self._rest = rest
        self._monotonic = monotonic
        self._rests_until = monotonic()
        self._lock = Lock()

    # -------------------------------------------------------------------------------------------- the port
    def register(self, model: str, artifact: str, lineage: Lineage, now: datetime) -> ModelVersion:
        """As the port says."""
        version = self._registry.register(model, artifact, lineage, now)
        self._mirror(model)
        return version

    def get(self, model: str, version: int) -> ModelVersion:
        """As the port says."""
        return self._registry.get(model, version)

    def list(self, model: str, limit: int = 50) -> list[ModelVersion]:
        """As the port says."""
        return self._registry.list(model, limit)

    def alias(self, model: str, name: str) -> Alias | None:
        """As the port says."""
        return self._registry.alias(model, name)

    def set_alias(self, model: str, name: str, version: int, expected: Alias | None, now: datetime) -> Alias:
        """As the port says."""
        alias = self._registry.set_alias(model, name, version, expected, now)
        self._mirror(model, name)
        return alias

    # -------------------------------------------------------------------------------------------- the mirror
    def _mirror(self, model: str, *names: str) -> None:
        """Make Azure ML show what the ledger says of the model; what cannot be done now is left to the next call."""
        with self._lock:
            if self._monotonic() < self._rests_until:
                return
            try:
                self._bring_up(model, sorted({CHAMPION, *names}))
            except DropforgeError as error:
                self._rests_until = self._monotonic() + self._rest.total_seconds()
                log.warning("model %s is not mirrored in Azure ML for now: %s", model, error.message)

    def _bring_up(self, model: str, names: Sequence[str]) -> None:
        client = self._client()
        theirs = self._theirs(client, model)
        # Read after the listing: what is newer in the ledger is then written by whoever made it newer.
        points = {name: alias.version for name in names if (alias := self._registry.alias(model, name)) is not None}
        ours = {each.version: each for each in self._registry.list(model, NEWEST)}
        for number in points.values():
            ours.setdefault(number, self._registry.get(model, number))
        for number, version in sorted(ours.items()):
            there = theirs.get(str(number))
            marks = {f"{_ALIAS}{name}": "true" for name in names if points.get(name) == number}
            if there is None:
                self._put(client, self._made(version, marks))
            elif (there.tags or {}).get(_RUN) != version.lineage.run:
                log.warning(
                    "model %s version %d in Azure ML was made by somebody else, so it does not show ours of run %s; archive "
                    "it there, and register models under other names by hand",
                    *(model, number, version.lineage.run),
                )
        self._retag(client, names, points, theirs, set(ours))

    def _retag(
        self, client: Any, names: Sequence[str], points: dict[str, int], theirs: dict[str, Model], ours: set[int]
    ) -> None:
        """Move the tags of the aliases. Those that people gave stay as they are."""
        for number, there in theirs.items():
            before = dict(there.tags or {})
            if not number.isdigit() or _RUN not in before:
                continue
            after = {key: value for key, value in before.items() if key not in {f"{_ALIAS}{name}" for name in names}}
            if int(number) in ours:
                after |= {f"{_ALIAS}{name}": "true" for name in names if points.get(name) == int(number)}
            if after != before:
                there.tags = after
                self._put(client, there)

    def _made(self, version: ModelVersion, marks: dict[str, str]) -> Model:
        from azure.ai.ml.entities import Model

        return Model(
            name=version.model,
            version=str(version.version),
            type="custom_model",
            path=datastore(ARTIFACTS, version.artifact),
            tags={**_lineage(version), **marks},
        )

    # -------------------------------------------------------------------------------------------- Azure ML
    def _client(self) -> Any:
        with asking(self._workspace, "the workspace"):
            return ml_client(self._workspace)

    def _theirs(self, client: Any, model: str) -> dict[str, Model]:
        """By number as text: others may call theirs anything."""
        from azure.ai.ml.constants import ListViewType

        try:
            with asking(self._workspace, f"model {model!r}"):
                found = client.models.list(model, list_view_type=ListViewType.ALL)
                return {str(each.version): each for each in islice(found, _LISTED)}
        except NotFound:
            return {}

    def _put(self, client: Any, model: Model) -> None:
        with asking(self._workspace, f"model {model.name!r} version {model.version}"):
            client.models.create_or_update(model)


def _lineage(version: ModelVersion) -> dict[str, str]:
    lineage = version.lineage
    return {
        _RUN: lineage.run,
        "dropforge.pipeline": lineage.pipeline,
        "dropforge.dataset": lineage.dataset,
        "dropforge.dataset_version": str(lineage.dataset_version),
        "dropforge.manifest_sha256": lineage.manifest_sha256,
        "dropforge.code_sha256": lineage.code_sha256,
        "dropforge.seed": str(lineage.seed),
        "dropforge.sha256": version.sha256,
        **{f"metric.{name}": f"{value:.6g}" for name, value in sorted(lineage.metrics.items())},
    }
