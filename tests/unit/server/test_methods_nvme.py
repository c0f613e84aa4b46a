"""``bdev_nvme_*`` over a data plane that is made up: SPDK's answers, and SPDK's own command."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from nvmet_p2p.cli.status import _spdk
from nvmet_p2p.dataplane.port import NvmeNamespace
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server.drives import NO_DRIVER
from tests.unit.server.fake_context import Api, FakeNvme
from tests.unit.server.test_spdk_client import Daemon

DRIVE = {"name": "Nvme0", "trtype": "PCIe", "traddr": "0000:04:00.0"}
UUID = "11111111-2222-4333-8444-555555555555"


def fill(nvme: FakeNvme | None) -> FakeNvme:
    assert nvme is not None
    nvme.there["0000:04:00.0"] = [
        NvmeNamespace("Nvme0n1", 1, UUID),
        NvmeNamespace("Nvme0n2", 2),
        NvmeNamespace("Nvme0n3", 3, refused="it has metadata"),
    ]
    return nvme


@pytest.fixture
def api() -> Api:
    made = Api()
    fill(made.context.fake_dataplane.nvme)
    return made


async def refused(api: Api, code: int, text: str, method: str, **params: Any) -> None:
    before = api.context.config
    with pytest.raises(OperatorError) as caught:
        await api.call(method, **params)
    assert caught.value.code == code
    assert text in caught.value.message
    assert api.context.config == before


async def test_attached_its_namespaces_are_bdevs(api: Api) -> None:
    assert await api.call("bdev_nvme_attach_controller", **DRIVE) == ["Nvme0n1", "Nvme0n2"]
    first, second = await api.call("bdev_get_bdevs")
    assert (first["name"], first["uuid"], first["product_name"]) == ("Nvme0n1", UUID, "NVMe disk")
    assert second["uuid"] != UUID
    assert first["driver_specific"] == {
        "nvme": [
            {
                "pci_address": "0000:04:00.0",
                "trid": {"trtype": "PCIe", "traddr": "0000:04:00.0", "subnqn": "nqn.x:s"},
                "ctrlr_data": {
                    "cntlid": 7,
                    "vendor_id": "0x1b36",
                    "model_number": "A drive",
                    "serial_number": "S1",
                    "firmware_revision": "1.0",
                    "subnqn": "nqn.x:s",
                },
                "ns_data": {"id": 1},
            }
        ],
        "mp_policy": "active_passive",
    }
    assert await api.call("bdev_nvme_detach_controller", name="Nvme0") is True
    assert await api.call("bdev_get_bdevs") == []
    assert not api.context.fake_dataplane.nvme.attached  # type: ignore[union-attr]


async def test_shown(api: Api) -> None:
    assert await api.call("bdev_nvme_get_controllers") == []
    await refused(api, -errno.EINVAL, "Controller Nvme0 does not exist", "bdev_nvme_get_controllers", name="Nvme0")
    await api.call("bdev_nvme_attach_controller", **DRIVE)
    (shown,) = await api.call("bdev_nvme_get_controllers", name="Nvme0")
    (ctrlr,) = shown.pop("ctrlrs")
    assert shown == {"name": "Nvme0"}
    assert (ctrlr["state"], ctrlr["cntlid"], ctrlr["host"]["nqn"], ctrlr["resets"]) == ("enabled", 7, "nqn.x:us", 3)
    assert ctrlr["trid"]["traddr"] == "0000:04:00.0"
    api.context.fake_dataplane.nvme.attached.clear()  # type: ignore[union-attr]
    (shown,) = await api.call("bdev_nvme_get_controllers")
    assert (shown["ctrlrs"][0]["state"], shown["ctrlrs"][0]["reason"]) == ("failed", "it is not there")


async def test_one_that_is_not_there(api: Api) -> None:
    await refused(
        api, -errno.ENODEV, "no drive at", "bdev_nvme_attach_controller", **DRIVE | {"traddr": "0000:05:00.0"}
    )


async def test_more_namespaces_than_are_taken(api: Api) -> None:
    await refused(api, -errno.ERANGE, "more than 1 namespaces", "bdev_nvme_attach_controller", **DRIVE, max_bdevs=1)
    assert not api.context.fake_dataplane.nvme.attached  # type: ignore[union-attr]


async def test_reset(api: Api) -> None:
    await refused(api, -errno.ENODEV, "no controller", "bdev_nvme_reset_controller", name="Nvme0")
    await api.call("bdev_nvme_attach_controller", **DRIVE)
    await refused(api, -errno.ENODEV, "identifier", "bdev_nvme_reset_controller", name="Nvme0", cntlid=8)
    assert await api.call("bdev_nvme_reset_controller", name="Nvme0", cntlid=7) is True
    assert api.context.fake_dataplane.nvme.resets == ["Nvme0"]  # type: ignore[union-attr]


async def test_health(api: Api) -> None:
    await refused(api, -32603, "Device not found", "bdev_nvme_get_controller_health_info", name="Nvme0")
    await api.call("bdev_nvme_attach_controller", **DRIVE)
    shown = await api.call("bdev_nvme_get_controller_health_info", name="Nvme0")
    assert (shown["serial_number"], shown["temperature_celsius"], shown["percentage_used"]) == ("S1", 37, 4)


async def test_a_data_plane_without_a_driver(api: Api) -> None:
    api.context.fake_dataplane.nvme = None
    for method, params in (
        ("bdev_nvme_attach_controller", DRIVE),
        ("bdev_nvme_set_options", {"timeout_us": 1}),
        ("bdev_nvme_set_hotplug", {"enable": True}),
        ("bdev_nvme_reset_controller", {"name": "Nvme0"}),
    ):
        code = -errno.ENODEV if "reset" in method else -errno.EOPNOTSUPP
        await refused(api, code, "" if "reset" in method else NO_DRIVER, method, **params)
    assert (await api.call("p2p_get_status"))["spdk"]["reason"] == NO_DRIVER


async def test_status(api: Api) -> None:
    await api.call("bdev_nvme_attach_controller", **DRIVE)
    status = (await api.call("p2p_get_status"))["spdk"]
    assert status == {
        "built": True,
        "version": "SPDK v26.09",
        "active": True,
        "reason": "",
        "controllers": ["Nvme0"],
        "absent_controllers": {},
    }
    assert _spdk(status) == "\nSPDK v26.09: in use\nNVMe controllers: Nvme0"
    assert _spdk(status | {"absent_controllers": {"Nvme0": "gone"}, "active": False}) == (
        "\nSPDK v26.09: built in, not in use\nNVMe controller Nvme0: absent: gone"
    )
    assert _spdk({"built": False, "controllers": [], "absent_controllers": {}}) == ""


def test_spdks_own_command(tmp_path: Path) -> None:
    """The unmodified ``spdk-rpc``, and a configuration that it saves and loads."""
    first, second = Daemon(tmp_path / "a"), Daemon(tmp_path / "b")
    for daemon in (first, second):
        fill(daemon.context.fake_dataplane.nvme)
        daemon.start()
    try:
        first.rpc("bdev_nvme_set_options", "--timeout-us", "30000000", "--action-on-timeout", "reset")
        printed = first.rpc("bdev_nvme_attach_controller", "-b", "Nvme0", "-t", "PCIe", "-a", "0000:04:00.0")
        assert printed == "Nvme0n1 Nvme0n2\n"
        assert json.loads(first.rpc("bdev_nvme_get_controllers", "-n", "Nvme0"))[0]["name"] == "Nvme0"
        assert json.loads(first.rpc("bdev_nvme_get_controller_health_info", "-c", "Nvme0"))["percentage_used"] == 4
        first.rpc("bdev_nvme_reset_controller", "Nvme0")
        first.rpc("bdev_nvme_set_hotplug", "--hotplug", "-r", "1000000")
        saved = first.rpc("save_config")
        second.rpc("load_config", stdin=saved)
        assert second.rpc("save_config") == saved
        assert second.context.config == first.context.config
        first.rpc("bdev_nvme_detach_controller", "Nvme0")
        assert not first.context.config.nvme_controllers
        done = first.run("bdev_nvme_attach_controller", "-b", "N", "-t", "PCIe", "-a", "0000:09:00.0")
        assert done.returncode
        assert "there is no drive at 0000:09:00.0" in done.stdout
    finally:
        first.stop()
        second.stop()
