"""A file that grows, shrinks, goes away or comes back under the data plane, without anybody's call: hosts are told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.daemon import Ns, Tree, eventually
from tests.support.initiator import Queue

AEC = 0x0B
NS_BIT = 1 << 8
NS_CHANGED = (2, 0x00, 0x04)
BLOCK = 512
NOT_READY = 0x082


@pytest.fixture(autouse=True)
def only_native(engine: str) -> None:
    """The in-process engine reads a size when it is told to (bdev_aio_rescan)."""
    if engine != "native":
        pytest.skip("the in-process engine does not look by itself")


def capacity(admin: Queue, nsid: int = 1) -> int:
    return int.from_bytes(admin.identify(0, nsid=nsid).data[:8], "little")


def file_of(tree: Tree, nsid: int = 1) -> Path:
    return tree.daemon.dir / f"{tree.bdevs[nsid][0]}.img"


def listening(tree: Tree) -> Queue:
    admin = tree.started().admin
    assert admin.set_features(AEC, NS_BIT).status == nvme.OK
    return admin


def expect_event(admin: Queue, cid: int, nsid: int = 1) -> None:
    """The notice comes, its log page names the namespace; reading it lets the next notice come."""
    done = admin.wait(cid)
    assert (done.status, done.dw0 & 7, done.dw0 >> 8 & 0xFF, done.dw0 >> 16 & 0xFF) == (nvme.OK, *NS_CHANGED)
    assert admin.get_log(4, 4096).data[:4] == nsid.to_bytes(4, "little")


def test_grows_and_shrinks(make_tree: MakeTree) -> None:
    tree = make_tree(Ns("aio", blocks=64))
    admin = listening(tree)
    io = tree.hosts[-1].io()
    data = b"\x5a" * BLOCK
    cid = admin.aer()
    os.truncate(file_of(tree), 128 * BLOCK)
    expect_event(admin, cid)
    assert capacity(admin) == 128
    assert io.write(127, 1, data).status == nvme.OK
    assert io.read(127, 1, BLOCK).data == data
    assert io.read(128, 1, BLOCK).status == nvme.LBA_RANGE
    cid = admin.aer()
    os.truncate(file_of(tree), 32 * BLOCK)
    expect_event(admin, cid)
    assert capacity(admin) == 32
    assert io.read(32, 1, BLOCK).status == nvme.LBA_RANGE


def test_noticed_by_an_io_that_fails(make_tree: MakeTree) -> None:
    """A read behind the new end: an error once, then the size is known."""
    tree = make_tree(Ns("aio", blocks=64))
    admin = listening(tree)
    io = tree.hosts[-1].io()
    cid = admin.aer()
    os.truncate(file_of(tree), 32 * BLOCK)
    assert io.read(40, 1, BLOCK).status != nvme.OK
    expect_event(admin, cid)
    assert io.read(40, 1, BLOCK).status == nvme.LBA_RANGE


def test_lost_and_back(make_tree: MakeTree) -> None:
    tree = make_tree(Ns("aio", blocks=64), Ns())
    admin = listening(tree)
    io = tree.hosts[-1].io()
    daemon, name = tree.daemon, tree.bdevs[1][0]
    cid = admin.aer()
    os.truncate(file_of(tree), 0)
    expect_event(admin, cid)
    assert io.read(0, 1, BLOCK).status in {NOT_READY, nvme.INVALID_NAMESPACE}
    assert io.read(0, 1, BLOCK, nsid=2).status == nvme.OK
    assert name in daemon.rpc("p2p_get_status")["absent_bdevs"]
    cid = admin.aer()
    os.truncate(file_of(tree), 96 * BLOCK)
    expect_event(admin, cid)
    assert capacity(admin) == 96
    assert io.write(95, 1, b"\1" * BLOCK).status == nvme.OK
    assert io.read(95, 1, BLOCK).data == b"\1" * BLOCK
    assert daemon.rpc("p2p_get_status")["absent_bdevs"] == []


def test_with_a_layer_on_it(make_tree: MakeTree) -> None:
    """A delay bdev changes with its base, goes with it and comes back with it."""
    tree = make_tree(Ns())
    daemon = tree.daemon
    base = daemon.bdev(Ns("aio", blocks=64))
    path = daemon.dir / f"{base}.img"
    latencies = dict.fromkeys(("avg_read_latency", "p99_read_latency", "avg_write_latency", "p99_write_latency"), 0)
    daemon.rpc("bdev_delay_create", name=f"{base}d", base_bdev_name=base, **latencies)
    tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": f"{base}d", "nsid": 5})
    try:
        admin = listening(tree)
        io = tree.hosts[-1].io()
        cid = admin.aer()
        os.truncate(path, 80 * BLOCK)
        expect_event(admin, cid, 5)
        assert capacity(admin, 5) == 80
        cid = admin.aer()
        os.truncate(path, 0)
        expect_event(admin, cid, 5)
        cid = admin.aer()
        os.truncate(path, 72 * BLOCK)
        expect_event(admin, cid, 5)
        assert capacity(admin, 5) == 72
        assert io.read(71, 1, BLOCK, nsid=5).status == nvme.OK
    finally:
        tree.delete()
        eventually(
            lambda: {base, f"{base}d"} <= {bdev["name"] for bdev in daemon.rpc("bdev_get_bdevs")}, "both are open"
        )
        daemon.rpc("bdev_delay_delete", name=f"{base}d")
        daemon.rpc("bdev_aio_delete", name=base)


def test_lost_and_deleted(make_tree: MakeTree) -> None:
    """The configuration of a lost back end can be deleted, and its name be used again."""
    tree = make_tree(Ns())
    daemon = tree.daemon
    name = daemon.bdev(Ns("aio", blocks=64))
    path = daemon.dir / f"{name}.img"
    os.truncate(path, 0)
    eventually(lambda: name in daemon.rpc("p2p_get_status")["absent_bdevs"], "it is lost")
    daemon.rpc("bdev_aio_delete", name=name)
    os.truncate(path, 64 * BLOCK)
    daemon.rpc("bdev_aio_create", name=name, filename=str(path), block_size=BLOCK)
    daemon.rpc("bdev_aio_delete", name=name)
