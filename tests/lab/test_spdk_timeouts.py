"""Commands that take too long: timeout_us and action_on_timeout of bdev_nvme_set_options, on drives on vfio-pci.

QEMU's throttle makes the drive slow. Its Abort aborts nothing and says so; its reset first does all that the throttle
holds back, without waiting.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.staging import FIND_DEV, HOST, NQN
from tests.lab.test_loss import Load
from tests.lab.vfio import UserStaged, VfioLab
from tests.support.daemon import eventually

pytestmark = [pytest.mark.p2p, pytest.mark.spdk, pytest.mark.timeout(600, func_only=True)]
Timed = Callable[..., UserStaged]
TIMEOUT_US = 1_000_000  # a command of a drive that is not slow may take it too, where the machine stands still
DEFAULTS: dict[str, Any] = {"timeout_us": 0, "action_on_timeout": "none", "bdev_retry_count": 3}


@pytest.fixture
def timed(spdk_lab: VfioLab) -> Iterator[Timed]:
    """timed(action, ...): drive A is namespace 1, its commands may take a second."""
    inside, guest = spdk_lab.inside, spdk_lab.guest

    def make(action: str, **options: Any) -> UserStaged:
        inside.rpc("bdev_nvme_set_options", timeout_us=TIMEOUT_US, action_on_timeout=action, **options)
        return UserStaged(spdk_lab, ["A"])

    yield make
    guest.reset()
    if guest.alive and inside.up():
        inside.clear()
        inside.rpc("bdev_nvme_set_options", **DEFAULTS)


def counted(staged: UserStaged, what: str) -> int:
    """A counter of the controller's."""
    (controller,) = staged.inside.rpc("bdev_nvme_get_controllers")
    found = re.findall(rf"'{what}': (\d+)", str(controller))
    assert len(found) == 1, controller
    return int(found[0])


@pytest.mark.parametrize("action", ["none", "abort"])
def test_counted_and_aborted(timed: Timed, action: str) -> None:
    """The host's I/O waits for the drive, which works on, and goes on with it."""
    staged = timed(action)
    load = Load(staged)
    load.moves_through(HOST)
    before = counted(staged, "timeouts")
    staged.trace.mark()
    with staged.slow("A", 2):
        eventually(lambda: counted(staged, "timeouts") >= before + 3, "commands time out", 60.0)
        eventually(lambda: "have taken longer than they may" in staged.inside.log(), "they are logged", 60.0)
        if action == "abort":
            eventually(lambda: "ADM_CMD_ABORT" in staged.trace.text(), "they are aborted", 60.0)
    load.moves_through(HOST)
    load.end()
    assert ("ADM_CMD_ABORT" in staged.trace.text()) == (action == "abort")
    assert counted(staged, "resets") == 0


def test_reset(timed: Timed) -> None:
    """The controller is reset until its commands come through; the host that writes and verifies sees nothing."""
    staged = timed("reset", bdev_retry_count=-1)
    load = Load(staged)
    load.moves_through(HOST)
    before = counted(staged, "resets")
    with staged.slow("A", 2):
        eventually(lambda: counted(staged, "resets") >= before + 2, "the controller is reset", 60.0)
        assert "a command has timed out" in staged.inside.log()
    load.moves_through(HOST)
    load.end()
    assert counted(staged, "retries") > 0


def test_reset_without_retries(timed: Timed) -> None:
    """What was in the drive's hands fails with Internal Error; afterwards all data is there, and the drive works."""
    staged = timed("reset", bdev_retry_count=0)
    guest = staged.guest
    guest.run(
        f"{staged.connect()} head -c 1M /dev/urandom > /tmp/a; dd if=/tmp/a of=$dev bs=1M oflag=direct status=none",
        keep=True,
        timeout=120,
    )
    before = counted(staged, "resets")
    with staged.slow("A", 1):
        done = guest.run(
            f"""{FIND_DEV} find_dev 1; set +e; rm -rf /tmp/said; mkdir /tmp/said
            for n in {{0..7}}; do
                dd if=/tmp/a of=/tmp/a$n bs=64k skip=$n count=1 status=none
                nvme write --force $dev -s $((n * 128)) -c 127 -z 65536 -d /tmp/a$n > /tmp/said/w$n 2>&1 &
                nvme read $dev -s $((n * 128 + 1024)) -c 127 -z 65536 -d /tmp/b$n > /tmp/said/r$n 2>&1 &
            done
            wait; cat /tmp/said/*""",
            timeout=120,
        )
    assert counted(staged, "resets") > before
    assert counted(staged, "retries") == 0
    statuses = set(re.findall(r"NVMe status: ([^:(]*)", done.out))
    assert statuses == {"Internal Error"}, done.out
    assert "busy" not in done.out
    done = guest.run(f"{FIND_DEV} find_dev 1; cmp -n 1M /tmp/a $dev && echo same; nvme disconnect -n {NQN} >&2")
    assert done.out.splitlines() == ["same"]
