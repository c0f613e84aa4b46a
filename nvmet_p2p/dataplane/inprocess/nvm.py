"""The I/O commands: what is checked before data moves, and the table of all of them.

Source: NVM Express NVM Command Set specification 1.2 ("NVM"), section 3.3; the base specification ("base") for Flush
and fused operations. Everything here is pure but for ``NvmCommand.execute``, which is in ``execute`` and ``copy``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nvmet_p2p import limits
from nvmet_p2p.dataplane.inprocess.backend import Backend
from nvmet_p2p.dataplane.inprocess.controller import ControllerState, NamespaceUse
from nvmet_p2p.dataplane.inprocess.rangelock import Range
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.protocol.sgl import Direction, LengthRule
from nvmet_p2p.target.config import BdevFacts
from nvmet_p2p.target.effects import ControllerView
from nvmet_p2p.wire.codec import BytesLike
from nvmet_p2p.wire.nvm import COPY_DESCRIPTORS, DsmRange
from nvmet_p2p.wire.spec import NSID_ALL, Fuse, Status
from nvmet_p2p.wire.sqe import Sqe

# Bytes of the SQE that an error is reported at.
LOC_OPC: Final = 0
LOC_FUSE: Final = 1
LOC_SLBA: Final = 40
LOC_NLB: Final = 48
LOC_NR: Final = 48
LOC_DESFMT: Final = 49
LOC_PRINFO: Final = 51

DSM_DEALLOCATE: Final = 0x4  # AD, bit 2 of dword 11


def slba_of(sqe: Sqe) -> int:
    """SLBA or SDLBA: dwords 10 and 11."""
    return sqe.cdw11 << 32 | sqe.cdw10


def blocks_of(sqe: Sqe) -> int:
    """Number of logical blocks, from the 0's based NLB."""
    return (sqe.cdw12 & 0xFFFF) + 1


def fua_of(sqe: Sqe) -> bool:
    """Force Unit Access, bit 30 of dword 12."""
    return bool(sqe.cdw12 >> 30 & 1)


def deac_of(sqe: Sqe) -> bool:
    """Deallocate of Write Zeroes, bit 25 of dword 12."""
    return bool(sqe.cdw12 >> 25 & 1)


@dataclass(slots=True)
class Outcome:
    """What a command that succeeded gives back: C2H data and dword 0 of the CQE."""

    data: BytesLike | None = None
    dw0: int = 0


@dataclass(slots=True)
class Io:
    """A command on its way: what ``admit`` found, then its data, then what ``plan`` found in that."""

    command: NvmCommand
    sqe: Sqe
    controller: ControllerState
    use: NamespaceUse | None  # None: a broadcast, which concerns all
    backend: Backend | None
    view: ControllerView  # what it was checked against
    facts: BdevFacts | None
    length: int = 0  # bytes of data transferred
    data: BytesLike = b""
    targets: list[Target] = field(default_factory=list)
    sources: list[CopySource] = field(default_factory=list)
    overlapping: bool = False

    @property
    def home(self) -> Backend:
        """The back end of the namespace that NSID names."""
        assert self.backend is not None, "a broadcast has no one back end"
        return self.backend

    @property
    def block_size(self) -> int:
        return self.home.facts.block_size

    @property
    def range(self) -> Range:
        """Bytes that SLBA and NLB name."""
        start = slba_of(self.sqe) * self.block_size
        return start, start + blocks_of(self.sqe) * self.block_size


@dataclass(frozen=True, slots=True)
class CopySource:
    """One source range of Copy, in bytes."""

    use: NamespaceUse
    backend: Backend
    start: int
    length: int


Target = tuple[NamespaceUse, Backend, list[Range]]  # who is used, and the ranges to lock there


def no_data(sqe: Sqe, facts: BdevFacts, view: ControllerView) -> int:
    """Commands that move nothing."""
    return 0


@dataclass(frozen=True, slots=True)
class NvmCommand:
    """One row of the command table.

    ``length``: bytes of data. ``check``: raises for what else is wrong in the SQE itself. ``targets``:
    called when the data is here; checks it and says what the command will touch. ``execute``: does it. ``user_data``:
    MDTS applies. ``writes``: refused on a write protected namespace. ``to_medium``: its media errors are write faults.
    """

    opcode: int
    name: str
    section: str
    direction: Direction
    execute: Callable[[Io], Awaitable[Outcome]]
    targets: Callable[[Io], list[Target]]
    length: Callable[[Sqe, BdevFacts, ControllerView], int] = no_data
    check: Callable[[Sqe, BdevFacts, ControllerView], None] | None = None
    writes: bool = False
    to_medium: bool = False
    user_data: bool = False
    broadcast: bool = False
    rule: LengthRule = LengthRule.EXACT


