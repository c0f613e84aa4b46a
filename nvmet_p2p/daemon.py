"""The composition root: builds the parts, starts them, keeps them in step with the configuration, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import uuid
from collections.abc import Coroutine
from types import MappingProxyType
from typing import Any, Final

import structlog
import uvloop

from nvmet_p2p import __version__
from nvmet_p2p.clock import Clock, SystemClock
from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.choose import choose_dataplane
from nvmet_p2p.dataplane.port import DataPlane, RdmaConnection, RdmaLink, RdmaReceiver
from nvmet_p2p.errors import NvmeStatusError, OperatorError, StateError
from nvmet_p2p.observe import log as logs
from nvmet_p2p.observe import metrics, sd_notify
from nvmet_p2p.server.admin_socket import AdminServer
from nvmet_p2p.server.context import ControllerInfo, QpairInfo, QueueStats
from nvmet_p2p.server.dispatcher import Dispatcher
from nvmet_p2p.server.drives import Drives
from nvmet_p2p.server.fabric import Fabric
from nvmet_p2p.server.methods import METHODS
from nvmet_p2p.server.staging import show
from nvmet_p2p.server.staging.manager import START_MAX_S, StagingManager, Surroundings
from nvmet_p2p.state import reconcile
from nvmet_p2p.state.journal import Journals
from nvmet_p2p.state.store import FileStore, StateStore
from nvmet_p2p.target.config import BdevConfig, BdevFacts, ListenAddress, NvmeHotplug, NvmeOptions, TargetConfig
from nvmet_p2p.target.features import Done
from nvmet_p2p.target.operations import bdevs_on
from nvmet_p2p.target.operations_bdev import create_bdev
from nvmet_p2p.target.operations_nvme import bdevs_of, declare_found, namespace_of, with_identities
from nvmet_p2p.target.target import ControllerInfo as TargetControllerInfo
from nvmet_p2p.wire.spec import Status
from nvmet_p2p.wire.sqe import Sqe

log = structlog.get_logger()

RETRY_S: Final = 1.0  # how often an absent back end or an address that cannot be bound is tried again


class Daemon:
    """A running target. Implements the context of the admin methods and the events of the data plane."""

    def __init__(self, settings: Settings, store: StateStore, dataplane: DataPlane, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.dataplane = dataplane
        self._store = store
        self._config = TargetConfig()
        self._facts: dict[str, BdevFacts] = {}
        self._facts_view = MappingProxyType(self._facts)
        self._unbound: dict[ListenAddress, None] = {}
        self._committing = asyncio.Lock()
        self._started = self.clock.monotonic()
        self._retrying: asyncio.Task[None] | None = None
        self.fabric = Fabric(settings, self.clock, dataplane, self._config)
        self.target = self.fabric.target
        self.target.on_protect = self._protect
        self._protecting: set[asyncio.Task[None]] = set()
        around = Surroundings(
            model=lambda: (self._config, self._facts_view),
            place=lambda placements: self.target.place(placements, self.clock.monotonic()),
            settle=self.fabric.effects.settle,
            gone=self._pool_gone,
            broken=self._bdev_broken,
        )
        self.staging = StagingManager(settings, dataplane.pools, self.clock, Journals(settings.state_dir), around)
        self._staging_task: asyncio.Task[None] | None = None
        self.drives = Drives(
            dataplane,
            lambda: self._config,
            self._facts.__contains__,
            self._adopt_late,
            self.staging.changing_hands,
        )
        self._adopting: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    # -- what the admin methods use ----------------------------------------------------------------------------------

    @property
    def config(self) -> TargetConfig:
        """The accepted, persisted configuration."""
        return self._config

    @property
    def bdev_facts(self) -> MappingProxyType[str, BdevFacts]:
        """Back ends that are open; one that is configured but absent is missing here."""
        return self._facts_view

    @property
    def version(self) -> str:
        """The daemon's version."""
        return __version__

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return self.clock.monotonic() - self._started

    def controllers(self) -> list[ControllerInfo]:
        """All controllers, discovery controllers too."""
        return [
            ControllerInfo(
                subnqn=found.subnqn,
                cntlid=found.cntlid,
                hostnqn=found.hostnqn,
                hostid=str(uuid.UUID(bytes=found.hostid)),
                cntrltype="discovery" if found.discovery else "io",
                num_io_qpairs=len(found.queues) - 1,
            )
            for found in self.target.controllers()
        ]

    def qpairs(self) -> list[QpairInfo]:
        """All connected queues, the admin queue of a controller first."""
        return [
            QpairInfo(
                subnqn=found.subnqn,
                cntlid=found.cntlid,
                qid=queue.qid,
                hostnqn=found.hostnqn,
                listen_address=found.listener,
                peer=ListenAddress(
                    trtype=found.listener.trtype,
                    adrfam=found.listener.adrfam,
                    traddr=queue.peer[0],
                    trsvcid=queue.peer[1],
                ),
            )
            for found in self.target.controllers()
            for queue in found.queues
        ]

    def queue_stats(self) -> QueueStats:
        """Numbers of queues and commands of the whole target."""
        counts = self.target.connection_counts()
        return QueueStats(
            admin_qpairs=counts.admin_queues_total,
            io_qpairs=counts.io_queues_total,
            current_admin_qpairs=counts.admin_queues,
            current_io_qpairs=counts.io_queues,
            current_unassociated_qpairs=self.fabric.unconnected,
            pending_bdev_io=sum(queue.outstanding for queue in self.dataplane.queues()),
            completed_nvme_io=sum(
                stat.num_read_ops + stat.num_write_ops + stat.num_unmap_ops + stat.num_copy_ops
                for stat in map(self.dataplane.iostat, self._facts)
                if stat is not None
            ),
        )

    def new_uuid(self) -> str:
        return str(uuid.uuid4())

    def unbound(self) -> list[ListenAddress]:
        """Configured addresses that could not be bound at start and are tried again."""
        return list(self._unbound)

    async def commit(self, new: TargetConfig) -> None:
        """Makes ``new`` durable and lets it take hold. Raises ``OperatorError``; nothing has changed then.

        It runs to its end even if the caller is cancelled: a half-applied configuration is not one of the outcomes.
        """
        await self._whole(self._commit(new))

    async def rescan_bdev(self, name: str) -> None:
        """Reads the size of a file or device again; one that was absent may be there now."""
        await self._whole(self._rescan(name))

    async def adopt_namespaces(self, controller: str) -> list[str]:
        """Makes bdevs of what an attached NVMe controller has; the names of all of them."""
        await self._whole(self._adopt(controller))
        return [bdev.name for bdev in bdevs_of(self._config, controller)]

    def absent_controllers(self) -> dict[str, str]:
        """Configured NVMe controllers that are not attached, and why."""
        return dict(self.drives.absent)

    async def _whole(self, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.shield(asyncio.create_task(work))

    async def _adopt(self, controller: str) -> None:
        found = [(namespace.name, namespace.uuid) for namespace in await self.drives.namespaces(controller)]
        async with self._committing:
            if controller not in self._config.nvme_controllers:
                return
            new = declare_found(create_bdev, self._config, controller, found, self.new_uuid)
            try:
                await self._change(new)
            finally:
                self.staging.release()

    async def _adopt_late(self, controller: str) -> None:
        """As ``adopt_namespaces``, for a controller that was attached, or has changed, without a call."""
        try:
            await self._whole(self._adopt(controller))
            await self._whole(self._retry_once())
        except OperatorError as error:
            log.error("nvme.not_adopted", controller=controller, reason=error.message)

    async def _commit(self, new: TargetConfig) -> None:
        async with self._committing:
            try:
                await self._change(new)
            finally:
                self.staging.release()

    async def _change(self, new: TargetConfig) -> None:
        new = reconcile.keep_namespaces(self._config, reconcile.keep_protection(self._config, new))
        plan = reconcile.plan(self._config, new)
        async with contextlib.AsyncExitStack() as undo:
            facts: dict[str, BdevFacts] = {}
            await self._attach(plan, undo)
            for bdev in plan.open_bdevs:
                facts[bdev.name] = await self._open_bdev(bdev, new)
                undo.push_async_callback(self.dataplane.bdev_delete, bdev.name)
            for old, changed in plan.resize_bdevs:
                if old.name in self._facts:
                    facts[old.name] = await self.dataplane.bdev_resize(changed)
                    undo.push_async_callback(self.dataplane.bdev_resize, old)
            for old, changed in plan.tune_bdevs:
                if old.name in self._facts:
                    undo.push_async_callback(self.dataplane.bdev_tune, old)
                    await self.dataplane.bdev_tune(changed)
            for transport in plan.create_transports:
                await self.dataplane.transport_create(transport)
            bound = {}
            for address in plan.bind:
                if address.trtype == "RDMA":
                    await self.dataplane.listen(address, new.transports[address.trtype])
                    undo.push_async_callback(self.dataplane.unlisten, address)
                    continue
                bound[address] = self.fabric.listeners.bind(address)
                undo.callback(bound[address].close)
            await self.staging.admit(self._config, new, {**self._facts, **facts})
            new = with_identities(new, facts.values())
            try:
                await asyncio.to_thread(self._store.save, new)
            except StateError as error:
                raise OperatorError(-5, str(error)) from error
            undo.pop_all()
        self._config = new
        self._facts.update(facts)
        now = self.clock.monotonic()
        self.staging.enforce()
        self.target.apply(new, now, facts)
        for address, sock in bound.items():
            self.fabric.listeners.start(address, sock)
        for address in plan.unbind:
            self._unbound.pop(address, None)
            if address.trtype == "RDMA":
                await self.dataplane.unlisten(address)
            else:
                self.fabric.listeners.stop(address)
        await self.fabric.effects.settle()
        self.fabric.rearm_timers()
        self.staging.wake()
        await self._release(plan)

    async def _release(self, plan: reconcile.Plan) -> None:
        """What the new configuration no longer names."""
        for bdev in plan.close_bdevs:
            if self._facts.pop(bdev.name, None) is not None:
                await self._close_bdev(bdev.name)
        for name in plan.detach:
            await self.drives.detach(name)

    async def _attach(self, plan: reconcile.Plan, undo: contextlib.AsyncExitStack) -> None:
        """What is about NVMe controllers in a commit and may be refused. Raises ``OperatorError``."""
        if plan.nvme_options is not None:
            before = self._config.nvme_options or NvmeOptions()
            await self.drives.set_options(plan.nvme_options)
            undo.push_async_callback(self.drives.set_options, before)
        for controller in plan.attach:
            await self.drives.attach(controller)
            undo.push_async_callback(self.drives.detach, controller.name)
        if plan.nvme_hotplug is not None:
            hotplug = self._config.nvme_hotplug or NvmeHotplug(enable=False)
            await self.drives.set_hotplug(plan.nvme_hotplug)
            undo.push_async_callback(self.drives.set_hotplug, hotplug)

    async def _open_bdev(self, bdev: BdevConfig, config: TargetConfig) -> BdevFacts:
        """Raises ``OperatorError``."""
        if bdev.kind == "cmb":
            await self.staging.provide(bdev, config)
        return await self.dataplane.bdev_create(bdev)

    async def _close_bdev(self, name: str) -> None:
        """The change is in force: what is left of the old state is our affair, no longer the caller's."""
        async with self.staging.calm():
            try:
                await self.dataplane.bdev_delete(name)
            except OperatorError as error:
                log.error("bdev.not_closed", bdev=name, reason=error.message)

    async def _rescan(self, name: str) -> None:
        async with self._committing:
            config = self._config.bdevs[name]
            opened = name in self._facts
            found = await (self.dataplane.bdev_rescan(config) if opened else self._open_bdev(config, self._config))
            self.staging.wake()
            self._facts[name] = found
            await self._learn(found)
            self.target.set_bdev(name, found, self.clock.monotonic())
            await self.fabric.effects.settle()

    def snapshot(self) -> metrics.Snapshot:
        """The numbers that Prometheus reads."""
        stats = {name: self.dataplane.iostat(name) for name in self._facts}
        controllers: dict[str, list[TargetControllerInfo]] = {nqn: [] for nqn in self._config.subsystems}
        for found in self.target.controllers():
            controllers.setdefault(found.subnqn, []).append(found)
        return metrics.Snapshot(
            version=__version__,
            engine=self.dataplane.name,
            uptime_s=self.uptime_s,
            subsystems=tuple(
                metrics.SubsystemFacts(
                    nqn=nqn,
                    controllers=len(found),
                    io_queues=sum(len(controller.queues) - 1 for controller in found),
                    namespaces=len(self._config.subsystems[nqn].namespaces) if nqn in self._config.subsystems else 0,
                )
                for nqn, found in controllers.items()
            ),
            bdevs=tuple(
                metrics.BdevIo(
                    name=name,
                    bytes_read=stat.bytes_read,
                    bytes_written=stat.bytes_written,
                    bytes_unmapped=stat.bytes_unmapped,
                    read_ops=stat.num_read_ops,
                    write_ops=stat.num_write_ops,
                    unmap_ops=stat.num_unmap_ops,
                    errors=sum(stat.io_error.values()),
                )
                for name, stat in stats.items()
                if stat is not None
            ),
            unconnected_peers=self.fabric.unconnected,
            peers_accepted=self.fabric.accepted_total,
            peers_refused=dict(self.fabric.refused),
            **show.metrics_of(self.staging, self._config, self.dataplane.pools),
        )

    def _protect(self, subnqn: str, nsid: int, protected: bool, done: Done) -> None:
        """A host has set feature 84h; the target shows it already."""
        task = asyncio.create_task(self._keep_protection(subnqn, nsid, protected, done))
        self._protecting.add(task)
        task.add_done_callback(self._protecting.discard)

    async def _keep_protection(self, subnqn: str, nsid: int, protected: bool, done: Done) -> None:
        await self.fabric.effects.settle()  # the data plane lets no write through any more
        async with self._committing:
            new = reconcile.with_protection(self._config, subnqn, nsid, protected)
            try:
                await asyncio.to_thread(self._store.save, new)
            except StateError as error:
                log.error("state.not_saved", reason=str(error))
                self.target.withdraw_protection(subnqn, nsid)
                done(NvmeStatusError(Status.INTERNAL_ERROR, str(error), dnr=False))
                return
            self._config = new
            self.target.apply(new, self.clock.monotonic())
        done(None)

    # -- what the data plane tells -----------------------------------------------------------------------------------

    def queue_closed(self, key: int, qid: int, reason: str) -> None:
        self.fabric.queue_closed(key, qid, reason)

    def bdev_changed(self, name: str, facts: BdevFacts | None) -> None:
        if facts is None:
            self._facts.pop(name, None)
            log.error("bdev.lost", bdev=name)
        else:
            self._facts[name] = facts
        self.target.set_bdev(name, facts, self.clock.monotonic())
        self.staging.wake()

    def namespace_found(self, name: str) -> None:
        found = namespace_of(self._config, name)
        if found is not None and name not in self._facts:  # a new one, or one that is back
            task = asyncio.create_task(self._adopt_late(found[0]))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    def pool_lost(self, name: str, why: str) -> None:
        self.staging.lost(name, why)

    def pool_withdrawn(self, name: str, bdev: str) -> None:
        self.staging.withdrawn(name, bdev)

    def _pool_gone(self, name: str) -> None:
        """The bdevs in it are closed; ``_retry`` opens them again, empty, when the pool is back."""
        lying = [
            bdev.name for bdev in self._config.bdevs.values() if bdev.provider == name and bdev.name in self._facts
        ]
        self._close_soon(lying, "its provider's memory is gone, and the data with it")

    def _bdev_broken(self, name: str) -> None:
        """It is opened again when what a probe has overwritten is put back (``Journals.restore``)."""
        self._close_soon([name], "a probe could not put back what it had overwritten")

    def _close_soon(self, names: list[str], why: str) -> None:
        if names:
            task = asyncio.create_task(self._close_lost(names, why))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_lost(self, names: list[str], why: str) -> None:
        async with self._committing:
            for name in names:
                await self._close_stack(name, why)

    async def _close_stack(self, name: str, why: str) -> None:
        for above in bdevs_on(self._config, name):
            await self._close_stack(above.name, why)
        if self._facts.pop(name, None) is not None:
            log.error("bdev.lost", bdev=name, reason=why, note="it is opened again when it can be")
            self.target.set_bdev(name, None, self.clock.monotonic())
            await self.fabric.effects.settle()
            await self._close_bdev(name)

    def io_command(self, key: int, qid: int, sqe: Sqe) -> None:
        self.target.io_queue_command(key, qid, sqe, self.clock.monotonic())

    def rdma_connected(self, link: RdmaLink, connection: RdmaConnection) -> RdmaReceiver | None:
        return self.fabric.rdma_connected(link, connection)

    def listener_lost(self, address: ListenAddress, reason: str) -> None:
        log.error("listener.absent", note="tried again every second", traddr=address.traddr, reason=reason)
        if address in reconcile.addresses(self._config):
            self._unbound[address] = None

    # -- start and stop ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads the state and serves it. Raises ``StateError``; what is absent is retried, not fatal."""
        config = await asyncio.to_thread(self._store.load)
        await self.dataplane.start(self, config.bdevs.values())
        if self.dataplane.slow:
            log.warning("dataplane.slow", engine=self.dataplane.name, note="I/O is served in Python: right, but slow")
        self._config = config
        now = self.clock.monotonic()
        self.target.apply(config, now)
        await self.staging.start()
        await self.drives.start()
        for bdev in config.bdevs.values():
            await self._try_bdev(bdev, first=True)
        self._staging_task = asyncio.create_task(self._stage(), name="staging")
        await self.staging.settled(START_MAX_S)  # drives are measured before hosts come, as far as that goes
        for address in reconcile.addresses(config):
            await self._try_bind(address, first=True)
        await self.fabric.effects.settle()
        self._retrying = asyncio.create_task(self._retry(), name="retry absent")
        for name in config.nvme_controllers.keys() - self.drives.absent.keys():
            await self._adopt_late(name)  # what it has got while we were away

    async def stop(self) -> None:
        """Ends associations, drains I/O, closes everything. What was acknowledged is in the back ends."""
        self.staging.stop()
        await self.drives.stop()
        for task in (self._retrying, self._staging_task):
            if task is not None:
                task.cancel()
        await self.fabric.stop()
        if self._protecting:
            await asyncio.wait(self._protecting)
        await self.dataplane.stop()
        self._store.close()

    async def _stage(self) -> None:
        while True:
            try:
                await self.staging.work()
            except Exception:  # a mistake of ours; placements must not stay as they are for ever because of it
                log.exception("staging.failed")
                await asyncio.sleep(RETRY_S)
                self.staging.wake()

    async def _retry(self) -> None:
        while True:
            await asyncio.sleep(RETRY_S)
            if self._facts.keys() >= self._config.bdevs.keys() and not self._unbound:
                continue
            try:
                await self._retry_once()
            except Exception:  # a mistake of ours; what is absent must not stay so for ever because of it
                log.exception("retry.failed")

    async def _retry_once(self) -> None:
        async with self._committing:
            for bdev in [bdev for name, bdev in self._config.bdevs.items() if name not in self._facts]:
                await self._try_bdev(bdev)
            for address in list(self._unbound):
                await self._try_bind(address)

    async def _try_bdev(self, bdev: BdevConfig, *, first: bool = False) -> None:
        try:
            found = await self._open_bdev(bdev, self._config)
        except OperatorError as error:
            if first:
                log.error("bdev.absent", bdev=bdev.name, note="its namespaces come when it does", reason=error.message)
            return
        self._facts[bdev.name] = found
        await self._learn(found)
        self.target.set_bdev(bdev.name, found, self.clock.monotonic())
        self.staging.wake()
        if not first:
            log.info("bdev.present", bdev=bdev.name)

    async def _learn(self, found: BdevFacts) -> None:
        """Which namespace an nvme bdev is that was opened for the first time."""
        known = with_identities(self._config, [found])
        if known is self._config:
            return
        self._config = known
        try:
            await asyncio.to_thread(self._store.save, known)
        except StateError as error:  # the next commit writes it as well
            log.error("nvme.not_saved", bdev=found.name, reason=str(error))

    async def _try_bind(self, address: ListenAddress, *, first: bool = False) -> None:
        sock = None
        try:
            if address.trtype == "RDMA":
                await self.dataplane.listen(address, self._config.transports[address.trtype])
            else:
                sock = self.fabric.listeners.bind(address)
        except OperatorError as error:
            if first:
                log.error("listener.absent", note="tried again every second", reason=error.message)
            self._unbound[address] = None
            return
        self._unbound.pop(address, None)
        if sock is not None:
            self.fabric.listeners.start(address, sock)


def _raise_descriptor_limit() -> None:
    """One descriptor a connection: the soft limit of 1,024 is a mistake waiting for its thousandth host."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(settings: Settings) -> None:
    """Runs the target until SIGTERM or SIGINT. Raises ``StateError`` or ``OperatorError`` when it cannot start."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        daemon = Daemon(settings, FileStore(settings.state_dir), await choose_dataplane(settings))
        stack.push_async_callback(daemon.stop)
        await daemon.start()
        admin = AdminServer(Dispatcher(daemon, METHODS), settings.rpc_socket)
        await admin.start()
        stack.push_async_callback(admin.stop)
        if (address := settings.metrics_address) is not None:
            exposition = await metrics.serve(*address, daemon.snapshot)
            stack.callback(exposition.close)
        gc.freeze()  # what start-up built stays; the collector need not walk it again
        sd_notify.notify("READY=1")
        log.info("daemon.serving", rpc_socket=str(settings.rpc_socket), state_dir=str(settings.state_dir))
        await stop.wait()
        sd_notify.notify("STOPPING=1")
        log.info("daemon.stopping")


def run(settings: Settings) -> None:
    """Entry point of ``nvmet-p2p serve``: configures the process and runs ``serve`` on uvloop."""
    logs.configure(settings.log_level, settings.log_format)
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))
