"""The data plane's end of channel and JSON-RPC, playing hosts that come over NVMe/RDMA. No verbs, one event loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nvmet_p2p.dataplane.native.messages import Kind
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.fabrics import ConnectCommand, ConnectData, PropertyGet, PropertySet
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.sqe import Sqe

HOSTNQN: Final = "nqn.2026-11.com.example:host"
HOSTID: Final = bytes(range(1, 17))
NQN: Final = "nqn.2026-11.com.example:rdma"
ENABLE: Final = 0x00460001
WAIT_S: Final = 20.0
FACTS: Final = {
    "block_size": 512, "num_blocks": 2048, "readonly": False, "write_cache": False, "unmap": True,
    "write_zeroes": True, "physical_block_size": 512,
}  # fmt: skip


async def until(check: Callable[[], bool]) -> None:
    """Returns when it holds; a test that would wait for ever fails."""
    async with asyncio.timeout(WAIT_S):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@dataclass(eq=False)
class Adopt:
    """RDMA_ADOPT as it came."""

    token: int
    key: int
    conn: int
    qid: int
    sqsize: int
    sqhd: int
    flags: int
    icd_max: int
    slot: int
    cqe: Cqe
    peer: str


@dataclass(eq=False)
class FakeHost:
    """The host's end of one connection. ``memory`` is what its keyed SGLs describe, by CID."""

    plane: FakePlane
    conn: int
    memory: dict[int, bytes] = field(default_factory=dict)
    fetch_rc: int = 0
    hold_fetches: bool = False
    fetches: list[tuple[int, int]] = field(default_factory=list)
    written: dict[int, bytearray] = field(default_factory=dict)
    pieces: list[tuple[int, int]] = field(default_factory=list)
    """Offset and length of each piece of data that was written to the host."""
    answers: asyncio.Queue[tuple[Cqe, bytes]] = field(default_factory=asyncio.Queue)
    dropped: list[int] = field(default_factory=list)
    adopted: list[Adopt] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    cids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def send(self, sqe: Sqe, icd: bytes = b"") -> None:
        """A capsule, as it stands."""
        self.plane.send(Kind.RDMA_CAPSULE, struct.pack("<Q64sI", self.conn, sqe.build(), len(icd)) + icd)

    def give(self, cid: int, rc: int, data: bytes = b"") -> None:
        """Answers a fetch."""
        self.plane.send(Kind.RDMA_DATA, struct.pack("<QHh", self.conn, cid, rc) + data)

    async def answer(self) -> tuple[Cqe, bytes]:
        """The next response, and the data that was written before it."""
        async with asyncio.timeout(WAIT_S):
            return await self.answers.get()

    async def command(self, sqe: Sqe, data: bytes = b"", *, read: int = 0, inline: bool = False) -> tuple[Cqe, bytes]:
        """One command with its data by a keyed SGL (``data`` to us, ``read`` bytes to it) or in the capsule."""
        cid = next(self.cids)
        descriptor = SglDescriptor.keyed(0x1000, len(data) or read, 77)
        if inline:
            descriptor = SglDescriptor.in_capsule(len(data))
        else:
            self.memory[cid] = data
        self.send(with_sgl(sqe, cid, descriptor), data if inline else b"")
        cqe, written = await self.answer()
        assert cqe.cid == cid
        return cqe, written

    async def connect(self, subnqn: str = NQN, *, cntlid: int = 0xFFFF, inline: bool = False, **fields: Any) -> Cqe:
        data = ConnectData(
            hostid=HOSTID, cntlid=cntlid, subnqn_raw=subnqn.encode(), hostnqn_raw=HOSTNQN.encode()
        ).build()
        return (await self.command(ConnectCommand(**({"sqsize": 31} | fields)).sqe(), data, inline=inline))[0]

    async def enable(self) -> None:
        cqe, _ = await self.command(PropertySet(ofst=0x14, value=ENABLE).sqe())
        assert cqe.ok
        cqe, _ = await self.command(PropertyGet(ofst=0x1C).sqe())
        assert cqe.dw0 & 1

    def end(self, reason: str = "the host has gone") -> None:
        """The connection ends by itself."""
        self.plane.end(self.conn, reason)


def with_sgl(sqe: Sqe, cid: int, descriptor: SglDescriptor, psdt: int = 1) -> Sqe:
    """The command with this CID and SGL."""
    raw = bytearray(sqe.build())
    raw[1] = raw[1] & 0x3F | psdt << 6
    raw[2:4] = cid.to_bytes(2, "little")
    raw[24:40] = descriptor.build()
    return Sqe.parse(bytes(raw))


