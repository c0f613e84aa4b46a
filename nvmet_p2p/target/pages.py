"""Log pages are put together from segments, and only those that a host reads are built."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable


class Segments:
    """A page as a row of pieces whose sizes are known before their bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._starts: list[int] = []
        self._pieces: list[tuple[int, Callable[[], bytes]]] = []

    @classmethod
    def of(cls, data: bytes) -> Segments:
        """A page whose bytes are there already."""
        page = cls()
        page.add(len(data), lambda: data)
        return page

    def add(self, size: int, build: Callable[[], bytes]) -> None:
        """Appends a piece; ``build`` must give exactly ``size`` bytes."""
        self._starts.append(self.size)
        self._pieces.append((size, build))
        self.size += size

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``; beyond the end there are zeros."""
        if offset >= self.size:
            return bytes(length)
        out = bytearray()
        end = min(offset + length, self.size)
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self._pieces) and self._starts[index] < end:
            start = self._starts[index]
            _, build = self._pieces[index]
            out += build()[max(offset - start, 0) : end - start]
            index += 1
        return bytes(out.ljust(length, b"\0"))
