"""Identify (NVMe base 5.1.13; NVM Command Set 4.1.5): one table of CNS values.

What a value says of a namespace that is not there differs from CNS to CNS and is decided in each function: an NSID
beyond NN is Invalid Namespace or Format everywhere; one within it that is inactive mostly gives an empty structure.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import nvmet_p2p
from nvmet_p2p import limits
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.access import UNREADABLE_STATES, Namespace
from nvmet_p2p.target.command import ANY, IO, LOC_CDW10, LOC_CDW11, LOC_NSID, Result, Transfer, invalid_field, to_host
from nvmet_p2p.target.config import BdevFacts, TransportConfig
from nvmet_p2p.target.controller import IOCQES, IOSQES, Controller, mdts_exponent
from nvmet_p2p.target.events import supported_notices
from nvmet_p2p.target.features import CRITICAL_TEMPERATURE_K, WARNING_TEMPERATURE_K
from nvmet_p2p.target.properties import VERSION
from nvmet_p2p.wire.identify import (
    IDENTIFY_BYTES,
    ControllerList,
    IdentifyController,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    IdentifyNvmController,
    IdentifyNvmNamespace,
    IoCommandSetVector,
    LbaFormat,
    NamespaceList,
    NsIdDescriptorList,
    PowerStateDescriptor,
)
from nvmet_p2p.wire.spec import NSID_ALL, Cns, ControllerType, IoCommandSet, Status
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import IdentifyCommand

if TYPE_CHECKING:
    from nvmet_p2p.target.queue import Request

EMPTY: Final = bytes(IDENTIFY_BYTES)
NSID_LIST_LIMIT: Final = 0xFFFFFFFE  # a list that starts there is refused
CNTID_ANY: Final = 0xFFFF
ANATT_S: Final = 10  # longest time in the ANA Change state, which this target passes through in no time
LOC_CNTID: Final = LOC_CDW10 + 2
LOC_CSI: Final = LOC_CDW11 + 3

CTRATT_HIDS: Final = 1 << 0  # 128 bit Host Identifier
CTRATT_TBKAS: Final = 1 << 6
CMIC_PORTS: Final = 1 << 0
CMIC_CONTROLLERS: Final = 1 << 1
CMIC_ANA: Final = 1 << 3
LPA_COMMANDS_SUPPORTED: Final = 1 << 1
LPA_EXTENDED_DATA: Final = 1 << 2
LPA_MISC_PAGES: Final = 1 << 5  # 00h, 12h, 13h
ONCS_COPY: Final = 1 << 8 | 1 << 9 | 1 << 10  # Copy, its write portion is one write, all copies are fast (NVM 3.3.2)
ONCS: Final = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7 | ONCS_COPY  # Compare, DSM, Write Zeroes, Select, Verify
OCFS: Final = 0b1111  # Copy descriptor formats 0h to 3h
FUSES_COMPARE_WRITE: Final = 1 << 0
VWC: Final = 0b111  # present; Flush with NSID FFFFFFFFh flushes all namespaces
DLFEAT_ZEROES: Final = 0b1001  # deallocated blocks read as zeroes; Write Zeroes may deallocate
NWPC_BASIC: Final = 1 << 0
FRMW_ONE_READ_ONLY_SLOT: Final = 1 << 1 | 1 << 0
ANACAP: Final = 0b0111  # optimized, non-optimized, inaccessible; a namespace may change its group
SGLS_SUPPORTED: Final = 1 << 0
SGLS_KEYED: Final = 1 << 2
SGLS_OFFSET: Final = 1 << 20
SGLS_TRANSPORT: Final = 1 << 21
FCATT_STATIC: Final = 1 << 0
OFCS_DISCONNECT: Final = 1 << 0
DCTYPE_DDC: Final = 1
NMIC_SHARED: Final = 1 << 0
NSATTR_WRITE_PROTECTED: Final = 1 << 0
NSFEAT_OPTPERF: Final = 1 << 4
NSTAT_READY: Final = 1 << 0


@dataclass(frozen=True, slots=True)
class CnsRow:
    """A row of the CNS table: ``build`` gives the 4096 bytes or raises NvmeStatusError."""

    code: int
    name: str
    section: str
    controllers: frozenset[ControllerType]
    build: Callable[[Controller, Sqe, IdentifyCommand], bytes]


# -- Controllers -------------------------------------------------------------------------------------------------------


def sgls(transport: TransportConfig) -> int:
    """SGL Support: which descriptors the transport takes."""
    common = SGLS_SUPPORTED | SGLS_OFFSET
    return common | (SGLS_KEYED if transport.trtype == "RDMA" else SGLS_TRANSPORT)


def ana_groups_max(controller: Controller) -> int:
    """ANAGRPMAX and NANAGRPID."""
    highest = max((ns.anagrpid for ns in controller.config.namespaces.values()), default=1)
    return max(min(controller.config.max_namespaces, limits.ANA_GROUPS_MAX), highest)


def _identify_controller(controller: Controller, _sqe: Sqe, _command: IdentifyCommand) -> bytes:
    fields = _common_fields(controller)
    if controller.type is ControllerType.IO:
        fields |= _io_fields(controller)
    return IdentifyController(**fields).build()


def _common_fields(controller: Controller) -> dict[str, Any]:
    config, transport = controller.config, controller.transport
    discovery = controller.type is ControllerType.DISCOVERY
    return {
        "sn": config.serial_number,
        "mn": config.model_number,
        "fr": nvmet_p2p.__version__[:8],
        "mdts": mdts_exponent(transport),
        "cntlid": controller.cntlid,
        "ver": VERSION,
        "oaes": supported_notices(controller.type, config.ana_reporting),
        "ctratt": CTRATT_HIDS | CTRATT_TBKAS,
        "cntrltype": controller.type,
        "aerl": limits.AER_LIMIT - 1,
        "lpa": LPA_COMMANDS_SUPPORTED | LPA_EXTENDED_DATA | (0 if discovery else LPA_MISC_PAGES),
        "elpe": limits.ERROR_LOG_ENTRIES - 1,
        "kas": transport.kas,
        "maxcmd": transport.max_queue_depth,
        "sgls": sgls(transport),
        "subnqn": config.nqn,
        "dctype": DCTYPE_DDC if discovery else 0,
    }


def _io_fields(controller: Controller) -> dict[str, Any]:
    config, transport = controller.config, controller.transport
    crdt = controller.target.config.crdt
    ana: dict[str, Any] = {}
    if config.ana_reporting:
        groups = ana_groups_max(controller)
        ana = {"anatt": ANATT_S, "anacap": ANACAP, "anagrpmax": groups, "nanagrpid": groups, "mnan": controller.nn}
    return {
        "cmic": CMIC_PORTS | CMIC_CONTROLLERS | (CMIC_ANA if config.ana_reporting else 0),
        "crdt1": crdt[0],
        "crdt2": crdt[1],
        "crdt3": crdt[2],
        "acl": limits.ABORT_LIMIT - 1,
        "frmw": FRMW_ONE_READ_ONLY_SLOT,
        "wctemp": WARNING_TEMPERATURE_K,
        "cctemp": CRITICAL_TEMPERATURE_K,
        "sqes": IOSQES << 4 | IOSQES,
        "cqes": IOCQES << 4 | IOCQES,
        "nn": controller.nn,
        "oncs": ONCS,
        "fuses": FUSES_COMPARE_WRITE,
        "vwc": VWC,
        "nwpc": NWPC_BASIC,
        "ocfs": OCFS,
        "ioccsz": (64 + transport.in_capsule_data_size) // 16,
        "iorcsz": 1,
        "msdbd": 1,
        "fcatt": FCATT_STATIC if config.controller_model == "static" else 0,
        "ofcs": OFCS_DISCONNECT,
        "psd": (PowerStateDescriptor(),),
        **ana,
    }


def _nvm_controller(_controller: Controller, _sqe: Sqe, command: IdentifyCommand) -> bytes:
    """No command set limit but MDTS: all zeros. For Dataset Management 256 ranges of any size are taken."""
    _check_csi(command)
    return IdentifyNvmController().build()


def _controllers(controller: Controller, _sqe: Sqe, command: IdentifyCommand) -> bytes:
    """CNS 13h: the controllers of the subsystem, from CNTID on."""
    return _controller_list(controller, command.cntid)


def _namespace_controllers(controller: Controller, sqe: Sqe, command: IdentifyCommand) -> bytes:
    """CNS 12h: those of them that the namespace is attached to."""
    if sqe.nsid == NSID_ALL:
        raise invalid_field(LOC_NSID, "NSID FFFFFFFFh")
    _check_nsid(controller, sqe)
    return _controller_list(controller, command.cntid, sqe.nsid)


def _controller_list(controller: Controller, first: int, nsid: int | None = None) -> bytes:
    found = [
        other.cntlid
        for other in controller.subsystem.controllers.values()
        if other.cntlid >= first and (nsid is None or other.namespace(nsid) is not None)
    ]
    return ControllerList(tuple(sorted(found)[: ControllerList.CAPACITY])).build()


def _command_sets(controller: Controller, _sqe: Sqe, command: IdentifyCommand) -> bytes:
    """CNS 1Ch: the one combination is the NVM command set alone."""
    if command.cntid not in (CNTID_ANY, controller.cntlid) and command.cntid not in controller.subsystem.controllers:
        raise invalid_field(LOC_CNTID, f"no controller {command.cntid:#x}")
    return IoCommandSetVector((1 << IoCommandSet.NVM, *[0] * 511)).build()


# -- Lists of namespaces -----------------------------------------------------------------------------------------------


def _check_csi(command: IdentifyCommand) -> None:
    if command.csi != IoCommandSet.NVM:
        raise invalid_field(LOC_CSI, f"CSI {command.csi:#x}")


def _list_after(nsids: list[int], sqe: Sqe) -> bytes:
    if sqe.nsid >= NSID_LIST_LIMIT:
        raise NvmeStatusError(Status.INVALID_NAMESPACE_OR_FORMAT, f"list after NSID {sqe.nsid:#x}", error_loc=LOC_NSID)
    return NamespaceList(tuple([nsid for nsid in nsids if nsid > sqe.nsid][: NamespaceList.CAPACITY])).build()


def _active(controller: Controller, sqe: Sqe, _command: IdentifyCommand) -> bytes:
    return _list_after(controller.active_nsids(), sqe)


def _csi_active(controller: Controller, sqe: Sqe, command: IdentifyCommand) -> bytes:
    _check_csi(command)
    return _list_after(controller.active_nsids(), sqe)


def _allocated(controller: Controller, sqe: Sqe, _command: IdentifyCommand) -> bytes:
    """Those that the host may see, whether their back end is there or not."""
    return _list_after(list(controller.namespaces), sqe)


# -- Namespaces --------------------------------------------------------------------------------------------------------


def _check_nsid(controller: Controller, sqe: Sqe) -> None:
    """Namespace management is not supported, so FFFFFFFFh (common capabilities) is no valid NSID either."""
    if not 1 <= sqe.nsid <= controller.nn or sqe.nsid == NSID_ALL:
        raise NvmeStatusError(Status.INVALID_NAMESPACE_OR_FORMAT, f"NSID {sqe.nsid:#x}", error_loc=LOC_NSID)


def _active_namespace(controller: Controller, sqe: Sqe) -> tuple[Namespace, BdevFacts] | None:
    """``None`` for a valid NSID that is inactive."""
    _check_nsid(controller, sqe)
    namespace = controller.namespace(sqe.nsid)
    if namespace is None or namespace.facts is None:
        return None
    return namespace, namespace.facts


def copy_limits(block_size: int) -> tuple[int, int, int]:
    """MSSRL and MCL in logical blocks, and MSRC (0's based), for a namespace with this block size in bytes."""
    mcl = limits.COPY_BYTES_MAX // block_size
    return min(limits.COPY_RANGE_BLOCKS_MAX, mcl), mcl, limits.COPY_RANGES_MAX - 1


def _performance_fields(facts: BdevFacts) -> dict[str, int]:
    """NPWG and its like, 0's based in blocks, where the back end has a physical block or a boundary."""
    physical = max(facts.physical_block_size // facts.block_size, 1)
    boundary = min(facts.optimal_io_boundary, 0xFFFF)
    if physical == 1 and not boundary:
        return {}
    step = min(physical, 0x10000) - 1
    nows = max(boundary, physical) - 1
    return {
        "nsfeat": NSFEAT_OPTPERF,
        "npwg": step,
        "npwa": step,
        "npdg": step,
        "npda": step,
        "nows": min(nows, 0xFFFF),
        "noiob": boundary,
    }


def _shared_fields(controller: Controller, namespace: Namespace) -> dict[str, int]:
    """What CNS 00h and CNS 08h both say."""
    return {
        "nmic": NMIC_SHARED,
        "anagrpid": namespace.config.anagrpid if controller.config.ana_reporting else 0,
        "nsattr": NSATTR_WRITE_PROTECTED if namespace.write_protected else 0,
    }


def _build_namespace(controller: Controller, namespace: Namespace, facts: BdevFacts) -> bytes:
    mssrl, mcl, msrc = copy_limits(facts.block_size)
    hidden = controller.ana_state(namespace.config.anagrpid) in UNREADABLE_STATES
    config = namespace.config
    return IdentifyNamespace(
        **_shared_fields(controller, namespace),
        **_performance_fields(facts),
        nsze=facts.num_blocks,
        ncap=facts.num_blocks,
        dlfeat=DLFEAT_ZEROES if facts.unmap else 0,
        nuse=0 if hidden else facts.num_blocks,  # cleared in the inaccessible state (NVMe base 8.1.1.6)
        mssrl=mssrl,
        mcl=mcl,
        msrc=msrc,
        nguid=bytes.fromhex(config.nguid).rjust(16, b"\0"),
        eui64=bytes.fromhex(config.eui64).rjust(8, b"\0"),
        lbaf=(LbaFormat(lbads=facts.block_size.bit_length() - 1),),
    ).build()


def _identify_namespace(controller: Controller, sqe: Sqe, _command: IdentifyCommand) -> bytes:
    found = _active_namespace(controller, sqe)
    return EMPTY if found is None else _build_namespace(controller, *found)


def _allocated_namespace(controller: Controller, sqe: Sqe, command: IdentifyCommand) -> bytes:
    """CNS 11h. Of a namespace whose back end is away there is no size to tell: as empty as one not allocated."""
    return _identify_namespace(controller, sqe, command)


def _independent_namespace(controller: Controller, sqe: Sqe, _command: IdentifyCommand) -> bytes:
    found = _active_namespace(controller, sqe)
    if found is None:
        return EMPTY
    return IdentifyNamespaceIndependent(**_shared_fields(controller, found[0]), nstat=NSTAT_READY).build()


def _nvm_namespace(controller: Controller, sqe: Sqe, command: IdentifyCommand) -> bytes:
    """CNS 05h: no protection information, so nothing to say."""
    _check_csi(command)
    return EMPTY if _active_namespace(controller, sqe) is None else IdentifyNvmNamespace().build()


def _descriptors(controller: Controller, sqe: Sqe, _command: IdentifyCommand) -> bytes:
    found = _active_namespace(controller, sqe)
    if found is None:
        # NVMe base 3.2.1.5, for an inactive NSID unless otherwise noted (SPDK too; nvmet: Invalid Namespace or Format).
        raise invalid_field(LOC_NSID, f"NSID {sqe.nsid} is inactive")
    config = found[0].config
    return NsIdDescriptorList.of(
        eui64=bytes.fromhex(config.eui64) or None,
        nguid=bytes.fromhex(config.nguid) or None,
        uuid=uuid.UUID(config.uuid).bytes,
        csi=IoCommandSet.NVM,
    ).build()


CNS_TABLE: Final[dict[int, CnsRow]] = {
    row.code: row
    for row in (
        CnsRow(Cns.NAMESPACE, "Identify Namespace", "NVM 4.1.5.1", IO, _identify_namespace),
        CnsRow(Cns.CONTROLLER, "Identify Controller", "5.1.13.2.1", ANY, _identify_controller),
        CnsRow(Cns.ACTIVE_NAMESPACES, "Active Namespace ID list", "5.1.13.2.2", IO, _active),
        CnsRow(Cns.NAMESPACE_DESCRIPTORS, "Namespace Identification Descriptor list", "5.1.13.2.3", IO, _descriptors),
        CnsRow(Cns.CSI_NAMESPACE, "I/O Command Set specific Namespace", "NVM 4.1.5.2", IO, _nvm_namespace),
        CnsRow(Cns.CSI_CONTROLLER, "I/O Command Set specific Controller", "NVM 4.1.5.4", IO, _nvm_controller),
        CnsRow(Cns.CSI_ACTIVE_NAMESPACES, "I/O Command Set specific Active NSID list", "5.1.13.2.6", IO, _csi_active),
        CnsRow(
            Cns.NAMESPACE_INDEPENDENT,
            "I/O Command Set Independent Namespace",
            "5.1.13.2.7",
            IO,
            _independent_namespace,
        ),
        CnsRow(Cns.ALLOCATED_NAMESPACES, "Allocated Namespace ID list", "5.1.13.2.8", IO, _allocated),
        CnsRow(Cns.ALLOCATED_NAMESPACE, "Allocated Namespace", "NVM 4.1.5.6", IO, _allocated_namespace),
        CnsRow(
            Cns.NAMESPACE_CONTROLLERS, "Controllers attached to a namespace", "5.1.13.2.9", IO, _namespace_controllers
        ),
        CnsRow(Cns.CONTROLLERS, "Controllers of the NVM subsystem", "5.1.13.2.10", IO, _controllers),
        CnsRow(Cns.IO_COMMAND_SETS, "I/O Command Set data structure", "5.1.13.2.19", IO, _command_sets),
    )
}


def transfer(controller: Controller, sqe: Sqe) -> Transfer:
    """Always 4096 bytes; an unknown CNS is refused before."""
    cns = sqe.cdw10 & 0xFF
    row = CNS_TABLE.get(cns)
    if row is None or controller.type not in row.controllers:
        raise invalid_field(LOC_CDW10, f"CNS {cns:#x}")
    return to_host(IDENTIFY_BYTES)


def identify(controller: Controller, request: Request, _data: bytes, _now: float) -> Result:
    """Identify (5.1.13)."""
    command = IdentifyCommand.of(request.sqe)
    return Result(data=CNS_TABLE[command.cns].build(controller, request.sqe, command))
