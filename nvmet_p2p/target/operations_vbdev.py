"""Configuration changes of the bdevs that test and limit others: delay, error, and the limits of any bdev."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import UnsetType
from msgspec.structs import replace

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target import requests_bdev as req
from nvmet_p2p.target.config import QOS_LIMITS, BdevConfig, BdevKind, TargetConfig
from nvmet_p2p.target.operations import Change, Operation, bdevs_on, claims, find_bdev
from nvmet_p2p.target.validate import failed

IOS_PER_SEC_UNIT: Final = 1000  # SPDK's least limit, and the step of every one
LATENCY_TYPES: Final = ("avg_read", "p99_read", "avg_write", "p99_write")
LATENCY_US_MAX: Final = 3_600_000_000
Create = Callable[[TargetConfig, BdevConfig], Change]


def operations(create: Create, delete: Callable[[BdevKind], Operation]) -> Mapping[str, Operation]:
    """The operations, built on those that add and remove a bdev of any kind (``operations_bdev``)."""

    def create_delay(config: TargetConfig, p: req.DelayCreate) -> Change:
        latencies = (p.avg_read_latency, p.p99_read_latency, p.avg_write_latency, p.p99_write_latency)
        for name, value in zip(LATENCY_TYPES, latencies, strict=True):
            _check_latency(f"params.{name}_latency", value)
        base = _free(config, p.base_bdev_name, "params.base_bdev_name")
        bdev = BdevConfig(name=p.name, kind="delay", uuid=p.uuid, base=base.name, latencies_us=latencies)
        return create(config, bdev)

    def create_error(config: TargetConfig, p: req.ErrorCreate) -> Change:
        base = _free(config, p.base_name, "params.base_name")
        return create(config, BdevConfig(name=f"EE_{base.name}", kind="error", uuid=p.uuid, base=base.name))

    return {
        "bdev_delay_create": Operation(req.DelayCreate, create_delay),
        "bdev_delay_delete": delete("delay"),
        "bdev_delay_update_latency": Operation(req.DelayUpdate, update_latency),
        "bdev_error_create": Operation(req.ErrorCreate, create_error),
        "bdev_error_delete": delete("error"),
        "bdev_set_qos_limit": Operation(req.SetQos, set_qos),
    }


def _free(config: TargetConfig, name: str, where: str) -> BdevConfig:
    """A bdev that another can be put on: it serves nothing yet."""
    base = find_bdev(config, name)
    if base is None:
        raise failed(errno.ENODEV, f"{where}: there is no bdev {name!r}")
    claim = claims(config).get(base.name)
    if claim is not None:
        raise failed(
            errno.EPERM, f"{where}: bdev {base.name!r} is namespace {claim[1]} of subsystem {claim[0]!r} already"
        )
    for above in bdevs_on(config, base.name):
        raise failed(errno.EPERM, f"{where}: bdev {base.name!r} is below bdev {above.name!r} already")
    return base


def _check_latency(where: str, value: int) -> None:
    if value > LATENCY_US_MAX:
        raise failed(errno.EINVAL, f"{where}: more than an hour")


def update_latency(config: TargetConfig, p: req.DelayUpdate) -> Change:
    bdev = find_bdev(config, p.delay_bdev_name)
    if bdev is None:
        raise failed(errno.ENODEV, f"there is no bdev {p.delay_bdev_name!r}")
    if bdev.kind != "delay":
        raise failed(errno.EINVAL, f"params.delay_bdev_name: bdev {bdev.name!r} is of kind {bdev.kind}, not delay")
    _check_latency("params.latency_us", p.latency_us)
    latencies = dict(zip(LATENCY_TYPES, bdev.latencies_us, strict=True)) | {p.latency_type: p.latency_us}
    avg_read, p99_read, avg_write, p99_write = (latencies[name] for name in LATENCY_TYPES)
    return _changed(config, replace(bdev, latencies_us=(avg_read, p99_read, avg_write, p99_write)))


def set_qos(config: TargetConfig, p: req.SetQos) -> Change:
    """A limit that is not given stays. Rates of commands are rounded up to the next thousand, as SPDK does."""
    bdev = find_bdev(config, p.name)
    if bdev is None:
        raise failed(errno.ENODEV, f"there is no bdev {p.name!r}")
    given = {name: getattr(p, name) for name in QOS_LIMITS if not isinstance(getattr(p, name), UnsetType)}
    if not given:
        raise OperatorError(-errno.EINVAL, f"params: none of {', '.join(QOS_LIMITS)}")
    if "rw_ios_per_sec" in given:
        given["rw_ios_per_sec"] = -(-given["rw_ios_per_sec"] // IOS_PER_SEC_UNIT) * IOS_PER_SEC_UNIT
    limits = {name: getattr(bdev, name) for name in QOS_LIMITS} | given
    if (
        limits["rw_mbytes_per_sec"]
        and max(limits["r_mbytes_per_sec"], limits["w_mbytes_per_sec"]) > limits["rw_mbytes_per_sec"]
    ):
        raise failed(errno.EINVAL, "params: a limit for reads or writes alone is higher than that for both")
    return _changed(config, replace(bdev, **given))


def _changed(config: TargetConfig, bdev: BdevConfig) -> Change:
    return Change(replace(config, bdevs=config.bdevs | {bdev.name: bdev}))
