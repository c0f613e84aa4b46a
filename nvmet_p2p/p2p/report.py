"""What is shown of the topology and of the choices made on it: one document of plain JSON values, from which text and
SVG are rendered (``render_text``, ``render_svg``). The doctor's document is ``doctor``'s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from nvmet_p2p.p2p.acs import PortType
from nvmet_p2p.p2p.choice import Calibration, Choice, Kind
from nvmet_p2p.p2p.clients import Found, Refusal
from nvmet_p2p.p2p.distance import Verdict, distance
from nvmet_p2p.p2p.kernel_lists import USERSPACE_P2P
from nvmet_p2p.p2p.policy import Effective
from nvmet_p2p.p2p.providers import Provider
from nvmet_p2p.p2p.topology import Device, HostBridge, Topology

VERSION: Final = 1
PORT_NAMES: Final = {
    PortType.ROOT_PORT: "root port",
    PortType.UPSTREAM: "switch upstream port",
    PortType.DOWNSTREAM: "switch downstream port",
    PortType.TO_PCI_BRIDGE: "PCIe to PCI bridge",
    PortType.FROM_PCI_BRIDGE: "PCI to PCIe bridge",
}


@dataclass(frozen=True, slots=True)
class Staged:
    """How what a listener and a namespace exchange is staged. ``listener`` is "" where it does not matter."""

    nqn: str
    nsid: int
    bdev: str
    drives: Found
    effective: Effective
    choice: Choice
    listener: str = ""

    @property
    def subject(self) -> str:
        """How findings name it."""
        return f"{self.nqn} namespace {self.nsid}" + (f" on {self.listener}" if self.listener else "")


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool of the data plane. ``bytes`` and ``free`` in bytes; ``calibrations`` by bdev; ``why`` it was lost."""

    name: str
    kind: Kind
    bytes: int
    free: int
    users: int = 0
    lost: bool = False
    why: str = ""
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)


def map_document(
    topology: Topology, *, staged: Iterable[Staged] = (), pools: Iterable[PoolState] = ()
) -> dict[str, Any]:
    """The whole map: tree, providers, clients, a verdict for each pair of them, pools and namespaces."""
    providers = [provider for provider in topology.providers.values() if provider.registered]
    clients = shown_clients(topology)
    return {
        "version": VERSION,
        "kernel": {
            "release": topology.proc.osrelease,
            "p2pdma": topology.p2pdma,
            "userspace_p2p": None if topology.proc.kernel is None else topology.proc.kernel >= USERSPACE_P2P,
        },
        "cpu": {**asdict(topology.cpu), "passes_peer_to_peer": topology.cpu.passes_peer_to_peer},
        "tree": _tree(topology),
        "providers": [provider_document(provider) for provider in topology.providers.values()],
        "clients": [
            {"bdf": client.bdf, "kind": _kind(client), "names": list(client.names), "numa_node": client.numa_node}
            for client in clients
        ],
        "verdicts": [
            verdict_document(distance(topology, provider.bdf, client.bdf))
            for provider in providers
            for client in clients
        ],
        "pools": [pool_document(pool) for pool in pools],
        "namespaces": [staged_document(entry) for entry in staged],
    }


def shown_clients(topology: Topology) -> list[Device]:
    """NVMe drives and NICs, without the virtual functions of NICs (there may be hundreds), in the tree's order."""
    found = (device for device in topology.devices.values() if device.is_nvme or device.is_network)
    return [device for device in found if device.is_nvme or not device.virtual_function]


