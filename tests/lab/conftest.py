"""Guests for lab tests.

lab_guest   one guest for the whole session, booted at its first use
guest       the same, clean: what a test leaves behind is undone, and a fault in the guest's kernel fails the test
boot        boots further guests with a hardware of the test's choice
p2p_guest   one guest for the session with drives that have a CMB, at the places that matter for peer-to-peer DMA
inside      the target running in that guest, clean
vfio        a guest with an IOMMU, its drives on vfio-pci, and the target running in it, clean
spdk_lab    the same for tests that need a data plane with SPDK: skipped without

Without QEMU the tests are skipped and say so; with NVMET_P2P_LAB=require they fail.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from nvmet_p2p.dataplane.native.process import find_program
from tests.lab import trace
from tests.lab import vfio as vfio_lab
from tests.lab.inside import InsideTarget
from tests.lab.lab import Guest, unavailable
from tests.lab.machine import Machine
from tests.lab.monitor import KernelMessage, splats
from tests.lab.rdma import rdma_daemon, rdma_guest, rdma_program

__all__ = ["rdma_daemon", "rdma_guest", "rdma_program"]  # fixtures that live elsewhere

P2P_MACHINE = Machine(
    nvme=("A:sw1:300:64", "B:sw1:300:64", "C:rc:64:64", "D:rp:64:64", "N:sw1:64", "T:rp:64:2"),
    target=True,
    net=False,
    trace=trace.EVENTS,
    qemu_args=("-netdev user,id=net0 -device e1000e,netdev=net0,romfile=",),
)
"""A and B, with a CMB each, and N without one behind a switch; C on the root complex; D and T behind root ports.
T's CMB is the smallest that Linux takes. The NIC is silent: test_zero_copy.py loads its driver."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The time limit of a lab test leaves the boot out: that has its own, and may have to build the image first."""
    for item in items:
        if item.path.parent == item.session.path / "tests" / "lab" and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(120, func_only=True))


def _need_lab() -> None:
    why = unavailable()
    if why and os.environ.get("NVMET_P2P_LAB") == "require":
        pytest.fail(why, pytrace=False)
    if why:
        pytest.skip(why)


@pytest.fixture(scope="session")
def lab_guest() -> Iterator[Guest]:
    """One guest for all tests of the session."""
    _need_lab()
    with Guest() as guest:
        guest.boot()
        yield guest


@pytest.fixture
def guest(lab_guest: Guest) -> Iterator[Guest]:
    """The session's guest, cleaned up afterwards. A test during which its kernel complains of itself fails."""
    lab_guest.boot()
    boots, before = lab_guest.boots, len(lab_guest.messages())
    yield lab_guest
    faults = splats(lab_guest.messages()[before if lab_guest.boots == boots else 0 :])
    lab_guest.reset()
    _no_faults(lab_guest, faults)


def _no_faults(guest: Guest, faults: tuple[KernelMessage, ...]) -> None:
    if faults:
        guest.stop()  # the next test is not to suffer from it
        pytest.fail("the guest's kernel complains:\n" + "\n".join(map(str, faults)), pytrace=False)


@pytest.fixture
def boot() -> Iterator[Callable[[Machine], Guest]]:
    """boot(Machine(...)): a guest for this test alone."""
    _need_lab()
    with contextlib.ExitStack() as stack:

        def start(machine: Machine) -> Guest:
            guest = stack.enter_context(Guest(machine))
            guest.boot()
            return guest

        yield start


@pytest.fixture(scope="session")
def p2p_guest() -> Iterator[Guest]:
    """One guest for all tests that have the target beside emulated drives."""
    _need_lab()
    need_dataplane()
    with Guest(P2P_MACHINE) as guest:
        guest.boot()
        yield guest


@contextlib.contextmanager
def serving(machine: Machine) -> Iterator[InsideTarget]:
    """A guest of its own with the target running in it, for the fixtures of a module that needs other hardware."""
    _need_lab()
    need_dataplane()
    with Guest(machine) as guest:
        guest.boot()
        target = InsideTarget(guest)
        with contextlib.closing(target):
            yield target.start()
        _no_faults(guest, splats(guest.messages()))


def need_dataplane() -> None:
    """Skips, or fails where it is required, without a data plane."""
    if find_program() is None:
        why = "nvmet-p2p-dataplane is not built: make native"
        if os.environ.get("NVMET_P2P_NATIVE") == "require":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)


@pytest.fixture(scope="session")
def inside_daemon(p2p_guest: Guest) -> Iterator[InsideTarget]:
    with contextlib.closing(InsideTarget(p2p_guest)) as target:
        yield target


@pytest.fixture
def inside(inside_daemon: InsideTarget) -> Iterator[InsideTarget]:
    """The target in the guest with nothing configured; what the test made of it and of the guest is undone."""
    target, guest = inside_daemon, inside_daemon.guest
    target.start()
    boots, before = guest.boots, len(guest.messages())
    yield target
    faults = splats(guest.messages()[before if guest.boots == boots else 0 :])
    guest.reset()
    if guest.alive and target.up():
        target.clear()
    _no_faults(guest, faults)


@pytest.fixture(scope="session")
def vfio_session() -> Iterator[vfio_lab.VfioLab]:
    _need_lab()
    need_dataplane()
    with Guest(vfio_lab.VFIO_MACHINE) as guest, vfio_lab.vfio_guest(guest) as lab:
        yield lab


@pytest.fixture
def vfio(vfio_session: vfio_lab.VfioLab) -> Iterator[vfio_lab.VfioLab]:
    """Drives A, B and C on vfio-pci, K with the kernel, the target with nothing configured; undone afterwards."""
    lab, guest = vfio_session, vfio_session.guest
    lab.inside.start()
    for name in vfio_lab.USER_DRIVES:
        vfio_lab.to_driver(guest, lab.drives[name], "vfio-pci")
    boots, before = guest.boots, len(guest.messages())
    yield lab
    faults = splats(guest.messages()[before if guest.boots == boots else 0 :])
    guest.reset()
    if guest.alive and lab.inside.up():
        lab.inside.clear()
    _no_faults(guest, faults)


@pytest.fixture
def spdk_lab(request: pytest.FixtureRequest) -> vfio_lab.VfioLab:
    """``vfio``, whose data plane has SPDK."""
    vfio_lab.need_spdk()
    lab: vfio_lab.VfioLab = request.getfixturevalue("vfio")
    return lab
