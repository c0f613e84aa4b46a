"""How far a client is from a provider, and by which way: the kernel's ``pci_p2pdma_distance``, with reasons.

Source: ``calc_map_type_and_dist`` in drivers/pci/p2pdma.c, the same from 6.1 to 7.2 (read in 6.12.117). Kernels after
that count Egress Control only where the paths part and ask the firmware (ACPI HMAT) about root complexes that are not
listed: they may accept what is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nvmet_p2p.p2p.topology import Device, HostBridge, Topology
from nvmet_p2p.p2p.vfio import is_vfio

MapType = Literal["same-device", "bus-address", "host-bridge", "none"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the kernel says about one pair.

    ``cost``: its distance, in hops; counted for a refused pair too. ``redirects``: the functions on the way whose ACS
    redirects peer-to-peer requests to the root complex, in the kernel's order. ``cautions``: what may be wrong although
    the kernel accepts the pair; only calibration decides. ``certain`` is false where configuration space could not be
    read, so that ACS is unknown.
    """

    provider: str
    client: str
    ok: bool
    cost: int
    map_type: MapType
    code: str = "ok"
    reason: str = ""
    remedy: str = ""
    redirects: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    certain: bool = True

    @property
    def kernel_distance(self) -> int:
        """The return value of ``pci_p2pdma_distance``: -1 for a refusal."""
        return self.cost if self.ok else -1


def distance(topology: Topology, provider_bdf: str, client_bdf: str) -> Verdict:
    """The verdict for a pair. Neither need be there: what is missing is the reason then.

    Whether the provider has memory to give is not looked at, as in the kernel (``Provider.usable`` says that).
    """
    provider, client = topology.device(provider_bdf), topology.device(client_bdf)
    if provider is None or client is None:
        missing = provider_bdf if provider is None else client_bdf
        return Verdict(
            provider_bdf, client_bdf, False, 0, "none", "absent", f"there is no PCI device {missing}", "plug it in"
        )
    if client.is_nvme and provider is not client and is_vfio(provider.driver) != is_vfio(client.driver):
        return _other_driver(provider, client)
    cost, common = _walk(provider, client)
    if is_vfio(client.driver) and provider is not client:
        return _translated(topology, provider, client, cost)
    redirects, certain = _redirects(topology, provider, client, common)
    if common is not None and not redirects:
        kind: MapType = "same-device" if provider is client else "bus-address"
        return Verdict(
            provider_bdf,
            client_bdf,
            True,
            cost,
            kind,
            cautions=() if provider is client else _switch_cautions(provider, client, common, certain),
            certain=certain,
        )
    return _through_host_bridge(topology, provider, client, cost, redirects if common is not None else (), certain)


def _other_driver(provider: Device, client: Device) -> Verdict:
    """One of the two is the kernel's, the other in user space: neither can name the other's memory."""
    cost = _walk(provider, client)[0]
    if is_vfio(provider.driver):
        code = "kernel-drive"
        reason = f"{provider.bdf} is on vfio-pci, and a drive of the kernel's can do no DMA to such memory (EFAULT)"
        remedy = f"bind {client.bdf} to vfio-pci (nvmet-p2p setup bind) and attach it (bdev_nvme_attach_controller)"
    else:
        code = "vfio-drive"
        reason = f"the kernel gives out the memory of {provider.bdf}, which a drive on vfio-pci does not reach"
        remedy = f"bind {provider.bdf} to vfio-pci as well (nvmet-p2p setup bind)"
    return Verdict(provider.bdf, client.bdf, False, cost, "none", code, reason, remedy)


def _translated(topology: Topology, provider: Device, client: Device, cost: int) -> Verdict:
    """Both on vfio-pci. What the client asks for is an address of its IOMMU's, which no switch on the way knows: it
    goes up to the root complex and back. The kernel's list is of no account for VFIO; it says what to expect."""
    host_a, host_b = topology.host_bridge_of(provider.bdf), topology.host_bridge_of(client.bdf)
    why = _untrusted(topology, host_a, host_b)
    cautions = list(_host_cautions(provider, client, host_a, host_b, ()))
    if why:
        cautions.insert(0, f"it goes by the root complex, and {why}; calibration decides")
    return Verdict(provider.bdf, client.bdf, True, cost, "host-bridge", cautions=tuple(cautions))


