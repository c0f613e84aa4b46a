"""A TCP proxy between a host and a target that damages one PDU on its way to the host."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType

from tests.support import nvme
from tests.support.conn import Address

Damage = Callable[[bytearray], bytes]
"""Gets a whole PDU; returns what is sent in its place, perhaps nothing."""


class Proxy:
    """Listens on ``address``. The first PDU of type ``pdu_type`` on an I/O queue goes through ``damage``."""

    def __init__(self, target: Address, pdu_type: int, damage: Damage) -> None:
        self.target = target
        self.pdu_type = pdu_type
        self.damage = damage
        self.damaged = 0
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self.listener.getsockname()[:2]
        self.sockets: list[socket.socket] = []
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> Proxy:
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for sock in (self.listener, *self.sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for sock in (self.listener, *self.sockets):
            sock.close()

    def _start(self, function: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=function, args=args)
        self.threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                host, _ = self.listener.accept()
                target = socket.create_connection(self.target)
                self.sockets += [host, target]
                self._start(self._forward, host, target)
                self._start(self._inspect, target, host, self.connections > 0)
                self.connections += 1

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _inspect(self, source: socket.socket, sink: socket.socket, io_queue: bool) -> None:
        """The direction to the host, PDU by PDU. An I/O queue's first response is that of its Connect."""
        responses = 0
        with contextlib.suppress(OSError):
            with source.makefile("rb") as stream:
                while head := stream.read(8):
                    pdu = bytearray(head + stream.read(int.from_bytes(head[4:8], "little") - 8))
                    responses += pdu[0] == nvme.CAPSULE_RESP
                    after_connect = io_queue and responses > (pdu[0] == nvme.CAPSULE_RESP)
                    if after_connect and pdu[0] == self.pdu_type and not self.damaged:
                        self.damaged += 1
                        pdu = bytearray(self.damage(pdu))
                    sink.sendall(pdu)
            sink.shutdown(socket.SHUT_WR)
