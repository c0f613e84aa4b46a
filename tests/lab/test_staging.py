"""Payload rests in a drive's CMB: what the target claims, beside what the drives did by QEMU's trace."""

from __future__ import annotations

import pytest

from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.lab import Guest, Job
from tests.lab.staging import FIND_DEV, HOST, MIB, NQN, Staged, grown
from tests.lab.test_linux_host import FIO_VERIFY, quiet
from tests.lab.trace import DRAM, READ, WRITE, Trace, seen
from tests.support.daemon import eventually

pytestmark = [pytest.mark.p2p, pytest.mark.timeout(300, func_only=True)]
LARGE = """
fio --name=verify --filename=$dev --rw=randrw --bs=128k --size=8M --iodepth=28 --direct=1 --ioengine=libaio \
    --verify=crc32c --verify_fatal=1 --output-format=json > /tmp/fio.json
jq '.jobs[0].error' /tmp/fio.json
"""
BUSY = "keep[ _]?alive"  # under emulation a Keep Alive may take a second, or be cut off by the end


@pytest.fixture(scope="module")
def lab_drives(p2p_guest: Guest) -> dict[str, Drive]:
    return drives(p2p_guest)


@pytest.fixture
def staged(inside: InsideTarget, lab_drives: dict[str, Drive]) -> Staged:
    """Drives A and B are namespaces 1 and 2."""
    return Staged(inside, lab_drives)


@pytest.fixture
def trace(p2p_guest: Guest) -> Trace:
    return Trace(p2p_guest.folder / "trace")


# B behind the same switch; D behind another root port; A the data drive itself
@pytest.mark.parametrize("provider", ["B", "D", "A"])
def test_strict_keeps_all_payload_in_the_cmb(staged: Staged, trace: Trace, provider: str) -> None:
    """fio verify and mkfs: every data pointer of the drive's commands is in the provider's BAR, none in DRAM, and the
    counters agree with the trace to the byte."""
    staged.policy(provider, "strict")
    assert staged.state() == "pool"
    before = staged.uses()
    trace.mark()
    done = staged.guest.run(
        f"{staged.connect()} {FIO_VERIFY}\nmkfs.ext4 -q $dev >&2; fsck.ext4 -fn $dev >&2", timeout=250
    )
    assert done.out.split() == ["0"]
    quiet(done, BUSY)
    staged.guest.run(f"nvme disconnect -n {NQN} >&2")
    traffic, use = seen(trace, staged.drives), grown(before, staged.uses())
    assert use.keys() == {provider}
    assert use[provider].read > 6 * MIB
    assert use[provider].write > 6 * MIB
    assert traffic.of("A", READ) == {provider: use[provider].read}
    assert traffic.of("A", WRITE) == {provider: use[provider].write}


def test_off_keeps_all_payload_in_host_memory(staged: Staged, trace: Trace) -> None:
    staged.policy("off")
    before = staged.uses()
    trace.mark()
    staged.guest.run(f"{staged.connect()} {FIO_VERIFY}\nnvme disconnect -n {NQN} >&2", timeout=250)
    traffic, use = seen(trace, staged.drives), grown(before, staged.uses())
    assert use.keys() == {HOST}
    assert traffic.of("A", READ) == {DRAM: use[HOST].read}
    assert traffic.of("A", WRITE) == {DRAM: use[HOST].write}


def test_a_cmb_too_small_for_the_load(staged: Staged, trace: Trace) -> None:
    """T has less than 2 MiB, fio wants twice as much: what finds no room goes through DRAM, and is counted."""
    staged.policy("T", "prefer")
    before, fallbacks = staged.uses(), staged.namespace()["fallbacks"]
    trace.mark()
    with staged.slow("A", 100):
        done = staged.guest.run(f"{staged.connect()} {LARGE}\nnvme disconnect -n {NQN} >&2", timeout=200)
    assert done.out.split() == ["0"]
    quiet(done, BUSY)
    traffic, use = seen(trace, staged.drives), grown(before, staged.uses())
    assert traffic.of("A", READ) == {DRAM: use[HOST].read, "T": use["T"].read}
    assert traffic.of("A", WRITE) == {DRAM: use[HOST].write, "T": use["T"].write}
    assert staged.namespace()["fallbacks"] - fallbacks >= (use[HOST].write + use[HOST].read) // (128 << 10)


