"""NVMe controllers of the native data plane: what the helper is told, and again after a restart."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nvmet_p2p.dataplane.native import calls, nvme
from nvmet_p2p.dataplane.native.helper import LaunchOptions
from nvmet_p2p.dataplane.native.messages import BdevChanged
from nvmet_p2p.dataplane.native.nvme import NOT_BUILT, NativeNvme
from nvmet_p2p.dataplane.native.plane import NativeDataPlane
from nvmet_p2p.dataplane.port import NvmeNamespace
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import BdevConfig, BdevFacts, NvmeControllerConfig, NvmeHotplug, NvmeOptions
from tests.unit.dataplane_native.test_helper import Events
from tests.unit.dataplane_native.test_pools import FakeHelper

DRIVE = NvmeControllerConfig(name="Nvme0", trtype="PCIe", traddr="0000:04:00.0")
FAR = NvmeControllerConfig(
    name="Far", trtype="TCP", traddr="192.0.2.9", adrfam="IPv4", trsvcid="4420", subnqn="nqn.x:far", ddgst=True,
    ctrlr_loss_timeout_sec=9, reconnect_delay_sec=2,
)  # fmt: skip
FIRST = BdevConfig(name="Nvme0n1", kind="nvme", uuid="u", controller="Nvme0", nsid=1)
ROWS = [
    {
        "name": "Nvme0",
        "ctrlrs": [
            {
                "state": "enabled",
                "trid": {"trtype": "PCIe", "traddr": "0000:04:00.0"},
                "cntlid": 1,
                "host": {"nqn": "nqn.x:us"},
                "serial_number": "S1  ",
                "model_number": "A drive ",
                "firmware_revision": "1.0",
                "resets": 2,
                "namespaces": [
                    {"nsid": 1, "name": "Nvme0n1", "block_size": 512, "identity": "1b36.S1"},
                    {"nsid": 2, "name": "Nvme0n2", "uuid": "u", "refused": "it has metadata"},
                    {"nsid": 3, "name": "Nvme0n3"},
                ],
            }
        ],
    }
]


class Helper(FakeHelper):
    """Also takes the options of ``NativeDataPlane._call``."""

    async def call(self, method: str, params: dict[str, Any] | None = None, *, wait: bool = True) -> Any:
        return await super().call(method, params)


@pytest.fixture
def helper() -> Helper:
    made = Helper()
    made.answers["bdev_nvme_get_controllers"] = ROWS
    return made


@pytest.fixture
def native(helper: Helper) -> NativeNvme:
    return NativeNvme(helper.call)


async def test_what_is_told(helper: Helper, native: NativeNvme) -> None:
    await native.set_options(NvmeOptions(timeout_us=7, ctrlr_loss_timeout_sec=5, reconnect_delay_sec=1))
    await native.attach(DRIVE)
    await native.attach(FAR)
    (_, options), (_, drive), (_, far) = helper.told()
    assert options["timeout_us"] == 7
    assert "hints" not in options
    times = {"ctrlr_loss_timeout_sec": 5, "reconnect_delay_sec": 1, "fast_io_fail_timeout_sec": 0}
    assert drive == {"name": "Nvme0", "trtype": "PCIe", "traddr": "0000:04:00.0"} | times
    assert far == {
        "name": "Far", "trtype": "TCP", "traddr": "192.0.2.9", "adrfam": "IPv4", "trsvcid": "4420",
        "subnqn": "nqn.x:far", "hdgst": False, "ddgst": True, "ctrlr_loss_timeout_sec": 9, "reconnect_delay_sec": 2,
        "fast_io_fail_timeout_sec": 0,
    }  # fmt: skip


async def test_its_namespaces(native: NativeNvme) -> None:
    assert await native.namespaces("Nvme0") == (
        NvmeNamespace("Nvme0n1", 1, identity="1b36.S1"),
        NvmeNamespace("Nvme0n2", 2, "u", "it has metadata"),
        NvmeNamespace("Nvme0n3", 3, "", "the data plane has not opened it"),
    )
    assert await native.namespaces("Far") == ()
    shown = native.shown("Nvme0")
    assert shown is not None
    assert (shown["serial"], shown["model"], shown["traddr"], shown["hostnqn"], shown["resets"]) == (
        "S1", "A drive", "0000:04:00.0", "nqn.x:us", 2,
    )  # fmt: skip


def test_a_bdev_belongs_to_its_controller() -> None:
    config = BdevConfig(name="Nvme0n1", kind="nvme", uuid="u", controller="Nvme0", nsid=1)
    made_from = {"method": "bdev_nvme_attach_controller", "params": {"name": "Nvme0", "traddr": "0000:04:00.0"}}
    shown = {"driver_specific": {"config": made_from}}
    assert calls.is_same_bdev(config, shown)
    assert not calls.is_same_bdev(msgspec.structs.replace(config, controller="Other"), shown)
    assert calls.kind_of(shown) == "nvme"


async def test_a_bdev_is_there_as_long_as_its_controller(helper: Helper, native: NativeNvme) -> None:
    facts = {"name": "Nvme0n1", "block_size": 512, "present": True}
    helper.answers["bdev_get_bdevs"] = [facts]
    assert await native.bdev(helper.call, FIRST) == facts | {"identity": "1b36.S1"}
    helper.answers["bdev_get_bdevs"] = [facts | {"present": False}]
    with pytest.raises(OperatorError, match="is lost"):
        await native.bdev(helper.call, FIRST)
    helper.answers["bdev_get_bdevs"] = OperatorError(-errno.ENODEV, "none")
    with pytest.raises(OperatorError, match="its controller is absent") as caught:
        await native.bdev(helper.call, FIRST)
    assert caught.value.code == -errno.ENODEV


async def test_another_namespace_is_not_opened(helper: Helper, native: NativeNvme) -> None:
    helper.answers["bdev_get_bdevs"] = [{"name": "Nvme0n1", "block_size": 512, "present": True}]
    await native.bdev(helper.call, msgspec.structs.replace(FIRST, identity="1b36.S1"))
    with pytest.raises(OperatorError, match=r"'1b36\.S1' instead of '1b36\.S2'; to use that one, detach") as caught:
        await native.bdev(helper.call, msgspec.structs.replace(FIRST, identity="1b36.S2"))
    assert caught.value.code == -errno.ENODEV
    helper.answers["bdev_get_bdevs"] = [{"name": "Nvme0n2", "block_size": 512, "present": True}]
    with pytest.raises(OperatorError, match="it has metadata"):  # what the data plane says itself
        await native.bdev(helper.call, msgspec.structs.replace(FIRST, name="Nvme0n2", nsid=2))


async def test_one_that_is_there_is_taken_over(helper: Helper, native: NativeNvme) -> None:
    helper.answers["bdev_nvme_attach_controller"] = OperatorError(-errno.EEXIST, "there is one")
    await native.attach(DRIVE)
    with pytest.raises(OperatorError, match="there is one"):
        await native.attach(NvmeControllerConfig(name="Nvme0", trtype="PCIe", traddr="0000:05:00.0"))


async def test_built_without(helper: Helper, native: NativeNvme) -> None:
    unknown = OperatorError(-32601, "Method not found")
    helper.answers |= {"bdev_nvme_attach_controller": unknown, "bdev_nvme_get_controllers": unknown}
    with pytest.raises(OperatorError, match="built without SPDK") as caught:
        await native.attach(DRIVE)
    assert caught.value.code == -errno.EOPNOTSUPP
    assert await native.controllers() == {}
    helper.answers["p2p_get_info"] = {}
    assert (await native.status()).reason == NOT_BUILT
    helper.answers["p2p_get_info"] = {"spdk": {"built": True, "version": "SPDK v26.09", "active": False}}
    status = await native.status()
    assert (status.built, status.version, status.active) == (True, "SPDK v26.09", False)


async def test_detached_once_more(helper: Helper, native: NativeNvme) -> None:
    helper.answers["bdev_nvme_detach_controller"] = OperatorError(-errno.ENODEV, "no")
    await native.detach("Nvme0")
    helper.answers["bdev_nvme_detach_controller"] = OperatorError(-errno.EBUSY, "a pool holds it")
    with pytest.raises(OperatorError, match="a pool holds it"):
        await native.detach("Nvme0")


async def test_health(helper: Helper, native: NativeNvme) -> None:
    helper.answers["bdev_nvme_get_controller_health_info"] = {"percentage_used": 4, "model_number": "A  "}
    assert await native.health("Nvme0") == {"percentage_used": 4, "model_number": "A"}


class TestRestart:
    async def test_all_again_in_order(self, helper: Helper, native: NativeNvme) -> None:
        await native.set_options(NvmeOptions(timeout_us=7))
        await native.attach(DRIVE)
        await native.attach(FAR)
        await native.detach("Far")
        await native.set_hotplug(NvmeHotplug(enable=True, period_us=5))
        helper.told()
        await native.refill(helper.call)
        told = helper.told()
        assert [method for method, _ in told] == [
            "bdev_nvme_set_options",
            "bdev_nvme_attach_controller",
            "bdev_nvme_set_hotplug",
        ]
        assert told[1][1]["name"] == "Nvme0"

    async def test_also_which_namespaces_they_were(self, helper: Helper, native: NativeNvme) -> None:
        """Those that were known when it was attached, and those that were opened since."""
        helper.answers["bdev_get_bdevs"] = [{"name": "Nvme0n1", "block_size": 512, "present": True}]
        await native.attach(DRIVE, {4: "1b36.S1/x"})
        await native.bdev(helper.call, FIRST)
        known = {"nsid": 4, "identity": "1b36.S1/x"}
        assert helper.told()[0][1]["namespaces"] == [known]
        await native.refill(helper.call)
        assert helper.told()[0][1]["namespaces"] == [known, {"nsid": 1, "identity": "1b36.S1"}]
        await native.detach("Nvme0")
        await native.attach(DRIVE)
        assert "namespaces" not in helper.told()[-1][1]

    async def test_nothing_to_say(self, helper: Helper, native: NativeNvme) -> None:
        await native.refill(helper.call)
        assert helper.told() == []

    async def test_one_that_is_gone_does_not_stop_the_others(self, helper: Helper, native: NativeNvme) -> None:
        await native.attach(DRIVE)
        await native.attach(FAR)
        helper.answers["bdev_nvme_attach_controller Nvme0"] = OperatorError(-errno.ENODEV, "gone")
        helper.told()
        await native.refill(helper.call)
        assert [params["name"] for _, params in helper.told()] == ["Nvme0", "Far"]

    async def test_one_that_does_not_answer_holds_up_nothing(
        self, native: NativeNvme, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nvme, "REFILL_S", 0.01)
        await native.attach(DRIVE)

        async def silent(_: str, __: dict[str, Any]) -> Any:
            await asyncio.Event().wait()

        await native.refill(silent)


class Told(Events):
    """What the control plane was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, bool]] = []

    def bdev_changed(self, name: str, facts: BdevFacts | None) -> None:
        self.told.append((name, facts is not None))

    def namespace_found(self, name: str) -> None:
        self.told.append((name, True))


