"""Drives that the data plane drives itself are unplugged and come back, under a host's load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.conftest import _need_lab, need_dataplane
from tests.lab.lab import Guest
from tests.lab.staging import FIND_DEV, HOST
from tests.lab.test_loss import Load, lost
from tests.lab.trace import DRAM, WRITE
from tests.lab.vfio import OTHER_DRIVE, VFIO_MACHINE, Reads, UserStaged, VfioLab, need_spdk, vfio_guest
from tests.support.daemon import eventually

pytestmark = [pytest.mark.p2p, pytest.mark.spdk, pytest.mark.timeout(600, func_only=True)]
# V is unplugged and comes back: QEMU gives the namespace of a drive that is plugged in later the NSID 1
MACHINE = replace(VFIO_MACHINE, nvme=("V:rp:64", "A:rp:64", "C:rp:16:64", "D:rp:16:64"))


@pytest.fixture(scope="module")
def lab() -> Iterator[VfioLab]:
    _need_lab()
    need_dataplane()
    need_spdk()
    with Guest(MACHINE) as guest, vfio_guest(guest, ("V", "A", "C", "D")) as made:
        yield made


@pytest.fixture
def clean(lab: VfioLab) -> Iterator[VfioLab]:
    lab.inside.start()
    yield lab
    lab.guest.reset()
    lab.inside.clear()


def test_unplugged_and_plugged_in_again(clean: VfioLab) -> None:
    """The host's reads of that drive end with errors, its load on the other one goes on; the drive's bdev is lost, and
    comes back with the drive: driver_override is all that the guest's administrator does."""
    lab, guest, inside = clean, clean.guest, clean.inside
    staged = UserStaged(lab, ["A", "V"])
    inside.rpc("bdev_nvme_set_hotplug", enable=True, period_us=200000)
    load = Load(staged)  # on A, namespace 1
    load.moves_through(HOST)
    reads = Reads(staged, 2)
    guest.hmp("device_del V")
    eventually(lambda: inside.rpc("p2p_get_status")["absent_bdevs"] == ["Vn1"], "its loss is noticed", 60.0)
    reads.fail()
    gone = f"[ ! -e /sys/bus/pci/devices/{lab.drives['V'].bdf} ]"
    eventually(lambda: guest.run(gone, check=False).code == 0, "the device has left the guest", 60.0)
    load.moves_through(HOST)
    guest.hmp(f"drive_add 0 if=none,file={guest.folder}/V.img,format=raw,id=again")
    guest.hmp("device_add nvme,id=V2,serial=V,bus=rp1,drive=again")
    bdf = lab.drives["V"].bdf
    guest.run(
        f"""d=/sys/bus/pci/devices/{bdf}; for _ in {{1..100}}; do [ -e $d/driver ] && break; sleep 0.1; done
        echo vfio-pci > $d/driver_override; echo {bdf} > $d/driver/unbind; echo {bdf} > /sys/bus/pci/drivers_probe""",
        timeout=30,
    )
    eventually(lambda: inside.rpc("p2p_get_status")["absent_bdevs"] == [], "it is attached again", 60.0)
    read = f"{FIND_DEV} find_dev 2; dd if=$dev of=/dev/null bs=64k count=4 iflag=direct"
    eventually(lambda: guest.run(read, check=False, timeout=30).code == 0, "its namespace answers again", 60.0)
    load.end(allow=OTHER_DRIVE)


# C: vfio-pci alone has it; D: it is a controller of the data plane's as well
@pytest.mark.parametrize("name", ["C", "D"])
def test_provider_unplugged_under_load(clean: VfioLab, name: str) -> None:
    """Payload of drive A rests in its CMB, then in host memory: no error at the host, no mismatch."""
    staged = UserStaged(clean, ["A", "D"] if name == "D" else ["A"])
    staged.policy(name)
    assert staged.state() == "pool"
    load = Load(staged)
    load.moves_through(name)
    clean.guest.hmp(f"device_del {name}")
    assert lost(staged, name)
    load.moves_through(HOST)
    staged.trace.mark()
    load.moves_through(HOST)
    assert staged.traffic().of("A", WRITE).keys() == {DRAM}
    assert load.end().keys() == {HOST, name}
    gone = f"[ ! -e /sys/bus/pci/devices/{clean.drives[name].bdf} ]"
    eventually(lambda: clean.guest.run(gone, check=False).code == 0, "the device has left the guest", 60.0)
