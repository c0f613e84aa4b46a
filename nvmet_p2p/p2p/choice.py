"""The choice of a pool for what a listener and a namespace exchange: deterministic, and with its reasons.

Nearest first: the lowest sum of the kernel's distances over all clients that do DMA from or to the pool: the drives of
the namespace, and an RDMA port's NIC (the NIC of an NVMe/TCP port gets its bytes from the CPU). Among equals those on
the port's NUMA node, then those that fewer views use, then those with more free space, then by name. Reads and writes
are decided separately under "auto", from what calibration measured.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.clients import Client, Refusal
from nvmet_p2p.p2p.distance import Verdict, distance
from nvmet_p2p.p2p.policy import OFF, StagingPolicy
from nvmet_p2p.p2p.topology import Topology

GRANULE: Final = 4096  # of a pool
NOISE: Final = 0.05  # two runs of one measurement differ by so much: less is not "slower"

Kind = Literal["p2pmem", "emulated", "spdk_cmb"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured for a pool and a drive, in MiB/s; 0 where it was not. Field names as in p2p_pool_calibrate."""

    verified: bool
    cpu_write_mib_s: float = 0
    cpu_read_mib_s: float = 0
    host_write_mib_s: float = 0
    host_read_mib_s: float = 0
    drive_to_pool_mib_s: float = 0
    drive_to_host_mib_s: float = 0
    reason: str = ""

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> Calibration:
        """From the answer of the data plane's ``p2p_pool_calibrate``."""
        figures = {name: float(answer.get(name) or 0) for name in cls.__dataclass_fields__ if name.endswith("_mib_s")}
        return cls(verified=bool(answer.get("verified")), reason=str(answer.get("reason") or ""), **figures)

    def read_gain(self) -> float | None:
        """Speed of a host's Read through the pool, against host memory: the drive fills it, the CPU empties it."""
        return _gain((self.drive_to_pool_mib_s, self.cpu_read_mib_s), (self.drive_to_host_mib_s, self.host_read_mib_s))

    def write_gain(self) -> float | None:
        """Speed of a host's Write through the pool, against host memory: of the CPU's part, which fills it."""
        return _gain((self.cpu_write_mib_s,), (self.host_write_mib_s,))


