"""Fabrics Connect and Disconnect: each status on purpose, with the field that it names (Base 6.3, 6.4)."""

from __future__ import annotations

import itertools

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.conn import PeerClosed
from tests.support.daemon import Daemon, Ns, Tree, eventually, free_port
from tests.support.initiator import Completion, Host, Queue

SQE, DATA = 0, 1  # IATTR


def refused(done: Completion, status: int = nvme.CONNECT_PARAM, ipo: tuple[int, int] | None = None) -> None:
    assert done.status == status, f"status {done.status:#x}"
    assert ipo is None or done.ipo == ipo, f"IATTR, IPO {done.ipo}"


def test_admin_connect(tree: Tree) -> None:
    done = tree.host().admin.connect(tree.nqn)
    assert done.status == nvme.OK
    assert 1 <= done.dw0 & 0xFFFF <= 0xFFEF
    assert done.dw0 >> 16 == 0, "AUTHREQ without authentication configured"


def test_sqhd_counts_from_connect(tree: Tree) -> None:
    """SQHD is the head after this command; Connect itself is entry 0 (Base 3.3.2.1.? SQ flow control)."""
    queue = tree.host().admin
    heads = [queue.connect(tree.nqn).sqhd]
    for _ in range(40):
        heads.append(queue.wait(queue.submit(nvme.property_get_sqe(*nvme.CSTS))).sqhd)
    assert [(b - a) % 32 for a, b in itertools.pairwise(heads)] == [1] * 40


def test_sqhd_of_an_io_queue_counts_from_its_connect(host: Host) -> None:
    queue = host.open()
    heads = [queue.connect(host.subnqn, cntlid=host.cntlid, qid=1, sqsize=3).sqhd]
    heads += [queue.read(0, 1, 512).sqhd for _ in range(10)]
    assert [(b - a) % 4 for a, b in itertools.pairwise(heads)] == [1] * 10


def test_two_hosts_get_two_controllers(tree: Tree) -> None:
    assert tree.host().connect().cntlid != tree.host().connect().cntlid


def test_record_format(tree: Tree) -> None:
    refused(tree.host().admin.connect(tree.nqn, recfmt=1), nvme.CONNECT_FORMAT)


@pytest.mark.parametrize(
    "subnqn",
    [
        b"nqn.2026-01.org.example:nobody",
        b"",
        b"nqn.2026-01.org.example:" + b"a" * 232,  # 256 bytes, no terminator
        b"nqn.2026-01.org.example:" + b"a" * 210,  # 234 bytes, more than the 223 of an NQN
        b"nqn.2026-01.org.example:\xff\xfe",
        b"not an nqn",
    ],
)
def test_subsystem_nqn(tree: Tree, subnqn: bytes) -> None:
    refused(tree.host().admin.connect(subnqn), ipo=(DATA, 256))


@pytest.mark.parametrize(
    "hostnqn", [b"nqn.2026-01.org.example:" + b"h" * 232, b"nqn.2026-01.org.example:" + b"h" * 210, b"nqn.\xff\xfe\xfd"]
)
def test_host_nqn(tree: Tree, hostnqn: bytes) -> None:
    refused(tree.host().admin.connect(tree.nqn, hostnqn=hostnqn), ipo=(DATA, 512))


def test_host_nqn_of_zeroes_is_taken_where_any_host_is(tree: Tree) -> None:
    """What SPDK's host sends unless told otherwise (captured)."""
    assert tree.host().admin.connect(tree.nqn, hostnqn=b"").status == nvme.OK


@pytest.mark.parametrize("cntlid", [0x0000, 0x0001, 0x7777, 0xFFF0])
def test_admin_cntlid_in_the_dynamic_model(tree: Tree, cntlid: int) -> None:
    refused(tree.host().admin.connect(tree.nqn, cntlid=cntlid), ipo=(DATA, 16))


@pytest.mark.parametrize("sqsize", [0, 0xFFFF])
def test_admin_sqsize(tree: Tree, sqsize: int) -> None:
    refused(tree.host().admin.connect(tree.nqn, sqsize=sqsize), ipo=(SQE, 44))


def test_host_not_allowed(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), allow_any_host=False)
    refused(tree.host().admin.connect(tree.nqn), nvme.CONNECT_HOST)


def test_no_controller_id_left(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), min_cntlid=5, max_cntlid=6)
    assert {tree.host().connect().cntlid, tree.host().connect().cntlid} == {5, 6}
    refused(tree.host().admin.connect(tree.nqn), nvme.CONNECT_BUSY)


def test_controller_id_comes_back(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), min_cntlid=9, max_cntlid=9)
    for _ in range(3):
        host = tree.host()
        for _ in range(200):  # the target may need a moment to see that the last host has gone
            done = host.try_connect(host.admin)
            if done.status == nvme.OK:
                break
            refused(done, nvme.CONNECT_BUSY)
            host.close()
            host = tree.host()
        assert done.dw0 & 0xFFFF == 9
        host.close()


