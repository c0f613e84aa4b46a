"""Carries out what the target asks for, in order for each controller, without one controller waiting for another.

A reset that must wait for a slow drive holds up its own controller's effects and nobody else's; Keep Alive never comes
through here at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from nvmet_p2p.dataplane.port import DataPlane
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.effects import (
    AbortIo,
    CloseIoQueue,
    CloseIoQueues,
    ControllerChanged,
    ControllerGone,
    ControllerKey,
    Effect,
)

log = structlog.get_logger()


class EffectRunner:
    """One chain of tasks for each controller key."""

    def __init__(self, dataplane: DataPlane, end_admin: Callable[[ControllerKey, str], None]) -> None:
        self._dataplane = dataplane
        self._end_admin = end_admin
        self._tails: dict[ControllerKey, asyncio.Task[None]] = {}
        self._views: dict[ControllerKey, asyncio.Task[None]] = {}  # the last change of a view, until it is in force

    def submit(self, effect: Effect) -> None:
        """Called by the target from inside its own code; returns at once."""
        key = effect.view.key if isinstance(effect, ControllerChanged) else effect.key
        task = self.run_after(key, lambda: self._carry_out(effect))
        if isinstance(effect, ControllerChanged):
            self._views[key] = task
            task.add_done_callback(lambda done: self._view_in_force(key, done))

    def _view_in_force(self, key: ControllerKey, task: asyncio.Task[None]) -> None:
        if self._views.get(key) is task:
            del self._views[key]

    def when_in_force(self, key: ControllerKey, call: Callable[[], None]) -> None:
        """Calls ``call`` when the data plane uses the controller's newest view: now, if it does already."""
        pending = self._views.get(key)
        if pending is None:
            call()
        else:
            pending.add_done_callback(lambda _task: call())

    def run_after(self, key: ControllerKey, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Runs ``work`` when everything submitted for ``key`` so far is done."""
        before = self._tails.get(key)
        task = asyncio.create_task(self._chain(key, before, work))
        self._tails[key] = task
        return task

    async def settle(self) -> None:
        """Returns when all that was submitted before the call has been carried out."""
        tails = list(self._tails.values())
        if tails:
            await asyncio.wait(tails)

    async def _chain(
        self, key: ControllerKey, before: asyncio.Task[None] | None, work: Callable[[], Awaitable[None]]
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            await work()
        finally:
            if self._tails.get(key) is asyncio.current_task():
                del self._tails[key]

    async def _carry_out(self, effect: Effect) -> None:
        try:
            match effect:
                case ControllerChanged():
                    await self._dataplane.controller_set(effect.view)
                case ControllerGone():
                    await self._dataplane.controller_remove(effect.key)
                    self._end_admin(effect.key, effect.reason)
                case CloseIoQueues():
                    await self._dataplane.queue_close(effect.key, None)
                    effect.done()
                case CloseIoQueue():
                    await self._dataplane.queue_close(effect.key, effect.qid)
                case AbortIo():
                    effect.done(await self._dataplane.abort(effect.key, effect.qid, effect.cid))
        except OperatorError as error:
            log.error("dataplane.refused", effect=type(effect).__name__, reason=error.message)
            self._refused(effect)

    def _refused(self, effect: Effect) -> None:
        """A data plane that knows nothing of a controller or queue has nothing in flight for it: nobody may wait."""
        match effect:
            case ControllerGone():
                self._end_admin(effect.key, effect.reason)
            case CloseIoQueues():
                effect.done()
            case AbortIo():
                effect.done(False)
