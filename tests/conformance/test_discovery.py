"""Discovery (Base 3.1.3.3, 5.1.12.3.1): on its own port and on every I/O listener."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.conn import Address
from tests.support.daemon import Daemon, Ns, Tree, free_port
from tests.support.initiator import Host, HostOptions, Queue

DISC_CHANGED = (2, 0xF0, 0x70)
REFERRAL, NVM, CURRENT = 1, 2, 3
DISC_BIT = 1 << 31


@dataclass(frozen=True)
class Entry:
    trtype: int
    adrfam: int
    subtype: int
    treq: int
    portid: int
    cntlid: int
    asqsz: int
    eflags: int
    trsvcid: str
    subnqn: str
    traddr: str
    tsas: bytes


def text(raw: bytes) -> str:
    return raw.rstrip(b" \0").decode("ascii")


def entries(raw: bytes) -> list[Entry]:
    found = []
    for at in range(1024, len(raw), 1024):
        one = raw[at : at + 1024]
        numbers = struct.unpack_from("<BBBBHHHH", one)
        strings = (text(one[32:64]), text(one[256:512]), text(one[512:768]))
        found.append(Entry(*(*numbers, *strings, one[768:1024])))
    return found


class Discovery:
    """A connected discovery controller."""

    def __init__(self, address: Address, **options: object) -> None:
        self.host = Host(address, nvme.DISCOVERY_NQN, HostOptions(**options)).start()  # type: ignore[arg-type]
        self.admin: Queue = self.host.admin

    def page(self) -> tuple[int, list[Entry]]:
        """(GENCTR, entries), read as hosts do: header, then all, then the header again."""
        for _ in range(20):
            head = self.admin.get_log(0x70, 1024)
            assert head.status == nvme.OK
            genctr, numrec, recfmt = struct.unpack_from("<QQH", head.data)
            assert recfmt == 0
            whole = self.admin.get_log(0x70, 1024 * (1 + numrec))
            assert whole.status == nvme.OK
            if self.admin.get_log(0x70, 1024).data[:8] == head.data[:8] == whole.data[:8]:
                return genctr, entries(whole.data)
        raise AssertionError("GENCTR changes all the time")

    def of(self, tree: Tree) -> list[Entry]:
        return [entry for entry in self.page()[1] if entry.subnqn == tree.nqn]


@pytest.fixture
def discovery(tree: Tree) -> Iterator[Discovery]:
    """By way of the I/O port."""
    made = Discovery(tree.address)
    yield made
    made.host.close()


@pytest.fixture
def referral(daemon: Daemon) -> Iterator[dict[str, str]]:
    """The address of a referral, removed at the end if it is still there."""
    address = Tree.listen_address(("127.0.0.1", free_port()))
    yield address
    known = [entry["address"]["trsvcid"] for entry in daemon.rpc("nvmf_discovery_get_referrals")]
    if address["trsvcid"] in known:
        daemon.rpc("nvmf_discovery_remove_referral", address=address)


def test_entry(tree: Tree, discovery: Discovery) -> None:
    (entry,) = discovery.of(tree)
    assert (entry.trtype, entry.adrfam, entry.subtype) == (3, 1, NVM)
    assert (entry.traddr, entry.trsvcid) == (tree.address[0], str(tree.address[1]))
    assert entry.cntlid == 0xFFFF, "dynamic controller model"
    assert entry.asqsz >= 32
    assert entry.treq & 3 in (0, 2), "no secure channel is required"
    assert entry.tsas[0] == 0, "SECTYPE: none"


def test_controller(discovery: Discovery) -> None:
    data = discovery.admin.identify(1).data
    assert data[111] == 2, "CNTRLTYPE: discovery controller"
    assert data[768:1024].rstrip(b"\0").decode() == nvme.DISCOVERY_NQN
    assert int.from_bytes(data[92:96], "little") & DISC_BIT, "OAES: discovery log page change notices"
    assert int.from_bytes(data[320:322], "little") > 0, "KAS"


def test_discovery_port(make_tree: MakeTree, daemon: Daemon) -> None:
    """A listener of the discovery subsystem itself (8009 by default, another port here)."""
    tree = make_tree(Ns())
    address = ("127.0.0.1", free_port())
    listen = {"nqn": nvme.DISCOVERY_NQN, "listen_address": Tree.listen_address(address)}
    daemon.rpc("nvmf_subsystem_add_listener", **listen)
    try:
        found = Discovery(address)
        assert [entry.trsvcid for entry in found.of(tree)] == [str(tree.address[1])]
        current = [entry for entry in found.page()[1] if entry.subtype == CURRENT]
        assert str(address[1]) in [entry.trsvcid for entry in current]
        found.host.close()
    finally:
        daemon.rpc("nvmf_subsystem_remove_listener", **listen)


def test_every_listener_is_an_entry(tree: Tree, discovery: Discovery) -> None:
    second = ("127.0.0.1", free_port())
    tree.listen(second)
    found = discovery.of(tree)
    assert {entry.trsvcid for entry in found} == {str(tree.address[1]), str(second[1])}
    assert len({entry.portid for entry in found}) == 2, "each port has its own PORTID"


def test_generation_counts_changes(tree: Tree, discovery: Discovery, make_tree: MakeTree) -> None:
    before, _ = discovery.page()
    assert discovery.page()[0] == before, "reading changes nothing"
    other = make_tree(Ns())
    between, _ = discovery.page()
    assert between > before
    assert len(discovery.of(other)) == 1
    other.delete()
    assert discovery.page()[0] > between
    assert discovery.of(other) == []


def test_only_what_the_host_may_use(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), allow_any_host=False)
    door = make_tree(Ns())
    found = Discovery(door.address)
    assert found.of(tree) == []
    tree.rpc("nvmf_subsystem_add_host", host=nvme.HOST_NQN)
    assert len(found.of(tree)) == 1
    stranger = Discovery(door.address, hostnqn="nqn.2026-01.org.example:stranger")
    assert stranger.of(tree) == []
    for one in (found, stranger):
        one.host.close()


def test_every_offset_gives_the_same_bytes(discovery: Discovery) -> None:
    size = 1024 * (1 + len(discovery.page()[1]))
    whole = discovery.admin.get_log(0x70, size).data
    for at in range(0, size, 508):
        length = min(508, size - at)
        assert discovery.admin.get_log(0x70, length, offset=at).data == whole[at : at + length]


@pytest.mark.parametrize("offset", [1 << 31, (1 << 32) - 4, 1 << 32, 1 << 48, (1 << 64) - 4])
def test_offset_beyond_the_page(discovery: Discovery, offset: int) -> None:
    """An offset that leaves the buffer, before any authentication."""
    done = discovery.admin.get_log(0x70, 1024, offset=offset)
    assert done.status == nvme.INVALID_FIELD
    assert not done.data


@pytest.mark.parametrize("offset", [1, 2, 3, 1023])
def test_unaligned_offset(discovery: Discovery, offset: int) -> None:
    assert discovery.admin.get_log(0x70, 1024, offset=offset).status == nvme.INVALID_FIELD


def test_more_than_the_page_is_padded_with_zeroes(discovery: Discovery) -> None:
    size = 1024 * (1 + len(discovery.page()[1]))
    done = discovery.admin.get_log(0x70, 65536)
    assert done.status == nvme.OK
    assert len(done.data) in (size, 65536)
    assert not any(done.data[size:])


def test_huge_numd(discovery: Discovery) -> None:
    cdw = (0x70 | 0xFFFF << 16, 0xFFFF)
    assert discovery.admin.command(nvme.GET_LOG, cdw=cdw, expect=4096).status != nvme.OK
    assert discovery.admin.command(nvme.GET_LOG, cdw=cdw, expect=0xFFFFFFFC).status != nvme.OK
    assert discovery.admin.get_log(0x70, 1024).status == nvme.OK


@pytest.mark.parametrize("lid", [0x02, 0x04, 0x0C, 0xFF])
def test_io_pages_are_refused(discovery: Discovery, lid: int) -> None:
    assert discovery.admin.get_log(lid, 512).status == nvme.INVALID_LOG_PAGE


@pytest.mark.parametrize("opcode", [nvme.ABORT + 0x50, 0x00, 0x0D, 0x81])
def test_commands_a_discovery_controller_does_not_have(discovery: Discovery, opcode: int) -> None:
    assert discovery.admin.command(opcode).status == nvme.INVALID_OPCODE


def test_no_io_queues(discovery: Discovery) -> None:
    queue = discovery.host.open()
    done = queue.connect(nvme.DISCOVERY_NQN, cntlid=discovery.host.cntlid, qid=1)
    assert done.status in (nvme.CONNECT_PARAM, nvme.COMMAND_SEQUENCE)


def test_namespaces_do_not_exist(discovery: Discovery) -> None:
    assert discovery.admin.identify(0, nsid=1).status in (nvme.INVALID_FIELD, nvme.INVALID_NAMESPACE)


def test_referrals(daemon: Daemon, discovery: Discovery, referral: dict[str, str]) -> None:
    before, _ = discovery.page()
    daemon.rpc("nvmf_discovery_add_referral", address=referral)
    genctr, found = discovery.page()
    assert genctr > before
    (entry,) = [entry for entry in found if entry.trsvcid == referral["trsvcid"]]
    assert (entry.subtype, entry.trtype, entry.adrfam) == (REFERRAL, 3, 1)
    assert (entry.subnqn, entry.traddr) == (nvme.DISCOVERY_NQN, referral["traddr"])
    daemon.rpc("nvmf_discovery_remove_referral", address=referral)
    assert all(entry.trsvcid != referral["trsvcid"] for entry in discovery.page()[1])


def change_event(admin: Queue, cid: int) -> tuple[int, int, int]:
    done = admin.wait(cid)
    assert done.status == nvme.OK
    return done.dw0 & 7, done.dw0 >> 8 & 0xFF, done.dw0 >> 16 & 0xFF


def test_persistent_controller_hears_of_changes(tree: Tree, make_tree: MakeTree) -> None:
    found = Discovery(tree.address, kato=30_000)
    admin = found.admin
    assert admin.set_features(0x0B, DISC_BIT).status == nvme.OK
    cid = admin.aer()
    assert admin.keep_alive().status == nvme.OK
    other = make_tree(Ns())
    assert change_event(admin, cid) == DISC_CHANGED
    assert len(found.of(other)) == 1
    cid = admin.aer()
    other.delete()
    assert change_event(admin, cid) == DISC_CHANGED
    found.host.close()


def test_event_is_masked_until_the_page_is_read(tree: Tree, make_tree: MakeTree) -> None:
    found = Discovery(tree.address, kato=30_000)
    admin = found.admin
    admin.set_features(0x0B, DISC_BIT)
    cid = admin.aer()
    make_tree(Ns())
    assert change_event(admin, cid) == DISC_CHANGED
    cid = admin.aer()
    make_tree(Ns())
    assert admin.conn.is_silent(0.2)
    found.page()
    make_tree(Ns())
    assert change_event(admin, cid) == DISC_CHANGED
    found.host.close()


def test_a_change_that_the_host_cannot_see_is_no_event(tree: Tree, make_tree: MakeTree) -> None:
    found = Discovery(tree.address, kato=30_000)
    found.admin.set_features(0x0B, DISC_BIT)
    found.admin.aer()
    make_tree(Ns(), allow_any_host=False)
    assert found.admin.conn.is_silent(0.2)
    found.host.close()


def test_many_discoveries(tree: Tree) -> None:
    for _ in range(50):
        found = Discovery(tree.address)
        assert found.of(tree)
        found.host.close()


@pytest.mark.parametrize(("words", "both"), [("match_any", True), ("transport,address", True), ("svcid", False)])
def test_filter(daemon: Daemon, tree: Tree, discovery: Discovery, words: str, both: bool) -> None:
    """`discovery_filter` of nvmf_set_config: only ports that equal the one where the request came in."""
    second = ("127.0.0.1", free_port())
    tree.listen(second)
    try:
        daemon.rpc("nvmf_set_config", discovery_filter=words)
        ports = {entry.trsvcid for entry in discovery.of(tree)}
    finally:
        daemon.rpc("nvmf_set_config", discovery_filter="match_any")
    assert ports == {str(tree.address[1])} | ({str(second[1])} if both else set())


@pytest.mark.parametrize(("family", "every", "here"), [("IPv4", "0.0.0.0", "127.0.0.1"), ("IPv6", "::", "::1")])
def test_a_listener_on_all_addresses_is_told_by_the_one_that_the_host_used(
    tree: Tree, family: str, every: str, here: str
) -> None:
    port = free_port()
    try:
        socket.create_server((here, port), family=socket.AF_INET6 if family == "IPv6" else socket.AF_INET).close()
    except OSError:
        pytest.skip(f"this machine has no {here}")
    listener = Tree.listen_address((every, port)) | {"adrfam": family}
    tree.rpc("nvmf_subsystem_add_listener", listen_address=listener)
    discovery = Discovery((here, port))
    own = discovery.page()[1][0]
    assert (own.subtype, own.traddr, own.trsvcid) == (CURRENT, here, str(port))
    assert (here, str(port)) in [(entry.traddr, entry.trsvcid) for entry in discovery.of(tree)]
    assert every not in [entry.traddr for entry in discovery.page()[1]]
    with Host((here, port), tree.nqn).start() as host:  # and what it was told is true
        assert host.io().read(0, 1, 512).status == nvme.OK
    discovery.host.close()
    tree.rpc("nvmf_subsystem_remove_listener", listen_address=listener)
