"""Payload rests in a drive's CMB: what the target claims, beside what the drives did by QEMU's trace."""

from __future__ import annotations

import pytest

from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.lab import Guest
from tests.lab.staging import HOST, MIB, NQN, Staged, grown
from tests.lab.test_linux_host import FIO_VERIFY, quiet
from tests.lab.trace import DRAM, READ, WRITE, Trace, seen

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
