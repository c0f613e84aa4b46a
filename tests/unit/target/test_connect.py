"""Connect: each status, with IPO and IATTR, and what an accepted one leaves behind (NVMe base 6.3)."""

from __future__ import annotations

from typing import Any

import pytest

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.effects import CloseIoQueue, ControllerChanged, ControllerGone
from nvmet_p2p.target.validate import DISCOVERY_NQN
from nvmet_p2p.wire.fabrics import ConnectInvalid, Disconnect, FabricsCommand, PropertyGet
from nvmet_p2p.wire.spec import Status
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.target.harness import (
    ALICE,
    BOB,
    DISC,
    ENABLE,
    HERE,
    HOSTID,
    NQN,
    OTHER_NQN,
    PEER,
    THERE,
    Host,
    World,
    config,
    hosts,
    namespace,
    subsystem,
)

SQE, DATA = 0, 1


def invalid(cqe: Any, where: int, offset: int) -> None:
    assert cqe.status == Status.CONNECT_INVALID_PARAM
    answer = ConnectInvalid.of(cqe.dw0)
    assert (answer.iattr, answer.ipo) == (where, offset)


def test_admin() -> None:
    world = World()
    host = world.host()
    cqe = host.connect(NQN, kato=5000)
    assert (cqe.status, cqe.dw0, cqe.sqid, cqe.sqhd) == (0, 1, 0, 1)
    (view,) = [effect.view for effect in world.of(ControllerChanged)]
    assert (view.subnqn, view.hostnqn, view.cntlid) == (NQN, ALICE, 1)
    assert set(view.namespaces) == {1, 2}
    (info,) = world.target.controllers(NQN)
    assert (info.cntlid, info.hostnqn, info.hostid, info.listener, info.peer) == (1, ALICE, HOSTID, HERE, PEER)
    assert (info.kato_ms, info.ready, info.discovery) == (5000, False, False)
    assert [(queue.qid, queue.sqsize) for queue in info.queues] == [(0, 31)]


@pytest.mark.parametrize(
    ("params", "where", "offset"),
    [
        ({"subnqn": "nqn.2026-11.com.example:nobody"}, DATA, 256),
        ({"subnqn": b""}, DATA, 256),
        ({"subnqn": b"n" * 256}, DATA, 256),
        ({"subnqn": b"n" * 224}, DATA, 256),
        ({"subnqn": b"\xff\xfe"}, DATA, 256),
        ({"hostnqn": b"h" * 256}, DATA, 512),
        ({"hostnqn": b"h" * 224}, DATA, 512),
        ({"hostnqn": b"\xc0\x80"}, DATA, 512),
        ({"cntlid": 0}, DATA, 16),
        ({"cntlid": 1}, DATA, 16),
        ({"cntlid": 0xFFFE}, DATA, 16),
        ({"cntlid": 0xFFF0}, DATA, 16),
        ({"sqsize": 0}, SQE, 44),
        ({"sqsize": 128}, SQE, 44),
        ({"fuse": 1}, SQE, 1),
        ({"qid": 1}, DATA, 16),  # no controller FFFFh
    ],
)
def test_invalid_parameters(params: dict[str, Any], where: int, offset: int) -> None:
    world = World()
    host = world.host()
    invalid(host.connect(**params), where, offset)
    assert not world.effects
    assert host.connect().ok, "another Connect may follow"


@pytest.mark.parametrize("sqsize", [1, 31, 127])
def test_admin_queue_sizes(sqsize: int) -> None:
    assert World().host().connect(sqsize=sqsize).ok


def test_record_format() -> None:
    assert World().host().connect(recfmt=1).status == Status.CONNECT_INCOMPATIBLE_FORMAT


def test_a_failed_connect_never_says_invalid_field_and_is_not_logged() -> None:
    host = World().started()
    assert host.connect(recfmt=1).status == Status.COMMAND_SEQUENCE_ERROR
    assert len(host.controller.errors) == 0


def test_data_length() -> None:
    host = World().host()
    request = host.queue.prepare(Sqe(opc=0x7F, nsid=1), 0.0)
    assert request.transfer.length == 1024
    host.queue.execute(request, bytes(1023), 0.0)
    assert host.done[-1].cqe.status == Status.SGL_INVALID_DATA_LENGTH


@pytest.mark.parametrize(
    "sqe", [PropertyGet().sqe(), Disconnect().sqe(), Sqe(opc=6, cdw10=1), Sqe(opc=2), Sqe(opc=0x18)]
)
def test_before_connect(sqe: Sqe) -> None:
    assert World().host().command(sqe).cqe.status == Status.COMMAND_SEQUENCE_ERROR


def test_allow_list() -> None:
    world = World(config(subsystem(allow_any_host=False, hosts=hosts(ALICE))))
    assert world.host().connect(hostnqn=ALICE).ok
    assert world.host().connect(hostnqn=BOB).status == Status.CONNECT_INVALID_HOST
    assert world.host().connect(hostnqn=b"").status == Status.CONNECT_INVALID_HOST


