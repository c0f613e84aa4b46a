"""Asynchronous events and Abort (NVMe base 5.1.1, 5.1.2)."""

from __future__ import annotations

import pytest

from nvmet_p2p import limits
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.effects import AbortIo
from nvmet_p2p.target.events import Event
from nvmet_p2p.wire.spec import Status
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.target.harness import Host, World, config, facts, namespace, replace, subsystem

NS_CHANGED = 0x040002
ANA_CHANGED = 0x0C0302
NS_BIT, ANA_BIT = 1 << 8, 1 << 11


def listening(world: World, bits: int = NS_BIT) -> Host:
    host = world.started()
    assert host.set_feature(0x0B, bits).ok
    return host


def resize(world: World, blocks: int, name: str = "disk1") -> None:
    world.target.set_bdev(name, facts(name, num_blocks=blocks), 0.0)


def test_event() -> None:
    world = World()
    host = listening(world)
    host.aer(0x11)
    assert host.events() == []
    resize(world, 4096)
    assert host.events() == [NS_CHANGED]
    assert host.done[-1].cqe.cid == 0x11


def test_event_is_kept_until_a_request_comes() -> None:
    world = World()
    host = listening(world)
    resize(world, 4096)
    resize(world, 8192)
    host.aer(1)
    host.aer(2)
    assert host.events() == [NS_CHANGED]


def test_masked_until_the_log_page_is_read() -> None:
    world = World()
    host = listening(world)
    for cid in (1, 2):
        host.aer(cid)
    resize(world, 4096)
    resize(world, 8192)
    assert host.log(4, 4096, rae=True).cqe.ok
    resize(world, 16384)
    assert host.events() == [NS_CHANGED], "retained"
    host.log(4, 4096)
    resize(world, 32768)
    assert host.events() == [NS_CHANGED] * 2


def test_reading_the_page_clears_what_was_not_delivered() -> None:
    world = World()
    host = listening(world)
    resize(world, 4096)
    host.log(4, 4096)
    host.aer(1)
    assert host.events() == []


def test_a_log_page_that_could_not_be_read_clears_nothing() -> None:
    world = World()
    host = listening(world)
    resize(world, 4096)
    assert not host.log(4, 64, 1 << 20).cqe.ok
    host.aer(1)
    assert host.events() == [NS_CHANGED]


def test_not_enabled() -> None:
    world = World()
    host = listening(world, 0)
    host.aer(1)
    resize(world, 4096)
    assert host.events() == []
    host.set_feature(0x0B, NS_BIT)
    resize(world, 8192)
    assert host.events() == [NS_CHANGED]


def test_disabled_while_pending() -> None:
    world = World()
    host = listening(world)
    resize(world, 4096)
    host.set_feature(0x0B, 0)
    host.set_feature(0x0B, NS_BIT)
    host.aer(1)
    assert host.events() == []


def test_one_kind_does_not_mask_another() -> None:
    world = World(config(subsystem("nqn.2026-11.com.example:one", namespace(1), ana_reporting=True)))
    host = listening(world, NS_BIT | ANA_BIT)
    for cid in (1, 2):
        host.aer(cid)
    resize(world, 4096)
    listener = world.target.config.subsystems[host.controller.subnqn].listeners[0]
    world.change(listeners=(replace(listener, ana_states={1: "inaccessible"}),))
    assert host.events() == [NS_CHANGED, ANA_CHANGED]


def test_errors_are_always_enabled() -> None:
    world = World()
    host = listening(world, 0)
    host.aer(1)
    host.controller.events.report(Event.TRANSIENT_INTERNAL_ERROR)
    assert host.events() == [0x010400]


def test_limit() -> None:
    host = World().started()
    for cid in range(0x100, 0x100 + limits.AER_LIMIT):
        host.aer(cid)
    assert not [done for done in host.done if done.request.sqe.opc == 0x0C]
    host.aer(0x200)
    assert host.done[-1].cqe.status == Status.ASYNC_EVENT_LIMIT_EXCEEDED


def test_queue_depth_is_enforced() -> None:
    host = World().started(sqsize=2)
    for cid in (0x100, 0x101, 0x102):
        host.aer(cid)
    host.aer(0x103)
    assert host.done[-1].cqe.status == Status.COMMAND_SEQUENCE_ERROR


