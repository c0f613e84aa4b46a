"""Get Log Page (NVMe base 5.1.12): one table of log page identifiers.

A page is made of segments and only what the host reads is built; the answer has exactly the bytes asked for, with zeros
beyond the end of the page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

import nvmet_p2p
from nvmet_p2p import limits
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target import discovery
from nvmet_p2p.target.command import (
    ANY,
    DISCOVERY,
    IO,
    LOC_CDW10,
    LOC_CDW12,
    LOC_CDW14,
    LOC_NSID,
    Result,
    Transfer,
    invalid_field,
    to_host,
)
from nvmet_p2p.target.controller import CHANGED_NAMESPACES_MAX, Controller
from nvmet_p2p.target.features import FEATURES
from nvmet_p2p.target.pages import Segments
from nvmet_p2p.wire.logpages import (
    AnaGroup,
    AnaLogHeader,
    ChangedNamespaceList,
    CommandEffects,
    CommandsSupportedLog,
    ErrorInformationEntry,
    FeatureEffects,
    FeatureEffectsLog,
    FirmwareRevision,
    FirmwareSlotLog,
    LidSupport,
    SmartLog,
    SupportedLogPages,
)
from nvmet_p2p.wire.spec import (
    NSID_ALL,
    ControllerType,
    FeatureId,
    IoCommandSet,
    LogPage,
    NvmOpcode,
    Status,
)
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import GetLogPageCommand

if TYPE_CHECKING:
    from nvmet_p2p.target.queue import Request

LOC_LSP: Final = LOC_CDW10 + 1
LSP_ANA_GROUPS_ONLY: Final = 0x1  # RGO
TEMPERATURE_K: Final = 313  # a plausible 40 degrees: there is no thermometer
DATA_UNIT_BYTES: Final = 512 * 1000
SCOPE_NAMESPACE: Final = 1 << 0  # CSP and FSP
SCOPE_CONTROLLER: Final = 1 << 1
SCOPE_SUBSYSTEM: Final = 1 << 6
MI_COMMANDS_BYTES: Final = 4096

_READERS: Final = (NvmOpcode.READ, NvmOpcode.COMPARE, NvmOpcode.VERIFY, NvmOpcode.FLUSH)
_WRITERS: Final = (NvmOpcode.WRITE, NvmOpcode.WRITE_ZEROES, NvmOpcode.DATASET_MANAGEMENT, NvmOpcode.COPY)


class Scope(Enum):
    """What a page is about (NVMe base 5.1.12, "Scope"): says which NSID is allowed."""

    CONTROLLER = "controller"
    SUBSYSTEM = "NVM subsystem"


@dataclass(frozen=True, slots=True)
class LogPageRow:
    """A row of the log page table."""

    code: int
    name: str
    section: str
    controllers: frozenset[ControllerType]
    scope: Scope
    build: Callable[[Controller, GetLogPageCommand], Segments]
    lid_specific: int = 0  # LIDSP of the Supported Log Pages page
    was_read: Callable[[Controller], None] | None = None  # the host has read it without RAE


# -- Pages -------------------------------------------------------------------------------------------------------------


def _supported(controller: Controller, _command: GetLogPageCommand) -> Segments:
    pages = {
        row.code: LidSupport(lsupp=True, lidsp=row.lid_specific)
        for row in LOG_PAGES.values()
        if _is_available(controller, row)
    }
    return Segments.of(SupportedLogPages.of(pages).build())


def _errors(controller: Controller, _command: GetLogPageCommand) -> Segments:
    page = Segments()
    for index in range(limits.ERROR_LOG_ENTRIES):
        page.add(ErrorInformationEntry.SIZE, partial(controller.errors.entry, index))
    return page


def _smart(controller: Controller, _command: GetLogPageCommand) -> Segments:
    """What all back ends of the subsystem have done; nothing wears out here, and nothing is warm."""
    read = written = reads = writes = 0
    for name in {namespace.bdev_name for namespace in controller.config.namespaces.values()}:
        counters = controller.target.io_counters(name)
        if counters is not None:
            read += counters.bytes_read
            written += counters.bytes_written
            reads += counters.num_read_ops
            writes += counters.num_write_ops
    log = SmartLog(
        critical_warning=0,
        composite_temperature=TEMPERATURE_K,
        available_spare=100,
        available_spare_threshold=10,
        data_units_read=-(-read // DATA_UNIT_BYTES),
        data_units_written=-(-written // DATA_UNIT_BYTES),
        host_read_commands=reads,
        host_write_commands=writes,
        power_cycles=1,
        error_log_entries=controller.errors.count,
    )
    return Segments.of(log.build())


def _firmware(_controller: Controller, _command: GetLogPageCommand) -> Segments:
    revision = FirmwareRevision(revision=nvmet_p2p.__version__[:8])
    return Segments.of(FirmwareSlotLog(active_slot=1, frs=(revision,)).build())


def _changed_namespaces(controller: Controller, _command: GetLogPageCommand) -> Segments:
    nsids = sorted(controller.changed_namespaces)
    too_many = len(nsids) > CHANGED_NAMESPACES_MAX
    page = ChangedNamespaceList.overflow() if too_many else ChangedNamespaceList(tuple(nsids))
    return Segments.of(page.build())


def _clear_changed_namespaces(controller: Controller) -> None:
    controller.changed_namespaces.clear()


def _commands(controller: Controller, command: GetLogPageCommand) -> Segments:
    from nvmet_p2p.target.admin_cmd import ADMIN_COMMANDS

    if command.csi != IoCommandSet.NVM:
        raise invalid_field(LOC_CDW14 + 3, f"CSI {command.csi:#x}")
    admin = {
        row.code: CommandEffects(csupp=True, csp=SCOPE_CONTROLLER)
        for row in ADMIN_COMMANDS.values()
        if controller.type in row.controllers
    }
    io: dict[int, CommandEffects] = {}
    if controller.type is ControllerType.IO:
        # No scope for I/O commands: Linux takes any bit but CSUPP and LBCC for "unusual effects" and logs that.
        io |= {opcode: CommandEffects(csupp=True) for opcode in _READERS}
        io |= {opcode: CommandEffects(csupp=True, lbcc=True) for opcode in _WRITERS}
    return Segments.of(CommandsSupportedLog.of(admin, io).build())


def _ana(controller: Controller, command: GetLogPageCommand) -> Segments:
    groups_only = bool(command.lsp & LSP_ANA_GROUPS_ONLY)
    groups = controller.ana_groups
    page = Segments()
    header = AnaLogHeader(controller.ana_change_count, len(groups))
    page.add(AnaLogHeader.SIZE, header.build)
    for agid, (state, nsids) in groups.items():
        count = controller.ana_group_changes.get(agid, 0)
        group = AnaGroup(agid, state, count, () if groups_only else nsids)
        page.add(group.size, group.build)
    return page


def _features(controller: Controller, _command: GetLogPageCommand) -> Segments:
    effects = {}
    for row in FEATURES.values():
        if controller.type in row.controllers:
            scope = SCOPE_NAMESPACE if row.per_namespace else SCOPE_CONTROLLER
            udcc = row.code == FeatureId.NAMESPACE_WRITE_PROTECTION
            effects[row.code] = FeatureEffects(fsupp=True, nic=udcc, fsp=scope)
    return Segments.of(FeatureEffectsLog.of(effects).build())


def _mi_commands(_controller: Controller, _command: GetLogPageCommand) -> Segments:
    """13h comes with 00h and 12h under one LPA bit; there is no NVMe-MI, so no command is supported."""
    page = Segments()
    page.add(MI_COMMANDS_BYTES, lambda: bytes(MI_COMMANDS_BYTES))
    return page


def _discovery(controller: Controller, command: GetLogPageCommand) -> Segments:
    return discovery.log_page(controller, command.lsp)


LOG_PAGES: Final[dict[int, LogPageRow]] = {
    row.code: row
    for row in (
        LogPageRow(LogPage.SUPPORTED_LOG_PAGES, "Supported Log Pages", "5.1.12.1.1", ANY, Scope.CONTROLLER, _supported),
        LogPageRow(LogPage.ERROR_INFORMATION, "Error Information", "5.1.12.1.2", ANY, Scope.CONTROLLER, _errors),
        LogPageRow(LogPage.SMART_HEALTH, "SMART / Health Information", "5.1.12.1.3", IO, Scope.CONTROLLER, _smart),
        LogPageRow(LogPage.FIRMWARE_SLOT, "Firmware Slot Information", "5.1.12.1.4", IO, Scope.SUBSYSTEM, _firmware),
        LogPageRow(
            LogPage.CHANGED_NAMESPACES,
            "Changed Attached Namespace List",
            "5.1.12.1.5",
            IO,
            Scope.CONTROLLER,
            _changed_namespaces,
            was_read=_clear_changed_namespaces,
        ),
        LogPageRow(
            LogPage.COMMANDS_SUPPORTED, "Commands Supported and Effects", "5.1.12.1.6", ANY, Scope.CONTROLLER, _commands
        ),
        LogPageRow(LogPage.ANA, "Asymmetric Namespace Access", "5.1.12.1.13", IO, Scope.CONTROLLER, _ana),
        LogPageRow(
            LogPage.FEATURE_IDENTIFIERS,
            "Feature Identifiers Supported and Effects",
            "5.1.12.1.18",
            ANY,
            Scope.CONTROLLER,
            _features,
        ),
        LogPageRow(
            LogPage.NVME_MI_COMMANDS,
            "NVMe-MI Commands Supported and Effects",
            "5.1.12.1.19",
            IO,
            Scope.CONTROLLER,
            _mi_commands,
        ),
        LogPageRow(
            LogPage.DISCOVERY,
            "Discovery",
            "5.1.12.3.1",
            DISCOVERY,
            Scope.CONTROLLER,
            _discovery,
            lid_specific=discovery.LSP_EXTENDED | discovery.LSP_PORT_LOCAL,
        ),
    )
}


# -- The command -------------------------------------------------------------------------------------------------------


def _is_available(controller: Controller, row: LogPageRow) -> bool:
    if controller.type not in row.controllers:
        return False
    return row.code != LogPage.ANA or controller.config.ana_reporting


def _find(controller: Controller, lid: int) -> LogPageRow:
    row = LOG_PAGES.get(lid)
    if row is None or not _is_available(controller, row):
        raise NvmeStatusError(Status.INVALID_LOG_PAGE, f"log page {lid:#x}", error_loc=LOC_CDW10)
    return row


def transfer(controller: Controller, sqe: Sqe) -> Transfer:
    """NUMD + 1 dwords; everything that is wrong without looking at the page is refused here."""
    command = GetLogPageCommand.of(sqe)
    _find(controller, command.lid)
    if sqe.nsid not in (0, NSID_ALL):
        # No page is kept for each namespace (LPA bit 0 is 0), and the others are not about a namespace.
        raise invalid_field(LOC_NSID, f"log page {command.lid:#x} with NSID {sqe.nsid:#x}")
    if command.lpo & 3:
        raise invalid_field(LOC_CDW12, f"offset {command.lpo:#x}")
    if command.ot:
        raise invalid_field(LOC_CDW14 + 2, "no log page has an index offset", 7)
    return to_host(command.length)


def get_log_page(controller: Controller, request: Request, _data: bytes, _now: float) -> Result:
    """Get Log Page (5.1.12)."""
    command = GetLogPageCommand.of(request.sqe)
    row = _find(controller, command.lid)
    page = row.build(controller, command)
    if command.lpo > page.size:
        raise invalid_field(LOC_CDW12, f"offset {command.lpo:#x}, the log page has {page.size:#x} bytes")
    data = page.read(command.lpo, command.length)
    if not command.rae:
        controller.events.log_was_read(row.code)
        if row.was_read is not None:
            row.was_read(controller)
    return Result(data=data)