def test_host_without_a_name_where_any_host_is_let_in() -> None:
    host = World().connected(hostnqn=b"", hostid=bytes(16))
    assert host.controller.hostnqn == ""


def test_subsystem_of_another_port() -> None:
    world = World(config(subsystem(), subsystem(OTHER_NQN, listeners=[THERE])))
    invalid(world.host(HERE).connect(OTHER_NQN), DATA, 256)
    assert world.host(THERE).connect(OTHER_NQN).ok


def test_discovery_answers_on_every_listener() -> None:
    world = World(config(subsystem(allow_any_host=False), subsystem(OTHER_NQN, listeners=[THERE])))
    for listener in (HERE, THERE):
        assert world.host(listener).connect(DISCOVERY_NQN).ok
    invalid(world.host(DISC).connect(DISCOVERY_NQN), DATA, 256)


def test_discovery_subsystem_with_its_own_port_and_allow_list() -> None:
    own = subsystem(DISCOVERY_NQN, listeners=[DISC], subtype="Discovery", allow_any_host=False, hosts=hosts(ALICE))
    world = World(config(own, subsystem()))
    assert world.host(DISC).connect(DISCOVERY_NQN).ok
    assert world.host(DISC).connect(DISCOVERY_NQN, hostnqn=BOB).status == Status.CONNECT_INVALID_HOST


def test_identifiers_run_out_and_come_back() -> None:
    world = World(config(subsystem(min_cntlid=5, max_cntlid=6)))
    first, second = world.connected(), world.connected()
    assert [host.controller.cntlid for host in (first, second)] == [5, 6]
    cqe = world.host().connect()
    assert (cqe.status, cqe.dnr) == (Status.CONNECT_CONTROLLER_BUSY, False)
    first.queue.close(world.now)
    assert world.connected().controller.cntlid == 5


def test_identifiers_are_not_soon_used_again() -> None:
    world = World()
    seen = []
    for _ in range(20):
        host = world.connected()
        seen.append(host.controller.cntlid)
        host.queue.close(world.now)
    assert seen == list(range(1, 21))


def test_static_model() -> None:
    world = World(config(subsystem(controller_model="static", min_cntlid=1, max_cntlid=9)))
    assert world.connected(cntlid=7).controller.cntlid == 7
    assert world.host().connect(cntlid=7).status == Status.CONNECT_CONTROLLER_BUSY
    assert world.connected(cntlid=0xFFFE).controller.cntlid == 1
    for cntlid in (0, 10, 0xFFFF, 0xFFF0):
        invalid(world.host().connect(cntlid=cntlid), DATA, 16)


@pytest.mark.parametrize(
    ("asked", "transport", "given"),
    [
        (0, {}, 0),
        (1, {}, 1000),
        (1000, {}, 1000),
        (1001, {}, 2000),
        (1, {"kas": 1}, 100),
        (5000, {"min_kato": 10_500}, 11_000),
        (0x7FFFFFFF, {}, 2147484000),
    ],
)
def test_kato_is_rounded_up(asked: int, transport: dict[str, int], given: int) -> None:
    world = World(config(subsystem(), transport=transport))
    assert world.connected(kato=asked).controller.kato_ms == given


@pytest.mark.parametrize(("kato", "transport"), [(0x80000000, {}), (1000, {"kas": 0})])
def test_kato_that_cannot_be(kato: int, transport: dict[str, int]) -> None:
    world = World(config(subsystem(), transport=transport))
    assert world.host().connect(kato=kato).status == Status.KEEP_ALIVE_INVALID


# -- I/O queues --------------------------------------------------------------------------------------------------------


def test_io_queue_is_handed_over() -> None:
    host = World().started()
    io = host.io(3, sqsize=127)
    done = io.done[-1]
    assert (done.cqe.status, done.cqe.dw0, done.cqe.sqid, done.cqe.sqhd) == (0, host.controller.cntlid, 3, 1)
    assert done.handoff is not None
    assert (done.handoff.controller_key, done.handoff.qid, done.handoff.sqsize) == (host.controller.key, 3, 127)
    assert (done.handoff.sq_flow_control, done.handoff.sqhd) == (True, 1)
    assert done.handoff.view == host.controller.view
    assert [queue.qid for queue in host.world.target.controllers()[0].queues] == [0, 3]
    io.queue.close(0.0)
    assert not host.world.of(ControllerGone), "the session of a queue that was given away ends nothing"
    assert io.command(Sqe(opc=0x18)).cqe.status == Status.COMMAND_SEQUENCE_ERROR


def test_without_flow_control() -> None:
    host = World().started(cattr=4)
    assert host.done[-1].cqe.sqhd == 0xFFFF
    io = host.io(1, cattr=4)
    assert io.done[-1].cqe.sqhd == 0xFFFF
    assert io.done[-1].handoff is not None
    assert io.done[-1].handoff.sq_flow_control is False


