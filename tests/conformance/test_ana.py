"""Asymmetric Namespace Access (Base 8.1.1, 5.1.12.1.13): log page, states, events, statuses of I/O."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.conn import Address
from tests.support.daemon import Ns, Tree, free_port
from tests.support.initiator import Queue, lba_cdw

OPTIMIZED, NON_OPTIMIZED, INACCESSIBLE = 1, 2, 3
NAMES = {OPTIMIZED: "optimized", NON_OPTIMIZED: "non_optimized", INACCESSIBLE: "inaccessible"}


@dataclass(frozen=True)
class Group:
    change_count: int
    state: int
    nsids: tuple[int, ...]


def ana_log(admin: Queue, *, groups_only: bool = False) -> tuple[int, dict[int, Group]]:
    done = admin.get_log(0x0C, 4096, lsp=1 if groups_only else 0)
    assert done.status == nvme.OK
    count, groups = struct.unpack_from("<QH", done.data)
    at, found = 16, {}
    for _ in range(groups):
        number, nsids, changes, state = struct.unpack_from("<IIQB", done.data, at)
        found[number] = Group(changes, state & 0xF, struct.unpack_from(f"<{nsids}I", done.data, at + 32))
        at += 32 + 4 * nsids
    assert not any(done.data[at:])
    return count, found


def set_state(tree: Tree, state: int, group: int | None = None, address: Address | None = None) -> None:
    params = {} if group is None else {"anagrpid": group}
    tree.rpc(
        "nvmf_subsystem_listener_set_ana_state",
        listen_address=tree.listen_address(address or tree.address),
        ana_state=NAMES[state],
        **params,
    )


@pytest.fixture
def tree(make_tree: MakeTree) -> Tree:
    """NSID 1 in group 1, NSIDs 2 and 3 in group 2."""
    second = Ns(params={"anagrpid": 2})
    return make_tree(Ns(params={"anagrpid": 1}), second, second, ana_reporting=True)


def test_log(tree: Tree) -> None:
    admin = tree.started().admin
    _, groups = ana_log(admin)
    assert (groups[1].state, groups[1].nsids) == (OPTIMIZED, (1,))
    assert (groups[2].state, groups[2].nsids) == (OPTIMIZED, (2, 3))
    _, bare = ana_log(admin, groups_only=True)
    assert set(bare) == set(groups)
    assert all(group.nsids == () for group in bare.values()), "RGO: groups only"


def test_groups_of_identify(tree: Tree) -> None:
    admin = tree.started().admin
    for nsid, group in ((1, 1), (2, 2), (3, 2)):
        assert int.from_bytes(admin.identify(0, nsid=nsid).data[92:96], "little") == group
        assert int.from_bytes(admin.identify(8, nsid=nsid).data[4:8], "little") == group


def test_log_needs_ana_reporting(make_tree: MakeTree) -> None:
    assert make_tree(Ns()).started().admin.get_log(0x0C, 64).status == nvme.INVALID_LOG_PAGE


@pytest.mark.parametrize("state", [NON_OPTIMIZED, INACCESSIBLE])
def test_state_of_one_group(tree: Tree, state: int) -> None:
    admin = tree.started().admin
    before, old = ana_log(admin)
    set_state(tree, state, 2)
    after, new = ana_log(admin)
    assert after > before
    assert new[2].change_count > old[2].change_count
    assert (new[1].state, new[2].state) == (OPTIMIZED, state)


def test_state_of_all_groups(tree: Tree) -> None:
    admin = tree.started().admin
    set_state(tree, NON_OPTIMIZED)
    assert {group.state for group in ana_log(admin)[1].values() if group.nsids} == {NON_OPTIMIZED}


def test_io_in_each_state(tree: Tree) -> None:
    """Inaccessible: status 3/02h without Do Not Retry, so that the host takes another path (Base 8.1.1.5)."""
    io = tree.started().io()
    set_state(tree, NON_OPTIMIZED, 2)
    assert io.write(0, 1, b"\1" * 512, nsid=2).status == nvme.OK
    set_state(tree, INACCESSIBLE, 2)
    for done in (
        io.read(0, 1, 512, nsid=2),
        io.write(0, 1, bytes(512), nsid=2),
        io.write(0, 16, bytes(8192), nsid=2, in_capsule=False),
        io.command(nvme.WRITE_ZEROES, nsid=2, cdw=lba_cdw(0, 1)),
        io.command(nvme.COMPARE, nsid=2, cdw=lba_cdw(0, 1), out=bytes(512)),
    ):
        assert done.status == nvme.ANA_INACCESSIBLE
        assert not done.dnr
    assert io.read(0, 1, 512, nsid=1).status == nvme.OK, "another group"
    set_state(tree, OPTIMIZED, 2)
    assert io.read(0, 1, 512, nsid=2).data == b"\1" * 512


def test_state_belongs_to_the_listener(tree: Tree) -> None:
    second = ("127.0.0.1", free_port())
    tree.listen(second)
    here, there = tree.started().io(), tree.started(address=second).io()
    set_state(tree, INACCESSIBLE)
    assert here.read(0, 1, 512).status == nvme.ANA_INACCESSIBLE
    assert there.read(0, 1, 512).status == nvme.OK
    set_state(tree, OPTIMIZED)
    set_state(tree, INACCESSIBLE, address=second)
    assert here.read(0, 1, 512).status == nvme.OK
    assert there.read(0, 1, 512).status == nvme.ANA_INACCESSIBLE


def test_listener_added_with_a_state(tree: Tree) -> None:
    second = ("127.0.0.1", free_port())
    tree.listen(second, ana_state="inaccessible")
    assert tree.started(address=second).io().read(0, 1, 512).status == nvme.ANA_INACCESSIBLE


def test_namespace_changes_group(tree: Tree) -> None:
    admin = tree.started().admin
    admin.set_features(0x0B, 1 << 8 | 1 << 11)
    set_state(tree, INACCESSIBLE, 2)
    tree.rpc("nvmf_subsystem_set_ns_ana_group", nsid=1, anagrpid=2)
    _, groups = ana_log(admin)
    assert groups[2].nsids == (1, 2, 3)
    assert int.from_bytes(admin.identify(0, nsid=1).data[92:96], "little") == 2


def test_admin_commands_work_in_every_state(tree: Tree) -> None:
    set_state(tree, INACCESSIBLE)
    admin = tree.started().admin
    assert admin.identify(1).status == nvme.OK
    assert admin.identify(0, nsid=1).status in (nvme.OK, nvme.ANA_INACCESSIBLE)
    assert {group.state for group in ana_log(admin)[1].values()} == {INACCESSIBLE}


def test_no_io_is_lost_while_the_state_changes(tree: Tree) -> None:
    """Every write that was acknowledged is there; every other was refused with a path status."""
    io = tree.started().io()
    written: dict[int, bytes] = {}
    for number in range(60):
        set_state(tree, INACCESSIBLE if number % 3 == 1 else OPTIMIZED, 2)
        cids = {
            lba: io.submit(nvme.sqe(nvme.WRITE, nsid=2, cdw=lba_cdw(lba, 1)), out=bytes([number + 1]) * 512)
            for lba in range(number * 4, number * 4 + 4)
        }
        for lba, cid in cids.items():
            status = io.wait(cid).status
            assert status in (nvme.OK, nvme.ANA_INACCESSIBLE)
            if status == nvme.OK:
                written[lba] = bytes([number + 1]) * 512
    set_state(tree, OPTIMIZED, 2)
    assert len(written) == 40 * 4
    assert all(io.read(lba, 1, 512, nsid=2).data == data for lba, data in written.items())
