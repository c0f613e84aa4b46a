"""The choice: nearest, spread, proven, and the same for the same state."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.choice import Calibration, Candidate, Choice, candidates_for, choose, ranking
from nvmet_p2p.p2p.clients import Client, drives_of
from nvmet_p2p.p2p.distance import Verdict
from nvmet_p2p.p2p.policy import StagingPolicy
from tests.unit.p2p import machines
from tests.unit.p2p.machines import MIB, Machine

AUTO, AUTO_STRICT, OFF = StagingPolicy("auto"), StagingPolicy("auto", True), StagingPolicy("off")
FAST = Calibration(True, 5000, 5000, 5000, 5000, 3000, 3000)
SLOW_READS = replace(FAST, cpu_read_mib_s=40)
SLOW_WRITES = replace(FAST, cpu_write_mib_s=400)
WRONG = Calibration(False, reason="read back other bytes than were written")


def verdict(pool: str, client: str, cost: int, *, ok: bool = True) -> Verdict:
    if ok:
        return Verdict(pool, client, True, cost, "bus-address" if cost else "same-device")
    return Verdict(pool, client, False, cost, "none", "acs-redirect", "ACS redirects", "boot with pci=x")


def candidate(pool: str, *costs: int, calibration: Calibration | None = FAST, **fields: object) -> Candidate:
    found = Candidate(
        pool,
        verdicts=tuple(verdict(pool, f"client{at}", cost) for at, cost in enumerate(costs)),
        bytes=64 * MIB,
        free=64 * MIB,
        calibration=calibration,
    )
    return replace(found, **fields)  # type: ignore[arg-type]


def pools(choice: Choice) -> tuple[str | None, str | None, str | None]:
    return choice.read, choice.write, choice.copy


class TestAuto:
    def test_the_nearest(self) -> None:
        choice = choose([candidate("a", 8), candidate("b", 4), candidate("c", 6)], AUTO)
        assert pools(choice) == ("b", "b", "b")
        assert (choice.cost, choice.runner_up) == (4, "c")
        assert choice.rejected == {"c": "farther: 6 to 4", "a": "farther: 8 to 4"}
        assert "nearest of 3" in choice.reason

    def test_the_sum_over_all_clients_counts(self) -> None:
        assert choose([candidate("a", 0, 8), candidate("b", 4, 4), candidate("c", 2, 4)], AUTO).read == "c"

    def test_every_client_must_reach_it(self) -> None:
        near = candidate("a", 2, 2)
        near = replace(near, verdicts=(near.verdicts[0], verdict("a", "client1", 0, ok=False)))
        choice = choose([near, candidate("b", 8, 8)], AUTO)
        assert choice.read == "b"
        assert choice.rejected["a"] == "client1 cannot reach it: ACS redirects"

    @pytest.mark.parametrize(
        ("calibration", "expected"),
        [
            (FAST, ("a", "a", "a")),
            (SLOW_READS, (None, "a", "a")),
            (SLOW_WRITES, ("a", None, "a")),
            (replace(SLOW_READS, cpu_write_mib_s=1), (None, None, "a")),
            (Calibration(True), (None, None, "a")),
            (replace(FAST, cpu_write_mib_s=4800), ("a", "a", "a")),
            (replace(FAST, cpu_write_mib_s=4700), ("a", None, "a")),
        ],
    )
    def test_directions_are_decided_by_measurement(
        self, calibration: Calibration, expected: tuple[str | None, ...]
    ) -> None:
        choice = choose([candidate("a", 4, calibration=calibration)], AUTO)
        assert pools(choice) == expected
        assert ("host memory" in choice.reason) is (None in expected or "speed of host memory" in choice.reason)

    def test_strict_takes_it_for_both_whatever_its_speed(self) -> None:
        assert pools(choose([candidate("a", 4, calibration=SLOW_READS)], AUTO_STRICT)) == ("a", "a", "a")

    @pytest.mark.parametrize(("calibration", "word"), [(None, "not been calibrated"), (WRONG, "other bytes")])
    def test_nothing_unproven(self, calibration: Calibration | None, word: str) -> None:
        choice = choose([candidate("a", 0, calibration=calibration), candidate("b", 8)], AUTO)
        assert choice.read == "b"
        assert word in choice.rejected["a"]

    def test_no_emulated_pool(self) -> None:
        choice = choose([candidate("ram", kind="emulated")], AUTO)
        assert choice.pools == ()
        assert "only a policy that names it" in choice.rejected["ram"]

    def test_nothing_there(self) -> None:
        choice = choose([], AUTO)
        assert choice.pools == ()
        assert choice.check() is choice
        assert "no device offers peer memory" in choice.reason
        with pytest.raises(OperatorError, match="no device offers peer memory"):
            choose([], AUTO_STRICT).check()

    def test_why_not_any(self) -> None:
        lost = candidate("a", 0, usable=False, reason="it was lost: unplugged")
        choice = choose([lost, candidate("b", 4, calibration=WRONG)], AUTO_STRICT)
        assert choice.refused is not None
        for text in ("a: it was lost: unplugged", "b: read back other bytes"):
            assert text in choice.refused.reason


class TestSpread:
    def test_over_equals_by_load_then_space_then_name(self) -> None:
        equals = [candidate("a", 4), candidate("b", 4, free=65 * MIB), candidate("c", 4)]
        assert choose(equals, AUTO, {}).read == "b"
        assert choose(equals, AUTO, {"b": 1}).read == "a"
        assert choose(equals, AUTO, {"a": 1, "b": 1}).read == "c"
        choice = choose(equals, AUTO, {"a": 2, "b": 1, "c": 2})
        assert choice.read == "b"
        assert choice.rejected["a"] == "as near, but 2 views use it and 1 b"
        assert choose([candidate("a", 4), candidate("c", 4)], AUTO).rejected["c"].startswith("equal in all to a")

    def test_load_never_beats_distance(self) -> None:
        assert choose([candidate("a", 4), candidate("b", 6)], AUTO, {"a": 99}).read == "a"

    def test_the_port_s_node_first_among_equals(self) -> None:
        assert choose([candidate("a", 4, far=1), candidate("b", 4)], AUTO, {"b": 5}).read == "b"
        assert choose([candidate("a", 4, far=1), candidate("b", 6)], AUTO).read == "a"

    def test_many_namespaces_on_one_drive_share_the_equals(self) -> None:
        equals = [candidate(name, 4) for name in "abcde"]
        load: Counter[str] = Counter()
        for _ in range(25):
            load[str(choose(equals, AUTO, load).read)] += 1
        assert set(load.values()) == {5}


class TestNamed:
    def test_for_both_directions(self) -> None:
        choice = choose([candidate("a", 8, calibration=SLOW_READS), candidate("b", 0)], StagingPolicy("a"))
        assert pools(choice) == ("a", "a", "a")
        assert (choice.cost, choice.runner_up) == (8, "b")

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize(
        ("found", "word"),
        [
            ([], "there is no pool a"),
            ([candidate("a", 4, calibration=None)], "not been calibrated"),
            ([candidate("a", 4, usable=False, reason="driver vfio-pci has it", remedy="bind it")], "vfio-pci"),
            ([candidate("a", 4, calibration=WRONG)], "other bytes"),
        ],
    )
    def test_one_that_cannot_be_used(self, found: list[Candidate], word: str, strict: bool) -> None:
        choice = choose(found, StagingPolicy("a", strict))
        assert choice.pools == ()
        assert word in choice.reason
        if strict:
            with pytest.raises(OperatorError, match=word) as error:
                choice.check()
            assert error.value.code == -22
        else:
            assert choice.check() is choice

    def test_strict_needs_room_for_a_transfer(self) -> None:
        small = candidate("a", 0, bytes=512 << 10)
        assert choose([small], StagingPolicy("a"), mdts_bytes=MIB).read == "a"
        assert choose([small], StagingPolicy("a", True), mdts_bytes=512 << 10).read == "a"
        with pytest.raises(OperatorError, match="less than one transfer"):
            choose([small], StagingPolicy("a", True), mdts_bytes=MIB).check()

    def test_an_emulated_one_says_so(self) -> None:
        choice = choose([candidate("ram", kind="emulated")], StagingPolicy("ram"))
        assert choice.read == "ram"
        assert "EMULATED" in choice.reason

    def test_off(self) -> None:
        assert choose([candidate("a", 0)], OFF).pools == ()


class TestCandidates:
    def test_of_a_chassis(self, chassis: Machine) -> None:
        topology = chassis.topology()
        clients = drives_of(topology, "/dev/nvme7n1", stat_path=chassis.stat)
        assert isinstance(clients, tuple)
        found = candidates_for(topology, clients)
        assert len(found) == 24
        own, *others = ranking(found)
        assert own == clients[0].bdf
        assert {topology.devices[bdf].bridges[1] for bdf in others[:5]} == {topology.devices[own].bridges[1]}
        proven = candidates_for(topology, clients, calibrations=dict.fromkeys(topology.providers, FAST))
        choice = choose(proven, AUTO)
        assert (choice.read, choice.cost, choice.runner_up) == (own, 0, others[0])

    def test_the_port_s_node(self, chassis: Machine) -> None:
        topology = chassis.topology()
        nic = next(bdf for bdf, device in topology.devices.items() if device.names == ("eth3",))
        found = candidates_for(topology, (), near=(Client(nic, "eth3"),))
        assert {candidate.far for candidate in found if topology.devices[candidate.pool].numa_node == 1} == {0}
        assert {candidate.far for candidate in found if topology.devices[candidate.pool].numa_node == 0} == {1}

    def test_lost_free_and_emulated(self, tmp_path: Path) -> None:
        topology = machines.one_switch(tmp_path).topology()
        found = candidates_for(
            topology,
            (Client("0000:04:00.0", "nvme1n1"),),
            free={"0000:03:00.0": 7},
            lost={"0000:03:00.0": "unbound"},
            emulated={"ram": MIB},
            calibrations={"ram": FAST},
        )
        by_name = {candidate.pool: candidate for candidate in found}
        assert list(by_name) == ["0000:03:00.0", "0000:04:00.0", "ram"]
        assert by_name["0000:03:00.0"].free == 7
        assert by_name["0000:03:00.0"].unfit() == ("it was lost: unbound", "it is used again when it returns")
        assert not by_name["0000:04:00.0"].usable
        assert (by_name["ram"].kind, by_name["ram"].bytes, by_name["ram"].unproven()) == ("emulated", MIB, None)
        assert ranking(found) == ()

    def test_memory_that_others_have_taken(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path)
        machine.write(machine.places["0000:03:00.0"] / "p2pmem", available=0)
        clients = (Client("0000:04:00.0", "nvme1n1"),)
        problem = candidates_for(machine.topology(), clients)[0].unfit()
        assert problem is not None
        assert "taken by others" in problem[0]
        assert candidates_for(machine.topology(), clients, free={"0000:03:00.0": 0})[0].unfit() is None

    def test_a_wrong_pool_below_an_iommu_says_why(self, tmp_path: Path) -> None:
        topology = machines.one_switch(tmp_path, iommu="DMA").topology()
        clients = (Client("0000:04:00.0", "nvme1n1"),)
        (found, _) = candidates_for(topology, clients, calibrations={"0000:03:00.0": WRONG})
        problem = found.unproven()
        assert problem is not None
        assert "an IOMMU translates" in problem[1]


class TestCalibration:
    def test_from_the_data_plane_s_answer(self) -> None:
        answer = {"cpu_write_mib_s": 900, "cpu_read_mib_s": 55.5, "verified": True, "reason": None, "other": 1}
        assert Calibration.parse(answer) == Calibration(True, cpu_write_mib_s=900, cpu_read_mib_s=55.5)

    def test_gains(self) -> None:
        figures = Calibration(True, 900, 50, 1800, 5000, 2000, 4000)
        assert figures.write_gain() == pytest.approx(0.5)
        assert figures.read_gain() == pytest.approx((1 / 4000 + 1 / 5000) / (1 / 2000 + 1 / 50))
        assert Calibration(True, drive_to_pool_mib_s=10, drive_to_host_mib_s=5).read_gain() == pytest.approx(2)
        assert Calibration(True, 100).write_gain() is None


def test_the_choice_can_be_read_back_as_json() -> None:
    document = choose([candidate("a", 4)], StagingPolicy("b", True)).document()
    assert msgspec.json.decode(msgspec.json.encode(document)) == document
    assert document["refused"] == {
        "code": "no-pool",
        "reason": "there is no pool b",
        "remedy": "see p2p map for those there are",
    }


@st.composite
def states(draw: st.DrawFn) -> tuple[list[Candidate], dict[str, int]]:
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6))
    clients = draw(st.integers(1, 3))
    found = []
    for name in names:
        verdicts = tuple(
            verdict(name, f"client{at}", draw(st.sampled_from((0, 2, 4, 8))), ok=draw(st.integers(0, 5)) > 0)
            for at in range(clients)
        )
        calibration = draw(st.sampled_from((FAST, SLOW_READS, SLOW_WRITES, WRONG, None)))
        found.append(
            Candidate(
                name,
                usable=draw(st.integers(0, 5)) > 0,
                reason="no",
                verdicts=verdicts,
                far=draw(st.integers(0, 1)),
                bytes=MIB,
                free=draw(st.integers(0, 3)) << 18,
                calibration=calibration,
            )
        )
    return found, {name: draw(st.integers(0, 3)) for name in names}


@given(state=states(), strict=st.booleans())
def test_minimal_deterministic_and_explained(state: tuple[list[Candidate], dict[str, int]], strict: bool) -> None:
    found, load = state
    policy = StagingPolicy("auto", strict)
    choice = choose(found, policy, load)
    for order in itertools.islice(itertools.permutations(found), 12):
        assert choose(order, policy, dict(reversed(load.items()))) == choice
    # Brute force: over every pool that all clients reach and that was verified, the lowest sum of distances.
    sums = {
        one.pool: sum(each.cost for each in one.verdicts)
        for one in found
        if one.usable and all(each.ok for each in one.verdicts) and one.calibration and one.calibration.verified
    }
    if not sums:
        assert choice.pools == ()
        assert (choice.refused is not None) is strict
    else:
        assert choice.copy in sums
        assert choice.cost == min(sums.values())
        assert choice.refused is None
        assert choice.runner_up is None or sums[choice.runner_up] == min(
            cost for pool, cost in sums.items() if pool != choice.copy
        )
        assert not strict or choice.read == choice.write == choice.copy
    assert {one.pool for one in found} == set(choice.rejected) | ({choice.copy} - {None})
    assert all(choice.rejected.values())


@given(state=states(), data=st.data())
def test_monotonous(state: tuple[list[Candidate], dict[str, int]], data: st.DataObject) -> None:
    """A pool that comes nearer, or loses users, never gives up a place that it had; nor is another's cost lowered."""
    found, load = state
    before = choose(found, AUTO, load)
    if before.copy is None:
        return
    at = next(index for index, one in enumerate(found) if one.pool == before.copy)
    nearer = tuple(
        replace(each, cost=max(0, each.cost - data.draw(st.sampled_from((0, 2))))) for each in found[at].verdicts
    )
    changed = [*found[:at], replace(found[at], verdicts=nearer), *found[at + 1 :]]
    load = {**load, before.copy: data.draw(st.integers(0, load.get(before.copy, 0)))}
    after = choose(changed, AUTO, load)
    assert after.copy == before.copy
    assert after.cost is not None
    assert before.cost is not None
    assert after.cost <= before.cost
    fewer = choose([one for one in found if one.pool != before.copy], AUTO, load)
    assert fewer.copy == before.runner_up
    assert fewer.cost is None or fewer.cost >= before.cost
