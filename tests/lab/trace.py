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

IOMMU_EVENTS = (*EVENTS, "vtd_dmar_translate")
"""The same on a machine with an IOMMU: what physical address each of a drive's addresses stood for."""

DRAM = "dram"
OTHER = "other"
_IO = re.compile(r"pci_nvme_io_cmd cid \d+ nsid 0x([0-9a-f]+) sqid \d+ opc 0x([0-9a-f]+)")
_COUNT = re.compile(r"pci_nvme_(?:read|write) cid \d+ (?:opname '\S+' )?nsid \d+ nlb \d+ count (\d+) lba 0x([0-9a-f]+)")
_TRANSLATED = re.compile(
    r"vtd_dmar_translate dev (\S+) iova 0x([0-9a-f]+) -> gpa 0x([0-9a-f]+) mask 0x([0-9a-f]+)$", re.MULTILINE
)
_PAGE = 4096
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


class Translations:
    """What the emulated IOMMU made of drives' addresses: of those that were accessed and stayed mapped."""

    def __init__(self, text: str) -> None:
        self.pages = {
            (who, int(iova, 16), int(mask, 16)): int(gpa, 16) for who, iova, gpa, mask in _TRANSLATED.findall(text)
        }
        self.masks = sorted({mask for _, _, mask in self.pages})

    def pieces(self, drive: Drive, address: int, length: int) -> Iterator[tuple[int | None, int]]:
        """The piece in physical addresses, by page; None: it was not sent to the bus (its own CMB)."""
        bus, function = drive.bdf.split(":", 1)[1].split(".")
        who = f"{bus}.{int(function, 16):02x}"
        while length:
            step = min(length, _PAGE - address % _PAGE)
            yield self._translate(who, address), step
            address, length = address + step, length - step

    def _translate(self, who: str, address: int) -> int | None:
        for mask in self.masks:  # pages of 4 KiB, 2 MiB, 1 GiB
            page = self.pages.get((who, address & ~mask, mask))
            if page is not None:
                return page + (address & mask)
        return None


class Traffic:
    """Bytes of payload by (drive, opcode, place); a place is a drive's name for its CMB, or DRAM, or OTHER.

    translations: of a machine with an IOMMU, where a drive's own addresses say nothing.
    """

    def __init__(
        self,
        found: Iterable[Command],
        drives: Iterable[Drive],
        memory_bytes: int,
        translations: Translations | None = None,
    ) -> None:
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
            for address, length in _physical(command, translations, drives):
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


def _physical(
    command: Command, translations: Translations | None, drives: tuple[Drive, ...]
) -> Iterable[tuple[int, int]]:
    """The command's pieces; address -1 where nothing was sent to the bus."""
    drive = next((drive for drive in drives if drive.nsid == command.nsid), None)
    if translations is None or drive is None:
        return command.pieces
    found = (piece for address, length in command.pieces for piece in translations.pieces(drive, address, length))
    return [(-1 if address is None else address, length) for address, length in found]


class Trace:
    """The trace file of a running guest, from now on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark()

    def mark(self) -> None:
        """Forget what was before."""
        self.offset = self.path.stat().st_size

    def text(self) -> str:
        """What was written since the mark."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read().decode(errors="replace")

    def commands(self) -> list[Command]:
        """The commands since the mark."""
        return list(commands(self.text().splitlines()))


def seen(trace: Trace, drives: dict[str, Drive], memory_bytes: int = 1 << 30, *, iommu: bool = False) -> Traffic:
    """The traffic since the mark, in a trace that can be trusted."""
    text = trace.text()
    translations = Translations(text) if iommu else None
    traffic = Traffic(commands(text.splitlines()), drives.values(), memory_bytes, translations)
    assert traffic.torn == [], str(traffic)
    return traffic
