"""What the methods of the admin API see of the daemon. The daemon implements ``Context``; tests have a small one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.port import DataPlane
from nvmet_p2p.server.staging.manager import StagingManager
from nvmet_p2p.target.config import BdevFacts, ListenAddress, TargetConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerInfo:
    """A controller that a host has now. ``hostid`` is the UUID as text."""

    subnqn: str
    cntlid: int
    hostnqn: str
    hostid: str
    cntrltype: str = "io"  # or "discovery"
    num_io_qpairs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QpairInfo:
    """A connected queue; ``qid`` 0 is the admin queue. ``peer`` has the host's address and port."""

    subnqn: str
    cntlid: int
    qid: int
    hostnqn: str
    listen_address: ListenAddress
    peer: ListenAddress
    state: str = "enabled"  # SPDK's names: connecting, authenticating, enabled, deactivating, error


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """Numbers of queues and commands of the whole target, as one of SPDK's poll groups. Totals since the start."""

    admin_qpairs: int = 0
    io_qpairs: int = 0
    current_admin_qpairs: int = 0
    current_io_qpairs: int = 0
    current_unassociated_qpairs: int = 0  # connections that have not completed Connect
    pending_bdev_io: int = 0
    completed_nvme_io: int = 0


class Context(Protocol):
    """The daemon, as far as the admin API needs it. All is called on the event loop.

    The dispatcher sees to it that ``commit`` and ``rescan_bdev`` never run twice at once.
    """

    @property
    def version(self) -> str:
        """The daemon's version."""
        ...

    @property
    def uptime_s(self) -> float: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def config(self) -> TargetConfig:
        """The configuration accepted last."""
        ...

    @property
    def bdev_facts(self) -> Mapping[str, BdevFacts]:
        """The open back ends by name; a configured one that is missing here is absent."""
        ...

    @property
    def dataplane(self) -> DataPlane:
        """For its name, its counters and its list of queues only; what changes something goes through ``commit``."""
        ...

    @property
    def staging(self) -> StagingManager:
        """Where data rests; for showing it and for calibrations on demand."""
        ...

    async def commit(self, new: TargetConfig) -> None:
        """Makes ``new`` the configuration: in the data plane, on the network, on the disk, in the target.

        ``new`` may differ from ``config`` anywhere: back ends are opened, resized and closed, addresses bound and
        released (``state.reconcile``). Returns when it is durable and in force. Raises ``OperatorError`` (a negated
        errno where the system refused) and has changed nothing then.
        """
        ...

    async def rescan_bdev(self, name: str) -> None:
        """Reads the size of a file or device again and uses it; opens it where it was absent.

        Raises ``OperatorError``.
        """
        ...

    async def adopt_namespaces(self, controller: str) -> list[str]:
        """Makes bdevs of what an attached NVMe controller has; the names of all of them. Raises ``OperatorError``."""
        ...

    def absent_controllers(self) -> Mapping[str, str]:
        """Configured NVMe controllers that are not attached, and why."""
        ...

    def unbound(self) -> list[ListenAddress]:
        """Configured addresses that are not listened on, and tried again every second."""
        ...

    def new_uuid(self) -> str:
        """A random UUID, lower case."""
        ...

    def controllers(self) -> list[ControllerInfo]:
        """All controllers, discovery controllers too."""
        ...

    def qpairs(self) -> list[QpairInfo]:
        """All queues that have completed Connect."""
        ...

    def queue_stats(self) -> QueueStats: ...
