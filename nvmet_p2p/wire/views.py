"""Commands as views of dwords 10 to 15 of an SQE: ``View.of(sqe)`` reads them, ``view.dwords()`` gives them back."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Self, TypedDict

from nvmet_p2p.wire.codec import Wire, bits, flag, layout, u8, u16, u32, u64
from nvmet_p2p.wire.sqe import Sqe

_DWORDS: Final = struct.Struct("<6I")
VIEW_BYTES: Final = 24


class CommandDwords(TypedDict):
    """Keyword arguments of ``Sqe``."""

    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int


class CommandView(Wire):
    """Base of all views. Offsets count from dword 10, byte 40 of the SQE."""

    __slots__ = ()

    @classmethod
    def of(cls, sqe: Sqe) -> Self:
        """Read the view from a command; the opcode is not checked."""
        return cls.parse(_DWORDS.pack(sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15))

    def dwords(self) -> CommandDwords:
        """``cdw10`` to ``cdw15`` as keyword arguments of ``Sqe``."""
        cdw10, cdw11, cdw12, cdw13, cdw14, cdw15 = _DWORDS.unpack(self.build())
        return CommandDwords(cdw10=cdw10, cdw11=cdw11, cdw12=cdw12, cdw13=cdw13, cdw14=cdw14, cdw15=cdw15)


@layout(24)
@dataclass(frozen=True, slots=True)
class IdentifyCommand(CommandView):
    """Identify (base 5.1.13)."""

    cns: int = u8(0)
    cntid: int = u16(2)
    cnssid: int = u16(4)
    csi: int = u8(7)
    uidx: int = bits(16, 1, 0, 7)


@layout(24)
@dataclass(frozen=True, slots=True)
class GetLogPageCommand(CommandView):
    """Get Log Page (base 5.1.12). ``numd`` is 0's based; ``lpo`` in bytes, or an index with ``ot``."""

    lid: int = u8(0)
    lsp: int = bits(1, 1, 0, 7)
    rae: bool = flag(1, 1, 7)
    numdl: int = u16(2)
    numdu: int = u16(4)
    lsi: int = u16(6)
    lpo: int = u64(8)
    uidx: int = bits(16, 4, 0, 7)
    ot: bool = flag(16, 4, 23)
    csi: int = bits(16, 4, 24, 8)

    @property
    def numd(self) -> int:
        """Number of dwords, 0's based."""
        return self.numdu << 16 | self.numdl

    @property
    def length(self) -> int:
        """Bytes that the host asks for."""
        return (self.numd + 1) * 4


@layout(24)
@dataclass(frozen=True, slots=True)
class SetFeaturesCommand(CommandView):
    """Set Features (base 5.1.25)."""

    fid: int = bits(0, 4, 0, 8)
    sv: bool = flag(0, 4, 31)
    cdw11: int = u32(4)
    cdw12: int = u32(8)
    cdw13: int = u32(12)
    uidx: int = bits(16, 1, 0, 7)
    cdw15: int = u32(20)


@layout(24)
@dataclass(frozen=True, slots=True)
class GetFeaturesCommand(CommandView):
    """Get Features (base 5.1.11)."""

    fid: int = bits(0, 4, 0, 8)
    sel: int = bits(0, 4, 8, 3)
    cdw11: int = u32(4)
    uidx: int = bits(16, 1, 0, 7)


@layout(24)
@dataclass(frozen=True, slots=True)
class AbortCommand(CommandView):
    """Abort (base 5.1.1)."""

    sqid: int = u16(0)
    cid: int = u16(2)


@layout(24, hot=True)
@dataclass(frozen=True, slots=True)
class ReadWriteCommand(CommandView):
    """Read, Write, Compare, Write Zeroes, Verify, Write Uncorrectable (NVM 3.3). ``nlb`` is 0's based.

    ``deac`` (Write Zeroes) and bit 25 of the others are the same bit.
    """

    slba: int = u64(0)
    nlb: int = bits(8, 4, 0, 16)
    cetype: int = bits(8, 4, 16, 4)
    dtype: int = bits(8, 4, 20, 4)
    stc: bool = flag(8, 4, 24)
    deac: bool = flag(8, 4, 25)
    prinfo: int = bits(8, 4, 26, 4)
    fua: bool = flag(8, 4, 30)
    lr: bool = flag(8, 4, 31)
    dsm: int = u8(12)
    dspec: int = u16(14)
    lbrt: int = u32(16)
    lbat: int = u16(20)
    lbatm: int = u16(22)

    @property
    def blocks(self) -> int:
        """Number of logical blocks."""
        return self.nlb + 1


@layout(24)
@dataclass(frozen=True, slots=True)
class DsmCommand(CommandView):
    """Dataset Management (NVM 3.2.4). ``nr`` is 0's based; ``attributes`` see ``DsmAttribute``."""

    nr: int = u8(0)
    attributes: int = u32(4)


@layout(24)
@dataclass(frozen=True, slots=True)
class CopyCommand(CommandView):
    """Copy (NVM 3.2.3). ``nr`` is 0's based; ``desfmt`` see ``CopyFormat``."""

    sdlba: int = u64(0)
    nr: int = bits(8, 4, 0, 8)
    desfmt: int = bits(8, 4, 8, 4)
    prinfor: int = bits(8, 4, 12, 4)
    cetype: int = bits(8, 4, 16, 4)
    dtype: int = bits(8, 4, 20, 4)
    stcw: bool = flag(8, 4, 24)
    stcr: bool = flag(8, 4, 25)
    prinfow: int = bits(8, 4, 26, 4)
    fua: bool = flag(8, 4, 30)
    lr: bool = flag(8, 4, 31)
    dspec: int = u16(14)
    lbrt: int = u32(16)
    lbat: int = u16(20)
    lbatm: int = u16(22)
