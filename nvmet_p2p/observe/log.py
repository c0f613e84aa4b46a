"""Logging, configured once by the daemon. The rest of the package takes ``structlog.get_logger()`` and logs events.

An event is a dotted noun and verb, ``peer.connect_refused``; the facts are key-value pairs. What belongs to one
connection (peer, subsystem, qid) is bound with ``structlog.contextvars`` where the connection's task starts.

Noise that a peer can cause at will (a port scanner, a broken host) must not fill the disk: such an event is logged with
``peer_noise=True`` and passes a limit for each event name. What was left out is counted in the next one that passes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from time import monotonic
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from nvmet_p2p.config import LogFormat, LogLevel

NOISE_BURST = 10  # events of one name that pass at once
NOISE_INTERVAL_S = 10.0  # then one in each interval
NOISE_NAMES_MAX = 256  # event names are constants of the source; more than this is a mistake, and shares one limit


class NoiseLimit:
    """A structlog processor: a token bucket for each event name, for events marked ``peer_noise=True``."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._buckets: dict[str, _Bucket] = {}

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if not event.pop("peer_noise", False):
            return event
        name = str(event.get("event"))
        if name not in self._buckets and len(self._buckets) >= NOISE_NAMES_MAX:
            name = "(other)"
        bucket = self._buckets.setdefault(name, _Bucket(self._now()))
        suppressed = bucket.take(self._now())
        if suppressed is None:
            raise structlog.DropEvent
        if suppressed:
            event["suppressed"] = suppressed
        return event


class _Bucket:
    def __init__(self, now: float) -> None:
        self._tokens = float(NOISE_BURST)
        self._last = now
        self._suppressed = 0

    def take(self, now: float) -> int | None:
        """How many were dropped since the last that passed; ``None`` when this one is to be dropped."""
        self._tokens = min(float(NOISE_BURST), self._tokens + (now - self._last) / NOISE_INTERVAL_S)
        self._last = now
        if self._tokens < 1:
            self._suppressed += 1
            return None
        self._tokens -= 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


def configure(
    level: LogLevel,
    log_format: LogFormat,
    *,
    stream: TextIO | None = None,
    now: Callable[[], float] = monotonic,
) -> None:
    """Sets up structlog for the process; lines go to ``stream`` (stderr). A second call replaces the first."""
    stream = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        NoiseLimit(now),
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if log_format == "json":
        rendering: list[Processor] = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        rendering = [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
    structlog.configure(
        processors=shared + rendering,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
