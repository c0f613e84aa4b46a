"""Copy, Compare and Verify of the drive itself: the target passes them on, and QEMU's trace shows no payload."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.lab import Guest
from tests.lab.runtime import PYTHON
from tests.lab.test_linux_host import FIND, NQN, quiet
from tests.lab.trace import COMPARE, COPY, READ, VERIFY, WRITE, Trace, Traffic

pytestmark = pytest.mark.p2p
# BLKPG: a partition that the kernel alone knows of. Add or delete (1, 2), device, first block, blocks.
BLKPG = """
import ctypes, fcntl, struct, sys
what, device, start, blocks = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
part = ctypes.create_string_buffer(struct.pack("<qqi128x4x", start * 512, blocks * 512, 1))
with open(device) as file:
    fcntl.ioctl(file, 0x1269, struct.pack("@iiiP", what, 0, len(part) - 1, ctypes.addressof(part)))
"""


@pytest.fixture(scope="module")
def lab_drives(p2p_guest: Guest) -> dict[str, Drive]:
    return drives(p2p_guest)


@pytest.fixture
def a(inside: InsideTarget, lab_drives: dict[str, Drive]) -> Drive:
    """Drive A is namespace 1 of a subsystem that the guest is connected to; its first 4 MiB are random, as /tmp/a."""
    drive = lab_drives["A"]
    inside.rpc("bdev_uring_create", name="a", filename=drive.device)
    inside.serve(NQN, {1: "a"})
    fill(inside)
    return drive


def fill(inside: InsideTarget) -> None:
    inside.guest.run(
        f"""{FIND} {inside.connect(NQN)} >&2; find_dev 1
        head -c 4M /dev/urandom > /tmp/a; dd if=/tmp/a of=$dev bs=1M oflag=direct status=none""",
        keep=True,
    )


def seen(trace: Trace, found: dict[str, Drive]) -> Traffic:
    traffic = Traffic(trace.commands(), found.values(), 1 << 30)
    assert traffic.torn == [], str(traffic)
    return traffic


def test_copy_by_the_drive(inside: InsideTarget, a: Drive, lab_drives: dict[str, Drive]) -> None:
    """Four ranges, larger than what the drive takes in one command (128 blocks in QEMU's)."""
    trace = Trace(inside.guest.folder / "trace")
    inside.guest.run(f"{FIND} find_dev 1; nvme copy $dev -d 65536 -s 0,2048,7,4000 -b 999,0,15,511 >&2")
    traffic = seen(trace, lab_drives)
    assert traffic.commands["A", COPY] >= (1000 + 1 + 16 + 512) // 128
    assert traffic.of("A", READ) == traffic.of("A", WRITE) == {}
    done = inside.guest.run(
        f"""{FIND} find_dev 1; part() {{ dd if=/tmp/a bs=512 skip=$1 count=$2 status=none; }}
        (part 0 1000; part 2048 1; part 7 16; part 4000 512) > /tmp/wanted
        cmp -n $((1529 * 512)) /tmp/wanted $dev 0 $((65536 * 512)) && echo same
        cmp -n $((1529 * 512)) /tmp/wanted {a.device} 0 $((65536 * 512)) && echo same on the drive
        cmp -n 4M /tmp/a $dev && echo untouched; nvme disconnect -n {NQN} >&2"""
    )
    assert done.out.splitlines() == ["same", "same on the drive", "untouched"]
    quiet(done)


def test_compare_and_verify_by_the_drive(inside: InsideTarget, a: Drive, lab_drives: dict[str, Drive]) -> None:
    trace = Trace(inside.guest.folder / "trace")
    done = inside.guest.run(
        f"""{FIND} find_dev 1; head -c 64K /tmp/a > /tmp/b
        nvme compare $dev -s 0 -c 127 -z 65536 -d /tmp/b >&2 && echo equal
        printf x | dd of=/tmp/b bs=1 seek=40000 conv=notrunc status=none
        nvme compare $dev -s 0 -c 127 -z 65536 -d /tmp/b > /tmp/out 2>&1 || grep -io 'compare failure' /tmp/out
        nvme verify $dev -s 0 -c 4095 >&2 && echo verified; nvme disconnect -n {NQN} >&2"""
    )
    assert [line.lower() for line in done.out.splitlines()] == ["equal", "compare failure", "verified"]
    traffic = seen(trace, lab_drives)
    assert traffic.commands["A", COMPARE] == 2
    assert traffic.commands["A", VERIFY] == 4  # 512 KiB each: QEMU's VSL
    assert traffic.of("A", READ) == {}
    quiet(done)


@pytest.fixture
def partition(inside: InsideTarget, lab_drives: dict[str, Drive]) -> Iterator[str]:
    """The second MiB to the tenth of drive A; made in the kernel alone, nothing is written to the drive."""
    drive = lab_drives["A"]
    blkpg = f"target-enter {PYTHON} -c {shlex.quote(BLKPG)}"
    inside.guest.run(
        f"""head -c 12M /dev/urandom > /tmp/whole; dd if=/tmp/whole of={drive.device} bs=1M oflag=direct status=none
        {blkpg} 1 {drive.device} 2048 16384""",
        keep=True,
    )
    yield f"{drive.device}p1"
    inside.clear()
    inside.guest.run(f"{blkpg} 2 {drive.device} 0 0")


def test_partition(inside: InsideTarget, partition: str, lab_drives: dict[str, Drive]) -> None:
    """The drive knows nothing of partitions: their offset is added, and what lies beside them stays."""
    guest, whole = inside.guest, lab_drives["A"].device
    inside.rpc("bdev_uring_create", name="p", filename=partition)
    inside.serve(NQN, {1: "p"})
    fill(inside)
    trace = Trace(guest.folder / "trace")
    guest.run(
        f"""{FIND} find_dev 1; nvme copy $dev -d 15384 -s 100 -b 999 >&2; nvme verify $dev -s 16000 -c 383 >&2
        head -c 64K /tmp/a > /tmp/b; nvme compare $dev -s 0 -c 127 -z 65536 -d /tmp/b >&2"""
    )
    traffic = seen(trace, lab_drives)
    assert traffic.commands["A", COPY] >= 7
    assert (traffic.commands["A", VERIFY], traffic.commands["A", COMPARE]) == (1, 1)
    assert traffic.of("A", READ) == traffic.of("A", WRITE) == {}
    done = guest.run(
        f"""{FIND} find_dev 1
        nvme copy $dev -d 15385 -s 100 -b 999 > /tmp/out 2>&1 || grep -io 'lba out of range' /tmp/out
        dd if=/tmp/a of=/tmp/whole bs=1M seek=1 conv=notrunc status=none
        dd if=/tmp/a of=/tmp/whole bs=512 skip=100 seek=$((2048 + 15384)) count=1000 conv=notrunc status=none
        cmp -n 12M /tmp/whole {whole} && echo same; nvme disconnect -n {NQN} >&2"""
    )
    assert [line.lower() for line in done.out.splitlines()] == ["lba out of range", "same"]
    quiet(done)
