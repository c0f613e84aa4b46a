"""A host: queues that send commands and carry their data, checking on the way what the transport promises.

Synchronous and single threaded: ``submit`` sends a command, ``wait`` serves the connection (R2T, C2HData, responses)
until that command has completed. Nothing is hidden: status, SQHD and the way the data came are in ``Completion``.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from types import TracebackType

from tests.support import coverage, nvme
from tests.support.conn import TIMEOUT_S, Address, IcResp, Pdu, RawConn
from tests.support.nvme import Cqe

CSTS_S = 15.0  # bound that ends a failed test; CAP.TO says 15 s as well
CSTS_POLL_S = 0.002


@dataclass(slots=True)
class Completion:
    """``status`` is ``SCT << 8 | SC``; ``data`` what came in C2HData; ``by_success`` without a CapsuleResp."""

    cid: int
    status: int
    dnr: bool = False
    dw0: int = 0
    dw1: int = 0
    sqhd: int = 0
    sqid: int = 0
    data: bytes = b""
    by_success: bool = False
    r2ts: int = 0
    cqe: Cqe | None = None

    @property
    def result(self) -> int:
        """The 64-bit result of Property Get."""
        return self.dw1 << 32 | self.dw0

    @property
    def ipo(self) -> tuple[int, int]:
        """(IATTR, IPO) of Connect Invalid Parameters: IATTR 0 = SQE, 1 = data; IPO in bytes."""
        return self.dw0 >> 16 & 0xFF, self.dw0 & 0xFFFF


@dataclass(slots=True)
class _Pending:
    out: bytes
    expect: int
    received: bytearray = field(default_factory=bytearray)
    last_seen: bool = False
    r2t_offset: int = 0
    r2ts: int = 0


class Queue:
    """One queue pair, which is one connection."""

    def __init__(self, conn: RawConn, qid: int = 0) -> None:
        self.conn = conn
        self.qid = qid
        self.asked_qid = qid  # by a Connect that has not been answered
        self.sqsize = 0
        self.sq_flow = True
        self.icd_max = 8192  # admin and Fabrics commands (TCP 3.3.2.1)
        self.completed: dict[int, Completion] = {}
        self.order: list[int] = []  # CIDs in order of completion
        self._pending: dict[int, _Pending] = {}
        self._cid = 0

    # Sending commands

    def next_cid(self) -> int:
        self._cid = (self._cid + 1) & 0x7FFF
        return self._cid

    def submit(
        self, sqe: bytes, *, out: bytes = b"", expect: int = 0, in_capsule: bool | None = None, cid: int = -1
    ) -> int:
        """Sends a command; returns its CID, which is put into ``sqe``.

        ``out`` is data for the controller, ``expect`` the most bytes that may come back. The SGL is filled in; with
        ``in_capsule`` left open, data that fits goes in the capsule, as hosts do.
        """
        cid = self.next_cid() if cid < 0 else cid
        if in_capsule is None:
            in_capsule = 0 < len(out) <= self.icd_max
        if out:
            dptr = nvme.sgl(nvme.SGL_IN_CAPSULE if in_capsule else nvme.SGL_TRANSPORT, len(out))
        else:
            dptr = nvme.sgl(nvme.SGL_TRANSPORT, expect)
        sqe = sqe[:2] + struct.pack("<H", cid) + sqe[4:24] + dptr + sqe[40:]
        return self.submit_raw(sqe, out=out, expect=expect, capsule_data=out if in_capsule else b"")

    def submit_raw(self, sqe: bytes, *, out: bytes = b"", expect: int = 0, capsule_data: bytes = b"") -> int:
        """As ``submit`` with the SQE as it is."""
        cid = int.from_bytes(sqe[2:4], "little")
        assert cid not in self._pending, f"CID {cid} is in flight (an error of the test)"
        self._pending[cid] = _Pending(b"" if capsule_data else out, expect)
        self.completed.pop(cid, None)
        coverage.record(sqe, self.qid)
        self.conn.send(self.conn.capsule(sqe, capsule_data))
        return cid

    def expect_response(self, cid: int, expect: int = 0) -> None:
        """Announces a command that the test sends past ``submit``; ``expect`` bytes at most may come back."""
        self._pending[cid] = _Pending(b"", expect)

    def command(self, opc: int, *, nsid: int = 0, cdw: tuple[int, ...] = (), out: bytes = b"", expect: int = 0,
                fuse: int = 0, in_capsule: bool | None = None) -> Completion:  # fmt: skip
        """Submit and wait."""
        sqe = nvme.sqe(opc, nsid=nsid, cdw=cdw, fuse=fuse)
        return self.wait(self.submit(sqe, out=out, expect=expect, in_capsule=in_capsule))

    def ok(self, opc: int, *, nsid: int = 0, cdw: tuple[int, ...] = (), out: bytes = b"", expect: int = 0,
           in_capsule: bool | None = None) -> Completion:  # fmt: skip
        """A command that must succeed."""
        done = self.command(opc, nsid=nsid, cdw=cdw, out=out, expect=expect, in_capsule=in_capsule)
        assert done.status == nvme.OK, f"opcode {opc:#x} cdw {cdw}: status {done.status:#x}"
        return done

    # Serving the connection

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def wait(self, cid: int) -> Completion:
        """Serves the connection until ``cid`` has completed."""
        while cid not in self.completed:
            self.serve_one()
        return self.completed.pop(cid)

    def serve_one(self) -> None:
        """Takes one PDU from the target and does what it asks for."""
        pdu = self.conn.recv_pdu()
        if pdu.type == nvme.CAPSULE_RESP:
            self._response(pdu)
        elif pdu.type == nvme.C2H_DATA:
            self._c2h_data(pdu)
        elif pdu.type == nvme.R2T:
            self._r2t(pdu)
        else:
            raise AssertionError(f"unexpected PDU type {pdu.type:#x}: {pdu.header.hex()}")

    def pump(self, seconds: float) -> None:
        """Serves whatever arrives until nothing has come for ``seconds``."""
        while not self.conn.is_silent(seconds):
            self.serve_one()

    def _response(self, pdu: Pdu) -> None:
        cqe = Cqe.parse(pdu.header[8:24])
        pending = self._pending.pop(cqe.cid, None)
        assert pending is not None, f"response for CID {cqe.cid}, which is not in flight"
        assert cqe.sqid in (self.qid, self.asked_qid), f"SQID {cqe.sqid} on queue {self.qid}"
        if self.sqsize:
            assert cqe.sqhd <= self.sqsize if self.sq_flow else cqe.sqhd == 0xFFFF, f"SQHD {cqe.sqhd:#x}"
        assert not pending.received or pending.last_seen, "response before the last C2HData"
        self.order.append(cqe.cid)
        self.completed[cqe.cid] = Completion(
            cqe.cid, cqe.status, cqe.dnr, cqe.dw0, cqe.dw1, cqe.sqhd, cqe.sqid, bytes(pending.received), False,
            pending.r2ts, cqe,
        )  # fmt: skip

    def _c2h_data(self, pdu: Pdu) -> None:
        cid, reserved, offset, length = struct.unpack_from("<HHII", pdu.header, 8)
        pending = self._pending.get(cid)
        assert pending is not None, f"C2HData for CID {cid}, which is not in flight"
        assert reserved == 0
        assert not any(pdu.header[20:24])
        assert length == len(pdu.data) > 0, f"DATAL {length}, PDU carries {len(pdu.data)}"
        assert offset == len(pending.received), f"DATAO {offset}, expected {len(pending.received)}"
        assert offset + length <= pending.expect, f"C2HData up to {offset + length}, buffer is {pending.expect}"
        assert not pending.last_seen, "C2HData after LAST_PDU"
        assert pdu.last or not pdu.success, "SUCCESS without LAST_PDU"
        pending.received += pdu.data
        pending.last_seen = pdu.last
        if pdu.success:
            assert not self.sq_flow, "SUCCESS while SQ flow control is on: SQHD would be lost"
            del self._pending[cid]
            self.order.append(cid)
            self.completed[cid] = Completion(cid, nvme.OK, data=bytes(pending.received), by_success=True)

    def _r2t(self, pdu: Pdu) -> None:
        cid, ttag, offset, length = struct.unpack_from("<HHII", pdu.header, 8)
        pending = self._pending.get(cid)
        assert pending is not None, f"R2T for CID {cid}, which is not in flight"
        assert pending.out, f"R2T for CID {cid}, which has no data to send"
        assert not any(pdu.header[20:24])
        assert offset == pending.r2t_offset, f"R2TO {offset}, expected {pending.r2t_offset}"
        assert 0 < length <= len(pending.out) - offset, f"R2TL {length} at {offset} of {len(pending.out)}"
        pending.r2t_offset += length
        pending.r2ts += 1
        self.send_h2c(cid, ttag, offset, pending.out[offset : offset + length])

    def send_h2c(self, cid: int, ttag: int, offset: int, data: bytes, piece: int = 0) -> None:
        """Answers an R2T in H2CData PDUs of at most MAXH2CDATA (or ``piece``) bytes."""
        piece = piece or self.conn.params.maxh2cdata
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            self.conn.send(self.conn.h2c_data(cid, ttag, offset + at, part, last=at + len(part) == len(data)))

    def recv_r2t(self) -> tuple[int, int, int, int]:
        """The next PDU must be an R2T: (CCCID, TTAG, R2TO, R2TL). The test answers it itself."""
        pdu = self.conn.recv_pdu()
        assert pdu.type == nvme.R2T, f"expected R2T, got type {pdu.type:#x}: {pdu.header.hex()}"
        cid, ttag, offset, length = struct.unpack_from("<HHII", pdu.header, 8)
        return cid, ttag, offset, length

    # Fabrics

    def connect(
        self,
        subnqn: str | bytes,
        *,
        hostnqn: str | bytes = nvme.HOST_NQN,
        hostid: bytes = nvme.HOST_ID,
        cntlid: int = 0xFFFF,
        qid: int = 0,
        sqsize: int = 31,
        kato: int = 0,
        cattr: int = 0,
        recfmt: int = 0,
    ) -> Completion:
        """Fabrics Connect; the completion as it came."""
        data = nvme.connect_data(subnqn, hostnqn, hostid, cntlid)
        sqe = nvme.connect_sqe(recfmt=recfmt, qid=qid, sqsize=sqsize, cattr=cattr, kato=kato)
        self.sq_flow, self.asked_qid = not cattr & 4, qid
        done = self.wait(self.submit(sqe, out=data, in_capsule=True))
        if done.status == nvme.OK:
            self.qid, self.sqsize = qid, sqsize
        self.asked_qid = self.qid
        return done

    def property_get(self, prop: tuple[int, int]) -> int:
        done = self.wait(self.submit(nvme.property_get_sqe(*prop)))
        assert done.status == nvme.OK, f"Property Get {prop}: status {done.status:#x}"
        return done.result

    def property_set(self, prop: tuple[int, int], value: int) -> Completion:
        return self.wait(self.submit(nvme.property_set_sqe(*prop, value)))

    # Admin commands

    def identify(self, cns: int, *, nsid: int = 0, cntid: int = 0, csi: int = 0, expect: int = 4096) -> Completion:
        return self.command(nvme.IDENTIFY, nsid=nsid, cdw=(cns | cntid << 16, csi << 24), expect=expect)

    def get_log(self, lid: int, size: int, *, offset: int = 0, lsp: int = 0, rae: bool = False, nsid: int = 0xFFFFFFFF,
                cdw14: int = 0) -> Completion:  # fmt: skip
        """Get Log Page; ``size`` and ``offset`` in bytes."""
        numd = size // 4 - 1
        cdw = (lid | lsp << 8 | rae << 15 | (numd & 0xFFFF) << 16, numd >> 16, offset & 0xFFFFFFFF, offset >> 32, cdw14)
        return self.command(nvme.GET_LOG, nsid=nsid, cdw=cdw, expect=size)

    def set_features(
        self, fid: int, value: int = 0, *, save: bool = False, nsid: int = 0, out: bytes = b""
    ) -> Completion:
        return self.command(nvme.SET_FEATURES, nsid=nsid, cdw=(fid | save << 31, value), out=out)

    def get_features(self, fid: int, *, sel: int = 0, nsid: int = 0, cdw11: int = 0, expect: int = 0) -> Completion:
        return self.command(nvme.GET_FEATURES, nsid=nsid, cdw=(fid | sel << 8, cdw11), expect=expect)

    def aer(self) -> int:
        """Sends an Asynchronous Event Request; its CID."""
        return self.submit(nvme.sqe(nvme.AER))

    def keep_alive(self) -> Completion:
        return self.command(nvme.KEEP_ALIVE)

    # I/O commands; ``blocks`` is a count (not 0's based)

    def read(self, lba: int, blocks: int, size: int, *, nsid: int = 1, cdw12: int = 0) -> Completion:
        """``size`` in bytes is what the SGL gives room for."""
        return self.command(nvme.READ, nsid=nsid, cdw=lba_cdw(lba, blocks, cdw12), expect=size)

    def write(self, lba: int, blocks: int, data: bytes, *, nsid: int = 1, cdw12: int = 0,
              in_capsule: bool | None = None) -> Completion:  # fmt: skip
        cdw = lba_cdw(lba, blocks, cdw12)
        return self.command(nvme.WRITE, nsid=nsid, cdw=cdw, out=data, in_capsule=in_capsule)

    def close(self) -> None:
        self.conn.close()


def lba_cdw(lba: int, blocks: int, cdw12: int = 0) -> tuple[int, int, int]:
    """Command dwords 10 to 12 of an I/O command with a range of blocks."""
    return lba & 0xFFFFFFFF, lba >> 32, (blocks - 1) & 0xFFFF | cdw12


@dataclass(slots=True)
class HostOptions:
    """How a host connects; ``kato`` in ms, ``hpda`` as on the wire."""

    hostnqn: str = nvme.HOST_NQN
    hostid: bytes = nvme.HOST_ID
    hdgst: bool = False
    ddgst: bool = False
    hpda: int = 0
    maxr2t: int = 0
    kato: int = 0
    timeout: float = TIMEOUT_S


class Host:
    """An association: an admin queue and any number of I/O queues."""

    def __init__(self, address: Address, subnqn: str, options: HostOptions | None = None, **changes: object) -> None:
        self.address = address
        self.subnqn = subnqn
        self.options = options or HostOptions()
        for name, value in changes.items():
            setattr(self.options, name, value)
        self.queues: list[Queue] = []
        self.cntlid = 0xFFFF
        self.icresp: IcResp | None = None
        self.admin = self.open()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the association as a host that goes away: every connection closed, the admin queue last."""
        for queue in reversed(self.queues):
            queue.close()

    def open(self) -> Queue:
        """A new connection after ICReq and ICResp."""
        conn = RawConn(self.address, self.options.timeout)
        options = self.options
        try:
            self.icresp = conn.ic(hdgst=options.hdgst, ddgst=options.ddgst, hpda=options.hpda, maxr2t=options.maxr2t)
        except BaseException:
            conn.close()
            raise
        queue = Queue(conn)
        self.queues.append(queue)
        return queue

    def try_connect(self, queue: Queue, **changes: int) -> Completion:
        options = self.options
        return queue.connect(self.subnqn, hostnqn=options.hostnqn, hostid=options.hostid, **changes)

    def connect(self, sqsize: int = 31, cattr: int = 0) -> Host:
        """Connects the admin queue; the controller is not enabled yet."""
        done = self.try_connect(self.admin, sqsize=sqsize, kato=self.options.kato, cattr=cattr)
        assert done.status == nvme.OK, f"Connect: status {done.status:#x} dw0 {done.dw0:#x}"
        self.cntlid = done.dw0 & 0xFFFF
        assert 1 <= self.cntlid <= 0xFFEF, f"CNTLID {self.cntlid:#x}"
        return self

    def enable(self, cc: int = nvme.CC_ENABLE) -> Host:
        done = self.admin.property_set(nvme.CC, cc)
        assert done.status == nvme.OK
        self.wait_csts(1, 1)
        return self

    def wait_csts(self, mask: int, value: int) -> int:
        """Reads CSTS until the masked bits have that value, as a host does, with a pause between; bounded in time."""
        deadline = time.monotonic() + CSTS_S
        while time.monotonic() < deadline:
            csts = self.admin.property_get(nvme.CSTS)
            if csts & mask == value:
                return csts
            assert not csts & 2, f"CSTS.CFS (CSTS {csts:#x})"
            time.sleep(CSTS_POLL_S)
        raise AssertionError(f"CSTS never reached {value:#x} under mask {mask:#x}")

    def start(self) -> Host:
        """Connect and enable."""
        return self.connect().enable()

    def io(self, qid: int = 1, *, sqsize: int = 63, cattr: int = 0, icd_max: int | None = None) -> Queue:
        """Opens and connects an I/O queue. In-capsule data up to what IOCCSZ says."""
        queue = self.open()
        done = self.try_connect(queue, cntlid=self.cntlid, qid=qid, sqsize=sqsize, cattr=cattr)
        assert done.status == nvme.OK, f"I/O Connect: status {done.status:#x} dw0 {done.dw0:#x}"
        queue.icd_max = self.ioccsz * 16 - 64 if icd_max is None else icd_max
        return queue

    @property
    def ioccsz(self) -> int:
        """I/O queue command capsule size in 16 bytes (Identify Controller byte 1792)."""
        data = self.admin.identify(1).data
        return int.from_bytes(data[1792:1796], "little")
