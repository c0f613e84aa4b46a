"""The pools of the native data plane: what the helper is told, again after a restart, and what views may name."""

from __future__ import annotations

import errno
from typing import Any, cast

import pytest

from nvmet_p2p.dataplane.native.helper import Helper
from nvmet_p2p.dataplane.native.pools import NativePools
from nvmet_p2p.dataplane.native.views import ViewSender
from nvmet_p2p.dataplane.port import PoolSpec, PoolUse
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import BdevConfig
from nvmet_p2p.target.effects import ControllerView, NamespaceView, Placement
from tests.unit.dataplane_native.test_helper import Events

P, Q = PoolSpec("p", "p2pmem", 65536, "/sys/p/allocate"), PoolSpec("q", "emulated", 8192)
SPEEDS = {
    f"{name}_mib_s": 1.5
    for name in ("cpu_write", "cpu_read", "host_write", "host_read", "drive_to_pool", "drive_to_host")
}


class FakeHelper:
    """Answers calls from a table of results or errors, by method and, if there is one, name."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"p2p_get_pools": []}
        self.calls: list[tuple[str, dict[str, Any]]] = []

    async def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        params = params or {}
        self.calls.append((method, params))
        answer = self.answers.get(f"{method} {params.get('name', '')}", self.answers.get(method, True))
        if isinstance(answer, OperatorError):
            raise answer
        if method == "p2p_pool_create" and answer is True:
            return {"name": params["name"], "kind": params["kind"], "bytes": params["bytes"]}
        return answer

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def helper() -> FakeHelper:
    return FakeHelper()


@pytest.fixture
def pools(helper: FakeHelper) -> NativePools:
    async def nothing() -> None:
        """No view waits for it."""

    return NativePools(helper.call, nothing)


async def test_what_the_helper_is_told(helper: FakeHelper, pools: NativePools) -> None:
    assert await pools.create(P) == 65536
    await pools.create(Q)
    await pools.allow("p", "b", True)
    await pools.allow("p", "b", True)
    assert helper.told() == [
        ("p2p_pool_create", {"name": "p", "kind": "p2pmem", "bytes": 65536, "path": "/sys/p/allocate"}),
        ("p2p_pool_create", {"name": "q", "kind": "emulated", "bytes": 8192}),
        ("p2p_pool_allow", {"name": "p", "bdev": "b", "allow": True}),
    ]
    helper.answers["p2p_pool_calibrate"] = SPEEDS | {"verified": True, "reason": ""}
    found = await pools.calibrate("p", "b", "/state/j")
    assert (found.verified, found.cpu_read_mib_s) == (True, 1.5)
    assert helper.told() == [("p2p_pool_calibrate", {"name": "p", "bdev": "b", "journal": "/state/j"})]
    await pools.allow("p", "b", False)
    assert not pools.is_allowed("p", "b")
    await pools.delete("p")
    await pools.delete("p")
    assert [method for method, _ in helper.told()] == ["p2p_pool_allow", "p2p_pool_delete"]
    assert pools.names() == {"q"}


async def test_a_new_helper_is_told_again(helper: FakeHelper, pools: NativePools) -> None:
    """Pools first, then (when the back ends are open) who may use them; what it cannot have is lost."""
    for spec in (P, Q):
        await pools.create(spec)
        await pools.allow(spec.name, "b", True)
    await pools.allow("q", "closed", True)
    pools.forget_bdev("closed")
    helper.told()
    helper.answers["p2p_pool_create p"] = OperatorError(-errno.ENOENT, "gone")
    assert await pools.refill(helper.call) == {"p": "gone"}
    assert pools.names() == {"q"}
    helper.told()
    await pools.allow_again(helper.call)
    assert helper.told() == [("p2p_pool_allow", {"name": "q", "bdev": "b", "allow": True})]


async def test_refused_by_the_helper(helper: FakeHelper, pools: NativePools) -> None:
    helper.answers["p2p_pool_create p"] = OperatorError(-errno.ENOMEM, "no room")
    with pytest.raises(OperatorError, match="no room"):
        await pools.create(P)
    assert pools.names() == frozenset()
    await pools.create(Q)
    with pytest.raises(OperatorError, match="exists"):
        await pools.create(Q)
    helper.answers["p2p_pool_allow"] = OperatorError(-errno.EINVAL, "no drive")
    with pytest.raises(OperatorError, match="no drive"):
        await pools.allow("q", "b", True)
    assert not pools.is_allowed("q", "b")
    helper.answers["p2p_pool_delete"] = OperatorError(-errno.EBUSY, "a bdev lies in it")
    with pytest.raises(OperatorError, match="lies in it"):
        await pools.delete("q")
    assert pools.names() == {"q"}
    helper.answers["p2p_pool_delete"] = OperatorError(-errno.ENOTCONN, "gone")
    await pools.delete("q")
    assert pools.names() == frozenset(), "with the helper"


async def test_a_helper_that_ran_before(helper: FakeHelper, pools: NativePools) -> None:
    """Its pools go, but for one in which a bdev lies: that one is taken over."""
    helper.answers["p2p_get_pools"] = [{"name": "p", "bytes": 4096}, {"name": "q", "bytes": 12288}]
    helper.answers["p2p_pool_delete q"] = OperatorError(-errno.EBUSY, "a bdev lies in it")
    await pools.empty(helper.call)
    assert pools.supported
    helper.told()
    assert await pools.create(Q) == 12288
    assert helper.told() == []


async def test_a_helper_of_an_older_version(helper: FakeHelper, pools: NativePools) -> None:
    helper.answers["p2p_get_pools"] = OperatorError(-32601, "Method not found")
    await pools.empty(helper.call)
    assert not pools.supported


def test_counters(pools: NativePools) -> None:
    use = {
        "pool": "p",
        "read_bytes": 1,
        "read_ops": 2,
        "write_bytes": 3,
        "write_ops": 4,
        "copy_bytes": 5,
        "copy_ops": 6,
    }
    routes = {"device": 7, "reflink": 8, "pool": 9, "host": 10}
    entry = {"bdev": "b", "pools": [use, use], "fallbacks": 11, "interrupted": 12, "copy_routes": routes}
    pools.keep_counters([entry], Events())
    stat = pools.stat("b")
    assert stat is not None
    assert (stat.pools, stat.fallbacks, stat.interrupted) == ({"p": PoolUse(2, 4, 6, 8, 10, 12)}, 11, 12)
    assert stat.copy_routes == routes
    assert pools.stat("other") is None
    pools.forget_bdev("b")
    assert pools.stat("b") is None


class Withdrawals(Events):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str]] = []

    def pool_withdrawn(self, name: str, bdev: str) -> None:
        self.told.append((name, bdev))


async def test_what_the_data_plane_withdraws(helper: FakeHelper, pools: NativePools) -> None:
    """It is told once, and can be allowed anew; what the data plane before it withdrew is not this one's."""
    routes = dict.fromkeys(("device", "reflink", "pool", "host"), 0)
    common = {"pools": [], "fallbacks": 0, "interrupted": 0, "copy_routes": routes}
    shown = [{"bdev": "b", "withdrawn": ["p", "q"], **common}, {"bdev": "c", "withdrawn": [], **common}]
    events = Withdrawals()
    for name, bdev in (("p", "b"), ("p", "c")):
        await pools.allow(name, bdev, True)
    for _ in range(2):
        pools.keep_counters(shown, events)
    assert events.told == [("p", "b")]
    assert not pools.is_allowed("p", "b")
    assert pools.is_allowed("p", "c")
    helper.told()
    await pools.allow("p", "b", True)
    assert helper.told() == [("p2p_pool_allow", {"name": "p", "bdev": "b", "allow": True})]


