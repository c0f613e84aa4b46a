"""A helper in Python that does as it is told by its first argument; the options after it are those of the real one."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from typing import Any

DONE = {"bdev_get_bdevs": [], "spdk_get_version": {"version": "fake"}, "p2p_get_pools": []}


def packet(kind: int, body: bytes, version: int = 1) -> bytes:
    return struct.pack("<IHHII", 0x4332504E, version, kind, 16 + len(body), 0) + body


def serve_rpc(path: str, manner: str, channel: socket.socket) -> None:
    """Answers every call with what ``DONE`` has, else true; a queue that is adopted is answered on the channel."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    channel.send(packet(1, struct.pack("<II", 0, os.getpid()) + path.encode()))
    connection, _ = listener.accept()
    pending = ""
    while True:
        received = connection.recv(65536).decode()
        if not received:
            return
        pending += received
        while pending:
            try:
                request, end = json.JSONDecoder().raw_decode(pending)
            except ValueError:
                break
            pending = pending[end:].lstrip()
            answer(connection, channel, request, manner)


def answer(connection: socket.socket, channel: socket.socket, request: dict[str, Any], manner: str) -> None:
    method = request["method"]
    if manner == f"die-at-{method}":
        os.kill(os.getpid(), signal.SIGKILL)
    if manner == f"malformed-at-{method}":
        channel.send(b"nonsense")
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"], "result": DONE.get(method, True)}
    if method == "bdev_null_create":
        del body["result"]
        body["error"] = {"code": -22, "message": "é: refused by the fake"}
    connection.sendall(json.dumps(body).encode())


def main() -> None:
    manner, options = sys.argv[1], sys.argv[2:]
    given = dict(zip(options[::2], options[1::2], strict=False))
    channel = socket.socket(fileno=int(given["--channel-fd"]))
    if manner == "exit-at-once":
        sys.exit(5)
    channel.recv(65536)
    if manner == "other-version":
        channel.send(packet(1, bytes(8), version=2))
    elif manner == "nonsense":
        channel.send(b"nonsense")
    elif manner != "silent":
        serve_rpc(given["--rpc-socket"], manner, channel)
    signal.pause()


if __name__ == "__main__":
    main()
