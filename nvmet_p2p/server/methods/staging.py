"""The ``p2p_*`` methods that show where data rests and why, and the calibration on demand."""

from __future__ import annotations

import errno
from dataclasses import asdict
from typing import Annotated, Any, Final

from msgspec import UNSET, UnsetType

from nvmet_p2p.p2p import distance, doctor, report
from nvmet_p2p.p2p.sysfs import normal_bdf
from nvmet_p2p.p2p.topology import Topology
from nvmet_p2p.server.context import Context
from nvmet_p2p.server.schema import Method
from nvmet_p2p.server.staging import show
from nvmet_p2p.target.operations import find_bdev
from nvmet_p2p.target.request_types import U32, NoParams, Request, doc
from nvmet_p2p.target.validate import failed, invalid

DIRECTION_NOTE: Final = "counters are of the bdev, since it was opened, all listeners together"


class GetStaging(Request, frozen=True, kw_only=True):
    """p2p_get_staging"""

    nqn: Annotated[str | UnsetType, doc("NQN of one subsystem; without it, all")] = UNSET
    nsid: Annotated[U32 | UnsetType, doc("One namespace of it; without it, all")] = UNSET


class Explain(Request, frozen=True, kw_only=True):
    """p2p_explain"""

    provider: Annotated[str, doc("PCI address of the provider")]
    client: Annotated[str | UnsetType, doc("PCI address of a device that is to reach it")] = UNSET
    nqn: Annotated[str | UnsetType, doc("Or the NQN of a subsystem, and with it")] = UNSET
    nsid: Annotated[U32 | UnsetType, doc("the namespace whose drives are to reach it")] = UNSET


class Calibrate(Request, frozen=True, kw_only=True):
    """p2p_calibrate"""

    pool: Annotated[str | UnsetType, doc("One pool; without it, all that are used")] = UNSET
    bdev: Annotated[str | UnsetType, doc("Name or UUID of one bdev; without it, all that use the pools")] = UNSET


async def get_staging(context: Context, p: GetStaging) -> list[dict[str, Any]]:
    await context.dataplane.refresh()
    shown = show.namespaces(context.staging, context.config, context.dataplane.pools)
    wanted = [entry for entry in shown if p.nqn in (UNSET, entry["nqn"]) and p.nsid in (UNSET, entry["nsid"])]
    if not wanted and not (isinstance(p.nqn, UnsetType) and isinstance(p.nsid, UnsetType)):
        if not isinstance(p.nqn, UnsetType) and p.nqn not in context.config.subsystems:
            raise invalid(f"params.nqn: there is no subsystem {p.nqn!r}")
        if not isinstance(p.nsid, UnsetType):
            raise invalid(f"params.nsid: there is no namespace {p.nsid}")
    return wanted


async def get_pools(context: Context, _: NoParams) -> list[dict[str, Any]]:
    topology = await context.staging.topology()
    return await show.pools(context.staging, context.config, context.dataplane.pools, topology)


async def get_providers(context: Context, _: NoParams) -> list[dict[str, Any]]:
    topology = await context.staging.topology(fresh=True)
    mapped = context.staging.keeper.mapped if context.staging.keeper is not None else {}
    shown = []
    for bdf, provider in topology.providers.items():
        device = topology.devices[bdf]
        names, node, size = list(device.names), device.numa_node, mapped[bdf].size if bdf in mapped else 0
        shown.append(report.provider_document(provider) | {"names": names, "numa_node": node, "mapped": size})
    return shown


async def get_map(context: Context, _: NoParams) -> dict[str, Any]:
    topology, pools, staged = await _everything(context)
    return report.map_document(topology, staged=staged, pools=pools)


async def get_doctor(context: Context, _: NoParams) -> dict[str, Any]:
    topology, pools, staged = await _everything(context)
    return doctor.doctor_document(topology, staged=staged, pools=pools)


async def _everything(context: Context) -> tuple[Topology, list[report.PoolState], list[report.Staged]]:
    topology = await context.staging.topology(fresh=True)
    pools = await show.pool_states(context.staging, context.config, context.dataplane.pools, topology)
    return topology, pools, show.staged(context.staging.decisions)


