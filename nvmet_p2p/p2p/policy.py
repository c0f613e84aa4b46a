"""Where data may be staged: the policy of a target, subsystem, listener or namespace, and which of them counts."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.sysfs import normal_bdf

Level = Literal["namespace", "listener", "subsystem", "target", "default"]
OFF: Final = "off"
AUTO: Final = "auto"
POOL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")
FALLBACKS: Final = ("prefer", "strict")


@dataclass(frozen=True, slots=True)
class StagingPolicy:
    """Where data may be staged.

    ``mode``: "off" (host memory), "auto" (what measures well), or the name of a pool: a provider's PCI address, or an
    emulated pool's name. ``strict``: never host memory instead; where no pool can be used the configuration is refused.
    """

    mode: str = AUTO
    strict: bool = False

    @classmethod
    def parse(cls, mode: str, fallback: str = "prefer") -> StagingPolicy:
        """From what an operator wrote. Raises :class:`OperatorError` (-EINVAL).

        ``mode`` may hold both, as in "0000:03:00.0,strict". An address may leave out its domain 0000.
        """
        text, comma, second = mode.partition(",")
        text, fallback = text.strip(), second.strip() if comma else fallback
        if fallback not in FALLBACKS:
            raise OperatorError(-errno.EINVAL, f"staging: {fallback!r} is neither 'prefer' nor 'strict'")
        strict = fallback == "strict"
        if text.lower() in (OFF, AUTO):
            if text.lower() == OFF and strict:
                raise OperatorError(-errno.EINVAL, "staging: 'off' means host memory; 'strict' forbids it")
            return cls(text.lower(), strict)
        name = normal_bdf(text) or text
        if not POOL_NAME.fullmatch(name):
            raise OperatorError(
                -errno.EINVAL, f"staging: {text!r} is neither 'off' nor 'auto' nor a PCI address nor a pool's name"
            )
        return cls(name, strict)

    @property
    def pool(self) -> str | None:
        """The pool that is named, if one is."""
        return None if self.mode in (OFF, AUTO) else self.mode

    def __str__(self) -> str:
        return self.mode if self.mode == OFF else f"{self.mode},{FALLBACKS[self.strict]}"


DEFAULT: Final = StagingPolicy()


@dataclass(frozen=True, slots=True)
class Effective:
    """The policy that counts, and where it was set."""

    policy: StagingPolicy
    level: Level


def effective(
    *,
    namespace: StagingPolicy | None = None,
    listener: StagingPolicy | None = None,
    subsystem: StagingPolicy | None = None,
    target: StagingPolicy | None = None,
) -> Effective:
    """The nearest one that is set: namespace, listener, subsystem, target; "auto" if none is."""
    levels: Iterable[tuple[Level, StagingPolicy | None]] = (
        ("namespace", namespace),
        ("listener", listener),
        ("subsystem", subsystem),
        ("target", target),
    )
    for level, policy in levels:
        if policy is not None:
            return Effective(policy, level)
    return Effective(DEFAULT, "default")
