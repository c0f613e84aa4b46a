"""Configuration changes of back ends. The same rules as in ``operations``; codes are negated errnos, as SPDK's."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from nvmet_p2p import limits
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target import requests_bdev as req
from nvmet_p2p.target.config import BdevConfig, BdevKind, TargetConfig
from nvmet_p2p.target.operations import NVMF_OPERATIONS, Change, Operation, bdevs_on, find_bdev
from nvmet_p2p.target.operations_nvme import operations as nvme_operations
from nvmet_p2p.target.operations_staging import operations as staging_operations
from nvmet_p2p.target.operations_vbdev import operations as vbdev_operations
from nvmet_p2p.target.request_types import Request
from nvmet_p2p.target.validate import failed, name_fault, parse_uuid

BLOCK_BYTES_MIN: Final = 512
BLOCK_BYTES_MAX: Final = 65_536
MIB: Final = 1024 * 1024


def with_uuid(request: Request, new_uuid: Callable[[], str]) -> Request:
    """A bdev that is created without a UUID gets one, which is kept from then on; other requests stay as they are."""
    if isinstance(request, req.BdevCreate) and not parse_uuid_or_none(request.uuid):
        return replace(request, uuid=new_uuid())
    return request


def parse_uuid_or_none(text: str) -> str:
    """Empty for no UUID and for the nil UUID. -32602 when it is neither that nor a UUID."""
    return parse_uuid(text, "params.uuid") if text else ""


def create_malloc(config: TargetConfig, p: req.MallocCreate) -> Change:
    name = p.name or next(f"Malloc{n}" for n in range(limits.BDEVS_MAX + 1) if find_bdev(config, f"Malloc{n}") is None)
    _check_size(p.block_size, p.num_blocks, p.physical_block_size)
    return create_bdev(
        config,
        BdevConfig(
            name=name,
            kind="malloc",
            uuid=p.uuid,
            block_size=p.block_size,
            num_blocks=p.num_blocks,
            physical_block_size=p.physical_block_size or p.block_size,
            optimal_io_boundary=p.optimal_io_boundary,
        ),
    )


def create_null(config: TargetConfig, p: req.NullCreate) -> Change:
    _check_size(p.block_size, p.num_blocks, p.physical_block_size)
    return create_bdev(
        config,
        BdevConfig(
            name=p.name,
            kind="null",
            uuid=p.uuid,
            block_size=p.block_size,
            num_blocks=p.num_blocks,
            physical_block_size=p.physical_block_size or p.block_size,
        ),
    )


def create_aio(config: TargetConfig, p: req.AioCreate) -> Change:
    _check_file(p.filename, p.block_size)
    return create_bdev(
        config,
        BdevConfig(
            name=p.name,
            kind="aio",
            uuid=p.uuid,
            block_size=p.block_size,
            filename=p.filename,
            readonly=p.readonly,
            fallocate=p.fallocate,
            nowait=p.nowait,
        ),
    )


def create_uring(config: TargetConfig, p: req.UringCreate) -> Change:
    _check_file(p.filename, p.block_size)
    bdev = BdevConfig(name=p.name, kind="uring", uuid=p.uuid, block_size=p.block_size, filename=p.filename)
    return create_bdev(config, bdev)


def create_bdev(config: TargetConfig, bdev: BdevConfig) -> Change:
    """Adds a bdev of any kind; its name is the answer."""
    fault = name_fault(bdev.name)
    if fault is not None:
        raise failed(errno.EINVAL, f"params.name: {fault}")
    bdev = replace(bdev, uuid=parse_uuid_or_none(bdev.uuid))
    for alias in (bdev.name, bdev.uuid):
        other = find_bdev(config, alias)
        if other is not None:
            raise failed(errno.EEXIST, f"bdev {other.name!r} has the name or UUID {alias!r}")
    if len(config.bdevs) >= limits.BDEVS_MAX:
        raise failed(errno.ENOSPC, f"there are {limits.BDEVS_MAX} bdevs, which is the most")
    return Change(replace(config, bdevs=config.bdevs | {bdev.name: bdev}), bdev.name)


def _invalid(message: str) -> OperatorError:
    return failed(errno.EINVAL, message)


def _check_block_size(size: int, where: str) -> None:
    if not BLOCK_BYTES_MIN <= size <= BLOCK_BYTES_MAX or size & (size - 1):
        raise _invalid(f"{where}: {size} is not a power of two from {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}")


def _check_size(block_size: int, num_blocks: int, physical_block_size: int) -> None:
    _check_block_size(block_size, "params.block_size")
    if physical_block_size:
        _check_block_size(physical_block_size, "params.physical_block_size")
    if num_blocks == 0:
        raise _invalid("params.num_blocks: at least 1")
    if num_blocks * block_size > limits.BDEV_BYTES_MAX:
        raise _invalid(f"params.num_blocks: {num_blocks} blocks are more than {limits.BDEV_BYTES_MAX} bytes")


def _check_file(filename: str, block_size: int) -> None:
    if not filename.startswith("/") or "\0" in filename:
        raise _invalid(f"params.filename: {filename!r} is not an absolute path")
    if block_size:
        _check_block_size(block_size, "params.block_size")


def of_kind(config: TargetConfig, name: str, kind: BdevKind) -> BdevConfig:
    """The bdev of that name or UUID. -ENODEV when there is none, or when it is of another kind."""
    bdev = find_bdev(config, name)
    if bdev is None:
        raise failed(errno.ENODEV, f"there is no bdev {name!r}")
    if bdev.kind != kind:
        raise failed(errno.ENODEV, f"bdev {bdev.name!r} is of kind {bdev.kind}, not {kind}")
    return bdev


def _delete_of(kind: BdevKind) -> Callable[[TargetConfig, req.BdevName], Change]:
    def delete(config: TargetConfig, p: req.BdevName) -> Change:
        return Change(without_bdev(config, of_kind(config, p.name, kind)))

    return delete


def without_bdev(config: TargetConfig, bdev: BdevConfig) -> TargetConfig:
    """Without a bdev, what is on top of it, and the namespaces on either."""
    for above in bdevs_on(config, bdev.name):
        config = without_bdev(config, above)
    bdevs = {name: other for name, other in config.bdevs.items() if name != bdev.name}
    return without_namespaces_on(replace(config, bdevs=bdevs), bdev.name)


def without_namespaces_on(config: TargetConfig, bdev_name: str) -> TargetConfig:
    """The namespaces on a bdev go with it, as SPDK's hot remove does."""
    subsystems = {
        nqn: replace(
            subsystem,
            namespaces={n: ns for n, ns in subsystem.namespaces.items() if ns.bdev_name != bdev_name},
        )
        for nqn, subsystem in config.subsystems.items()
    }
    return replace(config, subsystems=subsystems)


