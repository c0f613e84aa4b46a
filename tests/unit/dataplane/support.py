"""An initiator for I/O queues: a real engine at the other end of a socket pair, ``TcpHost`` at this one."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from nvmet_p2p.dataplane.inprocess import bdev
from nvmet_p2p.dataplane.inprocess.bdev.base import Bdev
from nvmet_p2p.dataplane.inprocess.bdev.malloc import MallocBdev
from nvmet_p2p.dataplane.inprocess.engine import InProcessDataPlane
from nvmet_p2p.dataplane.port import QueueHandoff, RdmaConnection, RdmaLink, RdmaReceiver
from nvmet_p2p.protocol.events import CommandCompleted, HostEvent
from nvmet_p2p.protocol.tcp_common import TcpParams
from nvmet_p2p.protocol.tcp_host import HostOptions, TcpHost
from nvmet_p2p.protocol.tcp_target import TcpLimits, TcpTarget
from nvmet_p2p.target.config import BdevConfig, BdevFacts, ListenAddress
from nvmet_p2p.target.effects import ControllerView, NamespaceView
from nvmet_p2p.wire.codec import BytesLike
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import NvmOpcode, Psdt
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import ReadWriteCommand

UUID = "11111111-2222-4333-8444-555555555555"
KEY = 7
MDTS = 128 * 1024


class Events:
    """Records what the engine tells the control plane."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, int, str]] = []
        self.changed: list[tuple[str, BdevFacts | None]] = []

    def queue_closed(self, key: int, qid: int, reason: str) -> None:
        self.closed.append((key, qid, reason))

    def bdev_changed(self, name: str, facts: BdevFacts | None) -> None:
        self.changed.append((name, facts))

    def rdma_connected(self, link: RdmaLink, connection: RdmaConnection) -> RdmaReceiver | None:
        raise AssertionError("this engine has no NVMe/RDMA")

    def listener_lost(self, address: ListenAddress, reason: str) -> None:
        raise AssertionError("this engine has no NVMe/RDMA")

    def namespace_found(self, name: str) -> None:
        """There are no controllers here."""

    def pool_lost(self, name: str, why: str) -> None:
        raise AssertionError("this engine has no pools")

    def pool_withdrawn(self, name: str, bdev: str) -> None:
        raise AssertionError("this engine has no pools")

    def io_command(self, key: int, qid: int, sqe: Sqe) -> None:
        raise AssertionError("this engine decides every command by itself")


def malloc(name: str = "m0", *, block_size: int = 512, num_blocks: int = 2048, readonly: bool = False) -> BdevConfig:
    return BdevConfig(
        name=name, kind="malloc", uuid=UUID, block_size=block_size, num_blocks=num_blocks, readonly=readonly
    )


def view_of(*namespaces: NamespaceView, mdts: int = MDTS, copy_formats: int = 0b1111) -> ControllerView:
    return ControllerView(
        key=KEY,
        subnqn="nqn.2024-01.io.example:s",
        hostnqn="nqn.2024-01.io.example:h",
        cntlid=1,
        mdts_bytes=mdts,
        namespaces={ns.nsid: ns for ns in namespaces},
        copy_formats=copy_formats,
    )


def ns(nsid: int = 1, bdev_name: str = "m0", *, ana_state: int = 1, write_protected: bool = False) -> NamespaceView:
    return NamespaceView(nsid, bdev_name, 1, ana_state, write_protected)