@pytest.mark.parametrize(
    ("params", "where", "offset"),
    [
        ({"cntlid": 77}, DATA, 16),
        ({"cntlid": 0xFFFF}, DATA, 16),
        ({"hostnqn": BOB}, DATA, 512),
        ({"hostid": bytes(15) + b"\1"}, DATA, 0),
        ({"subnqn": OTHER_NQN}, DATA, 16),
        ({"listener": THERE}, DATA, 16),
        ({"qid": 128}, SQE, 42),
        ({"qid": 0xFFFF}, SQE, 42),
        ({"sqsize": 0}, SQE, 44),
        ({"sqsize": 128}, SQE, 44),
    ],
)
def test_io_invalid_parameters(params: dict[str, Any], where: int, offset: int) -> None:
    world = World(config(subsystem(listeners=[HERE, THERE]), subsystem(OTHER_NQN)))
    host = world.started()
    invalid(host.io(**({"qid": 1} | params)).done[-1].cqe, where, offset)
    assert host.io(127).done[-1].cqe.ok


def test_host_identifier_of_zero_is_ignored_for_an_io_queue() -> None:
    assert World().started().io(1, hostid=bytes(16)).done[-1].cqe.ok


def test_io_connect_while_disabled() -> None:
    world = World()
    invalid(world.connected().io().done[-1].cqe, SQE, 42)
    host = world.started()
    host.set_cc(ENABLE | 1 << 14)
    invalid(host.io().done[-1].cqe, SQE, 42)


def test_io_queue_of_a_discovery_controller() -> None:
    invalid(World().discovery().io().done[-1].cqe, SQE, 42)


def test_duplicate_queue() -> None:
    host = World().started()
    host.io(1)
    cqe = host.io(1).done[-1].cqe
    assert (cqe.status, cqe.dnr) == (Status.COMMAND_SEQUENCE_ERROR, False)
    host.world.target.io_queue_closed(host.controller.key, 1, 0.0)
    assert host.io(1).done[-1].cqe.ok


def test_second_connect() -> None:
    host = World().started()
    assert host.connect().status == Status.COMMAND_SEQUENCE_ERROR
    assert host.csts & 1


# -- the other Fabrics commands ----------------------------------------------------------------------------------------


def test_disconnect() -> None:
    host = World().started()
    assert host.command(Disconnect().sqe()).cqe.status == Status.DISCONNECT_INVALID_QUEUE_TYPE
    assert host.command(Disconnect(recfmt=1).sqe()).cqe.status == Status.CONNECT_INCOMPATIBLE_FORMAT
    host.io(2)
    target, key = host.world.target, host.controller.key
    target.io_queue_command(key, 2, Disconnect().sqe(), 0.0)
    assert host.world.of(CloseIoQueue) == [CloseIoQueue(key, 2, "Disconnect")]
    assert host.io(2).done[-1].cqe.ok


@pytest.mark.parametrize(
    ("sqe", "status"),
    [
        (Disconnect(recfmt=1).sqe(), Status.CONNECT_INCOMPATIBLE_FORMAT),
        (Disconnect(fuse=1).sqe(), Status.INVALID_FIELD),
        (PropertyGet().sqe(), Status.INVALID_OPCODE),
        (FabricsCommand(fctype=1).sqe(), Status.COMMAND_SEQUENCE_ERROR),
        (FabricsCommand(fctype=5).sqe(), Status.INVALID_FIELD),
        (FabricsCommand(fctype=0x77).sqe(), Status.INVALID_OPCODE),
        (Sqe(opc=0x80), Status.INVALID_OPCODE),
    ],
)
def test_capsules_that_the_data_plane_sends_up(sqe: Sqe, status: Status) -> None:
    host = World().started()
    host.io(1)
    with pytest.raises(NvmeStatusError) as caught:
        host.world.target.io_queue_command(host.controller.key, 1, sqe, 0.0)
    assert caught.value.status == status
    assert not host.world.of(CloseIoQueue)


@pytest.mark.parametrize("fctype", [5, 6])
def test_authentication_is_not_configured(fctype: int) -> None:
    assert World().started().command(FabricsCommand(fctype=fctype).sqe()).cqe.status == Status.INVALID_FIELD


@pytest.mark.parametrize("fctype", [0x02, 0x03, 0x07, 0x09, 0xC0, 0xFF])
def test_unknown_fabrics_command(fctype: int) -> None:
    assert World().connected().command(FabricsCommand(fctype=fctype).sqe()).cqe.status == Status.INVALID_OPCODE


def test_every_connection_is_its_own() -> None:
    world = World()
    assert [world.connected().controller.cntlid for _ in range(3)] == [1, 2, 3]
    counts = world.target.connection_counts()
    assert (counts.controllers, counts.admin_queues, counts.io_queues, counts.admin_queues_total) == (3, 3, 0, 3)


def test_queue_without_controller_closes_quietly() -> None:
    world = World(config(subsystem(NQN, namespace(1))))
    host: Host = world.host()
    host.queue.close(world.now)
    assert not world.effects