# -- checks ----------------------------------------------------------------------------------------------------------


def check_lba_range(slba: int, blocks: int, facts: BdevFacts, error_loc: int | None = LOC_SLBA) -> None:
    """LBA Out of Range unless the blocks exist; nothing wraps."""
    if slba + blocks > facts.num_blocks:
        raise NvmeStatusError(
            Status.LBA_OUT_OF_RANGE, f"LBA {slba} + {blocks} of {facts.num_blocks}", error_loc=error_loc
        )


def check_rw(sqe: Sqe, facts: BdevFacts, view: ControllerView) -> None:
    """Read, Write, Compare, Verify, Write Zeroes: no protection information here, so PRINFO must ask for none."""
    if sqe.cdw12 >> 26 & 0xF:
        raise NvmeStatusError(
            Status.INVALID_PROTECTION_INFO, "the namespace has no protection information", error_loc=LOC_PRINFO
        )
    check_lba_range(slba_of(sqe), blocks_of(sqe), facts)


def check_copy(sqe: Sqe, facts: BdevFacts, view: ControllerView) -> None:
    """Number of ranges (NVM 3.3.2). PRINFOR and PRINFOW are ignored without protection information."""
    ranges = (sqe.cdw12 & 0xFF) + 1
    if ranges > limits.COPY_RANGES_MAX:
        raise NvmeStatusError(Status.COMMAND_SIZE_LIMIT_EXCEEDED, f"{ranges} source ranges", error_loc=LOC_NR)


def rw_length(sqe: Sqe, facts: BdevFacts, view: ControllerView) -> int:
    """Bytes of user data of Read, Write and Compare."""
    return blocks_of(sqe) * facts.block_size


def dsm_length(sqe: Sqe, facts: BdevFacts, view: ControllerView) -> int:
    """Bytes of ranges of Dataset Management."""
    return ((sqe.cdw10 & 0xFF) + 1) * DsmRange.SIZE


def copy_length(sqe: Sqe, facts: BdevFacts, view: ControllerView) -> int:
    """Bytes of source range entries of Copy, whose format must be one that is supported and enabled."""
    desfmt = sqe.cdw12 >> 8 & 0xF
    if desfmt not in COPY_DESCRIPTORS or not view.copy_formats >> desfmt & 1:
        raise NvmeStatusError(Status.INVALID_FIELD, f"Copy format {desfmt} is not enabled", error_loc=LOC_DESFMT)
    return ((sqe.cdw12 & 0xFF) + 1) * COPY_DESCRIPTORS[desfmt].SIZE


def admit(commands: Mapping[int, NvmCommand], sqe: Sqe, controller: ControllerState) -> Io:
    """What must be known before the data pointer can be judged; raises NvmeStatusError with the specification's status.

    Order of all checks: opcode, FUSE, NSID, ANA, write protection, MDTS; the data pointer (``sgl.plan``); ``validate``;
    what the data says (``NvmCommand.targets``).
    """
    command = commands.get(sqe.opc)
    if command is None:
        raise NvmeStatusError(Status.INVALID_OPCODE, f"opcode {sqe.opc:#04x}", error_loc=LOC_OPC)
    if sqe.fuse not in (Fuse.NORMAL, Fuse.FIRST, Fuse.SECOND):
        raise NvmeStatusError(Status.INVALID_FIELD, "FUSE 11b is reserved", error_loc=LOC_FUSE)
    if command.broadcast and sqe.nsid == NSID_ALL:
        return Io(command, sqe, controller, None, None, controller.view, None)
    use = controller.namespace(sqe.nsid)
    backend = controller.backend(use)
    facts = backend.facts
    if command.writes and (use.view.write_protected or facts.readonly):
        raise NvmeStatusError(Status.NAMESPACE_WRITE_PROTECTED, f"namespace {sqe.nsid} is write protected")
    length = command.length(sqe, facts, controller.view)
    mdts = controller.view.mdts_bytes
    if command.user_data and mdts and length > mdts:
        raise NvmeStatusError(Status.INVALID_FIELD, f"{length} bytes, MDTS is {mdts}", error_loc=LOC_NLB)
    return Io(command, sqe, controller, use, backend, controller.view, facts, length)


def validate(io: Io) -> None:
    """The command's own fields: ranges, protection information, limits. Raises NvmeStatusError."""
    if io.command.check is not None and io.facts is not None:
        io.command.check(io.sqe, io.facts, io.view)
