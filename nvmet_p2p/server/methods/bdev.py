"""``bdev_*`` methods that show something, and the rescans."""

from __future__ import annotations

import asyncio
import errno
import time
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, UnsetType

from nvmet_p2p import limits
from nvmet_p2p.dataplane.port import IoStat
from nvmet_p2p.server.context import Context
from nvmet_p2p.server.methods import nvme
from nvmet_p2p.server.schema import Handler, Method
from nvmet_p2p.target.config import QOS_LIMITS, BdevConfig, BdevFacts, BdevKind
from nvmet_p2p.target.operations import claims, find_bdev
from nvmet_p2p.target.operations_bdev import of_kind
from nvmet_p2p.target.operations_vbdev import LATENCY_TYPES
from nvmet_p2p.target.request_types import Request, doc, only
from nvmet_p2p.target.requests_bdev import BdevName
from nvmet_p2p.target.validate import failed

POLL_S: Final = 0.05
TICK_RATE: Final = 1_000_000_000  # our ticks are nanoseconds
NAMES_MAX: Final = 1024  # as SPDK's bdev_iostat_names
PRODUCTS: Final[dict[BdevKind, str]] = {
    "malloc": "Malloc disk",
    "null": "Null disk",
    "aio": "AIO disk",
    "uring": "URING bdev",
    "delay": "delay",
    "error": "Error Injection Disk",
    "cmb": "Controller memory buffer",
    "nvme": "NVMe disk",
}
NO_CHANNELS = "there is one channel"
ResetMode = Literal["all", "maxmin", "error", "none"]
NO_PARTIAL_RESET = "all counters are reset together"


class GetBdevs(Request, frozen=True, kw_only=True):
    """bdev_get_bdevs"""

    name: Annotated[str | UnsetType, doc("Name or UUID of one bdev; without it, all of them")] = UNSET
    timeout: Annotated[
        int, Meta(ge=0, le=limits.RPC_WAIT_MAX_MS, description="Milliseconds to wait for the bdev of that name")
    ] = 0


_Names = Annotated[list[str], Meta(max_length=NAMES_MAX)]


class GetIostat(Request, frozen=True, kw_only=True):
    """bdev_get_iostat"""

    names: Annotated[_Names | UnsetType, doc("Names or UUIDs of bdevs; without it, all")] = UNSET
    per_channel: Annotated[bool, only((False,), "Counters of each channel", NO_CHANNELS)] = False
    reset_mode: Annotated[ResetMode, only(("none", "all"), "Reset the counters afterwards", NO_PARTIAL_RESET)] = "none"


class ResetIostat(Request, frozen=True, kw_only=True):
    """bdev_reset_iostat"""

    name: Annotated[str | UnsetType, doc("Name or UUID of a bdev; without it, all")] = UNSET
    mode: Annotated[ResetMode, only(("none", "all"), "What to reset", NO_PARTIAL_RESET)] = "all"


def _present(context: Context, name: str) -> tuple[BdevConfig, BdevFacts] | None:
    bdev = find_bdev(context.config, name)
    facts = context.bdev_facts.get(bdev.name) if bdev is not None else None
    return None if bdev is None or facts is None else (bdev, facts)


def _require(context: Context, name: str) -> tuple[BdevConfig, BdevFacts]:
    found = _present(context, name)
    if found is not None:
        return found
    absent = find_bdev(context.config, name) is not None
    raise failed(errno.ENODEV, f"bdev {name!r} is absent" if absent else f"there is no bdev {name!r}")


def _all(context: Context) -> list[tuple[BdevConfig, BdevFacts]]:
    """Every open bdev, in the order of creation."""
    found = (_present(context, name) for name in context.config.bdevs)
    return [pair for pair in found if pair is not None]


async def get_bdevs(context: Context, p: GetBdevs) -> list[dict[str, Any]]:
    claimed = _claimed(context)
    if isinstance(p.name, UnsetType):
        return [_describe(context, bdev, facts, bdev.name in claimed) for bdev, facts in _all(context)]
    if p.timeout and _present(context, p.name) is None:
        await _wait_for(context, p.name, p.timeout)
    bdev, facts = _require(context, p.name)
    return [_describe(context, bdev, facts, bdev.name in _claimed(context))]


def _claimed(context: Context) -> set[str]:
    """The bdevs that serve a namespace or another bdev."""
    return set(claims(context.config)) | {bdev.base for bdev in context.config.bdevs.values()}


async def _wait_for(context: Context, name: str, timeout_ms: int) -> None:
    deadline = time.monotonic() + timeout_ms / 1000
    # A bdev also comes when its device does, which no call tells of: look now and then.
    while _present(context, name) is None and (left := deadline - time.monotonic()) > 0:  # noqa: ASYNC110
        await asyncio.sleep(min(POLL_S, left))


def _describe(context: Context, bdev: BdevConfig, facts: BdevFacts, claimed: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": bdev.name,
        "aliases": [bdev.uuid],
        "product_name": PRODUCTS[bdev.kind],
        "block_size": facts.block_size,
        "num_blocks": facts.num_blocks,
        "uuid": bdev.uuid,
        "assigned_rate_limits": {name: getattr(bdev, name) for name in QOS_LIMITS},
        "claimed": claimed,
    }
    if claimed:
        shown["claim_type"] = "exclusive_write"
    shown["zoned"] = False
    shown["supported_io_types"] = _io_types(facts)
    shown["driver_specific"] = _of_controller(context, bdev) if bdev.kind == "nvme" else _driver_specific(bdev)
    return shown


