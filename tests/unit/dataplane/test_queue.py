"""The queue itself: order, flow, memory, aborts, Fabrics commands, the ends it can have."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from nvmet_p2p.dataplane.inprocess import queue_socket
from nvmet_p2p.dataplane.inprocess.queue import PAYLOAD_BYTES_MIN
from nvmet_p2p.protocol.events import PeerTerminated
from nvmet_p2p.protocol.tcp_host import HostOptions
from nvmet_p2p.wire.fabrics import Disconnect
from nvmet_p2p.wire.spec import FabricsType, Fes, NvmOpcode, Psdt, Status
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.dataplane.support import (
    KEY,
    MDTS,
    malloc,
    ns,
    rig,
    rw,
    settled,
    until,
    use_gates,
    view_of,
)

W, R = NvmOpcode.WRITE, NvmOpcode.READ
FLUSH = Sqe(opc=NvmOpcode.FLUSH, nsid=1)


# -- order and concurrency


async def test_commands_complete_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig(malloc("slow"), malloc("fast"), view=view_of(ns(1, "slow"), ns(2, "fast"))) as it:
        host = await it.queue()
        gates["slow"].hold()
        slow = host.submit(rw(R, 0, 1, nsid=1), read_len=512)
        fast = host.submit(rw(R, 0, 1, nsid=2), read_len=512)
        await host.wait(fast)
        assert it.engine.queues(KEY)[0].outstanding == 1
        gates["slow"].open.set()
        await host.wait(slow)
        assert host.order == [fast, slow]


async def test_all_of_a_queue_at_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue(sqsize=63)
        gates["m0"].hold()
        cids = [host.submit(rw(R, lba, 1), read_len=512) for lba in range(64)]
        await host.flush()
        await until(lambda: gates["m0"].waiting == 64)
        gates["m0"].open.set()
        assert {done.cqe.status for done in await host.wait(*cids)} == {0}


async def test_one_command_too_many_ends_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue(sqsize=3)
        gates["m0"].hold()
        for lba in range(5):
            host.submit(rw(R, lba, 1), read_len=512)
        await host.flush()
        await until(lambda: gates["m0"].waiting == 4)
        gates["m0"].open.set()
        await host.wait_closed()
        assert host.others == [PeerTerminated(Fes.PDU_SEQUENCE_ERROR, 0)]
        host.sock.close()
        await until(lambda: bool(it.events.closed))
        assert it.engine.queues() == []


# -- completions


@pytest.mark.parametrize("flow_control", [True, False])
async def test_sqhd(flow_control: bool) -> None:
    async with rig() as it:
        host = await it.queue(sqsize=3, flow_control=flow_control)
        heads = [(await host.io(FLUSH)).cqe.sqhd for _ in range(6)]
        assert heads == ([2, 3, 0, 1, 2, 3] if flow_control else [0xFFFF] * 6)


@pytest.mark.parametrize(
    ("flow_control", "c2h_success", "flag"), [(False, True, True), (False, False, False), (True, True, False)]
)
async def test_success_flag(flow_control: bool, c2h_success: bool, flag: bool) -> None:
    async with rig() as it:
        host = await it.queue(flow_control=flow_control, c2h_success=c2h_success)
        completed = await host.io(rw(R, 0, 8), read_len=4096)
        assert completed.cqe.status == 0
        assert completed.by_success_flag is flag
        completed = await host.io(rw(R, 1 << 40, 8), read_len=4096)
        assert completed.cqe.status == Status.LBA_OUT_OF_RANGE
        assert not completed.by_success_flag


async def test_completion_names_the_queue() -> None:
    async with rig() as it:
        await it.queue()
        host = await it.queue()
        assert (await host.io(FLUSH)).cqe.sqid == 2


async def test_command_id_in_flight_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        gates["m0"].hold()
        twice = replace(rw(R, 0, 1, cid=5), psdt=Psdt.SGL_MPTR_CONTIGUOUS)
        host.submit(twice, read_len=512)
        await host.flush()
        await gates["m0"].arrived.wait()
        pdu = b"\x04\x00\x48\x00\x48\x00\x00\x00" + twice.build()  # our own side would refuse to send it
        await asyncio.get_running_loop().sock_sendall(host.sock, pdu)
        (completed,) = await host.wait(5)
        assert completed.cqe.status == Status.COMMAND_ID_CONFLICT
        assert it.engine.queues()[0].outstanding == 1
        gates["m0"].open.set()
        await until(lambda: it.engine.queues()[0].outstanding == 0)


@pytest.mark.parametrize("options", [HostOptions(hdgst=True, ddgst=True), HostOptions(hpda=3, maxr2t=3)])
async def test_digests_and_alignment(options: HostOptions) -> None:
    async with rig() as it:
        host = await it.queue(options=options)
        data = random.Random(1).randbytes(MDTS)
        await host.write(0, data)
        assert await host.read(0, MDTS // 512) == data
        await host.write(7, data[:512])
        assert await host.read(7, 1) == data[:512]


@pytest.mark.parametrize("in_capsule", [True, False])
async def test_data_digest_error_fails_the_command_alone(in_capsule: bool) -> None:
    async with rig() as it:
        host = await it.queue(options=HostOptions(hdgst=True, ddgst=True))
        loop = asyncio.get_running_loop()
        cid = host.submit(rw(W, 0, 1), data=b"\x05" * 512, in_capsule=in_capsule)
        if not in_capsule:
            await host.flush()
            host.host.receive_data(await loop.sock_recv(host.sock, 4096))  # the R2T
        spoiled = bytearray(b"".join(host.host.data_to_send()))
        spoiled[-1] ^= 1
        await loop.sock_sendall(host.sock, spoiled)
        (completed,) = await host.wait(cid)
        assert completed.cqe.status == Status.TRANSIENT_TRANSPORT_ERROR
        assert not completed.cqe.dnr
        assert await host.read(0, 1) == bytes(512)


# -- memory and back-pressure


async def test_a_host_that_does_not_read_holds_a_bounded_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue(sqsize=127, sndbuf=4096)
        blocks = MDTS // 512
        cids = [host.submit(rw(R, 0, blocks), read_len=MDTS) for _ in range(128)]
        await host.flush()
        await settled(it, 128)
        for _ in range(1000):
            await asyncio.sleep(0)
        started = len(gates["m0"].calls)
        assert started * MDTS <= PAYLOAD_BYTES_MIN + 2 * MDTS
        assert started < 128
        assert {done.cqe.status for done in await host.wait(*cids)} == {0}
        assert len(gates["m0"].calls) == 128


async def test_responses_that_are_not_read_stop_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that sends without end and reads nothing: its commands stay in the socket, then with itself."""
    monkeypatch.setattr(queue_socket, "UNSENT_HIGH_BYTES", 24_000)
    async with rig() as it:
        host = await it.queue(sqsize=1023, sndbuf=4096)
        bad = replace(Sqe(opc=0xC0, nsid=1), psdt=Psdt.SGL_MPTR_CONTIGUOUS).build()
        burst = (b"\x04\x00\x48\x00\x48\x00\x00\x00" + bad) * 100
        (queue,) = it.engine.queues()
        sent = 0
        while queue.commands == sent:
            await asyncio.get_running_loop().sock_sendall(host.sock, burst)
            sent += 100
            for _ in range(50):
                await asyncio.sleep(0)
            (queue,) = it.engine.queues()
        assert 24_000 <= queue.commands * 24 < 60_000
        for _ in range(1000):
            await asyncio.sleep(0)
        assert it.engine.queues() == [queue]
        loop = asyncio.get_running_loop()
        received = 0
        while received < sent * 24:  # it reads again: all is answered
            received += len(await loop.sock_recv(host.sock, 65536))
        assert it.engine.queues()[0].commands == sent


