"""Copy between two drives that the data plane drives itself, through a CMB: nothing crosses the network, and no payload
rests in DRAM.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.conftest import _need_lab, need_dataplane
from tests.lab.copying import KERNEL, copy_a_to_b
from tests.lab.lab import Guest
from tests.lab.staging import NQN
from tests.lab.trace import OTHER
from tests.lab.vfio import VFIO_MACHINE, UserStaged, VfioLab, need_spdk, vfio_guest

pytestmark = [pytest.mark.p2p, pytest.mark.spdk, pytest.mark.timeout(600, func_only=True)]
COPIED_MIB = 16


@pytest.fixture(scope="module")
def lab() -> Iterator[VfioLab]:
    _need_lab()
    need_dataplane()
    need_spdk()
    with Guest(replace(VFIO_MACHINE, kernel=KERNEL)) as guest, vfio_guest(guest) as made:
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
    staged.guest.run(
        f"""{staged.connect()} dd if=/dev/urandom of=$dev bs=1M count={COPIED_MIB} oflag=direct status=none
        nvme disconnect -n {NQN} >&2""",
        timeout=120,
    )
    into = OTHER if provider == "B" else provider
    copy_a_to_b(staged, provider, COPIED_MIB, staged.trace, staged.traffic, into)
