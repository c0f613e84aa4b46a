"""The Copy command (NVM 3.3.2), descriptor formats 0 to 3.

The formats differ in room for protection information and in whether a source names its namespace. Our namespaces have
no protection information, so none of them is "formatted to use 16b Guard" or wider and every format that is enabled
fits; its expected tags are ignored, and so are PRINFOR and PRINFOW. Every copy stays inside the target, hence is a fast
copy operation (3.3.2.1): Fast Copy Only is always met.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from nvmet_p2p import limits
from nvmet_p2p.dataplane.inprocess.nvm import CopySource, Io, Outcome, Target, check_lba_range, fua_of, slba_of
from nvmet_p2p.dataplane.inprocess.status import status_of_errno
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.wire.codec import BytesLike
from nvmet_p2p.wire.nvm import (
    COPY_DESCRIPTORS,
    CopyDescriptor,
    CopyDescriptor2,
    CopyDescriptor3,
    parse_copy_descriptors,
)
from nvmet_p2p.wire.spec import Status

CHUNK_BYTES: Final = 1 << 20  # memory that a copy without overlap takes
WITH_SNSID: Final = (CopyDescriptor2, CopyDescriptor3)


def copy_targets(io: Io) -> list[Target]:
    """Checks the source range entries against all limits; nothing is copied when any of them is at fault.

    Sets ``io.sources`` and ``io.overlapping``. Returns the destination and the sources.
    """
    assert io.use is not None
    desfmt = io.sqe.cdw12 >> 8 & 0xF
    entries = parse_copy_descriptors(desfmt, io.data, io.length // COPY_DESCRIPTORS[desfmt].SIZE)
    size = io.block_size
    total = sum(entry.nlb + 1 for entry in entries)
    if any(entry.nlb + 1 > limits.COPY_RANGE_BLOCKS_MAX for entry in entries):
        raise NvmeStatusError(Status.COMMAND_SIZE_LIMIT_EXCEEDED, "a source range is longer than MSSRL")
    if total > limits.COPY_BYTES_MAX // size:
        raise NvmeStatusError(Status.COMMAND_SIZE_LIMIT_EXCEEDED, f"{total} blocks, MCL is less")
    sdlba = slba_of(io.sqe)
    check_lba_range(sdlba, total, io.home.facts)
    destination = (sdlba * size, (sdlba + total) * size)
    io.sources = [_source(io, entry) for entry in entries]
    io.overlapping = any(
        each.backend is io.home and each.start < destination[1] and destination[0] < each.start + each.length
        for each in io.sources
    )
    if io.overlapping and isinstance(entries[0], WITH_SNSID):
        raise NvmeStatusError(Status.OVERLAPPING_IO_RANGE, "a source range overlaps the destination")
    return [
        (io.use, io.home, [destination]),
        *((each.use, each.backend, [(each.start, each.start + each.length)]) for each in io.sources),
    ]


def _source(io: Io, entry: CopyDescriptor) -> CopySource:
    assert io.use is not None
    use, backend = io.use, io.home
    if isinstance(entry, WITH_SNSID) and entry.snsid != io.sqe.nsid:
        use = io.controller.source_namespace(entry.snsid)
        backend = io.controller.backend(use)
    size = io.block_size
    if backend.facts.block_size != size:
        raise NvmeStatusError(
            Status.INCOMPATIBLE_NAMESPACE, f"blocks of {backend.facts.block_size} bytes to blocks of {size}"
        )
    check_lba_range(entry.slba, entry.nlb + 1, backend.facts, error_loc=None)
    return CopySource(use, backend, entry.slba * size, (entry.nlb + 1) * size)


async def copy(io: Io) -> Outcome:
    """Sources in their order to the destination. A failure names in dword 0 the lowest range not wholly copied.

    Overlap (allowed in formats 0 and 1, where the result is any of the sources) is resolved as if all was read first.
    """
    started = time.perf_counter_ns()
    at = slba_of(io.sqe) * io.block_size
    held: list[BytesLike] = []
    if io.overlapping:
        held = [await _read(source, source.start, source.length, 0) for source in io.sources]
    total = 0
    for index, source in enumerate(io.sources):
        if io.overlapping:
            await _write(io, at, held[index], index)
        else:
            for done in range(0, source.length, CHUNK_BYTES):
                data = await _read(source, source.start + done, min(CHUNK_BYTES, source.length - done), index)
                await _write(io, at + done, data, index)
        at += source.length
        total += source.length
    if fua_of(io.sqe):
        await io.home.flush()
    io.home.copied(total, started)
    return Outcome()


async def _read(source: CopySource, offset: int, length: int, index: int) -> BytesLike:
    await asyncio.sleep(0)  # a back end in memory never waits: others must have the loop between the pieces
    try:
        return await source.backend.copy_read(offset, length)
    except OSError as error:
        raise _at_range(status_of_errno(error, write=False), index) from error


async def _write(io: Io, offset: int, data: BytesLike, index: int) -> None:
    try:
        await io.home.copy_write(offset, data)
    except OSError as error:
        raise _at_range(status_of_errno(error, write=True), index) from error


def _at_range(error: NvmeStatusError, index: int) -> NvmeStatusError:
    error.dw0 = index
    return error
