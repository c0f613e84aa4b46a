"""``bdev_*`` methods that the data plane answers itself: injected errors, latency histograms. Not persisted."""

from __future__ import annotations

import errno
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, UnsetType
from msgspec.structs import asdict

from nvmet_p2p.server.context import Context
from nvmet_p2p.server.schema import Handler, Method
from nvmet_p2p.target.operations import find_bdev
from nvmet_p2p.target.request_types import U8, U32, U64, Request, doc, only, refused
from nvmet_p2p.target.requests_bdev import BdevName, Name
from nvmet_p2p.target.validate import failed

WHOLE_RANGE = "a histogram has every bucket, 128 to each doubling"


class InjectError(Request, frozen=True, kw_only=True):
    """bdev_error_inject_error"""

    name: Annotated[str, doc("Name of the error bdev")]
    io_type: Annotated[Literal["clear", "read", "write", "unmap", "flush", "all"], doc("Which I/O; clear ends all")]
    error_type: Annotated[
        Literal["failure", "nvme_failure", "pending", "corrupt_data", "nomem", "not_transferred"],
        only(
            ("failure", "pending", "corrupt_data", "nomem", "not_transferred"),
            "What happens; not_transferred: a read succeeds and has moved nothing",
            "no status can be chosen",
        ),
    ]
    nvme_sct: Annotated[U32 | UnsetType, only((), "Status code type of nvme_failure", "no status can be chosen")] = (
        UNSET
    )
    nvme_sc: Annotated[U32 | UnsetType, only((), "Status code of nvme_failure", "no status can be chosen")] = UNSET
    num: Annotated[U32, doc("To how many commands; 0 ends it")] = 1
    queue_depth: Annotated[U64 | UnsetType, only((0,), "From which depth on", "errors come at any depth")] = UNSET
    corrupt_offset: Annotated[U32, doc("Byte that corrupt_data changes")] = 0
    corrupt_value: Annotated[U8, doc("What it is xored with, at least 1 for corrupt_data")] = 0


class EnableHistogram(Request, frozen=True, kw_only=True):
    """bdev_enable_histogram"""

    name: Name
    enable: Annotated[bool, doc("Count from now on, or end it")]
    opc: Annotated[str, refused("Kind of I/O that is counted", "all kinds are counted together")] = ""
    granularity: Annotated[U8 | UnsetType, only((7,), "Buckets to each doubling, a power of two", WHOLE_RANGE)] = UNSET
    min_nsec: Annotated[U64 | UnsetType, only((), "Least value", WHOLE_RANGE)] = UNSET
    max_nsec: Annotated[U64 | UnsetType, only((), "Greatest value", WHOLE_RANGE)] = UNSET


def _forward(method: str, *names: str) -> Handler:
    """Hands the parameters ``names`` on, with the bdev by its name."""

    async def handle(context: Context, p: Any) -> Any:
        bdev = find_bdev(context.config, p.name)
        if bdev is None:
            raise failed(errno.ENODEV, f"there is no bdev {p.name!r}")
        given = {key: value for key, value in asdict(p).items() if key in names}
        return await context.dataplane.forward(method, given | {"name": bdev.name})

    return handle


_ERRORS: Final = {-19: "there is no such bdev", -22: "the bdev is of another kind", -95: "the data plane has none"}

BDEV_NATIVE: Final = (
    Method(
        name="bdev_error_inject_error",
        params=InjectError,
        handler=_forward("bdev_error_inject_error", "io_type", "error_type", "num", "corrupt_offset", "corrupt_value"),
        summary="Let the next I/O of an error bdev fail. Native data plane only.",
        result="true",
        errors=_ERRORS,
    ),
    Method(
        name="bdev_enable_histogram",
        params=EnableHistogram,
        handler=_forward("bdev_enable_histogram", "enable"),
        summary="Count the latencies of a bdev, until the data plane ends. Native data plane only.",
        result="true",
        errors=_ERRORS,
    ),
    Method(
        name="bdev_get_histogram",
        params=BdevName,
        handler=_forward("bdev_get_histogram"),
        summary="Show the latencies of a bdev. Native data plane only.",
        result="histogram (base64 of 64-bit counters, little endian), granularity, min_range, max_range, tsc_rate",
        result_type=dict[str, Any],
        errors=_ERRORS,
    ),
)
