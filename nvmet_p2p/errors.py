"""The project's exception types: a host's fault, an operator's fault and our own are never the same type."""

from __future__ import annotations

from dataclasses import dataclass


class NvmetP2PError(Exception):
    """Root of everything that this package raises on purpose."""


@dataclass(eq=False)
class NvmeStatusError(NvmetP2PError):
    """A command must complete with this status (NVMe base specification, section 4.2.3).

    ``status`` is ``sct << 8 | sc``. ``error_loc`` is the byte offset in the SQE (or, for Connect data, in the data) of
    the field that was wrong, ``None`` when no field is to blame. ``dw0`` is the command specific result, e.g. IPO and
    IATTR of a failed Connect. ``reason`` is for our log only; it is never sent.
    """

    status: int
    reason: str = ""
    dnr: bool = True
    error_loc: int | None = None
    dw0: int = 0

    def __str__(self) -> str:
        return f"status {self.status:#05x}{' DNR' if self.dnr else ''}: {self.reason or 'no reason given'}"


@dataclass(eq=False)
class OperatorError(NvmetP2PError):
    """An admin call was refused; nothing has changed.

    ``code`` is a JSON-RPC error code (-32602 and the like) or, as SPDK does, a negated errno (``-errno.EEXIST``).
    """

    code: int
    message: str

    def __str__(self) -> str:
        return self.message


class ConfigError(NvmetP2PError):
    """The settings (file or options) cannot be used; the message says which one and what was expected."""


class StateError(NvmetP2PError):
    """The persistent state cannot be used: torn, of a newer version, or not writable. The file is left untouched."""


class InvariantError(NvmetP2PError):
    """A mistake of our own. Reaching this is a bug."""
