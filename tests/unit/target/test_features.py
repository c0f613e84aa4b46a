"""Get and Set Features: each feature, each SEL, each refusal (NVMe base 5.1.11, 5.1.25)."""

from __future__ import annotations

import pytest

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.effects import ControllerChanged, ControllerView
from nvmet_p2p.target.features import FEATURES, Done
from nvmet_p2p.wire.features import HostBehaviorSupport
from nvmet_p2p.wire.identify import IdentifyNamespace
from nvmet_p2p.wire.spec import NSID_ALL, ControllerType, Status
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.target.harness import ALICE, BOB, HOSTID, Host, World, facts, replace

PER_NAMESPACE = {fid for fid, row in FEATURES.items() if row.per_namespace}


@pytest.fixture
def host() -> Host:
    return World().started()


def arguments(fid: int) -> tuple[int, int]:
    """(dword 11, NSID) with which a feature can be read."""
    return (1 if fid == 0x81 else 0, 1 if fid in PER_NAMESPACE else 0)


def test_every_feature(host: Host) -> None:
    discovery = host.world.discovery()
    for one, kind in ((host, ControllerType.IO), (discovery, ControllerType.DISCOVERY)):
        for fid in range(256):
            cdw11, nsid = arguments(fid)
            row = FEATURES.get(fid)
            there = row is not None and kind in row.controllers
            for sel in (0, 1, 2, 3):
                cqe = one.get_feature(fid, cdw11, nsid, sel).cqe
                assert cqe.status == (Status.SUCCESS if there else Status.INVALID_FIELD), f"{fid:#x} SEL {sel}"
            for sel in (4, 7):
                assert one.get_feature(fid, cdw11, nsid, sel).cqe.status == Status.INVALID_FIELD
            if not there:
                assert one.set_feature(fid).status == Status.INVALID_FIELD
            else:
                assert one.set_feature(fid, cdw11, nsid=nsid, save=True).status == Status.FEATURE_NOT_SAVEABLE


@pytest.mark.parametrize(
    ("fid", "changeable", "per_namespace"),
    [(0x01, 1, 0), (0x05, 1, 1), (0x06, 0, 0), (0x07, 1, 0), (0x0B, 1, 0), (0x0F, 1, 0), (0x81, 0, 0), (0x84, 1, 1)],
)
def test_capabilities(host: Host, fid: int, changeable: int, per_namespace: int) -> None:
    done = host.get_feature(fid, sel=3)
    assert (done.cqe.dw0, done.data) == (changeable << 2 | per_namespace << 1, b"")


@pytest.mark.parametrize("nsid", [1, 3, 77])
def test_set_for_one_namespace(host: Host, nsid: int) -> None:
    assert host.set_feature(0x01, 7, nsid=nsid).status == Status.FEATURE_NOT_NAMESPACE_SPECIFIC
    assert host.set_feature(0x01, 7, nsid=NSID_ALL).ok
    assert host.get_feature(0x01, nsid=1).cqe.ok


@pytest.mark.parametrize("fid", sorted(PER_NAMESPACE))
def test_namespace_that_is_not_there(host: Host, fid: int) -> None:
    for nsid, status in ((0, 0x0B), (33, 0x0B), (0xFFFFFFFE, 0x0B), (3, 0x02)):
        assert host.get_feature(fid, nsid=nsid).cqe.status == status
        assert host.set_feature(fid, 0, nsid=nsid).status == status
    assert host.get_feature(fid, nsid=NSID_ALL).cqe.status == Status.INVALID_NAMESPACE_OR_FORMAT


@pytest.mark.parametrize(
    ("fid", "default", "value", "stored"),
    [
        (0x01, 7, 0x01020304, 0x01020304),
        (0x01, 7, 0xFFFFFFFF, 0xFFFFFF07),
        (0x02, 0, 0x20, 0x20),
        (0x04, 0x157, 0x140, 0x140),
        (0x0A, 0, 0xFFFFFFFF, 1),
        (0x0B, 0, 0xFFFFFFFF, 0x11F),
        (0x19, 0, 0, 0),
    ],
)
def test_values(host: Host, fid: int, default: int, value: int, stored: int) -> None:
    assert host.get_feature(fid).cqe.dw0 == default
    assert host.set_feature(fid, value).ok
    assert host.get_feature(fid).cqe.dw0 == stored
    assert host.get_feature(fid, sel=1).cqe.dw0 == default
    assert host.get_feature(fid, sel=2).cqe.dw0 == default


