"""A controller: one association of one host with one subsystem, from the admin Connect to its end.

Theory of operation (NVMe base 3.5, 3.6, 3.7, 3.9)

CC.EN, CSTS      After Connect EN=0 and RDY=0. EN 0 to 1 with a valid CC makes RDY 1, with an invalid one CFS 1.
reset            EN 1 to 0: RDY stays 1 until all I/O queues are closed (effect ``CloseIoQueues``); then CC and CSTS
                 are 0. Outstanding admin commands are dropped without a completion.
shutdown         SHN 1 or 2: SHST is 1 until all I/O queues are closed, then 2. Only a reset leads out of it.
both at once     One closing of queues serves both.
commands         Fabrics commands are always taken; all others need EN=1, RDY=1 and no shutdown.
Keep Alive Timer Runs only in the same state, and only if KATO is not 0 (NVMe base 3.9). Before the first enable nobody
                 must enforce it; as nvmet, this target does, to be rid of a host that died right after Connect.
not enabled      An association whose controller is not enabled is kept for two minutes (NVMe base 3.7.2) and no longer,
                 so that a host that vanishes where no Keep Alive Timer runs leaves nothing behind.

Keep Alive is traffic based (CTRATT.TBKAS, NVMe base 3.9.4.1): when an interval of KATO ends, the association ends if no
command at all has come in it, and else the next interval begins. Keep Alive and Set Features begin one at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from nvmet_p2p import limits
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target import access
from nvmet_p2p.target.access import Namespace
from nvmet_p2p.target.command import Command, Result, invalid_field
from nvmet_p2p.target.config import ListenAddress, SubsystemConfig, TransportConfig
from nvmet_p2p.target.effects import (
    AbortIo,
    CloseIoQueues,
    ControllerChanged,
    ControllerKey,
    ControllerView,
)
from nvmet_p2p.target.error_log import ErrorLog
from nvmet_p2p.target.events import Event, EventEngine
from nvmet_p2p.target.feature_values import FeatureValues
from nvmet_p2p.target.properties import COMMAND_SETS, LOC_VALUE, Configuration, ControllerStatus
from nvmet_p2p.target.visible import AnaGroups, Comparison, Visible
from nvmet_p2p.wire.spec import ControllerType, ShutdownNotification, ShutdownStatus, Status

if TYPE_CHECKING:
    from nvmet_p2p.target.queue import PeerAddress, Queue, Request
    from nvmet_p2p.target.subsystem import Subsystem
    from nvmet_p2p.target.target import Target

IOSQES: Final = 6  # 64 byte submission queue entries
IOCQES: Final = 4  # 16 byte completion queue entries
CHANGED_NAMESPACES_MAX: Final = 1024  # what log page 04h can name
STALL_S: Final = 0.1  # a timer this late means that we were stalled, not that the host was silent


@dataclass(frozen=True, slots=True)
class IoQueue:
    """An I/O queue that the data plane serves. ``sqsize`` is 0's based."""

    qid: int
    sqsize: int
    sq_flow_control: bool
    peer: PeerAddress


