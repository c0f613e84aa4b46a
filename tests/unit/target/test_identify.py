"""Identify: every CNS, and what it says of namespaces that are not there (NVMe base 5.1.13)."""

from __future__ import annotations

import uuid

import pytest

from nvmet_p2p.target.identify import CNS_TABLE, copy_limits
from nvmet_p2p.wire.identify import (
    ControllerList,
    IdentifyController,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    IoCommandSetVector,
    NamespaceList,
    NsIdDescriptorList,
)
from nvmet_p2p.wire.spec import NSID_ALL, ControllerType, NsIdType, Status
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.target.harness import (
    ALICE,
    BOB,
    HERE,
    NQN,
    World,
    config,
    facts,
    namespace,
    replace,
    subsystem,
)

EMPTY = bytes(4096)


def controller_data(world: World) -> IdentifyController:
    return IdentifyController.parse(world.started().identify(1).data)


def test_io_controller() -> None:
    data = controller_data(World())
    assert (data.sn, data.subnqn, data.cntlid, data.ver, data.cntrltype) == ("SN1", NQN, 1, 0x20000, 1)
    assert (data.sqes, data.cqes, data.nn, data.mdts, data.maxcmd) == (0x66, 0x44, 32, 5, 128)
    assert (data.aerl, data.acl, data.elpe, data.kas) == (3, 3, 127, 10)
    assert (data.oncs & 0b110011101, data.ocfs, data.fuses, data.vwc & 1, data.nwpc) == (0b110011101, 0xF, 1, 1, 1)
    assert data.oncs & 0b1100010 == 0, "no Write Uncorrectable, no reservations, no Timestamp"
    assert (data.ioccsz, data.iorcsz, data.icdoff, data.msdbd, data.fcatt, data.ofcs) == (260, 1, 0, 1, 0, 1)
    assert (data.sgls & 3, data.sgls >> 2 & 1, data.sgls >> 20 & 1) == (1, 0, 1)
    assert (data.cmic, data.oaes, data.anacap, data.nanagrpid, data.mnan) == (0b0011, 1 << 8, 0, 0, 0)
    assert data.ctratt & (1 | 1 << 6) == 1 | 1 << 6
    assert data.lpa & 0b100110 == 0b100110


def test_ana() -> None:
    world = World(config(subsystem(NQN, namespace(1), ana_reporting=True)))
    data = controller_data(world)
    assert (data.cmic, data.oaes) == (0b1011, 1 << 8 | 1 << 11)
    assert (data.anatt, data.anacap, data.anagrpmax, data.nanagrpid, data.mnan) == (10, 7, 32, 32, 32)


def test_rdma_has_keyed_descriptors() -> None:
    address = replace(HERE, trtype="RDMA")
    world = World(config(subsystem(listeners=[address])))
    data = IdentifyController.parse(world.started(listener=address).identify(1).data)
    assert (data.sgls >> 2 & 1, data.sgls >> 21 & 1) == (1, 0)


def test_static_model_and_retry_delays() -> None:
    world = World(config(subsystem(controller_model="static"), crdt=(1, 2, 3)))
    host = world.connected(cntlid=0xFFFE)
    host.set_cc(0x460001)
    data = IdentifyController.parse(host.identify(1).data)
    assert (data.fcatt, data.crdt1, data.crdt2, data.crdt3) == (1, 1, 2, 3)


@pytest.mark.parametrize(
    ("size", "mdts"), [(4096, 0), (8191, 0), (8192, 1), (131072, 5), (1 << 20, 8), (1 << 30, 8), (512, 0)]
)
def test_mdts(size: int, mdts: int) -> None:
    world = World(config(subsystem(), transport={"max_io_size": size}))
    host = world.started()
    assert IdentifyController.parse(host.identify(1).data).mdts == mdts
    assert host.controller.view.mdts_bytes == 4096 << mdts


def test_discovery_controller() -> None:
    data = IdentifyController.parse(World().discovery().identify(1).data)
    assert (data.cntrltype, data.oaes, data.sqes, data.nn, data.kas, data.dctype) == (2, 1 << 31, 0, 0, 10, 1)
    assert data.subnqn == "nqn.2014-08.org.nvmexpress.discovery"


