"""Byte layouts and status codes that the conformance tests expect, written from the specifications with ``struct``.

Nothing here comes from ``nvmet_p2p``: an error in the target's codecs must not hide behind the same error in its test.
Sources: NVM Express Base 2.1, NVM Command Set 1.1, NVMe over TCP Transport 1.1. A status is ``SCT << 8 | SC``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import google_crc32c

DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
HOST_ID = bytes(range(16, 32))

# Status (Base figure "Status Code"): generic 0xx, command specific 1xx, media 2xx, path 3xx
OK = 0x000
INVALID_OPCODE = 0x001
INVALID_FIELD = 0x002
CID_CONFLICT = 0x003
DATA_TRANSFER_ERROR = 0x004
INTERNAL_ERROR = 0x006
ABORT_REQUESTED = 0x007
FAILED_FUSED = 0x009
MISSING_FUSED = 0x00A
INVALID_NAMESPACE = 0x00B
COMMAND_SEQUENCE = 0x00C
DATA_SGL_LENGTH = 0x00F
SGL_TYPE = 0x011
SGL_OFFSET = 0x016
NS_WRITE_PROTECTED = 0x020
COMMAND_INTERRUPTED = 0x021
TRANSIENT_TRANSPORT = 0x022
LBA_RANGE = 0x080
ABORT_LIMIT = 0x103
AER_LIMIT = 0x105
INVALID_LOG_PAGE = 0x109
NOT_SAVEABLE = 0x10D
NOT_CHANGEABLE = 0x10E
CONNECT_FORMAT = 0x180
CONNECT_BUSY = 0x181
CONNECT_PARAM = 0x182
CONNECT_HOST = 0x184
WRITE_TO_RO_RANGE = 0x182
SIZE_LIMIT = 0x183
INCOMPATIBLE_NS = 0x185
OVERLAPPING = 0x187
COMPARE_FAILURE = 0x285
ANA_PERSISTENT_LOSS = 0x301
ANA_INACCESSIBLE = 0x302
ANA_TRANSITION = 0x303

# PDU types and flags (TCP 3.6.1)
ICREQ, ICRESP, H2C_TERM, C2H_TERM = 0x00, 0x01, 0x02, 0x03
CAPSULE_CMD, CAPSULE_RESP, H2C_DATA, C2H_DATA, R2T = 0x04, 0x05, 0x06, 0x07, 0x09
HDGSTF, DDGSTF, LAST, SUCCESS = 1, 2, 4, 8
HLEN = {
    ICREQ: 128, ICRESP: 128, H2C_TERM: 24, C2H_TERM: 24, CAPSULE_CMD: 72, CAPSULE_RESP: 24, H2C_DATA: 24, C2H_DATA: 24,
    R2T: 24,
}  # fmt: skip

# Fatal error status of a TermReq (TCP figure "C2HTermReq PDU")
FES_HEADER, FES_SEQUENCE, FES_HDGST, FES_RANGE, FES_LIMIT, FES_PARAMETER = 1, 2, 3, 4, 5, 6

# Properties (Base 3.1.4): offset, size in bytes
CAP, VS, CC, CSTS, NSSR, CRTO = (0x00, 8), (0x08, 4), (0x14, 4), (0x1C, 4), (0x20, 4), (0x68, 4)
CC_ENABLE = 0x00460001  # IOCQES 4, IOSQES 6, CSS NVM, EN

# Opcodes
FLUSH, WRITE, READ, WRITE_UNC, COMPARE, WRITE_ZEROES, DSM, VERIFY, COPY = 0, 1, 2, 4, 5, 8, 9, 0xC, 0x19
GET_LOG, IDENTIFY, ABORT, SET_FEATURES, GET_FEATURES, AER, KEEP_ALIVE, FABRICS = 2, 6, 8, 9, 0xA, 0xC, 0x18, 0x7F
FCTYPE_PROPERTY_SET, FCTYPE_CONNECT, FCTYPE_PROPERTY_GET, FCTYPE_DISCONNECT = 0x00, 0x01, 0x04, 0x08

# SGL descriptor identifier byte: type << 4 | sub type
SGL_IN_CAPSULE = 0x01  # data block, address is an offset into the capsule
SGL_TRANSPORT = 0x5A  # transport SGL data block, transport sub type


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C (Castagnoli) as NVMe/TCP digests use it."""
    return int(google_crc32c.value(bytes(data)))


