"""Who may see and use what: pure questions to the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nvmet_p2p.target.config import (
    BdevFacts,
    ListenAddress,
    ListenerConfig,
    NamespaceConfig,
    SubsystemConfig,
    TargetConfig,
)
from nvmet_p2p.target.validate import DISCOVERY_NQN
from nvmet_p2p.wire.spec import AnaState

ANA_STATES: Final = {
    "optimized": AnaState.OPTIMIZED,
    "non_optimized": AnaState.NON_OPTIMIZED,
    "inaccessible": AnaState.INACCESSIBLE,
}
UNREADABLE_STATES: Final = frozenset({AnaState.INACCESSIBLE, AnaState.PERSISTENT_LOSS})


@dataclass(frozen=True, slots=True)
class Namespace:
    """An allocated namespace that a host may see. ``facts`` is ``None`` while its back end is away: it is inactive."""

    config: NamespaceConfig
    facts: BdevFacts | None
    write_protected: bool


def host_allowed(subsystem: SubsystemConfig, hostnqn: str) -> bool:
    """Is the host on the allow-list. A host that gives no NQN gets in only where everybody does."""
    return subsystem.allow_any_host or hostnqn in subsystem.hosts


def discovery_allowed(config: TargetConfig, hostnqn: str) -> bool:
    """May the host use the discovery service. Without a configured discovery subsystem everybody may."""
    subsystem = config.subsystems.get(DISCOVERY_NQN)
    return subsystem is None or host_allowed(subsystem, hostnqn)


def find_listener(subsystem: SubsystemConfig, address: ListenAddress) -> ListenerConfig | None:
    """The subsystem's listener at this address."""
    return next((listener for listener in subsystem.listeners if listener.address == address), None)


def all_addresses(config: TargetConfig) -> dict[ListenAddress, None]:
    """Every address that any subsystem listens on, once."""
    return {listener.address: None for subsystem in config.subsystems.values() for listener in subsystem.listeners}


def ana_state(subsystem: SubsystemConfig, address: ListenAddress, anagrpid: int) -> int:
    """The group's state through a listener, as the ANA log page numbers it. Without ANA reporting all is optimized."""
    listener = find_listener(subsystem, address) if subsystem.ana_reporting else None
    if listener is None:
        return AnaState.OPTIMIZED
    return ANA_STATES[listener.ana_states.get(anagrpid, "optimized")]
