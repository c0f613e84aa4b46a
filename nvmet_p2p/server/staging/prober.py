"""Has the data plane look at drives on vfio-pci for memory: only at those that somebody has named.

Looking opens the device, which resets it and would be in the way of a virtual machine that it is meant for.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from nvmet_p2p.clock import Clock
from nvmet_p2p.dataplane.port import PoolPlane
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.sysfs import normal_bdf
from nvmet_p2p.p2p.topology import Topology
from nvmet_p2p.p2p.vfio import Probed, VfioMemory, is_vfio, with_probes
from nvmet_p2p.server.staging.watch import inode
from nvmet_p2p.target.config import TargetConfig
from nvmet_p2p.target.operations_staging import policies

log = structlog.get_logger()

REFUSED_S: Final = 10.0  # a refusal is believed for so long, as the drive may have been in other hands
ABSENT_S: Final = 2.0  # and that a controller is not attached


def drives_named(config: TargetConfig) -> dict[str, bool]:
    """PCI addresses that policies, cmb bdevs and controllers name. True: it is a controller, SPDK is to have it."""
    names = {staging.policy for _, staging in policies(config)}
    names |= {bdev.provider for bdev in config.bdevs.values() if bdev.kind == "cmb"}
    controllers = {found.traddr for found in config.nvme_controllers.values() if found.trtype == "PCIe"}
    named = {bdf for name in names | controllers if (bdf := normal_bdf(name)) is not None}
    return {bdf: bdf in controllers for bdf in sorted(named)}


@dataclass(frozen=True, slots=True)
class _Known:
    """``incarnation``: what it was then; ``due``: when it is looked at again, for a refusal; ``absent``: it is a
    controller that is not attached."""

    incarnation: tuple[int, str]
    found: Probed
    due: float
    absent: bool


class Prober:
    """See the module."""

    def __init__(self, plane: PoolPlane, clock: Clock) -> None:
        self._plane = plane
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def forget(self, bdf: str) -> None:
        """It changes hands."""
        self._known.pop(bdf, None)

    def next_due(self) -> float | None:
        """When a controller that was not attached is looked at again."""
        return min((known.due for known in self._known.values() if known.absent), default=None)

    async def complete(self, topology: Topology, named: Mapping[str, bool], *, again: bool = False) -> Topology:
        """The topology with what these drives have (see ``drives_named``).

        ``again``: also of those that were refused a moment ago.
        """
        probes: dict[str, Probed] = {}
        for bdf in self._known.keys() - named.keys():
            self._known.pop(bdf)
        for bdf, attached in named.items():
            device = topology.device(bdf)
            if device is None or not device.is_nvme or not is_vfio(device.driver):
                self._known.pop(bdf, None)
                continue
            incarnation = (inode(Path(topology.sysfs.path("bus/pci/devices", bdf))), device.driver or "")
            known = self._known.get(bdf)
            now = self._clock.monotonic()
            fresh = known is not None and known.incarnation == incarnation
            if known is not None and isinstance(known.found, str) and (again or now >= known.due):
                fresh = False
            if known is None or not fresh:
                found, absent = await self._probe(bdf, attached)
                if known is None or known.found != found:
                    _log(bdf, found)
                known = _Known(incarnation, found, now + (ABSENT_S if absent else REFUSED_S), absent)
                self._known[bdf] = known
            probes[bdf] = known.found
        return with_probes(topology, probes)

    async def _probe(self, bdf: str, attached: bool) -> tuple[Probed, bool]:
        try:
            return await self._plane.probe(bdf, attached=attached), False
        except OperatorError as error:
            return error.message, error.code == -errno.ENOTCONN and attached


def _log(bdf: str, found: Probed) -> None:
    if isinstance(found, VfioMemory):
        log.info("provider.found", provider=bdf, region=found.region, bytes=found.size, via=found.via)
    else:
        log.info("provider.without_memory", provider=bdf, reason=found)
