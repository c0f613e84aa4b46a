"""Changes of the configuration and of back ends: who is told, who has to go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nvmet_p2p.target.config import TransportConfig
from nvmet_p2p.target.effects import ControllerChanged, ControllerGone, ControllerView, Placement
from nvmet_p2p.wire.identify import NamespaceList
from nvmet_p2p.wire.logpages import AnaLog, ChangedNamespaceList
from nvmet_p2p.wire.spec import AnaState
from tests.unit.target.harness import (
    ALICE,
    BOB,
    DISC,
    HERE,
    NQN,
    OTHER_NQN,
    THERE,
    Host,
    World,
    config,
    facts,
    hosts,
    namespace,
    replace,
    subsystem,
)

NS_CHANGED, ANA_CHANGED = 0x040002, 0x0C0302


def listening(world: World, hostnqn: str = ALICE, **params: Any) -> Host:
    host = world.started(hostnqn=hostnqn, **params)
    host.set_feature(0x0B, 1 << 8 | 1 << 11)
    host.aer(0x100)
    host.aer(0x101)
    return host


def changed(host: Host) -> tuple[int, ...]:
    return ChangedNamespaceList.parse(host.log(4, 4096).data).nsids


def test_nothing_new_is_no_effect() -> None:
    world = World()
    host = listening(world)
    count = len(world.effects)
    world.apply(world.target.config)
    world.apply(config(subsystem(NQN, namespace(1), namespace(2))))
    world.target.set_bdev("disk1", facts("disk1"), 0.0)
    world.target.set_bdev("stranger", facts("stranger"), 0.0)
    world.target.set_bdev("stranger", None, 0.0)
    assert (len(world.effects), host.events()) == (count, [])


def test_namespace_comes_when_its_back_end_does() -> None:
    world = World()
    host = listening(world)
    world.change(namespaces={nsid: namespace(nsid) for nsid in (1, 2, 3)})
    assert host.events() == []
    assert set(host.controller.view.namespaces) == {1, 2}
    world.target.set_bdev("disk3", facts("disk3"), 0.0)
    assert host.events() == [NS_CHANGED]
    assert changed(host) == (3,)
    assert set(world.of(ControllerChanged)[-1].view.namespaces) == {1, 2, 3}


def test_back_end_goes_and_comes_back() -> None:
    world = World()
    host = listening(world)
    world.target.set_bdev("disk1", None, 0.0)
    assert set(host.controller.view.namespaces) == {2}
    assert changed(host) == (1,)
    world.target.set_bdev("disk1", facts("disk1"), 0.0)
    assert changed(host) == (1,)
    assert host.events() == [NS_CHANGED] * 2


def test_namespace_removed() -> None:
    world = World()
    host = listening(world)
    world.change(namespaces={1: namespace(1)})
    assert (host.events(), changed(host)) == ([NS_CHANGED], (2,))
    assert set(host.controller.view.namespaces) == {1}


def test_facts_of_a_removed_back_end_are_not_those_of_the_next_of_that_name() -> None:
    world = World()
    host = listening(world)
    world.apply(config(subsystem(NQN, namespace(1))))
    world.apply(config(subsystem(NQN, namespace(1), namespace(2))))
    assert set(host.controller.view.namespaces) == {1}


def test_placements_are_of_a_namespace_through_a_listener_and_hosts_do_not_notice() -> None:
    world = World(config(subsystem(NQN, namespace(1), namespace(2), listeners=(HERE, THERE))))
    host, other = listening(world), listening(world, BOB, listener=THERE)
    count = len(world.effects)
    placed = {NQN: {(1, HERE): Placement("p", "q", "r", strict=True), (9, HERE): Placement("p")}}
    world.target.place(placed, 0.0)
    assert host.controller.view.namespaces[1].placement == Placement("p", "q", "r", strict=True)
    assert host.controller.view.namespaces[2].placement == Placement()
    assert other.controller.view.namespaces[1].placement == Placement()
    assert [effect.view.key for effect in world.of(ControllerChanged)[-1:]] == [host.controller.key]
    assert len(world.effects) == count + 1, "the other's view is as it was"
    world.target.place(dict(placed), 0.0)
    assert len(world.effects) == count + 1
    assert host.events() == other.events() == []
    world.target.place({}, 0.0)
    assert host.controller.view.namespaces[1].placement == Placement()


def test_a_placement_counts_from_the_first_view_on() -> None:
    """A strict policy may have been admitted before its subsystem, or its namespace, is there."""
    world = World()
    world.target.place({NQN: {(3, HERE): Placement("p")}, OTHER_NQN: {(1, HERE): Placement("q")}}, 0.0)
    host = listening(world)
    world.target.set_bdev("disk3", facts("disk3"), 0.0)
    world.change(namespaces={nsid: namespace(nsid) for nsid in (1, 2, 3)})
    views = [effect.view for effect in world.of(ControllerChanged) if 3 in effect.view.namespaces]
    assert [view.namespaces[3].placement for view in views] == [Placement("p")]
    world.apply(config(subsystem(NQN, namespace(1)), subsystem(OTHER_NQN, namespace(1, "disk2"))))
    assert world.started(nqn=OTHER_NQN).controller.view.namespaces[1].placement == Placement("q")
    assert host.controller.view.namespaces[1].placement == Placement()


def test_resize() -> None:
    world = World()
    host = listening(world)
    count = len(world.of(ControllerChanged))
    world.target.set_bdev("disk1", facts("disk1", num_blocks=4096), 0.0)
    assert (host.events(), changed(host)) == ([NS_CHANGED], (1,))
    assert len(world.of(ControllerChanged)) == count, "the data plane knows the size itself"


def test_masking() -> None:
    world = World()
    alice, bob = listening(world, ALICE), listening(world, BOB)
    hidden = namespace(2, no_auto_visible=True, hosts=(ALICE,))
    world.change(namespaces={1: namespace(1), 2: hidden})
    assert (alice.events(), bob.events()) == ([], [NS_CHANGED])
    assert (set(alice.controller.view.namespaces), set(bob.controller.view.namespaces)) == ({1, 2}, {1})
    world.change(namespaces={1: namespace(1), 2: replace(hidden, hosts=(BOB,))})
    assert (changed(alice), changed(bob)) == ((2,), (2,))
    assert (set(alice.controller.view.namespaces), set(bob.controller.view.namespaces)) == ({1}, {1, 2})


# -- who has to go -----------------------------------------------------------------------------------------------------


def reasons(world: World) -> list[tuple[int, str]]:
    return [(effect.key, effect.reason) for effect in world.of(ControllerGone)]


def test_host_removed_from_the_allow_list() -> None:
    world = World(config(subsystem(NQN, allow_any_host=False, hosts=hosts(ALICE, BOB))))
    alice, bob = world.started(hostnqn=ALICE), world.started(hostnqn=BOB)
    world.change(hosts=hosts(BOB))
    assert reasons(world) == [(alice.controller.key, "the host is no longer allowed")]
    assert bob.csts & 1
    world.change(allow_any_host=True, hosts={})
    assert bob.csts & 1
    world.change(allow_any_host=False)
    assert len(reasons(world)) == 2


def test_listener_removed() -> None:
    world = World(config(subsystem(NQN, listeners=[HERE, THERE]), subsystem(OTHER_NQN, listeners=[THERE])))
    here, there = world.started(), world.started(listener=THERE)
    other, finder = world.started(OTHER_NQN, listener=THERE), world.discovery(THERE)
    world.change(listeners=subsystem(listeners=[HERE]).listeners)
    assert reasons(world) == [(there.controller.key, "the listener was removed")]
    assert here.csts & other.csts & finder.csts & 1
    world.change(OTHER_NQN, listeners=())
    gone = [key for key, _ in reasons(world)]
    assert gone[1:] == [other.controller.key, finder.controller.key]


def test_subsystem_removed_and_made_again() -> None:
    world = World()
    host, finder = world.started(), world.discovery()
    world.apply(config(subsystem(OTHER_NQN)))
    assert reasons(world) == [(host.controller.key, "the subsystem was removed")]
    assert finder.csts & 1, "another subsystem listens there"
    world.apply(config(subsystem(NQN, namespace(1)), subsystem(OTHER_NQN)))
    assert world.started().controller.cntlid == 1
    assert [info.subnqn for info in world.target.controllers()][-1] == NQN


def test_controller_that_has_to_go_completes_nothing() -> None:
    world = World()
    host = listening(world)
    before = len(host.done)
    world.apply(config())
    assert len(host.done) == before
    assert world.target.connection_counts().controllers == 0
    host.queue.close(0.0)
    assert len(world.of(ControllerGone)) == 1


def test_transfer_size_of_a_transport() -> None:
    world = World()
    host = world.started()
    cfg = world.target.config
    world.apply(replace(cfg, transports={"TCP": TransportConfig(trtype="TCP", max_io_size=65536)}))
    assert host.controller.view.mdts_bytes == 65536
    assert world.of(ControllerChanged)[-1].view.mdts_bytes == 65536


# -- ANA ---------------------------------------------------------------------------------------------------------------


def ana_world() -> World:
    nss = [namespace(1, anagrpid=1), namespace(2, anagrpid=2), namespace(3, anagrpid=2)]
    return World(config(subsystem(NQN, *nss, listeners=[HERE, THERE], ana_reporting=True)))


def set_states(world: World, states: dict[int, str], which: int = 0) -> None:
    listeners = list(world.target.config.subsystems[NQN].listeners)
    listeners[which] = replace(listeners[which], ana_states=states)
    world.change(listeners=tuple(listeners))


def ana_log(host: Host) -> tuple[int, dict[int, tuple[int, int, tuple[int, ...]]]]:
    log = AnaLog.parse(host.log(0x0C, 4096).data)
    return log.chgcnt, {group.agid: (group.state, group.chgcnt, group.nsids) for group in log.groups}


def test_state_of_a_listener() -> None:
    world = ana_world()
    here, there = listening(world), listening(world, listener=THERE)
    set_states(world, {2: "inaccessible"})
    assert (here.events(), there.events()) == ([ANA_CHANGED], [])
    assert ana_log(here) == (1, {1: (1, 0, (1,)), 2: (3, 1, (2, 3))})
    assert ana_log(there) == (0, {1: (1, 0, (1,)), 2: (1, 0, (2, 3))})
    view = world.of(ControllerChanged)[-1].view
    assert (view.key, view.namespaces[2].ana_state, view.namespaces[1].ana_state) == (here.controller.key, 3, 1)
    set_states(world, {2: "non_optimized"})
    assert here.events() == [ANA_CHANGED] * 2
    assert ana_log(here)[1][2][:2] == (AnaState.NON_OPTIMIZED, 2)


def test_namespace_changes_its_group() -> None:
    world = ana_world()
    host = listening(world)
    nss = world.target.config.subsystems[NQN].namespaces
    world.change(namespaces={**nss, 3: replace(nss[3], anagrpid=1)})
    assert host.events() == [ANA_CHANGED]
    assert ana_log(host) == (1, {1: (1, 1, (1, 3)), 2: (1, 1, (2,))})


def test_states_mean_nothing_without_ana_reporting() -> None:
    world = World()
    host = listening(world)
    set_states(world, {1: "inaccessible", 2: "inaccessible"})
    assert host.events() == []
    assert {view.ana_state for view in host.controller.view.namespaces.values()} == {1}


# -- any sequence ------------------------------------------------------------------------------------------------------

LISTENERS = (HERE, THERE, DISC)
HOSTS = (ALICE, BOB)
NSIDS = st.integers(1, 4)


class Changes(RuleBasedStateMachine):
    """Whatever happens: views follow the configuration and the data plane knows them; nobody stays who may not."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(config(subsystem(NQN, namespace(1), ana_reporting=True)))
        self.hosts: list[Host] = []

    @initialize()
    def start(self) -> None:
        self.hosts.append(self.world.started())

    @property
    def _sub(self) -> Any:
        return self.world.target.config.subsystems.get(NQN)

    @rule(hostnqn=st.sampled_from(HOSTS), listener=st.sampled_from(LISTENERS), qid=st.integers(0, 3))
    def connect(self, hostnqn: str, listener: Any, qid: int) -> None:
        host = self.world.host(listener)
        cqe = host.connect(NQN, hostnqn=hostnqn)
        sub = self._sub
        allowed = sub is not None and (sub.allow_any_host or hostnqn in sub.hosts)
        allowed = allowed and any(one.address == listener for one in sub.listeners)
        assert cqe.ok == allowed
        if allowed:
            self.hosts.append(host)
            host.set_cc(0x460001)
            host.set_feature(0x0B, 0xFFFFFFFF)
            if qid:
                assert host.io(qid).done[-1].cqe.ok

    @rule(nsid=NSIDS, data=st.data())
    def put_namespace(self, nsid: int, data: st.DataObject) -> None:
        if self._sub is None:
            return
        shown = data.draw(st.sets(st.sampled_from(HOSTS)))
        ns = namespace(
            nsid,
            f"disk{data.draw(NSIDS)}",
            anagrpid=data.draw(NSIDS),
            no_auto_visible=data.draw(st.booleans()),
            hosts=tuple(sorted(shown)),
        )
        self.world.change(namespaces={**self._sub.namespaces, nsid: ns})

    @rule(nsid=NSIDS)
    def remove_namespace(self, nsid: int) -> None:
        if self._sub is not None:
            self.world.change(namespaces={n: ns for n, ns in self._sub.namespaces.items() if n != nsid})

    @rule(number=NSIDS, blocks=st.sampled_from([0, 100, 200]))
    def back_end(self, number: int, blocks: int) -> None:
        name = f"disk{number}"
        self.world.target.set_bdev(name, facts(name, num_blocks=blocks) if blocks else None, self.world.now)

    @rule(
        listeners=st.lists(st.sampled_from(LISTENERS), unique=True),
        states=st.dictionaries(NSIDS, st.just("inaccessible")),
    )
    def listeners(self, listeners: list[Any], states: dict[int, str]) -> None:
        if self._sub is not None:
            made = subsystem(listeners=listeners).listeners
            self.world.change(listeners=tuple(replace(one, ana_states=states) for one in made))

    @rule(nqns=st.sets(st.sampled_from(HOSTS)), anybody=st.booleans())
    def allow(self, nqns: set[str], anybody: bool) -> None:
        if self._sub is not None:
            self.world.change(hosts=hosts(*sorted(nqns)), allow_any_host=anybody)

    @rule(present=st.booleans())
    def whole_subsystem(self, present: bool) -> None:
        cfg = self.world.target.config
        rest = {nqn: sub for nqn, sub in cfg.subsystems.items() if nqn != NQN}
        if present:
            rest[NQN] = self._sub or subsystem(NQN, namespace(1), ana_reporting=True)
        self.world.apply(replace(cfg, subsystems=rest))

    @rule(data=st.data())
    def protect(self, data: st.DataObject) -> None:
        live = [host for host in self.hosts if not host.controller.gone]
        if live:
            host = data.draw(st.sampled_from(live))
            host.set_feature(0x84, data.draw(st.integers(0, 1)), nsid=data.draw(NSIDS))

    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        if self.hosts:
            data.draw(st.sampled_from(self.hosts)).queue.close(self.world.now)

    @invariant()
    def nobody_stays_who_may_not(self) -> None:
        sub = self._sub
        gone = [effect.key for effect in self.world.of(ControllerGone)]
        assert len(set(gone)) == len(gone), "gone once"
        live = {info.key for info in self.world.target.controllers()}
        for host in self.hosts:
            controller = host.controller
            assert (controller.key in live) != (controller.key in gone) == controller.gone
            if controller.key in live:
                assert sub is not None
                assert sub.allow_any_host or controller.hostnqn in sub.hosts
                assert any(one.address == controller.listener for one in sub.listeners)

    @invariant()
    def views_follow(self) -> None:
        last: dict[int, ControllerView] = {e.view.key: e.view for e in self.world.of(ControllerChanged)}
        for host in self.hosts:
            controller = host.controller
            if controller.gone:
                continue
            assert last[controller.key] == controller.view
            expected = {
                nsid
                for nsid, ns in self._sub.namespaces.items()
                if ns.bdev_name in self.world.target.bdevs
                and (not ns.no_auto_visible or controller.hostnqn in ns.hosts)
            }
            assert set(controller.view.namespaces) == expected
            if controller.ready:
                assert set(NamespaceList.parse(host.identify(2, 0).data).nsids) == expected

    @invariant()
    def cntlids_are_unique(self) -> None:
        infos = self.world.target.controllers()
        assert len({(info.subnqn, info.cntlid) for info in infos}) == len(infos)


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("count", [200])
def test_a_storm_of_changes_is_one_event(count: int) -> None:
    world = World()
    host = listening(world)
    for number in range(count):
        world.target.set_bdev("disk1", facts("disk1", num_blocks=1 + number), 0.0)
    assert host.events() == [NS_CHANGED]
    assert changed(host) == (1,)


