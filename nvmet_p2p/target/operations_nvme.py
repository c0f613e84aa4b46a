"""Configuration changes of NVMe controllers that the data plane drives itself (SPDK's ``bdev_nvme``).

Attaching one tells which namespaces it has; that is not known here. ``declare`` makes a namespace a bdev of the
configuration, and it is one from then on: while the drive is absent, so is the bdev. What SPDK answers is the model for
codes and texts (module/bdev/nvme/bdev_nvme_rpc.c).
"""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from msgspec import UnsetType
from msgspec.structs import asdict, replace

from nvmet_p2p import limits
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.sysfs import normal_bdf
from nvmet_p2p.target import requests_nvme as req
from nvmet_p2p.target.config import (
    BdevConfig,
    BdevFacts,
    NvmeControllerConfig,
    NvmeHotplug,
    NvmeOptions,
    TargetConfig,
)
from nvmet_p2p.target.operations import Change, Operation, bdevs_on, claims, find_bdev
from nvmet_p2p.target.validate import DISCOVERY_NQN, failed, name_fault, nqn_fault, parse_uuid, unsupported

Create = Callable[[TargetConfig, BdevConfig], Change]
Without = Callable[[TargetConfig, BdevConfig], TargetConfig]
NAME_BYTES_MAX: Final = 63  # of a controller: its bdevs' names are longer
QUEUES_MAX: Final = 65536
MAX_BDEVS: Final = 128
TRANSPORTS: Final = {"pcie": "PCIe", "tcp": "TCP"}
FAMILIES: Final = {"ipv4": 4, "ipv6": 6}
_OTHERS: Final = ("rdma", "fc", "vfiouser", "custom")  # transports that SPDK knows
_HINTS: Final = ("fabrics_connect_timeout_us", "multipath", "num_io_queues", "multipath_opts")
_PATH: Final = ("trtype", "traddr", "adrfam", "trsvcid", "subnqn", "hostaddr", "hostsvcid")
TIMES: Final = ("ctrlr_loss_timeout_sec", "reconnect_delay_sec", "fast_io_fail_timeout_sec")
_NAMESPACE: Final = re.compile(r"(.+)n([1-9][0-9]{0,9})")


def namespace_of(config: TargetConfig, name: str) -> tuple[str, int] | None:
    """The controller of the configuration, and the NSID, that a bdev's name is made of."""
    found = _NAMESPACE.fullmatch(name)
    if found is None or found[1] not in config.nvme_controllers or int(found[2]) >= 0xFFFFFFFF:
        return None
    return found[1], int(found[2])


def bdevs_of(config: TargetConfig, controller: str) -> list[BdevConfig]:
    """The bdevs of a controller."""
    return [bdev for bdev in config.bdevs.values() if bdev.kind == "nvme" and bdev.controller == controller]


def another(bdev: BdevConfig, identity: str) -> str:
    """Why the namespace that is there now is not the one that ``bdev`` is; "" if it is, or if nobody knows."""
    if not identity or not bdev.identity or identity == bdev.identity:
        return ""
    return (
        f"{bdev.name}: another namespace is in its place: {identity!r} instead of {bdev.identity!r}; to use that one, "
        f"detach controller {bdev.controller!r} and attach it"
    )


def with_identities(config: TargetConfig, found: Iterable[BdevFacts]) -> TargetConfig:
    """``config`` with the identities of namespaces that were opened for the first time; the same object if none was."""
    learned = {
        facts.name: replace(bdev, identity=facts.identity)
        for facts in found
        if facts.identity and (bdev := config.bdevs.get(facts.name)) is not None and not bdev.identity
    }
    return replace(config, bdevs=config.bdevs | learned) if learned else config


def declare(create: Create, config: TargetConfig, name: str, uuid: str, identity: str = "") -> Change:
    """The namespace becomes a bdev. Raises ``OperatorError``: there is no such controller, or the name is taken."""
    found = namespace_of(config, name)
    if found is None:
        raise failed(errno.ENODEV, f"params.name: {name!r} is no namespace of a controller that is attached")
    bdev = BdevConfig(name=name, kind="nvme", uuid=uuid, controller=found[0], nsid=found[1], identity=identity)
    return create(config, bdev)


