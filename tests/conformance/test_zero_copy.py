"""Large reads that are sent without the kernel copying them. On loopback it copies in the end, and says so.

Forced here ("always"): what a send points to must be the host's data until the kernel has no use for it, whatever
happens to the queue, and all memory comes back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from spdk.rpc.client import JSONRPCClient

from tests.conformance.conftest import MakeDaemon
from tests.support import nvme
from tests.support.daemon import Daemon, Ns, Tree, eventually
from tests.support.initiator import Queue, lba_cdw

BLOCKS = 16384  # of 512 bytes: 8 MiB
LARGE = 256  # blocks: 128 KiB
POOL_MIB = 8  # small: what is not given back is missed soon


@pytest.fixture(scope="module", autouse=True)
def only_native(engine: str) -> None:
    if engine != "native":
        pytest.skip("Python's sockets copy")


@pytest.fixture(scope="module")
def daemon(engine: str) -> Iterator[Daemon]:
    """The large reads of these tests leave without a copy, or would."""
    with Daemon("--zero-copy-send", "always", "--pool-mib", str(POOL_MIB), engine=engine) as running:
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.log.read_text(errors="replace")


def reactor(daemon: Daemon) -> dict[str, Any]:
    client = JSONRPCClient(daemon.rpc("p2p_get_status")["dataplane"]["rpc_socket"])
    try:
        (only,) = client.call("p2p_get_reactors")
    finally:
        client.close()
    assert isinstance(only, dict)
    return only


def copied(daemon: Daemon) -> int:
    return int(reactor(daemon)["copied_after_all_bytes"])


def all_given_back(daemon: Daemon) -> bool:
    now = reactor(daemon)
    return bool(now["queues"] == 0 and now["pool_free_bytes"] == POOL_MIB << 20)


@pytest.fixture
def tree(daemon: Daemon) -> Iterator[Tree]:
    made = daemon.subsystem(Ns("aio", BLOCKS, 512), Ns("null", BLOCKS, 512))
    yield made
    made.delete()
    eventually(lambda: all_given_back(daemon), "staging memory has been given back")


def pattern(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCKS * 512)


def fill(io: Queue, content: bytes) -> None:
    for lba in range(0, BLOCKS, LARGE):
        assert io.write(lba, LARGE, content[lba * 512 : (lba + LARGE) * 512]).status == nvme.OK


def submit_read(io: Queue, lba: int, blocks: int, nsid: int = 1) -> int:
    return io.submit(nvme.sqe(nvme.READ, nsid=nsid, cdw=lba_cdw(lba, blocks)), expect=blocks * 512)


DIGESTS = [{}, {"hdgst": True, "ddgst": True}]


@pytest.mark.parametrize("digests", DIGESTS, ids=["plain", "digests"])
def test_content(daemon: Daemon, tree: Tree, digests: dict[str, Any]) -> None:
    """Many at once, of all sizes, while other blocks are written; each byte is that of its command."""
    io, rng = tree.started(**digests).io(), random.Random(1)
    content = pattern(1)
    fill(io, content)
    before = copied(daemon)
    large = 0
    for _ in range(30):
        reads = {}
        for _ in range(16):
            blocks = rng.choice((1, 8, 64, 100, LARGE))
            lba = rng.randrange(BLOCKS // 2 - blocks)
            reads[submit_read(io, lba, blocks)] = (lba, blocks)
            large += blocks * 512 if blocks >= 64 else 0
        submit_read(io, 0, LARGE, nsid=2)
        lba = rng.randrange(BLOCKS // 2, BLOCKS - 8)
        assert io.write(lba, 8, rng.randbytes(4096)).status == nvme.OK
        for cid, (lba, blocks) in reads.items():
            done = io.wait(cid)
            assert done.status == nvme.OK
            assert done.data == content[lba * 512 : (lba + blocks) * 512]
    eventually(lambda: copied(daemon) - before >= large, "the kernel has said that it copied")
    assert reactor(daemon)["zero_copy_bytes"] == 0, "on loopback?"


def test_counted_where_the_operator_looks(daemon: Daemon, tree: Tree) -> None:
    io = tree.started().io()
    assert io.read(0, LARGE, LARGE * 512).status == nvme.OK
    eventually(
        lambda: daemon.rpc("p2p_get_status")["dataplane"]["zero_copy"]["copied_bytes"] >= LARGE * 512, "p2p_get_status"
    )


@pytest.mark.parametrize("how", ["close", "reset", "remove", "disconnect"])
def test_the_queue_ends_under_load(daemon: Daemon, tree: Tree, how: str) -> None:
    """While much is on its way to a host that does not read it; another host goes on, and finds its own data."""
    other = tree.started().io()
    content = pattern(2)
    fill(other, content)
    for count in range(8):
        host = tree.started()
        io = host.io()
        for _ in range(24):
            submit_read(io, random.Random(count).randrange(BLOCKS - LARGE), LARGE)
        other.wait(submit_read(other, 0, LARGE))  # by now the first of them are being sent
        if how == "close":
            host.close()
        elif how == "reset":
            io.conn.reset()
            host.admin.conn.reset()
        elif how == "remove":
            host.admin.property_set(nvme.CC, 0)
        else:
            io.submit(nvme.disconnect_sqe())
            host.close()
        lba = (count * 517) % (BLOCKS - LARGE)
        assert other.read(lba, LARGE, LARGE * 512).data == content[lba * 512 : (lba + LARGE) * 512]
        host.close()


def test_auto_turns_back(make_daemon: MakeDaemon) -> None:
    """The first large read of each connection shows that loopback copies; the others are plain."""
    daemon = make_daemon("--pool-mib", str(POOL_MIB))
    tree = daemon.subsystem(Ns("aio", BLOCKS, 512))
    for _ in range(2):
        io, before = tree.started().io(), copied(daemon)
        for _ in range(10):
            assert io.read(0, LARGE, LARGE * 512).status == nvme.OK
        told = eventually(lambda before=before: copied(daemon) - before, "the kernel has said that it copied")
        assert told < 11 * LARGE * 512
        for _ in range(10):
            assert io.read(0, LARGE, LARGE * 512).status == nvme.OK
        assert copied(daemon) - before < 11 * LARGE * 512


def test_off(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("--pool-mib", str(POOL_MIB), "--zero-copy-send", "off")
    tree = daemon.subsystem(Ns("aio", BLOCKS, 512))
    io = tree.started().io()
    for _ in range(4):
        assert io.read(0, LARGE, LARGE * 512).status == nvme.OK
    assert copied(daemon) == 0
