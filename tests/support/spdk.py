"""A daemon whose back ends are namespaces of a second target, which its data plane reaches with SPDK's NVMe/TCP driver.

No drive and no vfio-pci is needed, and all of the way through SPDK but its PCI Express transport is the same.
"""

from __future__ import annotations

import itertools
import subprocess
from typing import Any

from nvmet_p2p.dataplane.native.process import find_program
from tests.support.daemon import Daemon, Ns, Tree, eventually

_names = itertools.count(1)


def built_with_spdk() -> bool:
    """Whether there is a native data plane with SPDK in it."""
    program = find_program()
    if program is None:
        return False
    said = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=60, check=False).stdout
    return " with " in said


class SpdkDaemon(Daemon):
    """``back`` is the other target. A bdev here has a subsystem of its own there."""

    def __init__(self, *options: str, nofile: int = 0) -> None:
        super().__init__(*options, engine="native", nofile=nofile)
        self.back = Daemon(engine="native")
        self._behind: dict[str, tuple[str, Tree]] = {}  # controller and subsystem by bdev

    def start(self) -> Daemon:
        if self.back.process is None:
            self.back.start()
        return super().start()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.back.close()

    def bdev(self, ns: Ns) -> str:
        behind = self.back.subsystem(Ns(ns.kind, ns.blocks, ns.block_size, ns.readonly))
        controller = f"Far{next(_names)}"
        (bdev,) = self.attach(controller, behind)
        self._behind[bdev] = controller, behind
        return str(bdev)

    def attach(self, controller: str, behind: Tree) -> Any:
        """Attaches a subsystem of the other target; the names of its bdevs."""
        traddr, port = behind.address
        return self.rpc(
            "bdev_nvme_attach_controller",
            name=controller,
            trtype="TCP",
            adrfam="ipv4",
            traddr=traddr,
            trsvcid=str(port),
            subnqn=behind.nqn,
        )

    def grow(self, name: str, ns: Ns, blocks: int) -> None:
        _, behind = self._behind[name]
        self.back.grow(*behind.bdevs[1], blocks)
        eventually(lambda: self.rpc("bdev_get_bdevs", name=name)[0]["num_blocks"] == blocks, "the new size is seen")

    def delete_bdev(self, name: str, ns: Ns) -> None:
        if name not in self._behind:
            super().delete_bdev(name, ns)
            return
        controller, behind = self._behind.pop(name)
        self.rpc("bdev_nvme_detach_controller", name=controller)
        behind.delete()
