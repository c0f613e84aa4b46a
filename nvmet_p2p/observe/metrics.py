"""Prometheus metrics: read from a snapshot at the moment of the scrape, so nothing is counted twice.

The exposition is served by the daemon's own event loop, in its thread; taking the snapshot needs no lock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from nvmet_p2p.errors import ConfigError

REQUEST_BYTES_MAX = 8192
REQUEST_TIMEOUT_S = 5.0
SCRAPERS_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BdevIo:
    """Counters of one back end since it was opened; bytes and commands."""

    name: str
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_unmapped: int = 0
    read_ops: int = 0
    write_ops: int = 0
    unmap_ops: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsystemFacts:
    """Numbers of one subsystem, now."""

    nqn: str
    controllers: int = 0
    io_queues: int = 0
    namespaces: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedBytes:
    """Where payload of one namespace rested: ``pool`` "host" is host memory, ``direction`` read, write or copy."""

    nqn: str
    nsid: int
    pool: str
    kind: str
    direction: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingFacts:
    """One namespace's staging. ``copy_routes``: bytes by route. ``degraded``: a pool was asked for and is not used."""

    nqn: str
    nsid: int
    fallbacks: int = 0
    interrupted: int = 0
    degraded: bool = False
    copy_routes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """A pool of peer memory that exists, or was lost."""

    name: str
    kind: str
    size: int
    lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that is exposed. ``peers_refused`` counts closed connections by reason since the start."""

    version: str
    engine: str
    uptime_s: float
    subsystems: tuple[SubsystemFacts, ...] = ()
    bdevs: tuple[BdevIo, ...] = ()
    unconnected_peers: int = 0
    peers_accepted: int = 0
    peers_refused: dict[str, int] = field(default_factory=dict)
    staged: tuple[StagedBytes, ...] = ()
    staging: tuple[StagingFacts, ...] = ()
    pools: tuple[PoolFacts, ...] = ()


class TargetCollector(Collector):
    """Turns a snapshot into metric families each time it is asked."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        build = GaugeMetricFamily("nvmet_p2p_build", "Version and I/O engine; always 1.", labels=["version", "engine"])
        build.add_metric([now.version, now.engine], 1)
        yield build
        yield GaugeMetricFamily("nvmet_p2p_uptime_seconds", "Time since the daemon started.", value=now.uptime_s)
        yield GaugeMetricFamily(
            "nvmet_p2p_unconnected_peers", "Sockets that have not completed Connect.", value=now.unconnected_peers
        )
        yield CounterMetricFamily("nvmet_p2p_peers_accepted", "TCP connections accepted.", value=now.peers_accepted)
        refused = CounterMetricFamily("nvmet_p2p_peers_refused", "Connections ended by us.", labels=["reason"])
        for reason, count in sorted(now.peers_refused.items()):
            refused.add_metric([reason], count)
        yield refused
        yield from _subsystems(now.subsystems)
        yield from _bdevs(now.bdevs)
        yield from _staging(now)

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not take a snapshot."""
        return ()


def _subsystems(subsystems: tuple[SubsystemFacts, ...]) -> Iterator[Metric]:
    for attribute, text in (
        ("controllers", "Controllers, one for each association."),
        ("io_queues", "I/O queues connected."),
        ("namespaces", "Namespaces, also those whose back end is absent."),
    ):
        family = GaugeMetricFamily(f"nvmet_p2p_subsystem_{attribute}", text, labels=["nqn"])
        for subsystem in subsystems:
            family.add_metric([subsystem.nqn], getattr(subsystem, attribute))
        yield family


def _bdevs(bdevs: tuple[BdevIo, ...]) -> Iterator[Metric]:
    for name, text, attributes in (
        ("bytes", "Bytes moved.", {"read": "bytes_read", "write": "bytes_written", "unmap": "bytes_unmapped"}),
        ("ops", "Commands completed.", {"read": "read_ops", "write": "write_ops", "unmap": "unmap_ops"}),
    ):
        family = CounterMetricFamily(f"nvmet_p2p_bdev_{name}", text, labels=["bdev", "op"])
        for bdev in bdevs:
            for operation, attribute in attributes.items():
                family.add_metric([bdev.name, operation], getattr(bdev, attribute))
        yield family
    errors = CounterMetricFamily("nvmet_p2p_bdev_errors", "Commands that the back end failed.", labels=["bdev"])
    for bdev in bdevs:
        errors.add_metric([bdev.name], bdev.errors)
    yield errors


def _staging(now: Snapshot) -> Iterator[Metric]:
    staged = CounterMetricFamily(
        "nvmet_p2p_staged_bytes",
        "Payload by where it rested; pool host is host memory, kind emulated is host memory too.",
        labels=["nqn", "nsid", "direction", "pool", "kind"],
    )
    for use in now.staged:
        staged.add_metric([use.nqn, str(use.nsid), use.direction, use.pool, use.kind], use.bytes)
    yield staged
    for attribute, text in (
        ("fallbacks", "Operations that took host memory though they had a pool."),
        ("interrupted", "Commands that hosts had to repeat because a pool was lost."),
    ):
        family = CounterMetricFamily(f"nvmet_p2p_staging_{attribute}", text, labels=["nqn", "nsid"])
        for facts in now.staging:
            family.add_metric([facts.nqn, str(facts.nsid)], getattr(facts, attribute))
        yield family
    degraded = GaugeMetricFamily(
        "nvmet_p2p_staging_degraded", "1: a pool was asked for and is not used.", labels=["nqn", "nsid"]
    )
    routes = CounterMetricFamily("nvmet_p2p_copy_bytes", "Copy by its route.", labels=["nqn", "nsid", "route"])
    for facts in now.staging:
        degraded.add_metric([facts.nqn, str(facts.nsid)], int(facts.degraded))
        for route, count in facts.copy_routes.items():
            routes.add_metric([facts.nqn, str(facts.nsid), route], count)
    yield degraded
    yield routes
    size = GaugeMetricFamily("nvmet_p2p_pool_bytes", "Size of a pool.", labels=["pool", "kind"])
    lost = GaugeMetricFamily("nvmet_p2p_pool_lost", "1: its memory is gone.", labels=["pool", "kind"])
    for pool in now.pools:
        size.add_metric([pool.name, pool.kind], pool.size)
        lost.add_metric([pool.name, pool.kind], int(pool.lost))
    yield size
    yield lost


async def serve(host: str, port: int, snapshot: Callable[[], Snapshot]) -> asyncio.Server:
    """Serves ``GET /metrics`` over HTTP on ``host``:``port`` (0: any free one). Close the server to stop.

    Raises :class:`ConfigError` when the address cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(TargetCollector(snapshot))
    scrapers = asyncio.Semaphore(SCRAPERS_MAX)

    async def scraper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S), scrapers:
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, registry))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # a scraper that does not speak HTTP is not ours to report
        finally:
            writer.close()

    try:
        return await asyncio.start_server(scraper, host, port, limit=REQUEST_BYTES_MAX)
    except OSError as error:
        raise ConfigError(f"metrics_listen: {host} port {port}: {error.strerror or error}") from error


def _answer(head: bytes, registry: CollectorRegistry) -> bytes:
    words = head.split(b"\r\n", 1)[0].split(b" ")
    target = words[1].split(b"?", 1)[0] if len(words) == 3 else b""
    if words[0] != b"GET":
        return _response("405 Method Not Allowed", "text/plain", b"GET only\n")
    if target != b"/metrics":
        return _response("404 Not Found", "text/plain", b"see /metrics\n")
    return _response("200 OK", CONTENT_TYPE_LATEST, generate_latest(registry))


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
