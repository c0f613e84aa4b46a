"""``nvmet-p2p bench``: options, order of the runs, ratios, tables and charts, with a load generator that is a table."""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from nvmet_p2p.cli import bench, bench_plot, bench_tool, bench_view
from nvmet_p2p.cli.bench_plot import Axis, Panel, Series
from nvmet_p2p.cli.bench_tool import BenchError, Target
from nvmet_p2p.cli.main import main

NQN = "nqn.2026-11.com.example:a"
A, B = Target("192.0.2.1", "4420", NQN), Target("::1", "4421", NQN)
SVG = "{http://www.w3.org/2000/svg}"


def document(iops: float, p50: float, *, depth: int = 32, writes: int = 0, **more: Any) -> dict[str, Any]:
    """A run's document as the tool writes it, as far as it is looked at."""
    latency = {"mean": p50, "min": p50 / 2, "p50": p50, "p90": p50, "p99": 2 * p50, "p99_9": 3 * p50, "p99_99": 4 * p50}
    latency["max"] = 5 * p50
    part = {"ios": 1000, "iops": iops, "mib_s": iops / 256, "latency_us": latency}
    histogram = [[p50 / 2, 500], [p50, 490], [2 * p50, 9], [5 * p50, 1]]
    return {
        "options": {"depth": depth, "queues": 2},
        "interrupted": False,
        "verified": 0,
        "total": part,
        "read": part | {"histogram_us": histogram},
        "write": part | {"histogram_us": histogram, "ios": writes},
        **more,
    }


class Table:
    """Answers with the documents given, in order; remembers what was asked."""

    def __init__(self, *documents: dict[str, Any]) -> None:
        self.documents = list(documents)
        self.asked: list[tuple[Target, list[str]]] = []

    def __call__(self, target: Target, arguments: Sequence[str]) -> dict[str, Any]:
        self.asked.append((target, list(arguments)))
        return self.documents.pop(0)


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the tool's place: notes its arguments, prints ``answer``, ends with ``status``."""
    program = tmp_path / "tool"
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "with (here / 'asked').open('a') as asked: print(*sys.argv[1:], file=asked)\n"
        "sys.stderr.write((here / 'err').read_text())\n"
        "print((here / 'answer').read_text())\n"
        "sys.exit(int((here / 'status').read_text()))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("NVMET_P2P_BENCH", str(program))
    answer(tmp_path, document(50000, 600))
    return tmp_path


def answer(folder: Path, result: dict[str, Any], status: int = 0, err: str = "") -> None:
    (folder / "answer").write_text(json.dumps(result))
    (folder / "status").write_text(str(status))
    (folder / "err").write_text(err)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments])


def test_target_is_parsed() -> None:
    assert Target.parse(str(A)) == A
    assert Target.parse(str(B)) == B
    rdma = Target("::1", "4421", NQN, "rdma")
    assert str(rdma) == f"rdma://[::1]:4421/{NQN}"
    assert Target.parse(str(rdma)) == rdma
    assert Target.parse(f"tcp://{A}") == A
    for bad in ("", "iser://192.0.2.1:4420/x", NQN, "192.0.2.1/x", "192.0.2.1:x/y", "192.0.2.1:4420", "::1:4420/x"):
        with pytest.raises(ValueError, match="is wanted"):
            Target.parse(bad)


def test_binary_named_by_the_environment(tool: Path, tmp_path: Path) -> None:
    assert bench_tool.find_binary() == tool / "tool"
    with pytest.raises(BenchError, match="is no program"):
        bench_tool.find_binary({"NVMET_P2P_BENCH": str(tmp_path / "missing")})


def test_binary_beside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    program = tmp_path / "nvmet-p2p-bench"
    program.touch(0o755)
    assert bench_tool.find_binary({}) == program


def test_missing_binary_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BenchError, match="meson setup build/native"):
        bench_tool.find_binary({})


