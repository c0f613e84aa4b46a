"""Parameters of the ``bdev_nvme_*`` methods: SPDK 26.09's names and types."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nvmet_p2p.target.request_types import I32, U8, U16, U32, U64, UNSET, Request, UnsetType, doc, hint, only, refused
from nvmet_p2p.target.requests_bdev import BdevCreate
from nvmet_p2p.target.requests_nvmf import NO_METADATA, Flag, Number

ControllerName = Annotated[str, doc("Name of the controller")]
Text = str | UnsetType
Long = U64 | UnsetType
Signed = I32 | UnsetType
TimeoutAction = Literal["none", "reset", "abort"]
MultipathPolicy = Literal["active_passive", "active_active"]
MultipathSelector = Literal["round_robin", "queue_depth"]
NO_PATHS = "a controller has one path"
NO_TLS = "TLS to other targets is not supported"
NO_AUTH = "authentication with other targets is not supported"
LOSS = "Seconds until a controller that cannot be reached is given up; -1: never, 0: at once"
DELAY = "Seconds between attempts to reach it again; 0: none"
FAST = "Seconds until I/O fails while it cannot be reached; 0: only when the controller is given up"


class MultipathOpts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """multipath_opts of bdev_nvme_attach_controller and bdev_nvme_set_options"""

    policy: Annotated[MultipathPolicy | UnsetType, only(("active_passive",), "Which paths are used", NO_PATHS)] = UNSET
    selector: Annotated[MultipathSelector | UnsetType, hint("How active paths take turns")] = UNSET
    min_io: Annotated[Number, hint("I/O on a path before the next one's turn")] = UNSET


class AttachController(Request, frozen=True, kw_only=True):
    """bdev_nvme_attach_controller"""

    name: Annotated[str, doc("Name of the controller; a bdev of it is this name, 'n' and the namespace's ID")]
    trtype: Annotated[str, doc("PCIe (a drive on vfio-pci) or TCP (another target)")]
    traddr: Annotated[str, doc("PCI address of the drive, or IP address of the target")]
    adrfam: Annotated[Text, doc("IPv4 or IPv6")] = UNSET
    trsvcid: Annotated[Text, doc("TCP port")] = UNSET
    priority: Annotated[Text, refused("Priority of the connection", "it cannot be chosen")] = UNSET
    subnqn: Annotated[Text, doc("NQN of the subsystem")] = UNSET
    hostnqn: Annotated[Text, doc("NQN that the target is told; without it one is made")] = UNSET
    hostaddr: Annotated[Text, doc("IP address that the connections come from")] = UNSET
    hostsvcid: Annotated[Text, doc("TCP port that the connections come from")] = UNSET
    prchk_reftag: Annotated[Flag, only((False,), "Check reference tags", NO_METADATA)] = UNSET
    prchk_guard: Annotated[Flag, only((False,), "Check guards", NO_METADATA)] = UNSET
    hdgst: Annotated[bool, doc("TCP header digests")] = False
    ddgst: Annotated[bool, doc("TCP data digests")] = False
    fabrics_connect_timeout_us: Annotated[Long, hint("Microseconds that a Connect may take")] = UNSET
    multipath: Annotated[
        Literal["failover", "multipath", "disable"] | UnsetType,
        doc("What a second call with this name means. It is always refused: a controller has one path"),
    ] = UNSET
    num_io_queues: Annotated[Number, hint("I/O queues to ask for; one for each CPU of the data plane is made")] = UNSET
    ctrlr_loss_timeout_sec: Annotated[Signed, doc(LOSS)] = UNSET
    reconnect_delay_sec: Annotated[Number, doc(DELAY)] = UNSET
    fast_io_fail_timeout_sec: Annotated[Number, doc(FAST)] = UNSET
    psk: Annotated[Text, refused("Name of a TLS key", NO_TLS)] = UNSET
    max_bdevs: Annotated[U32, doc("Namespaces that are taken at most")] = 128
    dhchap_key: Annotated[Text, refused("Name of a DH-HMAC-CHAP key", NO_AUTH)] = UNSET
    dhchap_ctrlr_key: Annotated[Text, refused("Name of the controller's DH-HMAC-CHAP key", NO_AUTH)] = UNSET
    allow_unrecognized_csi: Annotated[
        Flag, only((False,), "Take namespaces of other command sets", "only the NVM command set is served")
    ] = UNSET
    multipath_opts: Annotated[MultipathOpts | UnsetType, doc("Options of multipath")] = UNSET
    disable_sq_flow_control: Annotated[Flag, only((False,), "No SQ flow control", "it cannot be chosen")] = UNSET


class ControllerPath(Request, frozen=True, kw_only=True):
    """bdev_nvme_detach_controller"""

    name: ControllerName
    trtype: Annotated[Text, doc("Only if its path is this one, here and below")] = UNSET
    traddr: Annotated[Text, doc("Address")] = UNSET
    adrfam: Annotated[Text, doc("Address family")] = UNSET
    trsvcid: Annotated[Text, doc("TCP port")] = UNSET
    subnqn: Annotated[Text, doc("NQN of the subsystem")] = UNSET
    hostaddr: Annotated[Text, doc("IP address that the connections come from")] = UNSET
    hostsvcid: Annotated[Text, doc("TCP port that the connections come from")] = UNSET


class GetControllers(Request, frozen=True, kw_only=True):
    """bdev_nvme_get_controllers"""

    name: Annotated[Text, doc("Name of one controller; without it, all")] = UNSET


class ResetController(Request, frozen=True, kw_only=True):
    """bdev_nvme_reset_controller"""

    name: ControllerName
    cntlid: Annotated[U16, doc("Only if the controller has this identifier; 0: whatever it has")] = 0


class HealthInfo(Request, frozen=True, kw_only=True):
    """bdev_nvme_get_controller_health_info"""

    name: ControllerName


class SetHotplug(Request, frozen=True, kw_only=True):
    """bdev_nvme_set_hotplug"""

    enable: Annotated[bool, doc("Attach drives that come back at once; otherwise they are looked for now and then")]
    period_us: Annotated[
        Annotated[int, Meta(ge=0, le=10_000_000)] | UnsetType,
        doc("Microseconds between two looks for drives that came or went; 0: as it is without a call"),
    ] = UNSET


class ExpectNamespace(BdevCreate, frozen=True, kw_only=True):
    """p2p_nvme_expect_namespace"""

    name: Annotated[str, doc("Name of the bdev: that of the controller, 'n' and the namespace's ID")]
    identity: Annotated[
        Annotated[str, Meta(max_length=79)],
        doc("How the namespace identifies itself; another one in its place is refused. Empty: whatever is found first"),
    ] = ""


class SetOptions(Request, frozen=True, kw_only=True):
    """bdev_nvme_set_options"""

    action_on_timeout: Annotated[TimeoutAction | UnsetType, doc("What to do with a command that takes too long")] = (
        UNSET
    )
    timeout_us: Annotated[Long, doc("Microseconds that an I/O command may take; 0: any time")] = UNSET
    timeout_admin_us: Annotated[Long, doc("The same for admin commands; 0: as for I/O commands")] = UNSET
    keep_alive_timeout_ms: Annotated[Number, doc("Keep Alive Timeout in milliseconds; 0: SPDK's default")] = UNSET
    arbitration_burst: Annotated[Number, hint("Power of two of commands launched at once")] = UNSET
    low_priority_weight: Annotated[Number, hint("Weight of low priority queues")] = UNSET
    medium_priority_weight: Annotated[Number, hint("Weight of medium priority queues")] = UNSET
    high_priority_weight: Annotated[Number, hint("Weight of high priority queues")] = UNSET
    nvme_adminq_poll_period_us: Annotated[Long, hint("Microseconds between looks at the admin queue")] = UNSET
    nvme_ioq_poll_period_us: Annotated[Long, hint("Microseconds between looks at I/O queues")] = UNSET
    io_queue_requests: Annotated[Number, hint("Requests of an I/O queue")] = UNSET
    delay_cmd_submit: Annotated[Flag, hint("Submit commands in batches")] = UNSET
    transport_retry_count: Annotated[Number, hint("Attempts of the driver for a command")] = UNSET
    bdev_retry_count: Annotated[
        Signed, doc("Attempts for a command that the drive has not decided; -1: any number")
    ] = UNSET
    transport_ack_timeout: Annotated[U8 | UnsetType, hint("Time until an acknowledgement, as a power of two")] = UNSET
    ctrlr_loss_timeout_sec: Annotated[
        Signed, doc(f"{LOSS}. For controllers whose call says nothing, as the next two")
    ] = UNSET
    reconnect_delay_sec: Annotated[Number, doc(DELAY)] = UNSET
    fast_io_fail_timeout_sec: Annotated[Number, doc(FAST)] = UNSET
    disable_auto_failback: Annotated[Flag, hint("Do not return to the preferred path")] = UNSET
    generate_uuids: Annotated[Flag, hint("UUIDs for namespaces without one; they are always made")] = UNSET
    transport_tos: Annotated[U8 | UnsetType, hint("Type of service")] = UNSET
    nvme_error_stat: Annotated[Flag, hint("Count NVMe errors")] = UNSET
    rdma_srq_size: Annotated[Number, hint("RDMA: entries of a shared receive queue")] = UNSET
    io_path_stat: Annotated[Flag, hint("Count I/O by path")] = UNSET
    allow_accel_sequence: Annotated[Flag, hint("Sequences of accelerated operations")] = UNSET
    rdma_max_cq_size: Annotated[Number, hint("RDMA: entries of a completion queue")] = UNSET
    rdma_cm_event_timeout_ms: Annotated[U16 | UnsetType, hint("RDMA: milliseconds until an event")] = UNSET
    dhchap_digests: Annotated[list[str] | UnsetType, hint("Digests of DH-HMAC-CHAP")] = UNSET
    dhchap_dhgroups: Annotated[list[str] | UnsetType, hint("Groups of DH-HMAC-CHAP")] = UNSET
    rdma_umr_per_io: Annotated[Flag, hint("RDMA: a memory region for each I/O")] = UNSET
    tcp_connect_timeout_ms: Annotated[Number, hint("TCP: milliseconds that connecting may take")] = UNSET
    enable_flush: Annotated[Flag, hint("Pass Flush on; it always is, where there is a volatile cache")] = UNSET
    multipath_opts: Annotated[MultipathOpts | UnsetType, doc("Options of multipath")] = UNSET
