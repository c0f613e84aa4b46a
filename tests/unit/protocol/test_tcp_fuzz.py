"""Anything at all from the peer: never an exception, the same events however it is cut, and a bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmet_p2p.limits import ADMIN_ICD_BYTES, MAXH2CDATA_BYTES
from nvmet_p2p.protocol.events import ConnectionFailed, DataReceived, HostEvent, IcReceived, PeerTerminated, TargetEvent
from nvmet_p2p.protocol.tcp_host import HostOptions, TcpHost
from nvmet_p2p.protocol.tcp_target import TcpLimits, TcpTarget
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.tcp_pdu import IcReq, IcResp, TermReq
from tests.unit.protocol.pair import Pair, by_byte, capsule, h2c, joined, sqe, whole

STEP_MAX = max(ADMIN_ICD_BYTES, MAXH2CDATA_BYTES) + 256 + 4


class Played:
    """A target that does a little work for what comes: writes of 1,024 bytes, reads of 600, in turn."""

    def __init__(self, limits: TcpLimits) -> None:
        self.target = TcpTarget(limits)
        self.events: list[TargetEvent] = []
        self.sent = b""

    def feed(self, chunk: bytes) -> None:
        for event in self.target.receive_data(chunk):
            self.events.append(event)
            self.act(event)
        assert 0 <= self.target.bytes_wanted() <= STEP_MAX
        self.sent += joined(self.target.data_to_send())

    def act(self, event: TargetEvent) -> None:
        if isinstance(event, ConnectionFailed | PeerTerminated):
            assert self.target.closed
        elif self.target.closed or isinstance(event, IcReceived):
            pass
        elif isinstance(event, DataReceived):
            self.target.send_response(Cqe(cid=event.cid))
        elif event.duplicate or event.icd:
            self.target.send_response(Cqe(cid=event.sqe.cid))
        elif event.sqe.opc & 1:
            self.target.request_data(event.sqe.cid, 1024)
        else:
            self.target.send_data(event.sqe.cid, bytes(600), success=True)


def play(stream: bytes, cut: Callable[[bytes], list[bytes]], limits: TcpLimits) -> Played:
    played = Played(limits)
    for chunk in cut(stream):
        played.feed(chunk)
    return played


def in_steps(stream: bytes, limits: TcpLimits) -> Played:
    """As a shell does that must not read ahead."""
    played = Played(limits)
    while stream and not played.target.closed:
        wanted = played.target.bytes_wanted()
        assert wanted > 0
        played.feed(stream[:wanted])
        stream = stream[wanted:]
    return played


def check(stream: bytes, limits: TcpLimits | None = None) -> Played:
    """Exact steps and single bytes agree in events and in what is sent; PDUs at a time agree with the steps."""
    limits = limits or TcpLimits(r2t_max=512)
    steps = in_steps(stream, limits)
    bytewise = play(stream, by_byte, limits)
    assert steps.events == bytewise.events
    assert steps.sent == bytewise.sent
    alone = TcpTarget(limits)
    at_once = alone.receive_data(stream)
    one_by_one = TcpTarget(limits)
    assert at_once == [event for byte in by_byte(stream) for event in one_by_one.receive_data(byte)]
    assert joined(alone.data_to_send()) == joined(one_by_one.data_to_send())
    assert alone.bytes_wanted() == one_by_one.bytes_wanted()
    return steps


def talk(dgst: int) -> bytes:
    """A sound stream of a host: IC, two writes of which one in two R2Ts, a read, a capsule with data, a TermReq."""
    pair = Pair(HostOptions(hdgst=bool(dgst & 1), ddgst=bool(dgst & 2)), TcpLimits(r2t_max=512))
    stream = IcReq(dgst=dgst).build()
    for cid, opc in ((1, 1), (2, 2), (3, 1)):
        data = bytes([cid]) * 1024
        pair.host.send_command(sqe(cid, opc=opc), data=data if opc == 1 else None, read_len=0 if opc == 1 else 600)
        pair.pump()
        if opc == 1:
            pair.target.request_data(cid, 1024)
        else:
            pair.target.send_data(cid, bytes(600), success=True)
        pair.pump()
        if opc == 1:
            pair.target.send_response(Cqe(cid=cid))
            pair.pump()
    pair.host.send_command(sqe(4), icd=b"in-capsule data")
    pair.pump()
    return stream + b"".join(pair.to_target) + TermReq(2, 0, bytes(24), 2).build()


TALKS = [talk(dgst) for dgst in range(4)]


@pytest.mark.parametrize("stream", TALKS)
def test_sound_talk(stream: bytes) -> None:
    played = check(stream)
    kinds = [type(event).__name__ for event in played.events]
    transfer = ["CommandReceived", "DataReceived"]
    wanted = ["IcReceived", *transfer, "CommandReceived", *transfer, "CommandReceived", "PeerTerminated"]
    assert kinds == wanted
    assert [event.data for event in played.events if isinstance(event, DataReceived)] == [b"\1" * 1024, b"\3" * 1024]


@given(st.binary(max_size=400))
def test_noise(stream: bytes) -> None:
    check(stream)


@given(st.binary(max_size=400), st.integers(0, 3))
def test_noise_after_icreq(stream: bytes, dgst: int) -> None:
    check(IcReq(dgst=dgst).build() + stream)


PDU_HEADS = st.builds(
    lambda kind, flags, hlen, pdo, plen, rest: bytes([kind, flags, hlen, pdo]) + plen.to_bytes(4, "little") + rest,
    st.sampled_from([0, 2, 4, 4, 4, 6, 6, 6, 7]),
    st.sampled_from([0, 0, 4, 4, 1, 2, 8]),
    st.sampled_from([24, 72, 72, 128]),
    st.sampled_from([0, 24, 72, 76, 128]),
    st.one_of(st.sampled_from([24, 72, 128, 536, 584]), st.integers(0, 0xFFFFFFFF)),
    st.binary(max_size=140),
)


@given(st.lists(PDU_HEADS, max_size=6))
def test_almost_pdus(heads: list[bytes]) -> None:
    check(IcReq().build() + b"".join(heads))


SMALL = st.sampled_from([0, 1, 2, 3, 4, 508, 512, 1020, 1024, 0xFFFC, 0xFFFF])


@given(
    st.lists(
        st.one_of(
            st.builds(lambda cid, opc: capsule(sqe(cid, opc=opc)), st.integers(0, 3), st.integers(1, 2)),
            st.builds(
                lambda cid, tag, at, size, flags: h2c(cid, tag, at, bytes(size), flags=flags),
                st.integers(0, 3),
                st.integers(0, 5),
                SMALL,
                st.sampled_from([4, 508, 512, 1024]),
                st.sampled_from([0, 4]),
            ),
        ),
        max_size=12,
    )
)
def test_sound_pdus_in_any_order(pdus: list[bytes]) -> None:
    played = check(IcReq().build() + b"".join(pdus))
    for event in played.events:
        assert not isinstance(event, DataReceived) or len(event.data) == 1024


@given(st.sampled_from(TALKS), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=200)
def test_mutated_talk(stream: bytes, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(stream)
    for at, value in changes:
        mutated[at % len(mutated)] = value
    check(bytes(mutated))


@given(st.sampled_from(TALKS), st.integers(0, 5000), st.integers(0, 200), st.binary(max_size=100))
def test_torn_talk(stream: bytes, at: int, lost: int, put: bytes) -> None:
    """Bytes lost and others put in their place."""
    at %= len(stream)
    check(stream[:at] + put + stream[at + lost :])


@given(st.binary(max_size=300), st.integers(0, 3), st.booleans())
def test_noise_for_a_host(stream: bytes, dgst: int, after_ic: bool) -> None:
    results: list[tuple[list[HostEvent], bytes, int]] = []
    for cut in (whole, by_byte):
        host = TcpHost(HostOptions(hdgst=bool(dgst & 1), ddgst=bool(dgst & 2)))
        host.connect()
        if after_ic:
            host.receive_data(IcResp(dgst=dgst, maxh2cdata=4096).build())
            host.send_command(sqe(1), data=bytes(64))
            host.send_command(sqe(2), read_len=64)
        events = [event for chunk in cut(stream) for event in host.receive_data(chunk)]
        results.append((events, joined(host.data_to_send()), host.bytes_wanted()))
    assert results[0] == results[1]


@given(st.lists(PDU_HEADS, max_size=5))
def test_almost_pdus_for_a_host(heads: list[bytes]) -> None:
    host = TcpHost(HostOptions())
    host.connect()
    host.receive_data(IcResp(maxh2cdata=4096).build())
    host.send_command(sqe(1), data=bytes(512))
    host.send_command(sqe(2), read_len=512)
    for head in heads:
        host.receive_data(bytes([head[0] | 1]) + head[1:])
    assert host.closed or host.bytes_wanted() > 0
