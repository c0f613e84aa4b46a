"""How a command's data travels over NVMe/TCP or NVMe/RDMA, read from PSDT and SGL descriptor 1 of its SQE.

Sources: NVMe base specification 2.1, section 4.3.2; TCP transport specification 1.0, section 3.3.2 (exactly one
descriptor: in-capsule data, type 0h subtype 1h, or a Command Data Buffer, type 5h subtype Ah); RDMA transport
specification 1.0, section 3.2 (in-capsule data, or a keyed data block, type 4h, subtype 0h or, to have the key
invalidated with the response, Fh). Where those leave the status open it is the one of Linux nvmet (``nvmet_req_init``,
``nvmet_check_transfer_len``, ``nvmet_tcp_map_data``, ``nvmet_rdma_map_sgl``). Error locations are bytes of the SQE:
PSDT 1, the descriptor's address 24, length 32, type 39.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import Psdt, SglSubtype, SglType, Status
from nvmet_p2p.wire.sqe import DPTR_OFFSET, Sqe

_TRANSPORT: Final = frozenset({(SglType.TRANSPORT_DATA_BLOCK, SglSubtype.TRANSPORT)})
_KEYED: Final = frozenset({(SglType.KEYED_DATA_BLOCK, s) for s in (SglSubtype.ADDRESS, SglSubtype.INVALIDATE_KEY)})
_LOC_PSDT: Final = 1
_LOC_ADDRESS: Final = DPTR_OFFSET
_LOC_LENGTH: Final = DPTR_OFFSET + 8
_LOC_TYPE: Final = DPTR_OFFSET + 15


class Direction(enum.Enum):
    """Which way a command's data goes."""

    NONE = "none"
    H2C = "host to controller"
    C2H = "controller to host"


class LengthRule(enum.Enum):
    """How the length in the SGL must compare with what the command needs.

    AT_LEAST is for commands whose host buffer may be longer than what they say they need, e.g. Dataset Management:
    Linux always gives room for 256 ranges. Only what is needed is transferred.
    """

    EXACT = enum.auto()
    AT_LEAST = enum.auto()


class PlanKind(enum.Enum):
    """NONE: no data. IN_CAPSULE: it came with the command. TRANSPORT: by R2T and H2CData, or by C2HData; or by RDMA."""

    NONE = enum.auto()
    IN_CAPSULE = enum.auto()
    TRANSPORT = enum.auto()


@dataclass(frozen=True, slots=True)
class Plan:
    """``length`` bytes to transfer; ``offset`` is where they start in the in-capsule data, 0 for the other kinds."""

    kind: PlanKind
    offset: int = 0
    length: int = 0


NO_DATA: Final = Plan(PlanKind.NONE)


def plan(
    sqe: Sqe,
    direction: Direction,
    expected_len: int,
    icd_len: int,
    icd_max: int,
    rule: LengthRule = LengthRule.EXACT,
    *,
    keyed: bool = False,
) -> Plan:
    """Decide how the ``expected_len`` bytes of this command's data travel.

    ``icd_len``: bytes of data that the capsule carried; ``icd_max``: what the queue's capsules may carry (8,192 for
    admin and Fabrics commands over NVMe/TCP). ``keyed``: the transport is NVMe/RDMA, where a capsule may also be longer
    than what its SGL describes. Raises NvmeStatusError, DNR set: Invalid Field (PSDT; in-capsule data for a read; data
    in a capsule whose SGL does not describe it), SGL Descriptor Type Invalid, SGL Offset Invalid, Data SGL Length
    Invalid.
    """
    if sqe.psdt != Psdt.SGL_MPTR_CONTIGUOUS:
        raise _error(Status.INVALID_FIELD, _LOC_PSDT, f"PSDT {sqe.psdt:02b}b, Fabrics want 01b")
    sgl = sqe.sgl
    if direction is Direction.NONE:
        expected_len = 0
    if sgl.length == 0 and (icd_len == 0 or keyed):  # nothing is described, so its type does not matter
        if expected_len:
            raise _error(Status.SGL_INVALID_DATA_LENGTH, _LOC_LENGTH, f"SGL of 0 bytes, {expected_len} are needed")
        return NO_DATA
    if (sgl.type, sgl.subtype) in (_KEYED if keyed else _TRANSPORT):
        if icd_len and not keyed:
            raise _error(Status.INVALID_FIELD, _LOC_TYPE, f"{icd_len} bytes in the capsule, the SGL is a transport SGL")
        _check_length(sgl.length, expected_len, rule)
        return Plan(PlanKind.TRANSPORT, 0, expected_len) if expected_len else NO_DATA
    if sgl.type == SglType.DATA_BLOCK and sgl.subtype == SglSubtype.OFFSET:
        return _in_capsule(sgl, direction, expected_len, icd_len, icd_max, rule, keyed=keyed)
    raise _error(Status.SGL_INVALID_TYPE, _LOC_TYPE, f"SGL type {sgl.type:x}h subtype {sgl.subtype:x}h")


def _in_capsule(
    sgl: SglDescriptor,
    direction: Direction,
    expected_len: int,
    icd_len: int,
    icd_max: int,
    rule: LengthRule,
    *,
    keyed: bool,
) -> Plan:
    if direction is Direction.C2H:
        raise _error(Status.INVALID_FIELD, _LOC_TYPE, "a response capsule carries no data")
    end = sgl.address + sgl.length
    if end > icd_max or sgl.address > icd_len:
        reason = f"in-capsule data from {sgl.address} to {end}, {icd_len} are there, {icd_max} allowed"
        raise _error(Status.SGL_INVALID_OFFSET, _LOC_ADDRESS, reason)
    if end > icd_len or (
        end < icd_len and not keyed
    ):  # "never any undefined data following in-capsule data" (TCP, section 3.3.1)
        reason = f"in-capsule data from {sgl.address} to {end}, {icd_len} are there"
        raise _error(Status.SGL_INVALID_DATA_LENGTH, _LOC_LENGTH, reason)
    _check_length(sgl.length, expected_len, rule)
    return Plan(PlanKind.IN_CAPSULE, sgl.address, expected_len) if expected_len else NO_DATA


def _check_length(length: int, expected_len: int, rule: LengthRule) -> None:
    fits = length == expected_len if rule is LengthRule.EXACT else length >= expected_len
    if not fits:
        raise _error(Status.SGL_INVALID_DATA_LENGTH, _LOC_LENGTH, f"SGL of {length} bytes, {expected_len} are needed")


def _error(status: Status, error_loc: int, reason: str) -> NvmeStatusError:
    return NvmeStatusError(int(status), reason, dnr=True, error_loc=error_loc)
