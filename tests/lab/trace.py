"""What QEMU's trace says of the NVMe controllers' DMA: which drive moved how many bytes to or from which memory.

QEMU's events do not name the controller, but a read or write names its namespace, and ``machine.topology`` gives each
drive an NSID of its own. A command's mapping events follow its own line before the next command's begin (one thread,
QEMU's big lock): so each address belongs to one command of one drive.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.inside import Drive

EVENTS = (
    "pci_nvme_io_cmd", "pci_nvme_admin_cmd", "pci_nvme_read", "pci_nvme_write", "pci_nvme_map_addr", "pci_nvme_copy",
    "pci_nvme_copy_out", "pci_nvme_dsm_deallocate", "pci_nvme_flush_ns",
)  # fmt: skip
"""What a machine must trace for this module."""

DRAM = "dram"
OTHER = "other"
_IO = re.compile(r"pci_nvme_io_cmd cid \d+ nsid 0x([0-9a-f]+) sqid \d+ opc 0x([0-9a-f]+)")
_COUNT = re.compile(r"pci_nvme_(?:read|write) cid \d+ (?:opname '\S+' )?nsid \d+ nlb \d+ count (\d+) lba 0x([0-9a-f]+)")
_ADDR = re.compile(r"pci_nvme_map_addr addr 0x([0-9a-f]+) len (\d+)")

WRITE, READ, COMPARE, WRITE_ZEROES, DSM, VERIFY, COPY, FLUSH = 0x01, 0x02, 0x05, 0x08, 0x09, 0x0C, 0x19, 0x00


@dataclass(slots=True)
class Command:
    """One I/O command as a controller executed it."""

    nsid: int
    opcode: int
    count: int = 0
    """Bytes of a read or write."""
    lba: int = 0
    pieces: list[tuple[int, int]] = field(default_factory=list)
    """(address, length) of its data, in order."""


def commands(lines: Iterable[str]) -> Iterator[Command]:
    """The I/O commands of a trace, in order."""
    current: Command | None = None
    for line in lines:
        if found := _IO.search(line):
            if current is not None:
                yield current
            current = Command(int(found[1], 16), int(found[2], 16))
        elif "pci_nvme_admin_cmd" in line:
            if current is not None:
                yield current
            current = None
        elif current is not None and (found := _ADDR.search(line)):
            current.pieces.append((int(found[1], 16), int(found[2])))
        elif current is not None and (found := _COUNT.search(line)):
            current.count, current.lba = int(found[1]), int(found[2], 16)
    if current is not None:
        yield current


@dataclass(frozen=True, slots=True)
class Window:
    """A range of bus addresses with a name: a drive's BAR or the guest's DRAM."""

    first: int
    last: int
    name: str


def windows(drives: Iterable[Drive], memory_bytes: int) -> tuple[Window, ...]:
    """The guest's DRAM (all below 2 GiB: what q35 leaves there) and the drives' CMBs, each by its drive's name."""
    assert memory_bytes <= 2 << 30
    found = [Window(0, memory_bytes - 1, DRAM)]
    for drive in drives:
        found += [
            Window(first, last, drive.id) for first, last in drive.bars if drive.cmb and last - first + 1 >= drive.cmb
        ]
    return tuple(found)


class Traffic:
    """Bytes of payload by (drive, opcode, place); a place is a drive's name for its CMB, or DRAM, or OTHER."""

    def __init__(self, found: Iterable[Command], drives: Iterable[Drive], memory_bytes: int) -> None:
        drives = tuple(drives)
        places = windows(drives, memory_bytes)
        names = {drive.nsid: drive.id for drive in drives}
        self.bytes: Counter[tuple[str, int, str]] = Counter()
        self.commands: Counter[tuple[str, int]] = Counter()
        self.torn: list[Command] = []
        """Reads and writes whose pieces do not add up: a trace that cannot be trusted."""
        for command in found:
            drive = names.get(command.nsid, f"nsid {command.nsid}")
            self.commands[drive, command.opcode] += 1
            if command.opcode in (READ, WRITE) and sum(n for _, n in command.pieces) != command.count:
                self.torn.append(command)
            for address, length in command.pieces:
                place = next((w.name for w in places if w.first <= address and address + length - 1 <= w.last), OTHER)
                self.bytes[drive, command.opcode, place] += length

    def of(self, drive: str, opcode: int) -> dict[str, int]:
        """Bytes by place of one drive's commands of one kind."""
        return {place: n for (name, code, place), n in sorted(self.bytes.items()) if (name, code) == (drive, opcode)}

    def __str__(self) -> str:
        rows = [
            f"{name} opcode {code:#04x}: {n} bytes, {place}" for (name, code, place), n in sorted(self.bytes.items())
        ]
        return "\n".join([*rows, *(f"torn: {c}" for c in self.torn[:5])])


class Trace:
    """The trace file of a running guest, from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark()

    def mark(self) -> None:
        """Forget what was before."""
        self.offset = self.path.stat().st_size

    def commands(self) -> list[Command]:
        """The commands since the mark."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            text = file.read()
        return list(commands(text.decode(errors="replace").splitlines()))


def seen(trace: Trace, drives: dict[str, Drive], memory_bytes: int = 1 << 30) -> Traffic:
    """The traffic since the mark, in a trace that can be trusted."""
    traffic = Traffic(trace.commands(), drives.values(), memory_bytes)
    assert traffic.torn == [], str(traffic)
    return traffic
