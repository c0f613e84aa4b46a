"""What the admin API and the metrics show of staging, as plain values. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, TypedDict

from nvmet_p2p.dataplane.port import HOST_POOL, PoolPlane, PoolUse, StagingStat
from nvmet_p2p.observe import metrics
from nvmet_p2p.p2p import report
from nvmet_p2p.p2p.choice import Calibration
from nvmet_p2p.p2p.report import PoolState, Staged
from nvmet_p2p.p2p.topology import Topology
from nvmet_p2p.server.staging.manager import Decision, StagingManager
from nvmet_p2p.server.staging.plan import Place
from nvmet_p2p.state.render import address_params
from nvmet_p2p.target.config import TargetConfig

EMULATED_NOTE = "EMULATED: host memory, no peer-to-peer"


def kind_of(manager: StagingManager, config: TargetConfig, pool: str) -> str:
    """``host``, ``emulated``, ``p2pmem`` or ``spdk_cmb``."""
    if pool == HOST_POOL:
        return HOST_POOL
    return "emulated" if pool in config.emulated_pools else manager.provider_kind(pool)


def staged(decisions: dict[Place, Decision]) -> list[Staged]:
    """The decisions as ``p2p.report`` and ``p2p.doctor`` take them."""
    return [
        Staged(
            nqn=place.nqn,
            nsid=place.nsid,
            bdev=decision.want.bdev,
            drives=decision.want.backing.refusal or decision.want.backing.clients,
            effective=decision.want.effective,
            choice=decision.choice,
            listener=f"{place.listener.traddr}:{place.listener.trsvcid}" if place.listener is not None else "",
        )
        for place, decision in decisions.items()
    ]


def state_of(decision: Decision) -> str:
    """One word: ``pool`` (at least one direction), ``host`` (as it should be), ``degraded`` (as it should not be)."""
    if decision.choice.pools:
        return "pool"
    return "degraded" if decision.degraded else "host"


def namespaces(manager: StagingManager, config: TargetConfig, plane: PoolPlane | None) -> list[dict[str, Any]]:
    """Every namespace: policy and choice for each listener, and where its payload has rested so far."""
    shown = []
    for nqn, subsystem in config.subsystems.items():
        for nsid, namespace in sorted(subsystem.namespaces.items()):
            paths = [
                _path(place, decision)
                for place, decision in manager.decisions.items()
                if (place.nqn, place.nsid) == (nqn, nsid)
            ]
            counters = _counters(manager, config, stat_of(plane, namespace.bdev_name))
            shown.append({"nqn": nqn, "nsid": nsid, "bdev": namespace.bdev_name, "paths": paths, **counters})
    return shown


def _path(place: Place, decision: Decision) -> dict[str, Any]:
    (document,) = (report.staged_document(entry) for entry in staged({place: decision}))
    shown = {key: document[key] for key in ("policy_of", "drives", "drives_refused")}
    return {
        "listen_address": address_params(place.listener) if place.listener is not None else None,
        "state": state_of(decision),
        **decision.choice.document(),
        **shown,
    }


def stat_of(plane: PoolPlane | None, bdev: str) -> StagingStat:
    """The counters of a namespace's bdev."""
    return (plane.stat(bdev) if plane is not None else None) or StagingStat()


def _counters(manager: StagingManager, config: TargetConfig, stat: StagingStat) -> dict[str, Any]:
    pools = [{"pool": pool, "kind": kind_of(manager, config, pool), **asdict(use)} for pool, use in stat.pools.items()]
    return {
        "pools": pools,
        "fallbacks": stat.fallbacks,
        "interrupted": stat.interrupted,
        "copy_routes": dict(stat.copy_routes),
    }


class MetricsPart(TypedDict):
    """What staging adds to ``metrics.Snapshot``."""

    staged: tuple[metrics.StagedBytes, ...]
    staging: tuple[metrics.StagingFacts, ...]
    pools: tuple[metrics.PoolFacts, ...]


