"""The target's end of an NVMe/TCP connection (one queue), sans-IO.

Theory of operation
-------------------
Source: NVM Express TCP Transport Specification 1.0. ``tcp_common`` cuts the stream into sound PDUs; here is what they
mean.

    ======== ============ ================================================== =========
    state    PDU          answer                                             new state
    ======== ============ ================================================== =========
    AWAIT_IC ICReq        ICResp, ``IcReceived``                             READY
    AWAIT_IC any other    C2HTermReq FES 2                                   closed
    READY    CapsuleCmd   ``CommandReceived``                                READY
    READY    H2CData      collected; ``DataReceived`` with the last byte     READY
    READY    H2CTermReq   ``PeerTerminated``, nothing is sent (3.5)          closed
    READY    ICReq        C2HTermReq FES 2                                   closed
    READY    any other    C2HTermReq FES 1 FEI 0 (type or direction)         closed
    ======== ============ ================================================== =========

A *command* is in flight from ``CommandReceived`` to ``send_response`` (or ``send_data`` with SUCCESS). More of them
than the queue has entries is a host's mistake for which the specification names no code: FES 2, an unexpected sequence.
A capsule with more data than the queue allows has an invalid PLEN: FES 1, FEI 4 (FES 5 is defined for H2CData only).

A *transfer* is what ``request_data`` starts: R2Ts with ascending offsets, at most MAXR2T + 1 of them outstanding for a
command (figure 20: "for a command at any point in time"), each with a transfer tag of its own. Tags go round from 1 to
FFFEh, so one that has served its time does not come back soon: an H2CData that names it is known as late (FES 2), one
that was never given out as unknown (FES 1, FEI 10). H2CData must lie inside its R2T (FES 4), continue exactly where the
command's data ends (FES 2), have at most MAXH2CDATA bytes (FES 5) and LAST_PDU on the R2T's last and only there (FES
2); all section 3.3.2.2. That DATAO and DATAL be multiples of 4 is asked of hosts, but no known target enforces it, nor
does this one. CCCID must be that of the R2T's command; the specification names no code for that, FES 2 is SPDK's.

A cancelled transfer's data is taken from the stream and thrown away; its tags stay taken until then.

Memory: a capsule's data is bounded by the queue's in-capsule limit (Fabrics commands: 8,192, section 3.3.1), a
transfer by ``TcpLimits.max_transfer``, both times the queue's entries; all else is refused before it is stored.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

from nvmet_p2p.errors import InvariantError
from nvmet_p2p.limits import ADMIN_ICD_BYTES, AQ_DEPTH_MIN, HPDA_MAX_DWORDS, MAXH2CDATA_BYTES, TRANSFER_BYTES_MAX
from nvmet_p2p.protocol.digest import Buffer
from nvmet_p2p.protocol.events import (
    CommandReceived,
    ConnectionFailed,
    DataReceived,
    IcReceived,
    PeerTerminated,
    TargetEvent,
)
from nvmet_p2p.protocol.tcp_common import (
    CH_BYTES,
    CMD_BYTES,
    DATA_HEADER,
    DATA_HEADER_BYTES,
    DATA_PSH,
    FEI_DATAL,
    FEI_PDA,
    FEI_PFV,
    FEI_PLEN,
    FEI_TTAG,
    IC_BYTES,
    RESP_HEADER,
    TERM_BYTES,
    DataRule,
    LocalProtocolError,
    PduEndpoint,
    PduError,
    PduRule,
    TcpParams,
    alignment_bytes,
    header_field_error,
    sequence_error,
)
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.spec import FABRICS_OPCODE, DigestFlag, Fes, PduFlag, PduType
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.tcp_pdu import IcReq, IcResp

__all__ = ["LocalProtocolError", "TcpLimits", "TcpParams", "TcpTarget"]

_CAPSULE_CMD: Final = int(PduType.CAPSULE_CMD)
_H2C_DATA: Final = int(PduType.H2C_DATA)
_IC_REQ: Final = int(PduType.IC_REQ)
_CAPSULE_RESP: Final = int(PduType.CAPSULE_RESP)
_C2H_DATA: Final = int(PduType.C2H_DATA)
_R2T: Final = int(PduType.R2T)
_LAST: Final = int(PduFlag.LAST_PDU)
_SUCCESS: Final = int(PduFlag.SUCCESS)
_DIGESTS: Final = int(PduFlag.HDGST | PduFlag.DDGST)
_TAG_FIRST: Final = 1  # 0 and FFFFh are what a peer sends that has no tag
_TAG_LAST: Final = 0xFFFE
_SQSIZE_MAX: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class TcpLimits:
    """What this side offers and tolerates. Bytes, except ``cpda`` (dwords, 0's based) and ``commands_unconnected``.

    ``maxc2hdata`` bounds the data of one C2HData PDU, ``r2t_max`` that of one R2T; both multiples of 4.
    ``commands_unconnected`` may be in flight until ``set_queue`` tells the queue's size.
    """

    allow_hdgst: bool = True
    allow_ddgst: bool = True
    cpda: int = 0
    maxh2cdata: int = MAXH2CDATA_BYTES
    icd_max: int = ADMIN_ICD_BYTES
    max_transfer: int = TRANSFER_BYTES_MAX
    maxc2hdata: int = MAXH2CDATA_BYTES
    r2t_max: int = TRANSFER_BYTES_MAX
    commands_unconnected: int = AQ_DEPTH_MIN

    def __post_init__(self) -> None:
        TcpParams(cpda=self.cpda, maxh2cdata=self.maxh2cdata, icd_max=self.icd_max)
        if min(self.maxc2hdata, self.r2t_max) <= 0 or self.maxc2hdata % 4 or self.r2t_max % 4:
            raise LocalProtocolError("maxc2hdata and r2t_max are multiples of 4, above 0")
        if not 0 < self.max_transfer < 1 << 32 or self.commands_unconnected < 1:
            raise LocalProtocolError("max_transfer fits in 32 bits, commands_unconnected is at least 1")


class _State(enum.Enum):
    AWAIT_IC = enum.auto()
    READY = enum.auto()


class _Transfer:
    """The data of one command on its way to us."""

    __slots__ = ("buffer", "cancelled", "cid", "ddgst_error", "length", "open_r2ts", "received", "requested")

    def __init__(self, cid: int, length: int, buffer: memoryview) -> None:
        self.cid = cid
        self.length = length
        self.buffer = buffer
        self.requested = 0  # bytes that R2Ts have asked for
        self.received = 0
        self.open_r2ts = 0
        self.ddgst_error = False
        self.cancelled = False


@dataclass(slots=True)
class _OpenR2T:
    tag: int
    transfer: _Transfer
    start: int
    end: int


class TcpTarget(PduEndpoint[TargetEvent]):
    """One connection, seen from the target. See the module for its states; every method says what misuse raises."""

    RULES: ClassVar[Mapping[int, PduRule]] = {
        _IC_REQ: PduRule(IC_BYTES, 0, DataRule.NONE, digests=False),
        int(PduType.H2C_TERM_REQ): PduRule(TERM_BYTES, 0, DataRule.TERM, digests=False),
        _CAPSULE_CMD: PduRule(CMD_BYTES, _DIGESTS, DataRule.OPTIONAL),
        _H2C_DATA: PduRule(DATA_HEADER_BYTES, _DIGESTS | _LAST, DataRule.OPTIONAL),
    }
    TERM_SENT = PduType.C2H_TERM_REQ

    def __init__(self, limits: TcpLimits) -> None:
        super().__init__()
        self._limits = limits
        self._state = _State.AWAIT_IC
        self._params: TcpParams | None = None
        self._icd_max = limits.icd_max
        self._commands_max = limits.commands_unconnected
        self._in_flight: dict[int, int] = {}  # CID -> how many commands bear it
        self._commands = 0
        self._inherited_responses = 0
        self._transfers: dict[int, _Transfer] = {}
        self._r2ts: dict[int, _OpenR2T] = {}
        self._next_tag = _TAG_FIRST
        self._tags_went_round = False
        self._starved: deque[_Transfer] = deque()  # wait for a free tag
        self._r2t: _OpenR2T | None = None  # of the H2CData in progress
        self._icd: bytearray | None = None  # of the capsule in progress

    @classmethod
    def resume(cls, params: TcpParams, limits: TcpLimits) -> Self:
        """Take over a connection between two PDUs, after its IC exchange, e.g. an I/O queue after Connect.

        The response to that Connect may still be sent here although its command was not received here.
        """
        connection = cls(limits)
        connection._inherited_responses = 1
        connection._start(params)
        return connection

    @property
    def params(self) -> TcpParams:
        """What was negotiated. Raises LocalProtocolError before the IC exchange."""
        if self._params is None:
            raise LocalProtocolError("the IC exchange has not taken place")
        return self._params

    @property
    def commands_in_flight(self) -> int:
        """Commands that were received and not yet answered."""
        return self._commands

    def in_flight(self, cid: int) -> int:
        """How many unanswered commands bear this CID; above 1 the host is wrong (``CommandReceived.duplicate``)."""
        return self._in_flight.get(cid, 0)

    # -- what the owner asks for

    def set_queue(self, sqsize: int, icd_max: int) -> None:
        """The queue is connected: ``sqsize`` is that of the Connect command (0's based), ``icd_max`` in bytes."""
        if not 0 < sqsize <= _SQSIZE_MAX or icd_max < 0:
            raise LocalProtocolError(f"a queue of size {sqsize} (0's based) with {icd_max} bytes in a capsule")
        self._commands_max = sqsize + 1
        self._icd_max = icd_max
        self._params = replace(self.params, icd_max=icd_max)

    def request_data(self, cid: int, length: int, into: bytearray | memoryview | None = None) -> None:
        """Have the host send the first ``length`` bytes of the command's data; ``DataReceived`` when all are here.

        They go to ``into`` when given (at least ``length`` bytes, writable), else to a buffer made here. Raises
        LocalProtocolError when no such command is in flight, when its data was asked for already, or when ``length``
        is not 1 to ``max_transfer``. Does nothing once the connection is closed.
        """
        if self.closed:
            return
        if not self._in_flight.get(cid):
            raise LocalProtocolError(f"data for command {cid}, which is not in flight")
        if cid in self._transfers:
            raise LocalProtocolError(f"data for command {cid} was asked for already")
        if not 0 < length <= self._limits.max_transfer:
            raise LocalProtocolError(f"{length} bytes asked for, the limit is {self._limits.max_transfer}")
        buffer = memoryview(bytearray(length) if into is None else into)
        if buffer.nbytes < length or buffer.readonly:
            raise LocalProtocolError(f"the buffer for command {cid} is too small or not writable")
        transfer = _Transfer(cid, length, buffer.cast("B")[:length])
        self._transfers[cid] = transfer
        self._send_r2ts(transfer)

    def cancel_data(self, cid: int) -> None:
        """The command ended early: no more R2Ts for it, no ``DataReceived``; what still comes is swallowed."""
        transfer = self._transfers.pop(cid, None)
        if transfer is None:
            return
        transfer.cancelled = True
        transfer.buffer = memoryview(b"")
        if self._r2t is not None and self._r2t.transfer is transfer:
            self._sink = None

    def send_data(self, cid: int, data: Buffer, *, success: bool = False) -> None:
        """C2HData PDUs with all of a command's data, which must not change until it is sent.

        ``success`` sets SUCCESS on the last: the command is then over without a response. That is allowed only with
        status 0, no result and SQ flow control off (section 3.3.2.1), which is the caller's to know. Raises
        LocalProtocolError for a command that is not in flight and for no data at all.
        """
        if self.closed:
            return
        view = memoryview(data).cast("B")
        if not self._in_flight.get(cid) or not view:
            raise LocalProtocolError(f"{len(view)} bytes for command {cid}")
        last = _LAST | _SUCCESS if success else _LAST
        self._send_data_pdus(_C2H_DATA, cid, 0, 0, view, self._limits.maxc2hdata, last)
        if success:
            self._command_over(cid)

    def send_response(self, cqe: Cqe) -> None:
        """CapsuleResp: the command is over, its transfer, if any, cancelled. LocalProtocolError when not in flight."""
        if self.closed:
            return
        if self._in_flight.get(cqe.cid):
            self._command_over(cqe.cid)
        elif self._inherited_responses:
            self._inherited_responses -= 1
        else:
            raise LocalProtocolError(f"a response to command {cqe.cid}, which is not in flight")
        flags, pdo, plen, _ = self._header_frame(RESP_HEADER.size, 0)
        self._send_header(RESP_HEADER.pack(_CAPSULE_RESP, flags, RESP_HEADER.size, pdo, plen, cqe.build()))

    def forget(self, cid: int) -> None:
        """The command ends without a response (controller reset): its CID and its place are free again."""
        if not self.closed and self._in_flight.get(cid):
            self._command_over(cid)

    def _command_over(self, cid: int) -> None:
        left = self._in_flight[cid] - 1
        self._commands -= 1
        if left:
            self._in_flight[cid] = left
            return
        del self._in_flight[cid]
        self.cancel_data(cid)

    # -- R2T

    def _send_r2ts(self, transfer: _Transfer) -> None:
        window = self.params.maxr2t + 1
        while transfer.requested < transfer.length and transfer.open_r2ts < window:
            tag = self._take_tag()
            if tag is None:
                self._starved.append(transfer)
                return
            start = transfer.requested
            length = min(self._limits.r2t_max, transfer.length - start)
            self._r2ts[tag] = _OpenR2T(tag, transfer, start, start + length)
            transfer.requested += length
            transfer.open_r2ts += 1
            flags, pdo, plen, _ = self._header_frame(DATA_HEADER_BYTES, 0)
            self._send_header(
                DATA_HEADER.pack(_R2T, flags, DATA_HEADER_BYTES, pdo, plen, transfer.cid, tag, start, length)
            )

    def _take_tag(self) -> int | None:
        if not self._has_free_tag():
            return None
        while self._next_tag in self._r2ts:
            self._advance_tag()
        tag = self._next_tag
        self._advance_tag()
        return tag

    def _has_free_tag(self) -> bool:
        return len(self._r2ts) <= _TAG_LAST - _TAG_FIRST

    def _advance_tag(self) -> None:
        if self._next_tag == _TAG_LAST:
            self._next_tag = _TAG_FIRST
            self._tags_went_round = True
        else:
            self._next_tag += 1

    def _tag_was_given_out(self, tag: int) -> bool:
        return _TAG_FIRST <= tag < self._next_tag or (self._tags_went_round and _TAG_FIRST <= tag <= _TAG_LAST)

    # -- hooks of PduEndpoint

    def _check_state(self, pdu_type: int) -> None:
        if self._state is _State.AWAIT_IC and pdu_type != _IC_REQ:
            raise sequence_error(f"PDU type {pdu_type:#04x} before ICReq")
        if self._state is _State.READY and pdu_type == _IC_REQ:
            raise sequence_error("a second ICReq")

    def _on_header(self, pdu_type: int, flags: int, data_len: int, events: list[TargetEvent]) -> memoryview | None:
        if pdu_type == _CAPSULE_CMD:
            return self._on_capsule_header(data_len)
        if pdu_type == _H2C_DATA:
            return self._on_h2c_data_header(flags, data_len)
        return None

    def _on_complete(self, pdu_type: int, ddgst_error: bool, events: list[TargetEvent]) -> None:
        if pdu_type == _CAPSULE_CMD:
            self._on_capsule(ddgst_error, events)
        elif pdu_type == _H2C_DATA:
            self._on_h2c_data(ddgst_error, events)
        elif pdu_type == _IC_REQ:
            self._on_ic_req(events)
        else:
            raise InvariantError(f"PDU type {pdu_type} passed the checks")

    def _report(self, event: ConnectionFailed | PeerTerminated, events: list[TargetEvent]) -> None:
        events.append(event)

    # -- IC

    def _on_ic_req(self, events: list[TargetEvent]) -> None:
        req = IcReq.parse(self._header)
        if req.pfv != 0:
            raise PduError(Fes.UNSUPPORTED_PARAMETER, FEI_PFV, f"PFV {req.pfv}")
        if req.hpda > HPDA_MAX_DWORDS:
            raise header_field_error(FEI_PDA, f"HPDA {req.hpda}")
        limits = self._limits
        params = TcpParams(
            hdgst=limits.allow_hdgst and bool(req.dgst & DigestFlag.HDGST),
            ddgst=limits.allow_ddgst and bool(req.dgst & DigestFlag.DDGST),
            hpda=req.hpda,
            cpda=limits.cpda,
            maxr2t=req.maxr2t,
            maxh2cdata=limits.maxh2cdata,
            icd_max=limits.icd_max,
        )
        dgst = (DigestFlag.HDGST if params.hdgst else 0) | (DigestFlag.DDGST if params.ddgst else 0)
        self._out.append(IcResp(cpda=params.cpda, dgst=int(dgst), maxh2cdata=params.maxh2cdata).build())
        self._start(params)
        events.append(IcReceived(params.hdgst, params.ddgst, params.hpda, params.maxr2t))

    def _start(self, params: TcpParams) -> None:
        self._params = params
        self._icd_max = params.icd_max
        self._hdgst_on, self._ddgst_on = params.hdgst, params.ddgst
        self._rx_align, self._tx_align = alignment_bytes(params.cpda), alignment_bytes(params.hpda)
        self._state = _State.READY

    # -- CapsuleCmd

    def _on_capsule_header(self, data_len: int) -> memoryview | None:
        is_fabrics = self._header[CH_BYTES] == FABRICS_OPCODE
        icd_max = max(ADMIN_ICD_BYTES, self._icd_max) if is_fabrics else self._icd_max
        if data_len > icd_max:
            raise header_field_error(FEI_PLEN, f"{data_len} bytes of in-capsule data, at most {icd_max}")
        if self._commands >= self._commands_max:
            raise sequence_error(f"more than {self._commands_max} commands in flight")
        if not data_len:
            self._icd = None
            return None
        self._icd = bytearray(data_len)
        return memoryview(self._icd)

    def _on_capsule(self, ddgst_error: bool, events: list[TargetEvent]) -> None:
        raw = bytes(self._header[CH_BYTES:CMD_BYTES])
        sqe = Sqe.parse(raw)
        icd = None if self._icd is None else bytes(self._icd)
        self._icd = None
        before = self._in_flight.get(sqe.cid, 0)
        self._in_flight[sqe.cid] = before + 1
        self._commands += 1
        events.append(CommandReceived(sqe, raw, icd, ddgst_error, before > 0))

    # -- H2CData

    def _on_h2c_data_header(self, flags: int, data_len: int) -> memoryview | None:
        cccid, ttag, datao, datal = DATA_PSH.unpack_from(self._header)
        r2t = self._r2ts.get(ttag)
        if r2t is None:
            if self._tag_was_given_out(ttag):
                raise sequence_error(f"H2CData for TTAG {ttag} after its last")
            raise header_field_error(FEI_TTAG, f"H2CData with unknown TTAG {ttag}")
        transfer = r2t.transfer
        if cccid != transfer.cid:
            raise sequence_error(f"H2CData for command {cccid}, TTAG {ttag} belongs to command {transfer.cid}")
        maximum = self.params.maxh2cdata
        if datal == 0:
            raise header_field_error(FEI_DATAL, "H2CData without data")
        if datal > maximum:
            raise PduError(Fes.LIMIT_EXCEEDED, 0, f"H2CData of {datal} bytes, MAXH2CDATA is {maximum}")
        if datal != data_len:
            fei = FEI_PLEN if data_len > maximum else FEI_DATAL
            raise header_field_error(fei, f"H2CData with DATAL {datal} and {data_len} bytes in the PDU")
        if datao < r2t.start or datao + datal > r2t.end:  # integers do not wrap here
            raise PduError(
                Fes.DATA_TRANSFER_OUT_OF_RANGE, 0, f"{datal} bytes at {datao}, the R2T has {r2t.start} to {r2t.end}"
            )
        if datao != transfer.received:
            raise sequence_error(f"H2CData at {datao}, expected at {transfer.received}")
        if bool(flags & _LAST) != (datao + datal == r2t.end):
            raise sequence_error("LAST_PDU not on the R2T's last H2CData, or on another")
        self._r2t = r2t
        return None if transfer.cancelled else transfer.buffer[datao : datao + datal]

    def _on_h2c_data(self, ddgst_error: bool, events: list[TargetEvent]) -> None:
        r2t = self._r2t
        if r2t is None:
            raise InvariantError("H2CData without its R2T")
        self._r2t = None
        transfer = r2t.transfer
        transfer.received += DATA_PSH.unpack_from(self._header)[3]
        transfer.ddgst_error |= ddgst_error
        if transfer.received < r2t.end:
            return
        del self._r2ts[r2t.tag]
        transfer.open_r2ts -= 1
        if not transfer.cancelled:
            if transfer.received == transfer.length:
                del self._transfers[transfer.cid]
                events.append(DataReceived(transfer.cid, transfer.buffer, transfer.ddgst_error))
            else:
                self._send_r2ts(transfer)
        self._feed_starved()

    def _feed_starved(self) -> None:
        while self._starved and self._has_free_tag():
            transfer = self._starved.popleft()
            if not transfer.cancelled:
                self._send_r2ts(transfer)
