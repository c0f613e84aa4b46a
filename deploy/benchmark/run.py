#!/usr/bin/env python3
"""Measures an NVMe/TCP namespace from a Linux initiator: nvme read/write, fio, and beside them the target's counters.

Needs root, nvme-cli and fio; nothing beyond Python's standard library (3.9 and up). See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
APPEAR_S = 30.0
BLOCK = 4096
MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "s": 1e6}


class Failed(Exception):
    """Something that the user has to know; ends the run."""


def run(command: list[str], env: dict[str, str] | None = None) -> str:
    """A command that must succeed; its standard output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise Failed(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


# The connection


def connect(args: argparse.Namespace) -> Path:
    """Connects and gives the namespace's block device."""
    command = ["nvme", "connect", "-t", "tcp", "-a", args.traddr, "-s", args.trsvcid, "-n", args.subnqn]
    for name in ("nr_io_queues", "nr_write_queues", "nr_poll_queues", "queue_size"):
        value = getattr(args, name)
        if value:
            command.append(f"--{name.replace('_', '-')}={value}")
    command += [f"--{flag}" for flag in ("hdr-digest", "data-digest") if getattr(args, flag.replace("-", "_"))]
    run(command)
    deadline = time.monotonic() + APPEAR_S
    while time.monotonic() < deadline:
        device = find_device(args.subnqn, args.nsid)
        if device is not None:
            return device
        time.sleep(0.1)
    raise Failed(f"no block device for namespace {args.nsid} of {args.subnqn}")


def find_device(subnqn: str, nsid: int) -> Path | None:
    """The block device of a connected namespace, with or without native multipath."""
    for entry in Path("/sys/block").glob("nvme*n*"):
        for nqn in (entry / "device/subsysnqn", entry / "device/subsystem/subsysnqn"):
            try:
                same = nqn.read_text().strip() == subnqn and int((entry / "nsid").read_text()) == nsid
            except (OSError, ValueError):
                continue
            device = Path("/dev") / entry.name
            if same and device.exists():
                return device
    return None


# What the target counts, if it can be asked


def counters(args: argparse.Namespace) -> dict[str, float]:
    """The target's counters: from its metrics page or its admin socket; empty without either."""
    if args.metrics_url:
        try:
            with urllib.request.urlopen(args.metrics_url, timeout=10) as page:
                return parse_metrics(page.read().decode())
        except OSError as error:
            raise Failed(f"{args.metrics_url}: {error}") from error
    if args.rpc_socket:
        return rpc_counters(args.rpc_socket)
    return {}


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus' text form: the samples whose names end in _total."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"(\w+_total(?:\{.*\})?) (\S+)$", line)
        if match:
            found[match[1]] = float(match[2])
    return found


def rpc_counters(path: str) -> dict[str, float]:
    """bdev_get_iostat of the admin API (JSON-RPC over a Unix socket): the numbers of each back end."""
    with socket.socket(socket.AF_UNIX) as conn:
        conn.settimeout(10)
        try:
            conn.connect(path)
            conn.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "bdev_get_iostat"}).encode())
            data = b""
            while True:
                part = conn.recv(65536)
                data += part
                try:
                    answer = json.loads(data)
                    break
                except ValueError:
                    if not part:
                        raise Failed(f"{path}: the answer is cut off") from None
        except OSError as error:
            raise Failed(f"{path}: {error}") from error
    if "error" in answer:
        raise Failed(f"{path}: {answer['error'].get('message')}")
    return {
        f"{bdev['name']} {key}": value
        for bdev in answer["result"]["bdevs"]
        for key, value in bdev.items()
        if isinstance(value, (int, float)) and key not in {"queue_depth_polling_period", "queue_depth"}
    }


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was counted in between; what did not move is left out."""
    return {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}


# Single commands


def single(operation: str, device: Path, count: int, folder: Path) -> dict[str, float]:
    """Latencies that ``nvme read`` or ``nvme write --latency`` print for one 4 KiB command, in microseconds.

    A write puts back what was read before.
    """
    block = int(run(["blockdev", "--getss", str(device)]))
    data = folder / "block"
    blocks = str(max(BLOCK // block, 1) - 1)
    common = [str(device), "-s", "0", "-c", blocks, "-z", str(max(BLOCK, block)), "-d", str(data)]
    run(["nvme", "read", *common])
    values = []
    for _ in range(count):
        done = subprocess.run(["nvme", operation, *common, "--latency"], capture_output=True, text=True, check=False)
        match = re.search(r"latency:.*?(\d+(?:\.\d+)?)\s*(ns|us|ms|s)\b", done.stdout + done.stderr)
        if done.returncode or match is None:
            raise Failed(f"nvme {operation} --latency: {done.stdout}{done.stderr}")
        values.append(float(match[1]) * MICROSECONDS[match[2]])
    data.unlink()
    return {"count": count, "min": min(values), "median": statistics.median(values), "max": max(values)}


# fio


def writes(job: Path) -> bool:
    """Whether a job file writes to the device."""
    match = re.search(r"^rw=(\w+)", job.read_text(), re.MULTILINE)
    return match is None or match[1] not in {"read", "randread"}


def fio(job: Path, device: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Runs a job file; the figures of it, latencies (completion) in microseconds."""
    env = {**os.environ, "DEVICE": str(device), "RUNTIME": str(args.runtime)}
    command = ["fio", "--output-format=json", *(["--size=" + args.size] if args.size else []), str(job)]
    text = run(command, env)
    answer = json.loads(text[text.index("{") :])["jobs"][0]
    if answer["error"]:
        raise Failed(f"{job.name}: fio reports error {answer['error']}")
    result: dict[str, Any] = {"depth": int(answer["job options"]["iodepth"])}
    for operation in ("read", "write"):
        part = answer[operation]
        if part["total_ios"]:
            percentiles = part["clat_ns"].get("percentile", {})
            result[operation] = {
                "iops": part["iops"],
                "mib_s": part["bw_bytes"] / (1 << 20),
                "mean_us": part["clat_ns"]["mean"] / 1e3,
                **{f"p{float(key):g}_us": value / 1e3 for key, value in percentiles.items()},
            }
    return result


