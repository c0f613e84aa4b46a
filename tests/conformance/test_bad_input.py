"""Every row of the table of known defects that concerns TCP, with the answer that the specification names.

The daemon is this module's own, so that its memory, descriptors and tasks can be counted at the end. After each wrong
input a good host must work at once.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import pytest

from tests.support import bad, nvme
from tests.support.bad import Bad
from tests.support.conn import PeerClosed, RawConn
from tests.support.daemon import Daemon, Ns, Tree, eventually
from tests.support.initiator import Host, HostOptions, Queue, lba_cdw

RSS_MARGIN_KIB = 16 * 1024
RSS_ROUND_MARGIN_KIB = 4 * 1024
BASELINE: dict[str, int | None] = {}


@pytest.fixture(scope="module")
def victim(engine: str) -> Iterator[Tree]:
    with Daemon(engine=engine) as daemon:
        tree = daemon.subsystem(Ns())
        for one in bad.EVERY[:6]:  # warm up: code, caches, allocator
            meet(tree, one)
            good(tree)
        idle(tree)
        BASELINE.update(fds=daemon.fd_count(), rss=daemon.rss_kib(), tasks=daemon.task_count())
        yield tree
        tree.close_hosts()


@pytest.fixture
def tree(victim: Tree) -> Iterator[Tree]:
    """This module's subsystem; after the test a good host must work, and the daemon must be the same process."""
    yield victim
    victim.close_hosts()
    assert victim.daemon.process is not None
    assert victim.daemon.process.poll() is None, victim.daemon.log_text()
    good(victim)


def good(tree: Tree) -> None:
    """A host without fault: connects, writes, reads, leaves."""
    with Host(tree.address, tree.nqn) as host:
        io = host.start().io()
        data = random.Random(1).randbytes(8192)
        assert io.write(64, 16, data, in_capsule=False).status == nvme.OK
        assert io.read(64, 16, 8192).data == data


def idle(tree: Tree) -> None:
    """Waits until the target has seen that all our hosts have gone."""
    eventually(lambda: not tree.rpc("nvmf_subsystem_get_controllers"), "all controllers are gone")


def meet(tree: Tree, one: Bad) -> None:
    """Brings a connection to the stage, sends the wrong thing and checks the answer."""
    options = HostOptions(hdgst=one.hdgst, ddgst=one.ddgst, timeout=5.0)
    if one.stage == "raw":
        with RawConn(tree.address, 5.0) as conn:
            bad.provoke(one, Queue(conn))
            bad.check_answer(one, conn)
    else:
        with Host(tree.address, tree.nqn, options) as host:
            queue = host.start().io() if one.stage == "io" else host.admin
            with contextlib.suppress(PeerClosed):  # it may close while a long one is still being sent
                bad.provoke(one, queue)
            bad.check_answer(one, queue.conn)
            if one.stage == "io":
                assert host.admin.keep_alive().status == nvme.OK, "only that queue is lost"


@pytest.mark.parametrize("one", bad.EVERY, ids=lambda one: f"row{one.row}-{one.name}")
def test_wrong_pdu(tree: Tree, one: Bad) -> None:
    meet(tree, one)


@pytest.mark.parametrize("stage", ["ic", "io"])
def test_h2c_term_req(tree: Tree, stage: str) -> None:
    """The receiver of a TermReq closes at once and sends none back (NVMe/TCP 3.4.7)."""
    host = tree.started()
    queue = host.io() if stage == "io" else host.admin
    body = nvme.FES_SEQUENCE.to_bytes(2, "little") + bytes(14)
    queue.conn.send(bad.common(nvme.H2C_TERM, 24, 24 + 8)[:8] + body + bytes(8))
    queue.conn.wait_closed()


