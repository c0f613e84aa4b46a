"""Our target against SPDK's nvmf_tgt on the same core, with the same load generator on another core.

    SPDK_NVMF_TGT=.../nvmf_tgt LD_LIBRARY_PATH=... python -m tests.bench.compare_spdk --help

SPDK is never built here. Each case is measured in adjacent pairs (ours, SPDK's, ours, SPDK's ...) and judged by the
median of the pairs' ratios. SPDK's target polls: it is stopped by SIGSTOP while ours is measured. The result is printed
and written to build/reports/compare_spdk.json; the exit status is 1 if a floor is missed and --check is given.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spdk.rpc.client import JSONRPCClient, JSONRPCException

from nvmet_p2p.cli import bench_tool
from nvmet_p2p.cli.bench_tool import Target
from tests.support.daemon import ROOT, Daemon, free_port

REPORT = ROOT / "build/reports/compare_spdk.json"
BDEV_MIB = 256
BLOCK = 512
START_S = 30.0
NONE = "no such back end"
# A generator that sleeps adds its own wake-up to each latency of both sides and hides a part of the difference.
GENERATORS: dict[str, list[str]] = {"poll": ["--poll"], "spin": ["--spin-us", "50"], "sleep": []}


@dataclass(frozen=True)
class Floor:
    """What the median ratios ours : SPDK's must reach: IOPS and depth over latency at least, CPU at most."""

    iops: float
    rate: float
    cpu: float


@dataclass(frozen=True)
class Case:
    """One line of the table: load generator's options, back ends of ours and of SPDK's."""

    name: str
    options: tuple[str, ...]
    floor: Floor
    ours: str = "malloc"
    peer: str = "malloc"


def _case(name: str, options: str, floor: tuple[float, float, float], ours: str = "malloc", peer: str = "") -> Case:
    return Case(name, tuple(options.split()), Floor(*floor), ours, peer or ours)


READ, WRITE = "--rw randread", "--rw randwrite"
CASES = (
    _case("4k-read-qd1", f"{READ} --depth 1", (1.2, 1.25, 0.60)),
    _case("4k-read-qd32", f"{READ} --depth 32", (1.5, 1.6, 0.55)),
    _case("4k-read-qd127", f"{READ} --depth 127", (1.4, 1.4, 0.70)),
    _case("4k-read-qd127-4queues", f"{READ} --depth 127 --queues 4", (1.4, 1.4, 0.70)),
    _case("4k-write-qd127", f"{WRITE} --depth 127", (1.4, 1.5, 0.60)),
    _case("8k-write-qd127-r2t", f"{WRITE} --depth 127 --bs 8k", (1.4, 1.5, 0.60)),
    _case("128k-read-qd32", f"{READ} --depth 32 --bs 128k", (1.3, 1.3, 0.65)),
    _case("128k-write-qd32", f"{WRITE} --depth 32 --bs 128k", (1.2, 1.1, 0.85)),
    # Who writes 128 KiB is mostly the host's kernel, and a system's default may pace (BBR)
    _case("128k-write-qd32-cubic", f"{WRITE} --depth 32 --bs 128k --congestion cubic", (1.2, 1.1, 0.85)),
    _case("null-4k-read-qd127", f"{READ} --depth 127", (1.0, 0.9, 0.60), "null"),
    _case("4k-read-qd127-digests", f"{READ} --depth 127 --hdgst --ddgst", (1.3, 1.2, 0.80)),
    _case("128k-read-qd32-digests", f"{READ} --depth 32 --bs 128k --hdgst --ddgst", (1.3, 1.2, 0.80)),
    _case("shm-4k-read-qd32-aio", f"{READ} --depth 32", (1.3, 1.2, 0.80), "file", "file-aio"),
    _case("shm-4k-read-qd32-uring", f"{READ} --depth 32", (1.3, 1.2, 0.80), "file", "file-uring"),
    _case("block-4k-read-qd32-aio", f"{READ} --depth 32", (1.3, 1.2, 0.80), "block", "block-aio"),
    _case("block-4k-read-qd32-uring", f"{READ} --depth 32", (1.3, 1.2, 0.80), "block", "block-uring"),
)


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


