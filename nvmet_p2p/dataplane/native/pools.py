"""The pools of the native data plane: what it was told of them, kept so that a new helper can be told again."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import structlog

from nvmet_p2p.dataplane.port import CopyRoute, DataPlaneEvents, PoolSpec, PoolState, PoolUse, StagingStat
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.choice import Calibration
from nvmet_p2p.p2p.vfio import VfioMemory

log = structlog.get_logger()

METHOD_NOT_FOUND: Final = -32601
COPY_ROUTES: Final[tuple[CopyRoute, ...]] = ("device", "reflink", "pool", "host")
Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


class NativePools:
    """Implements ``PoolPlane`` by calls of the helper.

    ``call`` waits for a helper that is being restarted. ``on_allowed`` is called when a bdev may use a pool that it
    could not use before.
    """

    def __init__(self, call: Call, on_allowed: Callable[[], Awaitable[None]]) -> None:
        self._call = call
        self._on_allowed = on_allowed
        self.supported = False  # until a helper has answered
        self._specs: dict[str, PoolSpec] = {}
        self._allowed: dict[tuple[str, str], None] = {}
        self._stats: dict[str, StagingStat] = {}
        self._found: dict[str, int] = {}  # pools of a helper that ran before us which a bdev lies in, and their sizes

    async def create(self, spec: PoolSpec) -> int:
        if spec.name in self._specs:
            raise OperatorError(-errno.EEXIST, f"pool {spec.name} exists already")
        size = self._found.pop(spec.name, None)
        if size is None:
            size = int((await self._call("p2p_pool_create", create_params(spec)))["bytes"])
        self._specs[spec.name] = replace(spec, size=size)
        return size

    async def delete(self, name: str) -> None:
        spec = self._specs.pop(name, None)
        if spec is None:
            return
        allowed = [pair for pair in self._allowed if pair[0] == name]
        for pair in allowed:
            del self._allowed[pair]
        try:
            await self._call("p2p_pool_delete", {"name": name})
        except OperatorError as error:
            if error.code in (-errno.ENODEV, -errno.ENOTCONN):  # gone with the helper
                return
            self._specs[name] = spec
            self._allowed |= dict.fromkeys(allowed)
            raise

    def names(self) -> frozenset[str]:
        return frozenset(self._specs)

    async def calibrate(self, name: str, bdev: str | None, journal: str) -> Calibration:
        params = {"name": name}
        if bdev is not None:
            params |= {"bdev": bdev, "journal": journal}
        return Calibration.parse(await self._call("p2p_pool_calibrate", params))

    async def probe(self, bdf: str, *, attached: bool) -> VfioMemory:
        return VfioMemory.parse(await self._call("p2p_pool_probe", {"name": bdf, "attached": attached}))

    async def allow(self, name: str, bdev: str, allowed: bool) -> None:
        if self.is_allowed(name, bdev) == allowed:
            return
        self._allowed.pop((name, bdev), None)
        await self._call("p2p_pool_allow", {"name": name, "bdev": bdev, "allow": allowed})
        if allowed:
            self._allowed[name, bdev] = None
            await self._on_allowed()

    def is_allowed(self, name: str, bdev: str) -> bool:
        return (name, bdev) in self._allowed

    async def states(self) -> list[PoolState]:
        return [state_of(shown) for shown in await self._call("p2p_get_pools", {})]

    def stat(self, bdev: str) -> StagingStat | None:
        return self._stats.get(bdev)

    # -- what the plane does with it ---------------------------------------------------------------------------------

    def forget_bdev(self, bdev: str) -> None:
        """The bdev is closed: what was allowed and counted went with it."""
        for pair in [pair for pair in self._allowed if pair[1] == bdev]:
            del self._allowed[pair]
        self._stats.pop(bdev, None)

    def keep_counters(self, shown: list[dict[str, Any]], events: DataPlaneEvents) -> None:
        """The answer to p2p_get_staging."""
        self._stats = {entry["bdev"]: stat_of(entry) for entry in shown}
        for pair in [(name, entry["bdev"]) for entry in shown for name in entry.get("withdrawn", ())]:
            if pair in self._allowed:
                del self._allowed[pair]
                events.pool_withdrawn(*pair)

    async def empty(self, call: Call) -> None:
        """A helper that ran before us: its pools were another one's decision."""
        try:
            found = await call("p2p_get_pools", {})
        except OperatorError as error:
            if error.code != METHOD_NOT_FOUND:
                raise
            log.warning("pool.unsupported", note="this data plane has no pools: all data rests in host memory")
            return
        self.supported = True
        for shown in found:
            try:
                await call("p2p_pool_delete", {"name": shown["name"]})
            except OperatorError as error:
                log.warning("pool.leftover", pool=shown["name"], reason=error.message)
                self._found[shown["name"]] = int(shown["bytes"])

    async def refill(self, call: Call) -> dict[str, str]:
        """Makes all pools in a new helper; the reasons of those that it does not get any more, by name."""
        failed: dict[str, str] = {}
        self._found.clear()
        for name, spec in list(self._specs.items()):
            try:
                await call("p2p_pool_create", create_params(spec))
            except OperatorError as error:
                failed[name] = error.message
                del self._specs[name]
        self._allowed = {pair: None for pair in self._allowed if pair[0] in self._specs}
        self._stats.clear()
        return failed

    async def allow_again(self, call: Call) -> None:
        """After ``refill``, when the back ends are open again: data was verified before."""
        for name, bdev in list(self._allowed):
            try:
                await call("p2p_pool_allow", {"name": name, "bdev": bdev, "allow": True})
            except OperatorError as error:
                self._allowed.pop((name, bdev), None)
                log.warning("pool.not_allowed", pool=name, bdev=bdev, reason=error.message)


def create_params(spec: PoolSpec) -> dict[str, Any]:
    """Parameters of p2p_pool_create."""
    params: dict[str, Any] = {"name": spec.name, "kind": spec.kind, "bytes": spec.size}
    return params | ({"path": spec.path} if spec.path else {})


def state_of(shown: dict[str, Any]) -> PoolState:
    """An entry of p2p_get_pools."""
    return PoolState(
        name=shown["name"],
        kind=shown["kind"],
        size=shown["bytes"],
        free=shown["free"],
        waits=shown["waits"],
        fallbacks=shown["fallbacks"],
        wiped=shown["wiped_bytes"],
        lost=bool(shown["lost"]),
        why=str(shown.get("why") or ""),
        allowed=tuple(shown["allowed"]),
        device=shown.get("device"),
    )


def stat_of(shown: dict[str, Any]) -> StagingStat:
    """An entry of the data plane's p2p_get_staging. A pool that was made anew may be there twice."""
    pools: dict[str, PoolUse] = {}
    for use in shown["pools"]:
        known = pools.setdefault(use["pool"], PoolUse())
        for name in PoolUse.__dataclass_fields__:
            setattr(known, name, getattr(known, name) + int(use[name]))
    return StagingStat(
        pools=pools,
        fallbacks=shown["fallbacks"],
        interrupted=shown["interrupted"],
        copy_routes={route: int(shown["copy_routes"][route]) for route in COPY_ROUTES},
    )
