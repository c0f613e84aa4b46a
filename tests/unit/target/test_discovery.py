"""The discovery service: who sees what, filters, generations, events (NVMe base 3.1.3.3, 5.1.12.3.1)."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from nvmet_p2p.target.config import ListenAddress, ReferralConfig
from nvmet_p2p.target.discovery import EXTENDED_ENTRY_BYTES
from nvmet_p2p.target.validate import DISCOVERY_NQN
from nvmet_p2p.wire.discovery import DiscoveryEntry, DiscoveryHeader, DiscoveryLog
from nvmet_p2p.wire.spec import Status, Subtype
from tests.unit.target.harness import (
    ALICE,
    BOB,
    DISC,
    ENABLE,
    HERE,
    NQN,
    OTHER_NQN,
    THERE,
    Host,
    World,
    config,
    hosts,
    namespace,
    replace,
    subsystem,
)

CHANGED = 0x70F002
FAR = replace(HERE, traddr="203.0.113.9", trsvcid="8009")


def read(host: Host) -> DiscoveryLog:
    head = DiscoveryHeader.parse(host.log(0x70, 1024).data)
    return DiscoveryLog.parse(host.log(0x70, 1024 * (1 + head.numrec)).data)


def seen(host: Host) -> list[tuple[int, str, str]]:
    return [(entry.subtype, entry.subnqn, entry.trsvcid) for entry in read(host).entries]


OWN = (Subtype.CURRENT_DISCOVERY, DISCOVERY_NQN, "4420")


def test_entries() -> None:
    world = World(config(subsystem(NQN, listeners=[HERE, THERE])))
    log = read(world.discovery())
    own, first, second = log.entries
    assert (own.subtype, own.subnqn, own.traddr, own.trsvcid, own.eflags) == (3, DISCOVERY_NQN, HERE.traddr, "4420", 3)
    assert (first.trtype, first.adrfam, first.subtype, first.subnqn) == (3, 1, 2, NQN)
    assert (first.traddr, first.trsvcid, first.cntlid, first.asqsz, first.eflags) == (
        "192.0.2.1",
        "4420",
        0xFFFF,
        128,
        0,
    )
    assert first.treq == 0b110, "no secure channel; SQ flow control may be disabled"
    assert first.tsas == bytes(256)
    assert (second.adrfam, second.traddr, second.trsvcid) == (2, "2001:db8::1", "4421")
    assert own.portid == first.portid != second.portid


def test_secure_channel() -> None:
    sub = subsystem(NQN)
    world = World(config(replace(sub, listeners=(replace(sub.listeners[0], secure_channel=True),))))
    entry = read(world.discovery()).entries[1]
    assert (entry.treq & 3, entry.tsas[0]) == (1, 2)


def test_own_listeners() -> None:
    own = subsystem(DISCOVERY_NQN, listeners=[DISC], subtype="Discovery")
    world = World(config(own, subsystem(NQN)))
    assert seen(world.discovery(DISC)) == [(3, DISCOVERY_NQN, "8009"), (2, NQN, "4420")]
    assert seen(world.discovery(HERE)) == [OWN, (3, DISCOVERY_NQN, "8009"), (2, NQN, "4420")]


def test_allow_lists() -> None:
    world = World(config(subsystem(NQN, allow_any_host=False, hosts=hosts(ALICE)), subsystem(OTHER_NQN)))
    assert seen(world.discovery(hostnqn=ALICE)) == [OWN, (2, NQN, "4420"), (2, OTHER_NQN, "4420")]
    assert seen(world.discovery(hostnqn=BOB)) == [OWN, (2, OTHER_NQN, "4420")]
    assert seen(world.discovery(hostnqn=b"")) == [OWN, (2, OTHER_NQN, "4420")]


@pytest.mark.parametrize(
    ("words", "ports"),
    [
        ("match_any", ["4420", "4421", "4420", "4420"]),
        ("transport", ["4420", "4421", "4420"]),
        ("address", ["4420", "4420"]),
        ("svcid", ["4420", "4420", "4420"]),
        ("transport,address", ["4420"]),
        ("transport,address,svcid", ["4420"]),
        ("transport,svcid", ["4420", "4420"]),
    ],
)
def test_filter(words: str, ports: list[str]) -> None:
    elsewhere = replace(HERE, traddr="192.0.2.99")
    rdma = replace(HERE, trtype="RDMA")
    world = World(config(subsystem(NQN, listeners=[HERE, THERE, elsewhere, rdma]), discovery_filter=words))
    assert [port for kind, _, port in seen(world.discovery()) if kind == Subtype.NVM] == ports


def test_referrals() -> None:
    referral = ReferralConfig(address=FAR, secure_channel=True)
    hidden = ReferralConfig(address=replace(FAR, trsvcid="8010"), allow_any_host=False)
    log = read(World(config(subsystem(NQN), referrals=(referral, hidden))).discovery())
    assert [entry.subtype for entry in log.entries] == [3, 2, 1]
    entry = log.entries[-1]
    assert (entry.traddr, entry.trsvcid, entry.subnqn, entry.treq) == (FAR.traddr, "8009", DISCOVERY_NQN, 1)
    assert (entry.asqsz, entry.cntlid, entry.portid, entry.tsas[0]) == (32, 0xFFFF, 0, 2)


def test_every_offset() -> None:
    world = World(config(subsystem(NQN, listeners=[HERE, THERE])))
    host = world.discovery()
    whole = host.log(0x70, 4096).data
    assert b"".join(host.log(0x70, 508, at).data for at in range(0, 4064, 508)) == whole[:4064]
    assert host.log(0x70, 8192).data == whole + bytes(4096)
    assert host.log(0x70, 4, 4096).data == bytes(4)
    for offset in (4100, 1 << 32, (1 << 64) - 4):
        assert host.log(0x70, 4, offset).cqe.status == Status.INVALID_FIELD


def test_extended_entries() -> None:
    world = World(config(subsystem(NQN, listeners=[HERE, THERE])))
    host = world.discovery()
    page = host.log(0x70, 8192, lsp=1).data
    head = DiscoveryHeader.parse(page)
    assert (head.numrec, head.dlpf, head.tdlpl) == (3, 1, 1024 + 3 * EXTENDED_ENTRY_BYTES)
    for number in range(3):
        start = 1024 + number * EXTENDED_ENTRY_BYTES
        assert DiscoveryEntry.parse(page[start:]) == read(host).entries[number]
        assert struct.unpack_from("<IH", page, start + 1024) == (EXTENDED_ENTRY_BYTES, 0)


def test_port_local_entries() -> None:
    world = World(config(subsystem(NQN, listeners=[HERE, THERE]), referrals=(ReferralConfig(address=FAR),)))
    page = world.discovery().log(0x70, 8192, lsp=2).data
    log = DiscoveryLog.parse(page)
    assert [(entry.subtype, entry.trsvcid) for entry in log.entries] == [(3, "4420"), (2, "4420")]
    assert DiscoveryHeader.parse(page).dlpf == 2


def test_the_page_belongs_to_discovery_controllers() -> None:
    assert World().started().log(0x70, 1024).cqe.status == Status.INVALID_LOG_PAGE


# -- generations and events --------------------------------------------------------------------------------------------


def listening(world: World, hostnqn: str = ALICE) -> Host:
    host = world.discovery(kato=30_000, hostnqn=hostnqn)
    host.set_feature(0x0B, 1 << 31)
    host.aer(0x100)
    host.aer(0x101)
    return host


def test_changes_that_show() -> None:
    world = World(config(subsystem(NQN)))
    host = listening(world)
    generation = read(host).genctr
    steps: list[Callable[[], None]] = [
        lambda: world.apply(config(subsystem(NQN), subsystem(OTHER_NQN))),
        lambda: world.change(listeners=subsystem(listeners=[HERE, THERE]).listeners),
        lambda: world.apply(replace(world.target.config, referrals=(ReferralConfig(address=FAR),))),
        lambda: world.apply(replace(world.target.config, discovery_filter="address")),
        lambda: world.change(OTHER_NQN, allow_any_host=False),
        lambda: world.change(OTHER_NQN, hosts=hosts(ALICE)),
        lambda: world.apply(config(subsystem(NQN))),
    ]
    for count, step in enumerate(steps, 1):
        step()
        assert host.events() == [CHANGED] * count
        log = read(host)
        assert log.genctr == generation + count
        host.aer(0x100 + count % 2)


def test_changes_that_do_not_show() -> None:
    world = World(config(subsystem(NQN), subsystem(OTHER_NQN, allow_any_host=False, hosts=hosts(BOB))))
    host, bob = listening(world), listening(world, BOB)
    generation = read(host).genctr
    world.change(namespaces={1: namespace(1)})
    world.target.set_bdev("disk1", None, 0.0)
    assert read(host).genctr == generation
    world.change(OTHER_NQN, listeners=subsystem(listeners=[HERE, THERE]).listeners)
    assert (host.events(), bob.events()) == ([], [CHANGED])


def test_masked_until_read() -> None:
    world = World(config(subsystem(NQN)))
    host = listening(world)
    world.apply(config(subsystem(NQN), subsystem(OTHER_NQN)))
    world.apply(config(subsystem(NQN)))
    assert host.events() == [CHANGED]
    host.log(0x70, 1024)
    world.apply(config(subsystem(NQN), subsystem(OTHER_NQN)))
    assert host.events() == [CHANGED] * 2


def test_host_that_is_no_longer_allowed_to_discover() -> None:
    own = subsystem(DISCOVERY_NQN, listeners=[DISC], subtype="Discovery")
    world = World(config(own, subsystem(NQN)))
    world.discovery(DISC)
    world.change(DISCOVERY_NQN, allow_any_host=False, hosts=hosts(BOB))
    assert not world.target.controllers()


def test_a_listener_on_all_addresses_is_told_by_the_one_that_the_host_used() -> None:
    every, every6 = replace(HERE, traddr="0.0.0.0"), replace(THERE, traddr="::")
    own = subsystem(DISCOVERY_NQN, listeners=[DISC], subtype="Discovery")
    world = World(config(own, subsystem(NQN, listeners=[every, every6])))

    def told(listener: ListenAddress, reached: str) -> list[tuple[str, str]]:
        host = Host(world, listener)
        host.queue.reached = reached
        host.connect(DISCOVERY_NQN)
        host.set_cc(ENABLE)
        return [(entry.traddr, entry.trsvcid) for entry in read(host).entries]

    assert told(every, "192.0.2.5") == [("192.0.2.5", "4420"), (DISC.traddr, "8009"), ("192.0.2.5", "4420")]
    assert told(every6, "2001:db8::5") == [("2001:db8::5", "4421"), (DISC.traddr, "8009"), ("2001:db8::5", "4421")]
    assert told(DISC, DISC.traddr) == [(DISC.traddr, "8009"), (DISC.traddr, "4420")]
    world.apply(replace(world.target.config, discovery_filter="address"))
    assert told(every, "192.0.2.5") == [("192.0.2.5", "4420"), ("192.0.2.5", "4420")]
    assert told(DISC, DISC.traddr) == [(DISC.traddr, "8009"), (DISC.traddr, "4420")]


def test_port_identifiers_do_not_run_out() -> None:
    world = World(config(subsystem(NQN)))
    host = world.discovery()
    first = read(host).entries[1].portid
    for port in range(5000, 5050):
        extra = replace(HERE, trsvcid=str(port))
        world.apply(config(subsystem(NQN, listeners=[HERE, extra])))
        kept, new = read(host).entries[1:]
        assert (kept.portid, new.portid) == (first, first + 1)
