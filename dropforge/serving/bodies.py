"""Bodies of requests, while they arrive: nothing is set aside before its bytes are there, and of those there is a limit."""

from __future__ import annotations

from dropforge.serving.heads import HeadRefused

# Chunks of a body, and the lines between them, that are read in one turn of the loop.
TURN_CHUNKS = 1024
MAX_CHUNK_LINE = 256
# Bodies below this always come through: the large ones are what there are too many of.
LARGE_BYTES = 256 * 1024


class Arriving:
    """The bytes of all bodies that are not whole yet."""

    __slots__ = ("bytes", "limit")

    def __init__(self, limit: int) -> None:
        self.bytes = 0
        self.limit = limit

    def add(self, size: int, held: int) -> None:
        """So many more of a body, `held` in all. Raises `HeadRefused` when they are too many."""
        self.bytes += size
        if self.bytes > self.limit and held > LARGE_BYTES:
            raise HeadRefused(503, "too many large bodies are arriving; try again")

    def remove(self, held: int) -> None:
        """A body is whole, or will never be."""
        self.bytes -= held


class Sized:
    """A body whose length was told, while it arrives."""

    __slots__ = ("_size", "data")

    def __init__(self, size: int) -> None:
        self._size = size
        self.data = bytearray()

    @property
    def whole(self) -> bool:
        return len(self.data) == self._size

    def feed(self, data: bytes, at: int, arriving: Arriving) -> int:
        """Take what is the body's; where the rest begins. Raises `HeadRefused`."""
        missing = self._size - len(self.data)
        end = min(at + missing, len(data))
        self.data += data if end - at == len(data) else memoryview(data)[at:end]
        arriving.add(end - at, len(self.data))
        return end


class Chunks:
    """A body in chunks (RFC 9112, 7.1), put together; extensions are read over, trailers are not taken."""

    __slots__ = ("_last", "_limit", "_line", "_missing", "data", "whole")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.data = bytearray()
        self.whole = False
        self._line = b""
        # Bytes of the current chunk still to come; None: a size line comes next; 0: its CRLF.
        self._missing: int | None = None
        self._last = False

    def feed(self, data: bytes, at: int, arriving: Arriving) -> int:
        """Take what is the body's, and of many chunks not all in one go; where the rest begins. Raises `HeadRefused`."""
        size = len(data)
        for _ in range(TURN_CHUNKS):
            if at == size or self.whole:
                break
            if self._missing:
                end = min(at + self._missing, size)
                self.data += memoryview(data)[at:end]
                self._missing -= end - at
                arriving.add(end - at, len(self.data))
                at = end
                continue
            line, at = self._next_line(data, at)
            if line is None:
                break
            if self._missing == 0:
                if line:
                    raise HeadRefused(400, "a chunk of the body is longer than its size says")
                self._missing = None
            elif self._last:
                if line:
                    raise HeadRefused(400, "trailers after a body in chunks are not taken")
                self.whole = True
            else:
                self._begin(line)
        return at

    def _next_line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        """The line that begins there, and where the next one does; None while it is not whole."""
        end = data.find(b"\n", at)
        piece = data[at : end + 1] if end >= 0 else data[at:]
        line = self._line + piece if self._line else piece
        if len(line) > MAX_CHUNK_LINE:
            raise HeadRefused(400, f"a line between the chunks of the body is longer than {MAX_CHUNK_LINE} bytes")
        if end < 0:
            self._line = line
            return None, len(data)
        self._line = b""
        if line[-2:] != b"\r\n":
            raise HeadRefused(400, "a line between the chunks of the body does not end in CRLF")
        return line[:-2], end + 1

    def _begin(self, line: bytes) -> None:
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not digits or len(digits) > 16 or digits.strip(b"0123456789abcdefABCDEF"):
            raise HeadRefused(400, "a chunk of the body has no size in hexadecimal digits")
        size = int(digits, 16)
        if len(self.data) + size > self._limit:
            raise HeadRefused(
                413, f"the body is larger than the limit of {self._limit} bytes; send fewer rows per request"
            )
        if size:
            self._missing = size
        else:
            self._last = True
