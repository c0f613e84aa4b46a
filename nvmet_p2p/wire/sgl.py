"""SGL descriptors (NVMe base 4.3.2; NVMe/TCP 3.2; NVMe/RDMA 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Self

from nvmet_p2p.wire.codec import BytesLike, Wire, WireError, layout, u64
from nvmet_p2p.wire.spec import SglSubtype, SglType

_LENGTH_MAX: Final = {True: 0xFFFFFF, False: 0xFFFFFFFF}  # by "is keyed"


@layout(16, hot=True)
@dataclass(frozen=True, slots=True)
class SglWords(Wire):
    """The two quadwords of a descriptor; what the second one means depends on its top byte."""

    address: int = u64(0)
    rest: int = u64(8)


@dataclass(frozen=True, slots=True)
class SglDescriptor:
    """One descriptor. ``length`` is in bytes; ``key`` is there in keyed descriptors only.

    For an offset descriptor (``SglType.DATA_BLOCK``, ``SglSubtype.OFFSET``) ``address`` is the offset in the capsule.
    Every 16 bytes parse: whether type and subtype are allowed is the transport's question.
    """

    type: int
    subtype: int
    address: int = 0
    length: int = 0
    key: int = 0

    SIZE: ClassVar[int] = 16

    @classmethod
    def parse(cls, buf: BytesLike) -> Self:
        """Read 16 bytes. Raises WireError when ``buf`` is shorter."""
        words = SglWords.parse(buf)
        address, rest = words.address, words.rest
        kind = rest >> 60
        if kind == SglType.KEYED_DATA_BLOCK:
            return cls(kind, rest >> 56 & 0xF, address, rest & 0xFFFFFF, rest >> 24 & 0xFFFFFFFF)
        return cls(kind, rest >> 56 & 0xF, address, rest & 0xFFFFFFFF)

    def build(self) -> bytes:
        """The 16 bytes. Raises WireError when a field has no place: a key without a keyed type, a length too great."""
        keyed = self.type == SglType.KEYED_DATA_BLOCK
        if not 0 <= self.length <= _LENGTH_MAX[keyed]:
            raise WireError(f"length {self.length} does not fit in the descriptor")
        if not 0 <= self.key <= (0xFFFFFFFF if keyed else 0):
            raise WireError(f"key {self.key:#x} does not fit in the descriptor")
        if self.type >> 4 or self.subtype >> 4 or self.address >> 64:
            raise WireError(f"{self} does not fit in 16 bytes")
        return SglWords(self.address, self.type << 60 | self.subtype << 56 | self.key << 24 | self.length).build()

    @classmethod
    def in_capsule(cls, length: int, offset: int = 0) -> Self:
        """``length`` bytes of in-capsule data, ``offset`` bytes into it."""
        return cls(SglType.DATA_BLOCK, SglSubtype.OFFSET, offset, length)

    @classmethod
    def transport(cls, length: int) -> Self:
        """``length`` bytes that the transport moves (NVMe/TCP: H2CData, C2HData)."""
        return cls(SglType.TRANSPORT_DATA_BLOCK, SglSubtype.TRANSPORT, 0, length)

    @classmethod
    def keyed(cls, address: int, length: int, key: int, *, invalidate: bool = False) -> Self:
        """``length`` bytes of remote memory; ``invalidate`` asks for Send with Invalidate of ``key``."""
        subtype = SglSubtype.INVALIDATE_KEY if invalidate else SglSubtype.ADDRESS
        return cls(SglType.KEYED_DATA_BLOCK, subtype, address, length, key)
