"""Drives on vfio-pci, driven by the data plane with SPDK, served to the Linux initiator of the same guest.

QEMU's trace says what the drives did, in physical addresses: the emulated IOMMU's translations are part of it.
"""

from __future__ import annotations

import pytest

from tests.lab.inside import drives
from tests.lab.staging import FIND_DEV, HOST, MIB, NQN, grown
from tests.lab.test_linux_host import FIO_VERIFY, quiet
from tests.lab.test_loss import Load
from tests.lab.trace import COMPARE, COPY, DRAM, DSM, FLUSH, READ, VERIFY, WRITE, WRITE_ZEROES
from tests.lab.vfio import OTHER_DRIVE, Reads, UserStaged, VfioLab, driver, to_driver
from tests.support.daemon import RpcError, eventually

pytestmark = [pytest.mark.p2p, pytest.mark.spdk, pytest.mark.timeout(600, func_only=True)]
BUSY = "keep[ _]?alive"  # under emulation a Keep Alive may take a second


@pytest.fixture
def a(spdk_lab: VfioLab) -> UserStaged:
    """Drive A is namespace 1."""
    return UserStaged(spdk_lab, ["A"])


@pytest.fixture
def ab(spdk_lab: VfioLab) -> UserStaged:
    """Drives A and B are namespaces 1 and 2."""
    return UserStaged(spdk_lab)


def controllers(lab: VfioLab) -> dict[str, dict[str, object]]:
    return {found["name"]: found for found in lab.inside.rpc("bdev_nvme_get_controllers")}


