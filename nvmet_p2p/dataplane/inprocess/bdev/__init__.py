"""Back ends of the in-process engine, one module a kind; ``open_bdev`` chooses."""

from __future__ import annotations

from typing import Final

from nvmet_p2p.dataplane.inprocess.bdev.base import Bdev, Opener
from nvmet_p2p.dataplane.inprocess.bdev.file import FileBdev
from nvmet_p2p.dataplane.inprocess.bdev.malloc import MallocBdev
from nvmet_p2p.dataplane.inprocess.bdev.null import NullBdev
from nvmet_p2p.target.config import BdevConfig

KINDS: Final[dict[str, Opener]] = {
    "malloc": MallocBdev.open,
    "null": NullBdev.open,
    "aio": FileBdev.open,
    "uring": FileBdev.open,
}


async def open_bdev(config: BdevConfig) -> Bdev:
    """Opens a back end. Raises ``OSError`` (from the system) or ``OperatorError`` (``config`` is wrong)."""
    return await KINDS[config.kind](config)
