"""RDMA devices of the machine, and whether each can move data to and from a provider's memory by itself.

To do so it needs a memory region over the CMB. ``ibv_reg_mr`` pins for long, which the kernel refuses for peer memory.
A region from a dma-buf is possible where the device's driver imports one (``reg_user_mr_dmabuf`` of Linux 6.18) and
somebody exports the CMB: VFIO does since 6.19, the kernel's nvme driver does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nvmet_p2p.p2p.distance import distance
from nvmet_p2p.p2p.kernel_lists import kernel_text
from nvmet_p2p.p2p.providers import Provider
from nvmet_p2p.p2p.topology import Topology

CLASS: Final = "class/infiniband"
VFIO_DMABUF: Final = (6, 19)  # VFIO_DEVICE_FEATURE_DMA_BUF
SOFTWARE: Final = ("rxe", "siw")
IMPORTERS: Final = frozenset({"mlx5_core", "bnxt_en", "ice", "i40e", "efa", "ionic", "mana"})  # PCI drivers below


@dataclass(frozen=True, slots=True)
class RdmaDevice:
    """``name`` as libibverbs has it; ``bdf`` and ``driver`` are those of its PCI function, ``None`` without one."""

    name: str
    bdf: str | None = None
    driver: str | None = None


@dataclass(frozen=True, slots=True)
class Reach:
    """What stands between a device and a provider. ``ok``: nothing that can be seen from here; data must prove it."""

    device: RdmaDevice
    provider: str
    ok: bool
    code: str
    reason: str
    remedy: str


def rdma_devices(topology: Topology) -> tuple[RdmaDevice, ...]:
    """The devices in the order of their names."""
    found = []
    for name in topology.sysfs.names(CLASS):
        if name.startswith(SOFTWARE) or topology.sysfs.exists(CLASS, name, "parent"):
            found.append(RdmaDevice(name))  # it may hang on a NIC of any kind, which does no work for it
            continue
        real = topology.sysfs.real(CLASS, name, "device") or topology.sysfs.real(CLASS, name) or ""
        above = topology.device(topology.bdf_above(real) or "")
        found.append(RdmaDevice(name, above.bdf if above else None, above.driver if above else None))
    return tuple(sorted(found, key=lambda device: device.name))


def reaches(topology: Topology) -> Iterator[Reach]:
    """Each pair of an RDMA device and a provider that has memory to give."""
    for device in rdma_devices(topology):
        for provider in topology.providers.values():
            if provider.usable:
                yield reach(topology, device, provider)


def reach(topology: Topology, device: RdmaDevice, provider: Provider) -> Reach:
    """Of a provider that has memory to give."""

    def no(code: str, reason: str, remedy: str) -> Reach:
        return Reach(device, provider.bdf, False, code, reason, remedy)

    if device.bdf is None:
        reason = f"{device.name} is a software device: the CPU copies, and it imports no dma-buf"
        return no("rdma-software", reason, "none needed; a hardware adapter could reach it")
    verdict = distance(topology, provider.bdf, device.bdf)
    if not verdict.ok:
        return no(verdict.code, f"{device.name} ({device.bdf}) does not reach it: {verdict.reason}", verdict.remedy)
    if device.driver not in IMPORTERS:
        reason = f"driver {device.driver or '(none)'} of {device.name} makes no memory region of a dma-buf"
        return no("rdma-no-import", reason, "use an adapter whose driver does (mlx5, irdma, bnxt_re, efa, ionic, mana)")
    if provider.kind != "spdk_cmb":
        kernel = topology.proc.kernel
        reason = (
            "the kernel's nvme driver exports no dma-buf of its CMB, and ibv_reg_mr pins, which peer memory forbids"
        )
        remedy = "nothing today: host memory is used; a drive bound to vfio-pci could export it"
        if kernel is not None and kernel < VFIO_DMABUF:
            remedy += f" from Linux 6.19 on (this is {kernel_text(topology.proc)})"
        return no("rdma-no-export", reason, remedy)
    if provider.vfio is not None and not provider.vfio.dma_buf:
        return no("rdma-no-export", provider.vfio.no_dma_buf, "Linux 6.19 or newer; a drive that SPDK has not attached")
    return Reach(device, provider.bdf, True, "ok", "", "")
