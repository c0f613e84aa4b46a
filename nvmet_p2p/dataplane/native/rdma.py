"""NVMe/RDMA in the native data plane, as the control plane sees it: listeners and connections that are no I/O queue.

The verbs objects are the helper's. Here is who listens where, so that a helper that was restarted can be told again,
and which session gets what comes on which connection. All of a helper's connections end with it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from nvmet_p2p.dataplane.native.channel import Channel
from nvmet_p2p.dataplane.native.messages import (
    Message,
    RdmaCapsule,
    RdmaClosed,
    RdmaConnected,
    RdmaData,
    RdmaMessage,
    build_rdma_close,
    build_rdma_drop,
    build_rdma_fetch,
    build_rdma_reply,
)
from nvmet_p2p.dataplane.port import DataPlaneEvents, RdmaHandoff, RdmaReceiver, RdmaStatus
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import ListenAddress, TransportConfig

log = structlog.get_logger()

Call = Callable[..., Awaitable[Any]]
NOT_BUILT = "the data plane is built without librdmacm and libibverbs"


class Link:
    """Implements ``port.RdmaLink`` on the capsule channel."""

    def __init__(self, conn: int, channel: Channel, ended: Callable[[Link], None]) -> None:
        self.conn = conn
        self._channel = channel
        self._ended = ended

    def fetch(self, cid: int, length: int) -> None:
        self._channel.send(build_rdma_fetch(self.conn, cid, length))

    def reply(self, cqe: bytes, data: bytes = b"") -> None:
        for packet in build_rdma_reply(self.conn, cqe, data):
            self._channel.send(packet)

    def drop(self, cid: int) -> None:
        self._channel.send(build_rdma_drop(self.conn, cid))

    def close(self) -> None:
        self._ended(self)
        self._channel.send(build_rdma_close(self.conn))


class RdmaSide:
    """See the module. ``call`` makes a JSON-RPC call as ``NativeDataPlane._call`` does."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._listening: dict[ListenAddress, TransportConfig] = {}
        self._connections: dict[int, tuple[Link, RdmaReceiver]] = {}

    # -- listeners ---------------------------------------------------------------------------------------------------

    async def check(self, config: TransportConfig) -> None:
        """-ENOTSUP where the helper has no NVMe/RDMA."""
        info = await self._call("p2p_get_info")
        if not info.get("rdma", {}).get("built"):
            raise OperatorError(-errno.EOPNOTSUPP, f"transport {config.trtype}: {NOT_BUILT}")

    async def listen(self, address: ListenAddress, config: TransportConfig) -> None:
        """See ``DataPlane.listen``."""
        await self._call("p2p_rdma_listen", listen_params(address, config))
        self._listening[address] = config
        log.info("listener.started", traddr=address.traddr, trsvcid=address.trsvcid, trtype=address.trtype)

    async def unlisten(self, address: ListenAddress) -> None:
        """See ``DataPlane.unlisten``."""
        if self._listening.pop(address, None) is not None:
            log.info("listener.stopped", traddr=address.traddr, trsvcid=address.trsvcid)
            await self._call("p2p_rdma_unlisten", address_params(address), wait=False)

    async def refill(self, events: DataPlaneEvents) -> None:
        """A new helper listens on what the last one did. Raises ``LinkLostError`` if it goes as well."""
        for address, config in list(self._listening.items()):
            if address not in self._listening:
                continue
            try:
                await self._call("p2p_rdma_listen", listen_params(address, config), wait=False)
            except OperatorError as error:
                if error.code == -errno.ENOTCONN:
                    raise
                self._listening.pop(address, None)
                events.listener_lost(address, error.message)

    async def status(self) -> RdmaStatus:
        """See ``DataPlane.rdma_status``."""
        try:
            info = await self._call("p2p_get_info", wait=False)
            if not info.get("rdma", {}).get("built"):
                return RdmaStatus(False, NOT_BUILT)
            shown = await self._call("p2p_rdma_get_devices", wait=False)
        except OperatorError as error:
            return RdmaStatus(False, error.message)
        return RdmaStatus(True, "", shown.get("pending_data_buffer", 0), tuple(shown.get("devices", ())))

    # -- connections -------------------------------------------------------------------------------------------------

    def received(self, message: Message, channel: Channel, events: DataPlaneEvents) -> None:
        """A message of the helper. One for a connection that has ended, or is an I/O queue now, is out of date."""
        if not isinstance(message, RdmaMessage):
            return
        _, receiver = self._connections.get(message.conn, (None, None))
        match message:
            case RdmaConnected():
                link = Link(message.conn, channel, self._closed)
                made = events.rdma_connected(link, message.connection)
                if made is None:
                    link.close()
                else:
                    self._connections[message.conn] = link, made
            case RdmaCapsule() if receiver is not None:
                receiver.capsule(message.sqe, message.icd)
            case RdmaData() if receiver is not None:
                receiver.data(message.cid, message.rc, message.data)
            case RdmaClosed() if receiver is not None:
                self.forget(message.conn)
                receiver.closed(message.reason)

    def adopting(self, handoff: RdmaHandoff) -> None:
        """The connection becomes an I/O queue. -ENOTCONN if it has ended, with its helper perhaps."""
        link, _ = self._connections.get(handoff.link.conn, (None, None))
        if link is not handoff.link:
            raise OperatorError(-errno.ENOTCONN, "the connection is gone")
        self.forget(handoff.link.conn)

    def _closed(self, link: Link) -> None:
        if self._connections.get(link.conn, (None, None))[0] is link:
            self.forget(link.conn)

    def forget(self, conn: int) -> None:
        """It has ended, or is an I/O queue now."""
        self._connections.pop(conn, None)

    def lost(self, reason: str) -> None:
        """The helper is gone, and every connection with it."""
        connections, self._connections = self._connections, {}
        for _, receiver in connections.values():
            receiver.closed(reason)


class RdmaMethods:
    """The part of ``NativeDataPlane`` that is about NVMe/RDMA alone."""

    _rdma: RdmaSide

    async def transport_create(self, config: TransportConfig) -> None:
        if config.trtype == "RDMA":
            await self._rdma.check(config)

    async def listen(self, address: ListenAddress, config: TransportConfig) -> None:
        await self._rdma.listen(address, config)

    async def unlisten(self, address: ListenAddress) -> None:
        with contextlib.suppress(OperatorError):  # it does not listen any more in any case
            await self._rdma.unlisten(address)

    async def rdma_status(self) -> RdmaStatus:
        return await self._rdma.status()


def address_params(address: ListenAddress) -> dict[str, Any]:
    """An address as the helper takes it."""
    return {"traddr": address.traddr, "trsvcid": address.trsvcid, "adrfam": address.adrfam.lower()}


def listen_params(address: ListenAddress, config: TransportConfig) -> dict[str, Any]:
    """Parameters of p2p_rdma_listen: the address, and what of the transport the helper's own work depends on."""
    return {
        **address_params(address),
        "max_queue_depth": config.max_queue_depth,
        "max_aq_depth": config.max_aq_depth,
        "in_capsule_data_size": config.in_capsule_data_size,
        "max_io_size": config.max_io_size,
        "max_srq_depth": config.max_srq_depth,
        "no_srq": config.no_srq,
        "acceptor_backlog": config.acceptor_backlog,
    }