def test_one_run(tool: Path) -> None:
    done = call(
        "--subnqn", NQN, "--rw", "randrw", "--bs", "8k", "--hdgst", "--cpus", "1", "--", "--no-icd", "--kato", "5"
    )
    assert done.exit_code == 0, done.output
    asked = (tool / "asked").read_text()
    assert asked == (
        f"--traddr 127.0.0.1 --trsvcid 4420 --subnqn {NQN} --rw randrw --rwmix 50 --bs 8k --queues 1 --time 5.0 "
        "--warmup 0.5 --cpus 1 --hdgst --no-icd --kato 5 --depth 32 --json -\n"
    )
    assert "50000" in done.output
    assert f"127.0.0.1:4420/{NQN}" in done.output


def test_rdma_is_asked_for(tool: Path) -> None:
    assert call("--subnqn", NQN, "--trtype", "rdma").exit_code == 0
    assert f"--subnqn {NQN} --trtype rdma --rw" in (tool / "asked").read_text()
    (tool / "asked").unlink()
    done = call("--against", f"rdma://{A}", "--against", str(A), "--pairs", "1")
    assert done.exit_code == 0, done.output
    assert ["--trtype rdma" in line for line in (tool / "asked").read_text().splitlines()] == [True, False]
    assert f"rdma://{A}" in done.output


def test_files_are_written(tool: Path) -> None:
    result, chart = tool / "result.json", tool / "result.svg"
    done = call("--subnqn", NQN, "--depth", "1,4", "--json", str(result), "--plot", str(chart))
    assert done.exit_code == 0, done.output
    saved = json.loads(result.read_text())
    assert [point["depth"] for point in saved["points"]] == [1, 4]
    assert saved["points"][0]["runs"][0][0]["total"]["iops"] == 50000
    assert len(ElementTree.fromstring(chart.read_text()).findall(f".//{SVG}polyline")) == 5
    done = call("--subnqn", NQN, "--json", str(tool / "no/such/folder.json"))
    assert done.exit_code == 1
    assert "No such file" in done.output


@pytest.mark.parametrize("status", [1, 2, 3])
def test_a_failed_run_is_told_in_the_tools_words(tool: Path, status: int) -> None:
    answer(tool, {}, status, "nvmet-p2p-bench: verify: LBA 3 differs\n")
    done = call("--subnqn", NQN)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == f"Error: 127.0.0.1:4420/{NQN}: verify: LBA 3 differs"


