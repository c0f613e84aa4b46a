"""The host's end of an NVMe/TCP connection (one queue), sans-IO: the initiator of tests, and of nothing else.

Theory of operation
-------------------
Source: NVM Express TCP Transport Specification 1.0. It sends what a host may send and checks what it receives as
strictly as the specification lets a host do, with what Linux's host added in 2026 (an R2T for a read, C2HData for a
write, a read that came up short).

    ============ ============ ============================================================ ===========
    state        PDU          answer                                                       new state
    ============ ============ ============================================================ ===========
    START        (connect)    ICReq                                                        AWAIT_ICRESP
    AWAIT_ICRESP ICResp       ``IcCompleted``                                              READY
    AWAIT_ICRESP C2HTermReq   ``PeerTerminated``                                           closed
    AWAIT_ICRESP any other    H2CTermReq FES 2                                             closed
    READY        R2T          H2CData, at most MAXH2CDATA each, LAST_PDU on the last       READY
    READY        C2HData      collected; with SUCCESS on the last: ``CommandCompleted``    READY
    READY        CapsuleResp  ``CommandCompleted``                                         READY
    READY        C2HTermReq   ``PeerTerminated``, nothing is sent (3.5)                    closed
    READY        ICResp       H2CTermReq FES 2                                             closed
    READY        any other    H2CTermReq FES 1 FEI 0                                       closed
    ============ ============ ============================================================ ===========

R2Ts are served at once, or, with ``HostOptions.hold_r2t``, when ``serve_r2ts`` is called: then MAXR2T means something.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from nvmet_p2p.errors import InvariantError
from nvmet_p2p.limits import HPDA_MAX_DWORDS
from nvmet_p2p.protocol.digest import Buffer
from nvmet_p2p.protocol.events import CommandCompleted, ConnectionFailed, HostEvent, IcCompleted, PeerTerminated
from nvmet_p2p.protocol.tcp_common import (
    CH_BYTES,
    CMD_BYTES,
    COMMON,
    DATA_HEADER_BYTES,
    DATA_PSH,
    FEI_CCCID,
    FEI_CQE_CID,
    FEI_DATAL,
    FEI_DGST,
    FEI_FLAGS,
    FEI_MAXH2CDATA,
    FEI_PDA,
    FEI_PFV,
    IC_BYTES,
    MAXH2CDATA_MIN_BYTES,
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
from nvmet_p2p.wire.spec import DigestFlag, Fes, PduFlag, PduType
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.tcp_pdu import IcReq, IcResp

_IC_RESP: Final = int(PduType.IC_RESP)
_CAPSULE_RESP: Final = int(PduType.CAPSULE_RESP)
_C2H_DATA: Final = int(PduType.C2H_DATA)
_R2T: Final = int(PduType.R2T)
_C2H_TERM: Final = int(PduType.C2H_TERM_REQ)
_HDGST: Final = int(PduFlag.HDGST)
_DDGST: Final = int(PduFlag.DDGST)
_LAST: Final = int(PduFlag.LAST_PDU)
_SUCCESS: Final = int(PduFlag.SUCCESS)


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What the ICReq asks for. ``hpda`` (dwords) and ``maxr2t`` are 0's based; ``hold_r2t``: see the module."""

    hdgst: bool = False
    ddgst: bool = False
    hpda: int = 0
    maxr2t: int = 0
    hold_r2t: bool = False


class _State(enum.Enum):
    START = enum.auto()
    AWAIT_ICRESP = enum.auto()
    READY = enum.auto()


@dataclass(slots=True)
class _Command:
    """One command between ``send_command`` and its completion."""

    cid: int
    outgoing: memoryview | None
    incoming: memoryview
    promised: int = 0  # bytes of ``outgoing`` that R2Ts have asked for
    received: int = 0  # bytes of ``incoming``
    last_seen: bool = False
    ddgst_error: bool = False


@dataclass(frozen=True, slots=True)
class _PendingR2T:
    command: _Command
    ttag: int
    start: int
    end: int


