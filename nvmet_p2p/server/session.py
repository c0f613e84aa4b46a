"""One accepted NVMe/TCP connection in the control plane.

The session joins three sans-IO parts to a socket: the NVMe/TCP machine (``protocol``), the Fabrics queue (``target``)
and the transfer plan of each command (``protocol.sgl``). An admin queue lives here to its end; an I/O queue leaves for
the data plane with its Connect response still to be sent. So that its socket can leave, exactly one PDU step is read at
a time, never ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from nvmet_p2p import limits
from nvmet_p2p.clock import Clock
from nvmet_p2p.dataplane.port import QueueHandoff
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.protocol import sgl
from nvmet_p2p.protocol.digest import Buffer
from nvmet_p2p.protocol.events import (
    CommandReceived,
    ConnectionFailed,
    DataReceived,
    IcReceived,
    PeerTerminated,
    TargetEvent,
)
from nvmet_p2p.protocol.tcp_target import TcpLimits, TcpTarget
from nvmet_p2p.target.config import ListenAddress
from nvmet_p2p.target.effects import ControllerKey
from nvmet_p2p.target.queue import Completed, Direction, Queue, Request
from nvmet_p2p.target.target import Target
from nvmet_p2p.wire.spec import AdminOpcode, Status

log = structlog.get_logger()

_DIRECTIONS: Final = {
    Direction.NONE: sgl.Direction.NONE,
    Direction.HOST_TO_CONTROLLER: sgl.Direction.H2C,
    Direction.CONTROLLER_TO_HOST: sgl.Direction.C2H,
}
_TELLS_OF_CHANGE: Final = frozenset({AdminOpcode.SET_FEATURES, AdminOpcode.ASYNC_EVENT_REQUEST})
IOV_MAX: Final = 1024
LINGER_READ_BYTES: Final = 4096


class SessionHost(Protocol):
    """What a session needs of the daemon."""

    target: Target
    clock: Clock
    connect_timeout_s: float

    def tcp_limits(self, address: ListenAddress) -> TcpLimits: ...

    def queue_icd_max(self, address: ListenAddress) -> int:
        """In-capsule data size of an I/O queue on this listener, bytes."""
        ...

    def queue_c2h_success(self, address: ListenAddress) -> bool:
        """Whether C2HData may carry SUCCESS on this listener."""
        ...

    def session_connected(self, session: Session) -> None:
        """The session now carries the admin queue of ``session.queue.controller``."""
        ...

    async def session_handoff(self, session: Session, handoff: QueueHandoff) -> None:
        """The socket now belongs to the data plane."""
        ...

    def session_ended(self, session: Session) -> None: ...

    def when_in_force(self, key: ControllerKey, call: Callable[[], None]) -> None:
        """Calls ``call`` once the data plane uses the controller's newest view."""
        ...