def test_strict_waits_for_a_small_cmb(staged: Staged, trace: Trace) -> None:
    """The same with strict: commands wait for their turn, nothing goes elsewhere."""
    staged.policy("T", "strict")
    before, waits = staged.uses(), staged.pool("T")["waits"]
    trace.mark()
    with staged.slow("A", 100):
        done = staged.guest.run(f"{staged.connect()} {LARGE}\nnvme disconnect -n {NQN} >&2", timeout=200)
    assert done.out.split() == ["0"]
    quiet(done, BUSY)
    traffic, use = seen(trace, staged.drives), grown(before, staged.uses())
    assert use.keys() == {"T"}
    assert traffic.of("A", READ) == {"T": use["T"].read}
    assert traffic.of("A", WRITE) == {"T": use["T"].write}
    assert staged.pool("T")["waits"] > waits


PATTERN = b"\x5a\xa5\xc3\x3c" * 1024
OTHER_HOST = "--hostnqn=nqn.2014-08.org.nvmexpress:uuid:6c616267-7565-4374-8000-000000000002"
OTHER_ID = "--hostid=6c616267-7565-4374-8000-000000000002"


def memory(staged: Staged, address: int, length: int) -> bytes:
    """What is at a bus address, from QEMU's side."""
    path = staged.guest.folder / "memory"
    staged.guest.hmp(f'pmemsave {address:#x} {length} "{path}"')
    return path.read_bytes()


def test_what_another_host_wrote_is_wiped(staged: Staged, trace: Trace) -> None:
    """Host 1 fills the CMB. Host 2 reads blocks that nobody has written, and QEMU holds the drive's answers back: in
    the memory that these reads were given there is nothing of host 1's. Host 1 writes where a host that connects does
    not look for partitions: what host 2 has itself read may stay in memory that is its own."""
    guest = staged.guest
    staged.policy("T", "strict")
    with staged.slow("A", 50):
        guest.run(
            f"""{staged.connect()} fio --name=w --filename=$dev --rw=write --bs=64k --offset=16M --size=4M --direct=1 \\
                --iodepth=32 --ioengine=libaio --buffer_pattern=0x{PATTERN[:4].hex()} > /dev/null
            nvme disconnect -n {NQN} >&2""",
            timeout=200,
        )
    first, last = next(bar for bar in staged.drives["T"].bars if bar[1] - bar[0] + 1 >= staged.drives["T"].cmb)
    before = memory(staged, first, last - first + 1)
    assert before.count(PATTERN) > 200  # pages: else what follows shows nothing
    guest.run(f"{staged.connect(OTHER_HOST, OTHER_ID)} find_dev 2", keep=True, timeout=120)
    trace.mark()
    with staged.slow("B", 1):
        job = guest.start(
            f"""{FIND_DEV} find_dev 2; fio --name=r --filename=$dev --rw=read --bs=64k --size=512k --iodepth=8 \\
                --direct=1 --ioengine=libaio --offset=16M --output-format=json > /tmp/fio.json
            jq '.jobs[0].error' /tmp/fio.json
            dd if=$dev bs=64k skip=256 count=8 iflag=direct status=none | tr -d '\\0' | wc -c"""
        )
        pieces = eventually(lambda: _pieces(trace, staged, 6 * 65536, job), "six reads are under way", 60.0)
        held = [memory(staged, address, length) for address, length in pieces]
    assert all(first <= address <= last for address, _ in pieces)
    wrong = [hex(address) for (address, _), data in zip(pieces, held, strict=True) if PATTERN[:64] in data]
    assert wrong == []
    done = job.wait(100)
    assert done.out.split() == ["0", "0"]
    guest.run(f"nvme disconnect -n {NQN}")
    assert staged.pool("T")["wiped_bytes"] >= 6 * 65536


def _pieces(trace: Trace, staged: Staged, at_least: int, job: Job) -> list[tuple[int, int]]:
    """Where drive B's reads put their data, once they are so many bytes."""
    reads = [c for c in trace.commands() if (c.nsid, c.opcode) == (staged.drives["B"].nsid, READ)]
    pieces = [piece for command in reads for piece in command.pieces]
    assert pieces or not job.done(), job.wait(check=False)
    return pieces if sum(length for _, length in pieces) >= at_least else []
