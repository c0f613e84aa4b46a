"""`nvmet-p2p setup` in a guest with an IOMMU: drives leave the kernel's driver and come back to it."""

from __future__ import annotations

import shlex

import pytest

from tests.lab.inside import COMMAND, SOCKET, Drive, drives
from tests.lab.lab import Result
from tests.lab.trace import DRAM, OTHER, READ, Traffic, Translations, commands
from tests.lab.vfio import MEMORY_BYTES, VfioLab, driver, to_driver

RECORD = "/run/setup"


def with_kernel(lab: VfioLab, *names: str) -> VfioLab:
    """These drives have the kernel's driver, and nothing is recorded."""
    lab.guest.run(f"rm -rf {RECORD}; modprobe nvme")
    for name in names:
        to_driver(lab.guest, lab.drives[name], "nvme")
    return lab


@pytest.fixture
def lab(spdk_lab: VfioLab) -> VfioLab:
    """A and K with the kernel's driver, beside a running target. Skipped without SPDK to save time: it is not used."""
    return with_kernel(spdk_lab, "A", "K")


def setup(lab: VfioLab, *words: str, check: bool = True) -> Result:
    line = [*COMMAND, "setup", "--rpc-socket", SOCKET, "--record-dir", RECORD, *words]
    return lab.guest.run(f"exec target-enter {shlex.join(line)}", check=check)


def test_a_trace_behind_an_iommu() -> None:
    """A drive's addresses are what the IOMMU made of them, page by page; its own CMB's are not translated at all."""
    text = """\
pci_nvme_io_cmd cid 1 nsid 0x2 sqid 1 opc 0x2 opname 'NVME_NVM_CMD_READ'
pci_nvme_read cid 1 nsid 2 nlb 32 count 16384 lba 0x0
pci_nvme_map_addr addr 0x200000001800 len 8192
pci_nvme_map_addr addr 0x2000003ff000 len 4096
pci_nvme_map_addr addr 0x300000000000 len 4096
vtd_dmar_translate dev 01:00.00 iova 0x200000001000 -> gpa 0x5000 mask 0xfff
vtd_dmar_translate dev 02:00.00 iova 0x200000001000 -> gpa 0x7000 mask 0xfff
vtd_dmar_translate dev 02:00.00 iova 0x200000002000 -> gpa 0xf0001000 mask 0xfff
vtd_dmar_translate dev 02:00.00 iova 0x200000003000 -> gpa 0xf0000000 mask 0xfff
vtd_dmar_translate dev 02:00.00 iova 0x200000200000 -> gpa 0xf0200000 mask 0x1fffff
"""
    drive = Drive("B", 2, "0000:02:00.0", "", "", (), 0)
    other = Drive("C", 3, "0000:03:00.0", "", "", ((0xF0000000, 0xF3FFFFFF),), 64 << 20)
    traffic = Traffic(commands(text.splitlines()), [drive, other], MEMORY_BYTES, Translations(text))
    assert traffic.of("B", READ) == {DRAM: 2048, "C": 10240, OTHER: 4096}
    assert traffic.torn == []


def test_bind_and_restore(vfio_session: VfioLab) -> None:
    """Two drives and huge pages; no target runs."""
    lab = with_kernel(vfio_session, "A", "K")
    a, k = lab.drives["A"], lab.drives["K"]
    pages = "cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
    before = lab.guest.run(pages).out.strip()
    done = setup(lab, "bind", a.bdf, k.bdf, "--hugepages", "8")
    assert f"{a.bdf}: nvme -> vfio-pci (/dev/vfio/" in done.out
    assert driver(lab.guest, a) == driver(lab.guest, k) == "vfio-pci"
    assert int(lab.guest.run(pages).out) >= 8
    assert setup(lab, "restore", k.bdf).out.strip() == f"{k.bdf}: vfio-pci -> nvme"
    assert (driver(lab.guest, a), driver(lab.guest, k)) == ("vfio-pci", "nvme")
    assert f"{a.bdf}: vfio-pci -> nvme" in setup(lab, "restore").out
    assert lab.guest.run(pages).out.strip() == before
    back = drives(lab.guest, ("A", "K"))
    assert (back["A"].nsid, back["A"].cmb, back["K"].cmb) == (a.nsid, a.cmb, k.cmb)
    overrides = f"cat /sys/bus/pci/devices/{a.bdf}/driver_override /sys/bus/pci/devices/{k.bdf}/driver_override"
    assert set(lab.guest.run(overrides).out.split()) <= {"(null)"}


def test_a_drive_in_use_stays(lab: VfioLab) -> None:
    """Mounted, then served by the target: refused with the reason, also for the free drive named beside it."""
    now = drives(lab.guest, ("A", "K"))
    lab.guest.run(f"mkfs.ext4 -q {now['A'].device} && mkdir -p /tmp/m && mount {now['A'].device} /tmp/m", keep=True)
    refused = setup(lab, "bind", now["A"].bdf, now["K"].bdf, check=False)
    assert refused.code == 1
    assert "is mounted at /tmp/m" in refused.err
    assert driver(lab.guest, now["A"]) == driver(lab.guest, now["K"]) == "nvme"
    lab.guest.run("umount /tmp/m")
    lab.inside.rpc("bdev_uring_create", name="served", filename=now["A"].device)
    refused = setup(lab, "bind", now["A"].bdf, check=False)
    assert refused.code == 1
    assert "as bdev served" in refused.err
    assert driver(lab.guest, now["A"]) == "nvme"


def test_a_drive_that_a_process_has_open_is_not_restored(lab: VfioLab) -> None:
    """The kernel would wait for it without an end. Who has it is told, and it works once that has let go."""
    a = lab.drives["A"]
    setup(lab, "bind", a.bdf)
    holder = lab.guest.start(
        f"""group=$(basename $(readlink /sys/bus/pci/devices/{a.bdf}/iommu_group))
        exec python3 -c '
import sys, time
held = open(sys.argv[1], "r+b", 0)
print("held", flush=True)
time.sleep(600)' /dev/vfio/$group"""
    )
    holder.wait_for("held")
    refused = setup(lab, "restore", check=False)
    assert refused.code == 1
    assert "is in use by python3" in refused.err
    assert driver(lab.guest, a) == "vfio-pci"
    holder.kill()
    setup(lab, "restore")
    assert driver(lab.guest, a) == "nvme"
