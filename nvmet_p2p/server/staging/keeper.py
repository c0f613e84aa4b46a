"""The pools of the data plane and who may use them: made, measured, allowed, given back. Decides nothing by itself."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from nvmet_p2p import limits
from nvmet_p2p.clock import Clock
from nvmet_p2p.dataplane.port import PoolKind, PoolPlane, PoolSpec
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.choice import Calibration
from nvmet_p2p.p2p.topology import Topology
from nvmet_p2p.server.staging.plan import Backing, Holdings
from nvmet_p2p.server.staging.watch import inode
from nvmet_p2p.state.calibrations import Calibrations
from nvmet_p2p.state.journal import Journals
from nvmet_p2p.target.config import TargetConfig

log = structlog.get_logger()

RETRY_FIRST_S: Final = 2.0
RETRY_MAX_S: Final = 64.0
WITHDRAWN_MAX_S: Final = 3600.0
STEADY_S: Final = 60.0  # a pool that has lived so long is taken again soon after it was lost


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that did not work: why, when it is tried again, and the pause that led there."""

    reason: str
    due: float
    pause: float


class PoolKeeper:
    """See the module. ``cmb_bytes_max``: how much of a provider's memory is taken at most, 0 for all there is."""

    def __init__(
        self, plane: PoolPlane, calibrations: Calibrations, journals: Journals, clock: Clock, cmb_bytes_max: int = 0
    ) -> None:
        self._plane = plane
        self.calibrations = calibrations
        self._journals = journals
        self._clock = clock
        self._cmb_bytes_max = cmb_bytes_max
        self.mapped: dict[str, PoolSpec] = {}
        self.lost: dict[str, str] = {}  # why; until the pool is there again
        self.pinned: set[str] = set()  # wanted by a change that is not in force yet
        self.broken: set[str] = set()  # bdevs on whose drive a probe could not put back what it had overwritten
        self.kinds: dict[str, PoolKind] = {}  # of pools that exist, or existed
        self._since: dict[str, float] = {}
        self._identities: dict[str, str] = {}  # of pools that exist or were lost
        self._failures: dict[tuple[str, str], Failure] = {}  # by pool and lowest bdev; "": the pool itself
        self._withdrawals: dict[tuple[str, str], int] = {}  # how often

    # -- what a decision depends on ----------------------------------------------------------------------------------

    def holdings(self, config: TargetConfig, bdev: str) -> Holdings:
        """For a decision about a lowest bdev. What is due to be tried again counts as not having failed."""
        now = self._clock.monotonic()
        waiting = {key: failure for key, failure in self._failures.items() if failure.due > now}
        lost = {name: why for name, why in self.lost.items() if (name, "") in waiting}
        failed = {name: failure.reason for (name, of), failure in waiting.items() if of in ("", bdev)}
        return Holdings(
            mapped={name: spec.size for name, spec in self.mapped.items() if (name, bdev) not in waiting},
            lost=lost,
            failed=failed,
            emulated={name: pool.size for name, pool in config.emulated_pools.items()},
        )

    def results(self, topology: Topology, config: TargetConfig, backing: Backing) -> dict[str, Calibration]:
        """What is known of every pool with these drives."""
        names = [*topology.providers, *config.emulated_pools]
        found = ((name, self._result(topology, config, name, backing)) for name in names)
        return {name: result for name, result in found if result is not None}

    def _result(self, topology: Topology, config: TargetConfig, name: str, backing: Backing) -> Calibration | None:
        return self.calibrations.get(identity(topology, config, name), backing.identity)

    def is_ready(self, topology: Topology, config: TargetConfig, name: str, backing: Backing) -> bool:
        """The pool is there, and the bdev may use it."""
        if name not in self.mapped or name in self.lost or not self._plane.is_allowed(name, backing.bdev):
            return False
        result = self._result(topology, config, name, backing)
        return result is not None and result.verified

    def next_due(self) -> float | None:
        """When something that failed is to be tried again."""
        now = self._clock.monotonic()
        return min((failure.due for failure in self._failures.values() if failure.due > now), default=None)

    # -- changes -----------------------------------------------------------------------------------------------------

    async def prepare(self, topology: Topology, config: TargetConfig, name: str, backing: Backing) -> None:
        """Makes the pool and proves it for the drives of a bdev. What fails is noted, not raised."""
        try:
            await self.ensure(topology, config, name)
        except OperatorError:
            return  # noted there
        try:
            await self.prove(topology, config, name, backing)
        except OperatorError as error:
            self._note(name, backing.bdev, error.message)
            log.warning("staging.not_calibrated", pool=name, bdev=backing.bdev, reason=error.message)

    async def ensure(self, topology: Topology, config: TargetConfig, name: str) -> None:
        """Makes the pool if it is not there; one that was lost is made anew. Raises ``OperatorError``."""
        if name in self.mapped and name not in self.lost:
            return
        try:
            if name in self.mapped:
                await self.drop(name)
            incarnation = identity(topology, config, name)  # before: a newer one is seen to be one
            spec = await self._create(topology, config, name)
        except OperatorError as error:
            self._note(name, "", error.message)
            log.warning("pool.not_created", pool=name, reason=error.message)
            raise
        self.mapped[name] = spec
        self.kinds[name] = spec.kind
        self._identities[name] = incarnation
        back = self.lost.pop(name, None) is not None
        self._since[name] = self._clock.monotonic()
        note = "EMULATED: host memory, no peer-to-peer" if spec.kind == "emulated" else ""
        log.info("pool.created", pool=name, kind=spec.kind, bytes=spec.size, back=back, note=note)

    async def _create(self, topology: Topology, config: TargetConfig, name: str) -> PoolSpec:
        emulated = config.emulated_pools.get(name)
        if emulated is not None:
            size = await self._plane.create(PoolSpec(name, "emulated", emulated.size))
            return PoolSpec(name, "emulated", size)
        provider = topology.providers.get(name)
        if provider is None:
            raise OperatorError(-errno.ENODEV, f"there is no device {name} that offers peer memory")
        if not provider.usable:
            remedy = f" ({provider.remedy})" if provider.remedy else ""
            raise OperatorError(-errno.ENODEV, f"{name}: {provider.reason}{remedy}")
        if provider.kind == "spdk_cmb":
            most = self._cmb_bytes_max if self._cmb_bytes_max < provider.size else 0  # 0: all of it
            return PoolSpec(name, "spdk_cmb", await self._plane.create(PoolSpec(name, "spdk_cmb", most)))
        assert provider.allocate is not None
        free = topology.sysfs.number("bus/pci/devices", name, "p2pmem/available") or 0  # now, not when it was looked at
        if free < limits.POOL_BYTES_MIN:
            text = f"{name}: {free} of its {provider.size} bytes are left, others have the rest"
            raise OperatorError(-errno.ENOMEM, text)
        size = min(free, self._cmb_bytes_max or free) & -limits.POOL_GRANULE_BYTES
        while True:
            try:
                given = await self._plane.create(PoolSpec(name, "p2pmem", size, provider.allocate))
            except OperatorError as error:
                # The kernel gives one piece or none: what is free may lie in several.
                if error.code != -errno.ENOMEM or size // 2 < limits.POOL_BYTES_MIN:
                    raise
                size = size // 2 & -limits.POOL_GRANULE_BYTES
            else:
                return PoolSpec(name, "p2pmem", given, provider.allocate)

    async def prove(
        self, topology: Topology, config: TargetConfig, name: str, backing: Backing, *, again: bool = False
    ) -> Calibration:
        """Measures and verifies the pool with the drives of a bdev, unless that is known; allows it if all was well."""
        pool, client = self._identities.get(name) or identity(topology, config, name), backing.identity
        if again:
            self.calibrations.forget(pool, client)
        result = self.calibrations.get(pool, client)
        if result is None:
            result = await self._measure(name, backing)
            if name not in self.lost:
                self.calibrations.put(pool, client, result)
        self._failures.pop((name, backing.bdev), None)
        await self._plane.allow(name, backing.bdev, result.verified)
        return result

    async def _measure(self, name: str, backing: Backing) -> Calibration:
        with self._journals.reserved(backing.filename, bdev=backing.bdev) as journal:
            try:
                result = await self._plane.calibrate(name, backing.bdev, str(journal))
            except OperatorError as error:
                # A data plane that has died meanwhile is another matter: the next one puts back what is left.
                if error.code == -errno.EIO and journal.exists():
                    self.broken.add(backing.bdev)
                raise
        speeds = {key: round(getattr(result, key)) for key in result.__dataclass_fields__ if key.endswith("_mib_s")}
        if result.verified:
            log.info("pool.calibrated", pool=name, bdev=backing.bdev, **speeds)
        else:
            log.error("pool.refused", pool=name, bdev=backing.bdev, reason=result.reason, note="host memory instead")
        return result

    async def drop(self, name: str) -> None:
        """Gives the pool back; nobody uses it any more."""
        await self._plane.delete(name)
        self.mapped.pop(name, None)
        self._since.pop(name, None)

    def lose(self, name: str, why: str) -> None:
        """Its memory is gone. It is made again after a pause, which grows if it does not last."""
        lived = self._clock.monotonic() - self._since.get(name, 0.0)
        if lived >= STEADY_S:
            self._failures.pop((name, ""), None)
        self.lost[name] = why
        if name in self._identities:
            self.calibrations.forget(self._identities[name])
        if name not in self._plane.names():
            self.mapped.pop(name, None)  # a helper that was restarted did not get it any more
        self._note(name, "", f"it was lost: {why}")

    def withdraw(self, name: str, backing: Backing) -> None:
        """The drive refuses the memory, whatever was found when it was tried out. It is tried out again after a pause.

        The pause grows each time that happens: what works in a probe and not with hosts' I/O must not go on for ever.
        """
        if name in self._identities:
            self.calibrations.forget(self._identities[name], backing.identity)
        times = self._withdrawals[name, backing.bdev] = self._withdrawals.get((name, backing.bdev), 0) + 1
        pause = min(RETRY_FIRST_S * 4.0 ** min(times, 16), WITHDRAWN_MAX_S)  # 4.0 ** 512 is too large for a float
        reason = f"the drive refused its memory again and again, for the {times}. time"
        self._failures[name, backing.bdev] = Failure(reason, self._clock.monotonic() + pause, pause)

    def replaced(self, topology: Topology, config: TargetConfig) -> list[str]:
        """The pools that exist, or existed, of devices which are another incarnation of themselves now."""
        return [
            name
            for name, was in self._identities.items()
            if name in topology.providers
            and (topology.providers[name].allocate is not None or topology.providers[name].kind == "spdk_cmb")
            and identity(topology, config, name) != was
        ]

    def returned(self, name: str) -> None:
        """What failed with an earlier incarnation says nothing of this one."""
        self._identities.pop(name, None)
        self._failures = {key: failure for key, failure in self._failures.items() if key[0] != name}
        self._withdrawals = {key: times for key, times in self._withdrawals.items() if key[0] != name}

    def try_again(self) -> None:
        """Somebody asks: whatever failed is tried at once."""
        self._failures.clear()

    def kind(self, name: str) -> PoolKind | None:
        """Of a pool that exists."""
        spec = self.mapped.get(name)
        return None if spec is None else spec.kind

    def failure(self, name: str, bdev: str = "") -> str:
        """Why a pool could not be had or proven, if so."""
        found = self._failures.get((name, bdev))
        return "" if found is None else found.reason

    def _note(self, name: str, bdev: str, reason: str) -> None:
        before = self._failures.get((name, bdev))
        pause = RETRY_FIRST_S if before is None else min(before.pause * 2, RETRY_MAX_S)
        self._failures[name, bdev] = Failure(reason, self._clock.monotonic() + pause, pause)


def identity(topology: Topology, config: TargetConfig, name: str) -> str:
    """Names this incarnation of a pool's memory since the boot."""
    emulated: Mapping[str, object] = config.emulated_pools
    if name in emulated:
        return f"{name} emulated {config.emulated_pools[name].size}"
    device = Path(topology.sysfs.path("bus/pci/devices", name))
    provider = topology.providers.get(name)
    if provider is not None and provider.kind == "spdk_cmb":
        return f"{name} {inode(device)} on vfio"
    return f"{name} {inode(device)}.{inode(device / 'p2pmem/allocate')}"