class TcpHost(PduEndpoint[HostEvent]):
    """One connection, seen from the host. See the module for its states."""

    RULES: ClassVar[Mapping[int, PduRule]] = {
        _IC_RESP: PduRule(IC_BYTES, 0, DataRule.NONE, digests=False),
        _C2H_TERM: PduRule(TERM_BYTES, 0, DataRule.TERM, digests=False),
        _CAPSULE_RESP: PduRule(RESP_HEADER.size, _HDGST, DataRule.NONE),
        _C2H_DATA: PduRule(DATA_HEADER_BYTES, _HDGST | _DDGST | _LAST | _SUCCESS, DataRule.OPTIONAL),
        _R2T: PduRule(DATA_HEADER_BYTES, _HDGST, DataRule.NONE),
    }
    TERM_SENT = PduType.H2C_TERM_REQ

    def __init__(self, options: HostOptions) -> None:
        super().__init__()
        self._options = options
        self._state = _State.START
        self._params: TcpParams | None = None
        self._commands: dict[int, _Command] = {}
        self._held: deque[_PendingR2T] = deque()
        self._reading: _Command | None = None  # of the C2HData in progress

    @property
    def params(self) -> TcpParams:
        """What was negotiated; ``icd_max`` is not the transport's and 0. LocalProtocolError before the ICResp."""
        if self._params is None:
            raise LocalProtocolError("the IC exchange has not taken place")
        return self._params

    @property
    def in_flight(self) -> frozenset[int]:
        """The CIDs of all commands that are not completed."""
        return frozenset(self._commands)

    @property
    def held_r2ts(self) -> int:
        """How many R2Ts wait for ``serve_r2ts``."""
        return len(self._held)

    # -- what the owner asks for

    def connect(self) -> None:
        """Queue the ICReq. Raises LocalProtocolError the second time."""
        if self._state is not _State.START:
            raise LocalProtocolError("ICReq was sent already")
        options = self._options
        dgst = (DigestFlag.HDGST if options.hdgst else 0) | (DigestFlag.DDGST if options.ddgst else 0)
        self._out.append(IcReq(hpda=options.hpda, dgst=int(dgst), maxr2t=options.maxr2t).build())
        self._state = _State.AWAIT_ICRESP

    def send_command(
        self, sqe: Sqe | bytes, *, icd: Buffer | None = None, data: Buffer | None = None, read_len: int = 0
    ) -> None:
        """Queue a command capsule.

        ``icd`` goes into the capsule, ``data`` is for R2Ts, ``read_len`` bytes are expected as C2HData. The SQE, with
        its SGL, is the caller's. Raises LocalProtocolError before the IC exchange and for a CID that is in use.
        """
        if self.closed:
            return
        if self._state is not _State.READY:
            raise LocalProtocolError("a command before the IC exchange")
        raw = sqe if isinstance(sqe, bytes) else sqe.build()
        cid = Sqe.parse(raw).cid
        if cid in self._commands:
            raise LocalProtocolError(f"command {cid} is in flight")
        outgoing = memoryview(data).cast("B") if data is not None else None
        self._commands[cid] = _Command(cid, outgoing, memoryview(bytearray(read_len)))
        payload = b"" if icd is None else icd
        flags, pdo, plen, padding = self._header_frame(CMD_BYTES, len(payload))
        header = COMMON.pack(PduType.CAPSULE_CMD, flags, CMD_BYTES, pdo, plen) + raw
        if payload:
            self._send_with_data(header, padding, payload)
        else:
            self._send_header(header)

    def serve_r2ts(self, count: int | None = None) -> int:
        """Answer up to ``count`` held R2Ts (all of them when None), oldest first; how many were answered."""
        served = 0
        while self._held and (count is None or served < count):
            r2t = self._held.popleft()
            if r2t.command.outgoing is None:
                raise InvariantError("an R2T without data was accepted")
            self._send_data_pdus(
                PduType.H2C_DATA,
                r2t.command.cid,
                r2t.ttag,
                r2t.start,
                r2t.command.outgoing[r2t.start : r2t.end],
                self.params.maxh2cdata,
                _LAST,
            )
            served += 1
        return served

    # -- hooks of PduEndpoint

    def _check_state(self, pdu_type: int) -> None:
        if self._state is not _State.READY and pdu_type not in (_IC_RESP, _C2H_TERM):
            raise sequence_error(f"PDU type {pdu_type:#04x} before ICResp")
        if self._state is not _State.AWAIT_ICRESP and pdu_type == _IC_RESP:
            raise sequence_error("an ICResp that was not asked for")

    def _on_header(self, pdu_type: int, flags: int, data_len: int, events: list[HostEvent]) -> memoryview | None:
        return self._on_c2h_data_header(flags, data_len) if pdu_type == _C2H_DATA else None

    def _on_complete(self, pdu_type: int, ddgst_error: bool, events: list[HostEvent]) -> None:
        if pdu_type == _C2H_DATA:
            self._on_c2h_data(ddgst_error, events)
        elif pdu_type == _CAPSULE_RESP:
            self._on_response(events)
        elif pdu_type == _R2T:
            self._on_r2t()
        elif pdu_type == _IC_RESP:
            self._on_ic_resp(events)
        else:
            raise InvariantError(f"PDU type {pdu_type} passed the checks")

    def _report(self, event: ConnectionFailed | PeerTerminated, events: list[HostEvent]) -> None:
        events.append(event)

    # -- IC

    def _on_ic_resp(self, events: list[HostEvent]) -> None:
        resp = IcResp.parse(self._header)
        hdgst, ddgst = bool(resp.dgst & DigestFlag.HDGST), bool(resp.dgst & DigestFlag.DDGST)
        if resp.pfv != 0:
            raise PduError(Fes.UNSUPPORTED_PARAMETER, FEI_PFV, f"PFV {resp.pfv}")
        if resp.cpda > HPDA_MAX_DWORDS:
            raise header_field_error(FEI_PDA, f"CPDA {resp.cpda}")
        if (hdgst and not self._options.hdgst) or (ddgst and not self._options.ddgst):
            raise header_field_error(FEI_DGST, "a digest that was not asked for")  # section 3.3.1.1
        if resp.maxh2cdata < MAXH2CDATA_MIN_BYTES or resp.maxh2cdata % 4:
            raise header_field_error(FEI_MAXH2CDATA, f"MAXH2CDATA {resp.maxh2cdata}")
        options = self._options
        self._params = TcpParams(hdgst, ddgst, options.hpda, resp.cpda, options.maxr2t, resp.maxh2cdata, 0)
        self._hdgst_on, self._ddgst_on = hdgst, ddgst
        self._rx_align, self._tx_align = alignment_bytes(options.hpda), alignment_bytes(resp.cpda)
        self._state = _State.READY
        events.append(IcCompleted(hdgst, ddgst, resp.cpda, resp.maxh2cdata))

    # -- R2T

    def _on_r2t(self) -> None:
        cccid, ttag, r2to, r2tl = DATA_PSH.unpack_from(self._header)
        command = self._commands.get(cccid)
        if command is None:
            raise header_field_error(FEI_CCCID, f"R2T for unknown command {cccid}")
        if command.outgoing is None:
            raise sequence_error(f"R2T for command {cccid}, which has no data to send")
        if r2tl == 0:
            raise header_field_error(FEI_DATAL, "R2T for no data")
        if r2to != command.promised:
            raise sequence_error(f"R2T at {r2to}, expected at {command.promised}")
        if r2to + r2tl > len(command.outgoing):
            raise PduError(Fes.DATA_TRANSFER_OUT_OF_RANGE, 0, f"R2T to {r2to + r2tl} of {len(command.outgoing)}")
        if sum(r2t.command is command for r2t in self._held) > self._options.maxr2t:
            raise PduError(Fes.LIMIT_EXCEEDED, 0, f"more than {self._options.maxr2t + 1} R2Ts for command {cccid}")
        command.promised += r2tl
        self._held.append(_PendingR2T(command, ttag, r2to, r2to + r2tl))
        if not self._options.hold_r2t:
            self.serve_r2ts()

    # -- C2HData

    def _on_c2h_data_header(self, flags: int, data_len: int) -> memoryview:
        cccid, _, datao, datal = DATA_PSH.unpack_from(self._header)
        if flags & _SUCCESS and not flags & _LAST:
            raise header_field_error(FEI_FLAGS, "SUCCESS without LAST_PDU")
        command = self._commands.get(cccid)
        if command is None:
            raise header_field_error(FEI_CCCID, f"C2HData for unknown command {cccid}")
        if not command.incoming or command.last_seen:
            raise sequence_error(f"unexpected C2HData for command {cccid}")
        if datal == 0 or datal != data_len:
            raise header_field_error(FEI_DATAL, f"C2HData with DATAL {datal} and {data_len} bytes in the PDU")
        if datao + datal > len(command.incoming):
            raise PduError(Fes.DATA_TRANSFER_OUT_OF_RANGE, 0, f"C2HData to {datao + datal} of {len(command.incoming)}")
        if datao != command.received:
            raise sequence_error(f"C2HData at {datao}, expected at {command.received}")
        self._reading = command
        return command.incoming[datao : datao + datal]

    def _on_c2h_data(self, ddgst_error: bool, events: list[HostEvent]) -> None:
        command = self._reading
        if command is None:
            raise InvariantError("C2HData without its command")
        self._reading = None
        flags = self._header[1]
        command.received += DATA_PSH.unpack_from(self._header)[3]
        command.ddgst_error |= ddgst_error
        command.last_seen = bool(flags & _LAST)
        if flags & _SUCCESS:
            self._completed(command, Cqe(cid=command.cid), True, events)

    # -- CapsuleResp

    def _on_response(self, events: list[HostEvent]) -> None:
        cqe = Cqe.parse(self._header[CH_BYTES:])
        command = self._commands.get(cqe.cid)
        if command is None:
            raise header_field_error(FEI_CQE_CID, f"a response to unknown command {cqe.cid}")
        if command.received and not command.last_seen:
            raise sequence_error(f"a response to command {cqe.cid} before the last C2HData")
        self._completed(command, cqe, False, events)

    def _completed(self, command: _Command, cqe: Cqe, by_success_flag: bool, events: list[HostEvent]) -> None:
        del self._commands[command.cid]
        self._held = deque(r2t for r2t in self._held if r2t.command is not command)
        short = cqe.ok and command.received < len(command.incoming)
        data = command.incoming[: command.received]
        events.append(CommandCompleted(command.cid, cqe, data, command.ddgst_error, short, by_success_flag))
