"""Drives that the data plane drives itself are unplugged and come back, under a host's load."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.conftest import _need_lab, need_dataplane
from tests.lab.lab import Guest
from tests.lab.staging import FIND_DEV, HOST, NQN
from tests.lab.test_loss import Load, lost
from tests.lab.trace import DRAM, WRITE
from tests.lab.vfio import OTHER_DRIVE, VFIO_MACHINE, Reads, UserStaged, VfioLab, need_spdk, vfio_guest
from tests.support.daemon import RpcError, eventually

pytestmark = [pytest.mark.p2p, pytest.mark.spdk, pytest.mark.timeout(600, func_only=True)]
# V is unplugged and comes back: QEMU gives the namespace of a drive that is plugged in later the NSID 1
MACHINE = replace(VFIO_MACHINE, nvme=("V:rp:64", "A:rp:64", "C:rp:16:64", "D:rp:16:64"))
PLUGGED = itertools.count()
MARK = b"another drive's ".ljust(512, b".")
# reads and writes of namespace 2, wherever the host still shows it: none may succeed
TRY = f"""
for _ in {{1..20}}; do
    for n in /sys/class/nvme-subsystem/*/nvme*n*; do
        [ "$(cat ${{n%/*}}/subsysnqn 2>/dev/null)" = {NQN} ] && [ "$(cat $n/nsid 2>/dev/null)" = 2 ] || continue
        [ -b /dev/${{n##*/}} ] || continue
        timeout 5 dd if=/dev/${{n##*/}} bs=64k count=1 iflag=direct 2>/dev/null | head -c 16
        timeout 5 dd if=/tmp/v of=/dev/${{n##*/}} bs=64k count=1 oflag=direct conv=notrunc 2>/dev/null && echo written
    done
    sleep 0.1
done
echo nothing
"""


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


def absent(lab: VfioLab) -> object:
    return lab.inside.rpc("p2p_get_status")["absent_bdevs"]


def unplug(lab: VfioLab) -> None:
    """Takes out the drive in V's place, and waits until everybody has noticed."""
    lab.guest.hmp("device_del V")
    eventually(lambda: absent(lab) == ["Vn1"], "its loss is noticed", 60.0)
    gone = f"[ ! -e /sys/bus/pci/devices/{lab.drives['V'].bdf} ]"
    eventually(lambda: lab.guest.run(gone, check=False).code == 0, "the device has left the guest", 60.0)


def plug(lab: VfioLab, serial: str) -> None:
    """Puts the drive with that serial number into V's place, and gives it to vfio-pci."""
    guest, bdf, drive = lab.guest, lab.drives["V"].bdf, f"plugged{next(PLUGGED)}"
    guest.hmp(f"drive_add 0 if=none,file={guest.folder}/{serial}.img,format=raw,id={drive}")
    guest.hmp(f"device_add nvme,id=V,serial={serial},bus=rp1,drive={drive}")
    guest.run(
        f"""d=/sys/bus/pci/devices/{bdf}; for _ in {{1..100}}; do [ -e $d/driver ] && break; sleep 0.1; done
        echo vfio-pci > $d/driver_override; echo {bdf} > $d/driver/unbind; echo {bdf} > /sys/bus/pci/drivers_probe""",
        timeout=30,
    )


def test_unplugged_and_plugged_in_again(clean: VfioLab) -> None:
    """The host's reads of that drive end with errors, its load on the other one goes on; the drive's bdev is lost, and
    comes back with the drive: driver_override is all that the guest's administrator does."""
    lab, guest, inside = clean, clean.guest, clean.inside
    staged = UserStaged(lab, ["A", "V"])
    inside.rpc("bdev_nvme_set_hotplug", enable=True, period_us=200000)
    load = Load(staged)  # on A, namespace 1
    load.moves_through(HOST)
    reads = Reads(staged, 2)
    unplug(lab)
    reads.fail()
    load.moves_through(HOST)
    plug(lab, "V")
    eventually(lambda: absent(lab) == [], "it is attached again", 60.0)
    read = f"{FIND_DEV} find_dev 2; dd if=$dev of=/dev/null bs=64k count=4 iflag=direct"
    eventually(lambda: guest.run(read, check=False, timeout=30).code == 0, "its namespace answers again", 60.0)
    load.end(allow=OTHER_DRIVE)


def refused(lab: VfioLab) -> str:
    """Why controller V's namespace is no bdev now; nothing as long as the data plane is starting."""
    try:
        (controller,) = lab.inside.rpc("bdev_nvme_get_controllers", name="V")
    except RpcError:
        return ""
    return str(controller["ctrlrs"][0].get("refused_namespaces", {}).get("Vn1", ""))


@pytest.mark.parametrize("restarted", ["nothing", "data plane", "daemon"])
def test_another_drive_in_its_place(clean: VfioLab, restarted: str) -> None:
    """It is refused, also by a data plane that has never seen the right one: the host gets no byte of it and writes
    none to it. When the right drive is back, its data is there."""
    lab, guest, inside = clean, clean.guest, clean.inside
    other = guest.folder / "W.img"
    other.write_bytes(MARK * ((64 << 20) // len(MARK)))
    staged = UserStaged(lab, ["A", "V"])
    inside.rpc("bdev_nvme_set_hotplug", enable=True, period_us=200000)
    load = Load(staged)  # on A, namespace 1
    load.moves_through(HOST)
    guest.run(
        f"""{FIND_DEV} find_dev 2; head -c 1M /dev/urandom > /tmp/v
        dd if=/tmp/v of=$dev bs=64k oflag=direct status=none""",
        timeout=60,
    )
    reads = Reads(staged, 2)
    unplug(lab)
    reads.fail()
    plug(lab, "W")
    eventually(lambda: "'1b36.W" in refused(lab), "it is refused", 60.0)
    if restarted == "data plane":
        before = inside.rpc("p2p_get_status")["dataplane"]["pid"]
        guest.run(f"kill -9 {before}")
        eventually(lambda: inside.rpc("p2p_get_status")["dataplane"].get("pid", before) != before, "another", 60.0)
    elif restarted == "daemon":
        inside.stop("KILL")
        inside.start()
    eventually(lambda: "'1b36.W" in refused(lab), "it is still refused", 60.0)
    load.moves_through(HOST)
    assert absent(lab) == ["Vn1"]
    done = guest.run(TRY, timeout=120)
    assert done.out.splitlines() == ["nothing"]
    assert other.read_bytes().count(MARK) == (64 << 20) // len(MARK)
    unplug(lab)
    plug(lab, "V")
    eventually(lambda: absent(lab) == [], "the right one is attached again", 60.0)
    read = f"{FIND_DEV} find_dev 2; dd if=$dev of=/tmp/w bs=64k count=16 iflag=direct"
    eventually(lambda: guest.run(read, check=False, timeout=30).code == 0, "its namespace answers again", 60.0)
    assert guest.run("cmp /tmp/v /tmp/w && echo same").out.split() == ["same"]
    load.end(allow=OTHER_DRIVE if restarted == "nothing" else ".")


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
