"""What was chosen does not last: pools that are lost, replaced or refused, and taken again."""

from __future__ import annotations

import errno

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.effects import Placement
from tests.unit.server.staging.rig import NQN, Rig
from tests.unit.server.staging.test_manager import PROVIDER, told


def make_due(rig: Rig) -> None:
    """Time passes until whatever failed is tried again."""
    rig.clock.now += 100.0
    rig.manager._due()


async def test_a_lost_pool_is_left_at_once_and_taken_again(rig: Rig) -> None:
    assert rig.pools is not None
    await_strict = {"nqn": NQN, "nsid": 1, "policy": PROVIDER, "mode": "strict"}
    async with rig.running():
        await rig.commit("p2p_set_staging", **await_strict)
        await rig.settle()
        rig.manager.lost(PROVIDER, "its canary is gone")
        assert rig.placed == {}, "before anything else happens"
        assert rig.gone == [PROVIDER]
        assert rig.decision().degraded
        assert "its canary is gone" in rig.decision().choice.reason
        rig.manager.lost(PROVIDER, "again")
        assert rig.gone == [PROVIDER]
        await rig.settle()
        assert told(rig, "delete") == [PROVIDER]
        assert len(told(rig, "create")) == 1, "not at once: it may be on its way out"
        make_due(rig)
        await rig.settle()
        assert len(told(rig, "create")) == 2
        assert len(told(rig, "calibrate")) == 2, "what was known of it is not trusted any more"
        assert rig.placement() == Placement(PROVIDER, PROVIDER, PROVIDER, strict=True)


async def test_a_pool_that_does_not_last_is_tried_less_and_less_often(rig: Rig) -> None:
    async with rig.running():
        pauses = []
        for _ in range(7):
            rig.manager.lost(PROVIDER, "gone")
            assert rig.manager.keeper is not None
            due = rig.manager.keeper.next_due()
            assert due is not None
            pauses.append(due - rig.clock.now)
            rig.clock.now = due + 0.001
            rig.manager._due()
            await rig.settle()
            assert rig.placement().write == PROVIDER
        assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 64.0]
        rig.clock.now += 3600.0
        rig.manager.lost(PROVIDER, "gone")
        assert rig.manager.keeper is not None
        assert rig.manager.keeper.next_due() == rig.clock.now + 2.0


async def test_a_drive_that_refuses_a_pool_after_all(rig: Rig) -> None:
    """Its data rests in host memory, and that is said; it is tried out again, less and less often."""
    async with rig.running():
        assert rig.placement().write == PROVIDER
        backing = rig.decision().want.backing
        assert rig.manager.keeper is not None
        rig.manager.withdrawn(PROVIDER, "another")
        assert rig.manager.keeper.next_due() is None
        for times, pause in enumerate([8.0, 32.0, 128.0, 512.0, 2048.0, 3600.0], 1):
            assert rig.pools is not None
            await rig.pools.allow(PROVIDER, backing.bdev, False)  # as the data plane has done
            rig.manager.withdrawn(PROVIDER, backing.bdev)
            await rig.settle()
            assert rig.placed == {}
            assert f"again and again, for the {times}. time" in rig.decision().choice.reason
            due = rig.manager.keeper.next_due()
            assert due == rig.clock.now + pause
            assert len(told(rig, "calibrate")) == times
            rig.clock.now = due + 0.001
            rig.manager._due()
            await rig.settle()
            assert rig.placement().write == PROVIDER
            assert len(told(rig, "calibrate")) == times + 1, "what was known of the two is not trusted any more"
        for _ in range(600):
            rig.manager.keeper.withdraw(PROVIDER, backing)
        assert rig.manager.keeper.next_due() == rig.clock.now + 3600.0


async def test_a_device_that_leaves_without_a_word(rig: Rig) -> None:
    memory = rig.machine.places[PROVIDER] / "p2pmem"
    async with rig.running():
        memory.rename(memory.with_name("was"))
        rig.manager._machine_changed()
        await rig.settle()
        assert rig.placed == {}
        assert told(rig, "delete") == [PROVIDER]
        memory.with_name("was").rename(memory)
        (memory / "allocate").rename(memory / "was")
        (memory / "allocate").touch()
        rig.manager._machine_changed()
        await rig.settle()
        assert rig.placement().write == PROVIDER, "another incarnation is tried at once"
        assert len(told(rig, "calibrate")) == 2


async def test_a_device_that_is_replaced_while_it_is_mapped(rig: Rig) -> None:
    """What was mapped may be the older one: it is lost, and what it has shown is not believed of the newer one."""
    assert rig.pools is not None
    memory = rig.machine.places[PROVIDER] / "p2pmem"

    def replaced() -> None:
        assert rig.pools is not None
        rig.pools.before_mapped = lambda: None
        (memory / "allocate").rename(memory / "was")
        (memory / "allocate").touch()

    rig.pools.before_mapped = replaced
    async with rig.running():
        rig.manager._machine_changed()
        await rig.settle()
        assert rig.placement().write == PROVIDER
        assert len(told(rig, "create")) == len(told(rig, "calibrate")) == 2


async def test_what_cannot_be_had_is_tried_again(rig: Rig) -> None:
    assert rig.pools is not None
    rig.pools.refuse_create[PROVIDER] = OperatorError(-errno.EACCES, "permission denied")
    async with rig.running():
        assert rig.placed == {}
        assert "permission denied" in rig.decision().choice.reason
        rig.pools.refuse_create.clear()
        make_due(rig)
        await rig.settle()
        assert rig.placement().write == PROVIDER


async def test_a_probe_that_fails_without_a_verdict(rig: Rig) -> None:
    assert rig.pools is not None
    rig.pools.results[PROVIDER, "b1"] = OperatorError(-errno.EBUSY, "it is being calibrated")
    async with rig.running():
        assert rig.placed == {}
        assert "being calibrated" in rig.decision().choice.reason
        rig.pools.results.clear()
        make_due(rig)
        await rig.settle()
        assert rig.placement().write == PROVIDER
        assert rig.broken == []


@pytest.mark.parametrize(("code", "broken"), [(errno.EIO, ["b1"]), (errno.ENOTCONN, [])])
async def test_a_drive_that_does_not_hold_its_own_data_is_closed(rig: Rig, code: int, broken: list[str]) -> None:
    """Not so if the data plane has died: what it leaves is put back before the next one opens the drive."""
    assert rig.pools is not None
    rig.pools.results[PROVIDER, "b1"] = OperatorError(-code, "could not be put back")
    with rig.journals.reserved(str(rig.folder / "b1.img")) as journal:
        journal.write_bytes(b"x")
    async with rig.running():
        assert rig.broken == broken
