"""Boots a guest, runs scripts in it, gives back their output, exit codes and kernel messages.

    with Guest() as guest:
        done = guest.run("nvme connect -t tcp -a 10.0.2.2 -s 4420 -n nqn.2026-01.io.example:a; nvme list -o json")
        print(done.out, done.dmesg)

A guest is booted at its first use and is used for many scripts, one after another or at once (`Guest.start`). A script
that hangs is killed with everything it started; a guest that no longer answers is booted again at the next use.

From the command line, one throw-away guest for one command, or a shell on the terminal:

    python -m tests.lab.lab [options] -- COMMAND...
    python -m tests.lab.lab --shell
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab import image
from tests.lab.machine import CPU_EMULATED, Machine, command

BOOT_TIMEOUT = 180.0
"""Seconds for a boot, on a machine that has other things to do as well. A panic ends the wait at once."""

KILL_TIMEOUT = 15.0
"""Seconds for a killed script to be gone; a guest that does not manage is given up."""

_SPLAT = re.compile(
    r"\bWARNING:|\bBUG:|\bOops\b|\bCall Trace:|general protection fault|blocked for more than"
    r"|possible .* (deadlock|locking)|refcount_t:|\brcu: INFO|KASAN|UBSAN|list_(add|del) corruption"
    r"|soft lockup|unable to handle"
)


class LabError(Exception):
    """The lab could not do what it was asked."""


class GuestDied(LabError):
    """The guest panicked, or QEMU ended, while something was expected of it."""


class ScriptFailed(LabError):
    """A script ended with another exit code than 0, or was killed by its timeout."""

    def __init__(self, result: Result) -> None:
        super().__init__(str(result))
        self.result = result


@dataclasses.dataclass(frozen=True, slots=True)
class KernelMessage:
    """One record of the guest's kernel log."""

    level: int
    """3 is an error, 4 a warning, 6 informational (syslog's levels)."""
    sequence: int
    seconds: float
    """Since boot."""
    text: str

    def __str__(self) -> str:
        return f"[{self.seconds:12.6f}] {self.text}"


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What became of a script."""

    script: str
    code: int
    """Its exit code; 124 if it was killed by its timeout, 125 if the guest died."""
    out: str
    err: str
    seconds: float
    timed_out: bool
    messages: tuple[KernelMessage, ...]
    """What the guest's kernel logged while it ran."""

    @property
    def dmesg(self) -> str:
        """The kernel's messages while the script ran."""
        return "\n".join(map(str, self.messages))

    @property
    def warnings(self) -> tuple[KernelMessage, ...]:
        """Kernel messages of level warning or worse. Some are a driver's way to tell of a lost connection."""
        return tuple(m for m in self.messages if m.level <= 4)

    @property
    def splats(self) -> tuple[KernelMessage, ...]:
        """Kernel messages that tell of a fault in the kernel: WARNING, BUG, hung task, ..."""
        return splats(self.messages)

    def json(self) -> Any:
        """The output, parsed as JSON."""
        return json.loads(self.out)

    def check(self) -> Result:
        """Itself, if the script ended with 0; else raises ScriptFailed."""
        if self.code:
            raise ScriptFailed(self)
        return self

    def __str__(self) -> str:
        how = "timed out" if self.timed_out else f"exit code {self.code}"
        parts = [f"script in the guest: {how} after {self.seconds:.1f} s", "--- script", self.script.strip()]
        for name, text in (("out", self.out), ("err", self.err), ("dmesg", self.dmesg)):
            if text.strip():
                parts += [f"--- {name}", text.strip()[-6000:]]
        return "\n".join(parts)


def splats(messages: tuple[KernelMessage, ...]) -> tuple[KernelMessage, ...]:
    """Those of the messages that tell of a fault in the kernel."""
    return tuple(m for m in messages if _SPLAT.search(m.text))


