"""Our verdicts about pairs of devices are the kernel's: its distances, its ways, its I/O, its words."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.lab.conftest import P2P_MACHINE, need_dataplane
from tests.lab.inside import Drive, InsideTarget, drives
from tests.lab.lab import Guest
from tests.lab.machine import Machine
from tests.lab.runtime import PYTHON
from tests.lab.staging import Staged
from tests.support.daemon import RpcError

pytestmark = [pytest.mark.p2p, pytest.mark.timeout(400, func_only=True)]
TYPES = {"2": "none", "3": "bus-address", "4": "host-bridge"}  # enum pci_p2pdma_map_type of 6.17 and on
REFUSED = re.compile(
    r"nvme (\S+): cannot be used for peer-to-peer DMA as the client and provider \((\S+)\) do not share an upstream "
    r"bridge or whitelisted host bridge"
)
OURS = """
import dataclasses, json
from nvmet_p2p.p2p.distance import distance
from nvmet_p2p.p2p.sysfs import Proc, Sysfs
from nvmet_p2p.p2p.topology import Topology
topology = Topology.read(Sysfs(), proc=Proc.read())
drives = [bdf for bdf, device in topology.devices.items() if device.is_nvme]
print(json.dumps([dataclasses.asdict(distance(topology, a, b)) for a in drives for b in drives]))
"""


@dataclass(frozen=True)
class Kernel:
    """What the kernel says of a pair."""

    distance: int
    way: str


def ours(guest: Guest) -> dict[tuple[str, str], dict[str, Any]]:
    """Our verdicts by (provider, client), from the code that runs in the guest."""
    done = guest.run(f"target-enter {PYTHON} - <<'END'\n{OURS}\nEND")
    return {(verdict["provider"], verdict["client"]): verdict for verdict in done.json()}


def kernels(guest: Guest, found: dict[str, Drive]) -> tuple[dict[tuple[str, str], Kernel], set[tuple[str, str]]]:
    """The kernel's verdicts by (provider, client), and the pairs that its log complains of."""
    places = {drive.device: drive.bdf for drive in found.values()}
    done = guest.run("p2p-distances", timeout=90)
    verdicts = {}
    for line in done.out.splitlines():
        bdf, device, far, kind = line.split()
        verdicts[bdf, places[device]] = Kernel(int(far), TYPES.get(kind, kind))
    log = {(words[2], words[1]) for message in done.messages if (words := REFUSED.search(message.text))}
    return verdicts, log


def compare(guest: Guest, found: dict[str, Drive]) -> dict[tuple[str, str], dict[str, Any]]:
    """Every pair of a drive with CMB and a drive; our verdicts by name."""
    mine, (theirs, log) = ours(guest), kernels(guest, found)
    names = {drive.bdf: drive.id for drive in found.values()}
    providers = [drive for drive in found.values() if drive.cmb]
    assert len(theirs) == len(providers) * len(found)
    for (bdf, client), kernel in theirs.items():
        verdict, pair = mine[bdf, client], f"{names[bdf]} -> {names[client]}"
        distance = verdict["cost"] if verdict["ok"] else -1
        way = "bus-address" if verdict["map_type"] == "same-device" else verdict["map_type"]
        assert Kernel(distance, way if kernel.way != "?" else "?") == kernel, pair
        assert verdict["ok"] == ((bdf, client) not in log), pair
        assert verdict["ok"] or (verdict["reason"] and verdict["remedy"]), pair
    for provider in providers:
        devices = " ".join(drive.device for drive in found.values())
        results = guest.run(f"p2p-io {provider.bdf} {devices}").out.splitlines()
        for drive, result in zip(found.values(), results, strict=True):
            # not EREMOTEIO, as one would think: the block layer has no better word for it
            expected = "ok" if mine[provider.bdf, drive.bdf]["ok"] else "EINVAL"
            assert result == expected, f"{provider.id} -> {drive.id}"
    return {(names[a], names[b]): verdict for (a, b), verdict in mine.items()}


def test_a_cpu_that_passes_it_on(p2p_guest: Guest) -> None:
    """AMD Zen: every pair works, those behind one switch by bus addresses."""
    verdicts = compare(p2p_guest, drives(p2p_guest))
    ways = {pair: (verdict["map_type"], verdict["cost"]) for pair, verdict in verdicts.items()}
    assert ways["A", "A"] == ("same-device", 0)
    assert ways["A", "B"] == ways["B", "N"] == ("bus-address", 4)
    assert ways["C", "A"] == ("host-bridge", 5)
    assert ways["D", "T"] == ("host-bridge", 4)
    assert all(verdict["ok"] for verdict in verdicts.values())


def test_a_host_bridge_that_is_not_listed(boot: Callable[[Machine], Guest]) -> None:
    """An Intel CPU, whose root complex QEMU's is not one that Linux trusts: only what shares a switch works."""
    need_dataplane()
    guest = boot(replace(P2P_MACHINE, cpu="Nehalem"))
    verdicts = compare(guest, drives(guest))
    accepted = {pair for pair, verdict in verdicts.items() if verdict["ok"]}
    assert accepted == {(a, b) for a in "ABN" for b in "ABN"} | {("C", "C"), ("D", "D"), ("T", "T")}
    refusal = verdicts["A", "C"]
    assert refusal["code"] == "host-bridge-not-listed"
    assert "8086:29c0" in refusal["reason"]
    with contextlib.closing(InsideTarget(guest)) as inside:
        staged = Staged(inside.start(), drives(guest), ["A"])
        with pytest.raises(RpcError) as refused:
            staged.policy("C", "strict")
        assert refused.value.code == -errno.EHOSTUNREACH, refused.value
        assert "8086:29c0" in refused.value.message
        staged.policy("C", "prefer")
        assert staged.state() == "degraded"
        staged.policy("B", "strict")
        assert staged.state() == "pool"
