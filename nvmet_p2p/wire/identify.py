"""Identify data structures (NVMe base 5.1.13; NVM Command Set 4.1.5).

Fields added by Base 2.1 and later are here where nvme-cli names them; fields of a few bits inside a byte are left as
the byte that the specification names (``oncs``, ``sqes``, ``flbas`` ...).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from nvmet_p2p.wire.codec import (
    BytesLike,
    Wire,
    WireError,
    array,
    ascii_text,
    bits,
    flag,
    integers,
    layout,
    raw,
    u8,
    u16,
    u24,
    u32,
    u64,
    u128,
    utf8_text,
)
from nvmet_p2p.wire.spec import NsIdType

IDENTIFY_BYTES: Final = 4096


@layout(32)
@dataclass(frozen=True, slots=True)
class PowerStateDescriptor(Wire):
    """One power state. ``mp`` in units given by ``mxps``; latencies in microseconds."""

    mp: int = u16(0)
    mxps: bool = flag(3, 1, 0)
    nops: bool = flag(3, 1, 1)
    enlat: int = u32(4)
    exlat: int = u32(8)
    rrt: int = bits(12, 1, 0, 5)
    rrl: int = bits(13, 1, 0, 5)
    rwt: int = bits(14, 1, 0, 5)
    rwl: int = bits(15, 1, 0, 5)
    idlp: int = u16(16)
    ips: int = bits(18, 1, 6, 2)
    actp: int = u16(20)
    apw: int = bits(22, 1, 0, 3)
    aps: int = bits(22, 1, 6, 2)


@layout(IDENTIFY_BYTES)
@dataclass(frozen=True, slots=True)
class IdentifyController(Wire):
    """CNS 01h."""

    vid: int = u16(0)
    ssvid: int = u16(2)
    sn: str = ascii_text(4, 20)
    mn: str = ascii_text(24, 40)
    fr: str = ascii_text(64, 8)
    rab: int = u8(72)
    ieee: int = u24(73)
    cmic: int = u8(76)
    mdts: int = u8(77)
    cntlid: int = u16(78)
    ver: int = u32(80)
    rtd3r: int = u32(84)
    rtd3e: int = u32(88)
    oaes: int = u32(92)
    ctratt: int = u32(96)
    rrls: int = u16(100)
    bpcap: int = u8(102)
    nssl: int = u32(104)
    plsi: int = u8(110)
    cntrltype: int = u8(111)
    fguid: bytes = raw(112, 16)
    crdt1: int = u16(128)
    crdt2: int = u16(130)
    crdt3: int = u16(132)
    crcap: int = u8(134)
    ciu: int = u8(135)
    cirn: bytes = raw(136, 8)
    nvmsr: int = u8(253)
    vwci: int = u8(254)
    mec: int = u8(255)
    oacs: int = u16(256)
    acl: int = u8(258)
    aerl: int = u8(259)
    frmw: int = u8(260)
    lpa: int = u8(261)
    elpe: int = u8(262)
    npss: int = u8(263)
    avscc: int = u8(264)
    apsta: int = u8(265)
    wctemp: int = u16(266)
    cctemp: int = u16(268)
    mtfa: int = u16(270)
    hmpre: int = u32(272)
    hmmin: int = u32(276)
    tnvmcap: int = u128(280)
    unvmcap: int = u128(296)
    rpmbs: int = u32(312)
    edstt: int = u16(316)
    dsto: int = u8(318)
    fwug: int = u8(319)
    kas: int = u16(320)
    hctma: int = u16(322)
    mntmt: int = u16(324)
    mxtmt: int = u16(326)
    sanicap: int = u32(328)
    hmminds: int = u32(332)
    hmmaxd: int = u16(336)
    nsetidmax: int = u16(338)
    endgidmax: int = u16(340)
    anatt: int = u8(342)
    anacap: int = u8(343)
    anagrpmax: int = u32(344)
    nanagrpid: int = u32(348)
    pels: int = u32(352)
    domainid: int = u16(356)
    kpioc: int = u8(358)
    mptfawr: int = u16(360)
    megcap: int = u128(368)
    tmpthha: int = u8(384)
    cqt: int = u16(386)
    sqes: int = u8(512)
    cqes: int = u8(513)
    maxcmd: int = u16(514)
    nn: int = u32(516)
    oncs: int = u16(520)
    fuses: int = u16(522)
    fna: int = u8(524)
    vwc: int = u8(525)
    awun: int = u16(526)
    awupf: int = u16(528)
    icsvscc: int = u8(530)
    nwpc: int = u8(531)
    acwu: int = u16(532)
    ocfs: int = u16(534)
    sgls: int = u32(536)
    mnan: int = u32(540)
    maxdna: int = u128(544)
    maxcna: int = u32(560)
    oaqd: int = u32(564)
    subnqn: str = utf8_text(768, 256)
    ioccsz: int = u32(1792)
    iorcsz: int = u32(1796)
    icdoff: int = u16(1800)
    fcatt: int = u8(1802)
    msdbd: int = u8(1803)
    ofcs: int = u16(1804)
    dctype: int = u8(1806)
    psd: tuple[PowerStateDescriptor, ...] = array(2048, PowerStateDescriptor, 32)


@layout(4)
@dataclass(frozen=True, slots=True)
class LbaFormat(Wire):
    """One LBA format: metadata bytes, log2 of the data bytes, relative performance."""

    ms: int = u16(0)
    lbads: int = u8(2)
    rp: int = bits(3, 1, 0, 2)


@layout(IDENTIFY_BYTES)
@dataclass(frozen=True, slots=True)
class IdentifyNamespace(Wire):
    """CNS 00h and 11h (NVM Command Set). ``nguid`` and ``eui64`` are big endian by definition and kept as bytes."""

    nsze: int = u64(0)
    ncap: int = u64(8)
    nuse: int = u64(16)
    nsfeat: int = u8(24)
    nlbaf: int = u8(25)
    flbas: int = u8(26)
    mc: int = u8(27)
    dpc: int = u8(28)
    dps: int = u8(29)
    nmic: int = u8(30)
    rescap: int = u8(31)
    fpi: int = u8(32)
    dlfeat: int = u8(33)
    nawun: int = u16(34)
    nawupf: int = u16(36)
    nacwu: int = u16(38)
    nabsn: int = u16(40)
    nabo: int = u16(42)
    nabspf: int = u16(44)
    noiob: int = u16(46)
    nvmcap: int = u128(48)
    npwg: int = u16(64)
    npwa: int = u16(66)
    npdg: int = u16(68)
    npda: int = u16(70)
    nows: int = u16(72)
    mssrl: int = u16(74)
    mcl: int = u32(76)
    msrc: int = u8(80)
    kpios: int = u8(81)
    nulbaf: int = u8(82)
    kpiodaag: int = u32(84)
    anagrpid: int = u32(92)
    nsattr: int = u8(99)
    nvmsetid: int = u16(100)
    endgid: int = u16(102)
    nguid: bytes = raw(104, 16)
    eui64: bytes = raw(120, 8)
    lbaf: tuple[LbaFormat, ...] = array(128, LbaFormat, 64)


@layout(IDENTIFY_BYTES)
@dataclass(frozen=True, slots=True)
class IdentifyNamespaceIndependent(Wire):
    """CNS 08h: what holds for every command set."""

    nsfeat: int = u8(0)
    nmic: int = u8(1)
    rescap: int = u8(2)
    fpi: int = u8(3)
    anagrpid: int = u32(4)
    nsattr: int = u8(8)
    nvmsetid: int = u16(10)
    endgid: int = u16(12)
    nstat: int = u8(14)
    kpios: int = u8(15)
    maxkt: int = u16(16)
    rgrpid: int = u32(20)


@layout(IDENTIFY_BYTES)
@dataclass(frozen=True, slots=True)
class IdentifyNvmNamespace(Wire):
    """CNS 05h, CSI 00h. ``elbaf``: one dword for each LBA format."""

    lbstm: int = u64(0)
    pic: int = u8(8)
    pifa: int = u8(9)
    elbaf: tuple[int, ...] = integers(12, 4, 64)
    npdgl: int = u32(268)
    nprg: int = u32(272)
    npra: int = u32(276)
    nors: int = u32(280)
    npdal: int = u32(284)
    lbapss: int = u32(288)
    tlbaag: int = u32(292)


@layout(IDENTIFY_BYTES)
@dataclass(frozen=True, slots=True)
class IdentifyNvmController(Wire):
    """CNS 06h, CSI 00h."""

    vsl: int = u8(0)
    wzsl: int = u8(1)
    wusl: int = u8(2)
    dmrl: int = u8(3)
    dmrsl: int = u32(4)
    dmsl: int = u64(8)
    kpiocap: int = u8(16)
    wzdsl: int = u8(17)
    aocs: int = u16(18)
    ver: int = u32(20)
    lbamqf: int = u8(24)


@layout(IDENTIFY_BYTES)
@dataclass(frozen=True, slots=True)
class IoCommandSetVector(Wire):
    """CNS 1Ch: up to 512 combinations; bit n of one stands for the command set with CSI n."""

    vectors: tuple[int, ...] = integers(0, 8, 512)


@dataclass(frozen=True, slots=True)
class NamespaceList:
    """Up to 1024 namespace identifiers (CNS 02h, 07h, 10h; log page 04h), ended by 0."""

    nsids: tuple[int, ...] = ()

    SIZE: ClassVar[int] = IDENTIFY_BYTES
    CAPACITY: ClassVar[int] = 1024

    @classmethod
    def parse(cls, buf: BytesLike) -> Self:
        """Read up to the first 0. Raises WireError when ``buf`` is shorter than 4096 bytes."""
        values = _integers(buf, cls.SIZE, f"<{cls.CAPACITY}I", cls.__name__)
        end = values.index(0) if 0 in values else cls.CAPACITY
        return cls(values[:end])

    def build(self) -> bytes:
        """The 4096 bytes. Raises WireError for more than 1024 identifiers, or one that is 0 or too large."""
        if len(self.nsids) > self.CAPACITY or any(not 0 < nsid <= 0xFFFFFFFF for nsid in self.nsids):
            raise WireError(f"not a list of namespaces: {len(self.nsids)} entries")
        return struct.pack(f"<{len(self.nsids)}I", *self.nsids).ljust(self.SIZE, b"\0")


@dataclass(frozen=True, slots=True)
class ControllerList:
    """Up to 2047 controller identifiers (CNS 12h, 13h), counted."""

    cntlids: tuple[int, ...] = ()

    SIZE: ClassVar[int] = IDENTIFY_BYTES
    CAPACITY: ClassVar[int] = 2047

    @classmethod
    def parse(cls, buf: BytesLike) -> Self:
        """Read as many as are counted. Raises WireError when ``buf`` is short or the count impossible."""
        count, *values = _integers(buf, cls.SIZE, f"<{cls.CAPACITY + 1}H", cls.__name__)
        if count > cls.CAPACITY:
            raise WireError(f"a controller list of {count} entries")
        return cls(tuple(values[:count]))

    def build(self) -> bytes:
        """The 4096 bytes. Raises WireError for more than 2047 identifiers, or one that is too large."""
        if len(self.cntlids) > self.CAPACITY or any(not 0 <= cntlid <= 0xFFFF for cntlid in self.cntlids):
            raise WireError(f"not a list of controllers: {len(self.cntlids)} entries")
        count = len(self.cntlids)
        return struct.pack(f"<{count + 1}H", count, *self.cntlids).ljust(self.SIZE, b"\0")


def _integers(buf: BytesLike, size: int, code: str, name: str) -> tuple[int, ...]:
    if len(buf) < size:
        raise WireError(f"{name} needs {size} bytes, {len(buf)} are there")
    return struct.unpack_from(code, buf)


@layout(4)
@dataclass(frozen=True, slots=True)
class NsIdDescriptorHeader(Wire):
    """What stands before each identifier: its type and its length in bytes."""

    nidt: int = u8(0)
    nidl: int = u8(1)


@dataclass(frozen=True, slots=True)
class NsIdDescriptor:
    """One identifier of a namespace; ``nid`` as it is on the wire (EUI64, NGUID and UUID are big endian)."""

    nidt: int
    nid: bytes


@dataclass(frozen=True, slots=True)
class NsIdDescriptorList:
    """CNS 03h: the identifiers of a namespace, ended by a type of 0."""

    descriptors: tuple[NsIdDescriptor, ...] = ()

    SIZE: ClassVar[int] = IDENTIFY_BYTES

    @classmethod
    def of(
        cls,
        *,
        eui64: bytes | None = None,
        nguid: bytes | None = None,
        uuid: bytes | None = None,
        csi: int | None = None,
    ) -> Self:
        """The list of the identifiers that are given."""
        given: Sequence[tuple[NsIdType, bytes | None]] = (
            (NsIdType.EUI64, eui64),
            (NsIdType.NGUID, nguid),
            (NsIdType.UUID, uuid),
            (NsIdType.CSI, None if csi is None else bytes([csi])),
        )
        return cls(tuple(NsIdDescriptor(nidt, nid) for nidt, nid in given if nid is not None))

    def get(self, nidt: int) -> bytes | None:
        """The first identifier of that type."""
        return next((item.nid for item in self.descriptors if item.nidt == nidt), None)

    @classmethod
    def parse(cls, buf: BytesLike) -> Self:
        """Read up to type 0 or the end. Raises WireError when ``buf`` is short or a length runs beyond its end."""
        if len(buf) < cls.SIZE:
            raise WireError(f"NsIdDescriptorList needs {cls.SIZE} bytes, {len(buf)} are there")
        found = []
        position = 0
        while position + NsIdDescriptorHeader.SIZE <= cls.SIZE:
            head = NsIdDescriptorHeader.parse(buf[position : position + NsIdDescriptorHeader.SIZE])
            if head.nidt == 0:
                break
            start = position + NsIdDescriptorHeader.SIZE
            position = start + head.nidl
            if position > cls.SIZE:
                raise WireError(f"a namespace identifier of {head.nidl} bytes ends beyond the list")
            found.append(NsIdDescriptor(head.nidt, bytes(buf[start:position])))
        return cls(tuple(found))

    def build(self) -> bytes:
        """The 4096 bytes. Raises WireError when they do not suffice or a descriptor has type 0."""
        if any(item.nidt == 0 for item in self.descriptors):
            raise WireError("a namespace identifier of type 0 would end the list")
        data = b"".join(NsIdDescriptorHeader(item.nidt, len(item.nid)).build() + item.nid for item in self.descriptors)
        if len(data) > self.SIZE:
            raise WireError(f"{len(data)} bytes of namespace identifiers")
        return data.ljust(self.SIZE, b"\0")
