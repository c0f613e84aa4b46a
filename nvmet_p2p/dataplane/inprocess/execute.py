"""The I/O commands carried out, and their table ``NVM_COMMANDS``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from nvmet_p2p.dataplane.inprocess.backend import Backend
from nvmet_p2p.dataplane.inprocess.copy import copy, copy_targets
from nvmet_p2p.dataplane.inprocess.nvm import (
    DSM_DEALLOCATE,
    Io,
    NvmCommand,
    Outcome,
    Target,
    check_copy,
    check_lba_range,
    check_rw,
    copy_length,
    deac_of,
    dsm_length,
    fua_of,
    rw_length,
)
from nvmet_p2p.dataplane.inprocess.rangelock import Hold, Range
from nvmet_p2p.dataplane.inprocess.status import status_of_errno
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.protocol.sgl import Direction, LengthRule
from nvmet_p2p.wire.codec import parse_many
from nvmet_p2p.wire.nvm import DsmRange
from nvmet_p2p.wire.spec import AnaState, NvmOpcode, Status

CHUNK_BYTES: Final = 1 << 20  # what Verify reads at a time


def _whole_range(io: Io) -> list[Target]:
    """SLBA and NLB of the command's own namespace."""
    assert io.use is not None
    return [(io.use, io.home, [io.range])]


async def _read(io: Io) -> Outcome:
    if fua_of(io.sqe):  # NVM 3.3.4: first commit what is cached, then read it from the medium
        await io.home.flush()
    return Outcome(await io.home.read(io.range[0], io.length))


async def _write(io: Io) -> Outcome:
    await io.home.write(io.range[0], io.data, fua=fua_of(io.sqe))
    return Outcome()


async def _compare(io: Io) -> Outcome:
    if fua_of(io.sqe):
        await io.home.flush()
    stored = await io.home.read(io.range[0], io.length)
    if bytes(stored) != bytes(io.data):
        io.home.count_error("miscompare")
        raise NvmeStatusError(Status.COMPARE_FAILURE, "the data differ")
    return Outcome()


async def _verify(io: Io) -> Outcome:
    if fua_of(io.sqe):
        await io.home.flush()
    start, end = io.range
    for at in range(start, end, CHUNK_BYTES):
        await io.home.read(at, min(CHUNK_BYTES, end - at))
        await asyncio.sleep(0)  # a back end in memory never waits, and a host may ask for 128 of these at once
    return Outcome()


async def _write_zeroes(io: Io) -> Outcome:
    """NSZ is not supported (ONCS.NSZS 0): it has no effect and LBACZ in dword 0 stays 0 (NVM 3.3.8)."""
    start, end = io.range
    await io.home.write_zeroes(start, end - start, fua=fua_of(io.sqe), unmap=deac_of(io.sqe))
    return Outcome()


def _flush_targets(io: Io) -> list[Target]:
    """One namespace, or all that this path can reach (base 7.2: NSID FFFFFFFFh)."""
    if io.use is not None:
        return [(io.use, io.home, [])]
    uses = io.controller.all_namespaces()
    serving = (AnaState.OPTIMIZED, AnaState.NON_OPTIMIZED)
    return [(use, io.controller.backend(use), []) for use in uses if use.view.ana_state in serving]


async def _flush(io: Io) -> Outcome:
    for _, backend, _ in io.targets:
        await backend.flush()
    return Outcome()


