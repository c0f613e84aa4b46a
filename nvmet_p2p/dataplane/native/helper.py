"""One live data plane: its process (unless systemd has started it), its capsule channel, its JSON-RPC connection.

It ends as a whole: when any of the three is gone, the other two are brought to an end and ``lost`` tells why. A new one
is made by the supervision (``plane``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nvmet_p2p.dataplane.native.activity import Activity
from nvmet_p2p.dataplane.native.channel import CLOSED, Channel
from nvmet_p2p.dataplane.native.messages import (
    Adopted,
    Hello,
    Message,
    build_adopt,
    build_hello,
    build_rdma_adopt,
)
from nvmet_p2p.dataplane.native.process import HelperProcess
from nvmet_p2p.dataplane.native.rpc import LINK_CLOSED, LinkLostError, RpcLink
from nvmet_p2p.dataplane.port import QueueHandoff, RdmaHandoff
from nvmet_p2p.errors import OperatorError

START_TIMEOUT_S: Final = 10.0
STOP_TIMEOUT_S: Final = 40.0  # longer than the helper's own limit for draining
TERM_TIMEOUT_S: Final = 2.0
POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How to get a data plane: ``program`` is started, or (None) one listens at ``channel_socket``."""

    program: Path | None
    channel_socket: Path | None = None
    rpc_socket: Path | None = None
    options: tuple[str, ...] = ()
    start_timeout_s: float = START_TIMEOUT_S


