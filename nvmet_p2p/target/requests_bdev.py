"""Parameters of the ``bdev_*`` methods that change the configuration: SPDK 26.09's names and types."""

from __future__ import annotations

from typing import Annotated, Literal

from nvmet_p2p.target.request_types import I32, U32, U64, UNSET, Request, UnsetType, doc, only
from nvmet_p2p.target.requests_nvmf import NO_METADATA, Flag, Number

Name = Annotated[str, doc("Name of the bdev")]
NewName = Annotated[str, doc("Name of the new bdev")]
Uuid = Annotated[str, doc("UUID of the bdev; without it a new one is made and kept")]
NO_HINTS = "write and unmap hints of a null bdev are not supported"


class BdevCreate(Request, frozen=True, kw_only=True):
    """What every bdev can be given; the caller of ``operations`` fills in a UUID where the operator gave none."""

    uuid: Uuid = ""


class MallocCreate(BdevCreate, frozen=True, kw_only=True):
    """bdev_malloc_create"""

    name: Annotated[str, doc("Name of the new bdev; without it, Malloc0, Malloc1 ...")] = ""
    block_size: Annotated[U32, doc("Bytes of a block, a power of two, at least 512")]
    num_blocks: Annotated[U64, doc("Number of blocks")]
    physical_block_size: Annotated[U32, doc("Bytes of a physical block; 0 for the block size")] = 0
    optimal_io_boundary: Annotated[U32, doc("Blocks between boundaries that an I/O had better not cross")] = 0
    md_size: Annotated[Number, only((0,), "Metadata bytes", NO_METADATA)] = UNSET
    md_interleave: Annotated[Flag, only((False,), "Metadata within the block", NO_METADATA)] = UNSET
    dif_type: Annotated[I32 | UnsetType, only((0,), "Type of protection information", NO_METADATA)] = UNSET
    dif_is_head_of_md: Annotated[Flag, only((False,), "Protection information comes first", NO_METADATA)] = UNSET
    dif_pi_format: Annotated[Number, only((0,), "Format of protection information", NO_METADATA)] = UNSET
    numa_id: Annotated[I32 | UnsetType, only((-1,), "NUMA node of the memory", "it cannot be chosen")] = UNSET


class NullCreate(BdevCreate, frozen=True, kw_only=True):
    """bdev_null_create"""

    name: NewName
    block_size: Annotated[U32, doc("Bytes of a block, a power of two, at least 512")]
    num_blocks: Annotated[U64, doc("Number of blocks")]
    physical_block_size: Annotated[U32, doc("Bytes of a physical block; 0 for the block size")] = 0
    md_size: Annotated[Number, only((0,), "Metadata bytes", NO_METADATA)] = UNSET
    dif_type: Annotated[I32 | UnsetType, only((0,), "Type of protection information", NO_METADATA)] = UNSET
    dif_pi_format: Annotated[Number, only((0,), "Format of protection information", NO_METADATA)] = UNSET
    dif_is_head_of_md: Annotated[Flag, only((False,), "Protection information comes first", NO_METADATA)] = UNSET
    preferred_write_granularity: Annotated[Number, only((0,), "Blocks of a good write", NO_HINTS)] = UNSET
    preferred_write_alignment: Annotated[Number, only((0,), "Alignment of a good write", NO_HINTS)] = UNSET
    optimal_write_size: Annotated[Number, only((0,), "Blocks of the best write", NO_HINTS)] = UNSET
    preferred_unmap_granularity: Annotated[Number, only((0,), "Blocks of a good unmap", NO_HINTS)] = UNSET
    preferred_unmap_alignment: Annotated[Number, only((0,), "Alignment of a good unmap", NO_HINTS)] = UNSET


class AioCreate(BdevCreate, frozen=True, kw_only=True):
    """bdev_aio_create"""

    name: NewName
    filename: Annotated[str, doc("File or block device; a relative path is taken from the daemon's working directory")]
    block_size: Annotated[U32, doc("Bytes of a block; without it or with 0, what the device says")] = 0
    readonly: Annotated[bool, doc("Refuse writes")] = False
    fallocate: Annotated[bool, doc("Deallocate and zero by punching holes into the file")] = False
    nowait: Annotated[bool, doc("Use RWF_NOWAIT on a block device")] = False


class UringCreate(BdevCreate, frozen=True, kw_only=True):
    """bdev_uring_create"""

    name: NewName
    filename: Annotated[str, doc("File or block device; a relative path is taken from the daemon's working directory")]
    block_size: Annotated[U32, doc("Bytes of a block; without it or with 0, what the device says")] = 0


class BdevName(Request, frozen=True, kw_only=True):
    """bdev_*_delete, bdev_*_rescan"""

    name: Name


class NullResize(Request, frozen=True, kw_only=True):
    """bdev_null_resize"""

    name: Name
    new_size: Annotated[U64, doc("New size in MiB, not smaller than the present one")]


class DelayCreate(BdevCreate, frozen=True, kw_only=True):
    """bdev_delay_create"""

    name: NewName
    base_bdev_name: Annotated[str, doc("Name or UUID of the bdev below")]
    avg_read_latency: Annotated[U64, doc("Microseconds that 99 of 100 reads take longer")]
    p99_read_latency: Annotated[U64, doc("Microseconds that the other reads take longer")]
    avg_write_latency: Annotated[U64, doc("Microseconds that 99 of 100 writes take longer")]
    p99_write_latency: Annotated[U64, doc("Microseconds that the other writes take longer")]


class DelayUpdate(Request, frozen=True, kw_only=True):
    """bdev_delay_update_latency"""

    delay_bdev_name: Annotated[str, doc("Name or UUID of the delay bdev")]
    latency_type: Annotated[Literal["avg_read", "p99_read", "avg_write", "p99_write"], doc("Which latency")]
    latency_us: Annotated[U64, doc("Microseconds")]


class ErrorCreate(BdevCreate, frozen=True, kw_only=True):
    """bdev_error_create"""

    base_name: Annotated[str, doc("Name or UUID of the bdev below; the new one is EE_ and its name")]


class SetQos(Request, frozen=True, kw_only=True):
    """bdev_set_qos_limit"""

    name: Name
    rw_ios_per_sec: Annotated[U64 | UnsetType, doc("Reads and writes a second; 0 for no limit")] = UNSET
    rw_mbytes_per_sec: Annotated[U64 | UnsetType, doc("MiB read and written a second; 0 for no limit")] = UNSET
    r_mbytes_per_sec: Annotated[U64 | UnsetType, doc("MiB read a second; 0 for no limit")] = UNSET
    w_mbytes_per_sec: Annotated[U64 | UnsetType, doc("MiB written a second; 0 for no limit")] = UNSET
