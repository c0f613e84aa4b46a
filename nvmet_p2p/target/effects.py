"""What the sans-IO target asks of its surroundings: the daemon receives each as it happens and carries it out.

The order in which effects are given is the order in which they must take hold. ``done`` callbacks are called from the
daemon's own loop, never from inside ``on_effect``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

ControllerKey = int  # unique for the life of the process; a cntlid is unique in its subsystem only


@dataclass(frozen=True, slots=True)
class Placement:
    """The pools in which the payload of Read, Write and Copy rests on its way; ``""`` is host memory.

    ``strict``: an exhausted pool is waited for.
    """

    read: str = ""
    write: str = ""
    copy: str = ""
    strict: bool = False


IN_HOST_MEMORY = Placement()


@dataclass(frozen=True, slots=True)
class NamespaceView:
    """A namespace as one controller sees it: what the data plane needs to serve its I/O.

    ``ana_state`` is the value of the ANA log page (1 optimized, 2 non-optimized, 3 inaccessible, 4 persistent loss,
    0Fh change) for the listener that the controller came through. ``placement`` is the one of namespace and listener.
    """

    nsid: int
    bdev: str
    anagrpid: int
    ana_state: int = 1
    write_protected: bool = False
    placement: Placement = IN_HOST_MEMORY


@dataclass(frozen=True, slots=True)
class ControllerView:
    """All that the data plane knows of a controller. Replaced as a whole, between two commands.

    ``mdts_bytes`` is the largest transfer. ``namespaces`` has the active, visible namespaces of the controller alone; a
    valid NSID that is not in it is answered Invalid Namespace or Format. ``copy_formats`` is a bit mask of the Copy
    descriptor formats that the host has enabled (Host Behavior Support) or that need no enabling.
    """

    key: ControllerKey
    subnqn: str
    hostnqn: str
    cntlid: int
    mdts_bytes: int
    namespaces: dict[int, NamespaceView] = field(default_factory=dict)
    copy_formats: int = 0b0011


@dataclass(frozen=True, slots=True)
class ControllerChanged:
    """The controller's view is new or different: the data plane must use it before ``apply``'s caller answers."""

    view: ControllerView


@dataclass(frozen=True, slots=True)
class ControllerGone:
    """The association has ended: close its I/O queues, close its admin connection, forget the view."""

    key: ControllerKey
    reason: str


@dataclass(frozen=True, slots=True)
class CloseIoQueues:
    """Controller reset or shutdown: close all I/O queues but not the admin queue, then call ``done``."""

    key: ControllerKey
    reason: str
    done: Callable[[], None]


@dataclass(frozen=True, slots=True)
class CloseIoQueue:
    """One I/O queue has been disconnected by command: close it once its response is sent."""

    key: ControllerKey
    qid: int
    reason: str


@dataclass(frozen=True, slots=True)
class AbortIo:
    """Abort of command ``cid`` on I/O queue ``qid``; ``done(True)`` when it was found, else ``done(False)``."""

    key: ControllerKey
    qid: int
    cid: int
    done: Callable[[bool], None]


Effect = ControllerChanged | ControllerGone | CloseIoQueues | CloseIoQueue | AbortIo
