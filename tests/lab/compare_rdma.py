"""Our target against the kernel's nvmet-rdma in one guest, on the same soft RoCE device, in turn.

    python -m tests.lab.compare_rdma --help

Adjacent pairs (ours, the kernel's, ours, the kernel's ...), judged by the median of the pairs' ratios. Both namespaces
are memory: a malloc bdev, and a file on tmpfs. The host is nvmet-p2p-bench for both. All is emulated, and soft RoCE
moves every byte by the CPU: only the ratios mean something. The result is printed and written to
build/reports/lab_compare_rdma.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import shutil
import statistics
import sys
from contextlib import closing
from typing import Any

from nvmet_p2p.cli import bench_tool
from tests.lab.inside import InsideTarget
from tests.lab.lab import Guest
from tests.lab.machine import Machine
from tests.lab.rdma import ADDRESS, PORT, serving
from tests.support.daemon import ROOT

REPORT = ROOT / "build/reports/lab_compare_rdma.json"
NQN = {"ours": "nqn.2026-11.org.example:ours", "kernel": "nqn.2026-11.org.example:kernel"}
PORTS = {"ours": PORT, "kernel": PORT + 10}
MIB = 32
CASES = {
    "4k-read-qd32": "--rw randread --bs 4k --depth 32",
    "4k-write-qd32": "--rw randwrite --bs 4k --depth 32",
    "128k-read-qd32": "--rw randread --bs 128k --depth 32",
    "128k-write-qd32": "--rw randwrite --bs 128k --depth 32",
}


def prepare(target: InsideTarget) -> None:
    """Both targets serve, every block of theirs written once."""
    serving(target)
    target.rpc("bdev_malloc_create", name="m", num_blocks=MIB << 11, block_size=512)
    target.rpc("nvmf_create_subsystem", nqn=NQN["ours"], allow_any_host=True, serial_number="COMPARE")
    target.rpc("nvmf_subsystem_add_ns", nqn=NQN["ours"], namespace={"nsid": 1, "bdev_name": "m"})
    address = {"trtype": "RDMA", "adrfam": "IPv4", "traddr": ADDRESS, "trsvcid": str(PORTS["ours"])}
    target.rpc("nvmf_subsystem_add_listener", nqn=NQN["ours"], listen_address=address)
    shutil.copy2(bench_tool.find_binary(), target.guest.files / "bench")
    target.guest.run(f"nvmet-serve {NQN['kernel']} {ADDRESS} {PORTS['kernel']} {MIB}m rdma", keep=True)
    for side in NQN:
        measure(target, side, f"--rw write --bs 64k --depth 4 --count {MIB * 16}")


def measure(target: InsideTarget, side: str, options: str) -> dict[str, Any]:
    """One run of the load generator; its document without the histograms."""
    words = ["/lab/files/bench", "--trtype", "rdma", "--traddr", ADDRESS, "--trsvcid", str(PORTS[side])]
    words += ["--subnqn", NQN[side], "--timeout", "60", *options.split(), "--json", "-"]
    document: dict[str, Any] = target.guest.run(f"exec target-enter {shlex.join(words)}", timeout=300).json()
    for operation in ("read", "write"):
        document[operation].pop("histogram_us")
    return document


def compare(target: InsideTarget, case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Adjacent pairs of one case, and the medians of their ratios."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in NQN}
    for _ in range(args.pairs):
        for side, documents in found.items():
            documents.append(measure(target, side, f"{CASES[case]} --time {args.time} --warmup 1 {args.options}"))
    iops = {side: [document["total"]["iops"] for document in documents] for side, documents in found.items()}
    p50 = {side: [document["total"]["latency_us"]["p50"] for document in docs] for side, docs in found.items()}
    return {
        "case": case,
        "iops_ratio": bench_tool.median_of_ratios(iops["ours"], iops["kernel"]),
        "p50_ratio": bench_tool.median_of_ratios(p50["ours"], p50["kernel"]),
        "iops": iops,
        "p50_us": p50,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7, help="[7]")
    parser.add_argument("--time", type=float, default=4.0, help="seconds of each run [4]")
    parser.add_argument("--case", action="append", choices=CASES, help="one or more [all]")
    parser.add_argument("--options", default="", help="more options of nvmet-p2p-bench for both sides, in one word")
    args = parser.parse_args()
    results = []
    with Guest(Machine(target=True, net=False)) as guest:
        guest.boot()
        with closing(InsideTarget(guest)) as target:
            prepare(target)
            for case in args.case or CASES:
                results.append(compare(target, case, args))
                last = results[-1]
                medians = [round(statistics.median(last["iops"][side])) for side in NQN]
                print(f"{case:16} IOPS {last['iops_ratio']:.2f} ({medians[0]} : {medians[1]})  "
                      f"median latency {last['p50_ratio']:.2f}", flush=True)  # fmt: skip
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(
        json.dumps({"machine": platform.platform(), "pairs": args.pairs, "cases": results}, indent=1) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
