"""Connections of the control plane: what becomes of those that are dropped early."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from nvmet_p2p.clock import SystemClock
from nvmet_p2p.config import Settings
from nvmet_p2p.dataplane.inprocess.engine import InProcessDataPlane
from nvmet_p2p.server.fabric import Fabric
from nvmet_p2p.target.config import ListenAddress, TargetConfig

HERE = ListenAddress(trtype="TCP", adrfam="IPv4", traddr="127.0.0.1", trsvcid="4420")


@pytest.fixture
def connections() -> tuple[list[socket.socket], list[socket.socket]]:
    """Three accepted sockets, and their peers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        peers = [socket.create_connection(server.getsockname()) for _ in range(3)]
        accepted = [server.accept()[0] for _ in peers]
    for sock in accepted:
        sock.setblocking(False)
    return accepted, peers


async def test_a_connection_that_is_dropped_before_its_task_has_run_leaves_nothing(
    tmp_path: Path, connections: tuple[list[socket.socket], list[socket.socket]]
) -> None:
    accepted, peers = connections
    settings = Settings(rpc_socket=tmp_path / "s", state_dir=tmp_path, unconnected_peers_max=1)
    fabric = Fabric(settings, SystemClock(), InProcessDataPlane(), TargetConfig())
    for sock in accepted:  # as a listener does within one wake-up
        fabric._accepted(sock, HERE)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (fabric.sessions, fabric.unconnected) == (1, 1)
    assert [sock.fileno() for sock in accepted[:2]] == [-1, -1]
    await fabric.stop()
    assert (fabric.sessions, fabric.unconnected) == (0, 0)
    assert accepted[2].fileno() == -1
    for peer in peers:
        peer.close()
