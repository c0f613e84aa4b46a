"""The in-process implementation of ``DataPlane``: back ends, controllers and I/O queues on the daemon's own loop."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable
from typing import Any, Final

import structlog

from nvmet_p2p.dataplane.inprocess.backend import Backend
from nvmet_p2p.dataplane.inprocess.bdev import open_bdev
from nvmet_p2p.dataplane.inprocess.controller import ControllerState
from nvmet_p2p.dataplane.inprocess.queue import IoQueue
from nvmet_p2p.dataplane.inprocess.queue_socket import RECEIVE_BYTES
from nvmet_p2p.dataplane.port import (
    DataPlaneEvents,
    DataPlaneStatus,
    IoStat,
    QueueHandoff,
    QueueStat,
    RdmaHandoff,
    RdmaStatus,
)
from nvmet_p2p.errors import InvariantError, OperatorError
from nvmet_p2p.state.journal import Journals
from nvmet_p2p.target.config import QOS_LIMITS, BdevConfig, BdevFacts, ListenAddress, TransportConfig
from nvmet_p2p.target.effects import ControllerKey, ControllerView

log = structlog.get_logger()

ONLY_NATIVE: Final = "only the native data plane has it"
RESIZABLE: Final = frozenset({"null", "malloc"})


def _operator_error(error: OSError, what: str) -> OperatorError:
    code = error.errno or errno.EIO
    return OperatorError(-code, f"{what}: {error.strerror or os.strerror(code)}")


class InProcessDataPlane:
    """Serves I/O queues in Python. All methods are called on one event loop."""

    name = "inprocess"
    slow = True
    pools = None
    nvme = None

    def __init__(self, journals: Journals | None = None) -> None:
        self._journals = journals
        self._events: DataPlaneEvents | None = None
        self._backends: dict[str, Backend] = {}
        self._opening: set[str] = set()
        self._controllers: dict[ControllerKey, ControllerState] = {}
        self._queues: dict[tuple[ControllerKey, int], IoQueue] = {}
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))  # all queues parse what they receive before they return

    async def start(self, events: DataPlaneEvents, expected: Iterable[BdevConfig] = ()) -> None:
        """Nothing runs until a queue is adopted."""
        self._events = events

    async def stop(self) -> None:
        """Ends every queue, then closes every back end."""
        await self._close_queues(list(self._queues.values()))
        self._controllers.clear()
        for name, backend in list(self._backends.items()):
            if backend.closing:
                await backend.users.drained()  # a bdev_delete is at work on it
            else:
                await self.bdev_delete(name)

    # -- back ends

    async def bdev_create(self, config: BdevConfig) -> BdevFacts:
        if config.name in self._backends or config.name in self._opening:
            raise OperatorError(-errno.EEXIST, f"bdev {config.name} exists already")
        if config.kind in ("delay", "error", "cmb", "nvme"):
            raise OperatorError(-errno.EOPNOTSUPP, f"bdev {config.name} of kind {config.kind}: {ONLY_NATIVE}")
        if any(getattr(config, limit) for limit in QOS_LIMITS):
            log.warning("bdev.unlimited", bdev=config.name, note=f"its limits do not hold: {ONLY_NATIVE}")
        self._opening.add(config.name)
        try:
            if self._journals is not None:
                await asyncio.to_thread(self._journals.restore, config)
            bdev = await open_bdev(config)
        except OSError as error:
            raise _operator_error(error, f"bdev {config.name}: cannot open {config.filename or config.kind}") from error
        finally:
            self._opening.discard(config.name)
        self._backends[config.name] = Backend(config, bdev)
        return bdev.facts

    def _backend(self, name: str) -> Backend:
        backend = self._backends.get(name)
        if backend is None or backend.closing:
            raise OperatorError(-errno.ENODEV, f"bdev {name} does not exist")
        return backend

    async def bdev_delete(self, name: str) -> None:
        backend = self._backend(name)
        try:
            await backend.close()
        except OSError as error:  # close(2) may tell of an earlier write that failed: Flush is who says that to a host
            log.error("bdev.close", bdev=name, reason=error.strerror or str(error))
        finally:
            del self._backends[name]

    async def bdev_rescan(self, config: BdevConfig) -> BdevFacts:
        backend = self._backend(config.name)
        try:
            return await backend.rescan(config)
        except OSError as error:
            raise _operator_error(error, f"bdev {config.name}: cannot read its size") from error

    async def bdev_resize(self, config: BdevConfig) -> BdevFacts:
        if config.kind not in RESIZABLE:
            raise OperatorError(-errno.EINVAL, f"bdev {config.name} of kind {config.kind} has the size of its file")
        return await self.bdev_rescan(config)

    async def bdev_tune(self, config: BdevConfig) -> None:
        raise OperatorError(-errno.EOPNOTSUPP, f"limits and latencies of bdev {config.name}: {ONLY_NATIVE}")

    async def forward(self, method: str, params: dict[str, Any]) -> Any:
        raise OperatorError(-errno.EOPNOTSUPP, f"{method}: {ONLY_NATIVE}")

    async def refresh(self) -> None:
        """The counters are always those of the moment."""

    def status(self) -> DataPlaneStatus:
        return DataPlaneStatus(pid=os.getpid())

    def iostat(self, name: str) -> IoStat | None:
        backend = self._backends.get(name)
        return backend.stat if backend is not None else None

    async def iostat_reset(self, name: str) -> None:
        backend = self._backends.get(name)
        if backend is not None:
            backend.stat = IoStat()

    # -- controllers

    async def controller_set(self, view: ControllerView) -> None:
        controller = self._controllers.get(view.key)
        if controller is None:
            self._controllers[view.key] = ControllerState(view, self._backends)
            return
        for use in controller.replace(view):
            await use.users.drained()

    async def controller_remove(self, key: ControllerKey) -> None:
        self._controllers.pop(key, None)
        await self.queue_close(key, None)

    def io_activity(self, key: ControllerKey) -> int:
        controller = self._controllers.get(key)
        return controller.io_commands if controller is not None else 0

    # -- queues

    async def transport_create(self, config: TransportConfig) -> None:
        if config.trtype != "TCP":
            raise OperatorError(-errno.EOPNOTSUPP, f"transport {config.trtype}: {ONLY_NATIVE}")

    async def listen(self, address: ListenAddress, config: TransportConfig) -> None:
        raise OperatorError(-errno.EOPNOTSUPP, f"transport {config.trtype}: {ONLY_NATIVE}")

    async def unlisten(self, address: ListenAddress) -> None:
        """It never listens."""

    async def rdma_status(self) -> RdmaStatus:
        return RdmaStatus(False, ONLY_NATIVE)

    async def queue_adopt(self, handoff: QueueHandoff | RdmaHandoff) -> None:
        """On failure the connection stays the caller's."""
        if isinstance(handoff, RdmaHandoff):
            raise OperatorError(-errno.EOPNOTSUPP, f"NVMe/RDMA: {ONLY_NATIVE}")
        controller = self._controllers.get(handoff.key)
        if controller is None:
            raise OperatorError(-errno.ENODEV, f"controller {handoff.key} is not known")
        address = (handoff.key, handoff.qid)
        if address in self._queues:
            raise OperatorError(-errno.EEXIST, f"I/O queue {handoff.qid} of controller {handoff.key} exists already")
        try:
            self._queues[address] = IoQueue(handoff, controller, self._buffer, self._queue_ended)
        except OSError as error:
            raise _operator_error(error, f"I/O queue {handoff.qid} of controller {handoff.key}") from error

    def _queue_ended(self, queue: IoQueue, reason: str) -> None:
        self._forget(queue)
        if self._events is None:
            raise InvariantError("a queue ended before start()")
        self._events.queue_closed(queue.key, queue.qid, reason)

    def _forget(self, queue: IoQueue) -> None:
        if self._queues.get((queue.key, queue.qid)) is queue:
            del self._queues[queue.key, queue.qid]

    async def queue_close(self, key: ControllerKey, qid: int | None) -> None:
        mine = [queue for queue in self._queues.values() if queue.key == key and qid in (None, queue.qid)]
        await self._close_queues(mine)

    async def _close_queues(self, queues: list[IoQueue]) -> None:
        await asyncio.gather(*(queue.close() for queue in queues))
        for queue in queues:
            self._forget(queue)

    async def abort(self, key: ControllerKey, qid: int, cid: int) -> bool:
        queue = self._queues.get((key, qid))
        return queue is not None and queue.abort(cid)

    def queues(self, key: ControllerKey | None = None) -> list[QueueStat]:
        return [queue.stat() for queue in self._queues.values() if key in (None, queue.key)]
