"""The conformance suite's host over NVMe/RDMA: its queues send their capsules through ``rdma_host`` in the guest.

The classes of ``tests/support`` with another connection below: a test that speaks of commands and completions, and not
of PDUs, runs with them as it stands. The program in the guest reads orders and answers on a virtio port.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any

from nvmet_p2p.wire.rdma_cm import CmRequest
from tests.lab.inside import _DETACHED, InsideTarget
from tests.support import coverage, nvme
from tests.support.conn import Address, PeerClosed
from tests.support.daemon import Daemon, Ns, Tree
from tests.support.initiator import Completion, Host, HostOptions, Queue, _Pending
from tests.support.nvme import Cqe

PORT_NAME = "lab.host"
SLOTS = 64
MEMORY = 2 << 20  # bytes that the program has for data of all its connections
PIECE = 32 << 10  # bytes of one order
ANSWER_MS = 20000
FILES = "/run/nvmet-p2p/files"
MQES = 127  # 0's based: the most that a listener takes by default
AQES = 31


def qemu_args(folder: Path) -> tuple[str, ...]:
    """QEMU's arguments for the port; its socket is in ``folder``."""
    return (
        f"-chardev socket,id=host,path={folder}/host,server=on,wait=off",
        f"-device virtserialport,bus=ports.0,chardev=host,name={PORT_NAME}",
    )


class Bridge:
    """``rdma_host`` at work in the guest: one line in, one line out."""

    def __init__(self, target: InsideTarget, path: Path, address: Address) -> None:
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(60)
        self.link.connect(str(path))
        self.reader = self.link.makefile("rb")
        self.free = set(range(SLOTS))
        self.at: Address = address
        self.said: list[tuple[list[str], str]] | None = None  # orders and answers, where a test wants them
        self._next = 0
        command = f"target-enter /lab/files/rdma_host {address[0]} {address[1]} <>/dev/virtio-ports/{PORT_NAME} >&0"
        target.guest.run(
            _DETACHED.format(command=f"bash -c 'exec {command}'", name="rdma_host", pid="/run/rdma_host.pid"), keep=True
        )

    def __call__(self, *words: object) -> str:
        line = " ".join(str(word.hex() or "-") if isinstance(word, bytes) else str(word) for word in words)
        self.link.sendall(line.encode() + b"\n")
        answer = self.reader.readline().decode().rstrip()
        if self.said is not None:
            self.said.append((line.split(), answer))
        return answer

    def close(self) -> None:
        self.reader.close()
        self.link.close()

    def memory(self, size: int) -> int:
        """Where ``size`` bytes may go: what is in use at a time is far less than there is, so it is taken in turn."""
        if self._next + size > MEMORY:
            self._next = 0
        at, self._next = self._next, (self._next + size + 4095) & ~4095
        return at

    def aim(self, address: Address) -> None:
        """Connections from now on go there."""
        if address != self.at:
            assert self("at", *address) == "at"
            self.at = address


class _Sock:
    """What tests ask of a connection's socket."""

    def settimeout(self, seconds: float | None) -> None:
        """Every wait has its own bound here."""


class RdmaConn:
    """One connection, made when its first command tells for which queue."""

    def __init__(self, bridge: Bridge, address: Address) -> None:
        self.bridge = bridge
        self.address = address
        self.sock = _Sock()
        self.slot = -1
        self.heard: list[str] = []  # answers that were looked at and not taken

    def establish(self, qid: int, sqsize: int, cntlid: int) -> None:
        """Connects. Private data that would be refused is put right: Connect is where a test says what is wrong."""
        if self.slot >= 0:
            return
        entries = min(max(sqsize, 1), MQES if qid else AQES)
        request = CmRequest(
            qid=qid if qid < 0xFFFF else 1,
            hrqsize=entries + 1,
            hsqsize=entries,
            cntlid=min(cntlid, 0xFFEF) if qid else 0,
        )
        self.bridge.aim(self.address)
        self.slot = self.bridge.free.pop()
        answer = self.bridge("connect", self.slot, request.build(), 1, 1)
        if not answer.startswith("accepted"):
            self.bridge.free.add(self.slot)
            self.slot = -1
            raise PeerClosed(answer)

    def answer(self, milliseconds: int) -> str:
        return self.heard.pop(0) if self.heard else self.bridge("answer", self.slot, milliseconds)

    def is_silent(self, seconds: float) -> bool:
        """True when the target neither answers nor closes for that long."""
        if not self.heard:
            self.heard.append(self.bridge("answer", self.slot, int(seconds * 1000)))
        if self.heard[0] != "nothing":
            return False
        self.heard.clear()
        return True

    def recv_exact(self, size: int) -> bytes:
        """Tests ask for a byte where only the end of the connection may come."""
        if self.answer(ANSWER_MS) == "closed":
            raise PeerClosed("disconnected")
        raise AssertionError("the target sent something, or nothing, where it should have closed")

    def wait_closed(self) -> None:
        assert self.answer(ANSWER_MS) == "closed"

    def close(self) -> None:
        if self.slot >= 0:
            self.bridge("close", self.slot)
            self.bridge.free.add(self.slot)
        self.slot = -1