def view(*placements: tuple[str, Placement]) -> ControllerView:
    namespaces = {
        nsid: NamespaceView(nsid=nsid, bdev=bdev, anagrpid=1, placement=placement)
        for nsid, (bdev, placement) in enumerate(placements, 1)
    }
    return ControllerView(
        key=1, subnqn="s", hostnqn="h", cntlid=1, mdts_bytes=131072, namespaces=namespaces, copy_formats=1
    )


def bdev(name: str, base: str = "") -> BdevConfig:
    return BdevConfig(name=name, kind="error" if base else "uring", uuid="", base=base)


async def test_views_name_only_what_is_allowed(helper: FakeHelper, pools: NativePools) -> None:
    await pools.empty(helper.call)
    await pools.create(P)
    await pools.allow("p", "b", True)
    sender = ViewSender(pools, {"b": bdev("b"), "EE_b": bdev("EE_b", "b"), "c": bdev("c")})
    helper.told()
    everywhere = Placement("p", "p", "p", strict=True)
    asked = view(("EE_b", everywhere), ("c", everywhere), ("b", Placement("p", "q", "p")), ("b", Placement()))
    await sender.send(cast(Helper, helper), asked)
    ((method, params),) = helper.told()
    assert (method, params["host"], params["copy_formats"]) == ("p2p_controller_set", "h", 1)
    keys = ("read_pool", "write_pool", "copy_pool", "strict")
    assert [{key: entry[key] for key in keys if key in entry} for entry in params["namespaces"]] == [
        {"read_pool": "p", "write_pool": "p", "copy_pool": "p", "strict": True},
        {},
        {"read_pool": "p", "copy_pool": "p"},
        {},
    ]
    assert sender.short() == [1]
    assert not sender.can_be_whole(asked)
    await pools.create(Q)
    await pools.allow("q", "b", True)
    await pools.allow("p", "c", True)
    assert sender.can_be_whole(asked)
    helper.told()
    await sender.send(cast(Helper, helper), asked)
    assert sender.short() == []
    assert helper.told()[0][1]["namespaces"][2]["write_pool"] == "q"


@pytest.mark.parametrize("code", [-errno.ENODEV, -errno.EPERM])
async def test_a_pool_that_is_lost_while_a_view_is_on_its_way(
    helper: FakeHelper, pools: NativePools, code: int
) -> None:
    """The view must take hold in any case: it may close a namespace."""
    await pools.empty(helper.call)
    await pools.create(P)
    await pools.allow("p", "b", True)
    sender = ViewSender(pools, {"b": bdev("b")})
    helper.told()
    refusals = [OperatorError(code, "no such pool")]
    real = helper.call

    async def call(method: str, params: dict[str, Any] | None = None) -> Any:
        answer = await real(method, params)
        if refusals:
            raise refusals.pop()
        return answer

    helper.call = call  # type: ignore[method-assign]
    await sender.send(cast(Helper, helper), view(("b", Placement("p"))))
    first, second = helper.told()
    assert first[1]["namespaces"][0]["read_pool"] == "p"
    assert "read_pool" not in second[1]["namespaces"][0]
    assert sender.short() == [1]
    refusals.append(OperatorError(-errno.ENOMEM, "no memory"))
    with pytest.raises(OperatorError, match="no memory"):
        await sender.send(cast(Helper, helper), view(("b", Placement())))
