"""A target and a host joined without a socket, and PDUs made by hand: what the protocol tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from struct import pack

from nvmet_p2p.protocol.digest import Buffer, crc32c
from nvmet_p2p.protocol.events import ConnectionFailed, HostEvent, IcCompleted, IcReceived, TargetEvent
from nvmet_p2p.protocol.tcp_host import HostOptions, TcpHost
from nvmet_p2p.protocol.tcp_target import TcpLimits, TcpTarget
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import PduType
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.tcp_pdu import CommonHeader, IcReq, TermReq

HDGST, DDGST, LAST, SUCCESS = 1, 2, 4, 8
ICREQ = IcReq().build()


def sqe(cid: int, *, opc: int = 1, sgl: SglDescriptor | None = None, psdt: int = 1) -> Sqe:
    """A command; without an SGL it has no data."""
    return Sqe(opc=opc, psdt=psdt, cid=cid, nsid=1, dptr=(sgl or SglDescriptor.transport(0)).build())


def common(pdu_type: int, flags: int = 0, hlen: int = 0, pdo: int = 0, plen: int = 0) -> bytes:
    """A common header, right or wrong."""
    return CommonHeader(pdu_type, flags, hlen, pdo, plen).build()


def capsule(
    command: Sqe, data: bytes = b"", *, flags: int = 0, hlen: int = 72, pdo: int | None = None, plen: int | None = None
) -> bytes:
    """A CapsuleCmd without digests; any field of the common header may be made wrong."""
    pdo = (72 if data else 0) if pdo is None else pdo
    plen = 72 + len(data) if plen is None else plen
    return common(PduType.CAPSULE_CMD, flags, hlen, pdo, plen) + command.build() + data


def h2c(
    cccid: int,
    ttag: int,
    datao: int,
    data: bytes,
    *,
    flags: int = LAST,
    pdo: int = 24,
    datal: int | None = None,
    plen: int | None = None,
) -> bytes:
    """An H2CData without digests; any field may be made wrong."""
    datal = len(data) if datal is None else datal
    plen = 24 + len(data) if plen is None else plen
    return common(PduType.H2C_DATA, flags, 24, pdo, plen) + pack("<HHII4x", cccid, ttag, datao, datal) + data


def with_hdgst(header: bytes) -> bytes:
    """A header and its digest; PLEN must count it already."""
    return header + pack("<I", crc32c(header))


def joined(buffers: Iterable[Buffer]) -> bytes:
    """What would go into the socket."""
    return b"".join(buffers)


def split_pdus(stream: bytes) -> Iterator[bytes]:
    """The PDUs of a sound stream, by PLEN."""
    while stream:
        plen = CommonHeader.parse(stream).plen
        yield stream[:plen]
        stream = stream[plen:]


def ready_target(limits: TcpLimits | None = None, icreq: bytes = ICREQ) -> TcpTarget:
    """A target after its IC exchange, the ICResp taken."""
    target = TcpTarget(limits or TcpLimits())
    events = target.receive_data(icreq)
    assert [type(event) for event in events] == [IcReceived]
    target.data_to_send()
    return target


def failure(target: TcpTarget, stream: bytes) -> tuple[int, int, bytes]:
    """Feed ``stream``, which must end the connection: FES, FEI and data of the C2HTermReq."""
    events = target.receive_data(stream)
    event = events[-1]
    assert isinstance(event, ConnectionFailed), events
    term = TermReq.parse(list(split_pdus(joined(target.data_to_send())))[-1])
    assert term.pdu_type == PduType.C2H_TERM_REQ
    assert (term.fes, term.fei) == (event.fes, event.fei)
    assert event.reason
    assert target.closed
    assert target.bytes_wanted() == 0
    assert target.receive_data(capsule(sqe(1)) * 3) == []
    return event.fes, event.fei, term.data


Chunker = Callable[[bytes], Iterable[bytes]]


def whole(stream: bytes) -> list[bytes]:
    """All at once."""
    return [stream] if stream else []


def by_byte(stream: bytes) -> list[bytes]:
    """One byte at a time."""
    return [stream[at : at + 1] for at in range(len(stream))]


class Pair:
    """Both ends after the IC exchange; ``pump`` carries bytes until both are silent."""

    def __init__(self, options: HostOptions | None = None, limits: TcpLimits | None = None) -> None:
        self.host = TcpHost(options or HostOptions())
        self.target = TcpTarget(limits or TcpLimits())
        self.chunks: Chunker = whole
        self.to_target: list[bytes] = []  # every PDU that was carried
        self.to_host: list[bytes] = []
        self.host.connect()
        target_events, host_events = self.pump()
        assert [type(event) for event in target_events] == [IcReceived]
        assert [type(event) for event in host_events] == [IcCompleted]
        self.to_target.clear()
        self.to_host.clear()

    def pump(self) -> tuple[list[TargetEvent], list[HostEvent]]:
        """Carry bytes both ways until there are none; the events of each end."""
        target_events: list[TargetEvent] = []
        host_events: list[HostEvent] = []
        while True:
            up, down = joined(self.host.data_to_send()), joined(self.target.data_to_send())
            if not up and not down:
                return target_events, host_events
            self.to_target += split_pdus(up)
            self.to_host += split_pdus(down)
            for chunk in self.chunks(up):
                target_events += self.target.receive_data(chunk)
            for chunk in self.chunks(down):
                host_events += self.host.receive_data(chunk)
