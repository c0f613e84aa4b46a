"""The capsule channel's messages: layout, and what is refused."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmet_p2p.dataplane.native import messages
from nvmet_p2p.dataplane.native.messages import (
    REPLY_BYTES_MAX,
    Adopted,
    BdevChanged,
    ChannelError,
    Hello,
    Kind,
    PoolLost,
    QueueClosed,
    RdmaCapsule,
    RdmaClosed,
    RdmaConnected,
    RdmaData,
    Upcall,
    build_adopt,
    build_hello,
    build_rdma_adopt,
    build_rdma_close,
    build_rdma_drop,
    build_rdma_fetch,
    build_rdma_reply,
    build_upcall_done,
    parse,
)
from nvmet_p2p.dataplane.port import QueueHandoff, RdmaConnection, RdmaHandoff
from nvmet_p2p.protocol.tcp_common import TcpParams

SQE = bytes(range(64))
CONNECTED = struct.pack(
    "<QHBB16s16sHHHHH", 5, 4420, 1, 0, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), 50000, 1, 31, 32, 7
)


def message(kind: int, body: bytes, *, version: int = 1) -> bytes:
    return struct.pack("<IHHII", 0x4332504E, version, kind, 16 + len(body), 0) + body


@pytest.fixture
def handoff() -> Iterator[QueueHandoff]:
    params = TcpParams(hdgst=True, ddgst=False, hpda=3, cpda=5, maxr2t=2, maxh2cdata=131072, icd_max=8192)
    with socket.socket() as sock:
        yield QueueHandoff(
            key=7, qid=2, sqsize=31, sq_flow_control=True, sqhd=1, sock=sock, params=params,
            response=b"response", c2h_success=True, peer="é" * 60,
        )  # fmt: skip


def test_adopt_has_the_layout_of_the_document(handoff: QueueHandoff) -> None:
    packet = build_adopt(5, 9, handoff)
    body = packet[16:]
    assert len(body) == 112 + len(b"response")
    assert struct.unpack_from("<QQHHHH", body) == (5, 7, 2, 31, 1, 1 | 2 | 4)
    assert struct.unpack_from("<BBHIIII", body, 24) == (3, 5, 0, 2, 131072, 8192, 9)
    assert body[107] == 0, "peer is terminated"
    assert struct.unpack_from("<I", body, 108) == (8,)
    assert body[112:] == b"response"
    assert struct.unpack_from("<IHHII", packet) == (0x4332504E, 1, Kind.ADOPT, len(packet), 0)


def test_hello_and_upcall_done() -> None:
    assert build_hello(77, reset=True)[16:] == struct.pack("<II", 1, 77)
    assert build_hello(77, reset=False)[16:] == struct.pack("<II", 0, 77)
    assert build_upcall_done(3, 0x182, dnr=True, close=True, dw0=4)[16:] == struct.pack("<QHHI", 3, 0x182, 3, 4)


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (message(1, struct.pack("<II", 0, 9) + b"/run/x"), Hello(0, 9, "/run/x")),
        (message(3, struct.pack("<Qi", 1, -19) + b"no"), Adopted(1, -19, "no")),
        (message(4, struct.pack("<QHH", 1, 2, 0) + b"gone"), QueueClosed(1, 2, "gone")),
        (message(5, struct.pack("<QQHHI64s", 1, 2, 3, 0, 2, SQE) + b"ab"), Upcall(1, 2, 3, SQE, b"ab")),
        (message(7, struct.pack("<I", 1) + b"disk"), BdevChanged(True, "disk")),
        (message(8, b"0000:03:00.0\0canary"), PoolLost("0000:03:00.0", "canary")),
        (message(8, b"p"), PoolLost("p", "")),
        (
            message(16, CONNECTED),
            RdmaConnected(
                5,
                RdmaConnection(
                    traddr="192.0.2.1",
                    trsvcid="4420",
                    adrfam="IPv4",
                    peer=("192.0.2.2", "50000"),
                    qid=1,
                    hsqsize=31,
                    hrqsize=32,
                    cntlid=7,
                ),
            ),
        ),
        (message(17, struct.pack("<Q64sI", 5, SQE, 2) + b"ab"), RdmaCapsule(5, SQE, b"ab")),
        (message(19, struct.pack("<QHh", 5, 9, 0) + b"ab"), RdmaData(5, 9, 0, b"ab")),
        (message(19, struct.pack("<QHh", 5, 9, -14)), RdmaData(5, 9, -14, b"")),
        (message(23, struct.pack("<Q", 5) + b"gone"), RdmaClosed(5, "gone")),
    ],
)
def test_parse(packet: bytes, expected: messages.Message) -> None:
    assert parse(packet) == expected


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (b"", "0 bytes"),
        (bytes(16), "no message"),
        (message(1, bytes(8)) + b"x", "no message"),
        (message(1, bytes(8), version=2), "version 2"),
        (message(1, bytes(7)), "message 1"),
        (message(1, bytes(8) + b"\xff"), "message 1"),
        (message(2, bytes(112)), "type 2"),
        (message(99, b""), "type 99"),
        (message(5, struct.pack("<QQHHI64s", 1, 2, 3, 0, 2, SQE)), "data_len"),
        (message(16, CONNECTED[:-1]), "message 16"),
        (message(16, CONNECTED[:10] + b"\3" + CONNECTED[11:]), "address family 3"),
        (message(17, struct.pack("<Q64sI", 5, SQE, 2) + b"abc"), "icd_len"),
        (message(17, struct.pack("<Q64s", 5, SQE)), "message 17"),
        (message(18, bytes(16)), "type 18"),
        (message(19, bytes(11)), "message 19"),
        (message(23, bytes(7)), "message 23"),
    ],
)
def test_refused(packet: bytes, text: str) -> None:
    with pytest.raises(ChannelError, match=text):
        parse(packet)


class Link:
    conn = 77

    def fetch(self, cid: int, length: int) -> None: ...
    def reply(self, cqe: bytes, data: bytes = b"") -> None: ...
    def drop(self, cid: int) -> None: ...
    def close(self) -> None: ...


def test_rdma_messages_have_the_layout_of_the_document() -> None:
    made = RdmaHandoff(
        key=7, qid=2, sqsize=31, sq_flow_control=False, sqhd=0xFFFF, link=Link(), cqe=bytes(range(16)), icd_max=4096,
        peer="192.0.2.2:1",
    )  # fmt: skip
    body = build_rdma_adopt(5, 9, made)[16:]
    assert len(body) == 120
    assert struct.unpack_from("<QQQHHHHII", body) == (5, 7, 77, 2, 31, 0xFFFF, 0, 4096, 9)
    assert body[40:56] == bytes(range(16))
    assert body[56:].rstrip(b"\0") == b"192.0.2.2:1"
    assert build_rdma_fetch(77, 3, 512)[16:] == struct.pack("<QHHI", 77, 3, 0, 512)
    assert build_rdma_drop(77, 3)[16:] == struct.pack("<Q12sHHHHI", 77, bytes(12), 3, 0, 4, 0, 0)
    assert build_rdma_close(77)[16:] == struct.pack("<Q", 77)


@pytest.mark.parametrize(
    "length", [0, 1, REPLY_BYTES_MAX, REPLY_BYTES_MAX + 1, 3 * REPLY_BYTES_MAX - 1, 3 * REPLY_BYTES_MAX]
)
def test_a_reply_is_split(length: int) -> None:
    data = bytes(range(251)) * (length // 251 + 1)
    data = data[:length]
    packets = build_rdma_reply(77, bytes(range(16)), data, close=True)
    assert all(len(packet) <= 65536 for packet in packets)
    got, flags = b"", []
    for packet in packets:
        conn, cqe, flag, _, offset = struct.unpack_from("<Q16sHHI", packet, 16)
        assert (conn, cqe, offset) == (77, bytes(range(16)), len(got))
        got += packet[48:]
        flags.append(flag)
    assert got == data
    assert flags == [0] * (len(packets) - 1) + [3]
    assert len(packets) == max(1, -(-length // REPLY_BYTES_MAX))


@given(st.integers(0, 24), st.binary(max_size=200))
def test_anything_is_parsed_or_refused(kind: int, body: bytes) -> None:
    with contextlib.suppress(ChannelError):
        parse(message(kind, body))
