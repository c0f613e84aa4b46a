"""The messages of the capsule channel as bytes (docs/capsule-channel.md). No I/O.

One message is one packet: a header of 16 bytes, then what belongs to its type; little endian.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from nvmet_p2p.dataplane.port import QueueHandoff, RdmaConnection, RdmaHandoff
from nvmet_p2p.errors import NvmetP2PError

MAGIC: Final = 0x4332504E  # "NP2C"
VERSION: Final = 1
PACKET_BYTES_MAX: Final = 65536
PEER_BYTES: Final = 64

_HEADER: Final = struct.Struct("<IHHII")
_HELLO: Final = struct.Struct("<II")
_ADOPT: Final = struct.Struct("<QQHHHHBBHIIII64sI")
_ADOPTED: Final = struct.Struct("<Qi")
_QUEUE_CLOSED: Final = struct.Struct("<QHH")
_UPCALL: Final = struct.Struct("<QQHHI64s")
_UPCALL_DONE: Final = struct.Struct("<QHHI")
_BDEV_CHANGED: Final = struct.Struct("<I")
_RDMA_CONNECTED: Final = struct.Struct("<QHBB16s16sHHHHH")
_RDMA_CAPSULE: Final = struct.Struct("<Q64sI")
_RDMA_FETCH: Final = struct.Struct("<QHHI")
_RDMA_DATA: Final = struct.Struct("<QHh")
_RDMA_REPLY: Final = struct.Struct("<Q16sHHI")
_RDMA_ADOPT: Final = struct.Struct("<QQQHHHHII16s64s")
_RDMA_CONN: Final = struct.Struct("<Q")
_ADDRESS_BYTES: Final = {1: 4, 2: 16}  # by ADRFAM

FETCH_BYTES_MAX: Final = PACKET_BYTES_MAX - _HEADER.size - _RDMA_DATA.size
REPLY_BYTES_MAX: Final = PACKET_BYTES_MAX - _HEADER.size - _RDMA_REPLY.size


class Kind(IntEnum):
    """The type field of the header."""

    HELLO = 1
    ADOPT = 2
    ADOPTED = 3
    QUEUE_CLOSED = 4
    UPCALL = 5
    UPCALL_DONE = 6
    BDEV_CHANGED = 7
    RDMA_CONNECTED = 16
    RDMA_CAPSULE = 17
    RDMA_FETCH = 18
    RDMA_DATA = 19
    RDMA_REPLY = 20
    RDMA_ADOPT = 21
    RDMA_CLOSE = 22
    RDMA_CLOSED = 23
    POOL_LOST = 8


class Feature(IntFlag):
    """Features of HELLO."""

    RESET = 1


class AdoptFlag(IntFlag):
    """Flags of ADOPT."""

    SQ_FLOW_CONTROL = 1
    C2H_SUCCESS = 2
    HDGST = 4
    DDGST = 8


class DoneFlag(IntFlag):
    """Flags of UPCALL_DONE."""

    DNR = 1
    CLOSE = 2


class ReplyFlag(IntFlag):
    """Flags of RDMA_REPLY."""

    CLOSE = 1
    LAST = 2
    DROP = 4


class ChannelError(NvmetP2PError):
    """The other side does not speak the protocol, or another version of it."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The data plane's greeting: its process and where its JSON-RPC server listens."""

    features: int
    pid: int
    rpc_socket: str


@dataclass(frozen=True, slots=True)
class Adopted:
    """Answer to ADOPT: 0 or a negated errno."""

    token: int
    rc: int
    text: str


@dataclass(frozen=True, slots=True)
class QueueClosed:
    """An I/O queue ended by itself."""

    key: int
    qid: int
    reason: str


@dataclass(frozen=True, slots=True)
class Upcall:
    """A capsule that the engine does not decide."""

    token: int
    key: int
    qid: int
    sqe: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class BdevChanged:
    """A back end has changed its size, or was lost."""

    present: bool
    name: str


@dataclass(frozen=True, slots=True)
class RdmaConnected:
    """An NVMe/RDMA connection is established."""

    conn: int
    connection: RdmaConnection


@dataclass(frozen=True, slots=True)
class RdmaCapsule:
    """A command capsule of a connection that is no I/O queue."""

    conn: int
    sqe: bytes
    icd: bytes


