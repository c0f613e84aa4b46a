"""Fabrics commands, the Connect data and the results that go in dword 0 (NVMe base 6).

The command classes are views of the same 64 bytes as ``Sqe``: ``ConnectCommand.of(sqe)`` and ``command.sqe()`` convert.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from nvmet_p2p.limits import CNTLID_DYNAMIC, NQN_LEN_MAX
from nvmet_p2p.wire.codec import BytesLike, Dword, Wire, WireError, bits, layout, raw, u8, u16, u32, u64
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import FABRICS_OPCODE, FabricsType, Psdt, SecurityProtocol
from nvmet_p2p.wire.sqe import Sqe

NQN_FIELD_BYTES: Final = 256
SUBNQN_OFFSET: Final = 256
HOSTNQN_OFFSET: Final = 512
HOSTID_OFFSET: Final = 0
CNTLID_OFFSET: Final = 16


@layout(64)
@dataclass(frozen=True, slots=True)
class FabricsCommand(Wire):
    """What all Fabrics commands share."""

    opc: int = u8(0, FABRICS_OPCODE)
    fuse: int = bits(1, 1, 0, 2)
    psdt: int = bits(1, 1, 6, 2, Psdt.SGL_MPTR_CONTIGUOUS)
    cid: int = u16(2)
    fctype: int = u8(4)
    dptr: bytes = raw(24, 16)

    @classmethod
    def of(cls, sqe: Sqe) -> Self:
        """The command that an SQE holds. OPC and FCTYPE are not checked."""
        return cls.parse(sqe.build())

    def sqe(self) -> Sqe:
        """The command as an SQE."""
        return Sqe.parse(self.build())

    @property
    def sgl(self) -> SglDescriptor:
        """DPTR read as SGL descriptor 1."""
        return SglDescriptor.parse(self.dptr)


@layout(64)
@dataclass(frozen=True, slots=True)
class ConnectCommand(FabricsCommand):
    """Connect (6.3). ``sqsize`` is 0's based, ``kato`` in milliseconds, ``cattr`` see ``ConnectAttribute``."""

    fctype: int = u8(4, FabricsType.CONNECT)
    recfmt: int = u16(40)
    qid: int = u16(42)
    sqsize: int = u16(44)
    cattr: int = u8(46)
    kato: int = u32(48)


@layout(64)
@dataclass(frozen=True, slots=True)
class PropertyGet(FabricsCommand):
    """Property Get (6.4). ``attrib`` bits 2:0: 0 for a property of 4 bytes, 1 for one of 8."""

    fctype: int = u8(4, FabricsType.PROPERTY_GET)
    attrib: int = u8(40)
    ofst: int = u32(44)


@layout(64)
@dataclass(frozen=True, slots=True)
class PropertySet(FabricsCommand):
    """Property Set (6.5). A property of 4 bytes takes the low half of ``value``."""

    fctype: int = u8(4, FabricsType.PROPERTY_SET)
    attrib: int = u8(40)
    ofst: int = u32(44)
    value: int = u64(48)


@layout(64)
@dataclass(frozen=True, slots=True)
class Disconnect(FabricsCommand):
    """Disconnect (6.6): deletes the I/O queue that it is sent on."""

    fctype: int = u8(4, FabricsType.DISCONNECT)
    recfmt: int = u16(40)


@layout(64)
@dataclass(frozen=True, slots=True)
class AuthSend(FabricsCommand):
    """Authentication Send (6.2): ``tl`` bytes of a message from the host."""

    fctype: int = u8(4, FabricsType.AUTHENTICATION_SEND)
    spsp0: int = u8(41, 1)
    spsp1: int = u8(42, 1)
    secp: int = u8(43, SecurityProtocol.NVME)
    tl: int = u32(44)


@layout(64)
@dataclass(frozen=True, slots=True)
class AuthRecv(FabricsCommand):
    """Authentication Receive (6.1): at most ``al`` bytes of a message to the host."""

    fctype: int = u8(4, FabricsType.AUTHENTICATION_RECEIVE)
    spsp0: int = u8(41, 1)
    spsp1: int = u8(42, 1)
    secp: int = u8(43, SecurityProtocol.NVME)
    al: int = u32(44)