def _gain(pool: Iterable[float], host: Iterable[float]) -> float | None:
    """Ratio of the speeds of two chains of steps; a step is left out of both if either figure of it is missing."""
    steps = [(by_pool, by_host) for by_pool, by_host in zip(pool, host, strict=True) if by_pool > 0 and by_host > 0]
    if not steps:
        return None
    return sum(1 / by_host for _, by_host in steps) / sum(1 / by_pool for by_pool, _ in steps)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pool and what speaks for or against it, for one listener and namespace.

    ``verdicts``: one for each client that does DMA. ``far``: 1 if it is on another NUMA node than the port's NIC, 0 if
    not or if that is unknown. ``bytes`` and ``free`` of the pool. ``calibration`` is ``None`` as long as there was
    none. ``reason`` and ``remedy`` say why it cannot be used if ``usable`` is false (lost, not published ...).
    """

    pool: str
    kind: Kind = "p2pmem"
    usable: bool = True
    reason: str = ""
    remedy: str = ""
    verdicts: tuple[Verdict, ...] = ()
    far: int = 0
    bytes: int = 0
    free: int = 0
    calibration: Calibration | None = None

    @property
    def cost(self) -> int:
        """Sum of the distances to all clients."""
        return sum(verdict.cost for verdict in self.verdicts)

    def unfit(self) -> tuple[str, str] | None:
        """Reason and remedy if no data may be staged there, whatever was measured."""
        if not self.usable:
            return self.reason or "it cannot be used", self.remedy
        for verdict in self.verdicts:
            if not verdict.ok:
                return f"{verdict.client} cannot reach it: {verdict.reason}", verdict.remedy
        return None

    def unproven(self) -> tuple[str, str] | None:
        """Reason and remedy if its data was not verified."""
        if self.calibration is None:
            return "it has not been calibrated", "call p2p_calibrate"
        if not self.calibration.verified:
            cautions = [caution for verdict in self.verdicts for caution in verdict.cautions]
            reason = self.calibration.reason or "its data was not verified"
            return reason, cautions[0] if cautions else "use another pool"
        return None


@dataclass(frozen=True, slots=True)
class Choice:
    """Which pool serves reads, writes and copies (``None``: host memory), and why.

    ``cost`` is that of the chosen pool, ``runner_up`` the pool that would be next, ``rejected`` why each other pool was
    not taken. ``refused`` is set if the policy is strict and cannot be kept: the configuration call must fail with it.
    """

    policy: StagingPolicy
    read: str | None = None
    write: str | None = None
    copy: str | None = None
    cost: int | None = None
    reason: str = ""
    runner_up: str | None = None
    rejected: Mapping[str, str] = field(default_factory=dict)
    refused: Refusal | None = None

    @property
    def strict(self) -> bool:
        """Never host memory instead."""
        return self.policy.strict

    @property
    def pools(self) -> tuple[str, ...]:
        """The pools that are used, each once."""
        return tuple(dict.fromkeys(pool for pool in (self.read, self.write, self.copy) if pool is not None))

    def check(self) -> Choice:
        """Itself. Raises :class:`OperatorError` (-EINVAL) with reason and remedy if it is refused."""
        if self.refused is not None:
            remedy = f" ({self.refused.remedy})" if self.refused.remedy else ""
            raise OperatorError(-errno.EINVAL, f"staging {self.policy}: {self.refused.reason}{remedy}")
        return self

    def document(self) -> dict[str, Any]:
        """As JSON-RPC shows it."""
        return {
            "policy": self.policy.mode,
            "strict": self.strict,
            "read": self.read,
            "write": self.write,
            "copy": self.copy,
            "cost": self.cost,
            "reason": self.reason,
            "runner_up": self.runner_up,
            "rejected": dict(self.rejected),
            "refused": None
            if self.refused is None
            else {key: value for key, value in asdict(self.refused).items() if key != "clients"},
        }


def candidates_for(
    topology: Topology,
    clients: Iterable[Client],
    *,
    near: Iterable[Client] = (),
    free: Mapping[str, int] | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
    lost: Mapping[str, str] | None = None,
    emulated: Mapping[str, int] | None = None,
) -> tuple[Candidate, ...]:
    """A candidate for each provider of the tree, and for each emulated pool (name: bytes), sorted by name.

    ``clients`` do DMA; ``near`` (the NICs of an NVMe/TCP port) only make their NUMA node the better one. ``free``: the
    bytes that the data plane's pool has left; without a pool what the kernel says. ``lost``: pools that are gone, why.
    """
    clients, free, calibrations, lost = tuple(clients), free or {}, calibrations or {}, lost or {}
    nodes = {topology.devices[nic.bdf].numa_node for nic in near if nic.bdf in topology.devices} - {None}
    found = []
    for bdf, provider in topology.providers.items():
        node = topology.devices[bdf].numa_node
        usable, reason, remedy = provider.usable, provider.reason, provider.remedy
        if bdf in lost:
            usable, reason, remedy = False, f"it was lost: {lost[bdf]}", "it is used again when it returns"
        elif usable and bdf not in free and provider.available < GRANULE:
            usable, reason = False, f"all of its {provider.size} bytes are taken by others"
            remedy = "end the other users, or load nvme with use_cmb_sqes=0 if the kernel's submission queues fill it"
        found.append(
            Candidate(
                pool=bdf,
                kind=provider.kind,
                usable=usable,
                reason=reason,
                remedy=remedy,
                verdicts=tuple(distance(topology, bdf, client.bdf) for client in clients),
                far=int(bool(nodes) and node is not None and node not in nodes),
                bytes=provider.size,
                free=free.get(bdf, provider.available),
                calibration=calibrations.get(bdf),
            )
        )
    for name, size in (emulated or {}).items():
        calibration, gone = calibrations.get(name), lost.get(name)
        reason = f"it was lost: {gone}" if gone is not None else ""
        found.append(
            Candidate(name, "emulated", gone is None, reason, "", bytes=size, free=free.get(name, size))
            if calibration is None
            else Candidate(name, "emulated", gone is None, reason, "", (), 0, size, free.get(name, size), calibration)
        )
    return tuple(sorted(found, key=lambda candidate: candidate.pool))


def ranking(candidates: Iterable[Candidate], load: Mapping[str, int] | None = None) -> tuple[str, ...]:
    """The peer memory pools that every client reaches, nearest first: the order in which to calibrate them."""
    fit = (candidate for candidate in candidates if candidate.kind != "emulated" and candidate.unfit() is None)
    return tuple(candidate.pool for candidate in _ranked(fit, load or {}))


def choose(
    candidates: Iterable[Candidate],
    policy: StagingPolicy,
    load: Mapping[str, int] | None = None,
    *,
    mdts_bytes: int = 0,
) -> Choice:
    """The pools for ``policy``. ``load``: how many views use each pool already; ``mdts_bytes``: the largest transfer.

    The order in which the candidates come does not matter.
    """
    found = {candidate.pool: candidate for candidate in candidates}
    if policy.mode == OFF:
        return Choice(policy, reason="the policy is off: host memory")
    if policy.pool is not None:
        return _named(found, policy, policy.pool, mdts_bytes)
    return _auto(found, policy, load or {}, mdts_bytes)


def _named(found: Mapping[str, Candidate], policy: StagingPolicy, pool: str, mdts_bytes: int) -> Choice:
    """The pool that was named, for both directions, whatever its speed."""
    candidate = found.get(pool)
    if candidate is None:
        return _without(policy, "no-pool", f"there is no pool {pool}", "see p2p map for those there are", {})
    problem = _problem(candidate, policy, mdts_bytes)
    if problem is not None:
        return _without(policy, "unusable", f"{pool}: {problem[0]}", problem[1], {pool: problem[0]})
    others = _ranked(
        (other for other in found.values() if other.pool != pool and _problem(other, policy, mdts_bytes) is None), {}
    )
    reason = f"{_what(candidate)} is named by the policy"
    return Choice(policy, pool, pool, pool, candidate.cost, reason, others[0].pool if others else None)


def _auto(found: Mapping[str, Candidate], policy: StagingPolicy, load: Mapping[str, int], mdts_bytes: int) -> Choice:
    rejected: dict[str, str] = {}
    remedies: dict[str, str] = {}
    fit = []
    for name in sorted(found):
        candidate = found[name]
        problem = _problem(candidate, policy, mdts_bytes)
        if candidate.kind == "emulated":
            problem = ("it is emulated, in host memory: only a policy that names it uses it", "")
        if problem is None:
            fit.append(candidate)
        else:
            rejected[name], remedies[name] = problem
    ranked = _ranked(fit, load)
    if not ranked:
        why = "; ".join(f"{name}: {reason}" for name, reason in rejected.items()) or "no device offers peer memory"
        remedy = next((remedy for remedy in remedies.values() if remedy), "see p2p doctor")
        return _without(policy, "no-pool", f"no pool can be used: {why}", remedy, rejected)
    best = ranked[0]
    for other in ranked[1:]:
        rejected[other.pool] = _behind(other, best, load)
    read, write, speeds = _directions(best, policy)
    reason = f"{_what(best)} is the nearest of {len(ranked)} (sum of distances {best.cost}); {speeds}"
    return Choice(
        policy,
        best.pool if read else None,
        best.pool if write else None,
        best.pool,
        best.cost,
        reason,
        ranked[1].pool if len(ranked) > 1 else None,
        rejected,
    )


def _directions(best: Candidate, policy: StagingPolicy) -> tuple[bool, bool, str]:
    """Read and write through the pool? And the words for it."""
    if policy.strict:
        return True, True, "strict: both directions through it, whatever their speed"
    if best.calibration is None:
        return False, False, "not calibrated: host memory"
    answers, words = [], []
    for name, gain in (("reads", best.calibration.read_gain()), ("writes", best.calibration.write_gain())):
        through = gain is not None and gain >= 1 - NOISE
        answers.append(through)
        speed = "were not measured" if gain is None else f"go at {gain:.2f} of the speed of host memory"
        words.append(f"{name} {speed}: {'through it' if through else 'host memory'}")
    return answers[0], answers[1], ", ".join(words)


def _problem(candidate: Candidate, policy: StagingPolicy, mdts_bytes: int) -> tuple[str, str] | None:
    problem = candidate.unfit() or candidate.unproven()
    if problem is None and policy.strict and candidate.bytes < mdts_bytes:
        return (
            f"it has {candidate.bytes} bytes, less than one transfer of {mdts_bytes}: strict would wait for ever",
            "use prefer, or a smaller max_io_size",
        )
    return problem


def _ranked(candidates: Iterable[Candidate], load: Mapping[str, int]) -> list[Candidate]:
    return sorted(
        candidates,
        key=lambda candidate: (
            candidate.cost,
            candidate.far,
            load.get(candidate.pool, 0),
            -candidate.free,
            candidate.pool,
        ),
    )


def _behind(other: Candidate, best: Candidate, load: Mapping[str, int]) -> str:
    """By what ``other`` came after ``best``."""
    if other.cost != best.cost:
        return f"farther: {other.cost} to {best.cost}"
    if other.far != best.far:
        return "as near, but on another NUMA node than the port"
    users, fewest = load.get(other.pool, 0), load.get(best.pool, 0)
    if users != fewest:
        return f"as near, but {users} views use it and {fewest} {best.pool}"
    if other.free != best.free:
        return f"as near, but less of it is free: {other.free} bytes to {best.free}"
    return f"equal in all to {best.pool}, which comes first by name"


def _what(candidate: Candidate) -> str:
    if candidate.kind == "emulated":
        return f"{candidate.pool} (EMULATED: host memory, no peer-to-peer)"
    ways = sorted({verdict.map_type for verdict in candidate.verdicts})
    return f"{candidate.pool} ({', '.join(ways)})" if ways else candidate.pool


def _without(policy: StagingPolicy, code: str, reason: str, remedy: str, rejected: Mapping[str, str]) -> Choice:
    refused = Refusal(code, reason, remedy) if policy.strict else None
    return Choice(policy, reason=f"host memory: {reason}", rejected=rejected, refused=refused)
