"""Guests for lab tests.

lab_guest   one guest for the whole session, booted at its first use
guest       the same, clean: what a test leaves behind is undone, and a fault in the guest's kernel fails the test
boot        boots further guests with a hardware of the test's choice

Without QEMU the tests are skipped and say so; with NVMET_P2P_LAB=require they fail.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.lab.lab import Guest, unavailable
from tests.lab.machine import Machine
from tests.lab.monitor import splats


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
    if faults:
        lab_guest.stop()  # the next test is not to suffer from it
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
