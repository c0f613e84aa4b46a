"""Locks on byte ranges of one back end.

Every command that touches blocks holds its ranges *shared*: plain reads and writes do not order each other (NVMe gives
no order between commands). A fused Compare and Write holds its range *exclusively*, so no other command of this engine
sees or changes a block between the compare and the write. First come, first served where ranges meet, so a fused pair
cannot starve. A command that needs ranges of several back ends takes them in the order of ``RangeLock.order``.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Final

Range = tuple[int, int]  # [start, end) in bytes

_order = itertools.count()


class Hold:
    """Ranges that were granted, or wait to be."""

    __slots__ = ("exclusive", "granted", "ranges", "waiter")

    def __init__(self, ranges: Sequence[Range], exclusive: bool) -> None:
        self.ranges: Final = ranges
        self.exclusive: Final = exclusive
        self.granted = False
        self.waiter: asyncio.Future[None] | None = None

    def conflicts(self, other: Hold) -> bool:
        """True if both cannot be held at once."""
        if not (self.exclusive or other.exclusive):
            return False
        return any(a < d and c < b for a, b in self.ranges for c, d in other.ranges)


class RangeLock:
    """The locks of one back end."""

    def __init__(self) -> None:
        self.order: Final = next(_order)
        self._held: set[Hold] = set()
        self._waiting: deque[Hold] = deque()
        self._exclusive = 0  # exclusive holds, granted or waiting

    async def acquire(self, ranges: Sequence[Range], *, exclusive: bool = False) -> Hold:
        """Waits until all of ``ranges`` can be held at once. A cancelled waiter leaves the queue."""
        hold = Hold(ranges, exclusive)
        self._exclusive += exclusive
        if self._grantable(hold, self._waiting):
            self._grant(hold)
            return hold
        hold.waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(hold)
        try:
            await hold.waiter
        except asyncio.CancelledError:
            self.release(hold)
            raise
        return hold

    def release(self, hold: Hold) -> None:
        """Ends a hold (or, on cancellation, a wait) and grants what it kept back, in order."""
        if hold.granted:
            self._held.discard(hold)
        else:
            self._waiting.remove(hold)
        self._exclusive -= hold.exclusive
        if self._waiting:
            still: deque[Hold] = deque()
            for waiting in self._waiting:
                if self._grantable(waiting, still):
                    self._grant(waiting)
                else:
                    still.append(waiting)
            self._waiting = still

    def _grantable(self, hold: Hold, before: deque[Hold]) -> bool:
        if self._exclusive == 0:
            return True
        return not any(hold.conflicts(other) for other in self._held) and not any(map(hold.conflicts, before))

    def _grant(self, hold: Hold) -> None:
        hold.granted = True
        self._held.add(hold)
        if hold.waiter is not None and not hold.waiter.done():
            hold.waiter.set_result(None)