def declare_found(
    create: Create,
    config: TargetConfig,
    controller: str,
    found: Iterable[tuple[str, str]],
    new_uuid: Callable[[], str],
) -> TargetConfig:
    """The namespaces (names and UUIDs, "" for none) that an attached controller has become bdevs as well.

    -ERANGE: there are more than ``max_bdevs``. One whose name another bdev has is left out.
    """
    for name, uuid in found:
        if name not in config.bdevs:
            free = uuid if uuid and find_bdev(config, uuid) is None else new_uuid()
            config = declare(create, config, name, free).config
    most = config.nvme_controllers[controller].max_bdevs
    if len(bdevs_of(config, controller)) > most:
        raise failed(errno.ERANGE, f"controller {controller!r} has more than {most} namespaces (max_bdevs)")
    return config


def operations(create: Create, without: Without) -> Mapping[str, Operation]:
    """The operations, built on those that add and remove a bdev of any kind (``operations_bdev``)."""

    def expect(config: TargetConfig, p: req.ExpectNamespace) -> Change:
        known = config.bdevs.get(p.name)
        if known is None or known.kind != "nvme":
            return declare(create, config, p.name, p.uuid, p.identity)
        if fault := another(known, p.identity):
            raise failed(errno.ENODEV, fault)
        if p.identity:
            known = replace(known, identity=p.identity)
            config = replace(config, bdevs=config.bdevs | {known.name: known})
        return _with_uuid(config, known, parse_uuid(p.uuid, "params.uuid") if p.uuid else "")

    def detach(config: TargetConfig, p: req.ControllerPath) -> Change:
        return _detach(without, config, p)

    return {
        "bdev_nvme_attach_controller": Operation(req.AttachController, attach),
        "bdev_nvme_detach_controller": Operation(req.ControllerPath, detach),
        "bdev_nvme_set_hotplug": Operation(req.SetHotplug, set_hotplug),
        "bdev_nvme_set_options": Operation(req.SetOptions, set_options),
        "p2p_nvme_expect_namespace": Operation(req.ExpectNamespace, expect),
    }


def _with_uuid(config: TargetConfig, bdev: BdevConfig, uuid: str) -> Change:
    """One that was found when its controller was attached gets the UUID that it had when it was saved."""
    if not uuid or uuid == bdev.uuid:
        return Change(config, bdev.name)
    other = find_bdev(config, uuid)
    if other is not None:
        raise failed(errno.EEXIST, f"bdev {other.name!r} has the UUID {uuid!r}")
    if bdev.name in claims(config) or bdevs_on(config, bdev.name):
        raise failed(errno.EBUSY, f"bdev {bdev.name!r} is in use with UUID {bdev.uuid!r}")
    return Change(replace(config, bdevs=config.bdevs | {bdev.name: replace(bdev, uuid=uuid)}), bdev.name)


def attach(config: TargetConfig, p: req.AttachController) -> Change:
    if p.max_bdevs == 0:
        raise failed(errno.EINVAL, "max_bdevs cannot be zero")
    _check_name(p.name)
    if not isinstance(p.num_io_queues, UnsetType) and not 1 <= p.num_io_queues <= QUEUES_MAX:
        raise failed(errno.EINVAL, f"num_io_queues out of bounds, min: 1 max: {QUEUES_MAX}")
    kind = _transport(p.trtype)
    times = {name: _given(getattr(p, name)) for name in TIMES}
    path: dict[str, Any] = dict(_target(p) if kind == "TCP" else _drive(p))
    if kind == "TCP":
        path |= {"hdgst": p.hdgst, "ddgst": p.ddgst}
    controller = NvmeControllerConfig(
        name=p.name,
        trtype="TCP" if kind == "TCP" else "PCIe",
        max_bdevs=p.max_bdevs,
        hints={name: _plain(getattr(p, name)) for name in _HINTS if not isinstance(getattr(p, name), UnsetType)},
        ctrlr_loss_timeout_sec=times["ctrlr_loss_timeout_sec"],
        reconnect_delay_sec=times["reconnect_delay_sec"],
        fast_io_fail_timeout_sec=times["fast_io_fail_timeout_sec"],
        **path,
    )
    defaults = config.nvme_options or NvmeOptions()
    check_times(*(getattr(defaults, name) if value is None else value for name, value in times.items()))
    _check_free(config, controller, p)
    if len(config.nvme_controllers) >= limits.NVME_CONTROLLERS_MAX:
        raise failed(errno.ENOSPC, f"there are {limits.NVME_CONTROLLERS_MAX} controllers, which is the most")
    known = [bdev.name for bdev in bdevs_of(config, p.name)]
    return Change(replace(config, nvme_controllers=config.nvme_controllers | {p.name: controller}), known)


def _check_name(name: str) -> None:
    fault = name_fault(name)
    if fault is None and len(name.encode()) > NAME_BYTES_MAX:
        fault = f"a controller's name has at most {NAME_BYTES_MAX} bytes"
    if fault is not None:
        raise failed(errno.EINVAL, f"params.name: {fault}")