async def test_a_bdev_that_is_lost_stays_with_its_controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, nothing is closed, and its return is told as one that is found."""
    plane = NativeDataPlane(LaunchOptions(program=Path("/nonexistent"), rpc_socket=tmp_path / "rpc"))
    helper, told = Helper(), Told()
    helper.answers["bdev_nvme_get_controllers"] = ROWS
    helper.answers["bdev_get_bdevs"] = [
        {"name": "Nvme0n1", "present": True, "block_size": 512, "num_blocks": 8, "physical_block_size": 512}
        | dict.fromkeys(("readonly", "write_cache", "unmap", "write_zeroes"), False)
    ]

    async def usable() -> Helper:
        return helper

    monkeypatch.setattr(plane, "_usable", usable)
    monkeypatch.setattr(plane, "_events", told)
    config = FIRST
    facts = await plane.bdev_create(config)
    assert (facts.num_blocks, facts.identity) == (8, "1b36.S1")
    plane._received(BdevChanged(False, "Nvme0n1"))
    plane._received(BdevChanged(True, "Nvme0n1"))
    plane._received(BdevChanged(False, "elsewhere"))
    assert told.told == [("Nvme0n1", False), ("Nvme0n1", True)]
    await plane.bdev_create(config)
    await plane.bdev_delete("Nvme0n1")
    assert {method for method, _ in helper.told()} == {"bdev_get_bdevs", "bdev_nvme_get_controllers"}
