"""Fused Compare and Write: pairing on the queue, its statuses, and that nothing comes between."""

from __future__ import annotations

import asyncio
import errno

import pytest

from nvmet_p2p.protocol.tcp_host import HostOptions
from nvmet_p2p.wire.spec import Fuse, NvmOpcode, Status
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.dataplane.support import KEY, Initiator, rig, rw, until, use_gates

W, R, C = NvmOpcode.WRITE, NvmOpcode.READ, NvmOpcode.COMPARE
MISSING, FAILED = Status.ABORTED_MISSING_FUSED, Status.ABORTED_FAILED_FUSED
OLD, NEW = b"\x01" * 512, b"\x02" * 512


def pair(host: Initiator, expected: bytes, new: bytes, *, slba: int = 3, in_capsule: bool = True) -> tuple[int, int]:
    blocks = len(expected) // 512
    return (
        host.submit(rw(C, slba, blocks, fuse=Fuse.FIRST), data=expected, in_capsule=in_capsule),
        host.submit(rw(W, slba, blocks, fuse=Fuse.SECOND), data=new, in_capsule=in_capsule),
    )


async def statuses(host: Initiator, *cids: int) -> list[int]:
    return [completed.cqe.status for completed in await host.wait(*cids)]


@pytest.mark.parametrize("in_capsule", [True, False])
async def test_success_and_miscompare(in_capsule: bool) -> None:
    async with rig() as it:
        host = await it.queue()
        await host.write(3, OLD)
        assert await statuses(host, *pair(host, OLD, NEW, in_capsule=in_capsule)) == [0, 0]
        assert await host.read(3, 1) == NEW
        assert await statuses(host, *pair(host, OLD, OLD, in_capsule=in_capsule)) == [Status.COMPARE_FAILURE, FAILED]
        assert await host.read(3, 1) == NEW


async def test_completions_come_in_the_order_of_the_pair() -> None:
    async with rig() as it:
        host = await it.queue()
        first, second = pair(host, bytes(512), NEW)
        await host.wait(first, second)
        assert host.order == [first, second]


async def test_half_a_pair() -> None:
    async with rig() as it:
        host = await it.queue()
        lone = host.submit(rw(C, 0, 1, fuse=Fuse.FIRST), data=bytes(512))
        plain = host.submit(rw(C, 0, 1), data=bytes(512))
        assert await statuses(host, lone, plain) == [MISSING, 0]
        assert await statuses(host, host.submit(rw(W, 0, 1, fuse=Fuse.SECOND), data=NEW)) == [MISSING]
        assert await host.read(0, 1) == bytes(512)


async def test_two_first_halves() -> None:
    async with rig() as it:
        host = await it.queue()
        lone = host.submit(rw(C, 3, 1, fuse=Fuse.FIRST), data=bytes(512))
        assert await statuses(host, lone, *pair(host, bytes(512), NEW)) == [MISSING, 0, 0]


async def test_reversed() -> None:
    async with rig() as it:
        host = await it.queue()
        second = host.submit(rw(W, 0, 1, fuse=Fuse.SECOND), data=NEW)
        first = host.submit(rw(C, 0, 1, fuse=Fuse.FIRST), data=bytes(512))
        plain = host.submit(Sqe(opc=NvmOpcode.FLUSH, nsid=1))
        assert await statuses(host, second, first, plain) == [MISSING, MISSING, 0]


@pytest.mark.parametrize("in_capsule", [True, False])
async def test_other_opcodes(in_capsule: bool) -> None:
    async with rig() as it:
        host = await it.queue()
        first = host.submit(rw(W, 0, 1, fuse=Fuse.FIRST), data=NEW, in_capsule=in_capsule)
        second = host.submit(rw(W, 0, 1, fuse=Fuse.SECOND), data=NEW, in_capsule=in_capsule)
        assert await statuses(host, first, second) == [Status.INVALID_FIELD, FAILED]
        first = host.submit(rw(C, 0, 1, fuse=Fuse.FIRST), data=bytes(512), in_capsule=in_capsule)
        second = host.submit(rw(C, 0, 1, fuse=Fuse.SECOND), data=bytes(512), in_capsule=in_capsule)
        assert await statuses(host, first, second) == [MISSING, Status.INVALID_FIELD]
        assert await host.status(rw(C, 0, 1, fuse=3), data=bytes(512)) == Status.INVALID_FIELD
        assert await host.read(0, 1) == bytes(512)


@pytest.mark.parametrize(("slba", "blocks", "nsid"), [(4, 1, 1), (3, 2, 1), (3, 1, 2)])
async def test_ranges_that_differ(slba: int, blocks: int, nsid: int) -> None:
    async with rig() as it:
        host = await it.queue()
        first = host.submit(rw(C, 3, 1, fuse=Fuse.FIRST), data=bytes(512))
        second = host.submit(rw(W, slba, blocks, nsid=nsid, fuse=Fuse.SECOND), data=NEW * blocks)
        assert await statuses(host, first, second) == [Status.INVALID_FIELD] * 2


async def test_first_half_at_fault() -> None:
    async with rig() as it:
        host = await it.queue()
        first = host.submit(rw(C, 1 << 40, 1, fuse=Fuse.FIRST), data=bytes(512))
        second = host.submit(rw(W, 1 << 40, 1, fuse=Fuse.SECOND), data=NEW)
        assert await statuses(host, first, second) == [Status.LBA_OUT_OF_RANGE, FAILED]


