"""Features: what dword 11 of Set Features, dword 0 of Get Features and their data hold (NVMe base 5.1.25)."""

from __future__ import annotations

from dataclasses import dataclass

from nvmet_p2p.wire.codec import Dword, Wire, bits, flag, layout, u8, u16, u32, u48


@layout(4)
@dataclass(frozen=True, slots=True)
class Arbitration(Dword):
    """01h. ``ab`` is log2 of the burst, 7 for no limit; weights are 0's based."""

    ab: int = bits(0, 1, 0, 3)
    lpw: int = u8(1)
    mpw: int = u8(2)
    hpw: int = u8(3)


@layout(4)
@dataclass(frozen=True, slots=True)
class PowerManagement(Dword):
    """02h."""

    ps: int = bits(0, 4, 0, 5)
    wh: int = bits(0, 4, 5, 3)


@layout(4)
@dataclass(frozen=True, slots=True)
class TemperatureThreshold(Dword):
    """04h. ``tmpth`` in kelvin; ``thsel`` 0 over, 1 under temperature."""

    tmpth: int = bits(0, 4, 0, 16)
    tmpsel: int = bits(0, 4, 16, 4)
    thsel: int = bits(0, 4, 20, 2)
    tmpthh: int = bits(0, 4, 22, 3)


@layout(4)
@dataclass(frozen=True, slots=True)
class ErrorRecovery(Dword):
    """05h. ``tler`` in units of 100 ms."""

    tler: int = bits(0, 4, 0, 16)
    dulbe: bool = flag(0, 4, 16)


@layout(4)
@dataclass(frozen=True, slots=True)
class VolatileWriteCache(Dword):
    """06h."""

    wce: bool = flag(0, 4, 0)


@layout(4)
@dataclass(frozen=True, slots=True)
class NumberOfQueues(Dword):
    """07h, both 0's based: asked for in dword 11, allocated in dword 0."""

    nsq: int = u16(0)
    ncq: int = u16(2)


@layout(4)
@dataclass(frozen=True, slots=True)
class InterruptCoalescing(Dword):
    """08h."""

    thr: int = u8(0)
    time: int = u8(1)


@layout(4)
@dataclass(frozen=True, slots=True)
class InterruptVectorConfiguration(Dword):
    """09h."""

    iv: int = bits(0, 4, 0, 16)
    cd: bool = flag(0, 4, 16)


@layout(4)
@dataclass(frozen=True, slots=True)
class WriteAtomicity(Dword):
    """0Ah."""

    dn: bool = flag(0, 4, 0)


@layout(4)
@dataclass(frozen=True, slots=True)
class AsyncEventConfiguration(Dword):
    """0Bh. ``smart`` is a mask of ``SmartWarning``; the others enable one notice each (``AsyncEventBit``)."""

    smart: int = bits(0, 4, 0, 8)
    nsan: bool = flag(0, 4, 8)
    fwan: bool = flag(0, 4, 9)
    tln: bool = flag(0, 4, 10)
    anacn: bool = flag(0, 4, 11)
    plealcn: bool = flag(0, 4, 12)
    lbasn: bool = flag(0, 4, 13)
    egealcn: bool = flag(0, 4, 14)
    nnsshdn: bool = flag(0, 4, 15)
    zdcn: bool = flag(0, 4, 27)
    dlpcn: bool = flag(0, 4, 31)


@layout(4)
@dataclass(frozen=True, slots=True)
class KeepAliveTimer(Dword):
    """0Fh, in milliseconds."""

    kato: int = u32(0)


@layout(4)
@dataclass(frozen=True, slots=True)
class IoCommandSetProfile(Dword):
    """19h: an index into the vectors of Identify CNS 1Ch."""

    iocci: int = bits(0, 4, 0, 9)


@layout(4)
@dataclass(frozen=True, slots=True)
class HostIdentifier(Dword):
    """81h: with ``exhid`` the data are 16 bytes, else 8. Fabrics allows 16 only."""

    exhid: bool = flag(0, 4, 0)


@layout(4)
@dataclass(frozen=True, slots=True)
class ReservationNotificationMask(Dword):
    """82h: a set bit keeps that notice away."""

    regpre: bool = flag(0, 4, 1)
    resrel: bool = flag(0, 4, 2)
    respre: bool = flag(0, 4, 3)


@layout(4)
@dataclass(frozen=True, slots=True)
class ReservationPersistence(Dword):
    """83h."""

    ptpl: bool = flag(0, 4, 0)


@layout(4)
@dataclass(frozen=True, slots=True)
class NamespaceWriteProtection(Dword):
    """84h; ``wps`` see ``WriteProtectState``."""

    wps: int = bits(0, 4, 0, 3)


@layout(8)
@dataclass(frozen=True, slots=True)
class Timestamp(Wire):
    """0Eh, data: milliseconds since 1970; ``origin`` 0 since reset, 1 set by the host."""

    timestamp: int = u48(0)
    synch: bool = flag(6, 1, 0)
    origin: int = bits(6, 1, 1, 3)


@layout(512)
@dataclass(frozen=True, slots=True)
class HostBehaviorSupport(Wire):
    """16h, data. ``cdfe``: bits 2 to 4 enable Copy descriptor formats 2h to 4h."""

    acre: int = u8(0)
    etdas: int = u8(1)
    lbafee: int = u8(2)
    hdisns: int = u8(3)
    cdfe: int = u16(4)


@layout(4)
@dataclass(frozen=True, slots=True)
class SupportedCapabilities(Dword):
    """Dword 0 of Get Features with SEL 3."""

    saveable: bool = flag(0, 4, 0)
    ns_specific: bool = flag(0, 4, 1)
    changeable: bool = flag(0, 4, 2)
