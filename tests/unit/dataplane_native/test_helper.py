"""Starting and losing a helper: each way in which it can fail to come up, or go, is told and leaves nothing."""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from nvmet_p2p.dataplane.native import plane as plane_module
from nvmet_p2p.dataplane.native.helper import LaunchOptions
from nvmet_p2p.dataplane.native.plane import NativeDataPlane
from nvmet_p2p.dataplane.port import RdmaConnection, RdmaLink, RdmaReceiver
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import BdevConfig, BdevFacts, ListenAddress
from nvmet_p2p.target.effects import ControllerView
from nvmet_p2p.wire.sqe import Sqe

FAKE = Path(__file__).with_name("fake_helper.py")
Make = Callable[..., NativeDataPlane]


class Events:
    """What the data plane tells."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, int]] = []

    def queue_closed(self, key: int, qid: int, reason: str) -> None:
        self.closed.append((key, qid))

    def bdev_changed(self, name: str, facts: BdevFacts | None) -> None:
        raise AssertionError("no back end is open")

    def rdma_connected(self, link: RdmaLink, connection: RdmaConnection) -> RdmaReceiver | None:
        raise AssertionError("nothing is listened on")

    def listener_lost(self, address: ListenAddress, reason: str) -> None:
        raise AssertionError("nothing is listened on")

    def namespace_found(self, name: str) -> None:
        raise AssertionError("no controller is attached")

    def pool_lost(self, name: str, why: str) -> None:
        raise AssertionError("there is no pool")

    def pool_withdrawn(self, name: str, bdev: str) -> None:
        raise AssertionError("there is no pool")

    def io_command(self, key: int, qid: int, sqe: Sqe) -> None:
        raise AssertionError("no queue is open")


@pytest.fixture
def make() -> Iterator[Make]:
    with tempfile.TemporaryDirectory(prefix="nvmetp2p-") as folder:

        def made(manner: str, timeout_s: float = 20.0) -> NativeDataPlane:
            script = Path(folder) / "helper"
            command = shlex.join([sys.executable, str(FAKE), manner])
            script.write_text(f'#!/bin/sh\nrm -f {folder}/rpc\nexec {command} "$@"\n')
            script.chmod(0o755)
            return NativeDataPlane(
                LaunchOptions(program=script, rpc_socket=Path(folder) / "rpc", start_timeout_s=timeout_s)
            )

        yield made


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("manner", "text"),
    [
        ("exit-at-once", "exit status 5"),
        ("nonsense", "8 bytes on the capsule channel"),
        ("other-version", "version 2"),
        ("die-at-bdev_get_bdevs", "closed|gone|killed"),
    ],
)
async def test_one_that_does_not_come_up(make: Make, manner: str, text: str) -> None:
    plane = make(manner)
    with pytest.raises(OperatorError, match=text):
        await plane.launch()
    await plane.stop()


async def test_one_that_says_nothing(make: Make) -> None:
    plane = make("silent", timeout_s=0.5)
    with pytest.raises(OperatorError, match="no greeting within"):
        await plane.launch()
    await plane.stop()


async def test_no_program() -> None:
    options = LaunchOptions(program=Path("/nonexistent/helper"), rpc_socket=Path("/nonexistent/rpc"))
    plane = NativeDataPlane(options)
    with pytest.raises(OperatorError, match="cannot be started"):
        await plane.launch()
    await plane.stop()


async def test_error_of_a_call(make: Make) -> None:
    plane = make("good")
    await plane.start(Events())
    with pytest.raises(OperatorError, match="é: refused by the fake") as caught:
        await plane.bdev_create(BdevConfig(name="n", kind="null", uuid="u", block_size=512, num_blocks=1))
    assert caught.value.code == -22
    assert plane.iostat("n") is None
    await plane.stop()


@pytest.mark.parametrize("manner", ["die-at-p2p_controller_set", "malformed-at-p2p_controller_set"])
async def test_one_that_goes_during_a_call(make: Make, manner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call does not fail, for the next helper gets the view too; that one goes as well, with growing pauses."""
    monkeypatch.setattr(plane_module, "PAUSE_FIRST_S", 0.01)
    plane = make(manner)
    await plane.start(Events())
    await plane.controller_set(ControllerView(key=1, subnqn="s", hostnqn="h", cntlid=1, mdts_bytes=131072))
    await until(lambda: plane.status().restarts >= 2)
    assert plane.status().last_exit
    await plane.controller_remove(1)
    await until(lambda: plane.status().up)
    await plane.stop()


async def test_calls_while_it_is_away(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane_module, "READY_WAIT_S", 0.05)
    monkeypatch.setattr(plane_module, "PAUSE_FIRST_S", 60.0)
    plane = make("die-at-p2p_controller_set")
    await plane.start(Events())
    await plane.controller_set(ControllerView(key=1, subnqn="s", hostnqn="h", cntlid=1, mdts_bytes=131072))
    await until(lambda: not plane.status().up)
    refused: list[Awaitable[object]] = [
        plane.bdev_create(BdevConfig(name="n", kind="null", uuid="u", block_size=512, num_blocks=1)),
        plane.forward("bdev_get_histogram", {"name": "n"}),
    ]
    for call in refused:
        with pytest.raises(OperatorError, match="the data plane is down"):
            await call
    await plane.queue_close(1, None)
    assert await plane.abort(1, 1, 1) is False
    await plane.refresh()
    await plane.controller_remove(1)
    await plane.stop()
