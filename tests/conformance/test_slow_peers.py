"""Peers that connect and say nothing, or too little, are cut off; a crowd of them does not stop a good host.

The daemon's connect time is 1 s here. Times are bounds in one direction, wide enough for a loaded machine.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.conftest import MakeDaemon
from tests.support import nvme
from tests.support.conn import PeerClosed, RawConn
from tests.support.daemon import Daemon, Ns, Tree, eventually
from tests.support.initiator import Host, Queue

CONNECT_TIMEOUT_S = 1.0
PATIENCE_S = 60.0  # what the kernel has dropped for want of backlog is sent again after 1, 2, 4, 8 s
CROWD = 2000
NOFILE = 16384


@pytest.fixture(scope="module")
def target(engine: str) -> Iterator[Tree]:
    with Daemon("--connect-timeout-s", str(CONNECT_TIMEOUT_S), engine=engine, nofile=NOFILE) as daemon:
        tree = daemon.subsystem(Ns())
        yield tree


@pytest.fixture(autouse=True)
def hosts_leave(target: Tree) -> Iterator[None]:
    yield
    target.close_hosts()


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    """The crowd's sockets are open in this process as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = max(soft, 2 * CROWD + 512)
    if hard != resource.RLIM_INFINITY and want > hard:
        pytest.skip(f"RLIMIT_NOFILE is {hard}, {want} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (want, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def good(tree: Tree) -> None:
    with Host(tree.address, tree.nqn, timeout=PATIENCE_S) as host:
        assert host.start().io().read(0, 1, 512).status == nvme.OK


def cut_off(conn: RawConn) -> None:
    """The target ends the connection; a C2HTermReq may come before."""
    conn.sock.settimeout(PATIENCE_S)
    with contextlib.suppress(ConnectionResetError):
        while conn.sock.recv(4096):
            pass


def test_silence(target: Tree) -> None:
    began = time.monotonic()
    with RawConn(target.address) as conn:
        cut_off(conn)
    assert time.monotonic() - began > CONNECT_TIMEOUT_S / 2, "it must have its time"


def test_silence_after_initialisation(target: Tree) -> None:
    cut_off(target.host().admin.conn)


@pytest.mark.parametrize("sent", [1, 7, 8, 100, 127])
def test_part_of_an_icreq(target: Tree, sent: int) -> None:
    with RawConn(target.address) as conn:
        conn.send(nvme.icreq()[:sent])
        cut_off(conn)


@pytest.mark.parametrize("sent", [7, 8, 71, 72, 500, 1095])
def test_part_of_a_connect(target: Tree, sent: int) -> None:
    conn = target.host().admin.conn
    conn.send(conn.capsule(nvme.connect_sqe(cid=1), nvme.connect_data(target.nqn))[:sent])
    cut_off(conn)


def drip(conn: RawConn, data: bytes, pause: float) -> None:
    """Sends a byte now and then until the target has enough of it."""
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.suppress(PeerClosed):
        for value in data:
            conn.send(bytes([value]))
            if not conn.is_silent(pause):
                return
            assert time.monotonic() < deadline, "a peer that drips bytes was never cut off"
    cut_off(conn)


def test_icreq_a_byte_at_a_time(target: Tree) -> None:
    with RawConn(target.address) as conn:
        drip(conn, nvme.icreq(), CONNECT_TIMEOUT_S / 10)


def test_connect_a_byte_at_a_time(target: Tree) -> None:
    conn = target.host().admin.conn
    drip(conn, conn.capsule(nvme.connect_sqe(cid=1), nvme.connect_data(target.nqn)), CONNECT_TIMEOUT_S / 10)


def test_refused_connect_does_not_renew_the_time(target: Tree) -> None:
    queue = target.host().admin
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.suppress(PeerClosed):
        while True:
            assert queue.connect("nqn.2026-01.org.example:nobody").status == nvme.CONNECT_PARAM
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_io_queue_that_never_connects(target: Tree) -> None:
    host = target.started()
    cut_off(host.open().conn)
    assert host.admin.keep_alive().status == nvme.OK


def test_connected_host_may_be_silent(target: Tree) -> None:
    """The time is for Connect alone; afterwards KATO decides, and here it is off."""
    host = target.started(kato=0)
    io = host.io()
    assert io.conn.is_silent(2 * CONNECT_TIMEOUT_S)
    assert io.read(0, 1, 512).status == nvme.OK


STAGES: dict[str, bytes] = {"silent": b"", "one-byte": b"\0", "half-an-icreq": nvme.icreq()[:64], "icreq": nvme.icreq()}


def crowd(tree: Tree, count: int, say: bytes) -> list[socket.socket]:
    made: list[socket.socket] = []
    with contextlib.ExitStack() as opened:
        for _ in range(count):
            made.append(opened.enter_context(socket.create_connection(tree.address, timeout=PATIENCE_S)))
            if say:
                with contextlib.suppress(OSError):
                    made[-1].send(say)
        opened.pop_all()
    return made


@pytest.mark.parametrize("say", list(STAGES.values()), ids=list(STAGES))
def test_a_crowd_does_not_stop_a_good_host(target: Tree, say: bytes) -> None:
    daemon = target.daemon
    good(target)
    eventually(lambda: not target.rpc("nvmf_subsystem_get_controllers"), "controllers are gone")
    before = daemon.fd_count()
    made = crowd(target, CROWD, say)
    try:
        good(target)
        good(target)
        eventually(lambda: daemon.fd_count() <= before + 2, "all of them are cut off", PATIENCE_S)
        good(target)
    finally:
        for sock in made:
            sock.close()


def test_an_established_host_does_not_suffer(target: Tree) -> None:
    host = target.started(kato=5000)
    io = host.io()
    made = crowd(target, CROWD, b"")
    try:
        for lba in range(200):
            assert io.read(lba, 1, 512).status == nvme.OK
        assert host.admin.keep_alive().status == nvme.OK
    finally:
        for sock in made:
            sock.close()


def test_more_than_are_kept(make_daemon: MakeDaemon) -> None:
    """With room for 64 unconnected peers, 300 silent ones may keep others out, but not for longer than their time."""
    daemon = make_daemon(
        "--connect-timeout-s", str(CONNECT_TIMEOUT_S), "--unconnected-peers-max", "64", nofile=NOFILE
    )  # fmt: skip
    tree = daemon.subsystem(Ns())
    made = crowd(tree, 300, b"")
    try:
        eventually(lambda: attempt(lambda: good(tree)), "a good host gets in", PATIENCE_S)
        assert daemon.fd_count() < 200
    finally:
        for sock in made:
            sock.close()


def attempt(action: Callable[[], None]) -> bool:
    try:
        action()
    except (PeerClosed, OSError):
        return False
    return True


def test_out_of_descriptors(make_daemon: MakeDaemon) -> None:
    """At the limit of RLIMIT_NOFILE new peers are refused or wait; hosts that are in go on, and nothing spins."""
    daemon = make_daemon("--connect-timeout-s", str(CONNECT_TIMEOUT_S), nofile=128)
    tree = daemon.subsystem(Ns())
    host = tree.started()
    io: Queue = host.io()
    made = crowd(tree, 300, b"")
    try:
        before = daemon.cpu_seconds()
        for lba in range(50):
            assert io.read(lba, 1, 512).status == nvme.OK
        assert daemon.cpu_seconds() - before < 5.0
    finally:
        for sock in made:
            sock.close()
    eventually(lambda: attempt(lambda: good(tree)), "a good host gets in again", PATIENCE_S)