async def explain(context: Context, p: Explain) -> dict[str, Any]:
    topology = await context.staging.topology(fresh=True)
    provider = _bdf(p.provider, "params.provider")
    paths: list[dict[str, Any]] = []
    if isinstance(p.nqn, UnsetType) and isinstance(p.nsid, UnsetType):
        if isinstance(p.client, UnsetType):
            raise invalid("params: client, or nqn and nsid, is required")
        clients, refused = [_bdf(p.client, "params.client")], None
    else:
        if not isinstance(p.client, UnsetType) or isinstance(p.nqn, UnsetType) or isinstance(p.nsid, UnsetType):
            raise invalid("params: either client, or nqn and nsid")
        (namespace,) = await get_staging(context, GetStaging(nqn=p.nqn, nsid=p.nsid))
        paths = namespace["paths"]
        clients = list(dict.fromkeys(client["bdf"] for path in paths for client in path["drives"]))
        refused = next((path["drives_refused"] for path in paths), None)
    found = topology.providers.get(provider)
    verdicts = [distance.distance(topology, provider, client) for client in clients]
    return {
        "provider": None if found is None else report.provider_document(found),
        "verdicts": [report.verdict_document(verdict) for verdict in verdicts],
        "drives_refused": refused,
        "reachable": refused is None and bool(verdicts) and all(verdict.ok for verdict in verdicts),
        "cost": sum(verdict.cost for verdict in verdicts),
        "paths": paths,
    }


def _bdf(text: str, where: str) -> str:
    found = normal_bdf(text)
    if found is None:
        raise invalid(f"{where}: {text!r} is not a PCI address like 0000:03:00.0")
    return found


async def calibrate(context: Context, p: Calibrate) -> list[dict[str, Any]]:
    bdev = None
    if not isinstance(p.bdev, UnsetType):
        found = find_bdev(context.config, p.bdev)
        if found is None:
            raise failed(errno.ENODEV, f"there is no bdev {p.bdev!r}")
        bdev = found.name
    pool = None if isinstance(p.pool, UnsetType) else normal_bdf(p.pool) or p.pool
    results = await context.staging.calibrate(pool, bdev)
    await context.staging.settled()
    return [{"pool": name, "bdev": of, **asdict(result)} for name, of, result in results]


STAGING: Final = (
    Method(
        name="p2p_get_staging",
        params=GetStaging,
        handler=get_staging,
        summary="Show where the data of each namespace rests on its way, through each listener, and why.",
        result="list of namespaces: policy, choice, runner-up and reason for each listener (paths; state is pool, "
        "host, or degraded where a pool was asked for and is not used), bytes and commands by pool and direction, by "
        f"route of Copy, fallbacks, and commands that hosts had to repeat; {DIRECTION_NOTE}",
        result_type=list[dict[str, Any]],
        spdk=False,
    ),
    Method(
        name="p2p_get_pools",
        params=NoParams,
        handler=get_pools,
        summary="Show the pools that data is staged in: those that some policy can use, and those that were lost.",
        result="list of pools: kind (p2pmem; spdk_cmb: of a drive on vfio-pci; emulated: host memory, no peer-to-peer) "
        "sizes in bytes, waits, fallbacks, why it was lost, calibrations by bdev (MiB/s); of a drive on vfio-pci its "
        "device: CMB or PMR, who has it, how the CPU reaches it, whether there is a dma-buf of it",
        result_type=list[dict[str, Any]],
        spdk=False,
    ),
    Method(
        name="p2p_get_providers",
        params=NoParams,
        handler=get_providers,
        summary="Show the devices that offer peer memory, and the NVMe drives that do not, with the reason.",
        result="list of devices: size, what is available, CMB and PMR, whether it is usable, reason and remedy",
        result_type=list[dict[str, Any]],
        spdk=False,
    ),
    Method(
        name="p2p_get_map",
        params=NoParams,
        handler=get_map,
        summary="Show the PCI tree, its providers and clients, and a verdict for each pair.",
        result="the map",
        result_type=dict[str, Any],
        spdk=False,
    ),
    Method(
        name="p2p_doctor",
        params=NoParams,
        handler=get_doctor,
        summary="Show each reason why peer-to-peer is not used here, or not as well as it could be, with a remedy.",
        result="findings; ok is false if there is a problem",
        result_type=dict[str, Any],
        spdk=False,
    ),
    Method(
        name="p2p_explain",
        params=Explain,
        handler=explain,
        summary="Show how far a device, or the drives of a namespace, are from a provider, or why they are cut off.",
        result="the provider, a verdict for each device (as the kernel's pci_p2pdma_distance), their sum",
        result_type=dict[str, Any],
        spdk=False,
    ),
    Method(
        name="p2p_calibrate",
        params=Calibrate,
        handler=calibrate,
        summary="Measure pools again, verify that data arrives in both directions, and decide anew. Hosts' I/O on a "
        "bdev waits while its drive is probed; what was on it is there again afterwards.",
        result="list of results: speeds in MiB/s, whether data was verified, and if not, why",
        result_type=list[dict[str, Any]],
        spdk=False,
        errors={-19: "there is no such pool or bdev", -16: "it is being measured already", -95: "there are no pools"},
    ),
)
