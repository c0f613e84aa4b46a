"""Which devices offer memory to their peers, how much, and why the others do not.

Source: drivers/pci/p2pdma.c (the ``p2pmem`` folder) and ``nvme_map_cmb`` in drivers/nvme/host/pci.c. The nvme driver
shows ``cmbloc`` and ``cmbsz`` of a CMB that it could register. It says nothing about one that it could not, nor about
a Persistent Memory Region; from inside the registers (``cmb.decode_registers``) both are known, where somebody reads
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from nvmet_p2p.p2p.cmb import KERNEL_ALIGNMENT, CmbCaps, PmrCaps, decode_registers
from nvmet_p2p.p2p.kernel_lists import USERSPACE_P2P, kernel_text
from nvmet_p2p.p2p.sysfs import Proc, Sysfs
from nvmet_p2p.p2p.vfio import UNSEEN, VfioMemory, is_vfio

if TYPE_CHECKING:
    from nvmet_p2p.p2p.topology import Device

PCI: Final = "bus/pci/devices"


@dataclass(frozen=True, slots=True)
class Provider:
    """A device that offers peer memory, or an NVMe drive that does not, with the reason and what to do.

    ``size`` and ``available`` in bytes; ``available`` is what nobody has taken yet, neither the nvme driver for its own
    submission queues nor a data plane for its pool: 0 does not make it unusable for who has it. ``allocate``: the
    absolute path to mmap(), ``None`` if there is none. ``registered``: the kernel has taken the memory for peers.
    ``code`` names the reason for programs, "ok" if ``usable``. ``kind`` is that of a pool in it: "p2pmem" from the
    kernel's nvme driver, "spdk_cmb" if the drive is on vfio-pci, whose memory is ``vfio`` once somebody has looked.
    """

    bdf: str
    size: int = 0
    available: int = 0
    published: bool = False
    allocate: str | None = None
    cmb: CmbCaps | None = None
    pmr: PmrCaps | None = None
    registered: bool = False
    usable: bool = False
    code: str = "ok"
    reason: str = ""
    remedy: str = ""
    kind: Literal["p2pmem", "spdk_cmb"] = "p2pmem"
    vfio: VfioMemory | None = None


def read_providers(
    sysfs: Sysfs, proc: Proc, devices: Iterable[Device], registers: Mapping[str, bytes], p2pdma: bool | None
) -> dict[str, Provider]:
    """Every device with a ``p2pmem`` folder, and every NVMe drive."""
    found = {}
    for device in devices:
        has_memory = sysfs.exists(PCI, device.bdf, "p2pmem")
        if has_memory or device.is_nvme:
            cmb, pmr = _buffers(sysfs, device, registers.get(device.bdf, b""))
            if has_memory:
                found[device.bdf] = _with_memory(sysfs, proc, device, cmb, pmr)
            else:
                found[device.bdf] = _without_memory(proc, device, cmb, pmr, p2pdma)
    return found


def _buffers(sysfs: Sysfs, device: Device, registers: bytes) -> tuple[CmbCaps | None, PmrCaps | None]:
    for name in device.names:
        cmbsz = sysfs.number(PCI, device.bdf, "nvme", name, "cmbsz")
        cmbloc = sysfs.number(PCI, device.bdf, "nvme", name, "cmbloc")
        if cmbsz is not None and cmbloc is not None:
            return CmbCaps.decode(cmbloc, cmbsz), decode_registers(registers)[1]
    return decode_registers(registers)


def _with_memory(sysfs: Sysfs, proc: Proc, device: Device, cmb: CmbCaps | None, pmr: PmrCaps | None) -> Provider:
    folder = (PCI, device.bdf, "p2pmem")
    size = sysfs.number(*folder, "size") or 0
    available = sysfs.number(*folder, "available") or 0
    published = sysfs.number(*folder, "published") == 1
    allocate = sysfs.path(*folder, "allocate") if sysfs.exists(*folder, "allocate") else None
    code, reason, remedy = "ok", "", ""
    if allocate is None:
        code = "kernel-too-old"
        reason = f"kernel {kernel_text(proc)} lets no program have this memory (no p2pmem/allocate)"
        remedy = "run Linux 6.2 or newer"
    elif not published:
        code = "not-published"
        missing = _missing_directions(cmb)
        reason = f"its driver keeps the memory to itself (published is 0){missing}"
        remedy = "none if the drive's CMB does not take data (RDS and WDS); ask its vendor for firmware that does"
    return Provider(
        device.bdf, size, available, published, allocate, cmb, pmr, True, code == "ok", code, reason, remedy
    )


def _missing_directions(cmb: CmbCaps | None) -> str:
    if cmb is None or cmb.for_data:
        return ""
    missing = [name for name, there in (("RDS", cmb.read_data), ("WDS", cmb.write_data)) if not there]
    return f": CMBSZ has no {' and no '.join(missing)}"


def _without_memory(
    proc: Proc, device: Device, cmb: CmbCaps | None, pmr: PmrCaps | None, p2pdma: bool | None
) -> Provider:
    if is_vfio(device.driver):
        return Provider(
            device.bdf,
            size=cmb.size if cmb else 0,
            cmb=cmb,
            pmr=pmr,
            code=UNSEEN,
            reason=f"driver {device.driver} has it: what memory it has is not looked at before somebody names it, as "
            "it may be meant for a virtual machine",
            remedy="name it in a policy (p2p_set_staging), or attach it (bdev_nvme_attach_controller)",
            kind="spdk_cmb",
        )
    code, reason, remedy = _why_not(proc, device, cmb, p2pdma)
    size = cmb.size if cmb else 0
    return Provider(device.bdf, size=size, cmb=cmb, pmr=pmr, code=code, reason=reason, remedy=remedy)


def _why_not(proc: Proc, device: Device, cmb: CmbCaps | None, p2pdma: bool | None) -> tuple[str, str, str]:
    """Code, reason and remedy for a drive whose CMB, if any, the kernel does not offer."""
    if device.driver != "nvme":
        holder = f"driver {device.driver}" if device.driver else "no driver"
        return (
            "driver-not-nvme",
            f"{holder} has it; only the kernel's nvme driver offers a CMB to others",
            f"bind it: echo {device.bdf} > /sys/bus/pci/drivers/nvme/bind",
        )
    if p2pdma is False:
        return (
            "no-p2pdma",
            f"kernel {kernel_text(proc)} is built without CONFIG_PCI_P2PDMA",
            "boot a kernel with CONFIG_PCI_P2PDMA=y (and CONFIG_ZONE_DEVICE=y)",
        )
    if proc.kernel is not None and proc.kernel < USERSPACE_P2P:
        return (
            "kernel-too-old",
            f"kernel {kernel_text(proc)} lets no program have peer memory",
            "run Linux 6.2 or newer",
        )
    unaligned = _unaligned(device, cmb)
    if unaligned:
        return (
            "cmb-not-aligned",
            f"{unaligned}; the kernel takes a CMB only if the size and its BAR's address are multiples of 2 MiB",
            "none for a CMB that is smaller; for an address, a BIOS setting (above 4G decoding, resizable BARs) or "
            "pci=realloc may move it",
        )
    if cmb is not None:
        return (
            "cmb-not-registered",
            f"its CMB of {cmb.size} bytes was not registered",
            f"see dmesg for nvme {device.bdf} (failed to register the CMB)",
        )
    return "no-cmb", "the kernel sees no Controller Memory Buffer in it", "use the CMB of another drive"


def _unaligned(device: Device, cmb: CmbCaps | None) -> str:
    """What is not a multiple of 2 MiB. Without CMBSZ a further memory BAR is taken for the CMB's, as it mostly is."""
    if cmb is not None:
        bar = next((bar for bar in device.bars if bar.index == cmb.bar), None)
        size = min(cmb.size, bar.size - cmb.offset) if bar else cmb.size
        if size % KERNEL_ALIGNMENT:
            return f"its CMB has {size} bytes"
        if bar and bar.start % KERNEL_ALIGNMENT:
            return f"BAR {bar.index}, which holds its CMB, is at {bar.start:#x}"
        return ""
    for bar in device.bars:
        if bar.index >= 2 and (bar.size % KERNEL_ALIGNMENT or bar.start % KERNEL_ALIGNMENT) and bar.size >= 64 << 10:
            return f"BAR {bar.index}, which may hold a CMB, has {bar.size} bytes at {bar.start:#x}"
    return ""
