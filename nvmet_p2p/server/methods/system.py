"""Methods about the daemon and its configuration as a whole."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any, Final

from nvmet_p2p.dataplane.port import SpdkStatus
from nvmet_p2p.server import openrpc
from nvmet_p2p.server.context import Context
from nvmet_p2p.server.drives import NO_DRIVER
from nvmet_p2p.server.schema import Method
from nvmet_p2p.state.render import SUBSYSTEMS, address_params, render_config, render_subsystem, replay, replay_subsystem
from nvmet_p2p.target.request_types import NoParams, Request, doc

SPDK_MAJOR: Final = 26  # the release whose methods, parameters and answers are taken as the model
SPDK_MINOR: Final = 9
SLOW_NOTE = "I/O queues are served by Python in this process: right, but slow."


class GetMethods(Request, frozen=True, kw_only=True):
    """rpc_get_methods"""

    current: Annotated[bool, doc("Only those that can be called now")] = False
    include_aliases: Annotated[bool, doc("Older names too")] = False


class SaveConfig(Request, frozen=True, kw_only=True):
    """save_config"""

    with_batches: Annotated[bool, doc("Put calls of one method that follow each other into a list")] = False


class LoadConfig(Request, frozen=True, kw_only=True):
    """load_config"""

    subsystems: Annotated[list[Any], doc("The list of that name in what save_config gave")]


class OfPart(Request, frozen=True, kw_only=True):
    """framework_get_config, save_subsystem_config"""

    name: Annotated[str, doc(f"One of {', '.join(SUBSYSTEMS)}")]
    with_batches: Annotated[bool, doc("Put calls of one method that follow each other into a list")] = False


class LoadSubsystem(Request, frozen=True, kw_only=True):
    """load_subsystem_config"""

    subsystem: Annotated[str, doc("Name in what save_subsystem_config gave; it is not looked at")] = ""
    config: Annotated[list[Any], doc("The list of that name in what save_subsystem_config gave")]


async def get_methods(_: Context, p: GetMethods) -> list[str]:
    from nvmet_p2p.server.methods import METHODS

    names = [name for name, method in METHODS.items() if method.current or not p.current]
    if p.include_aliases:
        names += [alias for method in METHODS.values() for alias in method.aliases]
    return names


async def discover(context: Context, _: NoParams) -> dict[str, Any]:
    from nvmet_p2p.server.methods import METHODS

    return openrpc.document(METHODS, context.version)


async def get_version(context: Context, _: NoParams) -> dict[str, Any]:
    return {
        "version": f"nvmet_p2p {context.version} (methods of SPDK v{SPDK_MAJOR}.{SPDK_MINOR:02})",
        "fields": {"major": SPDK_MAJOR, "minor": SPDK_MINOR, "patch": 0, "suffix": ""},
    }


async def get_status(context: Context, _: NoParams) -> dict[str, Any]:
    stats = context.queue_stats()
    config = context.config
    served = context.dataplane.status()
    keeper = context.staging.keeper
    return {
        "version": context.version,
        "pid": os.getpid(),
        "uptime_s": round(context.uptime_s, 3),
        "dataplane": {
            "engine": context.dataplane.name,
            "slow": context.dataplane.slow,
            "note": SLOW_NOTE if context.dataplane.slow else "",
            "up": served.up,
            "pid": served.pid,
            "restarts": served.restarts,
            "last_exit": served.last_exit,
            "rpc_socket": served.rpc_socket,
            "zero_copy": {"bytes": served.zero_copy_bytes, "copied_bytes": served.copied_bytes},
        },
        "rpc_socket": str(context.settings.rpc_socket),
        "state_dir": str(context.settings.state_dir),
        "subsystems": sum(subsystem.subtype == "NVMe" for subsystem in config.subsystems.values()),
        "controllers": len(context.controllers()),
        "io_queues": stats.current_io_qpairs,
        "unconnected_peers": stats.current_unassociated_qpairs,
        "tasks": len(asyncio.all_tasks()),
        "bdevs": len(config.bdevs),
        "rdma": await _rdma(context),
        "spdk": await _spdk(context),
        "absent_listeners": [address_params(address) for address in context.unbound()],
        "staging": {
            "pools": sorted(keeper.mapped) if keeper is not None else [],
            "lost_pools": sorted(keeper.lost) if keeper is not None else [],
            "degraded": [str(place) for place, decision in context.staging.decisions.items() if decision.degraded],
        },
        "absent_bdevs": [name for name in config.bdevs if name not in context.bdev_facts],
    }


async def _rdma(context: Context) -> dict[str, Any]:
    status = await context.dataplane.rdma_status()
    return {
        "available": status.built,
        "reason": status.reason,
        "devices": [
            {"name": device.get("name", ""), "present": bool(device.get("present", not device.get("removed", False))),
             "addresses": list(device.get("addresses", ()))}
            for device in status.devices
        ],
    }  # fmt: skip


async def _spdk(context: Context) -> dict[str, Any]:
    """NVMe drives of the data plane's own: whether it can have any, and those that are configured."""
    driver = context.dataplane.nvme
    status = await driver.status() if driver is not None else SpdkStatus(False, reason=NO_DRIVER)
    return {
        "built": status.built,
        "version": status.version,
        "active": status.active,
        "reason": status.reason,
        "controllers": list(context.config.nvme_controllers),
        "absent_controllers": dict(context.absent_controllers()),
    }


