"""The native data plane as the daemon knows it: the model that it was told, and a helper that is kept in step with it.

A helper that ends, in whatever way, takes its I/O queues with it and nothing else: the control plane is told of each
queue, a new helper is started (at once, then with growing pauses), and gets the back ends and the controllers again.
Controllers live on, since their admin queues are in the control plane; hosts connect their I/O queues again by
themselves. A socket that is handed over meanwhile waits for the new helper.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import Iterable
from typing import Any, Final

import structlog
from msgspec.structs import replace

from nvmet_p2p.dataplane.native import calls
from nvmet_p2p.dataplane.native.activity import Activity, QueueSlot
from nvmet_p2p.dataplane.native.helper import Helper, LaunchOptions
from nvmet_p2p.dataplane.native.leftovers import put_back
from nvmet_p2p.dataplane.native.messages import (
    Adopted,
    BdevChanged,
    Message,
    PoolLost,
    QueueClosed,
    Upcall,
    build_upcall_done,
)
from nvmet_p2p.dataplane.native.nvme import NativeNvme
from nvmet_p2p.dataplane.native.pools import NativePools
from nvmet_p2p.dataplane.native.rdma import RdmaMethods, RdmaSide
from nvmet_p2p.dataplane.native.rpc import LinkLostError
from nvmet_p2p.dataplane.native.views import ViewSender
from nvmet_p2p.dataplane.port import DataPlaneEvents, DataPlaneStatus, IoStat, QueueHandoff, QueueStat, RdmaHandoff
from nvmet_p2p.errors import InvariantError, NvmeStatusError, OperatorError
from nvmet_p2p.state.journal import Journals
from nvmet_p2p.target.config import BdevConfig, BdevFacts
from nvmet_p2p.target.effects import ControllerKey, ControllerView
from nvmet_p2p.wire.sqe import Sqe

log = structlog.get_logger()

PAUSE_FIRST_S: Final = 0.1
PAUSE_MAX_S: Final = 10.0
HEALTHY_S: Final = 30.0  # a helper that has lived so long is restarted at once again
READY_WAIT_S: Final = 8.0  # how long a call waits for a helper that is being restarted
REFRESH_S: Final = 1.0
WATCHDOG_S: Final = 5.0
WATCHDOG_TIMEOUT_S: Final = 30.0  # a control thread that has not answered for so long hangs
IOSTAT_NAMES: Final = 64  # a call: SPDK's client parses its answer again for each 4 KiB that arrive
STAGING_SHARE: Final = 20  # with thousands of back ends that answer is long: no more of the time goes into it


class NativeDataPlane(RdmaMethods):
    """See the module. All methods are called on one event loop."""

    slow = False

    def __init__(self, options: LaunchOptions, *, name: str = "native", journals: Journals | None = None) -> None:
        self.name = name
        self._pools = NativePools(self._call, self._allowed_now)
        self.nvme = NativeNvme(self._call)
        self._journals = journals
        self._options = options
        self._events: DataPlaneEvents | None = None
        self._helper: Helper | None = None
        self._ready = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._refresher: asyncio.Task[None] | None = None
        self._activity = Activity()
        self._bdevs: dict[str, BdevConfig] = {}
        self._found: dict[str, dict[str, Any]] = {}  # back ends of a helper that ran before us, not asked for yet
        self._views: dict[ControllerKey, ControllerView] = {}
        self._stale: set[ControllerKey] = set()  # views that the helper which is being filled does not have
        self._sender = ViewSender(self._pools, self._bdevs)
        self._queues: dict[ControllerKey, dict[int, QueueSlot]] = {}
        self._adopting: dict[int, QueueSlot] = {}  # by token
        self._leaving: set[tuple[ControllerKey, int]] = set()  # disconnected: the helper closes them by itself
        self._rdma = RdmaSide(self._call)
        self._past: dict[ControllerKey, int] = {}  # commands of queues that are closed
        self._lost: dict[str, None] = {}  # back ends whose file or device is gone, to be closed; layers first
        self._tasks: set[asyncio.Task[None]] = set()  # what their changes have set off
        self._iostat: dict[str, IoStat] = {}
        self._outstanding: dict[tuple[ControllerKey, int], int] = {}
        self._zero_copy = (0, 0)
        self._refreshing = asyncio.Lock()
        self._staging_due = 0.0
        self._restarts = 0
        self._last_exit = ""
        self._up_since = 0.0

    @property
    def pools(self) -> NativePools | None:
        """``None`` before ``launch``, and where the data plane is an older one without pools."""
        return self._pools if self._pools.supported else None

    # -- life --------------------------------------------------------------------------------------------------------

    async def launch(self) -> None:
        """Starts, or connects to, the helper for the first time. Raises ``OperatorError``: then there is none."""
        helper = await Helper.launch(self._options, self._activity, self._received)
        self._up_since = time.monotonic()
        try:
            shown = await helper.call("bdev_get_bdevs")
            await self._pools.empty(helper.call)
        except LinkLostError as error:
            await helper.end()
            raise OperatorError(-errno.ENOTCONN, f"the native data plane does not start: {error}") from error
        self._helper = helper
        self._found = {entry["name"]: entry for entry in shown}
        log.info("dataplane.started", engine=self.name, pid=helper.pid)

    async def start(self, events: DataPlaneEvents, expected: Iterable[BdevConfig] = ()) -> None:
        self._events = events
        if self._helper is None:
            await self.launch()
        await self._drop_unexpected({config.name: config for config in expected})
        self._ready.set()
        self._supervisor = asyncio.create_task(self._supervise(), name="data plane supervision")
        self._refresher = asyncio.create_task(self._watch(), name="data plane counters")

    async def stop(self) -> None:
        for task in (self._supervisor, self._refresher, *self._tasks):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        helper, self._helper = self._helper, None
        self._ready.clear()
        if helper is not None:
            if helper.process is None:
                await self._leave(helper)
            await helper.end(drain=True)
        self._activity.close()

    async def _leave(self, helper: Helper) -> None:
        """An orderly stop leaves a helper that is not ours without controllers and without back ends."""
        with contextlib.suppress(LinkLostError):
            for key in list(self._views):
                await helper.call("p2p_controller_remove", {"key": key})
            for config in reversed(self._bdevs.values()):
                with contextlib.suppress(OperatorError):
                    await helper.call(f"bdev_{config.kind}_delete", {"name": config.name})
            await self.nvme.leave(helper.call)

    async def _drop_unexpected(self, expected: dict[str, BdevConfig]) -> None:
        """Closes what a helper that ran before us has open and the configuration does not ask for."""
        for name, shown in reversed(list(self._found.items())):
            config = expected.get(name)
            if config is None or not calls.is_same_bdev(config, shown):
                log.warning("dataplane.leftover", bdev=name, note="open in the data plane, not in the configuration")
                del self._found[name]
                if calls.kind_of(shown) != "nvme":  # it goes with its controller
                    await self._call(f"bdev_{calls.kind_of(shown)}_delete", {"name": name}, wait=False)

    async def _supervise(self) -> None:
        pause = PAUSE_FIRST_S
        while True:
            helper = self._helper
            assert helper is not None
            reason = await asyncio.shield(helper.lost)
            if time.monotonic() - self._up_since >= HEALTHY_S:
                pause = PAUSE_FIRST_S
            await self._down(helper, reason)
            while True:
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_MAX_S)
                if await self._restart():
                    break

    async def _down(self, helper: Helper, reason: str) -> None:
        self._ready.clear()
        self._last_exit = reason
        log.error("dataplane.lost", reason=reason, pid=helper.pid, note="hosts connect again by themselves")
        gone = [queue for queues in self._queues.values() for queue in queues.values()]
        for queue in gone:
            self._forget(queue)
            if queue.adopted:
                self._tell().queue_closed(queue.key, queue.qid, f"the data plane is gone: {reason}")
        self._rdma.lost(f"the data plane is gone: {reason}")
        self._lost.clear()
        self._leaving.clear()
        self._adopting.clear()
        self._outstanding.clear()
        self._zero_copy = (0, 0)
        await helper.end()

    async def _restart(self) -> bool:
        self._restarts += 1
        try:
            helper = await Helper.launch(self._options, self._activity, self._received)
        except OperatorError as error:
            self._last_exit = error.message
            log.error("dataplane.not_restarted", reason=error.message)
            return False
        self._helper = helper
        self._up_since = time.monotonic()
        try:
            await self._refill(helper)
        except (LinkLostError, OperatorError) as error:
            log.error("dataplane.not_restarted", reason=str(error))
            helper.lose("it could not be given the configuration")
            return True  # the supervision sees its end
        self._ready.set()
        log.info("dataplane.restarted", pid=helper.pid, restarts=self._restarts)
        return True

    async def _refill(self, helper: Helper) -> None:
        """Gives the model to a new helper: the same calls as when it was made."""
        await self.nvme.refill(helper.call)  # first: a pool in a drive's memory would keep it from being attached
        lost = await self._pools.refill(helper.call)
        found = {entry["name"]: entry for entry in await helper.call("bdev_get_bdevs")}
        configs = list(self._bdevs.values())
        answers = await asyncio.gather(
            *(self._create(helper, config, found.get(config.name)) for config in configs), return_exceptions=True
        )
        for config, answer in zip(configs, answers, strict=True):
            if isinstance(answer, OperatorError):
                log.error("bdev.absent", bdev=config.name, reason=answer.message)
                self._bdevs.pop(config.name, None)
                self._tell().bdev_changed(config.name, None)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self._tell().bdev_changed(config.name, answer)
        await self._pools.allow_again(helper.call)
        for name, reason in lost.items():
            self._tell().pool_lost(name, reason)
        self._stale = set(self._views)
        while self._stale:
            view = self._views.get(self._stale.pop())
            if view is None:
                continue
            try:
                await self._sender.send(helper, view)
            except OperatorError as error:  # it names a back end that is absent now: another view is on its way
                log.warning("controller.refused", controller=view.key, reason=error.message)
        await self._rdma.refill(self._tell())

    async def _watch(self) -> None:
        """Keeps the counters fresh while there is I/O, and finds out a helper that hangs."""
        seen, asked = -1, time.monotonic()
        while True:
            await asyncio.sleep(REFRESH_S)
            await self._ready.wait()
            now = sum(self.io_activity(key) for key in self._queues)
            if now == seen and time.monotonic() - asked < WATCHDOG_S:
                continue
            helper = self._helper
            try:
                async with asyncio.timeout(WATCHDOG_TIMEOUT_S):
                    await (self.refresh(thrifty=True) if now != seen else self._call("spdk_get_version"))
                seen, asked = now, time.monotonic()
            except TimeoutError:
                if helper is not None:
                    helper.lose(f"no answer within {WATCHDOG_TIMEOUT_S:g} s")
            except OperatorError as error:
                log.warning("dataplane.counters", reason=error.message)

    # -- what the helper says ----------------------------------------------------------------------------------------

    def _tell(self) -> DataPlaneEvents:
        if self._events is None:
            raise InvariantError("an event before start()")
        return self._events

    def _received(self, message: Message) -> None:
        match message:
            case QueueClosed():
                self._leaving.discard((message.key, message.qid))
                queue = self._queues.get(message.key, {}).get(message.qid)
                if queue is not None and queue.adopted:
                    self._forget(queue)
                    self._tell().queue_closed(message.key, message.qid, message.reason)
            case Upcall():
                self._upcall(message)
            case BdevChanged():
                self._bdev_changed(message)
            case Adopted():
                adopting = self._adopting.pop(message.token, None)
                if adopting is not None:
                    adopting.adopted = message.rc == 0
            case PoolLost():
                self._tell().pool_lost(message.name, message.why)
            case _ if self._helper is not None:  # else we are stopping
                self._rdma.received(message, self._helper.channel, self._tell())

    def _upcall(self, message: Upcall) -> None:
        helper = self._helper
        if helper is None:
            return  # we are stopping
        try:
            self._tell().io_command(message.key, message.qid, Sqe.parse(message.sqe))
        except NvmeStatusError as error:
            helper.channel.send(build_upcall_done(message.token, int(error.status), dnr=error.dnr))
            return
        queue = self._queues.get(message.key, {}).get(message.qid)
        if queue is not None:  # Disconnect is the one command that succeeds
            self._forget(queue)
            self._leaving.add((message.key, message.qid))
        helper.channel.send(build_upcall_done(message.token, 0, close=True))

    def _bdev_changed(self, message: BdevChanged) -> None:
        config = self._bdevs.get(message.name)
        if config is None or message.name in self._lost:
            if message.present:
                self._tell().namespace_found(message.name)
            return
        if message.present:
            task = asyncio.create_task(self._read_facts(config), name=f"facts of {message.name}")
        elif config.kind == "nvme":  # it stays with its controller, and comes back with it
            del self._bdevs[message.name]
            self._tell().bdev_changed(message.name, None)
            return
        else:
            self._tell().bdev_changed(message.name, None)
            self._lost[message.name] = None
            if len(self._lost) > 1:
                return  # the task is at it
            task = asyncio.create_task(self._close_lost(), name="close what is lost")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_facts(self, config: BdevConfig) -> None:
        with contextlib.suppress(OperatorError):
            (shown,) = await self._call("bdev_get_bdevs", {"name": config.name})
            if shown.get("flush_failed"):
                note = "writes may have been lost: Flush and FUA fail until bdev_aio_rescan"
                log.error("bdev.flush_failed", bdev=config.name, note=note)
            if config.name in self._bdevs and config.name not in self._lost:
                self._tell().bdev_changed(config.name, calls.facts_of(config, shown))

    async def _close_lost(self) -> None:
        """Closes what is gone, in the order in which it was told, so that it can be opened when it is back."""
        while self._lost:
            name = next(iter(self._lost))
            try:
                await self.bdev_delete(name)
            except OperatorError as error:
                log.error("bdev.not_closed", bdev=name, reason=error.message)
            self._lost.pop(name, None)

    # -- calls -------------------------------------------------------------------------------------------------------

    async def _usable(self) -> Helper:
        """The helper, once it has the model. -ENOTCONN when none comes in time."""
        try:
            async with asyncio.timeout(READY_WAIT_S):
                await self._ready.wait()
        except TimeoutError:
            raise OperatorError(-errno.ENOTCONN, f"the data plane is down: {self._last_exit}") from None
        assert self._helper is not None
        return self._helper

    async def _call(self, method: str, params: dict[str, Any] | None = None, *, wait: bool = True) -> Any:
        helper = await self._usable() if wait else self._helper
        if helper is None:
            raise OperatorError(-errno.ENOTCONN, "the data plane is down")
        try:
            return await helper.call(method, params)
        except LinkLostError as error:
            raise OperatorError(-errno.ENOTCONN, f"the data plane is gone: {error}") from error

    async def forward(self, method: str, params: dict[str, Any]) -> Any:
        """A call of SPDK's that the data plane answers itself: injected errors, histograms."""
        return await self._call(method, params)

    async def _create(self, helper: Helper, config: BdevConfig, shown: dict[str, Any] | None) -> BdevFacts:
        if config.kind == "nvme":
            shown = await self.nvme.bdev(helper.call, config)
            if self._journals is not None:
                await put_back(self._journals, helper.call, config.name)
        elif shown is None or not calls.is_same_bdev(config, shown):
            if self._journals is not None:
                await asyncio.to_thread(self._journals.restore, config)
            shown = await helper.call(*calls.create_bdev(config))
        assert shown is not None
        limits = calls.qos_of(config)
        if any(limits.values()) or any(shown.get("assigned_rate_limits", {}).values()):
            await helper.call("bdev_set_qos_limit", {"name": config.name, **limits})
        return calls.facts_of(config, shown)

    async def bdev_create(self, config: BdevConfig) -> BdevFacts:
        helper = await self._usable()
        if config.name in self._bdevs:
            raise OperatorError(-errno.EEXIST, f"bdev {config.name} exists already")
        try:
            facts = await self._create(helper, config, self._found.pop(config.name, None))
        except LinkLostError as error:
            raise OperatorError(-errno.ENOTCONN, f"the data plane is gone: {error}") from error
        self._bdevs[config.name] = replace(config, identity=facts.identity or config.identity)
        return facts

    async def bdev_delete(self, name: str) -> None:
        config = self._bdevs.pop(name, None)
        if config is None:
            raise OperatorError(-errno.ENODEV, f"bdev {name} does not exist")
        self._iostat.pop(name, None)
        self._pools.forget_bdev(name)
        try:
            if config.kind != "nvme":  # that one goes with its controller
                await self._call(f"bdev_{config.kind}_delete", {"name": name})
        except OperatorError as error:
            if error.code not in (-errno.ENODEV, -errno.ENOTCONN):  # gone with the helper
                raise

    async def bdev_rescan(self, config: BdevConfig) -> BdevFacts:
        if config.name not in self._bdevs:
            raise OperatorError(-errno.ENODEV, f"bdev {config.name} does not exist")
        return calls.facts_of(config, await self._call("bdev_aio_rescan", {"name": config.name}))

    async def bdev_resize(self, config: BdevConfig) -> BdevFacts:
        if config.kind not in ("null", "malloc"):
            raise OperatorError(-errno.EINVAL, f"bdev {config.name} of kind {config.kind} has the size of its file")
        known = self._bdevs.get(config.name)
        if known is None:
            raise OperatorError(-errno.ENODEV, f"bdev {config.name} does not exist")
        answer = await self._call("bdev_null_resize", {"name": config.name, "num_blocks": config.num_blocks})
        self._bdevs[config.name] = replace(known, num_blocks=config.num_blocks)
        return calls.facts_of(config, answer)

    async def bdev_tune(self, config: BdevConfig) -> None:
        known = self._bdevs.get(config.name)
        if known is None:
            raise OperatorError(-errno.ENODEV, f"bdev {config.name} does not exist")
        if calls.qos_of(config) != calls.qos_of(known):
            await self._call("bdev_set_qos_limit", {"name": config.name, **calls.qos_of(config)})
        if config.latencies_us != known.latencies_us:
            for name, us in zip(calls.LATENCIES, config.latencies_us, strict=True):
                params = {"delay_bdev_name": config.name, "latency_type": name, "latency_us": us}
                await self._call("bdev_delay_update_latency", params)
        self._bdevs[config.name] = replace(config, num_blocks=known.num_blocks)

    async def controller_set(self, view: ControllerView) -> None:
        self._views[view.key] = view
        if not self._ready.is_set():
            self._stale.add(view.key)  # the new helper gets it; no command runs on the old view any more
            return
        with contextlib.suppress(LinkLostError):
            assert self._helper is not None
            await self._sender.send(self._helper, view)

    async def _allowed_now(self) -> None:
        """A bdev may use a pool from now on: views that already ask for it are sent again."""
        for key in self._sender.short():
            view = self._views.get(key)
            if view is not None and self._ready.is_set() and self._sender.can_be_whole(view):
                await self.controller_set(view)

    async def controller_remove(self, key: ControllerKey) -> None:
        self._views.pop(key, None)
        self._sender.forget(key)
        await self._close("p2p_controller_remove", {"key": key})
        self._forget_all(key)
        self._past.pop(key, None)

    async def _close(self, method: str, params: dict[str, Any]) -> None:
        """A call that ends something: without a helper it has ended already."""
        helper = self._helper
        if helper is not None and self.connected:
            with contextlib.suppress(LinkLostError):
                await helper.call(method, params)

    @property
    def connected(self) -> bool:
        """A helper is there, perhaps without the whole model yet."""
        return self._helper is not None and not self._helper.lost.done() and self._helper.rpc is not None

    # -- queues ------------------------------------------------------------------------------------------------------

    async def queue_adopt(self, handoff: QueueHandoff | RdmaHandoff) -> None:
        """On failure the connection stays the caller's."""
        helper = await self._usable()
        address = (handoff.key, handoff.qid)
        if handoff.key not in self._views:
            raise OperatorError(-errno.ENODEV, f"controller {handoff.key} is not known")
        if handoff.qid in self._queues.get(handoff.key, {}):
            raise OperatorError(-errno.EEXIST, f"I/O queue {address} exists already")
        if address in self._leaving:  # its predecessor has not said good-bye yet
            self._leaving.discard(address)
            await self._close("p2p_queue_close", {"key": handoff.key, "qid": handoff.qid})
        if isinstance(handoff, RdmaHandoff):
            self._rdma.adopting(handoff)
        slot = self._activity.take()
        if slot is None:
            raise OperatorError(-errno.ENOSPC, "there is no room for another I/O queue")
        token = helper.new_token()
        queue = QueueSlot(handoff.key, handoff.qid, handoff.peer, *slot)
        self._adopting[token] = queue
        self._queues.setdefault(handoff.key, {})[handoff.qid] = queue
        try:
            answer = await helper.adopt(token, queue.slot, handoff)
        except LinkLostError as error:
            self._forget(queue)
            raise OperatorError(-errno.ENOTCONN, f"the data plane is gone: {error}") from error
        if answer.rc < 0:
            self._forget(queue)
            raise OperatorError(answer.rc, answer.text or f"I/O queue {address} was refused")
        if isinstance(handoff, QueueHandoff):
            handoff.sock.close()  # the helper has a descriptor of its own

    def _forget(self, queue: QueueSlot) -> None:
        """It is closed; a second call does nothing."""
        mine = self._queues.get(queue.key, {})
        if mine.get(queue.qid) is not queue:
            return
        del mine[queue.qid]
        if not mine:
            del self._queues[queue.key]
        count = self._activity.count(queue.slot) - queue.base
        self._past[queue.key] = self._past.get(queue.key, 0) + count
        self._activity.give_back(queue.slot)
        self._outstanding.pop((queue.key, queue.qid), None)

    def _forget_all(self, key: ControllerKey) -> None:
        for queue in list(self._queues.get(key, {}).values()):
            self._forget(queue)

    async def queue_close(self, key: ControllerKey, qid: int | None) -> None:
        if qid is None:
            await self._close("p2p_queue_close", {"key": key})
            self._forget_all(key)
        elif (key, qid) not in self._leaving:
            await self._close("p2p_queue_close", {"key": key, "qid": qid})
            queue = self._queues.get(key, {}).get(qid)
            if queue is not None:
                self._forget(queue)

    async def abort(self, key: ControllerKey, qid: int, cid: int) -> bool:
        if not self.connected:
            return False
        try:
            return bool(await self._call("p2p_queue_abort", {"key": key, "qid": qid, "cid": cid}, wait=False))
        except OperatorError:
            return False  # it is gone, and the command with it

    # -- counters ----------------------------------------------------------------------------------------------------

    def io_activity(self, key: ControllerKey) -> int:
        queues = self._queues.get(key, {}).values()
        return self._past.get(key, 0) + sum(self._activity.count(queue.slot) - queue.base for queue in queues)

    async def refresh(self, *, thrifty: bool = False) -> None:
        async with self._refreshing:
            names = [name for name in self._bdevs if self.connected]
            for at in range(0, len(names), IOSTAT_NAMES):
                some = [name for name in names[at : at + IOSTAT_NAMES] if name in self._bdevs]
                with contextlib.suppress(OperatorError):  # one was deleted meanwhile: the next time, then
                    answer = await self._call("bdev_get_iostat", {"names": some}, wait=False)
                    self._iostat.update({shown["name"]: calls.iostat_of(shown) for shown in answer["bdevs"]})
            if self.connected and self._pools.supported and (not thrifty or time.monotonic() >= self._staging_due):
                began = time.monotonic()
                with contextlib.suppress(OperatorError):
                    self._pools.keep_counters(await self._call("p2p_get_staging", wait=False), self._tell())
                self._staging_due = began + (time.monotonic() - began) * STAGING_SHARE
            if self._queues and self.connected:
                with contextlib.suppress(OperatorError):
                    shown = await self._call("p2p_get_queues", wait=False)
                    self._outstanding = {(entry["key"], entry["qid"]): entry["outstanding"] for entry in shown}
                    self._zero_copy = calls.zero_copy_of(await self._call("p2p_get_reactors", wait=False))

    def iostat(self, name: str) -> IoStat | None:
        return self._iostat.get(name) or (IoStat() if name in self._bdevs else None)

    async def iostat_reset(self, name: str) -> None:
        if name in self._bdevs:
            await self._call("bdev_reset_iostat", {"name": name})
            self._iostat.pop(name, None)

    def queues(self, key: ControllerKey | None = None) -> list[QueueStat]:
        return [
            QueueStat(
                queue.key,
                queue.qid,
                queue.peer,
                self._activity.count(queue.slot) - queue.base,
                self._outstanding.get((queue.key, queue.qid), 0),
            )
            for queues in self._queues.values()
            for queue in queues.values()
            if key in (None, queue.key)
        ]

    def status(self) -> DataPlaneStatus:
        helper = self._helper
        up = helper is not None and self._ready.is_set()
        return DataPlaneStatus(
            up=up,
            pid=helper.pid if helper is not None and up else 0,
            restarts=self._restarts,
            last_exit=self._last_exit,
            rpc_socket=helper.rpc_socket if helper is not None else "",
            zero_copy_bytes=self._zero_copy[0],
            copied_bytes=self._zero_copy[1],
        )
