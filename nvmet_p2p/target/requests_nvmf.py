"""Parameters of the ``nvmf_*`` methods that change the configuration: SPDK 26.09's names and types.

Which values make sense together is checked by ``operations``; here stand names, types, ranges and what is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nvmet_p2p import limits
from nvmet_p2p.target.request_types import (
    I32,
    U8,
    U16,
    U32,
    U64,
    UNSET,
    AnaStateName,
    Request,
    TargetRequest,
    UnsetType,
    doc,
    hint,
    only,
    refused,
)
from nvmet_p2p.target.validate import DISCOVERY_NQN

RDMA_OPTIONS = ("num_cqe", "max_srq_depth", "no_srq", "acceptor_backlog", "no_wr_batching")
VFIO_ONLY = "an option of the VFIO-USER transport, which this target does not have"
NO_TLS = "TLS is not supported yet"
NO_AUTH = "in-band authentication is not supported yet"
NO_PASSTHROUGH = "commands are not passed through to a drive"
NO_METADATA = "metadata and protection information are not supported"

SubNqn = Annotated[str, doc("NQN of the subsystem")]
Nsid = Annotated[U32, doc("Namespace ID")]
HostNqn = Annotated[str, doc("NQN of the host")]
Flag = bool | UnsetType
Number = U32 | UnsetType
Text = str | UnsetType
SrqDepth = Annotated[int, Meta(ge=1, le=limits.RDMA_SRQ_DEPTH_MAX)]
FALSE = (False,)


class ListenAddressParams(Request, frozen=True, kw_only=True):
    """A transport address."""

    trtype: Annotated[str, doc("Transport type: TCP or RDMA")]
    adrfam: Annotated[str, doc("Address family, ipv4 or ipv6; without it, what the address says")] = ""
    traddr: Annotated[str, doc("IP address")]
    trsvcid: Annotated[str, doc("Port")] = ""


Address = Annotated[ListenAddressParams, doc("Address and port")]


class CreateTransport(TargetRequest, frozen=True, kw_only=True):
    """nvmf_create_transport"""

    trtype: Annotated[str, doc("Transport type: TCP or RDMA")]
    max_queue_depth: Annotated[
        int, Meta(ge=2, le=limits.IO_QUEUE_DEPTH_MAX, description="Entries of an I/O submission queue at most")
    ] = 128
    max_io_qpairs_per_ctrlr: Annotated[
        int, Meta(ge=1, le=limits.IO_QUEUES_PER_CONTROLLER_MAX, description="I/O queues of a controller at most")
    ] = 127
    in_capsule_data_size: Annotated[
        int,
        Meta(
            ge=0,
            le=limits.TRANSFER_BYTES_MAX,
            multiple_of=16,
            description="Bytes of data that a command capsule of an I/O queue may carry",
        ),
    ] = 4096
    max_io_size: Annotated[
        int, Meta(ge=8192, le=limits.TRANSFER_BYTES_MAX, description="Largest I/O in bytes, a power of two")
    ] = 131072
    io_unit_size: Annotated[U32, hint("Deprecated in SPDK: bytes of a data buffer")] = 131072
    max_aq_depth: Annotated[
        int,
        Meta(
            ge=limits.AQ_DEPTH_MIN, le=limits.AQ_DEPTH_MAX, description="Entries of an admin submission queue at most"
        ),
    ] = 128
    num_shared_buffers: Annotated[U32, hint("Deprecated in SPDK: number of data buffers")] = 511
    buf_cache_size: Annotated[Number, hint("Deprecated in SPDK: the same as iobuf_small_cache_size")] = UNSET
    iobuf_small_cache_size: Annotated[U32, hint("Small data buffers of a poll group")] = 0xFFFF_FFFF
    iobuf_large_cache_size: Annotated[U32, hint("Large data buffers of a poll group")] = 0xFFFF_FFFF
    zcopy: Annotated[bool, hint("Zero copy where the bdev can")] = False
    num_cqe: Annotated[I32 | UnsetType, hint("RDMA: completion queue entries")] = UNSET
    max_srq_depth: Annotated[SrqDepth | UnsetType, doc("RDMA: entries of a shared receive queue; default 4096")] = UNSET
    no_srq: Annotated[Flag, doc("RDMA: each queue has a receive queue of its own")] = UNSET
    c2h_success: Annotated[bool, doc("TCP: use the SUCCESS flag of C2HData instead of a response where possible")] = (
        True
    )
    dif_insert_or_strip: Annotated[bool, only(FALSE, "Insert and strip protection information", NO_METADATA)] = False
    sock_priority: Annotated[U32, only((0,), "SO_PRIORITY of connections", "it is not supported")] = 0
    acceptor_backlog: Annotated[I32 | UnsetType, doc("RDMA: connections that wait to be accepted; default 100")] = UNSET
    abort_timeout_sec: Annotated[U32, hint("Seconds that an Abort waits for its command")] = 1
    no_wr_batching: Annotated[Flag, hint("RDMA: no batching of work requests")] = UNSET
    control_msg_num: Annotated[U16, hint("Control messages of a poll group")] = 32
    disable_mappable_bar0: Annotated[Flag, only(FALSE, "No mmap() of BAR 0", VFIO_ONLY)] = UNSET
    disable_adaptive_irq: Annotated[Flag, only(FALSE, "No adaptive interrupts", VFIO_ONLY)] = UNSET
    disable_shadow_doorbells: Annotated[Flag, only(FALSE, "No shadow doorbells", VFIO_ONLY)] = UNSET
    acceptor_poll_rate: Annotated[U32, hint("Microseconds between two looks for new connections")] = 10000
    ack_timeout: Annotated[U32, hint("Acknowledgement timeout in milliseconds")] = 0
    data_wr_pool_size: Annotated[Number, hint("Work requests for data; default 0, of RDMA 4095")] = UNSET
    disable_command_passthru: Annotated[bool, hint("No command is passed through to a drive")] = False
    kas: Annotated[int, Meta(ge=1, le=0xFFFF, description="Keep Alive granularity in units of 100 ms")] = 10
    min_kato: Annotated[U32, doc("Smallest Keep Alive Timeout in ms, rounded up to the granularity")] = 0
    masked_oncs: Annotated[list[str], only(([],), "Optional commands to hide", "commands cannot be hidden")] = (
        msgspec.field(default_factory=list)
    )
    masked_fuses: Annotated[list[str], only(([],), "Fused commands to hide", "commands cannot be hidden")] = (
        msgspec.field(default_factory=list)
    )


class CreateSubsystem(TargetRequest, frozen=True, kw_only=True):
    """nvmf_create_subsystem"""

    nqn: SubNqn
    serial_number: Annotated[str, doc("Serial number, at most 20 printable ASCII characters")] = "0" * 20
    model_number: Annotated[str, doc("Model number, at most 40 printable ASCII characters")] = "nvmet_p2p Controller"
    admin_label: Annotated[Text, refused("Label in the extended discovery log page", "it is not supported")] = UNSET
    max_namespaces: Annotated[
        int,
        Meta(ge=0, le=limits.NAMESPACES_PER_SUBSYSTEM_MAX, description="Largest namespace ID; 0 for the default of 32"),
    ] = 32
    allow_any_host: Annotated[bool, doc("Let every host connect, listed or not")] = False
    ana_reporting: Annotated[bool, doc("Report Asymmetric Namespace Access")] = False
    min_cntlid: Annotated[U16, doc("Smallest controller ID")] = limits.CNTLID_MIN
    max_cntlid: Annotated[U16, doc("Largest controller ID")] = limits.CNTLID_MAX
    dmrsl: Annotated[Number, only((2097152,), "Largest Dataset Management range", "it cannot be changed")] = UNSET
    wzsl: Annotated[U8 | UnsetType, only((12,), "Largest Write Zeroes", "it cannot be changed")] = UNSET
    passthrough: Annotated[Flag, only(FALSE, "Pass all I/O commands through", NO_PASSTHROUGH)] = UNSET
    enable_nssr: Annotated[Flag, only(FALSE, "NVM subsystem reset", "it is not supported")] = UNSET


class DeleteSubsystem(TargetRequest, frozen=True, kw_only=True):
    """nvmf_delete_subsystem"""

    nqn: SubNqn


class AddListener(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_add_listener"""

    nqn: Annotated[str, doc("NQN of the subsystem, or of the discovery subsystem")]
    listen_address: Address
    secure_channel: Annotated[bool, only(FALSE, "Take only connections that begin with TLS", NO_TLS)] = False
    ana_state: Annotated[AnaStateName, doc("ANA state of all groups on this listener")] = "optimized"
    sock_impl: Annotated[Text, refused("Socket implementation", "there is one")] = UNSET
    numa_id: Annotated[I32 | UnsetType, only((-1,), "NUMA node of all namespaces", VFIO_ONLY)] = UNSET


