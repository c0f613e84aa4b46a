"""Who uses a drive that is to be taken from the kernel: the reasons why it must stay there."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nvmet_p2p.setup.machine import DEVICES, VFIO, Machine

HARMLESS: Final = frozenset({"", VFIO, "pci-stub", "pcieport", "shpchp"})  # what a viable VFIO group may hold


@dataclass(frozen=True, slots=True)
class Block:
    """A disk or partition of a drive: its name, and its device number ("259:1"; empty for a multipath leg)."""

    name: str
    number: str
    place: str


@dataclass(frozen=True)
class Nodes:
    """What the kernel's nvme driver made of a drive."""

    controllers: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    characters: tuple[str, ...] = ()  # nvme0, ng0n1
    numbers: Mapping[str, str] = field(default_factory=dict)  # "b259:1" or "c240:0" -> name


def nodes_of(machine: Machine, bdf: str) -> Nodes:
    """The block devices (disks, multipath heads, partitions) and character devices over a drive."""
    sysfs = machine.sysfs
    home = sysfs.real(DEVICES, bdf)
    controllers = sysfs.names(home, "nvme") if home else ()
    blocks: list[Block] = []
    characters: dict[str, str] = {}
    for controller in controllers:
        place = f"{home}/nvme/{controller}"
        characters[controller] = sysfs.text(place, "dev") or ""
        blocks += _disks(machine, place)
        characters |= _generic(machine, place)
        for subsystem in sysfs.names("class/nvme-subsystem"):
            folder = sysfs.real("class/nvme-subsystem", subsystem)
            if folder and controller in sysfs.names(folder):
                blocks += _disks(machine, folder)
                characters |= _generic(machine, folder)
    blocks = list({block.name: block for block in blocks}.values())
    numbers = {f"b{block.number}": block.name for block in blocks if block.number}
    numbers |= {f"c{number}": name for name, number in characters.items() if number}
    return Nodes(controllers, tuple(blocks), tuple(characters), numbers)


def _disks(machine: Machine, place: str) -> list[Block]:
    found = []
    for name in machine.sysfs.names(place):
        if re.fullmatch(r"nvme\d+(c\d+)?n\d+", name):
            disk = f"{place}/{name}"
            found.append(Block(name, machine.sysfs.text(disk, "dev") or "", disk))
            for part in machine.sysfs.names(disk):
                if machine.sysfs.exists(disk, part, "partition"):
                    found.append(Block(part, machine.sysfs.text(disk, part, "dev") or "", f"{disk}/{part}"))
    return found


def _generic(machine: Machine, place: str) -> dict[str, str]:
    """The character devices of namespaces: below the controller, or in a folder of their class."""
    return {
        name: machine.sysfs.text(folder, name, "dev") or ""
        for folder in (place, f"{place}/nvme-generic")
        for name in machine.sysfs.names(folder)
        if re.fullmatch(r"ng\d+n\d+", name)
    }


def reasons(machine: Machine, bdf: str, served: Mapping[str, str]) -> list[str]:
    """Why the drive is in use; nothing if it is free.

    ``served``: the bdevs of a running target by their file or device ("/dev/nvme0n1": "Nvme0").
    """
    nodes = nodes_of(machine, bdf)
    found = _mounts(machine, nodes) + _swaps(machine, nodes) + _holders(machine, nodes)
    for block in nodes.blocks:
        if f"/dev/{block.name}" in served:
            found.append(f"the running target serves {block.name} as bdev {served[f'/dev/{block.name}']}")
    found += _openers(machine, nodes)
    home = machine.sysfs.real(DEVICES, bdf) or ""
    users = machine.mapped(f"/{bdf}/p2pmem/allocate")
    found += [f"its memory (CMB) is in use by {machine.process(pid)}" for pid in users]
    if (machine.sysfs.number(home, "sriov_numvfs") or 0) > 0:
        found.append("it has virtual functions: set sriov_numvfs to 0")
    if not found:  # whatever else claims it: zfs, a process, a mount in another namespace
        found = [
            f"{block.name} is claimed by somebody (zfs, a mount elsewhere, an exclusive opener)"
            for block in nodes.blocks
            if block.number and machine.kernel.is_claimed(str(machine.dev / block.name))
        ]
    return found


def _mounts(machine: Machine, nodes: Nodes) -> list[str]:
    by_number = {block.number: block.name for block in nodes.blocks if block.number}
    names = {f"/dev/{block.name}": block.name for block in nodes.blocks}
    found: dict[str, None] = {}
    for pid in ("1", "self"):  # the machine's own mounts, and ours if we are in another namespace
        for line in machine.text(pid, "mountinfo").splitlines():
            before, _, after = line.partition(" - ")
            fields, rest = before.split(), after.split()
            if len(fields) < 5 or len(rest) < 2:
                continue
            name = by_number.get(fields[2]) or names.get(rest[1])  # btrfs has a number of its own
            if name is not None:
                root = ", the root file system" if fields[4] == "/" else ""
                found[f"{name} is mounted at {fields[4]}{root}"] = None
    return list(found)


def _swaps(machine: Machine, nodes: Nodes) -> list[str]:
    names = {f"/dev/{block.name}": block.name for block in nodes.blocks}
    lines = machine.text("swaps").splitlines()[1:]
    used = [line.split()[0] for line in lines if line.split()]
    return [f"{names[path]} is swap space" for path in used if path in names]


def _holders(machine: Machine, nodes: Nodes) -> list[str]:
    found = []
    for block in nodes.blocks:
        for holder in machine.sysfs.names(block.place, "holders"):
            called = machine.sysfs.text("class/block", holder, "dm/name")
            uuid = machine.sysfs.text("class/block", holder, "dm/uuid") or ""
            kind = "lvm" if uuid.startswith("LVM-") else re.sub(r"[0-9_-].*", "", holder)
            found.append(f"{block.name} is part of {called or holder} ({kind})")
    return found


def _openers(machine: Machine, nodes: Nodes) -> list[str]:
    names = {f"/dev/{name}": name for name in (*(block.name for block in nodes.blocks), *nodes.characters)}
    found: dict[str, None] = {}
    for pid, link, node in machine.open_files():
        name = names.get(link)
        if name is None and node is not None:
            kind = "b" if stat.S_ISBLK(node.st_mode) else "c"
            name = nodes.numbers.get(f"{kind}{os.major(node.st_rdev)}:{os.minor(node.st_rdev)}")
        if name is not None:
            found[f"{name} is open in {machine.process(pid)}"] = None
    return list(found)


def group_members(machine: Machine, bdf: str) -> tuple[str, ...]:
    """All devices of the drive's IOMMU group, itself included; nothing without one."""
    group = machine.group(bdf)
    return machine.sysfs.names("kernel/iommu_groups", group, "devices") if group is not None else ()


def group_faults(machine: Machine, bdf: str, with_it: Iterable[str]) -> list[str]:
    """Devices of the group that a kernel driver would keep, so that VFIO refuses the group as a whole."""
    coming = {bdf, *with_it}
    return [
        f"{other}, in the same IOMMU group {machine.group(bdf)}, is in the hands of driver {machine.driver(other)}"
        for other in group_members(machine, bdf)
        if other not in coming and machine.driver(other) not in HARMLESS
    ]
