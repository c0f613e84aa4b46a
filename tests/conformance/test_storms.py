"""Hosts that come and go in numbers and in every untidy way: nothing is left, and others do not suffer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support import bad, nvme
from tests.support.conn import PeerClosed
from tests.support.daemon import Daemon, Ns, Tree, eventually
from tests.support.initiator import Host, lba_cdw

ROUND = 100
MARGIN_KIB = 4 * 1024


@pytest.fixture(scope="module")
def target(engine: str) -> Iterator[Tree]:
    with Daemon(engine=engine, nofile=4096) as daemon:
        yield daemon.subsystem(Ns(), Ns("aio"))
        assert "Traceback" not in daemon.log.read_text(errors="replace"), daemon.log_text()


def all_gone(tree: Tree) -> None:
    eventually(lambda: not tree.rpc("nvmf_subsystem_get_controllers"), "all controllers are gone", 20.0)


def tidy(tree: Tree) -> None:
    with Host(tree.address, tree.nqn) as host:
        host.start().io()
        host.admin.property_set(nvme.CC, nvme.CC_ENABLE | 1 << 14)
        host.wait_csts(0xC, 0x8)


def admin_first(tree: Tree) -> None:
    with Host(tree.address, tree.nqn) as host:
        host.start().io()
        host.admin.close()


def reset(tree: Tree) -> None:
    with Host(tree.address, tree.nqn) as host:
        host.start().io()
        for queue in host.queues:
            queue.conn.reset()


def reads_in_flight(tree: Tree) -> None:
    with Host(tree.address, tree.nqn) as host:
        io = host.start().io(icd_max=0)
        for nsid in (1, 2) * 8:
            io.submit(nvme.sqe(nvme.READ, nsid=nsid, cdw=lba_cdw(0, 256)), expect=131072)
        io.conn.reset()


def writes_in_flight(tree: Tree) -> None:
    with Host(tree.address, tree.nqn) as host:
        io = host.start().io(icd_max=0)
        for _ in range(4):
            bad.waiting_write(io)
        io.close()


def events_waiting(tree: Tree) -> None:
    with Host(tree.address, tree.nqn) as host:
        host.start()
        for _ in range(4):
            host.admin.aer()


def disabled_with_queues(tree: Tree) -> None:
    with Host(tree.address, tree.nqn) as host:
        host.start().io()
        host.admin.property_set(nvme.CC, 0)


LEAVING = [tidy, admin_first, reset, reads_in_flight, writes_in_flight, events_waiting, disabled_with_queues]


@pytest.mark.parametrize("leave", LEAVING, ids=lambda leave: leave.__name__)
def test_hosts_that_leave(target: Tree, leave: Callable[[Tree], None]) -> None:
    """Memory, descriptors and tasks after many are those after a few; the back end's data is as it was."""
    daemon = target.daemon
    for _ in range(ROUND // 2):
        leave(target)
    all_gone(target)
    fds, tasks, rss = daemon.fd_count(), daemon.task_count(), daemon.rss_kib()
    for _ in range(ROUND):
        leave(target)
    all_gone(target)
    eventually(lambda: daemon.fd_count() <= fds, "descriptors are back")
    eventually(lambda: (daemon.task_count() or 0) <= (tasks or 0), "tasks are back")
    assert daemon.rss_kib() <= rss + MARGIN_KIB


def test_side_by_side(target: Tree) -> None:
    """Hosts in threads, each leaving in a way of its own, while one does its work and checks its data."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def storm(seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not stop.is_set():
                rng.choice(LEAVING)(target)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        with Host(target.address, target.nqn) as host:
            io = host.start().io()
            rng = random.Random(99)
            for number in range(150):
                data = rng.randbytes(8192)
                lba = 1024 + 16 * (number % 64)
                assert io.write(lba, 16, data, nsid=1, in_capsule=False).status == nvme.OK
                assert io.read(lba, 16, 8192, nsid=1).data == data
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    all_gone(target)


def test_subsystem_deleted_under_a_storm(target: Tree) -> None:
    """Connections, commands and the end of the subsystem race; the daemon is none the worse."""
    daemon = target.daemon
    for _ in range(8):
        victim = daemon.subsystem(Ns())
        host = victim.started()
        io = host.io()

        def work(victim: Tree = victim) -> None:
            try:
                while True:
                    with Host(victim.address, victim.nqn) as other:
                        other.start().io().read(0, 8, 4096)
            except (PeerClosed, OSError, AssertionError):
                return

        thread = threading.Thread(target=work)
        thread.start()
        for _ in range(4):
            io.submit(nvme.sqe(nvme.READ, nsid=1, cdw=lba_cdw(0, 256)), expect=131072)
        victim.rpc("nvmf_delete_subsystem")
        thread.join()
        victim.delete()
    with Host(target.address, target.nqn) as again:
        assert again.start().io().read(0, 1, 512).status == nvme.OK
