"""A machine of files whose "kernel" answers to what is written: drivers come and go, huge pages are handed out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from nvmet_p2p.setup.machine import Kernel, Machine, SetupError
from tests.unit.p2p import machines

BOOT = "8e0bb0d3-1111-4c6f-9f6d-0d5b6f9a1c00"


@dataclass
class FakeKernel(Kernel):
    """``refuses``: drivers that take no device; ``pages_max``: huge pages that a node has at most."""

    root: Path
    refuses: set[str] = field(default_factory=set)
    pages_max: int = 1 << 20
    modules: set[str] = field(default_factory=lambda: {"vfio-pci"})
    claimed: set[str] = field(default_factory=set)
    written: list[tuple[str, str]] = field(default_factory=list)

    def write(self, path: str, text: str) -> None:
        relative = os.path.relpath(path, self.root)
        self.written.append((relative, text))
        name = relative.rsplit("/", 1)[-1]
        if name == "unbind":
            (self._device(text) / "driver").unlink()
        elif name == "bind":
            self._take(text, relative.split("/")[-2])
        elif name == "drivers_probe":
            override = (self._device(text) / "driver_override").read_text().strip()
            self._take(text, override or "nvme")
        else:
            if name == "nr_hugepages":
                text = str(min(int(text), self.pages_max))
            if not os.path.exists(path):
                raise SetupError(f"no file {path}")
            Path(path).write_text(text if text.endswith("\n") else f"{text}\n")

    def _device(self, bdf: str) -> Path:
        return self.root / "bus/pci/devices" / bdf

    def _take(self, bdf: str, driver: str) -> None:
        place, link = self.root / "bus/pci/drivers" / driver, self._device(bdf) / "driver"
        if place.exists() and driver not in self.refuses and not link.is_symlink():
            link.symlink_to(os.path.relpath(place, link.parent.resolve()))

    def load_module(self, name: str) -> str:
        if name not in self.modules:
            return f"FATAL: Module {name} not found"
        (self.root / "bus/pci/drivers" / name).mkdir(parents=True)
        return ""

    def is_claimed(self, node: str) -> bool | None:
        return os.path.basename(node) in self.claimed


class Made:
    """Two drives, each alone in an IOMMU group unless said otherwise, and processes as they are added."""

    def __init__(self, folder: Path, *, iommu: bool = True) -> None:
        self.tree = machines.two_root_ports(folder / "sys")
        self.root, self.proc, self.dev = folder / "sys", folder / "proc", folder / "dev"
        self.kernel = FakeKernel(self.root)
        self.machine = Machine(self.tree.sysfs, self.kernel, self.proc, self.dev)
        for group, bdf in enumerate(("0000:01:00.0", "0000:02:00.0")):
            (self.tree.places[bdf] / "driver_override").write_text("(null)\n")
            if iommu:
                self.group(group, bdf)
        for node in ("node0", "node1"):
            self.tree.write(
                self.root / f"devices/system/node/{node}/hugepages/hugepages-2048kB", nr_hugepages=8, free_hugepages=8
            )
        self.text("sys/kernel/random/boot_id", BOOT)

    def group(self, number: int, *bdfs: str) -> None:
        """These devices are the IOMMU group."""
        folder = self.tree.write(self.root / f"kernel/iommu_groups/{number}/devices")
        for bdf in bdfs:
            place = self.tree.places[bdf]
            (place / "iommu_group").unlink(missing_ok=True)
            (place / "iommu_group").symlink_to(os.path.relpath(folder.parent, place))
            (folder / bdf).symlink_to(os.path.relpath(place, folder))

    def text(self, path: str, text: str) -> None:
        """A file of /proc."""
        file = self.proc / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def opens(self, pid: int, name: str, path: str) -> None:
        """A process has a file open."""
        self.text(f"{pid}/comm", name)
        folder = self.proc / str(pid) / "fd"
        folder.mkdir(exist_ok=True)
        (folder / str(3 + len(list(folder.iterdir())))).symlink_to(path)

    def drivers(self) -> tuple[str, str]:
        return self.machine.driver("0000:01:00.0"), self.machine.driver("0000:02:00.0")

    def pages(self) -> list[str]:
        folder = self.root / "devices/system/node"
        return [path.read_text().strip() for path in sorted(folder.glob("node*/hugepages/*/nr_hugepages"))]
