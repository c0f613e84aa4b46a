"""The one interface through which the rest of the package knows a data plane.

Implementations: ``native`` (the C helper) and ``inprocess`` (Python, the oracle). The caller is always the daemon's
event loop. Everything that is configuration comes from the model in the control plane; a data plane holds no truth of
its own and can be given all of it again at any time.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from nvmet_p2p.p2p.choice import Calibration
from nvmet_p2p.p2p.vfio import VfioMemory
from nvmet_p2p.protocol.tcp_common import TcpParams
from nvmet_p2p.target.config import (
    BdevConfig,
    BdevFacts,
    ListenAddress,
    NvmeControllerConfig,
    NvmeHotplug,
    NvmeOptions,
    TransportConfig,
)
from nvmet_p2p.target.effects import ControllerKey, ControllerView
from nvmet_p2p.wire.sqe import Sqe


@dataclass(frozen=True, slots=True)
class QueueHandoff:
    """An I/O queue after a successful Connect.

    ``sock`` is a connected, non-blocking stream socket from which nothing beyond the Connect capsule has been read;
    the data plane owns it from now on. ``response`` is the Connect response PDU, digests included, to be sent first.
    ``sqsize`` is 0's based. ``sqhd`` is the submission queue head after Connect; with ``sq_flow_control`` off every CQE
    carries FFFFh instead.
    """

    key: ControllerKey
    qid: int
    sqsize: int
    sq_flow_control: bool
    sqhd: int
    sock: socket.socket
    params: TcpParams
    response: bytes
    c2h_success: bool = True
    peer: str = ""

    def discard(self) -> None:
        """Nobody has taken the queue over: its connection ends."""
        self.sock.close()


@dataclass(frozen=True, slots=True)
class RdmaConnection:
    """An NVMe/RDMA connection as it was established, with what its private data said.

    ``traddr`` is the address of ours that the host came to, which a listener on all addresses does not tell.
    ``hsqsize`` is 0's based, ``hrqsize`` 1's based.
    """

    traddr: str
    trsvcid: str
    adrfam: str  # "IPv4" or "IPv6"
    peer: tuple[str, str]
    qid: int
    hsqsize: int
    hrqsize: int
    cntlid: int


class RdmaLink(Protocol):
    """What the control plane may do with an NVMe/RDMA connection. After its end nothing does anything."""

    conn: int

    def fetch(self, cid: int, length: int) -> None:
        """Read ``length`` bytes (at most 60 KiB) of the command's data; ``RdmaReceiver.data`` follows once."""
        ...

    def reply(self, cqe: bytes, data: bytes = b"") -> None:
        """Write the data to the host, then send the response."""
        ...

    def drop(self, cid: int) -> None:
        """The command ends without a response."""
        ...

    def close(self) -> None:
        """End the connection; ``RdmaReceiver.closed`` is not called any more."""
        ...


class RdmaReceiver(Protocol):
    """Who gets what comes on an NVMe/RDMA connection before it is an I/O queue."""

    def capsule(self, sqe: bytes, icd: bytes) -> None:
        """A command capsule: 64 bytes, and the data that followed them."""
        ...

    def data(self, cid: int, rc: int, data: bytes) -> None:
        """What ``RdmaLink.fetch`` asked for (``rc`` 0), or a negated errno."""
        ...

    def closed(self, reason: str) -> None:
        """The connection is gone."""
        ...


@dataclass(frozen=True, slots=True)
class RdmaHandoff:
    """As ``QueueHandoff``, for a connection that the data plane has anyway. ``cqe`` is the answer to Connect."""

    key: ControllerKey
    qid: int
    sqsize: int
    sq_flow_control: bool
    sqhd: int
    link: RdmaLink
    cqe: bytes
    icd_max: int
    peer: str = ""

    def discard(self) -> None:
        """Nobody has taken the queue over: its connection ends."""
        self.link.close()


