"""Sysfs trees of machines as they are built, made in a folder: what the kernel would show, as far as it is read."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvmet_p2p.p2p.acs import PortType
from nvmet_p2p.p2p.sysfs import Proc, Sysfs
from nvmet_p2p.p2p.topology import Topology

AMD_ZEN = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9354\n"
HYGON = "processor\t: 0\nvendor_id\t: HygonGenuine\ncpu family\t: 24\nmodel name\t: Hygon C86 7285\n"
AMD_OLD = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 21\nmodel name\t: AMD Opteron 6380\n"
XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\nmodel name\t: Intel Xeon 6338\n"
Q35 = (0x8086, 0x29C0)  # in no list
ICE_LAKE = (0x8086, 0x09A2)
HASWELL_E = (0x8086, 0x2F00)  # within one host bridge only
SKYLAKE_PORT = (0x8086, 0x2030)
MIB = 1 << 20
BRIDGE, NVME, NIC, HOST, PORT_CLASS = 0x060400, 0x010802, 0x020000, 0x060000, 0x060400
REDIRECT = 0x1D  # SrcValid ReqRedir CmpltRedir UpstreamFwd: what Linux sets with an IOMMU
ACS_CAPABILITY = 0x007F


def config_space(
    port_type: PortType | None, acs: int | None, *, express: bool = True, aer: bool = True, seen: int | None = None
) -> bytes:
    """A configuration space: power management, PCI Express, then the extended capabilities AER and ACS."""
    data = bytearray(4096 if express else 256)
    if port_type is not None:
        struct.pack_into("<H", data, 0x06, 0x0010)
        data[0x34] = 0x40
        struct.pack_into("<BBH", data, 0x40, 0x01, 0x60, 0x0003)
        struct.pack_into("<BBH", data, 0x60, 0x10, 0x00, 0x0002 | port_type << 4)
    if express:
        position = 0x100
        if aer:
            struct.pack_into("<I", data, 0x100, 0x0001 | 2 << 16 | (0x148 << 20 if acs is not None else 0))
            position = 0x148
        if acs is not None:
            struct.pack_into("<IHH", data, position, 0x000D | 1 << 16, ACS_CAPABILITY, acs)
    return bytes(data[:seen])


@dataclass
class Machine:
    """A tree below ``root``; ``proc`` and the block devices' numbers go with it."""

    root: Path
    cpuinfo: str = AMD_ZEN
    kernel: str = "6.12.107"
    config: str = "CONFIG_PCI_P2PDMA=y\n"
    unprivileged: bool = False
    places: dict[str, Path] = field(default_factory=dict)
    nodes: dict[str, tuple[int, int]] = field(default_factory=dict)  # /dev path: st_mode, number
    route: str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
    if_inet6: str = ""
    mountinfo: str = ""
    groups: int = 0
    minors: int = 0

    @property
    def sysfs(self) -> Sysfs:
        return Sysfs(self.root)

    @property
    def proc(self) -> Proc:
        return Proc(
            cpuinfo=self.cpuinfo,
            osrelease=self.kernel,
            config=self.config,
            route=self.route,
            if_inet6=self.if_inet6,
            mountinfo=self.mountinfo,
        )

    def topology(self) -> Topology:
        return Topology.read(self.sysfs, proc=self.proc)

    def stat(self, path: str) -> os.stat_result:
        """``os.stat`` of this machine, as far as st_mode, st_dev and st_rdev go."""
        if path not in self.nodes:
            raise FileNotFoundError(2, "No such file or directory", path)
        mode, number = self.nodes[path]
        values: list[int] = [mode, 1, number if stat.S_ISREG(mode) else 5, 1, 0, 0, 0, 0, 0, 0]
        return os.stat_result(values, {"st_rdev": 0 if stat.S_ISREG(mode) else number})

    def write(self, place: Path, **attributes: object) -> Path:
        place.mkdir(parents=True, exist_ok=True)
        for name, value in attributes.items():
            (place / name).write_text(f"{value}\n")
        return place

    def link(self, where: str, target: Path) -> None:
        path = self.root / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(target, path.parent))

    def device(
        self,
        bdf: str,
        under: str,
        ids: tuple[int, int] = (0x1000, 0xC030),
        cls: int = BRIDGE,
        *,
        port_type: PortType | None = None,
        acs: int | None = None,
        driver: str | None = None,
        numa: int = -1,
        bars: Sequence[tuple[int, int]] = (),
        iommu: str | None = None,
        express: bool = True,
        aer: bool = True,
    ) -> str:
        """A function below the bridge ``under``, or on the root bus of that name ("pci0000:00")."""
        place = (self.places[under] if under in self.places else self.root / "devices" / under) / bdf
        self.write(place, vendor=f"{ids[0]:#06x}", device=f"{ids[1]:#06x}", **{"class": f"{cls:#08x}"}, numa_node=numa)
        data = config_space(port_type, acs, express=express, aer=aer, seen=64 if self.unprivileged else None)
        (place / "config").write_bytes(data)
        lines = [f"{start:#018x} {start + size - 1:#018x} {0x140204:#018x}" for start, size in bars]
        none = "0x0000000000000000 0x0000000000000000 0x0000000000000000"
        (place / "resource").write_text("\n".join(lines + [none] * (13 - len(lines))) + "\n")
        if driver:
            (self.root / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
            (place / "driver").symlink_to(os.path.relpath(self.root / "bus/pci/drivers" / driver, place))
        if iommu:
            group = self.write(self.root / f"kernel/iommu_groups/{self.groups}", type=iommu)
            (place / "iommu_group").symlink_to(os.path.relpath(group, place))
            self.groups += 1
        self.link(f"bus/pci/devices/{bdf}", place)
        self.places[bdf] = place
        return bdf

    def host(self, bus: str, ids: tuple[int, int] = Q35) -> str:
        """A root bus and its host bridge device 00.0."""
        domain, number = bus.removeprefix("pci").split(":")
        self.device(f"{domain}:{number}:00.0", bus, ids, HOST, port_type=PortType.ROOT_COMPLEX_ENDPOINT)
        return bus

    def root_port(self, bdf: str, bus: str, ids: tuple[int, int] = (0x1022, 0x14AB), acs: int | None = None) -> str:
        return self.device(bdf, bus, ids, PORT_CLASS, port_type=PortType.ROOT_PORT, acs=acs, driver="pcieport")

    def switch(self, under: str, bus: int, ports: int, acs: int | None = None, *, domain: str = "0000") -> list[str]:
        """A switch on bus ``bus``: its upstream port, then the addresses of the downstream ports are returned."""
        upstream = self.device(f"{domain}:{bus:02x}:00.0", under, port_type=PortType.UPSTREAM, driver="pcieport")
        return [
            self.device(
                f"{domain}:{bus + 1:02x}:{slot:02x}.0",
                upstream,
                port_type=PortType.DOWNSTREAM,
                acs=acs,
                driver="pcieport",
            )
            for slot in range(ports)
        ]

    def nvme(
        self,
        bdf: str,
        under: str,
        number: int,
        *,
        cmb: int = 0,
        available: int | None = None,
        published: bool = True,
        allocate: bool = True,
        driver: str = "nvme",
        numa: int = -1,
        iommu: str | None = None,
        disk: str | None = None,
        bar_start: int | None = None,
        cls: int = NVME,
        acs: int | None = None,
        registered: bool = True,
    ) -> str:
        """A drive nvme<number>, with one namespace (or the disk named), and a CMB of ``cmb`` bytes in BAR 2."""
        start = (0x38_0000_0000 + number * (1 << 32)) if bar_start is None else bar_start
        bars = [(0xF000_0000 + number * 0x4000, 0x4000), (0, 1)] + ([(start, cmb)] if cmb else [])
        self.device(
            bdf,
            under,
            (0x144D, 0xA80A),
            cls,
            port_type=PortType.ENDPOINT,
            driver=driver,
            numa=numa,
            bars=bars,
            iommu=iommu,
            acs=acs,
        )
        if driver != "nvme":
            return bdf
        controller = self.write(self.places[bdf] / f"nvme/nvme{number}", transport="pcie", address=bdf)
        self.link(f"class/nvme/nvme{number}", controller)
        if cmb and registered:
            directions = 0x18 if published else 0x08
            self.write(controller, cmbloc=0x2, cmbsz=(cmb >> 12) << 12 | directions | 1)
            free = cmb - 16 * 4096 if available is None else available
            memory = self.write(self.places[bdf] / "p2pmem", size=cmb, available=free, published=int(published))
            if allocate:
                (memory / "allocate").touch()
        self.disk(controller / (disk or f"nvme{number}n1"))
        return bdf

    def nic(self, bdf: str, under: str, name: str, *, numa: int = -1, iommu: str | None = None) -> str:
        self.device(
            bdf,
            under,
            (0x15B3, 0x101D),
            NIC,
            port_type=PortType.ENDPOINT,
            driver="mlx5_core",
            numa=numa,
            iommu=iommu,
        )
        place = self.write(self.places[bdf] / "net" / name, operstate="up")
        (place / "device").symlink_to(os.path.relpath(self.places[bdf], place))
        self.link(f"class/net/{name}", place)
        return bdf

    def rdma(self, name: str, bdf: str | None) -> None:
        """An RDMA device on a PCI function, or (soft RoCE) on none."""
        above = self.places[bdf] if bdf else self.root / "devices/virtual"
        place = self.write(above / "infiniband" / name, node_type="1: CA")
        if bdf:
            (place / "device").symlink_to(os.path.relpath(above, place))
        self.link(f"class/infiniband/{name}", place)

    def stack(self, name: str, *lower: str) -> None:
        """A bond, bridge or VLAN over other interfaces."""
        place = self.write(self.root / "devices/virtual/net" / name, operstate="up")
        for below in lower:
            (place / f"lower_{below}").symlink_to(os.path.relpath(self.root / "class/net" / below, place))
        self.link(f"class/net/{name}", place)

    def disk(self, place: Path, node: str | None = None) -> Path:
        """A block device at ``place``; its node is /dev/<name>."""
        self.minors += 1
        number = os.makedev(259, self.minors)
        self.write(place, dev=f"259:{self.minors}", size=1 << 21)
        self.link(f"dev/block/259:{self.minors}", place)
        self.link(f"class/block/{place.name}", place)
        self.nodes[node or f"/dev/{place.name}"] = (stat.S_IFBLK | 0o660, number)
        return place

    def where(self, name: str) -> Path:
        """The folder of a block device."""
        return (self.root / "class/block" / name).resolve()

    def partition(self, disk: str, number: int) -> str:
        name = f"{disk}p{number}"
        self.write(self.disk(self.where(disk) / name), partition=number)
        return f"/dev/{name}"

    def stacked(self, name: str, *lower: str) -> Path:
        """A virtual block device with ``slaves``."""
        place = self.disk(self.root / "devices/virtual/block" / name)
        (place / "slaves").mkdir()
        for below in lower:
            (place / "slaves" / below).symlink_to(os.path.relpath(self.where(below), place / "slaves"))
        return place

    def file(self, path: str, on: str) -> str:
        """A regular file on a file system on block device ``on`` ("/dev/..."), or on device number 0:N ("0:38")."""
        number = os.makedev(*map(int, on.split(":"))) if ":" in on else self.nodes[on][1]
        self.nodes[path] = (stat.S_IFREG | 0o644, number)
        return path

    def multipath(self, head: str, *legs: tuple[str, int]) -> str:
        """The head disk of a subsystem whose paths are (controller "nvme0", its index) pairs."""
        subsystem = self.root / "devices/virtual/nvme-subsystem/nvme-subsys0"
        first, _, namespace = head.rpartition("n")
        for controller, index in legs:
            folder = (self.root / "class/nvme" / controller).resolve()
            self.write(folder / f"{first}c{index}n{namespace}", size=1 << 21)
            subsystem.mkdir(parents=True, exist_ok=True)
            (subsystem / controller).symlink_to(os.path.relpath(folder, subsystem))
        self.disk(subsystem / head)
        return f"/dev/{head}"


def bare(root: Path) -> Machine:
    """A machine without NVMe drives and without a switch."""
    machine = Machine(root, XEON)
    machine.host("pci0000:00", (0x8086, 0x0D57))
    machine.nic("0000:00:03.0", "pci0000:00", "eth0")
    return machine


def same_device(root: Path) -> Machine:
    """One drive with two functions (two controllers), the first with a CMB."""
    machine = Machine(root, XEON)
    machine.root_port("0000:00:01.0", machine.host("pci0000:00"))
    machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=64 * MIB)
    machine.nvme("0000:01:00.1", "0000:00:01.0", 1)
    return machine