class Gate(Bdev):
    """A malloc back end whose operations wait, fail or are recorded as a test wants."""

    def __init__(self, inner: MallocBdev) -> None:
        self.facts = inner.facts
        self._inner = inner
        self.calls: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0
        self.arrived = asyncio.Event()
        self.closed = False

    def hold(self) -> None:
        self.open.clear()
        self.arrived.clear()

    async def _pass(self, name: str) -> None:
        self.calls.append(name)
        self.waiting += 1
        self.arrived.set()
        await self.open.wait()
        self.waiting -= 1
        if name in self.fail:
            raise self.fail[name]

    async def read(self, offset: int, length: int) -> BytesLike:
        await self._pass("read")
        return await self._inner.read(offset, length)

    async def write(self, offset: int, data: BytesLike, *, fua: bool) -> None:
        await self._pass("write_fua" if fua else "write")
        await self._inner.write(offset, data, fua=fua)

    async def flush(self) -> None:
        await self._pass("flush")

    async def unmap(self, offset: int, length: int) -> None:
        await self._pass("unmap")
        await self._inner.unmap(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, fua: bool, unmap: bool) -> None:
        await self._pass(f"write_zeroes{'_fua' if fua else ''}{'_unmap' if unmap else ''}")
        await self._inner.write_zeroes(offset, length, fua=fua, unmap=unmap)

    async def rescan(self, config: BdevConfig) -> BdevFacts:
        self.facts = await self._inner.rescan(config)
        return self.facts

    async def close(self) -> None:
        self.closed = True
        await self._inner.close()


def use_gates(monkeypatch: pytest.MonkeyPatch) -> dict[str, Gate]:
    """Malloc back ends opened from now on are ``Gate``; they are found by name in what is returned."""
    gates: dict[str, Gate] = {}

    async def open_gate(config: BdevConfig) -> Bdev:
        gates[config.name] = Gate(await MallocBdev.open(config))
        return gates[config.name]

    monkeypatch.setitem(bdev.KINDS, "malloc", open_gate)
    return gates


