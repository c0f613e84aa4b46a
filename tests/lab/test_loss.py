"""The provider of a pool goes away under a host's load, and comes back: the host sees no error and no wrong byte."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab import trace as traces
from tests.lab.conftest import serving
from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.lab import Job
from tests.lab.machine import Machine
from tests.lab.staging import HOST, MIB, NQN, Staged, Use, grown
from tests.lab.test_linux_host import quiet
from tests.lab.trace import DRAM, WRITE, Trace, seen
from tests.support.daemon import eventually

pytestmark = [pytest.mark.p2p, pytest.mark.timeout(400, func_only=True)]
MACHINE = Machine(
    nvme=("A:rp:64", "D:rp:16:64", "B:sw1:16:64", "E:sw2:16:64"), target=True, net=False, trace=traces.EVENTS
)
# fio verify again and again, until it is told to stop; each round writes and reads back
LOAD = """
set -e; rm -f /tmp/stop; rounds=0
until [ -e /tmp/stop ]; do
    fio --name=v --filename=$dev --rw=randrw --bsrange=4k-64k --size=8M --iodepth=16 --direct=1 --ioengine=libaio \\
        --verify=crc32c --verify_fatal=1 --randseed=$rounds --output-format=json > /tmp/fio.json || break
    [ "$(jq '.jobs[0].error' /tmp/fio.json)" = 0 ] || break
    rounds=$((rounds + 1)); echo round $rounds
done
[ -e /tmp/stop ] && echo survived; cat /tmp/fio.json >&2
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[InsideTarget]:
    with serving(MACHINE) as inside:
        yield inside


@pytest.fixture(scope="module")
def lab_drives(machine: InsideTarget) -> dict[str, Drive]:
    return drives(machine.guest)


@pytest.fixture
def staged(machine: InsideTarget, lab_drives: dict[str, Drive]) -> Iterator[Staged]:
    """Drive A is namespace 1."""
    machine.start()
    yield Staged(machine, lab_drives, ["A"])
    machine.guest.reset()
    machine.clear()


class Load:
    """A host that writes and verifies, and what is staged meanwhile."""

    def __init__(self, staged: Staged) -> None:
        self.staged = staged
        self.before = staged.uses()
        self.job: Job = staged.guest.start(staged.connect() + LOAD)

    def moves_through(self, pool: str, mib: int = 2) -> None:
        """Waits until some more payload has been staged there, both ways."""
        start = self.staged.uses()

        def enough() -> bool:
            use = grown(start, self.staged.uses()).get(pool, Use())
            assert not self.job.done(), f"{self.job.out}\n{self.job.err}\n{self.staged.inside.log()}"
            return use.read >= mib * MIB and use.write >= mib * MIB

        eventually(enough, f"payload goes through {pool}", 60.0)

    def end(self, allow: str = "Link Down") -> dict[str, Use]:
        """Ends it; nothing may have gone wrong but messages with that pattern. What was staged, by pool."""
        rounds = self.job.out.count("round")
        eventually(lambda: self.job.done() or self.job.out.count("round") > rounds, "one more round", 60.0)
        self.staged.guest.run("touch /tmp/stop")
        done = self.job.wait(60)
        assert done.out.splitlines()[-1] == "survived", f"{done}\n{self.staged.inside.log()}"
        quiet(done, allow=f"{allow}|Link Down|Slot|pciehp|Card not present|keep[ _]?alive")
        self.staged.guest.run(f"nvme disconnect -n {NQN} >&2")
        return grown(self.before, self.staged.uses())


def lost(staged: Staged, name: str) -> str:
    """Waits for the loss of a pool; the reason that is given."""

    def why() -> str:
        found = [pool for pool in staged.inside.rpc("p2p_get_pools") if pool["name"] == staged.drives[name].bdf]
        return str(found[0]["why"] or "lost") if found and found[0]["lost"] else ""

    return str(eventually(why, f"the loss of {name} is seen", 30.0))


@pytest.mark.parametrize("mode", ["prefer", "strict"])
def test_unbind_and_bind_under_load(staged: Staged, mode: str) -> None:
    """The nvme driver lets go of the provider: staging moves to host memory. Bound again, it is used again."""
    provider = staged.drives["D"]
    staged.policy("D", mode)
    assert staged.state() == "pool"
    load = Load(staged)
    load.moves_through("D")
    staged.guest.run(f"echo {provider.bdf} > /sys/bus/pci/drivers/nvme/unbind", timeout=30)
    assert lost(staged, "D")
    load.moves_through(HOST)
    assert staged.state() == "degraded"
    staged.guest.run(f"echo {provider.bdf} > /sys/bus/pci/drivers/nvme/bind", timeout=30)
    eventually(lambda: staged.state() == "pool", "the pool is used again", 60.0)
    load.moves_through("D")
    assert load.end().keys() == {HOST, "D"}


def test_controller_reset_under_load(staged: Staged) -> None:
    """A reset of the provider's controller: whatever becomes of its memory, the host sees nothing of it."""
    provider = staged.drives["D"]
    staged.policy("D")
    load = Load(staged)
    load.moves_through("D")
    for _ in range(3):
        staged.guest.run(f"nvme reset /dev/$(ls /sys/bus/pci/devices/{provider.bdf}/nvme)", timeout=30)
    load.moves_through(HOST if staged.pool("D")["lost"] else "D")
    eventually(lambda: staged.state() == "pool", "the pool is used again", 60.0)
    load.moves_through("D")
    load.end()


# E behind a switch of its own first: D on a root port; both are gone afterwards
@pytest.mark.parametrize("name", ["E", "D"])
def test_hot_unplug_under_load(staged: Staged, name: str) -> None:
    """QEMU unplugs the provider: no error at the host, no mismatch, and the counters show the move."""
    staged.policy(name)
    load = Load(staged)
    load.moves_through(name)
    staged.guest.hmp(f"device_del {name}")
    assert lost(staged, name)
    load.moves_through(HOST)
    trace = Trace(staged.guest.folder / "trace")
    load.moves_through(HOST)
    written = seen(trace, staged.drives).of("A", WRITE)
    assert written.keys() == {DRAM}
    assert load.end().keys() == {HOST, name}
    done = staged.guest.run(f"ls /sys/bus/pci/devices/{staged.drives[name].bdf}", check=False)
    assert done.code != 0
