"""Log pages (NVMe base 5.1.12), save the discovery log page, which is in ``wire.discovery``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from nvmet_p2p.wire.codec import (
    BytesLike,
    Dword,
    Wire,
    WireError,
    array,
    ascii_text,
    bits,
    flag,
    integers,
    layout,
    u8,
    u16,
    u32,
    u64,
    u128,
)
from nvmet_p2p.wire.identify import NamespaceList


@layout(64)
@dataclass(frozen=True, slots=True)
class ErrorInformationEntry(Wire):
    """LID 01h, one entry. ``status_field`` has the phase tag in bit 0 as in a CQE: see ``for_status``.

    ``error_location``: byte in bits 7:0, bit in 10:8, FFFFh when no field is to blame. ``csi`` and ``opc`` are valid
    when ``lpver`` is 1 (Base 2.1).
    """

    error_count: int = u64(0)
    sqid: int = u16(8)
    cid: int = u16(10)
    status_field: int = u16(12)
    error_location: int = u16(14)
    lba: int = u64(16)
    nsid: int = u32(24)
    vsia: int = u8(28)
    trtype: int = u8(29)
    csi: int = u8(30)
    opc: int = u8(31)
    command_specific: int = u64(32)
    transport_specific: int = u16(40)
    lpver: int = u8(63)

    @property
    def status(self) -> int:
        """``SCT << 8 | SC``."""
        return self.status_field >> 1 & 0x7FF

    @staticmethod
    def for_status(status: int, *, dnr: bool = False, more: bool = False) -> int:
        """``status_field`` for a status of ``SCT << 8 | SC``."""
        return status << 1 | more << 14 | dnr << 15


@layout(512)
@dataclass(frozen=True, slots=True)
class SmartLog(Wire):
    """LID 02h. Temperatures in kelvin; data units are thousands of 512 bytes; ``controller_busy_time`` in minutes."""

    critical_warning: int = u8(0)
    composite_temperature: int = u16(1)
    available_spare: int = u8(3)
    available_spare_threshold: int = u8(4)
    percentage_used: int = u8(5)
    endurance_group_critical_warning: int = u8(6)
    data_units_read: int = u128(32)
    data_units_written: int = u128(48)
    host_read_commands: int = u128(64)
    host_write_commands: int = u128(80)
    controller_busy_time: int = u128(96)
    power_cycles: int = u128(112)
    power_on_hours: int = u128(128)
    unsafe_shutdowns: int = u128(144)
    media_errors: int = u128(160)
    error_log_entries: int = u128(176)
    warning_temperature_time: int = u32(192)
    critical_temperature_time: int = u32(196)
    temperature_sensors: tuple[int, ...] = integers(200, 2, 8)
    tmt1_transitions: int = u32(216)
    tmt2_transitions: int = u32(220)
    tmt1_time: int = u32(224)
    tmt2_time: int = u32(228)


@layout(8)
@dataclass(frozen=True, slots=True)
class FirmwareRevision(Wire):
    """FRSn of the firmware slot log page."""

    revision: str = ascii_text(0, 8)


@layout(512)
@dataclass(frozen=True, slots=True)
class FirmwareSlotLog(Wire):
    """LID 03h: the active slot, the one active after the next reset (0: the same), and what each of seven holds."""

    active_slot: int = bits(0, 1, 0, 3)
    next_slot: int = bits(0, 1, 4, 3)
    frs: tuple[FirmwareRevision, ...] = array(8, FirmwareRevision, 7)


class ChangedNamespaceList(NamespaceList):
    """LID 04h: the namespaces that have changed since the page was last read.

    More than 1024 are told by the single identifier FFFFFFFFh (``overflow``).
    """

    __slots__ = ()

    @classmethod
    def overflow(cls) -> Self:
        """The page that says "too many to name"."""
        return cls((0xFFFFFFFF,))


@layout(4)
@dataclass(frozen=True, slots=True)
class CommandEffects(Dword):
    """What a command may do: one dword of LID 05h. ``csp`` is the command scope, bit 0 namespace, bit 1 controller."""

    csupp: bool = flag(0, 4, 0)
    lbcc: bool = flag(0, 4, 1)
    ncc: bool = flag(0, 4, 2)
    nic: bool = flag(0, 4, 3)
    ccc: bool = flag(0, 4, 4)
    cser: int = bits(0, 4, 14, 2)
    cse: int = bits(0, 4, 16, 3)
    uss: bool = flag(0, 4, 19)
    csp: int = bits(0, 4, 20, 12)


def _table(entries: Mapping[int, Dword]) -> tuple[int, ...]:
    """256 dwords, those that are named and zeros."""
    values = [0] * 256
    for index, entry in entries.items():
        values[index] = entry.value
    return tuple(values)


@layout(4096)
@dataclass(frozen=True, slots=True)
class CommandsSupportedLog(Wire):
    """LID 05h: a ``CommandEffects`` dword for every admin opcode and every I/O opcode."""

    acs: tuple[int, ...] = integers(0, 4, 256)
    iocs: tuple[int, ...] = integers(1024, 4, 256)

    @classmethod
    def of(cls, admin: Mapping[int, CommandEffects], io: Mapping[int, CommandEffects]) -> Self:
        """The page that names these opcodes."""
        return cls(_table(admin), _table(io))


@layout(4)
@dataclass(frozen=True, slots=True)
class LidSupport(Dword):
    """One dword of LID 00h: supported, index offset supported, and a field whose meaning the log page gives."""

    lsupp: bool = flag(0, 4, 0)
    ios: bool = flag(0, 4, 1)
    lidsp: int = bits(0, 4, 16, 16)


@layout(1024)
@dataclass(frozen=True, slots=True)
class SupportedLogPages(Wire):
    """LID 00h: a ``LidSupport`` dword for every log page identifier."""

    lids: tuple[int, ...] = integers(0, 4, 256)

    @classmethod
    def of(cls, pages: Mapping[int, LidSupport]) -> Self:
        """The page that names these log page identifiers."""
        return cls(_table(pages))


@layout(4)
@dataclass(frozen=True, slots=True)
class FeatureEffects(Dword):
    """What setting a feature may do: one dword of LID 12h. ``fsp`` is the scope, bit 0 namespace, bit 1 controller."""

    fsupp: bool = flag(0, 4, 0)
    udcc: bool = flag(0, 4, 1)
    ncc: bool = flag(0, 4, 2)
    nic: bool = flag(0, 4, 3)
    ccc: bool = flag(0, 4, 4)
    uss: bool = flag(0, 4, 19)
    fsp: int = bits(0, 4, 20, 12)


@layout(1024)
@dataclass(frozen=True, slots=True)
class FeatureEffectsLog(Wire):
    """LID 12h: a ``FeatureEffects`` dword for every feature identifier."""

    fids: tuple[int, ...] = integers(0, 4, 256)

    @classmethod
    def of(cls, features: Mapping[int, FeatureEffects]) -> Self:
        """The page that names these features."""
        return cls(_table(features))


@layout(512)
@dataclass(frozen=True, slots=True)
class EnduranceGroupLog(Wire):
    """LID 09h. Data units are billions of bytes."""

    critical_warning: int = u8(0)
    egfeat: int = u8(1)
    available_spare: int = u8(3)
    available_spare_threshold: int = u8(4)
    percentage_used: int = u8(5)
    domainid: int = u16(6)
    endurance_estimate: int = u128(32)
    data_units_read: int = u128(48)
    data_units_written: int = u128(64)
    media_units_written: int = u128(80)
    host_read_commands: int = u128(96)
    host_write_commands: int = u128(112)
    media_errors: int = u128(128)
    error_log_entries: int = u128(144)
    tegcap: int = u128(160)
    uegcap: int = u128(176)


@layout(16)
@dataclass(frozen=True, slots=True)
class AnaLogHeader(Wire):
    """The head of LID 0Ch: change count and number of group descriptors."""

    chgcnt: int = u64(0)
    ngrps: int = u16(8)


@layout(32)
@dataclass(frozen=True, slots=True)
class AnaGroupHeader(Wire):
    """The head of an ANA group descriptor; ``nnv`` namespace identifiers follow."""

    agid: int = u32(0)
    nnv: int = u32(4)
    chgcnt: int = u64(8)
    state: int = bits(16, 1, 0, 4)


@dataclass(frozen=True, slots=True)
class AnaGroup:
    """One ANA group. ``nsids`` is empty where the host asked for groups only (RGO)."""

    agid: int
    state: int
    chgcnt: int = 0
    nsids: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the descriptor."""
        return AnaGroupHeader.SIZE + 4 * len(self.nsids)

    def build(self) -> bytes:
        """The descriptor. Raises WireError when a field has no place."""
        head = AnaGroupHeader(agid=self.agid, nnv=len(self.nsids), chgcnt=self.chgcnt, state=self.state)
        if any(not 0 <= nsid <= 0xFFFFFFFF for nsid in self.nsids):
            raise WireError(f"ANA group {self.agid} has an impossible namespace identifier")
        return head.build() + b"".join(nsid.to_bytes(4, "little") for nsid in self.nsids)


