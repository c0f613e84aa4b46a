"""The target's end by itself: golden PDUs, R2T rules, cancelling, handing over, misuse by our own side."""

from __future__ import annotations

import dataclasses
import itertools
from struct import unpack_from

import pytest

from nvmet_p2p.protocol import tcp_target
from nvmet_p2p.protocol.digest import crc32c
from nvmet_p2p.protocol.events import CommandReceived, DataReceived, IcReceived
from nvmet_p2p.protocol.tcp_target import LocalProtocolError, TcpLimits, TcpParams, TcpTarget
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.tcp_pdu import R2T, C2HData, CapsuleResp, IcReq, IcResp
from tests.unit.protocol.pair import HDGST, LAST, SUCCESS, capsule, h2c, joined, ready_target, split_pdus, sqe

DATA = bytes(range(256)) * 32  # 8 KiB


def with_command(cid: int = 7, limits: TcpLimits | None = None, icreq: IcReq | None = None) -> TcpTarget:
    target = ready_target(limits, (icreq or IcReq()).build())
    assert len(target.receive_data(capsule(sqe(cid)))) == 1
    return target


def r2ts(target: TcpTarget) -> list[R2T]:
    return [R2T.parse(pdu) for pdu in split_pdus(joined(target.data_to_send()))]


@pytest.mark.parametrize("asked", [0, 1, 2, 3, 0xFF])
@pytest.mark.parametrize("hdgst", [False, True])
@pytest.mark.parametrize("ddgst", [False, True])
def test_ic(asked: int, hdgst: bool, ddgst: bool) -> None:
    """A digest is used where both want it; unknown bits of DGST are not granted."""
    target = TcpTarget(TcpLimits(allow_hdgst=hdgst, allow_ddgst=ddgst, cpda=3, maxh2cdata=65536))
    events = target.receive_data(IcReq(dgst=asked, hpda=15, maxr2t=7).build())
    agreed_h, agreed_d = hdgst and bool(asked & 1), ddgst and bool(asked & 2)
    assert events == [IcReceived(agreed_h, agreed_d, 15, 7)]
    resp = IcResp.parse(joined(target.data_to_send()))
    assert resp == IcResp(cpda=3, dgst=agreed_h | agreed_d << 1, maxh2cdata=65536)
    assert target.params == TcpParams(agreed_h, agreed_d, 15, 3, 7, 65536, 8192)


def test_golden_ic() -> None:
    """ICReq as Linux and SPDK send it, ICResp octet by octet."""
    target = TcpTarget(TcpLimits())
    icreq = bytes.fromhex("00008000800000000000000000000000") + bytes(112)
    assert target.bytes_wanted() == 8
    assert target.receive_data(icreq[:8]) == []
    assert target.bytes_wanted() == 120
    assert len(target.receive_data(icreq[8:])) == 1
    icresp = bytes.fromhex("01008000800000000000000000000200") + bytes(112)
    assert joined(target.data_to_send()) == icresp


def test_golden_pdus() -> None:
    """Octets of figures 25, 27 and 28, made by hand."""
    target = with_command(0x1234)
    target.request_data(0x1234, 0x2000)
    assert joined(target.data_to_send()).hex() == "090018001800000034120100000000000020000000000000"
    target.send_data(0x1234, b"\x11\x22\x33\x44")
    golden = "070418181c0000003412000000000000040000000000000011223344"
    assert joined(target.data_to_send()).hex() == golden
    target.send_response(Cqe(dw0=0xA1B2C3D4, sqhd=5, sqid=1, cid=0x1234, status=0x002, dnr=True))
    assert joined(target.data_to_send()).hex() == "0500180018000000d4c3b2a1000000000500010034120480"


def test_built_headers_are_those_of_the_wire_layer() -> None:
    target = with_command(9)
    target.request_data(9, 4096)
    target.send_data(9, DATA[:512])
    cqe = Cqe(cid=9, sqhd=3)
    target.send_response(cqe)
    r2t, data, resp = split_pdus(joined(target.data_to_send()))
    assert r2t == R2T(cccid=9, ttag=1, r2tl=4096).build()
    assert data[:24] == C2HData(flags=LAST, pdo=24, plen=24 + 512, cccid=9, datal=512).build()
    assert resp == CapsuleResp(cqe=cqe.build()).build()