@dataclass(slots=True)
class Helper:
    """See the module. ``lost`` resolves to the reason of its end."""

    process: HelperProcess | None
    hello: asyncio.Future[Hello]
    lost: asyncio.Future[str]
    on_message: Callable[[Message], None]
    channel: Channel = field(init=False)
    rpc: RpcLink | None = None
    pid: int = 0
    rpc_socket: str = ""
    cause: str = ""  # why we have killed it
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    tokens: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    adopting: dict[int, asyncio.Future[Adopted]] = field(default_factory=dict)

    @classmethod
    async def launch(cls, options: LaunchOptions, activity: Activity, on_message: Callable[[Message], None]) -> Helper:
        """Starts or finds one. Raises ``OperatorError`` when it does not come up in time."""
        loop = asyncio.get_running_loop()
        process, sock = await _process_and_channel(options, activity)
        lost: asyncio.Future[str] = loop.create_future()
        helper = cls(process, loop.create_future(), lost, on_message)
        helper.channel = Channel(sock, helper.received, helper.lose)
        if process is not None:
            helper.tasks.append(asyncio.create_task(helper._watch(process), name="data plane process"))
        try:
            async with asyncio.timeout(options.start_timeout_s):
                await helper._greet(activity)
        except (LinkLostError, TimeoutError) as error:
            if process is not None and helper.cause:
                await asyncio.wait([lost], timeout=TERM_TIMEOUT_S)  # the process is about to say why
            reason = str(error) or f"no greeting within {options.start_timeout_s:g} s"
            if lost.done():
                reason = lost.result()
            await helper.end()
            raise OperatorError(-errno.ENOTCONN, f"the native data plane does not start: {reason}") from error
        return helper

    async def _greet(self, activity: Activity) -> None:
        self.channel.send(build_hello(os.getpid(), reset=True))
        waiting: list[asyncio.Future[Any]] = [self.hello, self.lost]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self.hello.done():
            raise LinkLostError(self.lost.result())
        hello = self.hello.result()
        self.pid, self.rpc_socket = hello.pid, hello.rpc_socket
        if self.channel.activity_fd >= 0:
            activity.use(self.channel.activity_fd)
        self.rpc = await RpcLink.connect(hello.rpc_socket, self.lose)

    async def _watch(self, process: HelperProcess) -> None:
        how = await process.wait()
        self._gone(f"{self.cause}; {how}" if self.cause not in ("", CLOSED) else how)

    def received(self, message: Message) -> None:
        """A message of the channel: those of the hand-shakes end here."""
        match message:
            case Hello() if not self.hello.done():
                self.hello.set_result(message)
            case Adopted():
                waiting = self.adopting.pop(message.token, None)
                self.on_message(message)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case _:
                self.on_message(message)

    def lose(self, reason: str) -> None:
        """It is gone, or as good as gone. The end of a process that we have started says more, and comes at once."""
        if self.process is None:
            self._gone(reason)
        elif not self.cause:
            ended = reason in (CLOSED, LINK_CLOSED)  # a process that ends by itself may still have to tidy up
            self.cause = CLOSED if ended else reason
            delay = TERM_TIMEOUT_S if ended else 0.0
            asyncio.get_running_loop().call_later(delay, self.process.send_signal, signal.SIGKILL)

    def _gone(self, reason: str) -> None:
        self.channel.close()
        if not self.lost.done():
            self.lost.set_result(reason)
        for waiting in self.adopting.values():
            if not waiting.done():
                waiting.set_exception(LinkLostError(reason))
        self.adopting.clear()

    async def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """JSON-RPC. Raises ``OperatorError`` or ``LinkLostError``."""
        if self.rpc is None or self.lost.done():
            raise LinkLostError("the data plane is gone")
        return await self.rpc.call(method, params)

    def new_token(self) -> int:
        """For ``adopt``."""
        return next(self.tokens)

    async def adopt(self, token: int, slot: int, handoff: QueueHandoff | RdmaHandoff) -> Adopted:
        """Hands the connection over; a socket is still ours to close. Raises ``LinkLostError``."""
        if self.lost.done():
            raise LinkLostError("the data plane is gone")
        waiting: asyncio.Future[Adopted] = asyncio.get_running_loop().create_future()
        self.adopting[token] = waiting
        if isinstance(handoff, RdmaHandoff):
            self.channel.send(build_rdma_adopt(token, slot, handoff))
        else:
            self.channel.send(build_adopt(token, slot, handoff), handoff.sock)
        return await waiting

    async def end(self, *, drain: bool = False) -> None:
        """Ends our side of it, and the process that we have started: at once, or (``drain``) with its I/O done."""
        self.cause = self.cause or "ended"
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM if drain else signal.SIGKILL)
            done, _ = await asyncio.wait(self.tasks, timeout=STOP_TIMEOUT_S if drain else TERM_TIMEOUT_S)
            if not done:
                self.process.send_signal(signal.SIGKILL)
                await asyncio.wait(self.tasks, timeout=TERM_TIMEOUT_S)
        self.channel.close()
        if self.rpc is not None:
            await self.rpc.close()
        for task in self.tasks:
            task.cancel()
        self._gone("ended")


async def _process_and_channel(
    options: LaunchOptions, activity: Activity
) -> tuple[HelperProcess | None, socket.socket]:
    if options.program is None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(options.channel_socket))
        except OSError as error:
            sock.close()
            raise OperatorError(
                -(error.errno or errno.ENOTCONN),
                f"no data plane listens at {options.channel_socket}: {error.strerror}",
            ) from error
        return None, sock
    assert options.rpc_socket is not None
    await _predecessor_has_ended(options.rpc_socket)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [str(options.program), "--rpc-socket", str(options.rpc_socket), *options.options]
    with theirs:
        try:
            return await HelperProcess.start(command, theirs, activity.fd), ours
        except OSError as error:
            ours.close()
            raise OperatorError(
                -(error.errno or errno.EIO), f"{options.program} cannot be started: {error.strerror}"
            ) from error
        except BaseException:
            with contextlib.suppress(OSError):
                ours.close()
            raise


async def _predecessor_has_ended(path: Path) -> None:
    """The helper of a daemon that was killed drains, then ends: it writes to the back ends as long as it listens."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            while _somebody_listens(path):  # noqa: ASYNC110 - another process: nothing could set an event
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise OperatorError(-errno.EADDRINUSE, f"another data plane listens at {path}") from None


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
