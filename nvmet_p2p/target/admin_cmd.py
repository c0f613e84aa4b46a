"""Admin commands (NVMe base 5.1) and their handlers.

Over fabrics, queues are made by Connect and deleted by Disconnect: the commands that do it elsewhere are Invalid
Opcode, like everything else that is not in the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target import features, identify, log_pages
from nvmet_p2p.target.command import ANY, IO, Command, Result, no_data
from nvmet_p2p.wire.spec import AdminOpcode, Status
from nvmet_p2p.wire.views import AbortCommand

if TYPE_CHECKING:
    from nvmet_p2p.target.controller import Controller
    from nvmet_p2p.target.queue import Request

NOT_ABORTED: Final = Result(dw0=1)
ABORTED: Final = Result(dw0=0)


def _keep_alive(controller: Controller, _request: Request, _data: bytes, now: float) -> Result:
    """Keep Alive (5.1.14): a new interval of the Keep Alive Timer begins."""
    controller.start_keep_alive(now)
    return Result()


def _async_event_request(controller: Controller, request: Request, _data: bytes, _now: float) -> None:
    """Asynchronous Event Request (5.1.2): completes when there is an event."""
    controller.events.request(request)


def _abort(controller: Controller, request: Request, _data: bytes, _now: float) -> Result | None:
    """Abort (5.1.1). Of admin commands only Asynchronous Event Requests wait long enough to be aborted."""
    command = AbortCommand.of(request.sqe)
    if command.sqid:
        if command.sqid not in controller.io_queues:
            return NOT_ABORTED
        controller.abort_io(request, command.sqid, command.cid)
        return None
    victim = controller.admin_queue.outstanding(command.cid)
    if victim is None or not controller.events.withdraw(victim):
        return NOT_ABORTED
    victim.fail(NvmeStatusError(Status.ABORT_REQUESTED, "aborted by the host", dnr=False))
    return ABORTED


ADMIN_COMMANDS: Final[dict[int, Command]] = {
    row.code: row
    for row in (
        Command(AdminOpcode.GET_LOG_PAGE, "Get Log Page", "5.1.12", ANY, log_pages.transfer, log_pages.get_log_page),
        Command(AdminOpcode.IDENTIFY, "Identify", "5.1.13", ANY, identify.transfer, identify.identify),
        Command(AdminOpcode.ABORT, "Abort", "5.1.1", IO, no_data, _abort),
        Command(AdminOpcode.SET_FEATURES, "Set Features", "5.1.25", ANY, features.set_transfer, features.set_features),
        Command(AdminOpcode.GET_FEATURES, "Get Features", "5.1.11", ANY, features.get_transfer, features.get_features),
        Command(
            AdminOpcode.ASYNC_EVENT_REQUEST, "Asynchronous Event Request", "5.1.2", ANY, no_data, _async_event_request
        ),
        Command(AdminOpcode.KEEP_ALIVE, "Keep Alive", "5.1.14", ANY, no_data, _keep_alive),
    )
}
