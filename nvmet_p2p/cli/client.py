"""A small synchronous JSON-RPC 2.0 client for the daemon's Unix socket.

The ``spdk`` package has one too, but it measures its timeout in CPU time, parses the whole buffer again for every 4 KiB
and gives an error as text only; the command line wants the code, so that it can tell "exists already" from the rest.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from nvmet_p2p.errors import NvmetP2PError

RECV_BYTES = 1 << 20
CONNECT_RETRY_S = 0.05


class RpcConnectionError(NvmetP2PError):
    """No daemon answers on the socket, or it closed the connection, or its answer is not JSON-RPC."""


class RpcError(NvmetP2PError):
    """The daemon refused a call. ``code`` is a JSON-RPC code or a negated errno, as SPDK has it."""

    def __init__(self, method: str, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{method}: {message} (code {code})")
        self.method = method
        self.code = code
        self.message = message
        self.data = data


class RpcClient:
    """One connection; calls follow each other. ``timeout_s`` is wall time for each call."""

    def __init__(self, path: Path, *, timeout_s: float = 60.0, wait_s: float = 0.0) -> None:
        """Connects; for up to ``wait_s`` seconds a socket that is not there yet is waited for."""
        self._timeout_s = timeout_s
        self._last_id = 0
        self._socket = _connect(path, timeout_s, wait_s)

    def __enter__(self) -> RpcClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; a second call does nothing."""
        self._socket.close()

    def call(self, method: str, params: Any = None) -> Any:
        """The ``result`` of a call. Raises :class:`RpcError` or :class:`RpcConnectionError`."""
        self._last_id += 1
        request: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "id": self._last_id}
        if params is not None:
            request["params"] = params
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(msgspec.json.encode(request))
            answer = self._receive()
        except TimeoutError as error:
            raise RpcConnectionError(f"{method}: no answer within {self._timeout_s:g} s") from error
        except OSError as error:
            raise RpcConnectionError(f"{method}: {error.strerror or error}") from error
        if not isinstance(answer, dict) or ("result" in answer) == ("error" in answer):
            raise RpcConnectionError(f"{method}: the answer is not a JSON-RPC response")
        if "error" in answer:
            fault = answer["error"] if isinstance(answer["error"], dict) else {}
            raise RpcError(method, fault.get("code", 0), fault.get("message", "no message"), fault.get("data"))
        if answer.get("id") != self._last_id:
            raise RpcConnectionError(f"{method}: the answer belongs to another request")
        return answer["result"]

    def _receive(self) -> Any:
        """One JSON object. It can be complete only when the last byte is its closing brace."""
        deadline = time.monotonic() + self._timeout_s
        buffer = bytearray()
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            chunk = self._socket.recv(RECV_BYTES)
            if not chunk:
                raise RpcConnectionError("the daemon closed the connection")
            buffer += chunk
            if buffer.rstrip().endswith(b"}"):
                try:
                    return msgspec.json.decode(buffer)
                except msgspec.DecodeError:
                    continue


def _connect(path: Path, timeout_s: float, wait_s: float) -> socket.socket:
    deadline = time.monotonic() + wait_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() >= deadline or isinstance(error, PermissionError):
                raise RpcConnectionError(
                    f"{path}: {error.strerror or error}; is `nvmet-p2p serve` running with this --rpc-socket?"
                ) from error
        time.sleep(CONNECT_RETRY_S)