def _transport(trtype: str) -> str:
    kind = TRANSPORTS.get(trtype.lower())
    if kind is None and trtype.lower() in _OTHERS:
        raise unsupported(f"params.trtype: {trtype!r} is not supported, only PCIe and TCP are")
    if kind is None:
        raise failed(errno.EINVAL, f"Failed to parse trtype: {trtype}")
    return kind


def _text(value: str | UnsetType) -> str:
    return "" if isinstance(value, UnsetType) else value


def _given(value: int | UnsetType) -> int | None:
    return None if isinstance(value, UnsetType) else value


def _plain(value: Any) -> Any:
    """A hint as JSON has it."""
    if isinstance(value, req.MultipathOpts):
        return {name: part for name, part in asdict(value).items() if not isinstance(part, UnsetType)}
    return value


def _drive(p: req.AttachController) -> dict[str, str]:
    bdf = normal_bdf(p.traddr)
    if bdf is None:
        raise failed(errno.EINVAL, f"params.traddr: {p.traddr!r} is not a PCI address such as 0000:03:00.0")
    for name in ("trsvcid", "hostaddr", "hostsvcid"):
        if _text(getattr(p, name)):
            raise failed(errno.EINVAL, f"params.{name}: a drive on PCI Express has none")
    return {"traddr": bdf, "subnqn": _text(p.subnqn), "hostnqn": _text(p.hostnqn)}


def _target(p: req.AttachController) -> dict[str, str]:
    try:
        address = ipaddress.ip_address(p.traddr)
    except ValueError:
        raise failed(errno.EINVAL, f"params.traddr: {p.traddr!r} is not an IP address") from None
    family = _text(p.adrfam)
    if family and FAMILIES.get(family.lower()) is None:
        raise failed(errno.EINVAL, f"Failed to parse adrfam: {family}")
    if family and FAMILIES[family.lower()] != address.version:
        raise failed(errno.EINVAL, f"params.traddr: {p.traddr!r} is not an address of {family}")
    port = _text(p.trsvcid)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise failed(errno.EINVAL, f"params.trsvcid: {port!r} is not a TCP port")
    subnqn, hostnqn = _text(p.subnqn), _text(p.hostnqn)
    if subnqn == DISCOVERY_NQN:
        raise failed(errno.EINVAL, "params.subnqn: the discovery subsystem has no namespaces")
    for where, nqn in (("subnqn", subnqn), ("hostnqn", hostnqn)):
        if (nqn or where == "subnqn") and (fault := nqn_fault(nqn)) is not None:
            raise failed(errno.EINVAL, f"params.{where}: {fault}")
    return {
        "traddr": str(address),
        "adrfam": f"IPv{address.version}",
        "trsvcid": port,
        "subnqn": subnqn,
        "hostnqn": hostnqn,
        "hostaddr": _text(p.hostaddr),
        "hostsvcid": _text(p.hostsvcid),
    }


def _check_free(config: TargetConfig, controller: NvmeControllerConfig, p: req.AttachController) -> None:
    """SPDK's answers where the name is taken, with the one difference that no path is added."""
    name = controller.name
    other = config.nvme_controllers.get(name)
    if other is not None:
        if p.multipath == "disable":
            raise failed(errno.EALREADY, f"A controller named {name} already exists and multipath is disabled")
        if _path(other) == _path(controller):
            raise failed(errno.EALREADY, f"A controller named {name} already exists with the specified network path")
        if other.subnqn != controller.subnqn:
            raise failed(
                errno.EINVAL,
                f"A controller named {name} already exists, but uses a different subnqn ({other.subnqn})",
            )
        raise unsupported(f"A controller named {name} already exists: {req.NO_PATHS}")
    for known in config.nvme_controllers.values():
        if _path(known) == _path(controller) and known.subnqn == controller.subnqn:
            raise failed(errno.EEXIST, f"params.traddr: controller {known.name!r} is there already")
    for bdev in config.bdevs.values():
        found = _NAMESPACE.fullmatch(bdev.name)
        if found is not None and found[1] == name:
            raise failed(errno.EEXIST, f"params.name: bdev {bdev.name!r} has the name of a namespace of it")


def _path(controller: NvmeControllerConfig) -> tuple[str, ...]:
    return controller.traddr, controller.trsvcid, controller.hostaddr, controller.hostsvcid


