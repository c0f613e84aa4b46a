"""Fabrics commands (NVMe base 6): Connect with everything that can be wrong about it, properties, Disconnect.

In-band authentication is not configured here: a host that was not told to authenticate (AUTHREQ 0 in Connect's answer)
and does so all the same gets Invalid Field for any security protocol, as a controller that supports none must answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nvmet_p2p import limits
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target import access, properties
from nvmet_p2p.target.command import (
    ANY,
    NO_TRANSFER,
    Command,
    Result,
    Transfer,
    from_host,
    invalid_field,
    no_data,
)
from nvmet_p2p.target.config import TransportConfig
from nvmet_p2p.target.controller import IOCQES, IOSQES, Controller, IoQueue
from nvmet_p2p.target.keep_alive import granted_ms
from nvmet_p2p.target.subsystem import Subsystem
from nvmet_p2p.target.validate import DISCOVERY_NQN
from nvmet_p2p.wire.fabrics import (
    CNTLID_OFFSET,
    HOSTNQN_OFFSET,
    SUBNQN_OFFSET,
    ConnectCommand,
    ConnectData,
    ConnectInvalid,
    ConnectSuccess,
    Disconnect,
    NqnError,
    NqnFault,
    PropertyGet,
    PropertySet,
)
from nvmet_p2p.wire.spec import ConnectAttribute, ControllerType, FabricsType, Status
from nvmet_p2p.wire.sqe import Sqe

if TYPE_CHECKING:
    from nvmet_p2p.target.queue import Announced, Queue, Request

CONNECT_TRANSFER: Final = from_host(ConnectData.SIZE)
SQE_FUSE: Final = 1
SQE_RECFMT: Final = 40
SQE_QID: Final = 42
SQE_SQSIZE: Final = 44
SQE_KATO: Final = 48
DATA_HOSTID: Final = 0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A Connect that succeeded. ``sqsize`` is 0's based."""

    controller: Controller
    qid: int
    sqsize: int
    sq_flow_control: bool
    result: Result


def _bad_sqe(offset: int, reason: str) -> NvmeStatusError:
    """Connect Invalid Parameters, the field being in the command."""
    dw0 = ConnectInvalid(ipo=offset, iattr=0).value
    return NvmeStatusError(Status.CONNECT_INVALID_PARAM, reason, error_loc=offset, dw0=dw0)


def _bad_data(offset: int, reason: str) -> NvmeStatusError:
    """Connect Invalid Parameters, the field being in the data."""
    return NvmeStatusError(Status.CONNECT_INVALID_PARAM, reason, dw0=ConnectInvalid(ipo=offset, iattr=1).value)


# -- Connect (6.3) -----------------------------------------------------------------------------------------------------


def connect(queue: Queue, sqe: Sqe, data: bytes, now: float) -> Accepted:
    """Connect on a queue that has none yet. Raises NvmeStatusError; then nothing has changed.

    The status of a Connect that fails is never Invalid Field, and it leaves no entry in the error log (6.3).
    """
    command = ConnectCommand.of(sqe)
    if command.fuse:
        raise _bad_sqe(SQE_FUSE, "fused Connect")
    if command.recfmt != 0:
        raise NvmeStatusError(Status.CONNECT_INCOMPATIBLE_FORMAT, f"RECFMT {command.recfmt}", error_loc=SQE_RECFMT)
    parameters = ConnectData.parse(data)
    subnqn, hostnqn = _names(parameters)
    subsystem = queue.target.subsystem(subnqn)
    if subsystem is None:
        raise _bad_data(SUBNQN_OFFSET, f"no subsystem {subnqn}")
    _check_access(queue, subsystem, hostnqn)
    transport = queue.target.transport(queue.listener.trtype)
    _check_sqsize(command, transport)
    if queue.announced is not None:
        _check_announced(command, queue.announced)
    if command.qid == 0:
        return _connect_admin(queue, subsystem, command, parameters, hostnqn, now)
    return _connect_io(queue, subsystem, command, parameters, hostnqn)


def _names(parameters: ConnectData) -> tuple[str, str]:
    try:
        subnqn = parameters.subnqn
    except NqnError as error:
        raise _bad_data(SUBNQN_OFFSET, str(error)) from error
    try:
        return subnqn, parameters.hostnqn
    except NqnError as error:
        if error.fault is NqnFault.EMPTY:
            # SPDK's host sends zeros unless told otherwise; such a host has no name, and is let in where any host is.
            return subnqn, ""
        raise _bad_data(HOSTNQN_OFFSET, str(error)) from error


