"""Reading a sysfs tree whose root is a parameter, and the few /proc texts that go with it.

Everything else in this package works on what these two classes give, so that a tree made by a test, one recorded on
another machine and the running one are the same. A file that is not there, or that the kernel refuses to read, is an
ordinary answer (``None``): sysfs has different files on each kernel, and devices leave while they are being read.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BDF: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-1][0-9a-f]\.[0-7]")
ROOT_BUS: Final = re.compile(r"pci[0-9a-f]{4,8}:[0-9a-f]{2}")
TEXT_BYTES_MAX: Final = 1 << 16  # no attribute that is read here comes near it
DATA_BYTES_MAX: Final = 64 << 20  # the kernel's type information is some 5 MiB


def normal_bdf(text: str) -> str | None:
    """``03:00.0`` and ``0000:03:00.0``, in either case, as sysfs names the device; ``None`` if it is no address."""
    address = text.strip().lower()
    if address.count(":") == 1:
        address = f"0000:{address}"
    return address if BDF.fullmatch(address) else None


class Sysfs:
    """Files below ``root``. Paths are given relative to it; nothing outside it is ever opened."""

    def __init__(self, root: Path | str = "/sys") -> None:
        self.root = os.path.realpath(root)

    def path(self, *parts: str) -> str:
        """The absolute path of ``parts`` below the root, links not followed."""
        return os.path.join(self.root, *parts)

    def real(self, *parts: str) -> str | None:
        """Where ``parts`` leads when links are followed, relative to the root; ``None``: nowhere, or out of it."""
        path = os.path.realpath(self.path(*parts))
        if not path.startswith(self.root + os.sep) or not os.path.exists(path):
            return None
        return path[len(self.root) + 1 :]

    def exists(self, *parts: str) -> bool:
        """Is there such a file, folder or link that leads somewhere?"""
        return os.path.exists(self.path(*parts))

    def names(self, *parts: str) -> tuple[str, ...]:
        """What the folder holds, sorted; nothing if there is no such folder."""
        try:
            return tuple(sorted(os.listdir(self.path(*parts))))
        except OSError:
            return ()

    def text(self, *parts: str) -> str | None:
        """An attribute without the newline at its end."""
        try:
            fd = os.open(self.path(*parts), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return os.read(fd, TEXT_BYTES_MAX).decode("utf-8", "replace").rstrip("\n")
        except OSError:
            return None
        finally:
            os.close(fd)

    def data(self, *parts: str) -> bytes | None:
        """All bytes of a file, up to ``DATA_BYTES_MAX``."""
        try:
            with open(self.path(*parts), "rb") as file:
                return file.read(DATA_BYTES_MAX)
        except OSError:
            return None

    def number(self, *parts: str) -> int | None:
        """An attribute that is one number, decimal or with 0x; ``None`` too if it is something else."""
        text = self.text(*parts)
        if text is None:
            return None
        try:
            return int(text.strip(), 0)
        except ValueError:
            return None

    def link(self, *parts: str) -> str | None:
        """The last name in the target of a link, as in ``driver`` and ``iommu_group``."""
        try:
            return os.path.basename(os.readlink(self.path(*parts)))
        except OSError:
            return None


class ConfigSpace:
    """A device's configuration space, read piece by piece: on real hardware each dword of it costs about 1 us.

    Without CAP_SYS_ADMIN the kernel shows the first 64 bytes only; then ``complete`` is false and capabilities are
    unknown, not absent.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            self.size = os.fstat(fd).st_size
        except OSError:
            self.size = 0
        self.complete = len(self.read(64, 4)) == 4

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes at ``offset``."""
        try:
            return os.pread(self._fd, count, offset)
        except OSError:
            return b""

    def u16(self, offset: int) -> int | None:
        """The word at ``offset``; ``None`` if it cannot be read."""
        data = self.read(offset, 2)
        return int.from_bytes(data, "little") if len(data) == 2 else None

    def u32(self, offset: int) -> int | None:
        """The dword at ``offset``; ``None`` if it cannot be read."""
        data = self.read(offset, 4)
        return int.from_bytes(data, "little") if len(data) == 4 else None


@dataclass(frozen=True, slots=True)
class Proc:
    """Texts of /proc (and the kernel's configuration), each empty where it could not be read.

    ``route`` is /proc/net/route, ``if_inet6`` /proc/net/if_inet6, ``mountinfo`` /proc/self/mountinfo, ``config`` the
    kernel's configuration (/proc/config.gz or /boot/config-RELEASE).
    """

    cpuinfo: str = ""
    osrelease: str = ""
    cmdline: str = ""
    mountinfo: str = ""
    route: str = ""
    if_inet6: str = ""
    config: str = ""

    @classmethod
    def read(cls, root: Path | str = "/proc", boot: Path | str = "/boot") -> Proc:
        """The texts of a machine whose /proc and /boot are at ``root`` and ``boot``."""
        root, boot = Path(root), Path(boot)
        osrelease = _text(root / "sys/kernel/osrelease").strip()
        return cls(
            cpuinfo=_first_cpu(_text(root / "cpuinfo")),
            osrelease=osrelease,
            cmdline=_text(root / "cmdline").strip(),
            mountinfo=_text(root / "self/mountinfo"),
            route=_text(root / "net/route"),
            if_inet6=_text(root / "net/if_inet6"),
            config=_kernel_config([root / "config.gz", boot / f"config-{osrelease}"]),
        )

    @property
    def kernel(self) -> tuple[int, int] | None:
        """Major and minor version of the kernel."""
        found = re.match(r"(\d+)\.(\d+)", self.osrelease)
        return (int(found[1]), int(found[2])) if found else None

    def config_has(self, option: str) -> bool | None:
        """Is ``option`` built in (or a module)? ``None`` if the configuration is not known."""
        if not self.config:
            return None
        return re.search(rf"^{re.escape(option)}=[ym]$", self.config, re.MULTILINE) is not None


def _first_cpu(cpuinfo: str) -> str:
    return cpuinfo.partition("\n\n")[0]  # with hundreds of CPUs the rest is hundreds of KiB


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _kernel_config(places: Sequence[Path]) -> str:
    for path in places:
        try:
            data = path.read_bytes()
            return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")
        except (OSError, EOFError, zlib.error):
            continue
    return ""
