"""The discovery service: what a host is told about subsystems and ports (NVMe base 3.1.3.3, 5.1.12.3.1).

A host sees the subsystems whose allow-list it is on, one entry for each of their listeners that passes the filter; the
discovery subsystem itself, with the port that it was reached through first; and the referrals.

A listener on all addresses of a family is told by the address by which the host came, as nvmet does. A host that came
by the other family is not told of it: there is no address that we could name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from nvmet_p2p import limits
from nvmet_p2p.target import access
from nvmet_p2p.target.config import ListenAddress, ListenerConfig, SubsystemConfig, TargetConfig
from nvmet_p2p.target.pages import Segments
from nvmet_p2p.target.validate import DISCOVERY_NQN
from nvmet_p2p.wire.discovery import DiscoveryEntry, DiscoveryHeader, RdmaTsas, TcpTsas
from nvmet_p2p.wire.spec import (
    Adrfam,
    DiscoveryEflag,
    Subtype,
    TcpSecType,
    TreqFlag,
    TreqSecureChannel,
    Trtype,
)

if TYPE_CHECKING:
    from nvmet_p2p.target.controller import Controller

LSP_EXTENDED: Final = 0x1  # EXTDLPE
LSP_PORT_LOCAL: Final = 0x2  # PLEO
DLPF_EXTENDED: Final = 0x1
DLPF_PORT_LOCAL: Final = 0x2
EXTENDED_ENTRY_BYTES: Final = DiscoveryEntry.SIZE + 8  # TEL, NUMEXAT and 2 reserved bytes; no attributes
_ADRFAM: Final = {"IPv4": Adrfam.IPV4, "IPv6": Adrfam.IPV6}
_ALL_ADDRESSES: Final = frozenset({"0.0.0.0", "::"})
_OWN_FLAGS: Final = DiscoveryEflag.DUPLICATE_RETURNED_INFORMATION | DiscoveryEflag.EXPLICIT_PERSISTENT_CONNECTION


@dataclass(frozen=True, slots=True)
class Record:
    """What one entry says, before it is bytes."""

    address: ListenAddress
    subtype: Subtype
    subnqn: str
    secure_channel: bool
    local: bool  # a port of this target, not a referral
    traddr: str  # that of ``address`` unless it stands for all


def records(controller: Controller) -> Iterator[Record]:
    """The entries that the controller's host is to see, in the order of the log page."""
    config, here = controller.target.config, controller.listener
    own = config.subsystems.get(DISCOVERY_NQN)
    here_traddr = _traddr(here, controller)
    yield Record(here, Subtype.CURRENT_DISCOVERY, DISCOVERY_NQN, _is_secure(own, here), True, here_traddr)
    for listener, traddr in _ports(own, controller) if own is not None else ():
        if listener.address != here:
            secure = listener.secure_channel
            yield Record(listener.address, Subtype.CURRENT_DISCOVERY, DISCOVERY_NQN, secure, True, traddr)
    for subsystem in config.subsystems.values():
        if subsystem.subtype == "Discovery" or not access.host_allowed(subsystem, controller.hostnqn):
            continue
        for listener, traddr in _ports(subsystem, controller):
            yield Record(listener.address, Subtype.NVM, subsystem.nqn, listener.secure_channel, True, traddr)
    for referral in config.referrals:
        if referral.allow_any_host:
            address, secure = referral.address, referral.secure_channel
            yield Record(address, Subtype.REFERRAL, referral.subnqn, secure, False, address.traddr)


def _traddr(address: ListenAddress, controller: Controller) -> str:
    """Where the controller's host finds a listener; empty if that cannot be said."""
    if address.traddr not in _ALL_ADDRESSES:
        return address.traddr
    return controller.admin_queue.reached if address.adrfam == controller.listener.adrfam else ""


def _ports(subsystem: SubsystemConfig, controller: Controller) -> Iterator[tuple[ListenerConfig, str]]:
    """The subsystem's listeners that the controller's host is to know of, each with its address."""
    here, discovery_filter = controller.listener, controller.target.config.discovery_filter
    for listener in subsystem.listeners:
        traddr = _traddr(listener.address, controller)
        if traddr and _passes(discovery_filter, listener.address, traddr, here, _traddr(here, controller)):
            yield listener, traddr


def _is_secure(own: SubsystemConfig | None, here: ListenAddress) -> bool:
    listener = access.find_listener(own, here) if own is not None else None
    return listener is not None and listener.secure_channel


