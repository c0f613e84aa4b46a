"""The Copy command: formats, limits, namespaces, overlap."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from nvmet_p2p import limits
from nvmet_p2p.protocol.events import CommandCompleted
from nvmet_p2p.wire.nvm import CopyDescriptor, CopyDescriptor0, CopyDescriptor1, CopyDescriptor2, CopyDescriptor3
from nvmet_p2p.wire.spec import NSID_ALL, NvmOpcode, Status
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import CopyCommand
from tests.unit.dataplane.support import Initiator, malloc, ns, rig, use_gates, view_of

BLOCKS = 4096


def pattern(lba: int) -> bytes:
    return lba.to_bytes(8, "little") * 64


def descriptor(desfmt: int, slba: int, blocks: int, snsid: int = 1) -> CopyDescriptor:
    nlb = blocks - 1
    if desfmt == 0:
        return CopyDescriptor0(slba=slba, nlb=nlb, elbt=0x1234, elbat=5)
    if desfmt == 1:
        return CopyDescriptor1(slba=slba, nlb=nlb, elbt=b"\x01" * 10)
    if desfmt == 2:
        return CopyDescriptor2(slba=slba, nlb=nlb, snsid=snsid)
    return CopyDescriptor3(slba=slba, nlb=nlb, snsid=snsid)


async def copy(
    host: Initiator,
    sdlba: int,
    sources: Sequence[tuple[int, ...]],
    *,
    desfmt: int = 0,
    nsid: int = 1,
    prinfor: int = 0,
    fua: bool = False,
) -> CommandCompleted:
    view = CopyCommand(sdlba=sdlba, nr=len(sources) - 1, desfmt=desfmt, prinfor=prinfor, prinfow=prinfor, fua=fua)
    data = b"".join(descriptor(desfmt, *source).build() for source in sources)
    return await host.io(Sqe(opc=NvmOpcode.COPY, nsid=nsid, **view.dwords()), data=data)


async def fill(host: Initiator, blocks: int, *, nsid: int = 1) -> None:
    for start in range(0, blocks, 128):
        count = min(128, blocks - start)
        await host.write(start, b"".join(map(pattern, range(start, start + count))), nsid=nsid)


@pytest.mark.parametrize("desfmt", [0, 1, 2, 3])
async def test_ranges_in_their_order(desfmt: int) -> None:
    async with rig(malloc(num_blocks=BLOCKS)) as it:
        host = await it.queue()
        await fill(host, 32)
        completed = await copy(host, 100, [(10, 3), (0, 2), (31, 1)], desfmt=desfmt, prinfor=0xF)
        assert (completed.cqe.status, completed.cqe.dw0) == (0, 0)
        assert await host.read(100, 7) == b"".join(map(pattern, (10, 11, 12, 0, 1, 31))) + bytes(512)
        stat = it.engine.iostat("m0")
        assert stat is not None
        assert (stat.num_copy_ops, stat.bytes_copied) == (1, 6 * 512)


@pytest.mark.parametrize("desfmt", [2, 3])
async def test_across_namespaces(desfmt: int) -> None:
    async with rig(malloc("a"), malloc("b"), view=view_of(ns(1, "a"), ns(2, "b"))) as it:
        host = await it.queue()
        await fill(host, 8, nsid=2)
        await host.write(100, pattern(7777))
        completed = await copy(host, 3, [(4, 2, 2), (100, 1, 1)], desfmt=desfmt)
        assert completed.cqe.status == 0
        assert await host.read(3, 3) == pattern(4) + pattern(5) + pattern(7777)


@pytest.mark.parametrize("desfmt", [0, 2, 4, 15])
async def test_formats_that_are_not_enabled(desfmt: int) -> None:
    async with rig(view=view_of(ns(), copy_formats=0b0010)) as it:
        host = await it.queue()
        view = CopyCommand(sdlba=0, nr=0, desfmt=desfmt)
        sqe = Sqe(opc=NvmOpcode.COPY, nsid=1, **view.dwords())
        assert await host.status(sqe, data=bytes(32)) == Status.INVALID_FIELD
        assert (await copy(host, 0, [(1, 1)], desfmt=1)).cqe.status == 0


async def test_limits() -> None:
    async with rig(malloc(num_blocks=200_000), malloc("b", block_size=4096, num_blocks=100_000)) as it:
        await it.engine.controller_set(view_of(ns(), ns(2, "b")))
        host = await it.queue()
        too_big = Status.COMMAND_SIZE_LIMIT_EXCEEDED
        ranges = [(lba, 1) for lba in range(limits.COPY_RANGES_MAX)]
        assert (await copy(host, 1000, ranges)).cqe.status == 0
        assert (await copy(host, 1000, [*ranges, (0, 1)])).cqe.status == too_big
        assert (await copy(host, 100_000, [(0, limits.COPY_RANGE_BLOCKS_MAX)])).cqe.status == 0
        assert (await copy(host, 100_000, [(0, limits.COPY_RANGE_BLOCKS_MAX + 1)])).cqe.status == too_big
        half = limits.COPY_BYTES_MAX // 4096 // 2
        assert (await copy(host, 40_000, [(0, half), (0, half)], nsid=2)).cqe.status == 0
        assert (await copy(host, 40_000, [(0, half), (0, half + 1)], nsid=2)).cqe.status == too_big


@pytest.mark.parametrize(
    ("snsid", "status"),
    [
        (0, Status.INVALID_NAMESPACE_OR_FORMAT),
        (NSID_ALL, Status.INVALID_NAMESPACE_OR_FORMAT),
        (9, Status.INVALID_FIELD),
        (2, Status.INCOMPATIBLE_NAMESPACE),
        (3, Status.ANA_INACCESSIBLE),
        (4, Status.NAMESPACE_NOT_READY),
    ],
)
async def test_sources_that_cannot_be(snsid: int, status: int) -> None:
    view = view_of(ns(1, "a"), ns(2, "b"), ns(3, "c", ana_state=3), ns(4, "absent"))
    async with rig(malloc("a"), malloc("b", block_size=4096), malloc("c"), view=view) as it:
        host = await it.queue()
        await fill(host, 2)
        completed = await copy(host, 100, [(0, 2, 1), (0, 1, snsid)], desfmt=2)
        assert (completed.cqe.status, completed.cqe.dw0) == (status, 0)
        assert await host.read(100, 2) == bytes(1024)


@pytest.mark.parametrize(("sdlba", "source"), [(2047, (0, 2)), (100, (2047, 2)), (1 << 63, (0, 1)), (0, (1 << 63, 1))])
async def test_out_of_range(sdlba: int, source: tuple[int, int]) -> None:
    async with rig() as it:
        host = await it.queue()
        assert (await copy(host, sdlba, [(5, 1), source])).cqe.status == Status.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("desfmt", [0, 1, 2, 3])
@pytest.mark.parametrize(("sdlba", "slba"), [(12, 10), (10, 12), (10, 10)])
async def test_overlap(desfmt: int, sdlba: int, slba: int) -> None:
    """Prohibited in formats 2 and 3; in 0 and 1 the result is one of the sources, here as if all was read first."""
    async with rig() as it:
        host = await it.queue()
        await fill(host, 32)
        before = await host.read(0, 32)
        completed = await copy(host, sdlba, [(slba, 4)], desfmt=desfmt)
        after = await host.read(0, 32)
        if desfmt in (2, 3):
            assert completed.cqe.status == Status.OVERLAPPING_IO_RANGE
            assert after == before
        else:
            assert completed.cqe.status == 0
            moved = before[slba * 512 : (slba + 4) * 512]
            assert after == before[: sdlba * 512] + moved + before[(sdlba + 4) * 512 :]


async def test_neighbours_do_not_overlap() -> None:
    async with rig() as it:
        host = await it.queue()
        await fill(host, 16)
        assert (await copy(host, 4, [(0, 4), (8, 4)], desfmt=2)).cqe.status == Status.OVERLAPPING_IO_RANGE
        assert (await copy(host, 4, [(0, 4)], desfmt=2)).cqe.status == 0
        assert (await copy(host, 4, [(8, 4)], desfmt=2)).cqe.status == 0


async def test_failure_names_the_lowest_range_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig(malloc("a"), malloc("b"), view=view_of(ns(1, "a"), ns(2, "b"))) as it:
        host = await it.queue()
        gates["b"].fail["read"] = OSError(errno.EIO, "no")
        completed = await copy(host, 100, [(0, 2, 1), (3, 1, 1), (0, 1, 2), (5, 1, 1)], desfmt=2)
        assert (completed.cqe.status, completed.cqe.dw0) == (Status.UNRECOVERED_READ_ERROR, 2)
        gates["a"].fail["write"] = OSError(errno.ENOSPC, "no")
        completed = await copy(host, 100, [(0, 2, 1), (3, 1, 1)], desfmt=2)
        assert (completed.cqe.status, completed.cqe.dw0) == (Status.CAPACITY_EXCEEDED, 0)


async def test_force_unit_access(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        assert (await copy(host, 10, [(0, 1)], fua=True)).cqe.status == 0
        assert gates["m0"].calls == ["read", "write", "flush"]


async def test_length_of_the_descriptors_is_that_of_the_format() -> None:
    async with rig() as it:
        host = await it.queue()
        for desfmt, size in ((0, 32), (1, 40), (2, 32), (3, 40)):
            sqe = Sqe(opc=NvmOpcode.COPY, nsid=1, **CopyCommand(sdlba=9, nr=1, desfmt=desfmt).dwords())
            data = b"".join(descriptor(desfmt, lba, 1).build() for lba in (0, 1))
            assert len(data) == 2 * size
            assert await host.status(sqe, data=data) == 0
            assert await host.status(sqe, data=data[:-8]) == Status.SGL_INVALID_DATA_LENGTH