class Job:
    """A script that runs in the guest. Made by Guest.start."""

    def __init__(self, guest: Guest, ident: int, script: str, folder: Path) -> None:
        self.guest = guest
        self.id = ident
        self.script = script
        self.folder = folder
        self.started = time.monotonic()
        self._result: Result | None = None

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return _text(self.folder / "out")

    @property
    def err(self) -> str:
        """Its standard error so far."""
        return _text(self.folder / "err")

    def done(self) -> bool:
        """Whether it has ended."""
        return self._result is not None or self.guest._code(self.id) is not None

    def wait(self, timeout: float = 60.0, check: bool = True, poll: Callable[[], None] | None = None) -> Result:
        """Wait until it has ended, killing it (exit code 124) after `timeout` seconds from now.

        check: raise ScriptFailed if its exit code is not 0.
        poll: called now and then while it runs.
        """
        if self._result is None:
            code = self.guest._wait_code(self.id, time.monotonic() + timeout, poll)
            if code is None:
                self.kill()
            messages = self.guest._messages_of(self.id)
            seconds = time.monotonic() - self.started
            self._result = Result(
                script=self.script,
                code=124 if code is None else code,
                out=self.out,
                err=self.err,
                seconds=seconds,
                timed_out=code is None,
                messages=messages,
            )
        return self._result.check() if check else self._result

    def wait_for(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Wait until its standard output contains what the regular expression describes."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.done()
            found = re.search(pattern, self.out, re.MULTILINE)
            if found:
                return found
            if ended or time.monotonic() > deadline:
                why = "ended" if ended else f"ran {timeout} s"
                raise LabError(
                    f"the script {why} without {pattern!r} in its output\n--- out\n{self.out}\n--- err\n{self.err}"
                )
            self.guest._check_alive()
            time.sleep(0.05)

    def kill(self) -> None:
        """Kill it and everything it started; a guest that cannot is given up, and booted again at its next use."""
        self.guest._kill(self.id)


class Guest:
    """A QEMU guest. Not for use from several threads at once.

    directory: the run folder, kept; without one a temporary folder is used and removed.
    terminal: the guest's console, with a shell on it, is on our own standard input and output.
    """

    def __init__(
        self, machine: Machine | None = None, *, directory: Path | None = None, terminal: bool = False
    ) -> None:
        self.machine = machine or Machine()
        self.terminal = terminal
        self.kill_timeout = KILL_TIMEOUT
        self.boots = 0
        self.boot_seconds = 0.0
        """How long the last boot took, from QEMU's start to the first order taken."""
        self._keep = directory
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._qmp: _Qmp | None = None
        self._changed = threading.Condition()
        self._ready = False
        self._codes: dict[int, int] = {}
        self._pongs: set[int] = set()
        self._last_id = 0
        self._log = _KernelLog()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Life

    @property
    def alive(self) -> bool:
        """Whether the guest is booted and QEMU runs."""
        return self._process is not None and self._process.poll() is None and self._ready

    @property
    def folder(self) -> Path:
        """The run folder on the host: console.log, trace, drives' files."""
        if self._folder is None:
            raise LabError("the guest has not been booted")
        return self._folder

    @property
    def files(self) -> Path:
        """A folder of the host that is /lab/files in the guest."""
        return self.folder / "lab" / "files"

    @property
    def console(self) -> str:
        """What the guest wrote on its serial console since the last boot."""
        return "" if self._folder is None else _text(self._folder / "console.log")

    def boot(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Boot the guest unless it is up. Scripts do that themselves."""
        if self.alive:
            return
        self.stop()
        boot = image.ensure(self.machine.kernel)
        self._folder = run = self._run_folder()
        (run / "lab" / "jobs").mkdir(parents=True)
        (run / "lab" / "files").mkdir()
        mount = "mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=mmap"
        setup = [f"mkdir -p /mnt/{tag}; {mount} {tag} /mnt/{tag}\n" for tag, _ in self.machine.share]
        (run / "lab" / "setup").write_text("".join(setup))
        (run / "lab" / "motd").write_text(_MOTD)
        self._ready = False
        self._codes.clear()
        self._log = _KernelLog(run / "lab" / "kmsg")
        arguments = command(self.machine, run, boot, terminal=self.terminal, append=self._terminal_arguments())
        started = time.monotonic()
        with open(run / "qemu.err", "wb") as errors:
            self._process = subprocess.Popen(
                arguments,
                stdin=None if self.terminal else subprocess.DEVNULL,
                stdout=None if self.terminal else errors,
                stderr=errors,
                start_new_session=not self.terminal,  # an interrupt at the keyboard is ours
            )
        try:
            self._connect(timeout)
            deadline = started + timeout
            while not self._ready:
                self._check_alive()
                if "Kernel panic" in self.console or "lab: boot failed" in self.console:
                    time.sleep(0.5)  # the rest of its message
                    raise GuestDied(self._death("the guest did not boot"))
                if time.monotonic() > deadline:
                    raise GuestDied(self._death(f"the guest did not boot within {timeout:.0f} s"))
                self._pause(0.1)
        except BaseException:
            self.stop(keep_folder=True)
            raise
        self.boots += 1
        self.boot_seconds = time.monotonic() - started

    def stop(self, keep_folder: bool = False) -> None:
        """End QEMU and remove the temporary run folder."""
        self._ready = False
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for handle in (self._agent, self._qmp):
            if handle is not None:
                with contextlib.suppress(OSError):
                    handle.close()
        self._agent = self._qmp = None
        if self._folder is not None and not keep_folder:
            if self._keep is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def reboot(self) -> None:
        """Power-cycle: the guest starts anew, with nothing left of what scripts did to it."""
        self.stop()
        self.boot()

    def _run_folder(self) -> Path:
        if self._keep is not None:
            folder = self._keep.resolve()
            for name in ("lab", "console.log", "trace"):
                if (folder / name).is_dir():
                    shutil.rmtree(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
        else:
            base = os.environ.get("NVMET_P2P_LAB_TMP")
            if base is None and os.access("/dev/shm", os.W_OK):
                base = "/dev/shm"
            folder = Path(tempfile.mkdtemp(prefix="nvmet-p2p-lab.", dir=base))
        if len(str(folder)) > 90:
            raise LabError(f"the path of the run folder is too long for a Unix socket: {folder}")
        return folder

    def _terminal_arguments(self) -> str:
        if not self.terminal:
            return ""
        columns, rows = shutil.get_terminal_size()
        return f"lab.shell lab.rows={rows} lab.cols={columns} lab.term={os.environ.get('TERM', 'vt100')}"

    def _connect(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._agent = self._socket("agent", deadline)
        threading.Thread(target=self._read_agent, args=(self._agent,), daemon=True).start()
        self._qmp = _Qmp(self._socket("qmp", deadline))
        ctl = self._socket("ctl", deadline)
        threading.Thread(target=_serve_ctl, args=(ctl, self._qmp), daemon=True).start()

    def _socket(self, name: str, deadline: float) -> socket.socket:
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self.folder / name))
                return connection
            except OSError:
                connection.close()
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise GuestDied(self._death("QEMU did not start"))
            time.sleep(0.02)

    def _read_agent(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("r", errors="replace") as lines:
            for line in lines:
                words = line.split()
                with self._changed:
                    if words[:1] == ["ready"] and connection is self._agent:
                        self._ready = True
                    elif words[:1] == ["done"] and len(words) == 3:
                        self._codes[int(words[1])] = int(words[2])
                    elif words[:1] == ["pong"] and len(words) == 2:
                        self._pongs.add(int(words[1]))
                    self._changed.notify_all()

    def _order(self, line: str) -> None:
        if self._agent is None:
            raise GuestDied("the guest is not running")
        try:
            self._agent.sendall(line.encode() + b"\n")
        except OSError:
            raise GuestDied(self._death("the guest is gone")) from None

    def _pause(self, seconds: float) -> None:
        """Wait until the guest said something, `seconds` at most."""
        with self._changed:
            self._changed.wait(seconds)

    def _check_alive(self) -> None:
        if self._process is None or self._process.poll() is not None:
            # a process that has just ended may have left its last answer unread
            raise GuestDied(self._death("the guest died"))

    def _death(self, what: str) -> str:
        parts = [what]
        if self._process is not None and self._process.poll() is not None:
            parts[0] += f" (QEMU ended with {self._process.returncode})"
        if self._folder is not None:
            for name in ("qemu.err", "console.log"):
                text = _text(self._folder / name).strip()
                if text:
                    parts += [f"--- {name}", text[-4000:]]
        return "\n".join(parts)

    # Scripts

    def run(
        self,
        script: str,
        *,
        timeout: float = 60.0,
        check: bool = True,
        keep: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a bash script as root in the guest and wait for it.

        timeout: seconds on the host's clock; then it is killed and its exit code is 124.
        check: raise ScriptFailed if its exit code is not 0.
        keep: let what it leaves running in the background stay; else that is killed when the script ends.
        """
        return self.start(script, keep=keep, env=env).wait(timeout, check)

    def start(self, script: str, *, keep: bool = False, env: Mapping[str, str] | None = None) -> Job:
        """Start a bash script as root in the guest, and go on."""
        self.boot()
        self._last_id += 1
        folder = self.folder / "lab" / "jobs" / str(self._last_id)
        folder.mkdir()
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in (env or {}).items())
        (folder / "script").write_text(exports + script + "\n")
        job = Job(self, self._last_id, script, folder)
        self._order(f"run {self._last_id} {int(keep)}")
        return job

    def reset(self, timeout: float = 30.0) -> None:
        """Undo what scripts left behind: processes, mounts, connected controllers. Boots anew where that fails."""
        if not self.alive:
            return
        try:
            if self.run("exec reset", timeout=timeout, check=False).code == 0:
                return
        except GuestDied:
            pass
        self.stop()

    def _code(self, ident: int) -> int | None:
        with self._changed:
            return self._codes.get(ident)

    def _wait_code(self, ident: int, deadline: float, poll: Callable[[], None] | None = None) -> int | None:
        while True:
            code = self._code(ident)
            if code is not None:
                return code
            self._check_alive()
            if time.monotonic() > deadline:
                return None
            self._pause(min(0.2, max(0.0, deadline - time.monotonic())) if poll is None else 0.1)
            if poll is not None:
                poll()

    def _kill(self, ident: int) -> None:
        if not self.alive or self._code(ident) is not None:
            return
        try:
            self._order(f"kill {ident}")
            if self._wait_code(ident, time.monotonic() + self.kill_timeout) is not None:
                return
        except GuestDied:
            pass
        print(f"lab: script {ident} cannot be killed; the guest is given up\n{self.console[-2000:]}", file=sys.stderr)
        self.stop(keep_folder=True)  # its output is still to be read

    # The kernel's log, and QEMU

    def messages(self) -> tuple[KernelMessage, ...]:
        """Everything that the guest's kernel logged since the last boot."""
        return self._log.read()

    def dmesg(self) -> str:
        """The same as text."""
        return "\n".join(map(str, self.messages()))

    def _messages_of(self, ident: int) -> tuple[KernelMessage, ...]:
        """What was logged while a script ran."""
        first, last = f"lab: job {ident} begins", f"lab: job {ident} ends"
        deadline = time.monotonic() + (3.0 if self.alive else 0.0)
        while True:
            everything = self.messages()
            texts = [m.text for m in everything]
            ended = last in texts
            if ended or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        start = texts.index(first) + 1 if first in texts else len(texts)
        stop = texts.index(last) if ended else len(texts)
        return tuple(m for m in everything[start:stop] if not m.text.startswith("lab: job "))

    def hmp(self, line: str) -> str:
        """A command to QEMU's human monitor, for example "device_del A"; its answer."""
        answer = self.qmp("human-monitor-command", **{"command-line": line})
        return str(answer)

    def qmp(self, name: str, **arguments: Any) -> Any:
        """A command to QEMU's machine monitor; what it returns."""
        if self._qmp is None:
            raise GuestDied("the guest is not running")
        answer = self._qmp.execute(name, arguments)
        if "error" in answer:
            raise LabError(f"QEMU refuses {name}: {answer['error']}")
        return answer["return"]


class _KernelLog:
    """Reads the guest's /dev/kmsg records from the file they are copied to."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._offset = 0
        self._messages: dict[int, KernelMessage] = {}

    def read(self) -> tuple[KernelMessage, ...]:
        if self._path is not None and self._path.exists():
            with open(self._path, "rb") as handle:
                handle.seek(self._offset)
                data = handle.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            for line in whole.decode(errors="replace").split("\n"):
                found = re.match(r"(\d+),(\d+),(\d+),[^;]*;(.*)", line)
                if found:  # other lines are a record's dictionary
                    level, sequence, micros, text = found.groups()
                    message = KernelMessage(int(level) & 7, int(sequence), int(micros) / 1e6, text)
                    self._messages[message.sequence] = message  # the log is read anew after an overrun
        return tuple(self._messages[n] for n in sorted(self._messages))


class _Qmp:
    """QEMU's machine monitor."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rw")
        self._lock = threading.Lock()
        self._file.readline()
        self.execute("qmp_capabilities", {})

    def execute(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """One command; the whole answer."""
        with self._lock:
            try:
                self._file.write(json.dumps({"execute": name, "arguments": dict(arguments)}) + "\n")
                self._file.flush()
                for line in self._file:
                    answer: dict[str, Any] = json.loads(line)
                    if "event" not in answer:
                        return answer
            except (OSError, ValueError):
                pass
            return {"error": "QEMU is gone"}

    def close(self) -> None:
        """Close the connection."""
        with self._lock, contextlib.suppress(OSError):
            self._file.close()
            self._connection.close()


def _serve_ctl(connection: socket.socket, qmp: _Qmp) -> None:
    """Answer the guest's requests to QEMU's monitor: "hmp TEXT" or "qmp NAME JSON", a line each way."""
    with contextlib.suppress(OSError), connection, connection.makefile("rw", errors="replace") as lines:
        for line in lines:
            words = line.split(None, 1)
            try:
                if words[:1] == ["hmp"]:
                    answer = qmp.execute("human-monitor-command", {"command-line": words[1].strip()})
                elif words[:1] == ["qmp"]:
                    name, _, arguments = words[1].strip().partition(" ")
                    answer = qmp.execute(name, json.loads(arguments or "{}"))
                else:
                    answer = {"error": 'expected "hmp TEXT" or "qmp NAME JSON"'}
            except (IndexError, ValueError) as error:
                answer = {"error": f"not understood: {error}"}
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    except FileNotFoundError:
        return ""


def unavailable() -> str | None:
    """Why this machine cannot run the lab, or None."""
    missing = image.missing_packages()
    return f"the lab needs packages that are not installed: apt-get install {' '.join(missing)}" if missing else None


# Command line

_MOTD = """
nvmet-p2p lab: a guest with Debian's kernel. Your machine is 10.0.2.2 (and 127.0.0.1, for TCP) in here.
    nvme discover -t tcp -a 10.0.2.2 -s 8009
    nvme connect -t tcp -a 10.0.2.2 -s PORT -n NQN;  nvme list;  nvme disconnect-all
"exit" ends the guest, Ctrl-a x kills it. Nothing that you do in it is kept.

"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab.lab",
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
    except (LabError, image.ImageError, ValueError) as error:
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
