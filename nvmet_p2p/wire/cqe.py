"""Completion queue entries (NVMe base 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

from nvmet_p2p.wire.codec import Wire, bits, flag, layout, u16, u32


@layout(16, hot=True)
@dataclass(frozen=True, slots=True)
class Cqe(Wire):
    """One completion. ``status`` is ``SCT << 8 | SC``. The phase tag is reserved over Fabrics: written as 0."""

    dw0: int = u32(0)
    dw1: int = u32(4)
    sqhd: int = u16(8)
    sqid: int = u16(10)
    cid: int = u16(12)
    status: int = bits(14, 2, 1, 11)
    crd: int = bits(14, 2, 12, 2)
    more: bool = flag(14, 2, 14)
    dnr: bool = flag(14, 2, 15)

    @property
    def result64(self) -> int:
        """Dwords 0 and 1 as one integer, as Property Get returns an 8 byte property."""
        return self.dw1 << 32 | self.dw0

    @property
    def ok(self) -> bool:
        """The command completed without error."""
        return self.status == 0
