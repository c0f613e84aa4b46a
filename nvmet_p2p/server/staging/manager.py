"""Decides where the payload of every namespace rests, and sees to it: the shell around ``plan`` and ``keeper``.

A *pass* goes over all places in the order of the configuration, makes and proves the pools that are wanted (meanwhile
the place is served from host memory), and hands the placements to the target, which changes the controllers' views. It
runs after each change of the configuration, of a back end, of the machine, and when something that failed is due. A
pool that is lost is taken out of all placements at once, without waiting for a pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from nvmet_p2p.clock import Clock
from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.port import PoolPlane
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p import choice as choices
from nvmet_p2p.p2p.choice import Calibration, Choice
from nvmet_p2p.p2p.clients import Refusal
from nvmet_p2p.p2p.distance import distance
from nvmet_p2p.p2p.policy import StagingPolicy
from nvmet_p2p.p2p.sysfs import Proc, Sysfs
from nvmet_p2p.p2p.topology import Topology
from nvmet_p2p.server.staging import plan
from nvmet_p2p.server.staging.keeper import PoolKeeper
from nvmet_p2p.server.staging.plan import Backing, Place, Surveyor, Want
from nvmet_p2p.server.staging.prober import Prober, drives_named
from nvmet_p2p.server.staging.watch import MachineWatch
from nvmet_p2p.state.calibrations import Calibrations, this_boot
from nvmet_p2p.state.journal import Journals
from nvmet_p2p.target.config import BdevConfig, BdevFacts, ListenAddress, TargetConfig
from nvmet_p2p.target.effects import Placement
from nvmet_p2p.target.operations_staging import policies
from nvmet_p2p.target.validate import failed, unsupported
from nvmet_p2p.target.visible import Placements

log = structlog.get_logger()

GATHER_S: Final = 0.05  # changes come in bursts: one pass for all of them
SETTLE_MAX_S: Final = 60.0
START_MAX_S: Final = 20.0  # what is not measured then is served from host memory meanwhile
NO_POOLS: Final = "this data plane stages in host memory alone"
NATIVE: Final = "run with dataplane = native, of this version"


@dataclass(frozen=True, slots=True)
class Decision:
    """Where the payload of a place rests, and why."""

    want: Want
    choice: Choice

    @property
    def degraded(self) -> bool:
        """A pool was asked for by name, or strictly, and is not used."""
        return (self.choice.policy.strict or self.choice.policy.pool is not None) and not self.choice.pools


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the manager needs of the daemon.

    ``model``: the present configuration and the open back ends. ``place`` takes placements over, ``settle`` returns
    when they are in force. ``gone`` is told of a pool that was lost, for the bdevs that lie in it; ``broken`` of a bdev
    whose drive does not hold its own data any more.
    """

    model: Callable[[], tuple[TargetConfig, Mapping[str, BdevFacts]]]
    place: Callable[[Mapping[str, Placements]], None]
    settle: Callable[[], Awaitable[None]]
    gone: Callable[[str], None]
    broken: Callable[[str], None]


