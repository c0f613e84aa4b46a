"""What both ends of an NVMe/TCP connection share: cutting the byte stream into PDUs, checking them, building them.

Theory of operation
-------------------
Source: NVM Express TCP Transport Specification 1.0; sections below are its. A PDU is::

    CH (8) | PSH | HDGST (4, if agreed) | PAD (to PDO) | DATA | DDGST (4, if agreed and there is data)
    |---- HLEN --|                                     ^ PDO                              PLEN = all of it

and is taken in three steps: nothing is believed before it is checked, nothing is stored before it is allowed.

    ============= ========================= ===================================================== ===============
    stage         waits for                 then                                                  next stage
    ============= ========================= ===================================================== ===============
    COMMON_HEADER 8 bytes                   type allowed in this state? FLAGS, HLEN, PDO, PLEN    HEADER
    HEADER        HLEN (+ HDGST)            HDGST; then what the CH promised; ``_on_header``      PAYLOAD or done
    PAYLOAD       PAD + DATA + DDGST        bytes go straight to where ``_on_header`` said        done
    CLOSED        nothing                   what still arrives is swallowed                       none
    ============= ========================= ===================================================== ===============

"done" calls ``_on_complete`` and goes back to COMMON_HEADER. With header digests PDO and PLEN are judged only after the
digest, which covers them. At most one header (132 bytes) is ever held here; data is copied once, from what the caller
gave into its destination.

A PDU at fault raises ``PduError`` internally, which becomes a TermReq with the header as far as it was read (section
3.5), a ``ConnectionFailed`` event and CLOSED. "If multiple errors exist", FEI names the lowest offset (figure 23):
checks run in the order of the fields. Reserved fields are not checked, which a recipient need not (NVMe base, section
1.4), except in FLAGS and PDO, because the framing hangs on them.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, Generic, TypeVar

from nvmet_p2p.errors import InvariantError
from nvmet_p2p.limits import HPDA_MAX_DWORDS
from nvmet_p2p.protocol.digest import DIGEST_BYTES, Buffer, crc32c, digest_bytes
from nvmet_p2p.protocol.events import ConnectionFailed, PeerTerminated
from nvmet_p2p.wire.spec import Fes, PduFlag, PduType
from nvmet_p2p.wire.tcp_pdu import TERM_REQ_DATA_MAX, CapsuleCmd, H2CData, IcReq, TermReq, TermReqHeader

CH_BYTES: Final = 8
IC_BYTES: Final = IcReq.SIZE
CMD_BYTES: Final = CapsuleCmd.SIZE
DATA_HEADER_BYTES: Final = H2CData.SIZE  # H2CData, C2HData and R2T: 24
TERM_BYTES: Final = TermReqHeader.SIZE
MAXH2CDATA_MIN_BYTES: Final = 4096

# Hot: four u8 and PLEN of the common header; the same with CCCID, TTAG, offset, length of a data PDU or an R2T.
COMMON: Final = Struct("<BBBBI")
DATA_PSH: Final = Struct("<8xHHII")
DATA_HEADER: Final = Struct("<BBBBIHHII4x")
RESP_HEADER: Final = Struct("<BBBBI16s")
_WORD: Final = Struct("<I")

# Byte offsets that FEI reports (figures 19 to 28).
FEI_TYPE: Final = 0
FEI_FLAGS: Final = 1
FEI_HLEN: Final = 2
FEI_PDO: Final = 3
FEI_PLEN: Final = 4
FEI_PFV: Final = 8
FEI_PDA: Final = 10  # HPDA of an ICReq, CPDA of an ICResp
FEI_DGST: Final = 11
FEI_MAXH2CDATA: Final = 12
FEI_CCCID: Final = 8
FEI_TTAG: Final = 10
FEI_DATAL: Final = 16  # also R2TL
FEI_CQE_CID: Final = 20

_HDGST: Final = int(PduFlag.HDGST)
_DDGST: Final = int(PduFlag.DDGST)


class LocalProtocolError(InvariantError):
    """Our own side used a connection wrongly. A peer can never cause it."""


class PduError(Exception):
    """The peer broke the protocol; never leaves this package."""

    def __init__(self, fes: Fes, fei: int, reason: str) -> None:
        super().__init__(reason)
        self.fes = fes
        self.fei = fei
        self.reason = reason


def header_field_error(fei: int, reason: str) -> PduError:
    """FES 1, the field at byte ``fei`` of the PDU header is wrong."""
    return PduError(Fes.INVALID_HEADER_FIELD, fei, reason)


def sequence_error(reason: str) -> PduError:
    """FES 2; FEI is reserved then."""
    return PduError(Fes.PDU_SEQUENCE_ERROR, 0, reason)


@dataclass(frozen=True, slots=True)
class TcpParams:
    """What ICReq and ICResp agreed on, and the queue's in-capsule data limit: enough to go on elsewhere.

    ``hpda``, ``cpda``: dwords, 0's based. ``maxr2t``: 0's based, per command. ``maxh2cdata``, ``icd_max``: bytes.
    """

    hdgst: bool = False
    ddgst: bool = False
    hpda: int = 0
    cpda: int = 0
    maxr2t: int = 0
    maxh2cdata: int = 128 * 1024
    icd_max: int = 8192

    def __post_init__(self) -> None:
        if not (0 <= self.hpda <= HPDA_MAX_DWORDS and 0 <= self.cpda <= HPDA_MAX_DWORDS):
            raise LocalProtocolError(f"hpda {self.hpda} or cpda {self.cpda} is not in 0 to {HPDA_MAX_DWORDS}")
        if self.maxr2t < 0 or self.icd_max < 0:
            raise LocalProtocolError("maxr2t and icd_max are not negative")
        if self.maxh2cdata < MAXH2CDATA_MIN_BYTES or self.maxh2cdata % 4:
            raise LocalProtocolError(f"maxh2cdata {self.maxh2cdata} is not a multiple of 4, at least 4096")


class Stage(enum.Enum):
    """How far the PDU in progress has been read; see the module's table."""

    COMMON_HEADER = enum.auto()
    HEADER = enum.auto()
    PAYLOAD = enum.auto()
    CLOSED = enum.auto()


