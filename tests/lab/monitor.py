"""What a guest says of itself: its kernel's log, and QEMU's machine monitor."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SPLAT = re.compile(
    r"\bWARNING:|\bBUG:|\bOops\b|\bCall Trace:|general protection fault|blocked for more than"
    r"|possible .* (deadlock|locking)|refcount_t:|\brcu: INFO|KASAN|UBSAN|list_(add|del) corruption"
    r"|soft lockup|unable to handle"
)


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


def splats(messages: tuple[KernelMessage, ...]) -> tuple[KernelMessage, ...]:
    """Those of the messages that tell of a fault in the kernel."""
    return tuple(m for m in messages if _SPLAT.search(m.text))


class KernelLog:
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


class Qmp:
    """QEMU's machine monitor."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rw")
        self._lock = threading.Lock()
        with contextlib.suppress(OSError):  # QEMU that ends at once is found dead soon enough, and says why
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
        with self._lock, self._connection, contextlib.suppress(OSError):  # what QEMU did not take any more
            self._file.close()


def serve_ctl(connection: socket.socket, qmp: Qmp) -> None:
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
