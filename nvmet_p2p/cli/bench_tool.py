"""Runs ``nvmet-p2p-bench``, the native load generator, and reads what it says."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from nvmet_p2p.errors import NvmetP2PError

BINARY = "nvmet-p2p-bench"
VARIABLE = "NVMET_P2P_BENCH"
MISMATCH = 3  # exit status: --verify found wrong data
INTERRUPTED = 4
PERCENTILES = ("p50", "p90", "p99", "p99_9", "p99_99")


class BenchError(NvmetP2PError):
    """The load generator is missing, or its run failed."""


@dataclass(frozen=True)
class Target:
    """Where a subsystem is: ``subnqn`` on ``traddr``, port ``trsvcid``, by ``trtype``: ``tcp`` or ``rdma``."""

    traddr: str
    trsvcid: str
    subnqn: str
    trtype: str = "tcp"

    def __str__(self) -> str:
        host = f"[{self.traddr}]" if ":" in self.traddr else self.traddr
        scheme = "" if self.trtype == "tcp" else f"{self.trtype}://"
        return f"{scheme}{host}:{self.trsvcid}/{self.subnqn}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """``ADDRESS:PORT/NQN``, an IPv6 address in brackets, ``rdma://`` before it for RDMA. Raises ValueError."""
        found = re.fullmatch(r"(?:(tcp|rdma)://)?(\[[^]]+\]|[^:/]+):(\d+)/(.+)", text)
        if found is None:
            raise ValueError(f"{text}: ADDRESS:PORT/NQN is wanted, as 192.0.2.1:4420/nqn.2026-01.org.example:a")
        return cls(found[2].strip("[]"), found[3], found[4], found[1] or "tcp")


def find_binary(environment: Mapping[str, str] | None = None) -> Path:
    """``$NVMET_P2P_BENCH``, else the one installed beside the interpreter, else the one built in this checkout."""
    environment = os.environ if environment is None else environment
    if named := environment.get(VARIABLE):
        if not os.access(named, os.X_OK):
            raise BenchError(f"{VARIABLE}={named} is no program")
        return Path(named)
    build = Path(__file__).resolve().parents[2] / "build"
    places = [Path(sysconfig.get_path("scripts")) / BINARY]
    places += [build / folder / BINARY for folder in ("native/bench", "native-bench/bench")]
    for place in places:
        if os.access(place, os.X_OK):
            return place
    if found := shutil.which(BINARY):
        return Path(found)
    raise BenchError(
        f"{BINARY} is not there: in a checkout, `meson setup build/native native && ninja -C build/native` builds it "
        f"(apt-get install gcc pkg-config liburing-dev libjansson-dev libisal-dev); or name it in ${VARIABLE}"
    )


def run(binary: Path, target: Target, arguments: Sequence[str]) -> dict[str, Any]:
    """One run; its JSON document. Raises BenchError with the tool's own words when it fails.

    A run that was interrupted (SIGINT goes to the tool as well) gives what it had measured, with ``interrupted`` set.
    """
    where = ["--traddr", target.traddr, "--trsvcid", target.trsvcid, "--subnqn", target.subnqn]
    where += ["--trtype", target.trtype] if target.trtype != "tcp" else []
    command = [str(binary), *where, *arguments, "--json", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                out, err = process.communicate()
                break
            except KeyboardInterrupt:
                continue  # the tool has got it too, and ends by itself with what it has
    if process.returncode not in {0, INTERRUPTED}:
        text = err.strip().removeprefix(f"{BINARY}: ") or f"exit status {process.returncode}"
        raise BenchError(f"{target}: {text}")
    document: dict[str, Any] = msgspec.json.decode(out)
    return document


def depth(document: Mapping[str, Any]) -> int:
    """Commands outstanding over all queues."""
    options = document["options"]
    return int(options["depth"]) * int(options["queues"])


def depth_per_latency(document: Mapping[str, Any]) -> float:
    """Depth over median latency in I/Os a second: the rate while nothing else has the CPU."""
    median = float(document["total"]["latency_us"]["p50"])
    return depth(document) / median * 1e6 if median else 0.0


def cpu_per_million(document: Mapping[str, Any]) -> float | None:
    """CPU seconds of the watched processes for a million I/Os, or None if none was watched."""
    ios = int(document["total"]["ios"])
    watched = document.get("watched_cpu_s")
    return None if watched is None or not ios else float(watched) / ios * 1e6


def median_of_ratios(first: Sequence[float], second: Sequence[float]) -> float:
    """Median of ``first[i] / second[i]``, measured one after the other; a pair without a value is left out."""
    ratios = [a / b for a, b in zip(first, second, strict=True) if b]
    return statistics.median(ratios) if ratios else 0.0
