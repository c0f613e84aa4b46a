"""Boots a guest, runs scripts in it, gives back their output, exit codes and kernel messages.

    with Guest() as guest:
        done = guest.run("nvme connect -t tcp -a 10.0.2.2 -s 4420 -n nqn.2026-01.io.example:a; nvme list -o json")
        print(done.out, done.dmesg)

A guest is booted at its first use and is used for many scripts, one after another or at once (`Guest.start`). A script
that hangs is killed with everything it started; a guest that no longer answers is booted again at the next use.

From the command line, one throw-away guest for one command, or a shell on the terminal:

    python -m tests.lab [options] -- COMMAND...
    python -m tests.lab --shell
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
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
from tests.lab.debian import missing_packages
from tests.lab.machine import Machine, command
from tests.lab.monitor import KernelLog, KernelMessage, Qmp, serve_ctl, splats

BOOT_TIMEOUT = 180.0
"""Seconds for a boot, on a machine that has other things to do as well. A panic ends the wait at once."""

KILL_TIMEOUT = 15.0
"""Seconds for a killed script to be gone; a guest that does not manage is given up."""


_MOTD = """
nvmet-p2p lab: a guest with Debian's kernel. Your machine is 10.0.2.2 (and 127.0.0.1, for TCP) in here.
    nvme discover -t tcp -a 10.0.2.2 -s 8009
    nvme connect -t tcp -a 10.0.2.2 -s PORT -n NQN;  nvme list;  nvme disconnect-all
"exit" ends the guest, Ctrl-a x kills it. Nothing that you do in it is kept.

"""


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
        self._qmp: Qmp | None = None
        self._changed = threading.Condition()
        self._ready = False
        self._codes: dict[int, int] = {}
        self._pongs: set[int] = set()
        self._last_id = 0
        self._log = KernelLog()

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
        self._log = KernelLog(run / "lab" / "kmsg")
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
        self._qmp = Qmp(self._socket("qmp", deadline))
        ctl = self._socket("ctl", deadline)
        threading.Thread(target=serve_ctl, args=(ctl, self._qmp), daemon=True).start()

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


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    except FileNotFoundError:
        return ""


def unavailable() -> str | None:
    """Why this machine cannot run the lab, or None."""
    missing = missing_packages()
    return f"the lab needs packages that are not installed: apt-get install {' '.join(missing)}" if missing else None