@pytest.mark.parametrize("in_capsule", [True, False])
async def test_second_half_at_fault_leaves_the_compare_its_own_status(in_capsule: bool) -> None:
    async with rig() as it:
        host = await it.queue()
        first = host.submit(rw(C, 3, 1, fuse=Fuse.FIRST), data=bytes(512), in_capsule=in_capsule)
        second = host.submit(rw(W, 3, 1, fuse=Fuse.SECOND), data=NEW * 2)
        assert await statuses(host, first, second) == [0, Status.SGL_INVALID_DATA_LENGTH]


async def test_write_that_fails_in_the_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        gates["m0"].fail["write"] = OSError(errno.EIO, "no")
        assert await statuses(host, *pair(host, bytes(512), NEW)) == [0, Status.WRITE_FAULT]
        gates["m0"].fail = {"read": OSError(errno.EIO, "no")}
        assert await statuses(host, *pair(host, bytes(512), NEW)) == [Status.UNRECOVERED_READ_ERROR, FAILED]


async def test_a_fabrics_command_or_a_conflict_parts_the_pair() -> None:
    async with rig() as it:
        host = await it.queue()
        first = host.submit(rw(C, 3, 1, fuse=Fuse.FIRST), data=bytes(512))
        fabrics = host.submit(Sqe(opc=0x7F, fuse=Fuse.SECOND, nsid=4))
        second = host.submit(rw(W, 3, 1, fuse=Fuse.SECOND), data=NEW)
        assert await statuses(host, first, fabrics, second) == [MISSING, Status.INVALID_FIELD, MISSING]


async def test_data_of_a_half_that_a_command_before_it_has_failed() -> None:
    """Both in one segment: the data arrives for a command that is over (found by the differential test)."""
    async with rig() as it:
        host = await it.queue(options=HostOptions(hold_r2t=True))
        loop = asyncio.get_running_loop()
        lone = host.submit(rw(C, 3, 1, fuse=Fuse.FIRST), data=bytes(512), in_capsule=False)
        await host.flush()
        await until(lambda: it.engine.queues()[0].commands == 1)
        await host.pump()  # the R2T
        plain = host.submit(Sqe(opc=NvmOpcode.FLUSH, nsid=1))
        host.host.serve_r2ts()
        behind = host.submit(Sqe(opc=NvmOpcode.FLUSH, nsid=1))
        await loop.sock_sendall(host.sock, b"".join(host.host.data_to_send()))
        assert await statuses(host, lone, plain, behind) == [MISSING, 0, 0]


async def test_nothing_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the pair is at work other queues' commands on its blocks wait, those beside it do not."""
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host, other = await it.queue(), await it.queue()
        gate = gates["m0"]
        gate.hold()
        first, second = pair(host, bytes(1024), NEW * 2)
        await host.flush()
        await gate.arrived.wait()
        inside = other.submit(rw(W, 4, 1), data=OLD)
        reading = other.submit(rw(R, 2, 2), read_len=1024)
        beside = other.submit(rw(W, 5, 1), data=OLD)
        await other.flush()
        await until(lambda: gate.waiting == 2)
        await asyncio.sleep(0)
        assert gate.calls == ["read", "write"]
        gate.open.set()
        assert await statuses(host, first, second) == [0, 0]
        assert await statuses(other, inside, reading, beside) == [0, 0, 0]
        assert sorted(gate.calls) == ["read", "read", "write", "write", "write"]
        assert await host.read(3, 3) == NEW + OLD + OLD


async def test_many_increments_are_all_counted() -> None:
    """Four queues add to one counter with Compare and Write: none is lost."""
    async with rig() as it:
        hosts = [await it.queue() for _ in range(4)]

        async def add(host: Initiator, times: int) -> None:
            while times:
                old = await host.read(9, 1)
                value = int.from_bytes(old[:8], "little") + 1
                new = value.to_bytes(8, "little") + bytes(504)
                result = await statuses(host, *pair(host, old, new, slba=9))
                if result == [0, 0]:
                    times -= 1
                else:
                    assert result == [Status.COMPARE_FAILURE, FAILED]

        await asyncio.gather(*(add(host, 25) for host in hosts))
        assert int.from_bytes((await hosts[0].read(9, 1))[:8], "little") == 100


async def test_abort_of_a_half() -> None:
    async with rig() as it:
        host = await it.queue()
        first = host.submit(rw(C, 3, 1, fuse=Fuse.FIRST), data=bytes(512))
        await host.flush()
        await until(lambda: it.engine.queues()[0].outstanding == 1)
        assert await it.engine.abort(KEY, 1, first)
        second = host.submit(rw(W, 3, 1, fuse=Fuse.SECOND), data=NEW)
        assert await statuses(host, first, second) == [Status.ABORT_REQUESTED, FAILED]


async def test_data_of_the_second_before_the_first() -> None:
    """The halves' data may arrive in either order."""
    async with rig() as it:
        host = await it.queue()
        first = host.submit(rw(C, 3, 1, fuse=Fuse.FIRST), data=bytes(512), in_capsule=False)
        second = host.submit(rw(W, 3, 1, fuse=Fuse.SECOND), data=NEW, in_capsule=True)
        assert await statuses(host, first, second) == [0, 0]
        assert await host.read(3, 1) == NEW
