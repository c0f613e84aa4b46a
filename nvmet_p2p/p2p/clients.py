"""Which PCI devices do the DMA for a back end's file or block device, and which NIC is behind a listener's address.

A partition, a file on a file system, an nvme multipath head and md are followed down to their drives, all of which must
reach a pool; what the kernel does not pass peer memory through is refused with the reason. Sources: the users of
BLK_FEAT_PCI_P2PDMA in block/, drivers/nvme/host/{pci,multipath}.c and drivers/md.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from nvmet_p2p.p2p.kernel_lists import STACKED_P2P, kernel_text
from nvmet_p2p.p2p.topology import Topology

MD_LEVELS: Final = ("raid0", "raid1", "raid10")
RTF_GATEWAY: Final = 0x2
DEPTH_MAX: Final = 8  # of devices stacked on devices


class Stat(Protocol):
    """What is used of ``os.stat_result``."""

    @property
    def st_mode(self) -> int: ...
    @property
    def st_dev(self) -> int: ...
    @property
    def st_rdev(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Client:
    """A PCI device that must reach a pool by DMA, or (a NIC under NVMe/TCP) is only better near it.

    ``how`` says by which names it was found: "nvme0n1p1 of nvme0n1".
    """

    bdf: str
    how: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something cannot take part. ``clients`` are those that were found nevertheless, for a map."""

    code: str
    reason: str
    remedy: str
    clients: tuple[Client, ...] = ()


Found = tuple[Client, ...] | Refusal


def drives_of(topology: Topology, path: str, *, stat_path: Callable[[str], Stat] = os.stat) -> Found:
    """The drives behind ``path``: a block device's node, or a regular file (its file system's device).

    ``stat_path`` is ``os.stat`` or, for another machine's tree, what stands for it.
    """
    try:
        found = stat_path(path)
    except OSError as error:
        return Refusal("absent", f"{path}: {error.strerror or error}", "see that the file or device is there")
    if stat.S_ISBLK(found.st_mode):
        return _block(topology, found.st_rdev, path)
    if not stat.S_ISREG(found.st_mode):
        return Refusal("not-a-disk", f"{path} is neither a block device nor a regular file", "name one of these")
    if os.major(found.st_dev) == 0:
        return _no_device(topology, found.st_dev, path)
    return _block(topology, found.st_dev, path)


def _block(topology: Topology, number: int, path: str) -> Found:
    place = topology.sysfs.real("dev/block", f"{os.major(number)}:{os.minor(number)}")
    if place is None:
        missing = f"{path}: no block device {os.major(number)}:{os.minor(number)} in sysfs"
        return Refusal("absent", missing, "see that the device is still there")
    found = _follow(topology, place, 0)
    if isinstance(found, Refusal):
        return found
    return tuple({client.bdf: client for client in found}.values())


def _no_device(topology: Topology, number: int, path: str) -> Refusal:
    """A file whose file system has no device number of its own: in memory, remote, or on several devices."""
    wanted = f"{os.major(number)}:{os.minor(number)}"
    kind = ""
    for line in topology.proc.mountinfo.splitlines():
        fields, _, after = line.partition(" - ")
        if fields.split()[2:3] == [wanted]:
            kind = after.split()[0] if after.split() else ""
    name = f"{kind} file system" if kind else "file system without a device"
    return Refusal(
        "no-drive",
        f"{path} is on a {name}: no single drive does its DMA",
        "use a block device of an NVMe drive, or a file on ext4 or xfs on one",
    )