def test_prp_in_a_fabrics_command(tree: Tree) -> None:
    """PSDT shall be 01b or 10b in Fabrics commands (Base, Fabrics command SQE layout)."""
    queue = tree.host().admin
    data = nvme.connect_data(tree.nqn)
    done = queue.wait(queue.submit_raw(nvme.connect_sqe(cid=1, psdt=0), capsule_data=data))
    refused(done, nvme.INVALID_FIELD)


@pytest.mark.parametrize("size", [512, 2048, 8192])
def test_data_length(tree: Tree, size: int) -> None:
    queue = tree.host().admin
    data = nvme.connect_data(tree.nqn).ljust(size, b"\0")[:size]
    sqe = nvme.connect_sqe(cid=1, dptr=nvme.sgl(nvme.SGL_IN_CAPSULE, size))
    refused(queue.wait(queue.submit_raw(sqe, capsule_data=data)), nvme.DATA_SGL_LENGTH)


def test_no_data_at_all(tree: Tree) -> None:
    queue = tree.host().admin
    done = queue.wait(queue.submit_raw(nvme.connect_sqe(cid=1)))
    assert done.status in (nvme.DATA_SGL_LENGTH, nvme.SGL_OFFSET)


@pytest.mark.parametrize(
    "sqe",
    [
        nvme.property_get_sqe(*nvme.CAP),
        nvme.property_set_sqe(*nvme.CC, nvme.CC_ENABLE),
        nvme.sqe(nvme.IDENTIFY, cdw=(1,)),
        nvme.sqe(nvme.KEEP_ALIVE),
        nvme.sqe(nvme.READ, nsid=1),
        nvme.disconnect_sqe(),
    ],
    ids=["property-get", "property-set", "identify", "keep-alive", "read", "disconnect"],
)
def test_command_before_connect(tree: Tree, sqe: bytes) -> None:
    """Anything but Connect on a queue without one is a Command Sequence Error (Base 3.3.2, SPDK; nvmet says 01h)."""
    queue = tree.host().admin
    refused(queue.wait(queue.submit(sqe, expect=4096)), nvme.COMMAND_SEQUENCE)
    assert queue.connect(tree.nqn).status == nvme.OK, "the connection must still be good for a Connect"


def test_second_connect(host: Host) -> None:
    refused(host.admin.connect(host.subnqn), nvme.COMMAND_SEQUENCE)
    assert host.admin.property_get(nvme.CSTS) & 1


def test_second_connect_on_an_io_queue(host: Host, io: Queue) -> None:
    refused(io.connect(host.subnqn, cntlid=host.cntlid, qid=2, sqsize=31), nvme.COMMAND_SEQUENCE)
    io.qid = 1


def io_connect(host: Host, **changes: int | str | bytes) -> Completion:
    queue = host.open()
    return queue.connect(host.subnqn, **({"cntlid": host.cntlid, "qid": 1, "sqsize": 31} | changes))  # type: ignore[arg-type]


def test_io_connect(host: Host) -> None:
    done = io_connect(host)
    assert (done.status, done.dw0) == (nvme.OK, host.cntlid)


@pytest.mark.parametrize(
    ("changes", "ipo"),
    [
        ({"cntlid": 0x7777}, (DATA, 16)),
        ({"cntlid": 0xFFFF}, (DATA, 16)),
        ({"hostnqn": "nqn.2026-01.org.example:other"}, (DATA, 512)),
        ({"hostid": bytes(15) + b"\1"}, (DATA, 0)),
        ({"qid": 0xFFFF}, (SQE, 42)),
        ({"sqsize": 0}, (SQE, 44)),
        ({"sqsize": 0xFFFF}, (SQE, 44)),
    ],
    ids=["stale-cntlid", "dynamic-cntlid", "hostnqn", "hostid", "qid", "sqsize-0", "sqsize-max"],
)
def test_io_connect_parameters(host: Host, changes: dict[str, int | str | bytes], ipo: tuple[int, int]) -> None:
    refused(io_connect(host, **changes), ipo=ipo)
    assert io_connect(host).status == nvme.OK


def test_io_connect_to_another_subsystem(host: Host, make_tree: MakeTree) -> None:
    other = make_tree(Ns())
    done = host.open().connect(other.nqn, cntlid=host.cntlid, qid=1)
    refused(done)
    assert done.ipo in ((DATA, 16), (DATA, 256))


def test_io_connect_with_the_largest_queue(host: Host) -> None:
    mqes = host.admin.property_get(nvme.CAP) & 0xFFFF
    assert io_connect(host, sqsize=mqes).status == nvme.OK
    if mqes < 0xFFFF:
        refused(io_connect(host, qid=2, sqsize=mqes + 1), ipo=(SQE, 44))


def test_duplicate_queue(host: Host, io: Queue) -> None:
    refused(io_connect(host), nvme.COMMAND_SEQUENCE)
    assert io.read(0, 1, 512).status == nvme.OK, "the first queue lives on"


