"""Asynchronous events of one controller (NVMe base 5.1.2).

An event is reported once and then masked until the host clears it, by reading the log page that belongs to it without
Retain Asynchronous Event. The specification masks the whole event type; here, as with nvmet and SPDK, each event is
masked by itself. Otherwise a host whose rescan after a namespace change waits for a path could not be told of the ANA
change that gives it one. An event that cannot be delivered for want of a request is kept, once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from nvmet_p2p import limits
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.command import Result
from nvmet_p2p.wire.spec import (
    AerErrorInfo,
    AerNoticeInfo,
    AerSmartInfo,
    AerType,
    AsyncEventBit,
    ControllerType,
    LogPage,
    Status,
)

if TYPE_CHECKING:
    from nvmet_p2p.target.queue import Request


@dataclass(frozen=True, slots=True)
class EventSpec:
    """What dword 0 of the completion says, and which bit of the Asynchronous Event Configuration lets it through."""

    type: AerType
    info: int
    lid: int
    enable: int  # 0: always on

    @property
    def dw0(self) -> int:
        """Dword 0: type, information, log page."""
        return self.type | self.info << 8 | self.lid << 16


class Event(Enum):
    """The events that this target can report."""

    PERSISTENT_INTERNAL_ERROR = EventSpec(
        AerType.ERROR, AerErrorInfo.PERSISTENT_INTERNAL_ERROR, LogPage.ERROR_INFORMATION, 0
    )
    TRANSIENT_INTERNAL_ERROR = EventSpec(
        AerType.ERROR, AerErrorInfo.TRANSIENT_INTERNAL_ERROR, LogPage.ERROR_INFORMATION, 0
    )
    RELIABILITY = EventSpec(
        AerType.SMART, AerSmartInfo.RELIABILITY, LogPage.SMART_HEALTH, AsyncEventBit.SMART_RELIABILITY
    )
    NAMESPACE_ATTRIBUTE = EventSpec(
        AerType.NOTICE,
        AerNoticeInfo.NAMESPACE_ATTRIBUTE_CHANGED,
        LogPage.CHANGED_NAMESPACES,
        AsyncEventBit.NAMESPACE_ATTRIBUTE,
    )
    ANA_CHANGE = EventSpec(AerType.NOTICE, AerNoticeInfo.ANA_CHANGE, LogPage.ANA, AsyncEventBit.ANA_CHANGE)
    DISCOVERY_LOG_CHANGE = EventSpec(
        AerType.NOTICE, AerNoticeInfo.DISCOVERY_LOG_CHANGE, LogPage.DISCOVERY, AsyncEventBit.DISCOVERY_LOG
    )


SMART_BITS = (
    AsyncEventBit.SMART_SPARE
    | AsyncEventBit.SMART_TEMPERATURE
    | AsyncEventBit.SMART_RELIABILITY
    | AsyncEventBit.SMART_READ_ONLY
    | AsyncEventBit.SMART_VOLATILE_BACKUP
)


def supported_notices(kind: ControllerType, ana_reporting: bool) -> int:
    """OAES: the notices that a controller can send."""
    if kind is ControllerType.DISCOVERY:
        return AsyncEventBit.DISCOVERY_LOG
    notices = AsyncEventBit.NAMESPACE_ATTRIBUTE
    return notices | AsyncEventBit.ANA_CHANGE if ana_reporting else notices


class EventEngine:
    """Requests that wait for an event, and events that wait for a request. Both are bounded."""

    def __init__(self) -> None:
        self.config = 0  # feature 0Bh; nothing is enabled until the host asks (as nvmet)
        self._waiting: deque[Request] = deque()
        self._pending: dict[Event, None] = {}  # in the order in which they happened
        self._masked: set[Event] = set()

    @property
    def waiting(self) -> int:
        """Outstanding Asynchronous Event Requests."""
        return len(self._waiting)

    def request(self, request: Request) -> None:
        """An Asynchronous Event Request has come. Raises when AERL is exceeded."""
        if len(self._waiting) >= limits.AER_LIMIT:
            raise NvmeStatusError(Status.ASYNC_EVENT_LIMIT_EXCEEDED, "more event requests than AERL allows")
        self._waiting.append(request)
        self._deliver()

    def withdraw(self, request: Request) -> bool:
        """Abort of an outstanding request: True if it was waiting here."""
        if request not in self._waiting:
            return False
        self._waiting.remove(request)
        return True

    def report(self, event: Event) -> None:
        """Something has happened."""
        if event in self._masked or (event.value.enable and not self.config & event.value.enable):
            return
        self._pending[event] = None
        self._deliver()

    def configure(self, config: int) -> None:
        """Feature 0Bh is set; what it disables is no longer pending."""
        self.config = config
        for event in list(self._pending):
            if event.value.enable and not config & event.value.enable:
                del self._pending[event]

    def log_was_read(self, lid: int) -> None:
        """The host has read a log page without RAE: its events are cleared."""
        for event in Event:
            if event.value.lid == lid:
                self._masked.discard(event)
                self._pending.pop(event, None)

    def reset(self) -> None:
        """Controller reset: no request waits any more, no event is kept, nothing is enabled or masked."""
        self.config = 0
        self._waiting.clear()
        self._pending.clear()
        self._masked.clear()

    def _deliver(self) -> None:
        while self._waiting and self._pending:
            event = next(iter(self._pending))
            del self._pending[event]
            self._masked.add(event)
            self._waiting.popleft().complete(Result(dw0=event.value.dw0))
