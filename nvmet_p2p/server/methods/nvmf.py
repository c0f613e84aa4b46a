"""``nvmf_*`` methods that show something."""

from __future__ import annotations

import errno
from typing import Annotated, Any, Final

from msgspec import UNSET, UnsetType

from nvmet_p2p.server.context import Context
from nvmet_p2p.server.methods.bdev import TICK_RATE
from nvmet_p2p.server.schema import Method
from nvmet_p2p.state.render import address_params, transport_params
from nvmet_p2p.target.config import ListenerConfig, NamespaceConfig, SubsystemConfig
from nvmet_p2p.target.operations import DISCOVERY_SUBSYSTEM, ana_group_count, check_target, find_subsystem
from nvmet_p2p.target.request_types import NoParams, TargetRequest, doc
from nvmet_p2p.target.requests_nvmf import SubNqn
from nvmet_p2p.target.validate import DISCOVERY_NQN, TARGET_NAME, failed, internal

Shown = dict[str, Any]


class GetTransports(TargetRequest, frozen=True, kw_only=True):
    """nvmf_get_transports"""

    trtype: Annotated[str | UnsetType, doc("Transport type; without it, all")] = UNSET


class GetSubsystems(TargetRequest, frozen=True, kw_only=True):
    """nvmf_get_subsystems"""

    nqn: Annotated[str | UnsetType, doc("NQN of one subsystem; without it, all")] = UNSET


class OfSubsystem(TargetRequest, frozen=True, kw_only=True):
    """nvmf_subsystem_get_controllers, nvmf_subsystem_get_qpairs, nvmf_subsystem_get_listeners"""

    nqn: SubNqn


class OfTarget(TargetRequest, frozen=True, kw_only=True):
    """nvmf_discovery_get_referrals, nvmf_get_stats"""


async def get_targets(_: Context, __: NoParams) -> list[str]:
    return [TARGET_NAME]


async def get_transports(context: Context, p: GetTransports) -> list[Shown]:
    check_target(p, internal)
    transports = context.config.transports
    if isinstance(p.trtype, UnsetType):
        return [transport_params(transport) for transport in transports.values()]
    transport = transports.get(p.trtype.upper())
    if transport is None:
        raise failed(errno.ENODEV, f"there is no transport {p.trtype!r}")
    return [transport_params(transport)]


async def get_subsystems(context: Context, p: GetSubsystems) -> list[Shown]:
    check_target(p)
    if not isinstance(p.nqn, UnsetType):
        return [_subsystem(find_subsystem(context.config, p.nqn))]
    everything = {DISCOVERY_NQN: DISCOVERY_SUBSYSTEM} | context.config.subsystems
    return [_subsystem(subsystem) for subsystem in everything.values()]


def _subsystem(subsystem: SubsystemConfig) -> Shown:
    shown: Shown = {
        "nqn": subsystem.nqn,
        "subtype": subsystem.subtype,
        "listen_addresses": [address_params(listener.address) for listener in subsystem.listeners],
        "allow_any_host": subsystem.allow_any_host,
        "hosts": [{"nqn": host.nqn} for host in subsystem.hosts.values()],
    }
    if subsystem.subtype == "NVMe":
        shown |= {
            "serial_number": subsystem.serial_number,
            "model_number": subsystem.model_number,
            "max_namespaces": subsystem.max_namespaces,
            "passthrough": False,
            "min_cntlid": subsystem.min_cntlid,
            "max_cntlid": subsystem.max_cntlid,
            "namespaces": [
                _namespace(namespace, ana=subsystem.ana_reporting)
                for _, namespace in sorted(subsystem.namespaces.items())
            ],
        }
    return shown


def _namespace(namespace: NamespaceConfig, *, ana: bool) -> Shown:
    shown: Shown = {"nsid": namespace.nsid, "bdev_name": namespace.bdev_name, "name": namespace.bdev_name}
    shown["nguid"] = namespace.nguid.upper()
    if namespace.eui64:
        shown["eui64"] = namespace.eui64.upper()
    shown["uuid"] = namespace.uuid
    if ana:
        shown["anagrpid"] = namespace.anagrpid
    return shown


async def get_controllers(context: Context, p: OfSubsystem) -> list[Shown]:
    check_target(p)
    nqn = find_subsystem(context.config, p.nqn).nqn
    return [
        {
            "cntlid": controller.cntlid,
            "cntrltype": controller.cntrltype,
            "hostnqn": controller.hostnqn,
            "hostid": controller.hostid,
            "num_io_qpairs": controller.num_io_qpairs,
        }
        for controller in context.controllers()
        if controller.subnqn == nqn
    ]