def one_switch(root: Path, *, acs: int | None = 0, cpuinfo: str = XEON, iommu: str | None = None) -> Machine:
    """Two drives and a NIC behind one switch, on a root complex that the kernel does not list."""
    machine = Machine(root, cpuinfo)
    machine.root_port("0000:00:1c.0", machine.host("pci0000:00"))
    ports = machine.switch("0000:00:1c.0", 1, 3, acs)
    machine.nvme("0000:03:00.0", ports[0], 0, cmb=64 * MIB, iommu=iommu)
    machine.nvme("0000:04:00.0", ports[1], 1, iommu=iommu)
    machine.nic("0000:05:00.0", ports[2], "eth0", iommu=iommu)
    return machine


def two_switches(root: Path) -> Machine:
    """A switch whose ports lead to two more switches, one drive behind each of these."""
    machine = Machine(root, XEON)
    machine.root_port("0000:00:1c.0", machine.host("pci0000:00"))
    above = machine.switch("0000:00:1c.0", 1, 2, 0)
    left = machine.switch(above[0], 0x10, 2, 0)
    right = machine.switch(above[1], 0x20, 2, 0)
    machine.nvme("0000:12:00.0", left[0], 0, cmb=64 * MIB)
    machine.nvme("0000:13:00.0", left[1], 1)
    machine.nvme("0000:22:00.0", right[0], 2)
    return machine


