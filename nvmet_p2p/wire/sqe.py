"""Submission queue entries (NVMe base 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nvmet_p2p.wire.codec import Wire, bits, layout, raw, u8, u16, u32, u64
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import FABRICS_OPCODE

DPTR_OFFSET: Final = 24


@layout(64, hot=True)
@dataclass(frozen=True, slots=True)
class Sqe(Wire):
    """The common command format. ``cdw2`` to ``dptr`` are command specific for Fabrics commands."""

    opc: int = u8(0)
    fuse: int = bits(1, 1, 0, 2)
    psdt: int = bits(1, 1, 6, 2)
    cid: int = u16(2)
    nsid: int = u32(4)
    cdw2: int = u32(8)
    cdw3: int = u32(12)
    mptr: int = u64(16)
    dptr: bytes = raw(24, 16)
    cdw10: int = u32(40)
    cdw11: int = u32(44)
    cdw12: int = u32(48)
    cdw13: int = u32(52)
    cdw14: int = u32(56)
    cdw15: int = u32(60)

    @property
    def sgl(self) -> SglDescriptor:
        """DPTR read as SGL descriptor 1; meaningful when PSDT says SGL."""
        return SglDescriptor.parse(self.dptr)

    @property
    def is_fabrics(self) -> bool:
        """OPC 7Fh: FCTYPE, not OPC, names the command, and there is no NSID."""
        return self.opc == FABRICS_OPCODE

    @property
    def fctype(self) -> int:
        """Byte 4 of a Fabrics command."""
        return self.nsid & 0xFF
