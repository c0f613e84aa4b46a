"""Tells when devices come and go: the kernel's uevents, and a look at sysfs every other second for what has none.

A drive that is bound to another driver, a CMB that is published later: not every change is an event, and in a container
or with a made tree there is none at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger()

KERNEL_GROUP: Final = 1  # of NETLINK_KOBJECT_UEVENT, lib/kobject_uevent.c; group 2 is udev's
NETLINK_KOBJECT_UEVENT: Final = 15
PACKET_BYTES_MAX: Final = 8192  # UEVENT_BUFFER_SIZE is 2048
SUBSYSTEMS: Final = frozenset({"pci", "nvme", "block"})
SETTLE_S: Final = 0.2  # a drive that comes sends a dozen events
CHECK_S: Final = 2.0

Fingerprint = tuple[tuple[str, int, int, str], ...]


def parse_uevent(packet: bytes) -> dict[str, str]:
    """``ACTION``, ``DEVPATH``, ``SUBSYSTEM`` ... of a message of the kernel; empty if it is none."""
    head, *pairs = packet.rstrip(b"\0").split(b"\0")
    if b"@" not in head:
        return {}
    found = (pair.decode(errors="replace").partition("=") for pair in pairs)
    return {key: value for key, separator, value in found if separator}


def fingerprint(root: Path) -> Fingerprint:
    """Of every PCI device: which incarnation it is, of its CMB as well, and its driver. Blocking, about 20 us each."""
    folder = root / "bus/pci/devices"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return ()
    return tuple((name, *_incarnation(folder / name)) for name in names)


def _incarnation(device: Path) -> tuple[int, int, str]:
    driver = ""
    with contextlib.suppress(OSError):
        driver = os.path.basename(os.readlink(device / "driver"))
    published = ""
    with contextlib.suppress(OSError):
        published = (device / "p2pmem/published").read_text(encoding="ascii").strip()
    return inode(device), inode(device / "p2pmem/allocate"), f"{driver}/{published}"


def inode(path: Path) -> int:
    """The number of a file, 0 if there is none. In sysfs no two files that ever were have the same since the boot."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


class MachineWatch:
    """Calls ``changed`` on the event loop, at once for an event (and what follows it shortly), else within 2 s."""

    def __init__(self, root: Path, changed: Callable[[], None], *, check_s: float = CHECK_S) -> None:
        self._root = root
        self._changed = changed
        self._check_s = check_s
        self._socket: socket.socket | None = None
        self._checking: asyncio.Task[None] | None = None
        self._settling: asyncio.TimerHandle | None = None
        self.seen: Fingerprint = ()

    def start(self) -> None:
        """Begins; what is there now is no change."""
        loop = asyncio.get_running_loop()
        self.seen = fingerprint(self._root)
        if self._root == Path("/sys"):
            self._socket = _open()
            if self._socket is not None:
                loop.add_reader(self._socket, self._readable)
        self._checking = asyncio.create_task(self._check(), name="watch of sysfs")

    def stop(self) -> None:
        """Ends; ``changed`` is not called any more."""
        if self._checking is not None:
            self._checking.cancel()
        if self._settling is not None:
            self._settling.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(PACKET_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            self._soon()  # ENOBUFS: events were lost
            return
        if parse_uevent(packet).get("SUBSYSTEM") in SUBSYSTEMS:
            self._soon()

    def _soon(self) -> None:
        if self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(SETTLE_S, self._settled)

    def _settled(self) -> None:
        self._settling = None
        self._changed()

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(self._check_s)
            now = await asyncio.to_thread(fingerprint, self._root)
            if now != self.seen:
                self.seen = now
                self._changed()


def _open() -> socket.socket | None:
    """The kernel's uevents; ``None`` where they cannot be had."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT)
    except OSError as error:
        log.info("watch.no_uevents", reason=error.strerror, note="sysfs is looked at every other second")
        return None
    try:
        sock.bind((0, KERNEL_GROUP))
    except OSError as error:
        sock.close()
        log.info("watch.no_uevents", reason=error.strerror, note="sysfs is looked at every other second")
        return None
    return sock
