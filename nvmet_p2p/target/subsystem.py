"""The run-time side of a subsystem: its controllers, their identifiers, and the write protection of its namespaces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nvmet_p2p.target.config import SubsystemConfig
from nvmet_p2p.wire.spec import WriteProtectState

if TYPE_CHECKING:
    from nvmet_p2p.target.controller import Controller


class Subsystem:
    """``config`` is replaced whenever the configuration changes; the rest lives as long as the subsystem."""

    def __init__(self, config: SubsystemConfig) -> None:
        self.config = config
        self.controllers: dict[int, Controller] = {}  # by CNTLID
        self.protection: dict[int, int] = {}  # NSID -> WriteProtectState, where it is not NONE
        self._next_cntlid = config.min_cntlid

    @property
    def nqn(self) -> str:
        """NQN of the subsystem."""
        return self.config.nqn

    def allocate_cntlid(self) -> int | None:
        """The next free CNTLID, or ``None``.

        Identifiers go round, so that one is not soon used again: a host that still talks to a controller that has
        ended cannot reach another host's.
        """
        low, high = self.config.min_cntlid, self.config.max_cntlid
        start = self._next_cntlid if low <= self._next_cntlid <= high else low
        span = high - low + 1
        for step in range(min(span, len(self.controllers) + 1)):
            cntlid = low + (start - low + step) % span
            if cntlid not in self.controllers:
                self._next_cntlid = cntlid + 1
                return cntlid
        return None

    def is_protected(self, nsid: int) -> bool:
        """Has a host write protected the namespace."""
        return nsid in self.protection

    def set_protection(self, nsid: int, state: int) -> None:
        """Feature 84h."""
        if state == WriteProtectState.NONE:
            self.protection.pop(nsid, None)
        else:
            self.protection[nsid] = state

    def replace_config(self, config: SubsystemConfig) -> None:
        """A namespace that was removed, or is another one now, starts without protection."""
        for nsid in list(self.protection):
            old, new = self.config.namespaces.get(nsid), config.namespaces.get(nsid)
            if old is None or new is None or (old.bdev_name, old.uuid) != (new.bdev_name, new.uuid):
                del self.protection[nsid]
        self.config = config
