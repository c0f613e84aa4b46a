"""The socket of an I/O queue: gathered writes, big reads, back-pressure. Works on any loop that has ``add_reader``.

No transport of asyncio is used: they copy what they cannot send at once, and a queue's payload must be counted.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from nvmet_p2p.wire.codec import BytesLike

RECEIVE_BYTES: Final = 256 * 1024
RECEIVES_PER_WAKEUP: Final = 4  # then other queues get their turn
IOV_MAX: Final = 1024
DISCARD_BYTES: Final = 64 * 1024
UNSENT_HIGH_BYTES: Final = 1024 * 1024  # reading stops above, and goes on below half of it


class QueueSocket:
    """A connected, non-blocking stream socket and what still has to be sent on it.

    ``received`` gets each piece that arrives (valid during the call only), ``sent`` the number of bytes that have left
    since the last call, ``lost`` (once) the reason when the peer is gone.
    """

    def __init__(
        self,
        sock: socket.socket,
        buffer: memoryview,
        received: Callable[[memoryview], None],
        sent: Callable[[int], None],
        lost: Callable[[str], None],
    ) -> None:
        self._sock = sock
        self._buffer = buffer
        self._received = received
        self._sent = sent
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._out: deque[BytesLike] = deque()
        self.unsent_bytes = 0
        self._reading = False
        self._wanted = False
        self._writing = False
        self._flush_due = False
        self.dead = False
        self._idle: asyncio.Future[None] | None = None
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # -- reading

    def read(self, wanted: bool) -> None:
        """Whether the owner wants data at all; too much that is unsent keeps reading off nevertheless."""
        self._wanted = wanted
        self._update_reading()

    def _update_reading(self) -> None:
        limit = UNSENT_HIGH_BYTES // 2 if not self._reading else UNSENT_HIGH_BYTES
        on = self._wanted and not self.dead and self.unsent_bytes <= limit
        if on and not self._reading:
            self._loop.add_reader(self._sock.fileno(), self._readable)
        elif self._reading and not on:
            self._loop.remove_reader(self._sock.fileno())
        self._reading = on

    def _readable(self) -> None:
        for _ in range(RECEIVES_PER_WAKEUP):
            if not self._reading:
                break
            try:
                count = self._sock.recv_into(self._buffer)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._gone(error.strerror or str(error))
                return
            if count == 0:
                self._gone("closed by the host")
                return
            self._received(self._buffer[:count])
            if count < len(self._buffer):
                break
        self._flush()

    # -- writing

    def put(self, pieces: list[BytesLike]) -> None:
        """Queues output; it leaves at the end of this wake-up, with all else that comes until then."""
        if self.dead:
            return
        for piece in pieces:
            self.unsent_bytes += len(piece)
        self._out.extend(pieces)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.dead:
            return
        if self._writing:  # the socket is full; it will say when it is not
            self._update_reading()
        else:
            self._send()

    def _send(self) -> None:
        total = 0
        while self._out:
            batch = [piece for piece, _ in zip(self._out, range(IOV_MAX), strict=False)]
            try:
                count = self._sock.sendmsg(batch)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._gone(error.strerror or str(error))
                return
            total += count
            if not self._drop(count):
                break
        self.unsent_bytes -= total
        self._update_writing()
        self._update_reading()
        if total:
            self._sent(total)

    def _drop(self, count: int) -> bool:
        """Removes ``count`` bytes that were sent; False if the last piece left only in part."""
        while self._out and count >= len(self._out[0]):
            count -= len(self._out.popleft())
        if count:
            self._out[0] = memoryview(self._out[0])[count:]
        return count == 0

    def _update_writing(self) -> None:
        if self._out and not self._writing:
            self._loop.add_writer(self._sock.fileno(), self._send)
        elif self._writing and not self._out:
            self._loop.remove_writer(self._sock.fileno())
        self._writing = bool(self._out)
        if not self._out and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    # -- the end

    def _gone(self, reason: str) -> None:
        if self.dead:
            return
        self._detach()
        self._lost(reason)

    def _detach(self) -> None:
        self.dead = True
        self._update_reading()
        self._out.clear()
        self.unsent_bytes = 0
        self._update_writing()

    async def finish(self, timeout_s: float, hurry: asyncio.Event, *, half_close: bool) -> None:
        """Sends what is queued and, with ``half_close``, waits for the peer to close; at most ``timeout_s`` seconds."""
        waiter = asyncio.ensure_future(self._finish(half_close))
        hurried = asyncio.ensure_future(hurry.wait())
        await asyncio.wait({waiter, hurried}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiter, hurried):
            task.cancel()
        await asyncio.gather(waiter, hurried, return_exceptions=True)

    async def _finish(self, half_close: bool) -> None:
        self._flush()
        if self._out:
            self._idle = self._loop.create_future()
            await self._idle
        if not half_close or self.dead:
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
            while await self._loop.sock_recv(self._sock, DISCARD_BYTES):
                pass  # what the peer still sends after our TermReq is of no interest
        except OSError:
            return

    def close(self) -> None:
        """Sends at once what the socket takes, then closes."""
        if not self.dead:
            if self._out:
                try:
                    self._sock.sendmsg([piece for piece, _ in zip(self._out, range(IOV_MAX), strict=False)])
                except OSError:
                    self._out.clear()
            self._detach()
        self._sock.close()
