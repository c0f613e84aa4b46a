"""A daemon for the admin API's tests: its back ends are only sizes, its addresses only names."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nvmet_p2p.clock import SystemClock
from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.port import (
    NOTHING_KNOWN,
    DataPlane,
    DataPlaneStatus,
    IoStat,
    NvmeNamespace,
    RdmaStatus,
    SpdkStatus,
)
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server.context import ControllerInfo, QpairInfo, QueueStats
from nvmet_p2p.server.dispatcher import Dispatcher
from nvmet_p2p.server.methods import METHODS
from nvmet_p2p.server.staging.manager import StagingManager, Surroundings
from nvmet_p2p.state import reconcile
from nvmet_p2p.state.journal import Journals
from nvmet_p2p.target.config import (
    BdevConfig,
    BdevFacts,
    ListenAddress,
    NvmeControllerConfig,
    NvmeHotplug,
    NvmeOptions,
    TargetConfig,
)
from nvmet_p2p.target.operations_bdev import create_bdev
from nvmet_p2p.target.operations_nvme import bdevs_of, declare_found


class FakeNvme:
    """Attaches what ``there`` has: namespaces by the traddr of a controller."""

    def __init__(self) -> None:
        self.there: dict[str, list[NvmeNamespace]] = {}
        self.attached: dict[str, NvmeControllerConfig] = {}
        self.known: dict[str, dict[int, str]] = {}
        self.options = NvmeOptions()
        self.hotplug = NvmeHotplug(enable=False)
        self.resets: list[str] = []
        self.spdk = SpdkStatus(True, "SPDK v26.09", active=True)

    async def attach(self, controller: NvmeControllerConfig, known: Mapping[int, str] = NOTHING_KNOWN) -> None:
        if controller.traddr not in self.there:
            raise OperatorError(-errno.ENODEV, f"there is no drive at {controller.traddr}")
        self.attached[controller.name] = controller
        self.known[controller.name] = dict(known)

    async def detach(self, name: str) -> None:
        self.attached.pop(name, None)

    async def set_options(self, options: NvmeOptions) -> None:
        self.options = options

    async def set_hotplug(self, hotplug: NvmeHotplug) -> None:
        self.hotplug = hotplug

    async def controllers(self) -> dict[str, dict[str, Any]]:
        return {name: self._row(name) for name in self.attached}

    def _row(self, name: str) -> dict[str, Any]:
        facts = {"serial": "S1 ", "model": "A drive", "firmware": "1.0", "vendor_id": 0x1B36, "subnqn": "nqn.x:s"}
        return facts | {"name": name, "state": "enabled", "cntlid": 7, "hostnqn": "nqn.x:us", "resets": 3}

    def shown(self, name: str) -> dict[str, Any] | None:
        return self._row(name) if name in self.attached else None

    async def namespaces(self, name: str) -> tuple[NvmeNamespace, ...]:
        return tuple(self.there[self.attached[name].traddr]) if name in self.attached else ()

    async def reset(self, name: str) -> None:
        self.resets.append(name)

    async def health(self, name: str) -> dict[str, Any]:
        return {"serial_number": "S1", "temperature_celsius": 37, "percentage_used": 4}

    async def status(self) -> SpdkStatus:
        return self.spdk


class FakeDataPlane:
    name = "fake"
    slow = True
    pools = None

    def __init__(self) -> None:
        self.nvme: FakeNvme | None = FakeNvme()
        self.stats: dict[str, IoStat] = {}
        self.refreshes = 0
        self.rdma = RdmaStatus(False, "the fake has none")
        self.forwarded: list[tuple[str, dict[str, Any]]] = []

    def iostat(self, name: str) -> IoStat | None:
        return self.stats.get(name)

    async def refresh(self) -> None:
        self.refreshes += 1

    async def forward(self, method: str, params: dict[str, Any]) -> Any:
        self.forwarded.append((method, params))
        return True

    async def rdma_status(self) -> RdmaStatus:
        return self.rdma

    def status(self) -> DataPlaneStatus:
        return DataPlaneStatus(pid=os.getpid())

    async def iostat_reset(self, name: str) -> None:
        self.stats[name] = IoStat()


class FakeStaging(StagingManager):
    """Decides nothing by itself; without pools unless a test gives it some."""

    async def settled(self, limit_s: float = 0.0) -> bool:
        return True


class FakeContext:
    """Implements ``server.context.Context``. ``files`` maps a path to its size in bytes."""

    version = "0.0.test"
    uptime_s = 12.5

    def __init__(self) -> None:
        self.config = TargetConfig()
        self.facts: dict[str, BdevFacts] = {}
        self.files: dict[str, int] = {}
        self.taken: set[ListenAddress] = set()
        self.commits = 0
        self.fake_dataplane = FakeDataPlane()
        self.controller_list: list[ControllerInfo] = []
        self.qpair_list: list[QpairInfo] = []
        self.stats = QueueStats()
        self._uuids = 0
        around = Surroundings(
            model=lambda: (self.config, self.facts),
            place=lambda _: None,
            settle=self.settle_nothing,
            gone=lambda _: None,
            broken=lambda _: None,
        )
        self.staging: StagingManager = FakeStaging(
            self.settings, None, SystemClock(), Journals(self.settings.state_dir), around
        )

    async def settle_nothing(self) -> None:
        """No placement is ever waited for."""

    @property
    def settings(self) -> Settings:
        return Settings(
            rpc_socket=Path("/run/test/rpc.sock"),
            state_dir=Path("/var/lib/test"),
            sysfs_root=Path("/nonexistent/sys"),
        )

    @property
    def bdev_facts(self) -> Mapping[str, BdevFacts]:
        return self.facts

    @property
    def dataplane(self) -> DataPlane:
        return cast(DataPlane, self.fake_dataplane)

    async def commit(self, new: TargetConfig) -> None:
        plan = reconcile.plan(self.config, new)
        nvme = self.fake_dataplane.nvme
        for controller in plan.attach:
            assert nvme is not None
            await nvme.attach(controller)
        opened = {config.name: self._open(config) for config in plan.open_bdevs}
        opened |= {config.name: self._open(config) for _, config in plan.resize_bdevs}
        for address in plan.bind:
            if address in self.taken:
                raise OperatorError(-errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self.facts |= opened
        for config in plan.close_bdevs:
            self.facts.pop(config.name, None)
        for name in plan.detach:
            assert nvme is not None
            await nvme.detach(name)
        self.config = new
        self.commits += 1

    async def rescan_bdev(self, name: str) -> None:
        self.facts[name] = self._open(self.config.bdevs[name])

    def _open(self, config: BdevConfig) -> BdevFacts:
        block_size, num_blocks = config.block_size or 512, config.num_blocks
        if config.filename:
            if config.filename not in self.files:
                raise OperatorError(-errno.ENOENT, f"{os.strerror(errno.ENOENT)}: {config.filename}")
            num_blocks = self.files[config.filename] // block_size
        return BdevFacts(name=config.name, block_size=block_size, num_blocks=num_blocks, readonly=config.readonly)

    async def adopt_namespaces(self, controller: str) -> list[str]:
        assert self.fake_dataplane.nvme is not None
        found = await self.fake_dataplane.nvme.namespaces(controller)
        pairs = [(namespace.name, namespace.uuid) for namespace in found if not namespace.refused]
        await self.commit(declare_found(create_bdev, self.config, controller, pairs, self.new_uuid))
        return [bdev.name for bdev in bdevs_of(self.config, controller)]

    def absent_controllers(self) -> Mapping[str, str]:
        attached = self.fake_dataplane.nvme.attached if self.fake_dataplane.nvme is not None else {}
        return dict.fromkeys(self.config.nvme_controllers.keys() - attached.keys(), "it is not there")

    def unbound(self) -> list[ListenAddress]:
        return []

    def new_uuid(self) -> str:
        self._uuids += 1
        return f"00000000-0000-4000-8000-{self._uuids:012x}"

    def controllers(self) -> list[ControllerInfo]:
        return self.controller_list

    def qpairs(self) -> list[QpairInfo]:
        return self.qpair_list

    def queue_stats(self) -> QueueStats:
        return self.stats


class Api:
    """Calls methods as a client would, without a socket."""

    def __init__(self) -> None:
        self.context = FakeContext()
        self.dispatcher = Dispatcher(self.context, METHODS)

    async def call(self, method: str, **params: Any) -> Any:
        """The result. Raises ``OperatorError`` with the code and message of an error answer."""
        import msgspec

        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = await self.dispatcher.handle(msgspec.json.encode(request))
        response = msgspec.json.decode(answer.data)
        assert response["id"] == 1
        assert not answer.close
        if "error" in response:
            raise OperatorError(response["error"]["code"], response["error"]["message"])
        return response["result"]
