"""One TCP connection to the target, below the level of commands: PDUs in and out, right ones and wrong ones.

Every PDU that arrives is checked against NVMe/TCP before a test sees it; a target that breaks the transport's rules
fails whatever test happened to be running.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass, field
from types import TracebackType

from tests.support import nvme

Address = tuple[str, int]
TIMEOUT_S = 30.0  # a bound that ends a failed test: on a loaded machine 10 s were too few


class PeerClosed(Exception):
    """The target ended the connection."""


@dataclass(frozen=True, slots=True)
class Pdu:
    """A received PDU: the header's fields, its ``hlen`` bytes, and its data without padding and digests."""

    type: int
    flags: int
    hlen: int
    pdo: int
    plen: int
    header: bytes
    data: bytes

    @property
    def last(self) -> bool:
        return bool(self.flags & nvme.LAST)

    @property
    def success(self) -> bool:
        return bool(self.flags & nvme.SUCCESS)


@dataclass(frozen=True, slots=True)
class IcResp:
    pfv: int
    cpda: int
    dgst: int
    maxh2cdata: int


@dataclass(frozen=True, slots=True)
class TermReq:
    """C2HTermReq: ``data`` is the copy of the offending PDU's header."""

    fes: int
    fei: int
    data: bytes


@dataclass(slots=True)
class Params:
    """What the two ends agreed on. ``hpda`` and ``cpda`` in bytes of alignment."""

    hdgst: bool = False
    ddgst: bool = False
    hpda: int = 4
    cpda: int = 4
    maxr2t: int = 1
    maxh2cdata: int = 0


