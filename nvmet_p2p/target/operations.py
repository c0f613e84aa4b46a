"""Configuration changes: pure functions from a configuration and a request to the next configuration and the answer.

A request has been decoded (``request_types.decode``), so names, types and ranges are right; here is checked what
depends on the rest of the configuration. Every refusal is an ``OperatorError`` with the code that SPDK 26.09 answers in
the same case; nothing else is ever raised. ``operations_bdev.OPERATIONS`` names all operations by JSON-RPC method.

Order is kept: what was added later comes later, in memory and in a saved configuration, so that a saved and loaded
configuration is saved again byte for byte.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from msgspec import UnsetType
from msgspec.structs import replace

from nvmet_p2p import limits
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target import requests_nvmf as req
from nvmet_p2p.target.config import (
    BdevConfig,
    HostConfig,
    ListenAddress,
    ListenerConfig,
    NamespaceConfig,
    ReferralConfig,
    SubsystemConfig,
    TargetConfig,
    TransportConfig,
)
from nvmet_p2p.target.request_types import AnaStateName, Request, TargetRequest
from nvmet_p2p.target.validate import (
    DISCOVERY_NQN,
    TARGET_NAME,
    ascii_fault,
    failed,
    internal,
    invalid,
    nqn_fault,
    parse_address,
    parse_hex_id,
    parse_transport_type,
    parse_uuid,
    unsupported,
)

DISCOVERY_SUBSYSTEM: Final = SubsystemConfig(
    nqn=DISCOVERY_NQN, subtype="Discovery", allow_any_host=True, max_namespaces=0
)
MAX_NAMESPACES_DEFAULT: Final = 32
MATCH_ANY: Final = "match_any"
RDMA_DATA_WR_POOL_SIZE: Final = 4095
DISCOVERY_FILTERS: Final = ("transport", "address", "svcid")


class Change(NamedTuple):
    """The configuration that a request leads to, and what it is answered."""

    config: TargetConfig
    result: Any = True


R = TypeVar("R", bound=Request)


class Operation(NamedTuple):
    """A method that changes the configuration."""

    request: type[Request]
    apply: Callable[[TargetConfig, Any], Change]


# -- finding -----------------------------------------------------------------------------------------------------------


def check_target(request: TargetRequest, refuse: Callable[[str], OperatorError] = invalid) -> None:
    """There is one target."""
    if request.tgt_name != TARGET_NAME:
        raise refuse(f"params.tgt_name: there is no target {request.tgt_name!r}, only {TARGET_NAME!r}")


def find_subsystem(config: TargetConfig, nqn: str) -> SubsystemConfig:
    """The subsystem of that name; the discovery subsystem is always there. -32602 when there is none."""
    found = config.subsystems.get(nqn)
    if found is not None:
        return found
    if nqn == DISCOVERY_NQN:
        return DISCOVERY_SUBSYSTEM
    raise invalid(f"params.nqn: there is no subsystem {nqn!r}")


def find_bdev(config: TargetConfig, name: str) -> BdevConfig | None:
    """A bdev by its name or by its UUID, which is its alias."""
    found = config.bdevs.get(name)
    if found is not None:
        return found
    uuid = name.lower()
    return next((bdev for bdev in config.bdevs.values() if bdev.uuid == uuid), None)


def claims(config: TargetConfig) -> dict[str, tuple[str, int]]:
    """Which namespace (subsystem NQN, NSID) has each bdev that is in use. A bdev serves one namespace at most."""
    return {
        namespace.bdev_name: (subsystem.nqn, nsid)
        for subsystem in config.subsystems.values()
        for nsid, namespace in subsystem.namespaces.items()
    }


def bdevs_on(config: TargetConfig, base: str) -> list[BdevConfig]:
    """The delay and error bdevs directly on top of a bdev; it serves nothing else then."""
    return [bdev for bdev in config.bdevs.values() if bdev.base == base]


def ana_group_count(subsystem: SubsystemConfig) -> int:
    """ANA groups of a subsystem are numbered from 1 to this."""
    return min(subsystem.max_namespaces, limits.ANA_GROUPS_MAX)


def _nvm_subsystem(config: TargetConfig, request: TargetRequest, nqn: str) -> SubsystemConfig:
    check_target(request)
    subsystem = find_subsystem(config, nqn)
    if subsystem.subtype == "Discovery":
        raise unsupported("params.nqn: the discovery subsystem has listeners only, and every host may use it")
    return subsystem


def _namespace(subsystem: SubsystemConfig, nsid: int) -> NamespaceConfig:
    found = subsystem.namespaces.get(nsid)
    if found is None:
        raise invalid(f"params.nsid: subsystem {subsystem.nqn!r} has no namespace {nsid}")
    return found


def _with(config: TargetConfig, subsystem: SubsystemConfig) -> TargetConfig:
    return replace(config, subsystems=config.subsystems | {subsystem.nqn: subsystem})


def _with_namespace(config: TargetConfig, subsystem: SubsystemConfig, namespace: NamespaceConfig) -> TargetConfig:
    namespaces = subsystem.namespaces | {namespace.nsid: namespace}
    return _with(config, replace(subsystem, namespaces=namespaces))


def _address(
    params: req.ListenAddressParams, where: str, missing_service: OperatorError | None = None
) -> ListenAddress:
    return parse_address(
        params.trtype, params.adrfam, params.traddr, params.trsvcid, where, missing_service=missing_service
    )


# -- the target as a whole ---------------------------------------------------------------------------------------------


def create_transport(config: TargetConfig, p: req.CreateTransport) -> Change:
    check_target(p, internal)
    trtype = parse_transport_type(p.trtype, "params.trtype")
    if trtype in config.transports:
        raise internal(f"params.trtype: transport {trtype!r} exists already")
    if p.max_io_size & (p.max_io_size - 1):
        raise internal(f"params.max_io_size: {p.max_io_size} is not a power of two")
    if p.in_capsule_data_size > p.max_io_size:
        raise internal(
            f"params.in_capsule_data_size: {p.in_capsule_data_size} is more than max_io_size {p.max_io_size}"
        )
    own = _rdma_options(p) if trtype == "RDMA" else _tcp_options(p)
    unit_ms = p.kas * limits.KATO_GRANULARITY_MS
    small_cache = p.iobuf_small_cache_size
    if not isinstance(p.buf_cache_size, UnsetType) and p.buf_cache_size != 0:
        small_cache = p.buf_cache_size  # the older name of the same option wins, as in SPDK
    transport = TransportConfig(
        trtype=trtype,
        max_queue_depth=p.max_queue_depth,
        max_io_qpairs_per_ctrlr=p.max_io_qpairs_per_ctrlr,
        in_capsule_data_size=p.in_capsule_data_size,
        max_io_size=p.max_io_size,
        io_unit_size=p.io_unit_size,
        max_aq_depth=p.max_aq_depth,
        num_shared_buffers=p.num_shared_buffers,
        iobuf_small_cache_size=small_cache,
        iobuf_large_cache_size=p.iobuf_large_cache_size,
        zcopy=p.zcopy,
        c2h_success=p.c2h_success or trtype == "RDMA",
        abort_timeout_sec=p.abort_timeout_sec,
        acceptor_poll_rate=p.acceptor_poll_rate,
        ack_timeout=p.ack_timeout,
        control_msg_num=p.control_msg_num,
        disable_command_passthru=p.disable_command_passthru,
        kas=p.kas,
        min_kato=-(-p.min_kato // unit_ms) * unit_ms,
        **own,
    )
    return Change(replace(config, transports=config.transports | {trtype: transport}))


def _tcp_options(p: req.CreateTransport) -> dict[str, Any]:
    for name in req.RDMA_OPTIONS:
        value = getattr(p, name)
        if not isinstance(value, UnsetType) and value is not False:
            raise unsupported(f"params.{name}: an option of the RDMA transport")
    return {} if isinstance(p.data_wr_pool_size, UnsetType) else {"data_wr_pool_size": p.data_wr_pool_size}


def _rdma_options(p: req.CreateTransport) -> dict[str, Any]:
    if p.in_capsule_data_size > limits.RDMA_ICD_BYTES_MAX:
        raise internal(
            f"params.in_capsule_data_size: {p.in_capsule_data_size} is more than {limits.RDMA_ICD_BYTES_MAX} (RDMA)"
        )
    given = {
        name: getattr(p, name)
        for name in (*req.RDMA_OPTIONS, "data_wr_pool_size")
        if not isinstance(getattr(p, name), UnsetType)
    }
    if given.get("acceptor_backlog", 1) < 1:
        given["acceptor_backlog"] = limits.RDMA_BACKLOG_DEFAULT
    return {"data_wr_pool_size": RDMA_DATA_WR_POOL_SIZE, **given}


def set_config(config: TargetConfig, p: req.SetConfig) -> Change:
    if not isinstance(p.discovery_filters, UnsetType):
        return Change(replace(config, discovery_filter=_discovery_filter(p.discovery_filters, "discovery_filters")))
    if not isinstance(p.discovery_filter, UnsetType):
        words = [word for word in p.discovery_filter.split(",") if word]
        if words == [MATCH_ANY]:
            words = []
        return Change(replace(config, discovery_filter=_discovery_filter(words, "discovery_filter")))
    return Change(config)


def _discovery_filter(words: list[str], name: str) -> str:
    for word in words:
        if word not in DISCOVERY_FILTERS:
            raise invalid(f"params.{name}: {word!r} is not one of {', '.join(DISCOVERY_FILTERS)}")
    return ",".join(word for word in DISCOVERY_FILTERS if word in words) or MATCH_ANY


def discovery_filters(config: TargetConfig) -> list[str]:
    """The discovery filter as ``nvmf_set_config`` takes it."""
    return [] if config.discovery_filter == MATCH_ANY else config.discovery_filter.split(",")


def set_crdt(config: TargetConfig, p: req.SetCrdt) -> Change:
    return Change(replace(config, crdt=(p.crdt1, p.crdt2, p.crdt3)))


def set_max_subsystems(config: TargetConfig, p: req.SetMaxSubsystems) -> Change:
    present = _nvm_subsystem_count(config)
    if p.max_subsystems < present:
        raise invalid(f"params.max_subsystems: there are {present} subsystems already")
    return Change(replace(config, max_subsystems=p.max_subsystems))


def _nvm_subsystem_count(config: TargetConfig) -> int:
    return sum(subsystem.subtype == "NVMe" for subsystem in config.subsystems.values())


def add_referral(config: TargetConfig, p: req.AddReferral) -> Change:
    check_target(p, internal)
    address = _address(p.address, "params.address", internal("params.address.trsvcid: required, a port number"))
    fault = nqn_fault(p.subnqn)
    if fault is not None:
        raise internal(f"params.subnqn: {p.subnqn!r}: {fault}")
    if any(r.address == address and r.subnqn == p.subnqn for r in config.referrals):
        return Change(config)  # SPDK takes the same referral twice, and so do scripts
    if len(config.referrals) >= limits.REFERRALS_MAX:
        raise internal(f"there are {limits.REFERRALS_MAX} referrals, which is the most")
    referral = ReferralConfig(address=address, subnqn=p.subnqn, secure_channel=p.secure_channel)
    return Change(replace(config, referrals=(*config.referrals, referral)))


def remove_referral(config: TargetConfig, p: req.RemoveReferral) -> Change:
    check_target(p, internal)
    address = _address(p.address, "params.address")
    left = tuple(r for r in config.referrals if (r.address, r.subnqn) != (address, p.subnqn))
    if len(left) == len(config.referrals):
        raise internal(f"params.address: there is no referral to {p.subnqn!r} at {address.traddr}:{address.trsvcid}")
    return Change(replace(config, referrals=left))


# -- subsystems and hosts ----------------------------------------------------------------------------------------------


def create_subsystem(config: TargetConfig, p: req.CreateSubsystem) -> Change:
    check_target(p, internal)
    for name, text, length_max in (
        ("serial_number", p.serial_number, limits.SERIAL_NUMBER_LEN_MAX),
        ("model_number", p.model_number, limits.MODEL_NUMBER_LEN_MAX),
    ):
        fault = ascii_fault(text, length_max)
        if fault is not None:
            raise invalid(f"params.{name}: {text!r}: {fault}")
    if not limits.CNTLID_MIN <= p.min_cntlid <= p.max_cntlid <= limits.CNTLID_MAX:
        raise invalid(
            f"params.min_cntlid, params.max_cntlid: {p.min_cntlid} to {p.max_cntlid} is not a range within "
            f"{limits.CNTLID_MIN} to {limits.CNTLID_MAX}"
        )
    fault = nqn_fault(p.nqn)
    if fault is not None:
        raise internal(f"params.nqn: {p.nqn!r}: {fault}")
    if p.nqn in config.subsystems or p.nqn == DISCOVERY_NQN:
        raise internal(f"params.nqn: subsystem {p.nqn!r} exists already")
    if _nvm_subsystem_count(config) >= config.max_subsystems:
        raise internal(f"there are {config.max_subsystems} subsystems, which is the most (nvmf_set_max_subsystems)")
    subsystem = SubsystemConfig(
        nqn=p.nqn,
        serial_number=p.serial_number,
        model_number=p.model_number,
        max_namespaces=p.max_namespaces or MAX_NAMESPACES_DEFAULT,
        allow_any_host=p.allow_any_host,
        ana_reporting=p.ana_reporting,
        min_cntlid=p.min_cntlid,
        max_cntlid=p.max_cntlid,
    )
    return Change(_with(config, subsystem))


def delete_subsystem(config: TargetConfig, p: req.DeleteSubsystem) -> Change:
    subsystem = _nvm_subsystem(config, p, p.nqn)
    left = {nqn: other for nqn, other in config.subsystems.items() if nqn != subsystem.nqn}
    return Change(replace(config, subsystems=left))


def allow_any_host(config: TargetConfig, p: req.AllowAnyHost) -> Change:
    subsystem = _nvm_subsystem(config, p, p.nqn)
    return Change(_with(config, replace(subsystem, allow_any_host=p.allow_any_host)))


def set_controller_model(config: TargetConfig, p: req.SetControllerModel) -> Change:
    """Before the first listener: Identify Controller (FCATT) must not change under a host."""
    subsystem = find_subsystem(config, p.nqn)
    if subsystem.subtype != "NVMe":
        raise unsupported("params.nqn: discovery controllers are always dynamic")
    if subsystem.listeners and subsystem.controller_model != p.controller_model:
        raise failed(
            errno.EBUSY, f"params.nqn: {p.nqn!r} has listeners; set its controller model before they are added"
        )
    return Change(_with(config, replace(subsystem, controller_model=p.controller_model)))


def add_host(config: TargetConfig, p: req.AddHost) -> Change:
    subsystem = _nvm_subsystem(config, p, p.nqn)
    fault = nqn_fault(p.host)
    if fault is not None:
        raise internal(f"params.host: {p.host!r}: {fault}")
    if p.host in subsystem.hosts:
        raise internal(f"params.host: {p.host!r} is on the list of subsystem {p.nqn!r} already")
    if len(subsystem.hosts) >= limits.HOSTS_PER_SUBSYSTEM_MAX:
        raise internal(f"subsystem {p.nqn!r} lists {limits.HOSTS_PER_SUBSYSTEM_MAX} hosts, which is the most")
    hosts = subsystem.hosts | {p.host: HostConfig(nqn=p.host)}
    return Change(_with(config, replace(subsystem, hosts=hosts)))


def remove_host(config: TargetConfig, p: req.RemoveHost) -> Change:
    subsystem = _nvm_subsystem(config, p, p.nqn)
    if p.host not in subsystem.hosts:
        raise internal(f"params.host: {p.host!r} is not on the list of subsystem {p.nqn!r}")
    hosts = {nqn: host for nqn, host in subsystem.hosts.items() if nqn != p.host}
    return Change(_with(config, replace(subsystem, hosts=hosts)))


# -- listeners ---------------------------------------------------------------------------------------------------------


def add_listener(config: TargetConfig, p: req.AddListener) -> Change:
    check_target(p)
    subsystem = find_subsystem(config, p.nqn)
    address = _address(p.listen_address, "params.listen_address")
    if address.trtype not in config.transports:
        raise invalid(f"params.listen_address.trtype: create transport {address.trtype!r} first")
    if any(listener.address == address for listener in subsystem.listeners):
        raise invalid(
            f"params.listen_address: subsystem {p.nqn!r} listens on {address.traddr}:{address.trsvcid} already"
        )
    if len(subsystem.listeners) >= limits.LISTENERS_PER_SUBSYSTEM_MAX:
        raise invalid(f"subsystem {p.nqn!r} has {limits.LISTENERS_PER_SUBSYSTEM_MAX} listeners, which is the most")
    states: dict[int, str] = {}
    if p.ana_state != "optimized":
        if not subsystem.ana_reporting:
            raise invalid(f"params.ana_state: subsystem {p.nqn!r} was created without ana_reporting")
        states = _ana_states({}, p.ana_state, range(1, ana_group_count(subsystem) + 1))
    listener = ListenerConfig(address=address, ana_states=states)
    return Change(_with(config, replace(subsystem, listeners=(*subsystem.listeners, listener))))


def remove_listener(config: TargetConfig, p: req.RemoveListener) -> Change:
    check_target(p)
    subsystem = find_subsystem(config, p.nqn)
    address = _address(p.listen_address, "params.listen_address")
    left = tuple(listener for listener in subsystem.listeners if listener.address != address)
    if len(left) == len(subsystem.listeners):
        raise invalid(f"params.listen_address: {p.nqn!r} does not listen on {address.traddr}:{address.trsvcid}")
    changed = replace(subsystem, listeners=left)
    if changed == DISCOVERY_SUBSYSTEM:  # nothing to say about it any more: one configuration, one form
        subsystems = {nqn: other for nqn, other in config.subsystems.items() if nqn != DISCOVERY_NQN}
        return Change(replace(config, subsystems=subsystems))
    return Change(_with(config, changed))


def set_ana_state(config: TargetConfig, p: req.SetAnaState) -> Change:
    address = _address(p.listen_address, "params.listen_address")
    subsystem = _nvm_subsystem(config, p, p.nqn)
    if not subsystem.ana_reporting:
        raise internal(f"params.nqn: subsystem {p.nqn!r} was created without ana_reporting")
    count = ana_group_count(subsystem)
    if p.anagrpid > count:
        raise internal(f"params.anagrpid: {p.anagrpid} is not from 1 to {count}, nor 0 for all")
    if all(listener.address != address for listener in subsystem.listeners):
        raise internal(f"params.listen_address: {p.nqn!r} does not listen on {address.traddr}:{address.trsvcid}")
    groups = [p.anagrpid] if p.anagrpid else range(1, count + 1)
    listeners = tuple(
        replace(listener, ana_states=_ana_states(listener.ana_states, p.ana_state, groups))
        if listener.address == address
        else listener
        for listener in subsystem.listeners
    )
    return Change(_with(config, replace(subsystem, listeners=listeners)))


def _ana_states(states: Mapping[int, str], new: AnaStateName, groups: list[int] | range) -> dict[int, str]:
    """Ordered by group; a group that is optimized is left out."""
    merged = dict(states) | dict.fromkeys(groups, str(new))
    return {group: merged[group] for group in sorted(merged) if merged[group] != "optimized"}


# -- namespaces --------------------------------------------------------------------------------------------------------


def add_namespace(config: TargetConfig, p: req.AddNamespace) -> Change:
    subsystem = _nvm_subsystem(config, p, p.nqn)
    where, ns = "params.namespace", p.namespace
    nsid = ns.nsid or next((n for n in range(1, subsystem.max_namespaces + 1) if n not in subsystem.namespaces), 0)
    if nsid == 0:
        raise invalid(f"subsystem {p.nqn!r} has {subsystem.max_namespaces} namespaces, which is the most")
    if nsid > subsystem.max_namespaces:
        raise invalid(f"{where}.nsid: {nsid} is more than max_namespaces {subsystem.max_namespaces} of {p.nqn!r}")
    if nsid in subsystem.namespaces:
        raise invalid(f"{where}.nsid: {p.nqn!r} has a namespace {nsid} already")
    group_count = ana_group_count(subsystem)
    anagrpid = ns.anagrpid or (nsid - 1) % group_count + 1
    if anagrpid > group_count:
        raise invalid(f"{where}.anagrpid: {anagrpid} is not from 1 to {group_count}")
    bdev = find_bdev(config, ns.bdev_name)
    if bdev is None:
        raise invalid(f"{where}.bdev_name: there is no bdev {ns.bdev_name!r}")
    claim = claims(config).get(bdev.name)
    if claim is not None:
        raise invalid(
            f"{where}.bdev_name: bdev {bdev.name!r} is namespace {claim[1]} of subsystem {claim[0]!r} already"
        )
    for above in bdevs_on(config, bdev.name):
        raise invalid(f"{where}.bdev_name: bdev {bdev.name!r} is below bdev {above.name!r}")
    uuid = "" if isinstance(ns.uuid, UnsetType) else parse_uuid(ns.uuid, f"{where}.uuid")
    nguid = "" if isinstance(ns.nguid, UnsetType) else parse_hex_id(ns.nguid, 16, f"{where}.nguid")
    eui64 = "" if isinstance(ns.eui64, UnsetType) else parse_hex_id(ns.eui64, 8, f"{where}.eui64")
    namespace = NamespaceConfig(
        nsid=nsid,
        bdev_name=bdev.name,
        uuid=uuid or bdev.uuid,
        nguid=nguid or bdev.uuid.replace("-", ""),
        eui64=eui64,
        anagrpid=anagrpid,
        no_auto_visible=ns.no_auto_visible,
    )
    _check_unique(subsystem, namespace)
    return Change(_with_namespace(config, subsystem, namespace), nsid)


def _check_unique(subsystem: SubsystemConfig, new: NamespaceConfig) -> None:
    """Hosts take two namespaces of one subsystem with one identifier for paths to the same data (base 4.7.1)."""
    for other in subsystem.namespaces.values():
        for field in ("uuid", "nguid", "eui64"):
            value = getattr(new, field)
            if value and value == getattr(other, field):
                raise invalid(f"params.namespace.{field}: namespace {other.nsid} has {value!r} already")


def remove_namespace(config: TargetConfig, p: req.RemoveNamespace) -> Change:
    subsystem = _nvm_subsystem(config, p, p.nqn)
    _namespace(subsystem, p.nsid)
    namespaces = {nsid: other for nsid, other in subsystem.namespaces.items() if nsid != p.nsid}
    return Change(_with(config, replace(subsystem, namespaces=namespaces)))


def set_namespace_ana_group(config: TargetConfig, p: req.SetNamespaceAnaGroup) -> Change:
    subsystem = _nvm_subsystem(config, p, p.nqn)
    namespace = _namespace(subsystem, p.nsid)
    count = ana_group_count(subsystem)
    if not 1 <= p.anagrpid <= count:
        raise invalid(f"params.anagrpid: {p.anagrpid} is not from 1 to {count}")
    return Change(_with_namespace(config, subsystem, replace(namespace, anagrpid=p.anagrpid)))


def add_namespace_host(config: TargetConfig, p: req.NamespaceHost) -> Change:
    subsystem, namespace = _host_visibility(config, p)
    if p.host in namespace.hosts:
        return Change(config)
    if len(namespace.hosts) >= limits.HOSTS_PER_NAMESPACE_MAX:
        raise invalid(f"namespace {p.nsid} has {limits.HOSTS_PER_NAMESPACE_MAX} hosts, which is the most")
    return Change(_with_namespace(config, subsystem, replace(namespace, hosts=(*namespace.hosts, p.host))))


def remove_namespace_host(config: TargetConfig, p: req.NamespaceHost) -> Change:
    subsystem, namespace = _host_visibility(config, p)
    hosts = tuple(host for host in namespace.hosts if host != p.host)
    return Change(_with_namespace(config, subsystem, replace(namespace, hosts=hosts)))


def _host_visibility(config: TargetConfig, p: req.NamespaceHost) -> tuple[SubsystemConfig, NamespaceConfig]:
    subsystem = _nvm_subsystem(config, p, p.nqn)
    fault = nqn_fault(p.host)
    if fault is not None:
        raise invalid(f"params.host: {p.host!r}: {fault}")
    namespace = _namespace(subsystem, p.nsid)
    if not namespace.no_auto_visible:
        raise invalid(f"params.nsid: namespace {p.nsid} was added without no_auto_visible, so every host sees it")
    return subsystem, namespace


NVMF_OPERATIONS: Final[Mapping[str, Operation]] = {
    "nvmf_set_config": Operation(req.SetConfig, set_config),
    "nvmf_set_max_subsystems": Operation(req.SetMaxSubsystems, set_max_subsystems),
    "nvmf_set_crdt": Operation(req.SetCrdt, set_crdt),
    "nvmf_create_transport": Operation(req.CreateTransport, create_transport),
    "nvmf_discovery_add_referral": Operation(req.AddReferral, add_referral),
    "nvmf_discovery_remove_referral": Operation(req.RemoveReferral, remove_referral),
    "nvmf_create_subsystem": Operation(req.CreateSubsystem, create_subsystem),
    "nvmf_delete_subsystem": Operation(req.DeleteSubsystem, delete_subsystem),
    "nvmf_subsystem_add_host": Operation(req.AddHost, add_host),
    "nvmf_subsystem_remove_host": Operation(req.RemoveHost, remove_host),
    "nvmf_subsystem_allow_any_host": Operation(req.AllowAnyHost, allow_any_host),
    "p2p_subsystem_set_controller_model": Operation(req.SetControllerModel, set_controller_model),
    "nvmf_subsystem_add_ns": Operation(req.AddNamespace, add_namespace),
    "nvmf_subsystem_remove_ns": Operation(req.RemoveNamespace, remove_namespace),
    "nvmf_subsystem_set_ns_ana_group": Operation(req.SetNamespaceAnaGroup, set_namespace_ana_group),
    "nvmf_ns_add_host": Operation(req.NamespaceHost, add_namespace_host),
    "nvmf_ns_remove_host": Operation(req.NamespaceHost, remove_namespace_host),
    "nvmf_subsystem_add_listener": Operation(req.AddListener, add_listener),
    "nvmf_subsystem_remove_listener": Operation(req.RemoveListener, remove_listener),
    "nvmf_subsystem_listener_set_ana_state": Operation(req.SetAnaState, set_ana_state),
}
