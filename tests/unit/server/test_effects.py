"""Effects: in order for one controller, independent between controllers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server.effects import EffectRunner
from nvmet_p2p.target.effects import (
    AbortIo,
    CloseIoQueue,
    CloseIoQueues,
    ControllerChanged,
    ControllerGone,
    ControllerView,
)


class SlowPlane:
    """Records calls; those of the controllers in ``held`` wait until they are let go."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.held: dict[int, asyncio.Event] = {}
        self.refuse = False

    async def _call(self, key: int, *what: Any) -> None:
        if key in self.held:
            await self.held[key].wait()
        self.calls.append((key, *what))
        if self.refuse:
            raise OperatorError(-19, "No such device")

    async def controller_set(self, view: ControllerView) -> None:
        await self._call(view.key, "set")

    async def controller_remove(self, key: int) -> None:
        await self._call(key, "remove")

    async def queue_close(self, key: int, qid: int | None) -> None:
        await self._call(key, "close", qid)

    async def abort(self, key: int, qid: int, cid: int) -> bool:
        await self._call(key, "abort", qid, cid)
        return cid == 7


def view(key: int) -> ControllerView:
    return ControllerView(key=key, subnqn="s", hostnqn="h", cntlid=key, mdts_bytes=4096)


@pytest.fixture
def plane() -> SlowPlane:
    return SlowPlane()


def runner(plane: SlowPlane, ended: list[tuple[int, str]]) -> EffectRunner:
    return EffectRunner(plane, lambda key, reason: ended.append((key, reason)))  # type: ignore[arg-type]


async def test_effects_of_one_controller_keep_their_order(plane: SlowPlane) -> None:
    ended: list[tuple[int, str]] = []
    done: list[Any] = []
    run = runner(plane, ended)
    plane.held[1] = asyncio.Event()
    run.submit(ControllerChanged(view(1)))
    run.submit(CloseIoQueues(1, "reset", lambda: done.append("closed")))
    run.submit(AbortIo(1, 2, 7, done.append))
    run.submit(CloseIoQueue(1, 2, "Disconnect"))
    run.submit(ControllerGone(1, "gone"))
    settled = asyncio.create_task(run.settle())
    await asyncio.sleep(0)
    assert plane.calls == []
    assert ended == []
    assert not settled.done()
    plane.held[1].set()
    await settled
    assert plane.calls == [(1, "set"), (1, "close", None), (1, "abort", 2, 7), (1, "close", 2), (1, "remove")]
    assert done == ["closed", True]
    assert ended == [(1, "gone")]


async def test_a_slow_controller_holds_up_nobody_else(plane: SlowPlane) -> None:
    run = runner(plane, [])
    plane.held[1] = asyncio.Event()
    run.submit(CloseIoQueues(1, "reset", lambda: None))
    run.submit(ControllerChanged(view(2)))
    first = asyncio.create_task(run.settle())
    for _ in range(10):
        await asyncio.sleep(0)
    assert plane.calls == [(2, "set")]
    assert not first.done()
    plane.held[1].set()
    await first


async def test_a_refusal_does_not_stop_what_follows(plane: SlowPlane) -> None:
    ended: list[tuple[int, str]] = []
    run = runner(plane, ended)
    plane.refuse = True
    run.submit(ControllerChanged(view(1)))
    await run.settle()
    plane.refuse = False
    run.submit(ControllerGone(1, "gone"))
    await run.settle()
    assert ended == [(1, "gone")]


async def test_what_tells_of_a_change_waits_for_it(plane: SlowPlane) -> None:
    run = runner(plane, [])
    said: list[str] = []
    run.when_in_force(1, lambda: said.append("nothing to wait for"))
    plane.held[1] = asyncio.Event()
    run.submit(ControllerChanged(view(1)))
    run.submit(ControllerChanged(view(1)))
    run.when_in_force(1, lambda: said.append("in force"))
    run.when_in_force(2, lambda: said.append("another's"))
    await asyncio.sleep(0)
    assert said == ["nothing to wait for", "another's"]
    plane.held[1].set()
    await run.settle()
    await asyncio.sleep(0)
    assert said[2:] == ["in force"]
    assert plane.calls == [(1, "set")] * 2


async def test_nobody_waits_for_what_was_refused(plane: SlowPlane) -> None:
    ended: list[tuple[int, str]] = []
    done: list[Any] = []
    run = runner(plane, ended)
    plane.refuse = True
    run.submit(CloseIoQueues(1, "reset", lambda: done.append("closed")))
    run.submit(AbortIo(1, 2, 7, done.append))
    run.submit(ControllerGone(1, "gone"))
    await run.settle()
    assert (done, ended) == (["closed", False], [(1, "gone")])
