"""What a host has set on one controller since its last reset."""

from __future__ import annotations

from typing import Final

from nvmet_p2p.wire.features import HostBehaviorSupport

COPY_FORMATS_ALWAYS: Final = 0b0011  # 0h and 1h need no enabling (NVM 3.2.3)
COPY_FORMATS_ENABLED: Final = 0b1100  # CDFE bits 2 and 3


class FeatureValues:
    """What a host has set since the last controller reset."""

    def __init__(self) -> None:
        self._values: dict[tuple[int, int], int] = {}
        self.host_behavior = HostBehaviorSupport()

    def get(self, fid: int, default: int, qualifier: int = 0) -> int:
        """The value, or the default. ``qualifier`` tells apart what has several values under one identifier."""
        return self._values.get((fid, qualifier), default)

    def set(self, fid: int, value: int, qualifier: int = 0) -> None:
        """Remembers a value."""
        self._values[fid, qualifier] = value

    @property
    def copy_formats(self) -> int:
        """Bit mask of the Copy descriptor formats that the host may use."""
        return COPY_FORMATS_ALWAYS | (self.host_behavior.cdfe & COPY_FORMATS_ENABLED)
