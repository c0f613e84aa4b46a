"""JSON-RPC to the data plane: SPDK's own client (PyPI package ``spdk``), off the event loop.

One connection. The server answers out of order, by id: so any number of calls may wait (for a back end to drain, say)
while others go on. A thread sends, another one receives.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Any, Final

from spdk.rpc.client import JSONRPCClient, JSONRPCException

from nvmet_p2p.errors import NvmetP2PError, OperatorError

# The client measures its time limit in CPU seconds of the whole process, and spins once that is exceeded; so it gets
# one that is out of reach (below 2^31 ms, poll's limit). Whoever calls sets the limits that matter.
CLIENT_TIMEOUT_S: Final = 1_000_000.0
LINK_CLOSED: Final = "the data plane has closed its JSON-RPC connection"
INTERNAL_ERROR: Final = -32603


class LinkLostError(NvmetP2PError):
    """The data plane has gone before it answered."""


class RpcLink:
    """A connection to the data plane's JSON-RPC server; ``on_lost`` is called on the event loop when it ends."""

    def __init__(self, client: Any, on_lost: Callable[[str], None]) -> None:
        self._client = client
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # protects the two below
        self._waiting: dict[int, Future[Any]] = {}
        self._closed = False
        self._sender = ThreadPoolExecutor(1, "dataplane rpc send")
        self._receiver = threading.Thread(target=self._receive, name="dataplane rpc receive", daemon=True)
        self._receiver.start()

    @classmethod
    async def connect(cls, path: str, on_lost: Callable[[str], None]) -> RpcLink:
        """Raises ``LinkLostError`` when nobody listens."""

        def connect() -> Any:
            client = JSONRPCClient(path, timeout=CLIENT_TIMEOUT_S)
            client.get_logger().handlers.clear()  # it adds one for each client that is ever made
            return client

        try:
            return cls(await asyncio.to_thread(connect), on_lost)
        except (JSONRPCException, OSError) as error:
            raise LinkLostError(f"no connection to the data plane at {path}: {_text(error)}") from error

    async def call(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """The result. Raises ``OperatorError`` with the error's code, or ``LinkLostError``."""
        answer: Future[Any] = Future()
        try:
            self._sender.submit(self._send, method, params or {}, answer)
        except RuntimeError as error:  # closed
            raise LinkLostError("the data plane is gone") from error
        response = await asyncio.wrap_future(answer)
        error_object = response.get("error")
        if error_object is not None:
            code, message = error_object.get("code"), error_object.get("message")
            raise OperatorError(code if isinstance(code, int) else INTERNAL_ERROR, str(message))
        return response.get("result")

    def _send(self, method: str, params: dict[str, Any], answer: Future[Any]) -> None:
        try:
            number = self._client.add_request(method, params)
            with self._lock:
                if self._closed:
                    raise LinkLostError("the data plane is gone")
                self._waiting[number] = answer
            self._client.flush()
        except (OSError, AttributeError) as error:  # the client's socket is None once it has seen the end
            self._end(_text(error))
        except LinkLostError as error:
            _settle(answer, error)

    def _receive(self) -> None:
        while True:
            try:
                response = self._client.recv()
            except JSONRPCException as error:
                if self._client.sock is not None and "Timeout" in str(error.message):
                    continue
                self._end(LINK_CLOSED)
                return
            except (OSError, AttributeError, UnicodeDecodeError) as error:
                self._end(_text(error))
                return
            number = response.get("id") if isinstance(response, dict) else None
            with self._lock:
                answer = self._waiting.pop(number, None) if isinstance(number, int) else None
            if answer is not None:
                _settle(answer, response)

    def _end(self, reason: str) -> None:
        """The first time: fails what waits, and tells."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for answer in waiting:
            _settle(answer, LinkLostError(reason))
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._on_lost, reason)

    async def close(self) -> None:
        """Ends the connection; what waits fails with ``LinkLostError``, ``on_lost`` is not called."""
        self._on_lost = _nobody
        self._end("closed")
        with contextlib.suppress(OSError, AttributeError):
            self._client.close()
        self._sender.shutdown(wait=False)
        await asyncio.to_thread(self._receiver.join)


def _nobody(_: str) -> None:
    """Whoever wanted to know has closed the link."""


def _settle(answer: Future[Any], outcome: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # its caller was cancelled
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


def _text(error: Exception) -> str:
    message = getattr(error, "message", None) or getattr(error, "strerror", None) or str(error)
    return str(message).strip().rpartition("\n")[2]
