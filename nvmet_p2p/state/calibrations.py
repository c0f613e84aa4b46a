"""What calibrations have found, kept for as long as the machine is not booted again: ``calibrations.json``.

A result belongs to a pool and to what reaches it, both named so that a device which was replaced or bound anew has
another name. The file may be lost at any time: it is measured again then.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from nvmet_p2p.p2p.choice import Calibration

log = structlog.get_logger()

FILE_NAME: Final = "calibrations.json"
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class _Entry(msgspec.Struct, frozen=True):
    pool: str
    client: str
    result: Calibration


class _Document(msgspec.Struct, frozen=True):
    boot: str
    results: list[_Entry]


def this_boot(boot_id: Path = BOOT_ID) -> str:
    """The boot and the kernel that results hold for; empty where the kernel does not say."""
    try:
        return f"{boot_id.read_text(encoding='ascii').strip()} {os.uname().release}"
    except OSError:
        return ""


class Calibrations:
    """``boot`` as ``this_boot`` gives it; with an empty one nothing is kept on disk."""

    def __init__(self, directory: Path, boot: str) -> None:
        self._path = directory / FILE_NAME
        self._boot = boot
        self._results: dict[tuple[str, str], Calibration] = {}

    def load(self) -> None:
        """Takes over the results of this boot. A file that cannot be read is none."""
        try:
            document = msgspec.json.decode(self._path.read_bytes(), type=_Document)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("calibrations.unreadable", path=str(self._path), reason=str(error))
            return
        if self._boot and document.boot == self._boot:
            self._results = {(entry.pool, entry.client): entry.result for entry in document.results}

    def get(self, pool: str, client: str) -> Calibration | None:
        return self._results.get((pool, client))

    def put(self, pool: str, client: str, result: Calibration) -> None:
        """Kept, if the disk takes it."""
        self._results[pool, client] = result
        self._save()

    def forget(self, pool: str, client: str | None = None) -> None:
        """What is known of a pool, or of it and one client."""
        gone = [key for key in self._results if key[0] == pool and client in (None, key[1])]
        for key in gone:
            del self._results[key]
        if gone:
            self._save()

    def _save(self) -> None:
        if not self._boot:
            return
        entries = [_Entry(pool, client, result) for (pool, client), result in self._results.items()]
        temporary = self._path.with_suffix(".json.new")
        try:
            temporary.write_bytes(msgspec.json.encode(_Document(self._boot, entries)) + b"\n")
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("calibrations.not_saved", path=str(self._path), reason=error.strerror or str(error))
            with contextlib.suppress(OSError):
                temporary.unlink()
