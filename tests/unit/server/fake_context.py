"""A daemon for the admin API's tests: its back ends are only sizes, its addresses only names."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from nvmet_p2p.clock import SystemClock
from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.port import DataPlane, DataPlaneStatus, IoStat, RdmaStatus
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server.context import ControllerInfo, QpairInfo, QueueStats
from nvmet_p2p.server.dispatcher import Dispatcher
from nvmet_p2p.server.methods import METHODS
from nvmet_p2p.server.staging.manager import StagingManager, Surroundings
from nvmet_p2p.state import reconcile
from nvmet_p2p.state.journal import Journals
from nvmet_p2p.target.config import BdevConfig, BdevFacts, ListenAddress, TargetConfig


class FakeDataPlane:
    name = "fake"
    slow = True
    pools = None

    def __init__(self) -> None:
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
        opened = {config.name: self._open(config) for config in plan.open_bdevs}
        opened |= {config.name: self._open(config) for _, config in plan.resize_bdevs}
        for address in plan.bind:
            if address in self.taken:
                raise OperatorError(-errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        self.facts |= opened
        for config in plan.close_bdevs:
            self.facts.pop(config.name, None)
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
