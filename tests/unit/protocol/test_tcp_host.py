"""The host's end by itself: what it refuses from a target, with the exact FES and FEI of its H2CTermReq."""

from __future__ import annotations

from struct import pack

import pytest

from nvmet_p2p.protocol.events import CommandCompleted, ConnectionFailed, HostEvent, IcCompleted, PeerTerminated
from nvmet_p2p.protocol.tcp_common import LocalProtocolError
from nvmet_p2p.protocol.tcp_host import HostOptions, TcpHost
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.spec import PduType
from nvmet_p2p.wire.tcp_pdu import R2T, C2HData, CapsuleResp, H2CData, IcReq, IcResp, TermReq
from tests.unit.protocol.pair import DDGST, HDGST, LAST, SUCCESS, capsule, joined, split_pdus, sqe

DATA = bytes(range(256)) * 16  # 4 KiB
ICRESP = IcResp(maxh2cdata=4096)


def ready(options: HostOptions | None = None, icresp: IcResp = ICRESP) -> TcpHost:
    """A host after its IC exchange: commands 1 (writes DATA), 2 (reads 4 KiB), 3 (no data) are in flight."""
    host = TcpHost(options or HostOptions())
    host.connect()
    host.data_to_send()
    assert [type(event) for event in host.receive_data(icresp.build())] == [IcCompleted]
    host.send_command(sqe(1), data=DATA)
    host.send_command(sqe(2), read_len=len(DATA))
    host.send_command(sqe(3))
    host.data_to_send()
    return host


def failure(host: TcpHost, stream: bytes) -> tuple[int, int]:
    event = host.receive_data(stream)[-1]
    assert isinstance(event, ConnectionFailed)
    term = TermReq.parse(list(split_pdus(joined(host.data_to_send())))[-1])
    assert term.pdu_type == PduType.H2C_TERM_REQ
    assert (term.fes, term.fei) == (event.fes, event.fei)
    assert host.closed
    return event.fes, event.fei


def c2h(cccid: int, datao: int, data: bytes, *, flags: int = LAST, datal: int | None = None) -> bytes:
    datal = len(data) if datal is None else datal
    return C2HData(flags=flags, pdo=24, plen=24 + len(data), cccid=cccid, datao=datao, datal=datal).build() + data


def response(cid: int, status: int = 0) -> bytes:
    return CapsuleResp(cqe=Cqe(cid=cid, status=status).build()).build()


@pytest.mark.parametrize(
    ("icresp", "fes", "fei"),
    [
        (IcResp(pfv=1, maxh2cdata=4096), 6, 8),
        (IcResp(cpda=32, maxh2cdata=4096), 1, 10),
        (IcResp(dgst=1, maxh2cdata=4096), 1, 11),
        (IcResp(dgst=2, maxh2cdata=4096), 1, 11),
        (IcResp(maxh2cdata=4095), 1, 12),
        (IcResp(maxh2cdata=4098), 1, 12),
        (IcResp(maxh2cdata=0), 1, 12),
        (IcResp(plen=127, maxh2cdata=4096), 1, 4),
        (IcResp(hlen=127, maxh2cdata=4096), 1, 2),
    ],
)
def test_icresp(icresp: IcResp, fes: int, fei: int) -> None:
    host = TcpHost(HostOptions())
    host.connect()
    host.data_to_send()
    assert failure(host, icresp.build()) == (fes, fei)


def test_golden_icreq() -> None:
    host = TcpHost(HostOptions(hdgst=True, ddgst=True, hpda=15, maxr2t=0x01020304))
    host.connect()
    icreq = bytes.fromhex("000080008000000000000f0304030201") + bytes(112)
    assert joined(host.data_to_send()) == icreq
    assert IcReq.parse(icreq).maxr2t == 0x01020304


def test_order_of_ic() -> None:
    host = TcpHost(HostOptions())
    with pytest.raises(LocalProtocolError):
        host.send_command(sqe(1))
    with pytest.raises(LocalProtocolError):
        _ = host.params
    assert failure(host, ICRESP.build()) == (2, 0)
    host = TcpHost(HostOptions())
    host.connect()
    with pytest.raises(LocalProtocolError):
        host.connect()
    assert failure(host, response(1)) == (2, 0)
    assert failure(ready(), ICRESP.build()) == (2, 0)


def test_a_target_may_leave_digests_off() -> None:
    host = ready(HostOptions(hdgst=True, ddgst=True))
    assert not host.params.hdgst
    assert not host.params.ddgst


