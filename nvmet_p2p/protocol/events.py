"""What an NVMe/TCP connection tells its owner. Nouns in the past tense; the owner acts, the connection only reports.

The target side gives ``IcReceived``, ``CommandReceived``, ``DataReceived``; the host side ``IcCompleted``,
``CommandCompleted``; both give ``PeerTerminated`` and ``ConnectionFailed``, after which there are no more events.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.sqe import Sqe


@dataclass(frozen=True, slots=True)
class IcReceived:
    """The host's ICReq was accepted; the ICResp is in ``data_to_send()``.

    ``hdgst`` and ``ddgst`` are what was agreed, not what was asked. ``hpda`` in dwords and ``maxr2t`` are 0's based,
    as on the wire.
    """

    hdgst: bool
    ddgst: bool
    hpda: int
    maxr2t: int


@dataclass(frozen=True, slots=True)
class CommandReceived:
    """A command capsule is complete.

    ``raw`` is the SQE, 64 bytes. ``icd`` is the in-capsule data, ``None`` where the capsule carried none. With
    ``ddgst_error`` that data is damaged: fail the command with Transient Transport Error, the queue lives on (section
    3.5). ``duplicate``: a command with this CID was already in flight; fail this one with Command ID Conflict and ask
    for no data.
    """

    sqe: Sqe
    raw: bytes
    icd: bytes | memoryview | None
    ddgst_error: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class DataReceived:
    """All that ``request_data()`` asked for has arrived; ``ddgst_error`` as in ``CommandReceived``."""

    cid: int
    data: bytes | memoryview
    ddgst_error: bool = False


@dataclass(frozen=True, slots=True)
class IcCompleted:
    """Host side: the ICResp was accepted. ``cpda`` in dwords, 0's based; ``maxh2cdata`` in bytes."""

    hdgst: bool
    ddgst: bool
    cpda: int
    maxh2cdata: int


@dataclass(frozen=True, slots=True)
class CommandCompleted:
    """Host side: a command is over, by a CapsuleResp or (``by_success_flag``) by C2HData with SUCCESS set.

    ``cqe`` of the latter is made up: its SQHD says nothing. ``data`` is what was read, as long as it was sent.
    ``short_read``: success was reported for fewer bytes than the command's buffer holds; hosts fail such a read.
    """

    cid: int
    cqe: Cqe
    data: bytes | memoryview
    ddgst_error: bool = False
    short_read: bool = False
    by_success_flag: bool = False


@dataclass(frozen=True, slots=True)
class PeerTerminated:
    """The peer sent a TermReq: close at once and send nothing back (section 3.5).

    ``fes`` and ``fei`` are the peer's; both 0 where the TermReq itself was malformed, which is then to be ignored but
    for its type.
    """

    fes: int
    fei: int


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The peer broke the protocol. Our TermReq is in ``data_to_send()``: send it, half close, close soon after."""

    fes: int
    fei: int
    reason: str


TargetEvent = IcReceived | CommandReceived | DataReceived | PeerTerminated | ConnectionFailed
HostEvent = IcCompleted | CommandCompleted | PeerTerminated | ConnectionFailed
