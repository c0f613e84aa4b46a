"""The target in the guest, on real block devices: emulated NVMe drives, looked at through QEMU's trace of their DMA."""

from __future__ import annotations

import struct

import pytest

from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.lab import Guest
from tests.lab.test_linux_host import FIND, FIO_VERIFY, NQN, quiet
from tests.lab.trace import DRAM, FLUSH, READ, WRITE, WRITE_ZEROES, Command, Trace, Traffic, commands, seen

pytestmark = pytest.mark.p2p
MIB = 1 << 20
# Which requests the drive's driver gets, with their flags: FUA does not show in QEMU's trace.
REQUESTS = """
cd /sys/kernel/tracing; echo > trace; echo 1 > events/block/block_rq_issue/enable
%s
echo 0 > events/block/block_rq_issue/enable
"""


@pytest.fixture(scope="module")
def lab_drives(p2p_guest: Guest) -> dict[str, Drive]:
    return drives(p2p_guest)


@pytest.fixture
def a(inside: InsideTarget, lab_drives: dict[str, Drive]) -> Drive:
    """Drive A is namespace 1 of a subsystem."""
    drive = lab_drives["A"]
    inside.rpc("bdev_uring_create", name="a", filename=drive.device)
    inside.serve(NQN, {1: "a"})
    return drive


def iostat(inside: InsideTarget, bdev: str) -> dict[str, int]:
    (stat,) = (stat for stat in inside.rpc("bdev_get_iostat")["bdevs"] if stat["name"] == bdev)
    return {key: value for key, value in stat.items() if isinstance(value, int)}


def test_a_trace_is_split_into_commands() -> None:
    lines = """\
pci_nvme_io_cmd cid 896 nsid 0x4 sqid 2 opc 0x2 opname 'NVME_NVM_CMD_READ'
pci_nvme_read cid 896 nsid 4 nlb 16 count 8192 lba 0x10
pci_nvme_map_prp trans_len 4096 len 8192 prp1 0x897c000 prp2 0x897e000 num_prps 3
pci_nvme_map_addr addr 0x897c000 len 4096
pci_nvme_map_addr addr 0xf0020000 len 4096
pci_nvme_admin_cmd cid 1 sqid 0 opc 0x6 opname 'NVME_ADM_CMD_IDENTIFY'
pci_nvme_map_addr addr 0x1000 len 4096
pci_nvme_io_cmd cid 1 nsid 0x1 sqid 1 opc 0x0 opname 'NVME_NVM_CMD_FLUSH'
pci_nvme_io_cmd cid 2 nsid 0x4 sqid 1 opc 0x1 opname 'NVME_NVM_CMD_WRITE'
pci_nvme_write cid 2 opname 'NVME_NVM_CMD_WRITE' nsid 4 nlb 1 count 512 lba 0x7
pci_nvme_map_addr addr 0x2200 len 512
"""
    found = list(commands(lines.splitlines()))
    assert found == [
        Command(4, READ, 8192, 16, [(0x897C000, 4096), (0xF0020000, 4096)]),
        Command(1, FLUSH),
        Command(4, WRITE, 512, 7, [(0x2200, 512)]),
    ]
    drive = Drive("P", 4, "", "", "", ((0xF0000000, 0xF3FFFFFF),), 64 * MIB)
    traffic = Traffic(found, [drive], 1 << 30)
    assert traffic.of("P", READ) == {"P": 4096, DRAM: 4096}
    assert traffic.commands == {("P", READ): 1, ("nsid 1", FLUSH): 1, ("P", WRITE): 1}
    torn = Traffic([Command(4, WRITE, 8192, 0, [(0x1000, 4096)])], [drive], 1 << 30)
    assert len(torn.torn) == 1


def test_the_drives(lab_drives: dict[str, Drive], p2p_guest: Guest) -> None:
    """They are at the places that the machine describes, and a read of each is in the trace under its own name."""
    assert sorted(lab_drives) == ["A", "B", "C", "D", "N", "T"]
    assert {name: drive.cmb // MIB for name, drive in lab_drives.items()} == {
        "A": 64, "B": 64, "C": 64, "D": 64, "N": 0, "T": 2,
    }  # fmt: skip
    trace = Trace(p2p_guest.folder / "trace")
    for number, drive in enumerate(lab_drives.values(), 1):
        p2p_guest.run(f"dd if={drive.device} of=/dev/null bs=4k count={number} iflag=direct")
    traffic = seen(trace, lab_drives)
    for number, name in enumerate(lab_drives, 1):
        assert traffic.of(name, READ) == {DRAM: 4096 * number}


def test_data_survives_fio_verify(inside: InsideTarget, a: Drive, lab_drives: dict[str, Drive]) -> None:
    """Host memory: the payload goes through DRAM, and the target's counters are the trace's bytes."""
    trace = Trace(inside.guest.folder / "trace")
    before = iostat(inside, "a")
    done = inside.guest.run(
        f"{FIND} {inside.connect(NQN)} >&2; find_dev 1; {FIO_VERIFY}\nnvme disconnect -n {NQN} >&2", timeout=110
    )
    assert done.out.split() == ["0"]
    quiet(done)
    after, traffic = iostat(inside, "a"), seen(trace, lab_drives)
    assert after["bytes_written"] - before["bytes_written"] >= 6 * MIB
    assert traffic.of("A", READ) == {DRAM: after["bytes_read"] - before["bytes_read"]}
    assert traffic.of("A", WRITE) == {DRAM: after["bytes_written"] - before["bytes_written"]}


