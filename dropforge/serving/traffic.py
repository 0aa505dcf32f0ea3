"""Which version answers a request: percents that hold exactly, and equal keys that get equal versions."""

from __future__ import annotations

import math
import random
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from dropforge.domain.endpoints import Deployment

# In the order in which they count; without any, the id in the request.
STICKY_HEADERS = ("dropforge-sticky", "x-request-id")
_RANGE = 2**32
_MASK = _RANGE - 1
# Of a golden section of the range: steps of it fill the range evenly from wherever they begin and however many are left out
# in between, so that a percent is exact after a hundred requests and no rhythm of the callers' falls in with it.
_STEP = 0x9E3779B1


class Turns:
    """Says yes to a share (0 to 1) of the times it is asked, evenly. Not for several threads."""

    __slots__ = ("_at", "_limit")

    def __init__(self, share: float) -> None:
        self._limit = round(share * _RANGE)
        self._at = random.getrandbits(32)

    def mine(self) -> bool:
        self._at = at = (self._at + _STEP) & _MASK
        return at < self._limit


class Split:
    """The traffic of a revision. `only`: the place of the one deployment that has all of it, if there is one."""

    __slots__ = ("_at", "_ends", "_places", "_weights", "only")

    def __init__(self, deployments: Sequence[Deployment]) -> None:
        answering = [(place, each) for place, each in enumerate(deployments) if each.traffic > 0]
        self.only = answering[0][0] if len(answering) == 1 else None
        total = sum(each.traffic for _, each in answering) or 1
        self._places = [place for place, _ in answering]
        self._ends = [end * _RANGE // total for end in accumulate(each.traffic for _, each in answering)][:-1]
        # The same in every process: replicas agree about every key.
        self._weights = [
            (place, (each.version * _STEP + 0x85EBCA6B) & _MASK, each.traffic) for place, each in answering
        ]
        self._at = random.getrandbits(32)

    def next(self) -> int:
        """The place of the deployment that answers a request without a key."""
        self._at = at = (self._at + _STEP) & _MASK
        return self._places[bisect_right(self._ends, at)]

    def of(self, key: str) -> int:
        """The place of the deployment that answers all requests with that key. More traffic for a deployment takes no key
        from it, less brings it none (weighted rendezvous hashing)."""
        hashed = zlib.crc32(key.encode("utf-8", "surrogatepass"))
        best, found = math.inf, 0
        for place, salt, traffic in self._weights:
            distance = -math.log((_mixed(hashed ^ salt) + 0.5) / _RANGE) / traffic
            if distance < best:
                best, found = distance, place
        return found


def _mixed(value: int) -> int:
    # The last steps of MurmurHash3: every bit of a checksum counts in every bit of what is compared.
    value ^= value >> 16
    value = value * 0x85EBCA6B & _MASK
    value ^= value >> 13
    value = value * 0xC2B2AE35 & _MASK
    return value ^ value >> 16