def resize_null(config: TargetConfig, p: req.NullResize) -> Change:
    bdev = find_bdev(config, p.name)
    if bdev is None:
        raise failed(errno.ENODEV, f"there is no bdev {p.name!r}")
    if bdev.kind != "null":
        raise _invalid(f"params.name: bdev {bdev.name!r} is of kind {bdev.kind}, not null")
    if p.new_size < bdev.num_blocks * bdev.block_size // MIB:
        raise _invalid(f"params.new_size: {p.new_size} MiB is less than bdev {bdev.name!r} has")
    if p.new_size * MIB > limits.BDEV_BYTES_MAX:
        raise _invalid(f"params.new_size: {p.new_size} MiB is more than {limits.BDEV_BYTES_MAX} bytes")
    num_blocks = p.new_size * MIB // bdev.block_size
    if num_blocks == 0:
        raise _invalid("params.new_size: at least one block")
    changed = replace(bdev, num_blocks=num_blocks)
    return Change(replace(config, bdevs=config.bdevs | {bdev.name: changed}))


BDEV_OPERATIONS: Final[Mapping[str, Operation]] = {
    "bdev_malloc_create": Operation(req.MallocCreate, create_malloc),
    "bdev_malloc_delete": Operation(req.BdevName, _delete_of("malloc")),
    "bdev_null_create": Operation(req.NullCreate, create_null),
    "bdev_null_delete": Operation(req.BdevName, _delete_of("null")),
    "bdev_null_resize": Operation(req.NullResize, resize_null),
    "bdev_aio_create": Operation(req.AioCreate, create_aio),
    "bdev_aio_delete": Operation(req.BdevName, _delete_of("aio")),
    "bdev_uring_create": Operation(req.UringCreate, create_uring),
    "bdev_uring_delete": Operation(req.BdevName, _delete_of("uring")),
    **nvme_operations(create_bdev, without_bdev),
    **vbdev_operations(create_bdev, lambda kind: Operation(req.BdevName, _delete_of(kind))),
    **staging_operations(create_bdev, lambda kind: Operation(req.BdevName, _delete_of(kind)), _check_size),
}

OPERATIONS: Final[Mapping[str, Operation]] = {**BDEV_OPERATIONS, **NVMF_OPERATIONS}