# The result


def table(results: dict[str, Any]) -> str:
    """The figures as lines of text."""
    lines = [f"{'job':22} {'':6}{'IOPS':>9} {'MiB/s':>9} {'mean us':>9} {'p50':>9} {'p99':>9} {'p99.9':>9}"]
    for name, job in results["fio"].items():
        for operation in ("read", "write"):
            part = job.get(operation)
            if part:
                values = [part.get(key, 0.0) for key in ("mean_us", "p50_us", "p99_us", "p99.9_us")]
                cells = " ".join(f"{value:9.1f}" for value in (part["mib_s"], *values))
                lines.append(f"{name:22} {operation:6}{part['iops']:9.0f} {cells}")
        for counter, moved in job.get("target", {}).items():
            lines.append(f"{'':22} target: {counter} +{moved:.0f}")
    for operation, values in results["single"].items():
        lines.append(
            f"nvme {operation} --latency, one 4 KiB command, {values['count']} times: "
            f"min {values['min']:.0f}, median {values['median']:.0f}, max {values['max']:.0f} us"
        )
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """IOPS and latency over depth for the 4 KiB jobs, as SVG."""
    sys.path.insert(0, str(HERE))
    from svgplot import Panel, Series, svg

    rate: dict[str, list[tuple[float, float]]] = {}
    latency: dict[str, list[tuple[float, float]]] = {}
    for name, job in results["fio"].items():
        kind = name.rpartition("-qd")[0]
        parts = [job[operation] for operation in ("read", "write") if operation in job]
        if not parts:
            continue
        rate.setdefault(kind, []).append((job["depth"], sum(part["iops"] for part in parts)))
        for key in ("p50_us", "p99_us"):
            worst = max(part.get(key, 0.0) for part in parts)
            latency.setdefault(f"{kind} {key[:3]}", []).append((job["depth"], worst))
    panels = [
        Panel(title, "depth", unit, [Series(name, sorted(line)) for name, line in lines.items()], True, log)
        for title, unit, lines, log in (("I/Os a second", "IOPS", rate, False), ("Latency", "us", latency, True))
    ]
    path.write_text(svg(panels))


