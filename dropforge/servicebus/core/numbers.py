"""A sorted set of sequence numbers whose cost does not grow with what it holds."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

# Numbers per chunk: what one insertion or removal moves at most.
CHUNK = 1024


class SortedNumbers:
    """Adding at the end and taking the first, which is what a queue does, cost the same at any size; so do insertion
    and removal elsewhere, up to the search for the chunk. Nothing stale is kept."""

    __slots__ = ("_chunks", "_lasts", "_size")

    def __init__(self) -> None:
        self._chunks: list[list[int]] = []
        # The last number of each chunk, to find the chunk of a number by bisection.
        self._lasts: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        for chunk in self._chunks:
            yield from chunk

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._lasts, number)
        if at == len(self._chunks):
            return False
        chunk = self._chunks[at]
        return chunk[bisect_left(chunk, number)] == number

    @property
    def first(self) -> int:
        """The smallest. Raises `IndexError` when there is none."""
        return self._chunks[0][0]

    def add(self, number: int) -> None:
        """Put a number in that is not there yet."""
        self._size += 1
        lasts = self._lasts
        if not lasts:
            self._chunks.append([number])
            lasts.append(number)
        elif number > lasts[-1]:
            chunk = self._chunks[-1]
            if len(chunk) < CHUNK:
                chunk.append(number)
                lasts[-1] = number
            else:
                self._chunks.append([number])
                lasts.append(number)
        else:
            at = bisect_left(lasts, number)
            chunk = self._chunks[at]
            insort(chunk, number)
            if len(chunk) > 2 * CHUNK:
                self._chunks.insert(at + 1, chunk[CHUNK:])
                del chunk[CHUNK:]
                lasts.insert(at, chunk[-1])

    def remove(self, number: int) -> None:
        """Take a number out. Raises `KeyError` when it is not there."""
        at = bisect_left(self._lasts, number)
        if at == len(self._chunks):
            raise KeyError(number)
        chunk = self._chunks[at]
        place = bisect_left(chunk, number)
        if chunk[place] != number:
            raise KeyError(number)
        del chunk[place]
        self._size -= 1
        if not chunk:
            del self._chunks[at], self._lasts[at]
        elif place == len(chunk):
            self._lasts[at] = chunk[-1]

    def pop_first(self) -> int:
        """Take the smallest out. Raises `IndexError` when there is none."""
        chunk = self._chunks[0]
        number = chunk.pop(0)
        self._size -= 1
        if not chunk:
            del self._chunks[0], self._lasts[0]
        return number

    def since(self, start: int) -> Iterator[int]:
        """The numbers from `start` on, in order. Do not change the set meanwhile."""
        at = bisect_left(self._lasts, start)
        if at == len(self._chunks):
            return
        chunk = self._chunks[at]
        yield from chunk[bisect_left(chunk, start) :]
        for later in self._chunks[at + 1 :]:
            yield from later
