"""Plays a stream of ``tests.support.streams`` to a target and writes down, line by line, everything it answers.

What may differ between two right targets is left out: transfer tags, how C2H data is cut into PDUs, and, for commands
that run together, their order, SQHD, and whether data was asked for that another command then made useless. A line
that begins with ``!`` is wrong whoever says it.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

from tests.support import nvme
from tests.support.conn import Pdu, PeerClosed
from tests.support.daemon import Tree
from tests.support.initiator import Host, Queue, lba_cdw
from tests.support.streams import FATAL, Change, Command, Profile, Space, Step, Stream, World

FILLER: Final = bytes(17 * 1024)  # completes any PDU that is still allowed; then it is a second ICReq
PIECE_BYTES: Final = 128 * 1024
Transcript = list[list[str]]


@dataclass(slots=True)
class Connection:
    """An I/O queue of which nothing is expected. ``lines``: what has come, in order."""

    queue: Queue
    profile: Profile
    lines: list[tuple[int, str]] = field(default_factory=list)  # (CID, line)
    commands: dict[int, Command] = field(default_factory=dict)
    data: dict[int, bytes] = field(default_factory=dict)
    held: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # CID: TTAG, R2TO, R2TL of R2Ts not answered
    hold: bool = False
    over: bool = False

    def note(self, cid: int, line: str) -> None:
        self.lines.append((cid, line))

    def capsule(self, command: Command) -> bytes:
        """The capsule; its data digest is wrong if the command says so."""
        self.commands.setdefault(command.cid, command)
        wrong = {"ddgst_xor": 0x10} if command.bad_digest and self.queue.conn.params.ddgst else {}
        return self.queue.conn.capsule(command.sqe, command.capsule, **wrong)

    def send(self, data: bytes, cuts: tuple[int, ...] = ()) -> None:
        at = 0
        for cut in (*(cut for cut in cuts if cut < len(data)), len(data)):
            self.queue.conn.send(data[at:cut])
            at = cut

    def serve(self, completions: int) -> None:
        """Until that many commands have completed, or (``hold``) R2Ts have come. PeerClosed when it ends before."""
        while completions:
            completions -= self.take(self.queue.conn.recv_pdu())

    def take(self, pdu: Pdu) -> int:
        """Writes a PDU down and answers it; 1 if it counts."""
        if pdu.type == nvme.CAPSULE_RESP:
            dw0, dw1, sqhd, sqid, cid, sf = struct.unpack_from("<IIHHHH", pdu.header, 8)
            assert sqid == self.queue.qid
            self.note(cid, f"cqe {cid:#x} status {sf >> 1 & 0x7FF:#05x} flags {sf >> 12:x} phase {sf & 1} "
                           f"dw0 {dw0:#x} dw1 {dw1:#x} sqhd {sqhd}")  # fmt: skip
            return 1
        if pdu.type == nvme.R2T:
            return self._r2t(pdu)
        if pdu.type == nvme.C2H_DATA:
            return self._data(pdu)
        fes, fei = struct.unpack_from("<HI", pdu.header, 8)
        self.note(-1, f"term fes {fes} fei {fei} header {pdu.data.hex()}")
        raise PeerClosed("terminated")

    def _data(self, pdu: Pdu) -> int:
        cid, _, offset, length = struct.unpack_from("<HHII", pdu.header, 8)
        data = self.data.pop(cid, b"")
        assert offset == len(data), f"DATAO {offset}, expected {len(data)}"
        assert length == len(pdu.data)
        data += pdu.data
        if not pdu.last:
            self.data[cid] = data
            return 0
        name = hashlib.sha1(data).hexdigest()[:16]
        self.note(cid, f"data {cid:#x} {len(data)} bytes {name} success {pdu.success}")
        return int(pdu.success)

    def _r2t(self, pdu: Pdu) -> int:
        cid, ttag, offset, length = struct.unpack_from("<HHII", pdu.header, 8)
        self.note(cid, f"r2t {cid:#x} {offset}+{length}")
        if self.hold:
            self.held[cid] = ttag, offset, length
            return 1
        self.answer(cid, ttag, offset, length)
        return 0

    def answer(self, cid: int, ttag: int, offset: int, length: int) -> None:
        """The H2CData of an R2T."""
        assert cid in self.commands, f"R2T for CID {cid:#x}, which is not in flight"
        command, conn = self.commands[cid], self.queue.conn
        data = command.out[offset : offset + length].ljust(length, b"\0")
        most = (
            min(conn.params.maxh2cdata, max(command.piece, length // 512)) if command.piece else conn.params.maxh2cdata
        )
        for at in range(0, length, most):
            part, last = data[at : at + most], at + most >= length
            wrong = {"ddgst_xor": 4} if last and command.bad_digest and conn.params.ddgst else {}
            conn.send(conn.h2c_data(cid, ttag, offset + at, part, last=last, **wrong))

    def answer_held(self) -> None:
        self.hold, held = False, self.held
        self.held = {}
        for cid, (ttag, offset, length) in held.items():
            self.answer(cid, ttag, offset, length)


class Player:
    """Plays streams on one subsystem. A new association for each."""

    def __init__(self, tree: Tree, world: World) -> None:
        self.tree = tree
        self.world = world
        self._qid = 0

    def play(self, stream: Stream, timeout: float = 10.0) -> Transcript:
        """What was answered to each step, then the content of the namespaces. They hold zeroes at the beginning."""
        host = self.tree.started(timeout=timeout)
        self._qid = 0
        transcript: Transcript = []
        try:
            behavior = bytearray(512)
            behavior[4] = stream.cdfe
            assert host.admin.set_features(0x16, out=bytes(behavior)).status == nvme.OK
            self._clear(host)
            connection: Connection | None = None
            for step in stream.steps:
                fresh = step.kind == "h2c"  # so that tags are the same
                if connection is not None and (fresh or step.profile != connection.profile):
                    connection.queue.close()
                    connection = None
                connection = connection or self._open(host, step.profile)
                transcript.append(self._step(host, connection, step))
                if connection.over:
                    connection.queue.close()
                    connection = None
            if connection is not None:
                connection.queue.close()
            transcript.append(self._content(host))
        finally:
            host.close()
            self.tree.hosts.remove(host)
        return transcript

    def _open(self, host: Host, profile: Profile) -> Connection:
        self._qid += 1
        for name in ("hdgst", "ddgst", "hpda", "maxr2t"):
            setattr(host.options, name, getattr(profile, name))
        queue = host.io(self._qid, sqsize=profile.sqsize, cattr=profile.cattr, icd_max=self.world.icd_max)
        return Connection(queue, profile)

    # -- one step

    def _step(self, host: Host, connection: Connection, step: Step) -> list[str]:
        connection.lines, connection.commands, connection.hold = [], {}, False
        connection.over = True
        try:
            self._act(host, connection, step)
        except TimeoutError:
            connection.note(-1, "! nothing has come")
        except AssertionError as error:
            connection.note(-1, f"! {(str(error) or 'assertion').splitlines()[0]}")
        except (PeerClosed, BrokenPipeError):
            _drain(connection.queue)
            connection.note(-1, "closed")
        else:
            connection.over = False
        lines = connection.lines
        if step.kind in ("group", "wide"):
            lines.sort(key=lambda item: item[0])
            return [line.partition(" sqhd")[0] for _, line in lines if not line.startswith("r2t")]
        if step.kind in FATAL and step.kind != "disconnect":
            return [line for cid, line in lines if cid < 0]
        return [line for _, line in lines] or ["nothing"]

    def _act(self, host: Host, connection: Connection, step: Step) -> None:
        commands = step.commands
        match step.kind:
            case "one" | "group":
                connection.send(b"".join(connection.capsule(each) for each in commands), step.cuts)
                connection.serve(len(commands))
            case "wide":
                self._wide(host, connection, step)
            case "held" | "abort" | "change":
                self._held(host, connection, step)
            case "capsule":
                damaged = _damaged(connection.capsule(commands[0]), 72, step, connection.queue)
                connection.send(damaged + FILLER, step.cuts)
                _to_the_end(connection)
            case "h2c":
                self._bad_h2c(connection, step)
            case "raw":
                connection.send(step.junk + FILLER)
                _to_the_end(connection)
            case "overflow":
                connection.hold = True
                for each in commands:
                    connection.send(connection.capsule(each))
                connection.send(FILLER)
                _to_the_end(connection)
            case "disconnect":
                connection.send(connection.capsule(commands[0]))
                _to_the_end(connection)

    def _wide(self, host: Host, connection: Connection, step: Step) -> None:
        """Every other command goes to a second queue."""
        other = self._open(host, step.profile)
        try:
            shares = step.commands[::2], step.commands[1::2]
            for queue, share in zip((connection, other), shares, strict=True):
                queue.send(b"".join(queue.capsule(each) for each in share), step.cuts)
            for queue, share in zip((connection, other), shares, strict=True):
                queue.serve(len(share))
        finally:
            connection.lines += other.lines
            other.queue.close()

    def _change(self, host: Host, change: Change, *, undo: bool) -> None:
        """Does what the change says, or takes it back."""
        tree, nsid = self.tree, change.nsid
        if change.what == "remove" and undo:
            tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": tree.bdevs[nsid][0], "nsid": nsid})
        elif change.what == "remove":
            tree.remove(nsid)
        elif change.what == "protect":
            assert host.admin.set_features(0x84, int(not undo), nsid=nsid).status == nvme.OK
        else:
            address = tree.listen_address(tree.address)
            state = "optimized" if undo else change.what
            tree.rpc("nvmf_subsystem_listener_set_ana_state", listen_address=address, anagrpid=nsid, ana_state=state)

    def _held(self, host: Host, connection: Connection, step: Step) -> None:
        first, *others = step.commands
        connection.hold = True
        connection.send(connection.capsule(first))
        connection.serve(1)
        connection.hold = False
        if not connection.held:
            return  # refused at once
        held, connection.held = connection.held, {}
        if step.change is not None:
            self._change(host, step.change, undo=False)
        try:
            if step.kind == "abort":
                done = host.admin.command(nvme.ABORT, cdw=(connection.queue.qid | first.cid << 16,))
                connection.note(-1, f"abort {done.status:#x} {done.dw0:#x}")
                connection.serve(1)
            for each in others:
                connection.send(connection.capsule(each))
                connection.serve(1)
            connection.held = held
            connection.answer_held()
            if step.kind != "abort":
                connection.serve(1)
        finally:
            if step.change is not None:
                self._change(host, step.change, undo=True)

    @staticmethod
    def _bad_h2c(connection: Connection, step: Step) -> None:
        *before, command = step.commands
        conn = connection.queue.conn
        for each in before:
            connection.send(connection.capsule(each))
            connection.serve(1)
        connection.hold = True
        connection.send(connection.capsule(command))
        connection.serve(1)
        if connection.held:
            ((ttag, offset, length),) = connection.held.values()
            data, sound = command.out[offset : offset + length], min(command.piece, length // 2)
            if sound:
                connection.send(conn.h2c_data(command.cid, ttag, offset, data[:sound], last=False))
            damaged = conn.h2c_data(command.cid, ttag, offset + sound, data[sound:])
            connection.send(_damaged(damaged, 24, step, connection.queue))
        connection.send(FILLER)
        _to_the_end(connection)

    # -- content

    def _kept(self) -> list[Space]:
        return [space for space in self.world.spaces if space.ok and space.blocks < 1 << 20]

    def _clear(self, host: Host) -> None:
        queue = host.io(100, icd_max=0)
        for space in self._kept():
            queue.ok(nvme.WRITE_ZEROES, nsid=space.nsid, cdw=lba_cdw(0, space.blocks))
        queue.close()

    def _content(self, host: Host) -> list[str]:
        for name, value in (("hdgst", False), ("ddgst", False), ("hpda", 0), ("maxr2t", 0)):
            setattr(host.options, name, value)
        queue = host.io(101, icd_max=0)
        lines = []
        for space in self._kept():
            step = PIECE_BYTES // space.block_size
            for lba in range(0, space.blocks, step):
                count = min(step, space.blocks - lba)
                done = queue.read(lba, count, count * space.block_size, nsid=space.nsid)
                lines.append(f"nsid {space.nsid} lba {lba} {done.status:#x} {hashlib.sha1(done.data).hexdigest()[:16]}")
        queue.close()
        return lines


def _damaged(pdu: bytes, hlen: int, step: Step, queue: Queue) -> bytes:
    """The PDU with the header bytes that the step names changed, and its header digest made right again or not."""
    changed = bytearray(pdu)
    for at, value in step.wrong.bytes_at:
        changed[at] = value
    if queue.conn.params.hdgst and step.wrong.fix_digest:
        struct.pack_into("<I", changed, hlen, nvme.crc32c(bytes(changed[:hlen])))
    return bytes(changed)


def _to_the_end(connection: Connection) -> None:
    """Takes what comes until the target closes."""
    while True:
        connection.take(connection.queue.conn.recv_pdu())


def _drain(queue: Queue) -> None:
    """Reads until the target has closed, as a host that has been told so."""
    sock = queue.conn.sock
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1 << 16):
            pass