def _follow(topology: Topology, place: str, depth: int) -> Found:
    """The drives of the block device at ``place`` (its folder, relative to the root)."""
    sysfs, name = topology.sysfs, place.rsplit("/", 1)[-1]
    if depth > DEPTH_MAX:
        return Refusal("too-deep", f"{name} is stacked more than {DEPTH_MAX} deep", "use a device nearer to the drive")
    if sysfs.exists(place, "partition"):
        disk = place.rsplit("/", 1)[0]
        return _named(_follow(topology, disk, depth + 1), name)
    if sysfs.exists(place, "loop"):
        backing = sysfs.text(place, "loop/backing_file") or "a file"
        return Refusal("loop", f"{name} is a loop device, which does not pass peer memory on", f"use {backing} itself")
    if sysfs.exists(place, "dm"):
        return _device_mapper(topology, place, name, depth)
    if sysfs.exists(place, "md"):
        return _md(topology, place, name, depth)
    if "/nvme-subsystem/" in f"/{place}":
        return _multipath(topology, place, name)
    return _disk(topology, place, name)


def _disk(topology: Topology, place: str, name: str) -> Found:
    if "/nvme-fabrics/" in f"/{place}":
        remedy = "use a local drive"
        return Refusal("remote-drive", f"{name} is a remote NVMe namespace: its data comes by the network", remedy)
    bdf = topology.bdf_above(place)
    if bdf is None:
        return Refusal("no-drive", f"{name} is not on a PCI device", "use a namespace of a local NVMe drive")
    device = topology.devices[bdf]
    if device.driver != "nvme":
        return Refusal(
            "driver-not-nvme",
            f"{name} is served by driver {device.driver or 'none'} ({bdf}); only nvme's disks take peer memory",
            "use a namespace of an NVMe drive",
            (Client(bdf, name),),
        )
    return (Client(bdf, name),)


def _multipath(topology: Topology, place: str, name: str) -> Found:
    """nvmeXnZ whose paths are the hidden disks nvmeXcYnZ below the subsystem's controllers."""
    sysfs, subsystem = topology.sysfs, place.rsplit("/", 1)[0]
    head, _, namespace = name.rpartition("n")
    pattern = re.compile(rf"{re.escape(head)}c\d+n{re.escape(namespace)}")
    legs: list[Client] = []
    for controller in sysfs.names(subsystem):
        folder = sysfs.real(subsystem, controller) if re.fullmatch(r"nvme\d+", controller) else None
        for leg in sysfs.names(folder) if folder else ():
            if not pattern.fullmatch(leg):
                continue
            found = _disk(topology, f"{folder}/{leg}", leg)
            if isinstance(found, Refusal):
                return found
            legs.extend(Client(client.bdf, f"{client.how} of {name}") for client in found)
    if not legs:
        return Refusal("no-path", f"{name} has no path to a drive", "see nvme list-subsys")
    kernel = topology.proc.kernel
    if kernel is not None and kernel < STACKED_P2P:
        return Refusal(
            "multipath-kernel",
            f"{name} is an nvme multipath head, and kernel {kernel_text(topology.proc)} passes no peer memory "
            "through one (7.2 does)",
            "load nvme_core with multipath=N, or run Linux 7.2 or newer",
            tuple(legs),
        )
    return tuple(legs)


def _device_mapper(topology: Topology, place: str, name: str, depth: int) -> Found:
    called = topology.sysfs.text(place, "dm/name") or name
    legs = _slaves(topology, place, called, depth)
    return Refusal(
        "device-mapper",
        f"{called} is a device mapper device ({name}), which does not pass peer memory on",
        "use the namespace or a partition of it itself",
        legs.clients if isinstance(legs, Refusal) else legs,
    )


def _md(topology: Topology, place: str, name: str, depth: int) -> Found:
    level = topology.sysfs.text(place, "md/level") or "unknown level"
    legs = _slaves(topology, place, name, depth)
    if isinstance(legs, Refusal):
        return legs
    if level not in MD_LEVELS:
        return Refusal(
            "md-level", f"{name} is md {level}, which touches data by CPU", f"use {', '.join(MD_LEVELS)}", legs
        )
    kernel = topology.proc.kernel
    if kernel is not None and kernel < STACKED_P2P:
        reason = f"{name} is md, and kernel {kernel_text(topology.proc)} passes no peer memory through it (7.2 does)"
        return Refusal("md-kernel", reason, "use a namespace itself, or run Linux 7.2 or newer", legs)
    return legs


