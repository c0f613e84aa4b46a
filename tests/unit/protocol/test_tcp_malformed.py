"""Every way a host can break NVMe/TCP, and the exact FES and FEI that the target answers (TCP 1.0, 3.3 to 3.6)."""

from __future__ import annotations

from struct import pack

import pytest

from nvmet_p2p.protocol.events import CommandReceived, PeerTerminated
from nvmet_p2p.protocol.tcp_target import TcpLimits, TcpTarget
from nvmet_p2p.wire.spec import PduType
from nvmet_p2p.wire.tcp_pdu import IcReq, TermReq
from tests.unit.protocol.pair import (
    DDGST,
    HDGST,
    ICREQ,
    LAST,
    SUCCESS,
    capsule,
    common,
    failure,
    h2c,
    ready_target,
    sqe,
    with_hdgst,
)

TLS_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(64)
DATA = bytes(range(256)) * 2


def patched(pdu: bytes, at: int, value: bytes) -> bytes:
    return pdu[:at] + value + pdu[at + len(value) :]


@pytest.mark.parametrize(
    ("first", "fes", "fei"),
    [
        # before ICReq everything else is out of sequence, known or not
        (capsule(sqe(1)), 2, 0),
        (h2c(1, 1, 0, DATA), 2, 0),
        (TermReq(1, 0, bytes(8), PduType.H2C_TERM_REQ).build(), 2, 0),
        (common(PduType.IC_RESP, 0, 128, 0, 128) + bytes(120), 2, 0),
        (b"GET / HTTP/1.1\r\n\r\n", 2, 0),
        (TLS_HELLO, 2, 0),
        (b"\xff" * 64, 2, 0),
        # ICReq: the fields of the common header, lowest first
        (bytes(128), 1, 2),
        (patched(ICREQ, 1, b"\x01"), 1, 1),
        (patched(ICREQ, 1, b"\x02"), 1, 1),
        (patched(ICREQ, 1, b"\x80"), 1, 1),
        (patched(ICREQ, 2, b"\x7f"), 1, 2),
        (patched(ICREQ, 2, b"\xff"), 1, 2),
        (patched(ICREQ, 3, b"\x80"), 1, 3),
        (patched(ICREQ, 4, pack("<I", 127)), 1, 4),
        (patched(ICREQ, 4, pack("<I", 129)), 1, 4),
        (patched(ICREQ, 4, pack("<I", 0)), 1, 4),
        (patched(ICREQ, 4, pack("<I", 0xFFFFFFFF)), 1, 4),
        (patched(ICREQ, 1, b"\x01\x00\x01\x00"), 1, 1),
        # its parameters
        (IcReq(pfv=1).build(), 6, 8),
        (IcReq(pfv=0xFFFF).build(), 6, 8),
        (IcReq(hpda=32).build(), 1, 10),
        (IcReq(hpda=255).build(), 1, 10),
        (IcReq(pfv=1, hpda=255).build(), 6, 8),
    ],
)
def test_instead_of_icreq(first: bytes, fes: int, fei: int) -> None:
    got_fes, got_fei, data = failure(TcpTarget(TcpLimits()), first)
    assert (got_fes, got_fei) == (fes, fei)
    assert first.startswith(data)
    assert len(data) == (8 if fei < 8 or fes == 2 else 128)