def test_file_system(inside: InsideTarget, a: Drive) -> None:
    done = inside.guest.run(
        f"""{FIND} {inside.connect(NQN)} >&2; find_dev 1
        mkfs.ext4 -q $dev >&2; mkdir -p /mnt/fs; mount -o discard $dev /mnt/fs
        for i in $(seq 40); do head -c $((i * 3000)) /dev/urandom > /mnt/fs/file$i; done
        (cd /mnt/fs; md5sum file*) > /tmp/sums; rm /mnt/fs/file1?; sync; fstrim /mnt/fs; umount /mnt/fs
        fsck.ext4 -fn $dev >&2; nvme disconnect -n {NQN} >&2
        # the drive itself, without us
        mount -o ro {a.device} /mnt/fs; (cd /mnt/fs; grep -v 'file1.$' /tmp/sums | md5sum -c --quiet) && echo same
        umount /mnt/fs""",
        timeout=110,
    )
    assert done.out.splitlines() == ["same"]
    quiet(done)
    with (inside.guest.folder / "A.img").open("rb") as image:
        image.seek(1024 + 0x38)
        assert struct.unpack("<H", image.read(2)) == (0xEF53,)  # ext4's magic number: no byte is displaced


def test_zeroes_and_discards_reach_the_drive(inside: InsideTarget, a: Drive, lab_drives: dict[str, Drive]) -> None:
    """Write Zeroes and Deallocate are the drive's own work: no payload moves; what is beside them stays."""
    guest = inside.guest
    guest.run(
        f"""{FIND} {inside.connect(NQN)} >&2; find_dev 1
        head -c 4M /dev/urandom > /tmp/a; dd if=/tmp/a of=$dev bs=1M oflag=direct status=none""",
        keep=True,
    )
    trace = Trace(guest.folder / "trace")
    done = guest.run(
        f"""{FIND} find_dev 1
        cat /sys/block/${{dev#/dev/}}/queue/{{discard_max_bytes,write_zeroes_max_bytes}}
        blkdiscard -o 512K -l 512K $dev; blkdiscard -z -o 2560K -l 300K $dev
        nvme write-zeroes $dev -s 1 -c 0 >&2; nvme write-zeroes $dev -s 16 -c 7 -d >&2
        nvme dsm $dev -n 1 -d -s 7000 -b 9 >&2"""
    )
    traffic = seen(trace, lab_drives)
    assert all(int(line) > 0 for line in done.out.split())
    assert traffic.commands["A", WRITE_ZEROES] >= 5
    assert traffic.of("A", WRITE) == {}
    done = guest.run(
        f"""{FIND} find_dev 1
        zero() {{ dd if=/dev/zero of=/tmp/a bs=512 seek=$1 count=$2 conv=notrunc status=none; }}
        zero 1024 1024; zero 5120 600; zero 1 1; zero 16 8; zero 7000 9
        cmp -n 4M /tmp/a $dev && echo same; cmp -n 4M /tmp/a {a.device} && echo same on the drive
        nvme disconnect -n {NQN} >&2""",
    )
    assert done.out.splitlines() == ["same", "same on the drive"]
    quiet(done)


def test_fua_and_flush_reach_the_drive(inside: InsideTarget, a: Drive, lab_drives: dict[str, Drive]) -> None:
    guest = inside.guest
    guest.run(f"{FIND} {inside.connect(NQN)} >&2; find_dev 1; head -c 8192 /dev/urandom > /tmp/a", keep=True)
    device = guest.run(
        f"mountpoint -q /sys/kernel/tracing || mount -t tracefs t /sys/kernel/tracing; mountpoint -x {a.device}"
    )
    number = device.out.strip().replace(":", ",")

    def requests(script: str) -> list[str]:
        """The flags of the requests that the script brings to drive A ("WFS": write, FUA, synchronous)."""
        trace = guest.run(f"{FIND} find_dev 1\n{REQUESTS % script}\ncat trace").out
        return [line.split(f": {number} ")[1].split()[0] for line in trace.splitlines() if f": {number} " in line]

    trace = Trace(guest.folder / "trace")
    plain = requests("nvme write $dev -s 64 -c 15 -z 8192 -d /tmp/a >&2")
    assert plain != []
    assert not any("F" in flags for flags in plain)
    assert seen(trace, lab_drives).commands["A", FLUSH] == 0
    forced = requests("nvme write $dev -f -s 64 -c 15 -z 8192 -d /tmp/a >&2")
    assert forced != []
    assert all("F" in flags for flags in forced)
    trace.mark()
    guest.run(f"{FIND} find_dev 1; nvme flush $dev -n 1 >&2")
    assert seen(trace, lab_drives).commands["A", FLUSH] == 1
    done = guest.run(
        f"""{FIND} find_dev 1; dd if=/tmp/a of=$dev bs=4k seek=2 oflag=direct,dsync status=none
        cmp -n 8192 /tmp/a {a.device} 0 8192 && echo same; nvme disconnect -n {NQN} >&2"""
    )
    assert done.out == "same\n"
    quiet(done)
