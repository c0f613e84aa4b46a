"""Namespaces that come, go and change their size under I/O (as SPDK's ns_hotplug_stress)."""

from __future__ import annotations

import struct
import threading

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.daemon import Ns, Tree
from tests.support.initiator import Queue, lba_cdw

GONE = {nvme.INVALID_NAMESPACE}


def active(admin: Queue) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", admin.identify(2).data) if nsid]


def capacity(admin: Queue, nsid: int = 1) -> int:
    return int.from_bytes(admin.identify(0, nsid=nsid).data[:8], "little")


def test_added_namespace_can_be_used_at_once(tree: Tree) -> None:
    host = tree.started()
    io = host.io()
    nsid = tree.add(Ns())
    assert active(host.admin) == [1, 2, nsid]
    assert io.write(0, 1, b"\7" * 512, nsid=nsid).status == nvme.OK
    assert io.read(0, 1, 512, nsid=nsid).data == b"\7" * 512


def test_removed_namespace_is_gone_at_once(tree: Tree) -> None:
    host = tree.started()
    io = host.io()
    tree.remove(1)
    assert io.read(0, 1, 512).status in GONE
    assert io.write(0, 16, bytes(8192), in_capsule=False).status in GONE
    assert active(host.admin) == [2]
    assert io.read(0, 1, 4096, nsid=2).status == nvme.OK


def test_nsid_given_to_another_back_end(tree: Tree) -> None:
    """The new namespace has its own data and its own identity, not its predecessor's."""
    host = tree.started()
    io = host.io()
    assert io.write(0, 1, b"\7" * 512).status == nvme.OK
    old = host.admin.identify(3, nsid=1).data
    tree.remove(1)
    assert tree.add(Ns(), 1) == 1
    assert io.read(0, 1, 512).data == bytes(512)
    assert host.admin.identify(3, nsid=1).data != old


def test_removed_while_a_write_waits_for_its_data(tree: Tree) -> None:
    """The removal must not hang on a host that never sends, and must not write what comes too late."""
    host = tree.started()
    io = host.io()
    cid = io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=lba_cdw(0, 16)), out=bytes(8192), in_capsule=False)
    _, ttag, offset, length = io.recv_r2t()
    tree.remove(1)
    io.send_h2c(cid, ttag, offset, bytes(length))
    done = io.wait(cid)
    assert done.status in GONE | {nvme.ABORT_REQUESTED, nvme.OK}
    assert io.read(0, 1, 4096, nsid=2).status == nvme.OK


def test_null_grows(make_tree: MakeTree) -> None:
    tree = make_tree(Ns("null", blocks=2048))
    host = tree.started()
    io = host.io()
    assert io.read(2048, 1, 512).status == nvme.LBA_RANGE
    tree.daemon.grow(*tree.bdevs[1], 8192)
    assert capacity(host.admin) == 8192
    assert io.read(8191, 1, 512).status == nvme.OK
    assert io.read(8192, 1, 512).status == nvme.LBA_RANGE


def test_file_grows(make_tree: MakeTree) -> None:
    tree = make_tree(Ns("aio", blocks=2048))
    host = tree.started()
    io = host.io()
    data = b"\x42" * 512
    assert io.write(2047, 1, data).status == nvme.OK
    tree.daemon.grow(*tree.bdevs[1], 4096)
    assert capacity(host.admin) == 4096
    assert io.write(4095, 1, data).status == nvme.OK
    assert io.read(2047, 1, 512).data == data


def test_stress(make_tree: MakeTree) -> None:
    """One namespace comes and goes while another host's I/O runs on both; no I/O is lost and none hangs."""
    tree = make_tree(Ns(), Ns())
    host = tree.started()
    io = host.io()
    bdev = tree.bdevs[2][0]
    stop = threading.Event()
    failures: list[BaseException] = []

    def change() -> None:
        try:
            for _ in range(40):
                tree.remove(2)
                tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": bdev, "nsid": 2})
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=change)
    thread.start()
    count = 0
    while not stop.is_set():
        count += 1
        data = count.to_bytes(4, "little") * 128
        cids = [
            io.submit(nvme.sqe(nvme.WRITE, nsid=nsid, cdw=lba_cdw(count % 4096, 1)), out=data, in_capsule=inside)
            for nsid in (1, 2)
            for inside in (True, False)
        ]
        statuses = [io.wait(cid).status for cid in cids]
        assert statuses[:2] == [nvme.OK] * 2
        assert set(statuses[2:]) <= GONE | {nvme.OK, nvme.ABORT_REQUESTED}
        assert io.read(count % 4096, 1, 512).data == data
    thread.join()
    assert not failures
    assert active(host.admin) == [1, 2]
    assert io.read(0, 1, 512, nsid=2).status == nvme.OK


def test_deleted_back_end_takes_its_namespace_along(make_tree: MakeTree) -> None:
    """As SPDK: deleting a bdev removes the namespaces on it; or the deletion is refused while it is in use."""
    tree = make_tree(Ns(), Ns())
    host = tree.started()
    io = host.io()
    tree.daemon.delete_bdev(*tree.bdevs[1])
    assert io.read(0, 1, 512).status in GONE
    assert active(host.admin) == [2]
    assert io.read(0, 1, 512, nsid=2).status == nvme.OK
