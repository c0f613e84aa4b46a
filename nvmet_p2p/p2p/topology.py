"""The PCI tree of a machine as far as peer-to-peer is concerned: bridges, host bridges, providers. Immutable.

A *provider* is a PCI device that offers memory to its peers (a CMB that the kernel's nvme driver published); a *client*
is a device that must reach it by DMA. Here is only what sysfs says about each; what it means for a pair is
``distance``'s, and where a block device or an address lies in the tree is ``clients``'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from nvmet_p2p.p2p.acs import Acs, ConfigFacts, PortType, read_facts
from nvmet_p2p.p2p.kernel_lists import Cpu, ListedBridge, has_p2pdma, listed
from nvmet_p2p.p2p.providers import Provider, read_providers
from nvmet_p2p.p2p.sysfs import BDF, ROOT_BUS, ConfigSpace, Proc, Sysfs

PCI: Final = "bus/pci/devices"
CLASS_BRIDGE: Final = 0x0604
CLASS_NVME: Final = 0x010802
CLASS_NETWORK: Final = 0x02
CLASS_INFINIBAND: Final = 0x0C06
TRANSLATING: Final = ("DMA", "DMA-FQ")
IORESOURCE_MEM: Final = 0x200


@dataclass(frozen=True, slots=True)
class Bar:
    """A memory BAR: its index, CPU address and size in bytes."""

    index: int
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class HostBridge:
    """A root bus ("pci0000:00") and the first device on it, by which the kernel knows the root complex.

    ``first`` is that device's address if it may speak for the bridge (function 00.0, or a root port); ``row`` is its
    entry in the kernel's allow-list.
    """

    name: str
    first: str | None = None
    vendor: int = 0
    device: int = 0
    row: ListedBridge | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A PCI function.

    ``bridges`` are the bridges above it, nearest first, as ``pci_upstream_bridge`` walks them; ``host_bridge`` is the
    name of its root bus. ``config_known`` is false where configuration space past the first 64 bytes cannot be read:
    ``acs`` is unknown then. ``numa_node`` and ``iommu_group`` are ``None`` where there is none. ``translated``: an
    IOMMU translates what the device asks for (its group's type is DMA).
    """

    bdf: str
    vendor: int
    device: int
    cls: int
    bridges: tuple[str, ...]
    host_bridge: str
    driver: str | None = None
    acs: Acs | None = None
    config_known: bool = True
    port_type: PortType | None = None
    iommu_group: str | None = None
    translated: bool = False
    numa_node: int | None = None
    bars: tuple[Bar, ...] = ()
    names: tuple[str, ...] = ()  # "nvme0", "eth0": what the kernel calls it above PCI
    virtual_function: bool = False

    @property
    def is_bridge(self) -> bool:
        """PCI-to-PCI bridge, which every switch port and root port is."""
        return self.cls >> 8 == CLASS_BRIDGE

    @property
    def is_nvme(self) -> bool:
        """An NVMe I/O controller by its class code."""
        return self.cls == CLASS_NVME

    @property
    def is_network(self) -> bool:
        """A network controller (or an InfiniBand one)."""
        return self.cls >> 16 == CLASS_NETWORK or self.cls >> 8 == CLASS_INFINIBAND

    @property
    def path(self) -> tuple[str, ...]:
        """The device itself and the bridges above it, nearest first."""
        return (self.bdf, *self.bridges)


@dataclass(frozen=True)
class Topology:
    """All of it, for one moment."""

    sysfs: Sysfs
    proc: Proc
    cpu: Cpu
    devices: Mapping[str, Device]
    host_bridges: Mapping[str, HostBridge]
    providers: Mapping[str, Provider]
    p2pdma: bool | None  # is the kernel built with CONFIG_PCI_P2PDMA?

    @classmethod
    def read(cls, sysfs: Sysfs, *, proc: Proc | None = None, registers: Mapping[str, bytes] | None = None) -> Topology:
        """Reads the tree below ``sysfs``. A device that leaves meanwhile is left out.

        ``proc`` gives the texts of /proc; without it they are empty, and what hangs on them is unknown.
        ``registers`` may hold, for drives that are in the hands of somebody else than the kernel's nvme driver, the
        first ``cmb.REGISTERS_BYTES`` of their BAR 0.
        """
        proc = proc or Proc()
        places = {bdf: real for bdf in sysfs.names(PCI) if (real := sysfs.real(PCI, bdf)) is not None}
        wanted, names = _wanted(sysfs, places), _names(sysfs, places)
        devices = {
            bdf: device
            for bdf in places
            if (device := _read_device(sysfs, bdf, places[bdf], names.get(bdf, ()), config=bdf in wanted)) is not None
        }
        hosts = _host_bridges(devices.values(), proc.kernel)
        p2pdma = has_p2pdma(sysfs, proc)
        providers = read_providers(sysfs, proc, devices.values(), registers or {}, p2pdma)
        return cls(sysfs, proc, Cpu.parse(proc.cpuinfo), devices, hosts, providers, p2pdma)

    def device(self, bdf: str) -> Device | None:
        """The device at that address."""
        return self.devices.get(bdf)

    def bdf_above(self, real_path: str) -> str | None:
        """The PCI device that a path below the root (``Sysfs.real``) is or lies under (``find_parent_pci_dev``)."""
        for part in reversed(real_path.split("/")):
            if part in self.devices:
                return part
        return None

    def host_bridge_of(self, bdf: str) -> HostBridge:
        """The host bridge above a device of this tree."""
        return self.host_bridges[self.devices[bdf].host_bridge]


