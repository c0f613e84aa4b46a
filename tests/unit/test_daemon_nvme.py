"""NVMe controllers in the daemon: absent at the start, gone and back, with other namespaces; all of it or nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nvmet_p2p import daemon as daemon_module
from nvmet_p2p.config import Settings
from nvmet_p2p.daemon import Daemon
from nvmet_p2p.dataplane.inprocess.engine import InProcessDataPlane
from nvmet_p2p.dataplane.port import NOTHING_KNOWN, NvmeNamespace
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server import drives
from nvmet_p2p.server.dispatcher import Dispatcher
from nvmet_p2p.server.methods import METHODS
from nvmet_p2p.target.config import BdevConfig, BdevFacts, NvmeControllerConfig, TargetConfig
from nvmet_p2p.target.operations_nvme import another
from tests.unit.server.fake_context import FakeNvme
from tests.unit.test_daemon import Store

BDF = "0000:04:00.0"
DRIVE = NvmeControllerConfig(name="Nvme0", trtype="PCIe", traddr=BDF)
NQN = "nqn.2026-11.com.example:one"


async def until(condition: Callable[[], bool]) -> None:
    """Threads write files meanwhile, so turns of the loop do not count; the bound is there to end a failed test."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Nvme(FakeNvme):
    """Counts; a controller in ``lost`` is shown as removed."""

    def __init__(self) -> None:
        super().__init__()
        self.attempts = 0
        self.lost: set[str] = set()
        self.there[BDF] = [NvmeNamespace("Nvme0n1", 1, identity="1b36.S1")]

    async def attach(self, controller: NvmeControllerConfig, known: Mapping[int, str] = NOTHING_KNOWN) -> None:
        self.attempts += 1
        await super().attach(controller, known)
        self.lost.discard(controller.name)

    async def controllers(self) -> dict[str, dict[str, Any]]:
        rows = await super().controllers()
        return {name: row | ({"state": "removed"} if name in self.lost else {}) for name, row in rows.items()}