def _of_controller(context: Context, bdev: BdevConfig) -> dict[str, Any]:
    driver = context.dataplane.nvme
    found = driver.shown(bdev.controller) if driver is not None else None
    return nvme.driver_specific(context.config.nvme_controllers[bdev.controller], found or {}, bdev.nsid)


def _io_types(facts: BdevFacts) -> dict[str, bool]:
    """What the target can do on the bdev; an operation that the bdev lacks may be made of others."""
    writable = not facts.readonly
    return {
        "read": True,
        "write": writable,
        "unmap": writable and facts.unmap,
        "flush": True,
        "reset": True,
        "nvme_admin": False,
        "nvme_io": False,
        "nvme_io_md": False,
        "write_zeroes": writable,
        "zcopy": False,
        "get_zone_info": False,
        "zone_management": False,
        "zone_append": False,
        "compare": True,
        "compare_and_write": writable,
        "abort": True,
        "seek_hole": False,
        "seek_data": False,
        "copy": writable,
        "nvme_iov_md": False,
        "nvme_nssr": False,
        "write_uncorrectable": False,
    }


def _driver_specific(bdev: BdevConfig) -> dict[str, Any]:
    if bdev.kind == "aio":
        return {
            "aio": {
                "filename": bdev.filename,
                "block_size_override": bdev.block_size != 0,
                "readonly": bdev.readonly,
                "fallocate": bdev.fallocate,
                "nowait": bdev.nowait,
            }
        }
    if bdev.kind == "uring":
        return {"uring": {"filename": bdev.filename}}
    if bdev.kind == "delay":
        latencies = zip(LATENCY_TYPES, bdev.latencies_us, strict=True)
        shown = {"name": bdev.name, "base_bdev_name": bdev.base, "uuid": bdev.uuid}
        return {"delay": shown | {f"{name}_latency": us for name, us in latencies}}
    if bdev.kind == "cmb":
        return {"cmb": {"provider": bdev.provider, "volatile": True}}
    if bdev.kind == "error":
        return {"error_disk": {"base_bdev": bdev.base}}
    return {}


async def get_iostat(context: Context, p: GetIostat) -> dict[str, Any]:
    if isinstance(p.names, UnsetType):
        names = [bdev.name for bdev, _ in _all(context)]
    else:
        names = [_require(context, name)[0].name for name in p.names]
    await context.dataplane.refresh()
    shown = [{"name": name, **_counters(context.dataplane.iostat(name) or IoStat())} for name in names]
    if p.reset_mode == "all":
        for name in names:
            await context.dataplane.iostat_reset(name)
    return {"tick_rate": TICK_RATE, "ticks": time.monotonic_ns(), "bdevs": shown}


def _counters(stat: IoStat) -> dict[str, Any]:
    """The least and greatest latency are not kept."""
    shown: dict[str, Any] = {
        "bytes_read": stat.bytes_read,
        "num_read_ops": stat.num_read_ops,
        "bytes_written": stat.bytes_written,
        "num_write_ops": stat.num_write_ops,
        "bytes_unmapped": stat.bytes_unmapped,
        "num_unmap_ops": stat.num_unmap_ops,
        "bytes_copied": stat.bytes_copied,
        "num_copy_ops": stat.num_copy_ops,
    }
    for kind, total_ns in (
        ("read", stat.read_latency_ns),
        ("write", stat.write_latency_ns),
        ("unmap", stat.unmap_latency_ns),
        ("copy", stat.copy_latency_ns),
    ):
        shown[f"{kind}_latency_ticks"] = total_ns
        shown[f"max_{kind}_latency_ticks"] = 0
        shown[f"min_{kind}_latency_ticks"] = 0
    shown["io_error"] = dict(stat.io_error)
    return shown


async def reset_iostat(context: Context, p: ResetIostat) -> bool:
    names = (
        [bdev.name for bdev, _ in _all(context)]
        if isinstance(p.name, UnsetType)
        else [_require(context, p.name)[0].name]
    )
    if p.mode == "all":
        for name in names:
            await context.dataplane.iostat_reset(name)
    return True


def _rescan(kind: BdevKind) -> Handler:
    async def rescan(context: Context, p: BdevName) -> bool:
        await context.rescan_bdev(of_kind(context.config, p.name, kind).name)
        return True

    return rescan


_RESCANNED: Final[tuple[tuple[BdevKind, str], ...]] = (("aio", "an"), ("uring", "a"))
_NO_BDEV = {-19: "there is no such bdev, or it is absent"}

BDEV: Final = (
    Method(
        name="bdev_get_bdevs",
        params=GetBdevs,
        handler=get_bdevs,
        summary="Show the open bdevs. One whose file or device is absent is not shown until it comes.",
        result="list of bdevs; supported_io_types is what the target can do on each",
        result_type=list[dict[str, Any]],
        errors=_NO_BDEV,
    ),
    Method(
        name="bdev_get_iostat",
        params=GetIostat,
        handler=get_iostat,
        summary="Show I/O counters of bdevs. Ticks are nanoseconds.",
        result="tick_rate, ticks and the list bdevs; least and greatest latencies are not kept and shown as 0",
        result_type=dict[str, Any],
        errors=_NO_BDEV,
    ),
    Method(
        name="bdev_reset_iostat",
        params=ResetIostat,
        handler=reset_iostat,
        summary="Set I/O counters of bdevs to zero.",
        result="true",
        errors=_NO_BDEV,
    ),
    *(
        Method(
            name=f"bdev_{kind}_rescan",
            params=BdevName,
            handler=_rescan(kind),
            summary=f"Read the size of {article} {kind} bdev's file or device again; hosts are told.",
            result="true",
            changes=True,
            errors={-19: "there is no such bdev"},
        )
        for kind, article in _RESCANNED
    ),
)