def _wanted(sysfs: Sysfs, places: Mapping[str, str]) -> set[str]:
    """The devices whose configuration space matters: bridges, those that may be an end of a transfer, and the first
    one on each root bus."""
    wanted: set[str] = set()
    first: dict[str, str] = {}
    for bdf, real in places.items():
        code = sysfs.number(PCI, bdf, "class") or 0
        if _may_matter(code) or sysfs.exists(PCI, bdf, "p2pmem"):
            wanted.add(bdf)
        host, bridges = _above(bdf, real)
        if not bridges:
            first[host] = min(first.get(host, bdf), bdf, key=_devfn)
    return wanted | set(first.values())


def _may_matter(code: int) -> bool:
    return code >> 8 in (CLASS_BRIDGE, CLASS_INFINIBAND) or code == CLASS_NVME or code >> 16 == CLASS_NETWORK


def _above(bdf: str, real: str) -> tuple[str, tuple[str, ...]]:
    """Root bus and bridges, nearest first. A VMD controller begins a new root bus: what is above it is left out."""
    bridges: list[str] = []
    host = ""
    for part in real.split("/"):
        if ROOT_BUS.fullmatch(part):
            host, bridges = part, []
        elif BDF.fullmatch(part) and part != bdf:
            bridges.append(part)
    return host, tuple(reversed(bridges))


def _names(sysfs: Sysfs, places: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """What hangs on each device: nvme controllers and network interfaces."""
    names: dict[str, tuple[str, ...]] = {}
    for kind in ("class/nvme", "class/net"):
        for name in sysfs.names(kind):
            real = sysfs.real(kind, name, "device") or sysfs.real(kind, name) or ""
            above = next((part for part in reversed(real.split("/")) if part in places), None)
            if above is not None:
                names[above] = (*names.get(above, ()), name)
    return names


def _read_device(sysfs: Sysfs, bdf: str, real: str, names: tuple[str, ...], *, config: bool) -> Device | None:
    vendor, device, code = (sysfs.number(PCI, bdf, name) for name in ("vendor", "device", "class"))
    if vendor is None or device is None or code is None:
        return None
    host, bridges = _above(bdf, real)
    facts = _config_facts(sysfs, bdf) if config else ConfigFacts(False, None, None)
    numa = sysfs.number(PCI, bdf, "numa_node")
    group = sysfs.link(PCI, bdf, "iommu_group")
    kind = sysfs.text("kernel/iommu_groups", group, "type") if group is not None else None
    return Device(
        bdf=bdf,
        vendor=vendor,
        device=device,
        cls=code,
        bridges=bridges,
        host_bridge=host,
        driver=sysfs.link(PCI, bdf, "driver"),
        acs=facts.acs,
        config_known=facts.known,
        port_type=facts.port_type,
        iommu_group=group,
        translated=kind in TRANSLATING,
        numa_node=numa if numa is not None and numa >= 0 else None,
        bars=_bars(sysfs.text(PCI, bdf, "resource") or "") if config else (),
        names=names,
        virtual_function=sysfs.exists(PCI, bdf, "physfn"),
    )


def _config_facts(sysfs: Sysfs, bdf: str) -> ConfigFacts:
    try:
        fd = os.open(sysfs.path(PCI, bdf, "config"), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return read_facts(None)
    try:
        return read_facts(ConfigSpace(fd))
    finally:
        os.close(fd)


def _bars(resource: str) -> tuple[Bar, ...]:
    """The first six lines of ``resource``: start, end (both inclusive) and flags of each BAR."""
    bars = []
    for index, line in enumerate(resource.splitlines()[:6]):
        found = re.fullmatch(r"0x([0-9a-f]+) 0x([0-9a-f]+) 0x([0-9a-f]+)", line.strip())
        if found is None:
            continue
        start, end, flags = (int(text, 16) for text in found.groups())
        if flags & IORESOURCE_MEM and end > start:
            bars.append(Bar(index, start, end - start + 1))
    return tuple(bars)


def _devfn(bdf: str) -> tuple[int, int, int]:
    bus, slot, function = re.split("[:.]", bdf)[1:]
    return int(bus, 16), int(slot, 16), int(function)


def _host_bridges(devices: Iterable[Device], kernel: tuple[int, int] | None) -> dict[str, HostBridge]:
    """``pci_host_bridge_dev``: the first device on the root bus speaks for it if it is 00.0 or a root port."""
    on_root: dict[str, list[Device]] = {}
    for device in devices:
        on_root.setdefault(device.host_bridge, [])
        if not device.bridges:
            on_root[device.host_bridge].append(device)
    hosts = {}
    for name, found in on_root.items():
        first = min(found, key=lambda device: _devfn(device.bdf), default=None)
        if first is None or not (_devfn(first.bdf)[1:] == (0, 0) or _is_root_port(first)):
            hosts[name] = HostBridge(name)
        else:
            row = listed(first.vendor, first.device, kernel)
            hosts[name] = HostBridge(name, first.bdf, first.vendor, first.device, row)
    return hosts


def _is_root_port(device: Device) -> bool:
    if device.config_known:
        return device.port_type == PortType.ROOT_PORT
    return device.is_bridge  # capabilities cannot be read: a bridge on a root bus is one, as a rule
