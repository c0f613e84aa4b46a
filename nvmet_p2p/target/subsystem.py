"""The run-time side of a subsystem: its controllers, their identifiers, and the write protection of its namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nvmet_p2p.target.config import BdevFacts, ListenAddress, SubsystemConfig
from nvmet_p2p.target.visible import Comparison, Placements, Sight, Visible

if TYPE_CHECKING:
    from nvmet_p2p.target.controller import Controller


class Subsystem:
    """``config`` is replaced whenever the configuration changes; the rest lives as long as the subsystem."""

    def __init__(self, config: SubsystemConfig) -> None:
        self.config = config
        self.controllers: dict[int, Controller] = {}  # by CNTLID
        self._protection: dict[int, bool] = {}  # NSID -> what a host has set and the configuration does not say yet
        self._next_cntlid = config.min_cntlid
        self._sight = Sight(config)

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

    @property
    def bdev_names(self) -> frozenset[str]:
        """The back ends of the namespaces."""
        return self._sight.bdev_names

    def visible(self, hostnqn: str, listener: ListenAddress, bdevs: Mapping[str, BdevFacts]) -> Visible:
        """What a controller of this host, through this listener, sees now."""
        return self._sight.of(hostnqn, listener, bdevs, self._protection)

    def place(self, placements: Placements) -> bool:
        """Where payload rests from now on; False if that is where it rested before. Then ``refresh``."""
        if self._sight.placements == placements:
            return False
        self._sight.placements = placements
        return True

    def refresh(self) -> None:
        """Configuration, back end, write protection or placement have changed: every controller takes it over."""
        self._sight.forget()
        comparison = Comparison()
        for controller in list(self.controllers.values()):
            controller.refresh(comparison)

    def is_protected(self, nsid: int) -> bool:
        """Has a host write protected the namespace (feature 84h)."""
        return self._protection.get(nsid, self.config.namespaces[nsid].write_protected)

    def protect(self, nsid: int, protected: bool) -> None:
        """Feature 84h was set. The configuration is to follow; until then this holds."""
        self._protection[nsid] = protected

    def withdraw_protection(self, nsid: int) -> None:
        """What a host has set could not be made durable."""
        self._protection.pop(nsid, None)

    def replace_config(self, config: SubsystemConfig) -> None:
        """Takes over a new configuration; a namespace that was removed, or is another one now, starts afresh."""
        for nsid, protected in list(self._protection.items()):
            old, new = self.config.namespaces.get(nsid), config.namespaces.get(nsid)
            same = old is not None and new is not None and (old.bdev_name, old.uuid) == (new.bdev_name, new.uuid)
            if not same or (new is not None and new.write_protected == protected):
                del self._protection[nsid]
        self.config = config
        self._sight.replace_config(config)
