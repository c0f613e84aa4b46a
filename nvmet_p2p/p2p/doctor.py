"""The doctor: each reason why peer-to-peer is not used on this machine, or not as well as it could be, with a remedy.

A *problem* is something that an operator can want otherwise; the exit code of ``p2p doctor`` is 1 if there is one. A
*note* explains what is seen (a drive without a CMB beside one with) or what only measurement can settle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from nvmet_p2p.p2p.choice import Choice
from nvmet_p2p.p2p.clients import Refusal
from nvmet_p2p.p2p.distance import Verdict, distance
from nvmet_p2p.p2p.kernel_lists import USERSPACE_P2P, kernel_text
from nvmet_p2p.p2p.policy import OFF
from nvmet_p2p.p2p.providers import Provider
from nvmet_p2p.p2p.rdma import reaches
from nvmet_p2p.p2p.report import VERSION, PoolState, Staged, shown_clients
from nvmet_p2p.p2p.topology import Device, Topology
from nvmet_p2p.p2p.vfio import NOTHING, UNSEEN, is_vfio

Severity = Literal["problem", "note"]
NOTES: Final = ("no-cmb", "driver-not-nvme", UNSEEN, NOTHING)  # of a drive that offers no memory: ordinary things
KERNEL_CODES: Final = ("kernel-too-old", "no-p2pdma")  # said once, not for each drive
TAKEN_SHARE: Final = 20  # a twentieth of a CMB taken by others is worth a word
SMALL_BYTES: Final = 1 << 20  # the largest transfer that this target offers to hosts
GRANULE: Final = 4096
EXIT_FINE, EXIT_FINDINGS = 0, 1


@dataclass(frozen=True, slots=True)
class Finding:
    """``code`` for programs, ``subject`` what it is about, then why it is so and what to do."""

    severity: Severity
    code: str
    subject: str
    reason: str
    remedy: str


def doctor_document(
    topology: Topology, *, staged: Iterable[Staged] = (), pools: Iterable[PoolState] = ()
) -> dict[str, Any]:
    """All findings, problems first. ``ok``: there is no problem."""
    pools = tuple(pools)
    findings = [
        *_machine(topology),
        *_memory(topology, pools),
        *_reach(topology),
        *_rdma(topology),
        *_pools(pools),
        *(finding for entry in staged for finding in _namespace(entry)),
    ]
    ordered = sorted(findings, key=lambda finding: finding.severity == "note")
    problems = sum(finding.severity == "problem" for finding in ordered)
    return {
        "version": VERSION,
        "kernel": topology.proc.osrelease,
        "ok": problems == 0,
        "problems": problems,
        "findings": [asdict(finding) for finding in ordered],
    }


def exit_code(document: Mapping[str, Any]) -> int:
    """0: no problem. 1: at least one. 2, for an error, is the caller's."""
    return EXIT_FINE if document["ok"] else EXIT_FINDINGS


def _machine(topology: Topology) -> Iterator[Finding]:
    proc = topology.proc
    if not topology.devices:
        yield Finding("problem", "no-pci", "machine", "there is no PCI device", "run on a machine with PCI Express")
        return
    if proc.kernel is not None and proc.kernel < USERSPACE_P2P:
        reason = f"kernel {kernel_text(proc)} lets no program have peer memory"
        yield Finding("problem", "kernel-too-old", "kernel", reason, "run Linux 6.2 or newer")
    if topology.p2pdma is False:
        reason = f"kernel {kernel_text(proc)} is built without CONFIG_PCI_P2PDMA"
        remedy = "boot a kernel with CONFIG_PCI_P2PDMA=y (and CONFIG_ZONE_DEVICE=y)"
        yield Finding("problem", "no-p2pdma", "kernel", reason, remedy)
    drives = [device for device in topology.devices.values() if device.is_nvme]
    if not drives:
        remedy = "fit NVMe drives, one of them with a Controller Memory Buffer"
        yield Finding("problem", "no-drives", "machine", "there is no NVMe drive on PCI Express", remedy)
    elif not any(provider.usable for provider in topology.providers.values()):
        yield Finding(
            "problem",
            "no-provider",
            "machine",
            "no device offers peer memory: everything is staged in host memory",
            "fit a drive with a CMB of 2 MiB or more that takes data, or see what is said of each drive",
        )
    hidden = [device.bdf for device in (*shown_clients(topology),) if not device.config_known]
    if hidden:
        reason = f"configuration space of {_several(hidden)} cannot be read past 64 bytes: ACS is unknown"
        yield Finding("problem", "not-privileged", "permissions", reason, "run as root (CAP_SYS_ADMIN)")