class RdmaQueue(Queue):
    """A queue pair whose data lies in the program's memory, behind keyed descriptors."""

    conn: Any

    def __init__(self, conn: RdmaConn) -> None:
        super().__init__(conn)  # type: ignore[arg-type]
        self.icd_max = 0  # of an admin queue
        self._at: dict[int, int] = {}

    def submit(
        self, sqe: bytes, *, out: bytes = b"", expect: int = 0, in_capsule: bool | None = None, cid: int = -1
    ) -> int:
        fits = 0 < len(out) <= self.icd_max
        return super().submit(
            sqe, out=out, expect=expect, in_capsule=fits if in_capsule is None else in_capsule and fits, cid=cid
        )

    def submit_raw(self, sqe: bytes, *, out: bytes = b"", expect: int = 0, capsule_data: bytes = b"") -> int:
        """As the base class's; a transport descriptor of NVMe/TCP becomes a keyed one of the same length."""
        cid = int.from_bytes(sqe[2:4], "little")
        assert cid not in self._pending, f"CID {cid} is in flight (an error of the test)"
        self.conn.establish(0, AQES, 0)
        self._pending[cid] = _Pending(b"" if capsule_data else out, expect)
        self.completed.pop(cid, None)
        coverage.record(sqe, self.qid)
        bridge, slot = self.conn.bridge, self.conn.slot
        if sqe[39] != nvme.SGL_TRANSPORT:
            sent = bridge("send", slot, sqe, capsule_data)
        else:
            (length,) = struct.unpack_from("<I", sqe, 32)
            self._at[cid] = at = bridge.memory(min(max(len(out), expect, 1), MEMORY // 2))
            for start in range(0, len(out), PIECE):
                bridge("put", at + start, out[start : start + PIECE])
            sent = bridge("keyed", slot, sqe, length & 0xFFFFFF, at, 0, 0)
        if sent != "sent":
            raise PeerClosed(sent)
        return cid

    def serve_one(self) -> None:
        line = self.conn.answer(ANSWER_MS)
        if line == "closed":
            raise PeerClosed("disconnected")
        words = line.split()
        assert words[0] == "cqe", line
        assert words[2] == "0", "a key was invalidated that nobody asked for"
        cqe = Cqe.parse(bytes.fromhex(words[1]))
        pending = self._pending.pop(cqe.cid, None)
        assert pending is not None, f"response for CID {cqe.cid}, which is not in flight"
        assert cqe.sqid in (self.qid, self.asked_qid), f"SQID {cqe.sqid} on queue {self.qid}"
        if self.sqsize:
            assert cqe.sqhd <= self.sqsize if self.sq_flow else cqe.sqhd == 0xFFFF, f"SQHD {cqe.sqhd:#x}"
        at, data = self._at.pop(cqe.cid, 0), b""
        if pending.expect and cqe.status == nvme.OK:
            data = bytes.fromhex(self.conn.bridge("get", at, pending.expect))
        self.order.append(cqe.cid)
        self.completed[cqe.cid] = Completion(
            cqe.cid, cqe.status, cqe.dnr, cqe.dw0, cqe.dw1, cqe.sqhd, cqe.sqid, data, cqe=cqe
        )

    def connect(self, subnqn: str | bytes, **options: Any) -> Completion:
        qid = options.get("qid", 0)
        self.conn.establish(qid, options.get("sqsize", AQES), options.get("cntlid", 0xFFFF))
        self.icd_max = 4096 if qid else 0
        return super().connect(subnqn, **options)


class RdmaHost(Host):
    """An association over RDMA."""

    bridge: Bridge

    def __init__(self, bridge: Bridge, address: Address, subnqn: str, options: HostOptions) -> None:
        self.bridge = bridge
        super().__init__(address, subnqn, options)

    def open(self) -> Queue:
        queue = RdmaQueue(RdmaConn(self.bridge, self.address))
        self.queues.append(queue)
        return queue


class RdmaTree(Tree):
    """A subsystem that listens on the guest's RDMA device."""

    daemon: RdmaDaemon

    @staticmethod
    def listen_address(address: Address) -> dict[str, str]:
        return {"trtype": "RDMA", "adrfam": "IPv4", "traddr": address[0], "trsvcid": str(address[1])}

    def host(self, **options: Any) -> Host:
        address = options.pop("address", self.address)
        host = RdmaHost(self.daemon.bridge, address, options.pop("subnqn", self.nqn), HostOptions(**options))
        self.hosts.append(host)
        return host


class RdmaDaemon(Daemon):
    """The daemon in the guest, as the suite's tests know theirs."""

    def __init__(self, target: InsideTarget, bridge: Bridge, address: Address) -> None:
        self.target = target
        self.bridge = bridge
        self.address = address
        self._trees: list[Tree] = []
        self._numbers = 0

    def rpc(self, method: str, **params: Any) -> Any:
        return self.target.rpc(method, **params)

    def bdev(self, ns: Ns) -> str:
        self._numbers += 1
        name = f"c{self._numbers}"
        if ns.kind == "aio":
            path = f"{FILES}/{name}"
            self.target.guest.run(f"mkdir -p {FILES}; truncate -s {ns.blocks * ns.block_size} {path}")
            self.rpc("bdev_aio_create", name=name, filename=path, block_size=ns.block_size, readonly=ns.readonly)
            return name
        self.rpc(f"bdev_{ns.kind}_create", name=name, num_blocks=ns.blocks, block_size=ns.block_size)
        return name

    def subsystem(self, *namespaces: Ns, **options: Any) -> Tree:
        self._numbers += 1
        tree = RdmaTree(self, f"nqn.2026-01.org.example:r{self._numbers}", self.address)
        options = {"allow_any_host": True, "serial_number": f"SN{self._numbers:05}", "max_namespaces": 32} | options
        self._trees.append(tree)
        self.rpc("nvmf_create_subsystem", nqn=tree.nqn, **options)
        for ns in namespaces:
            tree.add(ns)
        tree.listen()
        return tree
