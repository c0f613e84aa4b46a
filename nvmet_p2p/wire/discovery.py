"""The discovery log page, LID 70h (NVMe base 5.1.12.3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from nvmet_p2p.wire.codec import (
    BytesLike,
    Wire,
    WireError,
    ascii_text,
    layout,
    parse_many,
    raw,
    u8,
    u16,
    u32,
    u64,
    utf8_text,
)
from nvmet_p2p.wire.spec import RdmaCms, RdmaPrType, RdmaQpType, Subtype, TcpSecType, Trtype


@layout(256)
@dataclass(frozen=True, slots=True)
class TcpTsas(Wire):
    """TSAS of an NVMe/TCP entry."""

    sectype: int = u8(0, TcpSecType.NONE)


@layout(256)
@dataclass(frozen=True, slots=True)
class RdmaTsas(Wire):
    """TSAS of an NVMe/RDMA entry."""

    qptype: int = u8(0, RdmaQpType.RELIABLE_CONNECTED)
    prtype: int = u8(1, RdmaPrType.NOT_SPECIFIED)
    cms: int = u8(2, RdmaCms.RDMA_CM)
    pkey: int = u16(8)


@layout(1024)
@dataclass(frozen=True, slots=True)
class DiscoveryEntry(Wire):
    """One discovery log page entry. ``tsas`` is built by ``TcpTsas`` or ``RdmaTsas``."""

    trtype: int = u8(0, Trtype.TCP)
    adrfam: int = u8(1)
    subtype: int = u8(2, Subtype.NVM)
    treq: int = u8(3)
    portid: int = u16(4)
    cntlid: int = u16(6)
    asqsz: int = u16(8)
    eflags: int = u16(10)
    trsvcid: str = ascii_text(32, 32)
    subnqn: str = utf8_text(256, 256)
    traddr: str = ascii_text(512, 256)
    tsas: bytes = raw(768, 256)


@layout(1024)
@dataclass(frozen=True, slots=True)
class DiscoveryHeader(Wire):
    """The first 1024 bytes of the page. ``dlpf`` and ``tdlpl`` are Base 2.1's flags and total length."""

    genctr: int = u64(0)
    numrec: int = u64(8)
    recfmt: int = u16(16)
    dlpf: int = u8(18)
    tdlpl: int = u32(20)


@dataclass(frozen=True, slots=True)
class DiscoveryLog:
    """The whole page."""

    genctr: int = 0
    entries: tuple[DiscoveryEntry, ...] = ()
    recfmt: int = 0

    SIZE: ClassVar[int] = DiscoveryHeader.SIZE

    @classmethod
    def parse(cls, buf: BytesLike) -> Self:
        """Read header and all entries. Raises WireError when ``buf`` ends before them."""
        head = DiscoveryHeader.parse(buf)
        if head.numrec * DiscoveryEntry.SIZE > len(buf) - head.SIZE:
            raise WireError(f"{head.numrec} discovery entries, {len(buf) - head.SIZE} bytes are there")
        return cls(head.genctr, parse_many(DiscoveryEntry, buf[head.SIZE :], head.numrec), head.recfmt)

    def build(self) -> bytes:
        """Header and entries."""
        head = DiscoveryHeader(genctr=self.genctr, numrec=len(self.entries), recfmt=self.recfmt)
        return head.build() + b"".join(entry.build() for entry in self.entries)
