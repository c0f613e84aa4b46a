"""What the engine keeps of a controller: its view, and for each namespace who is using it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nvmet_p2p.dataplane.inprocess.backend import Backend, InFlight
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.effects import ControllerView, NamespaceView
from nvmet_p2p.wire.spec import NSID_ALL, AnaState, Status

LOC_NSID: Final = 4  # byte of the SQE

# NVMe base 8.1.1.3 to 8.1.1.6: the path error of each state that serves no I/O.
_ANA_STATUS: Final[Mapping[int, Status]] = {
    AnaState.INACCESSIBLE: Status.ANA_INACCESSIBLE,
    AnaState.PERSISTENT_LOSS: Status.ANA_PERSISTENT_LOSS,
    AnaState.CHANGE: Status.ANA_TRANSITION,
}


class NamespaceUse:
    """A namespace of one controller for as long as no less may be done to the same back end through its NSID.

    ``users`` counts commands that have passed the last check and are in or before the back end.
    """

    __slots__ = ("users", "view")

    def __init__(self, view: NamespaceView) -> None:
        self.view = view
        self.users: Final = InFlight()


def _forbids(before: NamespaceView, now: NamespaceView) -> bool:
    """True if something that was let through before would not be now, or would go elsewhere."""
    return (
        now.bdev != before.bdev
        or (now.write_protected and not before.write_protected)
        or (now.ana_state != before.ana_state and now.ana_state in _ANA_STATUS)
    )


class ControllerState:
    """A controller: the current view, and the back ends that all controllers share (by name)."""

    def __init__(self, view: ControllerView, backends: Mapping[str, Backend]) -> None:
        self.view = view
        self.io_commands = 0
        self._uses: dict[int, NamespaceUse] = {}  # of the namespaces that have had a command
        self._backends = backends

    def replace(self, view: ControllerView) -> list[NamespaceUse]:
        """Takes over a new view; returns what is no longer in it and may still have users.

        A namespace that is write protected or not to be reached from now on counts as gone too: whoever changed that
        must not be answered while a write that was let through before is on its way.
        """
        gone = []
        for nsid, use in list(self._uses.items()):
            now = view.namespaces.get(nsid)
            if now is None or _forbids(use.view, now):
                gone.append(self._uses.pop(nsid))
            else:
                use.view = now
        self.view = view
        return gone

    def _use(self, nsid: int) -> NamespaceUse | None:
        use = self._uses.get(nsid)
        if use is None and (view := self.view.namespaces.get(nsid)) is not None:
            use = self._uses[nsid] = NamespaceUse(view)
        return use

    def all_namespaces(self) -> list[NamespaceUse]:
        """The active namespaces, for a broadcast."""
        return [use for nsid in self.view.namespaces if (use := self._use(nsid)) is not None]

    def namespace(self, nsid: int) -> NamespaceUse:
        """The namespace for a command's NSID, accessible through this controller's path.

        Raises Invalid Namespace or Format (also for an inactive NSID, as Linux nvmet and SPDK do) or the ANA status.
        """
        use = self._use(nsid)
        if use is None:
            raise NvmeStatusError(
                Status.INVALID_NAMESPACE_OR_FORMAT, f"namespace {nsid} is not active", error_loc=LOC_NSID
            )
        check_ana(use)
        return use

    def source_namespace(self, nsid: int) -> NamespaceUse:
        """The namespace for a Copy descriptor's SNSID (NVM 3.3.2: an inactive one is Invalid Field in Command)."""
        if nsid in (0, NSID_ALL):
            raise NvmeStatusError(Status.INVALID_NAMESPACE_OR_FORMAT, f"source namespace {nsid:#x}")
        use = self._use(nsid)
        if use is None:
            raise NvmeStatusError(Status.INVALID_FIELD, f"source namespace {nsid} is not active")
        check_ana(use)
        return use

    def backend(self, use: NamespaceUse) -> Backend:
        """The back end of a namespace. Namespace Not Ready, to be retried, while it is absent."""
        backend = self._backends.get(use.view.bdev)
        if backend is None or backend.closing:
            raise NvmeStatusError(
                Status.NAMESPACE_NOT_READY, f"bdev {use.view.bdev} of namespace {use.view.nsid} is absent", dnr=False
            )
        return backend


def check_ana(use: NamespaceUse) -> None:
    """Raises the path related status if the namespace's ANA group serves no I/O on this path."""
    status = _ANA_STATUS.get(use.view.ana_state)
    if status is not None:
        raise NvmeStatusError(
            status, f"ANA group {use.view.anagrpid} is in state {use.view.ana_state:#x}", dnr=False, error_loc=LOC_NSID
        )