def _memory(topology: Topology, pools: Sequence[PoolState]) -> Iterator[Finding]:
    without: dict[tuple[str, str, str], list[str]] = {}
    mapped = {pool.name: pool.bytes for pool in pools}
    for provider in topology.providers.values():
        if provider.usable:
            yield from _usable(topology, provider, mapped.get(provider.bdf, 0))
        elif provider.code not in KERNEL_CODES:
            key = (provider.code, provider.reason, provider.remedy)
            if provider.code == "driver-not-nvme":
                key = (provider.code, provider.reason, "bind it to the nvme driver, if its CMB is wanted")
            without.setdefault(key, []).append(_name(topology, provider.bdf))
    for (code, reason, remedy), names in without.items():
        severity: Severity = "note" if code in NOTES else "problem"
        yield Finding(severity, code, _several(names), reason, remedy)


def _usable(topology: Topology, provider: Provider, mapped: int) -> Iterator[Finding]:
    name = _name(topology, provider.bdf)
    taken = provider.size - provider.available - mapped
    if provider.available < GRANULE and not mapped:
        reason = f"all of its {provider.size} bytes are taken by others"
        remedy = "end the other users, or load nvme with use_cmb_sqes=0 if the kernel's submission queues fill it"
        yield Finding("problem", "nothing-left", name, reason, remedy)
    elif provider.size and taken * TAKEN_SHARE >= provider.size:
        yield Finding(
            "note",
            "partly-taken",
            name,
            f"{taken} of its {provider.size} bytes are taken by others (the kernel puts submission queues there)",
            "load nvme with use_cmb_sqes=0 to have all of it",
        )
    if provider.size < SMALL_BYTES:
        yield Finding(
            "note",
            "small",
            name,
            f"its {provider.size} bytes are less than the largest transfer ({SMALL_BYTES}): much goes by host memory",
            "lower max_io_size of the transport, or use it for namespaces with small transfers",
        )


def _reach(topology: Topology) -> Iterator[Finding]:
    """Drives that no provider reaches, then pairs that are refused or doubtful, each kind once."""
    drives = [device for device in shown_clients(topology) if device.is_nvme and _driven(device)]
    refused: dict[str, list[Verdict]] = {}
    doubtful: dict[str, list[Verdict]] = {}
    for drive in drives:
        kind = "spdk_cmb" if is_vfio(drive.driver) else "p2pmem"
        providers = [provider for provider in topology.providers.values() if provider.usable and provider.kind == kind]
        verdicts = [distance(topology, provider.bdf, drive.bdf) for provider in providers]
        if verdicts and not any(verdict.ok for verdict in verdicts):
            nearest = min(verdicts, key=lambda verdict: (verdict.cost, verdict.provider))
            reason = f"it reaches no provider; the nearest, {nearest.provider}: {nearest.reason}"
            yield Finding("problem", nearest.code, _name(topology, drive.bdf), reason, nearest.remedy)
            continue
        for verdict in verdicts:
            if not verdict.ok:
                refused.setdefault(verdict.code, []).append(verdict)
            for code in _doubts(topology, drive, verdict):
                doubtful.setdefault(code, []).append(verdict)
    for code, found in refused.items():
        yield Finding("note", code, _pairs(found), found[0].reason, found[0].remedy)
    for code, found in doubtful.items():
        yield Finding("note", code, _pairs(found), found[0].cautions[0], _doubt_remedy(code, found))


def _driven(device: Device) -> bool:
    return device.driver == "nvme" or is_vfio(device.driver)


