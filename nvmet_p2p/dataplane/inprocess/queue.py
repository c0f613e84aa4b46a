"""One I/O queue: commands in, completions out, any number of them at work at a time and in any order.

The life of a command::

    ADMIT -> ROOM -> DATA -> (SECOND) -> LOCKED -> BACKEND -> completed
             |        |        |           |
             |        |        |           may wait for a fused pair on the same blocks
             |        |        first half of a fused pair: waits for the other
             |        its H2C data is on the way (R2T)
             waits until the queue may hold its payload

A command that has not reached BACKEND can be aborted; one that has is always awaited. What was checked at ADMIT is
checked again before BACKEND if the controller's view or the back end has changed meanwhile.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import Final

from nvmet_p2p import limits
from nvmet_p2p.dataplane.inprocess.budget import Budget
from nvmet_p2p.dataplane.inprocess.controller import ControllerState
from nvmet_p2p.dataplane.inprocess.execute import COMMANDS, SecondFailed, run
from nvmet_p2p.dataplane.inprocess.nvm import LOC_FUSE, Io, Outcome, admit, blocks_of, slba_of, validate
from nvmet_p2p.dataplane.inprocess.queue_socket import QueueSocket
from nvmet_p2p.dataplane.port import QueueHandoff, QueueStat
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.protocol import sgl
from nvmet_p2p.protocol.events import CommandReceived, ConnectionFailed, DataReceived, PeerTerminated
from nvmet_p2p.protocol.tcp_target import TcpLimits, TcpTarget
from nvmet_p2p.target.fabrics_cmd import io_queue_command
from nvmet_p2p.wire.codec import BytesLike
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.spec import Fuse, NvmOpcode, Status
from nvmet_p2p.wire.sqe import Sqe

PAYLOAD_BYTES_MIN: Final = 4 * 1024 * 1024  # per queue and direction, and at least two transfers (a fused pair)
SQHD_NONE: Final = 0xFFFF  # SQHD when submission queue flow control is disabled


class Phase(enum.Enum):
    """Where a command is; see the module."""

    ADMIT = enum.auto()
    ROOM = enum.auto()
    DATA = enum.auto()
    SECOND = enum.auto()
    LOCKED = enum.auto()
    BACKEND = enum.auto()
    DONE = enum.auto()


class Ending(enum.Enum):
    """How a queue ends."""

    ORDERED = enum.auto()  # by the control plane: nothing more needs to be said to the host
    LOST = enum.auto()  # the peer is gone
    TERMINATED = enum.auto()  # our TermReq goes out first
    DISCONNECT = enum.auto()  # every command is answered, Disconnect last


class Request:
    """A command in flight."""

    __slots__ = ("cid", "data", "first", "held_bytes", "io", "phase", "plan", "second", "sqe", "task")

    def __init__(self, sqe: Sqe) -> None:
        self.sqe: Final = sqe
        self.cid: Final = sqe.cid
        self.phase = Phase.ADMIT
        self.io: Io | None = None
        self.plan = sgl.NO_DATA
        self.data: BytesLike = b""
        self.held_bytes = 0  # of a budget
        self.first: Request | None = None  # of a fused pair, while both are in flight
        self.second: Request | None = None
        self.task: asyncio.Task[None] | None = None


def _error(status: Status, reason: str, *, dnr: bool = True, error_loc: int | None = None) -> NvmeStatusError:
    return NvmeStatusError(status, reason, dnr=dnr, error_loc=error_loc)


def _failed_fused() -> NvmeStatusError:
    return _error(Status.ABORTED_FAILED_FUSED, "the other command of the fused operation failed", dnr=False)


def _missing_fused() -> NvmeStatusError:
    return _error(Status.ABORTED_MISSING_FUSED, "the other command of the fused operation is not there")


class IoQueue:
    """A queue from its hand-over to its end. ``ended`` is called once when it has ended by itself."""

    def __init__(
        self,
        handoff: QueueHandoff,
        controller: ControllerState,
        buffer: memoryview,
        ended: Callable[[IoQueue, str], None],
    ) -> None:
        self.key: Final = handoff.key
        self.qid: Final = handoff.qid
        self.peer: Final = handoff.peer
        self.commands = 0
        self._controller = controller
        self._ended = ended
        self._flow_control = handoff.sq_flow_control
        self._success = handoff.c2h_success and not handoff.sq_flow_control
        self._entries = handoff.sqsize + 1
        self._sqhd = handoff.sqhd
        transfer_max = max(limits.TRANSFER_BYTES_MAX, controller.view.mdts_bytes)
        self._icd_max = handoff.params.icd_max
        self._conn = TcpTarget.resume(
            handoff.params, TcpLimits(icd_max=handoff.params.icd_max, max_transfer=transfer_max)
        )
        self._conn.set_queue(handoff.sqsize, handoff.params.icd_max)
        payload_max = max(PAYLOAD_BYTES_MIN, 2 * transfer_max)
        self._h2c: Budget[Request] = Budget(payload_max)
        self._c2h: Budget[Request] = Budget(payload_max)
        self._marks: deque[tuple[int, int]] = deque()  # (bytes put when it was the last, bytes to give back)
        self._put_bytes = 0
        self._mute = False  # nothing more is said to the host
        self._sent_bytes = 0
        self._requests: dict[int, Request] = {}
        self._half: Request | None = None  # the last command, if it was the first half of a fused pair
        self._tasks: set[asyncio.Task[None]] = set()
        self._closer: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._socket = QueueSocket(handoff.sock, buffer, self._received, self._bytes_sent, self._lost)
        self._put([handoff.response])
        self._socket.read(True)

    @property
    def closing(self) -> bool:
        return self._closer is not None

    def stat(self) -> QueueStat:
        """Counters of the queue as they are now."""
        return QueueStat(self.key, self.qid, self.peer, self.commands, self._conn.commands_in_flight)

    # -- input

    def _received(self, data: memoryview) -> None:
        for event in self._conn.receive_data(data):
            if self._closer is not None and not isinstance(event, ConnectionFailed | PeerTerminated):
                continue  # behind a Disconnect
            match event:
                case CommandReceived():
                    self._command(event)
                case DataReceived():
                    self._data(event)
                case PeerTerminated():
                    self._end(f"terminated by the host (FES {event.fes}, FEI {event.fei})", Ending.LOST)
                case ConnectionFailed():
                    self._end(event.reason, Ending.TERMINATED)
        self._pull()

    def _command(self, event: CommandReceived) -> None:
        sqe = event.sqe
        self.commands += 1
        self._controller.io_commands += 1
        self._sqhd = (self._sqhd + 1) % self._entries
        half, self._half = self._half, None
        if half is not None and (sqe.fuse != Fuse.SECOND or sqe.is_fabrics or event.duplicate):
            self._fail(half, _missing_fused())
        request = Request(sqe)
        if event.duplicate:
            self._respond(request, _error(Status.COMMAND_ID_CONFLICT, "this command identifier is in flight"))
            return
        self._requests[request.cid] = request
        if sqe.is_fabrics:
            self._fabrics(request)
            return
        try:
            self._check_fused(request, half)
            self._admit(request, event)
        except NvmeStatusError as error:
            self._fail(request, error)
            self._release_half(half)
        else:
            self._join(request, half)

    def _admit(self, request: Request, event: CommandReceived) -> None:
        """Checks the command and finds where its data is. Raises NvmeStatusError."""
        io = admit(COMMANDS, request.sqe, self._controller)
        icd = event.icd
        plan = sgl.plan(
            request.sqe,
            io.command.direction,
            io.length,
            len(icd) if icd is not None else 0,
            self._icd_max,
            io.command.rule,
        )
        if event.ddgst_error:
            raise _error(Status.TRANSIENT_TRANSPORT_ERROR, "data digest", dnr=False)
        validate(io)
        request.io, request.plan = io, plan
        if plan.kind is sgl.PlanKind.IN_CAPSULE and icd is not None:
            request.data = icd[plan.offset : plan.offset + plan.length]

    def _make_room(self, request: Request) -> None:
        """Payload that is not here yet must fit into the queue's memory before it may come, from either side."""
        io, plan = request.io, request.plan
        assert io is not None
        if plan.kind is not sgl.PlanKind.TRANSPORT:
            self._ready(request)
            return
        budget = self._c2h if io.command.direction is sgl.Direction.C2H else self._h2c
        request.phase = Phase.ROOM
        if budget.claim(request, plan.length):
            self._has_room(request)

    def _has_room(self, request: Request) -> None:
        assert request.io is not None
        request.held_bytes = request.plan.length
        if request.io.command.direction is sgl.Direction.H2C:
            request.phase = Phase.DATA
            self._conn.request_data(request.cid, request.plan.length)
            self._pull()
        else:
            self._ready(request)

    def _data(self, event: DataReceived) -> None:
        request = self._requests.get(event.cid)
        if request is None or request.phase is not Phase.DATA:
            return  # a command that arrived with the data, and before it, has failed this one: half of a fused pair
        request.data = event.data
        if event.ddgst_error:
            self._fail(request, _error(Status.TRANSIENT_TRANSPORT_ERROR, "data digest", dnr=False))
        else:
            self._ready(request)

    # -- fused pairs (base 3.4.2, NVM 2.1.3.1)

    def _check_fused(self, request: Request, half: Request | None) -> None:
        """FUSE against what came before it on this queue."""
        sqe = request.sqe
        if sqe.fuse == Fuse.FIRST:
            self._half = request
            if sqe.opc != NvmOpcode.COMPARE:
                raise _error(Status.INVALID_FIELD, "a fused operation begins with Compare", error_loc=LOC_FUSE)
        elif sqe.fuse == Fuse.SECOND:
            if half is None:
                raise _missing_fused()
            if sqe.opc != NvmOpcode.WRITE:
                self._fail(half, _missing_fused())
                raise _error(Status.INVALID_FIELD, "a fused operation ends with Write", error_loc=LOC_FUSE)
            if half.phase is Phase.DONE:
                raise _failed_fused()
            same = (sqe.nsid, slba_of(sqe), blocks_of(sqe))
            if same != (half.sqe.nsid, slba_of(half.sqe), blocks_of(half.sqe)):
                error = _error(Status.INVALID_FIELD, "the LBA ranges of the fused operation differ")
                self._fail(half, error)
                raise error

    def _join(self, request: Request, half: Request | None) -> None:
        """An admitted command goes its way; the second of a pair is tied to the first."""
        if half is not None and half.phase is not Phase.DONE:
            request.first, half.second = half, request
        self._make_room(request)

    def _release_half(self, half: Request | None) -> None:
        """The second of a pair is out: the Compare goes on alone, its status is its own."""
        if half is not None and half.phase is Phase.SECOND:
            self._start(half)

    def _ready(self, request: Request) -> None:
        """All data is here."""
        first = request.first
        if first is not None:
            request.phase = Phase.SECOND
            if first.phase is Phase.SECOND:
                self._start(first, request)
        elif request.second is not None or self._half is request:
            request.phase = Phase.SECOND
            if request.second is not None and request.second.phase is Phase.SECOND:
                self._start(request, request.second)
        else:
            self._start(request)

    # -- execution

    def _start(self, request: Request, second: Request | None = None) -> None:
        request.second = None
        if second is not None:
            second.first = None
        task = asyncio.get_running_loop().create_task(self._run(request, second))
        for each in (request, second):
            if each is not None:
                each.phase, each.task = Phase.LOCKED, task
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    async def _run(self, request: Request, second: Request | None) -> None:
        try:
            io = self._current(request)
            then = self._current(second) if second is not None else None
        except NvmeStatusError as error:
            self._finished(request, error, second, _failed_fused())
            return

        def begin() -> None:
            for each in (request, second):
                if each is not None:
                    each.phase = Phase.BACKEND

        try:
            outcome, written = await run(io, begin, then=then)
        except NvmeStatusError as error:
            self._finished(request, error, second, _failed_fused())
        except SecondFailed as failed:
            self._finished(request, failed.first, second, failed.error)
        else:
            self._finished(request, outcome, second, written or Outcome())

    def _current(self, request: Request) -> Io:
        """The command as checked against the view and the back end of this moment."""
        io = request.io
        assert io is not None
        backend = io.backend
        changed = io.view is not self._controller.view or (
            backend is not None and (backend.closing or backend.facts is not io.facts)
        )
        if changed:
            length = io.length
            io = admit(COMMANDS, request.sqe, self._controller)
            if io.length != length:  # the block size has changed under the data
                raise _error(Status.NAMESPACE_NOT_READY, "the namespace has changed", dnr=False)
            validate(io)
        io.data = request.data
        return io

    def _finished(
        self,
        request: Request,
        result: Outcome | NvmeStatusError,
        second: Request | None,
        result2: Outcome | NvmeStatusError,
    ) -> None:
        self._respond(request, result)
        if second is not None:
            self._respond(second, result2)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:  # a mistake of ours: the host must not wait for ever
            context = {"message": f"I/O queue {self.qid}: a command failed unexpectedly", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
            self._end("internal error", Ending.ORDERED)

    def abort(self, cid: int) -> bool:
        """True if the command was found before the back end had it and is completed Command Abort Requested."""
        request = self._requests.get(cid)
        if request is None or self._closer is not None:
            return False
        return self._cancel(request, _error(Status.ABORT_REQUESTED, "aborted by the host", dnr=False))

    def _cancel(self, request: Request, error: NvmeStatusError) -> bool:
        """Takes a command back that has not reached the back end."""
        task = request.task
        if request.phase is Phase.BACKEND or (task is not None and request.sqe.fuse != Fuse.NORMAL):
            return False
        if task is not None:
            task.cancel()
        self._fail(request, error)
        return True

    # -- output

    def _fail(self, request: Request, error: NvmeStatusError) -> None:
        """Completes a command that has not been started (or was cancelled), and settles its fused partner."""
        if request.phase is Phase.DONE:
            return
        waiting = request.phase is Phase.ROOM
        first, second = request.first, request.second
        request.first = request.second = None
        self._respond(request, error)
        if waiting:
            for budget in (self._h2c, self._c2h):
                self._granted(budget.withdraw(request))
        if second is not None:
            second.first = None
            self._fail(second, _failed_fused())
        if first is not None:
            first.second = None
            if first.phase is Phase.SECOND:
                self._start(first)

    def _respond(self, request: Request, result: Outcome | NvmeStatusError) -> None:
        """The one place where commands complete."""
        if self._requests.get(request.cid) is request:
            del self._requests[request.cid]
        request.phase = Phase.DONE
        request.data = b""
        held, request.held_bytes = request.held_bytes, 0
        to_host = request.io is not None and request.io.command.direction is sgl.Direction.C2H
        sqhd = self._sqhd if self._flow_control else SQHD_NONE
        if isinstance(result, NvmeStatusError):
            cqe = Cqe(dw0=result.dw0, sqhd=sqhd, sqid=self.qid, cid=request.cid, status=result.status, dnr=result.dnr)
            self._conn.send_response(cqe)
        else:
            success = self._success and result.dw0 == 0 and result.data is not None
            if result.data is not None:
                self._conn.send_data(request.cid, result.data, success=success)
            if not success:
                self._conn.send_response(Cqe(dw0=result.dw0, sqhd=sqhd, sqid=self.qid, cid=request.cid, status=0))
        self._pull()
        if held and not to_host:
            self._granted(self._h2c.release(held))
        elif held:
            self._marks.append((self._put_bytes, held))
            self._settle()

    def _pull(self) -> None:
        pieces = self._conn.data_to_send()
        if pieces and not self._mute:
            self._put(list(pieces))

    def _put(self, pieces: list[BytesLike]) -> None:
        self._put_bytes += sum(map(len, pieces))
        self._socket.put(pieces)

    def _bytes_sent(self, count: int) -> None:
        self._sent_bytes += count
        self._settle()

    def _settle(self) -> None:
        """Gives back the memory of payload that has left."""
        while self._marks and self._marks[0][0] <= self._sent_bytes:
            self._granted(self._c2h.release(self._marks.popleft()[1]))

    def _granted(self, requests: list[Request]) -> None:
        for request in requests:
            self._has_room(request)

    # -- Fabrics commands and the end

    def _fabrics(self, request: Request) -> None:
        """Disconnect. What is wrong with any other is for the control plane to say, as for the native data plane."""
        try:
            io_queue_command(request.sqe)
        except NvmeStatusError as error:
            self._fail(request, error)
        else:
            self._end("disconnected by the host", Ending.DISCONNECT, request)

    def _lost(self, reason: str) -> None:
        self._end(reason, Ending.LOST)

    def _end(self, reason: str, ending: Ending, disconnect: Request | None = None) -> None:
        """The queue ends by itself."""
        if self._closer is None:
            self._begin_close(ending, disconnect).add_done_callback(lambda task: self._ended(self, reason))

    async def close(self) -> None:
        """Ends the queue for the control plane; returns when no command is in flight and the socket is closed."""
        closer = self._closer or self._begin_close(Ending.ORDERED, None)
        self._hurry.set()
        await asyncio.shield(closer)

    def _begin_close(self, ending: Ending, disconnect: Request | None) -> asyncio.Task[None]:
        self._socket.read(False)
        self._mute = ending in (Ending.ORDERED, Ending.LOST)
        self._closer = asyncio.get_running_loop().create_task(self._close(ending, disconnect))
        return self._closer

    async def _close(self, ending: Ending, disconnect: Request | None) -> None:
        deleted = _error(Status.ABORTED_SQ_DELETION, "the queue is being deleted", dnr=False)
        for request in list(self._requests.values()):
            if request is not disconnect:
                self._cancel(request, deleted)
        while self._tasks:
            await asyncio.wait(self._tasks)
        if disconnect is not None:
            self._respond(disconnect, Outcome())
        if ending in (Ending.TERMINATED, Ending.DISCONNECT):
            half_close = ending is Ending.TERMINATED
            await self._socket.finish(limits.TERM_CLOSE_TIMEOUT_S, self._hurry, half_close=half_close)
        self._socket.close()
