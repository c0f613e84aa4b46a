"""What an interrupted probe has left on a drive that no file leads to: only the data plane can put it back."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.state.journal import JournalError, Journals

log = structlog.get_logger()


async def put_back(journals: Journals, call: Callable[[str, dict[str, Any]], Awaitable[Any]], bdev: str) -> None:
    """Before anybody uses an nvme bdev that is there. Raises ``OperatorError``: it must not be used."""
    for path in await asyncio.to_thread(journals.left_on_nvme, bdev):
        try:
            await call("p2p_pool_restore", {"bdev": bdev, "journal": str(path)})
        except OperatorError as error:
            if error.code == -errno.EUCLEAN and path != journals.path_of_bdev(bdev):
                continue  # another drive's
            raise JournalError(
                f"a probe of {bdev} was interrupted, and what it had overwritten cannot be put back ({error.message}): "
                f"{path}. Move the file away to open the drive as it is"
            ) from error
        log.warning("journal.restored", path=str(path), bdev=bdev)
