"""The shapes that every table of handlers shares.

A table row says what a command, a log page or a feature is called, where the specification describes it, which
controllers know it and which function serves it; ``docs/coverage.md`` is generated from the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.wire.spec import ControllerType, Status
from nvmet_p2p.wire.sqe import Sqe

if TYPE_CHECKING:
    from nvmet_p2p.target.controller import Controller
    from nvmet_p2p.target.queue import Request

IO: Final = frozenset({ControllerType.IO})
DISCOVERY: Final = frozenset({ControllerType.DISCOVERY})
ANY: Final = frozenset({ControllerType.IO, ControllerType.DISCOVERY})

# Byte offsets in an SQE, for the error location of an Invalid Field (Error Information log page, "PEL").
LOC_FUSE: Final = 1
LOC_NSID: Final = 4
LOC_CDW10: Final = 40
LOC_CDW11: Final = 44
LOC_CDW12: Final = 48
LOC_CDW13: Final = 52
LOC_CDW14: Final = 56
LOC_CDW15: Final = 60


class Direction(Enum):
    """Which way a command's data goes (NVMe base 4.1, opcode bits 1:0, where the command has data at all)."""

    NONE = "none"
    HOST_TO_CONTROLLER = "host to controller"
    CONTROLLER_TO_HOST = "controller to host"


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a command moves: exactly ``length`` bytes. ``length`` is 0 when, and only when, nothing is moved."""

    direction: Direction
    length: int


NO_TRANSFER: Final = Transfer(Direction.NONE, 0)


def to_host(length: int) -> Transfer:
    """``length`` bytes go to the host."""
    return Transfer(Direction.CONTROLLER_TO_HOST, length) if length else NO_TRANSFER


def from_host(length: int) -> Transfer:
    """``length`` bytes come from the host."""
    return Transfer(Direction.HOST_TO_CONTROLLER, length) if length else NO_TRANSFER


@dataclass(frozen=True, slots=True)
class Result:
    """A command that succeeded. ``data`` has exactly the length of the transfer, or is empty when there is none."""

    dw0: int = 0
    dw1: int = 0
    data: bytes = b""


Handler = Callable[["Controller", "Request", bytes, float], Result | None]
"""Runs a command: (controller, request, data from the host, now); ``None`` when it completes later.

Raises NvmeStatusError.
"""

Transferring = Callable[["Controller", Sqe], Transfer]
"""What a command is going to move. Raises NvmeStatusError when it must fail before its data."""


@dataclass(frozen=True, slots=True)
class Command:
    """A row of a command table."""

    code: int
    name: str
    section: str
    controllers: frozenset[ControllerType]
    transfer: Transferring
    execute: Handler
    needs_ready: bool = True  # refused with Command Sequence Error while CSTS.RDY is 0 or a shutdown has begun


def no_data(_controller: Controller, _sqe: Sqe) -> Transfer:
    """For commands without data."""
    return NO_TRANSFER


def invalid_field(location: int, reason: str, bit: int = 0) -> NvmeStatusError:
    """Invalid Field in Command, with the byte (and bit) of the SQE that is to blame."""
    return NvmeStatusError(Status.INVALID_FIELD, reason, error_loc=location | bit << 8)