@dataclass(frozen=True, slots=True)
class AnaLog:
    """LID 0Ch: the asymmetric access state of every ANA group."""

    chgcnt: int = 0
    groups: tuple[AnaGroup, ...] = ()

    SIZE: ClassVar[int] = AnaLogHeader.SIZE

    @classmethod
    def parse(cls, buf: BytesLike) -> Self:
        """Read all groups. Raises WireError when ``buf`` ends before them."""
        head = AnaLogHeader.parse(buf)
        position = AnaLogHeader.SIZE
        groups = []
        for _ in range(head.ngrps):
            group = AnaGroupHeader.parse(buf[position : position + AnaGroupHeader.SIZE])
            start = position + AnaGroupHeader.SIZE
            position = start + 4 * group.nnv
            if position > len(buf):
                raise WireError(f"ANA group {group.agid} has {group.nnv} namespaces, the page ends before them")
            nsids = tuple(int.from_bytes(buf[at : at + 4], "little") for at in range(start, position, 4))
            groups.append(AnaGroup(group.agid, group.state, group.chgcnt, nsids))
        return cls(head.chgcnt, tuple(groups))

    def build(self) -> bytes:
        """The whole page. Raises WireError when a field has no place."""
        head = AnaLogHeader(self.chgcnt, len(self.groups))
        return head.build() + b"".join(group.build() for group in self.groups)
