"""Devices that come and go are noticed: by the kernel's messages, and by looking."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from nvmet_p2p.server.staging import watch
from nvmet_p2p.server.staging.watch import MachineWatch, fingerprint, parse_uevent
from tests.unit.p2p.machines import MIB, one_switch

ADD = b"add@/devices/pci0000:00/0000:03:00.0\0ACTION=add\0DEVPATH=/devices/pci0000:00/0000:03:00.0\0SUBSYSTEM=pci\0"


def test_uevents() -> None:
    assert parse_uevent(ADD)["SUBSYSTEM"] == "pci"
    assert parse_uevent(ADD)["ACTION"] == "add"
    assert parse_uevent(b"") == {}
    assert parse_uevent(b"libudev\0\xfe\xed\xca\xfe\0SUBSYSTEM=pci\0") == {}, "udev's own, on another group"
    assert parse_uevent(b"add@/x\0\xff\xfe=\xff\0NOVALUE\0A=b=c\0") == {"\ufffd\ufffd": "\ufffd", "A": "b=c"}


def test_what_is_looked_at(tmp_path: Path) -> None:
    machine = one_switch(tmp_path / "sys")
    before = fingerprint(machine.root)
    assert [entry[0] for entry in before] == sorted(entry[0] for entry in before)
    assert fingerprint(machine.root) == before
    memory = machine.places["0000:03:00.0"] / "p2pmem"
    (memory / "published").write_text("0\n")
    unpublished = fingerprint(machine.root)
    assert unpublished != before
    (memory / "allocate").rename(memory / "was")
    (memory / "allocate").touch()
    assert fingerprint(machine.root) != unpublished, "bound anew"
    (machine.places["0000:04:00.0"] / "driver").unlink()
    (machine.places["0000:04:00.0"] / "driver").symlink_to("../../drivers/vfio-pci")
    assert fingerprint(machine.root) not in (before, unpublished)
    assert fingerprint(tmp_path / "no such tree") == ()


async def test_looking_finds_what_no_event_told(tmp_path: Path) -> None:
    machine = one_switch(tmp_path / "sys")
    changed = asyncio.Event()
    watched = MachineWatch(machine.root, changed.set, check_s=0.001)
    watched.start()
    try:
        machine.nvme("0000:06:00.0", "0000:00:1c.0", 7, cmb=2 * MIB)
        await asyncio.wait_for(changed.wait(), 20)
        assert watched.seen == fingerprint(machine.root)
    finally:
        watched.stop()


async def test_messages_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for all the messages that a drive sends when it comes; none for what is no device of ours."""
    import socket

    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    monkeypatch.setattr(watch, "_open", lambda: ours)
    monkeypatch.setattr(watch, "SETTLE_S", 0.01)
    calls: list[float] = []
    seen = asyncio.Event()

    def changed() -> None:
        calls.append(1)
        seen.set()

    watched = MachineWatch(Path("/sys"), changed, check_s=3600.0)
    watched.start()
    try:
        kernel.send(ADD.replace(b"SUBSYSTEM=pci", b"SUBSYSTEM=usb"))
        for _ in range(5):
            kernel.send(ADD)
        await asyncio.wait_for(seen.wait(), 20)
        assert calls == [1]
    finally:
        watched.stop()
        kernel.close()


def test_an_inode_that_is_not_there(tmp_path: Path) -> None:
    assert watch.inode(tmp_path / "absent") == 0
    assert watch.inode(tmp_path) == os.stat(tmp_path).st_ino
