"""The target: every subsystem, controller and timer, without I/O.

Bytes become ``Sqe`` values before they come here, and time is a parameter. What must happen outside is an effect, given
to ``on_effect`` at the moment at which it must take hold, in that order (``effects``).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final, Protocol

from nvmet_p2p.target import access, discovery, fabrics_cmd
from nvmet_p2p.target.config import BdevFacts, ListenAddress, SubsystemConfig, TargetConfig, TransportConfig
from nvmet_p2p.target.controller import Controller, IoQueue
from nvmet_p2p.target.effects import CloseIoQueue, ControllerChanged, ControllerGone, ControllerKey, Effect
from nvmet_p2p.target.events import Event
from nvmet_p2p.target.features import Done
from nvmet_p2p.target.queue import PeerAddress, Queue
from nvmet_p2p.target.subsystem import Subsystem
from nvmet_p2p.target.validate import DISCOVERY_NQN
from nvmet_p2p.target.visible import Placements
from nvmet_p2p.wire.spec import ControllerType
from nvmet_p2p.wire.sqe import Sqe

_DISCOVERY_DEFAULT = SubsystemConfig(nqn=DISCOVERY_NQN, subtype="Discovery", allow_any_host=True, max_namespaces=0)
TIMERS_SLACK: Final = 64  # entries of the timer heap that may be out of date, beside one for each controller


class IoCounters(Protocol):
    """Counters of a back end, as ``dataplane.port.IoStat`` has them; for the SMART log page."""

    @property
    def bytes_read(self) -> int: ...
    @property
    def num_read_ops(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...
    @property
    def num_write_ops(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ControllerInfo:
    """A live controller, for the admin API. ``queues`` has the admin queue first."""

    key: ControllerKey
    cntlid: int
    subnqn: str
    hostnqn: str
    hostid: bytes
    discovery: bool
    listener: ListenAddress
    peer: PeerAddress
    kato_ms: int
    ready: bool
    queues: tuple[IoQueue, ...]


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """Controllers and queues, now and since the start (``nvmf_get_stats``)."""

    controllers: int
    discovery_controllers: int
    admin_queues: int
    io_queues: int
    admin_queues_total: int
    io_queues_total: int


class Target:
    """See the module.

    ``io_activity`` gives the number of I/O commands that a controller's queues have received so far (TBKAS).
    ``io_counters`` gives a back end's counters by name, or ``None``. ``on_deadline``, if set, is called when
    ``next_timer`` has come nearer. ``on_protect``, if set, is called when a host has set the write protection of a
    namespace (subnqn, nsid, state, done), for the configuration to keep it (``NamespaceConfig.write_protected``).
    """

    def __init__(
        self,
        config: TargetConfig,
        on_effect: Callable[[Effect], None],
        *,
        now: float,
        io_activity: Callable[[ControllerKey], int] = lambda _key: 0,
        io_counters: Callable[[str], IoCounters | None] = lambda _name: None,
    ) -> None:
        self.config = config
        self.started = now
        self.bdevs: dict[str, BdevFacts] = {}
        self.genctr = 0
        self.on_deadline: Callable[[], None] | None = None
        self.on_protect: Callable[[str, int, bool, Done], None] | None = None
        self.io_activity = io_activity
        self.io_counters = io_counters
        self.emit = on_effect
        self._subsystems: dict[str, Subsystem] = {}
        self._controllers: dict[ControllerKey, Controller] = {}
        self._keys = count(1)
        self._timers: list[tuple[float, ControllerKey]] = []  # heap; entries may be out of date
        self._port_ids: dict[ListenAddress, int] = {}
        self._placements: dict[str, Placements] = {}
        self._admin_total = 0
        self._io_total = 0
        self._adopt_subsystems(config)

    # -- questions ---------------------------------------------------------------------------------------------------

    def transport(self, trtype: str) -> TransportConfig:
        """The transport's options; the defaults if it has not been created."""
        return self.config.transports.get(trtype) or TransportConfig(trtype=trtype)

    def subsystem(self, nqn: str) -> Subsystem | None:
        """The subsystem of that name; the discovery subsystem is always there."""
        return self._subsystems.get(nqn)

    def port_id(self, address: ListenAddress) -> int:
        """PORTID of an address in discovery log page entries: the same for as long as the target listens there."""
        known = self._port_ids.get(address)
        if known is None:
            used = set(self._port_ids.values())
            known = self._port_ids[address] = next(number for number in count() if number not in used)
        return known

    def controllers(self, subnqn: str | None = None) -> list[ControllerInfo]:
        """The live controllers, of one subsystem or of all, in the order in which they came."""
        return [self._info(c) for c in self._controllers.values() if subnqn is None or c.subnqn == subnqn]

    def controller(self, key: ControllerKey) -> ControllerInfo | None:
        """One live controller."""
        controller = self._controllers.get(key)
        return None if controller is None else self._info(controller)

    def connection_counts(self) -> ConnectionCounts:
        """How many controllers and queues there are."""
        controllers = self._controllers.values()
        return ConnectionCounts(
            controllers=len(controllers),
            discovery_controllers=sum(c.type is ControllerType.DISCOVERY for c in controllers),
            admin_queues=len(controllers),
            io_queues=sum(len(c.io_queues) for c in controllers),
            admin_queues_total=self._admin_total,
            io_queues_total=self._io_total,
        )

    @staticmethod
    def _info(controller: Controller) -> ControllerInfo:
        admin = controller.admin_queue
        queues = (IoQueue(0, admin.sqsize, admin.sq_flow_control, admin.peer), *controller.io_queues.values())
        return ControllerInfo(
            key=controller.key,
            cntlid=controller.cntlid,
            subnqn=controller.subnqn,
            hostnqn=controller.hostnqn,
            hostid=controller.hostid,
            discovery=controller.type is ControllerType.DISCOVERY,
            listener=controller.listener,
            peer=controller.peer,
            kato_ms=controller.kato_ms,
            ready=controller.ready,
            queues=queues,
        )

    # -- connections -------------------------------------------------------------------------------------------------

    def open_queue(self, listener: ListenAddress, peer: PeerAddress, now: float, reached: str = "") -> Queue:
        """A connection has been accepted; nothing is known of it before Connect.

        ``reached`` is the address of ours by which the host came, where ``listener`` stands for all of them.
        """
        del now
        return Queue(self, listener, peer, reached or listener.traddr)

    def add_controller(
        self,
        subsystem: Subsystem,
        kind: ControllerType,
        admin_queue: Queue,
        *,
        cntlid: int,
        hostnqn: str,
        hostid: bytes,
        kato_ms: int,
        now: float,
    ) -> Controller:
        """An admin Connect was accepted."""
        controller = Controller(
            self,
            subsystem,
            kind,
            admin_queue,
            key=next(self._keys),
            cntlid=cntlid,
            hostnqn=hostnqn,
            hostid=hostid,
            kato_ms=kato_ms,
            now=now,
        )
        subsystem.controllers[cntlid] = controller
        self._controllers[controller.key] = controller
        self._admin_total += 1
        if kind is ControllerType.DISCOVERY:
            controller.discovery_seen = discovery.fingerprint(controller)
        self.emit(ControllerChanged(controller.view))
        self.schedule(controller)
        return controller

    def end_controller(self, controller: Controller, reason: str, now: float) -> None:
        """The association ends; a second call does nothing."""
        del now
        if controller.gone:
            return
        controller.gone = True
        del self._controllers[controller.key]
        if controller.subsystem.controllers.get(controller.cntlid) is controller:
            del controller.subsystem.controllers[controller.cntlid]
        controller.io_queues.clear()
        controller.admin_queue.shut()
        self.emit(ControllerGone(controller.key, reason))

    def io_queue_opened(self) -> None:
        """An I/O Connect was accepted: counted."""
        self._io_total += 1

    def io_queue_closed(self, key: ControllerKey, qid: int, now: float) -> None:
        """The data plane says that an I/O queue has ended by itself. The association goes on, as with other targets."""
        del now
        controller = self._controllers.get(key)
        if controller is not None:
            controller.io_queues.pop(qid, None)

    def io_queue_command(self, key: ControllerKey, qid: int, sqe: Sqe, now: float) -> None:
        """A capsule on an I/O queue that the data plane leaves to us: Fabrics commands and unknown opcodes.

        Returns if the command succeeds without data (Disconnect: ``CloseIoQueue`` is emitted first, to be carried out
        after the response); raises NvmeStatusError with what to answer.
        """
        del now
        fabrics_cmd.io_queue_command(sqe)
        controller = self._controllers.get(key)
        if controller is not None and controller.io_queues.pop(qid, None) is not None:
            self.emit(CloseIoQueue(key, qid, "Disconnect"))

    # -- time --------------------------------------------------------------------------------------------------------

    def schedule(self, controller: Controller) -> None:
        """The controller's deadline may have changed. One that has moved away is found out when its old time comes."""
        deadline = controller.deadline
        if deadline is None or controller.gone:
            return
        if controller.scheduled is not None and controller.scheduled <= deadline:
            return
        if len(self._timers) > TIMERS_SLACK + 2 * len(self._controllers):
            self._timers = [(at, key) for at, key in self._timers if self._is_current(at, key)]
            heapq.heapify(self._timers)
        nearest = not self._timers or deadline < self._timers[0][0]
        controller.scheduled = deadline
        heapq.heappush(self._timers, (deadline, controller.key))
        if nearest and self.on_deadline is not None:
            self.on_deadline()

    def _is_current(self, at: float, key: ControllerKey) -> bool:
        controller = self._controllers.get(key)
        return controller is not None and controller.scheduled == at

    def next_timer(self) -> float | None:
        """When ``handle_timer`` is to be called next, if at all."""
        while self._timers:
            at, key = self._timers[0]
            if not self._is_current(at, key):
                heapq.heappop(self._timers)
                continue
            controller = self._controllers[key]
            if controller.deadline == at:
                return at
            heapq.heappop(self._timers)
            controller.scheduled = None
            if controller.deadline is not None:
                controller.scheduled = controller.deadline
                heapq.heappush(self._timers, (controller.deadline, key))
        return None

    def handle_timer(self, now: float) -> None:
        """Time has passed: Keep Alive Timers, controllers that were never enabled."""
        while (at := self.next_timer()) is not None and at <= now:
            _, key = heapq.heappop(self._timers)
            self._controllers[key].scheduled = None
            self._controllers[key].handle_timer(now)

    # -- changes -----------------------------------------------------------------------------------------------------

    def set_bdev(self, name: str, facts: BdevFacts | None, now: float) -> None:
        """A back end has appeared, has changed, or has gone (``None``)."""
        del now
        if self.bdevs.get(name) == facts:
            return
        if facts is None:
            del self.bdevs[name]
        else:
            self.bdevs[name] = facts
        self._refresh(self._on({name}))

    def place(self, placements: Mapping[str, Placements], now: float) -> None:
        """Where the payload of each subsystem's namespaces rests from now on, by NQN. Hosts do not notice."""
        del now
        self._placements = dict(placements)
        self._refresh(
            [subsystem for nqn, subsystem in self._subsystems.items() if subsystem.place(placements.get(nqn, {}))]
        )

    def _on(self, names: set[str]) -> list[Subsystem]:
        """The subsystems that have a namespace on one of these back ends."""
        return [subsystem for subsystem in self._subsystems.values() if not names.isdisjoint(subsystem.bdev_names)]

    @staticmethod
    def _refresh(subsystems: Iterable[Subsystem]) -> None:
        for subsystem in subsystems:
            subsystem.refresh()

    def protect_namespace(self, subsystem: Subsystem, nsid: int, protected: bool, done: Done) -> None:
        """Feature 84h was set: it holds for every controller of the subsystem. ``done`` when it is durable."""
        if subsystem.is_protected(nsid) == protected:
            done(None)
            return
        subsystem.protect(nsid, protected)
        subsystem.refresh()
        if self.on_protect is None:
            done(None)
        else:
            self.on_protect(subsystem.nqn, nsid, protected, done)

    def withdraw_protection(self, subnqn: str, nsid: int) -> None:
        """What a host has set by feature 84h could not be made durable: the configuration's word holds again."""
        subsystem = self._subsystems.get(subnqn)
        if subsystem is not None:
            subsystem.withdraw_protection(nsid)
            subsystem.refresh()

    def apply(self, config: TargetConfig, now: float, facts: Mapping[str, BdevFacts] | None = None) -> None:
        """Becomes the configuration. Controllers that may no longer be end; the others and their hosts learn of it.

        ``facts`` are of back ends that are new or have another size with it. It is one change: hosts are told once.
        """
        old, self.config = self.config, config
        for name in old.bdevs.keys() - config.bdevs.keys():
            self.bdevs.pop(name, None)  # another back end may get the name
        resized = {name for name, found in (facts or {}).items() if self.bdevs.get(name) != found}
        self.bdevs.update(facts or {})
        changed = self._adopt_subsystems(config)
        addresses = access.all_addresses(config)
        self._port_ids = {address: number for address, number in self._port_ids.items() if address in addresses}
        for controller in list(self._controllers.values()):
            reason = self._why_not(controller, addresses)
            if reason is not None:
                self.end_controller(controller, reason, now)
        if config.transports is not old.transports:
            self._refresh(self._subsystems.values())
        else:
            changed |= {subsystem.nqn for subsystem in self._on(resized)}
            self._refresh(subsystem for nqn, subsystem in self._subsystems.items() if nqn in changed)
        self._discovery_changed(old)

    def _adopt_subsystems(self, config: TargetConfig) -> set[str]:
        """Takes over subsystem configurations; the NQNs of those that differ."""
        wanted = {DISCOVERY_NQN: _DISCOVERY_DEFAULT, **config.subsystems}
        for nqn in [nqn for nqn in self._subsystems if nqn not in wanted]:
            del self._subsystems[nqn]
        changed = set()
        for nqn, subsystem in wanted.items():
            known = self._subsystems.get(nqn)
            if known is None:
                self._subsystems[nqn] = Subsystem(subsystem)
                self._subsystems[nqn].place(self._placements.get(nqn, {}))
            elif known.config is not subsystem and known.config != subsystem:
                known.replace_config(subsystem)
                changed.add(nqn)
        return changed

    def _why_not(self, controller: Controller, addresses: dict[ListenAddress, None]) -> str | None:
        """Why a controller cannot stay, if so."""
        if self._subsystems.get(controller.subnqn) is not controller.subsystem:
            return "the subsystem was removed"
        if controller.type is ControllerType.DISCOVERY:
            if controller.listener not in addresses:
                return "the listener was removed"
            allowed = access.discovery_allowed(self.config, controller.hostnqn)
        else:
            if access.find_listener(controller.config, controller.listener) is None:
                return "the listener was removed"
            allowed = access.host_allowed(controller.config, controller.hostnqn)
        return None if allowed else "the host is no longer allowed"

    def _discovery_changed(self, old: TargetConfig) -> None:
        """Counts a generation if the discovery log page has changed for anyone, and tells those for whom it has."""
        if discovery.public_part(old) == discovery.public_part(self.config):
            return
        self.genctr += 1
        pages: dict[object, str] = {}  # hundreds of persistent controllers may look at few different pages
        for controller in list(self._controllers.values()):
            if controller.type is ControllerType.DISCOVERY:
                audience = discovery.audience(controller)
                seen = pages.get(audience)
                if seen is None:
                    seen = pages[audience] = discovery.fingerprint(controller)
                if seen != controller.discovery_seen:
                    controller.discovery_seen = seen
                    controller.events.report(Event.DISCOVERY_LOG_CHANGE)