def test_bytes_wanted_never_reads_ahead() -> None:
    target = ready_target()
    stream = capsule(sqe(1), DATA[:512]) + capsule(sqe(2))
    wanted = []
    events = []
    while stream:
        count = target.bytes_wanted()
        wanted.append(count)
        events += target.receive_data(stream[:count])
        stream = stream[count:]
        assert target.between_pdus == (len(wanted) in (3, 5))
    assert wanted == [8, 64, 512, 8, 64]
    assert [event.sqe.cid for event in events if isinstance(event, CommandReceived)] == [1, 2]


def test_command_event() -> None:
    target = ready_target()
    command = sqe(5)
    (event,) = target.receive_data(capsule(command, b"abc"))
    assert event == CommandReceived(command, command.build(), b"abc", False, False)
    (event,) = target.receive_data(capsule(sqe(6)))
    assert event == CommandReceived(sqe(6), sqe(6).build(), None, False, False)


def test_duplicate_cid_is_told() -> None:
    """Command ID Conflict is the owner's answer; the first command goes on."""
    target = with_command(5)
    target.request_data(5, 512)
    (event,) = target.receive_data(capsule(sqe(5)))
    assert isinstance(event, CommandReceived)
    assert event.duplicate
    assert target.in_flight(5) == 2
    with pytest.raises(LocalProtocolError):
        target.request_data(5, 512)
    target.send_response(Cqe(cid=5, status=0x003))
    assert target.in_flight(5) == 1
    assert target.receive_data(h2c(5, 1, 0, DATA[:512])) == [DataReceived(5, DATA[:512])]
    target.send_response(Cqe(cid=5))
    assert target.in_flight(5) == 0
    (event,) = target.receive_data(capsule(sqe(5)))
    assert isinstance(event, CommandReceived)
    assert not event.duplicate


@pytest.mark.parametrize(("maxr2t", "at_once"), [(0, 1), (1, 2), (2, 3), (0xFFFFFFFF, 4)])
def test_maxr2t_is_0s_based_and_per_command(maxr2t: int, at_once: int) -> None:
    target = with_command(1, TcpLimits(r2t_max=2048), IcReq(maxr2t=maxr2t))
    target.receive_data(capsule(sqe(2)))
    target.request_data(1, 8192)
    target.request_data(2, 8192)
    first = r2ts(target)
    assert [r2t.cccid for r2t in first] == [1] * at_once + [2] * at_once
    assert [r2t.r2to for r2t in first] == list(range(0, 2048 * at_once, 2048)) * 2
    assert len({r2t.ttag for r2t in first}) == len(first)
    outstanding = [r2t for r2t in first if r2t.cccid == 1]
    served = 0
    events = []
    while outstanding:
        r2t = outstanding.pop(0)
        assert (r2t.r2to, r2t.r2tl) == (served, 2048)
        events += target.receive_data(h2c(1, r2t.ttag, served, DATA[served : served + 2048]))
        served += 2048
        outstanding += r2ts(target)
        assert len(outstanding) <= at_once
    assert events == [DataReceived(1, DATA)]


def test_one_r2t_asks_for_everything_and_may_be_answered_in_any_pieces() -> None:
    target = with_command(limits=TcpLimits(maxh2cdata=4096))
    target.request_data(7, 8192)
    (r2t,) = r2ts(target)
    assert (r2t.r2to, r2t.r2tl) == (0, 8192)
    cuts = [0, 4, 4096, 4100, 8192]
    events = []
    for start, end in itertools.pairwise(cuts):
        events += target.receive_data(h2c(7, r2t.ttag, start, DATA[start:end], flags=LAST if end == 8192 else 0))
    assert events == [DataReceived(7, DATA)]


@pytest.mark.parametrize("length", [1, 3, 511, 4097])
def test_odd_lengths(length: int) -> None:
    target = with_command()
    target.request_data(7, length)
    (r2t,) = r2ts(target)
    assert target.receive_data(h2c(7, r2t.ttag, 0, DATA[:length])) == [DataReceived(7, DATA[:length])]


def test_data_goes_where_the_owner_wants_it() -> None:
    target = with_command()
    mine = bytearray(b"\xee" * 600)
    target.request_data(7, 512, memoryview(mine)[44:])
    assert target.receive_data(h2c(7, 1, 0, DATA[:512])) == [DataReceived(7, DATA[:512])]
    assert bytes(mine) == b"\xee" * 44 + DATA[:512] + b"\xee" * 44


def test_tags_do_not_come_back_soon_and_never_0_or_ffff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_target, "_TAG_LAST", 5)
    target = with_command()
    seen = []
    for _ in range(12):
        target.request_data(7, 4)
        (r2t,) = r2ts(target)
        seen.append(r2t.ttag)
        target.receive_data(h2c(7, r2t.ttag, 0, bytes(4)))
    assert seen == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]


