"""What the controllers of a subsystem see of its namespaces.

A change concerns every controller of a subsystem, and there may be hundreds of them, each with a thousand namespaces.
Those that see the same share one value, and what a change makes of one value is found out once: so a change costs the
namespaces once and each controller little, and the event loop is not kept from Keep Alive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvmet_p2p.target import access
from nvmet_p2p.target.access import Namespace
from nvmet_p2p.target.config import BdevFacts, ListenAddress, SubsystemConfig
from nvmet_p2p.target.effects import IN_HOST_MEMORY, NamespaceView, Placement

Placements = Mapping[tuple[int, ListenAddress], Placement]  # by NSID and listener; host memory where there is none
AnaGroups = dict[int, tuple[int, tuple[int, ...]]]  # ANA group identifier -> (state, NSIDs), ascending


@dataclass(frozen=True, slots=True, eq=False)
class Visible:
    """The visible namespaces by NSID, ascending; the ANA groups and the data plane's views of the active ones."""

    namespaces: dict[int, Namespace]
    ana: AnaGroups
    views: dict[int, NamespaceView]


@dataclass(frozen=True, slots=True)
class Difference:
    """From one ``Visible`` to the next: NSIDs to be named in Changed Namespaces, groups that differ, other views."""

    nsids: list[int]
    ana_groups: list[int]
    views: bool


class Comparison:
    """Differences during one change, each found once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Visible, Visible, Difference]] = {}  # holds what the ids stand for

    def difference(self, before: Visible, now: Visible) -> Difference:
        """What is different in ``now``."""
        key = id(before), id(now)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = before, now, _difference(before, now)
        return known[2]


def _difference(before: Visible, now: Visible) -> Difference:
    return Difference(
        nsids=[
            nsid
            for nsid in sorted(before.namespaces.keys() | now.namespaces.keys())
            if _host_sees(before.namespaces.get(nsid)) != _host_sees(now.namespaces.get(nsid))
        ],
        ana_groups=[
            group for group in sorted(before.ana.keys() | now.ana.keys()) if before.ana.get(group) != now.ana.get(group)
        ],
        views=before.views != now.views,
    )


def _host_sees(namespace: Namespace | None) -> object:
    """What of a namespace is told by Namespace Attribute Changed: not its ANA group, which has its own event."""
    if namespace is None or namespace.facts is None:
        return None
    config = namespace.config
    return (config.bdev_name, config.uuid, config.nguid, config.eui64, namespace.facts, namespace.write_protected)


class Sight:
    """Makes the ``Visible`` of each kind of controller of one subsystem, once for each configuration and state."""

    def __init__(self, config: SubsystemConfig) -> None:
        self._shared: dict[tuple[ListenAddress, frozenset[int]], Visible] = {}
        self.placements: Placements = {}
        self.replace_config(config)

    def replace_config(self, config: SubsystemConfig) -> None:
        """The configuration is another one."""
        self._config = config
        self.bdev_names = frozenset(namespace.bdev_name for namespace in config.namespaces.values())
        shown: dict[str, set[int]] = {}
        for nsid, namespace in config.namespaces.items():
            if namespace.no_auto_visible:
                for hostnqn in namespace.hosts:
                    shown.setdefault(hostnqn, set()).add(nsid)
        self._shown = {hostnqn: frozenset(nsids) for hostnqn, nsids in shown.items()}
        self._open = frozenset(nsid for nsid, namespace in config.namespaces.items() if not namespace.no_auto_visible)
        self.forget()

    def forget(self) -> None:
        """A back end, a write protection or a placement is another one."""
        self._shared.clear()

    def of(
        self, hostnqn: str, listener: ListenAddress, bdevs: Mapping[str, BdevFacts], protection: Mapping[int, bool]
    ) -> Visible:
        """What this host sees through this listener. ``protection``: NSID -> what a host has set."""
        shown = self._shown.get(hostnqn, frozenset())
        known = self._shared.get((listener, shown))
        if known is None:
            known = self._shared[listener, shown] = self._look(self._open | shown, listener, bdevs, protection)
        return known

    def _look(
        self,
        nsids: frozenset[int],
        listener: ListenAddress,
        bdevs: Mapping[str, BdevFacts],
        protection: Mapping[int, bool],
    ) -> Visible:
        namespaces: dict[int, Namespace] = {}
        members: dict[int, list[int]] = {}
        for nsid in sorted(nsids):
            config = self._config.namespaces[nsid]
            facts = bdevs.get(config.bdev_name)
            protected = protection.get(nsid, config.write_protected) or (facts is not None and facts.readonly)
            namespaces[nsid] = Namespace(config, facts, protected)
            if facts is not None:
                members.setdefault(config.anagrpid, []).append(nsid)
        ana = {
            group: (access.ana_state(self._config, listener, group), tuple(members[group])) for group in sorted(members)
        }
        views = {
            nsid: NamespaceView(
                nsid=nsid,
                bdev=namespace.config.bdev_name,
                anagrpid=namespace.config.anagrpid,
                ana_state=ana[namespace.config.anagrpid][0],
                write_protected=namespace.write_protected,
                placement=self.placements.get((nsid, listener), IN_HOST_MEMORY),
            )
            for nsid, namespace in namespaces.items()
            if namespace.facts is not None
        }
        return Visible(namespaces, ana, views)