class StagingManager:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        plane: PoolPlane | None,
        clock: Clock,
        journals: Journals,
        around: Surroundings,
        read_proc: Callable[[], Proc] = Proc.read,
    ) -> None:
        self._read_proc = read_proc
        self._plane = plane
        self._clock = clock
        self._around = around
        self._default = StagingPolicy.parse(settings.staging).mode
        self._sysfs_root = settings.sysfs_root
        self.keeper: PoolKeeper | None = None
        self._prober: Prober | None = None
        self._changing: set[str] = set()  # drives that SPDK attaches or detaches
        self._calibrations = Calibrations(settings.state_dir, this_boot())
        if plane is not None:
            self._prober = Prober(plane, clock)
            self.keeper = PoolKeeper(plane, self._calibrations, journals, clock, settings.cmb_mib << 20)
        self.decisions: dict[Place, Decision] = {}
        self._topology: Topology | None = None
        self._busy = asyncio.Lock()  # pools are made, proven and dropped one after the other
        self._wanted = asyncio.Event()
        self._measured = False
        self._admitted: dict[Place, Decision] = {}
        self._generation = 0
        self._settled = -1
        self._progress = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._watch = MachineWatch(settings.sysfs_root, self._machine_changed)

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Reads what is known of this boot. The first pass is ``work``'s."""
        await asyncio.to_thread(self._calibrations.load)
        self._watch.start()
        self.wake()

    def stop(self) -> None:
        """No pass begins any more. The pools go with the data plane."""
        self._watch.stop()
        if self._timer is not None:
            self._timer.cancel()

    async def work(self) -> None:
        """Passes, one after the other, for ever."""
        while True:
            await self._wanted.wait()
            await asyncio.sleep(GATHER_S)
            self._wanted.clear()
            await self._pass()

    def wake(self) -> None:
        """Something that decisions depend on has changed."""
        self._generation += 1
        self._wanted.set()

    async def settled(self, limit_s: float = SETTLE_MAX_S) -> bool:
        """Waits until everything up to now has been decided and is in force; False if that takes too long."""
        wanted = self._generation
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._settled < wanted:
                    await self._progress.wait()
                return True
        return False

    def _machine_changed(self) -> None:
        log.debug("staging.machine_changed", note="devices have come or gone; looking again")
        self._topology = None
        self.wake()

    async def topology(self, *, fresh: bool = False, config: TargetConfig | None = None) -> Topology:
        """The machine as it was read last; ``fresh``: as it is now. The drives that ``config`` names are looked at."""
        if self._topology is None or fresh:
            self._topology = await asyncio.to_thread(
                lambda: Topology.read(Sysfs(self._sysfs_root), proc=self._read_proc())
            )
        topology = self._topology
        if self._prober is None:
            return topology
        named = drives_named(config or self._around.model()[0])
        for bdf in self._changing:
            named.pop(bdf, None)
        return await self._prober.complete(topology, named, again=fresh)

    def provider_kind(self, name: str) -> str:
        """What kind of pool a provider's memory is."""
        kind = self.keeper.kinds.get(name) if self.keeper is not None else None
        if kind is not None:
            return kind
        provider = self._topology.providers.get(name) if self._topology is not None else None
        return "p2pmem" if provider is None else provider.kind

    @contextlib.asynccontextmanager
    async def changing_hands(self, bdf: str) -> AsyncIterator[None]:
        """SPDK attaches or detaches a drive inside: its memory is nobody's pool meanwhile. Raises ``OperatorError``."""
        self._changing.add(bdf)
        try:
            if self.keeper is not None and bdf in self.keeper.mapped:
                self.lost(bdf, "its drive is being attached or detached")
                async with self._busy:
                    if bdf in self.keeper.mapped:
                        await self.keeper.drop(bdf)
            yield
        finally:
            self._changing.discard(bdf)
            if self._prober is not None:
                self._prober.forget(bdf)
            self.wake()

    # -- passes ------------------------------------------------------------------------------------------------------

    async def _pass(self) -> None:
        generation = self._generation
        config, facts = self._around.model()
        topology = await self.topology()
        surveyor = Surveyor(topology)
        wants = await asyncio.to_thread(surveyor.wants, config, self._default)
        if self.keeper is not None:
            self._check_providers(topology, config)
        load: Counter[str] = Counter()
        decided: dict[Place, Decision] = {}
        for want in wants:
            choice = await self._decide(surveyor, want, config, facts, load)
            if generation != self._generation:
                return  # the next pass begins at once; what was measured is known to it
            decided[want.place] = Decision(want, choice)
            load.update(choice.pools)
            if self._measured:
                self._measured = False
                self._publish(self.decisions | decided)  # what can be used is, while others are measured
        self._publish(decided)
        await self._around.settle()
        if generation == self._generation:
            await self._drop_unused(config)
            self._settled = generation
            self._progress.set()
            self._progress.clear()
        self._arm()

    def _check_providers(self, topology: Topology, config: TargetConfig) -> None:
        """A pool whose device has left is lost, even if no I/O has noticed; one that is back is tried at once."""
        assert self.keeper is not None
        for name in self.keeper.replaced(topology, config):
            if name in self.keeper.mapped:
                self.lost(name, "its device was replaced, or bound to its driver anew")
            self.keeper.returned(name)
        for name, spec in list(self.keeper.mapped.items()):
            if spec.kind == "emulated" or name in self.keeper.lost:
                continue
            provider = topology.providers.get(name)
            if provider is None or provider.kind != spec.kind:
                self.lost(name, "its device is gone" if provider is None else "its device has another driver now")
            elif provider.kind == "p2pmem" and provider.allocate is None:
                self.lost(name, provider.reason)

    async def _decide(
        self,
        surveyor: Surveyor,
        want: Want,
        config: TargetConfig,
        facts: Mapping[str, BdevFacts],
        load: Mapping[str, int],
    ) -> Choice:
        """The choice for a place, after whatever had to be made and measured for it."""
        if want.policy.mode == "off":
            return choices.choose((), want.policy)
        if want.backing.in_memory:
            return plan.in_memory(want)
        if self.keeper is None:
            return plan.without_pools(want, "no-engine", NO_POOLS, NATIVE)
        topology, backing = surveyor.topology, want.backing
        for _ in range(2 * len(topology.providers) + len(config.emulated_pools) + 2):
            candidates = surveyor.candidates(
                want,
                self.keeper.holdings(config, backing.bdev),
                self.keeper.results(topology, config, backing),
            )
            choice = plan.hopefully(candidates, want, load)
            pool = choice.copy
            if pool is None or self.keeper.is_ready(topology, config, pool, backing):
                return choice
            if backing.bdev not in facts:
                return plan.without_pools(want, "absent", f"its back end {want.bdev!r} is absent", "see the log")
            async with self._busy:
                await self.keeper.prepare(topology, config, pool, backing)
                self._check_drive(backing)
            self._measured = True
        return plan.without_pools(want, "unsteady", "pools come and go", "see the log")

    def _publish(self, decided: dict[Place, Decision]) -> None:
        """Takes decisions over and hands the placements to the target; what is different is logged."""
        before, self.decisions = self.decisions, decided
        for place, decision in decided.items():
            _log_change(place, before.get(place), decision)
        placements: dict[str, dict[tuple[int, ListenAddress], Placement]] = {}
        for place, decision in decided.items():
            choice = decision.choice
            if place.listener is not None and choice.pools:
                placement = Placement(choice.read or "", choice.write or "", choice.copy or "", choice.strict)
                placements.setdefault(place.nqn, {})[place.nsid, place.listener] = placement
        self._around.place(placements)

    async def _drop_unused(self, config: TargetConfig) -> None:
        if self.keeper is None:
            return
        used = {pool for decision in self.decisions.values() for pool in decision.choice.pools}
        used |= {bdev.provider for bdev in config.bdevs.values() if bdev.kind == "cmb"}
        async with self._busy:
            for name in [name for name in self.keeper.mapped if name not in used | self.keeper.pinned]:
                try:
                    await self.keeper.drop(name)
                except OperatorError as error:
                    log.warning("pool.not_dropped", pool=name, reason=error.message)
                else:
                    self._topology = None  # its memory is available again
                    log.info("pool.dropped", pool=name, note="nothing uses it")

    def _arm(self) -> None:
        """Wakes us when something that failed is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        dues = (self.keeper.next_due() if self.keeper else None, self._prober.next_due() if self._prober else None)
        due = min((due for due in dues if due is not None), default=None)
        if due is not None:
            delay = max(0.0, due - self._clock.monotonic()) + GATHER_S
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def _due(self) -> None:
        self._timer = None
        self._topology = None
        self.wake()

    # -- what others tell --------------------------------------------------------------------------------------------

    def lost(self, name: str, why: str) -> None:
        """The data plane says (or sysfs shows) that a pool's memory is gone: nothing is placed in it from now on."""
        if self.keeper is None or name in self.keeper.lost:
            return
        users = [decision for decision in self.decisions.values() if name in decision.choice.pools]
        note = "host memory from now on, also for strict policies" if users else "nothing used it"
        log.error("pool.lost", pool=name, reason=why, places=len(users), note=note)
        self.keeper.lose(name, why)
        self._topology = None
        self._publish(
            {
                place: _without_lost(decision, name, why) if name in decision.choice.pools else decision
                for place, decision in self.decisions.items()
            }
        )
        self._around.gone(name)
        self._arm()
        self.wake()

    def withdrawn(self, name: str, bdev: str) -> None:
        """The data plane says that the drive of a lowest bdev refuses a pool's memory, and that it took it from it."""
        backings = [d.want.backing for d in self.decisions.values() if d.want.backing.bdev == bdev]
        if self.keeper is None or not backings:
            return
        note = "host memory, also for strict policies; tried out again later"
        log.error("pool.withdrawn", pool=name, bdev=bdev, reason="the drive refuses its memory", note=note)
        self.keeper.withdraw(name, backings[0])
        self.wake()

    async def admit(self, old: TargetConfig, new: TargetConfig, facts: Mapping[str, BdevFacts]) -> None:
        """Refuses a change by which a strict policy would come to count that cannot be kept.

        Then ``enforce`` if the change is made, and ``release`` in any case. What counted before is not looked at again:
        it may be degraded, but that is not this change's fault.
        """
        if self.keeper is None and set(new.emulated_pools) - set(old.emulated_pools):
            raise unsupported(f"an emulated pool: {NO_POOLS} ({NATIVE})")
        if not any(staging.strict for _, staging in policies(new)):
            return
        if self.keeper is None:
            if set(_strict(new)) - set(_strict(old)):
                raise unsupported(f"a strict staging policy: {NO_POOLS} ({NATIVE})")
            return
        async with (
            self._busy
        ):  # a pool that is being dropped holds its memory until it is gone; one that is named stays
            named = {staging.policy for _, staging in policies(new) if staging.strict}
            self.keeper.pinned |= named & self.keeper.mapped.keys()
            topology = await self.topology(fresh=True, config=new)
        self._check_providers(topology, new)
        known = dict(policies(old))
        for where, staging in policies(new):
            if staging.strict and known.get(where) != staging:
                self._check_provider(topology, new, where, staging.policy)
        before = _counting(old, self._default)
        surveyor = Surveyor(topology)
        wants = await asyncio.to_thread(surveyor.wants, new, self._default)
        load = Counter(pool for decision in self.decisions.values() for pool in decision.choice.pools)
        for want in wants:
            if not want.policy.strict or before.get(want.place) == (want.policy, want.bdev):
                continue
            choice = await self._decide(surveyor, want, new, facts, load)
            if choice.refused is not None:
                raise self._refusal(surveyor, want, choice)
            load.update(choice.pools)
            self.keeper.pinned |= set(choice.pools)
            self._admitted[want.place] = Decision(want, choice)

    def _check_provider(self, topology: Topology, config: TargetConfig, where: str, policy: str) -> None:
        assert self.keeper is not None
        if policy == "auto" or policy in config.emulated_pools or policy in self.keeper.mapped:
            return
        provider = topology.providers.get(policy)
        if provider is None or not provider.usable:
            reason = "there is no such device that offers peer memory" if provider is None else provider.reason
            remedy = f" ({provider.remedy})" if provider is not None and provider.remedy else ""
            raise failed(errno.ENODEV, f"the strict policy of {where} names {policy}: {reason}{remedy}")

    def _refusal(self, surveyor: Surveyor, want: Want, choice: Choice) -> OperatorError:
        refused = choice.refused
        assert refused is not None
        number, pool = errno.EINVAL, want.policy.pool
        if want.backing.in_memory or (want.backing.refusal is not None and pool in surveyor.topology.providers):
            number = errno.ENOTSUP
        elif pool is None:
            number = errno.ENODEV
        elif not all(distance(surveyor.topology, pool, client.bdf).ok for client in want.backing.clients):
            number = errno.EINVAL if pool not in surveyor.topology.providers else errno.EHOSTUNREACH
        remedy = f" ({refused.remedy})" if refused.remedy else ""
        return failed(number, f"staging {want.policy} of {want.place}: {refused.reason}{remedy}")

    def enforce(self) -> None:
        """The change is about to take hold: a strict place never rests in host memory, not even for a moment."""
        if self._admitted:
            self.wake()
            self._publish(self.decisions | self._admitted)

    def release(self) -> None:
        """The change is in force, or is not made."""
        self._admitted.clear()
        if self.keeper is not None and self.keeper.pinned:
            self.keeper.pinned.clear()
            self.wake()

    async def provide(self, bdev: BdevConfig, config: TargetConfig) -> None:
        """Makes the pool that a cmb bdev lies in. Raises ``OperatorError``."""
        if self.keeper is None:
            return  # the data plane refuses the bdev itself
        async with self._busy:
            await self.keeper.ensure(await self.topology(config=config), config, bdev.provider)
            self.keeper.pinned.add(bdev.provider)

    @contextlib.asynccontextmanager
    async def calm(self) -> AsyncIterator[None]:
        """Nothing is being measured inside."""
        async with self._busy:
            yield

    # -- on demand ---------------------------------------------------------------------------------------------------

    async def calibrate(self, pool: str | None, bdev: str | None) -> list[tuple[str, str, Calibration]]:
        """Measures again: (pool, bdev, result) of every pair in use, or of those that are asked for."""
        if self.keeper is None:
            raise unsupported(f"p2p_calibrate: {NO_POOLS} ({NATIVE})")
        config, facts = self._around.model()
        topology = await self.topology(fresh=True)
        self._check_providers(topology, config)
        surveyor = Surveyor(topology)
        wants = await asyncio.to_thread(surveyor.wants, config, self._default)
        backings = {want.backing.bdev: want.backing for want in wants if not want.backing.in_memory}
        self.keeper.try_again()
        found = []
        for name, backing in self._pairs(config, backings, pool, bdev):
            async with self._busy:
                if backing.bdev not in facts:
                    raise failed(errno.ENODEV, f"bdev {backing.bdev!r} is absent")
                await self.keeper.ensure(topology, config, name)
                try:
                    result = await self.keeper.prove(topology, config, name, backing, again=True)
                finally:
                    self._check_drive(backing)
            found.append((name, backing.bdev, result))
        self.wake()
        return found

    def _check_drive(self, backing: Backing) -> None:
        """After a probe: the drive must hold its own data again."""
        assert self.keeper is not None
        if backing.bdev in self.keeper.broken:
            self.keeper.broken.discard(backing.bdev)
            self._around.broken(backing.bdev)

    def _pairs(
        self, config: TargetConfig, backings: dict[str, Backing], pool: str | None, bdev: str | None
    ) -> list[tuple[str, Backing]]:
        assert self.keeper is not None
        if bdev is not None:
            lowest = plan.lowest(config, bdev).name
            if lowest not in backings:
                raise failed(errno.ENODEV, f"bdev {bdev!r} serves no namespace from a file or device")
            backings = {lowest: backings[lowest]}
        if pool is not None and bdev is not None:
            return [(pool, backing) for backing in backings.values()]
        pairs = dict.fromkeys(
            (name, decision.want.backing.bdev)
            for decision in self.decisions.values()
            for name in decision.choice.pools
            if decision.want.backing.bdev in backings and pool in (None, name)
        )
        if pool is not None and not pairs:
            return [(pool, backing) for backing in backings.values()]
        return [(name, backings[of]) for name, of in pairs]