@pytest.mark.parametrize(
    ("fid", "value", "status"),
    [
        (0x02, 1, Status.INVALID_FIELD),
        (0x04, 1 << 16, Status.INVALID_FIELD),
        (0x04, 2 << 20, Status.INVALID_FIELD),
        (0x06, 0, Status.FEATURE_NOT_CHANGEABLE),
        (0x07, 0xFFFF, Status.INVALID_FIELD),
        (0x07, 0xFFFF0000, Status.INVALID_FIELD),
        (0x19, 1, Status.IO_COMMAND_SET_COMBINATION_REJECTED),
    ],
)
def test_values_that_are_refused(host: Host, fid: int, value: int, status: Status) -> None:
    assert host.set_feature(fid, value).status == status


def test_thresholds_over_and_under(host: Host) -> None:
    assert host.get_feature(0x04, 1 << 20).cqe.dw0 == 0
    assert host.set_feature(0x04, 0x100 | 1 << 20 | 0xF << 16).ok
    assert (host.get_feature(0x04, 1 << 20).cqe.dw0, host.get_feature(0x04).cqe.dw0) == (0x100, 0x157)
    for cdw11 in (1 << 16, 9 << 16, 0xF << 16, 3 << 20):
        assert host.get_feature(0x04, cdw11).cqe.status == Status.INVALID_FIELD


def test_error_recovery(host: Host) -> None:
    assert host.set_feature(0x05, 7, nsid=1).ok
    assert [host.get_feature(0x05, nsid=nsid).cqe.dw0 for nsid in (1, 2)] == [7, 0]
    assert host.set_feature(0x05, 9, nsid=NSID_ALL).ok
    assert [host.get_feature(0x05, nsid=nsid).cqe.dw0 for nsid in (1, 2)] == [9, 9]
    assert host.set_feature(0x05, 1 << 16, nsid=1).status == Status.INVALID_FIELD


def test_write_cache(host: Host) -> None:
    assert host.get_feature(0x06).cqe.dw0 == 1
    assert host.set_feature(0x06, 1).ok


@pytest.mark.parametrize("asked", [0, 3, 1023, 0xFFFE])
def test_number_of_queues(host: Host, asked: int) -> None:
    granted = 126 << 16 | 126
    assert host.set_feature(0x07, asked << 16 | asked).dw0 == granted
    assert host.get_feature(0x07).cqe.dw0 == granted
    host.io(1)
    assert host.set_feature(0x07, 0).status == Status.COMMAND_SEQUENCE_ERROR


def test_discovery_can_enable_its_own_event_alone() -> None:
    host = World().discovery()
    host.set_feature(0x0B, 0xFFFFFFFF)
    assert host.get_feature(0x0B).cqe.dw0 == 1 << 31


def test_host_behavior(host: Host) -> None:
    assert HostBehaviorSupport.parse(host.get_feature(0x16).data) == HostBehaviorSupport()
    data = HostBehaviorSupport(acre=1, lbafee=1, cdfe=0b0100).build()
    assert host.set_feature(0x16, data=data).ok
    assert host.get_feature(0x16).data == data
    assert host.get_feature(0x16, sel=1).data == bytes(512)
    assert host.world.of(ControllerChanged)[-1].view.copy_formats == 0b0111
    count = len(host.world.effects)
    assert host.set_feature(0x16, data=data).ok
    assert len(host.world.effects) == count, "nothing new"


@pytest.mark.parametrize("behavior", [{"acre": 2}, {"etdas": 2}, {"lbafee": 2}, {"cdfe": 1}, {"cdfe": 1 << 4}])
def test_host_behavior_that_is_refused(host: Host, behavior: dict[str, int]) -> None:
    assert host.set_feature(0x16, data=HostBehaviorSupport(**behavior).build()).status == Status.INVALID_FIELD
    assert host.controller.view.copy_formats == 0b0011


