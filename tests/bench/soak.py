"""Verified load for as long as wanted, with hosts that come, go and die, and a configuration that changes meanwhile.

    python -m tests.bench.soak --minutes 60 --dataplane native

Each round runs some load generators at once in --verify mode, each with its own part of the namespace, block size,
depth, queues, digests and ways of data; now and then one is killed. Another namespace is added and removed under them.
The end is an error for wrong data, a run that failed, queues or descriptors left behind, and memory that grew. A seed
gives the same rounds again.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from nvmet_p2p.cli import bench_tool
from tests.bench.compare_spdk import descendants
from tests.support.daemon import Daemon, Ns, Tree, eventually

HOSTS = 3
SPARE_NSID = 7
LBAS = 1 << 18  # of 512 bytes: 128 MiB
GROWTH_KIB_MAX = 16 << 10  # of all processes, after the first quarter of the time: pools are full by then


def options(rng: random.Random, host: int) -> list[str]:
    """A load of a few seconds on the host's own part of the LBAs."""
    size = rng.choice((512, 4096, 4096, 8192, 16384, 65536, 131072))
    queues = rng.choice((1, 1, 2, 4))
    chosen = ["--rw", rng.choice(("randrw", "rw", "randwrite")), "--rwmix", str(rng.randrange(0, 90))]
    chosen += ["--bs", str(size), "--depth", str(rng.choice((1, 4, 32, 127))), "--queues", str(queues)]
    chosen += ["--threads", str(rng.randint(1, queues)), "--time", f"{rng.uniform(0.2, 4):.2f}", "--warmup", "0"]
    chosen += ["--lba-start", str(host * (LBAS // HOSTS)), "--lba-count", str(LBAS // HOSTS)]
    chosen += ["--verify", "--quiet", "--seed", str(rng.randrange(1 << 32)), "--nsid", "1", "--timeout", "30"]
    flags = ("--hdgst", "--ddgst", "--no-icd", "--disable-sqflow")
    return chosen + [flag for flag in flags if rng.random() < 0.4]


def memory_kib(daemon: Daemon) -> int:
    """Resident memory of the daemon and of what it started."""
    total = 0
    for pid in descendants(daemon.pid):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def descriptors(daemon: Daemon) -> int:
    """Open descriptors of the daemon and of what it started."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in descendants(daemon.pid))


def change(tree: Tree, rng: random.Random) -> None:
    """Adds the spare namespace, or removes it."""
    if SPARE_NSID in tree.bdevs:
        name, _ = tree.bdevs.pop(SPARE_NSID)
        tree.remove(SPARE_NSID)
        tree.daemon.rpc("bdev_malloc_delete", name=name)
    else:
        tree.add(Ns(kind="malloc", blocks=rng.choice((2048, 8192)), block_size=512), nsid=SPARE_NSID)


def one_round(binary: Path, tree: Tree, rng: random.Random) -> int:
    """Runs the hosts of a round; their number. Raises SystemExit on a failure."""
    host, port = tree.address
    where = ["--traddr", host, "--trsvcid", str(port), "--subnqn", tree.nqn]
    killed = rng.randrange(HOSTS) if rng.random() < 0.3 else -1
    runs = []
    for number in range(HOSTS):
        command = [str(binary), *where, *options(rng, number)]
        runs.append((command, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    for _ in range(rng.randrange(4)):
        change(tree, rng)
        time.sleep(rng.uniform(0, 0.3))
    if killed >= 0:
        runs[killed][1].send_signal(signal.SIGKILL)
    for number, (command, process) in enumerate(runs):
        _, err = process.communicate()
        if process.returncode and number != killed:
            for _, other in runs:
                other.kill()
            raise SystemExit(f"exit status {process.returncode}: {' '.join(command)}\n{err}")
    return HOSTS


def main() -> int:
    """Rounds until the time is over; 0 if all was well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dataplane", default="native")
    parser.add_argument("--kind", default="malloc", choices=["malloc", "aio"], help="back end [malloc]")
    args = parser.parse_args()
    rng, binary = random.Random(args.seed), bench_tool.find_binary()
    with Daemon(engine=args.dataplane) as daemon:
        tree = daemon.subsystem(Ns(kind=args.kind, blocks=LBAS, block_size=512))
        target = bench_tool.Target(tree.address[0], str(tree.address[1]), tree.nqn)
        fill = f"--rw write --bs 64k --count {LBAS * 512 >> 16}".split()  # or the back end's own memory would grow
        bench_tool.run(binary, target, fill)
        begin, rounds, runs, first, now = time.monotonic(), 0, 0, (0, 0), (0, 0)
        while (elapsed := time.monotonic() - begin) < args.minutes * 60:
            runs += one_round(binary, tree, rng)
            rounds += 1
            eventually(lambda: not tree.rpc("nvmf_subsystem_get_controllers"), "every host's controller is gone", 60)
            if SPARE_NSID in tree.bdevs:
                change(tree, rng)
            now = memory_kib(daemon), descriptors(daemon)
            if elapsed < args.minutes * 60 / 4:
                first = max(first[0], now[0]), max(first[1], now[1])
            print(f"round {rounds}: {runs} runs, {now[0]} KiB resident, {now[1]} descriptors", flush=True)
        if now[0] - first[0] > GROWTH_KIB_MAX or now[1] > first[1]:
            print(f"left behind: memory {first[0]} -> {now[0]} KiB, descriptors {first[1]} -> {now[1]}")
            return 1
    print(f"{rounds} rounds, {runs} runs: no wrong data, no error, nothing left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