def provider_document(provider: Provider) -> dict[str, Any]:
    """A provider as JSON; ``path`` is what is mapped."""
    return {
        "bdf": provider.bdf,
        "size": provider.size,
        "available": provider.available,
        "published": provider.published,
        "path": provider.allocate,
        "registered": provider.registered,
        "usable": provider.usable,
        "code": provider.code,
        "reason": provider.reason,
        "remedy": provider.remedy,
        "cmb": None if provider.cmb is None else {**asdict(provider.cmb), "supports": list(provider.cmb.names())},
        "pmr": None if provider.pmr is None else asdict(provider.pmr),
        "kind": provider.kind,
        "vfio": None if provider.vfio is None else asdict(provider.vfio),
    }


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON; ``distance`` is the kernel's, -1 for a refusal."""
    document = asdict(verdict)
    document["redirects"], document["cautions"] = list(verdict.redirects), list(verdict.cautions)
    return {**document, "distance": verdict.kernel_distance}


def pool_document(pool: PoolState) -> dict[str, Any]:
    """A pool as JSON."""
    document = asdict(pool)
    document["calibrations"] = {bdev: asdict(figures) for bdev, figures in pool.calibrations.items()}
    return document


def staged_document(entry: Staged) -> dict[str, Any]:
    """A namespace's staging as JSON."""
    refused = isinstance(entry.drives, Refusal)
    clients = entry.drives.clients if isinstance(entry.drives, Refusal) else entry.drives
    return {
        "nqn": entry.nqn,
        "nsid": entry.nsid,
        "bdev": entry.bdev,
        "listener": entry.listener,
        "drives": [asdict(client) for client in clients],
        "drives_refused": {"code": entry.drives.code, "reason": entry.drives.reason, "remedy": entry.drives.remedy}
        if isinstance(entry.drives, Refusal) and refused
        else None,
        "policy": str(entry.effective.policy),
        "policy_of": entry.effective.level,
        "choice": entry.choice.document(),
    }


def _kind(device: Device) -> str:
    if device.is_nvme:
        return "drive"
    if device.is_network:
        return "nic"
    if not device.is_bridge:
        return "device"
    if device.port_type in PORT_NAMES:
        return PORT_NAMES[device.port_type]
    return "bridge" if device.bridges else "root port"


def _tree(topology: Topology) -> list[dict[str, Any]]:
    """Host bridges with what leads to a drive, a NIC or a provider; nothing else."""
    leaves = {device.bdf for device in shown_clients(topology)} | set(topology.providers)
    wanted = {bdf for leaf in leaves for bdf in topology.devices[leaf].path}
    children: dict[str, list[str]] = {}
    for bdf in wanted:
        device = topology.devices.get(bdf)
        if device is not None:
            children.setdefault(device.bridges[0] if device.bridges else device.host_bridge, []).append(bdf)
    return [
        {**_host(topology, host), "children": [_node(topology, children, bdf) for bdf in sorted(children[name])]}
        for name, host in sorted(topology.host_bridges.items())
        if name in children
    ]


def _host(topology: Topology, host: HostBridge) -> dict[str, Any]:
    return {
        "name": host.name,
        "kind": "host bridge",
        "first": host.first,
        "vendor": host.vendor,
        "device": host.device,
        "listed": host.row.what if host.row else None,
        "same_host_bridge_only": bool(host.row and host.row.same_host_bridge_only),
        "trusted": topology.cpu.passes_peer_to_peer or host.row is not None,
    }


def _node(topology: Topology, children: Mapping[str, list[str]], bdf: str) -> dict[str, Any]:
    device = topology.devices[bdf]
    provider = topology.providers.get(bdf)
    return {
        "bdf": bdf,
        "kind": _kind(device),
        "names": list(device.names),
        "vendor": device.vendor,
        "device": device.device,
        "driver": device.driver,
        "numa_node": device.numa_node,
        "iommu_group": device.iommu_group,
        "translated": device.translated,
        "acs": None if device.acs is None else list(device.acs.names()),
        "acs_known": device.config_known,
        "redirects": device.acs is not None and device.acs.redirects,
        "provider": provider_document(provider)
        if provider is not None and (provider.usable or provider.size)
        else None,
        "children": [_node(topology, children, below) for below in sorted(children.get(bdf, ()))],
    }
