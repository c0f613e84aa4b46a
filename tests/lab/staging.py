"""For the tests of staging: policies, counters, and what the initiator does, in few words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.lab.host import find_dev
from tests.lab.inside import Drive, InsideTarget

NQN = "nqn.2026-11.org.example:p2p"
FIND_DEV = find_dev(NQN)
HOST = "host"
MIB = 1 << 20


@dataclass(frozen=True)
class Use:
    """What was staged in one pool."""

    read: int = 0
    write: int = 0
    copy: int = 0


class Staged:
    """Drives as namespaces of one subsystem in the guest: NSID n is the n-th name; bdevs have the drives' names."""

    def __init__(self, inside: InsideTarget, drives: dict[str, Drive], names: Iterable[str] = ("A", "B")) -> None:
        self.inside = inside
        self.guest = inside.guest
        self.drives = drives
        self.names = list(names)
        self.bdevs = [self.create(name) for name in self.names]
        inside.serve(NQN, dict(enumerate(self.bdevs, 1)))

    def create(self, name: str) -> str:
        """A back end for the drive; its name."""
        self.inside.rpc("bdev_uring_create", name=name, filename=self.drives[name].device)
        return name

    def policy(self, policy: str, mode: str = "prefer", **what: Any) -> None:
        """Policy of the subsystem, or of what is named; a drive's name stands for its address."""
        named = self.drives[policy].bdf if policy in self.drives else policy
        what = what or {"nqn": NQN}
        self.inside.rpc("p2p_set_staging", timeout_s=90.0, policy=named, mode=mode, **what)

    def namespace(self, nsid: int = 1) -> dict[str, Any]:
        """What p2p_get_staging says of a namespace."""
        (found,) = self.inside.rpc("p2p_get_staging", nqn=NQN, nsid=nsid)
        assert isinstance(found, dict)
        return found

    def state(self, nsid: int = 1) -> str:
        """pool, host or degraded, by the only listener."""
        (path,) = self.namespace(nsid)["paths"]
        return str(path["state"])

    def uses(self, nsid: int = 1) -> dict[str, Use]:
        """Bytes by pool since the bdev was made; a CMB by its drive's name."""
        names = {drive.bdf: name for name, drive in self.drives.items()}
        return {
            names.get(use["pool"], use["pool"]): Use(use["read_bytes"], use["write_bytes"], use["copy_bytes"])
            for use in self.namespace(nsid)["pools"]
        }

    def pool(self, name: str) -> dict[str, Any]:
        """What p2p_get_pools says of a drive's CMB."""
        bdf = self.drives[name].bdf
        (found,) = (pool for pool in self.inside.rpc("p2p_get_pools") if pool["name"] == bdf)
        assert isinstance(found, dict)
        return found

    @contextlib.contextmanager
    def slow(self, name: str, iops: int) -> Iterator[None]:
        """QEMU lets a drive do so many commands a second: those that wait hold their memory meanwhile."""
        limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        self.guest.qmp("block_set_io_throttle", device=f"drive-{name}", **{**limits, "iops": iops})
        try:
            yield
        finally:
            self.guest.qmp("block_set_io_throttle", device=f"drive-{name}", **limits)

    def connect(self, *options: str) -> str:
        """The initiator's command and where the first namespace is found, as ``$dev``."""
        return f"{FIND_DEV} {self.inside.connect(NQN, *options)} >&2; find_dev 1\n"


def grown(before: dict[str, Use], after: dict[str, Use]) -> dict[str, Use]:
    """What was staged meanwhile; pools where nothing was are left out."""
    differences = {}
    for name, use in after.items():
        was = before.get(name, Use())
        differences[name] = Use(use.read - was.read, use.write - was.write, use.copy - was.copy)
    return {name: use for name, use in differences.items() if use != Use()}
