"""What ``nvmet-p2p bench`` shows and draws of ``bench.measure``'s document."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from nvmet_p2p.cli import bench_tool
from nvmet_p2p.cli.bench import FIGURES
from nvmet_p2p.cli.bench_plot import Panel, Series
from nvmet_p2p.cli.bench_tool import PERCENTILES

LABELS = ("A", "B")
NINES = ((50.0, "50"), (90.0, "90"), (99.0, "99"), (99.9, "99.9"), (99.99, "99.99"), (99.999, "99.999"))


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median IOPS (the lower of two)."""
    value = statistics.median_low([run["total"]["iops"] for run in runs])
    return next(run for run in runs if run["total"]["iops"] == value)


def show(document: dict[str, Any], console: Console | None = None) -> None:
    """Tables: each target at each depth, then the ratios."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    both = len(document["targets"]) > 1
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("depth", "op", "IOPS", "MiB/s", "mean", *PERCENTILES, "max"):
        head = f"{'  ' if both and column == 'depth' else ''}{column.replace('_', '.')}"
        table.add_column(head, justify="left" if column == "op" else "right", no_wrap=True)
    for point in document["points"]:
        for index, runs in enumerate(point["runs"]):
            run = middle(runs)
            label = f"{LABELS[index]} " if both else ""
            for operation in ("read", "write"):
                part = run[operation]
                if part["ios"]:
                    table.add_row(f"{label}{bench_tool.depth(run)}", operation, *_cells(part))
    for label, target in zip(LABELS, document["targets"], strict=False):
        console.print(f"{label}: {target}" if both else target, soft_wrap=True)
    if len(document["points"][0]["runs"][0]) > 1:
        console.print(f"Of {len(document['points'][0]['runs'][0])} runs each, the one with the median IOPS.")
    console.print("Latencies in microseconds; depth over all queues.")
    console.print(table)
    if both:
        console.print(_ratio_table(document))
    for point in document["points"]:
        verified = sum(run["verified"] for runs in point["runs"] for run in runs)
        if verified:
            console.print(f"depth {point['depth']}: {verified} blocks read back and compared, all right")


def _cells(part: dict[str, Any]) -> list[str]:
    latency = part["latency_us"]
    values = [part["mib_s"], latency["mean"], *(latency[name] for name in PERCENTILES), latency["max"]]
    return [f"{part['iops']:.0f}", *(f"{value:.1f}" if value < 1000 else f"{value:.0f}" for value in values)]


def _ratio_table(document: dict[str, Any]) -> Table:
    table = Table(title="A : B, medians of the pairs' ratios")
    table.add_column("depth", justify="right")
    heads = {"iops": "IOPS", "depth_per_latency": "depth / median latency", "p50": "p50", "p99": "p99"}
    heads["cpu_per_million"] = "CPU for a million I/Os"
    names = [name for name in FIGURES if all(name in point["ratios"] for point in document["points"])]
    for name in names:
        table.add_column(heads[name], justify="right")
    for point in document["points"]:
        table.add_row(str(point["depth"]), *(f"{point['ratios'][name]:.2f}" for name in names))
    return table


def panels(document: dict[str, Any]) -> list[Panel]:
    """Charts of ``measure``'s document: the latency distribution and, for a sweep, rate and latency over depth."""
    labels = LABELS if len(document["targets"]) > 1 else ("",)
    result = []
    if len(document["points"]) > 1:
        result += _sweep(document, labels)
    lines = []
    for point in document["points"]:
        for label, runs in zip(labels, point["runs"], strict=True):
            run = middle(runs)
            for operation in ("read", "write"):
                if run[operation]["ios"]:
                    name = f"{label} {operation}, depth {bench_tool.depth(run)}".strip()
                    lines.append(Series(name, distribution(run[operation])))
    names = [(1 / (1 - percent / 100), text) for percent, text in NINES]
    result.append(Panel("Latency distribution", "percentile", "us", lines, x_log=True, y_log=True, x_names=names))
    return result


def _sweep(document: dict[str, Any], labels: Sequence[str]) -> list[Panel]:
    rate, latency = [], []
    for index, label in enumerate(labels):
        points = [middle(point["runs"][index]) for point in document["points"]]
        rate.append(Series(f"{label} IOPS".strip(), [(bench_tool.depth(run), run["total"]["iops"]) for run in points]))
        for name in ("p50", "p99"):
            values = [(bench_tool.depth(run), run["total"]["latency_us"][name]) for run in points]
            latency.append(Series(f"{label} {name}".strip(), values))
    return [
        Panel("I/Os a second over depth", "depth, all queues", "IOPS", rate, x_log=True),
        Panel("Latency over depth", "depth, all queues", "us", latency, x_log=True, y_log=True),
    ]


def distribution(part: dict[str, Any]) -> list[tuple[float, float]]:
    """(1 / (1 - quantile), latency in us) from the histogram, from the median up to one I/O of 100,000."""
    seen, points = 0, []
    for low, count in part["histogram_us"]:
        beyond = 1 - seen / part["ios"]
        if 1e-5 <= beyond <= 0.5:
            points.append((1 / beyond, low))
        seen += count
    return points
