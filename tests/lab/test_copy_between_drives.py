"""Copy between drives: nvme-cli's, through a CMB, and no payload on the network.

The initiator is Linux 6.18: a later host driver keeps Host Behavior Support to itself (7.2 refuses
Set Features 16h with EACCES), and a host that has not enabled descriptor format 2 there cannot name another namespace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.conftest import P2P_MACHINE, serving
from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.staging import FIND_DEV, MIB, NQN, Staged, Use, grown
from tests.lab.test_linux_host import quiet
from tests.lab.trace import READ, WRITE, Trace, seen

pytestmark = [pytest.mark.p2p, pytest.mark.timeout(400, func_only=True)]
# Host Behavior Support with the copy descriptor formats 2 and 3 enabled (CDFE, byte 4)
ENABLE_FORMATS = r"""
printf '\0\0\0\0\014' > /tmp/behavior; truncate -s 512 /tmp/behavior
nvme set-feature ${dev%n*} -f 0x16 -l 512 -d /tmp/behavior >&2
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[InsideTarget]:
    with serving(replace(P2P_MACHINE, kernel="6.18.15+deb13-amd64")) as inside:
        yield inside


@pytest.fixture(scope="module")
def lab_drives(machine: InsideTarget) -> dict[str, Drive]:
    return drives(machine.guest)


@pytest.fixture
def staged(machine: InsideTarget, lab_drives: dict[str, Drive]) -> Iterator[Staged]:
    """Drives A and B are namespaces 1 and 2."""
    machine.start()
    yield Staged(machine, lab_drives)
    machine.guest.reset()
    machine.clear()


def copy(staged: Staged, provider: str, mib: int) -> None:
    """Fills drive A, copies it to B with nvme-cli through a CMB, and looks at everything that moved."""
    guest = staged.guest
    device = staged.drives["A"].device
    guest.run(f"dd if=/dev/urandom of={device} bs=1M count={mib} oflag=direct status=none", timeout=300)
    staged.policy(provider, "strict")
    limits = guest.run(
        f"{staged.connect()} find_dev 2; {ENABLE_FORMATS}\nnvme id-ns $dev -o json", keep=True, timeout=120
    ).json()
    most = min(limits["mcl"], limits["mssrl"]) // 8 * 8
    uses = staged.uses(1), staged.uses(2)
    routes = staged.namespace(2)["copy_routes"]
    trace = Trace(guest.folder / "trace")
    done = guest.run(
        f"""{FIND_DEV} find_dev 2; sent=/sys/class/net/lo/statistics/tx_bytes; before=$(<$sent)
        for (( at = 0, end = {mib * 2048}; at < end; at += n )); do
            n=$(( end - at < {most} ? end - at : {most} ))
            nvme copy $dev --format=2 --sdlba=$at --slbs=$at --blocks=$((n - 1)) --snsids=1 >&2
        done
        echo $(( $(<$sent) - before ))""",
        timeout=350,
    )
    quiet(done, "keep[ _]?alive")
    guest.run(f"nvme disconnect -n {NQN}")
    traffic = seen(trace, staged.drives)
    assert traffic.of("A", READ) == {provider: mib * MIB}
    assert traffic.of("B", WRITE) == {provider: mib * MIB}
    assert traffic.of("A", WRITE) == traffic.of("B", READ) == {}
    assert int(done.out) < 65536  # capsules and their responses; keep alives
    copied = [grown(before, staged.uses(nsid)).get(provider, Use()).copy for nsid, before in enumerate(uses, 1)]
    assert sum(copied) == mib * MIB, copied
    after = staged.namespace(2)["copy_routes"]
    assert {key: after[key] - routes[key] for key in after if after[key] != routes[key]} == {"pool": mib * MIB}
    with (guest.folder / "A.img").open("rb") as source, (guest.folder / "B.img").open("rb") as target:
        assert source.read(mib * MIB) == target.read(mib * MIB)


@pytest.mark.parametrize("provider", ["A", "B", "C"])
def test_copy_from_drive_to_drive(staged: Staged, provider: str) -> None:
    """Through the CMB of the source, of the target, of a third drive on the root complex."""
    copy(staged, provider, 64 if provider == "B" else 16)


@pytest.mark.slow
@pytest.mark.timeout(900, func_only=True)
@pytest.mark.parametrize("provider", ["B", "D"])
def test_copy_of_256_mib(staged: Staged, provider: str) -> None:
    copy(staged, provider, 256)
