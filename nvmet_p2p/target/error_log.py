"""The Error Information log of one controller (NVMe base 5.1.12.1.2): the last commands that failed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from nvmet_p2p import limits
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.wire.logpages import ErrorInformationEntry
from nvmet_p2p.wire.sqe import Sqe

NO_LOCATION: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class _Failure:
    count: int
    qid: int
    cid: int
    opc: int
    nsid: int
    status: int
    dnr: bool
    location: int


class ErrorLog:
    """Newest first, as the log page has it; the oldest is forgotten when the log is full."""

    def __init__(self) -> None:
        self.count = 0
        self._failures: deque[_Failure] = deque(maxlen=limits.ERROR_LOG_ENTRIES)

    def __len__(self) -> int:
        return len(self._failures)

    def add(self, sqe: Sqe, qid: int, error: NvmeStatusError) -> bool:
        """Records a failed command. True: there is more to read in this log, so the CQE gets its M bit."""
        self.count += 1
        location = NO_LOCATION if error.error_loc is None else error.error_loc
        nsid = 0 if sqe.is_fabrics else sqe.nsid
        self._failures.appendleft(_Failure(self.count, qid, sqe.cid, sqe.opc, nsid, error.status, error.dnr, location))
        return True

    def entry(self, index: int) -> bytes:
        """The 64 bytes of an entry; an unused one is all zeros (error count 0: invalid)."""
        if index >= len(self._failures):
            return bytes(ErrorInformationEntry.SIZE)
        failure = self._failures[index]
        return ErrorInformationEntry(
            error_count=failure.count,
            sqid=failure.qid,
            cid=failure.cid,
            status_field=ErrorInformationEntry.for_status(failure.status, dnr=failure.dnr, more=True),
            error_location=failure.location,
            nsid=failure.nsid,
            opc=failure.opc,
            lpver=1,
        ).build()
