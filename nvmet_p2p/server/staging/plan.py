"""Which pools the configuration asks for, place by place: what is wanted, and what speaks for each pool. No I/O but
sysfs and stat(2).

A *place* is a namespace as seen through a listener: the policies of both may differ, and so may what is near them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nvmet_p2p.p2p import choice as choices
from nvmet_p2p.p2p import rdma
from nvmet_p2p.p2p.choice import Calibration, Candidate, Choice
from nvmet_p2p.p2p.clients import Client, Refusal, drives_of, nics_of
from nvmet_p2p.p2p.policy import Effective, StagingPolicy, effective
from nvmet_p2p.p2p.topology import Topology
from nvmet_p2p.server.staging.watch import inode
from nvmet_p2p.target.config import (
    BdevConfig,
    ListenAddress,
    ListenerConfig,
    NamespaceConfig,
    NvmeControllerConfig,
    StagingConfig,
    SubsystemConfig,
    TargetConfig,
    TransportConfig,
)

GRANULE: Final = 4096
FILES: Final = frozenset({"aio", "uring"})
_OPTIMIST: Final = Calibration(verified=True)


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace through a listener; ``listener`` is ``None`` where the subsystem has none yet."""

    nqn: str
    nsid: int
    listener: ListenAddress | None

    def __str__(self) -> str:
        via = f" at {self.listener.traddr}:{self.listener.trsvcid}" if self.listener is not None else ""
        return f"namespace {self.nsid} of {self.nqn}{via}"


@dataclass(frozen=True, slots=True)
class Backing:
    """What a namespace's data lies on. ``bdev``: the lowest one, for which pools are allowed.

    ``clients`` do its DMA; ``refusal`` says why no drive's memory can serve it. ``in_memory``: it has no file or device
    at all, so nothing of it is ever staged. ``shared``: another bdev that lies on the same blocks. ``identity`` names
    the drives and the file, and changes with either. A bdev without a file is a namespace of a controller that the data
    plane drives itself.
    """

    bdev: str
    filename: str = ""
    clients: tuple[Client, ...] = ()
    refusal: Refusal | None = None
    in_memory: bool = False
    shared: str = ""
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Want:
    """What is to be decided for a place. ``near``: NICs of the listener. ``mdts``: bytes of the largest transfer.

    ``protected``: the namespace is write protected, so nothing may be written to it by a probe either.
    """

    place: Place
    bdev: str
    backing: Backing
    effective: Effective
    near: tuple[Client, ...] = ()
    mdts: int = 0
    protected: bool = False

    @property
    def policy(self) -> StagingPolicy:
        return self.effective.policy


@dataclass(frozen=True, slots=True)
class Holdings:
    """The pools as far as a decision depends on them, by name; sizes in bytes.

    ``mapped``: those that exist. ``lost``, ``failed``: those that are gone, or could not be had, with the reason.
    """

    mapped: Mapping[str, int]
    lost: Mapping[str, str]
    failed: Mapping[str, str]
    emulated: Mapping[str, int]


NOT_REGISTERED: Final = (
    "such memory cannot be registered with RDMA devices: NVMe/RDMA is staged in host memory",
    "use the CMB of a drive on vfio-pci; p2p doctor says what stands in the way of each RDMA device",
)


def policy_of(staging: StagingConfig | None) -> StagingPolicy | None:
    """A policy of the configuration as ``p2p`` has it."""
    return None if staging is None else StagingPolicy(staging.policy, staging.strict)


def effective_policy(
    config: TargetConfig,
    subsystem: SubsystemConfig,
    namespace: NamespaceConfig,
    listener: ListenerConfig | None,
    default: str,
) -> Effective:
    """The policy that counts. ``default``: that of the settings, where the target has none."""
    found = effective(
        namespace=policy_of(namespace.staging),
        listener=policy_of(listener.staging) if listener is not None else None,
        subsystem=policy_of(subsystem.staging),
        target=policy_of(config.staging),
    )
    return Effective(StagingPolicy(default), "default") if found.level == "default" else found


def largest_transfer(config: TargetConfig, listener: ListenAddress | None) -> int:
    """MDTS in bytes of controllers that come through a listener."""
    trtype = listener.trtype if listener is not None else "TCP"
    return (config.transports.get(trtype) or TransportConfig(trtype=trtype)).max_io_size


def places(
    config: TargetConfig, default: str
) -> Iterator[tuple[Place, NamespaceConfig, Effective, ListenerConfig | None]]:
    """Every place with its policy, always in the same order."""
    for nqn, subsystem in config.subsystems.items():
        listeners: tuple[ListenerConfig | None, ...] = subsystem.listeners or (None,)
        for nsid, namespace in sorted(subsystem.namespaces.items()):
            for listener in listeners:
                place = Place(nqn, nsid, listener.address if listener is not None else None)
                yield place, namespace, effective_policy(config, subsystem, namespace, listener, default), listener


