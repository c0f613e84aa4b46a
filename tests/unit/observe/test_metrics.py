"""The Prometheus exposition: what a snapshot becomes, and HTTP peers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nvmet_p2p.errors import ConfigError
from nvmet_p2p.observe import metrics

SNAPSHOT = metrics.Snapshot(
    version="0.1.0",
    engine="inprocess",
    uptime_s=12.5,
    subsystems=(metrics.SubsystemFacts(nqn='nqn:"a"', controllers=2, io_queues=8, namespaces=1),),
    bdevs=(metrics.BdevIo(name="b", bytes_read=4096, read_ops=1, errors=3),),
    unconnected_peers=4,
    peers_accepted=7,
    peers_refused={"timeout": 2},
    staged=(metrics.StagedBytes(nqn="n", nsid=1, pool="p", kind="emulated", direction="read", bytes=512),),
    staging=(
        metrics.StagingFacts(
            nqn="n", nsid=1, fallbacks=2, interrupted=3, degraded=True, copy_routes={"device": 4, "host": 5}
        ),
    ),
    pools=(metrics.PoolFacts(name="p", kind="emulated", size=65536, lost=True),),
)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = await metrics.serve("127.0.0.1", 0, lambda: SNAPSHOT)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(port: int, request: bytes) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with contextlib.suppress(ConnectionResetError):  # closed with bytes of ours unread
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_exposition(port: int) -> None:
    head, body = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples == {
        ("nvmet_p2p_build", "inprocess", "0.1.0"): 1,
        ("nvmet_p2p_uptime_seconds",): 12.5,
        ("nvmet_p2p_unconnected_peers",): 4,
        ("nvmet_p2p_peers_accepted_total",): 7,
        ("nvmet_p2p_peers_refused_total", "timeout"): 2,
        ("nvmet_p2p_subsystem_controllers", 'nqn:"a"'): 2,
        ("nvmet_p2p_subsystem_io_queues", 'nqn:"a"'): 8,
        ("nvmet_p2p_subsystem_namespaces", 'nqn:"a"'): 1,
        ("nvmet_p2p_bdev_bytes_total", "b", "read"): 4096,
        ("nvmet_p2p_bdev_bytes_total", "b", "write"): 0,
        ("nvmet_p2p_bdev_bytes_total", "b", "unmap"): 0,
        ("nvmet_p2p_bdev_ops_total", "b", "read"): 1,
        ("nvmet_p2p_bdev_ops_total", "b", "write"): 0,
        ("nvmet_p2p_bdev_ops_total", "b", "unmap"): 0,
        ("nvmet_p2p_bdev_errors_total", "b"): 3,
        ("nvmet_p2p_staged_bytes_total", "read", "emulated", "n", "1", "p"): 512,
        ("nvmet_p2p_staging_fallbacks_total", "n", "1"): 2,
        ("nvmet_p2p_staging_interrupted_total", "n", "1"): 3,
        ("nvmet_p2p_staging_degraded", "n", "1"): 1,
        ("nvmet_p2p_copy_bytes_total", "n", "1", "device"): 4,
        ("nvmet_p2p_copy_bytes_total", "n", "1", "host"): 5,
        ("nvmet_p2p_pool_bytes", "emulated", "p"): 65536,
        ("nvmet_p2p_pool_lost", "emulated", "p"): 1,
    }


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET / HTTP/1.1", b"404"),
        (b"GET /metrics?x=1 HTTP/1.1", b"200"),
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"GET", b"404"),
        (b"\xff", b"405"),
    ],
)
async def test_request_lines(port: int, request_line: bytes, status: bytes) -> None:
    head, _ = await ask(port, request_line + b"\r\n\r\n")
    assert head.split()[1] == status


async def test_a_head_that_is_too_long_is_cut_off(port: int) -> None:
    assert await ask(port, b"GET " + b"a" * (2 * metrics.REQUEST_BYTES_MAX)) == (b"", b"")
    head, _ = await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert b"200" in head


async def test_a_peer_that_says_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(metrics, "REQUEST_TIMEOUT_S", 0.01)
    assert await ask(port, b"GET /metrics HTTP/1.1\r\n") == (b"", b"")


async def test_an_address_that_is_taken(port: int) -> None:
    with pytest.raises(ConfigError, match=rf"^metrics_listen: 127\.0\.0\.1 port {port}: .*in use"):
        await metrics.serve("127.0.0.1", port, lambda: SNAPSHOT)
