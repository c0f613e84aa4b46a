"""Congestion control of listening sockets, which the connections of hosts inherit."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import cast

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server import listener
from nvmet_p2p.target.config import ListenAddress

ADDRESS = ListenAddress(trtype="TCP", adrfam="IPv4", traddr="127.0.0.1", trsvcid="0")
AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()


class Kernel:
    """A socket of a machine with that default, which lacks some algorithms."""

    def __init__(self, default: str, lacks: frozenset[str] = frozenset()) -> None:
        self.congestion = default
        self.lacks = lacks

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
        return self.congestion.encode().ljust(size, b"\0")

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
        if value.decode() in self.lacks:
            raise OSError(errno.ENOENT, "No such file or directory")
        self.congestion = value.decode()


@pytest.mark.parametrize(
    ("default", "lacks", "wanted", "chosen"),
    [
        ("bbr", [], "auto", "cubic"),
        ("bbr2", [], "auto", "cubic"),
        ("bbr", ["cubic"], "auto", "reno"),
        ("bbr", ["cubic", "reno"], "auto", "bbr"),
        ("dctcp", [], "auto", "dctcp"),
        ("bbr", [], "system", "bbr"),
        ("cubic", [], "bbr", "bbr"),
    ],
)
def test_choice(default: str, lacks: list[str], wanted: str, chosen: str) -> None:
    kernel = Kernel(default, frozenset(lacks))
    assert listener.choose_congestion(cast(socket.socket, kernel), wanted) == chosen
    assert kernel.congestion == chosen


def test_a_name_that_the_kernel_lacks_is_refused() -> None:
    with pytest.raises(OperatorError, match="TCP congestion control 'nonsense' is not available") as caught:
        listener.bind(ADDRESS, 16, "nonsense")
    assert caught.value.code == -errno.ENOENT


@pytest.mark.skipif("reno" not in AVAILABLE, reason="the kernel has no reno")
def test_connections_inherit_it() -> None:
    with listener.bind(ADDRESS, 16, "reno") as sock:
        sock.setblocking(True)
        with socket.create_connection(sock.getsockname()), sock.accept()[0] as peer:
            assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