async def get_qpairs(context: Context, p: OfSubsystem) -> list[Shown]:
    check_target(p)
    nqn = find_subsystem(context.config, p.nqn).nqn
    return [
        {
            "cntlid": qpair.cntlid,
            "qid": qpair.qid,
            "state": qpair.state,
            "thread": context.dataplane.name,
            "hostnqn": qpair.hostnqn,
            "listen_address": address_params(qpair.listen_address),
            "peer_address": address_params(qpair.peer),
        }
        for qpair in context.qpairs()
        if qpair.subnqn == nqn
    ]


async def get_listeners(context: Context, p: OfSubsystem) -> list[Shown]:
    check_target(p)
    subsystem = find_subsystem(context.config, p.nqn)
    return [_listener(subsystem, listener) for listener in subsystem.listeners]


def _listener(subsystem: SubsystemConfig, listener: ListenerConfig) -> Shown:
    shown: Shown = {"address": address_params(listener.address)}
    if subsystem.ana_reporting:
        shown["ana_states"] = [
            {"ana_group": group, "ana_state": listener.ana_states.get(group, "optimized")}
            for group in range(1, ana_group_count(subsystem) + 1)
        ]
    return shown


async def get_referrals(context: Context, p: OfTarget) -> list[Shown]:
    check_target(p, internal)
    return [
        {
            "address": address_params(referral.address),
            "secure_channel": referral.secure_channel,
            "subnqn": referral.subnqn,
        }
        for referral in context.config.referrals
    ]


async def get_stats(context: Context, p: OfTarget) -> Shown:
    check_target(p, internal)
    stats = context.queue_stats()
    group = {
        "name": context.dataplane.name,
        "admin_qpairs": stats.admin_qpairs,
        "io_qpairs": stats.io_qpairs,
        "current_admin_qpairs": stats.current_admin_qpairs,
        "current_io_qpairs": stats.current_io_qpairs,
        "current_unassociated_qpairs": stats.current_unassociated_qpairs,
        "pending_bdev_io": stats.pending_bdev_io,
        "completed_nvme_io": stats.completed_nvme_io,
        "transports": [await _transport_stats(context, trtype) for trtype in context.config.transports],
    }
    return {"tick_rate": TICK_RATE, "poll_groups": [group]}


DEVICE_COUNTERS: Final = (
    "polls", "idle_polls", "completions", "requests", "request_latency", "pending_free_request", "pending_rdma_read",
    "pending_rdma_write", "pending_rdma_send", "total_send_wrs", "send_doorbell_updates", "total_recv_wrs",
    "recv_doorbell_updates",
)  # fmt: skip


async def _transport_stats(context: Context, trtype: str) -> Shown:
    """What SPDK shows of a transport in a poll group: of RDMA, the counters of each device."""
    if trtype != "RDMA":
        return {"trtype": trtype}
    status = await context.dataplane.rdma_status()
    return {
        "trtype": trtype,
        "pending_data_buffer": status.pending_data_buffer,
        "devices": [
            {"name": device.get("name", ""), **{name: device.get(name, 0) for name in DEVICE_COUNTERS}}
            for device in status.devices
        ],
    }


_LIST = list[dict[str, Any]]

NVMF: Final = (
    Method(
        name="nvmf_get_targets",
        params=NoParams,
        handler=get_targets,
        summary="Show the names of the targets: there is one.",
        result="list of names",
        result_type=list[str],
    ),
    Method(
        name="nvmf_get_transports",
        params=GetTransports,
        handler=get_transports,
        summary="Show the transports and their options.",
        result="list of transports",
        result_type=_LIST,
        errors={-19: "there is no such transport"},
    ),
    Method(
        name="nvmf_get_subsystems",
        params=GetSubsystems,
        handler=get_subsystems,
        summary="Show the subsystems, the discovery subsystem first.",
        result="list of subsystems with their listeners, hosts and namespaces",
        result_type=_LIST,
    ),
    Method(
        name="nvmf_subsystem_get_controllers",
        params=OfSubsystem,
        handler=get_controllers,
        summary="Show the controllers that hosts have on a subsystem now.",
        result="list of controllers",
        result_type=_LIST,
    ),
    Method(
        name="nvmf_subsystem_get_qpairs",
        params=OfSubsystem,
        handler=get_qpairs,
        summary="Show the queues that are connected to a subsystem now.",
        result="list of queues with their addresses",
        result_type=_LIST,
    ),
    Method(
        name="nvmf_subsystem_get_listeners",
        params=OfSubsystem,
        handler=get_listeners,
        summary="Show the listeners of a subsystem and, with ana_reporting, their ANA states.",
        result="list of listeners",
        result_type=_LIST,
    ),
    Method(
        name="nvmf_discovery_get_referrals",
        params=OfTarget,
        handler=get_referrals,
        summary="Show the referrals.",
        result="list of referrals",
        result_type=_LIST,
    ),
    Method(
        name="nvmf_get_stats",
        params=OfTarget,
        handler=get_stats,
        summary="Show numbers of queues and commands; the whole target is shown as one poll group.",
        result="tick_rate and poll_groups",
        result_type=dict[str, Any],
    ),
)
