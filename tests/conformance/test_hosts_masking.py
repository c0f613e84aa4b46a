"""Which host may connect, and which namespaces it sees."""

from __future__ import annotations

import struct

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.conn import PeerClosed
from tests.support.daemon import Ns
from tests.support.initiator import Queue

ALICE, BOB = "nqn.2026-01.org.example:alice", "nqn.2026-01.org.example:bob"
HIDDEN = Ns(params={"no_auto_visible": True})


def active(admin: Queue) -> list[int]:
    return [nsid for nsid in struct.unpack("<1024I", admin.identify(2).data) if nsid]


def test_allow_list(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), allow_any_host=False)
    tree.rpc("nvmf_subsystem_add_host", host=ALICE)
    assert tree.started(hostnqn=ALICE).io().read(0, 1, 512).status == nvme.OK
    assert tree.host().admin.connect(tree.nqn, hostnqn=BOB).status == nvme.CONNECT_HOST


def test_allow_any_host_turned_on_and_off(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), allow_any_host=False)
    tree.rpc("nvmf_subsystem_allow_any_host", allow_any_host=True)
    assert tree.host().admin.connect(tree.nqn, hostnqn=BOB).status == nvme.OK
    tree.rpc("nvmf_subsystem_allow_any_host", allow_any_host=False)
    assert tree.host().admin.connect(tree.nqn, hostnqn=BOB).status == nvme.CONNECT_HOST


def test_removed_host_is_thrown_out(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), allow_any_host=False)
    for nqn in (ALICE, BOB):
        tree.rpc("nvmf_subsystem_add_host", host=nqn)
    alice, bob = tree.started(hostnqn=ALICE), tree.started(hostnqn=BOB)
    io = alice.io()
    bobs = bob.io()
    tree.rpc("nvmf_subsystem_remove_host", host=ALICE)
    for queue in (alice.admin, io):
        with pytest.raises(PeerClosed):
            queue.conn.recv_exact(1)
    assert bobs.read(0, 1, 512).status == nvme.OK
    assert tree.host().admin.connect(tree.nqn, hostnqn=ALICE).status == nvme.CONNECT_HOST


def test_names_are_compared_exactly(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), allow_any_host=False)
    tree.rpc("nvmf_subsystem_add_host", host=ALICE)
    for near in (ALICE.upper(), ALICE[:-1], ALICE + "x"):
        assert tree.host().admin.connect(tree.nqn, hostnqn=near).status != nvme.OK


def test_hidden_namespace(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), HIDDEN)
    host = tree.started(hostnqn=ALICE)
    assert active(host.admin) == [1]
    assert not any(host.admin.identify(0, nsid=2).data)
    assert host.admin.identify(3, nsid=2).status == nvme.INVALID_FIELD, "inactive (Base 3.2.1.5)"
    io = host.io()
    assert io.read(0, 1, 512, nsid=2).status == nvme.INVALID_NAMESPACE
    assert io.write(0, 1, bytes(512), nsid=2).status == nvme.INVALID_NAMESPACE


def test_shown_to_one_host(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), HIDDEN)
    tree.rpc("nvmf_ns_add_host", nsid=2, host=ALICE)
    alice, bob = tree.started(hostnqn=ALICE), tree.started(hostnqn=BOB)
    assert (active(alice.admin), active(bob.admin)) == ([1, 2], [1])
    assert alice.io().read(0, 1, 512, nsid=2).status == nvme.OK
    assert bob.io().read(0, 1, 512, nsid=2).status == nvme.INVALID_NAMESPACE


def test_shown_and_hidden_while_connected(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), HIDDEN)
    alice, bob = tree.started(hostnqn=ALICE), tree.started(hostnqn=BOB)
    for host in (alice, bob):
        host.admin.set_features(0x0B, 1 << 8)
        host.admin.aer()
    io = alice.io()
    tree.rpc("nvmf_ns_add_host", nsid=2, host=ALICE)
    alice.admin.serve_one()
    (done,) = alice.admin.completed.values()
    assert done.dw0 == 0x040002, "namespace attribute changed"
    assert bob.admin.conn.is_silent(0.2), "the other host sees no change"
    assert io.read(0, 1, 512, nsid=2).status == nvme.OK
    tree.rpc("nvmf_ns_remove_host", nsid=2, host=ALICE)
    assert io.read(0, 1, 512, nsid=2).status == nvme.INVALID_NAMESPACE
    assert active(alice.admin) == [1]


def test_deleted_subsystem_ends_its_controllers(make_tree: MakeTree) -> None:
    tree, other = make_tree(Ns()), make_tree(Ns())
    host = tree.started()
    io = host.io()
    neighbour = other.started().io()
    tree.rpc("nvmf_delete_subsystem")
    for queue in (host.admin, io):
        with pytest.raises(PeerClosed):
            queue.conn.recv_exact(1)
    assert neighbour.read(0, 1, 512).status == nvme.OK


def test_removed_listener(make_tree: MakeTree) -> None:
    """New connections are refused; SPDK also ends the controllers that came through it."""
    tree = make_tree(Ns())
    host = tree.started()
    tree.rpc("nvmf_subsystem_remove_listener", listen_address=tree.listen_address(tree.address))
    with pytest.raises(ConnectionRefusedError):
        tree.host()
    with pytest.raises(PeerClosed):
        host.admin.conn.recv_exact(1)


def test_subsystem_is_reached_through_its_own_listeners_alone(make_tree: MakeTree) -> None:
    """A subsystem that does not listen on the port where the host came in is not there for it."""
    tree, other = make_tree(Ns()), make_tree(Ns())
    done = tree.host().admin.connect(other.nqn)
    assert done.status in (nvme.CONNECT_PARAM, nvme.CONNECT_HOST)