@pytest.mark.parametrize("plen", [8, 23, 24, 152, 153, 4096, 0xFFFFFFFF])
def test_h2c_term_req_of_any_length(tree: Tree, plen: int) -> None:
    """It closes either way; a TermReq about the length is what SPDK sends for a wrong one."""
    conn = tree.started().io().conn
    try:
        conn.send(bad.common(nvme.H2C_TERM, 24, plen))
        term = conn.recv_term()
    except PeerClosed:
        return
    assert (term.fes, term.fei) == bad.PLEN
    assert not 24 <= plen <= 152
    conn.expect_closed()


# Row 5: SGLs

DESCRIPTORS = {
    "data-block-address": 0x00, "data-block-f": 0x0F, "bit-bucket": 0x10, "segment": 0x20, "last-segment": 0x30,
    "keyed": 0x40, "keyed-invalidate": 0x4F, "transport-0": 0x50, "transport-b": 0x5B, "reserved": 0x60, "vendor": 0xF0,
}  # fmt: skip


@pytest.mark.parametrize("kind", list(DESCRIPTORS.values()), ids=list(DESCRIPTORS))
@pytest.mark.parametrize("opc", [nvme.READ, nvme.WRITE])
def test_sgl_type(tree: Tree, kind: int, opc: int) -> None:
    io = tree.started().io()
    sqe = nvme.sqe(opc, cid=9, nsid=1, dptr=nvme.sgl(kind, 512))
    assert io.wait(io.submit_raw(sqe, expect=512)).status == nvme.SGL_TYPE


@pytest.mark.parametrize("kind", list(DESCRIPTORS.values()), ids=list(DESCRIPTORS))
def test_sgl_type_of_an_admin_command(tree: Tree, kind: int) -> None:
    admin = tree.started().admin
    sqe = nvme.sqe(nvme.IDENTIFY, cid=9, cdw=(1,), dptr=nvme.sgl(kind, 4096))
    assert admin.wait(admin.submit_raw(sqe, expect=4096)).status == nvme.SGL_TYPE


@pytest.mark.parametrize("address", [1, 4, 512, 1 << 31, (1 << 64) - 512, (1 << 64) - 1])
def test_offset_into_the_capsule(tree: Tree, address: int) -> None:
    """ICDOFF is 0 and the data starts there: an offset that leaves the capsule is an SGL Offset Invalid."""
    io = tree.started().io()
    sqe = nvme.sqe(nvme.WRITE, cid=9, nsid=1, dptr=nvme.sgl(nvme.SGL_IN_CAPSULE, 512, address))
    done = io.wait(io.submit_raw(sqe, capsule_data=bytes(512)))
    assert done.status in (nvme.SGL_OFFSET, nvme.DATA_SGL_LENGTH)


