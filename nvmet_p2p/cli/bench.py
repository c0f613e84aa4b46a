"""``nvmet-p2p bench``: loads a target over TCP or RDMA with ``nvmet-p2p-bench``, compares, shows, saves, draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from nvmet_p2p.cli import bench_tool
from nvmet_p2p.cli.bench_tool import BenchError, Target
from nvmet_p2p.cli.options import rpc_socket_option

WORKLOADS = ("read", "write", "rw", "randread", "randwrite", "randrw")
STAGING_TIMEOUT_S = 600.0  # a pool may have to be calibrated first
FIGURES = ("iops", "depth_per_latency", "p50", "p99", "cpu_per_million")


@dataclass(frozen=True)
class Plan:
    """What to measure: every depth, on every target, ``pairs`` times in turn when there are two."""

    targets: tuple[Target, ...]
    depths: tuple[int, ...]
    arguments: tuple[str, ...]
    pairs: int = 1
    staging: tuple[str, ...] = ()  # where data rests in the runs of each target: it is one target twice


class Depths(click.ParamType[tuple[int, ...]]):
    """``32``, or a sweep ``1,2,4,8``."""

    name = "depths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            depths = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            depths = (0,)
        if min(depths) < 1 or len(set(depths)) != len(depths):
            self.fail(f"{value}: a number or a list as 1,4,16 is wanted", param, ctx)
        return depths


class Where(click.ParamType[Target]):
    """``[rdma://]ADDRESS:PORT/NQN``."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        try:
            return value if isinstance(value, Target) else Target.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(name="bench")
@click.option("--traddr", default="127.0.0.1", show_default=True, help="Address of the target.")
@click.option("--trsvcid", default="4420", show_default=True, help="Its port.")
@click.option("--trtype", type=click.Choice(("tcp", "rdma")), default="tcp", show_default=True, help="Its transport.")
@click.option("--subnqn", help="NQN of the subsystem.")
@click.option(
    "--against",
    type=Where(),
    multiple=True,
    metavar="[rdma://]ADDRESS:PORT/NQN",
    help="Twice, instead of --subnqn: two targets, measured A B A B ..., compared by the median of the pairs' ratios.",
)
@click.option(
    "--staging",
    metavar="A,B",
    help="Twice the same target, with data resting in A and in B in turn: host, cmb, or a pool's name. Asks the daemon "
    "at --rpc-socket to set the namespace's policy, and to set it back.",
)
@click.option("--nsid", type=click.IntRange(1), default=1, show_default=True, help="Namespace of --staging.")
@rpc_socket_option("The daemon's Unix socket, for --staging.")
@click.option(
    "--pairs", type=click.IntRange(1, 1000), default=7, show_default=True, help="Pairs of --against, --staging."
)
@click.option("--rw", type=click.Choice(WORKLOADS), default="randread", show_default=True, help="Writes destroy data.")
@click.option("--rwmix", type=click.IntRange(0, 100), default=50, show_default=True, help="Reads of rw, in percent.")
@click.option("--bs", default="4k", show_default=True, help="Block size.")
@click.option("--depth", type=Depths(), default="32", show_default=True, help="Per queue; a sweep as 1,2,4,8,16.")
@click.option("--queues", type=click.IntRange(1, 1024), default=1, show_default=True, help="I/O queues.")
@click.option(
    "--time", "time_s", type=click.FloatRange(0.05), default=5.0, show_default=True, help="Seconds of each run."
)
@click.option("--warmup", type=click.FloatRange(0), default=0.5, show_default=True, help="Seconds before, not counted.")
@click.option("--cpus", help="CPUs of the load generator's threads, as 1 or 0,2-3 [default: one thread on any]")
@click.option("--hdgst", is_flag=True, help="Header digests.")
@click.option("--ddgst", is_flag=True, help="Data digests.")
@click.option("--verify", is_flag=True, help="Write patterns, read back, compare; wrong data ends the run.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Save all results here.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path, dir_okay=False), help="Draw them here, as SVG.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def command(**options: Any) -> None:
    """Load an NVMe/TCP or NVMe/RDMA target, ours or any other, and measure.

    Needs no privilege and no kernel initiator. After `--`, MORE options go to the load generator as they are:
    `nvmet-p2p bench --subnqn NQN -- --no-icd --poll` (see `nvmet-p2p-bench --help`).
    """
    from nvmet_p2p.cli import bench_plot, bench_view

    plan = make_plan(options)
    binary = bench_tool.find_binary()

    def run(target: Target, arguments: Sequence[str]) -> dict[str, Any]:
        return bench_tool.run(binary, target, arguments)

    if plan.staging:
        from nvmet_p2p.cli.bench_staging import Switch
        from nvmet_p2p.cli.client import RpcClient

        with (
            RpcClient(options["rpc_socket"], timeout_s=STAGING_TIMEOUT_S) as client,
            Switch(client, options["subnqn"], options["nsid"]) as switch,
        ):
            document = measure(plan, run, switch.to)
    else:
        document = measure(plan, run)
    bench_view.show(document)
    if options["json_file"] is not None:
        save(options["json_file"], msgspec.json.format(msgspec.json.encode(document), indent=1).decode() + "\n")
    if options["plot_file"] is not None:
        save(options["plot_file"], bench_plot.svg(bench_view.panels(document)))


def make_plan(options: dict[str, Any]) -> Plan:
    """The options checked and turned into the tool's."""
    targets = tuple(options["against"])
    if targets and (options["subnqn"] or len(targets) != 2):
        raise click.UsageError("either --subnqn, or --against twice")
    if not targets and not options["subnqn"]:
        raise click.UsageError("--subnqn is missing")
    staging = tuple(options["staging"].split(",")) if options["staging"] is not None else ()
    if staging and (targets or len(staging) != 2 or not all(staging)):
        raise click.UsageError("--staging takes two places, as host,cmb, and goes with --subnqn")
    pairs = options["pairs"] if targets or staging else 1
    if not targets:
        where = Target(options["traddr"], options["trsvcid"], options["subnqn"], options["trtype"])
        targets = (where,) * (len(staging) or 1)
    arguments = ["--nsid", str(options["nsid"])] if staging else []
    arguments += ["--rw", options["rw"], "--rwmix", str(options["rwmix"]), "--bs", options["bs"]]
    arguments += ["--queues", str(options["queues"]), "--time", str(options["time_s"])]
    arguments += ["--warmup", str(options["warmup"])]
    if options["cpus"]:
        arguments += ["--cpus", options["cpus"]]
    arguments += [f"--{flag}" for flag in ("hdgst", "ddgst", "verify") if options[flag]]
    return Plan(targets, tuple(options["depth"]), (*arguments, *options["more"]), pairs, staging)


def measure(
    plan: Plan,
    run: Callable[[Target, Sequence[str]], dict[str, Any]],
    stage: Callable[[str], None] = lambda place: None,
) -> dict[str, Any]:
    """All runs of the plan: ``{"targets": [...], "points": [{"depth", "runs": [[A's ...], [B's ...]], "ratios"}]}``.

    A run that was interrupted is the last one; a point that it leaves without a whole pair is left out.
    """
    points: list[dict[str, Any]] = []
    interrupted = False
    for depth in plan.depths:
        runs: list[list[dict[str, Any]]] = [[] for _ in plan.targets]
        for _ in range(plan.pairs):
            pair = []
            for side, target in enumerate(plan.targets):
                if plan.staging:
                    stage(plan.staging[side])
                pair.append(run(target, [*plan.arguments, "--depth", str(depth)]))
                interrupted = bool(pair[-1]["interrupted"])
                if interrupted:
                    break
            if len(pair) == len(plan.targets):
                for kept, document in zip(runs, pair, strict=True):
                    kept.append(document)
            if interrupted:
                break
        if runs[0]:
            points.append({"depth": depth, "runs": runs, "ratios": ratios(runs)})
        if interrupted:
            break
    if not points:
        raise BenchError("interrupted before there was a result")
    names = [str(target) for target in plan.targets]
    if plan.staging:
        names = [f"{name} staged in {place}" for name, place in zip(names, plan.staging, strict=True)]
    return {"tool": "nvmet-p2p bench", "targets": names, "points": points}


def figures(document: dict[str, Any]) -> dict[str, float | None]:
    """The values of one run that are compared; latencies in microseconds."""
    total = document["total"]
    return {
        "iops": total["iops"],
        "depth_per_latency": bench_tool.depth_per_latency(document),
        "p50": total["latency_us"]["p50"],
        "p99": total["latency_us"]["p99"],
        "cpu_per_million": bench_tool.cpu_per_million(document),
    }


def ratios(runs: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Medians of the pairs' ratios A : B, of the figures that all runs have; empty for one target."""
    if len(runs) != 2:
        return {}
    first, second = ([figures(document) for document in side] for side in runs)
    result = {}
    for name in FIGURES:
        pairs = [(a[name], b[name]) for a, b in zip(first, second, strict=True)]
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if known:
            result[name] = bench_tool.median_of_ratios([a for a, _ in known], [b for _, b in known])
    return result


def save(path: Path, text: str) -> None:
    """Writes a result. Raises BenchError: a lost measurement must not look like a bug."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}") from error
