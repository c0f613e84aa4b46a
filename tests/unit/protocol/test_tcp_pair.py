"""Target and host together: every combination of what can be negotiated, whatever the chunks, gives the same data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nvmet_p2p.protocol.events import CommandCompleted, CommandReceived, DataReceived, HostEvent, TargetEvent
from nvmet_p2p.protocol.tcp_host import HostOptions
from nvmet_p2p.protocol.tcp_target import TcpLimits
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.tcp_pdu import CommonHeader
from tests.unit.protocol.pair import Chunker, Pair, by_byte, joined, split_pdus, sqe, whole

BYTES = bytes((7 * i + i // 251) & 0xFF for i in range(40_000))


def write(pair: Pair, cid: int, data: bytes) -> tuple[list[TargetEvent], list[HostEvent]]:
    """A write by R2T, from capsule to response."""
    pair.host.send_command(sqe(cid, sgl=SglDescriptor.transport(len(data))), data=data)
    (command,), _ = pair.pump()
    assert isinstance(command, CommandReceived)
    pair.target.request_data(cid, len(data))
    target_events, host_events = pair.pump()
    assert host_events == []
    pair.target.send_response(Cqe(cid=cid, sqhd=1))
    return target_events, pair.pump()[1]


def read(pair: Pair, cid: int, data: bytes, *, success: bool) -> list[HostEvent]:
    """A read, from capsule to response or SUCCESS flag."""
    pair.host.send_command(sqe(cid, opc=2, sgl=SglDescriptor.transport(len(data))), read_len=len(data))
    pair.pump()
    pair.target.send_data(cid, data, success=success)
    if not success:
        pair.target.send_response(Cqe(cid=cid))
    return pair.pump()[1]


def check_frames(pair: Pair, hpda: int, cpda: int) -> None:
    """Alignment, padding and lengths of every PDU that was carried."""
    for pdus, pda in ((pair.to_host, hpda), (pair.to_target, cpda)):
        for pdu in pdus:
            head = CommonHeader.parse(pdu)
            assert head.plen == len(pdu)
            assert head.pdo % ((pda + 1) * 4) == 0
            full = head.hlen + 4 * (head.flags & 1)
            if head.pdo:
                assert head.pdo - full < (pda + 1) * 4
                assert pdu[full : head.pdo] == bytes(head.pdo - full)


NEGOTIABLE = list(itertools.product([False, True], [False, True], [0, 1, 15, 31], [0, 7, 31], [0, 3]))


@pytest.mark.parametrize(("hdgst", "ddgst", "hpda", "cpda", "maxr2t"), NEGOTIABLE)
@pytest.mark.parametrize("chunks", [whole, by_byte])
def test_every_combination(hdgst: bool, ddgst: bool, hpda: int, cpda: int, maxr2t: int, chunks: Chunker) -> None:
    limits = TcpLimits(cpda=cpda, maxh2cdata=4096, maxc2hdata=2048, r2t_max=1536)
    pair = Pair(HostOptions(hdgst, ddgst, hpda, maxr2t), limits)
    pair.chunks = chunks
    for cid, size in enumerate([4, 512, 5000]):
        data = BYTES[cid : cid + size]
        assert write(pair, cid, data) == ([DataReceived(cid, data)], [CommandCompleted(cid, Cqe(cid=cid, sqhd=1), b"")])
        assert read(pair, cid, data, success=False) == [CommandCompleted(cid, Cqe(cid=cid), data)]
        assert read(pair, cid, data, success=True) == [CommandCompleted(cid, Cqe(cid=cid), data, by_success_flag=True)]
        pair.host.send_command(sqe(cid, sgl=SglDescriptor.in_capsule(size)), icd=data)
        (event,), _ = pair.pump()
        assert isinstance(event, CommandReceived)
        assert (event.icd, event.ddgst_error) == (data, False)
        pair.target.send_response(Cqe(cid=cid))
        pair.pump()
    check_frames(pair, hpda, cpda)


@pytest.mark.parametrize("size", [1, 3, 4095, 4096, 4097, 8192, 40_000])
@pytest.mark.parametrize("maxh2cdata", [4096, 8192, 131072])
def test_sizes(size: int, maxh2cdata: int) -> None:
    pair = Pair(limits=TcpLimits(maxh2cdata=maxh2cdata))
    data = BYTES[:size]
    assert write(pair, 1, data)[0] == [DataReceived(1, data)]
    assert read(pair, 1, data, success=True)[0] == CommandCompleted(1, Cqe(cid=1), data, by_success_flag=True)
    assert all(CommonHeader.parse(pdu).plen <= maxh2cdata + 24 for pdu in pair.to_target)


def flipped(pdu: bytes, at: int) -> bytes:
    return pdu[:at] + bytes([pdu[at] ^ 1]) + pdu[at + 1 :]


@pytest.mark.parametrize("at", [24, 24 + 511, -1])
def test_a_damaged_h2c_data_fails_its_command_and_the_queue_lives(at: int) -> None:
    pair = Pair(HostOptions(ddgst=True), TcpLimits(maxh2cdata=4096))
    pair.host.send_command(sqe(1), data=BYTES[:8192])
    pair.pump()
    pair.target.request_data(1, 8192)
    pair.host.receive_data(joined(pair.target.data_to_send()))
    first, second = split_pdus(joined(pair.host.data_to_send()))
    (event,) = pair.target.receive_data(flipped(first, at % len(first)) + second)
    assert isinstance(event, DataReceived)
    assert event.ddgst_error
    assert len(event.data) == 8192
    pair.target.send_response(Cqe(cid=1, status=0x022))
    assert [type(event) for event in pair.pump()[1]] == [CommandCompleted]
    assert write(pair, 1, BYTES[:512])[0] == [DataReceived(1, BYTES[:512])]


def test_a_damaged_capsule_fails_its_command_and_the_queue_lives() -> None:
    pair = Pair(HostOptions(ddgst=True))
    pair.host.send_command(sqe(1), icd=BYTES[:512])
    (event,) = pair.target.receive_data(flipped(joined(pair.host.data_to_send()), 100))
    assert isinstance(event, CommandReceived)
    assert event.ddgst_error
    pair.target.send_response(Cqe(cid=1, status=0x022))
    assert write(pair, 2, BYTES[:512])[0] == [DataReceived(2, BYTES[:512])]


def test_data_of_a_cancelled_command_may_be_damaged_too() -> None:
    pair = Pair(HostOptions(ddgst=True))
    pair.host.send_command(sqe(1), data=BYTES[:512])
    pair.pump()
    pair.target.request_data(1, 512)
    pair.host.receive_data(joined(pair.target.data_to_send()))
    pair.target.cancel_data(1)
    assert pair.target.receive_data(flipped(joined(pair.host.data_to_send()), 30)) == []
    assert write(pair, 2, BYTES[:512])[0] == [DataReceived(2, BYTES[:512])]


@given(st.data())
def test_random_chunks(data: st.DataObject) -> None:
    """However a conversation is cut, the events are those of the uncut one."""

    def cut(stream: bytes) -> Iterator[bytes]:
        while stream:
            size = data.draw(st.integers(1, max(1, len(stream))))
            yield stream[:size]
            stream = stream[size:]

    flags = data.draw(st.tuples(st.booleans(), st.booleans()))
    pair = Pair(HostOptions(*flags), TcpLimits(maxh2cdata=4096, maxc2hdata=512))
    pair.chunks = cut
    content = BYTES[: data.draw(st.integers(1, 6000))]
    assert write(pair, 1, content)[0] == [DataReceived(1, content)]
    assert read(pair, 2, content, success=True) == [CommandCompleted(2, Cqe(cid=2), content, by_success_flag=True)]


class Transfers(RuleBasedStateMachine):
    """Many commands at once, served, cancelled and answered in any order, against a model that only keeps the data."""

    @initialize(
        hdgst=st.booleans(),
        ddgst=st.booleans(),
        hpda=st.integers(0, 31),
        cpda=st.integers(0, 31),
        maxr2t=st.integers(0, 3),
        r2t_max=st.sampled_from([512, 1024, 4096, 65536]),
    )
    def negotiate(self, hdgst: bool, ddgst: bool, hpda: int, cpda: int, maxr2t: int, r2t_max: int) -> None:
        options = HostOptions(hdgst, ddgst, hpda, maxr2t, hold_r2t=True)
        self.pair = Pair(options, TcpLimits(cpda=cpda, maxh2cdata=4096, maxc2hdata=1024, r2t_max=r2t_max))
        self.pair.target.set_queue(15, 4096)
        self.writes: dict[int, bytes] = {}  # asked for, not yet complete
        self.reads: dict[int, bytes] = {}  # sent, not yet seen by the host
        self.idle: dict[int, bytes] = {}  # at the target, nothing asked
        self.answered: set[int] = set()

    def carry(self) -> None:
        """Carry bytes and compare what each end reports with the model."""
        target_events, host_events = self.pair.pump()
        for event in target_events:
            if isinstance(event, CommandReceived):
                assert not event.duplicate
                assert event.icd is None or event.icd == self.idle[event.sqe.cid]
            else:
                assert isinstance(event, DataReceived)
                assert event == DataReceived(event.cid, self.writes.pop(event.cid))
                self.idle[event.cid] = b""
        for done in host_events:
            assert isinstance(done, CommandCompleted)
            self.answered.remove(done.cid)
            assert (done.ddgst_error, done.short_read) == (False, False)
            assert done.data == self.reads.pop(done.cid, b"")

    def free_cid(self) -> int:
        return next(cid for cid in range(16) if cid not in self.pair.host.in_flight)

    @precondition(lambda self: len(self.pair.host.in_flight) < 16)
    @rule(start=st.integers(0, 1000), size=st.integers(1, 9000))
    def start_write(self, start: int, size: int) -> None:
        cid = self.free_cid()
        self.pair.host.send_command(sqe(cid), data=BYTES[start : start + size])
        self.carry()
        self.writes[cid] = BYTES[start : start + size]
        self.pair.target.request_data(cid, size)
        self.carry()

    @precondition(lambda self: len(self.pair.host.in_flight) < 16)
    @rule(size=st.integers(0, 4096))
    def start_with_in_capsule_data(self, size: int) -> None:
        cid = self.free_cid()
        self.idle[cid] = BYTES[:size]
        self.pair.host.send_command(sqe(cid), icd=BYTES[:size] or None)
        self.carry()

    @precondition(lambda self: len(self.pair.host.in_flight) < 16)
    @rule(start=st.integers(0, 1000), size=st.integers(1, 9000), success=st.booleans())
    def do_read(self, start: int, size: int, success: bool) -> None:
        cid = self.free_cid()
        self.pair.host.send_command(sqe(cid), read_len=size)
        self.carry()
        self.reads[cid] = BYTES[start : start + size]
        self.answered.add(cid)
        self.pair.target.send_data(cid, self.reads[cid], success=success)
        if not success:
            self.pair.target.send_response(Cqe(cid=cid))

    @rule(count=st.integers(1, 5))
    def serve(self, count: int) -> None:
        self.pair.host.serve_r2ts(count)
        self.carry()

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        cid = data.draw(st.sampled_from(sorted(self.idle)))
        del self.idle[cid]
        self.answered.add(cid)
        self.pair.target.send_response(Cqe(cid=cid))

    @precondition(lambda self: self.writes)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """The host still serves the R2Ts that it holds; then the command may end."""
        cid = data.draw(st.sampled_from(sorted(self.writes)))
        del self.writes[cid]
        self.idle[cid] = b""
        self.pair.target.cancel_data(cid)
        self.pair.host.serve_r2ts()
        self.carry()

    @rule()
    def move(self) -> None:
        self.carry()

    @invariant()
    def alive(self) -> None:
        assert not self.pair.target.closed
        assert not self.pair.host.closed

    def teardown(self) -> None:
        while self.writes:
            self.pair.host.serve_r2ts()
            self.carry()
        self.carry()
        assert not self.answered


TestTransfers = Transfers.TestCase
