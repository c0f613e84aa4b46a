"""Where the accepted configuration is kept: one file, replaced whole.

The file is JSON: ``{"format", "version", "sha256", "config"}``, ``config`` being the ``TargetConfig`` and ``sha256``
that of its encoding. A change is written to a temporary file beside it, fsynced, renamed over it, and the folder is
fsynced; so after a crash at any moment the file holds the last accepted configuration or the one being accepted, never
a mixture. A file that does not say what it should is refused and left as it is: a person must look at it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Final, Protocol

import msgspec

from nvmet_p2p.errors import StateError
from nvmet_p2p.target.config import TargetConfig

FORMAT: Final = "nvmet_p2p state"
VERSION: Final = 1
FILE_NAME: Final = "config.json"


class StateStore(Protocol):
    """Keeps one ``TargetConfig``. Both methods may block on the disk and run in a thread."""

    def load(self) -> TargetConfig:
        """The configuration kept last; an empty one when there never was any. Raises ``StateError``."""
        ...

    def save(self, config: TargetConfig) -> None:
        """Returns when the configuration would survive a power cut. Raises ``StateError`` and keeps the old one."""
        ...

    def close(self) -> None: ...


class _Header(msgspec.Struct, frozen=True):
    format: str
    version: int


class _Document(msgspec.Struct, frozen=True):
    format: str
    version: int
    sha256: str
    config: msgspec.Raw


class FileStore:
    """The default store: ``config.json`` in the state directory, which is locked against a second daemon."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"state directory {directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StateError(f"state directory {directory} is in use by another nvmet-p2p daemon") from error

    def load(self) -> TargetConfig:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return TargetConfig()
        except OSError as error:
            raise StateError(f"{self.path}: {error.strerror}") from error
        return decode(raw, str(self.path))

    def save(self, config: TargetConfig) -> None:
        temporary = self.path.with_suffix(".json.new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(encode(config))
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.rename(temporary, self.path)
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StateError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        os.close(self._lock)


def encode(config: TargetConfig) -> bytes:
    """The bytes of the state file for ``config``. The order in which things were added is kept."""
    body = msgspec.json.encode(config)
    document = _Document(FORMAT, VERSION, hashlib.sha256(body).hexdigest(), msgspec.Raw(body))
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def decode(raw: bytes, name: str) -> TargetConfig:
    """The configuration in the bytes of a state file, ``name`` being what messages call it. Raises ``StateError``."""
    try:
        header = msgspec.json.decode(raw, type=_Header)
    except msgspec.MsgspecError as error:
        raise StateError(f"{name} is torn or no state file of nvmet_p2p ({error}); it was left untouched") from error
    if header.format != FORMAT:
        raise StateError(f"{name} is not a state file of nvmet_p2p (format {header.format!r}); it was left untouched")
    if header.version != VERSION:
        raise StateError(
            f"{name} is of version {header.version}, this nvmet_p2p reads version {VERSION}; it was left untouched"
        )
    try:
        document = msgspec.json.decode(raw, type=_Document)
        body = msgspec.json.format(bytes(document.config), indent=-1)
        if hashlib.sha256(body).hexdigest() != document.sha256:
            raise StateError(f"{name} does not match its checksum: torn, or changed by hand; it was left untouched")
        return msgspec.json.decode(body, type=TargetConfig)
    except msgspec.MsgspecError as error:
        raise StateError(f"{name} cannot be read ({error}); it was left untouched") from error
