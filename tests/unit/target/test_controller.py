"""Properties and the life of a controller: enable, reset, shutdown, time (NVMe base 3.1.4, 3.5 to 3.9)."""

from __future__ import annotations

import pytest

from nvmet_p2p import limits
from nvmet_p2p.target.effects import CloseIoQueues, ControllerChanged, ControllerGone
from nvmet_p2p.target.properties import PROPERTIES, Capabilities
from nvmet_p2p.target.target import TIMERS_SLACK
from nvmet_p2p.wire.fabrics import PropertyGet, PropertySet
from nvmet_p2p.wire.features import HostBehaviorSupport
from nvmet_p2p.wire.spec import PropertyOffset, Status
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.target.harness import ENABLE, SHUTDOWN, Host, World, config, subsystem

KEEP_ALIVE = Sqe(opc=0x18)


# -- properties --------------------------------------------------------------------------------------------------------


def test_every_property_can_be_read() -> None:
    host = World().started()
    for row in PROPERTIES.values():
        assert host.command(PropertyGet(ofst=row.offset, attrib=row.size == 8).sqe()).cqe.ok


def test_cap() -> None:
    cap = Capabilities.parse(World().connected().get(PropertyOffset.CAP, 8).to_bytes(8, "little"))
    assert (cap.mqes, cap.cqr, cap.ams, cap.dstrd, cap.mpsmin, cap.mpsmax) == (127, True, 0, 0, 0, 0)
    assert (cap.css, cap.nssrs, cap.crwms, cap.crims) == (0b1000001, False, True, False)
    cap = Capabilities.parse(World().discovery().get(PropertyOffset.CAP, 8).to_bytes(8, "little"))
    assert cap.css == 0b10000001


def test_other_values() -> None:
    host = World().connected()
    assert host.get(PropertyOffset.VS) == 0x20000
    assert host.get(PropertyOffset.NSSR) == 0
    assert host.get(PropertyOffset.CRTO) == 30
    assert (host.get(PropertyOffset.CC), host.csts) == (0, 0)


@pytest.mark.parametrize(
    ("offset", "attrib"),
    [
        (0x00, 0),
        (0x04, 0),
        (0x08, 1),
        (0x14, 1),
        (0x14, 2),
        (0x14, 7),
        (0x15, 0),
        (0x0C, 0),
        (0x24, 0),
        (0x28, 1),
        (0x1000, 0),
    ],
)
def test_get_refused(offset: int, attrib: int) -> None:
    cqe = World().started().command(PropertyGet(ofst=offset, attrib=attrib).sqe()).cqe
    assert (cqe.status, cqe.more) == (Status.INVALID_FIELD, True)


@pytest.mark.parametrize(
    ("offset", "attrib"),
    [(0x00, 1), (0x08, 0), (0x1C, 0), (0x20, 0), (0x68, 0), (0x14, 1), (0x14, 3), (0x16, 0), (0x77, 0)],
)
def test_set_refused(offset: int, attrib: int) -> None:
    host = World().started()
    assert host.command(PropertySet(ofst=offset, attrib=attrib, value=0).sqe()).cqe.status == Status.INVALID_FIELD
    assert host.get(PropertyOffset.CC) == ENABLE


def test_reserved_attribute_bits_are_ignored() -> None:
    assert World().connected().command(PropertyGet(ofst=8, attrib=0xF8).sqe()).cqe.ok


# -- enable ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("css", [0, 6])
def test_enable(css: int) -> None:
    host = World().connected()
    assert host.command(KEEP_ALIVE).cqe.status == Status.COMMAND_SEQUENCE_ERROR
    host.set_cc(ENABLE | css << 4)
    assert host.csts == 1
    assert host.command(KEEP_ALIVE).cqe.ok
    assert host.get(PropertyOffset.CC) == ENABLE | css << 4


@pytest.mark.parametrize(
    "cc", [0x00470001, 0x00450001, 0x00560001, 0x00360001, 0x00000001, 0x00460081, 0x00460801, 0x00460011, 0x00460071]
)
def test_enable_with_what_is_not_supported(cc: int) -> None:
    host = World().connected()
    assert host.set_cc(cc).ok
    assert host.csts == 2, "CFS"
    assert host.command(KEEP_ALIVE).cqe.status == Status.COMMAND_SEQUENCE_ERROR
    host.set_cc(0)
    assert host.csts == 0
    host.set_cc(ENABLE)
    assert host.csts == 1