def test_queue_can_be_connected_again_after_its_connection_ended(host: Host) -> None:
    for _ in range(5):
        queue = host.open()

        def connected(queue: Queue = queue) -> bool:
            done = queue.connect(host.subnqn, cntlid=host.cntlid, qid=1)
            assert done.status in (nvme.OK, nvme.COMMAND_SEQUENCE)
            return done.status == nvme.OK

        eventually(connected, "the target has seen that the connection ended")
        assert queue.read(0, 1, 512).status == nvme.OK
        queue.close()
    assert host.admin.keep_alive().status == nvme.OK, "losing an I/O queue does not end the association"


def test_io_connect_before_enable(tree: Tree) -> None:
    host = tree.host().connect()
    assert io_connect(host).status in (nvme.COMMAND_SEQUENCE, nvme.CONNECT_PARAM)


def test_io_connect_to_the_controller_of_a_host_that_left(tree: Tree) -> None:
    gone = tree.started()
    gone.close()
    host = tree.host()
    for _ in range(200):
        done = host.open().connect(tree.nqn, cntlid=gone.cntlid, qid=1)
        if done.status != nvme.OK:
            break
    refused(done, ipo=(DATA, 16))


def test_without_sq_flow_control(host: Host) -> None:
    """CATTR bit 2: SQHD is FFFFh in each response, which the initiator checks; and SUCCESS may replace it."""
    io = host.io(cattr=4)
    assert io.write(0, 8, bytes(4096)).status == nvme.OK
    assert io.read(0, 8, 4096).status == nvme.OK
    assert io.read(1 << 40, 1, 512).status == nvme.LBA_RANGE


def test_admin_queue_without_sq_flow_control(tree: Tree) -> None:
    host = tree.host().connect(cattr=4).enable()
    assert len(host.admin.identify(1).data) == 4096


def test_disconnect(host: Host, io: Queue) -> None:
    if not int.from_bytes(host.admin.identify(1).data[1804:1806], "little") & 1:
        pytest.skip("OFCS: Disconnect is not supported")
    other = host.io(2)
    done = io.wait(io.submit(nvme.disconnect_sqe()))
    assert done.status == nvme.OK
    with pytest.raises(PeerClosed):
        io.conn.recv_exact(1)
    assert other.read(0, 1, 512).status == nvme.OK
    assert io_connect(host).status == nvme.OK


def test_disconnect_record_format(host: Host, io: Queue) -> None:
    if not int.from_bytes(host.admin.identify(1).data[1804:1806], "little") & 1:
        pytest.skip("OFCS: Disconnect is not supported")
    refused(io.wait(io.submit(nvme.disconnect_sqe(recfmt=1))), nvme.CONNECT_FORMAT)
    assert io.read(0, 1, 512).status == nvme.OK


def test_disconnect_on_the_admin_queue(host: Host) -> None:
    """Disconnect is for I/O queues; Invalid Queue Type is 85h (Base, Disconnect command)."""
    done = host.admin.wait(host.admin.submit(nvme.disconnect_sqe()))
    assert done.status in (0x185, nvme.INVALID_OPCODE)
    assert host.admin.property_get(nvme.CSTS) & 1


def test_admin_connection_lost_ends_the_io_queues(host: Host, io: Queue) -> None:
    host.admin.close()
    with pytest.raises(PeerClosed):
        io.conn.recv_exact(1)


def test_static_controller_model(daemon: Daemon, make_tree: MakeTree) -> None:
    """FFFEh takes any identifier, a number that very one, FFFFh is not for this model (Fabrics Connect, FCATT)."""
    tree = make_tree(Ns(), listen=False, min_cntlid=10, max_cntlid=20)
    daemon.rpc("p2p_subsystem_set_controller_model", nqn=tree.nqn, controller_model="static")
    tree.listen()
    assert tree.host().admin.connect(tree.nqn, cntlid=0xFFFE).status == nvme.OK
    named = tree.host()
    done = named.try_connect(named.admin, cntlid=15)
    assert (done.status, done.dw0 & 0xFFFF) == (nvme.OK, 15)
    refused(tree.host().admin.connect(tree.nqn, cntlid=15), nvme.CONNECT_BUSY)
    refused(tree.host().admin.connect(tree.nqn, cntlid=21), ipo=(DATA, 16))
    refused(tree.host().admin.connect(tree.nqn, cntlid=0xFFFF), ipo=(DATA, 16))
    named.enable()
    assert named.admin.identify(1).data[1802] & 1 == 1, "FCATT: static"


def test_io_connect_through_another_port(tree: Tree) -> None:
    """All queues of an association use one port of the subsystem (Base 3.3.2.2)."""
    second = ("127.0.0.1", free_port())
    tree.listen(second)
    host = tree.started()
    host.address = second
    refused(io_connect(host))
