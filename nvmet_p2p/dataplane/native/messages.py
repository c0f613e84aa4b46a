"""The messages of the capsule channel as bytes (docs/capsule-channel.md). No I/O.

One message is one packet: a header of 16 bytes, then what belongs to its type; little endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from nvmet_p2p.dataplane.port import QueueHandoff
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


class Kind(IntEnum):
    """The type field of the header."""

    HELLO = 1
    ADOPT = 2
    ADOPTED = 3
    QUEUE_CLOSED = 4
    UPCALL = 5
    UPCALL_DONE = 6
    BDEV_CHANGED = 7
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
class PoolLost:
    """The memory of a pool is gone."""

    name: str
    why: str


Message = Hello | Adopted | QueueClosed | Upcall | BdevChanged | PoolLost


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
        case Kind.POOL_LOST:
            name, _, why = packet[at:].decode(errors="replace").partition("\0")
            return PoolLost(name, why)
        case _:
            raise ChannelError(f"a message of type {kind} from the data plane")
