"""The target's configuration: one immutable tree of values.

A change is a pure function from a configuration to the next one (``operations``). The daemon persists the new tree and
then gives it to ``Target.apply`` and, through the reconciler, to the data plane; so a refused call changes nothing, and
start-up, a change and the restart of a data plane are the same code. Nothing here is a run-time fact: the size of a
file, a controller or a counter lives elsewhere.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

BdevKind = Literal["malloc", "null", "aio", "uring", "delay", "error", "cmb", "nvme"]
QOS_LIMITS: Final = ("rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec")


class BdevConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A back end as it was asked for.

    ``num_blocks`` and ``block_size`` (bytes) are 0 where the file or device decides. ``uuid`` is always set: one that
    the operator did not give is made when the bdev is created and kept from then on. ``base`` is the name of the bdev
    below a delay or error bdev; ``latencies_us`` are those of a delay bdev: average read, p99 read, average write, p99
    write. ``provider`` is the PCI address of the drive, or the name of the emulated pool, whose memory a cmb bdev is.
    ``controller`` and ``nsid`` say which namespace of a controller of the data plane's own an nvme bdev is, and
    ``identity`` how it identified itself when it was first opened ("": it never was): another one in its place is
    refused. The limits (``QOS_LIMITS``) are 0 where there is none.
    """

    name: str
    kind: BdevKind
    uuid: str
    block_size: int = 0
    num_blocks: int = 0
    physical_block_size: int = 0
    filename: str = ""
    readonly: bool = False
    fallocate: bool = False
    nowait: bool = False
    optimal_io_boundary: int = 0
    base: str = ""
    latencies_us: tuple[int, int, int, int] = (0, 0, 0, 0)
    provider: str = ""
    controller: str = ""
    nsid: int = 0
    identity: str = ""
    rw_ios_per_sec: int = 0
    rw_mbytes_per_sec: int = 0
    r_mbytes_per_sec: int = 0
    w_mbytes_per_sec: int = 0


class NvmeControllerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A drive on vfio-pci (``trtype`` "PCIe"), or another target ("TCP"), that the data plane drives itself.

    ``traddr`` is a PCI address or an IP address. A time in seconds that is ``None`` is as ``NvmeOptions`` says when the
    controller is attached. ``hints`` are parameters without an effect, kept to be shown.
    """

    name: str
    trtype: Literal["PCIe", "TCP"]
    traddr: str
    adrfam: str = ""  # "IPv4" or "IPv6"; empty for PCIe
    trsvcid: str = ""
    subnqn: str = ""
    hostnqn: str = ""
    hostaddr: str = ""
    hostsvcid: str = ""
    hdgst: bool = False
    ddgst: bool = False
    max_bdevs: int = 128
    ctrlr_loss_timeout_sec: int | None = None
    reconnect_delay_sec: int | None = None
    fast_io_fail_timeout_sec: int | None = None
    hints: dict[str, Any] = {}


class NvmeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What all such controllers have in common, named as SPDK's ``bdev_nvme_set_options`` names it."""

    action_on_timeout: Literal["none", "reset", "abort"] = "none"
    timeout_us: int = 0
    timeout_admin_us: int = 0
    keep_alive_timeout_ms: int = 10_000
    bdev_retry_count: int = 3
    ctrlr_loss_timeout_sec: int = 0
    reconnect_delay_sec: int = 0
    fast_io_fail_timeout_sec: int = 0
    hints: dict[str, Any] = {}


class NvmeHotplug(msgspec.Struct, frozen=True, kw_only=True):
    """Whether drives are looked for, and how often (microseconds; 0: the data plane's choice)."""

    enable: bool
    period_us: int = 0


class StagingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the data of an I/O rests on its way: ``policy`` is "off" (host memory), "auto", or the name of a pool.

    A pool has the PCI address of its provider ("0000:03:00.0") or the name that an emulated one was given. ``strict``:
    what this asks for was checked when it was set, and an exhausted pool is waited for instead of host memory.
    """

    policy: str = "auto"
    strict: bool = False


class EmulatedPoolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A pool of host memory that is treated as a drive's, for machines without a CMB. ``size`` in bytes."""

    name: str
    size: int


class NamespaceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace of a subsystem; ``nguid`` and ``eui64`` are lower case hex without separators or empty."""

    nsid: int
    bdev_name: str
    uuid: str
    nguid: str = ""
    eui64: str = ""
    anagrpid: int
    no_auto_visible: bool = False
    hosts: tuple[str, ...] = ()  # host NQNs that see a namespace that is not auto visible
    write_protected: bool = False  # as a host has set it last (feature 84h): it outlives power cycles
    staging: StagingConfig | None = None  # None, here and below: as the next wider one says (``staging.resolve``)


class HostConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A host on a subsystem's allow-list."""

    nqn: str


