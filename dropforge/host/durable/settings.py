"""The settings of the durable engine, named as in the `durableTask` section of host.json."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _ten_per_core() -> int:
    return 10 * (os.cpu_count() or 1)


@dataclass(frozen=True)
class DurableSettings:
    """How much runs at once and which limits hold; defaults are those of the Durable extension."""

    hub_name: str = "LocalHub"
    default_version: str = ""
    max_concurrent_activities: int = field(default_factory=_ten_per_core)
    # Kept to: episodes run one after another in the engine's thread, which is below any limit.
    max_concurrent_orchestrators: int = field(default_factory=_ten_per_core)
    max_entity_batch: int = 5000
    max_actions: int = 100_000
    store_inputs: bool = False
    slice_long_timers: bool = True  # as on Azure Storage; the other storage providers take timers of any length
    replace_any_state: bool = False  # overridableExistingInstanceStates: AnyState
    # Executions kept in memory between episodes: count, and characters of history in all.
    hot_executions: int = 2_000
    hot_characters: int = 64_000_000

    @classmethod
    def from_host_json(cls, section: Mapping[str, Any]) -> "DurableSettings":
        """Reads `extensions.durableTask`; settings that have no meaning on one machine are passed over."""
        defaults = cls()

        def number(key: str, default: int) -> int:
            value = section.get(key, default)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"host.json: durableTask.{key} must be a whole number above 0; found {value!r}")
            return value

        storage = section.get("storageProvider") or {}
        provider = str(storage.get("type") or "AzureStorage") if isinstance(storage, Mapping) else "AzureStorage"
        states = str(section.get("overridableExistingInstanceStates", "NonRunningStates"))
        if states.lower() not in ("nonrunningstates", "anystate"):
            raise ValueError(
                "host.json: durableTask.overridableExistingInstanceStates must be 'NonRunningStates' or 'AnyState'; "
                f"found {states!r}"
            )
        return cls(
            hub_name=str(section.get("hubName") or defaults.hub_name),
            default_version=str(section.get("defaultVersion") or ""),
            max_concurrent_activities=number("maxConcurrentActivityFunctions", defaults.max_concurrent_activities),
            max_concurrent_orchestrators=number(
                "maxConcurrentOrchestratorFunctions", defaults.max_concurrent_orchestrators
            ),
            max_entity_batch=number("maxEntityOperationBatchSize", defaults.max_entity_batch),
            max_actions=number("maxOrchestrationActions", defaults.max_actions),
            store_inputs=bool(section.get("storeInputsInOrchestrationHistory", False)),
            slice_long_timers=provider.lower() == "azurestorage",
            replace_any_state=states.lower() == "anystate",
        )