class DataRule(enum.Enum):
    """Whether a PDU of a type carries data."""

    NONE = enum.auto()
    OPTIONAL = enum.auto()
    TERM = enum.auto()  # data right after the header, neither PDO nor digests (section 3.3.1.1)


@dataclass(frozen=True, slots=True)
class PduRule:
    """What the specification fixes for one PDU type. ``flags``: those defined. ``digests``: not for IC and TermReq."""

    hlen: int
    flags: int
    data: DataRule
    digests: bool = True


def alignment_bytes(pda: int) -> int:
    """HPDA or CPDA (dwords, 0's based) as bytes."""
    return (pda + 1) * 4


EventT = TypeVar("EventT")


class PduEndpoint(ABC, Generic[EventT]):
    """One end of a connection, below the meaning of PDUs.

    Subclasses say which PDU types may arrive (``RULES``), name the TermReq that it sends, and fill in the hooks.
    """

    RULES: ClassVar[Mapping[int, PduRule]]
    TERM_SENT: ClassVar[PduType]

    def __init__(self) -> None:
        self._stage = Stage.COMMON_HEADER
        self._header = bytearray()
        self._goal = CH_BYTES
        self._rule: PduRule | None = None
        self._digest_len = 0  # of the PDU in progress: 4 when it has an HDGST
        self._pad_left = 0
        self._data_left = 0
        self._ddgst_left = 0
        self._sink: memoryview | None = None  # where data goes; None: it is thrown away
        self._sink_at = 0
        self._crc = 0
        self._ddgst = bytearray()
        self._out: list[Buffer] = []
        # What is in force; all off and 4 byte alignment until the IC exchange is over.
        self._hdgst_on = False
        self._ddgst_on = False
        self._rx_align = 4
        self._tx_align = 4

    # -- the caller's side

    @property
    def closed(self) -> bool:
        """A fatal error was found or the peer terminated: nothing more will be read."""
        return self._stage is Stage.CLOSED

    @property
    def between_pdus(self) -> bool:
        """No byte of a PDU in progress has been taken: the connection may be handed over."""
        return self._stage is Stage.COMMON_HEADER and not self._header

    def bytes_wanted(self) -> int:
        """How many bytes complete the next step; never more than the PDU in progress has. 0 once closed."""
        if self._stage is Stage.CLOSED:
            return 0
        if self._stage is Stage.PAYLOAD:
            return self._pad_left + self._data_left + self._ddgst_left
        return self._goal - len(self._header)

    def receive_data(self, data: Buffer) -> list[EventT]:
        """Take what has arrived, in any chunking. Never raises because of what the peer sent."""
        events: list[EventT] = []
        view = memoryview(data)
        at, end = 0, len(view)
        try:
            while at < end and self._stage is not Stage.CLOSED:
                if self._stage is Stage.PAYLOAD:
                    at = self._take_payload(view, at, events)
                else:
                    take = min(self._goal - len(self._header), end - at)
                    self._header += view[at : at + take]
                    at += take
                    if len(self._header) == self._goal:
                        self._take_header(events)
        except PduError as error:
            self._fail(error, events)
        return events

    def data_to_send(self) -> list[Buffer]:
        """What is to be sent, in order; it is the caller's from now on. Data is a view of the buffer that was given."""
        out, self._out = self._out, []
        return out

    # -- what a subclass fills in

    @abstractmethod
    def _check_state(self, pdu_type: int) -> None:
        """Raise PduError when a PDU of this type may not come now, known or not."""

    @abstractmethod
    def _on_header(self, pdu_type: int, flags: int, data_len: int, events: list[EventT]) -> memoryview | None:
        """The header in ``self._header`` is whole and its frame is sound: check the rest, say where the data goes."""

    @abstractmethod
    def _on_complete(self, pdu_type: int, ddgst_error: bool, events: list[EventT]) -> None:
        """The whole PDU is here."""

    @abstractmethod
    def _report(self, event: ConnectionFailed | PeerTerminated, events: list[EventT]) -> None:
        """Append one of the two last events: the subclass's event type holds them."""

    # -- reading

    def _take_header(self, events: list[EventT]) -> None:
        pdu_type, flags, hlen, pdo, plen = COMMON.unpack_from(self._header)
        if self._stage is Stage.COMMON_HEADER:
            self._check_state(pdu_type)
            rule = self._check_common(pdu_type, flags, hlen, pdo, plen, events)
            if rule is None:
                return
            self._rule = rule
            self._stage = Stage.HEADER
            self._goal = rule.hlen + self._digest_len
            return
        rule = self._rule
        if rule is None:
            raise InvariantError("a header without its rule")
        if self._digest_len:
            self._check_header_digest(rule)
            self._check_lengths(rule, flags, pdo, plen)
        sink = self._on_header(pdu_type, flags, self._data_left, events)
        self._sink, self._sink_at, self._crc = sink, 0, 0
        if self._pad_left + self._data_left + self._ddgst_left:
            self._stage = Stage.PAYLOAD
        else:
            self._finish(pdu_type, False, events)

    def _check_common(
        self, pdu_type: int, flags: int, hlen: int, pdo: int, plen: int, events: list[EventT]
    ) -> PduRule | None:
        """Judge the common header as far as it can be; None when the peer terminated with a malformed TermReq."""
        rule = self.RULES.get(pdu_type)
        if rule is None:
            raise header_field_error(FEI_TYPE, f"PDU type {pdu_type:#04x}")
        if rule.data is DataRule.TERM:
            if hlen != rule.hlen or not TERM_BYTES <= plen <= TERM_BYTES + TERM_REQ_DATA_MAX:
                self._terminated(0, 0, events)  # section 3.5: ignore it, terminate at once
                return None
            self._digest_len = 0
            self._pad_left, self._data_left, self._ddgst_left = 0, plen - hlen, 0
            return rule
        hdgst = self._hdgst_on and rule.digests
        if flags & ~rule.flags or bool(flags & _HDGST) != hdgst:
            raise header_field_error(FEI_FLAGS, f"flags {flags:#04x} of PDU type {pdu_type:#04x}")
        if flags & _DDGST and not self._ddgst_on:
            raise header_field_error(FEI_FLAGS, "a data digest that was not agreed")
        if hlen != rule.hlen:
            raise header_field_error(FEI_HLEN, f"HLEN {hlen} of PDU type {pdu_type:#04x}")
        self._digest_len = DIGEST_BYTES if hdgst else 0
        if not hdgst:
            self._check_lengths(rule, flags, pdo, plen)
        elif plen < rule.hlen + DIGEST_BYTES:
            raise header_field_error(FEI_PLEN, f"PLEN {plen} is shorter than the header")
        return rule

    def _check_header_digest(self, rule: PduRule) -> None:
        (received,) = _WORD.unpack_from(self._header, rule.hlen)
        if crc32c(bytes(self._header[: rule.hlen])) != received:
            raise PduError(Fes.HEADER_DIGEST_ERROR, received, "header digest")

    def _check_lengths(self, rule: PduRule, flags: int, pdo: int, plen: int) -> None:
        """PDO and PLEN against FLAGS and each other; what they leave for padding, data and DDGST."""
        full = rule.hlen + self._digest_len
        self._pad_left = self._data_left = self._ddgst_left = 0
        if rule.data is DataRule.NONE:
            if pdo:
                raise header_field_error(FEI_PDO, f"PDO {pdo} in a PDU without data")
            if plen != full:
                raise header_field_error(FEI_PLEN, f"PLEN {plen}, not {full}")
            return
        has_data = plen > full
        if has_data and self._ddgst_on and not flags & _DDGST:
            raise header_field_error(FEI_FLAGS, "no data digest where it was agreed")
        if not has_data:
            if pdo not in (0, full) and (pdo < full or pdo % self._rx_align):
                raise header_field_error(FEI_PDO, f"PDO {pdo}")
            if plen != full:
                raise header_field_error(FEI_PLEN, f"PLEN {plen} is shorter than the header")
            return
        if pdo < full or pdo % self._rx_align or pdo >= plen:
            raise header_field_error(FEI_PDO, f"PDO {pdo} of a PDU of {plen} bytes, aligned to {self._rx_align}")
        ddgst = DIGEST_BYTES if self._ddgst_on else 0
        if plen <= pdo + ddgst:
            raise header_field_error(FEI_PLEN, f"PLEN {plen} leaves no room for data")
        self._pad_left, self._data_left, self._ddgst_left = pdo - full, plen - pdo - ddgst, ddgst

    def _take_payload(self, view: memoryview, at: int, events: list[EventT]) -> int:
        """Consume padding, data and digest from ``view[at:]``; the new ``at``."""
        end = len(view)
        if self._pad_left:
            take = min(self._pad_left, end - at)
            self._pad_left -= take
            at += take
        if self._data_left and at < end:
            take = min(self._data_left, end - at)
            piece = view[at : at + take]
            if self._sink is not None:
                self._sink[self._sink_at : self._sink_at + take] = piece
                self._sink_at += take
            if self._ddgst_left:
                self._crc = crc32c(piece, self._crc)
            self._data_left -= take
            at += take
        if self._ddgst_left and not self._data_left and at < end:
            take = min(self._ddgst_left, end - at)
            self._ddgst += view[at : at + take]
            self._ddgst_left -= take
            at += take
        if not (self._pad_left or self._data_left or self._ddgst_left):
            error = bool(self._ddgst) and _WORD.unpack(self._ddgst)[0] != self._crc
            self._finish(self._header[0], error, events)
        return at

    def _finish(self, pdu_type: int, ddgst_error: bool, events: list[EventT]) -> None:
        if self.RULES[pdu_type].data is DataRule.TERM:
            term = TermReqHeader.parse(self._header)
            self._terminated(term.fes, term.fei, events)
            return
        self._on_complete(pdu_type, ddgst_error, events)
        self._header.clear()
        self._ddgst.clear()
        self._sink = None
        self._goal = CH_BYTES
        self._stage = Stage.COMMON_HEADER

    # -- the end

    def _fail(self, error: PduError, events: list[EventT]) -> None:
        hlen = self._rule.hlen if self._stage is not Stage.COMMON_HEADER and self._rule is not None else CH_BYTES
        term = TermReq(error.fes, error.fei, bytes(self._header[: min(hlen, TERM_REQ_DATA_MAX)]), self.TERM_SENT)
        self._out.append(term.build())
        self._close()
        self._report(ConnectionFailed(int(error.fes), error.fei, error.reason), events)

    def _terminated(self, fes: int, fei: int, events: list[EventT]) -> None:
        self._out.clear()
        self._close()
        self._report(PeerTerminated(fes, fei), events)

    def _close(self) -> None:
        self._stage = Stage.CLOSED
        self._sink = None
        self._header.clear()

    # -- writing

    def _send_header(self, header: bytes) -> None:
        """Queue a PDU without data whose FLAGS and PLEN already count the digest."""
        self._out.append(header + digest_bytes(header) if self._hdgst_on else header)

    def _header_frame(self, hlen: int, data_len: int) -> tuple[int, int, int, int]:
        """(FLAGS for digests, PDO, PLEN, padding) of a PDU with ``data_len`` bytes of data."""
        full = hlen + DIGEST_BYTES if self._hdgst_on else hlen
        flags = _HDGST if self._hdgst_on else 0
        if not data_len:
            return flags, 0, full, 0
        pdo = -(-full // self._tx_align) * self._tx_align
        if self._ddgst_on:
            return flags | _DDGST, pdo, pdo + data_len + DIGEST_BYTES, pdo - full
        return flags, pdo, pdo + data_len, pdo - full

    def _send_with_data(self, header: bytes, padding: int, data: Buffer) -> None:
        """Queue header, padding, data (not copied) and digests."""
        head = header + digest_bytes(header) if self._hdgst_on else header
        self._out.append(head + bytes(padding) if padding else head)
        self._out.append(data)
        if self._ddgst_on:
            self._out.append(digest_bytes(data))

    def _send_data_pdus(
        self, pdu_type: int, cccid: int, tag: int, start: int, data: memoryview, chunk: int, last_flags: int
    ) -> None:
        """Queue ``data``, which belongs at ``start``, in PDUs of up to ``chunk`` bytes; ``last_flags`` on the last."""
        total = len(data)
        for at in range(0, total, chunk):
            piece = data[at : at + chunk]
            flags, pdo, plen, padding = self._header_frame(DATA_HEADER_BYTES, len(piece))
            if at + chunk >= total:
                flags |= last_flags
            header = DATA_HEADER.pack(pdu_type, flags, DATA_HEADER_BYTES, pdo, plen, cccid, tag, start + at, len(piece))
            self._send_with_data(header, padding, piece)
