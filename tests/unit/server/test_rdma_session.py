"""NVMe/RDMA from configuration to adopted queue, against a data plane that a test plays: no verbs, no device."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nvmet_p2p import daemon as daemon_module
from nvmet_p2p.config import Settings
from nvmet_p2p.daemon import Daemon
from nvmet_p2p.dataplane.inprocess.engine import InProcessDataPlane
from nvmet_p2p.dataplane.native import plane as plane_module
from nvmet_p2p.dataplane.native.helper import LaunchOptions
from nvmet_p2p.dataplane.native.messages import REPLY_BYTES_MAX
from nvmet_p2p.dataplane.native.plane import NativeDataPlane
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import (
    BdevConfig,
    ListenAddress,
    ListenerConfig,
    NamespaceConfig,
    SubsystemConfig,
    TargetConfig,
    TransportConfig,
)
from nvmet_p2p.target.validate import DISCOVERY_NQN
from nvmet_p2p.wire.discovery import DiscoveryLog
from nvmet_p2p.wire.fabrics import ConnectCommand, Disconnect, PropertyGet, PropertySet
from nvmet_p2p.wire.identify import IdentifyController
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import AdminOpcode, RdmaCms, RdmaPrType, RdmaQpType, Status, Trtype
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import GetLogPageCommand, IdentifyCommand
from tests.unit.server.fake_rdma import NQN, FakeHost, FakePlane, until, with_sgl

HERE = ListenAddress(trtype="RDMA", adrfam="IPv4", traddr="192.0.2.1", trsvcid="4420")
ANYWHERE = ListenAddress(trtype="RDMA", adrfam="IPv6", traddr="::", trsvcid="4420")
IDENTIFY = Sqe(opc=AdminOpcode.IDENTIFY, **IdentifyCommand(cns=1).dwords())


class Store:
    """Keeps the configuration in memory."""

    def __init__(self, config: TargetConfig | None = None) -> None:
        self.config = config or TargetConfig()

    def load(self) -> TargetConfig:
        return self.config

    def save(self, config: TargetConfig) -> None:
        self.config = config

    def close(self) -> None:
        """Nothing to close."""


def wanted(*addresses: ListenAddress, **options: Any) -> TargetConfig:
    subsystem = SubsystemConfig(
        nqn=NQN,
        allow_any_host=True,
        namespaces={1: NamespaceConfig(nsid=1, bdev_name="m", uuid="u-m", anagrpid=1)},
        listeners=tuple(ListenerConfig(address=address) for address in addresses),
    )
    return TargetConfig(
        transports={"RDMA": TransportConfig(trtype="RDMA", **options)},
        bdevs={"m": BdevConfig(name="m", kind="malloc", uuid="u-m", block_size=512, num_blocks=2048)},
        subsystems={NQN: subsystem},
    )


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakePlane]:
    made = FakePlane(tmp_path)
    await made.start()
    yield made
    await made.stop()


def build(tmp_path: Path, store: Store, **settings: Any) -> Daemon:
    plane = NativeDataPlane(LaunchOptions(program=None, channel_socket=tmp_path / "channel"))
    return Daemon(Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path, **settings), store, plane)


@pytest.fixture
async def daemon(tmp_path: Path, fake: FakePlane, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    monkeypatch.setattr(plane_module, "PAUSE_FIRST_S", 0.01)
    monkeypatch.setattr(daemon_module, "RETRY_S", 0.02)
    made = build(tmp_path, Store())
    await made.start()
    await made.commit(wanted(HERE))
    yield made
    await made.stop()


@pytest.fixture
async def admin(daemon: Daemon, fake: FakePlane) -> FakeHost:
    """A host with an enabled controller."""
    host = fake.arrive()
    assert (await host.connect()).ok
    await host.enable()
    return host


def log_page(lid: int, length: int, offset: int = 0) -> Sqe:
    numd = length // 4 - 1
    view = GetLogPageCommand(lid=lid, numdl=numd & 0xFFFF, numdu=numd >> 16, lpo=offset)
    return Sqe(opc=AdminOpcode.GET_LOG_PAGE, **view.dwords())


# -- listeners ---------------------------------------------------------------------------------------------------------


async def test_a_listener_is_the_data_planes(daemon: Daemon, fake: FakePlane) -> None:
    assert ("p2p_rdma_listen", {
        "traddr": "192.0.2.1", "trsvcid": "4420", "adrfam": "ipv4", "max_queue_depth": 128, "max_aq_depth": 128,
        "in_capsule_data_size": 4096, "max_io_size": 131072, "max_srq_depth": 4096, "no_srq": False,
        "acceptor_backlog": 100,
    }) in fake.calls  # fmt: skip
    await daemon.commit(wanted())
    assert fake.calls[-1] == ("p2p_rdma_unlisten", {"traddr": "192.0.2.1", "trsvcid": "4420", "adrfam": "ipv4"})


async def test_an_address_without_a_device_is_refused_and_leaves_nothing(daemon: Daemon, fake: FakePlane) -> None:
    fake.errors["p2p_rdma_listen"] = (-19, "no RDMA device has the address 192.0.2.7")
    with pytest.raises(OperatorError, match="no RDMA device") as caught:
        await daemon.commit(wanted(HERE, replace(HERE, traddr="192.0.2.7")))
    assert caught.value.code == -19
    assert daemon.config == wanted(HERE)


async def test_a_data_plane_without_rdma_refuses_the_transport(tmp_path: Path, fake: FakePlane) -> None:
    fake.answers["p2p_get_info"] = {"rdma": {"built": False}}
    daemon = build(tmp_path, Store())
    await daemon.start()
    with pytest.raises(OperatorError, match="built without librdmacm") as caught:
        await daemon.commit(wanted())
    assert caught.value.code == -95
    status = await daemon.dataplane.rdma_status()
    assert (status.built, status.devices) == (False, ())
    await daemon.stop()


async def test_the_in_process_engine_refuses(tmp_path: Path) -> None:
    settings = Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path)
    daemon = Daemon(settings, Store(), InProcessDataPlane())
    await daemon.start()
    with pytest.raises(OperatorError, match="only the native data plane"):
        await daemon.commit(wanted())
    await daemon.stop()
    left = Daemon(settings, Store(wanted(HERE)), InProcessDataPlane())  # as a native one has left it
    await left.start()
    assert left.unbound() == [HERE]
    await left.stop()


async def test_status(daemon: Daemon, fake: FakePlane) -> None:
    status = await daemon.dataplane.rdma_status()
    assert (status.built, status.pending_data_buffer) == (True, 3)
    assert status.devices[0]["name"] == "rxe0"
    fake.errors["p2p_rdma_get_devices"] = (-5, "broken")
    assert (await daemon.dataplane.rdma_status()).reason == "broken"


# -- what a host does --------------------------------------------------------------------------------------------------


async def test_connect_by_a_keyed_sgl_and_identify(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    assert admin.fetches == [(1, 1024)]
    cqe, data = await admin.command(IDENTIFY, read=4096)
    assert cqe.ok
    assert cqe.sqhd == 4
    identify = IdentifyController.parse(data)
    assert (identify.ioccsz, identify.iorcsz, identify.icdoff, identify.msdbd) == ((64 + 4096) // 16, 1, 0, 1)
    assert identify.sgls & 0x300005 == 0x100005
    (shown,) = daemon.controllers()
    assert shown.subnqn == NQN
    (qpair,) = daemon.qpairs()
    assert qpair.peer == ListenAddress(trtype="RDMA", adrfam="IPv4", traddr="192.0.2.99", trsvcid="50000")


async def test_data_longer_than_a_message(daemon: Daemon, admin: FakeHost) -> None:
    cqe, data = await admin.command(log_page(0x05, 131072), read=131072)
    assert cqe.ok
    assert len(data) == 131072
    assert admin.pieces[-3:] == [
        (0, REPLY_BYTES_MAX), (REPLY_BYTES_MAX, REPLY_BYTES_MAX), (2 * REPLY_BYTES_MAX, 131072 - 2 * REPLY_BYTES_MAX)
    ]  # fmt: skip


async def test_set_features_with_data(daemon: Daemon, admin: FakeHost) -> None:
    behaviour = bytes([0, 0, 0, 0, 0b1100]) + bytes(507)  # Host Behavior Support: the Copy descriptor formats
    cqe, _ = await admin.command(Sqe(opc=AdminOpcode.SET_FEATURES, cdw10=0x16), behaviour)
    assert cqe.ok
    assert admin.fetches[-1][1] == 512
    cqe, data = await admin.command(Sqe(opc=AdminOpcode.GET_FEATURES, cdw10=0x16), read=512)
    assert cqe.ok
    assert data == behaviour


async def test_an_io_connect_is_adopted(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    cntlid = daemon.controllers()[0].cntlid
    host = fake.arrive(qid=1, hsqsize=63)
    cqe = await host.connect(qid=1, sqsize=63, cntlid=cntlid, inline=True)
    assert cqe.ok
    (adopt,) = host.adopted
    assert (adopt.qid, adopt.sqsize, adopt.sqhd, adopt.flags, adopt.icd_max) == (1, 63, 1, 1, 4096)
    assert (adopt.conn, adopt.peer, adopt.cqe.dw0) == (host.conn, "192.0.2.99:50000", cntlid)
    assert [queue.qid for queue in daemon.dataplane.queues()] == [1]
    assert daemon.fabric.unconnected == 0
    assert len(daemon.qpairs()) == 2
    # without SQ flow control
    other = fake.arrive(qid=2, hsqsize=31)
    assert (await other.connect(qid=2, sqsize=31, cattr=4, cntlid=cntlid)).sqhd == 0xFFFF
    assert (other.adopted[0].flags, other.adopted[0].sqhd) == (0, 0xFFFF)
    # a reset closes both, by JSON-RPC, and the admin queue goes on
    cqe, _ = await admin.command(PropertySet(ofst=0x14, value=0).sqe())
    assert cqe.ok
    await until(lambda: len(daemon.qpairs()) == 1)
    assert fake.count("p2p_queue_close") == 1
    await admin.enable()


async def test_an_io_queue_that_the_data_plane_does_not_want(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    fake.adopt_rc = -12
    host = fake.arrive(qid=1)
    await unanswered_connect(host, daemon, qid=1)
    assert host.conn in fake.closes
    assert len(daemon.qpairs()) == 1
    fake.adopt_rc = 0
    assert (await fake.arrive(qid=1).connect(qid=1, cntlid=daemon.controllers()[0].cntlid)).ok


async def unanswered_connect(host: FakeHost, daemon: Daemon, qid: int) -> None:
    """An I/O Connect that is not answered: the connection ends."""
    connecting = asyncio.create_task(host.connect(qid=qid, cntlid=daemon.controllers()[0].cntlid))
    await asyncio.wait_for(host.closed.wait(), 20)
    connecting.cancel()


async def test_discovery(daemon: Daemon, fake: FakePlane) -> None:
    await daemon.commit(wanted(HERE, ANYWHERE))
    host = fake.arrive("2001:db8::1")
    assert (await host.connect(DISCOVERY_NQN)).ok
    await host.enable()
    cqe, data = await host.command(log_page(0x70, 4096), read=4096)
    assert cqe.ok
    own, *entries = DiscoveryLog.parse(data).entries
    assert (own.trtype, own.traddr) == (Trtype.RDMA, "2001:db8::1")
    assert [(entry.adrfam, entry.traddr, entry.trsvcid) for entry in entries] == [
        (1, "192.0.2.1", "4420"), (2, "2001:db8::1", "4420"),
    ]  # fmt: skip
    for entry in entries:
        assert (entry.trtype, entry.asqsz) == (Trtype.RDMA, 128)
        assert entry.tsas[:3] == bytes([RdmaQpType.RELIABLE_CONNECTED, RdmaPrType.NOT_SPECIFIED, RdmaCms.RDMA_CM])


# -- what can be wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sqe", "icd", "status"),
    [
        (IDENTIFY, b"", Status.COMMAND_SEQUENCE_ERROR),
        (PropertyGet(ofst=0).sqe(), b"", Status.COMMAND_SEQUENCE_ERROR),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor.keyed(0, 512, 1)), b"", 0x0F),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor.keyed(0, 0, 1)), b"", 0x0F),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor.transport(1024)), b"", 0x11),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor(2, 0, 0, 1024)), b"", 0x11),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor(4, 1, 0, 1024)), b"", 0x11),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor.in_capsule(1024)), bytes(1023), 0x0F),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor.in_capsule(1024, 4)), bytes(1024), 0x0F),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor.in_capsule(1024, 5000)), bytes(1024), 0x16),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor.in_capsule(8192)), bytes(4096), 0x16),
        (with_sgl(ConnectCommand(sqsize=31).sqe(), 7, SglDescriptor.keyed(0, 1024, 1), psdt=0), b"", 0x02),
    ],
)
async def test_a_command_that_cannot_be(daemon: Daemon, fake: FakePlane, sqe: Sqe, icd: bytes, status: int) -> None:
    """Each is answered, nothing is fetched, and the connection can still be used."""
    host = fake.arrive()
    host.send(sqe, icd)
    cqe, data = await host.answer()
    assert (cqe.status, cqe.cid, data) == (status, sqe.cid, b"")
    assert host.fetches == []
    assert (await host.connect()).ok


async def test_data_in_the_capsule_of_a_read(daemon: Daemon, admin: FakeHost) -> None:
    admin.send(with_sgl(IDENTIFY, 900, SglDescriptor.in_capsule(4096)), bytes(4096))
    cqe, _ = await admin.answer()
    assert cqe.status == Status.INVALID_FIELD


async def test_a_capsule_that_is_longer_than_its_data(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    """Some hosts send whole capsules: what no SGL speaks of does not matter."""
    admin.send(with_sgl(PropertyGet(ofst=0x1C).sqe(), 900, SglDescriptor.keyed(0, 0, 0)), bytes(128))
    assert (await admin.answer())[0].ok
    admin.send(with_sgl(IDENTIFY, 901, SglDescriptor.keyed(4096, 4096, 5)), bytes(128))
    cqe, data = await admin.answer()
    assert cqe.ok
    assert len(data) == 4096


async def test_data_that_cannot_be_fetched(daemon: Daemon, fake: FakePlane) -> None:
    host = fake.arrive()
    host.fetch_rc = -14
    cqe = await host.connect()
    assert (cqe.status, cqe.dnr) == (Status.DATA_TRANSFER_ERROR, False)
    host.fetch_rc = 0
    assert (await host.connect()).ok


@pytest.mark.parametrize(
    ("arrival", "fields", "offset"),
    [
        ({"qid": 1}, {"qid": 0}, 42),
        ({"qid": 0}, {"qid": 1}, 42),
        ({"hsqsize": 31}, {"sqsize": 32}, 44),
        ({"hsqsize": 500}, {"sqsize": 128}, 44),
    ],
)
async def test_connect_that_is_not_what_the_connection_was_made_for(
    daemon: Daemon, fake: FakePlane, arrival: dict[str, Any], fields: dict[str, Any], offset: int
) -> None:
    cqe = await fake.arrive(**arrival).connect(**fields)
    assert (cqe.status, cqe.dw0) == (Status.CONNECT_INVALID_PARAM, offset)


async def test_a_subsystem_that_is_not_reached_here(daemon: Daemon, fake: FakePlane) -> None:
    cqe = await fake.arrive().connect("nqn.2026-11.com.example:nothing")
    assert cqe.status == Status.CONNECT_INVALID_PARAM


async def test_where_nobody_listens_nobody_connects(daemon: Daemon, fake: FakePlane) -> None:
    host = fake.arrive("192.0.2.55")
    await asyncio.wait_for(host.closed.wait(), 20)
    assert daemon.fabric.sessions == 0


async def test_a_cid_in_flight(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    admin.hold_fetches = True
    feature = with_sgl(Sqe(opc=AdminOpcode.SET_FEATURES, cdw10=0x16), 400, SglDescriptor.keyed(0, 512, 1))
    admin.send(feature)
    admin.send(feature)
    cqe, _ = await admin.answer()
    assert (cqe.cid, cqe.status) == (400, Status.COMMAND_ID_CONFLICT)
    assert admin.fetches[-1] == (400, 512)
    admin.give(400, 0, bytes(512))
    assert (await admin.answer())[0].ok
    admin.send(with_sgl(Sqe(opc=AdminOpcode.ASYNC_EVENT_REQUEST), 500, SglDescriptor.keyed(0, 0, 0)))
    # SPDK's host takes the CID of an event request that it no longer waits for
    admin.send(with_sgl(PropertyGet(ofst=0x1C).sqe(), 500, SglDescriptor.keyed(0, 0, 0)))
    cqe, _ = await admin.answer()
    assert cqe.ok
    assert admin.dropped == [500]


async def test_a_reset_drops_what_is_in_flight(daemon: Daemon, admin: FakeHost) -> None:
    for cid in (500, 501):
        admin.send(with_sgl(Sqe(opc=AdminOpcode.ASYNC_EVENT_REQUEST), cid, SglDescriptor.keyed(0, 0, 0)))
    admin.hold_fetches = True
    admin.send(with_sgl(Sqe(opc=AdminOpcode.SET_FEATURES, cdw10=0x16), 502, SglDescriptor.keyed(0, 512, 1)))
    await until(lambda: (502, 512) in admin.fetches)
    cqe, _ = await admin.command(PropertySet(ofst=0x14, value=0).sqe())
    assert cqe.ok
    assert admin.dropped == [500, 501, 502]
    admin.give(502, 0, bytes(512))  # comes too late, and is no answer for whoever has the CID now
    admin.hold_fetches = False
    await admin.enable()
    assert admin.answers.empty()


async def test_data_that_nobody_asked_for(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    admin.give(77, 0, b"data")
    await asyncio.wait_for(admin.closed.wait(), 20)
    await until(lambda: not daemon.controllers())


async def test_too_many_commands(daemon: Daemon, fake: FakePlane) -> None:
    """More than the queue holds: the excess is refused, what is in flight goes on."""
    host = fake.arrive()
    assert (await host.connect(sqsize=1)).ok
    host.hold_fetches = True
    for cid in range(100, 104):
        host.send(with_sgl(Sqe(opc=AdminOpcode.SET_FEATURES, cdw10=0x16), cid, SglDescriptor.keyed(0, 512, 1)))
    answers = [await host.answer() for _ in range(4)]
    assert {cqe.status for cqe, _ in answers} == {Status.COMMAND_SEQUENCE_ERROR}


async def test_no_connect(tmp_path: Path, fake: FakePlane) -> None:
    daemon = build(tmp_path, Store(wanted(HERE)), connect_timeout_s=0.1, unconnected_peers_max=2)
    await daemon.start()
    hosts = [fake.arrive() for _ in range(3)]
    for host in hosts:
        await asyncio.wait_for(host.closed.wait(), 20)
    assert fake.closes == [host.conn for host in hosts]
    assert daemon.fabric.refused["too_many"] == 1
    assert daemon.fabric.sessions == 0
    assert daemon.fabric.unconnected == 0
    await daemon.stop()


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_the_host_goes(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    admin.end()
    await until(lambda: not daemon.controllers())
    await until(lambda: fake.count("p2p_controller_remove") == 1)
    assert fake.closes == []
    fake.arrive().end()  # before Connect
    await until(lambda: daemon.fabric.accepted_total == 2 and daemon.fabric.sessions == 0)


async def test_the_host_goes_while_its_data_is_fetched(daemon: Daemon, fake: FakePlane) -> None:
    host = fake.arrive()
    host.hold_fetches = True
    host.send(with_sgl(ConnectCommand(sqsize=31).sqe(), 1, SglDescriptor.keyed(0, 1024, 1)))
    await until(lambda: host.fetches != [])
    host.end()
    await until(lambda: daemon.fabric.sessions == 0)
    host.give(1, 0, bytes(1024))
    assert (await fake.arrive().connect()).ok


async def test_a_listener_is_removed(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    await daemon.commit(wanted())
    await asyncio.wait_for(admin.closed.wait(), 20)
    assert daemon.controllers() == []


async def test_shutdown_of_the_controller_and_disconnect(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    cntlid = daemon.controllers()[0].cntlid
    host = fake.arrive(qid=1)
    assert (await host.connect(qid=1, cntlid=cntlid)).ok
    sqe = dataclasses.replace(Disconnect().sqe(), cid=9)
    daemon.io_command(host.adopted[0].key, 1, sqe)  # as the data plane asks by UPCALL
    assert len(daemon.qpairs()) == 1
    cqe, _ = await admin.command(PropertySet(ofst=0x14, value=0x00464001).sqe())
    assert cqe.ok
    cqe, _ = await admin.command(PropertyGet(ofst=0x1C).sqe())
    assert cqe.dw0 >> 2 & 3 == 2


async def test_the_data_plane_dies_and_returns(daemon: Daemon, fake: FakePlane, admin: FakeHost) -> None:
    cntlid = daemon.controllers()[0].cntlid
    io = fake.arrive(qid=1)
    assert (await io.connect(qid=1, cntlid=cntlid)).ok
    fresh = fake.arrive()
    await until(lambda: daemon.fabric.sessions == 2)
    fake.die()
    await until(lambda: fake.hellos == 2 and daemon.dataplane.status().up)
    assert daemon.controllers() == []
    assert daemon.qpairs() == []
    assert daemon.fabric.sessions == 0
    assert fake.count("p2p_rdma_listen") == 2
    assert fresh.closed.is_set() is False, "its connection went with the process, nobody had to close it"
    again = fake.arrive()
    assert (await again.connect()).ok


async def test_its_device_is_gone_when_the_data_plane_returns(daemon: Daemon, fake: FakePlane) -> None:
    fake.errors["p2p_rdma_listen"] = (-19, "no RDMA device has the address")
    fake.die()
    await until(lambda: fake.hellos == 2 and daemon.dataplane.status().up)
    assert daemon.unbound() == [HERE]
    del fake.errors["p2p_rdma_listen"]
    await until(lambda: daemon.unbound() == [])
    assert (await fake.arrive().connect()).ok


async def test_a_queue_is_handed_over_while_the_data_plane_dies(
    daemon: Daemon, fake: FakePlane, admin: FakeHost
) -> None:
    """The new helper may number its connections as the old one did: it is never asked for one that it does not know."""
    cntlid = daemon.controllers()[0].cntlid
    host = fake.arrive(qid=1)
    host.hold_fetches = True
    connect = asyncio.create_task(host.connect(qid=1, cntlid=cntlid))
    await until(lambda: host.fetches != [])
    host.give(1, 0, host.memory[1])
    fake.die()
    await until(lambda: fake.hellos == 2 and daemon.dataplane.status().up)
    connect.cancel()
    assert daemon.dataplane.queues() == []
    assert daemon.controllers() == []


async def test_the_daemon_stops(tmp_path: Path, fake: FakePlane) -> None:
    daemon = build(tmp_path, Store(wanted(HERE)))
    await daemon.start()
    connected, silent = fake.arrive(), fake.arrive()
    assert (await connected.connect()).ok
    await daemon.stop()
    await until(lambda: fake.closes == [connected.conn, silent.conn] or fake.hosts == {})
    assert daemon.fabric.sessions == 0
