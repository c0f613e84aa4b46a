"""Controller properties (NVMe base 3.1.4) as Property Get and Property Set see them.

A property is read and written as a whole: an access of another size, or at another offset, is Invalid Field in Command
(SPDK also takes 4 byte halves and answers with Connect's Invalid Parameters; the table of the specification gives
neither). What this target does not have is treated in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.command import ANY, invalid_field
from nvmet_p2p.wire.codec import Dword, Wire, bits, flag, layout
from nvmet_p2p.wire.spec import ControllerType, Css, PropertyOffset, Status

if TYPE_CHECKING:
    from nvmet_p2p.target.controller import Controller
    from nvmet_p2p.target.queue import Request

VERSION: Final = 0x00020000  # VS and Identify VER: 2.0.0
READY_TIMEOUT_500MS: Final = 30  # CAP.TO and CRTO.CRWMT: 15 s, what a reset may take while I/O is in flight
LOC_ATTRIB: Final = 40
LOC_OFFSET: Final = 44
LOC_VALUE: Final = 48
_SIZES: Final = {0: 4, 1: 8}  # ATTRIB bits 2:0


@layout(8)
@dataclass(frozen=True, slots=True)
class Capabilities(Wire):
    """CAP."""

    mqes: int = bits(0, 8, 0, 16)
    cqr: bool = flag(0, 8, 16)
    ams: int = bits(0, 8, 17, 2)
    to: int = bits(0, 8, 24, 8)
    dstrd: int = bits(0, 8, 32, 4)
    nssrs: bool = flag(0, 8, 36)
    css: int = bits(0, 8, 37, 8)
    mpsmin: int = bits(0, 8, 48, 4)
    mpsmax: int = bits(0, 8, 52, 4)
    crwms: bool = flag(0, 8, 59)
    crims: bool = flag(0, 8, 60)


@layout(4)
@dataclass(frozen=True, slots=True)
class Configuration(Dword):
    """CC."""

    en: bool = flag(0, 4, 0)
    css: int = bits(0, 4, 4, 3)
    mps: int = bits(0, 4, 7, 4)
    ams: int = bits(0, 4, 11, 3)
    shn: int = bits(0, 4, 14, 2)
    iosqes: int = bits(0, 4, 16, 4)
    iocqes: int = bits(0, 4, 20, 4)


@layout(4)
@dataclass(frozen=True, slots=True)
class ControllerStatus(Dword):
    """CSTS."""

    rdy: bool = flag(0, 4, 0)
    cfs: bool = flag(0, 4, 1)
    shst: int = bits(0, 4, 2, 2)
    nssro: bool = flag(0, 4, 4)
    pp: bool = flag(0, 4, 5)


_CAP_CSS_NVM: Final = 1 << 0
_CAP_CSS_ALL_SUPPORTED: Final = 1 << 6
_CAP_CSS_ADMIN_ONLY: Final = 1 << 7

COMMAND_SETS: Final = {
    ControllerType.IO: frozenset({Css.NVM, Css.ALL_SUPPORTED}),
    ControllerType.DISCOVERY: frozenset({Css.NVM, Css.ADMIN_ONLY}),
}
"""What CC.CSS may select; CAP.CSS says the same."""


def capabilities(controller: Controller) -> Capabilities:
    """CAP. Queues are contiguous because NVMe over Fabrics wants the bit; there are no doorbells and no page size."""
    discovery = controller.type is ControllerType.DISCOVERY
    return Capabilities(
        mqes=controller.transport.max_queue_depth - 1,
        cqr=True,
        to=READY_TIMEOUT_500MS,
        css=_CAP_CSS_NVM | (_CAP_CSS_ADMIN_ONLY if discovery else _CAP_CSS_ALL_SUPPORTED),
        crwms=True,
    )


def _get_cap(controller: Controller) -> int:
    return int.from_bytes(capabilities(controller).build(), "little")


def _set_cc(controller: Controller, value: int, request: Request, now: float) -> None:
    controller.write_cc(Configuration.of(value), request, now)


@dataclass(frozen=True, slots=True)
class Property:
    """A row of the register map. ``size`` in bytes; without ``set`` the property is read only."""

    offset: int
    size: int
    name: str
    section: str
    get: Callable[[Controller], int]
    set: Callable[[Controller, int, Request, float], None] | None = None
    controllers: frozenset[ControllerType] = ANY

    @property
    def code(self) -> int:
        """The offset, as the other tables call it."""
        return self.offset


PROPERTIES: Final[dict[int, Property]] = {
    row.offset: row
    for row in (
        Property(PropertyOffset.CAP, 8, "Controller Capabilities", "3.1.4.1", _get_cap),
        Property(PropertyOffset.VS, 4, "Version", "3.1.4.2", lambda _controller: VERSION),
        Property(PropertyOffset.CC, 4, "Controller Configuration", "3.1.4.5", lambda c: c.cc.value, _set_cc),
        # What could be cleared by writing 1 (NSSRO, PP) is never set here, so CSTS takes no write (as nvmet).
        Property(PropertyOffset.CSTS, 4, "Controller Status", "3.1.4.6", lambda c: c.csts.value),
        # CAP.NSSRS is 0: the property is there to be read (as 0) and takes no write.
        Property(PropertyOffset.NSSR, 4, "NVM Subsystem Reset", "3.1.4.7", lambda _controller: 0),
        Property(
            PropertyOffset.CRTO, 4, "Controller Ready Timeouts", "3.1.4.23", lambda _controller: READY_TIMEOUT_500MS
        ),
    )
}


def _find(offset: int, attrib: int) -> Property:
    size = _SIZES.get(attrib & 7)
    if size is None:
        raise invalid_field(LOC_ATTRIB, f"property size {attrib & 7}")
    row = PROPERTIES.get(offset)
    if row is None:
        raise invalid_field(LOC_OFFSET, f"no property at {offset:#x}")
    if row.size != size:
        raise invalid_field(LOC_ATTRIB, f"{row.name} has {row.size} bytes, not {size}")
    return row


def read(controller: Controller, offset: int, attrib: int) -> int:
    """The property's value. Raises NvmeStatusError."""
    return _find(offset, attrib).get(controller)


def write(controller: Controller, offset: int, attrib: int, value: int, request: Request, now: float) -> None:
    """Sets the property. Raises NvmeStatusError; then nothing has changed."""
    row = _find(offset, attrib)
    if row.set is None:
        raise NvmeStatusError(Status.INVALID_FIELD, f"{row.name} is read only", error_loc=LOC_OFFSET)
    row.set(controller, value & 0xFFFFFFFF if row.size == 4 else value, request, now)