@dataclass(slots=True)
class IoStat:
    """Counters of a bdev since it was opened, as SPDK's ``bdev_get_iostat``; latencies in nanoseconds summed."""

    bytes_read: int = 0
    num_read_ops: int = 0
    bytes_written: int = 0
    num_write_ops: int = 0
    bytes_unmapped: int = 0
    num_unmap_ops: int = 0
    bytes_copied: int = 0
    num_copy_ops: int = 0
    read_latency_ns: int = 0
    write_latency_ns: int = 0
    unmap_latency_ns: int = 0
    copy_latency_ns: int = 0
    io_error: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class QueueStat:
    """A live I/O queue."""

    key: ControllerKey
    qid: int
    peer: str
    commands: int = 0
    outstanding: int = 0


PoolKind = Literal["p2pmem", "emulated", "spdk_cmb"]
CopyRoute = Literal["device", "reflink", "pool", "host"]
HOST_POOL = "host"  # host memory, where pools are counted


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool to make: ``size`` bytes (whole granules of 4096) of the file ``path`` (p2pmem), or emulated; or of the
    memory of a drive on vfio-pci (spdk_cmb; 0: all of it)."""

    name: str
    kind: PoolKind
    size: int
    path: str = ""


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool as it is now; sizes in bytes. ``allowed``: bdevs that may use it. ``why``: it was lost. ``device``: what a
    drive on vfio-pci has, as the data plane shows it."""

    name: str
    kind: PoolKind
    size: int
    free: int = 0
    waits: int = 0
    fallbacks: int = 0
    wiped: int = 0
    lost: bool = False
    why: str = ""
    allowed: tuple[str, ...] = ()
    device: dict[str, Any] | None = None


@dataclass(slots=True)
class PoolUse:
    """What of a bdev's payload rested in one pool, since the bdev was opened."""

    read_bytes: int = 0
    read_ops: int = 0
    write_bytes: int = 0
    write_ops: int = 0
    copy_bytes: int = 0
    copy_ops: int = 0