@pytest.mark.parametrize(
    ("pdu", "fes", "fei"),
    [
        (ICREQ, 2, 0),
        (patched(ICREQ, 4, pack("<I", 4096)), 2, 0),
        # unknown types and those that go the other way
        *[(common(kind, 0, 24, 0, 24), 1, 0) for kind in (1, 3, 5, 7, 8, 9, 10, 11, 0x16, 0x47, 0xFF)],
        # FLAGS
        (capsule(sqe(1), flags=HDGST), 1, 1),
        (capsule(sqe(1), flags=DDGST), 1, 1),
        (capsule(sqe(1), DATA, flags=DDGST), 1, 1),
        (capsule(sqe(1), flags=LAST), 1, 1),
        (h2c(1, 1, 0, DATA, flags=LAST | SUCCESS), 1, 1),
        (h2c(1, 1, 0, DATA, flags=LAST | HDGST), 1, 1),
        # HLEN
        (capsule(sqe(1), hlen=71), 1, 2),
        (capsule(sqe(1), hlen=76), 1, 2),
        (capsule(sqe(1), hlen=255), 1, 2),
        (capsule(sqe(1), hlen=0), 1, 2),
        (common(PduType.H2C_DATA, LAST, 72, 72, 72 + 512), 1, 2),
        # PDO
        (capsule(sqe(1), DATA, pdo=0), 1, 3),
        (capsule(sqe(1), DATA, pdo=71), 1, 3),
        (capsule(sqe(1), DATA, pdo=73), 1, 3),
        (capsule(sqe(1), DATA, pdo=8), 1, 3),
        (capsule(sqe(1), DATA[:16], pdo=88), 1, 3),
        (capsule(sqe(1), DATA[:16], pdo=252), 1, 3),
        (capsule(sqe(1), pdo=4), 1, 3),
        (h2c(1, 1, 0, DATA, pdo=0), 1, 3),
        (h2c(1, 1, 0, DATA, pdo=20), 1, 3),
        (h2c(1, 1, 0, DATA, pdo=25), 1, 3),
        # PLEN
        (capsule(sqe(1), plen=0), 1, 4),
        (capsule(sqe(1), plen=71), 1, 4),
        (capsule(sqe(1), DATA, plen=8), 1, 4),
        (h2c(1, 1, 0, DATA, plen=23), 1, 4),
    ],
)
def test_common_header_after_ic(pdu: bytes, fes: int, fei: int) -> None:
    got_fes, got_fei, data = failure(ready_target(), pdu)
    assert (got_fes, got_fei, data) == (fes, fei, pdu[:8])


@pytest.mark.parametrize(
    ("icd_max", "opc", "length", "refused"),
    [
        (8192, 1, 8192, False),
        (8192, 1, 8193, True),
        (4096, 1, 4096, False),
        (4096, 1, 4097, True),
        (0, 1, 1, True),
        (0, 0x7F, 1024, False),  # Fabrics commands have their 8 KiB on every queue
        (0, 0x7F, 8192, False),
        (0, 0x7F, 8193, True),
        (16384, 0x7F, 16384, False),
        (16384, 1, 16385, True),
        (8192, 1, 0xFFFFFF00, True),
    ],
)
def test_in_capsule_data_limit(icd_max: int, opc: int, length: int, refused: bool) -> None:
    """One byte too many is refused when the header is there, before a byte of data is stored."""
    target = ready_target()
    target.set_queue(31, icd_max)
    header = capsule(sqe(1, opc=opc), pdo=72, plen=72 + length)
    if refused:
        assert failure(target, header) == (1, 4, header)
        return
    assert target.receive_data(header) == []
    assert target.bytes_wanted() == length
    (event,) = target.receive_data(bytes(length))
    assert isinstance(event, CommandReceived)
    assert event.icd == bytes(length)


def requested(length: int = 8192, *, maxr2t: int = 0, limits: TcpLimits | None = None) -> tuple[TcpTarget, int]:
    """A target that waits for the data of command 7, and the TTAG of its first R2T."""
    target = ready_target(limits, IcReq(maxr2t=maxr2t).build())
    target.receive_data(capsule(sqe(7)))
    target.request_data(7, length)
    r2t = bytes(target.data_to_send()[0])
    return target, int.from_bytes(r2t[10:12], "little")


@pytest.mark.parametrize(
    ("cccid", "datao", "length", "last", "datal", "fes", "fei"),
    [
        (8, 0, 512, False, None, 2, 0),  # another command's identifier
        (0, 0, 512, False, None, 2, 0),
        (7, 0, 0, False, None, 1, 16),  # nothing
        (7, 0, 512, False, 0, 1, 16),
        (7, 0, 512, False, 508, 1, 16),  # DATAL against PLEN
        (7, 0, 512, False, 516, 1, 16),
        (7, 4, 512, False, None, 2, 0),  # a gap
        (7, 0, 4100, False, None, 5, 0),  # MAXH2CDATA + 4
        (7, 0, 4, False, 4100, 5, 0),
        (7, 0, 4, False, 0xFFFFFFFC, 5, 0),
        (7, 8192, 4, False, None, 4, 0),  # beyond the R2T
        (7, 8188, 8, True, None, 4, 0),
        (7, 0xFFFFFFFC, 4, False, None, 4, 0),
        (7, 0xFFFFFFFC, 4096, True, None, 4, 0),  # the sum is 4092 in 32 bits
        (7, 0, 4096, True, None, 2, 0),  # LAST_PDU too early
    ],
)
def test_h2c_data(cccid: int, datao: int, length: int, last: bool, datal: int | None, fes: int, fei: int) -> None:
    target, ttag = requested(limits=TcpLimits(maxh2cdata=4096))
    pdu = h2c(cccid, ttag, datao, bytes(length), flags=LAST if last else 0, datal=datal, pdo=24 if length else 0)
    assert failure(target, pdu) == (fes, fei, pdu[:24])


