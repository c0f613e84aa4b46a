"""The helper process: where its program is, starting it, its log, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

log = structlog.get_logger()

PROGRAM: Final = "nvmet-p2p-dataplane"
ENVIRONMENT: Final = "NVMET_P2P_DATAPLANE"
LOG_LINE_BYTES_MAX: Final = 65536
LEVELS: Final = {"debug": "debug", "info": "info", "warning": "warning", "error": "error"}


def find_program(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The helper's program: $NVMET_P2P_DATAPLANE, beside the interpreter, the checkout's build/native, $PATH."""
    named = environ.get(ENVIRONMENT)
    if named:
        return Path(named) if os.access(named, os.X_OK) else None
    checkout = Path(__file__).resolve().parents[3]
    for candidate in (Path(sysconfig.get_path("scripts")) / PROGRAM, checkout / "build/native" / PROGRAM):
        if os.access(candidate, os.X_OK):
            return candidate
    found = shutil.which(PROGRAM)
    return Path(found) if found else None


class HelperProcess:
    """A running helper. Its end is seen by ``wait``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._log = asyncio.create_task(self._relay(), name="data plane log")

    @classmethod
    async def start(cls, command: list[str], channel: socket.socket, activity_fd: int) -> HelperProcess:
        """Raises ``OSError``. The helper inherits the two descriptors under the numbers that they have here."""
        process = await asyncio.create_subprocess_exec(
            *command,
            "--channel-fd",
            str(channel.fileno()),
            "--activity-fd",
            str(activity_fd),
            "--log-format",
            "json",
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(channel.fileno(), activity_fd),
            start_new_session=True,  # Ctrl-C in a terminal is the control plane's to handle
            limit=LOG_LINE_BYTES_MAX,
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> str:
        """Waits for the end; why it ended, for people."""
        status = await self._process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._log), 1.0)
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing, if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _relay(self) -> None:
        """Its lines on stderr become events of our log."""
        stream = self._process.stderr
        assert stream is not None
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                continue  # a line that is longer than any of ours: the rest of it comes next
            if not line:
                return
            _relay_line(line)


def _relay_line(line: bytes) -> None:
    try:
        fact: Any = msgspec.json.decode(line)
    except msgspec.DecodeError:
        fact = None
    if isinstance(fact, dict) and "event" in fact:
        level = LEVELS.get(fact.get("level", ""), "info")
        getattr(log, level)(f"dataplane.{fact['event']}", text=fact.get("text", ""))
    elif line.strip():
        log.error("dataplane.output", text=line.decode(errors="replace").rstrip())
