"""What an interrupted probe has left on a drive of the data plane's own is put back before anybody uses it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, cast

import pytest

from nvmet_p2p.dataplane.native.helper import Helper, LaunchOptions
from nvmet_p2p.dataplane.native.leftovers import put_back
from nvmet_p2p.dataplane.native.plane import NativeDataPlane
from nvmet_p2p.dataplane.native.pools import NativePools, state_of
from nvmet_p2p.dataplane.port import PoolSpec
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.vfio import VfioMemory
from nvmet_p2p.state.journal import JournalError, Journals
from nvmet_p2p.target.config import NvmeControllerConfig
from tests.unit.dataplane_native.test_pools import FakeHelper
from tests.unit.server.staging.test_vfio import journal_of

BDEV = "NvmeBn1"
DEVICE = {
    "region": "cmb", "via": "vfio", "bar": 2, "bytes": 4096, "mapping": "uncached", "spdk": True, "dma_buf": True,
    "no_dma_buf": "",
}  # fmt: skip


@pytest.fixture
def journals(tmp_path: Path) -> Journals:
    made = Journals(tmp_path)
    made.folder.mkdir()
    return made


async def test_nothing_is_left(journals: Journals) -> None:
    helper = FakeHelper()
    await put_back(journals, helper.call, BDEV)
    assert helper.told() == []


async def test_its_own_and_what_may_be_its_own(journals: Journals) -> None:
    own = journals.path_of_bdev(BDEV)
    journal_of(own, "nvme a drive")
    journal_of(own.with_name("0.journal"), "nvme another drive")
    helper = FakeHelper()
    await put_back(journals, helper.call, BDEV)
    asked = [("p2p_pool_restore", {"bdev": BDEV, "journal": str(own.with_name(n))}) for n in (own.name, "0.journal")]
    assert helper.told() == asked


async def test_another_drives_journal_is_no_obstacle(journals: Journals) -> None:
    journal_of(journals.folder / "0.journal", "nvme another drive")
    helper = FakeHelper()
    helper.answers["p2p_pool_restore"] = OperatorError(-errno.EUCLEAN, "of another drive")
    await put_back(journals, helper.call, BDEV)
    assert [method for method, _ in helper.told()] == ["p2p_pool_restore"]


@pytest.mark.parametrize("number", [errno.EUCLEAN, errno.EIO])
async def test_what_cannot_be_put_back_keeps_the_bdev_away(journals: Journals, number: int) -> None:
    journal_of(journals.path_of_bdev(BDEV), "nvme a drive")
    helper = FakeHelper()
    helper.answers["p2p_pool_restore"] = OperatorError(-number, "why")
    with pytest.raises(JournalError, match="cannot be put back"):
        await put_back(journals, helper.call, BDEV)


async def test_damage_keeps_the_bdev_away(journals: Journals) -> None:
    journals.path_of_bdev(BDEV).write_bytes(b"damaged")
    helper = FakeHelper()
    with pytest.raises(JournalError, match="is damaged"):
        await put_back(journals, helper.call, BDEV)
    assert helper.told() == []


async def test_a_drive_is_looked_at() -> None:
    helper = FakeHelper()
    helper.answers["p2p_pool_probe"] = DEVICE

    async def nothing() -> None:
        return

    pools = NativePools(helper.call, nothing)
    found = await pools.probe("0000:03:00.0", attached=True)
    assert found == VfioMemory("cmb", "vfio", 2, 4096, "uncached", True, "")
    assert helper.told() == [("p2p_pool_probe", {"name": "0000:03:00.0", "attached": True})]
    shown = {
        "name": "0000:03:00.0", "kind": "spdk_cmb", "bytes": 4096, "free": 0, "waits": 0, "fallbacks": 0,
        "wiped_bytes": 0, "lost": False, "why": "", "allowed": [],
    }  # fmt: skip
    assert state_of(shown | {"device": DEVICE}).device == DEVICE
    assert state_of(shown).device is None


async def test_controllers_come_before_pools_in_a_new_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that the data plane makes of a drive's memory by itself would keep SPDK from having the drive."""
    helper = FakeHelper()
    helper.answers |= {"bdev_get_bdevs": [], "p2p_pool_create": {"bytes": 1 << 21}, "bdev_nvme_get_controllers": []}

    async def call(
        self: NativeDataPlane, method: str, params: dict[str, Any] | None = None, *, wait: bool = True
    ) -> Any:
        return await helper.call(method, params or {})

    monkeypatch.setattr(NativeDataPlane, "_call", call)
    plane = NativeDataPlane(cast(LaunchOptions, None))
    monkeypatch.setattr(plane, "_events", object())
    await plane._pools.create(PoolSpec("0000:03:00.0", "spdk_cmb", 0))
    await plane.nvme.attach(NvmeControllerConfig(name="Nvme0", trtype="PCIe", traddr="0000:03:00.0"))
    helper.told()
    await plane._refill(cast(Helper, helper))
    methods = [method for method, _ in helper.told()]
    assert methods.index("bdev_nvme_attach_controller") < methods.index("p2p_pool_create")
