"""Listening sockets of the NVMe/TCP transport: bind, accept, and nothing of the protocol.

A bind that fails is an ``OperatorError`` before anything has changed. Running out of descriptors pauses accepting for a
moment instead of spinning on a socket that stays readable.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

import structlog

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import ListenAddress

log = structlog.get_logger()

ACCEPTS_PER_WAKEUP: Final = 64  # so that a storm of connections does not keep the loop from the connected ones
PAUSE_S: Final = 0.1
_FAMILY: Final = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

CONGESTION_AUTO: Final = "auto"
CONGESTION_SYSTEM: Final = "system"
_UNPACED: Final = ("cubic", "reno")

OnAccept = Callable[[socket.socket, ListenAddress], None]


def choose_congestion(sock: socket.socket, wanted: str) -> str:
    """Sets TCP_CONGESTION of a listening socket, which those that it accepts inherit; the algorithm's name.

    ``system`` leaves it, ``auto`` leaves it too unless that is BBR: its pacing timer fires for each burst, which costs
    a target on a fast network a third of its throughput (docs/performance.md). Raises ``OSError`` for another name that
    the kernel does not have.
    """
    current = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    if wanted == CONGESTION_SYSTEM or (wanted == CONGESTION_AUTO and not current.startswith("bbr")):
        return current
    names = _UNPACED if wanted == CONGESTION_AUTO else (wanted,)
    for name in names:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError as error:
            if wanted != CONGESTION_AUTO:
                raise OSError(error.errno, f"TCP congestion control {name!r} is not available") from error
            continue
        return name
    return current


def bind(address: ListenAddress, backlog: int, congestion: str = CONGESTION_AUTO) -> socket.socket:
    """A listening, non-blocking socket for ``address``. Raises ``OperatorError`` with the negated errno."""
    try:
        sock = socket.socket(_FAMILY[address.adrfam], socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise OperatorError(-(error.errno or errno.EIO), f"{address.adrfam} sockets: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.adrfam == "IPv6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        info = socket.getaddrinfo(
            address.traddr,
            int(address.trsvcid),
            family=_FAMILY[address.adrfam],
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        )
        choose_congestion(sock, congestion)
        sock.bind(info[0][4])
        sock.listen(backlog)
    except (OSError, ValueError) as error:
        sock.close()
        number = (error.errno if isinstance(error, OSError) else None) or errno.EINVAL
        if isinstance(error, socket.gaierror):
            number = errno.EINVAL
        where = f"{address.traddr}:{address.trsvcid}"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OperatorError(-number, f"cannot listen on {where}: {reason}") from error
    return sock


class Listeners:
    """The listening sockets by address; each accepted socket goes to ``on_accept``."""

    def __init__(self, on_accept: OnAccept, backlog: int, congestion: str = CONGESTION_AUTO) -> None:
        self._on_accept = on_accept
        self._backlog = backlog
        self._congestion = congestion
        self._sockets: dict[ListenAddress, socket.socket] = {}

    def bind(self, address: ListenAddress) -> socket.socket:
        """A socket for a later ``start``. Raises ``OperatorError``."""
        return bind(address, self._backlog, self._congestion)

    def start(self, address: ListenAddress, sock: socket.socket) -> None:
        """Accepts on ``sock`` from now on."""
        self._sockets[address] = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, address, sock)
        algorithm = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
        log.info(
            "listener.started",
            traddr=address.traddr,
            trsvcid=address.trsvcid,
            trtype=address.trtype,
            tcp_congestion=algorithm,
        )

    def stop(self, address: ListenAddress) -> None:
        """Closes the socket of ``address``; one that never started is no error."""
        sock = self._sockets.pop(address, None)
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
            log.info("listener.stopped", traddr=address.traddr, trsvcid=address.trsvcid)

    def stop_all(self) -> None:
        for address in list(self._sockets):
            self.stop(address)

    def __contains__(self, address: ListenAddress) -> bool:
        return address in self._sockets

    def _accept(self, address: ListenAddress, sock: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_WAKEUP):
            try:
                peer, _name = sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    log.warning("listener.paused", trsvcid=address.trsvcid, reason=os.strerror(error.errno or 0))
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(sock.fileno())
                    loop.call_later(PAUSE_S, self._resume, address, sock)
                    return
                continue  # the peer gave up between SYN and accept
            peer.setblocking(False)
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._on_accept(peer, address)

    def _resume(self, address: ListenAddress, sock: socket.socket) -> None:
        if self._sockets.get(address) is sock:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, address, sock)
