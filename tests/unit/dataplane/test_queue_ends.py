"""The ends that a queue can have, and the engine around it: adoption, refusal, stop."""

from __future__ import annotations

import asyncio
import itertools
import socket
from dataclasses import replace

import pytest

from nvmet_p2p.dataplane.inprocess.engine import InProcessDataPlane
from nvmet_p2p.dataplane.port import DataPlane, QueueHandoff
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.protocol.events import PeerTerminated
from nvmet_p2p.protocol.tcp_common import TcpParams
from nvmet_p2p.protocol.tcp_host import HostOptions
from nvmet_p2p.wire.spec import NvmOpcode
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.dataplane.support import (
    KEY,
    Initiator,
    rig,
    rw,
    settled,
    until,
    use_gates,
)

W, R = NvmOpcode.WRITE, NvmOpcode.READ
FLUSH = Sqe(opc=NvmOpcode.FLUSH, nsid=1)


async def test_queue_close_awaits_the_back_end_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host, other = await it.queue(options=HostOptions(hold_r2t=True)), await it.queue()
        gates["m0"].hold()
        host.submit(rw(W, 0, 1), data=bytes(512), in_capsule=True)
        host.submit(rw(W, 0, 1), data=bytes(512), in_capsule=False)
        await host.flush()
        await settled(it, 2)
        await gates["m0"].arrived.wait()
        closing = asyncio.ensure_future(it.engine.queue_close(KEY, 1))
        await asyncio.sleep(0)
        assert not closing.done()
        gates["m0"].open.set()
        await closing
        await host.wait_closed()
        assert host.done == {}
        assert gates["m0"].calls == ["write"]
        assert [queue.qid for queue in it.engine.queues()] == [2]
        assert await other.status(FLUSH) == 0
        await it.engine.controller_remove(KEY)
        assert it.engine.queues() == []
        assert it.engine.io_activity(KEY) == 0
        assert it.events.closed == []


async def test_peer_goes_with_commands_in_the_back_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        gates["m0"].hold()
        host.submit(rw(W, 0, 1), data=b"\x01" * 512)
        host.submit(rw(R, 0, 1), read_len=512)
        await host.flush()
        await until(lambda: gates["m0"].waiting == 2)
        host.sock.close()
        await asyncio.sleep(0)
        assert it.events.closed == []  # a write of the old queue must not land after the host knows it is gone
        gates["m0"].open.set()
        await until(lambda: bool(it.events.closed))
        assert it.events.closed[0][:2] == (KEY, 1)
        assert await (await it.queue()).read(0, 1) == b"\x01" * 512


@pytest.mark.parametrize("garbage", [b"\xff" * 200, b"GET / HTTP/1.1\r\n\r\n" * 20, b"\x06\x00\x18\x18" + bytes(40)])
async def test_garbage_is_answered_with_a_term_req(garbage: bytes) -> None:
    async with rig() as it:
        host = await it.queue()
        await asyncio.get_running_loop().sock_sendall(host.sock, garbage)
        await host.wait_closed()
        assert isinstance(host.others[0], PeerTerminated)
        host.sock.close()
        await until(lambda: bool(it.events.closed))
        good = await it.queue()
        assert await good.status(FLUSH) == 0


async def test_term_req_of_the_host_closes_at_once() -> None:
    async with rig() as it:
        host = await it.queue()
        await asyncio.get_running_loop().sock_sendall(host.sock, bytes([2, 0, 24, 0, 24, 0, 0, 0]).ljust(24, b"\0"))
        await host.wait_closed()
        await until(lambda: bool(it.events.closed))


async def test_lingering_after_a_term_req_does_not_hold_up_the_control_plane() -> None:
    async with rig() as it:
        host = await it.queue()
        await asyncio.get_running_loop().sock_sendall(host.sock, b"\xff" * 200)
        await host.wait_closed()  # their half is closed, ours stays open
        await it.engine.queue_close(KEY, 1)
        assert it.engine.queues() == []