def metrics_of(manager: StagingManager, config: TargetConfig, plane: PoolPlane | None) -> MetricsPart:
    """For Prometheus; the counters are those of the last refresh."""
    degraded = {(place.nqn, place.nsid) for place, decision in manager.decisions.items() if decision.degraded}
    found = [
        (nqn, nsid, stat_of(plane, namespace.bdev_name))
        for nqn, subsystem in config.subsystems.items()
        for nsid, namespace in sorted(subsystem.namespaces.items())
    ]
    mapped = manager.keeper.mapped if manager.keeper is not None else {}
    lost = manager.keeper.lost if manager.keeper is not None else {}
    return {
        "staged": tuple(
            metrics.StagedBytes(
                nqn=nqn, nsid=nsid, pool=pool, kind=kind_of(manager, config, pool), direction=direction, bytes=count
            )
            for nqn, nsid, stat in found
            for pool, use in stat.pools.items()
            for direction, count in _directions(use)
        ),
        "staging": tuple(
            metrics.StagingFacts(
                nqn=nqn,
                nsid=nsid,
                fallbacks=stat.fallbacks,
                interrupted=stat.interrupted,
                degraded=(nqn, nsid) in degraded,
                copy_routes={str(route): count for route, count in stat.copy_routes.items()},
            )
            for nqn, nsid, stat in found
        ),
        "pools": tuple(
            metrics.PoolFacts(
                name=name,
                kind=kind_of(manager, config, name),
                size=mapped[name].size if name in mapped else 0,
                lost=name in lost,
            )
            for name in dict.fromkeys((*mapped, *lost))
        ),
    }


def _directions(use: PoolUse) -> Iterator[tuple[str, int]]:
    yield "read", use.read_bytes
    yield "write", use.write_bytes
    yield "copy", use.copy_bytes


async def pools(
    manager: StagingManager, config: TargetConfig, plane: PoolPlane | None, topology: Topology
) -> list[dict[str, Any]]:
    """Every pool that exists, was lost, or could not be had."""
    keeper = manager.keeper
    if keeper is None or plane is None:
        return []
    users = _users(manager)
    shown: dict[str, dict[str, Any]] = {}
    for state in await plane.states():
        facts = asdict(state)
        facts["bytes"] = facts.pop("size")
        facts["wiped_bytes"] = facts.pop("wiped")
        shown[state.name] = facts | {"allowed": list(state.allowed)}
    for name, why in keeper.lost.items():
        entry = shown.setdefault(name, {"name": name, "kind": kind_of(manager, config, name), "bytes": 0, "free": 0})
        entry |= {"lost": True, "why": entry.get("why") or why}
    for name, entry in shown.items():
        entry["note"] = EMULATED_NOTE if entry["kind"] == "emulated" else ""
        entry["failure"] = keeper.failure(name)
        entry["users"] = users.get(name, 0)
        results = calibrations(manager, config, topology, name)
        entry["calibrations"] = {bdev: asdict(result) for bdev, result in results.items()}
    return list(shown.values())


def _users(manager: StagingManager) -> dict[str, int]:
    found: dict[str, int] = {}
    for decision in manager.decisions.values():
        for pool in decision.choice.pools:
            found[pool] = found.get(pool, 0) + 1
    return found


def calibrations(
    manager: StagingManager, config: TargetConfig, topology: Topology, pool: str
) -> dict[str, Calibration]:
    """What is known of a pool, by bdev."""
    assert manager.keeper is not None
    backings = {decision.want.backing.bdev: decision.want.backing for decision in manager.decisions.values()}
    found = {bdev: manager.keeper.results(topology, config, backing).get(pool) for bdev, backing in backings.items()}
    return {bdev: result for bdev, result in found.items() if result is not None}


async def pool_states(
    manager: StagingManager, config: TargetConfig, plane: PoolPlane | None, topology: Topology
) -> list[PoolState]:
    """The pools as ``p2p.report`` and ``p2p.doctor`` take them."""
    return [
        PoolState(
            name=entry["name"],
            kind=entry["kind"],
            bytes=entry["bytes"],
            free=entry["free"],
            users=entry["users"],
            lost=entry["lost"],
            why=entry["why"],
            calibrations=calibrations(manager, config, topology, entry["name"]),
        )
        for entry in await pools(manager, config, plane, topology)
    ]