class ListenAddress(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Where a port listens. ``trtype`` is "TCP" or "RDMA", ``adrfam`` "IPv4" or "IPv6", ``trsvcid`` the port."""

    trtype: str
    adrfam: str
    traddr: str
    trsvcid: str


class ListenerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A subsystem's listener. ``ana_states`` maps anagrpid to a state name; a group that is absent is optimized."""

    address: ListenAddress
    secure_channel: bool = False
    ana_states: dict[int, str] = {}  # values: "optimized" | "non_optimized" | "inaccessible"
    staging: StagingConfig | None = None


class SubsystemConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An NVM subsystem, or (``subtype`` "Discovery") the discovery subsystem, whose NQN is the well-known one."""

    nqn: str
    subtype: Literal["NVMe", "Discovery"] = "NVMe"
    serial_number: str = "00000000000000000000"
    model_number: str = "nvmet_p2p Controller"
    max_namespaces: int = 32
    allow_any_host: bool = False
    ana_reporting: bool = False
    min_cntlid: int = 1
    max_cntlid: int = 0xFFEF
    controller_model: Literal["dynamic", "static"] = "dynamic"  # static: hosts choose the controller identifier
    namespaces: dict[int, NamespaceConfig] = {}
    hosts: dict[str, HostConfig] = {}
    listeners: tuple[ListenerConfig, ...] = ()
    staging: StagingConfig | None = None


class TransportConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a transport, named as SPDK's ``nvmf_create_transport`` names them. Sizes in bytes.

    The ones marked "hint" are kept and shown, as SPDK's users expect, and change nothing in this target.
    """

    trtype: str
    max_queue_depth: int = 128
    max_io_qpairs_per_ctrlr: int = 127
    in_capsule_data_size: int = 4096
    max_io_size: int = 131072
    io_unit_size: int = 131072  # hint
    max_aq_depth: int = 128
    num_shared_buffers: int = 511  # hint
    iobuf_small_cache_size: int = 0xFFFFFFFF  # hint
    iobuf_large_cache_size: int = 0xFFFFFFFF  # hint
    dif_insert_or_strip: bool = False
    zcopy: bool = False  # hint
    c2h_success: bool = True
    sock_priority: int = 0
    abort_timeout_sec: int = 1
    acceptor_poll_rate: int = 10000  # hint
    ack_timeout: int = 0  # hint
    data_wr_pool_size: int = 0  # hint
    control_msg_num: int = 32  # hint
    disable_command_passthru: bool = False  # hint: this target never passes a command through
    max_srq_depth: int = 4096  # RDMA: entries of a shared receive queue
    no_srq: bool = False  # RDMA: each queue has its own receive queue
    num_cqe: int = 4096  # RDMA, hint
    acceptor_backlog: int = 100  # RDMA
    no_wr_batching: bool = False  # RDMA, hint
    kas: int = 10  # units of 100 ms, as Identify Controller KAS
    min_kato: int = 0  # ms


class ReferralConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A referral to another discovery service."""

    address: ListenAddress
    subnqn: str = "nqn.2014-08.org.nvmexpress.discovery"
    secure_channel: bool = False
    allow_any_host: bool = True


class TargetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that survives a restart."""

    max_subsystems: int = 1024
    discovery_filter: str = "match_any"
    crdt: tuple[int, int, int] = (0, 0, 0)
    transports: dict[str, TransportConfig] = {}
    bdevs: dict[str, BdevConfig] = {}
    subsystems: dict[str, SubsystemConfig] = {}
    referrals: tuple[ReferralConfig, ...] = ()
    emulated_pools: dict[str, EmulatedPoolConfig] = {}
    staging: StagingConfig | None = None
    nvme_controllers: dict[str, NvmeControllerConfig] = {}
    nvme_options: NvmeOptions | None = None
    nvme_hotplug: NvmeHotplug | None = None


class BdevFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the data plane found when it opened a back end. ``block_size`` in bytes, ``num_blocks`` in blocks."""

    name: str
    block_size: int
    num_blocks: int
    readonly: bool = False
    write_cache: bool = True  # a volatile cache: Flush has something to do
    unmap: bool = False  # Deallocate frees space
    write_zeroes: bool = True  # faster than writing zeroes
    optimal_io_boundary: int = 0  # blocks, 0 = none
    physical_block_size: int = 0  # bytes, 0 = block_size
    identity: str = ""  # of the namespace that an nvme bdev is
