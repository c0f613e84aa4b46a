"""The guest's hardware: what to emulate (`Machine`), and QEMU's command line for it."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path

from tests.lab import image, runtime

CPU_EMULATED = "qemu64,vendor=AuthenticAMD,family=23"
"""Few features, hence little patching at boot. An AMD family of 23 or more lets Linux do peer-to-peer DMA through the
host bridge; "Nehalem" (Intel) forbids it, because QEMU's host bridge is not on Linux's list."""

CPU_FULL = "max,vendor=AuthenticAMD,family=23"
"""Every feature that QEMU emulates: SPDK may have been compiled for this machine's CPU, and DPDK wants SSE 4.2."""

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr tsc=unstable clocksource=acpi_pm "
    "no_timer_check audit=0 apparmor=0 random.trust_cpu=on cryptomgr.notests=1 rcupdate.rcu_expedited=1 "
    "net.ifnames=0 nmi_watchdog=0 8250.nr_uarts=1 i8042.noaux i8042.nokbd"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What a guest is made of.

    nvme: emulated NVMe controllers, each `ID:PORT:SIZE_MB[:CMB_MB[:key=value,...]]` with PORT one of
        rp          a root port of its own
        rc          on the root complex
        sw1, sw2    behind switch 1 or 2 (an x3130 upstream port, and a downstream port for each controller)
      The drive's file is ID.img in the run folder; key=value are more properties of QEMU's nvme device, ns.key=value of
      its namespace. A controller's only namespace has the NSID of its position here (1 for the first): QEMU's trace
      events name no controller, but they name the namespace.
    target: the target can run in the guest (inside.py).
    share: host folders, TAG -> folder, mounted at /mnt/TAG in the guest.
    trace: QEMU trace event patterns; the log is `trace` in the run folder.
    """

    kernel: str = "backports"
    """"backports", "stable" (Debian 13's own) or an ABI name: see image.ensure."""
    qemu: str = "host"
    """"host" (the machine's own), "10", "11" (fetched) or a command."""
    accel: str = dataclasses.field(default_factory=lambda: os.environ.get("NVMET_P2P_LAB_ACCEL", "tcg"))
    """"tcg" (everywhere the same) or "kvm"."""
    cpu: str = CPU_EMULATED
    smp: int = 2
    memory: str = "1G"
    net: bool = True
    """A user network: the host's 127.0.0.1 is 10.0.2.2 in the guest, and 127.0.0.1 too for TCP."""
    nvme: tuple[str, ...] = ()
    share: tuple[tuple[str, Path], ...] = ()
    trace: tuple[str, ...] = ()
    append: str = ""
    """More kernel arguments."""
    qemu_args: tuple[str, ...] = ()
    """More QEMU arguments; each is split like a shell's."""
    machine_type: str = "q35"
    target: bool = False
    iommu: bool = False
    """An emulated IOMMU, for drives on vfio-pci; without one behind a switch (README.md says why)."""


IOMMU = "intel-iommu,intremap=on,caching-mode=on,eim=off,aw-bits=48"
"""48 bits, because SPDK puts its memory at virtual addresses of 45 and uses these as bus addresses."""


def command(machine: Machine, run: Path, boot: image.Image, *, terminal: bool = False, append: str = "") -> list[str]:
    """QEMU's command line, with every file of the guest in the folder `run`.

    terminal: the guest's serial console is on our own standard input and output.
    """
    args = _emulator(machine.qemu)
    args += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-name", "nvmet-p2p-lab"]
    args += ["-machine", machine.machine_type, "-cpu", machine.cpu, "-smp", str(machine.smp), "-m", machine.memory]
    args += ["-accel", "tcg,thread=multi,tb-size=512" if machine.accel == "tcg" else machine.accel]
    args += ["-device", IOMMU] if machine.iommu else []
    args += ["-kernel", str(boot.vmlinux), "-initrd", str(boot.initramfs)]
    arguments = (KERNEL_ARGUMENTS, "intel_iommu=on" if machine.iommu else "", machine.append, append)
    args += ["-append", " ".join(filter(None, arguments))]
    # fixed places for what has to be found in order; switches and root ports start at 0x10
    for address, file in ((2, boot.root), (3, boot.modules)):
        args += ["-drive", f"file={file},if=none,format=raw,readonly=on,file.locking=off,id=disk{address}"]
        args += ["-device", f"virtio-blk-pci,drive=disk{address},addr={address:#x}"]
    console = f"id=console,logfile={run}/console.log"
    kind = f"stdio,{console},mux=on,signal=off" if terminal else f"null,{console}"
    args += ["-chardev", kind, "-serial", "chardev:console"]
    args += ["-qmp", f"unix:{run}/qmp,server=on,wait=off"]
    args += ["-device", "virtio-serial-pci,id=ports,addr=0x4"]
    for name in ("agent", "ctl"):
        args += ["-chardev", f"socket,id={name},path={run}/{name},server=on,wait=off"]
        args += ["-device", f"virtserialport,bus=ports.0,chardev={name},name=lab.{name}"]
    args += ["-device", "virtio-rng-pci,addr=0x5"]
    if machine.net:
        args += ["-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,addr=0x6,romfile="]
    if machine.target:
        args += _target(run)
    for tag, folder in (("lab", run / "lab"), *machine.share):
        args += ["-fsdev", f"local,id=fs-{tag},path={folder.resolve()},security_model=none,multidevs=remap"]
        args += ["-device", f"virtio-9p-pci,fsdev=fs-{tag},mount_tag={tag}"]
    args += topology(machine.nvme, run)
    for pattern in machine.trace:
        args += ["-trace", pattern]
    if machine.trace:
        args += ["-D", f"{run}/trace"]
    for more in machine.qemu_args:
        args += shlex.split(more)
    return args


def _target(run: Path) -> list[str]:
    """The disks with the target, and the port to its admin API."""
    runtime.source_image(run / "source.img")
    (run / "lab" / "target").parent.mkdir(exist_ok=True)
    (run / "lab" / "target").write_text(f"{runtime.ROOT}\n")
    args: list[str] = []
    for address, name, file in ((7, "lab-runtime", runtime.image()), (8, "lab-source", run / "source.img")):
        args += ["-drive", f"file={file},if=none,format=raw,readonly=on,file.locking=off,id={name}"]
        args += ["-device", f"virtio-blk-pci,drive={name},serial={name},addr={address:#x}"]
    args += ["-chardev", f"socket,id=rpc,path={run}/rpc,server=on,wait=off"]
    return [*args, "-device", "virtserialport,bus=ports.0,chardev=rpc,name=lab.rpc"]


def _emulator(name: str) -> list[str]:
    if name == "host":
        return ["qemu-system-x86_64"]
    if name in image.QEMUS:
        return [str(image.qemu(name))]
    return shlex.split(name)


def topology(specs: tuple[str, ...], run: Path) -> list[str]:
    """QEMU's arguments for the NVMe controllers and the PCI ports they sit on; makes their drives' files."""
    args: list[str] = []
    switches: dict[str, int] = {}
    root_ports = 0

    def root_port() -> str:
        nonlocal root_ports
        root_ports += 1
        name = f"rp{root_ports}"
        args.extend(["-device", f"pcie-root-port,id={name},bus=pcie.0,chassis={root_ports},slot={root_ports},"
                     f"addr={0xF + root_ports:#x}"])  # fmt: skip
        return name

    for nsid, spec in enumerate(specs, 1):
        ident, port, size, cmb, extra = (*spec.split(":", 4), "", "")[:5]
        if not ident or not size.isdigit() or (cmb and not cmb.isdigit()):
            raise ValueError(f"{spec!r} is not ID:PORT:SIZE_MB[:CMB_MB[:key=value,...]]")
        if port == "rc":
            bus = "pcie.0"
        elif port == "rp":
            bus = root_port()
        elif port.startswith("sw"):
            if port not in switches:
                args.extend(["-device", f"x3130-upstream,id={port},bus={root_port()}"])
                switches[port] = 0
            slot = switches[port]
            switches[port] += 1
            bus = f"{port}d{slot}"
            chassis = 100 + 10 * list(switches).index(port) + slot
            args.extend(["-device", f"xio3130-downstream,id={bus},bus={port},chassis={chassis},slot={slot}"])
        else:
            raise ValueError(f"{spec!r}: the port is rp, rc or sw1, sw2, ...")
        drive = run / f"{ident}.img"
        with open(drive, "wb") as handle:
            handle.truncate(int(size) << 20)
        args += ["-drive", f"file={drive},if=none,format=raw,cache=unsafe,discard=unmap,id=drive-{ident}"]
        more = [words.strip() for words in extra.split(",") if words.strip()]
        properties = ["nvme", f"id={ident}", f"serial={ident}", f"bus={bus}"]
        properties += [f"cmb_size_mb={cmb}"] if cmb and int(cmb) else []
        args += ["-device", ",".join([*properties, *(word for word in more if not word.startswith("ns."))])]
        properties = ["nvme-ns", f"bus={ident}", f"nsid={nsid}", f"drive=drive-{ident}"]
        given = [word.removeprefix("ns.") for word in more if word.startswith("ns.")]
        properties += [] if any(word.startswith("shared=") for word in given) else ["shared=off"]
        args += ["-device", ",".join([*properties, *given])]
    return args
