"""A view is in force only when nothing runs any more that it does not allow."""

from __future__ import annotations

import asyncio

import pytest

from nvmet_p2p.target.effects import ControllerView
from nvmet_p2p.wire.spec import NvmOpcode, Status
from tests.unit.dataplane.support import ns, rig, rw, until, use_gates, view_of

PATTERN = bytes(range(256)) * 2


@pytest.mark.parametrize(
    ("view", "status"),
    [
        (view_of(ns(write_protected=True)), Status.NAMESPACE_WRITE_PROTECTED),
        (view_of(ns(ana_state=3)), Status.ANA_INACCESSIBLE),
    ],
    ids=["write protection", "ANA"],
)
async def test_no_write_is_on_its_way_when_it_is_no_longer_allowed(
    monkeypatch: pytest.MonkeyPatch, view: ControllerView, status: Status
) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        gates["m0"].hold()
        early = host.submit(rw(NvmOpcode.WRITE, 0, 1), data=PATTERN)
        await host.flush()
        await gates["m0"].arrived.wait()
        change = asyncio.ensure_future(it.engine.controller_set(view))
        late = host.submit(rw(NvmOpcode.WRITE, 1, 1), data=PATTERN)
        (refused,) = await host.wait(late)
        assert refused.cqe.status == status
        assert not change.done(), "the write that was let through may still change the medium"
        gates["m0"].open.set()
        await change
        (written,) = await host.wait(early)
        assert written.cqe.status == 0


async def test_what_is_still_allowed_holds_up_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        gates["m0"].hold()
        early = host.submit(rw(NvmOpcode.WRITE, 0, 1), data=PATTERN)
        await host.flush()
        await gates["m0"].arrived.wait()
        change = asyncio.ensure_future(it.engine.controller_set(view_of(ns(), mdts=4096)))
        await until(change.done)
        gates["m0"].open.set()
        assert (await host.wait(early))[0].cqe.status == 0
