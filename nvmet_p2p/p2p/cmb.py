"""Controller Memory Buffer and Persistent Memory Region registers (NVM Express base specification, section 3.1.4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

CAP: Final = 0x00
CMBLOC: Final = 0x38
CMBSZ: Final = 0x3C
PMRCAP: Final = 0xE00
REGISTERS_BYTES: Final = 0xE04  # as much of BAR 0 as is looked at
KERNEL_ALIGNMENT: Final = 2 << 20  # memremap_compat_align(): a sub-section of the memory map (x86, arm64)
SIZE_UNITS: Final = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20, 4 << 30, 64 << 30)


@dataclass(frozen=True, slots=True)
class CmbCaps:
    """CMBLOC and CMBSZ. ``size`` and ``offset`` (within BAR ``bar``) in bytes.

    ``mixed_lists``: a PRP list or SGL may name this memory and host memory together (CDPMLS; CDPCILS: parts of a list);
    a drive without it can still serve as provider, as its peers' lists are what the target makes.
    """

    bar: int
    offset: int
    size: int
    submission_queues: bool
    completion_queues: bool
    lists: bool
    read_data: bool
    write_data: bool
    mixed_lists: bool

    @classmethod
    def decode(cls, cmbloc: int, cmbsz: int) -> CmbCaps | None:
        """``None`` if there is no buffer (CMBSZ is 0) or the size unit is a reserved one."""
        unit_code = cmbsz >> 8 & 0xF
        if not cmbsz or unit_code >= len(SIZE_UNITS):
            return None
        unit = SIZE_UNITS[unit_code]
        return cls(
            bar=cmbloc & 0x7,
            offset=(cmbloc >> 12) * unit,
            size=(cmbsz >> 12) * unit,
            submission_queues=bool(cmbsz & 1),
            completion_queues=bool(cmbsz & 2),
            lists=bool(cmbsz & 4),
            read_data=bool(cmbsz & 8),
            write_data=bool(cmbsz & 16),
            mixed_lists=bool(cmbloc & 1 << 5),
        )

    @property
    def for_data(self) -> bool:
        """Both directions of data (RDS and WDS): what the kernel asks for before it publishes the memory."""
        return self.read_data and self.write_data

    def names(self) -> tuple[str, ...]:
        """The CMBSZ support bits that are set, as the specification names them."""
        flags = (
            ("SQS", self.submission_queues),
            ("CQS", self.completion_queues),
            ("LISTS", self.lists),
            ("RDS", self.read_data),
            ("WDS", self.write_data),
        )
        return tuple(name for name, present in flags if present)


@dataclass(frozen=True, slots=True)
class PmrCaps:
    """PMRCAP of a Persistent Memory Region: its BAR and the directions of data that it takes."""

    bar: int
    read_data: bool
    write_data: bool

    @classmethod
    def decode(cls, cap: int, pmrcap: int) -> PmrCaps | None:
        """``None`` if CAP.PMRS (bit 56) is clear."""
        if not cap & 1 << 56:
            return None
        return cls(bar=pmrcap >> 5 & 0x7, read_data=bool(pmrcap & 1 << 3), write_data=bool(pmrcap & 1 << 4))


def decode_registers(registers: bytes) -> tuple[CmbCaps | None, PmrCaps | None]:
    """Both from the start of BAR 0 (``REGISTERS_BYTES`` of it), as somebody who owns the drive has read it."""
    if len(registers) < REGISTERS_BYTES:
        return None, None
    (cap,) = struct.unpack_from("<Q", registers, CAP)
    cmbloc, cmbsz = struct.unpack_from("<II", registers, CMBLOC)
    (pmrcap,) = struct.unpack_from("<I", registers, PMRCAP)
    return CmbCaps.decode(cmbloc, cmbsz), PmrCaps.decode(cap, pmrcap)