def _detach(without: Without, config: TargetConfig, p: req.ControllerPath) -> Change:
    controller = config.nvme_controllers.get(p.name)
    if controller is None:
        raise failed(errno.ENODEV, f"there is no controller {p.name!r}")
    for name in _PATH:
        given = getattr(p, name)
        if (
            not isinstance(given, UnsetType)
            and given
            and _comparable(name, given) != _comparable(name, getattr(controller, name))
        ):
            raise failed(errno.ENXIO, f"params.{name}: controller {p.name!r} has no path with {given!r}")
    for bdev in bdevs_of(config, p.name):
        config = without(config, bdev)
    left = {name: other for name, other in config.nvme_controllers.items() if name != p.name}
    return Change(replace(config, nvme_controllers=left))


def _comparable(name: str, text: str) -> str:
    return (normal_bdf(text) or text).lower() if name in ("trtype", "traddr", "adrfam") else text


def check_times(loss: int, delay: int, fast: int) -> None:
    """What SPDK asks of the three times that hang together."""
    text = ""
    if loss < -1:
        text = "ctrlr_loss_timeout_sec is -1 or more"
    elif loss == -1 and delay == 0:
        text = "with ctrlr_loss_timeout_sec -1, reconnect_delay_sec is not 0"
    elif loss == 0 and (delay or fast):
        text = "with ctrlr_loss_timeout_sec 0, reconnect_delay_sec and fast_io_fail_timeout_sec are 0"
    elif loss > 0 and not 0 < delay <= loss:
        text = "reconnect_delay_sec is neither 0 nor more than ctrlr_loss_timeout_sec"
    elif fast and (fast < delay or 0 < loss < fast):
        text = "fast_io_fail_timeout_sec is between reconnect_delay_sec and ctrlr_loss_timeout_sec"
    if text:
        raise failed(errno.EINVAL, f"params: {text}")


def set_options(config: TargetConfig, p: req.SetOptions) -> Change:
    """What is not given stays."""
    if config.nvme_controllers:
        raise OperatorError(-errno.EPERM, "RPC not permitted with nvme controllers already attached")
    now = config.nvme_options or NvmeOptions()
    given = {name: _plain(value) for name, value in asdict(p).items() if not isinstance(value, UnsetType)}
    known = {name: value for name, value in given.items() if name in NvmeOptions.__struct_fields__}
    hints = now.hints | {name: value for name, value in given.items() if name not in known}
    options = replace(now, **known, hints=hints)
    if options.timeout_us == 0 and options.timeout_admin_us:
        raise failed(errno.EINVAL, "params.timeout_admin_us: not without timeout_us")
    if options.bdev_retry_count < -1:
        raise failed(errno.EINVAL, "params.bdev_retry_count: -1 or more")
    check_times(options.ctrlr_loss_timeout_sec, options.reconnect_delay_sec, options.fast_io_fail_timeout_sec)
    return Change(replace(config, nvme_options=options))


def set_hotplug(config: TargetConfig, p: req.SetHotplug) -> Change:
    period = 0 if isinstance(p.period_us, UnsetType) else p.period_us
    return Change(replace(config, nvme_hotplug=NvmeHotplug(enable=p.enable, period_us=period)))


# -- as calls ----------------------------------------------------------------------------------------------------------


def options_params(options: NvmeOptions) -> dict[str, Any]:
    """As bdev_nvme_set_options takes them."""
    fields = asdict(options)
    hints = fields.pop("hints")
    return {**fields, **hints}


def controller_params(controller: NvmeControllerConfig) -> dict[str, Any]:
    """As bdev_nvme_attach_controller takes them; what is empty is left out."""
    fields = asdict(controller)
    hints = fields.pop("hints")
    kept = {name: value for name, value in fields.items() if value not in ("", None)}
    if controller.max_bdevs == MAX_BDEVS:
        del kept["max_bdevs"]
    if controller.trtype == "PCIe":
        kept = {name: value for name, value in kept.items() if name not in ("hdgst", "ddgst")}
    return {**kept, **hints}


def undeclared(config: TargetConfig, method: str, params: Any) -> str | None:
    """The namespace that a call speaks of and that nobody has declared: so it is in what SPDK's save_config wrote."""
    if not isinstance(params, dict):
        return None
    namespace = params.get("namespace")
    named = [params.get("base_bdev_name"), params.get("base_name")]
    named += [params.get("name")] if method == "bdev_set_qos_limit" else []
    named += [namespace.get("bdev_name")] if isinstance(namespace, dict) else []
    for name in named:
        if isinstance(name, str) and namespace_of(config, name) is not None and find_bdev(config, name) is None:
            return name
    return None
