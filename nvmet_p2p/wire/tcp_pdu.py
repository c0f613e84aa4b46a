"""NVMe/TCP PDU headers (NVMe/TCP 3.6). Digests, padding and data are the protocol machine's work, not part of these.

Every header holds its own copy of the common header's fields ``flags``, ``pdo`` and ``plen``; PDU-type and HLEN follow
from the class. ``parse`` takes the bytes from the common header on and checks neither type nor lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from nvmet_p2p.wire.codec import BytesLike, Wire, WireError, layout, raw, u8, u16, u32
from nvmet_p2p.wire.spec import PduType

TERM_REQ_DATA_MAX: Final = 128  # bytes of the offending PDU's header in a termination request


@layout(8, hot=True)
@dataclass(frozen=True, slots=True)
class CommonHeader(Wire):
    """The first eight bytes of every PDU."""

    pdu_type: int = u8(0)
    flags: int = u8(1)
    hlen: int = u8(2)
    pdo: int = u8(3)
    plen: int = u32(4)


@layout(128)
@dataclass(frozen=True, slots=True)
class IcReq(Wire):
    """Initialize Connection Request: the first PDU of a host. ``hpda`` in dwords, ``maxr2t`` 0's based."""

    pdu_type: int = u8(0, PduType.IC_REQ)
    flags: int = u8(1)
    hlen: int = u8(2, 128)
    pdo: int = u8(3)
    plen: int = u32(4, 128)
    pfv: int = u16(8)
    hpda: int = u8(10)
    dgst: int = u8(11)
    maxr2t: int = u32(12)


@layout(128)
@dataclass(frozen=True, slots=True)
class IcResp(Wire):
    """Initialize Connection Response. ``cpda`` in dwords; ``maxh2cdata`` in bytes."""

    pdu_type: int = u8(0, PduType.IC_RESP)
    flags: int = u8(1)
    hlen: int = u8(2, 128)
    pdo: int = u8(3)
    plen: int = u32(4, 128)
    pfv: int = u16(8)
    cpda: int = u8(10)
    dgst: int = u8(11)
    maxh2cdata: int = u32(12)


@layout(24)
@dataclass(frozen=True, slots=True)
class TermReqHeader(Wire):
    """The header of H2CTermReq and C2HTermReq."""

    pdu_type: int = u8(0, PduType.C2H_TERM_REQ)
    flags: int = u8(1)
    hlen: int = u8(2, 24)
    pdo: int = u8(3)
    plen: int = u32(4, 24)
    fes: int = u16(8)
    fei: int = u32(10)


@dataclass(frozen=True, slots=True)
class TermReq:
    """A whole termination request: ``data`` is the head of the offending PDU's header, at most 128 bytes."""

    fes: int
    fei: int = 0
    data: bytes = b""
    pdu_type: int = PduType.C2H_TERM_REQ

    SIZE: ClassVar[int] = TermReqHeader.SIZE

    @classmethod
    def parse(cls, buf: BytesLike) -> Self:
        """Read header and data as PLEN says. Raises WireError when PLEN is not 24 to 152 or ``buf`` is shorter."""
        head = TermReqHeader.parse(buf)
        if not cls.SIZE <= head.plen <= cls.SIZE + TERM_REQ_DATA_MAX:
            raise WireError(f"a termination request of {head.plen} bytes")
        if len(buf) < head.plen:
            raise WireError(f"a termination request of {head.plen} bytes, {len(buf)} are there")
        return cls(head.fes, head.fei, bytes(buf[cls.SIZE : head.plen]), head.pdu_type)

    def build(self) -> bytes:
        """The whole PDU. Raises WireError when ``data`` is longer than 128 bytes."""
        if len(self.data) > TERM_REQ_DATA_MAX:
            raise WireError(f"{len(self.data)} bytes of data in a termination request")
        plen = self.SIZE + len(self.data)
        return TermReqHeader(pdu_type=self.pdu_type, plen=plen, fes=self.fes, fei=self.fei).build() + self.data


@layout(72, hot=True)
@dataclass(frozen=True, slots=True)
class CapsuleCmd(Wire):
    """Command capsule; in-capsule data starts at ``pdo``."""

    pdu_type: int = u8(0, PduType.CAPSULE_CMD)
    flags: int = u8(1)
    hlen: int = u8(2, 72)
    pdo: int = u8(3)
    plen: int = u32(4, 72)
    sqe: bytes = raw(8, 64)


@layout(24, hot=True)
@dataclass(frozen=True, slots=True)
class CapsuleResp(Wire):
    """Response capsule."""

    pdu_type: int = u8(0, PduType.CAPSULE_RESP)
    flags: int = u8(1)
    hlen: int = u8(2, 24)
    pdo: int = u8(3)
    plen: int = u32(4, 24)
    cqe: bytes = raw(8, 16)


@layout(24, hot=True)
@dataclass(frozen=True, slots=True)
class H2CData(Wire):
    """Host to controller data: ``datal`` bytes that belong at ``datao`` of the command's data."""

    pdu_type: int = u8(0, PduType.H2C_DATA)
    flags: int = u8(1)
    hlen: int = u8(2, 24)
    pdo: int = u8(3)
    plen: int = u32(4, 24)
    cccid: int = u16(8)
    ttag: int = u16(10)
    datao: int = u32(12)
    datal: int = u32(16)


@layout(24, hot=True)
@dataclass(frozen=True, slots=True)
class C2HData(Wire):
    """Controller to host data: ``datal`` bytes that belong at ``datao`` of the command's data."""

    pdu_type: int = u8(0, PduType.C2H_DATA)
    flags: int = u8(1)
    hlen: int = u8(2, 24)
    pdo: int = u8(3)
    plen: int = u32(4, 24)
    cccid: int = u16(8)
    datao: int = u32(12)
    datal: int = u32(16)


@layout(24, hot=True)
@dataclass(frozen=True, slots=True)
class R2T(Wire):
    """Ready to transfer: the host is to send ``r2tl`` bytes from ``r2to`` on."""

    pdu_type: int = u8(0, PduType.R2T)
    flags: int = u8(1)
    hlen: int = u8(2, 24)
    pdo: int = u8(3)
    plen: int = u32(4, 24)
    cccid: int = u16(8)
    ttag: int = u16(10)
    r2to: int = u32(12)
    r2tl: int = u32(16)