def _slaves(topology: Topology, place: str, name: str, depth: int) -> Found:
    legs: list[Client] = []
    for slave in topology.sysfs.names(place, "slaves"):
        below = topology.sysfs.real(place, "slaves", slave)
        found = _follow(topology, below, depth + 1) if below is not None else ()
        if isinstance(found, Refusal):
            return Refusal(found.code, f"{name}: {found.reason}", found.remedy, (*legs, *found.clients))
        legs.extend(Client(client.bdf, f"{client.how} of {name}") for client in found)
    if not legs:
        return Refusal("no-drive", f"{name} has nothing below it", "see that the array or mapping is assembled")
    return tuple(legs)


def _named(found: Found, name: str) -> Found:
    if isinstance(found, Refusal):
        return Refusal(found.code, f"{name}: {found.reason}", found.remedy, found.clients)
    return tuple(Client(client.bdf, f"{name} of {client.how}") for client in found)


def nics_of(topology: Topology, traddr: str, *, addresses: Mapping[str, tuple[str, ...]] | None = None) -> Found:
    """The NICs that a connection to ``traddr`` comes in by.

    ``addresses`` (interface: its addresses) decides if given. Otherwise the interface is found from the texts of /proc:
    exactly for IPv6, and for IPv4 by the route to the address's own subnet. An address that stands for all of them
    ("0.0.0.0", "::") gives every NIC. A bond, bridge or VLAN gives the NICs below it.
    """
    try:
        address = ipaddress.ip_address(traddr.partition("%")[0])
    except ValueError:
        return Refusal("no-nic", f"{traddr!r} is not an address", "listen on an address")
    names: tuple[str, ...]
    if address.is_unspecified:
        names = tuple(name for name in topology.sysfs.names("class/net") if _pci_below(topology, name, 0))
    elif address.is_loopback:
        return Refusal("no-nic", f"{traddr} is a loopback address: nothing comes by a NIC", "listen on another address")
    else:
        names = _interfaces(topology, address, addresses)
    clients = {client.bdf: client for name in names for client in _pci_below(topology, name, 0)}
    if clients:
        return tuple(clients.values())
    if not names:
        return Refusal("no-nic", f"no interface of this machine has {traddr}", "give the address to an interface")
    return Refusal("no-nic", f"{', '.join(names)}, which has {traddr}, is on no PCI device", "use a physical NIC")


def _interfaces(
    topology: Topology,
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
    addresses: Mapping[str, tuple[str, ...]] | None,
) -> tuple[str, ...]:
    if addresses is not None:
        given = {
            name: {text.partition("%")[0].partition("/")[0] for text in texts} for name, texts in addresses.items()
        }
        return tuple(
            name for name, texts in given.items() if any(ipaddress.ip_address(text) == address for text in texts)
        )
    if address.version == 6:
        lines = [line.split() for line in topology.proc.if_inet6.splitlines()]
        return tuple(dict.fromkeys(line[5] for line in lines if len(line) == 6 and line[0] == address.packed.hex()))
    best, name = -1, ""
    for line in topology.proc.route.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or int(fields[3], 16) & RTF_GATEWAY:
            continue
        (network,), (mask,) = (struct.unpack(">I", bytes.fromhex(fields[at])[::-1]) for at in (1, 7))
        if int(address) & mask == network and mask and mask > best:
            best, name = mask, fields[0]
    return (name,) if name else ()


def _pci_below(topology: Topology, name: str, depth: int) -> tuple[Client, ...]:
    """The interface's own PCI device, or those of the interfaces that it is made of."""
    sysfs = topology.sysfs
    place = sysfs.real("class/net", name, "device")
    bdf = topology.bdf_above(place) if place is not None else None
    if bdf is not None:
        return (Client(bdf, name),)
    if depth > DEPTH_MAX:
        return ()
    lower = [entry.removeprefix("lower_") for entry in sysfs.names("class/net", name) if entry.startswith("lower_")]
    return tuple(
        Client(client.bdf, f"{client.how} of {name}")
        for below in lower
        for client in _pci_below(topology, below, depth + 1)
    )
