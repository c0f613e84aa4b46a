"""Logging: formats, context, and a limit on what peers can make us write."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from nvmet_p2p.observe import log


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Now:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.value = 1000.0

    def __call__(self) -> float:
        return self.value


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_carry_level_time_and_context() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream=stream)
    structlog.contextvars.bind_contextvars(peer="192.0.2.1:5")
    logger = structlog.get_logger()
    logger.debug("not.shown")
    logger.info("peer.accepted", qid=1)
    (line,) = lines(stream)
    assert line.pop("timestamp")
    assert line == {"event": "peer.accepted", "level": "info", "peer": "192.0.2.1:5", "qid": 1}


def test_console_escapes_what_a_peer_chose() -> None:
    stream = io.StringIO()
    log.configure("info", "console", stream=stream)
    structlog.get_logger().info("peer.connected", hostnqn="a\x1b[31m\nforged line")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().count("\n") == 1


def test_noise_is_limited_for_each_event_and_counted() -> None:
    stream, now = io.StringIO(), Now()
    log.configure("info", "json", stream=stream, now=now)
    logger = structlog.get_logger()
    for _ in range(log.NOISE_BURST + 1):
        logger.warning("peer.garbage", peer_noise=True)
    logger.warning("peer.silent", peer_noise=True)
    logger.warning("operator.said")
    assert [line["event"] for line in lines(stream)] == ["peer.garbage"] * log.NOISE_BURST + [
        "peer.silent",
        "operator.said",
    ]
    assert "suppressed" not in stream.getvalue()
    assert "peer_noise" not in stream.getvalue()

    now.value += log.NOISE_INTERVAL_S
    logger.warning("peer.garbage", peer_noise=True)
    logger.warning("peer.garbage", peer_noise=True)
    assert lines(stream)[-1]["suppressed"] == 1
    now.value += 100 * log.NOISE_INTERVAL_S
    before = len(lines(stream))
    for _ in range(2 * log.NOISE_BURST):
        logger.warning("peer.garbage", peer_noise=True)
    assert len(lines(stream)) - before == log.NOISE_BURST


def test_the_number_of_limits_is_bounded() -> None:
    limit = log.NoiseLimit(Now())
    for number in range(log.NOISE_NAMES_MAX + log.NOISE_BURST):
        limit(None, "info", {"event": f"e{number}", "peer_noise": True})
    with pytest.raises(structlog.DropEvent):
        limit(None, "info", {"event": "one more", "peer_noise": True})