def sgl(kind: int, length: int, address: int = 0) -> bytes:
    """SGL descriptor, 16 bytes."""
    return struct.pack("<QI3xB", address, length, kind)


def sqe(
    opc: int,
    *,
    cid: int = 0,
    nsid: int = 0,
    fuse: int = 0,
    psdt: int = 1,
    cdw2: int = 0,
    cdw3: int = 0,
    mptr: int = 0,
    dptr: bytes | None = None,
    cdw: tuple[int, ...] = (),
) -> bytes:
    """Submission queue entry, 64 bytes; ``cdw`` are command dwords 10 and on."""
    dwords = (*cdw, *([0] * (6 - len(cdw))))
    dptr = sgl(SGL_TRANSPORT, 0) if dptr is None else dptr
    return struct.pack("<BBHIIIQ16s6I", opc, fuse | psdt << 6, cid, nsid, cdw2, cdw3, mptr, dptr, *dwords)


def connect_sqe(
    *,
    cid: int = 0,
    recfmt: int = 0,
    qid: int = 0,
    sqsize: int = 31,
    cattr: int = 0,
    kato: int = 0,
    dptr: bytes | None = None,
    psdt: int = 1,
) -> bytes:
    """Connect command, 64 bytes. ``sqsize`` is 0's based, ``kato`` in ms."""
    dptr = sgl(SGL_IN_CAPSULE, 1024) if dptr is None else dptr
    head = struct.pack("<BBHB19x16s", FABRICS, psdt << 6, cid, FCTYPE_CONNECT, dptr)
    return head + struct.pack("<HHHBxI12x", recfmt, qid, sqsize, cattr, kato)


def connect_data(
    subnqn: str | bytes, hostnqn: str | bytes = HOST_NQN, hostid: bytes = HOST_ID, cntlid: int = 0xFFFF
) -> bytes:
    """Connect data, 1024 bytes. NQNs given as bytes go in raw (up to 256, perhaps without a terminator)."""
    sub = subnqn.encode() if isinstance(subnqn, str) else subnqn
    host = hostnqn.encode() if isinstance(hostnqn, str) else hostnqn
    return struct.pack("<16sH238x256s256s256x", hostid, cntlid, sub, host)


def property_get_sqe(offset: int, size: int, *, cid: int = 0, attrib: int | None = None) -> bytes:
    """Property Get; ATTRIB size field 0 is 4 bytes, 1 is 8 bytes."""
    attrib = {4: 0, 8: 1}[size] if attrib is None else attrib
    return struct.pack("<BBHB35xB3xI16x", FABRICS, 0x40, cid, FCTYPE_PROPERTY_GET, attrib, offset)


def property_set_sqe(offset: int, size: int, value: int, *, cid: int = 0) -> bytes:
    return struct.pack("<BBHB35xB3xIQ8x", FABRICS, 0x40, cid, FCTYPE_PROPERTY_SET, {4: 0, 8: 1}[size], offset, value)


def disconnect_sqe(*, cid: int = 0, recfmt: int = 0) -> bytes:
    return struct.pack("<BBHB35xH22x", FABRICS, 0x40, cid, FCTYPE_DISCONNECT, recfmt)


def icreq(
    *, pfv: int = 0, hpda: int = 0, dgst: int = 0, maxr2t: int = 0, flags: int = 0, hlen: int = 128, pdo: int = 0,
    plen: int = 128, rest: bytes = bytes(112),
) -> bytes:  # fmt: skip
    """ICReq PDU. ``hpda`` in dwords 0's based, ``maxr2t`` 0's based, ``dgst`` bit 0 header, bit 1 data."""
    return struct.pack("<BBBBIHBBI", ICREQ, flags, hlen, pdo, plen, pfv, hpda, dgst, maxr2t) + rest


@dataclass(frozen=True, slots=True)
class Cqe:
    """Completion queue entry taken apart (Base 4.2.1); ``status`` is ``SCT << 8 | SC``."""

    dw0: int
    dw1: int
    sqhd: int
    sqid: int
    cid: int
    phase: int
    status: int
    crd: int
    more: bool
    dnr: bool

    @classmethod
    def parse(cls, raw: bytes) -> Cqe:
        dw0, dw1, sqhd, sqid, cid, sf = struct.unpack("<IIHHHH", raw)
        status = (sf >> 9 & 7) << 8 | (sf >> 1 & 0xFF)
        return cls(dw0, dw1, sqhd, sqid, cid, sf & 1, status, sf >> 12 & 3, bool(sf >> 14 & 1), bool(sf >> 15))