def lowest(config: TargetConfig, name: str) -> BdevConfig:
    """The bdev at the bottom of a stack of delay and error bdevs."""
    bdev = config.bdevs[name]
    while bdev.base:
        bdev = config.bdevs[bdev.base]
    return bdev


class Surveyor:
    """Looks at one topology; what it has found out of a file or an address once, it knows."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._occupied: dict[str, list[tuple[str, str]]] = {}  # (partition, bdev) by file or disk
        self._backings: dict[str, Backing] = {}
        self._nics: dict[str, tuple[Client, ...]] = {}
        self._controllers: Mapping[str, NvmeControllerConfig] = {}

    def wants(self, config: TargetConfig, default: str) -> list[Want]:
        """What is to be decided, in the order of ``places``. Blocking."""
        self._controllers = config.nvme_controllers
        for bdev in config.bdevs.values():
            if bdev.kind in FILES:
                disk, part = _occupies(self.topology, bdev.filename)
                self._occupied.setdefault(disk, []).append((part, bdev.name))
        return [
            Want(
                place=place,
                bdev=namespace.bdev_name,
                backing=self.backing(lowest(config, namespace.bdev_name)),
                effective=policy,
                near=self.nics(place.listener.traddr) if place.listener is not None else (),
                mdts=largest_transfer(config, place.listener),
                protected=namespace.write_protected,
            )
            for place, namespace, policy, _ in places(config, default)
        ]

    def nics(self, traddr: str) -> tuple[Client, ...]:
        """The NICs of an address; none if they are not known."""
        if traddr not in self._nics:
            found = nics_of(self.topology, traddr)
            self._nics[traddr] = () if isinstance(found, Refusal) else found
        return self._nics[traddr]

    def backing(self, bdev: BdevConfig) -> Backing:
        """What a lowest bdev lies on."""
        if bdev.name not in self._backings:
            self._backings[bdev.name] = self._look(bdev)
        return self._backings[bdev.name]

    def _look_at_controller(self, bdev: BdevConfig) -> Backing:
        """A drive on vfio-pci does its DMA where the data plane says; another target's namespace comes by a socket."""
        controller = self._controllers[bdev.controller]
        how = f"namespace {bdev.nsid} of {controller.name}"
        if controller.trtype != "PCIe":
            reason = f"{bdev.name} is on another machine ({controller.traddr}): no drive of this one does DMA for it"
            return Backing(bdev.name, refusal=Refusal("remote-drive", reason, "use a local drive"), identity=how)
        clients = (Client(controller.traddr, how),)
        return Backing(bdev.name, clients=clients, identity=_identity(self.topology, how, clients))

    def _look(self, bdev: BdevConfig) -> Backing:
        if bdev.kind == "nvme" and bdev.controller in self._controllers:
            return self._look_at_controller(bdev)
        if bdev.kind not in FILES:
            reason = f"its back end {bdev.name!r} is memory (of kind {bdev.kind}), so no drive does DMA for it"
            refusal = Refusal("memory", reason, "put the namespace on a block device of a drive")
            return Backing(bdev.name, refusal=refusal, in_memory=True)
        found = drives_of(self.topology, bdev.filename)
        refused = found if isinstance(found, Refusal) else None
        clients = found.clients if isinstance(found, Refusal) else found
        disk, part = _occupies(self.topology, bdev.filename)
        others = (
            name
            for other, name in self._occupied.get(disk, ())
            if name != bdev.name and (other == part or not (other and part))
        )
        return Backing(
            bdev.name,
            bdev.filename,
            clients,
            refused,
            shared=next(others, ""),
            identity=_identity(self.topology, bdev.filename, clients),
        )

    def candidates(
        self, want: Want, holdings: Holdings, calibrations: Mapping[str, Calibration]
    ) -> tuple[Candidate, ...]:
        """Every pool for a place. ``free`` is what the pool has at all: a choice must not change with the I/O."""
        found = choices.candidates_for(
            self.topology,
            want.backing.clients,
            near=want.near,
            free=holdings.mapped,
            calibrations=calibrations,
            lost=holdings.lost,
            emulated=holdings.emulated,
        )
        adapted = tuple(self._adapt(candidate, want, holdings) for candidate in found)
        if want.place.listener is None or want.place.listener.trtype != "RDMA":
            return adapted
        return tuple(self._over_rdma(candidate, want) for candidate in adapted)

    def _over_rdma(self, candidate: Candidate, want: Want) -> Candidate:
        """The RDMA devices of the listener do the DMA on this side, and the CPU touches nothing."""
        if candidate.calibration is not None:
            no_cpu = replace(
                candidate.calibration, cpu_read_mib_s=0, host_read_mib_s=0, cpu_write_mib_s=1, host_write_mib_s=1
            )
            candidate = replace(candidate, calibration=no_cpu)
        if not candidate.usable:
            return candidate
        if candidate.kind != "spdk_cmb":
            return replace(candidate, usable=False, reason=NOT_REGISTERED[0], remedy=NOT_REGISTERED[1])
        near = {client.bdf for client in want.near}
        provider = self.topology.providers[candidate.pool]
        devices = [device for device in rdma.rdma_devices(self.topology) if device.bdf in near]
        for device in devices:
            found = rdma.reach(self.topology, device, provider)
            if not found.ok:
                return replace(candidate, usable=False, reason=found.reason, remedy=found.remedy)
        if not devices:
            reason = "no RDMA device on PCI Express is known to be behind the listener's address"
            return replace(candidate, usable=False, reason=reason, remedy="listen on the address of such a device")
        return candidate

    def _adapt(self, candidate: Candidate, want: Want, holdings: Holdings) -> Candidate:
        """What ``p2p`` cannot know: how much of it we hold, and what we could not get."""
        name = candidate.pool
        size = holdings.mapped.get(name)
        if size is not None:
            candidate = replace(candidate, bytes=size - GRANULE)  # one granule holds what the pool is known by
        elif name in holdings.failed and name not in holdings.lost:
            candidate = replace(candidate, usable=False, reason=holdings.failed[name], remedy="it is tried again")
        if want.backing.shared and candidate.usable:
            reason = (
                f"bdev {want.backing.shared!r} lies on the same blocks: a probe of one could undo writes of the other"
            )
            candidate = replace(candidate, usable=False, reason=reason, remedy="delete one of them")
        if want.protected and candidate.calibration is None and candidate.usable:
            reason = (
                "the namespace is write protected, and a probe writes to the drive before it puts back what was there"
            )
            candidate = replace(candidate, usable=False, reason=reason, remedy="a host can clear the write protection")
        refusal = want.backing.refusal
        if refusal is not None and candidate.kind != "emulated" and candidate.usable:
            candidate = replace(candidate, usable=False, reason=refusal.reason, remedy=refusal.remedy)
        return candidate