def test_transfers_wait_for_a_free_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_target, "_TAG_LAST", 2)
    target = ready_target()
    for cid in range(4):
        target.receive_data(capsule(sqe(cid)))
        target.request_data(cid, 4)
    assert [r2t.cccid for r2t in r2ts(target)] == [0, 1]
    target.cancel_data(2)
    assert target.receive_data(h2c(1, 2, 0, b"data")) == [DataReceived(1, b"data")]
    (r2t,) = r2ts(target)
    assert (r2t.cccid, r2t.ttag) == (3, 2)
    assert target.receive_data(h2c(0, 1, 0, b"more")) == [DataReceived(0, b"more")]
    assert r2ts(target) == []


def test_cancelled_data_is_swallowed_and_its_tag_kept() -> None:
    """Abort of a write whose data is under way: the CID may be used again at once."""
    target = with_command()
    buffer = bytearray(1024)
    target.request_data(7, 1024, buffer)
    (old,) = r2ts(target)
    stream = h2c(7, old.ttag, 0, DATA[:512], flags=0)
    assert target.receive_data(stream[:100]) == []
    kept = bytes(buffer)
    target.cancel_data(7)
    target.send_response(Cqe(cid=7, status=0x007))
    target.data_to_send()
    assert len(target.receive_data(stream[100:] + capsule(sqe(7)))) == 1
    target.request_data(7, 512)
    (new,) = r2ts(target)
    assert new.ttag != old.ttag
    late = h2c(7, old.ttag, 512, DATA[:512])
    assert target.receive_data(late + h2c(7, new.ttag, 0, DATA[512:1024])) == [DataReceived(7, DATA[512:1024])]
    assert bytes(buffer) == kept
    assert not target.closed


def test_a_response_cancels_the_commands_transfer() -> None:
    target = with_command()
    target.request_data(7, 1024)
    target.send_response(Cqe(cid=7, status=0x004))
    assert target.receive_data(h2c(7, 1, 0, DATA[:1024])) == []
    assert not target.closed


def test_a_forgotten_command_frees_its_place_and_its_late_data_is_swallowed() -> None:
    """A controller reset ends commands without a response; the connection of the admin queue goes on."""
    target = with_command()
    target.set_queue(1, 0)
    assert len(target.receive_data(capsule(sqe(8)))) == 1
    target.request_data(7, 1024)
    (old,) = r2ts(target)
    target.forget(7)
    target.forget(7)
    assert target.commands_in_flight == 1
    (event,) = target.receive_data(capsule(sqe(7)) + h2c(7, old.ttag, 0, DATA[:1024]))
    assert isinstance(event, CommandReceived)
    assert not event.duplicate
    assert not target.closed


def test_no_more_r2ts_after_cancelling() -> None:
    target = with_command(limits=TcpLimits(r2t_max=512))
    target.request_data(7, 1024)
    (r2t,) = r2ts(target)
    target.cancel_data(7)
    assert target.receive_data(h2c(7, r2t.ttag, 0, DATA[:512])) == []
    assert r2ts(target) == []


@pytest.mark.parametrize("maxc2hdata", [4096, 8192, 65536])
@pytest.mark.parametrize("success", [False, True])
def test_c2h_data(maxc2hdata: int, success: bool) -> None:
    target = with_command(limits=TcpLimits(maxc2hdata=maxc2hdata))
    target.send_data(7, DATA + b"tail", success=success)
    pdus = list(split_pdus(joined(target.data_to_send())))
    headers = [C2HData.parse(pdu) for pdu in pdus]
    assert b"".join(pdu[24:] for pdu in pdus) == DATA + b"tail"
    assert [header.flags for header in headers[:-1]] == [0] * (len(headers) - 1)
    assert headers[-1].flags == LAST | (SUCCESS if success else 0)
    at = 0
    for header in headers:
        assert (header.datao, header.cccid) == (at, 7)
        assert header.datal <= maxc2hdata
        at += header.datal
    assert target.commands_in_flight == (0 if success else 1)


def test_payload_is_not_copied() -> None:
    """What is to be sent is a view: it shows a change that the owner should not have made."""
    target = with_command()
    mine = bytearray(DATA)
    target.send_data(7, mine)
    out = target.data_to_send()
    mine[0] = 0xEE
    assert isinstance(out[1], memoryview)
    assert out[1][0] == 0xEE
    assert target.data_to_send() == []