def test_command_identifier_in_flight() -> None:
    """A CID whose command waits for its data is in use; one of an event request may be taken again."""
    host = World().started()
    first = host.queue.prepare(Sqe(opc=9, cid=5, cdw10=0x16), 0.0)
    host.submit(Sqe(opc=0x18, cid=5))
    assert (host.done[-1].cqe.status, host.done[-1].cqe.cid) == (Status.COMMAND_ID_CONFLICT, 5)
    host.queue.execute(first, bytes(512), 0.0)
    assert host.done[-1].cqe.ok
    assert host.done[-1].request is first
    host.submit(Sqe(opc=0x18, cid=5))
    assert host.done[-1].cqe.ok


def test_completes_once() -> None:
    host = World().started()
    request = host.submit(Sqe(opc=0x18, cid=5))
    before = len(host.done)
    host.queue.execute(request, b"", 0.0)
    host.queue.fail(request, request.error or _error(), 0.0)
    assert len(host.done) == before


def _error() -> NvmeStatusError:
    return NvmeStatusError(Status.INTERNAL_ERROR)


def test_sqhd_goes_round() -> None:
    host = World().started(sqsize=3)
    heads = [host.command(Sqe(opc=0x18)).cqe.sqhd for _ in range(6)]
    start = heads[0]
    assert heads == [(start + n) % 4 for n in range(6)]


# -- Abort -------------------------------------------------------------------------------------------------------------


def test_abort_of_an_event_request() -> None:
    host = World().started()
    host.aer(0x77)
    host.submit(host.abort(0, 0x77))
    aborted, done = host.done[-2:]
    assert (done.cqe.status, done.cqe.dw0) == (0, 0)
    assert (aborted.cqe.cid, aborted.cqe.status, aborted.cqe.dnr) == (0x77, Status.ABORT_REQUESTED, False)
    host.aer(0x77)
    assert host.done[-1] is done, "the CID is free"


@pytest.mark.parametrize(("sqid", "cid"), [(0, 0x5555), (1, 1), (0xFFFF, 1)])
def test_abort_of_what_is_not_there(sqid: int, cid: int) -> None:
    host = World().started()
    cqe = host.command(host.abort(sqid, cid)).cqe
    assert (cqe.status, cqe.dw0) == (0, 1)


def test_abort_of_itself() -> None:
    host = World().started()
    host.submit(Sqe(opc=8, cid=9, cdw10=9 << 16))
    assert (host.done[-1].cqe.status, host.done[-1].cqe.dw0) == (0, 1)


@pytest.mark.parametrize(("found", "dw0"), [(True, 0), (False, 1)])
def test_abort_of_an_io_command(found: bool, dw0: int) -> None:
    host = World().started()
    host.io(2)
    before = len(host.done)
    host.submit(Sqe(opc=8, cid=9, cdw10=2 | 0x33 << 16))
    effect = host.world.effects[-1]
    assert isinstance(effect, AbortIo)
    assert (effect.key, effect.qid, effect.cid) == (host.controller.key, 2, 0x33)
    assert len(host.done) == before
    effect.done(found)
    assert (host.done[-1].cqe.cid, host.done[-1].cqe.status, host.done[-1].cqe.dw0) == (9, 0, dw0)
    effect.done(True)
    assert len(host.done) == before + 1


def test_abort_limit() -> None:
    host = World().started()
    host.io(1)
    for cid in range(limits.ABORT_LIMIT):
        host.submit(Sqe(opc=8, cid=cid, cdw10=1))
    host.submit(Sqe(opc=8, cid=99, cdw10=1))
    assert host.done[-1].cqe.status == Status.ABORT_LIMIT_EXCEEDED
    for effect in host.world.of(AbortIo):
        effect.done(False)
    host.submit(Sqe(opc=8, cid=99, cdw10=1))
    assert len(host.world.of(AbortIo)) == limits.ABORT_LIMIT + 1


def test_abort_answered_after_a_reset() -> None:
    host = World().started()
    host.io(1)
    host.submit(Sqe(opc=8, cid=9, cdw10=1))
    (effect,) = host.world.of(AbortIo)
    host.set_cc(0)
    before = len(host.done)
    effect.done(True)
    assert len(host.done) == before
    assert host.controller.aborts == 0
