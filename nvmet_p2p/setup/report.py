"""``nvmet-p2p setup status``: which drives could be taken, which are, and what the machine lacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from nvmet_p2p.setup import binding, pages
from nvmet_p2p.setup.machine import DRIVERS, VFIO, Machine
from nvmet_p2p.setup.record import Record
from nvmet_p2p.setup.usage import group_faults, group_members, nodes_of, reasons

MEMLOCK_MIN: Final = 2 << 30  # VFIO counts all memory that a drive may reach: staging, queues, and the CMBs themselves
UNLIMITED: Final = "unlimited"


def document(
    machine: Machine, record: Record, *, served: Mapping[str, str], processes: Collection[int] = ()
) -> dict[str, Any]:
    """All of it as plain values. ``processes``: the running daemon's and its data plane's, whose limits count."""
    drives = [_drive(machine, bdf, record, served) for bdf in machine.drives()]
    limits = {str(pid): _memlock(machine, str(pid)) for pid in processes} or {"self": _memlock(machine, "self")}
    facts: dict[str, Any] = {
        "iommu_groups": len(machine.sysfs.names("kernel/iommu_groups")),
        "noiommu": machine.sysfs.text(binding.NOIOMMU) == "Y",
        "vfio_pci": machine.sysfs.exists(DRIVERS, VFIO),
        "memlock": limits,
        "hugepages": [
            {"where": pages.place(folder), "total": total, "free": free, "before": record.pages.get(folder)}
            for folder, (total, free) in pages.counts(machine).items()
        ],
        "drives": drives,
    }
    return facts | {"notes": _notes(facts)}


def _drive(machine: Machine, bdf: str, record: Record, served: Mapping[str, str]) -> dict[str, Any]:
    driver = machine.driver(bdf)
    on_vfio = driver == VFIO
    nodes = nodes_of(machine, bdf)
    before = record.devices.get(bdf)
    return {
        "bdf": bdf,
        "driver": driver,
        "names": [*nodes.controllers, *(block.name for block in nodes.blocks)],
        "iommu_group": machine.group(bdf),
        "group_members": [other for other in group_members(machine, bdf) if other != bdf],
        "in_use": [f"open in {user}" for user in binding.holders(machine, bdf)]
        if on_vfio
        else reasons(machine, bdf, served),
        "group_faults": group_faults(machine, bdf, ()),
        "bound_by_setup": before is not None and on_vfio,
        "driver_before": before.driver if before is not None else None,
    }


def _memlock(machine: Machine, process: str) -> str:
    """Bytes of memory that may be locked, or "unlimited"; empty if it cannot be read."""
    for line in machine.text(process, "limits").splitlines():
        if line.startswith("Max locked memory"):
            return line.split()[3]
    return ""


def _notes(facts: Mapping[str, Any]) -> list[str]:
    notes = []
    if not facts["iommu_groups"]:
        notes.append(f"no IOMMU: {binding.NO_IOMMU_REMEDY}")
    if not facts["vfio_pci"]:
        notes.append(f"driver {VFIO} is not loaded; `setup bind` loads it")
    if facts["noiommu"]:
        notes.append("VFIO works without an IOMMU: drives on it can reach all memory")
    for process, limit in facts["memlock"].items():
        if limit.isdigit() and int(limit) < MEMLOCK_MIN:
            who = "this shell" if process == "self" else f"process {process}"
            notes.append(
                f"{who} may lock {int(limit) >> 20} MiB of memory, which VFIO counts unless it has CAP_IPC_LOCK: "
                "set LimitMEMLOCK=infinity (deploy/nvmet-p2p.service.d/vfio.conf)"
            )
    return notes


def text(facts: Mapping[str, Any]) -> str:
    """The document for people."""
    lines = []
    for drive in facts["drives"]:
        group = drive["iommu_group"]
        names = f" ({', '.join(drive['names'])})" if drive["names"] else ""
        where = f"IOMMU group {group}" if group is not None else "no IOMMU group"
        lines.append(f"{drive['bdf']}{names}: {drive['driver'] or 'no driver'}, {where}{_verdict(drive)}")
        lines += [f"    {reason}" for reason in (*drive["in_use"], *drive["group_faults"])]
    lines = lines or ["no NVMe drive"]
    for entry in facts["hugepages"]:
        before = f" ({entry['before']} before)" if entry["before"] is not None else ""
        lines.append(f"{entry['where']}: {entry['total']} huge pages of 2 MiB, {entry['free']} free{before}")
    return "\n".join([*lines, *(f"note: {note}" for note in facts["notes"])])


def _verdict(drive: Mapping[str, Any]) -> str:
    if drive["bound_by_setup"]:
        return f"; bound by setup, `restore` gives it to {drive['driver_before'] or 'no driver'}"
    if drive["driver"] == VFIO:
        return "; bound by somebody else"
    if drive["in_use"] or drive["group_faults"]:
        return "; cannot be bound:"
    return "; can be bound" if drive["iommu_group"] is not None else "; can be bound with --noiommu only"