def _check_access(queue: Queue, subsystem: Subsystem, hostnqn: str) -> None:
    target = queue.target
    if subsystem.nqn == DISCOVERY_NQN:
        # The discovery service answers on every port that the target listens on.
        reachable = queue.listener in access.all_addresses(target.config)
        allowed = access.discovery_allowed(target.config, hostnqn)
    else:
        reachable = access.find_listener(subsystem.config, queue.listener) is not None
        allowed = access.host_allowed(subsystem.config, hostnqn)
    if not reachable:
        # For this port the subsystem does not exist (nvmet); SPDK answers Connect Invalid Host.
        raise _bad_data(SUBNQN_OFFSET, f"{subsystem.nqn} is not reached through {queue.listener.traddr}")
    if not allowed:
        raise NvmeStatusError(Status.CONNECT_INVALID_HOST, f"{hostnqn or 'a host without NQN'} is not allowed")


def _check_sqsize(command: ConnectCommand, transport: TransportConfig) -> None:
    depth_max = transport.max_aq_depth if command.qid == 0 else transport.max_queue_depth
    if not 1 <= command.sqsize < depth_max:
        raise _bad_sqe(SQE_SQSIZE, f"SQSIZE {command.sqsize} is not in 1..{depth_max - 1}")


def _check_announced(command: ConnectCommand, announced: Announced) -> None:
    """The private data of the connection manager and Connect speak of one queue (NVMe/RDMA 3.3)."""
    if command.qid != announced.qid:
        raise _bad_sqe(SQE_QID, f"QID {command.qid} on a connection that was made for {announced.qid}")
    if command.sqsize > announced.sqsize_max:
        raise _bad_sqe(SQE_SQSIZE, f"SQSIZE {command.sqsize}, the connection was made for {announced.sqsize_max}")


def _connect_admin(
    queue: Queue, subsystem: Subsystem, command: ConnectCommand, data: ConnectData, hostnqn: str, now: float
) -> Accepted:
    discovery = subsystem.nqn == DISCOVERY_NQN
    transport = queue.target.transport(queue.listener.trtype)
    kind = ControllerType.DISCOVERY if discovery else ControllerType.IO
    kato_ms = granted_ms(command.kato, transport, kind, SQE_KATO)
    cntlid = _choose_cntlid(subsystem, data.cntlid)
    flow_control = not command.cattr & ConnectAttribute.DISABLE_SQ_FLOW_CONTROL
    controller = queue.target.add_controller(
        subsystem,
        kind,
        queue,
        cntlid=cntlid,
        hostnqn=hostnqn,
        hostid=data.hostid,
        kato_ms=kato_ms,
        now=now,
    )
    result = Result(dw0=ConnectSuccess(cntlid=cntlid).value)
    return Accepted(controller, 0, command.sqsize, flow_control, result)


def _choose_cntlid(subsystem: Subsystem, wanted: int) -> int:
    """A new controller in the dynamic model (CNTLID FFFFh); in the static one any (FFFEh), or the one that is named.

    A subsystem follows one of the two (NVMe base 3.1.1); the discovery subsystem is always dynamic.
    """
    config = subsystem.config
    if wanted == (limits.CNTLID_DYNAMIC if config.controller_model == "dynamic" else limits.CNTLID_STATIC_ANY):
        cntlid = subsystem.allocate_cntlid()
        if cntlid is None:
            raise NvmeStatusError(Status.CONNECT_CONTROLLER_BUSY, "no controller is free", dnr=False)
        return cntlid
    if config.controller_model == "dynamic" or not config.min_cntlid <= wanted <= config.max_cntlid:
        raise _bad_data(CNTLID_OFFSET, f"CNTLID {wanted:#x} in the {config.controller_model} controller model")
    if wanted in subsystem.controllers:
        raise NvmeStatusError(Status.CONNECT_CONTROLLER_BUSY, f"controller {wanted} has a host", dnr=False)
    return wanted


def _connect_io(
    queue: Queue, subsystem: Subsystem, command: ConnectCommand, data: ConnectData, hostnqn: str
) -> Accepted:
    controller = subsystem.controllers.get(data.cntlid)
    if controller is None:
        raise _bad_data(CNTLID_OFFSET, f"no controller {data.cntlid:#x}")
    if controller.hostnqn != hostnqn:
        raise _bad_data(HOSTNQN_OFFSET, f"controller {data.cntlid} is another host's")
    if data.hostid not in (bytes(16), controller.hostid):
        raise _bad_data(DATA_HOSTID, f"controller {data.cntlid} belongs to another Host Identifier")
    if controller.listener != queue.listener:
        # All queues of an association use one port of the subsystem (NVMe base 3.3.2.2).
        raise _bad_data(CNTLID_OFFSET, "the admin queue uses another port")
    if controller.type is not ControllerType.IO or command.qid > controller.transport.max_io_qpairs_per_ctrlr:
        raise _bad_sqe(SQE_QID, f"QID {command.qid} is more than the controller has")
    if not controller.ready or (controller.cc.iosqes, controller.cc.iocqes) != (IOSQES, IOCQES):
        raise _bad_sqe(SQE_QID, "I/O Connect while the controller is disabled")
    if command.qid in controller.io_queues:
        # NVMe base 6.3 has Command Sequence Error in its text and Invalid Queue Identifier in its figure; other targets
        # follow the text. The end of the connection that had the queue may be on its way: the host may try again.
        raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, f"queue {command.qid} exists", dnr=False)
    flow_control = not command.cattr & ConnectAttribute.DISABLE_SQ_FLOW_CONTROL
    controller.io_queues[command.qid] = IoQueue(command.qid, command.sqsize, flow_control, queue.peer)
    queue.target.io_queue_opened()
    result = Result(dw0=ConnectSuccess(cntlid=controller.cntlid).value)
    return Accepted(controller, command.qid, command.sqsize, flow_control, result)


