"""Views on their way to the helper, which refuses a whole view that names a pool which its bdev may not use."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import replace

from nvmet_p2p.dataplane.native import calls
from nvmet_p2p.dataplane.native.helper import Helper
from nvmet_p2p.dataplane.native.pools import NativePools
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import BdevConfig
from nvmet_p2p.target.effects import IN_HOST_MEMORY, ControllerKey, ControllerView, NamespaceView, Placement

MayUse = Callable[[str, str], bool]


class ViewSender:
    """Sends views, with host memory in the place of what is not allowed, and knows which of them fell short."""

    def __init__(self, pools: NativePools, bdevs: Mapping[str, BdevConfig]) -> None:
        self._pools = pools
        self._bdevs = bdevs
        self._short: dict[ControllerKey, None] = {}

    async def send(self, helper: Helper, view: ControllerView) -> None:
        """Raises ``OperatorError`` or ``LinkLostError``."""
        sent = where_allowed(view, self._may_use)
        self._short.pop(view.key, None)
        if sent is not view:
            self._short[view.key] = None
        try:
            await helper.call("p2p_controller_set", calls.set_controller(sent, pools=self._pools.supported))
        except OperatorError as error:
            if error.code not in (-errno.ENODEV, -errno.EPERM):
                raise
            self._short[view.key] = None  # a pool was lost this moment
            bare = where_allowed(view, lambda _pool, _bdev: False)
            await helper.call("p2p_controller_set", calls.set_controller(bare, pools=self._pools.supported))

    def short(self) -> list[ControllerKey]:
        """The controllers whose view was not sent as it is."""
        return list(self._short)

    def can_be_whole(self, view: ControllerView) -> bool:
        """Everything that it asks for is allowed by now."""
        return where_allowed(view, self._may_use) is view

    def forget(self, key: ControllerKey) -> None:
        """The controller is gone."""
        self._short.pop(key, None)

    def _may_use(self, pool: str, bdev: str) -> bool:
        config = self._bdevs.get(bdev)
        while config is not None and config.base:
            config = self._bdevs.get(config.base)
        return config is not None and self._pools.is_allowed(pool, config.name)


def where_allowed(view: ControllerView, may_use: MayUse) -> ControllerView:
    """``view`` with host memory in the place of every pool that a namespace's bdev may not use (any more, or yet)."""
    namespaces = {
        nsid: replace(namespace, placement=_allowed_part(namespace, may_use))
        for nsid, namespace in view.namespaces.items()
    }
    return view if namespaces == view.namespaces else replace(view, namespaces=namespaces)


def _allowed_part(namespace: NamespaceView, may_use: MayUse) -> Placement:
    wanted = namespace.placement
    if wanted == IN_HOST_MEMORY:
        return wanted
    read, write, copy = (
        pool if pool and may_use(pool, namespace.bdev) else "" for pool in (wanted.read, wanted.write, wanted.copy)
    )
    return Placement(read, write, copy, wanted.strict)