@pytest.mark.parametrize("ttag", [0, 2, 0x7FFF, 0xFFFE, 0xFFFF])
def test_unknown_ttag(ttag: int) -> None:
    """Tag 1 is out; section 3.3.2.2: an unknown TTAG is an invalid header field."""
    target, given = requested()
    assert given == 1
    assert failure(target, h2c(7, ttag, 0, DATA))[:2] == (1, 10)


@pytest.mark.parametrize("ttag", [0, 1, 0xFFFF])
def test_h2c_data_that_nobody_asked_for(ttag: int) -> None:
    """The three ways of CVE-2026-22998: right after the IC exchange, for a read, for a finished command."""
    assert failure(ready_target(), h2c(7, ttag, 0, DATA))[:2] == (1, 10)
    target = ready_target()
    target.receive_data(capsule(sqe(7, opc=2)))
    target.send_data(7, DATA)
    assert failure(target, h2c(7, ttag, 0, DATA))[:2] == (1, 10)
    target, given = requested(512)
    assert len(target.receive_data(h2c(7, given, 0, DATA))) == 1
    assert failure(target, h2c(7, given, 0, DATA))[:2] == (2, 0)


def test_h2c_data_after_last() -> None:
    target, ttag = requested(512)
    target.receive_data(h2c(7, ttag, 0, DATA))
    assert failure(target, h2c(7, ttag, 512, DATA, flags=0))[:2] == (2, 0)


def test_last_pdu_missing() -> None:
    target, ttag = requested(512)
    assert failure(target, h2c(7, ttag, 0, DATA, flags=0))[:2] == (2, 0)


def test_overlapping_h2c_data() -> None:
    target, ttag = requested()
    assert target.receive_data(h2c(7, ttag, 0, DATA, flags=0)) == []
    assert failure(target, h2c(7, ttag, 256, DATA, flags=0))[:2] == (2, 0)


def test_second_r2t_served_first() -> None:
    """R2Ts of one command are served in order (section 3.3.2.2)."""
    target, ttag = requested(1024, maxr2t=1, limits=TcpLimits(r2t_max=512))
    assert failure(target, h2c(7, ttag + 1, 512, DATA))[:2] == (2, 0)


def test_data_of_one_r2t_under_the_tag_of_another() -> None:
    target, ttag = requested(1024, maxr2t=1, limits=TcpLimits(r2t_max=512))
    assert failure(target, h2c(7, ttag + 1, 0, DATA))[:2] == (4, 0)


def test_plen_above_maxh2cdata_with_a_small_datal() -> None:
    target, ttag = requested(limits=TcpLimits(maxh2cdata=4096))
    assert failure(target, h2c(7, ttag, 0, b"", flags=0, datal=4, plen=0xFFFFFFFF))[:2] == (1, 4)


@pytest.mark.parametrize("size", [0, 8, 23, 153, 0xFFFFFFFF])
def test_term_req_of_impossible_length_is_ignored(size: int) -> None:
    """Section 3.5: "shall ignore ... and shall terminate the connection immediately"."""
    target = ready_target()
    assert target.receive_data(common(PduType.H2C_TERM_REQ, 0, 24, 0, size)) == [PeerTerminated(0, 0)]
    assert target.data_to_send() == []
    assert target.closed


def test_term_req_with_wrong_hlen_is_ignored() -> None:
    target = ready_target()
    assert target.receive_data(common(PduType.H2C_TERM_REQ, 0, 32, 0, 32)) == [PeerTerminated(0, 0)]


