"""A machine with an IOMMU, and its drives between the kernel's driver and vfio-pci."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.lab import spdk, trace
from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.lab import Guest
from tests.lab.machine import CPU_FULL, Machine
from tests.lab.staging import FIND_DEV, Staged, grown
from tests.lab.trace import Trace, Traffic, seen
from tests.support.daemon import eventually

MEMORY_BYTES = 2 << 30
VFIO_MACHINE = Machine(
    cpu=CPU_FULL,
    memory=f"{MEMORY_BYTES >> 20}M",
    iommu=True,
    nvme=("A:rp:300:64", "B:rp:300:64", "C:rp:64:64", "K:rp:64:64"),
    target=True,
    net=False,
    trace=trace.IOMMU_EVENTS,
)
"""Four drives with a CMB, each on a root port and alone in its IOMMU group; K is meant to stay with the kernel."""
USER_DRIVES = ("A", "B", "C")
OTHER_DRIVE = r"nvme\d+(c\d+)?n\d+\b|vfio-pci"
"""The host's complaints of a namespace that has gone; the number in its name is not the NSID."""


def to_driver(guest: Guest, drive: Drive, driver: str) -> None:
    """Unbinds a drive from what it has and binds it to that driver; nothing is asked."""
    guest.run(
        f"""set -e; modprobe vfio-pci; modprobe vfio_iommu_type1
        d=/sys/bus/pci/devices/{drive.bdf}
        [ "$(basename "$(readlink $d/driver)")" = {driver} ] && exit 0
        if [ {driver} = nvme ]; then echo > $d/driver_override; else echo {driver} > $d/driver_override; fi
        [ ! -e $d/driver ] || echo {drive.bdf} > $d/driver/unbind
        echo {drive.bdf} > /sys/bus/pci/drivers_probe
        [ "$(basename "$(readlink $d/driver)")" = {driver} ]"""
    )


def driver(guest: Guest, drive: Drive) -> str:
    """The driver that a drive has, or an empty string."""
    script = f"d=$(readlink /sys/bus/pci/devices/{drive.bdf}/driver) && basename $d || true"
    return guest.run(script).out.strip()


def need_spdk() -> None:
    """Skips, for a data plane without SPDK."""
    if not spdk.linked():
        pytest.skip("SPDK: the data plane was built without it (pkg-config did not find spdk_nvme)")


def huge_pages(guest: Guest, pages: int) -> None:
    """Reserves that many of 2 MiB, or fails."""
    guest.run(f'echo {pages} > /proc/sys/vm/nr_hugepages; [ "$(cat /proc/sys/vm/nr_hugepages)" = {pages} ]')


class VfioLab:
    """The guest, its drives (as the kernel's driver saw them), and the daemon in it."""

    def __init__(self, inside: InsideTarget, found: dict[str, Drive]) -> None:
        self.inside = inside
        self.guest = inside.guest
        self.drives = found

    def attach(self, name: str, **options: Any) -> str:
        """Makes a controller called like the drive; the name of its only bdev."""
        (bdev,) = self.inside.rpc(
            "bdev_nvme_attach_controller", name=name, trtype="PCIe", traddr=self.drives[name].bdf, **options
        )
        assert bdev == f"{name}n{self.drives[name].nsid}"
        return str(bdev)


class UserStaged(Staged):
    """As Staged, the drives driven by the data plane itself: bdevs An1, Bn2."""

    def __init__(self, lab: VfioLab, names: Iterable[str] = ("A", "B")) -> None:
        self.lab = lab
        super().__init__(lab.inside, lab.drives, names)
        self.trace = Trace(lab.guest.folder / "trace")

    def create(self, name: str) -> str:
        return self.lab.attach(name)

    def traffic(self) -> Traffic:
        """What the drives did since the trace's mark."""
        return seen(self.trace, self.drives, MEMORY_BYTES, iommu=True)


class Reads:
    """A host that reads the staged drive of that NSID until it fails; it has begun."""

    def __init__(self, staged: UserStaged, nsid: int) -> None:
        before = staged.uses(nsid)
        self.job = staged.guest.start(
            f"""{FIND_DEV} find_dev {nsid}
            fio --name=r --filename=$dev --rw=randread --bs=64k --size=8M --direct=1 --ioengine=libaio --iodepth=8 \\
                --time_based --runtime=900 > /tmp/reads.json && echo survived"""
        )

        def begun() -> bool:
            assert not self.job.done(), f"{self.job.out}\n{self.job.err}"
            return sum(use.read for use in grown(before, staged.uses(nsid)).values()) > 1 << 20

        eventually(begun, f"namespace {nsid} is read", 60.0)

    def fail(self) -> None:
        """Waits for the host's error."""
        eventually(self.job.done, "reads of what is no longer there end", 60.0)
        assert "survived" not in self.job.wait(10, check=False).out


@contextlib.contextmanager
def vfio_guest(guest: Guest, names: Iterable[str] = USER_DRIVES) -> Iterator[VfioLab]:
    """The guest booted, the kernel's view of its drives taken, and those named given to vfio-pci."""
    guest.boot()
    found = drives(guest)
    if pages := os.environ.get("NVMET_P2P_LAB_HUGEPAGES"):
        huge_pages(guest, int(pages))
    for name in names:
        to_driver(guest, found[name], "vfio-pci")
    with contextlib.closing(InsideTarget(guest)) as inside:
        yield VfioLab(inside, found)
