"""Abort (Base 5.1.1): bit 0 of dword 0 says whether the command was NOT aborted."""

from __future__ import annotations

import pytest

from tests.support import nvme
from tests.support.daemon import Tree
from tests.support.initiator import Completion, Host, Queue


def abort(admin: Queue, sqid: int, cid: int) -> Completion:
    return admin.command(nvme.ABORT, cdw=(sqid | cid << 16,))


def test_event_request(admin: Queue) -> None:
    cid = admin.aer()
    done = abort(admin, 0, cid)
    assert (done.status, done.dw0 & 1) == (nvme.OK, 0)
    assert admin.wait(cid).status == nvme.ABORT_REQUESTED


def test_aborted_request_frees_its_place(admin: Queue) -> None:
    allowed = admin.identify(1).data[259] + 1
    cids = [admin.aer() for _ in range(allowed)]
    abort(admin, 0, cids[0])
    assert admin.wait(cids[0]).status == nvme.ABORT_REQUESTED
    admin.aer()
    assert admin.wait(admin.aer()).status == nvme.AER_LIMIT


@pytest.mark.parametrize(("sqid", "cid"), [(0, 0x7777), (1, 0x7777), (0, 0xFFFF), (99, 1), (0xFFFF, 0xFFFF)])
def test_unknown_command(admin: Queue, sqid: int, cid: int) -> None:
    done = abort(admin, sqid, cid)
    assert done.status in (nvme.OK, nvme.INVALID_FIELD)
    assert done.status != nvme.OK or done.dw0 & 1 == 1


def test_finished_command(host: Host, io: Queue) -> None:
    done = io.write(0, 1, bytes(512))
    answer = abort(host.admin, 1, done.cid)
    assert (answer.status, answer.dw0 & 1) == (nvme.OK, 1)


def test_write_that_waits_for_its_data(host: Host, io: Queue) -> None:
    """Aborted between R2T and H2CData: the command completes aborted, its data is swallowed, the queue lives on."""
    data = b"\xee" * 8192
    cid = io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=(0, 0, 15)), out=data, in_capsule=False)
    r2t = io.recv_r2t()
    answer = abort(host.admin, 1, cid)
    assert (answer.status, answer.dw0 & 1) == (nvme.OK, 0), "nothing has touched the medium: it can be ended"
    assert io.wait(cid).status == nvme.ABORT_REQUESTED
    io.send_h2c(cid, r2t[1], r2t[2], data[: r2t[3]])
    assert io.read(0, 16, 8192).data == bytes(8192)


def test_abort_of_itself(admin: Queue) -> None:
    cid = admin.next_cid()
    done = admin.wait(admin.submit(nvme.sqe(nvme.ABORT, cdw=(cid << 16,)), cid=cid))
    assert (done.status, done.dw0 & 1) == (nvme.OK, 1)


def test_other_hosts_commands_are_out_of_reach(tree: Tree) -> None:
    one, other = tree.started(), tree.started()
    cid = one.admin.aer()
    assert abort(other.admin, 0, cid).dw0 & 1 == 1
    assert one.admin.conn.is_silent(0.1)


def test_many_at_once(admin: Queue) -> None:
    """ACL + 1 may be in flight; more may be refused with Abort Command Limit Exceeded, never lost."""
    cids = [admin.submit(nvme.sqe(nvme.ABORT, cdw=(0x7FFF << 16,))) for _ in range(24)]
    assert {admin.wait(cid).status for cid in cids} <= {nvme.OK, nvme.ABORT_LIMIT}