def _dsm_ranges(io: Io) -> list[Range]:
    size, facts = io.block_size, io.home.facts
    ranges = parse_many(DsmRange, io.data, io.length // DsmRange.SIZE)
    for each in ranges:
        check_lba_range(each.slba, each.nlb, facts, error_loc=None)
    return [(each.slba * size, (each.slba + each.nlb) * size) for each in ranges if each.nlb]


def _dsm_targets(io: Io) -> list[Target]:
    """All ranges must lie in the namespace before any is deallocated."""
    assert io.use is not None
    deallocate = io.sqe.cdw11 & DSM_DEALLOCATE
    if deallocate and (io.use.view.write_protected or io.home.facts.readonly):
        raise NvmeStatusError(Status.NAMESPACE_WRITE_PROTECTED, f"namespace {io.sqe.nsid} is write protected")
    ranges = _dsm_ranges(io)
    return [(io.use, io.home, ranges if deallocate else [])]


async def _dsm(io: Io) -> Outcome:
    """Attributes other than Deallocate are advice that we do not need."""
    if io.sqe.cdw11 & DSM_DEALLOCATE:
        for start, end in io.targets[0][2]:
            await io.home.unmap(start, end - start)
    return Outcome()


NVM_COMMANDS: Final[tuple[NvmCommand, ...]] = (
    NvmCommand(
        NvmOpcode.FLUSH,
        "Flush",
        "base 7.2",
        Direction.NONE,
        _flush,
        _flush_targets,
        to_medium=True,
        broadcast=True,
    ),
    NvmCommand(
        NvmOpcode.WRITE,
        "Write",
        "NVM 3.3.6",
        Direction.H2C,
        _write,
        _whole_range,
        length=rw_length,
        check=check_rw,
        writes=True,
        to_medium=True,
        user_data=True,
    ),
    NvmCommand(
        NvmOpcode.READ,
        "Read",
        "NVM 3.3.4",
        Direction.C2H,
        _read,
        _whole_range,
        length=rw_length,
        check=check_rw,
        user_data=True,
    ),
    NvmCommand(
        NvmOpcode.COMPARE,
        "Compare",
        "NVM 3.3.1",
        Direction.H2C,
        _compare,
        _whole_range,
        length=rw_length,
        check=check_rw,
        user_data=True,
    ),
    NvmCommand(
        NvmOpcode.WRITE_ZEROES,
        "Write Zeroes",
        "NVM 3.3.8",
        Direction.NONE,
        _write_zeroes,
        _whole_range,
        check=check_rw,
        writes=True,
        to_medium=True,
    ),
    NvmCommand(
        NvmOpcode.DATASET_MANAGEMENT,
        "Dataset Management",
        "NVM 3.3.3",
        Direction.H2C,
        _dsm,
        _dsm_targets,
        length=dsm_length,
        to_medium=True,
        rule=LengthRule.AT_LEAST,
    ),
    NvmCommand(NvmOpcode.VERIFY, "Verify", "NVM 3.3.5", Direction.NONE, _verify, _whole_range, check=check_rw),
    NvmCommand(
        NvmOpcode.COPY,
        "Copy",
        "NVM 3.3.2",
        Direction.H2C,
        copy,
        copy_targets,
        length=copy_length,
        check=check_copy,
        writes=True,
        to_medium=True,
    ),
)

COMMANDS: Final[Mapping[int, NvmCommand]] = MappingProxyType({row.opcode: row for row in NVM_COMMANDS})


async def run(io: Io, begin: Callable[[], None], *, then: Io | None = None) -> tuple[Outcome, Outcome | None]:
    """Carries out a command whose data is here, or a fused Compare and Write (``then`` is the Write).

    ``begin`` is called when nothing but the back end is left to wait for; until then the task may be cancelled. Raises
    NvmeStatusError for the command, never OSError. Of a fused pair the Compare's error is raised; the Write's is raised
    as ``SecondFailed``.
    """
    targets = io.targets = io.command.targets(io)
    for use, backend, _ in targets:
        use.users.enter()
        backend.users.enter()
    holds: list[tuple[Backend, Hold]] = []
    try:
        for backend, ranges in _by_lock(targets):
            holds.append((backend, await backend.locks.acquire(ranges, exclusive=then is not None)))
        begin()
        outcome = await _guarded(io)
        if then is None:
            return outcome, None
        try:
            return outcome, await _guarded(then)
        except NvmeStatusError as error:
            raise SecondFailed(outcome, error) from error
    finally:
        for backend, hold in holds:
            backend.locks.release(hold)
        for use, backend, _ in targets:
            backend.users.leave()
            use.users.leave()


class SecondFailed(Exception):
    """The Write of a fused pair failed; its Compare has succeeded (NVM 2.1.3.1: its status is unaffected)."""

    def __init__(self, first: Outcome, error: NvmeStatusError) -> None:
        super().__init__(str(error))
        self.first = first
        self.error = error


def _by_lock(targets: list[Target]) -> list[tuple[Backend, list[Range]]]:
    """The ranges of each back end in one piece, in the one order in which everybody takes locks."""
    merged: dict[Backend, list[Range]] = {}
    for _, backend, ranges in targets:
        if ranges:
            merged.setdefault(backend, []).extend(ranges)
    return sorted(merged.items(), key=lambda item: item[0].locks.order)


async def _guarded(io: Io) -> Outcome:
    try:
        return await io.command.execute(io)
    except OSError as error:
        raise status_of_errno(error, write=io.command.to_medium) from error
    except MemoryError as error:
        raise NvmeStatusError(Status.COMMAND_INTERRUPTED, "out of memory", dnr=False) from error
