"""500 controllers with one I/O queue each stay connected with a KATO of 5 s; none expires.

A normal run lasts 30 s; NVMET_P2P_MANY_SECONDS=300 is the whole of it.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator

import pytest

from tests.support import nvme
from tests.support.daemon import Daemon, Ns
from tests.support.initiator import Host, Queue, lba_cdw

CONTROLLERS = 500
KATO_MS = 5000
SECONDS = float(os.environ.get("NVMET_P2P_MANY_SECONDS", "30"))


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), max(hard, 4096)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
def test_many_controllers_stay(engine: str) -> None:
    with Daemon(engine=engine, nofile=8192) as daemon:
        os.sched_setaffinity(daemon.pid, {0})  # one core, as the requirement says
        tree = daemon.subsystem(Ns())
        queues: list[tuple[Host, Queue]] = []
        made = time.monotonic()
        beat = made
        for _ in range(CONTROLLERS):
            host = tree.started(kato=KATO_MS)
            queues.append((host, host.io(icd_max=0)))
            if time.monotonic() - beat > KATO_MS / 4000:  # those that are there want their Keep Alive meanwhile
                keep_all(queues)
                beat = time.monotonic()
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            began = time.monotonic()
            keep_all(queues)
            time.sleep(max(0.0, KATO_MS / 2000 - (time.monotonic() - began)))  # hosts send one every KATO / 2
        assert len(daemon.rpc("nvmf_subsystem_get_controllers", nqn=tree.nqn)) == CONTROLLERS
        keep_all(queues)
        read_all(queues)
        print(f"\n{CONTROLLERS} controllers: {daemon.rss_kib()} KiB, {daemon.cpu_seconds():.1f} s of CPU")
        tree.close_hosts()


def read_all(queues: list[tuple[Host, Queue]]) -> None:
    """A Read on every I/O queue, sent as ``keep_all`` does it: one after the other may take longer than KATO."""
    command = nvme.sqe(nvme.READ, nsid=1, cdw=lba_cdw(0, 1))
    cids = [io.submit(command, expect=512) for _, io in queues]
    for (_, io), cid in zip(queues, cids, strict=True):
        assert io.wait(cid).status == nvme.OK


def keep_all(queues: list[tuple[Host, Queue]]) -> None:
    """A Keep Alive on every admin queue; all are sent before the first answer is read."""
    cids = [host.admin.submit(nvme.sqe(nvme.KEEP_ALIVE)) for host, _ in queues]
    for (host, _), cid in zip(queues, cids, strict=True):
        assert host.admin.wait(cid).status == nvme.OK