def test_namespace() -> None:
    world = World(
        config(
            subsystem(
                NQN,
                namespace(1, nguid="0123456789abcdef0123456789abcdef", eui64="0011223344556677", anagrpid=3),
                ana_reporting=True,
            )
        )
    )
    world.target.set_bdev(
        "disk1", facts("disk1", block_size=4096, num_blocks=100, physical_block_size=16384, optimal_io_boundary=32), 0.0
    )
    data = IdentifyNamespace.parse(world.started().identify(0, 1).data)
    assert (data.nsze, data.ncap, data.nuse, data.nlbaf, data.flbas) == (100, 100, 100, 0, 0)
    assert (data.lbaf[0].lbads, data.lbaf[0].ms, data.nmic, data.anagrpid, data.nsattr) == (12, 0, 1, 3, 0)
    assert (data.nsfeat, data.npwg, data.npwa, data.npdg, data.nows, data.noiob) == (1 << 4, 3, 3, 3, 31, 32)
    assert (data.nguid.hex(), data.eui64.hex()) == ("0123456789abcdef0123456789abcdef", "0011223344556677")
    assert (data.mssrl, data.mcl, data.msrc) == copy_limits(4096) == (16384, 16384, 127)


def test_plain_namespace() -> None:
    data = IdentifyNamespace.parse(World().started().identify(0, 2).data)
    assert (data.lbaf[0].lbads, data.nsfeat, data.anagrpid) == (9, 0, 0)
    assert (data.mssrl, data.mcl, data.msrc) == copy_limits(512) == (65535, 131072, 127)


def test_read_only_back_end() -> None:
    world = World()
    world.target.set_bdev("disk1", facts("disk1", readonly=True), 0.0)
    host = world.started()
    assert IdentifyNamespace.parse(host.identify(0, 1).data).nsattr == 1
    assert IdentifyNamespaceIndependent.parse(host.identify(8, 1).data).nsattr == 1
    assert host.controller.view.namespaces[1].write_protected


def test_independent() -> None:
    data = IdentifyNamespaceIndependent.parse(World().started().identify(8, 1).data)
    assert (data.nmic, data.nstat & 1, data.nsattr) == (1, 1, 0)


def test_used_blocks_are_hidden_in_the_inaccessible_state() -> None:
    sub = subsystem(NQN, namespace(1), ana_reporting=True)
    sub = replace(sub, listeners=(replace(sub.listeners[0], ana_states={1: "inaccessible"}),))
    data = IdentifyNamespace.parse(World(config(sub)).started().identify(0, 1).data)
    assert (data.nsze, data.nuse) == (2048, 0)


@pytest.mark.parametrize("cns", [0, 5, 8, 0x11])
def test_namespaces_that_are_not_there(cns: int) -> None:
    host = World().started()
    for nsid in (0, 33, 0xFFFFFFFE, NSID_ALL):
        done = host.identify(cns, nsid)
        assert (done.cqe.status, done.data) == (Status.INVALID_NAMESPACE_OR_FORMAT, b"")
    assert host.identify(cns, 3).data == EMPTY, "valid, inactive"


@pytest.mark.parametrize(
    ("nsid", "status"),
    [(0, 0x0B), (33, 0x0B), (0xFFFFFFFE, 0x0B), (NSID_ALL, 0x0B), (3, Status.INVALID_FIELD)],
)
def test_descriptors_of_no_namespace(nsid: int, status: int) -> None:
    assert World().started().identify(3, nsid).cqe.status == status


def test_descriptors() -> None:
    found = NsIdDescriptorList.parse(World().started().identify(3, 1).data)
    assert found.get(NsIdType.UUID) == uuid.UUID("00000000-0000-4000-8000-000000000001").bytes
    assert found.get(NsIdType.CSI) == b"\0"
    assert (found.get(NsIdType.NGUID), found.get(NsIdType.EUI64)) == (None, None)


@pytest.mark.parametrize("cns", [2, 7, 0x10])
def test_lists(cns: int) -> None:
    world = World(config(subsystem(NQN, *(namespace(nsid) for nsid in (1, 7, 32)))))
    host = world.started()
    assert NamespaceList.parse(host.identify(cns, 0).data).nsids == (1, 7, 32)
    assert NamespaceList.parse(host.identify(cns, 1).data).nsids == (7, 32)
    assert host.identify(cns, 32).data == EMPTY
    for nsid in (0xFFFFFFFE, NSID_ALL):
        assert host.identify(cns, nsid).cqe.status == Status.INVALID_NAMESPACE_OR_FORMAT
    world.target.set_bdev("disk7", None, 0.0)
    expected = (1, 7, 32) if cns == 0x10 else (1, 32)
    assert NamespaceList.parse(host.identify(cns, 0).data).nsids == expected, "allocated, but not active"


