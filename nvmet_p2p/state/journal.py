"""Journals of probes: what a calibration overwrites on a drive, to be put back if it could not do so itself.

The data plane writes the journal (``native/src/calibrate.h``) under another name, fsyncs it, gives it its name, and
only then writes to the drive; it removes it when the drive holds its own data again. So a journal that is found is put
back before its drive is opened:

- One that is whole is written back, and then removed.
- Anything else is damaged, or belongs to a drive that cannot be told apart from another one: the back end is refused,
  until a person has decided. Nothing is ever guessed.
- A file that never got its name was never complete: the drive was not written to.

Device names change from boot to boot. So a journal's file is named after the identity of its drive, not after its path.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.protocol.digest import crc32c
from nvmet_p2p.state.calibrations import this_boot
from nvmet_p2p.target.config import BdevConfig

log = structlog.get_logger()

FOLDER: Final = "calibration"
SUFFIX: Final = ".journal"
INCOMPLETE: Final = ".new"  # the data plane's, behind the name
MAGIC: Final = b"nvmet-p2p probe\n"
VERSION: Final = 1
HEADER_BYTES: Final = 4096
LENGTH_MAX: Final = 1 << 24
NVME: Final = "nvme "  # begins what the data plane calls a drive that it drives itself
SURE: Final = "drive "  # an identity that the drive itself has given
_HEADER: Final = struct.Struct("<16sIIQQQ256s256s1024s")
_CRC_AT: Final = 20


class JournalError(OperatorError):
    """A journal is in the way of a back end (-EUCLEAN)."""

    def __init__(self, message: str) -> None:
        super().__init__(-errno.EUCLEAN, message)


@dataclass(frozen=True, slots=True)
class Journal:
    """``data`` belongs to byte ``offset`` of the drive, which has ``drive_bytes``."""

    offset: int
    drive_bytes: int
    bdev: str
    pool: str
    path: str
    data: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Journal:
        """Raises ``ValueError``: it is damaged."""
        if len(raw) < HEADER_BYTES:
            raise ValueError(f"{len(raw)} bytes are too few")
        magic, version, crc, offset, length, drive_bytes, *names = _HEADER.unpack_from(raw)
        if magic != MAGIC or version != VERSION or not 0 < length <= LENGTH_MAX:
            raise ValueError("its header is not one")
        if len(raw) != HEADER_BYTES + length:
            raise ValueError(f"it has {len(raw)} bytes instead of {HEADER_BYTES + length}")
        head = raw[:_CRC_AT] + bytes(4) + raw[_CRC_AT + 4 : HEADER_BYTES]
        if crc32c(raw[HEADER_BYTES:], crc32c(head)) != crc:
            raise ValueError("its checksum is wrong")
        if offset + length > drive_bytes:
            raise ValueError("its blocks lie behind the end of its drive")
        bdev, pool, path = (name.split(b"\0")[0].decode(errors="replace") for name in names)
        return cls(offset, drive_bytes, bdev, pool, path, raw[HEADER_BYTES:])


def identity(filename: str, sysfs_root: Path) -> str:
    """Names a file or drive so that no other one has the name. Raises ``OSError``.

    A drive that says nothing of itself is named by its number, for this boot.
    """
    found = os.stat(filename)
    if not stat.S_ISBLK(found.st_mode):
        return f"file {os.path.realpath(filename)} {found.st_ino}"
    number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    place = Path(os.path.realpath(sysfs_root / "dev/block" / number))
    part = _text(place / "partition")
    disk = place.parent if part else place
    for name in ("wwid", "device/wwid", "serial", "device/serial"):
        if known := _text(disk / name):
            return f"{SURE}{name} {known} part {part or 0}"
    return f"device {number} of boot {this_boot()}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


class Journals:
    """The journals in the state directory. All methods block."""

    def __init__(self, directory: Path, sysfs_root: Path = Path("/sys")) -> None:
        self.folder = directory / FOLDER
        self._sysfs_root = sysfs_root

    def path(self, filename: str) -> Path:
        """Where the journal of a file or drive is, if there is one. Raises ``OSError`` if there is no such file."""
        name = hashlib.sha256(identity(filename, self._sysfs_root).encode()).hexdigest()[:32]
        return self.folder / f"{name}{SUFFIX}"

    def path_of_bdev(self, name: str) -> Path:
        """Where the journal of a bdev is that is no file: the data plane tells its drive from another one."""
        return self.folder / f"{hashlib.sha256(f'{NVME}{name}'.encode()).hexdigest()[:32]}{SUFFIX}"

    def left_on_nvme(self, name: str) -> list[Path]:
        """The journals that may be of the drive of such a bdev, its own first. Raises ``JournalError``: damaged."""
        own = self.path_of_bdev(name)
        found = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}"), key=lambda path: (path != own, path)):
            try:
                if Journal.parse(path.read_bytes()).path.startswith(NVME):
                    found.append(path)
            except (OSError, ValueError) as error:
                if path == own:
                    raise JournalError(
                        f"a probe of {name} was interrupted, and the journal of what it had overwritten is damaged "
                        f"({error}): {path}. Move the file away to open it as it is"
                    ) from error
        return found

    @contextlib.contextmanager
    def reserved(self, filename: str, *, bdev: str = "") -> Iterator[Path]:
        """Where the data plane is to write the journal of a probe of a file, or else of a bdev.

        Raises ``OperatorError``.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.path(filename) if filename else self.path_of_bdev(bdev)
            path.with_name(f"{path.name}{INCOMPLETE}").unlink(missing_ok=True)
        except OSError as error:
            raise OperatorError(-(error.errno or errno.EIO), f"no journal for {filename}: {error.strerror}") from error
        yield path

    def is_left(self, filename: str) -> bool:
        """A probe has not put everything back."""
        try:
            return self.path(filename).exists()
        except OSError:
            return False

    def restore(self, bdev: BdevConfig) -> None:
        """Puts back what a probe that was interrupted has left on the drive of ``bdev``, which is not open yet.

        Raises ``JournalError`` if that cannot be done: the back end must not be opened.
        """
        if not bdev.filename or not self.folder.is_dir():
            return
        try:
            path = self.path(bdev.filename)
        except OSError:
            return  # there is no such file: whoever opens it says so
        if path.exists():
            self._put_back(path, bdev.filename)
        if not identity(bdev.filename, self._sysfs_root).startswith(SURE):
            self._check_strangers(bdev)

    def _put_back(self, path: Path, filename: str) -> None:
        try:
            journal = Journal.parse(path.read_bytes())
            _write_back(journal, filename)
            log.warning("journal.restored", path=str(path), drive=filename, bytes=len(journal.data))
            path.unlink()
            _sync(self.folder)
        except ValueError as error:
            raise JournalError(
                f"a probe of {filename} was interrupted, and the journal of what it had overwritten is damaged "
                f"({error}): {path}. Up to 1 MiB in the middle of the drive may hold a test pattern. Move the file "
                "away to open it as it is"
            ) from error
        except OSError as error:
            raise JournalError(
                f"a probe of {filename} was interrupted, and what it had overwritten cannot be put back "
                f"({error.strerror or error}): {path}"
            ) from error

    def _check_strangers(self, bdev: BdevConfig) -> None:
        """A journal that names this path, but another drive: either may be the one that was probed."""
        real = os.path.realpath(bdev.filename)
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            try:
                journal = Journal.parse(path.read_bytes())
            except (OSError, ValueError):
                continue  # its own drive is refused when that comes
            if journal.path == real:
                raise JournalError(
                    f"a probe of {real} was interrupted, and the drive of that name is another one now, or cannot be "
                    f"told from another: {path}. Move the file away to open it as it is"
                )


def _write_back(journal: Journal, filename: str) -> None:
    fd = os.open(filename, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.lseek(fd, 0, os.SEEK_END) < journal.drive_bytes:
            raise ValueError("its drive is smaller now")
        for _ in range(2):  # the second time it must be there
            view, at = memoryview(journal.data), journal.offset
            while view:
                count = os.pwrite(fd, view, at)
                view, at = view[count:], at + count
            os.fsync(fd)
            os.posix_fadvise(fd, journal.offset, len(journal.data), os.POSIX_FADV_DONTNEED)
            if os.pread(fd, len(journal.data), journal.offset) == journal.data:
                return
        raise OSError(errno.EIO, "it does not read back as it was written")
    finally:
        os.close(fd)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
