"""``setup bind`` and ``restore`` on a made machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nvmet_p2p.setup.binding import NOIOMMU, Wish, bind, restore
from nvmet_p2p.setup.machine import SetupError
from nvmet_p2p.setup.record import RecordFile
from tests.unit.setup.fake import Made

A, B = "0000:01:00.0", "0000:02:00.0"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> RecordFile:
    (tmp_path / "state").mkdir()
    return RecordFile(tmp_path / "state")


def refused(made: Made, file: RecordFile, *drives: str, noiommu: bool = False, hugepages: int = 0) -> str:
    """The reason; and nothing has changed."""
    before = made.drivers(), made.pages()
    with pytest.raises(SetupError) as caught:
        bind(made.machine, file, Wish(drives=drives, noiommu=noiommu, hugepages=hugepages))
    assert (made.drivers(), made.pages()) == before
    assert not file.path.exists()
    return str(caught.value)


class TestBind:
    def test_there_and_back(self, made: Made, file: RecordFile) -> None:
        done = bind(made.machine, file, Wish(drives=["01:00.0"]))
        assert done == [f"{A}: nvme -> vfio-pci (/dev/vfio/0)"]
        assert made.drivers() == ("vfio-pci", "nvme")
        assert made.machine.override(A) == "vfio-pci"
        assert restore(made.machine, file) == [f"{A}: vfio-pci -> nvme"]
        assert made.drivers() == ("nvme", "nvme")
        assert made.machine.override(A) == ""
        assert not file.path.exists()

    def test_what_was_overridden_before_is_so_again(self, made: Made, file: RecordFile) -> None:
        (made.tree.places[A] / "driver_override").write_text("nvme\n")
        bind(made.machine, file, Wish(drives=[A]))
        restore(made.machine, file, [A])
        assert made.machine.override(A) == "nvme"

    def test_a_drive_without_a_driver_is_left_without(self, made: Made, file: RecordFile) -> None:
        (made.tree.places[A] / "driver").unlink()
        bind(made.machine, file, Wish(drives=[A]))
        restore(made.machine, file)
        assert made.drivers() == ("", "nvme")

    def test_twice_is_as_good_as_once(self, made: Made, file: RecordFile) -> None:
        bind(made.machine, file, Wish(drives=[A, A]))
        assert bind(made.machine, file, Wish(drives=[A, B])) == [
            f"{A}: is on vfio-pci already",
            f"{B}: nvme -> vfio-pci (/dev/vfio/1)",
        ]
        restore(made.machine, file, [B])
        assert made.drivers() == ("vfio-pci", "nvme")
        restore(made.machine, file)
        assert made.drivers() == ("nvme", "nvme")
        assert restore(made.machine, file) == ["there is nothing to restore"]

    def test_one_that_somebody_else_bound_is_left_to_him(self, made: Made, file: RecordFile) -> None:
        bind(made.machine, file, Wish(drives=[A]))
        file.path.unlink()
        bind(made.machine, file, Wish(drives=[A]))
        assert "was not bound by this command" in restore(made.machine, file, [A])[0]
        assert made.drivers() == ("vfio-pci", "nvme")

    def test_after_a_boot_there_is_nothing_to_put_back(self, made: Made, file: RecordFile) -> None:
        bind(made.machine, file, Wish(drives=[A], hugepages=16))
        made.text("sys/kernel/random/boot_id", "another")
        written = len(made.kernel.written)
        assert "booted since" in restore(made.machine, file)[0]
        assert len(made.kernel.written) == written
        assert not file.path.exists()

    def test_a_bind_that_was_cut_off_is_put_back(self, made: Made, file: RecordFile) -> None:
        """The record was written, the driver taken off, and then the process was killed."""
        bind(made.machine, file, Wish(drives=[A]))
        (made.tree.places[A] / "driver").unlink()
        restore(made.machine, file)
        assert made.drivers() == ("nvme", "nvme")

    def test_a_drive_that_has_gone_is_forgotten(self, made: Made, file: RecordFile) -> None:
        bind(made.machine, file, Wish(drives=[A]))
        (made.root / "bus/pci/devices" / A).unlink()
        assert restore(made.machine, file) == [f"{A}: is gone"]
        assert not file.path.exists()

    def test_all_or_nothing(self, made: Made, file: RecordFile) -> None:
        """The second drive does not come to vfio-pci: the first goes back, and so do the huge pages."""
        take = made.kernel._take

        def picky(bdf: str, driver: str) -> None:
            if (bdf, driver) != (B, "vfio-pci"):
                take(bdf, driver)

        made.kernel._take = picky  # type: ignore[method-assign]
        reason = refused(made, file, A, B, hugepages=64)
        assert f"vfio-pci did not take {B}" in reason
        assert made.machine.override(A) == ""

    def test_a_kernel_without_vfio(self, made: Made, file: RecordFile) -> None:
        made.kernel.modules.clear()
        assert "no driver vfio-pci (FATAL: Module vfio-pci not found)" in refused(made, file, A)

    @pytest.mark.parametrize(
        ("drive", "reason"),
        [
            ("nvme0n1", "is not a PCI address"),
            ("0000:09:00.0", "there is no PCI device"),
            ("0000:00:02.0", "is no NVMe controller"),
        ],
    )
    def test_what_is_no_drive(self, made: Made, file: RecordFile, drive: str, reason: str) -> None:
        assert reason in refused(made, file, A, drive)


class TestInUse:
    def test_mounted(self, made: Made, file: RecordFile) -> None:
        part = made.tree.partition("nvme0n1", 2)
        number = (made.tree.where("nvme0n1p2") / "dev").read_text().strip()
        made.text("1/mountinfo", f"30 1 {number} / /srv rw - ext4 {part} rw")
        assert refused(made, file, A, B) == f"{A}: nvme0n1p2 is mounted at /srv"

    def test_the_root_file_system_on_btrfs(self, made: Made, file: RecordFile) -> None:
        made.text("1/mountinfo", "30 1 0:31 /@ / rw shared:1 - btrfs /dev/nvme0n1 rw")
        assert "nvme0n1 is mounted at /, the root file system" in refused(made, file, A)

    def test_swap(self, made: Made, file: RecordFile) -> None:
        made.text("swaps", "Filename Type Size Used Priority\n/dev/nvme0n1 partition 100 0 -2")
        assert "nvme0n1 is swap space" in refused(made, file, A)

    @pytest.mark.parametrize(
        ("holder", "uuid", "kind"),
        [("dm-0", "LVM-abc", "lvm"), ("dm-1", "CRYPT-LUKS2", "dm"), ("md0", "", "md"), ("bcache0", "", "bcache")],
    )
    def test_part_of_something(self, made: Made, file: RecordFile, holder: str, uuid: str, kind: str) -> None:
        place = made.tree.stacked(holder, "nvme0n1")
        if uuid:
            made.tree.write(place / "dm", name="vg-data", uuid=uuid)
        made.tree.write(made.tree.where("nvme0n1") / "holders" / holder)
        assert f"nvme0n1 is part of {'vg-data' if uuid else holder} ({kind})" in refused(made, file, A)

    @pytest.mark.parametrize("node", ["nvme0n1", "nvme0"])
    def test_open_in_a_process(self, made: Made, file: RecordFile, node: str) -> None:
        made.opens(77, "qemu", f"/dev/{node}")
        assert f"{node} is open in qemu (77)" in refused(made, file, A)

    def test_claimed_by_somebody_out_of_sight(self, made: Made, file: RecordFile) -> None:
        made.kernel.claimed.add("nvme0n1")
        assert "nvme0n1 is claimed by somebody" in refused(made, file, A)

    def test_its_memory_in_use(self, made: Made, file: RecordFile) -> None:
        path = f"/sys/devices/pci0000:00/0000:00:02.0/{A}/p2pmem/allocate"
        made.text("9/comm", "nvmet-p2p-datap")
        made.text("9/maps", f"7f0000000000-7f0000100000 rw-s 00000000 00:16 3 {path}")
        assert "its memory (CMB) is in use by nvmet-p2p-datap (9)" in refused(made, file, A)

    def test_served_by_the_running_target(self, made: Made, file: RecordFile) -> None:
        wish = Wish(drives=[A], served={"/dev/nvme0n1": "disk0"})
        with pytest.raises(SetupError, match=re.escape("the running target serves nvme0n1 as bdev disk0")):
            bind(made.machine, file, wish)

    def test_a_multipath_head(self, made: Made, file: RecordFile) -> None:
        made.tree.multipath("nvme5n1", ("nvme0", 0), ("nvme1", 1))
        made.tree.link("class/nvme-subsystem/nvme-subsys0", made.root / "devices/virtual/nvme-subsystem/nvme-subsys0")
        made.text("1/mountinfo", "30 1 9:9 / /data rw - xfs /dev/nvme5n1 rw")
        assert "nvme5n1 is mounted at /data" in refused(made, file, A)

    def test_virtual_functions(self, made: Made, file: RecordFile) -> None:
        made.tree.write(made.tree.places[A], sriov_numvfs=2)
        assert "virtual functions" in refused(made, file, A)

    def test_every_reason_of_every_drive_at_once(self, made: Made, file: RecordFile) -> None:
        made.opens(77, "fio", "/dev/nvme0n1")
        made.opens(77, "fio", "/dev/nvme1n1")
        reason = refused(made, file, A, B)
        assert f"{A}: nvme0n1 is open in fio (77)" in reason
        assert f"{B}: nvme1n1 is open in fio (77)" in reason


class TestGroups:
    def test_another_drive_in_the_group(self, made: Made, file: RecordFile) -> None:
        made.group(5, A, B)
        assert f"{B}, in the same IOMMU group 5, is in the hands of driver nvme" in refused(made, file, A)
        bind(made.machine, file, Wish(drives=[A, B]))
        assert made.drivers() == ("vfio-pci", "vfio-pci")

    def test_a_port_in_the_group_may_stay(self, made: Made, file: RecordFile) -> None:
        made.group(5, A, "0000:00:02.0")
        bind(made.machine, file, Wish(drives=[A]))

    def test_no_iommu(self, tmp_path: Path, file: RecordFile) -> None:
        made = Made(tmp_path / "plain", iommu=False)
        assert "no IOMMU group: switch the IOMMU on" in refused(made, file, A)
        assert "CONFIG_VFIO_NOIOMMU" in refused(made, file, A, noiommu=True)
        parameter = made.tree.write(made.root / NOIOMMU.rsplit("/", 1)[0], enable_unsafe_noiommu_mode="N")
        done = bind(made.machine, file, Wish(drives=[A], noiommu=True))
        assert "can reach all memory" in done[0]
        assert (parameter / "enable_unsafe_noiommu_mode").read_text() == "Y\n"
        restore(made.machine, file)
        assert (parameter / "enable_unsafe_noiommu_mode").read_text() == "N\n"


class TestHugepages:
    def test_at_least_so_many_and_as_before(self, made: Made, file: RecordFile) -> None:
        bind(made.machine, file, Wish(drives=[A], hugepages=32))
        assert made.pages() == ["32", "32"]
        bind(made.machine, file, Wish(drives=[B], hugepages=64))
        assert bind(made.machine, file, Wish(drives=[B], hugepages=16))[1:] == ["there are 16 huge pages already"]
        assert made.pages() == ["64", "64"]
        restore(made.machine, file, [A])
        assert made.pages() == ["64", "64"]
        restore(made.machine, file)
        assert made.pages() == ["8", "8"]

    def test_too_few(self, made: Made, file: RecordFile) -> None:
        made.kernel.pages_max = 10
        assert "node 0 gave 10 of 32 huge pages" in refused(made, file, A, hugepages=32)


class TestRestore:
    def test_not_while_a_process_drives_it(self, made: Made, file: RecordFile) -> None:
        bind(made.machine, file, Wish(drives=[A, B], hugepages=32))
        made.opens(9, "nvmet-p2p-datap", "/dev/vfio/0")
        with pytest.raises(SetupError, match=re.escape("is in use by nvmet-p2p-datap (9): detach the controller")):
            restore(made.machine, file)
        assert made.drivers() == ("vfio-pci", "nvme")
        assert made.pages() == ["32", "32"]
        (made.proc / "9/fd/3").unlink()
        restore(made.machine, file)
        assert made.drivers() == ("nvme", "nvme")
        assert made.pages() == ["8", "8"]

    def test_a_driver_that_does_not_take_it_back(self, made: Made, file: RecordFile) -> None:
        bind(made.machine, file, Wish(drives=[A]))
        made.kernel.refuses.add("nvme")
        with pytest.raises(SetupError, match="nvme did not take it back"):
            restore(made.machine, file)
        made.kernel.refuses.clear()
        restore(made.machine, file)
        assert made.drivers() == ("nvme", "nvme")


class TestRecord:
    def test_one_at_a_time(self, file: RecordFile) -> None:
        with file.locked(), pytest.raises(SetupError, match="another"), RecordFile(file.path.parent).locked():
            pass

    @pytest.mark.parametrize("text", ["{", '{"boot_id": 3}', '{"boot_id": "x", "version": 2}'])
    def test_a_file_of_another_kind_is_left_alone(self, made: Made, file: RecordFile, text: str) -> None:
        file.path.write_text(text)
        with pytest.raises(SetupError, match=re.escape("setup.json")):
            bind(made.machine, file, Wish(drives=[A]))
        assert file.path.read_text() == text
        assert made.drivers() == ("nvme", "nvme")

    def test_it_is_written_before_the_change(self, made: Made, file: RecordFile) -> None:
        seen = []
        write = made.kernel.write

        def watch(path: str, text: str) -> None:
            seen.append(A in file.path.read_text())
            write(path, text)

        made.kernel.write = watch  # type: ignore[method-assign]
        bind(made.machine, file, Wish(drives=[A]))
        assert seen
        assert all(seen)
