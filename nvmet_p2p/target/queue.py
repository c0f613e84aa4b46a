"""One Fabrics queue as the control plane sees it: an admin queue for life, an I/O queue up to its Connect.

Rules that hold for every command: ``prepare`` chooses the handler and with it the exact data length, ``execute`` (or
``fail``) runs it, and it completes exactly once. A command that a controller reset or the end of the connection
overtakes is dropped without a completion, as NVMe base 3.7.2 has it ("stops processing any outstanding commands").

SQHD counts entries as their commands complete, as the other targets do; so a host that keeps to flow control never has
more commands outstanding than the queue is deep, and Asynchronous Event Requests occupy their entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from nvmet_p2p.errors import InvariantError, NvmeStatusError
from nvmet_p2p.target import admin_cmd, fabrics_cmd
from nvmet_p2p.target.command import (
    LOC_FUSE,
    LOC_NSID,
    NO_TRANSFER,
    Command,
    Direction,
    Result,
    Transfer,
    invalid_field,
)
from nvmet_p2p.target.config import ListenAddress
from nvmet_p2p.target.effects import ControllerKey, ControllerView
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.spec import FabricsType, Status
from nvmet_p2p.wire.sqe import Sqe

if TYPE_CHECKING:
    from nvmet_p2p.target.controller import Controller
    from nvmet_p2p.target.target import Target

__all__ = ["Announced", "Completed", "Direction", "IoConnect", "Queue", "Request", "Transfer"]

SQHD_DISABLED: Final = 0xFFFF  # SQHD of a queue without SQ flow control (NVMe base 6.3, CATTR)

PeerAddress = tuple[str, str]  # (traddr, trsvcid)


@dataclass(frozen=True, slots=True)
class Announced:
    """QID, and the largest SQSIZE (0's based), that the host gave when it made the connection."""

    qid: int
    sqsize_max: int


class QueueState(Enum):
    """Life of a queue. Only the admin queue is ever CONNECTED here; an accepted I/O queue goes to the data plane."""

    UNCONNECTED = "unconnected"
    CONNECTED = "connected"
    HANDED_OVER = "handed over"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class Request:
    """A command from ``prepare`` to its completion.

    ``transfer`` is the data that it moves. ``error`` is set when it must fail with that status whatever its data is.
    """

    queue: Queue
    sqe: Sqe
    transfer: Transfer = NO_TRANSFER
    error: NvmeStatusError | None = None
    command: Command | None = None
    done: bool = False
    counted: bool = True  # it occupies its CID; a command that reuses a busy one does not

    @property
    def cid(self) -> int:
        """Command Identifier."""
        return self.sqe.cid

    def complete(self, result: Result) -> None:
        """The command has succeeded, now or later. Nothing happens if it has been dropped meanwhile."""
        self.queue.finish(self, result, None, None)

    def fail(self, error: NvmeStatusError) -> None:
        """The command has failed, now or later. Nothing happens if it has been dropped meanwhile."""
        self.queue.finish(self, Result(dw0=error.dw0), error, None)


@dataclass(frozen=True, slots=True)
class IoConnect:
    """An I/O Connect was accepted: the socket goes to the data plane once the response is built."""

    controller_key: ControllerKey
    qid: int
    sqsize: int
    sq_flow_control: bool
    sqhd: int
    view: ControllerView


@dataclass(frozen=True, slots=True)
class Completed:
    """A command is complete: the whole CQE, and the data that goes before it."""

    request: Request
    cqe: Cqe
    data: bytes
    handoff: IoConnect | None


def _nobody(_completed: Completed) -> None:
    raise InvariantError("a command completed before on_completion was set")


def _is_connect(sqe: Sqe) -> bool:
    return sqe.is_fabrics and sqe.fctype == FabricsType.CONNECT


class Queue:
    """See the module. ``qid`` and ``sqsize`` (0's based) are known from Connect on.

    ``reached`` is the address of ours by which the host came: ``listener`` may stand for all of them. ``announced`` is
    what Connect must keep to, where the connection was made for a certain queue (NVMe/RDMA).
    """

    def __init__(self, target: Target, listener: ListenAddress, peer: PeerAddress, reached: str) -> None:
        self.target = target
        self.listener = listener
        self.peer = peer
        self.reached = reached
        self.announced: Announced | None = None
        self.state = QueueState.UNCONNECTED
        self.qid: int | None = None
        self.sqsize = 0
        self.sq_flow_control = True
        self.controller: Controller | None = None
        self.on_completion: Callable[[Completed], None] = _nobody
        self.on_drop: Callable[[int], None] = lambda _cid: None  # a command ends without a completion
        self._sqhd = 0
        self._requests: dict[int, Request] = {}  # by CID

    # -- what the session calls --------------------------------------------------------------------------------------

    def prepare(self, sqe: Sqe, now: float) -> Request:
        """Chooses the handler and the transfer. Never raises: what is wrong is in ``Request.error``."""
        del now
        request = Request(self, sqe)
        if self.controller is not None:
            self.controller.touch()
        try:
            self._admit(request)
            command = self._choose(sqe)
            request.command = command
            request.transfer = command.transfer(self.controller, sqe) if self.controller else self._connect_transfer()
            self._check_size(request.transfer)
        except NvmeStatusError as error:
            request.error = error
            request.transfer = NO_TRANSFER
        return request

    def execute(self, request: Request, data: bytes, now: float) -> None:
        """Runs the command; it completes through ``on_completion``, now or later."""
        if request.done:
            return
        if request.error is not None or request.command is None:
            self.fail(request, request.error or NvmeStatusError(Status.INTERNAL_ERROR, "no handler"), now)
            return
        expected = request.transfer.length if request.transfer.direction is Direction.HOST_TO_CONTROLLER else 0
        if len(data) != expected:
            error = NvmeStatusError(Status.SGL_INVALID_DATA_LENGTH, f"{len(data)} bytes of data instead of {expected}")
            self.fail(request, error, now)
            return
        try:
            if self.state is QueueState.UNCONNECTED:
                self._connect(request, data, now)
                return
            controller = self._connected_controller()
            # The controller may have been reset while the data was on its way.
            controller.check_accepts(request.command)
            result = request.command.execute(controller, request, data, now)
        except NvmeStatusError as error:
            self.finish(request, Result(dw0=error.dw0), error, None)
            return
        if result is not None:
            self.finish(request, result, None, None)

    def fail(self, request: Request, error: NvmeStatusError, now: float) -> None:
        """The transport found the fault (SGL, digest), or ``prepare`` did: the same way to completion."""
        del now
        self.finish(request, Result(dw0=error.dw0), error, None)

    def close(self, now: float) -> None:
        """The connection is gone. An admin queue takes its controller with it; what is outstanding is dropped."""
        was = self.state
        self.shut()
        if was is QueueState.CONNECTED and self.controller is not None:
            self.target.end_controller(self.controller, "the admin connection was closed", now)

    # -- what the target calls ---------------------------------------------------------------------------------------

    def shut(self) -> None:
        """Takes no more commands and completes none; the association has ended."""
        self.state = QueueState.CLOSED
        self.drop_requests()

    def drop_requests(self, keep: Request | None = None) -> None:
        """Forgets what is outstanding, but for ``keep`` (the command that caused the reset)."""
        for request in list(self._requests.values()):
            if request is not keep:
                self._drop(request)

    def outstanding(self, cid: int) -> Request | None:
        """The command that occupies ``cid``."""
        return self._requests.get(cid)

    def finish(
        self,
        request: Request,
        result: Result,
        error: NvmeStatusError | None,
        handoff: IoConnect | None,
    ) -> None:
        """Builds the CQE and gives it away. A second completion of a command does nothing."""
        if request.done:
            return
        request.done = True
        if request.counted and self._requests.get(request.cid) is request:
            del self._requests[request.cid]
        if self.sq_flow_control and self.sqsize:
            self._sqhd = (self._sqhd + 1) % (self.sqsize + 1)
        more = False
        if error is not None and self.controller is not None and not _is_connect(request.sqe):
            more = self.controller.errors.add(request.sqe, self.qid or 0, error)
        cqe = Cqe(
            dw0=result.dw0,
            dw1=result.dw1,
            sqhd=self._sqhd if self.sq_flow_control else SQHD_DISABLED,
            sqid=self.qid or 0,
            cid=request.cid,
            status=error.status if error else Status.SUCCESS,
            dnr=error.dnr if error else False,
            more=more,
        )
        self.on_completion(Completed(request, cqe, b"" if error else result.data, handoff))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        busy = self._requests.get(request.cid)
        if busy is not None and not self._given_up(busy):
            request.counted = False
            raise NvmeStatusError(Status.COMMAND_ID_CONFLICT, f"CID {request.cid:#x} is in flight", error_loc=2)
        if len(self._requests) > max(self.sqsize, 1):
            # No status is meant for a host that overruns its queue; this one keeps what we hold of it bounded.
            request.counted = False
            raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, "more commands than the queue is deep")
        self._requests[request.cid] = request

    def _given_up(self, busy: Request) -> bool:
        """Whether the host reuses the CID of an event request that it no longer waits for; that one is dropped.

        SPDK's host forgets its event requests when it detaches and then reads CC and shuts down with their CIDs. To
        refuse that would lose the shutdown notification.
        """
        if self.controller is None or not self.controller.events.withdraw(busy):
            return False
        self._drop(busy)
        return True

    def _drop(self, request: Request) -> None:
        request.done = True
        del self._requests[request.cid]
        self.on_drop(request.cid)

    def _choose(self, sqe: Sqe) -> Command:
        if self.state is QueueState.UNCONNECTED:
            if not _is_connect(sqe):
                # NVMe base 3.3.2.3; nvmet answers Invalid Opcode.
                raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, "a command before Connect")
            return fabrics_cmd.CONNECT
        controller = self._connected_controller()
        if sqe.fuse and not _is_connect(sqe):
            raise invalid_field(LOC_FUSE, "fused admin command")
        table = fabrics_cmd.FABRICS_COMMANDS if sqe.is_fabrics else admin_cmd.ADMIN_COMMANDS
        code = sqe.fctype if sqe.is_fabrics else sqe.opc
        command = table.get(code)
        if command is None or controller.type not in command.controllers:
            what, where = ("FCTYPE", LOC_NSID) if sqe.is_fabrics else ("OPC", 0)
            raise NvmeStatusError(Status.INVALID_OPCODE, f"{what} {code:#x}", error_loc=where)
        controller.check_accepts(command)
        return command

    def _connected_controller(self) -> Controller:
        if self.state is not QueueState.CONNECTED or self.controller is None:
            raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, f"the queue is {self.state.value}")
        return self.controller

    def _connect_transfer(self) -> Transfer:
        return fabrics_cmd.CONNECT_TRANSFER

    def _check_size(self, transfer: Transfer) -> None:
        if self.controller is not None and transfer.length > self.controller.mdts_bytes:
            # MDTS bounds every command's data (NVMe base 5.1.13.2.1), so nobody makes us build more than that.
            raise NvmeStatusError(Status.INVALID_FIELD, f"{transfer.length} bytes exceed MDTS")

    def _connect(self, request: Request, data: bytes, now: float) -> None:
        accepted = fabrics_cmd.connect(self, request.sqe, data, now)
        self.qid = accepted.qid
        self.sqsize = accepted.sqsize
        self.sq_flow_control = accepted.sq_flow_control
        if accepted.qid == 0:
            self.controller = accepted.controller
            self.state = QueueState.CONNECTED
            self.finish(request, accepted.result, None, None)
            return
        self.state = QueueState.HANDED_OVER
        sqhd = 1 % (accepted.sqsize + 1) if accepted.sq_flow_control else SQHD_DISABLED
        handoff = IoConnect(
            accepted.controller.key,
            accepted.qid,
            accepted.sqsize,
            accepted.sq_flow_control,
            sqhd,
            accepted.controller.view,
        )
        self.finish(request, accepted.result, None, handoff)