class Plane(InProcessDataPlane):
    """Its nvme bdevs are in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Nvme()
        self.nvme = self.driver  # type: ignore[assignment]
        self.broken: set[str] = set()
        self.refused = 0

    async def bdev_create(self, config: BdevConfig) -> BdevFacts:
        if config.kind != "nvme":
            return await super().bdev_create(config)
        controller = self.driver.attached.get(config.controller)
        found = self.driver.there.get(controller.traddr, []) if controller is not None else []
        if config.controller in self.driver.lost or config.nsid not in [namespace.nsid for namespace in found]:
            raise OperatorError(-errno.ENODEV, f"there is no namespace {config.name}")
        (identity,) = (namespace.identity for namespace in found if namespace.nsid == config.nsid)
        if fault := another(config, identity):
            self.refused += 1
            raise OperatorError(-errno.ENODEV, fault)
        if config.name in self.broken:
            raise OperatorError(-errno.EIO, f"{config.name} does not open")
        memory = BdevConfig(name=config.name, kind="malloc", uuid=config.uuid, block_size=512, num_blocks=8)
        return replace(await super().bdev_create(memory), identity=identity)

    async def lose(self, daemon: Daemon, name: str, *bdevs: str) -> None:
        """As when a drive is pulled: its bdevs are gone, what is left of the controller is shown as removed."""
        self.driver.lost.add(name)
        for bdev in bdevs:
            daemon.bdev_changed(bdev, None)
            await self.bdev_delete(bdev)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name in ((drives, "LOOK_S"), (drives, "PAUSE_MAX_S"), (daemon_module, "RETRY_S")):
        monkeypatch.setattr(where, name, 0.002)


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
async def daemon(tmp_path: Path, store: Store, plane: Plane) -> AsyncIterator[Daemon]:
    made = Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path), store, plane)
    await made.start()
    yield made
    await made.stop()


async def call(daemon: Daemon, method: str, **params: Any) -> Any:
    import msgspec

    text = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    answer = msgspec.json.decode((await Dispatcher(daemon, METHODS).handle(text)).data)
    if "error" in answer:
        raise OperatorError(answer["error"]["code"], answer["error"]["message"])
    return answer["result"]


async def attach(daemon: Daemon) -> Any:
    return await call(daemon, "bdev_nvme_attach_controller", name="Nvme0", trtype="PCIe", traddr=BDF)


async def test_attached_used_and_detached(daemon: Daemon, plane: Plane, store: Store) -> None:
    assert await attach(daemon) == ["Nvme0n1"]
    await call(daemon, "nvmf_create_subsystem", nqn=NQN)
    assert await call(daemon, "nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "Nvme0n1"}) == 1
    assert store.saved[-1] == daemon.config
    await call(daemon, "bdev_nvme_detach_controller", name="Nvme0")
    assert not plane.driver.attached
    assert not daemon.bdev_facts
    assert not daemon.config.subsystems[NQN].namespaces
    assert store.saved[-1] == daemon.config


async def test_a_namespace_that_does_not_open_undoes_all(daemon: Daemon, plane: Plane) -> None:
    plane.broken.add("Nvme0n1")
    with pytest.raises(OperatorError, match="does not open"):
        await attach(daemon)
    assert daemon.config == TargetConfig()
    assert not plane.driver.attached


async def test_a_disk_that_is_full_undoes_the_attachment(daemon: Daemon, plane: Plane, store: Store) -> None:
    store.refuse = True
    with pytest.raises(OperatorError, match="the disk is full"):
        await attach(daemon)
    assert daemon.config == TargetConfig()
    assert not plane.driver.attached


async def test_pulled_and_put_back(daemon: Daemon, plane: Plane) -> None:
    await attach(daemon)
    was = plane.driver.there.pop(BDF)
    await plane.lose(daemon, "Nvme0", "Nvme0n1")
    assert not daemon.bdev_facts
    await until(lambda: "Nvme0" in daemon.absent_controllers())
    attempts = plane.driver.attempts
    await until(lambda: plane.driver.attempts > attempts + 2)
    plane.driver.there[BDF] = was
    await until(lambda: "Nvme0n1" in daemon.bdev_facts)
    assert daemon.absent_controllers() == {}
    assert "Nvme0n1" in daemon.config.bdevs


async def test_another_drive_is_not_taken_for_it(daemon: Daemon, plane: Plane, store: Store) -> None:
    await attach(daemon)
    before = daemon.config
    assert before.bdevs["Nvme0n1"].identity == "1b36.S1"
    assert store.saved[-1] == before
    (right,) = plane.driver.there[BDF]
    plane.driver.there[BDF] = [dataclasses.replace(right, identity="1b36.S2")]
    await plane.lose(daemon, "Nvme0", "Nvme0n1")
    await until(lambda: not plane.driver.lost)  # the daemon has attached what is there
    assert plane.driver.known == {"Nvme0": {1: "1b36.S1"}}
    plane.refused = 0
    daemon.namespace_found("Nvme0n1")
    await until(lambda: plane.refused > 2)
    assert not daemon.bdev_facts
    plane.driver.there[BDF] = [right]
    await until(lambda: "Nvme0n1" in daemon.bdev_facts)
    assert daemon.config == before
    plane.driver.there[BDF] = [dataclasses.replace(right, identity="1b36.S2")]
    await call(daemon, "bdev_nvme_detach_controller", name="Nvme0")
    await attach(daemon)  # that is how one says that it is meant
    assert plane.driver.known == {"Nvme0": {}}
    assert daemon.config.bdevs["Nvme0n1"].identity == "1b36.S2"


async def test_with_hot_plug_the_data_plane_does_it(daemon: Daemon, plane: Plane) -> None:
    await call(daemon, "bdev_nvme_set_hotplug", enable=True)
    assert plane.driver.hotplug.enable
    await attach(daemon)
    await plane.lose(daemon, "Nvme0", "Nvme0n1")
    attempts = plane.driver.attempts
    looks = daemon.drives._looks
    await until(lambda: daemon.drives._looks > looks + 5)
    assert plane.driver.attempts == attempts
    plane.driver.lost.clear()
    await until(lambda: "Nvme0n1" in daemon.bdev_facts)


async def test_one_that_cannot_be_detached_yet_is_later(daemon: Daemon, plane: Plane) -> None:
    """A pool in its memory may hold it for a moment."""
    await attach(daemon)
    real = plane.driver.detach
    held = True

    async def detach(name: str) -> None:
        if held:
            raise OperatorError(-errno.EBUSY, "a pool holds it")
        await real(name)

    plane.driver.detach = detach  # type: ignore[method-assign]
    await call(daemon, "bdev_nvme_detach_controller", name="Nvme0")
    assert plane.driver.attached
    with pytest.raises(OperatorError, match="still being detached"):
        await attach(daemon)
    held = False
    await until(lambda: not plane.driver.attached)
    assert await attach(daemon) == ["Nvme0n1"]


async def test_a_new_namespace_becomes_a_bdev(daemon: Daemon, plane: Plane, store: Store) -> None:
    await attach(daemon)
    plane.driver.there[BDF].append(NvmeNamespace("Nvme0n5", 5, "99999999-2222-4333-8444-555555555555"))
    daemon.namespace_found("Nvme0n5")
    daemon.namespace_found("elsewhere")
    await until(lambda: "Nvme0n5" in daemon.bdev_facts)
    assert daemon.config.bdevs["Nvme0n5"].uuid == "99999999-2222-4333-8444-555555555555"
    assert store.saved[-1] == daemon.config


async def test_a_change_that_was_made_of_an_older_configuration_keeps_it(daemon: Daemon, plane: Plane) -> None:
    await attach(daemon)
    before = daemon.config
    plane.driver.there[BDF].append(NvmeNamespace("Nvme0n5", 5))
    await daemon.adopt_namespaces("Nvme0")
    await daemon.commit(before)
    assert "Nvme0n5" in daemon.config.bdevs


class Kept(Store):
    """Begins with a drive and its namespace."""

    def load(self) -> TargetConfig:
        bdev = BdevConfig(name="Nvme0n1", kind="nvme", uuid="u", controller="Nvme0", nsid=1)
        return TargetConfig(nvme_controllers={"Nvme0": DRIVE}, bdevs={"Nvme0n1": bdev})


class TestStart:
    @pytest.fixture
    def store(self) -> Store:
        return Kept()

    async def test_there(self, daemon: Daemon, store: Store) -> None:
        assert list(daemon.bdev_facts) == ["Nvme0n1"]
        assert daemon.config.bdevs["Nvme0n1"].identity == "1b36.S1"  # saved as soon as it is known
        assert store.saved[-1] == daemon.config

    async def test_a_change_that_was_made_before_keeps_its_identity(self, daemon: Daemon, store: Store) -> None:
        await daemon.commit(store.load())
        assert daemon.config.bdevs["Nvme0n1"].identity == "1b36.S1"

    async def test_absent_and_coming(self, tmp_path: Path, store: Store) -> None:
        plane = Plane()
        was = plane.driver.there.pop(BDF)
        made = Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path), store, plane)
        await made.start()
        try:
            assert not made.bdev_facts
            assert "there is no drive" in made.absent_controllers()["Nvme0"]
            assert (await call(made, "p2p_get_status"))["absent_bdevs"] == ["Nvme0n1"]
            plane.driver.there[BDF] = [*was, NvmeNamespace("Nvme0n2", 2)]
            await until(lambda: len(made.bdev_facts) == 2)
        finally:
            await made.stop()

    async def test_what_a_data_plane_has_from_before_is_detached(self, tmp_path: Path, store: Store) -> None:
        plane = Plane()
        plane.driver.there["0000:09:00.0"] = []
        await plane.driver.attach(NvmeControllerConfig(name="Old", trtype="PCIe", traddr="0000:09:00.0"))
        made = Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path), store, plane)
        await made.start()
        try:
            assert list(plane.driver.attached) == ["Nvme0"]
        finally:
            await made.stop()

    async def test_one_that_does_not_answer_holds_up_the_start_for_a_while(
        self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(drives, "START_S", 0)
        plane = Plane()
        go_on = asyncio.Event()
        real = plane.driver.attach

        async def slow(controller: NvmeControllerConfig, known: Mapping[int, str] = NOTHING_KNOWN) -> None:
            await go_on.wait()
            await real(controller, known)

        plane.driver.attach = slow  # type: ignore[method-assign]
        made = Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path), store, plane)
        await made.start()
        try:
            assert not made.bdev_facts
            go_on.set()
            await until(lambda: list(made.bdev_facts) == ["Nvme0n1"])
        finally:
            await made.stop()

    async def test_without_a_driver_everything_else_is_served(self, tmp_path: Path, store: Store) -> None:
        made = Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path), store, InProcessDataPlane())
        await made.start()
        try:
            assert made.absent_controllers() == {"Nvme0": drives.NO_DRIVER}
            await call(made, "bdev_malloc_create", name="m", block_size=512, num_blocks=8)
            await call(made, "bdev_nvme_detach_controller", name="Nvme0")
            assert list(made.config.bdevs) == ["m"]
        finally:
            await made.stop()