@pytest.mark.parametrize("size", [0, 8, 72, 128])
def test_term_req(size: int) -> None:
    """Nothing is sent back, not even what was queued; digests are never part of it."""
    target = ready_target(icreq=IcReq(dgst=3).build())
    target.receive_data(with_hdgst(capsule(sqe(1), flags=HDGST, plen=76)))
    target.send_data(1, DATA)
    pdu = TermReq(3, 0x12345678, bytes(size), PduType.H2C_TERM_REQ).build()
    assert target.receive_data(pdu[:-1]) == []
    assert target.receive_data(pdu[-1:] + ICREQ) == [PeerTerminated(3, 0x12345678)]
    assert target.data_to_send() == []
    assert target.closed


class TestDigests:
    """With digests agreed."""

    ICREQ = IcReq(dgst=3).build()

    def test_header_digest_error_reports_the_digest_that_came(self) -> None:
        header = capsule(sqe(1), flags=HDGST, plen=76)
        got = failure(ready_target(icreq=self.ICREQ), header + pack("<I", 0xDEADBEEF))
        assert got == (3, 0xDEADBEEF, header)

    @pytest.mark.parametrize("at", [3, 4, 5, 7, 8, 10, 24, 71])
    def test_a_flipped_bit_is_a_digest_error_whatever_field_it_hits(self, at: int) -> None:
        pdu = bytearray(with_hdgst(capsule(sqe(1), flags=HDGST, plen=0x04000176, pdo=120)))
        pdu[at] ^= 0x10
        assert failure(ready_target(icreq=self.ICREQ), bytes(pdu))[0] == 3

    def test_flags_must_say_so(self) -> None:
        assert failure(ready_target(icreq=self.ICREQ), capsule(sqe(1)))[:2] == (1, 1)
        pdu = with_hdgst(capsule(sqe(1), flags=HDGST, pdo=76, plen=76 + 512))
        assert failure(ready_target(icreq=self.ICREQ), pdu)[:2] == (1, 1)

    def test_data_digest_flag_without_data_is_harmless(self) -> None:
        """Figure 24: there is a DDGST if the flag is set *and* there is data."""
        target = ready_target(icreq=self.ICREQ)
        (event,) = target.receive_data(with_hdgst(capsule(sqe(1), flags=HDGST | DDGST, plen=76)))
        assert isinstance(event, CommandReceived)
        assert event.icd is None

    @pytest.mark.parametrize(("plen", "fei"), [(75, 4), (77, 3), (80, 4)])
    def test_lengths_count_the_digests(self, plen: int, fei: int) -> None:
        """75: no room for HDGST. 77: PDO 80 lies beyond. 80: a PDO, but neither data nor DDGST after it."""
        pdo = 80 if plen == 77 else 76
        pdu = with_hdgst(capsule(sqe(1), flags=HDGST | DDGST, pdo=pdo, plen=plen))
        assert failure(ready_target(icreq=self.ICREQ), pdu)[:2] == (1, fei)


@pytest.mark.parametrize(("pdo", "sound"), [(72, False), (76, False), (80, False), (96, True), (128, True)])
def test_cpda(pdo: int, sound: bool) -> None:
    """PDO is a multiple of CPDA's 32 bytes; more padding than needed is tolerated."""
    target = ready_target(TcpLimits(cpda=7))
    pdu = capsule(sqe(1), bytes(pdo - 72) + DATA, pdo=pdo)
    if sound:
        (event,) = target.receive_data(pdu)
        assert isinstance(event, CommandReceived)
        assert event.icd == DATA
    else:
        assert failure(target, pdu)[:2] == (1, 3)


def test_padding_is_not_looked_at() -> None:
    target = ready_target(TcpLimits(cpda=31))
    (event,) = target.receive_data(capsule(sqe(1), b"\xa5" * 56 + DATA, pdo=128))
    assert isinstance(event, CommandReceived)
    assert event.icd == DATA


def test_more_commands_than_the_queue_has_entries() -> None:
    target = ready_target()
    target.set_queue(3, 0)
    for cid in range(4):
        assert len(target.receive_data(capsule(sqe(cid)))) == 1
    assert target.commands_in_flight == 4
    assert failure(target, capsule(sqe(4)))[:2] == (2, 0)
