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
    Adopted,
    BdevChanged,
    ChannelError,
    Hello,
    Kind,
    PoolLost,
    QueueClosed,
    Upcall,
    build_adopt,
    build_hello,
    build_upcall_done,
    parse,
)
from nvmet_p2p.dataplane.port import QueueHandoff
from nvmet_p2p.protocol.tcp_common import TcpParams

SQE = bytes(range(64))


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
    ],
)
def test_refused(packet: bytes, text: str) -> None:
    with pytest.raises(ChannelError, match=text):
        parse(packet)


@given(st.integers(0, 8), st.binary(max_size=200))
def test_anything_is_parsed_or_refused(kind: int, body: bytes) -> None:
    with contextlib.suppress(ChannelError):
        parse(message(kind, body))
