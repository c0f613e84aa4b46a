"""Header and data digests (NVMe/TCP 3.3.1.1). Those of the target are checked by the initiator on each PDU."""

from __future__ import annotations

import itertools

import pytest

from tests.support import nvme
from tests.support.daemon import Tree

BOTH = list(itertools.product((False, True), repeat=2))
DATA = bytes(range(256)) * 64


@pytest.mark.parametrize(("hdgst", "ddgst"), BOTH)
@pytest.mark.parametrize("in_capsule", [True, False], ids=["in-capsule", "r2t"])
def test_write_and_read(tree: Tree, hdgst: bool, ddgst: bool, in_capsule: bool) -> None:
    host = tree.started(hdgst=hdgst, ddgst=ddgst)
    io = host.io()
    size = 4096 if in_capsule else len(DATA)
    assert io.write(8, size // 512, DATA[:size], in_capsule=in_capsule).status == nvme.OK
    assert io.read(8, size // 512, size).data == DATA[:size]


@pytest.mark.parametrize(("hdgst", "ddgst"), BOTH)
def test_admin_commands(tree: Tree, hdgst: bool, ddgst: bool) -> None:
    admin = tree.started(hdgst=hdgst, ddgst=ddgst).admin
    assert admin.identify(1).status == nvme.OK
    assert admin.set_features(0x16, out=bytes(512)).status == nvme.OK


def test_queues_of_one_host_negotiate_for_themselves(tree: Tree) -> None:
    host = tree.started(hdgst=True, ddgst=True)
    host.options.hdgst = False
    plain = host.io(1)
    host.options.hdgst, host.options.ddgst = True, False
    header = host.io(2)
    assert plain.write(0, 1, DATA[:512]).status == nvme.OK
    assert header.read(0, 1, 512).data == DATA[:512]


def test_wrong_header_digest_is_fatal(tree: Tree) -> None:
    host = tree.started(hdgst=True)
    io = host.io()
    sqe = nvme.sqe(nvme.READ, cid=9, nsid=1, dptr=nvme.sgl(nvme.SGL_TRANSPORT, 512))
    io.conn.send(io.conn.capsule(sqe, hdgst_xor=1))
    io.conn.expect_term(nvme.FES_HDGST)
    assert host.admin.keep_alive().status == nvme.OK, "only that queue is lost"


def test_wrong_header_digest_on_the_admin_queue(tree: Tree) -> None:
    host = tree.started(hdgst=True)
    host.admin.conn.send(host.admin.conn.capsule(nvme.sqe(nvme.KEEP_ALIVE, cid=9), hdgst_xor=0x80000000))
    host.admin.conn.expect_term(nvme.FES_HDGST)


def test_wrong_data_digest_in_a_capsule(tree: Tree) -> None:
    """Transient Transport Error, nothing is written, and the queue lives on (NVMe/TCP 3.3.1.1, Base 22h)."""
    host = tree.started(ddgst=True)
    io = host.io()
    sqe = nvme.sqe(nvme.WRITE, cid=0x100, nsid=1, dptr=nvme.sgl(nvme.SGL_IN_CAPSULE, 512))
    io.expect_response(0x100)
    io.conn.send(io.conn.capsule(sqe, DATA[:512], ddgst_xor=1))
    assert io.wait(0x100).status == nvme.TRANSIENT_TRANSPORT
    assert io.read(0, 1, 512).data == bytes(512)


def test_wrong_data_digest_after_r2t(tree: Tree) -> None:
    host = tree.started(ddgst=True)
    io = host.io()
    cid = io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=(0, 0, 31)), out=DATA, in_capsule=False)
    _, ttag, offset, length = io.recv_r2t()
    assert (offset, length) == (0, len(DATA)), "one R2T is enough for 16 KiB"
    io.conn.send(io.conn.h2c_data(cid, ttag, 0, DATA[:8192], last=False, ddgst_xor=0x10000))
    io.conn.send(io.conn.h2c_data(cid, ttag, 8192, DATA[8192:], last=True))
    assert io.wait(cid).status == nvme.TRANSIENT_TRANSPORT
    assert io.read(0, 32, len(DATA)).data == bytes(len(DATA)), "nothing of it was written"
    assert io.write(0, 32, DATA, in_capsule=False).status == nvme.OK


def test_wrong_data_digest_on_the_admin_queue(tree: Tree) -> None:
    admin = tree.started(ddgst=True).admin
    sqe = nvme.sqe(nvme.SET_FEATURES, cid=0x100, cdw=(0x16,), dptr=nvme.sgl(nvme.SGL_IN_CAPSULE, 512))
    admin.expect_response(0x100)
    admin.conn.send(admin.conn.capsule(sqe, bytes(512), ddgst_xor=1))
    assert admin.wait(0x100).status == nvme.TRANSIENT_TRANSPORT
    assert admin.keep_alive().status == nvme.OK


def test_wrong_data_digest_of_connect(tree: Tree) -> None:
    queue = tree.host(ddgst=True).admin
    queue.expect_response(1)
    queue.conn.send(queue.conn.capsule(nvme.connect_sqe(cid=1), nvme.connect_data(tree.nqn), ddgst_xor=1))
    assert queue.wait(1).status == nvme.TRANSIENT_TRANSPORT
    assert queue.connect(tree.nqn).status == nvme.OK
