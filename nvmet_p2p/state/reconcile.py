"""Desired and actual configuration -> what to do, in which order. Pure.

A commit has three bands: what can be refused comes first (open back ends, bind addresses, resize), then the new
configuration is made durable and takes hold in the target, and only then is released what it no longer names. The same
plan, from an empty configuration, is start-up and the refill of a data plane that was restarted.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from nvmet_p2p.target.config import (
    QOS_LIMITS,
    BdevConfig,
    ListenAddress,
    NvmeControllerConfig,
    NvmeHotplug,
    NvmeOptions,
    TargetConfig,
    TransportConfig,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Operations that lead from one configuration to another."""

    nvme_options: NvmeOptions | None = None  # to be set before controllers are attached
    attach: tuple[NvmeControllerConfig, ...] = ()
    open_bdevs: tuple[BdevConfig, ...] = ()
    resize_bdevs: tuple[tuple[BdevConfig, BdevConfig], ...] = ()  # (old, new): another number of blocks
    tune_bdevs: tuple[tuple[BdevConfig, BdevConfig], ...] = ()  # (old, new): other limits or latencies
    create_transports: tuple[TransportConfig, ...] = ()
    bind: tuple[ListenAddress, ...] = ()
    unbind: tuple[ListenAddress, ...] = ()
    close_bdevs: tuple[BdevConfig, ...] = ()
    detach: tuple[str, ...] = ()  # when their bdevs are closed
    nvme_hotplug: NvmeHotplug | None = None


def addresses(config: TargetConfig) -> dict[ListenAddress, None]:
    """All addresses that the configuration listens on, each once, in the order of the subsystems."""
    return {listener.address: None for subsystem in config.subsystems.values() for listener in subsystem.listeners}


def with_protection(config: TargetConfig, subnqn: str, nsid: int, protected: bool) -> TargetConfig:
    """``config`` with feature 84h of one namespace set; unchanged if there is no such namespace."""
    subsystem = config.subsystems.get(subnqn)
    if subsystem is None or nsid not in subsystem.namespaces:
        return config
    namespace = replace(subsystem.namespaces[nsid], write_protected=protected)
    changed = replace(subsystem, namespaces={**subsystem.namespaces, nsid: namespace})
    return replace(config, subsystems={**config.subsystems, subnqn: changed})


def keep_protection(old: TargetConfig, new: TargetConfig) -> TargetConfig:
    """``new`` with the write protection that hosts have set meanwhile: it is theirs, no admin call changes it."""
    for subnqn, subsystem in new.subsystems.items():
        before = old.subsystems.get(subnqn)
        for nsid, namespace in subsystem.namespaces.items():
            was = before.namespaces.get(nsid) if before is not None else None
            if was is not None and was.uuid == namespace.uuid and was.write_protected != namespace.write_protected:
                new = with_protection(new, subnqn, nsid, was.write_protected)
    return new


def keep_namespaces(old: TargetConfig, new: TargetConfig) -> TargetConfig:
    """``new`` with what controllers were found to have meanwhile, and to be: it goes with the controller only."""
    there = [bdev for bdev in old.bdevs.values() if bdev.kind == "nvme" and bdev.controller in new.nvme_controllers]
    kept = {bdev.name: bdev for bdev in there if bdev.name not in new.bdevs}
    for bdev in there:
        now = new.bdevs.get(bdev.name)
        if now is not None and now.kind == "nvme" and bdev.identity and not now.identity:
            kept[bdev.name] = replace(now, identity=bdev.identity)
    return replace(new, bdevs=new.bdevs | kept) if kept else new


def tuning(config: BdevConfig) -> tuple[int, ...]:
    """Limits and latencies of a bdev: what can be changed while it is in use, beside its size."""
    return (*(getattr(config, name) for name in QOS_LIMITS), *config.latencies_us)


def plan(old: TargetConfig, new: TargetConfig) -> Plan:
    """What a commit of ``new`` over ``old`` has to do.

    Of a bdev of the same name, ``operations`` changes nothing but its number of blocks, its limits and its latencies.
    Bdevs are opened in the order in which they were made and closed in the reverse one: some are on top of others.
    """
    before, after = addresses(old), addresses(new)
    opened: list[BdevConfig] = []
    resized: list[tuple[BdevConfig, BdevConfig]] = []
    tuned: list[tuple[BdevConfig, BdevConfig]] = []
    for name, config in new.bdevs.items():
        was = old.bdevs.get(name)
        if was is None:
            opened.append(config)
            continue
        if was.num_blocks != config.num_blocks:
            resized.append((was, config))
        if tuning(was) != tuning(config):
            tuned.append((was, config))
    options, hotplug = new.nvme_options or NvmeOptions(), new.nvme_hotplug or NvmeHotplug(enable=False)
    return Plan(
        nvme_options=options if options != (old.nvme_options or NvmeOptions()) else None,
        attach=tuple(c for name, c in new.nvme_controllers.items() if name not in old.nvme_controllers),
        detach=tuple(name for name in reversed(old.nvme_controllers) if name not in new.nvme_controllers),
        nvme_hotplug=hotplug if hotplug != (old.nvme_hotplug or NvmeHotplug(enable=False)) else None,
        open_bdevs=tuple(opened),
        resize_bdevs=tuple(resized),
        tune_bdevs=tuple(tuned),
        create_transports=tuple(t for name, t in new.transports.items() if name not in old.transports),
        bind=tuple(a for a in after if a not in before),
        unbind=tuple(a for a in before if a not in after),
        close_bdevs=tuple(c for name, c in reversed(old.bdevs.items()) if name not in new.bdevs),
    )