def hopefully(candidates: tuple[Candidate, ...], want: Want, load: Mapping[str, int]) -> Choice:
    """The choice if everything that was not measured yet turned out well.

    If its pool (``copy``) has been measured, it is the choice: what others would have measured changes nothing.
    """
    hopeful = (
        replace(candidate, calibration=_OPTIMIST) if candidate.calibration is None else candidate
        for candidate in candidates
    )
    return choices.choose(hopeful, want.policy, load, mdts_bytes=want.mdts)


def in_memory(want: Want) -> Choice:
    """The choice for a back end in memory. Only a namespace's own strict policy is at odds with it."""
    refusal = want.backing.refusal
    assert refusal is not None
    at_odds = want.policy.strict and want.effective.level == "namespace"
    return Choice(want.policy, reason=f"host memory: {refusal.reason}", refused=refusal if at_odds else None)


def without_pools(want: Want, code: str, reason: str, remedy: str) -> Choice:
    """The choice where no pool can be looked for."""
    refused = Refusal(code, reason, remedy) if want.policy.strict else None
    return Choice(want.policy, reason=f"host memory: {reason}", refused=refused)


def _occupies(topology: Topology, filename: str) -> tuple[str, str]:
    """The file, or the disk and the partition of it ("": all of it), that a bdev lies on."""
    try:
        found = os.stat(filename)
    except OSError:
        return filename, ""
    if not stat.S_ISBLK(found.st_mode):
        return f"{found.st_dev}.{found.st_ino}", ""
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    place = topology.sysfs.real("dev/block", number) or number
    if topology.sysfs.exists(place, "partition"):
        disk, _, part = place.rpartition("/")
        return disk, part
    return place, ""


def _identity(topology: Topology, filename: str, clients: tuple[Client, ...]) -> str:
    drives = " ".join(
        f"{client.bdf}.{inode(Path(topology.sysfs.path('bus/pci/devices', client.bdf)))}" for client in clients
    )
    try:
        found = os.stat(filename)
    except OSError:
        return f"{filename} absent {drives}"
    return f"{filename} {found.st_dev}.{found.st_ino}.{found.st_rdev} {drives}".rstrip()