def measure(args: argparse.Namespace, device: Path) -> dict[str, Any]:
    """Everything on a connected device."""
    folder = args.output
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "machine": f"{platform.node()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
        "device": str(device),
        "subsystem": run(["nvme", "list-subsys", str(device)]),
        "single": {},
        "fio": {},
    }
    for operation in ("read", "write") if args.allow_writes else ("read",):
        results["single"][operation] = single(operation, device, args.singles, folder)
    jobs = sorted(job for pattern in args.jobs for job in (HERE / "fio").glob(f"{pattern}.fio"))
    if not jobs:
        raise Failed(f"no job is called {' or '.join(args.jobs)}")
    for job in jobs:
        if writes(job) and not args.allow_writes:
            print(f"{job.stem}: left out, it writes (--allow-writes)", flush=True)
            continue
        print(f"{job.stem} ...", flush=True)
        before = counters(args)
        results["fio"][job.stem] = fio(job, device, args)
        moved = difference(before, counters(args))
        if moved:
            results["fio"][job.stem]["target"] = moved
    return results


def arguments() -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=Path, help="a connected namespace, as /dev/nvme0n1; or, to connect:")
    parser.add_argument("--traddr", help="address of the target")
    parser.add_argument("--trsvcid", default="4420")
    parser.add_argument("--subnqn")
    parser.add_argument("--nsid", type=int, default=1)
    for name in ("--nr-io-queues", "--nr-write-queues", "--nr-poll-queues", "--queue-size"):
        parser.add_argument(name, type=int, help="as of nvme connect")
    for name in ("--hdr-digest", "--data-digest"):
        parser.add_argument(name, action="store_true", help="as of nvme connect")
    parser.add_argument("--keep", action="store_true", help="do not disconnect afterwards")
    parser.add_argument("--allow-writes", action="store_true", help="run what DESTROYS THE DATA of the namespace, too")
    parser.add_argument("--jobs", nargs="+", default=["*"], help="names of job files, wildcards allowed [all]")
    parser.add_argument("--runtime", type=int, default=10, help="seconds of each job [10]")
    parser.add_argument("--size", help="only that much of the device, as 1g")
    parser.add_argument("--singles", type=int, default=100, help="nvme read/write commands [100]")
    parser.add_argument(
        "--rpc-socket", help="the target's admin socket (if it is on this machine, or forwarded by ssh -L)"
    )
    parser.add_argument("--metrics-url", help="the target's metrics page, as http://192.0.2.1:9090/metrics")
    parser.add_argument("--output", type=Path, default=Path("result"), help="folder for result.json and result.svg")
    args = parser.parse_args()
    if (args.device is None) == (args.subnqn is None or args.traddr is None):
        parser.error("either --device, or --traddr and --subnqn")
    for tool in ("nvme", "fio"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not installed")
    return args


def main() -> int:
    """Measures, prints, saves; the exit status."""
    args = arguments()
    device = args.device
    try:
        if device is None:
            device = connect(args)
        try:
            results = measure(args, device)
        finally:
            if args.device is None and not args.keep:
                run(["nvme", "disconnect", "-n", args.subnqn])
    except Failed as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 1
    print(table(results))
    (args.output / "result.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, args.output / "result.svg")
    print(f"saved: {args.output / 'result.json'}, {args.output / 'result.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