def _walk(provider: Device, client: Device) -> tuple[int, str | None]:
    """Hops from both up to the nearest device that both paths hold; without one, the lengths of both paths."""
    steps = {bdf: hops for hops, bdf in enumerate(client.path)}
    for hops, bdf in enumerate(provider.path):
        if bdf in steps:
            return hops + steps[bdf], bdf
    return len(provider.path) + len(client.path), None


def _redirects(
    topology: Topology, provider: Device, client: Device, common: str | None
) -> tuple[tuple[str, ...], bool]:
    """Functions with ACS redirection: the provider's path up to and with the common one, then the client's below it."""
    upward = provider.path if common is None else provider.path[: provider.path.index(common) + 1]
    downward = () if common is None else client.path[: client.path.index(common)]
    way = [topology.devices[bdf] for bdf in (*upward, *downward) if bdf in topology.devices]
    found = tuple(device.bdf for device in way if device.acs is not None and device.acs.redirects)
    return found, all(device.config_known for device in way)


def _through_host_bridge(
    topology: Topology, provider: Device, client: Device, cost: int, redirects: tuple[str, ...], certain: bool
) -> Verdict:
    """The request leaves for the root complex: is it one that the kernel trusts to send it back?"""
    host_a, host_b = topology.host_bridge_of(provider.bdf), topology.host_bridge_of(client.bdf)
    why = _untrusted(topology, host_a, host_b)
    if not why:
        return Verdict(
            provider.bdf,
            client.bdf,
            True,
            cost,
            "host-bridge",
            redirects=redirects,
            cautions=_host_cautions(provider, client, host_a, host_b, redirects),
            certain=certain,
        )
    if redirects:
        code = "acs-redirect"
        reason = f"ACS redirects peer-to-peer requests to the root complex at {', '.join(redirects)}, and {why}"
        remedy = (
            f"boot with pci=disable_acs_redir={';'.join(redirects)}, or switch ACS off for these ports in the BIOS "
            "(both take isolation away from devices given to virtual machines)"
        )
    elif host_a is host_b:
        code, reason = "host-bridge-not-listed", f"they share no PCIe switch, and {why}"
        remedy = "put both behind one PCIe switch; the root complex is trusted on AMD Zen and the Intel Xeons listed"
    else:
        code, reason = (
            "two-host-bridges",
            f"they are behind the host bridges {host_a.name} and {host_b.name}, and {why}",
        )
        remedy = "put both into slots of one PCIe switch (of one socket at least)"
    return Verdict(provider.bdf, client.bdf, False, cost, "none", code, reason, remedy, redirects, certain=certain)


def _untrusted(topology: Topology, host_a: HostBridge, host_b: HostBridge) -> str:
    """Why the kernel does not trust the root complex; empty if it does (``host_bridge_whitelist``)."""
    if topology.cpu.passes_peer_to_peer:
        return ""
    same = host_a is host_b
    for host in (host_a,) if same else (host_a, host_b):
        if host.first is None:
            return f"nothing on {host.name} tells the kernel which root complex it is"
        name = f"{host.vendor:04x}:{host.device:04x}"
        if host.row is None:
            return f"the kernel does not list {host.name} ({name}) as one that passes them on"
        if host.row.same_host_bridge_only and not same:
            return f"the kernel trusts {host.name} ({name}, {host.row.what}) only within one host bridge"
    return ""


def _switch_cautions(provider: Device, client: Device, common: str, certain: bool) -> tuple[str, ...]:
    cautions = []
    if provider.translated or client.translated:
        cautions.append(
            f"an IOMMU translates above {common} while peers below it use bus addresses: right where the switch itself "
            "routes them, silently wrong data where it does not (emulated switches); calibration decides"
        )
    if not certain:
        cautions.append("ACS is unknown: reading configuration space needs CAP_SYS_ADMIN")
    return tuple(cautions)


def _host_cautions(
    provider: Device, client: Device, host_a: HostBridge, host_b: HostBridge, redirects: tuple[str, ...]
) -> tuple[str, ...]:
    cautions = []
    if redirects:
        ports = ";".join(redirects)
        cautions.append(
            f"ACS at {', '.join(redirects)} sends it up to the root complex and back; "
            f"pci=disable_acs_redir={ports} would keep it in the switch"
        )
    if None not in (provider.numa_node, client.numa_node) and provider.numa_node != client.numa_node:
        cautions.append(f"it crosses from NUMA node {client.numa_node} to {provider.numa_node}: expect less bandwidth")
    elif host_a is not host_b:
        cautions.append(f"it crosses from {host_b.name} to {host_a.name} inside the root complex")
    return tuple(cautions)