def test_data_of_another_length(host: Host) -> None:
    assert host.set_feature(0x16, data=bytes(511)).status == Status.SGL_INVALID_DATA_LENGTH


def test_host_identifier(host: Host) -> None:
    assert host.get_feature(0x81, 1).data == HOSTID
    assert host.get_feature(0x81, 0).cqe.status == Status.INVALID_FIELD
    request = host.queue.prepare(Sqe(opc=9, cid=1, cdw10=0x81, cdw11=1), 0.0)
    assert request.error is not None
    assert request.error.status == Status.COMMAND_SEQUENCE_ERROR
    assert request.transfer.length == 0, "its data is not wanted"


# -- write protection --------------------------------------------------------------------------------------------------


def test_write_protection_holds_for_every_host() -> None:
    world = World()
    told: list[tuple[str, int, bool]] = []

    def keep(nqn: str, nsid: int, state: bool, done: Done) -> None:
        told.append((nqn, nsid, state))
        done(None)

    world.target.on_protect = keep
    alice, bob = world.started(hostnqn=ALICE), world.started(hostnqn=BOB)
    bob.set_feature(0x0B, 1 << 8)
    bob.aer(9)
    assert alice.set_feature(0x84, 1, nsid=1).ok
    for host in (alice, bob):
        assert host.get_feature(0x84, nsid=1).cqe.dw0 == 1
        assert host.get_feature(0x84, nsid=2).cqe.dw0 == 0
        assert host.controller.view.namespaces[1].write_protected
        assert IdentifyNamespace.parse(host.identify(0, 1).data).nsattr == 1
    assert bob.events() == [0x040002]
    assert told == [(alice.controller.subnqn, 1, True)]
    assert alice.set_feature(0x84, 1, nsid=1).ok
    assert alice.set_feature(0x84, 0, nsid=1).ok
    assert not bob.controller.view.namespaces[1].write_protected
    assert told[1:] == [(alice.controller.subnqn, 1, False)]


def test_write_protection_completes_when_it_is_durable() -> None:
    world = World()
    waiting: list[Done] = []
    world.target.on_protect = lambda _nqn, _nsid, _state, done: waiting.append(done)
    host = world.started()
    request = host.submit(Sqe(opc=9, cid=77, nsid=1, cdw10=0x84, cdw11=1))
    assert host.controller.view.namespaces[1].write_protected, "no write passes any more"
    before = len(host.done)
    world.target.withdraw_protection(host.controller.subnqn, 1)
    last: ControllerView = world.of(ControllerChanged)[-1].view
    assert not last.namespaces[1].write_protected, "a Set Features that fails changes nothing"
    waiting.pop()(NvmeStatusError(Status.INTERNAL_ERROR, "the disk is full"))
    assert [done.request for done in host.done[before:]] == [request]
    assert host.done[-1].cqe.status == Status.INTERNAL_ERROR


def test_write_protection_of_the_configuration_and_of_a_new_namespace() -> None:
    world = World()
    host = world.started()
    host.set_feature(0x84, 1, nsid=1)
    old = world.target.config.subsystems[host.controller.subnqn].namespaces
    kept = {**old, 1: replace(old[1], write_protected=True)}
    world.change(namespaces=kept)
    assert host.controller.view.namespaces[1].write_protected
    world.change(namespaces={**old, 1: replace(old[1], uuid="99999999-0000-4000-8000-000000000001")})
    assert not host.controller.view.namespaces[1].write_protected


@pytest.mark.parametrize("state", [2, 3, 4, 7])
def test_states_that_are_not_there(host: Host, state: int) -> None:
    assert host.set_feature(0x84, state, nsid=1).status == Status.INVALID_FIELD


def test_read_only_back_end_cannot_be_unprotected() -> None:
    world = World()
    world.target.set_bdev("disk1", facts("disk1", readonly=True), 0.0)
    host = world.started()
    assert host.get_feature(0x84, nsid=1).cqe.dw0 == 1
    assert host.set_feature(0x84, 0, nsid=1).status == Status.FEATURE_NOT_CHANGEABLE
    assert host.set_feature(0x84, 1, nsid=1).ok
