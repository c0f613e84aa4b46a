"""One NVMe/RDMA connection in the control plane: the twin of ``session``, with the data plane between us and the host.

The capsules come up the capsule channel, for the verbs objects are the data plane's; what a command means, and what it
is answered, is the same ``target`` code as for NVMe/TCP. An admin queue lives here to its end, an I/O queue up to its
Connect. Everything happens in callbacks on the event loop; a command's data is fetched, never waited for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from nvmet_p2p import limits
from nvmet_p2p.clock import Clock
from nvmet_p2p.dataplane.port import RdmaConnection, RdmaHandoff, RdmaLink
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.protocol import sgl
from nvmet_p2p.target.config import ListenAddress
from nvmet_p2p.target.effects import ControllerKey
from nvmet_p2p.target.queue import Announced, Completed, Direction, Queue, Request
from nvmet_p2p.target.target import Target
from nvmet_p2p.wire.spec import AdminOpcode, Status
from nvmet_p2p.wire.sqe import Sqe

log = structlog.get_logger()

_DIRECTIONS: Final = {
    Direction.NONE: sgl.Direction.NONE,
    Direction.HOST_TO_CONTROLLER: sgl.Direction.H2C,
    Direction.CONTROLLER_TO_HOST: sgl.Direction.C2H,
}
_TELLS_OF_CHANGE: Final = frozenset({AdminOpcode.SET_FEATURES, AdminOpcode.ASYNC_EVENT_REQUEST})


class RdmaHost(Protocol):
    """What a session needs of the daemon."""

    target: Target
    clock: Clock
    connect_timeout_s: float

    def queue_icd_max(self, address: ListenAddress) -> int:
        """In-capsule data size of a queue on this listener, bytes."""
        ...

    def session_connected(self, session: RdmaSession) -> None:
        """The session now carries the admin queue of ``session.queue.controller``."""
        ...

    def rdma_handoff(self, session: RdmaSession, handoff: RdmaHandoff) -> None:
        """The connection becomes an I/O queue of the data plane."""
        ...

    def session_ended(self, session: RdmaSession) -> None: ...

    def when_in_force(self, key: ControllerKey, call: Callable[[], None]) -> None:
        """Calls ``call`` once the data plane uses the controller's newest view."""
        ...


class RdmaSession:
    """A connection from its establishment to its end or to its hand-over; ``done`` resolves then."""

    def __init__(self, link: RdmaLink, connection: RdmaConnection, address: ListenAddress, host: RdmaHost) -> None:
        self.peer = connection.peer
        self.address = address
        self.key: ControllerKey | None = None  # of the controller whose admin queue this is
        self.connected = False
        self._link = link
        self._host = host
        self.queue: Queue = host.target.open_queue(
            address, connection.peer, host.clock.monotonic(), reached=connection.traddr
        )
        self.queue.announced = Announced(connection.qid, connection.hsqsize)
        self.queue.on_completion = self._completed
        self.queue.on_drop = self._dropped
        self._waiting: dict[int, Request] = {}  # cid -> command whose data is on its way
        self._overtaken: dict[int, int] = {}  # cid -> fetches of commands that were dropped meanwhile
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = loop.create_future()
        self._cutoff = loop.call_later(host.connect_timeout_s, self._cut_off)

    @property
    def name(self) -> str:
        return f"{self.peer[0]}:{self.peer[1]}"

    def stop(self, reason: str) -> None:
        """Ends the session, and its connection with it."""
        if not self.done.done():
            self._link.close()
            self._finish(reason)

    def _cut_off(self) -> None:
        if not self.connected:
            self.stop(f"no Connect within {self._host.connect_timeout_s:g} s")

    # -- what the data plane says ------------------------------------------------------------------------------------

    def capsule(self, sqe: bytes, icd: bytes) -> None:
        """A command has come, with the data that was in its capsule."""
        if self.done.done():
            return
        now = self._host.clock.monotonic()
        command = Sqe.parse(sqe)
        request = self.queue.prepare(command, now)
        if request.error is not None:
            self.queue.fail(request, request.error, now)
            return
        transfer = request.transfer
        try:
            plan = sgl.plan(
                command,
                _DIRECTIONS[transfer.direction],
                transfer.length,
                len(icd),
                self._host.queue_icd_max(self.address),
                keyed=True,
            )
            if transfer.direction is Direction.HOST_TO_CONTROLLER and plan.length > limits.RDMA_FETCH_BYTES_MAX:
                raise NvmeStatusError(Status.INVALID_FIELD, f"{plan.length} bytes of data for an admin command")
        except NvmeStatusError as error:
            self.queue.fail(request, error, now)
            return
        if transfer.direction is not Direction.HOST_TO_CONTROLLER:
            self.queue.execute(request, b"", now)
        elif plan.kind is sgl.PlanKind.TRANSPORT:
            self._waiting[command.cid] = request
            self._link.fetch(command.cid, plan.length)
        else:
            self.queue.execute(request, icd[plan.offset : plan.offset + plan.length], now)

    def data(self, cid: int, rc: int, data: bytes) -> None:
        """The data that a command waited for; of one that was dropped it is dropped too."""
        if self.done.done():
            return
        if self._overtaken.get(cid):
            self._overtaken[cid] -= 1
            return
        request = self._waiting.pop(cid, None)
        if request is None:
            self.stop("the data plane gives data that nobody asked for")
            return
        now = self._host.clock.monotonic()
        if rc < 0:
            reason = f"the data cannot be read: {os.strerror(-rc)}"
            self.queue.fail(request, NvmeStatusError(Status.DATA_TRANSFER_ERROR, reason, dnr=False), now)
        else:
            self.queue.execute(request, data, now)

    def closed(self, reason: str) -> None:
        """The connection is gone."""
        self._finish(reason)

    # -- what goes back ----------------------------------------------------------------------------------------------

    def _dropped(self, cid: int) -> None:
        """A command ends without a completion: a controller reset has overtaken it."""
        if self._waiting.pop(cid, None) is not None:
            self._overtaken[cid] = self._overtaken.get(cid, 0) + 1
        if not self.done.done():
            self._link.drop(cid)

    def _completed(self, completed: Completed) -> None:
        """A command is complete. What tells of a change waits until it is one, as in ``session``."""
        if self.key is not None and completed.request.sqe.opc in _TELLS_OF_CHANGE:
            self._host.when_in_force(self.key, lambda: self._send_completion(completed))
        else:
            self._send_completion(completed)

    def _send_completion(self, completed: Completed) -> None:
        if self.done.done():
            return
        cqe = completed.cqe.build()
        if completed.handoff is not None:
            accepted = completed.handoff
            handoff = RdmaHandoff(
                key=accepted.controller_key,
                qid=accepted.qid,
                sqsize=accepted.sqsize,
                sq_flow_control=accepted.sq_flow_control,
                sqhd=accepted.sqhd,
                link=self._link,
                cqe=cqe,
                icd_max=self._host.queue_icd_max(self.address),
                peer=self.name,
            )
            self.connected = True
            self._host.rdma_handoff(self, handoff)
            self._leave()
            return
        self._link.reply(cqe, completed.data)
        if not self.connected and self.queue.controller is not None:
            self.connected = True
            self._host.session_connected(self)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _finish(self, reason: str) -> None:
        if self.done.done():
            return
        self._leave()
        self.queue.close(self._host.clock.monotonic())
        if self.connected:
            log.info("peer.ended", peer_noise=True, peer=self.name, reason=reason)

    def _leave(self) -> None:
        self._cutoff.cancel()
        self.done.set_result(None)
        self._host.session_ended(self)
