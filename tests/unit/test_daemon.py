"""A commit in the daemon: all of it or nothing, whatever fails and whoever goes away."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from nvmet_p2p.config import Settings
from nvmet_p2p.daemon import Daemon
from nvmet_p2p.dataplane.inprocess.engine import InProcessDataPlane
from nvmet_p2p.errors import OperatorError, StateError
from nvmet_p2p.target.config import (
    BdevConfig,
    ListenAddress,
    ListenerConfig,
    NamespaceConfig,
    SubsystemConfig,
    TargetConfig,
    TransportConfig,
)
from tests.support.daemon import free_port
from tests.unit.dataplane.support import until

NQN = "nqn.2026-11.com.example:one"


class Store:
    """Keeps nothing; refuses or waits when told to."""

    def __init__(self) -> None:
        self.refuse = False
        self.go_on = threading.Event()
        self.go_on.set()
        self.saved: list[TargetConfig] = []

    def load(self) -> TargetConfig:
        return TargetConfig()

    def save(self, config: TargetConfig) -> None:
        self.go_on.wait()
        if self.refuse:
            raise StateError("the disk is full")
        self.saved.append(config)

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def daemon(tmp_path: Path, store: Store) -> AsyncIterator[Daemon]:
    made = Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path), store, InProcessDataPlane())
    await made.start()
    yield made
    await made.stop()


def bdev(name: str) -> BdevConfig:
    return BdevConfig(name=name, kind="malloc", uuid=f"u-{name}", block_size=512, num_blocks=8)


def address(port: int) -> ListenAddress:
    return ListenAddress(trtype="TCP", adrfam="IPv4", traddr="127.0.0.1", trsvcid=str(port))


def wanted(*ports: int, bdevs: tuple[str, ...] = ("m0", "m1")) -> TargetConfig:
    subsystem = SubsystemConfig(
        nqn=NQN,
        allow_any_host=True,
        namespaces={
            nsid: NamespaceConfig(nsid=nsid, bdev_name=name, uuid=f"u-{name}", anagrpid=nsid)
            for nsid, name in enumerate(bdevs, 1)
        },
        listeners=tuple(ListenerConfig(address=address(port)) for port in ports),
    )
    return TargetConfig(
        transports={"TCP": TransportConfig(trtype="TCP")},
        bdevs={name: bdev(name) for name in bdevs},
        subsystems={NQN: subsystem},
    )


def nothing_left(daemon: Daemon, *ports: int) -> bool:
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()
    assert daemon.config == TargetConfig()
    assert daemon.target.config == TargetConfig()
    assert daemon.bdev_facts == {}
    return daemon.dataplane.iostat("m0") is None and daemon.dataplane.iostat("m1") is None


async def test_what_cannot_be_saved_is_undone_and_can_be_tried_again(daemon: Daemon, store: Store) -> None:
    ports = [free_port(), free_port()]
    store.refuse = True
    with pytest.raises(OperatorError, match="the disk is full"):
        await daemon.commit(wanted(*ports))
    assert nothing_left(daemon, *ports)
    store.refuse = False
    await daemon.commit(wanted(*ports))
    assert daemon.bdev_facts.keys() == {"m0", "m1"}
    assert all(address(port) in daemon.fabric.listeners for port in ports)


async def test_one_address_of_several_that_is_taken_undoes_all(daemon: Daemon, store: Store) -> None:
    free, other = free_port(), free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OperatorError, match="in use"):
        await daemon.commit(wanted(free, taken.getsockname()[1], other))
    assert nothing_left(daemon, free, other)
    assert store.saved == []


async def test_a_back_end_of_several_that_cannot_be_opened_undoes_all(daemon: Daemon, store: Store) -> None:
    config = wanted()
    broken = replace(bdev("m1"), kind="aio", filename="/nonexistent/image")
    with pytest.raises(OperatorError) as caught:
        await daemon.commit(replace(config, bdevs={"m0": bdev("m0"), "m1": broken}))
    assert caught.value.code == -2
    assert nothing_left(daemon)
    assert store.saved == []


async def test_a_caller_who_goes_away_leaves_no_half_of_a_change(daemon: Daemon, store: Store) -> None:
    port = free_port()
    store.go_on.clear()
    caller = asyncio.create_task(daemon.commit(wanted(port)))
    await until(lambda: daemon.dataplane.iostat("m1") is not None)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    store.go_on.set()
    await daemon.commit(wanted(port))  # comes after it
    assert len(store.saved) == 2
    assert daemon.bdev_facts.keys() == {"m0", "m1"}
    assert address(port) in daemon.fabric.listeners


async def test_a_change_that_is_in_force_is_not_refused_for_what_it_leaves_behind(
    daemon: Daemon, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await daemon.commit(wanted())

    async def refuses(name: str) -> None:
        raise OperatorError(-19, f"{name}: the data plane is away")

    with monkeypatch.context() as patched:
        patched.setattr(daemon.dataplane, "bdev_delete", refuses)
        await daemon.commit(TargetConfig())
    assert daemon.config == store.saved[-1] == TargetConfig()
    assert daemon.bdev_facts == {}


async def test_what_is_absent_at_start_comes_later(tmp_path: Path) -> None:
    image, port = tmp_path / "image", free_port()
    config = wanted(port, bdevs=("m0",))
    store = Store()
    disk = replace(bdev("m0"), kind="aio", filename=str(image), num_blocks=0)
    store.load = lambda: replace(config, bdevs={"m0": disk})  # type: ignore[method-assign]
    daemon = Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path), store, InProcessDataPlane())
    with socket.create_server(("127.0.0.1", port)):
        await daemon.start()
        assert (dict(daemon.bdev_facts), daemon.unbound()) == ({}, [address(port)])
    image.write_bytes(bytes(4096))
    await daemon._retry_once()
    assert (daemon.bdev_facts["m0"].num_blocks, daemon.unbound()) == (8, [])
    assert address(port) in daemon.fabric.listeners
    await daemon.stop()


async def test_a_retry_does_not_bring_back_what_is_deleted_meanwhile(tmp_path: Path) -> None:
    image, port = tmp_path / "image", free_port()
    store = Store()
    disk = replace(bdev("m0"), kind="aio", filename=str(image), num_blocks=0)
    store.load = lambda: replace(wanted(port, bdevs=("m0",)), bdevs={"m0": disk})  # type: ignore[method-assign]
    daemon = Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path), store, InProcessDataPlane())
    with socket.create_server(("127.0.0.1", port)):
        await daemon.start()
    image.write_bytes(bytes(4096))
    store.go_on.clear()
    deletion = asyncio.create_task(daemon.commit(TargetConfig()))
    await asyncio.sleep(0)
    retry = asyncio.create_task(daemon._retry_once())
    await asyncio.sleep(0)
    store.go_on.set()
    await asyncio.gather(deletion, retry)
    assert nothing_left(daemon, port)
    await daemon.stop()
