"""The manager of staging on a made machine, over a data plane that only remembers what it was told."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.port import PoolPlane, PoolSpec, PoolState, StagingStat
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.choice import Calibration
from nvmet_p2p.p2p.vfio import VfioMemory
from nvmet_p2p.server.staging.manager import Decision, StagingManager, Surroundings
from nvmet_p2p.server.staging.plan import Place
from nvmet_p2p.state.journal import Journals
from nvmet_p2p.target.config import BdevFacts, ListenAddress, TargetConfig
from nvmet_p2p.target.effects import Placement
from nvmet_p2p.target.operations_bdev import OPERATIONS, with_uuid
from nvmet_p2p.target.request_types import decode
from nvmet_p2p.target.visible import Placements
from tests.unit.p2p.machines import MIB, Machine

NQN = "nqn.2026-11.com.example:one"
ADDRESS = ListenAddress(trtype="TCP", adrfam="IPv4", traddr="192.0.2.1", trsvcid="4420")
FAST = Calibration(
    verified=True,
    cpu_write_mib_s=900,
    cpu_read_mib_s=900,
    host_write_mib_s=900,
    host_read_mib_s=900,
    drive_to_pool_mib_s=900,
    drive_to_host_mib_s=900,
)


class FakePools:
    """Implements ``PoolPlane``. ``results`` by (pool, bdev), FAST otherwise; ``room``: bytes that a mapping gives."""

    def __init__(self) -> None:
        self.specs: dict[str, PoolSpec] = {}
        self.allowed: set[tuple[str, str]] = set()
        self.log: list[str] = []
        self.results: dict[tuple[str, str], Calibration | OperatorError] = {}
        self.room: dict[str, int] = {}
        self.refuse_create: dict[str, OperatorError] = {}
        self.stats: dict[str, StagingStat] = {}
        self.before_mapped: Callable[[], None] = lambda: None
        self.drives: dict[str, VfioMemory] = {}
        self.absent: set[str] = set()  # controllers
        self.gate = asyncio.Event()
        self.gate.set()

    async def create(self, spec: PoolSpec) -> int:
        self.log.append(f"create {spec.name} {spec.size}")
        if spec.name in self.refuse_create:
            raise self.refuse_create[spec.name]
        if spec.size > self.room.get(spec.name, spec.size):
            raise OperatorError(-errno.ENOMEM, "Cannot allocate memory")
        assert spec.name not in self.specs
        self.before_mapped()
        self.specs[spec.name] = spec
        return spec.size or self.room[spec.name]

    async def delete(self, name: str) -> None:
        self.log.append(f"delete {name}")
        del self.specs[name]
        self.allowed = {pair for pair in self.allowed if pair[0] != name}

    def names(self) -> frozenset[str]:
        return frozenset(self.specs)

    async def calibrate(self, name: str, bdev: str | None, journal: str) -> Calibration:
        assert name in self.specs
        assert bdev is not None
        assert Path(journal).parent.is_dir()
        self.log.append(f"calibrate {name} {bdev}")
        await self.gate.wait()
        result = self.results.get((name, bdev), FAST)
        if isinstance(result, OperatorError):
            raise result
        return result

    async def probe(self, bdf: str, *, attached: bool) -> VfioMemory:
        self.log.append(f"probe {bdf}")
        if attached and bdf in self.absent:
            raise OperatorError(-errno.ENOTCONN, "its controller is not attached now")
        found = self.drives.get(bdf)
        if found is None:
            raise OperatorError(-errno.ENOENT, "it has no Controller Memory Buffer")
        return found

    async def allow(self, name: str, bdev: str, allowed: bool) -> None:
        self.log.append(f"{'allow' if allowed else 'forbid'} {name} {bdev}")
        assert name in self.specs
        if allowed:
            self.allowed.add((name, bdev))
        else:
            self.allowed.discard((name, bdev))

    def is_allowed(self, name: str, bdev: str) -> bool:
        return (name, bdev) in self.allowed

    async def states(self) -> list[PoolState]:
        return [PoolState(spec.name, spec.kind, spec.size, free=spec.size) for spec in self.specs.values()]

    def stat(self, bdev: str) -> StagingStat | None:
        return self.stats.get(bdev)

    def told(self, word: str) -> list[str]:
        """What was told with that word, without it."""
        return [line.partition(" ")[2] for line in self.log if line.startswith(word)]


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class Rig:
    """A manager, its surroundings, and a configuration that is changed call by call."""

    def __init__(self, machine: Machine, folder: Path, *, pools: FakePools | None = None, **settings: Any) -> None:
        self.machine = machine
        self.folder = folder
        self.config = TargetConfig()
        self.facts: dict[str, BdevFacts] = {}
        self.pools = pools
        self.clock = Clock()
        self.placed: Mapping[str, Placements] = {}
        self.placements_given: list[Mapping[str, Placements]] = []
        self.gone: list[str] = []
        self.broken: list[str] = []
        self._uuids = 0
        self.journals = Journals(folder / "state")
        self.manager = StagingManager(
            Settings(
                rpc_socket=folder / "rpc", state_dir=folder / "state", sysfs_root=machine.root.resolve(), **settings
            ),
            pools if pools is None else _plane(pools),
            self.clock,
            self.journals,
            Surroundings(
                model=lambda: (self.config, self.facts),
                place=self._place,
                settle=self._settle,
                gone=self.gone.append,
                broken=self.broken.append,
            ),
            lambda: machine.proc,
        )

    def _place(self, placements: Mapping[str, Placements]) -> None:
        self.placed = placements
        self.placements_given.append(placements)

    async def _settle(self) -> None:
        if self.pools is not None:
            for placements in self.placed.values():
                for placement in placements.values():
                    for pool in filter(None, (placement.read, placement.write, placement.copy)):
                        assert pool in self.pools.specs, "a view names a pool that is not there"

    # -- the configuration

    def then(self, method: str, **params: Any) -> TargetConfig:
        """The configuration after a call; nothing has changed yet."""
        self._uuids += 1
        operation = OPERATIONS[method]
        request = with_uuid(decode(operation.request, params), lambda: f"00000000-0000-4000-8000-{self._uuids:012x}")
        return operation.apply(self.config, request).config

    def do(self, method: str, **params: Any) -> None:
        self.config = self.then(method, **params)
        self.manager.wake()

    async def commit(self, method: str, **params: Any) -> None:
        """As the daemon does it: admitted, or refused and without effect."""
        new = self.then(method, **params)
        try:
            await self.manager.admit(self.config, new, self.facts)
            self.config = new
            self.manager.enforce()
            self.manager.wake()
        finally:
            self.manager.release()

    def drive(self, name: str, disk: str, *, nsid: int = 0, nqn: str = NQN, opened: bool = True) -> None:
        """A bdev on a file that lies on that disk of the machine, and a namespace on it."""
        file = self.folder / f"{name}.img"
        file.write_bytes(bytes(MIB))
        number = os.stat(file).st_dev
        self.number(number, disk)
        self.do("bdev_uring_create", name=name, filename=str(file))
        if opened:
            self.facts[name] = BdevFacts(name=name, block_size=512, num_blocks=2048)
        self.do("nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": name, "nsid": nsid})

    def number(self, number: int, disk: str) -> None:
        """The file system of the tests' files is on that disk."""
        path = self.machine.root / f"dev/block/{os.major(number)}:{os.minor(number)}"
        path.unlink(missing_ok=True)
        path.symlink_to(self.machine.where(disk))

    def subsystem(self, nqn: str = NQN, address: ListenAddress | None = ADDRESS) -> None:
        self.do("nvmf_create_subsystem", nqn=nqn)
        if address is not None:
            if "TCP" not in self.config.transports:
                self.do("nvmf_create_transport", trtype="TCP")
            self.do("nvmf_subsystem_add_listener", nqn=nqn, listen_address=_params(address))

    # -- what came of it

    def decision(self, nsid: int = 1, nqn: str = NQN, address: ListenAddress | None = ADDRESS) -> Decision:
        return self.manager.decisions[Place(nqn, nsid, address)]

    def placement(self, nsid: int = 1, nqn: str = NQN) -> Placement:
        return self.placed.get(nqn, {}).get((nsid, ADDRESS), Placement())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The manager works; at the beginning it has settled once."""
        await self.manager.start()
        task = asyncio.create_task(self.manager.work())
        try:
            assert await self.manager.settled(30.0)
            yield
        finally:
            self.manager.stop()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def settle(self) -> None:
        assert await self.manager.settled(30.0)


def _params(address: ListenAddress) -> dict[str, str]:
    return {"trtype": address.trtype, "traddr": address.traddr, "trsvcid": address.trsvcid}


def _plane(pools: FakePools) -> PoolPlane:
    return pools
