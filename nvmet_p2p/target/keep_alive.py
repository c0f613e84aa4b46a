"""Keep Alive Timeout values as a controller grants them (NVMe base 3.9, 5.1.25.1.8)."""

from __future__ import annotations

from nvmet_p2p import limits
from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.target.config import TransportConfig
from nvmet_p2p.wire.spec import ControllerType, Status


def granted_ms(kato_ms: int, transport: TransportConfig, kind: ControllerType, error_loc: int) -> int:
    """KATO in ms: not less than the transport's minimum, rounded up to its granularity (KAS); 0 turns it off.

    A discovery controller without a timer gets a fixed one, so that a host that vanishes leaves nothing behind (SPDK
    does the same, 2 minutes). Raises Keep Alive Timeout Invalid for what the controller cannot do.
    """
    if kato_ms == 0:
        return limits.DISCOVERY_KATO_MS if kind is ControllerType.DISCOVERY else 0
    granularity_ms = transport.kas * 100
    if granularity_ms == 0 or kato_ms > limits.KATO_MAX_MS:
        raise NvmeStatusError(Status.KEEP_ALIVE_INVALID, f"KATO {kato_ms} ms", error_loc=error_loc)
    return -(-max(kato_ms, transport.min_kato) // granularity_ms) * granularity_ms