def _doubts(topology: Topology, drive: Device, verdict: Verdict) -> Iterator[str]:
    provider = topology.devices[verdict.provider]
    if not verdict.ok or not verdict.cautions:
        return
    if verdict.map_type == "bus-address" and (provider.translated or drive.translated):
        yield "iommu-above-switch"
    elif verdict.map_type == "host-bridge" and verdict.redirects:
        yield "acs-detour"
    elif verdict.map_type == "host-bridge" and provider.numa_node != drive.numa_node:
        yield "crosses-nodes"


def _doubt_remedy(code: str, found: Sequence[Verdict]) -> str:
    if code == "acs-detour":
        ports = sorted({bdf for verdict in found for bdf in verdict.redirects})
        return f"boot with pci=disable_acs_redir={';'.join(ports)} if no virtual machine needs the isolation"
    if code == "iommu-above-switch":
        return "p2p_calibrate compares data in both directions before a pool is used; intel_iommu/amd_iommu=off ends it"
    return "none needed: a provider on the drive's own node is preferred"


def _rdma(topology: Topology) -> Iterator[Finding]:
    """Why an RDMA device does not move data to and from a CMB by itself; each kind once for a device."""
    refused: dict[tuple[str, str, str, str], list[str]] = {}
    for reach in reaches(topology):
        if not reach.ok:
            key = (reach.code, reach.device.name, reach.reason, reach.remedy)
            refused.setdefault(key, []).append(reach.provider)
    for (code, name, reason, remedy), providers in refused.items():
        yield Finding("note", code, f"RDMA device {name} and provider {_several(providers)}", reason, remedy)


def _pools(pools: Sequence[PoolState]) -> Iterator[Finding]:
    for pool in pools:
        if pool.kind == "emulated":
            reason = f"pool {pool.name} is EMULATED: host memory, no peer-to-peer"
            yield Finding("note", "emulated", pool.name, reason, "use it for trials only")
        if pool.lost:
            remedy = "it is used again when the device returns; see dmesg"
            yield Finding("problem", "pool-lost", pool.name, f"it was lost: {pool.why or 'no reason known'}", remedy)
        for bdev, figures in sorted(pool.calibrations.items()):
            if not figures.verified:
                reason = figures.reason or "the data compared did not agree"
                remedy = "it is not used for that bdev; see cautions of this pair in p2p map"
                yield Finding("problem", "not-verified", f"{pool.name} with bdev {bdev}", reason, remedy)


def _namespace(entry: Staged) -> Iterator[Finding]:
    policy, choice = entry.effective.policy, entry.choice
    if policy.mode == OFF:
        return
    if choice.refused is not None:
        refusal = choice.refused
        yield Finding("problem", "strict-" + refusal.code, entry.subject, refusal.reason, refusal.remedy)
    elif isinstance(entry.drives, Refusal):
        severity: Severity = "problem" if policy.pool is not None else "note"
        yield Finding(severity, entry.drives.code, entry.subject, entry.drives.reason, entry.drives.remedy)
    elif not choice.pools and policy.pool is not None:
        yield Finding("problem", "named-pool-unusable", entry.subject, choice.reason, _remedy(choice))
    elif not choice.pools:
        yield Finding("note", "host-memory", entry.subject, choice.reason, _remedy(choice))
    elif choice.read is None or choice.write is None:
        remedy = f"name the pool ({choice.pools[0]}) in the policy to use it all the same"
        yield Finding("note", "measured-slower", entry.subject, choice.reason, remedy)


def _remedy(choice: Choice) -> str:
    return "see what is said of the providers" if choice.rejected else "see what is said of the machine"


def _name(topology: Topology, bdf: str) -> str:
    names = topology.devices[bdf].names
    return f"{bdf} ({', '.join(names)})" if names else bdf


def _several(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _pairs(found: Sequence[Verdict]) -> str:
    first = f"{found[0].client} and provider {found[0].provider}"
    more = len(found) - 1
    return first if not more else f"{first} and {more} more pair{'s' if more > 1 else ''}"
