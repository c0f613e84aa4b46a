"""Commands received by each I/O queue, counted by the data plane in memory that both processes share.

So that the traffic based keep alive (TBKAS) and an idle check cost no call. A slot belongs to one queue at a time and
is never set back: a queue's count is the difference to what was there when it came.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Final

from nvmet_p2p.target.effects import ControllerKey

SLOTS: Final = 65536
BYTES: Final = SLOTS * 8


@dataclass(slots=True)
class QueueSlot:
    """An I/O queue that the helper has, or is about to have."""

    key: ControllerKey
    qid: int
    peer: str
    slot: int
    base: int  # of the slot's count
    adopted: bool = False


class Activity:
    """The shared counters. ``fd`` is a memfd that a helper which we start inherits."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("nvmet-p2p activity", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, BYTES)
        self._map = mmap.mmap(self.fd, BYTES)
        self._counters = memoryview(self._map).cast("Q")
        self._free = list(range(SLOTS - 1, -1, -1))

    def use(self, fd: int) -> None:
        """Takes the memory of a data plane that was not started by us. No slot is in use then."""
        taken = mmap.mmap(fd, BYTES)
        self._release()
        self._map = taken
        self._counters = memoryview(taken).cast("Q")

    def take(self) -> tuple[int, int] | None:
        """A free slot and what it counts now, or ``None`` when every slot is taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        return slot, self._counters[slot]

    def give_back(self, slot: int) -> None:
        """The queue of the slot is closed."""
        self._free.append(slot)

    def count(self, slot: int) -> int:
        """What the slot counts now."""
        return self._counters[slot]

    def _release(self) -> None:
        self._counters.release()
        self._map.close()

    def close(self) -> None:
        """Ends our use of the memory."""
        self._release()
        os.close(self.fd)