@pytest.mark.parametrize("length", [1024, 4096, 1 << 20, 0xFFFFFFFF])
def test_in_capsule_length_beyond_what_came(tree: Tree, length: int) -> None:
    io = tree.started().io()
    blocks = min(length // 512, 65536)
    sqe = nvme.sqe(nvme.WRITE, cid=9, nsid=1, cdw=lba_cdw(0, blocks), dptr=nvme.sgl(nvme.SGL_IN_CAPSULE, length))
    done = io.wait(io.submit_raw(sqe, capsule_data=bytes(512)))
    assert done.status in (nvme.SGL_OFFSET, nvme.DATA_SGL_LENGTH, nvme.INVALID_FIELD, nvme.LBA_RANGE)


@pytest.mark.parametrize("length", [513, 1 << 20, 0x80000000, 0xFFFFFFFF])
def test_transport_length_beyond_the_blocks(tree: Tree, length: int) -> None:
    io = tree.started().io()
    sqe = nvme.sqe(nvme.WRITE, cid=9, nsid=1, dptr=nvme.sgl(nvme.SGL_TRANSPORT, length))
    assert io.wait(io.submit_raw(sqe)).status == nvme.DATA_SGL_LENGTH


@pytest.mark.parametrize("length", [0, 511, 513, 0xFFFFFFFF])
def test_admin_data_of_the_wrong_length(tree: Tree, length: int) -> None:
    admin = tree.started().admin
    sqe = nvme.sqe(nvme.SET_FEATURES, cid=9, cdw=(0x16,), dptr=nvme.sgl(nvme.SGL_TRANSPORT, length))
    assert admin.wait(admin.submit_raw(sqe)).status == nvme.DATA_SGL_LENGTH


@pytest.mark.parametrize("psdt", [0, 3])
def test_prp(tree: Tree, psdt: int) -> None:
    """PRPs do not exist with Fabrics; PSDT 11b is reserved."""
    io = tree.started().io()
    sqe = nvme.sqe(nvme.READ, cid=9, nsid=1, psdt=psdt, dptr=nvme.sgl(nvme.SGL_TRANSPORT, 512))
    assert io.wait(io.submit_raw(sqe, expect=512)).status == nvme.INVALID_FIELD


def test_data_in_a_capsule_that_needs_none(tree: Tree) -> None:
    """The SGL says transport, yet the capsule carries data: it is not used, or the command or the connection fails."""
    io = tree.started().io()
    sqe = nvme.sqe(nvme.FLUSH, cid=9, nsid=1)
    io.submit_raw(sqe, capsule_data=bytes(512))
    pdu = io.conn.recv_pdu()
    if pdu.type == nvme.CAPSULE_RESP:
        assert nvme.Cqe.parse(pdu.header[8:24]).status in (nvme.OK, nvme.DATA_SGL_LENGTH, nvme.INVALID_FIELD)
    else:
        assert pdu.type == nvme.C2H_TERM


# Rows 11, 12: any value of the fields that choose what happens


def sweep(queue: Queue, sqes: list[bytes]) -> set[int]:
    return {queue.wait(queue.submit(sqe, expect=4096)).status for sqe in sqes}


def test_every_identify(tree: Tree) -> None:
    admin = tree.started().admin
    for nsid in (0, 1, 2, 0xFFFFFFFE, 0xFFFFFFFF):
        sqes = [nvme.sqe(nvme.IDENTIFY, nsid=nsid, cdw=(cns, csi << 24)) for cns in range(256) for csi in (0, 2, 255)]
        known = {nvme.OK, nvme.INVALID_FIELD, nvme.INVALID_NAMESPACE, 0x12B, 0x12C}  # + command set not supported
        assert sweep(admin, sqes) <= known


def test_every_log_page_with_any_offset(tree: Tree) -> None:
    admin = tree.started().admin
    known = {nvme.OK, nvme.INVALID_FIELD, nvme.INVALID_LOG_PAGE, nvme.INVALID_NAMESPACE}
    for offset in (0, 4, 1 << 12, 1 << 31, 1 << 63):
        for lid in range(256):
            assert admin.get_log(lid, 4096, offset=offset, rae=True).status in known


def test_every_feature(tree: Tree) -> None:
    admin = tree.started().admin
    sqes = [nvme.sqe(nvme.GET_FEATURES, nsid=1, cdw=(fid | sel << 8,)) for fid in range(256) for sel in (0, 1, 2, 3, 7)]
    known = {nvme.OK, nvme.INVALID_FIELD, nvme.INVALID_NAMESPACE, nvme.DATA_SGL_LENGTH}
    assert sweep(admin, sqes) <= known


@pytest.mark.parametrize("which", ["admin", "io"])
def test_every_opcode(tree: Tree, which: str) -> None:
    """Random dwords behind every opcode but those that would end the association or wait for ever."""
    host = tree.started()
    queue = host.admin if which == "admin" else host.io()
    rng = random.Random(5)
    for opcode in range(256):
        if opcode == nvme.FABRICS or (which == "admin" and opcode in (nvme.AER, nvme.SET_FEATURES)):
            continue
        for nsid in (0, 1, rng.getrandbits(32)):
            cdw = tuple(rng.getrandbits(32) for _ in range(6))
            sqe = nvme.sqe(opcode, cid=9, nsid=nsid, cdw=cdw, dptr=nvme.sgl(nvme.SGL_TRANSPORT, 0))
            queue.wait(queue.submit_raw(sqe))
    assert host.admin.keep_alive().status == nvme.OK


@pytest.mark.parametrize("fctype", [0x05, 0x06])
def test_authentication_that_nobody_asked_for(tree: Tree, fctype: int) -> None:
    queue = tree.started().admin
    done = queue.wait(queue.submit(nvme.sqe(nvme.FABRICS, nsid=fctype), expect=4096))
    assert done.status != nvme.OK
    assert not any(done.data)


# Row 19: order and number


def test_command_id_in_flight_twice(tree: Tree) -> None:
    """Command ID Conflict is optional (Base, Status Code 03h): it, or a normal answer, or the end of the connection."""
    admin = tree.started().admin
    cid = admin.aer()
    admin.conn.send(admin.conn.capsule(nvme.sqe(nvme.KEEP_ALIVE, cid=cid)))
    pdu = admin.conn.recv_pdu()
    if pdu.type == nvme.CAPSULE_RESP:
        assert nvme.Cqe.parse(pdu.header[8:24]).status in (nvme.CID_CONFLICT, nvme.OK)
    else:
        assert pdu.type == nvme.C2H_TERM


def test_two_writes_under_one_command_id(tree: Tree) -> None:
    """The second comes while the first waits for its data: whatever happens, no block gets the wrong data."""
    io = tree.started().io()
    assert io.write(0, 32, bytes(16384), in_capsule=False).status == nvme.OK
    cid, ttag, _, length = bad.waiting_write(io)
    again = nvme.sqe(nvme.WRITE, cid=cid, nsid=1, cdw=lba_cdw(16, 8), dptr=nvme.sgl(nvme.SGL_TRANSPORT, 4096))
    io.conn.send(io.conn.capsule(again))
    with contextlib.suppress(PeerClosed):
        io.conn.send(io.conn.h2c_data(cid, ttag, 0, b"\x11" * length))
        for _ in range(3):
            io.conn.is_silent(0.05)
    io.close()
    check = tree.started().io()
    assert check.read(0, 8, 4096).data in (bytes(4096), b"\x11" * 4096)
    assert check.read(8, 24, 12288).data == bytes(12288)


@pytest.mark.parametrize("opc", [nvme.READ, nvme.WRITE])
def test_more_commands_than_the_queue_has_entries(tree: Tree, opc: int) -> None:
    """Back pressure or the end of the connection, but no memory for them."""
    io = tree.started().io(sqsize=3)
    count = 400
    capsules = b"".join(
        io.conn.capsule(nvme.sqe(opc, cid=cid, nsid=1, cdw=lba_cdw(0, 8), dptr=nvme.sgl(nvme.SGL_TRANSPORT, 4096)))
        for cid in range(count)
    )
    io.conn.sock.settimeout(1.0)
    try:
        io.conn.send(capsules)
        for cid in range(count):
            io.expect_response(cid, 4096)
        if opc == nvme.READ:
            for cid in range(count):
                assert io.wait(cid).status == nvme.OK
    except (PeerClosed, AssertionError, TimeoutError):
        pass
    io.close()


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("stage", ["raw", "ic", "io"])
def test_random_bytes(tree: Tree, stage: str, seed: int) -> None:
    rng = random.Random(seed)
    options = HostOptions(hdgst=bool(seed & 1), ddgst=bool(seed & 2))
    junk = rng.randbytes(rng.choice((1, 7, 8, 24, 100, 5000)))
    if stage == "raw":
        with RawConn(tree.address) as conn:
            send_quietly(conn, junk)
        return
    with Host(tree.address, tree.nqn, options) as host:
        queue = host.start().io() if stage == "io" else host.admin
        send_quietly(queue.conn, junk)


@pytest.mark.parametrize("seed", range(40))
def test_one_byte_changed(tree: Tree, seed: int) -> None:
    """A good sequence with one byte changed: whatever it means now, the target answers or ends the connection."""
    rng = random.Random(seed)
    queue = tree.host(timeout=2.0).admin
    data = bytearray(queue.conn.capsule(nvme.connect_sqe(cid=1), nvme.connect_data(tree.nqn)))
    data[rng.choice((rng.randrange(8), rng.randrange(8, 72), rng.randrange(72, 1096)))] ^= 1 << rng.randrange(8)
    send_quietly(queue.conn, bytes(data))
    queue.conn.is_silent(0.02)


def send_quietly(conn: RawConn, data: bytes) -> None:
    try:
        conn.send(data)
    except PeerClosed:
        return
    conn.is_silent(0.02)


def _sent(conn: RawConn, data: bytes) -> RawConn:
    conn.send(data)
    return conn


def _half_connect(tree: Tree) -> RawConn:
    conn = tree.host().admin.conn
    return _sent(conn, conn.capsule(nvme.connect_sqe(cid=1), nvme.connect_data(tree.nqn))[:500])


def _waiting(tree: Tree) -> RawConn:
    io = tree.started().io()
    bad.waiting_write(io)
    return io.conn


def _half_data(tree: Tree) -> RawConn:
    io = tree.started().io()
    cid, ttag, _, _ = bad.waiting_write(io)
    return _sent(io.conn, io.conn.h2c_data(cid, ttag, 0, bytes(4096))[:1000])


CUTS: dict[str, Callable[[Tree], RawConn]] = {
    "nothing": lambda tree: RawConn(tree.address),
    "half-an-icreq": lambda tree: _sent(RawConn(tree.address), nvme.icreq()[:60]),
    "after-ic": lambda tree: tree.host().admin.conn,
    "half-a-connect": _half_connect,
    "connected": lambda tree: tree.host().connect().admin.conn,
    "half-a-capsule": lambda tree: _sent(tree.started().io().conn, bytes.fromhex("0400480048000000") + bytes(30)),
    "waiting-for-data": _waiting,
    "half-of-the-data": _half_data,
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("cut", list(CUTS.values()), ids=list(CUTS))
def test_connection_cut_off(tree: Tree, cut: Callable[[Tree], RawConn], how: str) -> None:
    """Rows 1 and 17: the end comes at each moment, with FIN and with RST."""
    for _ in range(5):
        conn = cut(tree)
        conn.reset() if how == "reset" else conn.close()


def test_no_memory_grows_with_the_number_of_bad_peers(victim: Tree) -> None:
    """The same wrong inputs again and again: memory after many rounds is what it was after a few."""
    quick = [one for one in bad.EVERY if one.stage != "io"]
    for _ in range(4):
        for one in quick:
            meet(victim, one)
    idle(victim)
    before = victim.daemon.rss_kib()
    for _ in range(12):
        for one in quick:
            meet(victim, one)
    idle(victim)
    assert victim.daemon.rss_kib() <= before + RSS_ROUND_MARGIN_KIB


def test_nothing_is_left(victim: Tree) -> None:
    """Last in this module: no descriptor, no task, no controller, no memory is left of all the above."""
    victim.close_hosts()
    idle(victim)
    daemon = victim.daemon
    eventually(lambda: daemon.fd_count() <= (BASELINE["fds"] or 0), "descriptors are back")
    if BASELINE["tasks"] is not None:
        eventually(lambda: (daemon.task_count() or 0) <= (BASELINE["tasks"] or 0), "tasks are back")
    assert daemon.rss_kib() <= (BASELINE["rss"] or 0) + RSS_MARGIN_KIB
    assert "Traceback" not in daemon.log.read_text(errors="replace"), daemon.log_text()
