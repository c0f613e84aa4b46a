"""Initialise connection: ICReq and ICResp (NVMe/TCP 3.6.2.1, 3.6.2.2)."""

from __future__ import annotations

import itertools

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.conn import RawConn
from tests.support.daemon import Ns, Tree


@pytest.mark.parametrize(("hdgst", "ddgst"), list(itertools.product((False, True), repeat=2)))
def test_digests_are_granted_exactly_as_asked(tree: Tree, hdgst: bool, ddgst: bool) -> None:
    with RawConn(tree.address) as conn:
        assert conn.ic(hdgst=hdgst, ddgst=ddgst).dgst == hdgst | ddgst << 1


def test_linux_needs_cpda_zero(tree: Tree) -> None:
    """The Linux host refuses any other CPDA (drivers/nvme/host/tcp.c), so a target that wants hosts says 0."""
    with RawConn(tree.address) as conn:
        assert conn.ic().cpda == 0


def test_spdk_needs_maxh2cdata_of_4096(tree: Tree) -> None:
    with RawConn(tree.address) as conn:
        assert conn.ic().maxh2cdata >= 4096


@pytest.mark.parametrize("hpda", [0, 1, 7, 15, 31])
def test_c2hdata_is_aligned_to_hpda(make_tree: MakeTree, hpda: int) -> None:
    """The alignment itself is checked by the initiator on each C2HData."""
    tree = make_tree(Ns())
    host = tree.started(hpda=hpda)
    data = bytes(range(256)) * 4
    io = host.io()
    assert io.write(0, 2, data).status == nvme.OK
    assert io.read(0, 2, 1024).data == data


def test_icreq_in_single_bytes(tree: Tree) -> None:
    with RawConn(tree.address) as conn:
        for value in nvme.icreq():
            conn.send(bytes([value]))
        assert conn.recv_pdu().type == nvme.ICRESP


def test_nothing_is_sent_before_icreq(tree: Tree) -> None:
    with RawConn(tree.address) as conn:
        assert conn.is_silent(0.2)


def test_icreq_and_connect_in_one_segment(tree: Tree) -> None:
    """A host should wait for ICResp; one that does not gets either its answers in order or a sequence error."""
    with RawConn(tree.address) as conn:
        capsule = conn.capsule(nvme.connect_sqe(cid=1), nvme.connect_data(tree.nqn))
        conn.send(nvme.icreq() + capsule)
        assert conn.recv_pdu().type == nvme.ICRESP
        answer = conn.recv_pdu()
        assert answer.type in (nvme.CAPSULE_RESP, nvme.C2H_TERM)


def test_reserved_bytes_of_icreq_are_ignored(tree: Tree) -> None:
    """Base 1.4.1.3 (reserved): the recipient is not to check reserved fields."""
    with RawConn(tree.address) as conn:
        conn.send(nvme.icreq(rest=b"\xff" * 112))
        assert conn.recv_pdu().type == nvme.ICRESP