class RemoveListener(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_remove_listener"""

    nqn: Annotated[str, doc("NQN of the subsystem, or of the discovery subsystem")]
    listen_address: Address


class SetAnaState(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_listener_set_ana_state"""

    nqn: SubNqn
    listen_address: Address
    ana_state: Annotated[AnaStateName, doc("New state")]
    anagrpid: Annotated[U32, doc("ANA group; without it or with 0, all groups")] = 0


class NamespaceParams(Request, frozen=True, kw_only=True):
    """A namespace to add."""

    nsid: Annotated[U32, doc("Namespace ID; without it or with 0, the lowest free one")] = 0
    bdev_name: Annotated[str, doc("Name or UUID of the bdev")]
    nguid: Annotated[Text, doc("NGUID, 32 hexadecimal digits; without it, the bdev's UUID")] = UNSET
    eui64: Annotated[Text, doc("EUI-64, 16 hexadecimal digits")] = UNSET
    uuid: Annotated[Text, doc("UUID; without it, the bdev's")] = UNSET
    ptpl_file: Annotated[Text, refused("File for reservations", "reservations are not supported yet")] = UNSET
    anagrpid: Annotated[U32, doc("ANA group; without it or with 0, the group with the number of the namespace")] = 0
    no_auto_visible: Annotated[bool, doc("Show the namespace only to hosts given by nvmf_ns_add_host")] = False
    hide_metadata: Annotated[Flag, only(FALSE, "Deprecated in SPDK: hide metadata", NO_METADATA)] = UNSET


class AddNamespace(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_add_ns"""

    nqn: SubNqn
    namespace: Annotated[NamespaceParams, doc("The namespace")]


class RemoveNamespace(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_remove_ns"""

    nqn: SubNqn
    nsid: Nsid


class SetNamespaceAnaGroup(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_set_ns_ana_group"""

    nqn: SubNqn
    nsid: Nsid
    anagrpid: Annotated[U32, doc("ANA group")]


class AddHost(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_add_host"""

    nqn: SubNqn
    host: HostNqn
    psk: Annotated[Text, refused("Name of a TLS key", NO_TLS)] = UNSET
    dhchap_key: Annotated[Text, refused("Name of a DH-HMAC-CHAP key", NO_AUTH)] = UNSET
    dhchap_ctrlr_key: Annotated[Text, refused("Name of the controller's DH-HMAC-CHAP key", NO_AUTH)] = UNSET


class RemoveHost(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_remove_host"""

    nqn: SubNqn
    host: HostNqn
    timeout_ms: Annotated[
        U64 | UnsetType, doc("Accepted as SPDK has it; the host's controllers are ended before the answer in any case")
    ] = UNSET


class AllowAnyHost(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_allow_any_host"""

    nqn: SubNqn
    allow_any_host: Annotated[bool, doc("true: every host may connect; false: those on the list")]


class SetControllerModel(Request, frozen=True, kw_only=True):
    """p2p_subsystem_set_controller_model"""

    nqn: SubNqn
    controller_model: Annotated[
        Literal["dynamic", "static"],
        doc("dynamic: the target gives each host a controller identifier; static: the host may ask for one (Connect)"),
    ]


class NamespaceHost(TargetRequest, frozen=True, kw_only=True):
    """nvmf_ns_add_host, nvmf_ns_remove_host"""

    nqn: SubNqn
    nsid: Nsid
    host: HostNqn


class AddReferral(TargetRequest, frozen=True, kw_only=True):
    """nvmf_discovery_add_referral"""

    address: Address
    secure_channel: Annotated[bool, doc("Hosts need TLS to reach that discovery service")] = False
    subnqn: Annotated[str, doc("NQN of what is referred to")] = DISCOVERY_NQN


class RemoveReferral(TargetRequest, frozen=True, kw_only=True):
    """nvmf_discovery_remove_referral"""

    address: Address
    subnqn: Annotated[str, doc("NQN of what is referred to")] = DISCOVERY_NQN


class AdminPassthru(Request, frozen=True, kw_only=True):
    """Which admin commands SPDK would pass through to a drive; none here."""

    identify_ctrlr: Annotated[bool, only(FALSE, "Identify Controller", NO_PASSTHROUGH)] = False
    identify_uuid_list: Annotated[bool, only(FALSE, "Identify UUID List", NO_PASSTHROUGH)] = False
    get_log_page: Annotated[bool, only(FALSE, "Get Log Page", NO_PASSTHROUGH)] = False
    get_set_features: Annotated[bool, only(FALSE, "Get and Set Features", NO_PASSTHROUGH)] = False
    sanitize: Annotated[bool, only(FALSE, "Sanitize", NO_PASSTHROUGH)] = False
    security_send_recv: Annotated[bool, only(FALSE, "Security Send and Receive", NO_PASSTHROUGH)] = False
    fw_update: Annotated[bool, only(FALSE, "Firmware Download and Commit", NO_PASSTHROUGH)] = False
    nvme_mi: Annotated[bool, only(FALSE, "NVMe-MI Send and Receive", NO_PASSTHROUGH)] = False
    vendor_specific: Annotated[bool, only(FALSE, "Vendor specific commands", NO_PASSTHROUGH)] = False


class SetConfig(Request, frozen=True, kw_only=True):
    """nvmf_set_config"""

    admin_cmd_passthru: Annotated[AdminPassthru | UnsetType, doc("Commands to pass through")] = UNSET
    poll_groups_mask: Annotated[Text, refused("CPUs of the poll groups", "there are no poll groups")] = UNSET
    discovery_filter: Annotated[
        Text, doc("Deprecated in SPDK: as discovery_filters, but one string with commas, or match_any")
    ] = UNSET
    discovery_filters: Annotated[
        list[str] | UnsetType,
        doc("Which listeners a host is told of: those that match the one it asked by transport, address, svcid"),
    ] = UNSET
    dhchap_digests: Annotated[
        list[str] | UnsetType, only((["sha256", "sha384", "sha512"],), "Digests allowed", NO_AUTH)
    ] = UNSET
    dhchap_dhgroups: Annotated[
        list[str] | UnsetType,
        only(
            (["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"],),
            "Diffie-Hellman groups allowed",
            NO_AUTH,
        ),
    ] = UNSET
    dup_host_policy: Annotated[
        Text, only(("allow",), "What to do when a host connects twice", "a second connection is always allowed")
    ] = UNSET


class SetCrdt(Request, frozen=True, kw_only=True):
    """nvmf_set_crdt"""

    crdt1: Annotated[U16, doc("Command Retry Delay Time 1 in units of 100 ms")] = 0
    crdt2: Annotated[U16, doc("Command Retry Delay Time 2 in units of 100 ms")] = 0
    crdt3: Annotated[U16, doc("Command Retry Delay Time 3 in units of 100 ms")] = 0


class SetMaxSubsystems(Request, frozen=True, kw_only=True):
    """nvmf_set_max_subsystems"""

    max_subsystems: Annotated[
        int,
        Meta(ge=1, le=limits.SUBSYSTEMS_MAX, description="NVM subsystems at most, the discovery subsystem not counted"),
    ]
