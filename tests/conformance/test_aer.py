"""Asynchronous Event Request (Base 5.1.2): limits, masking, and one event for each kind of change."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.daemon import Ns, Tree
from tests.support.initiator import Host, Queue

AEC = 0x0B
NS_CHANGED = (2, 0x00, 0x04)  # type Notice, information, log page
ANA_CHANGED = (2, 0x03, 0x0C)
NS_BIT, ANA_BIT = 1 << 8, 1 << 11


def event(admin: Queue, cid: int) -> tuple[int, int, int]:
    done = admin.wait(cid)
    assert done.status == nvme.OK
    return done.dw0 & 7, done.dw0 >> 8 & 0xFF, done.dw0 >> 16 & 0xFF


def clear(admin: Queue, lid: int = 4) -> None:
    assert admin.get_log(lid, 4096 if lid == 4 else 64).status == nvme.OK


def listening(tree: Tree, bits: int = NS_BIT | ANA_BIT) -> Queue:
    admin = tree.started().admin
    assert admin.set_features(AEC, bits).status == nvme.OK
    return admin


def test_limit(admin: Queue) -> None:
    """AERL is 0's based; one more than AERL + 1 is refused at once, the others stay outstanding."""
    allowed = admin.identify(1).data[259] + 1
    waiting = [admin.aer() for _ in range(allowed)]
    assert admin.wait(admin.aer()).status == nvme.AER_LIMIT
    assert admin.keep_alive().status == nvme.OK
    assert admin.in_flight == len(waiting) == allowed


def test_namespace_added(tree: Tree) -> None:
    admin = listening(tree)
    cid = admin.aer()
    tree.add(Ns())
    assert event(admin, cid) == NS_CHANGED


def test_namespace_removed(tree: Tree) -> None:
    admin = listening(tree)
    cid = admin.aer()
    tree.remove(2)
    assert event(admin, cid) == NS_CHANGED


def test_namespace_resized(make_tree: MakeTree) -> None:
    tree = make_tree(Ns("null", blocks=2048))
    admin = listening(tree)
    cid = admin.aer()
    tree.daemon.grow(*tree.bdevs[1], 4096)
    assert event(admin, cid) == NS_CHANGED
    assert int.from_bytes(admin.identify(0, nsid=1).data[:8], "little") == 4096


def test_event_before_the_request_is_kept(tree: Tree) -> None:
    admin = listening(tree)
    tree.add(Ns())
    assert event(admin, admin.aer()) == NS_CHANGED


def test_masked_until_the_page_is_read(tree: Tree) -> None:
    """After an event its kind stays masked until the log page is read with RAE 0 (Base 5.1.2)."""
    admin = listening(tree)
    cid = admin.aer()
    tree.add(Ns())
    assert event(admin, cid) == NS_CHANGED
    cid = admin.aer()
    tree.add(Ns())
    assert admin.conn.is_silent(0.2)
    clear(admin)
    tree.add(Ns())
    assert event(admin, cid) == NS_CHANGED


def test_retained_by_rae(tree: Tree) -> None:
    admin = listening(tree)
    cid = admin.aer()
    tree.add(Ns())
    assert event(admin, cid) == NS_CHANGED
    assert admin.get_log(4, 4096, rae=True).status == nvme.OK
    cid = admin.aer()
    tree.add(Ns())
    assert admin.conn.is_silent(0.2)


def test_not_enabled(tree: Tree) -> None:
    admin = listening(tree, 0)
    admin.aer()
    tree.add(Ns())
    assert admin.conn.is_silent(0.2)


def test_only_the_affected_subsystem(tree: Tree, make_tree: MakeTree) -> None:
    admin = listening(tree)
    admin.aer()
    make_tree(Ns()).add(Ns())
    assert admin.conn.is_silent(0.2)


def test_every_host_gets_it(tree: Tree) -> None:
    admins = [listening(tree) for _ in range(3)]
    cids = [admin.aer() for admin in admins]
    tree.add(Ns())
    assert [event(admin, cid) for admin, cid in zip(admins, cids, strict=True)] == [NS_CHANGED] * 3


def test_ana_state(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), ana_reporting=True)
    admin = listening(tree)
    cid = admin.aer()
    address = tree.listen_address(tree.address)
    tree.rpc("nvmf_subsystem_listener_set_ana_state", listen_address=address, ana_state="inaccessible")
    assert event(admin, cid) == ANA_CHANGED


def test_outstanding_requests_go_with_a_reset(host: Host) -> None:
    """They are aborted, with or without a completion; none of them still counts afterwards."""
    host.admin.aer()
    host.admin.property_set(nvme.CC, 0)
    host.wait_csts(1, 0)
    host.enable()
    allowed = host.admin.identify(1).data[259] + 1
    for _ in range(allowed):
        host.admin.aer()
    assert host.admin.wait(host.admin.aer()).status == nvme.AER_LIMIT


@pytest.mark.parametrize("count", [200])
def test_storm_of_changes(tree: Tree, count: int) -> None:
    """Many changes without a reader: one event, one list, bounded memory."""
    admin = listening(tree)
    cid = admin.aer()
    for _ in range(count // 2):
        tree.remove(2)
        tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": tree.bdevs[2][0], "nsid": 2})
    assert event(admin, cid) == NS_CHANGED
    assert admin.get_log(4, 4096).data[:8] == (2).to_bytes(4, "little") + bytes(4)
