"""Get Log Page: pages, offsets, lengths, scopes (NVMe base 5.1.12)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nvmet_p2p.target.log_pages import LOG_PAGES
from nvmet_p2p.target.pages import Segments
from nvmet_p2p.wire.logpages import (
    AnaLog,
    ChangedNamespaceList,
    CommandEffects,
    CommandsSupportedLog,
    ErrorInformationEntry,
    FeatureEffects,
    FeatureEffectsLog,
    FirmwareSlotLog,
    LidSupport,
    SmartLog,
    SupportedLogPages,
)
from nvmet_p2p.wire.spec import NSID_ALL, ControllerType, Status
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import GetLogPageCommand
from tests.unit.target.harness import NQN, Host, World, config, facts, namespace, subsystem

SIZES = {
    0x00: 1024,
    0x01: 8192,
    0x02: 512,
    0x03: 512,
    0x04: 4096,
    0x05: 4096,
    0x0C: 92,
    0x12: 1024,
    0x13: 4096,
}


def ana_world() -> World:
    return World(config(subsystem(NQN, namespace(1), namespace(2, anagrpid=1), namespace(3), ana_reporting=True)))


@pytest.fixture
def host() -> Host:
    return ana_world().started()


def test_every_page_is_tested() -> None:
    assert set(SIZES) | {0x70} == set(LOG_PAGES)


@pytest.mark.parametrize("lid", SIZES)
def test_offsets_and_lengths(host: Host, lid: int) -> None:
    size = SIZES[lid]
    page = LOG_PAGES[lid].build(host.controller, GetLogPageCommand(lid=lid))
    assert page.size == size
    whole = host.log(lid, size, rae=True).data
    assert len(whole) == size
    for offset in (0, 4, 16, size // 2 & ~3, size - 4):
        assert host.log(lid, 8, offset, rae=True).data == whole[offset : offset + 8].ljust(8, b"\0")
    assert host.log(lid, size + 512, rae=True).data == whole + bytes(512)
    assert host.log(lid, 4, size, rae=True).data == bytes(4), "an offset of just the size is not beyond it"
    for offset in (size + 4, 1 << 32, (1 << 64) - 4):
        done = host.log(lid, 4, offset, rae=True)
        assert (done.cqe.status, done.data) == (Status.INVALID_FIELD, b"")


@pytest.mark.parametrize("offset", [1, 2, 3, 513])
def test_unaligned_offset(host: Host, offset: int) -> None:
    assert host.log(2, 4, offset).cqe.status == Status.INVALID_FIELD


def test_index_offset(host: Host) -> None:
    assert host.log(2, 4, ot=True).cqe.status == Status.INVALID_FIELD


@pytest.mark.parametrize("lid", SIZES)
def test_namespace_identifier(host: Host, lid: int) -> None:
    assert host.log(lid, 64, nsid=NSID_ALL).cqe.ok
    for nsid in (1, 3, 99):
        assert host.log(lid, 64, nsid=nsid).cqe.status == Status.INVALID_FIELD


def test_more_than_mdts(host: Host) -> None:
    assert host.log(2, 131072).cqe.ok
    for length in (131076, 1 << 32, 4 << 32):
        assert host.log(2, length).cqe.status == Status.INVALID_FIELD


def test_every_lid() -> None:
    worlds = {"ana": ana_world(), "plain": World()}
    cases = [(world.started(), ControllerType.IO, name) for name, world in worlds.items()]
    cases.append((worlds["plain"].discovery(), ControllerType.DISCOVERY, "discovery"))
    for host, kind, name in cases:
        supported = SupportedLogPages.parse(host.log(0, 1024).data).lids
        for lid in range(256):
            row = LOG_PAGES.get(lid)
            there = row is not None and kind in row.controllers and (lid != 0x0C or name == "ana")
            assert LidSupport.of(supported[lid]).lsupp == there, f"{name} {lid:#x}"
            status = host.log(lid, 64, rae=True).cqe.status
            assert status == (Status.SUCCESS if there else Status.INVALID_LOG_PAGE), f"{name} {lid:#x}"


def test_errors(host: Host) -> None:
    host.identify(0xFF)
    host.log(0x77, 64)
    data = host.log(1, 128).data
    first, second = (ErrorInformationEntry.parse(data[at:]) for at in (0, 64))
    assert (first.error_count, first.sqid, first.cid, first.status, first.opc) == (2, 0, host.cid - 1, 0x109, 2)
    assert (second.error_count, second.status, second.error_location, second.opc) == (1, 0x002, 40, 6)


def test_error_log_is_bounded(host: Host) -> None:
    for _ in range(300):
        assert host.identify(0xFF).cqe.more
    data = host.log(1, 8192).data
    counts = [ErrorInformationEntry.parse(data[at:]).error_count for at in range(0, 8192, 64)]
    assert counts == list(range(300, 172, -1))


def test_smart() -> None:
    @dataclass
    class Counters:
        bytes_read: int = 1_000_000
        bytes_written: int = 1
        num_read_ops: int = 5
        num_write_ops: int = 7

    world = World()
    world.target.io_counters = lambda name: Counters() if name == "disk1" else None
    smart = SmartLog.parse(world.started().log(2, 512).data)
    assert (smart.critical_warning, smart.available_spare) == (0, 100)
    assert (smart.data_units_read, smart.data_units_written) == (2, 1)
    assert (smart.host_read_commands, smart.host_write_commands) == (5, 7)


def test_firmware(host: Host) -> None:
    log = FirmwareSlotLog.parse(host.log(3, 512).data)
    assert (log.active_slot, log.next_slot) == (1, 0)
    assert log.frs[0].revision


def test_changed_namespaces() -> None:
    world = World()
    host = world.started()
    assert ChangedNamespaceList.parse(host.log(4, 4096).data).nsids == ()
    world.target.set_bdev("disk2", facts("disk2", num_blocks=4096), 0.0)
    world.target.set_bdev("disk1", None, 0.0)
    assert ChangedNamespaceList.parse(host.log(4, 4096, rae=True).data).nsids == (1, 2)
    assert ChangedNamespaceList.parse(host.log(4, 4096).data).nsids == (1, 2)
    assert ChangedNamespaceList.parse(host.log(4, 4096).data).nsids == ()


def test_too_many_changed_namespaces() -> None:
    sub = subsystem(NQN, *(namespace(nsid, "one") for nsid in range(1, 1026)), max_namespaces=2000)
    world = World(config(sub))
    host = world.started()
    world.target.set_bdev("one", None, 0.0)
    assert ChangedNamespaceList.parse(host.log(4, 4096).data).nsids == (0xFFFFFFFF,)


def test_commands(host: Host) -> None:
    log = CommandsSupportedLog.parse(host.log(5, 4096).data)
    admin = {opc for opc, word in enumerate(log.acs) if CommandEffects.of(word).csupp}
    io = {opc for opc, word in enumerate(log.iocs) if CommandEffects.of(word).csupp}
    assert admin == {0x02, 0x06, 0x08, 0x09, 0x0A, 0x0C, 0x18}
    assert io == {0x00, 0x01, 0x02, 0x05, 0x08, 0x09, 0x0C, 0x19}
    changing = {opc for opc, word in enumerate(log.iocs) if CommandEffects.of(word).lbcc}
    assert changing == {0x01, 0x08, 0x09, 0x19}
    assert host.log(5, 64, csi=2).cqe.status == Status.INVALID_FIELD
    log = CommandsSupportedLog.parse(host.world.discovery().log(5, 4096).data)
    assert not any(log.iocs)


def test_features(host: Host) -> None:
    log = FeatureEffectsLog.parse(host.log(0x12, 1024).data)
    found = {fid for fid, word in enumerate(log.fids) if FeatureEffects.of(word).fsupp}
    assert found == {0x01, 0x02, 0x04, 0x05, 0x06, 0x07, 0x0A, 0x0B, 0x0F, 0x16, 0x19, 0x81, 0x84}
    log = FeatureEffectsLog.parse(host.world.discovery().log(0x12, 1024).data)
    assert {fid for fid, word in enumerate(log.fids) if word} == {0x0B, 0x0F}


def test_ana(host: Host) -> None:
    log = AnaLog.parse(host.log(0x0C, 4096).data)
    assert log.chgcnt == 0
    assert [(group.agid, group.state, group.nsids) for group in log.groups] == [(1, 1, (1, 2)), (3, 1, (3,))]
    log = AnaLog.parse(host.log(0x0C, 4096, lsp=1).data)
    assert [(group.agid, group.nsids) for group in log.groups] == [(1, ()), (3, ())]


def test_log_page_of_a_controller_that_is_not_ready() -> None:
    assert World().connected().log(2, 64).cqe.status == Status.COMMAND_SEQUENCE_ERROR


def test_transfer_is_known_before() -> None:
    host = World().started()
    request = host.queue.prepare(Sqe(opc=2, cid=1, cdw10=2 | 1023 << 16), 0.0)
    assert (request.error, request.transfer.length) == (None, 4096)


def test_segments_build_only_what_is_read() -> None:
    built: list[int] = []
    page = Segments()

    def piece(number: int) -> bytes:
        built.append(number)
        return bytes([number]) * 10

    for number in range(100):
        page.add(10, lambda number=number: piece(number))  # type: ignore[misc]
    assert page.read(25, 10) == b"\2" * 5 + b"\3" * 5
    assert built == [2, 3]
    assert page.read(995, 20) == b"\x63" * 5 + bytes(15)
    assert page.read(1000, 4) == bytes(4)
    assert built == [2, 3, 99]