def test_header_digest_on_everything_sent() -> None:
    target = ready_target(icreq=IcReq(dgst=1, hpda=15).build())
    header = capsule(sqe(3), flags=HDGST, plen=76)
    target.receive_data(header + crc32c(header).to_bytes(4, "little"))
    target.request_data(3, 512)
    target.send_data(3, b"data")
    target.send_response(Cqe(cid=3))
    for pdu in split_pdus(joined(target.data_to_send())):
        hlen = pdu[2]
        assert pdu[1] & HDGST
        assert unpack_from("<I", pdu, hlen)[0] == crc32c(pdu[:hlen])
        assert pdu[hlen + 4 :] in (b"", bytes(64 - 28) + b"data")


class TestHandOver:
    """A connection goes on in another object (the data plane's)."""

    def test_resume(self) -> None:
        first = with_command(1)
        assert first.between_pdus
        second = TcpTarget.resume(dataclasses.replace(first.params), TcpLimits())
        second.set_queue(127, 4096)
        assert second.params == dataclasses.replace(first.params, icd_max=4096)
        second.send_response(Cqe(cid=1))  # of the Connect that came before
        with pytest.raises(LocalProtocolError):
            second.send_response(Cqe(cid=1))
        (event,) = second.receive_data(capsule(sqe(2), DATA[:4096]))
        assert isinstance(event, CommandReceived)

    def test_alignment_and_digests_go_over(self) -> None:
        target = TcpTarget.resume(TcpParams(hdgst=True, ddgst=True, hpda=31, cpda=31), TcpLimits())
        target.send_response(Cqe(cid=1))
        assert len(joined(target.data_to_send())) == 28
        assert target.params.hpda == 31


class TestMisuse:
    """Our own side's mistakes are loud."""

    def test_before_ic(self) -> None:
        target = TcpTarget(TcpLimits())
        with pytest.raises(LocalProtocolError):
            _ = target.params
        with pytest.raises(LocalProtocolError):
            target.set_queue(31, 0)

    def test_unknown_command(self) -> None:
        target = ready_target()
        with pytest.raises(LocalProtocolError):
            target.send_response(Cqe(cid=1))
        with pytest.raises(LocalProtocolError):
            target.send_data(1, b"data")
        with pytest.raises(LocalProtocolError):
            target.request_data(1, 4)
        target.cancel_data(1)

    @pytest.mark.parametrize("length", [0, -1, 1024 * 1024 + 1])
    def test_request_length(self, length: int) -> None:
        with pytest.raises(LocalProtocolError):
            with_command().request_data(7, length)

    def test_request_buffer(self) -> None:
        target = with_command()
        with pytest.raises(LocalProtocolError):
            target.request_data(7, 5, bytearray(4))
        with pytest.raises(LocalProtocolError):
            target.request_data(7, 4, memoryview(b"data"))
        target.request_data(7, 4)
        with pytest.raises(LocalProtocolError):
            target.request_data(7, 4)

    def test_no_data_at_all(self) -> None:
        with pytest.raises(LocalProtocolError):
            with_command().send_data(7, b"")

    @pytest.mark.parametrize(("sqsize", "icd_max"), [(0, 0), (65536, 0), (-1, 0), (31, -1)])
    def test_queue(self, sqsize: int, icd_max: int) -> None:
        with pytest.raises(LocalProtocolError):
            ready_target().set_queue(sqsize, icd_max)

    @pytest.mark.parametrize(
        "limits",
        [
            {"cpda": 32},
            {"cpda": -1},
            {"maxh2cdata": 4092},
            {"maxh2cdata": 4098},
            {"maxc2hdata": 0},
            {"maxc2hdata": 6},
            {"r2t_max": 0},
            {"r2t_max": 513},
            {"icd_max": -1},
            {"max_transfer": 0},
            {"max_transfer": 1 << 32},
            {"commands_unconnected": 0},
        ],
    )
    def test_limits(self, limits: dict[str, int]) -> None:
        with pytest.raises(LocalProtocolError):
            TcpLimits(**limits)  # type: ignore[arg-type]  # integers only here

    def test_after_the_end_everything_is_quiet(self) -> None:
        target = with_command()
        target.receive_data(b"\xff" * 8)
        target.data_to_send()
        target.request_data(7, 4)
        target.send_data(7, b"data")
        target.send_response(Cqe(cid=7))
        assert target.data_to_send() == []