class Session:
    """A connection from accept to its end or to its hand-over. ``run`` is its one task."""

    def __init__(self, sock: socket.socket, address: ListenAddress, peer: tuple[str, str], host: SessionHost) -> None:
        self.peer = peer
        self.address = address
        self._sock = sock
        self._host = host
        self._conn = TcpTarget(host.tcp_limits(address))
        reached = str(sock.getsockname()[0]).partition("%")[0]  # a zone is of no use on another machine
        self.queue: Queue = host.target.open_queue(address, peer, host.clock.monotonic(), reached)
        self.queue.on_completion = self._completed
        self.queue.on_drop = self._dropped
        self.key: ControllerKey | None = None  # of the controller whose admin queue this is
        self.connected = False
        self._initialized = False
        self._task: asyncio.Task[None] | None = None
        self._waiting: dict[int, Request] = {}  # cid -> command whose data is on its way
        self._unsent: list[Buffer] = []
        self._draining: asyncio.Task[None] | None = None
        self._handoff: QueueHandoff | None = None
        self._given_away = False
        self._end_reason = ""
        self._fatal = False
        self._finished = False

    @property
    def name(self) -> str:
        return f"{self.peer[0]}:{self.peer[1]}"

    def start(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run(), name=f"session {self.name}")
        self._task.add_done_callback(lambda _task: self._finish())  # one that is stopped before it runs has no finally
        return self._task

    def stop(self, reason: str) -> None:
        """Ends the session soon; called from outside its task."""
        if not self._end_reason:
            self._end_reason = reason
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        cutoff = loop.call_later(self._host.connect_timeout_s, self._cut_off)
        try:
            await self._serve()
            if self._handoff is not None:
                cutoff.cancel()
                self._given_away = True
                await self._host.session_handoff(self, self._handoff)
            elif self._fatal:
                await self._linger()
        except asyncio.CancelledError:
            if not self._end_reason:
                raise
        except OSError as error:
            self._end_reason = error.strerror or str(error)
        finally:
            cutoff.cancel()
            self._finish()

    def _cut_off(self) -> None:
        if not self.connected:
            what = "no Connect" if self._initialized else "no ICReq"
            self.stop(f"{what} within {self._host.connect_timeout_s:g} s")

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._end_reason and self._handoff is None:
            data = await loop.sock_recv(self._sock, self._conn.bytes_wanted())
            if not data:
                self._end_reason = "closed by the host"
                return
            for event in self._conn.receive_data(data):
                self._handle(event)
            if self._handoff is None:
                self._flush()
            if self._draining is not None:
                await self._draining

    # -- what the peer sent ------------------------------------------------------------------------------------------

    def _handle(self, event: TargetEvent) -> None:
        match event:
            case CommandReceived():
                self._command(event)
            case DataReceived():
                self._data(event)
            case IcReceived():
                self._initialized = True
            case PeerTerminated():
                self._end_reason = f"the host terminated the connection (FES {event.fes}, FEI {event.fei})"
            case ConnectionFailed():
                self._fatal = True
                self._end_reason = event.reason
                log.warning(
                    "peer.protocol_error",
                    peer_noise=True,
                    peer=self.name,
                    fes=event.fes,
                    fei=event.fei,
                    reason=event.reason,
                )

    def _command(self, event: CommandReceived) -> None:
        now = self._host.clock.monotonic()
        queue = self.queue
        request = queue.prepare(event.sqe, now)
        if request.error is not None:
            queue.fail(request, request.error, now)
            return
        transfer = request.transfer
        icd_len = len(event.icd) if event.icd is not None else 0
        try:
            plan = sgl.plan(
                event.sqe,
                _DIRECTIONS[transfer.direction],
                transfer.length,
                icd_len,
                limits.ADMIN_ICD_BYTES,
            )
            if event.ddgst_error:
                raise NvmeStatusError(Status.TRANSIENT_TRANSPORT_ERROR, "data digest error", dnr=False)
        except NvmeStatusError as error:
            queue.fail(request, error, now)
            return
        if transfer.direction is not Direction.HOST_TO_CONTROLLER:
            queue.execute(request, b"", now)
        elif plan.kind is sgl.PlanKind.TRANSPORT:
            self._waiting[event.sqe.cid] = request
            self._conn.request_data(event.sqe.cid, plan.length)
        else:
            data = bytes(event.icd[plan.offset : plan.offset + plan.length]) if event.icd is not None else b""
            queue.execute(request, data, now)

    def _dropped(self, cid: int) -> None:
        """A command ends without a completion: a controller reset has overtaken it."""
        self._waiting.pop(cid, None)
        self._conn.forget(cid)

    def _data(self, event: DataReceived) -> None:
        now = self._host.clock.monotonic()
        request = self._waiting.pop(event.cid)
        if event.ddgst_error:
            error = NvmeStatusError(Status.TRANSIENT_TRANSPORT_ERROR, "data digest error", dnr=False)
            self.queue.fail(request, error, now)
        else:
            self.queue.execute(request, bytes(event.data), now)

    # -- what goes back ----------------------------------------------------------------------------------------------

    def _completed(self, completed: Completed) -> None:
        """A command is complete, now or long after it came (AER, Abort, reset).

        What tells the host that something is different now waits until it is so on the I/O queues as well. Nothing
        else does: Keep Alive never waits for a drive.
        """
        if self.key is not None and completed.request.sqe.opc in _TELLS_OF_CHANGE:
            self._host.when_in_force(self.key, lambda: self._send_completion(completed))
        else:
            self._send_completion(completed)

    def _send_completion(self, completed: Completed) -> None:
        if self._finished:
            return
        if completed.data:
            self._conn.send_data(completed.cqe.cid, completed.data)
        if completed.handoff is not None:
            accepted = completed.handoff
            self._conn.send_response(completed.cqe)
            self._conn.set_queue(accepted.sqsize, self._host.queue_icd_max(self.address))
            self._handoff = QueueHandoff(
                key=accepted.controller_key,
                qid=accepted.qid,
                sqsize=accepted.sqsize,
                sq_flow_control=accepted.sq_flow_control,
                sqhd=accepted.sqhd,
                sock=self._sock,
                params=self._conn.params,
                response=b"".join(self._conn.data_to_send()),
                c2h_success=self._host.queue_c2h_success(self.address),
                peer=self.name,
            )
            self.connected = True
            return
        self._conn.send_response(completed.cqe)
        if not self.connected and self.queue.controller is not None:
            self.connected = True
            self._conn.set_queue(self.queue.sqsize, limits.ADMIN_ICD_BYTES)
            self._host.session_connected(self)
        self._flush()

    def _flush(self) -> None:
        """Sends what there is; what the socket does not take now is sent by a task, and nothing is read meanwhile."""
        self._unsent += self._conn.data_to_send()
        if not self._unsent or self._draining is not None:
            return
        try:
            sent = self._sock.sendmsg(self._unsent[:IOV_MAX])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._unsent.clear()
            self._end_reason = self._end_reason or error.strerror or str(error)
            return
        self._drop_sent(sent)
        if self._unsent:
            self._draining = asyncio.create_task(self._drain())

    def _drop_sent(self, sent: int) -> None:
        done = 0
        while done < len(self._unsent) and sent >= len(self._unsent[done]):
            sent -= len(self._unsent[done])
            done += 1
        del self._unsent[:done]
        if sent:
            self._unsent[0] = memoryview(self._unsent[0])[sent:]

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._unsent:
                await loop.sock_sendall(self._sock, self._unsent.pop(0))
        except OSError as error:
            self._unsent.clear()
            self._end_reason = self._end_reason or error.strerror or str(error)
        finally:
            self._draining = None

    async def _linger(self) -> None:
        """After our C2HTermReq: the host may read it and close; what it still sends is thrown away (NVMe/TCP 3.3.4)."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(limits.TERM_CLOSE_TIMEOUT_S):
                if self._draining is not None:
                    await self._draining
                self._sock.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(self._sock, LINGER_READ_BYTES):
                    pass

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        if self._draining is not None:
            self._draining.cancel()
        if not self._given_away:
            self.queue.close(self._host.clock.monotonic())
            self._sock.close()
            if self.connected or self._fatal:
                log.info("peer.ended", peer_noise=True, peer=self.name, reason=self._end_reason)
        self._host.session_ended(self)