def mdts_exponent(transport: TransportConfig) -> int:
    """MDTS: the largest power of two times 4 KiB that the transport's ``max_io_size`` holds."""
    bound = min(max(transport.max_io_size, 4096), limits.TRANSFER_BYTES_MAX)
    return (bound // 4096).bit_length() - 1


class Controller:
    """See the module. ``key`` is unique for the life of the process, ``cntlid`` in the subsystem."""

    def __init__(
        self,
        target: Target,
        subsystem: Subsystem,
        kind: ControllerType,
        admin_queue: Queue,
        *,
        key: ControllerKey,
        cntlid: int,
        hostnqn: str,
        hostid: bytes,
        kato_ms: int,
        now: float,
    ) -> None:
        self.target = target
        self.subsystem = subsystem
        self.type = kind
        self.admin_queue = admin_queue
        self.key = key
        self.cntlid = cntlid
        self.hostnqn = hostnqn
        self.hostid = hostid
        self.kato_ms = kato_ms
        self.transport = target.transport(admin_queue.listener.trtype)
        self.cc: Configuration = Configuration()
        self.csts: ControllerStatus = ControllerStatus()
        self.io_queues: dict[int, IoQueue] = {}
        self.events = EventEngine()
        self.errors = ErrorLog()
        self.features = FeatureValues()
        self.changed_namespaces: dict[int, None] = {}
        self.ana_change_count = 0
        self.ana_group_changes: dict[int, int] = {}
        self.aborts = 0
        self.gone = False
        self.scheduled: float | None = None  # the target's timer
        self.discovery_seen = ""
        self._closing = False
        self._shutdown_wanted = False
        self._commands_came = False
        self._kato_deadline = now + kato_ms / 1000 if kato_ms else None
        self._idle_deadline: float | None = now + limits.ENABLE_TIMEOUT_S
        self._io_activity_seen = 0
        self._stall_forgiven = False
        self._visible = self._look()
        self._views = self._visible.views  # those that the data plane has; another object only if they differ
        self.view = self._build_view()

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def subnqn(self) -> str:
        """NQN of the subsystem."""
        return self.subsystem.nqn

    @property
    def listener(self) -> ListenAddress:
        """Where the host came in; all queues of the association use it."""
        return self.admin_queue.listener

    @property
    def peer(self) -> PeerAddress:
        """Address and port of the host's admin connection."""
        return self.admin_queue.peer

    @property
    def config(self) -> SubsystemConfig:
        """The subsystem's configuration as it is now."""
        return self.subsystem.config

    @property
    def mdts_bytes(self) -> int:
        """Largest transfer."""
        return 4096 << mdts_exponent(self.transport)

    @property
    def ready(self) -> bool:
        """Commands other than Fabrics commands are taken."""
        return self.cc.en and self.csts.rdy and not self.cc.shn and not self.csts.shst

    def namespace(self, nsid: int) -> Namespace | None:
        """The active namespace with this NSID."""
        namespace = self.namespaces.get(nsid)
        return namespace if namespace is not None and namespace.facts is not None else None

    def active_nsids(self) -> list[int]:
        """NSIDs of the active namespaces, ascending."""
        return [nsid for nsid, namespace in self.namespaces.items() if namespace.facts is not None]

    @property
    def nn(self) -> int:
        """Number of Namespaces: the largest valid NSID."""
        return max(self.config.max_namespaces, max(self.config.namespaces, default=0))

    def ana_state(self, anagrpid: int) -> int:
        """State of an ANA group through this controller."""
        return access.ana_state(self.config, self.listener, anagrpid)

    def check_accepts(self, command: Command) -> None:
        """Raises Command Sequence Error for a command that this state does not take."""
        if command.needs_ready and not self.ready:
            raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, f"{command.name}: the controller is not ready")

    # -- CC and CSTS -------------------------------------------------------------------------------------------------

    def write_cc(self, new: Configuration, request: Request, now: float) -> None:
        """Property Set of CC. Raises before anything has changed."""
        old = self.cc
        if new.shn not in tuple(ShutdownNotification):
            raise invalid_field(LOC_VALUE + 1, f"CC.SHN {new.shn}", 6)
        if self._closing and new.en and not old.en:
            raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, "CC.EN set while CSTS.RDY is still 1", dnr=False)
        self.cc = new
        if new.en and not old.en:
            self._enable(now)
        elif old.en and not new.en:
            self._reset(request, now)
        if new.shn and not self.csts.shst:
            self._shut_down(now)

    def _valid(self, cc: Configuration) -> bool:
        if cc.mps or cc.ams or cc.css not in COMMAND_SETS[self.type]:
            return False
        sizes = (cc.iosqes, cc.iocqes)
        # A discovery controller has no I/O queues; the entry sizes mean nothing to it.
        return sizes == (IOSQES, IOCQES) or self.type is ControllerType.DISCOVERY

    def _enable(self, now: float) -> None:
        if not self._valid(self.cc):
            self.csts = replace(self.csts, cfs=True)
            return
        self.csts = ControllerStatus(rdy=True)
        self._idle_deadline = None
        self.start_keep_alive(now)

    def _reset(self, request: Request, now: float) -> None:
        self._kato_deadline = None
        self._idle_deadline = now + limits.ENABLE_TIMEOUT_S
        self.admin_queue.drop_requests(keep=request)
        self.events.reset()
        self.features = FeatureValues()
        self.changed_namespaces.clear()
        self.ana_change_count = 0
        self.ana_group_changes.clear()
        self.aborts = 0
        self._shutdown_wanted = bool(self.cc.shn)
        self.target.schedule(self)
        self._close_queues("controller reset")

    def _shut_down(self, now: float) -> None:
        self._kato_deadline = None
        self._idle_deadline = now + limits.ENABLE_TIMEOUT_S
        self._shutdown_wanted = True
        self.csts = replace(self.csts, shst=ShutdownStatus.OCCURRING)
        self.target.schedule(self)
        self._close_queues("controller shutdown")

    def _close_queues(self, reason: str) -> None:
        if self._closing:
            return
        self._closing = True
        if self.io_queues:
            self.target.emit(CloseIoQueues(self.key, reason, self._queues_closed))
        else:
            self._queues_closed()

    def _queues_closed(self) -> None:
        if self.gone or not self._closing:
            return
        self._closing = False
        self.io_queues.clear()
        status = ShutdownStatus.COMPLETE if self._shutdown_wanted else ShutdownStatus.NORMAL
        if self.cc.en:
            self.csts = replace(self.csts, shst=status)
            return
        # A reset sets all properties to their defaults (NVMe base 3.7.2).
        self.cc = Configuration()
        self.csts = ControllerStatus(shst=status)
        self._shutdown_wanted = False
        self.publish()

    # -- time --------------------------------------------------------------------------------------------------------

    def touch(self) -> None:
        """A command has come on the admin queue."""
        self._commands_came = True

    def start_keep_alive(self, now: float) -> None:
        """The controller was enabled, KATO was set, or Keep Alive came: an interval starts."""
        self._commands_came = False
        self._io_activity_seen = self.target.io_activity(self.key)
        self._stall_forgiven = False
        self._kato_deadline = now + self.kato_ms / 1000 if self.kato_ms and self.ready else None
        self.target.schedule(self)

    @property
    def deadline(self) -> float | None:
        """When ``handle_timer`` wants to be called."""
        deadlines = [at for at in (self._kato_deadline, self._idle_deadline) if at is not None]
        return min(deadlines, default=None)

    def handle_timer(self, now: float) -> None:
        """A deadline may have passed."""
        if self._idle_deadline is not None and now >= self._idle_deadline:
            self.target.end_controller(self, f"not enabled for {limits.ENABLE_TIMEOUT_S:g} s", now)
        elif self._kato_deadline is not None and now >= self._kato_deadline:
            self._keep_alive_due(now)

    def _keep_alive_due(self, now: float) -> None:
        kato_s = self.kato_ms / 1000
        activity = self.target.io_activity(self.key)
        late = now - (self._kato_deadline or now)
        if self._commands_came or activity != self._io_activity_seen:
            self._commands_came = False
            self._io_activity_seen = activity
            self._stall_forgiven = False
            self._kato_deadline = now + kato_s
        elif late > STALL_S and not self._stall_forgiven:
            # Commands that came in time may still lie unread in the socket: read them first, once.
            self._stall_forgiven = True
            self._kato_deadline = now + min(late, kato_s)
        else:
            self.csts = replace(self.csts, cfs=True)
            self.target.end_controller(self, f"keep alive: no command for {kato_s:g} s", now)
            return
        self.target.schedule(self)

    # -- changes of the configuration and of back ends ---------------------------------------------------------------

    def refresh(self, comparison: Comparison) -> None:
        """Configuration or back ends have changed: tell the data plane, and the host by events."""
        if self.type is not ControllerType.IO:
            return
        self.transport = self.target.transport(self.listener.trtype)
        before, now = self._visible, self._look()
        self._visible = now
        difference = comparison.difference(before, now)
        if difference.views:
            self._views = now.views
        self.publish()
        if difference.nsids:
            self._note_changed(difference.nsids)
            self.events.report(Event.NAMESPACE_ATTRIBUTE)
        if difference.ana_groups and self.config.ana_reporting:
            self.ana_change_count += 1
            for group in difference.ana_groups:
                self.ana_group_changes[group] = self.ana_group_changes.get(group, 0) + 1
            self.events.report(Event.ANA_CHANGE)

    def _note_changed(self, nsids: list[int]) -> None:
        for nsid in nsids:
            if len(self.changed_namespaces) <= CHANGED_NAMESPACES_MAX:
                self.changed_namespaces[nsid] = None

    def _look(self) -> Visible:
        if self.type is not ControllerType.IO:
            return Visible({}, {}, {})
        return self.subsystem.visible(self.hostnqn, self.listener, self.target.bdevs)

    @property
    def namespaces(self) -> dict[int, Namespace]:
        """The namespaces that the host may see, by NSID, ascending."""
        return self._visible.namespaces

    @property
    def ana_groups(self) -> AnaGroups:
        """The ANA groups of the active namespaces: identifier -> (state, NSIDs), ascending."""
        return self._visible.ana

    def _build_view(self) -> ControllerView:
        return ControllerView(
            key=self.key,
            subnqn=self.subnqn,
            hostnqn=self.hostnqn,
            cntlid=self.cntlid,
            mdts_bytes=self.mdts_bytes,
            namespaces=self._views,
            copy_formats=self.features.copy_formats,
        )

    def publish(self) -> None:
        """Gives the data plane the view if it differs from the one that it has."""
        view = self._build_view()
        if view.namespaces is not self.view.namespaces or view != self.view:
            self.view = view
            self.target.emit(ControllerChanged(view))

    # -- Abort of an I/O command -------------------------------------------------------------------------------------

    def abort_io(self, request: Request, qid: int, cid: int) -> None:
        """Asks the data plane; the Abort command completes when it has answered."""
        if self.aborts >= limits.ABORT_LIMIT:
            raise NvmeStatusError(Status.ABORT_LIMIT_EXCEEDED, "more Abort commands than ACL allows")
        self.aborts += 1

        def done(found: bool) -> None:
            if not request.done:
                self.aborts -= 1
                request.complete(Result(dw0=0 if found else 1))

        self.target.emit(AbortIo(self.key, qid, cid, done))
