"""Configuration changes of staging: policies, emulated pools, bdevs on a provider's memory.

What depends on the machine (is there such a provider, can the drive reach it) is not known here: the daemon checks it
before a change is made durable. The rules are those of ``operations``.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from msgspec import UnsetType
from msgspec.structs import replace

from nvmet_p2p import limits
from nvmet_p2p.p2p.policy import AUTO, OFF
from nvmet_p2p.p2p.sysfs import normal_bdf
from nvmet_p2p.target import requests_staging as req
from nvmet_p2p.target.config import (
    BdevConfig,
    BdevKind,
    EmulatedPoolConfig,
    StagingConfig,
    SubsystemConfig,
    TargetConfig,
)
from nvmet_p2p.target.operations import Change, Operation, find_subsystem
from nvmet_p2p.target.validate import failed, invalid, name_fault, parse_address, unsupported

HOST: Final = "host"  # what host memory is called where pools are named
RESERVED: Final = frozenset({OFF, AUTO, HOST, req.INHERIT})
_POOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Create = Callable[[TargetConfig, BdevConfig], Change]


def pool_named(config: TargetConfig, name: str, where: str) -> str:
    """The name of a pool in its one form. A provider need not be there; an emulated pool must. -32602, -19."""
    bdf = normal_bdf(name)
    if bdf is not None:
        return bdf
    if name not in config.emulated_pools:
        raise failed(
            errno.ENODEV,
            f"{where}: {name!r} is neither a PCI address like 0000:03:00.0 nor an emulated pool "
            "(p2p_emulated_pool_create)",
        )
    return name


# -- policies ----------------------------------------------------------------------------------------------------------


def set_staging(config: TargetConfig, p: req.SetStaging) -> Change:
    staging = _policy(config, p)
    if isinstance(p.nqn, UnsetType):
        for name, value in (("nsid", p.nsid), ("listen_address", p.listen_address)):
            if not isinstance(value, UnsetType):
                raise invalid(f"params.nqn: required with {name}")
        return Change(replace(config, staging=staging))
    subsystem = find_subsystem(config, p.nqn)
    if subsystem.subtype == "Discovery":
        raise unsupported("params.nqn: the discovery subsystem has no namespaces")
    if not isinstance(p.nsid, UnsetType):
        if not isinstance(p.listen_address, UnsetType):
            raise invalid("params.nsid, params.listen_address: only one of them")
        namespace = subsystem.namespaces.get(p.nsid)
        if namespace is None:
            raise invalid(f"params.nsid: subsystem {p.nqn!r} has no namespace {p.nsid}")
        changed = {**subsystem.namespaces, p.nsid: replace(namespace, staging=staging)}
        return _with(config, replace(subsystem, namespaces=changed))
    if not isinstance(p.listen_address, UnsetType):
        given = p.listen_address
        address = parse_address(given.trtype, given.adrfam, given.traddr, given.trsvcid, "params.listen_address")
        if all(listener.address != address for listener in subsystem.listeners):
            raise invalid(f"params.listen_address: {p.nqn!r} does not listen on {address.traddr}:{address.trsvcid}")
        listeners = tuple(
            replace(listener, staging=staging) if listener.address == address else listener
            for listener in subsystem.listeners
        )
        return _with(config, replace(subsystem, listeners=listeners))
    return _with(config, replace(subsystem, staging=staging))


def _policy(config: TargetConfig, p: req.SetStaging) -> StagingConfig | None:
    strict = p.mode == "strict"
    if strict and p.policy in (OFF, req.INHERIT):
        raise invalid(f"params.mode: strict says nothing with policy {p.policy!r}")
    if p.policy == req.INHERIT:
        return None
    if p.policy in (OFF, AUTO):
        return StagingConfig(policy=p.policy, strict=strict)
    return StagingConfig(policy=pool_named(config, p.policy, "params.policy"), strict=strict)


def _with(config: TargetConfig, subsystem: SubsystemConfig) -> Change:
    return Change(replace(config, subsystems=config.subsystems | {subsystem.nqn: subsystem}))


def policies(config: TargetConfig) -> Iterator[tuple[str, StagingConfig]]:
    """All policies that were set, each with what it was set on, for messages."""
    if config.staging is not None:
        yield "the target", config.staging
    for nqn, subsystem in config.subsystems.items():
        if subsystem.staging is not None:
            yield f"subsystem {nqn!r}", subsystem.staging
        for listener in subsystem.listeners:
            if listener.staging is not None:
                address = listener.address
                yield f"listener {address.traddr}:{address.trsvcid} of subsystem {nqn!r}", listener.staging
        for nsid, namespace in subsystem.namespaces.items():
            if namespace.staging is not None:
                yield f"namespace {nsid} of subsystem {nqn!r}", namespace.staging


# -- emulated pools ----------------------------------------------------------------------------------------------------


def create_emulated_pool(config: TargetConfig, p: req.EmulatedPoolCreate) -> Change:
    length = len(p.name)
    if _POOL_NAME.fullmatch(p.name) is None or length > limits.POOL_NAME_BYTES_MAX:
        raise invalid(
            f"params.name: {p.name!r} is not 1 to {limits.POOL_NAME_BYTES_MAX} of letters, digits, '_', '.' and '-', "
            "beginning with a letter or digit"
        )
    if p.name in RESERVED or normal_bdf(p.name) is not None:
        raise invalid(f"params.name: {p.name!r} means something else where a pool is named")
    if p.name in config.emulated_pools:
        raise failed(errno.EEXIST, f"there is an emulated pool {p.name!r}")
    if len(config.emulated_pools) >= limits.EMULATED_POOLS_MAX:
        raise failed(errno.ENOSPC, f"there are {limits.EMULATED_POOLS_MAX} emulated pools, which is the most")
    pool = EmulatedPoolConfig(name=p.name, size=p.bytes)
    return Change(replace(config, emulated_pools=config.emulated_pools | {p.name: pool}), p.name)


def delete_emulated_pool(config: TargetConfig, p: req.EmulatedPoolDelete) -> Change:
    if p.name not in config.emulated_pools:
        raise failed(errno.ENODEV, f"there is no emulated pool {p.name!r}")
    for where, staging in policies(config):
        if staging.policy == p.name:
            raise failed(errno.EBUSY, f"params.name: the policy of {where} names pool {p.name!r} (p2p_set_staging)")
    for bdev in config.bdevs.values():
        if bdev.provider == p.name:
            raise failed(errno.EBUSY, f"params.name: bdev {bdev.name!r} is memory of pool {p.name!r}")
    left = {name: pool for name, pool in config.emulated_pools.items() if name != p.name}
    return Change(replace(config, emulated_pools=left))


# -- together ----------------------------------------------------------------------------------------------------------


def operations(
    create: Create, delete: Callable[[BdevKind], Operation], check_size: Callable[[int, int, int], None]
) -> Mapping[str, Operation]:
    """The operations; those of bdevs are built on those of any kind (``operations_bdev``)."""

    def create_cmb(config: TargetConfig, p: req.CmbCreate) -> Change:
        fault = name_fault(p.name)
        if fault is not None:
            raise failed(errno.EINVAL, f"params.name: {fault}")
        check_size(p.block_size, p.num_blocks, 0)
        provider = pool_named(config, p.provider, "params.provider")
        bdev = BdevConfig(
            name=p.name,
            kind="cmb",
            uuid=p.uuid,
            block_size=p.block_size,
            num_blocks=p.num_blocks,
            physical_block_size=p.block_size,
            provider=provider,
        )
        return create(config, bdev)

    return {
        "bdev_cmb_create": Operation(req.CmbCreate, create_cmb),
        "bdev_cmb_delete": delete("cmb"),
        "p2p_emulated_pool_create": Operation(req.EmulatedPoolCreate, create_emulated_pool),
        "p2p_emulated_pool_delete": Operation(req.EmulatedPoolDelete, delete_emulated_pool),
        "p2p_set_staging": Operation(req.SetStaging, set_staging),
    }
