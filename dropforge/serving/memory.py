"""Memory that models take: measured around each load, and bounded by a budget where there is one."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from weakref import WeakSet, finalize

from dropforge.domain.endpoints import Deployment
from dropforge.serving.models import Model
from dropforge.serving.provider import CPU, Provider

MIB = 2**20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Of a model's file, until one of that name was loaded: what its session holds, and the bytes it is made from.
FIRST_GUESS = 2.0
SMI_SECONDS = 20
# What models leave behind is handed back to the system when no later ones have taken this much of it up. The allocator's
# locks are held meanwhile, which stops requests for milliseconds.
TRIM_BYTES = 64 * MIB


def resident_bytes() -> int:
    """Of this process; 0 where nobody tells."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as told:  # noqa: PTH123 - a path costs as much again, and the loop asks
        return int(told.read().split()[1]) * PAGE_BYTES


def free_device_bytes(device: int = 0) -> int | None:
    """Of that GPU; None when nobody tells."""
    query = ["nvidia-smi", f"--id={device}", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=SMI_SECONDS, check=True)
        return int(done.stdout.split()[0]) * MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


class Budget:
    """What fits. `limit_bytes`: of all models together; None: on a GPU what is free there, on a CPU no limit."""

    def __init__(self, limit_bytes: int | None = None, provider: Provider = CPU) -> None:
        self.limit_bytes = limit_bytes
        self._on_device, self._device = provider.on_gpu, provider.device
        self._models: WeakSet[Model] = WeakSet()
        self._lock = Lock()
        # Bytes of models that are gone; and of those, and of others before them, what no later ones have taken up.
        self._gone: deque[int] = deque()
        self._left_behind = 0
        self._growth: dict[str, float] = {}

    @property
    def is_bounded(self) -> bool:
        return self.limit_bytes is not None or self._on_device

    def used_bytes(self) -> int:
        """Of all models that are in memory, also those that still finish requests."""
        with self._lock:
            return sum(model.memory_bytes for model in self._models)

    def room_bytes(self) -> int | None:
        """What another model may take; None: whatever it wants. Not on the event loop: a GPU is asked by a program."""
        left = [] if self.limit_bytes is None else [self.limit_bytes - self.used_bytes()]
        if self._on_device and (free := free_device_bytes(self._device)) is not None:
            left.append(free)
        return min(left, default=None)

    def wanted_bytes(self, deployment: Deployment, file_bytes: int) -> int:
        """What the model will take, by its file and by the one of its name that was loaded last."""
        return int(file_bytes * self._growth.get(deployment.model, FIRST_GUESS))

    def before(self) -> tuple[int, int | None]:
        return resident_bytes(), free_device_bytes(self._device) if self._on_device else None

    def loaded(self, model: Model, file_bytes: int, before: tuple[int, int | None]) -> None:
        """Write down what the model took since `before`."""
        resident, free = self.before()
        grown = resident - before[0]
        told = f"resident {before[0] // MIB} -> {resident // MIB} MiB"
        if free is not None and before[1] is not None:
            grown = before[1] - free
            told += f", free on the GPU {before[1] // MIB} -> {free // MIB} MiB"
        # What others freed meanwhile may hide some of it; its weights are there in any case.
        model.memory_bytes = max(grown, file_bytes)
        model.memory = f"{model.memory_bytes / MIB:.1f} MiB of a file of {file_bytes / MIB:.1f} MiB; {told}"
        if file_bytes > MIB:
            self._growth[model.deployment.model] = min(4.0, max(1.0, model.memory_bytes / file_bytes))
        with self._lock:
            self._models.add(model)
            # Without the lock: it is told by whichever thread lets the last hold on the model go, in the middle of anything.
            finalize(model, self._gone.append, model.memory_bytes)
            self._left_behind = max(0, self._left_behind - model.memory_bytes)

    def let_go(self, clear: Callable[[], None]) -> None:
        """Let models go, on this thread: where nobody waits for the memory to be handed back."""
        clear()
        with self._lock:
            while self._gone:
                self._left_behind += self._gone.popleft()
            is_much = self._left_behind >= TRIM_BYTES
            if is_much:
                self._left_behind = 0
        if is_much:
            trim()


def trim() -> None:
    """Hand free memory back to the system."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a libc without it (musl) has nothing to trim
            ctypes.CDLL(None).malloc_trim(0)