def two_root_ports(root: Path, host: tuple[int, int] = ICE_LAKE, cpuinfo: str = XEON) -> Machine:
    """A drive behind each of two root ports of one host bridge."""
    machine = Machine(root, cpuinfo)
    machine.host("pci0000:00", host)
    machine.root_port("0000:00:02.0", "pci0000:00")
    machine.root_port("0000:00:03.0", "pci0000:00")
    machine.nvme("0000:01:00.0", "0000:00:02.0", 0, cmb=128 * MIB)
    machine.nvme("0000:02:00.0", "0000:00:03.0", 1)
    return machine


def two_sockets(root: Path, host: tuple[int, int] = HASWELL_E, cpuinfo: str = XEON) -> Machine:
    """Per socket a host bridge with a drive and a NIC on root ports; a CMB on each drive."""
    machine = Machine(root, cpuinfo)
    for node, bus in enumerate(("pci0000:00", "pci0000:80")):
        base = bus.removeprefix("pci0000:")
        machine.host(bus, host)
        machine.root_port(f"0000:{base}:02.0", bus)
        machine.root_port(f"0000:{base}:03.0", bus)
        first = int(base, 16) + 1
        machine.nvme(f"0000:{first:02x}:00.0", f"0000:{base}:02.0", node, cmb=64 * MIB, numa=node)
        machine.nic(f"0000:{first + 1:02x}:00.0", f"0000:{base}:03.0", f"eth{node}", numa=node)
    return machine


