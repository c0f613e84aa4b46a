"""Private data of the RDMA connection manager (NVMe/RDMA 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

from nvmet_p2p.wire.codec import Wire, layout, u16


@layout(32)
@dataclass(frozen=True, slots=True)
class CmRequest(Wire):
    """What a host sends with its connection request. ``hrqsize`` is 1's based, ``hsqsize`` 0's based."""

    recfmt: int = u16(0)
    qid: int = u16(2)
    hrqsize: int = u16(4)
    hsqsize: int = u16(6)
    cntlid: int = u16(8)


@layout(32)
@dataclass(frozen=True, slots=True)
class CmAccept(Wire):
    """What the controller sends when it accepts."""

    recfmt: int = u16(0)
    crqsize: int = u16(2)


@layout(4)
@dataclass(frozen=True, slots=True)
class CmReject(Wire):
    """What the controller sends when it refuses; ``sts`` see ``RdmaRejectStatus``."""

    recfmt: int = u16(0)
    sts: int = u16(2)
