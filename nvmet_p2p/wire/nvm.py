"""Data of I/O commands (NVM Command Set 3): ranges of Dataset Management, source ranges of Copy; and the I/O views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from nvmet_p2p.wire.codec import BytesLike, Wire, WireError, bits, layout, parse_many, raw, u16, u32, u64
from nvmet_p2p.wire.spec import CopyFormat
from nvmet_p2p.wire.views import CopyCommand, DsmCommand, ReadWriteCommand

__all__ = [
    "COPY_DESCRIPTORS",
    "CopyCommand",
    "CopyDescriptor",
    "CopyDescriptor0",
    "CopyDescriptor1",
    "CopyDescriptor2",
    "CopyDescriptor3",
    "DsmCommand",
    "DsmRange",
    "ReadWriteCommand",
    "parse_copy_descriptors",
]


@layout(16)
@dataclass(frozen=True, slots=True)
class DsmRange(Wire):
    """One range of Dataset Management. ``nlb`` is a count, not 0's based."""

    attributes: int = u32(0)
    nlb: int = u32(4)
    slba: int = u64(8)


@layout(32)
@dataclass(frozen=True, slots=True)
class CopyDescriptor0(Wire):
    """Source range entry, format 0h. ``nlb`` is 0's based."""

    slba: int = u64(8)
    nlb: int = u16(16)
    cetype: int = bits(18, 1, 0, 4)
    cev: int = u16(20)
    elbt: int = u32(24)
    elbat: int = u16(28)
    elbatm: int = u16(30)


@layout(40)
@dataclass(frozen=True, slots=True)
class CopyDescriptor1(Wire):
    """Source range entry, format 1h: 40 bytes, the reference and storage tags in ten of them."""

    slba: int = u64(8)
    nlb: int = u16(16)
    cetype: int = bits(18, 1, 0, 4)
    cev: int = u16(20)
    elbt: bytes = raw(26, 10)
    elbat: int = u16(36)
    elbatm: int = u16(38)


@layout(32)
@dataclass(frozen=True, slots=True)
class CopyDescriptor2(Wire):
    """Source range entry, format 2h: as 0h, and the source's namespace. ``sopt`` bit 15 is Fast Copy Only."""

    snsid: int = u32(0)
    slba: int = u64(8)
    nlb: int = u16(16)
    cetype: int = bits(18, 1, 0, 4)
    cev: int = u16(20)
    sopt: int = u16(22)
    elbt: int = u32(24)
    elbat: int = u16(28)
    elbatm: int = u16(30)


@layout(40)
@dataclass(frozen=True, slots=True)
class CopyDescriptor3(Wire):
    """Source range entry, format 3h: as 1h, and the source's namespace."""

    snsid: int = u32(0)
    slba: int = u64(8)
    nlb: int = u16(16)
    cetype: int = bits(18, 1, 0, 4)
    cev: int = u16(20)
    sopt: int = u16(22)
    elbt: bytes = raw(26, 10)
    elbat: int = u16(36)
    elbatm: int = u16(38)


CopyDescriptor = CopyDescriptor0 | CopyDescriptor1 | CopyDescriptor2 | CopyDescriptor3

COPY_DESCRIPTORS: Final[Mapping[int, type[CopyDescriptor]]] = MappingProxyType(
    {
        CopyFormat.FORMAT_0: CopyDescriptor0,
        CopyFormat.FORMAT_1: CopyDescriptor1,
        CopyFormat.FORMAT_2: CopyDescriptor2,
        CopyFormat.FORMAT_3: CopyDescriptor3,
    }
)


def parse_copy_descriptors(desfmt: int, buf: BytesLike, count: int) -> tuple[CopyDescriptor, ...]:
    """``count`` source ranges of a format. Raises WireError for a format that is not known, or a short ``buf``."""
    cls = COPY_DESCRIPTORS.get(desfmt)
    if cls is None:
        raise WireError(f"Copy descriptor format {desfmt}")
    return parse_many(cls, buf, count)
