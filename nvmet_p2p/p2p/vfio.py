"""Memory of drives that are bound to vfio-pci. Sysfs does not tell of it: a CMB shows itself only to who enables it
(NVMe 1.4, CMBMSC), so the data plane has to look, which it does for drives that the configuration names.

Source: the data plane's ``p2p_pool_probe`` (native/src/pool_device.h).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nvmet_p2p.p2p.providers import Provider
    from nvmet_p2p.p2p.topology import Topology

UNSEEN: Final = "vfio-unseen"
NOTHING: Final = "vfio-no-memory"


@dataclass(frozen=True, slots=True)
class VfioMemory:
    """``region``: "cmb", "legacy cmb" or "pmr". ``via``: "spdk" (an attached controller has it) or "vfio" (nobody).

    ``mapping``: how the CPU reaches it, "uncached" or "write-combining". ``dma_buf``: RDMA devices can be told of it,
    else ``no_dma_buf`` says why not. ``size`` in bytes.
    """

    region: str
    via: str
    bar: int
    size: int
    mapping: str
    dma_buf: bool
    no_dma_buf: str

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> VfioMemory:
        """From the answer of the data plane."""
        return cls(
            region=str(answer["region"]),
            via=str(answer["via"]),
            bar=int(answer["bar"]),
            size=int(answer["bytes"]),
            mapping=str(answer["mapping"]),
            dma_buf=bool(answer["dma_buf"]),
            no_dma_buf=str(answer["no_dma_buf"]),
        )


Probed = VfioMemory | str  # or why there is none


def is_vfio(driver: str | None) -> bool:
    """vfio-pci, or one of its variants for a kind of device."""
    return driver is not None and "vfio" in driver


def with_probes(topology: Topology, probes: Mapping[str, Probed]) -> Topology:
    """The topology with what the data plane has found in drives on vfio-pci."""
    providers = dict(topology.providers)
    for bdf, found in probes.items():
        device = topology.device(bdf)
        if bdf in providers and device is not None and is_vfio(device.driver):
            providers[bdf] = _found(providers[bdf], found)
    return replace(topology, providers=providers)


def _found(provider: Provider, found: Probed) -> Provider:
    if isinstance(found, str):
        remedy = "use the memory of another drive, or see to the reason"
        return replace(provider, usable=False, code=NOTHING, reason=found, remedy=remedy)
    return replace(
        provider,
        size=found.size,
        available=found.size,
        published=True,
        registered=True,
        usable=True,
        vfio=found,
        code="ok",
        reason="",
        remedy="",
    )