async def test_a_mistake_of_ours_ends_the_queue_instead_of_leaving_the_host_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        gates["m0"].fail["read"] = RuntimeError("a bug")
        host.submit(rw(R, 0, 1), read_len=512)
        await host.flush()
        await host.wait_closed()
        await until(lambda: bool(it.events.closed))
        assert it.events.closed == [(KEY, 1, "internal error")]
        assert str(told[0]["exception"]) == "a bug"
        await it.engine.bdev_delete("m0")  # nothing is counted as in flight any more


def test_is_a_data_plane() -> None:
    plane: DataPlane = InProcessDataPlane()
    assert plane.slow


async def test_a_socket_that_is_gone_already_is_refused() -> None:
    async with rig() as it:
        sock = socket.socket()
        handoff = QueueHandoff(
            key=KEY, qid=1, sqsize=7, sq_flow_control=True, sqhd=0, sock=sock, params=TcpParams(), response=b""
        )
        sock.close()
        with pytest.raises(OperatorError):
            await it.engine.queue_adopt(handoff)
        assert it.engine.queues() == []


async def test_stop_beside_a_delete(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        gates["m0"].hold()
        host.submit(rw(W, 0, 1), data=bytes(512))
        await host.flush()
        await gates["m0"].arrived.wait()
        deletion = asyncio.ensure_future(it.engine.bdev_delete("m0"))
        stopping = asyncio.ensure_future(it.engine.stop())
        await asyncio.sleep(0)
        gates["m0"].open.set()
        await asyncio.gather(deletion, stopping)
        assert gates["m0"].closed


async def test_adoption_is_refused() -> None:
    async with rig() as it:
        host = await it.queue()
        ours, theirs = socket.socketpair()
        handoff = QueueHandoff(
            key=KEY, qid=1, sqsize=7, sq_flow_control=True, sqhd=0, sock=theirs, params=TcpParams(), response=b""
        )
        with pytest.raises(OperatorError, match="exists already"):
            await it.engine.queue_adopt(handoff)
        with pytest.raises(OperatorError, match="not known"):
            await it.engine.queue_adopt(replace(handoff, key=KEY + 1))
        theirs.send(b"still ours to use")
        assert ours.recv(100) == b"still ours to use"
        ours.close()
        theirs.close()
        assert await host.status(FLUSH) == 0


async def test_response_of_connect_goes_first() -> None:
    async with rig() as it:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        it.sockets.append(ours)
        handoff = QueueHandoff(
            key=KEY, qid=5, sqsize=7, sq_flow_control=True, sqhd=0, sock=theirs, params=TcpParams(), response=b"first"
        )
        await it.engine.queue_adopt(handoff)
        assert await asyncio.get_running_loop().sock_recv(ours, 100) == b"first"


async def test_over_tcp_and_byte_by_byte() -> None:
    """A TCP socket, and a stream that comes in single bytes."""
    async with rig() as it:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        ours = socket.create_connection(listener.getsockname())
        ours.setblocking(False)
        theirs, _ = listener.accept()
        listener.close()
        it.sockets.append(ours)
        model = await it.queue()
        await it.engine.queue_adopt(
            QueueHandoff(
                key=KEY, qid=9, sqsize=7, sq_flow_control=True, sqhd=0, sock=theirs, params=TcpParams(), response=b""
            )
        )
        assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        host = Initiator(ours, model.host, 4096)
        cids = [host.submit(rw(W, 3, 1), data=b"\x07" * 512), host.submit(rw(R, 3, 1), read_len=512)]
        for byte in b"".join(host.host.data_to_send()):
            await asyncio.get_running_loop().sock_sendall(ours, bytes([byte]))
        write, read = await host.wait(*cids)
        assert (write.cqe.status, read.cqe.status) == (0, 0)


async def test_io_activity_counts_every_command() -> None:
    async with rig() as it:
        hosts = [await it.queue(), await it.queue()]
        for host, _ in itertools.product(hosts, range(3)):
            await host.status(FLUSH)
        assert it.engine.io_activity(KEY) == 6
        assert [(queue.qid, queue.commands, queue.outstanding) for queue in it.engine.queues(KEY)] == [
            (1, 3, 0),
            (2, 3, 0),
        ]
        assert it.engine.queues(KEY + 1) == []
