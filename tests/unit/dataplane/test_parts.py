"""Range locks, budgets and drain counters by themselves."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from nvmet_p2p.dataplane.inprocess.backend import InFlight
from nvmet_p2p.dataplane.inprocess.budget import Budget
from nvmet_p2p.dataplane.inprocess.rangelock import Hold, RangeLock


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_shared_holds_do_not_wait() -> None:
    lock = RangeLock()
    holds = [await lock.acquire([(0, 10)]) for _ in range(3)]
    for hold in holds:
        lock.release(hold)


async def test_exclusive_waits_and_keeps_its_place() -> None:
    lock = RangeLock()
    order: list[str] = []

    async def take(name: str, start: int, end: int, *, exclusive: bool) -> Hold:
        hold = await lock.acquire([(start, end)], exclusive=exclusive)
        order.append(name)
        return hold

    first = await take("shared", 0, 10, exclusive=False)
    pair = asyncio.ensure_future(take("exclusive", 5, 15, exclusive=True))
    late = asyncio.ensure_future(take("late", 14, 20, exclusive=False))  # meets only the one that waits
    beside = asyncio.ensure_future(take("beside", 20, 30, exclusive=False))
    await turns()
    assert order == ["shared", "beside"]
    lock.release(first)
    await turns()
    assert order == ["shared", "beside", "exclusive"]
    lock.release(await pair)
    await turns()
    assert order[-1] == "late"
    lock.release(await late)
    lock.release(await beside)


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    lock = RangeLock()
    held = await lock.acquire([(0, 10)], exclusive=True)
    gone = asyncio.ensure_future(lock.acquire([(0, 20)], exclusive=True))
    waiting = asyncio.ensure_future(lock.acquire([(10, 20)]))
    await turns()
    gone.cancel()
    await turns()
    assert waiting.done()
    lock.release(held)
    lock.release(waiting.result())
    again = await lock.acquire([(0, 100)], exclusive=True)
    lock.release(again)


@given(
    st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8)), min_size=1, max_size=3), st.booleans()),
        max_size=12,
    ),
)
def test_no_conflict_is_ever_held_and_everybody_has_a_turn(
    wanted: list[tuple[list[tuple[int, int]], bool]],
) -> None:
    async def scenario() -> None:
        lock = RangeLock()
        held: list[Hold] = []
        served = 0

        async def user(ranges: list[tuple[int, int]], exclusive: bool) -> None:
            nonlocal served
            hold = await lock.acquire([(start, start + length) for start, length in ranges], exclusive=exclusive)
            assert not any(hold.conflicts(other) for other in held)
            held.append(hold)
            await turns(2)
            held.remove(hold)
            lock.release(hold)
            served += 1

        await asyncio.gather(*(user(ranges, exclusive) for ranges, exclusive in wanted))
        assert served == len(wanted)

    asyncio.run(scenario())


def test_budget_grants_in_order() -> None:
    budget: Budget[str] = Budget(10)
    assert budget.claim("a", 6)
    assert not budget.claim("b", 6)
    assert not budget.claim("c", 1)  # would fit, but has to wait for its turn
    assert budget.release(6) == ["b", "c"]
    assert budget.used_bytes == 7
    assert not budget.claim("d", 100)
    assert not budget.claim("e", 1)
    assert budget.withdraw("d") == ["e"]
    assert budget.release(8) == []
    assert budget.claim("d", 100)  # alone, it may be larger than the limit
    assert not budget.claim("f", 1)
    assert budget.release(100) == ["f"]


async def test_drained() -> None:
    users = InFlight()
    await users.drained()
    users.enter()
    users.enter()
    waiters = [asyncio.ensure_future(users.drained()) for _ in range(2)]
    users.leave()
    await turns()
    assert not any(waiter.done() for waiter in waiters)
    users.leave()
    await asyncio.gather(*waiters)