def test_interrupted_run_is_shown(tool: Path) -> None:
    answer(tool, document(1234, 10, interrupted=True), 4)
    done = call("--subnqn", NQN, "--depth", "1,2,3")
    assert done.exit_code == 0, done.output
    assert "1234" in done.output
    assert len((tool / "asked").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--against", str(A)],
        ["--subnqn", NQN, "--against", str(A), "--against", str(B)],
        ["--against", "x", "--against", str(B)],
        ["--subnqn", NQN, "--depth", "1,1"],
        ["--subnqn", NQN, "--depth", "0"],
        ["--subnqn", NQN, "--depth", "a"],
        ["--subnqn", NQN, "--rw", "append"],
    ],
)
def test_wrong_options(tool: Path, arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2
    assert not (tool / "asked").exists()


def test_comparison_alternates() -> None:
    documents = [document(100 * number, 10 * number) for number in range(1, 9)]
    table = Table(*documents)
    result = bench.measure(bench.Plan((A, B), (1, 8), ("--bs", "4k"), pairs=2), table)
    assert [target for target, _ in table.asked] == [A, B] * 4
    assert [arguments[-1] for _, arguments in table.asked] == ["1"] * 4 + ["8"] * 4
    assert result["targets"] == [str(A), str(B)]
    first = result["points"][0]
    assert [[run["total"]["iops"] for run in runs] for runs in first["runs"]] == [[100, 300], [200, 400]]
    assert first["ratios"]["iops"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert first["ratios"]["depth_per_latency"] == pytest.approx((2 + 4 / 3) / 2)
    assert "cpu_per_million" not in first["ratios"]


def test_interrupted_pair_is_left_out() -> None:
    table = Table(document(1, 1), document(2, 1), document(3, 1, interrupted=True))
    result = bench.measure(bench.Plan((A, B), (1, 2), (), pairs=5), table)
    assert [len(runs) for runs in result["points"][0]["runs"]] == [1, 1]
    with pytest.raises(BenchError, match="interrupted"):
        bench.measure(bench.Plan((A, B), (1,), (), pairs=5), Table(document(1, 1, interrupted=True)))


def test_cpu_ratio_where_processes_were_watched() -> None:
    table = Table(document(1, 1, watched_cpu_s=0.5), document(1, 1, watched_cpu_s=1.0))
    point = bench.measure(bench.Plan((A, B), (1,), (), pairs=1), table)["points"][0]
    assert point["ratios"]["cpu_per_million"] == 0.5


def test_median_of_ratios() -> None:
    assert bench_tool.median_of_ratios([1, 10, 100], [1, 1, 1000]) == 1
    assert bench_tool.median_of_ratios([1, 2], [0, 1]) == 2
    assert bench_tool.median_of_ratios([1], [0]) == 0


def test_tables_fit_a_terminal() -> None:
    console = Console(width=80, record=True, file=Path("/dev/null").open("w"), highlight=False)  # noqa: SIM115
    table = Table(*(document(1234567, 1234.56, writes=5, verified=7) for _ in range(6)))
    result = bench.measure(bench.Plan((A, B), (32,), (), pairs=3), table)
    bench_view.show(result, console)
    text = console.export_text()
    console.file.close()
    assert "…" not in text
    assert "1234567" in text
    assert "A 64 read" in text
    assert "B 64 write" in text
    assert "42 blocks read back" in text


def test_distribution_goes_from_the_median_into_the_tail() -> None:
    points = bench_view.distribution(document(1, 100)["read"])
    assert [latency for _, latency in points] == [100, 200, 500]
    assert [rank for rank, _ in points] == pytest.approx([2, 100, 1000])


def test_chart_is_xml_and_keeps_within_its_frame() -> None:
    lines = [Series("a < b & c", [(1, 10), (2, 2000), (128, 30000), (0, 5)]), Series("empty", [])]
    for log in (False, True):
        text = bench_plot.svg([Panel("t", "x", "y", lines, log, log), Panel("e", "x", "y", [], log, log)])
        root = ElementTree.fromstring(text)
        circles = root.findall(f".//{SVG}circle")
        assert len(circles) == (3 if log else 4)
        for circle in circles:
            assert bench_plot.LEFT - 0.1 <= float(circle.get("cx", "")) <= bench_plot.WIDTH - bench_plot.RIGHT + 0.1
            assert bench_plot.TOP - 0.1 <= float(circle.get("cy", "")) <= bench_plot.HEIGHT - bench_plot.BOTTOM + 0.1
        assert "a < b & c" in [element.text for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (0, 1e6), (0, 0.03)])
def test_linear_ticks(low: float, high: float) -> None:
    ticks = Axis(low, high, 0, 100, False).ticks()
    assert 2 <= len(ticks) <= bench_plot.TICKS_MAX + 1
    assert all(low <= tick <= high * 1.0001 for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(1, 128), (0.5, 3), (10, 1e7)])
def test_logarithmic_ticks(low: float, high: float) -> None:
    axis = Axis(low, high, 0, 100, True)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 12
    assert axis.at(low) == pytest.approx(0)
    assert axis.at(high) == pytest.approx(100)


def test_numbers_on_an_axis() -> None:
    assert [bench_plot.number(value) for value in (0, 0.5, 20, 1500, 2e6, 3e9)] == [
        "0",
        "0.5",
        "20",
        "1.5k",
        "2M",
        "3G",
    ]
