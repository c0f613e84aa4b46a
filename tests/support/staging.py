"""A daemon on a made machine: a drive's memory that stands as a file in a sysfs tree, and namespaces that are files.

The tests' files are on a drive of that tree by way of their file system's device number; the provider's ``allocate`` is
a file that the data plane maps as it would map a CMB. So everything but the PCI Express below is what it is elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

from tests.support import nvme
from tests.support.daemon import Daemon
from tests.support.initiator import Queue
from tests.unit.p2p.machines import MIB, Machine, one_switch

PROVIDER = "0000:03:00.0"  # nvme0 of one_switch, whose CMB it is; the tests' files are on nvme1
INTERRUPTED = 0x021
KIB = 1024
BLOCK = 512


def make_machine(folder: Path) -> Machine:
    """Two drives behind one switch; the first one's CMB is a file of 8 MiB."""
    number = os.stat(folder).st_dev
    made = one_switch(folder)
    fill(made, 8 * MIB)
    made.link(f"dev/block/{os.major(number)}:{os.minor(number)}", made.where("nvme1n1"))
    return made


def memory(machine: Machine) -> Path:
    return machine.places[PROVIDER] / "p2pmem"


def fill(machine: Machine, size: int) -> None:
    """The provider has so many bytes, all of them free, in a file of its own."""
    place = memory(machine)
    new = place / "new"  # each file changes at one moment: the daemon may be looking
    for name in ("size", "available"):
        new.write_text(f"{size}\n")
        new.rename(place / name)
    with new.open("wb") as file:
        file.truncate(size)
    new.rename(place / "allocate")


class Rig:
    """A daemon on that machine, and subsystems whose namespaces are files."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.tree = daemon.subsystem()
        self._names = itertools.count()

    def add(self, size: int = 4 * MIB, content: bytes = b"") -> Path:
        """A namespace on a new file."""
        name = f"f{next(self._names)}"
        path = self.daemon.dir / f"{name}.img"
        path.write_bytes(content)
        os.truncate(path, size)
        self.daemon.rpc("bdev_uring_create", name=name, filename=str(path), block_size=BLOCK)
        self.tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": name})
        return path

    def set(self, policy: str, mode: str = "prefer", **where: Any) -> None:
        self.daemon.rpc("p2p_set_staging", policy=policy, mode=mode, **where)

    def shown(self, nsid: int = 1) -> dict[str, Any]:
        (found,) = self.daemon.rpc("p2p_get_staging", nqn=self.tree.nqn, nsid=nsid)
        assert isinstance(found, dict)
        return found

    def path(self, nsid: int = 1) -> dict[str, Any]:
        """The one listener's policy and choice."""
        (found,) = self.shown(nsid)["paths"]
        assert isinstance(found, dict)
        return found

    def used(self, pool: str, nsid: int = 1) -> dict[str, int]:
        """What of the namespace rested there."""
        for use in self.shown(nsid)["pools"]:
            if use["pool"] == pool:
                return {key: value for key, value in use.items() if isinstance(value, int)}
        return dict.fromkeys(("read_bytes", "write_bytes", "copy_bytes"), 0)

    def pool(self, name: str) -> dict[str, Any]:
        found = {entry["name"]: entry for entry in self.daemon.rpc("p2p_get_pools")}[name]
        assert isinstance(found, dict)
        return found


def bytes_of(seed: int, size: int) -> bytes:
    """Some bytes that tell where they belong."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def write(io: Queue, lba: int, data: bytes, nsid: int = 1) -> None:
    """As a host does it: a command that was interrupted is sent again."""
    for _ in range(5):
        done = io.write(lba, len(data) // BLOCK, data, nsid=nsid)
        if done.status != INTERRUPTED:
            break
        assert not done.dnr
    assert done.status == nvme.OK, hex(done.status)


def read(io: Queue, lba: int, size: int, nsid: int = 1) -> bytes:
    for _ in range(5):
        done = io.read(lba, size // BLOCK, size, nsid=nsid)
        if done.status != INTERRUPTED:
            break
        assert not done.dnr
    assert done.status == nvme.OK, hex(done.status)
    return done.data


def calibrations(daemon: Daemon) -> int:
    """How often something was measured so far."""
    return daemon.log.read_text(errors="replace").count("pool.calibrated")