class Initiator:
    """One I/O queue, seen from the host."""

    def __init__(self, sock: socket.socket, host: TcpHost, icd_max: int) -> None:
        self.sock = sock
        self.host = host
        self.icd_max = icd_max
        self.done: dict[int, CommandCompleted] = {}
        self.order: list[int] = []
        self.others: list[HostEvent] = []
        self._cids = itertools.count(1)
        self._loop = asyncio.get_running_loop()

    async def flush(self) -> None:
        for piece in self.host.data_to_send():
            await self._loop.sock_sendall(self.sock, piece)

    async def pump(self) -> bool:
        """Takes what has arrived once; False at the end of the stream."""
        data = await self._loop.sock_recv(self.sock, 1 << 16)
        if not data:
            return False
        for event in self.host.receive_data(data):
            if isinstance(event, CommandCompleted):
                self.done[event.cid] = event
                self.order.append(event.cid)
            else:
                self.others.append(event)
        await self.flush()
        return True

    async def wait(self, *cids: int) -> list[CommandCompleted]:
        """Until these are completed; ``EOFError`` if the connection ends before."""
        await self.flush()
        while not all(cid in self.done for cid in cids):
            if not await self.pump():
                raise EOFError
        return [self.done.pop(cid) for cid in cids]

    async def wait_closed(self) -> None:
        try:
            while await self.pump():
                pass
        except ConnectionResetError:
            return

    def submit(self, sqe: Sqe, *, data: bytes | None = None, read_len: int = 0, in_capsule: bool | None = None) -> int:
        """Queues a command with its SGL filled in; returns its CID (a free one if the SQE has 0)."""
        cid = sqe.cid or next(self._cids)
        icd = None
        if data is not None and (in_capsule if in_capsule is not None else len(data) <= self.icd_max):
            sgl = SglDescriptor.in_capsule(len(data))
            icd, data = data, None
        else:
            sgl = SglDescriptor.transport(len(data) if data is not None else read_len)
        if sqe.dptr == bytes(16):
            sqe = replace(sqe, dptr=sgl.build())
        self.host.send_command(
            replace(sqe, cid=cid, psdt=Psdt.SGL_MPTR_CONTIGUOUS), icd=icd, data=data, read_len=read_len
        )
        return cid

    async def io(
        self, sqe: Sqe, *, data: bytes | None = None, read_len: int = 0, in_capsule: bool | None = None
    ) -> CommandCompleted:
        (completed,) = await self.wait(self.submit(sqe, data=data, read_len=read_len, in_capsule=in_capsule))
        return completed

    async def status(
        self, sqe: Sqe, *, data: bytes | None = None, read_len: int = 0, in_capsule: bool | None = None
    ) -> int:
        return (await self.io(sqe, data=data, read_len=read_len, in_capsule=in_capsule)).cqe.status

    async def write(self, slba: int, data: bytes, *, nsid: int = 1, block_size: int = 512) -> None:
        sqe = rw(NvmOpcode.WRITE, slba, len(data) // block_size, nsid=nsid)
        assert await self.status(sqe, data=data) == 0

    async def read(self, slba: int, blocks: int, *, nsid: int = 1, block_size: int = 512) -> bytes:
        completed = await self.io(rw(NvmOpcode.READ, slba, blocks, nsid=nsid), read_len=blocks * block_size)
        assert completed.cqe.status == 0
        return bytes(completed.data)


def rw(
    opc: int,
    slba: int,
    blocks: int,
    *,
    nsid: int = 1,
    fuse: int = 0,
    fua: bool = False,
    deac: bool = False,
    prinfo: int = 0,
    cid: int = 0,
) -> Sqe:
    view = ReadWriteCommand(slba=slba, nlb=blocks - 1, fua=fua, deac=deac, prinfo=prinfo)
    return Sqe(opc=opc, nsid=nsid, fuse=fuse, cid=cid, **view.dwords())


@dataclass
class Rig:
    """An engine with a controller and as many queues as a test opens."""

    engine: InProcessDataPlane
    events: Events = field(default_factory=Events)
    sockets: list[socket.socket] = field(default_factory=list)
    qids: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)

    async def queue(
        self,
        *,
        sqsize: int = 127,
        flow_control: bool = True,
        c2h_success: bool = True,
        icd_max: int = 4096,
        options: HostOptions | None = None,
        sndbuf: int | None = None,
    ) -> Initiator:
        host, params = negotiate(options or HostOptions(), icd_max)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.sockets.append(ours)
        if sndbuf is not None:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        await self.engine.queue_adopt(
            QueueHandoff(
                key=KEY,
                qid=self.qids(),
                sqsize=sqsize,
                sq_flow_control=flow_control,
                sqhd=1,
                sock=theirs,
                params=params,
                response=b"",
                c2h_success=c2h_success,
            )
        )
        return Initiator(ours, host, icd_max)


def negotiate(options: HostOptions, icd_max: int) -> tuple[TcpHost, TcpParams]:
    """The IC exchange in memory: a host ready to send commands, and what the target may go on with."""
    host, target = TcpHost(options), TcpTarget(TcpLimits())
    host.connect()
    target.receive_data(b"".join(host.data_to_send()))
    host.receive_data(b"".join(target.data_to_send()))
    return host, replace(target.params, icd_max=icd_max)


@asynccontextmanager
async def rig(*bdevs: BdevConfig, view: ControllerView | None = None) -> AsyncIterator[Rig]:
    """An engine with these back ends (default: one malloc of 512 byte blocks as namespace 1)."""
    made = Rig(InProcessDataPlane())
    await made.engine.start(made.events)
    try:
        for config in bdevs or (malloc(),):
            await made.engine.bdev_create(config)
        await made.engine.controller_set(view or view_of(ns()))
        yield made
    finally:
        await made.engine.stop()
        for sock in made.sockets:
            sock.close()


async def until(condition: Callable[[], bool], *, turns: int = 10_000) -> None:
    """Runs the loop until ``condition`` holds, without looking at a clock."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


Scenario = Callable[[], Awaitable[None]]


async def settled(it: Rig, commands: int) -> None:
    """Until the engine has taken that many commands."""
    await until(lambda: sum(queue.commands for queue in it.engine.queues()) == commands)
