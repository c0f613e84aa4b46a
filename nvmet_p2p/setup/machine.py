"""What the set-up reads and changes of a machine: sysfs, /proc and /dev, whose roots are parameters.

Reading is ``Sysfs``'; every change goes through ``Kernel``, so that a test's tree can answer as the kernel would.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nvmet_p2p.errors import NvmetP2PError
from nvmet_p2p.p2p.sysfs import Sysfs

DEVICES: Final = "bus/pci/devices"
DRIVERS: Final = "bus/pci/drivers"
VFIO: Final = "vfio-pci"
CLASS_NVME: Final = 0x010802
MODPROBE_S: Final = 30.0


class SetupError(NvmetP2PError):
    """It was refused, or the kernel did not do it; the message says why and what to do."""


class Kernel:
    """The changes, as the running kernel takes them."""

    def write(self, path: str, text: str) -> None:
        """One write(2) to an existing file. Raises ``SetupError``."""
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise SetupError(f"writing {text.strip()!r} to {path}: {error.strerror}") from error

    def load_module(self, name: str) -> str:
        """modprobe; what it complained about, or nothing."""
        try:
            done = subprocess.run(
                ["modprobe", name], capture_output=True, text=True, timeout=MODPROBE_S, check=False, env=_PATH
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"modprobe: {error}"
        return done.stderr.strip() or f"modprobe ended with {done.returncode}" if done.returncode else ""

    def is_claimed(self, node: str) -> bool | None:
        """Does somebody hold the block device for itself alone: a file system, swap, dm, md, zfs? None: unknown."""
        try:
            os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            return True if error.errno == errno.EBUSY else None
        return False


_PATH: Final = {"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"}


@dataclass(frozen=True)
class Machine:
    """Where to look, and who changes it."""

    sysfs: Sysfs
    kernel: Kernel
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")

    @classmethod
    def running(cls) -> Machine:
        """This one."""
        return cls(Sysfs("/sys"), Kernel())

    def text(self, *parts: str) -> str:
        """A text of /proc; empty if it cannot be read."""
        try:
            return self.proc.joinpath(*parts).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @property
    def boot_id(self) -> str:
        """Another one after each boot."""
        return self.text("sys/kernel/random/boot_id").strip()

    def write(self, text: str, *parts: str) -> None:
        """Writes an attribute of sysfs. Raises ``SetupError``."""
        self.kernel.write(self.sysfs.path(*parts), text)

    def driver(self, bdf: str) -> str:
        """The name of the driver that has the device, or nothing."""
        return self.sysfs.link(DEVICES, bdf, "driver") or ""

    def override(self, bdf: str) -> str:
        """driver_override; empty where there is none."""
        text = (self.sysfs.text(DEVICES, bdf, "driver_override") or "").strip()
        return "" if text == "(null)" else text

    def group(self, bdf: str) -> str | None:
        """The number of the device's IOMMU group."""
        return self.sysfs.link(DEVICES, bdf, "iommu_group")

    def drives(self) -> tuple[str, ...]:
        """The NVMe controllers of the machine, whatever their driver."""
        return tuple(
            bdf for bdf in self.sysfs.names(DEVICES) if (self.sysfs.number(DEVICES, bdf, "class") or 0) == CLASS_NVME
        )

    def open_files(self) -> Iterator[tuple[int, str, os.stat_result | None]]:
        """The descriptors of all processes that can be seen: pid, what /proc calls it, its device node if any."""
        for pid in self._pids():
            folder = self.proc / str(pid) / "fd"
            with contextlib.suppress(OSError):  # it has ended, or is somebody else's
                for name in os.listdir(folder):
                    with contextlib.suppress(OSError):
                        yield pid, os.readlink(folder / name), _node(folder / name)

    def mapped(self, suffix: str) -> list[int]:
        """The processes that have a file mapped whose path ends so."""
        return [
            pid
            for pid in self._pids()
            if any(line.endswith(suffix) for line in self.text(str(pid), "maps").splitlines())
        ]

    def process(self, pid: int) -> str:
        """``name (pid)``."""
        return f"{self.text(str(pid), 'comm').strip() or 'process'} ({pid})"

    def _pids(self) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.proc) if re.fullmatch(r"[0-9]+", name))
        except OSError:
            return []


def _node(path: Path) -> os.stat_result | None:
    """Without opening anything: stat follows the link of /proc by itself."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found if stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode) else None
