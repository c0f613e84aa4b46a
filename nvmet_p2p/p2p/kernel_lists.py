"""Which root complexes the kernel trusts to pass peer-to-peer requests between their ports.

This is ``pci_p2pdma_whitelist[]`` and ``cpu_supports_p2pdma()`` of drivers/pci/p2pdma.c, read in 6.12.117 (Debian's
source) and, as bytes of the table, in Debian's 7.2.12 kernel. An entry carries the first release that has it; a kernel
whose distribution took an entry into an older release accepts more than is said here, never less.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from nvmet_p2p.p2p.sysfs import Proc, Sysfs

INTEL: Final = 0x8086
GOOGLE: Final = 0x1AE0
ANY: Final = None
KERNEL_7_1: Final = (7, 1)
KERNEL_7_2: Final = (7, 2)
USERSPACE_P2P: Final = (6, 2)  # p2pmem/allocate, and direct I/O on such memory
STACKED_P2P: Final = (7, 2)  # nvme multipath heads and md pass peer memory on
ZEN_FAMILY: Final = 0x17
BTF_MAGIC: Final = b"\x9f\xeb"
BTF_MEMBER: Final = b"\0p2pmem_published\0"


@dataclass(frozen=True, slots=True)
class ListedBridge:
    """A row of the kernel's table. ``device`` ``None`` is PCI_ANY_ID."""

    vendor: int
    device: int | None
    same_host_bridge_only: bool
    what: str
    since: tuple[int, int] = (0, 0)


ALLOW_LIST: Final[tuple[ListedBridge, ...]] = (
    ListedBridge(INTEL, 0x3C00, True, "Intel Xeon E5/Core i7"),
    ListedBridge(INTEL, 0x3C01, True, "Intel Xeon E5/Core i7"),
    ListedBridge(INTEL, 0x2F00, True, "Intel Xeon E7 v3/Xeon E5 v3/Core i7"),
    ListedBridge(INTEL, 0x2F01, True, "Intel Xeon E7 v3/Xeon E5 v3/Core i7"),
    ListedBridge(INTEL, 0x2030, False, "Intel Skylake-E"),
    ListedBridge(INTEL, 0x2031, False, "Intel Skylake-E"),
    ListedBridge(INTEL, 0x2032, False, "Intel Skylake-E"),
    ListedBridge(INTEL, 0x2033, False, "Intel Skylake-E"),
    ListedBridge(INTEL, 0x2020, False, "Intel Skylake-E"),
    ListedBridge(INTEL, 0x09A2, False, "Intel Xeon since Ice Lake"),
    ListedBridge(INTEL, 0x0B25, False, "Intel DSA (Sapphire Rapids)", KERNEL_7_2),
    ListedBridge(INTEL, 0x0CFE, False, "Intel IAA (Sapphire Rapids)", KERNEL_7_2),
    ListedBridge(INTEL, 0x11FB, False, "Intel DSA (Granite Rapids D)", KERNEL_7_2),
    ListedBridge(INTEL, 0x1212, False, "Intel DSA (Diamond Rapids)", KERNEL_7_2),
    ListedBridge(INTEL, 0x1216, False, "Intel IAA (Diamond Rapids)", KERNEL_7_2),
    ListedBridge(INTEL, 0x4940, False, "Intel QAT 4xxx", KERNEL_7_2),
    ListedBridge(INTEL, 0x4942, False, "Intel QAT 401xx", KERNEL_7_2),
    ListedBridge(INTEL, 0x4944, False, "Intel QAT 402xx", KERNEL_7_2),
    ListedBridge(INTEL, 0x4946, False, "Intel QAT 420xx", KERNEL_7_2),
    ListedBridge(INTEL, 0x4948, False, "Intel QAT 6xxx", KERNEL_7_2),
    ListedBridge(GOOGLE, ANY, False, "Google SoC", KERNEL_7_1),
)


def listed(vendor: int, device: int, kernel: tuple[int, int] | None) -> ListedBridge | None:
    """The row for a root bus's first device; the first match decides, as in the kernel.

    A kernel whose version is not known is taken to have the whole table.
    """
    for row in ALLOW_LIST:
        if row.vendor == vendor and row.device in (ANY, device) and (kernel is None or kernel >= row.since):
            return row
    return None


@dataclass(frozen=True, slots=True)
class Cpu:
    """The first CPU as /proc/cpuinfo tells it; empty and 0 where it does not (other architectures)."""

    vendor: str = ""
    family: int = 0
    model_name: str = ""

    @classmethod
    def parse(cls, cpuinfo: str) -> Cpu:
        """Reads vendor, family and name of the first CPU in /proc/cpuinfo."""
        fields = dict(re.findall(r"^(vendor_id|cpu family|model name)[ \t]*: (.*)$", cpuinfo, re.MULTILINE)[::-1])
        family = fields.get("cpu family", "0").strip()
        return cls(
            fields.get("vendor_id", "").strip(),
            int(family) if family.isdigit() else 0,
            fields.get("model name", "").strip(),
        )

    @property
    def passes_peer_to_peer(self) -> bool:
        """``cpu_supports_p2pdma``: AMD since Zen, whatever the root complex. Hygon is another vendor."""
        return self.vendor == "AuthenticAMD" and self.family >= ZEN_FAMILY


def has_p2pdma(sysfs: Sysfs, proc: Proc) -> bool | None:
    """Is the kernel built with CONFIG_PCI_P2PDMA? By its configuration, else by its type information (BTF), which names
    a member of ``struct pci_p2pdma`` only if there is one; ``None`` if it has neither."""
    if proc.config:
        return proc.config_has("CONFIG_PCI_P2PDMA")
    types = sysfs.data("kernel/btf/vmlinux")
    if types is None or not types.startswith(BTF_MAGIC):
        return None
    return BTF_MEMBER in types


def kernel_text(proc: Proc) -> str:
    """How reports name the kernel."""
    return proc.osrelease or "of unknown version"