def _without_lost(decision: Decision, name: str, why: str) -> Decision:
    policy, reason = decision.choice.policy, f"pool {name} was lost: {why}"
    refused = Refusal("lost", reason, "it is used again when it returns") if policy.strict else None
    choice = Choice(policy, reason=f"host memory: {reason}", rejected={name: why}, refused=refused)
    return replace(decision, choice=choice)


def _strict(config: TargetConfig) -> list[tuple[str, str]]:
    return [(where, staging.policy) for where, staging in policies(config) if staging.strict]


def _counting(config: TargetConfig, default: str) -> dict[Place, tuple[object, str]]:
    return {place: (found.policy, namespace.bdev_name) for place, namespace, found, _ in plan.places(config, default)}


def _log_change(place: Place, before: Decision | None, now: Decision) -> None:
    """One line for each change; nothing about host memory where nobody has asked for more than "auto"."""
    was, choice = before.choice if before is not None else None, now.choice
    if was is None:
        silent = not choice.pools and not now.degraded
    else:
        same = (was.read, was.write, was.copy) == (choice.read, choice.write, choice.copy)
        silent = same and (not now.degraded or was.reason == choice.reason)
    if silent:
        return
    facts = {
        "nqn": place.nqn,
        "nsid": place.nsid,
        "listener": f"{place.listener.traddr}:{place.listener.trsvcid}" if place.listener is not None else "",
        "policy": str(choice.policy),
        "read": choice.read or "host",
        "write": choice.write or "host",
        "copy": choice.copy or "host",
        "reason": choice.reason,
    }
    if now.degraded:
        log.warning("staging.degraded", **facts)
    else:
        log.info("staging.changed", **facts)