def chassis(root: Path, drives: int = 24, per_switch: int = 6, cmb: int = 512 * MIB) -> Machine:
    """Two sockets; ``drives`` drives, each with a CMB, behind switches of ``per_switch``; a NIC behind each switch."""
    machine = Machine(root, XEON, kernel="7.2.12")
    switches = -(-drives // per_switch)
    number = 0
    for index in range(switches):
        socket = index * 2 // switches
        bus = f"pci0000:{0x80 * socket:02x}"
        if bus not in {path.name for path in (root / "devices").glob("pci*")}:
            machine.host(bus, ICE_LAKE)
        base = 0x80 * socket + 0x10 + index % 2 * 0x20
        port = machine.root_port(f"0000:{0x80 * socket:02x}:{index % 2 + 2:02x}.0", bus)
        ports = machine.switch(port, base, per_switch + 1, 0)
        for slot in range(min(per_switch, drives - number)):
            machine.nvme(f"0000:{base + 2 + slot:02x}:00.0", ports[slot], number, cmb=cmb, numa=socket)
            number += 1
        machine.nic(f"0000:{base + 2 + per_switch:02x}:00.0", ports[per_switch], f"eth{index}", numa=socket)
    return machine


def illustration(root: Path) -> Machine:
    """Two sockets that trust only themselves, a switch below each, the second with ACS redirection."""
    machine = Machine(root, XEON.replace("6338", "E5-2697 v3"), kernel="6.12.107")
    for socket, bus in enumerate(("pci0000:00", "pci0000:80")):
        machine.host(bus, HASWELL_E)
        base = 0x80 * socket
        first = machine.root_port(f"0000:{base:02x}:02.0", bus, (0x8086, 0x2F04))
        ports = machine.switch(first, base + 1, 4, REDIRECT if socket else 0)
        machine.nvme(f"0000:{base + 3:02x}:00.0", ports[0], socket * 4, cmb=256 * MIB, numa=socket)
        free = 40 * MIB if socket else None
        machine.nvme(f"0000:{base + 4:02x}:00.0", ports[1], socket * 4 + 1, cmb=64 * MIB, numa=socket, available=free)
        machine.nvme(f"0000:{base + 5:02x}:00.0", ports[2], socket * 4 + 2, numa=socket)
        machine.nic(f"0000:{base + 6:02x}:00.0", ports[3], f"eth{socket}", numa=socket)
        second = machine.root_port(f"0000:{base:02x}:03.0", bus, (0x8086, 0x2F08))
        machine.nvme(f"0000:{base + 8:02x}:00.0", second, socket * 4 + 3, cmb=2 * MIB * (1 - socket), numa=socket)
    return machine
