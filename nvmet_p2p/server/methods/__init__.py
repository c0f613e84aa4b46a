"""The table of all methods of the admin API: source of validation, of the OpenRPC document and of ``docs/rpc.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from nvmet_p2p.server.methods.bdev import BDEV
from nvmet_p2p.server.methods.bdev_native import BDEV_NATIVE
from nvmet_p2p.server.methods.changes import CHANGES
from nvmet_p2p.server.methods.nvme import NVME
from nvmet_p2p.server.methods.nvmf import NVMF
from nvmet_p2p.server.methods.staging import STAGING
from nvmet_p2p.server.methods.system import SYSTEM
from nvmet_p2p.server.schema import Method

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in sorted(
        (*BDEV, *BDEV_NATIVE, *CHANGES, *NVME, *NVMF, *STAGING, *SYSTEM), key=lambda method: method.name
    )
}