class NqnFault(Enum):
    """Why a 256-byte NQN field holds no NQN (4.7: UTF-8, NUL-terminated, at most 223 bytes)."""

    EMPTY = "empty"
    UNTERMINATED = "not NUL-terminated"
    TOO_LONG = f"longer than {NQN_LEN_MAX} bytes"
    NOT_UTF8 = "not UTF-8"


class NqnError(WireError):
    """An NQN field cannot be used. ``offset`` is the field's place in the structure, for IPO of a failed Connect."""

    def __init__(self, field: str, fault: NqnFault, offset: int) -> None:
        super().__init__(f"{field} is {fault.value}")
        self.field = field
        self.fault = fault
        self.offset = offset


def decode_nqn(data: BytesLike, field: str, offset: int) -> str:
    """The NQN in a NUL-padded field; what follows the first NUL is ignored. Raises NqnError."""
    head, terminator, _ = bytes(data).partition(b"\0")
    fault = None
    if not terminator:
        fault = NqnFault.UNTERMINATED
    elif not head:
        fault = NqnFault.EMPTY
    elif len(head) > NQN_LEN_MAX:
        fault = NqnFault.TOO_LONG
    else:
        try:
            return head.decode()
        except UnicodeDecodeError:
            fault = NqnFault.NOT_UTF8
    raise NqnError(field, fault, offset)


def encode_nqn(value: str | BytesLike) -> bytes:
    """A NUL-padded field of 256 bytes. Bytes are taken as they are, so that a test can build an unusable one.

    Raises WireError when the value is longer than the field.
    """
    if isinstance(value, str):
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise WireError(f"{value!r} is not UTF-8") from error
    else:
        data = bytes(value)
    if len(data) > NQN_FIELD_BYTES:
        raise WireError(f"an NQN of {len(data)} bytes")
    return data.ljust(NQN_FIELD_BYTES, b"\0")


@layout(1024)
@dataclass(frozen=True, slots=True, init=False)
class ConnectData(Wire):
    """The 1024 bytes of data of Connect (6.3).

    The NQN fields are kept as they came (``subnqn_raw``, ``hostnqn_raw``); ``subnqn`` and ``hostnqn`` decode them, or
    raise NqnError. The constructor takes either form: ``ConnectData(subnqn="nqn...")`` or raw bytes.
    """

    hostid: bytes = raw(0, 16)
    cntlid: int = u16(16, CNTLID_DYNAMIC)
    subnqn_raw: bytes = raw(SUBNQN_OFFSET, NQN_FIELD_BYTES)
    hostnqn_raw: bytes = raw(HOSTNQN_OFFSET, NQN_FIELD_BYTES)

    def __init__(
        self,
        hostid: bytes = bytes(16),
        cntlid: int = CNTLID_DYNAMIC,
        subnqn_raw: bytes = b"",
        hostnqn_raw: bytes = b"",
        *,
        subnqn: str | None = None,
        hostnqn: str | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "hostid", bytes(hostid))
        put(self, "cntlid", cntlid)
        put(self, "subnqn_raw", encode_nqn(subnqn_raw if subnqn is None else subnqn))
        put(self, "hostnqn_raw", encode_nqn(hostnqn_raw if hostnqn is None else hostnqn))

    @property
    def subnqn(self) -> str:
        """SUBNQN. Raises NqnError."""
        return decode_nqn(self.subnqn_raw, "SUBNQN", SUBNQN_OFFSET)

    @property
    def hostnqn(self) -> str:
        """HOSTNQN. Raises NqnError."""
        return decode_nqn(self.hostnqn_raw, "HOSTNQN", HOSTNQN_OFFSET)


class Dword0(Dword):
    """A command specific result that goes in dword 0 of the completion."""

    __slots__ = ()

    @property
    def dw0(self) -> int:
        """The dword as an integer, as ``Cqe.dw0`` takes it."""
        return self.value


@layout(4)
@dataclass(frozen=True, slots=True)
class ConnectSuccess(Dword0):
    """Dword 0 of a successful Connect; ``authreq`` see ``AuthRequirement``."""

    cntlid: int = u16(0)
    authreq: int = u16(2)


@layout(4)
@dataclass(frozen=True, slots=True)
class ConnectInvalid(Dword0):
    """Dword 0 of Connect Invalid Parameters: ``ipo`` is an offset in the SQE, or in the data when ``iattr`` is 1."""

    ipo: int = u16(0)
    iattr: int = u8(2)
