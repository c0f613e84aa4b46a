"""Giving drives to vfio-pci and back to the kernel, by ``driver_override``; all or nothing.

Everything is checked before anything is changed, and what a refused call has changed so far is put back. Sources:
Documentation/ABI/testing/sysfs-bus-pci (driver_override, drivers_probe), Documentation/driver-api/vfio.rst (groups).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nvmet_p2p.p2p.sysfs import normal_bdf
from nvmet_p2p.setup import pages
from nvmet_p2p.setup.machine import CLASS_NVME, DEVICES, DRIVERS, VFIO, Machine, SetupError
from nvmet_p2p.setup.record import BoundDevice, Record, RecordFile
from nvmet_p2p.setup.usage import group_faults, reasons

NOIOMMU: Final = "module/vfio/parameters/enable_unsafe_noiommu_mode"
NO_IOMMU_REMEDY: Final = (
    "switch the IOMMU on in the firmware, and boot with intel_iommu=on on Intel's; --noiommu does without any "
    "protection of the machine's memory from the drive"
)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What ``bind`` is asked for: drives, huge pages a node (2 MiB each; 0: as they are), and whether to do without
    an IOMMU. ``served``: see ``usage.reasons``."""

    drives: Sequence[str]
    noiommu: bool = False
    hugepages: int = 0
    served: Mapping[str, str] = field(default_factory=dict)


def bind(machine: Machine, file: RecordFile, wish: Wish) -> list[str]:
    """Binds the drives to vfio-pci; what was done, in words. Raises ``SetupError``, and then nothing has changed."""
    addresses = _addresses(machine, wish.drives)
    record, stale = file.load(machine.boot_id)
    done = ["what was recorded before the last boot is forgotten"] if stale else []
    waiting = [bdf for bdf in addresses if machine.driver(bdf) != VFIO]
    done += [f"{bdf}: is on {VFIO} already" for bdf in addresses if bdf not in waiting]
    _check(machine, wish, waiting)
    before = _copy(record)
    try:
        if waiting:
            _load_driver(machine)
        if any(machine.group(bdf) is None for bdf in waiting):
            done += _allow_noiommu(machine, file, record)
        if wish.hugepages:
            done += pages.reserve(machine, file, record, wish.hugepages)
        for bdf in waiting:
            driver = machine.driver(bdf)
            record.devices.setdefault(bdf, BoundDevice(driver=driver, override=machine.override(bdf)))
            file.save(record)
            _move(machine, bdf, VFIO)
            done.append(f"{bdf}: {driver or 'no driver'} -> {VFIO}{_group_node(machine, bdf)}")
    except SetupError as error:
        _undo(machine, file, record, before)
        raise SetupError(f"{error}; nothing was changed") from error
    file.save(record)
    return done


def restore(machine: Machine, file: RecordFile, drives: Sequence[str] = ()) -> list[str]:
    """Gives drives (none named: all, and the huge pages) back as they were before ``bind``. May be called again.

    Raises ``SetupError``: what could not be put back stays recorded.
    """
    record, stale = file.load(machine.boot_id)
    done = ["the machine was booted since: there is nothing to put back"] if stale else []
    wanted = [_address(text) for text in drives] or list(record.devices)
    faults = []
    for bdf in wanted:
        if bdf not in record.devices:
            done.append(f"{bdf}: was not bound by this command, or is restored already")
            continue
        try:
            done.append(_restore_device(machine, bdf, record.devices[bdf]))
        except SetupError as error:
            faults.append(f"{bdf}: {error}")
            continue
        del record.devices[bdf]
        file.save(record)
    if not drives and not record.devices:
        done += _restore_rest(machine, file, record)
    file.save(record)
    if faults:
        raise SetupError("; ".join([*faults, *(f"done: {line}" for line in done)]))
    return done or ["there is nothing to restore"]


def holders(machine: Machine, bdf: str) -> list[str]:
    """The processes that have the drive open through VFIO: its driver cannot be changed until they are done."""
    nodes = {f"/dev/vfio/{machine.group(bdf)}", f"/dev/vfio/noiommu-{machine.group(bdf)}"}
    nodes |= {f"/dev/vfio/devices/{name}" for name in machine.sysfs.names(DEVICES, bdf, "vfio-dev")}
    return [machine.process(pid) for pid in sorted({pid for pid, link, _ in machine.open_files() if link in nodes})]


# -- checks ------------------------------------------------------------------------------------------------------------


def _address(text: str) -> str:
    address = normal_bdf(text)
    if address is None:
        raise SetupError(f"{text!r} is not a PCI address such as 0000:03:00.0")
    return address


