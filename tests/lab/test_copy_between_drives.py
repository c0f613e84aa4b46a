"""Copy between drives: nvme-cli's, through a CMB, and no payload on the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.conftest import P2P_MACHINE, serving
from tests.lab.copying import KERNEL, copy_a_to_b
from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.staging import Staged
from tests.lab.trace import Trace, seen

pytestmark = [pytest.mark.p2p, pytest.mark.timeout(400, func_only=True)]


@pytest.fixture(scope="module")
def machine() -> Iterator[InsideTarget]:
    with serving(replace(P2P_MACHINE, kernel=KERNEL)) as inside:
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
    """Fills drive A behind the target's back, and copies that to B."""
    guest = staged.guest
    device = staged.drives["A"].device
    guest.run(f"dd if=/dev/urandom of={device} bs=1M count={mib} oflag=direct status=none", timeout=300)
    trace = Trace(guest.folder / "trace")
    copy_a_to_b(staged, provider, mib, trace, lambda: seen(trace, staged.drives))


@pytest.mark.parametrize("provider", ["A", "B", "C"])
def test_copy_from_drive_to_drive(staged: Staged, provider: str) -> None:
    """Through the CMB of the source, of the target, of a third drive on the root complex."""
    copy(staged, provider, 64 if provider == "B" else 16)


@pytest.mark.slow
@pytest.mark.timeout(900, func_only=True)
@pytest.mark.parametrize("provider", ["B", "D"])
def test_copy_of_256_mib(staged: Staged, provider: str) -> None:
    copy(staged, provider, 256)