@pytest.mark.parametrize(
    ("pdu", "fes", "fei"),
    [
        # R2T
        (R2T(cccid=9, ttag=1, r2tl=4096), 1, 8),
        (R2T(cccid=2, ttag=1, r2tl=4096), 2, 0),  # for a read
        (R2T(cccid=3, ttag=1, r2tl=4), 2, 0),
        (R2T(cccid=1, ttag=1, r2tl=0), 1, 16),
        (R2T(cccid=1, ttag=1, r2to=4, r2tl=4092), 2, 0),
        (R2T(cccid=1, ttag=1, r2tl=4097), 4, 0),
        (R2T(cccid=1, ttag=1, r2tl=0xFFFFFFFF), 4, 0),
        (R2T(cccid=1, ttag=1, r2tl=4096, pdo=24), 1, 3),
        (R2T(cccid=1, ttag=1, r2tl=4096, plen=28), 1, 4),
        (R2T(cccid=1, ttag=1, r2tl=4096, flags=HDGST), 1, 1),
        # C2HData
        (c2h(9, 0, DATA), 1, 8),
        (c2h(1, 0, DATA), 2, 0),  # for a write
        (c2h(3, 0, DATA), 2, 0),
        (c2h(2, 0, DATA, flags=SUCCESS), 1, 1),
        (c2h(2, 0, DATA, flags=LAST | DDGST), 1, 1),
        (c2h(2, 4, DATA[4:]), 2, 0),
        (c2h(2, 0, DATA + b"more"), 4, 0),
        (c2h(2, 0xFFFFFFFC, DATA), 4, 0),
        (c2h(2, 0, DATA, datal=4092), 1, 16),
        (c2h(2, 0, DATA, datal=0), 1, 16),
        (c2h(2, 0, DATA) + c2h(2, 0, DATA), 2, 0),
        # CapsuleResp
        (response(9), 1, 20),
        (response(3) + response(3), 1, 20),
        (c2h(2, 0, DATA[:512], flags=0) + response(2), 2, 0),
        # wrong way
        (capsule(sqe(1)), 1, 0),
    ],
)
def test_malformed(pdu: bytes | R2T, fes: int, fei: int) -> None:
    assert failure(ready(), pdu if isinstance(pdu, bytes) else pdu.build()) == (fes, fei)


def test_h2c_data_is_split_by_maxh2cdata() -> None:
    host = TcpHost(HostOptions())
    host.connect()
    host.receive_data(ICRESP.build())
    data = DATA + DATA + b"tail"
    host.send_command(sqe(1), data=data)
    host.data_to_send()
    assert host.receive_data(R2T(cccid=1, ttag=0xABCD, r2tl=len(data)).build()) == []
    pdus = list(split_pdus(joined(host.data_to_send())))
    headers = [H2CData.parse(pdu) for pdu in pdus]
    assert [(h.cccid, h.ttag, h.datao, h.datal, h.flags) for h in headers] == [
        (1, 0xABCD, 0, 4096, 0),
        (1, 0xABCD, 4096, 4096, 0),
        (1, 0xABCD, 8192, 4, LAST),
    ]
    assert b"".join(pdu[24:] for pdu in pdus) == data


@pytest.mark.parametrize("maxr2t", [0, 2])
def test_held_r2ts_and_their_limit(maxr2t: int) -> None:
    host = ready(HostOptions(hold_r2t=True, maxr2t=maxr2t))
    for number in range(maxr2t + 1):
        assert host.receive_data(R2T(cccid=1, ttag=number, r2to=512 * number, r2tl=512).build()) == []
    assert host.data_to_send() == []
    assert host.held_r2ts == maxr2t + 1
    one_more = R2T(cccid=1, ttag=9, r2to=512 * (maxr2t + 1), r2tl=512).build()
    assert host.serve_r2ts(1) == 1
    assert host.receive_data(one_more) == []
    over = R2T(cccid=1, ttag=10, r2to=512 * (maxr2t + 2), r2tl=512).build()
    assert failure(host, over) == (5, 0)


def completed(events: list[HostEvent]) -> CommandCompleted:
    (event,) = events
    assert isinstance(event, CommandCompleted)
    return event


def test_read_completed_by_response_and_by_flag() -> None:
    event = completed(ready().receive_data(c2h(2, 0, DATA[:512], flags=0) + c2h(2, 512, DATA[512:]) + response(2)))
    assert event == CommandCompleted(2, Cqe(cid=2), DATA)
    event = completed(ready().receive_data(c2h(2, 0, DATA, flags=LAST | SUCCESS)))
    assert event == CommandCompleted(2, Cqe(cid=2), DATA, by_success_flag=True)


@pytest.mark.parametrize(
    "stream", [response(2), c2h(2, 0, DATA[:512]) + response(2), c2h(2, 0, DATA[:512], flags=LAST | SUCCESS)]
)
def test_short_read(stream: bytes) -> None:
    assert completed(ready().receive_data(stream)).short_read


def test_a_failed_read_is_not_short() -> None:
    assert not completed(ready().receive_data(response(2, 0x281))).short_read


def test_damaged_data_fails_the_command_only() -> None:
    host = TcpHost(HostOptions(ddgst=True))
    host.connect()
    host.receive_data(IcResp(dgst=2, maxh2cdata=4096).build())
    host.send_command(sqe(2), read_len=4)
    host.data_to_send()
    pdu = C2HData(flags=LAST | DDGST, pdo=24, plen=32, cccid=2, datal=4).build() + b"data" + pack("<I", 1)
    event = completed(host.receive_data(pdu + response(2)))
    assert event.ddgst_error
    assert not host.closed


def test_c2h_term_req() -> None:
    pdu = TermReq(2, 0, bytes(24)).build()
    assert ready().receive_data(pdu) == [PeerTerminated(2, 0)]
    host = TcpHost(HostOptions())
    host.connect()
    assert host.receive_data(pdu) == [PeerTerminated(2, 0)]
    assert ready().receive_data(pdu[:4] + pack("<I", 153) + pdu[8:]) == [PeerTerminated(0, 0)]


def test_misuse() -> None:
    host = ready()
    with pytest.raises(LocalProtocolError):
        host.send_command(sqe(1))
    assert host.in_flight == {1, 2, 3}
    host.receive_data(b"\xff" * 8)
    host.data_to_send()
    host.send_command(sqe(4))
    assert host.data_to_send() == []
