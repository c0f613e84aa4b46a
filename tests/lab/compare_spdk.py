"""Our target against SPDK's nvmf_tgt in one guest on the same emulated drive, which each of them has in turn.

    NVMET_P2P_SPDK=.../spdk/build python -m tests.lab.compare_spdk --help

Adjacent pairs (ours, SPDK's, ours, SPDK's ...), judged by the median of the pairs' ratios. The drive is detached from
one and attached to the other in between. SPDK's target polls: it is stopped by SIGSTOP while ours is measured. Each
target is on the guest's first CPU, the load generator on the second. All is emulated: only the ratios mean something.
The result is printed and written to build/reports/lab_compare_spdk.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shlex
import shutil
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nvmet_p2p.cli import bench_tool
from tests.lab import spdk
from tests.lab.inside import ADDRESS, Unreachable
from tests.lab.lab import Guest
from tests.lab.vfio import VFIO_MACHINE, VfioLab, to_driver, vfio_guest
from tests.support.daemon import ROOT, RpcError, eventually

REPORT = ROOT / "build/reports/lab_compare_spdk.json"
NQN = {"ours": "nqn.2026-11.org.example:ours", "spdk": "nqn.2026-11.org.example:spdk"}
PORT = {"ours": "4420", "spdk": "4421"}
PEER_SOCKET = "/run/nvmet-p2p/nvmf_tgt.sock"
CASES = {
    "4k-read-qd1": "--rw randread --bs 4k --depth 1",
    "4k-read-qd32": "--rw randread --bs 4k --depth 32",
    "4k-write-qd32": "--rw randwrite --bs 4k --depth 32",
    "128k-read-qd8": "--rw randread --bs 128k --depth 8",
    "128k-write-qd8": "--rw randwrite --bs 128k --depth 8",
}
START_PEER = """
target-enter {program} --no-huge -s 512 -m 0x1 -r {socket} < /dev/null > /lab/files/nvmf_tgt.log 2>&1 &
echo $! > /run/nvmf_tgt.pid
"""


class Side:
    """One of the two targets in the guest: it has the drive, or not."""

    def __init__(self, lab: VfioLab, label: str, back_end: str) -> None:
        self.lab, self.label, self.back_end = lab, label, back_end
        self.drive = lab.drives["A"]

    def call(self, method: str, **params: Any) -> Any:
        """A call of its admin API."""
        if self.label == "ours":
            return self.lab.inside.rpc(method, **params)
        return self.lab.inside.call(PEER_SOCKET, method, params)

    def prepare(self) -> None:
        """An empty subsystem with a listener."""
        self.call("nvmf_create_transport", trtype="TCP")
        self.call("nvmf_create_subsystem", nqn=NQN[self.label], allow_any_host=True, serial_number="COMPARE")
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": ADDRESS, "trsvcid": PORT[self.label]}
        self.call("nvmf_subsystem_add_listener", nqn=NQN[self.label], listen_address=address)

    def take(self) -> None:
        """Takes the drive and serves it."""
        if self.back_end == "uring":
            to_driver(self.lab.guest, self.drive, "nvme")
            script = f"""for _ in {{1..100}}; do d=$(ls -d /sys/bus/pci/devices/{self.drive.bdf}/nvme/nvme*/nvme*n*) \\
                && [ -b /dev/${{d##*/}} ] && echo /dev/${{d##*/}} && exit; sleep 0.1; done; exit 1"""
            device = self.lab.guest.run(script).out.strip()
            bdev = str(self.call("bdev_uring_create", name="compare", filename=device))
        else:
            (bdev,) = self.call("bdev_nvme_attach_controller", name="A", trtype="PCIe", traddr=self.drive.bdf)
        self.call("nvmf_subsystem_add_ns", nqn=NQN[self.label], namespace={"nsid": 1, "bdev_name": bdev})

    def leave(self) -> None:
        """Gives the drive back to vfio-pci."""
        if self.back_end == "uring":
            self.call("nvmf_subsystem_remove_ns", nqn=NQN[self.label], nsid=1)
            self.call("bdev_uring_delete", name="compare")
            to_driver(self.lab.guest, self.drive, "vfio-pci")
        else:
            self.call("bdev_nvme_detach_controller", name="A")

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """It runs and has the drive, and the other one has not."""
        peer = self.label == "spdk"
        if peer:
            self.lab.guest.run("kill -CONT $(cat /run/nvmf_tgt.pid)")
        try:
            self.take()
            yield
            self.leave()
        finally:
            if peer:
                self.lab.guest.run("kill -STOP $(cat /run/nvmf_tgt.pid)")

    def measure(self, options: list[str], case: str, seconds: float) -> dict[str, Any]:
        """One run of the load generator; its document without the histograms."""
        words = ["/lab/files/nvmet-p2p-bench", "--traddr", ADDRESS, "--trsvcid", PORT[self.label]]
        words += ["--subnqn", NQN[self.label], *CASES[case].split(), "--cpus", "1", "--time", str(seconds)]
        words += ["--warmup", "0.5", *options, "--json", "-"]
        done = self.lab.guest.run(f"exec target-enter {shlex.join(words)}", timeout=60 + 10 * seconds)
        document: dict[str, Any] = done.json()
        for operation in ("read", "write"):
            document[operation].pop("histogram_us")
        return document


def start_peer(lab: VfioLab) -> None:
    """SPDK's target in the guest, answering."""
    program = spdk.program("nvmf_tgt")
    assert program is not None
    lab.guest.run(START_PEER.format(program=program, socket=PEER_SOCKET), keep=True)

    def answers() -> bool:
        try:
            return bool(lab.inside.call(PEER_SOCKET, "rpc_get_methods", {}, 10.0))
        except (RpcError, Unreachable):
            return False

    eventually(answers, "SPDK's nvmf_tgt answers", 60.0)


def pin_ours(lab: VfioLab) -> None:
    """Every thread of the daemon and the data plane to the first CPU, as nvmf_tgt's mask has it."""
    lab.guest.run("for p in $(cat /sys/fs/cgroup/target/cgroup.procs); do taskset -a -p -c 0 $p > /dev/null; done")


def compare(sides: tuple[Side, Side], case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Adjacent pairs of one case, and the medians of their ratios."""
    documents: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for _ in range(args.pairs):
        for side, found in zip(sides, documents, strict=True):
            with side.turn():
                found.append(side.measure(args.bench_option, case, args.time))
    iops = [[document["total"]["iops"] for document in found] for found in documents]
    p50 = [[document["total"]["latency_us"]["p50"] for document in found] for found in documents]
    return {
        "case": case,
        "iops_ratio": bench_tool.median_of_ratios(*iops),
        "p50_ratio": bench_tool.median_of_ratios(*p50),
        "iops": dict(zip(NQN, iops, strict=True)),
        "p50_us": dict(zip(NQN, p50, strict=True)),
    }


def show(result: dict[str, Any]) -> str:
    """One line of the table."""
    middle = {key: {label: statistics.median(result[key][label]) for label in NQN} for key in ("iops", "p50_us")}
    return (
        f"{result['case']:16} IOPS {result['iops_ratio']:5.2f} ({middle['iops']['ours']:8.0f}:"
        f"{middle['iops']['spdk']:<8.0f}) median latency {result['p50_ratio']:5.2f} "
        f"({middle['p50_us']['ours']:7.0f}:{middle['p50_us']['spdk']:<7.0f} us)  "
        f"single ratios {' '.join(f'{a / b:.2f}' for a, b in zip(*result['iops'].values(), strict=True))}"
    )


def main() -> int:
    """Runs the cases asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="only these")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--time", type=float, default=3.0, help="seconds of each run [3]")
    parser.add_argument("--ours", choices=("spdk", "uring"), default="spdk", help="our back end [spdk]")
    parser.add_argument("--bench-option", action="append", default=[], help="more options for nvmet-p2p-bench")
    args = parser.parse_args()
    if spdk.program("nvmf_tgt") is None:
        parser.error("there is no nvmf_tgt beside SPDK's libraries: see NVMET_P2P_SPDK in tests/lab/spdk.py")
    if args.ours == "spdk" and not spdk.linked():
        parser.error("the data plane was built without SPDK")
    machine = replace(VFIO_MACHINE, nvme=("A:rp:512",), trace=())
    results = []
    with Guest(machine) as guest, vfio_guest(guest, ("A",)) as lab:
        shutil.copy2(bench_tool.find_binary(), guest.files / "nvmet-p2p-bench")
        lab.inside.start()
        start_peer(lab)
        pin_ours(lab)
        sides = Side(lab, "ours", args.ours), Side(lab, "spdk", "spdk")
        for side in sides:
            side.prepare()
        guest.run("kill -STOP $(cat /run/nvmf_tgt.pid)")
        for case in args.case or CASES:
            results.append(compare(sides, case, args))
            print(show(results[-1]), flush=True)
    host = f"{platform.machine()}, Linux {platform.release()}"
    report = {"host": host, "ours": args.ours, "pairs": args.pairs, "time_s": args.time, "cases": results}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
