"""A JSON-RPC server on a Unix socket, in a thread: what the command line is tested against."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Handler = Callable[[str, Any], bytes]
"""Takes method and params, gives the bytes to send; empty bytes close the connection."""


@contextlib.contextmanager
def serving(path: Path, handler: Handler) -> Iterator[None]:
    """Serves one connection at a time until the block ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_serve, args=(listener, handler))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def result(value: Any, request_id: int = 1) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": value}, indent=2).encode()


def _serve(listener: socket.socket, handler: Handler) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(ConnectionError):
            _serve_one(connection, handler)


def _serve_one(connection: socket.socket, handler: Handler) -> None:
    buffer = ""
    while chunk := connection.recv(65536):
        buffer += chunk.decode()
        try:
            request, end = json.JSONDecoder().raw_decode(buffer)
        except ValueError:
            continue
        buffer = buffer[end:]
        answer = handler(request["method"], request.get("params"))
        if not answer:
            return
        connection.sendall(answer.replace(b'"id": 1,', b'"id": %d,' % request["id"], 1))