@dataclass(frozen=True, slots=True)
class RdmaData:
    """Answer to RDMA_FETCH: 0 and the data, or a negated errno."""

    conn: int
    cid: int
    rc: int
    data: bytes


@dataclass(frozen=True, slots=True)
class RdmaClosed:
    """A connection that is no I/O queue has ended."""

    conn: int
    reason: str


RdmaMessage = RdmaConnected | RdmaCapsule | RdmaData | RdmaClosed


@dataclass(frozen=True, slots=True)
class PoolLost:
    """The memory of a pool is gone."""

    name: str
    why: str


Message = Hello | Adopted | QueueClosed | Upcall | BdevChanged | PoolLost | RdmaMessage


def _build(kind: Kind, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return _HEADER.pack(MAGIC, VERSION, kind, _HEADER.size + len(body), 0) + body


def build_hello(pid: int, *, reset: bool) -> bytes:
    """``reset``: the data plane forgets all controllers before it answers."""
    return _build(Kind.HELLO, _HELLO.pack(Feature.RESET if reset else 0, pid))


def build_adopt(token: int, slot: int, handoff: QueueHandoff) -> bytes:
    """An I/O queue; its descriptor goes with the packet."""
    params = handoff.params
    flags = AdoptFlag(0)
    for flag, on in (
        (AdoptFlag.SQ_FLOW_CONTROL, handoff.sq_flow_control),
        (AdoptFlag.C2H_SUCCESS, handoff.c2h_success),
        (AdoptFlag.HDGST, params.hdgst),
        (AdoptFlag.DDGST, params.ddgst),
    ):
        if on:
            flags |= flag
    fixed = _ADOPT.pack(
        token,
        handoff.key,
        handoff.qid,
        handoff.sqsize,
        handoff.sqhd,
        flags,
        params.hpda,
        params.cpda,
        0,
        params.maxr2t,
        params.maxh2cdata,
        params.icd_max,
        slot,
        handoff.peer.encode()[: PEER_BYTES - 1],
        len(handoff.response),
    )
    return _build(Kind.ADOPT, fixed, handoff.response)


def build_upcall_done(token: int, status: int, *, dnr: bool = False, close: bool = False, dw0: int = 0) -> bytes:
    """``status`` is SCT << 8 | SC; ``close``: the queue ends once the response is sent."""
    flags = (DoneFlag.DNR if dnr else 0) | (DoneFlag.CLOSE if close else 0)
    return _build(Kind.UPCALL_DONE, _UPCALL_DONE.pack(token, status, flags, dw0))


def build_rdma_fetch(conn: int, cid: int, length: int) -> bytes:
    """``length`` bytes of a command's data are wanted, at most ``FETCH_BYTES_MAX``."""
    return _build(Kind.RDMA_FETCH, _RDMA_FETCH.pack(conn, cid, 0, length))


def build_rdma_reply(conn: int, cqe: bytes, data: bytes = b"", *, close: bool = False) -> list[bytes]:
    """A response with the data that goes before it, in as many messages as that takes."""
    packets: list[bytes] = []
    for at in range(0, max(len(data), 1), REPLY_BYTES_MAX):
        piece = data[at : at + REPLY_BYTES_MAX]
        last = at + len(piece) >= len(data)
        flags = (ReplyFlag.LAST if last else 0) | (ReplyFlag.CLOSE if last and close else 0)
        packets.append(_build(Kind.RDMA_REPLY, _RDMA_REPLY.pack(conn, cqe, flags, 0, at), piece))
    return packets


def build_rdma_drop(conn: int, cid: int) -> bytes:
    """The oldest command with this CID gets no response."""
    cqe = bytes(12) + cid.to_bytes(2, "little") + bytes(2)
    return _build(Kind.RDMA_REPLY, _RDMA_REPLY.pack(conn, cqe, ReplyFlag.DROP, 0, 0))


def build_rdma_adopt(token: int, slot: int, handoff: RdmaHandoff) -> bytes:
    """A connection becomes an I/O queue."""
    fixed = _RDMA_ADOPT.pack(
        token,
        handoff.key,
        handoff.link.conn,
        handoff.qid,
        handoff.sqsize,
        handoff.sqhd,
        AdoptFlag.SQ_FLOW_CONTROL if handoff.sq_flow_control else 0,
        handoff.icd_max,
        slot,
        handoff.cqe,
        handoff.peer.encode()[: PEER_BYTES - 1],
    )
    return _build(Kind.RDMA_ADOPT, fixed)


def build_rdma_close(conn: int) -> bytes:
    """A connection is to end."""
    return _build(Kind.RDMA_CLOSE, _RDMA_CONN.pack(conn))


def parse(packet: bytes) -> Message:
    """A message of the data plane. Raises ``ChannelError``."""
    if len(packet) < _HEADER.size:
        raise ChannelError(f"a packet of {len(packet)} bytes on the capsule channel")
    magic, version, kind, length, reserved = _HEADER.unpack_from(packet)
    if magic != MAGIC or length != len(packet) or reserved:
        raise ChannelError("a packet on the capsule channel that is no message")
    if version != VERSION:
        raise ChannelError(f"the data plane speaks version {version} of the capsule channel, not {VERSION}")
    try:
        return _parse_body(kind, packet)
    except (struct.error, UnicodeDecodeError) as error:
        raise ChannelError(f"message {kind} of the capsule channel: {error}") from error


def _parse_body(kind: int, packet: bytes) -> Message:
    at = _HEADER.size
    match kind:
        case Kind.HELLO:
            features, pid = _HELLO.unpack_from(packet, at)
            return Hello(features, pid, packet[at + _HELLO.size :].decode())
        case Kind.ADOPTED:
            token, rc = _ADOPTED.unpack_from(packet, at)
            return Adopted(token, rc, packet[at + _ADOPTED.size :].decode(errors="replace"))
        case Kind.QUEUE_CLOSED:
            key, qid, _ = _QUEUE_CLOSED.unpack_from(packet, at)
            return QueueClosed(key, qid, packet[at + _QUEUE_CLOSED.size :].decode(errors="replace"))
        case Kind.UPCALL:
            token, key, qid, _, data_len, sqe = _UPCALL.unpack_from(packet, at)
            data = packet[at + _UPCALL.size :]
            if len(data) != data_len:
                raise ChannelError("UPCALL: data_len is not what follows")
            return Upcall(token, key, qid, sqe, data)
        case Kind.BDEV_CHANGED:
            (present,) = _BDEV_CHANGED.unpack_from(packet, at)
            return BdevChanged(bool(present), packet[at + _BDEV_CHANGED.size :].decode())
        case Kind.RDMA_CONNECTED:
            return _parse_connected(packet, at)
        case Kind.RDMA_CAPSULE:
            conn, sqe, icd_len = _RDMA_CAPSULE.unpack_from(packet, at)
            icd = packet[at + _RDMA_CAPSULE.size :]
            if len(icd) != icd_len:
                raise ChannelError("RDMA_CAPSULE: icd_len is not what follows")
            return RdmaCapsule(conn, sqe, icd)
        case Kind.RDMA_DATA:
            conn, cid, rc = _RDMA_DATA.unpack_from(packet, at)
            return RdmaData(conn, cid, rc, packet[at + _RDMA_DATA.size :])
        case Kind.RDMA_CLOSED:
            (conn,) = _RDMA_CONN.unpack_from(packet, at)
            return RdmaClosed(conn, packet[at + _RDMA_CONN.size :].decode(errors="replace"))
        case Kind.POOL_LOST:
            name, _, why = packet[at:].decode(errors="replace").partition("\0")
            return PoolLost(name, why)
        case _:
            raise ChannelError(f"a message of type {kind} from the data plane")


def _parse_connected(packet: bytes, at: int) -> RdmaConnected:
    conn, port, adrfam, _, local, peer, peer_port, qid, hsqsize, hrqsize, cntlid = _RDMA_CONNECTED.unpack_from(
        packet, at
    )
    size = _ADDRESS_BYTES.get(adrfam)
    if size is None:
        raise ChannelError(f"RDMA_CONNECTED: address family {adrfam}")
    connection = RdmaConnection(
        traddr=str(ipaddress.ip_address(local[:size])),
        trsvcid=str(port),
        adrfam="IPv4" if size == 4 else "IPv6",
        peer=(str(ipaddress.ip_address(peer[:size])), str(peer_port)),
        qid=qid,
        hsqsize=hsqsize,
        hrqsize=hrqsize,
        cntlid=cntlid,
    )
    return RdmaConnected(conn, connection)
