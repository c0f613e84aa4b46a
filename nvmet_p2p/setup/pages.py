"""Huge pages of 2 MiB, a number for each NUMA node. The data plane does without; with them the drives' IOMMU has fewer
entries to look up."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from nvmet_p2p.setup.machine import Machine, SetupError
from nvmet_p2p.setup.record import Record, RecordFile

NODES: Final = "devices/system/node"
FOLDER: Final = "hugepages/hugepages-2048kB"
MACHINE: Final = f"kernel/mm/{FOLDER}"


def counts(machine: Machine) -> dict[str, tuple[int, int]]:
    """(all, free) huge pages by the folder that says so: one for each node, or the machine's without NUMA."""
    sysfs = machine.sysfs
    nodes = [f"{NODES}/{name}/{FOLDER}" for name in sysfs.names(NODES) if re.fullmatch(r"node\d+", name)]
    folders = [folder for folder in nodes if sysfs.exists(folder, "nr_hugepages")] or [MACHINE]
    return {
        folder: (total, sysfs.number(folder, "free_hugepages") or 0)
        for folder in folders
        if (total := sysfs.number(folder, "nr_hugepages")) is not None
    }


def reserve(machine: Machine, file: RecordFile, record: Record, wanted: int) -> list[str]:
    """At least ``wanted`` pages on each node. Raises ``SetupError``: the machine has no huge pages, or not so many."""
    found = counts(machine)
    if not found:
        raise SetupError("this kernel has no huge pages of 2 MiB")
    done = []
    for folder, (total, _free) in found.items():
        if total >= wanted:
            continue
        record.pages.setdefault(folder, total)
        file.save(record)
        machine.write(str(wanted), folder, "nr_hugepages")
        got = machine.sysfs.number(folder, "nr_hugepages") or 0
        if got < wanted:
            raise SetupError(f"{place(folder)} gave {got} of {wanted} huge pages: its memory is in use or in pieces")
        done.append(f"{place(folder)}: {total} -> {got} huge pages of 2 MiB")
    return done or [f"there are {wanted} huge pages already"]


def restore(machine: Machine, file: RecordFile, record: Record, keep: Collection[str] = ()) -> list[str]:
    """As many as before, but for the folders in ``keep``. Pages in use are given back when they are free."""
    done = []
    for folder, before in [(folder, count) for folder, count in record.pages.items() if folder not in keep]:
        if machine.sysfs.exists(folder, "nr_hugepages"):
            machine.write(str(before), folder, "nr_hugepages")
            done.append(f"{place(folder)}: {before} huge pages as before")
        del record.pages[folder]
        file.save(record)
    return done


def place(folder: str) -> str:
    """ "node 0", or "the machine"."""
    found = re.search(r"/node(\d+)/", folder)
    return f"node {found[1]}" if found else "the machine"
