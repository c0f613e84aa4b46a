"""What was changed, and how it was before: the file that ``restore`` goes by.

It is written before the change that it speaks of. Nothing that it records outlives a boot, so a record of an earlier
boot is forgotten.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from msgspec import field

from nvmet_p2p.setup.machine import SetupError

NAME: Final = "setup.json"
VERSION: Final = 1


class BoundDevice(msgspec.Struct, kw_only=True):
    """A drive as it was: its driver ("" for none) and its driver_override."""

    driver: str
    override: str


class Record(msgspec.Struct, kw_only=True):
    """``pages``: an attribute below the root of sysfs and the number of huge pages that it held; ``noiommu``: likewise
    vfio's parameter, "" where it was not touched."""

    boot_id: str
    version: int = VERSION
    devices: dict[str, BoundDevice] = field(default_factory=dict)
    pages: dict[str, int] = field(default_factory=dict)
    noiommu: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.devices or self.pages or self.noiommu)


class RecordFile:
    """``setup.json`` in a directory; one process at a time has it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME

    @contextlib.contextmanager
    def locked(self) -> Iterator[RecordFile]:
        """Raises ``SetupError`` when another set-up is under way."""
        fd = -1
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield self
        except BlockingIOError as error:
            raise SetupError(f"another `nvmet-p2p setup` is at work ({self.path.parent})") from error
        except OSError as error:
            raise SetupError(f"{error.filename or self.path}: {error.strerror}") from error
        finally:
            if fd >= 0:
                os.close(fd)

    def load(self, boot_id: str) -> tuple[Record, bool]:
        """The record of this boot, and whether there was one of an earlier boot. Raises ``SetupError``."""
        try:
            record = msgspec.json.decode(self.path.read_bytes(), type=Record)
        except FileNotFoundError:
            return Record(boot_id=boot_id), False
        except OSError as error:
            raise SetupError(f"{self.path}: {error.strerror}") from error
        except msgspec.MsgspecError as error:
            raise SetupError(f"{self.path} cannot be read ({error}); remove it if nothing is bound") from error
        if record.version != VERSION:
            raise SetupError(f"{self.path} is of version {record.version}, this nvmet-p2p knows {VERSION}")
        if record.boot_id != boot_id:
            return Record(boot_id=boot_id), not record.is_empty
        return record, False

    def save(self, record: Record) -> None:
        """Durable when it returns; an empty record is no file."""
        if record.is_empty:
            self.path.unlink(missing_ok=True)
            return
        new = self.path.with_suffix(".json.new")
        with open(new, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
