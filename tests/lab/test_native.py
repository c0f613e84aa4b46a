"""The Linux initiator on the native data plane: data survives, also when the data plane is killed under it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from nvmet_p2p.dataplane.native.process import find_program
from tests.lab.lab import Guest
from tests.lab.target import LabTarget
from tests.lab.test_linux_host import FIND, FIO_VERIFY, NQN, quiet
from tests.support.daemon import Daemon, eventually


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    if find_program() is None:
        why = "nvmet-p2p-dataplane is not built: make native"
        if os.environ.get("NVMET_P2P_NATIVE") == "require":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    with Daemon(engine="native") as running:
        yield running


@pytest.fixture
def target(daemon: Daemon) -> Iterator[LabTarget]:
    made = LabTarget(daemon, NQN)
    made.serve()
    yield made
    made.clear()


@pytest.mark.parametrize("digests", ["", "--hdr-digest --data-digest"])
def test_data_survives_fio_verify(guest: Guest, target: LabTarget, digests: str) -> None:
    done = guest.run(
        f"{FIND} {target.connect(digests)} >&2; find_dev 1; {FIO_VERIFY}\nnvme disconnect -n {NQN} >&2", timeout=110
    )
    assert done.out.split() == ["0"]
    quiet(done)


def test_data_plane_killed_under_fio_verify(guest: Guest, target: LabTarget) -> None:
    """``kill -9`` three times: the host connects again by itself, and every block is what was written last."""
    guest.run(f"{FIND} {target.connect('--reconnect-delay=1', '--keep-alive-tmo=5')} >&2; find_dev 1", keep=True)
    work = guest.start(
        f"""{FIND} find_dev 1
        fio --name=v --filename=$dev --rw=randrw --bs=4k --size=16M --time_based --runtime=20 --iodepth=16 --direct=1 \\
            --ioengine=libaio --verify=crc32c --verify_backlog=64 --verify_fatal=1 --output-format=json > /tmp/fio.json
        jq '.jobs[0].error' /tmp/fio.json"""
    )

    def status() -> dict[str, Any]:
        found = target.daemon.rpc("p2p_get_status")["dataplane"]
        assert isinstance(found, dict)
        return found

    def again(restarts: int) -> bool:
        now = status()
        return bool(now["up"] and now["restarts"] > restarts)

    for _ in range(3):
        guest.run("sleep 3")  # the guest's time: let some I/O happen
        before = status()
        os.kill(before["pid"], signal.SIGKILL)
        eventually(partial(again, before["restarts"]), "another data plane is up", 30)
    done = work.wait(100)
    assert done.out.split() == ["0"]
    assert done.splats == ()
    guest.run(f"nvme disconnect -n {NQN} >&2")
