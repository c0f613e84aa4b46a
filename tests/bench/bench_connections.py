"""Connections a second and memory for each controller; run by `make bench`, which prints and records the figures.

Each controller is one association with one I/O queue, from the TCP connection to its first Read. The figures depend on
the machine: they are recorded in build/reports/bench_connections.json, never asserted.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from pathlib import Path

from tests.support import nvme
from tests.support.daemon import ROOT, Daemon, Ns, eventually
from tests.support.initiator import Host

COUNT = int(os.environ.get("NVMET_P2P_BENCH_CONTROLLERS", "500"))
REPORT = ROOT / "build/reports/bench_connections.json"


def bench_connections() -> dict[str, object]:
    """The figures of one run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * COUNT + 256), hard))
    with Daemon(nofile=4 * COUNT + 256) as daemon:
        tree = daemon.subsystem(Ns())
        with Host(tree.address, tree.nqn) as warm:
            warm.start().io()
        eventually(lambda: not tree.rpc("nvmf_subsystem_get_controllers"), "the first controller is gone")
        rss, cpu, began = daemon.rss_kib(), daemon.cpu_seconds(), time.perf_counter()
        for _ in range(COUNT):
            tree.started().io(icd_max=0)
        wall, spent = time.perf_counter() - began, daemon.cpu_seconds() - cpu
        with_all = daemon.rss_kib()
        for host in tree.hosts:
            assert host.queues[-1].read(0, 1, 512).status == nvme.OK
        tree.close_hosts()
        eventually(lambda: not tree.rpc("nvmf_subsystem_get_controllers"), "all controllers are gone")
        return {
            "controllers": COUNT,
            "connections": 2 * COUNT,
            "connections_per_second": round(2 * COUNT / wall, 1),
            "cpu_ms_per_connection": round(1000 * spent / (2 * COUNT), 3),
            "kib_per_controller": round((with_all - rss) / COUNT, 2),
            "rss_kib_idle": rss,
            "rss_kib_after": daemon.rss_kib(),
            "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        }


def test_bench_connections() -> None:
    """Collected by `make bench` alone: the file's name is not one of a test's."""
    figures = bench_connections()
    write(REPORT, figures)
    print("\n" + json.dumps(figures, indent=2))


def write(path: Path, figures: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
