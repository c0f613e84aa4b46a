"""The configuration as a list of JSON-RPC calls that make it, in SPDK's ``save_config`` form, and back.

``{"subsystems": [{"subsystem": "bdev", "config": [{"method", "params"}, ...]}, {"subsystem": "nvmf", ...}]}``. Order
and keys are SPDK's, so that ``spdk-rpc save_config`` and ``load_config`` work unchanged. What SPDK 26.09 forgets is
added by calls of its own: the ANA states of listeners. What SPDK does not have is added by calls of ours (``p2p_*``):
emulated pools before the bdevs, which may lie in them, staging policies at the end. A parameter that is a mere hint, or
deprecated, appears only where it was given. For each configuration ``c`` that ``operations`` can make, ``replay`` of
``render_config(c)`` on an empty one gives ``c`` again.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import (
    QOS_LIMITS,
    BdevConfig,
    ListenAddress,
    ListenerConfig,
    NamespaceConfig,
    StagingConfig,
    SubsystemConfig,
    TargetConfig,
    TransportConfig,
)
from nvmet_p2p.target.operations import ana_group_count, discovery_filters
from nvmet_p2p.target.operations_bdev import OPERATIONS, create_bdev, with_uuid
from nvmet_p2p.target.operations_nvme import controller_params, declare, options_params, undeclared
from nvmet_p2p.target.operations_vbdev import LATENCY_TYPES
from nvmet_p2p.target.request_types import Request, decode
from nvmet_p2p.target.validate import METHOD_NOT_FOUND, failed, invalid

Call = dict[str, Any]

SUBSYSTEMS: Final[dict[str, tuple[str, ...]]] = {"bdev": (), "nvmf": ("bdev",)}  # name -> what it depends on
BATCHED: Final = frozenset(
    {
        "bdev_nvme_attach_controller",
        "p2p_nvme_expect_namespace",
        "bdev_malloc_create",
        "bdev_null_create",
        "bdev_aio_create",
        "bdev_uring_create",
        "bdev_delay_create",
        "bdev_error_create",
        "bdev_cmb_create",
        "p2p_emulated_pool_create",
        "p2p_set_staging",
        "nvmf_create_subsystem",
        "nvmf_subsystem_add_host",
        "nvmf_subsystem_add_ns",
        "nvmf_ns_add_host",
        "nvmf_subsystem_add_listener",
        "nvmf_subsystem_listener_set_ana_state",
    }
)
ANA_STATES: Final = ("optimized", "non_optimized", "inaccessible")
_DEFAULTS: Final = TransportConfig(trtype="")
_RDMA: Final = ("max_srq_depth", "no_srq", "num_cqe", "acceptor_backlog", "no_wr_batching")


def render_config(config: TargetConfig, *, with_batches: bool = False) -> dict[str, Any]:
    """The whole configuration as ``save_config`` prints it."""
    parts = [
        {"subsystem": name, "config": render_subsystem(config, name, with_batches=with_batches)} for name in SUBSYSTEMS
    ]
    return {"subsystems": parts}


def render_subsystem(config: TargetConfig, name: str, *, with_batches: bool = False) -> list[Any]:
    """The calls of ``bdev`` or ``nvmf``. With batches, calls of one method that follow each other form a list."""
    if name not in SUBSYSTEMS:
        raise invalid(f"params.name: there is no subsystem {name!r}, only {', '.join(SUBSYSTEMS)}")
    calls = list(_bdev_calls(config) if name == "bdev" else _nvmf_calls(config))
    if not with_batches:
        return calls
    batches: list[Any] = []
    for call in calls:
        if call["method"] not in BATCHED:
            batches.append(call)
        elif batches and isinstance(batches[-1], list) and batches[-1][0]["method"] == call["method"]:
            batches[-1].append(call)
        else:
            batches.append([call])
    return batches


def replay(config: TargetConfig, document: Any, new_uuid: Callable[[], str]) -> TargetConfig:
    """The configuration after all calls of a ``save_config`` document on top of ``config``.

    Raises ``OperatorError``, naming the call, for a document of another shape and for any call that is refused.
    """
    if not isinstance(document, dict) or not isinstance(document.get("subsystems"), list):
        raise invalid("params.subsystems: expected the list that save_config gives")
    first = config
    for index, subsystem in enumerate(document["subsystems"]):
        config = replay_subsystem(config, subsystem, new_uuid, f"params.subsystems[{index}]", first)
    return config


def replay_subsystem(
    config: TargetConfig,
    subsystem: Any,
    new_uuid: Callable[[], str],
    where: str = "params",
    first: TargetConfig | None = None,
) -> TargetConfig:
    """As ``replay``, for what ``save_subsystem_config`` prints. ``first``: what the calls began with."""
    first = config if first is None else first
    calls = subsystem.get("config") if isinstance(subsystem, dict) else None
    if calls is None and isinstance(subsystem, dict) and "subsystem" in subsystem:
        return config  # SPDK writes null for a subsystem that has nothing to say
    if not isinstance(calls, list):
        raise invalid(f"{where}.config: expected a list of calls")
    for index, entry in enumerate(calls):
        for call in entry if isinstance(entry, list) else [entry]:
            before, config = config, _replay_call(config, call, new_uuid, f"{where}.config[{index}]")
            _check_not_replaced(first, before, config, f"{where}.config[{index}]")
    return config


def _check_not_replaced(first: TargetConfig, before: TargetConfig, now: TargetConfig, where: str) -> None:
    """All the calls are one change, in which a back end that is in use cannot become another one of its name."""
    if len(now.bdevs) > len(before.bdevs):
        again = (now.bdevs.keys() - before.bdevs.keys()) & first.bdevs.keys()
        if again:
            raise failed(errno.EEXIST, f"{where}: bdev {min(again)!r} is there until all calls are carried out")
    attached = (now.nvme_controllers.keys() - before.nvme_controllers.keys()) & first.nvme_controllers.keys()
    if attached:
        raise failed(errno.EEXIST, f"{where}: controller {min(attached)!r} is there until all calls are carried out")


def _replay_call(config: TargetConfig, call: Any, new_uuid: Callable[[], str], where: str) -> TargetConfig:
    method = call.get("method") if isinstance(call, dict) else None
    if not isinstance(method, str):
        raise invalid(f"{where}: expected an object with a method")
    operation = OPERATIONS.get(method)
    if operation is None:
        raise OperatorError(METHOD_NOT_FOUND, f"{where}: {method!r} does not change the configuration of this target")
    params = call.get("params", {})
    try:
        if (namespace := undeclared(config, method, params)) is not None:
            config = declare(create_bdev, config, namespace, new_uuid()).config
        request: Request = with_uuid(decode(operation.request, params), new_uuid)
        return operation.apply(config, request).config
    except OperatorError as error:
        raise OperatorError(error.code, f"{where} ({method}): {error.message}") from None


# -- rendering ---------------------------------------------------------------------------------------------------------


def _bdev_calls(config: TargetConfig) -> Iterator[Call]:
    for pool in config.emulated_pools.values():
        yield _call("p2p_emulated_pool_create", name=pool.name, bytes=pool.size)
    if config.nvme_options is not None:
        yield {"method": "bdev_nvme_set_options", "params": options_params(config.nvme_options)}
    for controller in config.nvme_controllers.values():
        yield {"method": "bdev_nvme_attach_controller", "params": controller_params(controller)}
    for bdev in config.bdevs.values():
        if bdev.kind == "nvme":
            known = {"identity": bdev.identity} if bdev.identity else {}
            yield _call("p2p_nvme_expect_namespace", name=bdev.name, uuid=bdev.uuid, **known)
        else:
            yield {"method": f"bdev_{bdev.kind}_create", "params": _bdev_params(bdev)}
        limits = {name: getattr(bdev, name) for name in QOS_LIMITS if getattr(bdev, name)}
        if limits:
            yield _call("bdev_set_qos_limit", name=bdev.name, **limits)
    if config.nvme_hotplug is not None:
        yield _call("bdev_nvme_set_hotplug", period_us=config.nvme_hotplug.period_us, enable=config.nvme_hotplug.enable)


def _bdev_params(bdev: BdevConfig) -> dict[str, Any]:
    params: dict[str, Any] = {"name": bdev.name}
    if bdev.kind in ("malloc", "null"):
        params |= {
            "num_blocks": bdev.num_blocks,
            "block_size": bdev.block_size,
            "physical_block_size": bdev.physical_block_size,
            "uuid": bdev.uuid,
        }
        if bdev.kind == "malloc":
            params["optimal_io_boundary"] = bdev.optimal_io_boundary
        return params
    if bdev.kind == "cmb":
        params |= {"provider": bdev.provider, "num_blocks": bdev.num_blocks, "block_size": bdev.block_size}
        return params | {"uuid": bdev.uuid}
    if bdev.kind == "error":
        return {"base_name": bdev.base, "uuid": bdev.uuid}
    if bdev.kind == "delay":
        latencies = zip(LATENCY_TYPES, bdev.latencies_us, strict=True)
        params |= {"base_bdev_name": bdev.base, "uuid": bdev.uuid}
        return params | {f"{name}_latency": us for name, us in latencies}
    if bdev.block_size:
        params["block_size"] = bdev.block_size
    params["filename"] = bdev.filename
    if bdev.kind == "aio":
        params |= {"readonly": bdev.readonly, "fallocate": bdev.fallocate, "uuid": bdev.uuid, "nowait": bdev.nowait}
    else:
        params["uuid"] = bdev.uuid
    return params


def _nvmf_calls(config: TargetConfig) -> Iterator[Call]:
    yield _call("nvmf_set_config", discovery_filters=discovery_filters(config))
    yield _call("nvmf_set_max_subsystems", max_subsystems=config.max_subsystems)
    yield _call("nvmf_set_crdt", crdt1=config.crdt[0], crdt2=config.crdt[1], crdt3=config.crdt[2])
    for transport in config.transports.values():
        yield {"method": "nvmf_create_transport", "params": transport_params(transport)}
    for referral in config.referrals:
        yield _call(
            "nvmf_discovery_add_referral",
            address=address_params(referral.address),
            secure_channel=referral.secure_channel,
            subnqn=referral.subnqn,
        )
    subsystems = [subsystem for subsystem in config.subsystems.values() if subsystem.subtype == "NVMe"]
    for subsystem in subsystems:
        yield {"method": "nvmf_create_subsystem", "params": _subsystem_params(subsystem)}
    for subsystem in (subsystem for subsystem in subsystems if subsystem.controller_model != "dynamic"):
        model = subsystem.controller_model
        yield _call("p2p_subsystem_set_controller_model", nqn=subsystem.nqn, controller_model=model)
    for subsystem in subsystems:
        for host in subsystem.hosts.values():
            yield _call("nvmf_subsystem_add_host", nqn=subsystem.nqn, host=host.nqn)
    for subsystem in subsystems:
        for _, namespace in sorted(subsystem.namespaces.items()):
            yield _call("nvmf_subsystem_add_ns", nqn=subsystem.nqn, namespace=_namespace_params(namespace))
    for subsystem in subsystems:
        for nsid, namespace in sorted(subsystem.namespaces.items()):
            for nqn in namespace.hosts:
                yield _call("nvmf_ns_add_host", nqn=subsystem.nqn, nsid=nsid, host=nqn)
    discovery = [subsystem for subsystem in config.subsystems.values() if subsystem.subtype == "Discovery"]
    for subsystem in subsystems + discovery:
        for listener in subsystem.listeners:
            yield _call(
                "nvmf_subsystem_add_listener",
                nqn=subsystem.nqn,
                listen_address=address_params(listener.address),
                secure_channel=listener.secure_channel,
            )
    for subsystem in subsystems:
        for listener in subsystem.listeners:
            yield from _ana_calls(subsystem, listener)
    yield from _staging_calls(config, subsystems)


def _staging_calls(config: TargetConfig, subsystems: list[SubsystemConfig]) -> Iterator[Call]:
    """From the widest to the narrowest; what was never set is not mentioned."""
    if config.staging is not None:
        yield _call("p2p_set_staging", **_staging_params(config.staging))
    for subsystem in subsystems:
        if subsystem.staging is not None:
            yield _call("p2p_set_staging", nqn=subsystem.nqn, **_staging_params(subsystem.staging))
        for listener in subsystem.listeners:
            if listener.staging is not None:
                address = address_params(listener.address)
                staging = _staging_params(listener.staging)
                yield _call("p2p_set_staging", nqn=subsystem.nqn, listen_address=address, **staging)
        for nsid, namespace in sorted(subsystem.namespaces.items()):
            if namespace.staging is not None:
                yield _call("p2p_set_staging", nqn=subsystem.nqn, nsid=nsid, **_staging_params(namespace.staging))


def _staging_params(staging: StagingConfig) -> dict[str, Any]:
    return {"policy": staging.policy, "mode": "strict" if staging.strict else "prefer"}


def _call(method: str, **params: Any) -> Call:
    return {"method": method, "params": params}


def transport_params(transport: TransportConfig) -> dict[str, Any]:
    """A transport as ``nvmf_get_transports`` shows it and ``nvmf_create_transport`` takes it."""
    names = ["trtype", "max_queue_depth", "max_io_qpairs_per_ctrlr", "in_capsule_data_size", "max_io_size"]
    names += ["max_aq_depth", "iobuf_small_cache_size", "iobuf_large_cache_size", "dif_insert_or_strip", "zcopy"]
    if transport.trtype == "RDMA":  # SPDK shows num_cqe only where it has an effect there
        names += [
            name for name in _RDMA if name != "num_cqe" or transport.no_srq or transport.num_cqe != _DEFAULTS.num_cqe
        ]
    else:
        names += ["c2h_success", "sock_priority"]
    names += ["abort_timeout_sec", "ack_timeout", "data_wr_pool_size", "disable_command_passthru", "kas", "min_kato"]
    params: dict[str, Any] = {name: getattr(transport, name) for name in names}
    for name in ("io_unit_size", "num_shared_buffers", "control_msg_num", "acceptor_poll_rate"):
        if getattr(transport, name) != getattr(_DEFAULTS, name):
            params[name] = getattr(transport, name)
    return params


def address_params(address: ListenAddress) -> dict[str, str]:
    """An address as SPDK shows it."""
    return {
        "trtype": address.trtype,
        "adrfam": address.adrfam,
        "traddr": address.traddr,
        "trsvcid": address.trsvcid,
    }


def _subsystem_params(subsystem: SubsystemConfig) -> dict[str, Any]:
    return {
        "nqn": subsystem.nqn,
        "allow_any_host": subsystem.allow_any_host,
        "serial_number": subsystem.serial_number,
        "model_number": subsystem.model_number,
        "max_namespaces": subsystem.max_namespaces,
        "min_cntlid": subsystem.min_cntlid,
        "max_cntlid": subsystem.max_cntlid,
        "ana_reporting": subsystem.ana_reporting,
    }


def _namespace_params(namespace: NamespaceConfig) -> dict[str, Any]:
    params: dict[str, Any] = {
        "nsid": namespace.nsid,
        "bdev_name": namespace.bdev_name,
        "nguid": namespace.nguid.upper(),
    }
    if namespace.eui64:
        params["eui64"] = namespace.eui64.upper()
    params["uuid"] = namespace.uuid
    params["anagrpid"] = namespace.anagrpid
    params["no_auto_visible"] = namespace.no_auto_visible
    return params


def _ana_calls(subsystem: SubsystemConfig, listener: ListenerConfig) -> Iterator[Call]:
    """The fewest calls: one for the state that most groups have, then one for each group that differs."""
    if not listener.ana_states:
        return
    where = {"nqn": subsystem.nqn, "listen_address": address_params(listener.address)}
    states = {group: listener.ana_states.get(group, "optimized") for group in range(1, ana_group_count(subsystem) + 1)}
    count = Counter(states.values())
    most = max(ANA_STATES, key=lambda state: count[state])  # the first of equals
    if most != "optimized":
        yield _call("nvmf_subsystem_listener_set_ana_state", **where, ana_state=most)
    for group, state in states.items():
        if state != most:
            yield _call("nvmf_subsystem_listener_set_ana_state", **where, ana_state=state, anagrpid=group)
