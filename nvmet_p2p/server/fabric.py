"""The fabrics side of the daemon: listeners, sessions, the target's timers, and its effects on the data plane.

NVMe/TCP listeners are sockets of ours; NVMe/RDMA ones are the data plane's, which tells of each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from typing import Final

import structlog

from nvmet_p2p import limits
from nvmet_p2p.clock import Clock
from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.port import DataPlane, QueueHandoff, RdmaConnection, RdmaHandoff, RdmaLink
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.protocol.tcp_target import TcpLimits
from nvmet_p2p.server.effects import EffectRunner
from nvmet_p2p.server.listener import Listeners
from nvmet_p2p.server.rdma_session import RdmaSession
from nvmet_p2p.server.session import Session
from nvmet_p2p.target import access
from nvmet_p2p.target.config import ListenAddress, TargetConfig
from nvmet_p2p.target.effects import ControllerKey
from nvmet_p2p.target.target import Target

log = structlog.get_logger()

MAPPED_V4: Final = "::ffff:"
ALL_ADDRESSES: Final = {"IPv4": "0.0.0.0", "IPv6": "::"}


class Fabric:
    """Owns every connection of the control plane; implements ``SessionHost`` and ``RdmaHost``."""

    def __init__(self, settings: Settings, clock: Clock, dataplane: DataPlane, config: TargetConfig) -> None:
        self.clock = clock
        self.connect_timeout_s = settings.connect_timeout_s
        self._unconnected_max = settings.unconnected_peers_max
        self._dataplane = dataplane
        self.effects = EffectRunner(dataplane, self._end_admin)
        self.when_in_force = self.effects.when_in_force
        self.target = Target(
            config,
            self.effects.submit,
            now=clock.monotonic(),
            io_activity=dataplane.io_activity,
            io_counters=dataplane.iostat,
        )
        self.target.on_deadline = self.rearm_timers
        self.listeners = Listeners(self._accepted, settings.listen_backlog, settings.tcp_congestion)
        self._sessions: dict[Session | RdmaSession, asyncio.Future[None]] = {}
        self._unconnected: dict[Session | RdmaSession, None] = {}  # oldest first
        self._admin: dict[ControllerKey, Session | RdmaSession] = {}
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self.accepted_total = 0
        self.refused: Counter[str] = Counter()  # connections that we ended before or for lack of a Connect, by kind

    # -- connections -------------------------------------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        """Connections in the control plane: admin queues and those not yet connected."""
        return len(self._sessions)

    @property
    def unconnected(self) -> int:
        """Connections that have not completed Connect."""
        return len(self._unconnected)

    def _accepted(self, sock: socket.socket, address: ListenAddress) -> None:
        try:
            host, port = sock.getpeername()[:2]
        except OSError:
            sock.close()  # gone already
            return
        self._make_room()
        session = Session(sock, address, (str(host).removeprefix(MAPPED_V4), str(port)), self)
        self._unconnected[session] = None
        self._sessions[session] = session.start()

    def _make_room(self) -> None:
        """Another connection has come."""
        self.accepted_total += 1
        if len(self._unconnected) >= self._unconnected_max:
            oldest = next(iter(self._unconnected))
            self.refused["too_many"] += 1
            oldest.stop("too many connections without Connect; the oldest is dropped")
            self._unconnected.pop(oldest, None)

    def rdma_connected(self, link: RdmaLink, connection: RdmaConnection) -> RdmaSession | None:
        """An NVMe/RDMA connection has come, to an address that we listen on or (meanwhile) do not."""
        address = self._rdma_listener(connection)
        if address is None or self._stopping:
            return None
        self._make_room()
        session = RdmaSession(link, connection, address, self)
        self._unconnected[session] = None
        self._sessions[session] = session.done
        return session

    def _rdma_listener(self, connection: RdmaConnection) -> ListenAddress | None:
        """The listener at that address, else the one at all addresses of the family."""
        there = access.all_addresses(self.target.config)
        for traddr in (connection.traddr, ALL_ADDRESSES[connection.adrfam]):
            address = ListenAddress(trtype="RDMA", adrfam=connection.adrfam, traddr=traddr, trsvcid=connection.trsvcid)
            if address in there:
                return address
        return None

    def tcp_limits(self, address: ListenAddress) -> TcpLimits:
        return TcpLimits(icd_max=max(limits.ADMIN_ICD_BYTES, self.queue_icd_max(address)))

    def queue_icd_max(self, address: ListenAddress) -> int:
        return self.target.transport(address.trtype).in_capsule_data_size

    def queue_c2h_success(self, address: ListenAddress) -> bool:
        return self.target.transport(address.trtype).c2h_success

    def session_connected(self, session: Session | RdmaSession) -> None:
        self._unconnected.pop(session, None)
        controller = session.queue.controller
        if controller is not None:
            session.key = controller.key
            self._admin[controller.key] = session

    async def session_handoff(self, session: Session, handoff: QueueHandoff) -> None:
        self._unconnected.pop(session, None)
        # The session may be stopped meanwhile; the socket is no longer its own, and has an owner whatever happens.
        await asyncio.shield(self.effects.run_after(handoff.key, lambda: self._adopt(handoff)))

    def rdma_handoff(self, session: RdmaSession, handoff: RdmaHandoff) -> None:
        self._unconnected.pop(session, None)
        self.effects.run_after(handoff.key, lambda: self._adopt(handoff))

    async def _adopt(self, handoff: QueueHandoff | RdmaHandoff) -> None:
        try:
            await self._dataplane.queue_adopt(handoff)
        except OperatorError as error:
            log.warning("queue.refused", peer_noise=True, peer=handoff.peer, qid=handoff.qid, reason=error.message)
            handoff.discard()
            self.queue_closed(handoff.key, handoff.qid, error.message)

    def session_ended(self, session: Session | RdmaSession) -> None:
        self._sessions.pop(session, None)
        self._unconnected.pop(session, None)
        if session.key is not None and self._admin.get(session.key) is session:
            del self._admin[session.key]

    def _end_admin(self, key: ControllerKey, reason: str) -> None:
        session = self._admin.pop(key, None)
        if session is not None:
            session.stop(reason)

    def queue_closed(self, key: ControllerKey, qid: int, reason: str) -> None:
        """The data plane says that an I/O queue ended by itself."""
        log.info("queue.ended", peer_noise=True, controller=key, qid=qid, reason=reason)
        self.target.io_queue_closed(key, qid, self.clock.monotonic())

    # -- time --------------------------------------------------------------------------------------------------------

    def rearm_timers(self) -> None:
        """The target's next deadline may have come nearer."""
        due = self.target.next_timer()
        if self._timer is not None:
            if due is not None and self._timer_due <= due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_due = due
            delay = max(0.0, due - self.clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        try:
            self.target.handle_timer(self.clock.monotonic())
        finally:  # a mistake of ours about one controller must not take the timers of all others with it
            self.rearm_timers()

    # -- the end -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Ends every association; returns when no session is left and all effects are carried out."""
        self._stopping = True
        self.listeners.stop_all()
        if self._timer is not None:
            self._timer.cancel()
        ends = list(self._sessions.values())
        for session in list(self._sessions):
            session.stop("the target is shutting down")
        if ends:
            await asyncio.wait(ends)
        with contextlib.suppress(asyncio.CancelledError):
            await self.effects.settle()