def _addresses(machine: Machine, drives: Sequence[str]) -> list[str]:
    found = list(dict.fromkeys(_address(text) for text in drives))
    for bdf in found:
        if not machine.sysfs.exists(DEVICES, bdf):
            raise SetupError(f"there is no PCI device {bdf}")
        code = machine.sysfs.number(DEVICES, bdf, "class") or 0
        if code != CLASS_NVME:
            raise SetupError(f"{bdf} is no NVMe controller (class {code:#08x})")
    return found


def _check(machine: Machine, wish: Wish, waiting: Sequence[str]) -> None:
    """Raises with every reason of every drive, so that nobody has to try again for the next one."""
    faults = []
    for bdf in waiting:
        found = reasons(machine, bdf, wish.served)
        if machine.group(bdf) is None and not wish.noiommu:
            found.append(f"it is in no IOMMU group: {NO_IOMMU_REMEDY}")
        found += [
            f"{fault}: it would have to leave it; name it as well if it is a drive"
            for fault in group_faults(machine, bdf, waiting)
        ]
        faults += [f"{bdf}: {reason}" for reason in found]
    if faults:
        raise SetupError("; ".join(faults))


def _load_driver(machine: Machine) -> None:
    if not machine.sysfs.exists(DRIVERS, VFIO):
        said = machine.kernel.load_module(VFIO)
        if not machine.sysfs.exists(DRIVERS, VFIO):
            raise SetupError(f"this kernel has no driver {VFIO} ({said or 'modprobe said nothing'})")


def _allow_noiommu(machine: Machine, file: RecordFile, record: Record) -> list[str]:
    now = machine.sysfs.text(NOIOMMU)
    if now is None:
        raise SetupError("this kernel has no VFIO without an IOMMU (CONFIG_VFIO_NOIOMMU)")
    if now == "Y":
        return []
    record.noiommu = record.noiommu or now
    file.save(record)
    machine.write("Y", NOIOMMU)
    return [
        "VFIO works without an IOMMU now: a drive, and whoever programs it, can reach all memory; nvmet-p2p's own data "
        "plane does not take such a drive"
    ]


# -- changes -----------------------------------------------------------------------------------------------------------


def _move(machine: Machine, bdf: str, driver: str) -> None:
    """To a driver that takes the device by driver_override. Raises ``SetupError`` if it does not come to it."""
    machine.write(driver, DEVICES, bdf, "driver_override")
    if machine.driver(bdf):
        machine.write(bdf, DEVICES, bdf, "driver", "unbind")
    machine.write(bdf, "bus/pci/drivers_probe")
    if machine.driver(bdf) != driver:
        raise SetupError(f"{driver} did not take {bdf}: see dmesg")


def _restore_device(machine: Machine, bdf: str, before: BoundDevice) -> str:
    if not machine.sysfs.exists(DEVICES, bdf):
        return f"{bdf}: is gone"
    if machine.driver(bdf) == VFIO and before.driver != VFIO and (users := holders(machine, bdf)):
        raise SetupError(f"is in use by {', '.join(users)}: detach the controller there first")
    machine.write(before.override or "\n", DEVICES, bdf, "driver_override")
    if machine.driver(bdf) == VFIO and before.driver != VFIO:
        machine.write(bdf, DEVICES, bdf, "driver", "unbind")
    if before.driver and machine.driver(bdf) != before.driver:
        machine.write(bdf, "bus/pci/drivers_probe")
        if not machine.driver(bdf) and machine.sysfs.exists(DRIVERS, before.driver, "bind"):
            machine.write(bdf, DRIVERS, before.driver, "bind")
        if machine.driver(bdf) != before.driver:
            raise SetupError(f"{before.driver} did not take it back (it has {machine.driver(bdf) or 'no driver'} now)")
    return f"{bdf}: {VFIO} -> {before.driver or 'no driver'}"


def _restore_rest(machine: Machine, file: RecordFile, record: Record) -> list[str]:
    done = pages.restore(machine, file, record)
    if record.noiommu:
        machine.write(record.noiommu, NOIOMMU)
        record.noiommu = ""
        file.save(record)
        done.append("VFIO asks for an IOMMU again")
    return done


def _copy(record: Record) -> Record:
    return Record(
        boot_id=record.boot_id, devices=dict(record.devices), pages=dict(record.pages), noiommu=record.noiommu
    )


def _undo(machine: Machine, file: RecordFile, record: Record, before: Record) -> None:
    """Back to ``before``. Raises ``SetupError``; what is left is in the record."""
    for bdf in [bdf for bdf in reversed(record.devices) if bdf not in before.devices]:
        _restore_device(machine, bdf, record.devices[bdf])
        del record.devices[bdf]
        file.save(record)
    pages.restore(machine, file, record, keep=before.pages)
    if record.noiommu and not before.noiommu:
        machine.write(record.noiommu, NOIOMMU)
        record.noiommu = ""
    file.save(record)


def _group_node(machine: Machine, bdf: str) -> str:
    group = machine.group(bdf)
    return f" (/dev/vfio/{group})" if group is not None else ""