@dataclass(slots=True)
class StagingStat:
    """Where a bdev's payload rested, by pool (``HOST_POOL``: host memory), and how Copy went, in bytes.

    ``fallbacks``: operations that took host memory though they had a pool. ``interrupted``: commands that hosts had to
    send again because a pool was lost under them.
    """

    pools: dict[str, PoolUse] = field(default_factory=dict)
    fallbacks: int = 0
    interrupted: int = 0
    copy_routes: dict[CopyRoute, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataPlaneStatus:
    """The process that serves the I/O: ``up`` unless it is being restarted. ``pid`` 0: it is not there now.

    ``zero_copy_bytes`` left without a copy in the kernel, ``copied_bytes`` should have; of this process, a little old.
    """

    up: bool = True
    pid: int = 0
    restarts: int = 0
    last_exit: str = ""
    rpc_socket: str = ""
    zero_copy_bytes: int = 0
    copied_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RdmaStatus:
    """Whether the data plane has NVMe/RDMA at all, and why not; the counters of each device as SPDK shows them."""

    built: bool
    reason: str = ""
    pending_data_buffer: int = 0
    devices: tuple[dict[str, Any], ...] = ()


NOTHING_KNOWN: Final[Mapping[int, str]] = {}


@dataclass(frozen=True, slots=True)
class SpdkStatus:
    """Whether the data plane can drive NVMe controllers itself, and why not; ``active``: it does."""

    built: bool
    version: str = ""
    active: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NvmeNamespace:
    """A namespace of a controller: the name of its bdev, its UUID (or ""), and why it cannot be a bdev (or "").

    ``identity`` tells it from all others, on other drives too.
    """

    name: str
    nsid: int
    uuid: str = ""
    refused: str = ""
    identity: str = ""


class DataPlaneEvents(Protocol):
    """What a data plane tells the control plane; called on the event loop."""

    def queue_closed(self, key: ControllerKey, qid: int, reason: str) -> None:
        """An I/O queue has ended by itself (peer gone, protocol error). Not called for queues that we closed."""
        ...

    def bdev_changed(self, name: str, facts: BdevFacts | None) -> None:
        """A back end changed its size, went away (``None``) or came back."""
        ...

    def namespace_found(self, name: str) -> None:
        """A controller that is attached has a namespace (the name of its bdev) that nobody has asked for."""
        ...

    def pool_lost(self, name: str, why: str) -> None:
        """The memory of a pool is gone. Its I/O goes on in host memory; it must be deleted before it can come back."""
        ...

    def pool_withdrawn(self, name: str, bdev: str) -> None:
        """A bdev uses a pool no more that it was allowed: its drive has refused that memory several times in a row."""
        ...

    def io_command(self, key: ControllerKey, qid: int, sqe: Sqe) -> None:
        """A command on an I/O queue that the data plane does not decide: Fabrics commands, unknown opcodes.

        Returns when it succeeds; the queue then ends once that is answered (Disconnect). Raises ``NvmeStatusError``.
        """
        ...

    def rdma_connected(self, link: RdmaLink, connection: RdmaConnection) -> RdmaReceiver | None:
        """A host has come over NVMe/RDMA. ``None``: it is not wanted, the connection ends."""
        ...

    def listener_lost(self, address: ListenAddress, reason: str) -> None:
        """The data plane was restarted and does not listen on an address again. It is for the caller to try."""
        ...


class PoolPlane(Protocol):
    """Staging in pools. Methods that fail raise ``OperatorError`` with a negated errno."""

    async def create(self, spec: PoolSpec) -> int:
        """Maps the pool's memory; its size. -EEXIST, -ENOMEM (so much is not to be had in one piece), -ENOENT ..."""
        ...

    async def delete(self, name: str) -> None:
        """No I/O takes memory of it from now on; returns when none is in flight and it is given back.

        -EBUSY: a bdev is on its memory. One that does not exist is no error.
        """
        ...

    def names(self) -> frozenset[str]:
        """The pools that exist (lost ones too)."""
        ...

    async def calibrate(self, name: str, bdev: str | None, journal: str) -> Calibration:
        """Measures the pool, and with ``bdev`` sends data to and fro; what was on the drive is there again afterwards.

        Hosts' I/O on the bdev waits meanwhile. ``journal`` is the path of a file that exists for that time.
        -EBUSY: it is being done already.
        """
        ...

    async def probe(self, bdf: str, *, attached: bool) -> VfioMemory:
        """What memory a drive on vfio-pci has. -ENOENT, -ENOTSUP: none for data; -EPERM, -EBUSY: in other hands.

        ``attached``: it is to be a controller of the data plane's own, and not opened otherwise. -ENOTCONN: it is none.
        """
        ...

    async def allow(self, name: str, bdev: str, allowed: bool) -> None:
        """Whether a bdev, and those above it, may use the pool; nobody may at first."""
        ...

    def is_allowed(self, name: str, bdev: str) -> bool: ...

    async def states(self) -> list[PoolState]:
        """All pools."""
        ...

    def stat(self, bdev: str) -> StagingStat | None:
        """Counters as of the last ``DataPlane.refresh``; at most about a second old otherwise."""
        ...


class NvmePlane(Protocol):
    """NVMe controllers of the data plane's own. Methods that fail raise ``OperatorError`` with a negated errno."""

    async def attach(self, controller: NvmeControllerConfig, known: Mapping[int, str] = NOTHING_KNOWN) -> None:
        """Takes the controller; its namespaces can be opened then (``bdev_create``). -ENODEV: it is not there.

        ``known``: identities of namespaces by NSID; another one in the place of one of them is refused.
        -ENOTSUP: the data plane is built without SPDK. One that is attached already in the same way is no error.
        """
        ...

    async def detach(self, name: str) -> None:
        """Its bdevs are closed. One that is not attached is no error."""
        ...

    async def set_options(self, options: NvmeOptions) -> None:
        """For controllers that are attached from now on."""
        ...

    async def set_hotplug(self, hotplug: NvmeHotplug) -> None: ...

    async def controllers(self) -> dict[str, dict[str, Any]]:
        """What is attached, by name, as the data plane shows it (``docs/architecture.md``)."""
        ...

    def shown(self, name: str) -> dict[str, Any] | None:
        """A controller as ``controllers`` has given it last."""
        ...

    async def namespaces(self, name: str) -> tuple[NvmeNamespace, ...]:
        """What an attached controller has."""
        ...

    async def reset(self, name: str) -> None:
        """Returns when it is done; I/O in flight is done again."""
        ...

    async def health(self, name: str) -> dict[str, Any]:
        """Its SMART / health log as SPDK shows it."""
        ...

    async def status(self) -> SpdkStatus:
        """Never raises."""
        ...


class DataPlane(Protocol):
    """A data plane. Methods that fail raise ``OperatorError`` with a negated errno and change nothing."""

    name: str
    slow: bool

    @property
    def pools(self) -> PoolPlane | None:
        """Staging in pools; ``None``: this one stages in host memory alone."""
        ...

    @property
    def nvme(self) -> NvmePlane | None:
        """NVMe controllers of its own; ``None``: this one can have none."""
        ...

    async def start(self, events: DataPlaneEvents, expected: Iterable[BdevConfig] = ()) -> None:
        """``expected``: the back ends that will be asked for. One that is open from before and is not is closed."""
        ...

    async def stop(self) -> None:
        """Ends every queue and closes every back end; nothing that was acknowledged is lost."""
        ...

    async def bdev_create(self, config: BdevConfig) -> BdevFacts:
        """Opens a back end. -ENOENT, -EACCES, -EEXIST (name in use), -EINVAL (size not whole blocks) ..."""
        ...

    async def bdev_delete(self, name: str) -> None:
        """Closes a back end after the I/O in flight on it. -ENODEV when unknown."""
        ...

    async def bdev_rescan(self, config: BdevConfig) -> BdevFacts:
        """Reads the size again and uses it."""
        ...

    async def bdev_resize(self, config: BdevConfig) -> BdevFacts:
        """Takes over the changed ``num_blocks`` of a null (or malloc) back end."""
        ...

    async def bdev_tune(self, config: BdevConfig) -> None:
        """Takes over changed limits (``rw_ios_per_sec`` ...) and latencies of an open back end."""
        ...

    async def forward(self, method: str, params: dict[str, Any]) -> Any:
        """A call of SPDK's that is no configuration: injected errors, histograms. -ENOTSUP where there are none."""
        ...

    async def controller_set(self, view: ControllerView) -> None:
        """New or changed controller; returns when no command runs on the old view any more for removed namespaces."""
        ...

    async def controller_remove(self, key: ControllerKey) -> None:
        """Closes the controller's queues and forgets it; returns when none of its commands is in flight."""
        ...

    async def transport_create(self, config: TransportConfig) -> None:
        """Whether it has the transport: -ENOTSUP. Nothing is kept."""
        ...

    async def listen(self, address: ListenAddress, config: TransportConfig) -> None:
        """Listens for NVMe/RDMA; NVMe/TCP is the control plane's. -ENODEV: no RDMA device has the address."""
        ...

    async def unlisten(self, address: ListenAddress) -> None:
        """Takes no more connections there; those that it has stay. One that is not listened on is no error."""
        ...

    async def rdma_status(self) -> RdmaStatus:
        """What there is of NVMe/RDMA. Never raises."""
        ...

    async def queue_adopt(self, handoff: QueueHandoff | RdmaHandoff) -> None:
        """Takes over an I/O queue. The controller's view has been set before."""
        ...

    async def queue_close(self, key: ControllerKey, qid: int | None) -> None:
        """Closes one I/O queue, or all of the controller's; returns when no command of them is in flight."""
        ...

    async def abort(self, key: ControllerKey, qid: int, cid: int) -> bool:
        """Aborts one command: True if it was found and completed Command Abort Requested."""
        ...

    def io_activity(self, key: ControllerKey) -> int:
        """Number of I/O commands that the controller's queues have received so far (for TBKAS)."""
        ...

    async def refresh(self) -> None:
        """Brings what ``iostat`` and ``queues`` give up to date; they are at most about a second old otherwise."""
        ...

    def iostat(self, name: str) -> IoStat | None: ...

    async def iostat_reset(self, name: str) -> None: ...

    def queues(self, key: ControllerKey | None = None) -> list[QueueStat]: ...

    def status(self) -> DataPlaneStatus: ...
