"""``bdev_nvme_*``: controllers that the data plane drives itself, as SPDK's methods of these names have them."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import UnsetType

from nvmet_p2p.dataplane.port import NvmePlane
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server.context import Context
from nvmet_p2p.server.drives import NO_DRIVER
from nvmet_p2p.server.schema import Method
from nvmet_p2p.target.config import NvmeControllerConfig
from nvmet_p2p.target.operations_bdev import OPERATIONS, with_uuid
from nvmet_p2p.target.operations_nvme import another
from nvmet_p2p.target.request_types import Request
from nvmet_p2p.target.requests_nvme import (
    AttachController,
    ControllerPath,
    ExpectNamespace,
    GetControllers,
    HealthInfo,
    ResetController,
    SetHotplug,
    SetOptions,
)
from nvmet_p2p.target.validate import INTERNAL_ERROR, failed

_STATES: Final = {"removed": "deleting"}  # where SPDK has another word
_COUNTERS: Final = ("resets", "timeouts", "retries", "bounced_ops", "bounced_bytes", "mdts_bytes")
_NO_CONTROLLER: Final = {-19: "there is no such controller"}
_NOT_BUILT: Final = {-95: "the data plane is the in-process one, or built without SPDK"}


def _driver(context: Context) -> NvmePlane:
    nvme = context.dataplane.nvme
    if nvme is None:
        raise failed(errno.EOPNOTSUPP, NO_DRIVER)
    return nvme


async def attach(context: Context, request: AttachController) -> list[str]:
    """The controller becomes configuration, then its namespaces; neither if the second goes wrong."""
    _driver(context)
    await context.commit(OPERATIONS["bdev_nvme_attach_controller"].apply(context.config, request).config)
    try:
        return await context.adopt_namespaces(request.name)
    except OperatorError:
        undone = OPERATIONS["bdev_nvme_detach_controller"].apply(context.config, ControllerPath(name=request.name))
        await context.commit(undone.config)
        raise


async def change(context: Context, name: str, request: Request) -> Any:
    """The other operations need nothing but to be committed."""
    changed = OPERATIONS[name].apply(context.config, request)
    if changed.config != context.config:
        await context.commit(changed.config)
    return changed.result


async def detach(context: Context, request: ControllerPath) -> Any:
    return await change(context, "bdev_nvme_detach_controller", request)


async def set_options(context: Context, request: Request) -> Any:
    _driver(context)
    return await change(context, "bdev_nvme_set_options", request)


async def set_hotplug(context: Context, request: Request) -> Any:
    _driver(context)
    return await change(context, "bdev_nvme_set_hotplug", request)


async def expect_namespace(context: Context, request: ExpectNamespace) -> Any:
    """The bdev is there at once if the namespace is; otherwise the call is refused, as every other that opens one."""
    known = request.name in context.config.bdevs
    return await change(
        context, "p2p_nvme_expect_namespace", request if known else with_uuid(request, context.new_uuid)
    )


def _configured(context: Context, name: str) -> NvmeControllerConfig | None:
    return context.config.nvme_controllers.get(name)


async def get_controllers(context: Context, request: GetControllers) -> list[dict[str, Any]]:
    names = list(context.config.nvme_controllers)
    if not isinstance(request.name, UnsetType):
        if _configured(context, request.name) is None:
            raise failed(errno.EINVAL, f"Controller {request.name} does not exist")
        names = [request.name]
    there = await context.dataplane.nvme.controllers() if context.dataplane.nvme is not None and names else {}
    absent = context.absent_controllers()
    return [
        {
            "name": name,
            "ctrlrs": [
                _shown(context.config.nvme_controllers[name], there.get(name), absent.get(name, ""))
                | _refused(context, there.get(name, {}).get("namespaces", ()))
            ],
        }
        for name in names
    ]


def _refused(context: Context, namespaces: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The namespaces that are there and are no bdevs, by name, and why."""
    reasons: dict[str, str] = {}
    for row in namespaces:
        bdev = context.config.bdevs.get(row["name"])
        fault = another(bdev, row.get("identity", "")) if bdev is not None else ""
        reasons[row["name"]] = fault or row.get("refused", "")
    reasons = {name: reason for name, reason in reasons.items() if reason}
    return {"refused_namespaces": reasons} if reasons else {}


def _shown(config: NvmeControllerConfig, found: Mapping[str, Any] | None, reason: str) -> dict[str, Any]:
    """As SPDK shows one, and what is known of it beside that. One that is absent is shown as failed."""
    found = found or {"state": "failed"}
    host = {
        "nqn": found.get("hostnqn") or config.hostnqn,
        "addr": config.hostaddr,
        "svcid": config.hostsvcid,
        "no_shn_notification": False,
    }
    shown: dict[str, Any] = {
        "state": _STATES.get(found["state"], found["state"]),
        "trid": trid(config, found),
        "cntlid": found.get("cntlid", 0),
        "host": host,
    }
    if reason:
        shown["reason"] = reason
    for ours, name in (("serial_number", "serial"), ("model_number", "model"), ("firmware_revision", "firmware")):
        if name in found:
            shown[ours] = str(found[name]).strip()
    return shown | {name: found[name] for name in _COUNTERS if name in found}