class FakePlane:
    """Listens at ``folder/channel`` for one control plane after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "bdev_get_bdevs": [], "bdev_nvme_get_controllers": [], "p2p_get_pools": [], "p2p_get_staging": [],
            "bdev_get_iostat": {"bdevs": []}, "p2p_get_queues": [],
            "spdk_get_version": {"version": "fake"}, "bdev_malloc_create": FACTS,
            "p2p_get_info": {"rdma": {"built": True}},
            "p2p_rdma_get_devices": {"pending_data_buffer": 3, "devices": [{"name": "rxe0", "present": True,
                                     "addresses": ["192.0.2.1"], "polls": 9}]},
        }  # fmt: skip
        self.errors: dict[str, tuple[int, str]] = {}
        self.hosts: dict[int, FakeHost] = {}
        self.adopt_rc = 0
        self.hellos = 0
        self.closes: list[int] = []
        self._conns = itertools.count(100)
        self._channel: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._listener.setblocking(False)
        self._listener.bind(str(self.folder / "channel"))
        self._listener.listen()
        self._server = await asyncio.start_unix_server(self._serve_rpc, str(self.folder / "dp"))
        self._tasks.append(asyncio.create_task(self._serve_channel()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.die()
        self._listener.close()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def die(self) -> None:
        """As the process does: channel and JSON-RPC end, all connections with them."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        self.hosts.clear()

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    # -- hosts

    def arrive(
        self, traddr: str = "192.0.2.1", port: int = 4420, *, qid: int = 0, hsqsize: int = 31, cntlid: int = 0xFFFF
    ) -> FakeHost:
        """A host has connected."""
        conn = next(self._conns)
        host = self.hosts[conn] = FakeHost(self, conn)
        family = socket.AF_INET6 if ":" in traddr else socket.AF_INET
        local = socket.inet_pton(family, traddr)
        peer = bytes([*local[:-1], 99])
        body = struct.pack(
            "<QHBB16s16sHHHHH", conn, port, 2 if ":" in traddr else 1, 0, local, peer, 50000, qid, hsqsize,
            hsqsize + 1, cntlid,
        )  # fmt: skip
        self.send(Kind.RDMA_CONNECTED, body)
        return host

    def send(self, kind: int, body: bytes) -> None:
        assert self._channel is not None
        self._channel.send(struct.pack("<IHHII", 0x4332504E, 1, kind, 16 + len(body), 0) + body)

    def end(self, conn: int, reason: str) -> None:
        host = self.hosts.pop(conn, None)
        if host is not None:
            host.closed.set()
            if not host.adopted:
                self.send(Kind.RDMA_CLOSED, struct.pack("<Q", conn) + reason.encode())

    # -- the channel

    async def _serve_channel(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            sock.setblocking(False)
            await loop.sock_recv(sock, 65536)
            self._channel = sock
            self.hellos += 1
            self.send(Kind.HELLO, struct.pack("<II", 0, os.getpid()) + str(self.folder / "dp").encode())
            while self._channel is sock:
                try:
                    packet = await asyncio.wait_for(loop.sock_recv(sock, 65536), 0.05)
                except TimeoutError:
                    continue
                except OSError:
                    break
                if not packet:
                    break
                self._received(packet)

    def _received(self, packet: bytes) -> None:
        _, _, kind, length, _ = struct.unpack_from("<IHHII", packet)
        assert length == len(packet) <= 65536
        body = packet[16:]
        if kind == Kind.RDMA_ADOPT:
            self._adopt(body)
            return
        (conn,) = struct.unpack_from("<Q", body)
        host = self.hosts.get(conn)
        if kind == Kind.RDMA_CLOSE:
            self.closes.append(conn)
            self.end(conn, "closed by the control plane")
        elif host is None:
            return
        elif kind == Kind.RDMA_FETCH:
            _, cid, reserved, size = struct.unpack("<QHHI", body)
            assert reserved == 0
            host.fetches.append((cid, size))
            if not host.hold_fetches:
                data = b"" if host.fetch_rc else host.memory[cid][:size]
                host.give(cid, host.fetch_rc, data)
        elif kind == Kind.RDMA_REPLY:
            self._reply(host, body)
        else:
            raise AssertionError(f"message {kind}")

    @staticmethod
    def _reply(host: FakeHost, body: bytes) -> None:
        _, raw, flags, reserved, offset = struct.unpack_from("<Q16sHHI", body)
        data = body[32:]
        cqe = Cqe.parse(raw)
        assert reserved == 0
        if flags & 4:
            assert flags == 4
            assert not data
            host.dropped.append(cqe.cid)
            return
        into = host.written.setdefault(cqe.cid, bytearray())
        if data:
            assert offset == len(into)
            host.pieces.append((offset, len(data)))
            into += data
        if flags & 2:
            host.answers.put_nowait((cqe, bytes(host.written.pop(cqe.cid))))

    def _adopt(self, body: bytes) -> None:
        token, key, conn, qid, sqsize, sqhd, flags, icd_max, slot, cqe, peer = struct.unpack("<QQQHHHHII16s64s", body)
        host = self.hosts.get(conn)
        if host is None or self.adopt_rc:
            self.send(Kind.ADOPTED, struct.pack("<Qi", token, self.adopt_rc or -107) + b"refused by the fake")
            return
        name = peer.rstrip(b"\0").decode()
        host.adopted.append(Adopt(token, key, conn, qid, sqsize, sqhd, flags, icd_max, slot, Cqe.parse(cqe), name))
        self.send(Kind.ADOPTED, struct.pack("<Qi", token, 0))
        host.answers.put_nowait((Cqe.parse(cqe), b""))

    # -- JSON-RPC

    async def _serve_rpc(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        pending = ""
        while received := await reader.read(65536):
            pending += received.decode()
            while pending:
                try:
                    request, end = json.JSONDecoder().raw_decode(pending)
                except ValueError:
                    break
                pending = pending[end:].lstrip()
                method, params = request["method"], request.get("params", {})
                self.calls.append((method, params))
                body: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
                if method in self.errors:
                    code, text = self.errors[method]
                    body["error"] = {"code": code, "message": text}
                else:
                    body["result"] = self.answers.get(method, True)
                writer.write(json.dumps(body).encode())
        writer.close()
