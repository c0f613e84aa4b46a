"""A drive that the target serves is unplugged: its namespace answers, the others go on, and hosts hear of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.conftest import serving
from tests.lab.inside import InsideTarget, drives
from tests.lab.machine import Machine
from tests.lab.test_linux_host import FIND, NQN
from tests.support.daemon import eventually

pytestmark = [pytest.mark.p2p, pytest.mark.timeout(400, func_only=True)]
MACHINE = Machine(nvme=("A:rp:64", "B:rp:16"), target=True, net=False)


@pytest.fixture
def inside() -> Iterator[InsideTarget]:
    with serving(MACHINE) as made:
        yield made


def test_drive_unplugged(inside: InsideTarget) -> None:
    guest, found = inside.guest, drives(inside.guest)
    for name in ("A", "B"):
        inside.rpc("bdev_uring_create", name=name, filename=found[name].device)
    inside.serve(NQN, {1: "A", 2: "B"})
    guest.run(
        f"""{FIND} {inside.connect(NQN)} >&2; find_dev 2; dd if=/dev/urandom of=$dev bs=64k count=4 oflag=direct
        find_dev 1; dd if=$dev of=/dev/null bs=64k count=4 iflag=direct""",
        keep=True,
        timeout=60,
    )
    guest.hmp("device_del B")
    eventually(lambda: inside.rpc("p2p_get_status")["absent_bdevs"] == ["B"], "its loss is noticed", 60)
    done = guest.run(
        f"""{FIND} find_dev 1; dd if=$dev of=/tmp/x bs=64k count=4 iflag=direct status=none && echo served
        c=${{dev#/dev/}}; c=/dev/${{c%n*}}
        nvme read $c -n 2 -s 0 -c 0 -z 512 -d /tmp/y > /tmp/out 2>&1 || echo refused
        nvme disconnect -n {NQN} >&2""",
        timeout=100,
    )
    assert done.out.splitlines() == ["served", "refused"]
    assert "bdev.lost" in inside.log()
