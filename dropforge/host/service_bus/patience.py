"""Doing something again while Service Bus cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dropforge.host.service_bus.link import Unreachable
from dropforge.host.service_bus.settings import Retries

T = TypeVar("T")


async def patiently(
    work: Callable[[], Awaitable[T]], retries: Retries, is_over: Callable[[], bool] = lambda: False
) -> T:
    """What the work gives; `Unreachable` is raised when the retries are used up, or when it is over."""
    attempt = 0
    while True:
        try:
            return await work()
        except Unreachable:
            attempt += 1
            if attempt > retries.count or is_over():
                raise
        await asyncio.sleep(retries.wait(attempt))