def test_list_of_more_than_fit() -> None:
    count = 1024
    world = World(
        config(subsystem(NQN, *(namespace(nsid, "one") for nsid in range(1, count + 1)), max_namespaces=2000))
    )
    host = world.started()
    assert len(NamespaceList.parse(host.identify(2, 0).data).nsids) == 1024
    assert NamespaceList.parse(host.identify(2, 1000).data).nsids == tuple(range(1001, count + 1))


def test_masked_namespace_does_not_exist_for_a_host() -> None:
    world = World(config(subsystem(NQN, namespace(1), namespace(2, no_auto_visible=True, hosts=(ALICE,)))))
    alice, bob = world.started(hostnqn=ALICE), world.started(hostnqn=BOB)
    for host, nsids in ((alice, (1, 2)), (bob, (1,))):
        assert NamespaceList.parse(host.identify(2, 0).data).nsids == nsids
        assert NamespaceList.parse(host.identify(0x10, 0).data).nsids == nsids
        assert tuple(host.controller.view.namespaces) == nsids
    assert bob.identify(0, 2).data == EMPTY
    assert ControllerList.parse(alice.identify(0x12, 2).data).cntlids == (1,)


def test_controller_lists() -> None:
    world = World()
    hosts = [world.started() for _ in range(3)]
    assert ControllerList.parse(hosts[0].identify(0x13, cntid=2).data).cntlids == (2, 3)
    assert ControllerList.parse(hosts[0].identify(0x12, 1).data).cntlids == (1, 2, 3)
    assert ControllerList.parse(hosts[0].identify(0x12, 3).data).cntlids == ()
    assert hosts[0].identify(0x12, NSID_ALL).cqe.status == Status.INVALID_FIELD
    assert hosts[0].identify(0x12, 99).cqe.status == Status.INVALID_NAMESPACE_OR_FORMAT


def test_command_sets() -> None:
    host = World().started()
    for cntid in (0xFFFF, 1):
        assert IoCommandSetVector.parse(host.identify(0x1C, cntid=cntid).data).vectors[:2] == (1, 0)
    assert host.identify(0x1C, cntid=9).cqe.status == Status.INVALID_FIELD
    assert host.identify(6).data == EMPTY
    assert host.identify(5, 1).data == EMPTY


@pytest.mark.parametrize("cns", [5, 6, 7])
@pytest.mark.parametrize("csi", [1, 2, 0x30, 0xFF])
def test_unknown_command_set(cns: int, csi: int) -> None:
    assert World().started().identify(cns, 1, csi=csi).cqe.status == Status.INVALID_FIELD


def test_every_cns() -> None:
    """What is in the table works, what is not is Invalid Field, for both kinds of controller."""
    world = World()
    for host, kind in ((world.started(), ControllerType.IO), (world.discovery(), ControllerType.DISCOVERY)):
        for cns in range(256):
            done = host.identify(cns, 0 if cns in (2, 7, 0x10, 0x13) else 1, cntid=0xFFFF if cns == 0x1C else 0)
            row = CNS_TABLE.get(cns)
            if row is not None and kind in row.controllers:
                assert done.cqe.ok, row.name
                assert len(done.data) == 4096
            else:
                assert (done.cqe.status, done.data) == (Status.INVALID_FIELD, b"")


@pytest.mark.parametrize(
    "opc", [0x00, 0x01, 0x03, 0x04, 0x05, 0x0D, 0x10, 0x11, 0x14, 0x15, 0x80, 0x81, 0x84, 0xC0, 0xFF]
)
def test_commands_that_are_not_there(opc: int) -> None:
    world = World()
    for host in (world.started(), world.discovery()):
        assert host.command(Sqe(opc=opc)).cqe.status == Status.INVALID_OPCODE


def test_discovery_controller_has_no_abort() -> None:
    assert World().discovery().command(Sqe(opc=8)).cqe.status == Status.INVALID_OPCODE


def test_fused_command() -> None:
    for fuse in (1, 2, 3):
        assert World().started().command(Sqe(opc=6, cdw10=1, fuse=fuse)).cqe.status == Status.INVALID_FIELD
