"""systemd's readiness protocol, sd_notify(3): one datagram to the socket named in NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> bool:
    """Sends e.g. ``READY=1``; returns whether a service manager was listening.

    Never raises for a manager that went away: readiness is told, not negotiated.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":  # abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall("\n".join(assignments).encode())
    except OSError:
        return False
    return True
