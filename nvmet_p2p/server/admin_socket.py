"""The admin API's Unix socket.

Only root and the daemon's own user are served (SO_PEERCRED); folder 0700, socket 0600. Connections, the size and
nesting of a request, and the time that a client may take to read its answers are bounded. The requests of one
connection are carried out in order, and nothing more is read from it meanwhile. A change that has begun is finished
even if its client goes away, or the server stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

import structlog

from nvmet_p2p import limits
from nvmet_p2p.errors import ConfigError
from nvmet_p2p.server.dispatcher import Dispatcher, broken, refused
from nvmet_p2p.server.framing import Broken, JsonSplitter

log = structlog.get_logger()

READ_BYTES: Final = 64 * 1024
BACKLOG: Final = 64
STOP_GRACE_S: Final = 1.0
_UCRED: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class AdminServer:
    """Serves a dispatcher on a Unix socket."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        path: Path,
        *,
        connections_max: int = limits.RPC_CONNECTIONS_MAX,
        request_bytes_max: int = limits.RPC_REQUEST_BYTES_MAX,
        nesting_max: int = limits.RPC_NESTING_MAX,
        send_timeout_s: float = limits.RPC_SEND_TIMEOUT_S,
    ) -> None:
        self._dispatcher = dispatcher
        self._path = path
        self._connections_max = connections_max
        self._request_bytes_max = request_bytes_max
        self._nesting_max = nesting_max
        self._send_timeout_s = send_timeout_s
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._connections: dict[_Connection, asyncio.Task[None]] = {}

    @property
    def connections(self) -> int:
        """Connections being served."""
        return len(self._connections)

    async def start(self) -> None:
        """Listens. ``ConfigError`` when the path cannot be used or another daemon serves it."""
        sock = _listen(self._path)
        found = os.stat(self._path)
        self._inode = (found.st_dev, found.st_ino)
        self._server = await asyncio.start_unix_server(self._accepted, sock=sock, limit=READ_BYTES, backlog=BACKLOG)
        log.info("rpc.listening", path=str(self._path))

    async def stop(self) -> None:
        """Removes the socket and ends every connection, after the change, if any, that is being carried out."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with contextlib.suppress(OSError):
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self._path)
        for connection in list(self._connections):
            connection.stop()
        await self._dispatcher.quiesce()
        tasks = list(self._connections.values())
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=STOP_GRACE_S)  # answers are still on their way
            for task in left:  # waits for a bdev, or its client does not read
                task.cancel()
            await asyncio.wait(tasks)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = _peer_uid(writer)
        if uid not in (0, os.geteuid()):
            log.warning("rpc.refused", reason="uid", uid=uid)
            await self._refuse(writer, f"uid {uid} may not use this socket")
            return
        if len(self._connections) >= self._connections_max:
            log.warning("rpc.refused", reason="connections", connections_max=self._connections_max)
            await self._refuse(writer, f"there are {self._connections_max} connections, which is the most")
            return
        splitter = JsonSplitter(self._request_bytes_max, self._nesting_max)
        connection = _Connection(reader, writer, splitter, self._dispatcher, self._send_timeout_s)
        task = asyncio.current_task()
        assert task is not None
        self._connections[connection] = task
        try:
            await connection.run()
        finally:
            del self._connections[connection]

    async def _refuse(self, writer: asyncio.StreamWriter, reason: str) -> None:
        writer.write(refused(reason))
        await _close(writer, self._send_timeout_s)


class _Connection:
    """One client."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        splitter: JsonSplitter,
        dispatcher: Dispatcher,
        send_timeout_s: float,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._splitter = splitter
        self._dispatcher = dispatcher
        self._send_timeout_s = send_timeout_s
        self._stopping = False
        self._reading: asyncio.Task[bytes] | None = None

    def stop(self) -> None:
        """No further request is begun."""
        self._stopping = True
        if self._reading is not None:
            self._reading.cancel()

    async def run(self) -> None:
        """Until either side ends it."""
        try:
            while not self._stopping:
                data = await self._read()
                events = self._splitter.feed(data) if data else self._splitter.end()
                if not await self._serve(events) or not data:
                    break
        except (ConnectionError, TimeoutError) as error:
            log.info("rpc.disconnected", reason=str(error) or type(error).__name__)
        finally:
            await _close(self._writer, self._send_timeout_s)

    async def _read(self) -> bytes:
        """Empty at the end of the stream, and when the server stops."""
        self._reading = asyncio.ensure_future(self._reader.read(READ_BYTES))
        try:
            await asyncio.wait([self._reading])
            return b"" if self._reading.cancelled() else self._reading.result()
        finally:
            self._reading.cancel()
            self._reading = None

    async def _serve(self, events: list[bytes | Broken]) -> bool:
        """Carries out the requests in order; ``False`` when the connection must end."""
        for event in events:
            if self._stopping:
                return False
            answer = broken(event.reason) if isinstance(event, Broken) else await self._dispatcher.handle(event)
            if answer.data:
                self._writer.write(answer.data)
                async with asyncio.timeout(self._send_timeout_s):
                    await self._writer.drain()
            if answer.close:
                return False
        return True


async def _close(writer: asyncio.StreamWriter, timeout_s: float) -> None:
    """Lets what is written reach the client for a while, then cuts the connection."""
    writer.close()
    try:
        async with asyncio.timeout(timeout_s):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    sock = writer.get_extra_info("socket")
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def _listen(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"rpc_socket {path}: cannot make its folder: {error.strerror}") from error
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise ConfigError(f"rpc_socket {path}: {error.strerror or error}") from error
    finally:
        os.umask(mask)
    return sock


def _remove_stale(path: Path) -> None:
    """A socket that nobody listens on was left by a daemon that was killed. Anything else stays."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"rpc_socket {path}: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"rpc_socket {path}: there is a file of that name which is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError as error:
            raise ConfigError(f"rpc_socket {path}: {error.strerror}; another daemon may be using it") from error
        else:
            raise ConfigError(f"rpc_socket {path}: another daemon is listening there")