def trid(config: NvmeControllerConfig, found: Mapping[str, Any]) -> dict[str, str]:
    """A transport ID as SPDK shows it: empty parts are left out."""
    parts = {
        "trtype": config.trtype,
        "adrfam": config.adrfam,
        "traddr": config.traddr,
        "trsvcid": config.trsvcid,
        "subnqn": config.subnqn or str(found.get("subnqn") or ""),
    }
    return {name: text for name, text in parts.items() if text}


def driver_specific(config: NvmeControllerConfig, found: Mapping[str, Any], nsid: int) -> dict[str, Any]:
    """Of a bdev, as SPDK shows it; what the data plane does not tell is left out."""
    data: dict[str, Any] = {"cntlid": found.get("cntlid", 0)}
    if found.get("vendor_id") is not None:
        data["vendor_id"] = f"0x{int(found['vendor_id']):04x}"
    for theirs, name in (("model_number", "model"), ("serial_number", "serial"), ("firmware_revision", "firmware")):
        data[theirs] = str(found.get(name, "")).strip()
    if found.get("subnqn"):
        data["subnqn"] = found["subnqn"]
    entry: dict[str, Any] = {"pci_address": config.traddr} if config.trtype == "PCIe" else {}
    entry |= {"trid": trid(config, found), "ctrlr_data": data, "ns_data": {"id": nsid}}
    return {"nvme": [entry], "mp_policy": "active_passive"}


async def reset_controller(context: Context, request: ResetController) -> bool:
    config = _configured(context, request.name)
    found = (await _driver(context).controllers()).get(request.name) if config is not None else None
    if found is None or request.cntlid not in (0, found.get("cntlid", 0)):
        raise failed(errno.ENODEV, f"there is no controller {request.name!r}, or not of that identifier")
    await _driver(context).reset(request.name)
    return True


async def health_info(context: Context, request: HealthInfo) -> dict[str, Any]:
    config = _configured(context, request.name)
    if config is None or request.name not in await _driver(context).controllers():
        raise OperatorError(INTERNAL_ERROR, "Device not found")
    return await _driver(context).health(request.name)


NVME: Final = (
    Method(
        name="bdev_nvme_attach_controller",
        params=AttachController,
        handler=attach,
        summary="Attach a drive on vfio-pci (PCIe), or another target's subsystem (TCP), that the data plane drives "
        "itself; its namespaces become bdevs. Native data plane built with SPDK only.",
        result="names of the bdevs",
        result_type=list[str],
        changes=True,
        errors={
            -22: "a parameter is wrong, or two contradict",
            -17: "it is attached under another name, or the name of a bdev of it is taken",
            -114: "there is one of that name",
            -19: "it is not there, or not on vfio-pci",
            -12: "SPDK before 25.09 needs huge pages for drives, and has none",
            -34: "it has more namespaces than max_bdevs",
            **_NOT_BUILT,
        },
    ),
    Method(
        name="bdev_nvme_detach_controller",
        params=ControllerPath,
        handler=detach,
        summary="Detach a controller: its bdevs and the namespaces on them go, once their I/O is done.",
        result="true",
        changes=True,
        errors={**_NO_CONTROLLER, -6: "it has another path"},
    ),
    Method(
        name="bdev_nvme_get_controllers",
        params=GetControllers,
        handler=get_controllers,
        summary="Show the controllers that the data plane drives itself; one that is absent is shown as failed.",
        result="list of controllers; beside SPDK's members the reason of an absence, refused_namespaces, identity and "
        "counters",
        result_type=list[dict[str, Any]],
        errors={-22: "there is no such controller"},
    ),
    Method(
        name="bdev_nvme_reset_controller",
        params=ResetController,
        handler=reset_controller,
        summary="Reset a controller; I/O in flight is done again afterwards.",
        result="true",
        errors={**_NO_CONTROLLER, -16: "it is being reset", **_NOT_BUILT},
    ),
    Method(
        name="bdev_nvme_get_controller_health_info",
        params=HealthInfo,
        handler=health_info,
        summary="Show the SMART / health log of a controller.",
        result="its members with SPDK's names",
        result_type=dict[str, Any],
        errors={-32603: "there is no such controller, or it is absent", **_NOT_BUILT},
    ),
    Method(
        name="bdev_nvme_set_options",
        params=SetOptions,
        handler=set_options,
        summary="Set what all controllers have in common, before the first one is attached. What is not given stays.",
        result="true",
        changes=True,
        errors={-1: "a controller is attached", -22: "options contradict", **_NOT_BUILT},
    ),
    Method(
        name="bdev_nvme_set_hotplug",
        params=SetHotplug,
        handler=set_hotplug,
        summary="Set whether, and how often, drives that left are looked for. Without it they are found more slowly.",
        result="true",
        changes=True,
        errors=_NOT_BUILT,
    ),
    Method(
        name="p2p_nvme_expect_namespace",
        params=ExpectNamespace,
        handler=expect_namespace,
        summary="Make a bdev of a namespace of a controller, or give it its UUID. Attaching makes them by itself; "
        "save_config writes these calls so that they keep their UUIDs.",
        result="name of the bdev",
        result_type=str,
        changes=True,
        errors={
            -19: "there is no such controller, or it has no such namespace, or another one is in its place",
            -17: "another bdev has the name or UUID",
            -16: "it is in use with another UUID",
        },
        spdk=False,
    ),
)