async def nothing_to_wait_for(_: Context, __: NoParams) -> bool:
    return True


async def get_framework_subsystems(_: Context, __: NoParams) -> list[dict[str, Any]]:
    return [{"subsystem": name, "depends_on": list(needs)} for name, needs in SUBSYSTEMS.items()]


async def get_framework_config(context: Context, p: OfPart) -> list[Any]:
    return render_subsystem(context.config, p.name, with_batches=p.with_batches)


async def save_config(context: Context, p: SaveConfig) -> dict[str, Any]:
    return render_config(context.config, with_batches=p.with_batches)


async def save_subsystem_config(context: Context, p: OfPart) -> dict[str, Any]:
    return {
        "subsystem": p.name,
        "config": render_subsystem(context.config, p.name, with_batches=p.with_batches),
    }


# Thousands of calls take seconds: they are replayed in a thread, and the event loop goes on. No other change runs
# meanwhile (``Method.changes``); what hosts change themselves is kept by ``reconcile.keep_protection``.


async def load_config(context: Context, p: LoadConfig) -> bool:
    new = await asyncio.to_thread(replay, context.config, {"subsystems": p.subsystems}, context.new_uuid)
    if new != context.config:
        await context.commit(new)
    return True


async def load_subsystem_config(context: Context, p: LoadSubsystem) -> bool:
    new = await asyncio.to_thread(replay_subsystem, context.config, {"config": p.config}, context.new_uuid)
    if new != context.config:
        await context.commit(new)
    return True


_LOAD_ERRORS = {
    -32601: "a call in the list is not one that changes the configuration",
    -17: "a bdev exists already, and the codes of the calls in the list",
}

SYSTEM: Final = (
    Method(
        name="rpc_get_methods",
        params=GetMethods,
        handler=get_methods,
        summary="Show the names of the methods.",
        result="list of names",
        result_type=list[str],
    ),
    Method(
        name="rpc.discover",
        params=NoParams,
        handler=discover,
        summary="Show the OpenRPC document of this API.",
        result="the document",
        result_type=dict[str, Any],
        spdk=False,
    ),
    Method(
        name="spdk_get_version",
        params=NoParams,
        handler=get_version,
        summary="Show the version; the numbers are those of the SPDK release whose methods this API has.",
        result="version and fields",
        result_type=dict[str, Any],
    ),
    Method(
        name="p2p_get_status",
        params=NoParams,
        handler=get_status,
        summary="Show what the daemon is and does.",
        result="version, process, data plane, paths and numbers; RDMA devices; pools, those that were lost, and "
        "namespaces that are not staged as was asked for; the addresses that cannot be listened on and the names of "
        "bdevs whose file or device is absent",
        result_type=dict[str, Any],
        spdk=False,
    ),
    Method(
        name="framework_start_init",
        params=NoParams,
        handler=nothing_to_wait_for,
        summary="Does nothing: the daemon is initialized when it listens. SPDK's scripts may call it.",
        result="true",
        current=False,
    ),
    Method(
        name="framework_wait_init",
        params=NoParams,
        handler=nothing_to_wait_for,
        summary="Answers at once: the daemon is initialized when it listens.",
        result="true",
    ),
    Method(
        name="framework_get_subsystems",
        params=NoParams,
        handler=get_framework_subsystems,
        summary="Show the parts that a configuration consists of, and what each depends on.",
        result="list of parts",
        result_type=list[dict[str, Any]],
    ),
    Method(
        name="framework_get_config",
        params=OfPart,
        handler=get_framework_config,
        summary="Show the calls that make one part of the present configuration.",
        result="list of calls",
        result_type=list[Any],
    ),
    Method(
        name="save_config",
        params=SaveConfig,
        handler=save_config,
        summary="Show the calls that make the present configuration: what spdk-rpc save_config prints.",
        result="document for load_config",
        result_type=dict[str, Any],
        spdk=False,
    ),
    Method(
        name="load_config",
        params=LoadConfig,
        handler=load_config,
        summary="Carry out the calls of a saved configuration on top of the present one, all of them or none.",
        result="true",
        changes=True,
        spdk=False,
        errors=_LOAD_ERRORS,
    ),
    Method(
        name="save_subsystem_config",
        params=OfPart,
        handler=save_subsystem_config,
        summary="Show the calls that make one part of the present configuration.",
        result="document for load_subsystem_config",
        result_type=dict[str, Any],
        spdk=False,
    ),
    Method(
        name="load_subsystem_config",
        params=LoadSubsystem,
        handler=load_subsystem_config,
        summary="Carry out the calls of one part of a saved configuration, all of them or none.",
        result="true",
        changes=True,
        spdk=False,
        errors=_LOAD_ERRORS,
    ),
)