@dataclass(slots=True)
class RawConn:
    """A socket that speaks PDUs. ``timeout`` (s) bounds every wait; running into it is a test failure."""

    address: Address
    timeout: float = TIMEOUT_S
    params: Params = field(default_factory=Params)
    sock: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.sock = socket.create_connection(self.address, timeout=self.timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> RawConn:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Closes with RST, as a host that crashed."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # Sending

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise PeerClosed(str(error)) from error

    def pdu(
        self,
        kind: int,
        body: bytes,
        data: bytes = b"",
        *,
        flags: int = 0,
        hlen: int | None = None,
        pdo: int | None = None,
        plen: int | None = None,
        hdgst: bool | None = None,
        ddgst: bool | None = None,
        hdgst_xor: int = 0,
        ddgst_xor: int = 0,
    ) -> bytes:
        """A PDU as agreed in ``params``; every field can be forced to another value."""
        use_hdgst = self.params.hdgst if hdgst is None else hdgst
        use_ddgst = (self.params.ddgst if ddgst is None else ddgst) and bool(data)
        size = 8 + len(body)
        end = size + 4 * use_hdgst
        offset = -(-end // self.params.cpda) * self.params.cpda if data else end
        total = offset + len(data) + 4 * use_ddgst
        flags |= (nvme.HDGSTF if use_hdgst else 0) | (nvme.DDGSTF if use_ddgst else 0)
        header = struct.pack(
            "<BBBBI",
            kind,
            flags,
            size if hlen is None else hlen,
            (offset if data else 0) if pdo is None else pdo,
            total if plen is None else plen,
        )
        out = header + body
        if use_hdgst:
            out += struct.pack("<I", nvme.crc32c(out) ^ hdgst_xor)
        if data:
            out += bytes(offset - end) + data
        if use_ddgst:
            out += struct.pack("<I", nvme.crc32c(data) ^ ddgst_xor)
        return out

    def capsule(self, sqe: bytes, data: bytes = b"", **wrong: int) -> bytes:
        """CapsuleCmd with optional in-capsule data."""
        return self.pdu(nvme.CAPSULE_CMD, sqe, data, **wrong)  # type: ignore[arg-type]

    def h2c_data(
        self,
        cid: int,
        ttag: int,
        offset: int,
        data: bytes,
        *,
        last: bool = True,
        datal: int | None = None,
        **wrong: int,
    ) -> bytes:
        """H2CData PDU."""
        body = struct.pack("<HHII4x", cid, ttag, offset, len(data) if datal is None else datal)
        return self.pdu(nvme.H2C_DATA, body, data, flags=nvme.LAST if last else 0, **wrong)  # type: ignore[arg-type]

    # Receiving

    def recv_exact(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                chunk = self.sock.recv(min(size - len(parts), 1 << 20))
            except ConnectionResetError as error:
                raise PeerClosed("reset") from error
            if not chunk:
                raise PeerClosed(f"end of stream after {len(parts)} of {size} bytes")
            parts += chunk
        return bytes(parts)

    def recv_pdu(self) -> Pdu:
        """The next PDU, checked: type for this direction, HLEN, flags, digests, PDO, padding, PLEN (TCP 3.6)."""
        head = self.recv_exact(8)
        kind, flags, hlen, pdo, plen = struct.unpack("<BBBBI", head)
        assert kind in (nvme.ICRESP, nvme.C2H_TERM, nvme.CAPSULE_RESP, nvme.C2H_DATA, nvme.R2T), f"PDU type {kind:#x}"
        assert hlen == nvme.HLEN[kind], f"type {kind:#x}: HLEN {hlen}"
        assert hlen <= plen <= 1 << 24, f"type {kind:#x}: PLEN {plen}"
        rest = self.recv_exact(plen - 8)
        header = head + rest[: hlen - 8]
        bare = kind in (nvme.ICRESP, nvme.C2H_TERM)
        assert bool(flags & nvme.HDGSTF) == (self.params.hdgst and not bare), f"type {kind:#x}: flags {flags:#x}"
        end = hlen
        if flags & nvme.HDGSTF:
            (digest,) = struct.unpack_from("<I", rest, hlen - 8)
            assert digest == nvme.crc32c(header), f"type {kind:#x}: header digest"
            end += 4
        data = self._data(kind, flags, pdo, plen, end, head + rest)
        if kind == nvme.C2H_TERM:
            assert plen <= 152, f"C2HTermReq of {plen} bytes"
            data = rest[16:]
        return Pdu(kind, flags, hlen, pdo, plen, header, data)

    def _data(self, kind: int, flags: int, pdo: int, plen: int, end: int, whole: bytes) -> bytes:
        if kind != nvme.C2H_DATA:
            assert kind == nvme.C2H_TERM or plen == end, f"type {kind:#x}: PLEN {plen}, expected {end}"
            assert pdo == 0, f"type {kind:#x}: PDO {pdo} without data"
            assert not flags & ~nvme.HDGSTF, f"type {kind:#x}: flags {flags:#x}"
            return b""
        tail = 4 if self.params.ddgst else 0
        assert bool(flags & nvme.DDGSTF) == self.params.ddgst, f"C2HData flags {flags:#x}"
        assert not flags & ~0x0F, f"C2HData flags {flags:#x}"
        assert pdo >= end, f"C2HData PDO {pdo}"
        assert pdo % self.params.hpda == 0, f"C2HData PDO {pdo}, HPDA {self.params.hpda}"
        assert not any(whole[end:pdo]), "C2HData padding is not zero"
        data = whole[pdo : plen - tail]
        if tail:
            assert struct.unpack("<I", whole[plen - 4 :])[0] == nvme.crc32c(data), "C2HData data digest"
        return data

    def recv_term(self) -> TermReq:
        """The next PDU must be a C2HTermReq."""
        pdu = self.recv_pdu()
        assert pdu.type == nvme.C2H_TERM, f"expected C2HTermReq, got type {pdu.type:#x}: {pdu.header.hex()}"
        fes, fei = struct.unpack_from("<HI", pdu.header, 8)
        return TermReq(fes, fei, pdu.data)

    def expect_term(self, fes: int, fei: int | None = None) -> TermReq:
        """A C2HTermReq with that FES (and FEI), then nothing but the end of the stream once we close our side."""
        term = self.recv_term()
        assert term.fes == fes, f"FES {term.fes} FEI {term.fei}, expected FES {fes}"
        assert fei is None or term.fei == fei, f"FES {term.fes} FEI {term.fei}, expected FEI {fei}"
        self.expect_closed()
        return term

    def expect_closed(self) -> None:
        """The target closes; anything else that arrives first is an error."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        self.wait_closed()

    def wait_closed(self) -> None:
        """The target closes by itself within the timeout, without sending more."""
        try:
            more = self.sock.recv(64)
        except (ConnectionResetError, BrokenPipeError):
            return
        assert more == b"", f"the target sent {more.hex()} where it should have closed"

    def is_silent(self, seconds: float) -> bool:
        """True when the target neither sends nor closes for that long."""
        self.sock.settimeout(seconds)
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        except ConnectionResetError:
            return False
        finally:
            self.sock.settimeout(self.timeout)
        return False

    # Initialise connection

    def ic(
        self, *, hdgst: bool = False, ddgst: bool = False, hpda: int = 0, maxr2t: int = 0, expect_digests: bool = True
    ) -> IcResp:
        """ICReq and ICResp. ``hpda`` as on the wire (dwords, 0's based)."""
        asked = hdgst | ddgst << 1
        self.send(nvme.icreq(hpda=hpda, maxr2t=maxr2t, dgst=asked))
        pdu = self.recv_pdu()
        assert pdu.type == nvme.ICRESP, f"expected ICResp, got type {pdu.type:#x}: {pdu.header.hex()}"
        pfv, cpda, dgst, maxh2cdata = struct.unpack_from("<HBBI", pdu.header, 8)
        assert pfv == 0
        assert cpda <= 31
        assert dgst & ~asked == 0, f"digests {dgst:#x} were not asked for"
        assert dgst == asked or not expect_digests
        assert maxh2cdata >= 4096
        assert maxh2cdata % 4 == 0
        assert not any(pdu.header[16:]), "reserved bytes of ICResp"
        self.params = Params(bool(dgst & 1), bool(dgst & 2), (hpda + 1) * 4, (cpda + 1) * 4, maxr2t + 1, maxh2cdata)
        return IcResp(pfv, cpda, dgst, maxh2cdata)
