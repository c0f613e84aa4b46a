"""What the configuration space of a function says about Access Control Services and its place in PCI Express.

Sources: PCI Express base specification, sections 7.5.3 (PCI Express capability), 7.7.11 (ACS extended capability);
kernel: ``pci_find_ext_capability``, ``pci_bridge_has_acs_redir`` in drivers/pci/p2pdma.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from nvmet_p2p.p2p.sysfs import ConfigSpace

STATUS_OFFSET: Final = 0x06
STATUS_CAPABILITIES: Final = 0x10
CAPABILITIES_OFFSET: Final = 0x34
CAPABILITY_PCIE: Final = 0x10
EXTENDED_OFFSET: Final = 0x100
EXTENDED_ACS: Final = 0x000D
CONFIG_BYTES: Final = 4096


class PortType(IntEnum):
    """Device/Port Type, bits 7:4 of the PCI Express Capabilities register."""

    ENDPOINT = 0x0
    LEGACY_ENDPOINT = 0x1
    ROOT_PORT = 0x4
    UPSTREAM = 0x5
    DOWNSTREAM = 0x6
    TO_PCI_BRIDGE = 0x7
    FROM_PCI_BRIDGE = 0x8
    ROOT_COMPLEX_ENDPOINT = 0x9
    EVENT_COLLECTOR = 0xA


class AcsControl(IntFlag):
    """Bits of the ACS Control register."""

    SOURCE_VALIDATION = 0x01
    TRANSLATION_BLOCKING = 0x02
    REQUEST_REDIRECT = 0x04
    COMPLETION_REDIRECT = 0x08
    UPSTREAM_FORWARDING = 0x10
    EGRESS_CONTROL = 0x20
    DIRECT_TRANSLATED = 0x40


REDIRECTS: Final = AcsControl.REQUEST_REDIRECT | AcsControl.COMPLETION_REDIRECT | AcsControl.EGRESS_CONTROL
SHORT_NAMES: Final = {
    AcsControl.SOURCE_VALIDATION: "SrcValid",
    AcsControl.TRANSLATION_BLOCKING: "TransBlk",
    AcsControl.REQUEST_REDIRECT: "ReqRedir",
    AcsControl.COMPLETION_REDIRECT: "CmpltRedir",
    AcsControl.UPSTREAM_FORWARDING: "UpstreamFwd",
    AcsControl.EGRESS_CONTROL: "EgressCtrl",
    AcsControl.DIRECT_TRANSLATED: "DirectTrans",
}


@dataclass(frozen=True, slots=True)
class Acs:
    """An ACS capability: its Control register, and the Capability register beside it (which bits it could set)."""

    capability: int
    control: int

    @property
    def redirects(self) -> bool:
        """Would the kernel take peer-to-peer requests here to be redirected upstream?"""
        return bool(self.control & REDIRECTS)

    def names(self) -> tuple[str, ...]:
        """The control bits that are set, as lspci names them."""
        return tuple(name for bit, name in SHORT_NAMES.items() if self.control & bit)


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """What is wanted from configuration space. ``known`` is false where only the first 64 bytes could be read."""

    known: bool
    port_type: PortType | None
    acs: Acs | None


def read_facts(config: ConfigSpace | None) -> ConfigFacts:
    """Port type and ACS of a function; ``None`` stands for a configuration space that cannot be opened."""
    if config is None or not config.complete:
        return ConfigFacts(False, None, None)
    return ConfigFacts(True, _port_type(config), _acs(config))


def _port_type(config: ConfigSpace) -> PortType | None:
    status = config.u16(STATUS_OFFSET)
    if status is None or not status & STATUS_CAPABILITIES:
        return None
    first = config.read(CAPABILITIES_OFFSET, 1)
    position = first[0] & 0xFC if first else 0
    for _ in range(48):  # 192 bytes of capabilities of 4 bytes each: more would be a loop
        if position < 0x40:
            return None
        header = config.u32(position)
        if header is None or header & 0xFF == 0xFF:
            return None
        if header & 0xFF == CAPABILITY_PCIE:
            try:
                return PortType(header >> 20 & 0xF)
            except ValueError:
                return None
        position = header >> 8 & 0xFC
    return None


def _acs(config: ConfigSpace) -> Acs | None:
    position = EXTENDED_OFFSET
    for _ in range((CONFIG_BYTES - EXTENDED_OFFSET) // 8):
        header = config.u32(position) if position + 4 <= config.size else None
        if header is None or header in (0, 0xFFFFFFFF):
            return None
        if header & 0xFFFF == EXTENDED_ACS:
            registers = config.u32(position + 4)
            return None if registers is None else Acs(registers & 0xFFFF, registers >> 16)
        position = header >> 20 & 0xFFC
        if position < EXTENDED_OFFSET:
            return None
    return None