# -- The others --------------------------------------------------------------------------------------------------------


def _connect_again(_controller: Controller, _sqe: Sqe) -> Transfer:
    raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, "the queue is connected already")


def _not_run(_controller: Controller, _request: Request, _data: bytes, _now: float) -> Result | None:
    raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, "the queue is connected already")


def _property_get(controller: Controller, request: Request, _data: bytes, _now: float) -> Result:
    command = PropertyGet.of(request.sqe)
    value = properties.read(controller, command.ofst, command.attrib)
    return Result(dw0=value & 0xFFFFFFFF, dw1=value >> 32)


def _property_set(controller: Controller, request: Request, _data: bytes, now: float) -> Result:
    command = PropertySet.of(request.sqe)
    properties.write(controller, command.ofst, command.attrib, command.value, request, now)
    return Result()


def _disconnect_admin(_controller: Controller, request: Request, _data: bytes, _now: float) -> Result:
    """Disconnect is for I/O queues; those are the data plane's, see ``disconnect_io``."""
    if Disconnect.of(request.sqe).recfmt != 0:
        raise NvmeStatusError(Status.CONNECT_INCOMPATIBLE_FORMAT, "RECFMT of Disconnect", error_loc=SQE_RECFMT)
    raise NvmeStatusError(Status.DISCONNECT_INVALID_QUEUE_TYPE, "Disconnect on the admin queue")


def _no_authentication(_controller: Controller, _sqe: Sqe) -> Transfer:
    raise invalid_field(43, "no security protocol is configured")  # SECP


def _never(_controller: Controller, _request: Request, _data: bytes, _now: float) -> Result | None:
    raise invalid_field(43, "no security protocol is configured")


CONNECT: Final[Command] = Command(
    FabricsType.CONNECT, "Connect", "6.3", ANY, _connect_again, _not_run, needs_ready=False
)

FABRICS_COMMANDS: Final[dict[int, Command]] = {
    row.code: row
    for row in (
        Command(FabricsType.PROPERTY_SET, "Property Set", "6.6", ANY, no_data, _property_set, needs_ready=False),
        CONNECT,
        Command(FabricsType.PROPERTY_GET, "Property Get", "6.5", ANY, no_data, _property_get, needs_ready=False),
        Command(
            FabricsType.AUTHENTICATION_SEND,
            "Authentication Send",
            "6.2",
            ANY,
            _no_authentication,
            _never,
            needs_ready=False,
        ),
        Command(
            FabricsType.AUTHENTICATION_RECEIVE,
            "Authentication Receive",
            "6.1",
            ANY,
            _no_authentication,
            _never,
            needs_ready=False,
        ),
        Command(FabricsType.DISCONNECT, "Disconnect", "6.4", ANY, no_data, _disconnect_admin, needs_ready=False),
    )
}


def io_queue_command(sqe: Sqe) -> Transfer:
    """A capsule that the data plane sends up from an I/O queue. Returns for Disconnect; raises for all others."""
    if not sqe.is_fabrics:
        raise NvmeStatusError(Status.INVALID_OPCODE, f"OPC {sqe.opc:#x} on an I/O queue", error_loc=0)
    if sqe.fuse:
        raise invalid_field(1, "fused Fabrics command")
    if sqe.fctype == FabricsType.CONNECT:
        raise NvmeStatusError(Status.COMMAND_SEQUENCE_ERROR, "the queue is connected already")
    if sqe.fctype in (FabricsType.AUTHENTICATION_SEND, FabricsType.AUTHENTICATION_RECEIVE):
        raise invalid_field(43, "no security protocol is configured")
    if sqe.fctype != FabricsType.DISCONNECT:
        # Properties belong to the admin queue (NVMe base, figure "Fabrics Commands").
        raise NvmeStatusError(Status.INVALID_OPCODE, f"FCTYPE {sqe.fctype:#x} on an I/O queue", error_loc=4)
    if Disconnect.of(sqe).recfmt != 0:
        raise NvmeStatusError(Status.CONNECT_INCOMPATIBLE_FORMAT, "RECFMT of Disconnect", error_loc=SQE_RECFMT)
    return NO_TRANSFER
