"""Keeps the NVMe controllers of the configuration attached in the data plane, whatever comes and goes.

A controller that is absent is looked for as long as it is configured, with growing pauses; its bdevs are opened by the
daemon's retry once it is there. Namespaces that a controller has and that nobody has declared become bdevs.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

import structlog

from nvmet_p2p.dataplane.port import DataPlane, NvmeNamespace, NvmePlane
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import NvmeControllerConfig, NvmeHotplug, NvmeOptions, TargetConfig
from nvmet_p2p.target.operations_nvme import bdevs_of

log = structlog.get_logger()

LOOK_S: Final = 1.0
PAUSE_MAX_S: Final = 16.0
START_S: Final = 10.0  # how long drives and targets that do not answer hold up the start
LOOK_ANYWAY: Final = 8  # every so many looks all controllers are asked for, though nothing is known to be absent
GONE: Final = ("removed", "failed")
T = TypeVar("T")
NO_DRIVER: Final = "the in-process data plane has no NVMe driver; the native one has, where it is built with SPDK"


class Drives:
    """``found`` is called with the name of a controller that was attached late. Inside of ``changing`` (a PCI address)
    nobody else has anything to do with a drive."""

    def __init__(
        self,
        dataplane: DataPlane,
        model: Callable[[], TargetConfig],
        is_open: Callable[[str], bool],
        found: Callable[[str], Awaitable[None]],
        changing: Callable[[str], AbstractAsyncContextManager[None]],
    ) -> None:
        self._dataplane = dataplane
        self._model = model
        self._is_open = is_open
        self._found = found
        self._changing = changing
        self._addresses: dict[str, str] = {}  # of the drives that were attached
        self._busy: dict[str, asyncio.Lock] = {}
        self.absent: dict[str, str] = {}  # controllers, and why
        self._due: dict[str, tuple[float, float]] = {}  # when an absent one is tried again, and the pause after that
        self._left: set[str] = set()  # to be detached, and refused so far
        self._looks = 0
        self._started = False
        self._first: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def _nvme(self) -> NvmePlane:
        nvme = self._dataplane.nvme
        if nvme is None:
            raise OperatorError(-errno.EOPNOTSUPP, NO_DRIVER)
        return nvme

    # -- for a commit ------------------------------------------------------------------------------------------------

    async def attach(self, controller: NvmeControllerConfig) -> None:
        """Raises ``OperatorError``: it is not there, or the data plane has no such thing."""
        async with self._busy.setdefault(controller.name, asyncio.Lock()):
            if controller.name in self._left:
                raise OperatorError(-errno.EBUSY, f"controller {controller.name!r} is still being detached")
            await self._attach(controller)
            self._is_there(controller.name)

    async def detach(self, name: str) -> None:
        """Waits for an attempt to attach it that is under way. What goes wrong is no longer the caller's affair."""
        async with self._busy.setdefault(name, asyncio.Lock()):
            self._is_there(name)
            await self._leave(name)

    async def _leave(self, name: str) -> None:
        try:
            await self._detach(name)
        except OperatorError as error:
            if name not in self._left:
                log.error("nvme.not_detached", controller=name, note="tried again", reason=error.message)
            self._left.add(name)
        else:
            self._left.discard(name)

    async def _attach(self, controller: NvmeControllerConfig) -> None:
        bdevs = bdevs_of(self._model(), controller.name)
        known = {bdev.nsid: bdev.identity for bdev in bdevs if bdev.identity}
        if controller.trtype != "PCIe":
            await self._nvme().attach(controller, known)
            return
        async with self._changing(controller.traddr):
            await self._nvme().attach(controller, known)
        self._addresses[controller.name] = controller.traddr

    async def _detach(self, name: str) -> None:
        address = self._addresses.get(name)
        if address is None:
            await self._nvme().detach(name)
            return
        async with self._changing(address):
            await self._nvme().detach(name)
        self._addresses.pop(name, None)

    async def set_options(self, options: NvmeOptions) -> None:
        await self._nvme().set_options(options)

    async def set_hotplug(self, hotplug: NvmeHotplug) -> None:
        await self._nvme().set_hotplug(hotplug)

    async def namespaces(self, name: str) -> tuple[NvmeNamespace, ...]:
        """What an attached controller has that can be a bdev."""
        found = await self._nvme().namespaces(name)
        for namespace in found:
            if namespace.refused:
                log.warning("nvme.namespace_refused", namespace=namespace.name, reason=namespace.refused)
        return tuple(namespace for namespace in found if not namespace.refused)

    # -- start, and all the time -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Attaches what the configuration has, as far as it is there; drops what it does not have."""
        config = self._model()
        if self._dataplane.nvme is not None:
            await self._drop_unexpected(config)
            await self._say("options", config.nvme_options, NvmeOptions(), self.set_options)
            self._first = {asyncio.create_task(self._try(c, first=True)) for c in config.nvme_controllers.values()}
            if self._first:
                await asyncio.wait(self._first, timeout=START_S)
            self._started = True
            await self._say("hotplug", config.nvme_hotplug, NvmeHotplug(enable=False), self.set_hotplug)
            self._task = asyncio.create_task(self._look(), name="absent controllers")
        elif config.nvme_controllers:
            for name in config.nvme_controllers:
                self.absent[name] = NO_DRIVER
            log.error("nvme.absent", controllers=list(config.nvme_controllers), reason=NO_DRIVER)

    async def stop(self) -> None:
        tasks = [task for task in (self._task, *self._first) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _say(self, what: str, given: T | None, default: T, tell: Callable[[T], Awaitable[None]]) -> None:
        if given is None or given == default:
            return
        try:
            await tell(given)
        except OperatorError as error:
            log.error("nvme.refused", what=what, reason=error.message)

    async def _drop_unexpected(self, config: TargetConfig) -> None:
        """A data plane that ran before us may have more than we ask for."""
        try:
            found = await self._nvme().controllers()
        except OperatorError as error:
            log.error("nvme.unknown", reason=error.message)
            return
        for name in found.keys() - config.nvme_controllers.keys():
            await self.detach(name)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look_once()
            except OperatorError as error:
                log.debug("nvme.look", reason=error.message)

    async def _look_once(self) -> None:
        for name in list(self._left):
            async with self._busy.setdefault(name, asyncio.Lock()):
                if name in self._left:
                    await self._leave(name)
        config = self._model()
        self._looks += 1
        waits = self.absent or any(
            not self._is_open(bdev.name) for bdev in config.bdevs.values() if bdev.kind == "nvme"
        )
        if not config.nvme_controllers or not (waits or self._looks % LOOK_ANYWAY == 0):
            return
        there = await self._nvme().controllers()
        by_itself = config.nvme_hotplug is not None and config.nvme_hotplug.enable
        for controller in config.nvme_controllers.values():
            shown = there.get(controller.name)
            if shown is None:
                await self._try(controller)
            elif not self._is_lost(config, controller, shown):
                self._is_there(controller.name)
            elif not (by_itself and controller.trtype == "PCIe"):
                await self._try(controller, again=True)

    def _is_lost(self, config: TargetConfig, controller: NvmeControllerConfig, shown: Mapping[str, Any]) -> bool:
        """What is left of it in the data plane serves nothing any more."""
        return shown.get("state") in GONE and not any(
            self._is_open(bdev.name) for bdev in bdevs_of(config, controller.name)
        )

    async def _try(self, controller: NvmeControllerConfig, *, first: bool = False, again: bool = False) -> None:
        """``again``: the data plane has what is left of a controller that was lost."""
        name = controller.name
        now = asyncio.get_running_loop().time()
        due, pause = self._due.get(name, (now, LOOK_S))
        if now < due:
            return
        async with self._busy.setdefault(name, asyncio.Lock()):
            if self._model().nvme_controllers.get(name) != controller:
                return  # it was detached meanwhile
            try:
                if again:
                    await self._detach(name)
                await self._attach(controller)
            except OperatorError as error:
                if first or name not in self.absent:
                    note = "its bdevs come when it does"
                    log.error("nvme.absent", controller=name, note=note, reason=error.message)
                self.absent[name] = error.message
                self._due[name] = asyncio.get_running_loop().time() + pause, min(2 * pause, PAUSE_MAX_S)
                return
            self._is_there(name)
        if self._started:
            log.info("nvme.present", controller=name)
            await self._found(name)

    def _is_there(self, name: str) -> None:
        self.absent.pop(name, None)
        self._due.pop(name, None)