@pytest.mark.parametrize("cc", [1, 0x71, ENABLE])
def test_discovery_controller_has_no_entry_sizes(cc: int) -> None:
    host = World().connected("nqn.2014-08.org.nvmexpress.discovery")
    host.set_cc(cc)
    assert host.csts == 1


# -- reset -------------------------------------------------------------------------------------------------------------


def closing(host: Host) -> CloseIoQueues:
    effect = host.world.effects[-1]
    assert isinstance(effect, CloseIoQueues)
    assert effect.key == host.controller.key
    return effect


def test_reset_without_io_queues_is_done_at_once() -> None:
    host = World().started()
    assert host.set_cc(ENABLE & ~1).ok
    assert (host.csts, host.get(PropertyOffset.CC)) == (0, 0)
    assert not host.world.of(CloseIoQueues)


def test_reset_waits_for_the_io_queues() -> None:
    host = World().started()
    host.io(1)
    host.set_cc(ENABLE & ~1)
    effect = closing(host)
    assert host.csts == 1, "RDY falls when the queues are closed"
    assert host.command(KEEP_ALIVE).cqe.status == Status.COMMAND_SEQUENCE_ERROR
    refused = host.set_cc(ENABLE)
    assert (refused.status, refused.dnr) == (Status.COMMAND_SEQUENCE_ERROR, False)
    effect.done()
    assert (host.csts, host.get(PropertyOffset.CC)) == (0, 0)
    effect.done()
    host.set_cc(ENABLE)
    assert host.csts == 1
    assert host.io(1).done[-1].cqe.ok, "the queue identifier is free"


def test_reset_drops_what_is_outstanding() -> None:
    host = World().started()
    for cid in range(0x100, 0x104):
        host.aer(cid)
    dropped: list[int] = []
    host.queue.on_drop = dropped.append
    before = len(host.done)
    host.set_cc(0)
    assert len(host.done) == before + 1, "the Property Set itself, and no event request"
    assert dropped == [0x100, 0x101, 0x102, 0x103]
    host.set_cc(ENABLE)
    for cid in range(0x100, 0x104):
        host.aer(cid)
    assert len(host.done) == before + 2
    host.aer(0x200)
    assert host.done[-1].cqe.status == Status.ASYNC_EVENT_LIMIT_EXCEEDED


def test_reset_sets_features_back() -> None:
    host = World().started()
    host.set_feature(0x16, data=HostBehaviorSupport(cdfe=0b1100).build())
    host.set_feature(0x0B, 1 << 8)
    assert host.world.of(ControllerChanged)[-1].view.copy_formats == 0b1111
    host.set_cc(0)
    assert host.world.of(ControllerChanged)[-1].view.copy_formats == 0b0011
    host.set_cc(ENABLE)
    assert host.get_feature(0x0B).cqe.dw0 == 0


# -- shutdown ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shn", [1, 2])
def test_shutdown(shn: int) -> None:
    host = World().started()
    host.io(1)
    host.set_cc(ENABLE | shn << 14)
    effect = closing(host)
    assert host.csts == 1 | 1 << 2, "SHST: occurring"
    assert host.command(KEEP_ALIVE).cqe.status == Status.COMMAND_SEQUENCE_ERROR
    effect.done()
    assert host.csts == 1 | 2 << 2, "SHST: complete"
    host.set_cc(ENABLE)
    assert host.csts == 1 | 2 << 2, "only a reset leads out"
    assert host.command(KEEP_ALIVE).cqe.status == Status.COMMAND_SEQUENCE_ERROR
    host.set_cc(0)
    assert host.csts == 0
    host.set_cc(ENABLE)
    assert host.csts == 1


def test_reset_during_shutdown_and_shutdown_during_reset() -> None:
    host = World().started()
    host.io(1)
    host.set_cc(SHUTDOWN)
    host.set_cc(0)
    assert len(host.world.of(CloseIoQueues)) == 1, "one closing serves both"
    closing(host).done()
    assert host.csts & 1 == 0
    host = World().started()
    host.io(1)
    host.set_cc(0)
    host.set_cc(1 << 14)
    closing(host).done()
    assert host.csts == 2 << 2


def test_shutdown_of_a_disabled_controller() -> None:
    host = World().connected()
    host.set_cc(1 << 14)
    assert host.csts == 2 << 2


def test_shutdown_notification_that_is_reserved() -> None:
    host = World().started()
    assert host.set_cc(ENABLE | 3 << 14).status == Status.INVALID_FIELD
    assert (host.csts, host.get(PropertyOffset.CC)) == (1, ENABLE)


