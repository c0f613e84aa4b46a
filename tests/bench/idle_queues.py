"""Cost grows with work, not with size: IOPS of busy queues beside a thousand mostly idle ones.

    python -m tests.bench.idle_queues --idle 1016 --pairs 7

Two of our targets share one core and take turns (A B A B ...): one has only the load generator's queues, the other as
well the idle queues, each of which reads a block every five seconds. Prints the median of the pairs' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvmet_p2p.cli import bench_tool
from nvmet_p2p.cli.bench_tool import Target
from tests.bench.compare_spdk import descendants
from tests.support import nvme
from tests.support.daemon import ROOT, Daemon, Ns

REPORT = ROOT / "build/reports/idle_queues.json"
PERIOD_S = 5.0


def pin(pid: int, cpu: int) -> None:
    """Every thread of a process and of its descendants onto that CPU."""
    for process in descendants(pid):
        for task in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), {cpu})


class Idlers:
    """Connected queues, each of which reads one block a period, from one thread with the load generator's CPU."""

    def __init__(self, tree: Any, count: int) -> None:
        for _ in range(count):
            tree.started().io(icd_max=0)
        self._queues = [host.queues[-1] for host in tree.hosts]
        self.reads = 0

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """The queues read inside; a read that fails fails the measurement."""
        stop = threading.Event()
        failed: list[Exception] = []
        thread = threading.Thread(target=self._run, args=(stop, failed))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]

    def _run(self, stop: threading.Event, failed: list[Exception]) -> None:
        try:
            while not stop.is_set():
                began = time.monotonic()
                for queue in self._queues:
                    if stop.is_set():
                        return
                    status = queue.read(0, 1, 512).status
                    if status != nvme.OK:
                        raise AssertionError(f"an idle queue's read ended with {status:#x}")
                    self.reads += 1
                stop.wait(max(0.0, PERIOD_S - (time.monotonic() - began)))
        except (AssertionError, OSError) as error:
            failed.append(error)


def measure(args: argparse.Namespace, target: Target) -> float:
    """IOPS of one run of the load generator over its own eight queues."""
    options = f"--rw randread --bs 4k --depth 16 --queues {args.busy} --poll --cpus {args.bench_cpu}".split()
    options += ["--time", str(args.time), "--warmup", "0.3"]
    return float(bench_tool.run(args.binary, target, options)["total"]["iops"])


def main() -> None:
    """Measures, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=1016)
    parser.add_argument("--busy", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--time", type=float, default=1.0)
    parser.add_argument("--target-cpu", type=int, default=0)
    parser.add_argument("--bench-cpu", type=int, default=1)
    parser.add_argument("--dataplane", default="native")
    args = parser.parse_args()
    args.binary = bench_tool.find_binary()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * args.idle + 256), hard))
    with contextlib.ExitStack() as stack:
        daemons = [
            stack.enter_context(Daemon(engine=args.dataplane, nofile=4 * args.idle + 512)) for _ in ("few", "many")
        ]
        trees = [daemon.subsystem(Ns(blocks=1 << 17)) for daemon in daemons]
        for daemon in daemons:
            pin(daemon.pid, args.target_cpu)
        targets = [Target("127.0.0.1", str(tree.address[1]), tree.nqn) for tree in trees]
        idlers = Idlers(trees[1], args.idle)
        iops: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.pairs):
            iops[0].append(measure(args, targets[0]))
            with idlers.reading():
                iops[1].append(measure(args, targets[1]))
    ratios = [many / few for few, many in zip(*iops, strict=True)]
    figures = {
        "queues": [args.busy, args.busy + args.idle],
        "iops": [round(statistics.median(each)) for each in iops],
        "ratio": round(statistics.median(ratios), 3),
        "idle_reads": idlers.reads,
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