def test_attach_and_detach(spdk_lab: VfioLab) -> None:
    """SPDK's own command does it; a drive that the kernel has, a name twice and a drive twice are refused."""
    inside, a = spdk_lab.inside, spdk_lab.drives["A"]
    done = inside.spdk_rpc("bdev_nvme_attach_controller", "-b", "Nvme0", "-t", "PCIe", "-a", a.bdf)
    assert done.out.strip() == "Nvme0n1"
    (bdev,) = inside.rpc("bdev_get_bdevs", name="Nvme0n1")
    assert (bdev["block_size"], bdev["num_blocks"]) == (512, 300 * MIB // 512)
    assert controllers(spdk_lab).keys() == {"Nvme0"}
    for name, drive in (("Nvme1", "K"), ("Nvme0", "B"), ("Nvme1", "A")):
        with pytest.raises(RpcError):
            inside.rpc("bdev_nvme_attach_controller", name=name, trtype="PCIe", traddr=spdk_lab.drives[drive].bdf)
    assert driver(spdk_lab.guest, spdk_lab.drives["K"]) == "nvme"
    inside.rpc("bdev_nvme_detach_controller", name="Nvme0")
    assert (controllers(spdk_lab), inside.rpc("bdev_get_bdevs")) == ({}, [])
    to_driver(spdk_lab.guest, a, "nvme")  # nothing holds it


def test_data_survives_fio_verify(a: UserStaged) -> None:
    """Through DRAM, and the target's counters are the trace's bytes: nothing was bounced."""
    before = a.uses()
    done = a.guest.run(f"{a.connect()} {FIO_VERIFY}\nnvme disconnect -n {NQN} >&2", timeout=250)
    assert done.out.split() == ["0"]
    quiet(done, BUSY)
    traffic, use = a.traffic(), grown(before, a.uses())
    assert use[HOST].read > 6 * MIB
    assert use[HOST].write > 6 * MIB
    assert traffic.of("A", READ) == {DRAM: use[HOST].read}
    assert traffic.of("A", WRITE) == {DRAM: use[HOST].write}


def test_file_system(a: UserStaged) -> None:
    """Written through the target, read back by the kernel's own driver once the drive has been given back."""
    done = a.guest.run(
        f"""{a.connect()} mkfs.ext4 -q $dev >&2; mkdir -p /mnt/fs; mount -o discard $dev /mnt/fs
        for i in $(seq 40); do head -c $((i * 3000)) /dev/urandom > /mnt/fs/file$i; done
        (cd /mnt/fs; md5sum file*) > /tmp/sums; rm /mnt/fs/file1?; sync; fstrim /mnt/fs; umount /mnt/fs
        fsck.ext4 -fn $dev >&2; nvme disconnect -n {NQN} >&2""",
        timeout=250,
    )
    quiet(done, BUSY)
    a.inside.clear()
    to_driver(a.guest, a.drives["A"], "nvme")
    done = a.guest.run(
        f"""cd /sys/bus/pci/devices/{a.drives["A"].bdf}
        find() {{ dev=$(ls -d nvme/nvme*/nvme*n* 2>/dev/null); dev=/dev/${{dev##*/}}; }}
        for _ in {{1..100}}; do find; [ -b $dev ] && break; sleep 0.1; done; mount -o ro $dev /mnt/fs
        (cd /mnt/fs; grep -v 'file1.$' /tmp/sums | md5sum -c --quiet) && echo same; umount /mnt/fs"""
    )
    assert done.out.splitlines() == ["same"]


def test_the_drive_does_it_itself(a: UserStaged) -> None:
    """Write Zeroes, Deallocate, Flush, Compare, Verify and Copy are commands of the drive; the data is right."""
    guest = a.guest
    guest.run(
        f"{a.connect()} head -c 4M /dev/urandom > /tmp/a; dd if=/tmp/a of=$dev bs=1M oflag=direct status=none",
        keep=True,
        timeout=120,
    )
    a.trace.mark()
    guest.run(
        f"{FIND_DEV} find_dev 1; blkdiscard -o 512K -l 512K $dev; blkdiscard -z -o 2560K -l 300K $dev", timeout=60
    )
    traffic = a.traffic()  # the host looks for partitions after these two
    assert traffic.commands["A", WRITE_ZEROES] >= 1
    assert traffic.commands["A", DSM] >= 1
    assert traffic.of("A", WRITE) == {}
    a.trace.mark()
    done = guest.run(
        f"""{FIND_DEV} find_dev 1
        nvme write-zeroes $dev -s 16 -c 7 -d >&2; nvme dsm $dev -n 1 -d -s 7000 -b 9 >&2; nvme flush $dev -n 1 >&2
        head -c 64K /tmp/a > /tmp/b; dd if=/dev/zero of=/tmp/b bs=512 seek=16 count=8 conv=notrunc status=none
        nvme compare $dev -s 0 -c 127 -z 65536 -d /tmp/b >&2 && echo equal
        printf x | dd of=/tmp/b bs=1 seek=40000 conv=notrunc status=none
        nvme compare $dev -s 0 -c 127 -z 65536 -d /tmp/b > /tmp/out 2>&1 || grep -io 'compare failure' /tmp/out
        nvme verify $dev -s 0 -c 4095 >&2 && echo verified
        nvme copy $dev -d 65536 -s 0,2048,7,4000 -b 999,0,15,511 >&2 && echo copied
        nvme read $dev -s $((300 * 2048)) -c 0 -z 512 -d /tmp/y > /tmp/out 2>&1 || grep -io 'out of range' /tmp/out""",
        timeout=120,
    )
    assert [line.lower() for line in done.out.splitlines()] == [
        "equal", "compare failure", "verified", "copied", "out of range"
    ]  # fmt: skip
    traffic = a.traffic()
    assert traffic.commands["A", WRITE_ZEROES] >= 1
    assert traffic.commands["A", DSM] >= 1
    assert traffic.commands["A", FLUSH] >= 1
    assert traffic.commands["A", COMPARE] == 2
    assert traffic.commands["A", VERIFY] >= 1
    assert traffic.commands["A", COPY] >= 1
    assert traffic.of("A", READ) == traffic.of("A", WRITE) == {}
    done = guest.run(
        f"""{FIND_DEV} find_dev 1
        zero() {{ dd if=/dev/zero of=/tmp/a bs=512 seek=$1 count=$2 conv=notrunc status=none; }}
        part() {{ dd if=/tmp/a bs=512 skip=$1 count=$2 status=none; }}
        zero 1024 1024; zero 5120 600; zero 16 8; zero 7000 9
        cmp -n 4M /tmp/a $dev && echo same
        (part 0 1000; part 2048 1; part 7 16; part 4000 512) > /tmp/wanted
        cmp -n $((1529 * 512)) /tmp/wanted $dev 0 $((65536 * 512)) && echo copied; nvme disconnect -n {NQN} >&2""",
        timeout=120,
    )
    assert done.out.splitlines() == ["same", "copied"]
    quiet(done, BUSY)


# C: vfio-pci alone has it; B: a controller of the data plane's. Both are other drives than the one that moves the data.
@pytest.mark.parametrize("provider", ["C", "B"])
def test_strict_keeps_all_payload_in_the_cmb(ab: UserStaged, provider: str) -> None:
    """fio verify: every byte that drive A moves is in the provider's BAR, by the IOMMU's translations in QEMU."""
    ab.policy(provider, "strict")
    assert ab.state() == "pool"
    before = ab.uses()
    ab.trace.mark()
    done = ab.guest.run(f"{ab.connect()} {FIO_VERIFY}\nnvme disconnect -n {NQN} >&2", timeout=350)
    assert done.out.split() == ["0"]
    quiet(done, BUSY)
    traffic, use = ab.traffic(), grown(before, ab.uses())
    assert use.keys() == {provider}
    assert use[provider].read > 6 * MIB
    assert traffic.of("A", READ) == {provider: use[provider].read}
    assert traffic.of("A", WRITE) == {provider: use[provider].write}


def test_pools_of_the_wrong_kind(spdk_lab: VfioLab) -> None:
    """The kernel's drivers cannot reach the CMB of a drive on vfio-pci, nor the data plane's drives the kernel's
    p2pmem: both are refused with that reason."""
    inside, k = spdk_lab.inside, drives(spdk_lab.guest, ("K",))["K"]
    inside.rpc("bdev_uring_create", name="kernel", filename=k.device)
    bdev = spdk_lab.attach("A")
    inside.serve(NQN, {1: bdev, 2: "kernel"})
    for nsid, provider in ((1, "K"), (2, "C")):
        with pytest.raises(RpcError) as refused:
            inside.rpc(
                "p2p_set_staging",
                timeout_s=90.0,
                nqn=NQN,
                nsid=nsid,
                policy=spdk_lab.drives[provider].bdf,
                mode="strict",
            )
        assert "vfio-pci" in str(refused.value)


def test_reset_under_load(a: UserStaged) -> None:
    """What was in flight is done again: the host that writes and verifies sees nothing."""
    load = Load(a)
    load.moves_through(HOST)
    for _ in range(3):
        a.inside.rpc("bdev_nvme_reset_controller", name="A")
        load.moves_through(HOST, 1)
    load.end()


def test_the_data_plane_dies_under_load(a: UserStaged) -> None:
    """The next one attaches the drive again, and the host goes on with what it had under way."""
    load = Load(a)
    load.moves_through(HOST)
    before = a.inside.rpc("p2p_get_status")["dataplane"]["pid"]
    a.guest.run(f"kill -9 {before}")
    eventually(lambda: a.inside.rpc("p2p_get_status")["dataplane"].get("pid", before) != before, "another one", 60.0)
    eventually(lambda: a.bdevs[0] in [b["name"] for b in a.inside.rpc("bdev_get_bdevs")], "the bdev is back", 60.0)
    rounds = load.job.out.count("round")
    eventually(lambda: load.job.done() or load.job.out.count("round") > rounds + 1, "the host goes on", 120.0)
    a.guest.run("touch /tmp/stop")
    done = load.job.wait(120)
    assert done.out.splitlines()[-1] == "survived", f"{done}\n{a.inside.log()}"


def test_detach_under_load(ab: UserStaged) -> None:
    """Its namespace ends, with the host's I/O; the other drive's goes on, and the controller can come back."""
    lab, guest = ab.lab, ab.guest
    load = Load(ab)  # on namespace 1
    load.moves_through(HOST)
    reads = Reads(ab, 2)
    lab.inside.rpc("bdev_nvme_detach_controller", name="B", timeout_s=60.0)
    reads.fail()
    assert controllers(lab).keys() == {"A"}
    assert [bdev["name"] for bdev in lab.inside.rpc("bdev_get_bdevs")] == ["An1"]
    load.moves_through(HOST)
    bdev = lab.attach("B")
    lab.inside.rpc("nvmf_subsystem_add_ns", nqn=NQN, namespace={"nsid": 2, "bdev_name": bdev})
    guest.run(f"{FIND_DEV} find_dev 2; dd if=$dev of=/dev/null bs=64k count=4 iflag=direct", timeout=60)
    load.end(allow=OTHER_DRIVE)
