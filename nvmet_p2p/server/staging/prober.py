"""Has the data plane look at drives on vfio-pci for memory: only at those that somebody has named.

Looking opens the device, which resets it and would be in the way of a virtual machine that it is meant for.
"""

from __future__ import annotations

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


def drives_named(config: TargetConfig) -> set[str]:
    """PCI addresses that policies, cmb bdevs and attached controllers name."""
    names = {staging.policy for _, staging in policies(config)}
    names |= {bdev.provider for bdev in config.bdevs.values() if bdev.kind == "cmb"}
    names |= {controller.traddr for controller in config.nvme_controllers.values() if controller.trtype == "PCIe"}
    return {bdf for name in names if (bdf := normal_bdf(name)) is not None}


@dataclass(frozen=True, slots=True)
class _Known:
    """``incarnation``: what it was then; ``due``: when it is looked at again, for a refusal."""

    incarnation: tuple[int, str]
    found: Probed
    due: float


class Prober:
    """See the module."""

    def __init__(self, plane: PoolPlane, clock: Clock) -> None:
        self._plane = plane
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def forget(self, bdf: str) -> None:
        """It changes hands."""
        self._known.pop(bdf, None)

    async def complete(self, topology: Topology, named: set[str], *, again: bool = False) -> Topology:
        """The topology with what these drives have. ``again``: also of those that were refused a moment ago."""
        probes: dict[str, Probed] = {}
        for bdf in sorted(named):
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
                found = await self._probe(bdf)
                if known is None or known.found != found:
                    _log(bdf, found)
                known = self._known[bdf] = _Known(incarnation, found, now + REFUSED_S)
            probes[bdf] = known.found
        return with_probes(topology, probes)

    async def _probe(self, bdf: str) -> Probed:
        try:
            return await self._plane.probe(bdf)
        except OperatorError as error:
            return error.message


def _log(bdf: str, found: Probed) -> None:
    if isinstance(found, VfioMemory):
        log.info("provider.found", provider=bdf, region=found.region, bytes=found.size, via=found.via)
    else:
        log.info("provider.without_memory", provider=bdf, reason=found)