def test_controllers_that_see_the_same_share_it() -> None:
    world = World(config(subsystem(NQN, namespace(1), namespace(2, no_auto_visible=True, hosts=(BOB,)))))
    for nqn in (ALICE, ALICE, BOB):
        world.started(hostnqn=nqn)
    views = [effect.view for effect in world.of(ControllerChanged)]
    assert views[0].namespaces is views[1].namespaces
    assert [sorted(view.namespaces) for view in views] == [[1], [1], [1, 2]]


def test_a_back_end_that_changes_while_nobody_is_connected_is_seen_by_the_next() -> None:
    world = World(config(subsystem(NQN, namespace(1))))
    world.started().queue.close(world.now)
    world.target.set_bdev("disk1", None, world.now)
    world.effects.clear()
    world.started()
    assert [effect.view.namespaces for effect in world.of(ControllerChanged)] == [{}]


def test_a_namespace_and_its_new_back_end_are_one_change() -> None:
    world = World(config(subsystem(NQN, namespace(1))))
    world.started()
    world.effects.clear()
    new = config(subsystem(NQN, namespace(1), namespace(2)))
    world.target.apply(new, world.now, {"disk2": facts("disk2")})
    assert [sorted(effect.view.namespaces) for effect in world.of(ControllerChanged)] == [[1, 2]]