async def test_writes_ask_for_no_more_data_than_the_queue_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue(options=HostOptions(hold_r2t=True))
        cids = [host.submit(rw(W, 0, MDTS // 512), data=bytes(MDTS)) for _ in range(128)]
        await host.flush()
        await settled(it, 128)
        while host.host.held_r2ts * MDTS < PAYLOAD_BYTES_MIN:
            await host.pump()
        assert host.host.held_r2ts * MDTS == PAYLOAD_BYTES_MIN
        while not all(cid in host.done for cid in cids):
            host.host.serve_r2ts()
            await host.flush()
            await host.pump()
        assert len(gates["m0"].calls) == 128


async def test_slow_consumer_gets_every_byte() -> None:
    async with rig() as it:
        host = await it.queue(sndbuf=4096)
        data = random.Random(2).randbytes(MDTS)
        await host.write(0, data)
        cids = [host.submit(rw(R, 0, MDTS // 512), read_len=MDTS) for _ in range(4)]
        await host.flush()
        loop = asyncio.get_running_loop()
        while len(host.done) < 4:
            for event in host.host.receive_data(await loop.sock_recv(host.sock, 4099)):
                host.done[event.cid] = event  # type: ignore[union-attr,assignment]
        assert all(bytes(host.done[cid].data) == data for cid in cids)


# -- abort


async def test_abort_before_and_in_the_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue(options=HostOptions(hold_r2t=True))
        gates["m0"].hold()
        reading = host.submit(rw(R, 0, 1), read_len=512)
        waiting = host.submit(rw(W, 0, 1), data=bytes(512), in_capsule=False)
        await host.flush()
        await gates["m0"].arrived.wait()
        await settled(it, 2)
        assert not await it.engine.abort(KEY, 1, reading)
        assert not await it.engine.abort(KEY, 1, 999)
        assert not await it.engine.abort(KEY, 2, waiting)
        assert not await it.engine.abort(KEY + 1, 1, waiting)
        assert await it.engine.abort(KEY, 1, waiting)
        (completed,) = await host.wait(waiting)
        assert completed.cqe.status == Status.ABORT_REQUESTED
        assert not await it.engine.abort(KEY, 1, waiting)
        gates["m0"].open.set()
        assert (await host.wait(reading))[0].cqe.status == 0
        assert gates["m0"].calls == ["read"]


async def test_abort_of_one_that_waits_for_room_or_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host, other = await it.queue(), await it.queue()
        gates["m0"].hold()
        pair = (
            other.submit(rw(NvmOpcode.COMPARE, 0, 1, fuse=1), data=bytes(512)),
            other.submit(rw(W, 0, 1, fuse=2), data=bytes(512)),
        )
        await other.flush()
        await gates["m0"].arrived.wait()
        locked = host.submit(rw(R, 0, MDTS // 512), read_len=MDTS)
        rooms = [host.submit(rw(R, 512, MDTS // 512), read_len=MDTS) for _ in range(40)]
        await host.flush()
        await settled(it, 43)
        await asyncio.sleep(0)
        assert await it.engine.abort(KEY, 1, locked)
        assert await it.engine.abort(KEY, 1, rooms[-1])
        assert {done.cqe.status for done in await host.wait(locked, rooms.pop())} == {Status.ABORT_REQUESTED}
        gates["m0"].open.set()
        assert {done.cqe.status for done in await other.wait(*pair)} == {0}
        assert {done.cqe.status for done in await host.wait(*rooms)} == {0}


# -- changes of the configuration


async def test_removed_namespace_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue(options=HostOptions(hold_r2t=True))
        gates["m0"].hold()
        inside = host.submit(rw(W, 0, 1), data=bytes(512), in_capsule=True)
        waiting = host.submit(rw(W, 0, 1), data=bytes(512), in_capsule=False)
        await host.flush()
        await gates["m0"].arrived.wait()
        await settled(it, 2)
        removal = asyncio.ensure_future(it.engine.controller_set(view_of()))
        await asyncio.sleep(0)
        assert await host.status(rw(R, 0, 1), read_len=512) == Status.INVALID_NAMESPACE_OR_FORMAT
        assert not removal.done()
        gates["m0"].open.set()
        await removal
        assert (await host.wait(inside))[0].cqe.status == 0
        host.host.serve_r2ts()
        assert (await host.wait(waiting))[0].cqe.status == Status.INVALID_NAMESPACE_OR_FORMAT
        assert gates["m0"].calls == ["write"]


async def test_a_view_changes_between_commands() -> None:
    async with rig() as it:
        host = await it.queue()
        assert await host.status(rw(R, 0, 1), read_len=512) == 0
        await it.engine.controller_set(view_of(ns(ana_state=3)))
        assert await host.status(rw(R, 0, 1), read_len=512) == Status.ANA_INACCESSIBLE
        await it.engine.controller_set(view_of(ns(write_protected=True)))
        assert await host.status(rw(W, 0, 1), data=bytes(512)) == Status.NAMESPACE_WRITE_PROTECTED
        await it.engine.controller_set(view_of(ns(), mdts=512))
        assert await host.status(rw(R, 0, 2), read_len=1024) == Status.INVALID_FIELD


async def test_resize_under_a_command_that_waits_for_data() -> None:
    async with rig() as it:
        host = await it.queue(options=HostOptions(hold_r2t=True))
        cid = host.submit(rw(W, 2047, 1), data=bytes(512), in_capsule=False)
        await host.flush()
        await settled(it, 1)
        await host.pump()
        facts = await it.engine.bdev_resize(malloc(num_blocks=1024))
        assert facts.num_blocks == 1024
        host.host.serve_r2ts()
        assert (await host.wait(cid))[0].cqe.status == Status.LBA_OUT_OF_RANGE


async def test_bdev_delete_waits_for_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        gates["m0"].hold()
        cid = host.submit(rw(W, 0, 1), data=bytes(512))
        await host.flush()
        await gates["m0"].arrived.wait()
        deletion = asyncio.ensure_future(it.engine.bdev_delete("m0"))
        assert await host.status(rw(R, 0, 1), read_len=512) == Status.NAMESPACE_NOT_READY
        assert not deletion.done()
        gates["m0"].open.set()
        await deletion
        assert gates["m0"].closed
        assert (await host.wait(cid))[0].cqe.status == 0
        await it.engine.bdev_create(malloc())
        assert await host.read(0, 1) == bytes(512)


# -- Fabrics commands on an I/O queue


async def test_disconnect_is_answered_last(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue(options=HostOptions(hold_r2t=True))
        gates["m0"].hold()
        inside = host.submit(rw(R, 0, 1), read_len=512)
        waiting = host.submit(rw(W, 0, 1), data=bytes(512), in_capsule=False)
        await host.flush()
        await gates["m0"].arrived.wait()
        last = host.submit(Sqe.parse(Disconnect().build()))
        late = host.submit(FLUSH)
        await host.flush()
        await until(lambda: it.engine.queues()[0].commands == 3)
        gates["m0"].open.set()
        await host.wait_closed()
        assert [host.done[cid].cqe.status for cid in (inside, waiting, last)] == [0, Status.ABORTED_SQ_DELETION, 0]
        assert host.order[-1] == last
        assert late not in host.done
        await until(lambda: bool(it.events.closed))
        assert it.events.closed == [(KEY, 1, "disconnected by the host")]


async def test_other_fabrics_commands() -> None:
    async with rig() as it:
        host = await it.queue()
        for fctype, status in (
            (FabricsType.PROPERTY_GET, Status.INVALID_OPCODE),
            (FabricsType.PROPERTY_SET, Status.INVALID_OPCODE),
            (FabricsType.AUTHENTICATION_SEND, Status.INVALID_FIELD),
            (FabricsType.CONNECT, Status.COMMAND_SEQUENCE_ERROR),
            (0xC0, Status.INVALID_OPCODE),
        ):
            assert await host.status(Sqe(opc=0x7F, nsid=fctype)) == status
        bad = Sqe.parse(Disconnect(recfmt=1).build())
        assert await host.status(bad) == Status.CONNECT_INCOMPATIBLE_FORMAT
        assert await host.status(FLUSH) == 0
