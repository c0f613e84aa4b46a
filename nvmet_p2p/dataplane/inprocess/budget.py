"""How many bytes of payload a queue may hold in one direction: what makes its memory bounded whatever the host does."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Budget(Generic[T]):
    """Grants bytes first come, first served. One claim larger than the limit is granted when nothing else is held."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._waiting: deque[tuple[T, int]] = deque()

    def claim(self, who: T, count: int) -> bool:
        """True if ``who`` has ``count`` bytes now; else ``who`` comes out of ``release`` or ``withdraw`` later."""
        if not self._waiting and self._fits(count):
            self.used_bytes += count
            return True
        self._waiting.append((who, count))
        return False

    def release(self, count: int) -> list[T]:
        """Gives bytes back. Returns those who have theirs now."""
        self.used_bytes -= count
        return self._grant()

    def withdraw(self, who: T) -> list[T]:
        """Takes a waiting claim back. Returns those who have theirs now."""
        self._waiting = deque(claim for claim in self._waiting if claim[0] is not who)
        return self._grant()

    def _fits(self, count: int) -> bool:
        return self.used_bytes == 0 or self.used_bytes + count <= self.limit_bytes

    def _grant(self) -> list[T]:
        granted = []
        while self._waiting and self._fits(self._waiting[0][1]):
            who, count = self._waiting.popleft()
            self.used_bytes += count
            granted.append(who)
        return granted
