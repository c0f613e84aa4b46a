"""The control plane's end of the capsule channel: a SOCK_SEQPACKET socket on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from nvmet_p2p.dataplane.native.messages import PACKET_BYTES_MAX, ChannelError, Message, parse

UNSENT_MAX: Final = 4096  # messages that wait for a data plane that does not read: it hangs
DESCRIPTORS_MAX: Final = 4
CLOSED: Final = "the data plane has closed the capsule channel"


class Channel:
    """Gives each message to ``on_message``, and the end of it all, once, to ``on_lost``.

    ``activity_fd`` is the descriptor of the activity counters if the data plane has given one (HELLO of one that was
    not started by us), else -1.
    """

    def __init__(
        self, sock: socket.socket, on_message: Callable[[Message], None], on_lost: Callable[[str], None]
    ) -> None:
        self._sock = sock
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[bytes, socket.socket | None]] = deque()
        self._closed = False
        self.activity_fd = -1
        sock.setblocking(False)
        self._loop.add_reader(sock, self._readable)

    def send(self, packet: bytes, passed: socket.socket | None = None) -> None:
        """Sends a message, with the descriptor of ``passed``, which must stay open until an answer has come."""
        if self._closed:
            return
        if self._unsent or not self._try_send(packet, passed):
            if len(self._unsent) >= UNSENT_MAX:
                self._lose("the data plane does not read its messages")
                return
            if not self._unsent:
                self._loop.add_writer(self._sock, self._writable)
            self._unsent.append((packet, passed))

    def _try_send(self, packet: bytes, passed: socket.socket | None) -> bool:
        """False when it has to wait. An error ends the channel, and what was to be sent with it."""
        try:
            if passed is None:
                self._sock.send(packet)
            elif passed.fileno() >= 0:
                socket.send_fds(self._sock, [packet], [passed.fileno()])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._lose(_why(error))
        return True

    def _writable(self) -> None:
        while self._unsent and not self._closed:
            if not self._try_send(*self._unsent[0]):
                return
            if self._unsent:
                self._unsent.popleft()
        if not self._closed:
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            packet, descriptors, flags, _ = socket.recv_fds(self._sock, PACKET_BYTES_MAX, DESCRIPTORS_MAX)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(_why(error))
            return
        for descriptor in descriptors:
            if self.activity_fd < 0:
                self.activity_fd = descriptor
            else:
                os.close(descriptor)
        if not packet:
            self._lose(CLOSED)
            return
        try:
            if flags & socket.MSG_TRUNC:
                raise ChannelError("a packet on the capsule channel that is too long")
            message = parse(packet)
        except ChannelError as error:
            self._lose(str(error))
            return
        self._on_message(message)

    def _lose(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_lost(reason)

    def close(self) -> None:
        """Ends the channel; ``on_lost`` is not called."""
        if self._closed:
            return
        self._closed = True
        self._unsent.clear()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        if self.activity_fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.activity_fd)
            self.activity_fd = -1


def _why(error: OSError) -> str:
    return CLOSED if isinstance(error, ConnectionError) else error.strerror or str(error)