def test_queues_closed_after_the_end_of_the_association() -> None:
    host = World().started()
    host.io(1)
    host.set_cc(0)
    effect = closing(host)
    host.queue.close(0.0)
    effect.done()
    assert isinstance(host.world.effects[-1], ControllerGone)


# -- the end -----------------------------------------------------------------------------------------------------------


def test_end_of_the_admin_connection() -> None:
    world = World()
    host = world.started()
    key = host.controller.key
    host.io(1)
    host.aer(9)
    host.queue.close(world.now)
    host.queue.close(world.now)
    assert [effect.key for effect in world.of(ControllerGone)] == [key]
    assert not world.target.controllers()
    before = len(host.done)
    assert host.command(KEEP_ALIVE).cqe.status == Status.COMMAND_SEQUENCE_ERROR
    assert len(host.done) == before + 1


# -- Keep Alive --------------------------------------------------------------------------------------------------------


def gone(world: World) -> bool:
    return bool(world.of(ControllerGone))


def test_expiry() -> None:
    world = World()
    world.started(kato=2000)
    world.advance(1.99)
    assert not gone(world)
    world.advance(2.02)
    assert gone(world)
    assert "keep alive" in world.of(ControllerGone)[0].reason
    assert world.target.next_timer() is None


def test_commands_keep_it() -> None:
    world = World()
    host = world.started(kato=2000)
    for _ in range(20):
        world.advance(1.5)
        host.get(PropertyOffset.CSTS)
    assert not gone(world)
    world.advance(4.1)
    assert gone(world)


def test_keep_alive_command_starts_an_interval() -> None:
    world = World()
    host = world.started(kato=2000)
    world.advance(1.9)
    host.command(KEEP_ALIVE)
    world.advance(1.9)
    assert not gone(world)
    world.advance(0.2)
    assert gone(world)


def test_io_keeps_it() -> None:
    world = World()
    host = world.started(kato=2000)
    for count in range(1, 20):
        world.activity[host.controller.key] = count
        world.advance(2.0)
    assert not gone(world)
    world.advance(4.1)
    assert gone(world)


def test_no_timer_without_kato() -> None:
    world = World()
    world.started(kato=0)
    assert world.target.next_timer() is None
    world.advance(10_000)
    assert not gone(world)


def test_discovery_gets_a_timer() -> None:
    world = World()
    world.discovery(kato=0)
    world.advance(limits.DISCOVERY_KATO_MS / 1000 * 2 + 1)
    assert gone(world)


def test_set_features_starts_and_stops_it() -> None:
    world = World()
    host = world.started(kato=0)
    called: list[bool] = []
    world.target.on_deadline = lambda: called.append(True)
    assert host.set_feature(0x0F, 1500).ok
    assert called, "the deadline has come nearer"
    assert host.get_feature(0x0F).cqe.dw0 == 2000
    assert host.set_feature(0x0F, 0x80000000).status == Status.KEEP_ALIVE_INVALID
    assert host.get_feature(0x0F).cqe.dw0 == 2000
    host.set_feature(0x0F, 0)
    world.advance(100)
    assert not gone(world)


def test_timer_stands_still_while_disabled_or_shut_down() -> None:
    for cc in (0, SHUTDOWN):
        world = World()
        host = world.started(kato=1000)
        host.set_cc(cc)
        world.advance(limits.ENABLE_TIMEOUT_S - 1)
        assert not gone(world)
        world.advance(2)
        assert gone(world), "but not for ever"


def test_host_that_dies_after_connect() -> None:
    world = World()
    world.connected(kato=1000)
    world.advance(2.1)
    assert gone(world)
    world = World()
    world.connected(kato=0)
    world.advance(limits.ENABLE_TIMEOUT_S + 1)
    assert gone(world)


def test_a_stall_of_ours_is_forgiven_once() -> None:
    world = World()
    world.started(kato=2000)
    world.advance(2.0)
    world.now += 3.0
    world.target.handle_timer(world.now)
    assert not gone(world), "what came meanwhile may lie unread"
    world.now += 3.0
    world.target.handle_timer(world.now)
    assert gone(world)


def test_many_controllers_share_the_timers() -> None:
    world = World(config(subsystem()))
    living = [world.started(kato=1000 * (n % 5 + 1)) for n in range(50)]
    for _ in range(30):
        world.advance(0.9)
        for host in living:
            host.command(KEEP_ALIVE)
    assert not gone(world)
    assert len(world.target._timers) <= 2 * 50 + TIMERS_SLACK + 1, "bounded, however often the timers start anew"
    world.advance(12)
    assert len(world.of(ControllerGone)) == 50