def _passes(discovery_filter: str, address: ListenAddress, traddr: str, here: ListenAddress, here_traddr: str) -> bool:
    """``nvmf_set_config``'s ``discovery_filter``: ``match_any``, or those that must equal the port of the request."""
    words = discovery_filter.split(",")
    if "transport" in words and address.trtype != here.trtype:
        return False
    if "address" in words and (address.adrfam, traddr) != (here.adrfam, here_traddr):
        return False
    return not ("svcid" in words and address.trsvcid != here.trsvcid)


def public_part(config: TargetConfig) -> object:
    """Whatever of the configuration can be seen in anybody's discovery log page."""
    subsystems = [
        (
            subsystem.nqn,
            subsystem.allow_any_host,
            None if subsystem.allow_any_host else tuple(subsystem.hosts),
            [(listener.address, listener.secure_channel) for listener in subsystem.listeners],
        )
        for subsystem in config.subsystems.values()
    ]
    return subsystems, config.referrals, config.discovery_filter


def audience(controller: Controller) -> object:
    """Equal for controllers whose discovery log pages are the same."""
    subsystems = controller.target.config.subsystems
    allowed = frozenset(nqn for nqn, each in subsystems.items() if access.host_allowed(each, controller.hostnqn))
    return controller.listener, controller.admin_queue.reached, allowed


def fingerprint(controller: Controller) -> str:
    """The controller's discovery log page, to be compared with an earlier one."""
    return "\n".join(
        f"{each.subtype} {each.subnqn} {each.secure_channel} {each.local} {each.traddr} "
        f"{each.address.trtype} {each.address.adrfam} {each.address.traddr} {each.address.trsvcid}"
        for each in records(controller)
    )


def _build(controller: Controller, record: Record) -> bytes:
    tcp = record.address.trtype == "TCP"
    secure = TreqSecureChannel.REQUIRED if record.secure_channel else TreqSecureChannel.NOT_REQUIRED
    own = record.subtype is Subtype.CURRENT_DISCOVERY
    # What a referral leads to is not ours to describe: no flow control hint, no queue size but the least that must be.
    transport = controller.target.transport(record.address.trtype)
    tsas = (
        TcpTsas(TcpSecType.TLS13 if record.secure_channel else TcpSecType.NONE).build() if tcp else RdmaTsas().build()
    )
    return DiscoveryEntry(
        trtype=Trtype.TCP if tcp else Trtype.RDMA,
        adrfam=_ADRFAM[record.address.adrfam],
        subtype=record.subtype,
        treq=secure | (TreqFlag.DISABLE_SQ_FLOW_CONTROL if record.local else 0),
        portid=controller.target.port_id(record.address) if record.local else 0,
        cntlid=limits.CNTLID_DYNAMIC,
        asqsz=transport.max_aq_depth if record.local else limits.AQ_DEPTH_MIN,
        eflags=_OWN_FLAGS if own else 0,
        trsvcid=record.address.trsvcid,
        subnqn=record.subnqn,
        traddr=record.traddr,
        tsas=tsas,
    ).build()


def _build_extended(controller: Controller, record: Record) -> bytes:
    tail = struct.pack("<IH2x", EXTENDED_ENTRY_BYTES, 0)
    return _build(controller, record) + tail


def log_page(controller: Controller, lsp: int) -> Segments:
    """LID 70h. An entry is built only if the host reads it."""
    chosen = list(records(controller))
    if lsp & LSP_PORT_LOCAL:
        chosen = [record for record in chosen if record.local and record.address == controller.listener]
    extended = bool(lsp & LSP_EXTENDED)
    entry_bytes = EXTENDED_ENTRY_BYTES if extended else DiscoveryEntry.SIZE
    build = _build_extended if extended else _build
    header = DiscoveryHeader(
        genctr=controller.target.genctr,
        numrec=len(chosen),
        dlpf=(DLPF_EXTENDED if extended else 0) | (DLPF_PORT_LOCAL if lsp & LSP_PORT_LOCAL else 0),
        tdlpl=DiscoveryHeader.SIZE + entry_bytes * len(chosen) if extended else 0,
    )
    page = Segments()
    page.add(DiscoveryHeader.SIZE, header.build)
    for record in chosen:
        page.add(entry_bytes, partial(build, controller, record))
    return page
