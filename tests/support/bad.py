"""Wrong PDUs, as a table: what is sent at which stage of a connection, and which C2HTermReq may answer it.

An answer is (FES, FEI); FEI None where the specification leaves it reserved (it is a byte offset for FES 1 and 6 only).
More than one answer stands where the specification fits more than one; each is one that SPDK or FreeBSD gives.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.support import nvme
from tests.support.conn import RawConn
from tests.support.initiator import Queue

Answer = tuple[int, int | None]
Stage = Literal["raw", "ic", "io"]  # before ICReq, after ICResp, on a connected I/O queue

TYPE, FLAGS, HLEN, PDO, PLEN = ((nvme.FES_HEADER, offset) for offset in (0, 1, 2, 3, 4))
SEQUENCE: Answer = (nvme.FES_SEQUENCE, None)
RANGE: Answer = (nvme.FES_RANGE, None)
LIMIT: Answer = (nvme.FES_LIMIT, None)
CCCID: Answer = (nvme.FES_HEADER, 8)
TTAG: Answer = (nvme.FES_HEADER, 10)
DATAL: Answer = (nvme.FES_HEADER, 16)
DATA = bytes(range(256)) * 2


@dataclass(frozen=True, slots=True)
class Bad:
    """One wrong thing. ``row`` is that of the table of known defects; ``build`` gives the bytes to send."""

    name: str
    row: int
    stage: Stage
    build: Callable[[Queue], bytes]
    answers: tuple[Answer, ...]
    hdgst: bool = False
    ddgst: bool = False


def _capsule(**wrong: int) -> Callable[[Queue], bytes]:
    sqe = nvme.sqe(nvme.KEEP_ALIVE, cid=1)
    return lambda queue: queue.conn.capsule(sqe, b"", **wrong)


def _capsule_with_data(size: int = 512, **wrong: int) -> Callable[[Queue], bytes]:
    def build(queue: Queue) -> bytes:
        sqe = nvme.sqe(nvme.WRITE, cid=1, nsid=1, dptr=nvme.sgl(nvme.SGL_IN_CAPSULE, size))
        return queue.conn.capsule(sqe, bytes(size), **wrong)

    return build


def common(kind: int, hlen: int, plen: int, flags: int = 0, pdo: int = 0) -> bytes:
    """A common header followed by zeroes up to HLEN or PLEN, whichever is more (4 KiB at most)."""
    return struct.pack("<BBBBI", kind, flags, hlen, pdo, plen).ljust(max(hlen, min(plen, 4096)), b"\0")


def _fixed(data: bytes) -> Callable[[Queue], bytes]:
    return lambda queue: data


def waiting_write(queue: Queue, size: int = 4096) -> tuple[int, int, int, int]:
    """A Write whose R2T has come and is not answered: (CID, TTAG, R2TO, R2TL)."""
    cdw = (0, 0, size // 512 - 1)
    queue.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=cdw), out=bytes(size), in_capsule=False)
    return queue.recv_r2t()


def _h2c(
    *,
    cid: int = 0,
    ttag: int | None = None,
    offset: int = 0,
    size: int = 512,
    last: bool = False,
    write: int = 4096,
    **wrong: int,
) -> Callable[[Queue], bytes]:
    """H2CData for a waiting Write of ``write`` bytes; ``cid`` is added to the right one, ``ttag`` replaces it."""

    def build(queue: Queue) -> bytes:
        right_cid, right_ttag, _, _ = waiting_write(queue, write)
        tag = right_ttag if ttag is None else ttag
        if ttag is not None and ttag == right_ttag:
            tag ^= 0x5555
        return queue.conn.h2c_data(right_cid + cid, tag, offset, bytes(size), last=last, **wrong)

    return build


def _h2c_twice(first: tuple[int, int, bool], second: tuple[int, int, bool]) -> Callable[[Queue], bytes]:
    """Two H2CData for one R2T of 4096 bytes: (offset, size, last)."""

    def build(queue: Queue) -> bytes:
        cid, ttag, _, _ = waiting_write(queue)
        parts = (queue.conn.h2c_data(cid, ttag, at, bytes(size), last=last) for at, size, last in (first, second))
        return b"".join(parts)

    return build


def _h2c_unasked(queue: Queue) -> bytes:
    return queue.conn.h2c_data(1, 1, 0, DATA)


def _h2c_for_a_read(queue: Queue) -> bytes:
    assert queue.read(0, 1, 512).status == nvme.OK
    return queue.conn.h2c_data(queue.next_cid() - 1, 0, 0, DATA)


def _h2c_after_completion(queue: Queue) -> bytes:
    cid, ttag, _, length = waiting_write(queue)
    queue.send_h2c(cid, ttag, 0, bytes(length))
    assert queue.wait(cid).status == nvme.OK
    return queue.conn.h2c_data(cid, ttag, 0, bytes(length))


def _h2c_over_maxh2cdata(queue: Queue) -> bytes:
    size = queue.conn.params.maxh2cdata + 512
    cid, ttag, _, _ = waiting_write(queue, min(size, 1 << 17))
    return queue.conn.h2c_data(cid, ttag, 0, bytes(size))


def _no_digest(queue: Queue) -> bytes:
    return queue.conn.capsule(nvme.sqe(nvme.KEEP_ALIVE, cid=1), hdgst=False)


def _no_data_digest(queue: Queue) -> bytes:
    return _capsule_with_data(ddgst=False)(queue)


BEFORE_IC = [
    Bad("capsule-before-icreq", 9, "raw", _capsule(), (SEQUENCE,)),
    Bad("h2cdata-before-icreq", 2, "raw", _h2c_unasked, (SEQUENCE,)),
    *(
        Bad(f"first-type-{kind:#04x}", 6, "raw", _fixed(common(kind, 24, 24)), (TYPE, SEQUENCE))
        for kind in (0x01, 0x03, 0x05, 0x07, 0x08, 0x09, 0x0A, 0x55, 0xFF)
    ),
    Bad("http", 18, "raw", _fixed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), (TYPE, SEQUENCE)),
    Bad("tls-client-hello", 13, "raw", _fixed(bytes.fromhex("16030102000100") + bytes(510)), (TYPE, SEQUENCE)),
    Bad("ssh", 18, "raw", _fixed(b"SSH-2.0-OpenSSH_9.2\r\n"), (TYPE, SEQUENCE)),
    Bad("icreq-pfv", 1, "raw", _fixed(nvme.icreq(pfv=1)), ((nvme.FES_HEADER, 8), (nvme.FES_PARAMETER, 8))),
    *(
        Bad(f"icreq-hpda-{hpda}", 1, "raw", _fixed(nvme.icreq(hpda=hpda)), ((nvme.FES_HEADER, 10),))
        for hpda in (32, 255)
    ),
    *(Bad(f"icreq-hlen-{n}", 6, "raw", _fixed(nvme.icreq(hlen=n)), (HLEN,)) for n in (0, 8, 127, 129, 255)),
    *(
        Bad(f"icreq-plen-{n:#x}", 6, "raw", _fixed(nvme.icreq(plen=n)), (PLEN,))
        for n in (0, 8, 127, 129, 4096, 0xFFFFFFFF)
    ),
]

AFTER_IC = [
    Bad("second-icreq", 1, "ic", _fixed(nvme.icreq()), (SEQUENCE,)),
    Bad("second-icreq-on-io-queue", 1, "io", _fixed(nvme.icreq()), (SEQUENCE,)),
    Bad("second-icreq-over-long", 6, "ic", _fixed(nvme.icreq(plen=4096) + bytes(3968)), (SEQUENCE, PLEN)),
    Bad("h2cdata-before-connect", 2, "ic", _h2c_unasked, (SEQUENCE, TTAG)),
    Bad("capsule-plen-huge", 6, "ic", _capsule(plen=0xFFFFFFFF, pdo=72), (PLEN, LIMIT)),
    Bad("capsule-data-8k-and-more", 5, "ic", _capsule_with_data(8192 + 512), (PLEN, LIMIT, RANGE)),
    *(
        Bad(f"{stage}-type-{kind:#04x}", 6, stage, _fixed(common(kind, 24, 24)), (TYPE,))
        for stage in ("ic", "io")
        for kind in (0x01, 0x03, 0x05, 0x07, 0x08, 0x09, 0x0A, 0x55, 0xFF)
    ),
]

CAPSULES = [
    *(Bad(f"capsule-hlen-{n}", 6, "io", _capsule(hlen=n), (HLEN,)) for n in (0, 8, 24, 71, 73, 255)),
    *(Bad(f"capsule-plen-{n}", 6, "io", _capsule(plen=n), (PLEN,)) for n in (0, 8, 71)),
    *(Bad(f"capsule-pdo-{n}", 6, "io", _capsule_with_data(pdo=n), (PDO,)) for n in (4, 71, 73, 74, 255)),
    Bad("capsule-pdo-0-with-data", 6, "io", _capsule_with_data(pdo=0), (PDO, PLEN)),
    Bad("capsule-data-too-long", 5, "io", _capsule_with_data(1 << 17), (PLEN, LIMIT, RANGE)),
    Bad("hdgst-flag-not-agreed", 6, "io", _capsule(flags=nvme.HDGSTF), (FLAGS,)),
    Bad("ddgst-flag-not-agreed", 6, "io", _capsule_with_data(flags=nvme.DDGSTF), (FLAGS,)),
    Bad("hdgst-flag-missing", 6, "io", _no_digest, (FLAGS,), hdgst=True),
    Bad("ddgst-flag-missing", 6, "io", _no_data_digest, (FLAGS,), ddgst=True),
    Bad("hlen-255-with-hdgst", 6, "io", _capsule(hlen=255), (HLEN,), hdgst=True),
    Bad("header-digest", 7, "io", _capsule(hdgst_xor=1), ((nvme.FES_HDGST, None),), hdgst=True),
]

H2C_DATA = [
    Bad("h2c-unasked", 2, "io", _h2c_unasked, (TTAG, SEQUENCE)),
    Bad("h2c-for-a-read", 2, "io", _h2c_for_a_read, (TTAG, SEQUENCE)),
    Bad("h2c-after-completion", 4, "io", _h2c_after_completion, (TTAG, SEQUENCE)),
    *(Bad(f"h2c-ttag-{n:#x}", 3, "io", _h2c(ttag=n), (TTAG, SEQUENCE)) for n in (0, 1, 2, 0x7FFF, 0x8000, 0xFFFF)),
    Bad("h2c-cccid", 3, "io", _h2c(cid=1), (CCCID, SEQUENCE)),
    Bad("h2c-datal-0", 4, "io", _h2c(size=0), (DATAL, PLEN, RANGE, PDO)),
    Bad("h2c-datal-0-last", 4, "io", _h2c(size=0, last=True), (DATAL, PLEN, RANGE, PDO)),
    *(Bad(f"h2c-datal-{n}-not-plen", 4, "io", _h2c(datal=n), (DATAL, PLEN)) for n in (0, 4, 508, 516)),
    Bad("h2c-datal-4g-not-plen", 4, "io", _h2c(datal=0xFFFFFFFF), (DATAL, PLEN, LIMIT)),
    *(Bad(f"h2c-datao-{n:#x}", 4, "io", _h2c(offset=n), (RANGE, SEQUENCE)) for n in (4, 512, 3584)),
    *(Bad(f"h2c-datao-{n:#x}", 4, "io", _h2c(offset=n), (RANGE,)) for n in (4096, 0x80000000, 0xFFFFFE00, 0xFFFFFFFF)),
    Bad("h2c-beyond-r2t", 4, "io", _h2c(size=4096 + 512), (RANGE, LIMIT)),
    Bad("h2c-over-maxh2cdata", 4, "io", _h2c_over_maxh2cdata, (RANGE, LIMIT)),
    Bad("h2c-overlap", 4, "io", _h2c_twice((0, 512, False), (0, 512, False)), (RANGE, SEQUENCE)),
    Bad("h2c-half-overlap", 4, "io", _h2c_twice((0, 512, False), (256, 512, False)), (RANGE, SEQUENCE)),
    Bad("h2c-gap", 4, "io", _h2c_twice((0, 512, False), (1024, 512, False)), (RANGE, SEQUENCE)),
    Bad("h2c-runs-over", 4, "io", _h2c_twice((0, 512, False), (512, 4096, True)), (RANGE,)),
    Bad("h2c-last-missing", 4, "io", _h2c(size=4096), (SEQUENCE, FLAGS)),
    Bad("h2c-last-too-early", 4, "io", _h2c(last=True), (SEQUENCE, FLAGS)),
    Bad("h2c-hlen", 6, "io", _h2c(hlen=20), (HLEN,)),
    Bad("h2c-plen-below-hlen", 6, "io", _h2c(plen=20), (PLEN,)),
    Bad("h2c-plen-huge", 6, "io", _h2c(plen=0xFFFFFFFF), (PLEN, LIMIT, DATAL)),
    *(Bad(f"h2c-pdo-{n}", 6, "io", _h2c(pdo=n), (PDO,)) for n in (4, 23, 25, 255)),
    Bad("h2c-ddgst-flag-not-agreed", 6, "io", _h2c(ddgst=True), (FLAGS,)),
]

EVERY = [*BEFORE_IC, *AFTER_IC, *CAPSULES, *H2C_DATA]


def provoke(bad: Bad, queue: Queue) -> None:
    """Sends it. The target may close before all of it has been sent."""
    queue.conn.send(bad.build(queue))


def check_answer(bad: Bad, conn: RawConn) -> None:
    """A C2HTermReq that is one of the answers, holds a piece of what we sent, and then the end of the stream."""
    term = conn.recv_term()
    fits = [fes == term.fes and fei in (None, term.fei) for fes, fei in bad.answers]
    assert any(fits), f"FES {term.fes} FEI {term.fei}, expected {' or '.join(map(str, bad.answers))}"
    assert len(term.data) <= 128
    conn.expect_closed()