class Server:
    """A target of either kind: JSON-RPC (the same calls), a subsystem for each back end, its processes."""

    def __init__(self, label: str, socket: Path, pid: int, args: argparse.Namespace, medium: Path) -> None:
        self.label = label
        self.bench: Path = args.binary
        self.client = JSONRPCClient(str(socket), timeout=60.0)
        self.pid = pid
        self.paths: dict[str, Path | None] = {"file": medium, "block": args.block_device}
        self.made: dict[str, Target | None] = {}
        self.client.call("nvmf_create_transport", {"trtype": "TCP"})

    def target(self, kind: str) -> Target | None:
        """The subsystem on a back end of that kind, made at its first use; None if this target has no such back end."""
        if kind not in self.made:
            target = self.made[kind] = self._make(kind)
            if target is not None and kind == "malloc":  # memory never written may be one page of zeros
                fill = f"--rw write --bs 128k --depth 8 --count {BDEV_MIB * 8}".split()
                bench_tool.run(self.bench, target, fill)
        return self.made[kind]

    def _make(self, kind: str) -> Target | None:
        blocks = BDEV_MIB * (1 << 20) // BLOCK
        method, params = f"bdev_{kind}_create", {"name": kind, "num_blocks": blocks, "block_size": BLOCK}
        if kind not in {"malloc", "null"}:
            path = self.paths[kind.partition("-")[0]]
            if path is None:
                return None
            method = "bdev_uring_create" if kind.endswith("-uring") else "bdev_aio_create"
            params = {"name": kind, "filename": str(path), "block_size": BLOCK}
        try:
            self.client.call(method, params)
        except JSONRPCException as error:
            if "Method not found" in str(error.message):
                return None
            raise
        nqn, port = f"nqn.2026-01.org.example:{self.label}-{kind}", str(free_port())
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": port}
        self.client.call("nvmf_create_subsystem", {"nqn": nqn, "allow_any_host": True, "serial_number": "BENCH"})
        self.client.call("nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": {"bdev_name": kind}})
        self.client.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": address})
        return Target("127.0.0.1", port, nqn)

    def processes(self) -> list[int]:
        """The process and all below it."""
        return descendants(self.pid)

    def pin(self, cpu: int) -> None:
        """Every thread of every process onto that CPU."""
        for pid in self.processes():
            for task in Path(f"/proc/{pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), {cpu})


@contextlib.contextmanager
def ours(args: argparse.Namespace, medium: Path) -> Iterator[Server]:
    """Our daemon with the engine chosen, all of it on the target's CPU."""
    with Daemon(*args.ours_option, engine=args.dataplane) as daemon:
        server = Server("ours", daemon.socket, daemon.pid, args, medium)
        server.pin(args.target_cpu)
        try:
            yield server
        finally:
            server.client.close()


@contextlib.contextmanager
def spdk(args: argparse.Namespace, medium: Path, folder: Path) -> Iterator[Server]:
    """SPDK's target on the target's CPU. It is killed in any case: it would take that CPU for ever."""
    socket = folder / "spdk.sock"
    command = [args.nvmf_tgt, "--no-huge", "-s", "1024", "-m", hex(1 << args.target_cpu), "--iova-mode", "va"]
    with (folder / "spdk.log").open("w") as log:
        process = subprocess.Popen([*command, "-r", str(socket)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not _answers(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"SPDK's target did not start:\n{(folder / 'spdk.log').read_text()}")
            time.sleep(0.05)
        yield Server("spdk", socket, process.pid, args, medium)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def _answers(socket: Path) -> bool:
    try:
        JSONRPCClient(str(socket), timeout=5.0).call("rpc_get_methods")
    except (JSONRPCException, OSError):
        return False
    return True


@contextlib.contextmanager
def awake(peer: Server) -> Iterator[None]:
    """SPDK's target runs inside, and only there."""
    os.kill(peer.pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.kill(peer.pid, signal.SIGSTOP)


def measure(args: argparse.Namespace, server: Server, target: Target, case: Case) -> dict[str, Any]:
    """One run of the load generator; its document without the histograms."""
    options = [*case.options, "--cpus", str(args.bench_cpu), "--time", str(args.time), "--warmup", str(args.warmup)]
    options += GENERATORS[args.generator]
    options += ["--watch-pids", ",".join(map(str, server.processes())), *args.bench_option]
    document = bench_tool.run(args.binary, target, options)
    for operation in ("read", "write"):
        document[operation].pop("histogram_us")
    return document


def figures(documents: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The three figures of each run, and the CPU that the generator took (1 is a whole core)."""
    return {
        "iops": [document["total"]["iops"] for document in documents],
        "rate": [bench_tool.depth_per_latency(document) for document in documents],
        "cpu": [bench_tool.cpu_per_million(document) or 0.0 for document in documents],
        "generator": [
            sum(document["cpu"].values()) / (document["elapsed_s"] + document["options"]["warmup_s"])
            for document in documents
        ],
    }


def compare(args: argparse.Namespace, case: Case, mine: Server, peer: Server) -> dict[str, Any]:
    """Adjacent pairs of one case, and the medians of their ratios."""
    result: dict[str, Any] = {"case": case.name, "floor": asdict(case.floor), "back_ends": [case.ours, case.peer]}
    with awake(peer):
        peer_target = peer.target(case.peer)
    own_target = mine.target(case.ours)
    if own_target is None or peer_target is None:
        return result | {"skipped": NONE}
    documents: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for _ in range(args.pairs):
        documents[0].append(measure(args, mine, own_target, case))
        with awake(peer):
            documents[1].append(measure(args, peer, peer_target, case))
    own, other = figures(documents[0]), figures(documents[1])
    ratios = {key: bench_tool.median_of_ratios(own[key], other[key]) for key in ("iops", "rate", "cpu")}
    floor = case.floor
    met = {
        "iops": ratios["iops"] >= floor.iops,
        "rate": ratios["rate"] >= floor.rate,
        "cpu": ratios["cpu"] <= floor.cpu,
    }
    return result | {"ratios": ratios, "met": met, "ours": own, "spdk": other}


def show(result: dict[str, Any]) -> str:
    """One line of the table."""
    if "skipped" in result:
        return f"{result['case']:24} skipped: {result['skipped']}"
    parts = [f"{result['case']:24}"]
    for key, sign in (("iops", ">="), ("rate", ">="), ("cpu", "<=")):
        mark = " " if result["met"][key] else "!"
        parts.append(f"{result['ratios'][key]:6.2f} {sign} {result['floor'][key]:4.2f}{mark}")
    own, other = result["ours"], result["spdk"]
    for key, form in (("iops", "8.0f"), ("rate", "8.0f"), ("cpu", "6.2f")):
        parts.append(f"{statistics.median(own[key]):{form}}:{statistics.median(other[key]):<{form}}")
    parts.append(f"gen {statistics.median(own['generator']):.2f}:{statistics.median(other['generator']):.2f}")
    return "  ".join(parts)


HEAD = (
    f"{'case':24}  {'IOPS':15}  {'depth/median':15}  {'CPU s/10^6 I/O':15}  each of the three, ours:SPDK's; generator"
)


def arguments() -> argparse.Namespace:
    """The options; the load generator's binary is looked up at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvmf-tgt", default=os.environ.get("SPDK_NVMF_TGT"), help="[$SPDK_NVMF_TGT]")
    parser.add_argument("--dataplane", default="native", help="engine of ours: native (default) or inprocess")
    parser.add_argument("--case", action="append", help="only these, wildcards allowed: 4k-read-*")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--time", type=float, default=2.0, help="seconds of each run [2]")
    parser.add_argument("--warmup", type=float, default=0.3)
    parser.add_argument(
        "--generator", choices=GENERATORS, default="poll", help="how it waits [poll, as SPDK's hosts do]"
    )
    parser.add_argument("--target-cpu", type=int, default=0)
    parser.add_argument("--bench-cpu", type=int, default=1)
    parser.add_argument("--block-device", type=Path, help="a block device that may be read by both")
    parser.add_argument("--ours-option", action="append", default=[], help="more options for `nvmet-p2p serve`")
    parser.add_argument("--bench-option", action="append", default=[], help="more options for nvmet-p2p-bench")
    parser.add_argument("--json", type=Path, default=REPORT)
    parser.add_argument("--check", action="store_true", help="exit status 1 if a floor is missed")
    parser.add_argument("--list", action="store_true", help="name the cases and end")
    args = parser.parse_args()
    if args.list:
        print("\n".join(case.name for case in CASES))
        raise SystemExit
    if not args.nvmf_tgt:
        parser.error("SPDK's nvmf_tgt is wanted: --nvmf-tgt, or $SPDK_NVMF_TGT")
    args.binary = bench_tool.find_binary()
    return args


def main() -> int:
    """Runs the cases asked for; the exit status."""
    args = arguments()
    cases = [case for case in CASES if not args.case or any(fnmatch.fnmatch(case.name, glob) for glob in args.case)]
    results = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nvmetcmp-")))
        medium = Path(stack.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="nvmetcmp-")).name)
        medium.write_bytes(os.urandom(1 << 20) * BDEV_MIB)
        mine = stack.enter_context(ours(args, medium))
        peer = stack.enter_context(spdk(args, medium, folder))
        print(HEAD, flush=True)
        for case in cases:
            results.append(compare(args, case, mine, peer))
            print(show(results[-1]), flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}"
    report = {
        "machine": machine,
        "dataplane": args.dataplane,
        "generator": args.generator,
        "pairs": args.pairs,
        "time_s": args.time,
        "cases": results,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    missed = any(not all(result.get("met", {"": True}).values()) for result in results)
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
