"""Copy between two drives that the data plane drives itself, through a CMB: nothing crosses the network, and no payload
rests in DRAM. With Linux 6.18 as the initiator, for test_copy_between_drives.py's reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.conftest import _need_lab, need_dataplane
from tests.lab.lab import Guest
from tests.lab.staging import FIND_DEV, MIB, NQN, Use, grown
from tests.lab.test_copy_between_drives import ENABLE_FORMATS
from tests.lab.test_linux_host import quiet
from tests.lab.trace import OTHER, READ, WRITE
from tests.lab.vfio import VFIO_MACHINE, UserStaged, VfioLab, need_spdk, vfio_guest

pytestmark = [pytest.mark.p2p, pytest.mark.spdk, pytest.mark.timeout(600, func_only=True)]
COPIED_MIB = 16


@pytest.fixture(scope="module")
def lab() -> Iterator[VfioLab]:
    _need_lab()
    need_dataplane()
    need_spdk()
    with Guest(replace(VFIO_MACHINE, kernel="6.18.15+deb13-amd64")) as guest, vfio_guest(guest) as made:
        yield made


@pytest.fixture
def staged(lab: VfioLab) -> Iterator[UserStaged]:
    """Drives A and B are namespaces 1 and 2."""
    lab.inside.start()
    yield UserStaged(lab)
    lab.guest.reset()
    lab.inside.clear()


# C: vfio-pci alone has it. B: the target of the copy, whose own commands name its CMB where it is for the controller
# (CBA): that is no DMA, and the IOMMU sees nothing of it.
@pytest.mark.parametrize("provider", ["C", "B"])
def test_copy_from_drive_to_drive(staged: UserStaged, provider: str) -> None:
    guest = staged.guest
    guest.run(
        f"""{staged.connect()} dd if=/dev/urandom of=$dev bs=1M count={COPIED_MIB} oflag=direct status=none
        nvme disconnect -n {NQN} >&2""",
        timeout=120,
    )
    staged.policy(provider, "strict")
    limits = guest.run(
        f"{staged.connect()} find_dev 2; {ENABLE_FORMATS}\nnvme id-ns $dev -o json", keep=True, timeout=120
    ).json()
    most = min(limits["mcl"], limits["mssrl"]) // 8 * 8
    uses = staged.uses(1), staged.uses(2)
    routes = staged.namespace(2)["copy_routes"]
    staged.trace.mark()
    done = guest.run(
        f"""{FIND_DEV} find_dev 2; sent=/sys/class/net/lo/statistics/tx_bytes; before=$(<$sent)
        for (( at = 0, end = {COPIED_MIB * 2048}; at < end; at += n )); do
            n=$(( end - at < {most} ? end - at : {most} ))
            nvme copy $dev --format=2 --sdlba=$at --slbs=$at --blocks=$((n - 1)) --snsids=1 >&2
        done
        echo $(( $(<$sent) - before ))""",
        timeout=350,
    )
    quiet(done, "keep[ _]?alive")
    guest.run(f"nvme disconnect -n {NQN}")
    traffic = staged.traffic()
    moved = COPIED_MIB * MIB
    assert traffic.of("A", READ) == {provider: moved}
    assert traffic.of("B", WRITE) == {OTHER if provider == "B" else provider: moved}
    assert traffic.of("A", WRITE) == traffic.of("B", READ) == {}
    assert int(done.out) < 65536  # capsules and their responses; keep alives
    copied = [grown(before, staged.uses(nsid)).get(provider, Use()).copy for nsid, before in enumerate(uses, 1)]
    assert sum(copied) == moved, copied
    after = staged.namespace(2)["copy_routes"]
    assert {key: after[key] - routes[key] for key in after if after[key] != routes[key]} == {"pool": moved}
    with (guest.folder / "A.img").open("rb") as source, (guest.folder / "B.img").open("rb") as target:
        assert source.read(moved) == target.read(moved)
