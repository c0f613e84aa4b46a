"""deploy/benchmark as a user runs it: the folder copied to the initiator, a short matrix, the target's counters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from tests.lab.lab import Guest
from tests.lab.target import LabTarget
from tests.lab.test_linux_host import quiet
from tests.support.daemon import ROOT, Daemon, free_port

NQN = "nqn.2026-11.org.example:benchmark"
METRICS_PORT = free_port()
JOBS = ("randread-4k-qd1", "randread-4k-qd32", "randrw-4k-qd32", "read-128k-qd32")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("--metrics-listen", f"127.0.0.1:{METRICS_PORT}") as running:
        yield running


@pytest.fixture
def target(daemon: Daemon) -> Iterator[LabTarget]:
    made = LabTarget(daemon, NQN)
    made.serve(mib=64)
    yield made
    made.clear()


@pytest.fixture
def folder(guest: Guest) -> Iterator[None]:
    """A copy of the folder, with what its link points to."""
    copy = guest.files / "benchmark"
    shutil.copytree(ROOT / "deploy/benchmark", copy)
    yield
    shutil.rmtree(copy)


def test_matrix(guest: Guest, target: LabTarget, folder: None) -> None:
    done = guest.run(
        f"""set -e; cd /tmp
        python3 /lab/files/benchmark/run.py --traddr 127.0.0.1 --trsvcid {target.port} --subnqn {NQN} \\
            --nr-io-queues 2 --queue-size 64 --hdr-digest --runtime 1 --size 32m --singles 5 --allow-writes \\
            --jobs {" ".join(JOBS)} --metrics-url http://127.0.0.1:{METRICS_PORT}/metrics --output out >&2
        cat out/result.json; echo; ls /sys/class/nvme >&2; cp out/result.svg /lab/files/benchmark/""",
        timeout=110,
    )
    result = done.json()
    assert set(result["fio"]) == set(JOBS)
    for name in JOBS:
        job = result["fio"][name]
        assert job["read"]["iops"] > 0, name
        assert job["read"]["p99_us"] >= job["read"]["p50_us"] > 0, name
        reads = 'nvmet_p2p_bdev_ops_total{bdev="disk",op="read"}'
        assert job["target"][reads] > 0, (name, job["target"])
    assert result["fio"]["randrw-4k-qd32"]["write"]["iops"] > 0
    assert result["single"]["read"]["count"] == result["single"]["write"]["count"] == 5
    assert 0 < result["single"]["read"]["min"] <= result["single"]["read"]["max"]
    assert "randread-4k-qd32" in done.err
    ElementTree.fromstring((guest.files / "benchmark/result.svg").read_text())
    assert target.rpc("nvmf_subsystem_get_controllers", NQN) == []
    quiet(done)


def test_writes_are_left_out_unless_allowed(guest: Guest, target: LabTarget, folder: None) -> None:
    """By the admin socket's counters: nothing was written."""
    done = guest.run(
        f"""cd /tmp; python3 /lab/files/benchmark/run.py --traddr 127.0.0.1 --trsvcid {target.port} --subnqn {NQN} \\
            --runtime 1 --singles 1 --jobs 'randwrite-4k-*' 'randread-4k-qd1' --output out2""",
        timeout=60,
    )
    assert done.out.count("left out, it writes") == 3
    (stat,) = target.rpc("bdev_get_iostat")["bdevs"]
    assert stat["num_write_ops"] == 0
    assert stat["num_read_ops"] > 0


def test_failures_are_one_line(guest: Guest, target: LabTarget, folder: None) -> None:
    done = guest.run(
        f"python3 /lab/files/benchmark/run.py --traddr 127.0.0.1 --trsvcid {target.port} --subnqn nqn.2026-11.x:none",
        check=False,
    )
    assert done.code == 1
    assert "nvme connect" in done.err
    assert "Traceback" not in done.err
