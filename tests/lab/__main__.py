"""The lab's command line: one throw-away guest for one command, or a shell on the terminal (``--help``)."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from tests.lab import image
from tests.lab.debian import ImageError
from tests.lab.lab import Guest, LabError, unavailable
from tests.lab.machine import CPU_EMULATED, Machine, command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab",
        description="Run one command in a throw-away guest (bash, as root); its output and exit code are ours. "
        "124: it timed out; 125: the guest gave no result.",
    )
    add = parser.add_argument
    add("--shell", action="store_true", help="a shell in the guest on this terminal, after COMMAND if one is given")
    add("--kernel", default="backports", help="backports (default), stable (Debian 13's own) or an ABI name")
    add("--qemu", default="host", help="host (default), 10, 11 (fetched on first use) or a command")
    add("--accel", help="tcg (default) or kvm")
    add("--machine", default="q35", help="QEMU's machine type with its properties (q35)")
    add(
        "--cpu",
        default=CPU_EMULATED,
        help="an AMD family from 23 lets Linux do P2P through the host bridge; Nehalem forbids it",
    )
    add("--smp", type=int, default=2, help="processors (2)")
    add("--mem", default="1G", help="memory (1G)")
    add("--no-net", action="store_true", help="no network to the host")
    add("--nvme", action="append", default=[], metavar="ID:PORT:SIZE_MB[:CMB_MB[:key=value,...]]",
        help="a controller; PORT: rp (own root port), rc (root complex), sw1, sw2 (behind that switch)")  # fmt: skip
    add(
        "--share",
        action="append",
        default=[],
        metavar="FOLDER=TAG",
        help="a folder of the host, at /mnt/TAG in the guest",
    )
    add("--append", default="", help="more kernel arguments")
    add("--trace", action="append", default=[], help="QEMU trace event pattern; the log is DIR/trace")
    add("--qemu-arg", action="append", default=[], help="more QEMU arguments (split like a shell's)")
    add("--dir", type=Path, help="run folder, kept; default: a temporary one")
    add("--timeout", type=float, default=180, help="seconds for the command (180); the boot does not count")
    add("--dry", action="store_true", help="print QEMU's command line and stop")
    add("-v", "--verbose", action="store_true", help="the console and the command's kernel messages on standard error")
    add("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser


def machine_of(options: argparse.Namespace) -> Machine:
    """The machine that the command line describes."""
    shares = []
    for share in options.share:
        folder, equals, tag = share.rpartition("=")
        if not equals or not re.fullmatch(r"\w+", tag):
            raise LabError(f"--share {share!r} is not FOLDER=TAG")
        shares.append((tag, Path(folder)))
    machine = Machine(
        kernel=options.kernel,
        qemu=options.qemu,
        cpu=options.cpu,
        smp=options.smp,
        memory=options.mem,
        net=not options.no_net,
        nvme=tuple(options.nvme),
        share=tuple(shares),
        trace=tuple(options.trace),
        append=options.append,
        qemu_args=tuple(options.qemu_arg),
        machine_type=options.machine,
    )
    return dataclasses.replace(machine, accel=options.accel) if options.accel else machine


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    script = words[0] if len(words) == 1 else shlex.join(words)
    if not words and not options.shell and not options.dry:
        parser.error("no COMMAND and no --shell")
    if options.shell and not sys.stdin.isatty():
        parser.error("--shell needs a terminal")
    why = unavailable()
    if why:
        print(f"lab: {why}", file=sys.stderr)
        return 125
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # timeout(1) around us ends QEMU too
    try:
        machine = machine_of(options)
        if options.dry:
            with tempfile.TemporaryDirectory() as folder:
                print(shlex.join(command(machine, Path(folder), image.ensure(machine.kernel))))
            return 0
        with Guest(machine, directory=options.dir, terminal=options.shell) as guest:
            return _shell(guest, script) if options.shell else _one(guest, script, options)
    except (LabError, ImageError, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


def _one(guest: Guest, script: str, options: argparse.Namespace) -> int:
    job = guest.start(script)
    shown = {"out": 0, "err": 0}

    def relay() -> None:
        for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
            path = job.folder / name
            if path.exists():
                with open(path, "rb") as handle:
                    handle.seek(shown[name])
                    data = handle.read()
                shown[name] += len(data)
                stream.buffer.write(data)
                stream.flush()

    result = job.wait(options.timeout, check=False, poll=relay)
    relay()
    if options.verbose:
        print(f"--- console.log\n{guest.console}\n--- dmesg\n{result.dmesg}", file=sys.stderr)
    how = " TIMED OUT" if result.timed_out else ""
    print(
        f"lab: exit code {result.code}, boot {guest.boot_seconds:.1f} s, command {result.seconds:.1f} s{how}",
        file=sys.stderr,
    )
    return result.code


def _shell(guest: Guest, script: str) -> int:
    print("lab: booting, a few seconds", file=sys.stderr)
    guest.boot()
    if script:
        guest.run(script, timeout=60, check=False, keep=True)
    assert guest._process is not None
    guest._process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
