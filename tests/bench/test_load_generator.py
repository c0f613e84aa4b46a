"""``nvmet-p2p-bench``, under the sanitizers, against our daemon: what it measures is right, what is wrong it finds."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.proxy import Proxy
from tests.support import nvme
from tests.support.conn import Address
from tests.support.daemon import Daemon, Ns, Tree, eventually, free_port

COUNT = 600
FAILED, USAGE, MISMATCH, INTERRUPTED = 1, 2, 3, 4
Damage = Callable[[bytearray], bytes]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as running:
        yield running


@pytest.fixture
def tree(daemon: Daemon) -> Iterator[Tree]:
    made = daemon.subsystem(Ns(kind="malloc", blocks=32768, block_size=512))
    yield made
    made.delete()


class Bench:
    """Runs the program against a subsystem."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary

    def command(self, tree: Tree, *options: str, address: Address | None = None) -> list[str]:
        host, port = address or tree.address
        where = ["--traddr", host, "--trsvcid", str(port), "--subnqn", tree.nqn]
        return [str(self.binary), *where, "--json", "-", *options]

    def run(
        self, tree: Tree, *options: str, status: int = 0, address: Address | None = None
    ) -> tuple[dict[str, Any], str]:
        """The JSON document and stderr of a run that must end with ``status``."""
        command = self.command(tree, *options, address=address)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, f"{' '.join(command)}\n{done.stdout[:2000]}\n{done.stderr}"
        assert "Sanitizer" not in done.stderr
        return (json.loads(done.stdout) if done.stdout else {}), done.stderr


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A run that goes on while the test does something; killed if it is not over at the end."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def iostat(tree: Tree) -> dict[str, Any]:
    """The counters of the back end of namespace 1."""
    name = tree.bdevs[1][0]
    (found,) = (stat for stat in tree.daemon.rpc("bdev_get_iostat")["bdevs"] if stat["name"] == name)
    return dict(found)


@pytest.fixture
def bench(bench_binary: Path) -> Bench:
    return Bench(bench_binary)


@pytest.mark.parametrize(
    "options",
    [
        "--rw randread --depth 1",
        "--rw randread --depth 127",
        "--rw read --bs 128k --depth 8",
        "--rw randread --bs 128k --depth 8 --discard",
        "--rw randwrite",
        "--rw write --bs 64k --no-icd --maxr2t 3",
        "--rw randwrite --bs 8k --hpda 7",
        "--rw randrw --rwmix 30 --bs 512 --queues 3",
        "--rw rw --bs 12k --queues 4 --threads 2 --depth 5",
        "--rw randread --poll",
        "--rw randrw --spin-us 50 --queues 2",
        "--rw randrw --hdgst",
        "--rw randrw --ddgst --bs 16k",
        "--rw randrw --hdgst --ddgst --no-icd --queues 2",
        "--rw randrw --lba-start 1000 --lba-count 2000",
    ],
)
def test_every_io_is_counted_once(tree: Tree, bench: Bench, options: str) -> None:
    """The generator's counts are the back end's."""
    document, _ = bench.run(tree, *options.split(), "--count", str(COUNT))
    stat = iostat(tree)
    reads, writes, total = document["read"], document["write"], document["total"]
    assert (reads["ios"], writes["ios"]) == (stat["num_read_ops"], stat["num_write_ops"])
    assert reads["ios"] + writes["ios"] == total["ios"] == COUNT
    assert stat["bytes_read"] == reads["ios"] * document["options"]["bs"]
    assert stat["bytes_written"] == writes["ios"] * document["options"]["bs"]
    latency = total["latency_us"]
    order = [latency[key] for key in ("min", "p50", "p90", "p99", "p99_9", "p99_99", "max")]
    assert order == sorted(order)
    assert order[0] > 0
    for part in (reads, writes):
        assert sum(count for _, count in part["histogram_us"]) == part["ios"]
    in_capsule = "--no-icd" not in options and document["options"]["bs"] <= 4096
    assert (document["r2ts"] > 0) == (writes["ios"] > 0 and not in_capsule)
    assert document["error"] is None


def test_success_flag_needs_flow_control_off(tree: Tree, bench: Bench) -> None:
    assert bench.run(tree, "--count", "100")[0]["success_flags"] == 0
    assert bench.run(tree, "--count", "100", "--disable-sqflow")[0]["success_flags"] == 100


def test_time_bounds_the_run(tree: Tree, bench: Bench, daemon: Daemon) -> None:
    options = ["--time", "0.3", "--warmup", "0.1", "--kato", "400", "--watch-pids", str(daemon.pid)]
    document, _ = bench.run(tree, *options)
    assert document["elapsed_s"] == pytest.approx(0.3)
    assert document["total"]["iops"] == pytest.approx(document["total"]["ios"] / 0.3)
    assert document["watched_cpu_s"] > 0


def test_range_is_kept(tree: Tree, bench: Bench) -> None:
    """Writes beside the range given would show in what was there before."""
    host = tree.started()
    queue = host.io()
    for lba in (7, 24):
        assert queue.write(lba, 1, b"\xa5" * 512).status == nvme.OK
    bench.run(tree, "--rw", "randwrite", "--lba-start", "8", "--lba-count", "16", "--count", "200")
    for lba in (7, 24):
        assert queue.read(lba, 1, 512).data == b"\xa5" * 512
    assert queue.read(8, 1, 512).data != bytes(512)


@pytest.mark.parametrize(
    "options",
    [
        "--rw randrw --bs 4k",
        "--rw randwrite --bs 512 --lba-count 40",  # fewer units than commands could be outstanding
        "--rw rw --bs 32k --hdgst --ddgst --queues 3 --threads 2",
        "--rw randrw --bs 64k --no-icd --disable-sqflow --depth 4",
    ],
)
def test_verify_of_a_sound_target(tree: Tree, bench: Bench, options: str) -> None:
    document, _ = bench.run(tree, *options.split(), "--verify", "--count", str(COUNT))
    assert document["total"]["ios"] == COUNT
    assert document["verified"] > document["read"]["ios"]  # what was written is read again at the end


def test_verify_finds_what_changed_behind_the_targets_back(daemon: Daemon, bench: Bench) -> None:
    tree = daemon.subsystem(Ns(kind="aio", blocks=65536, block_size=512))
    (name, _) = tree.bdevs[1]
    file = daemon.dir / f"{name}.img"
    options = ["--rw", "write", "--bs", "4k", "--verify", "--count", "8192", "--depth", "8"]
    with started(bench.command(tree, *options)) as process:
        eventually(lambda: file.read_bytes()[:4096].strip(b"\0"), "the first block is written")
        process.send_signal(signal.SIGSTOP)
        with file.open("r+b") as image:
            image.seek(3 * 512 + 18)
            was = image.read(1)[0]
            image.seek(3 * 512 + 18)
            image.write(bytes([was ^ 0x40]))
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == MISMATCH, err
    assert "verify: LBA 3, byte 18" in err
    assert "1 of 512 bytes differ" in err
    assert json.loads(out)["error"].startswith("verify:")
    tree.delete()


def _drop(pdu: bytearray) -> bytes:
    return b""


def _set(offset: int, value: bytes) -> Damage:
    def damage(pdu: bytearray) -> bytes:
        pdu[offset : offset + len(value)] = value
        return bytes(pdu)

    return damage


def _flip_last(pdu: bytearray) -> bytes:
    pdu[-1] ^= 1
    return bytes(pdu)


def _term(pdu: bytearray) -> bytes:
    head = bytes([nvme.C2H_TERM, 0, 24, 0, 24, 0, 0, 0, nvme.FES_LIMIT, 0, 12, 0, 0, 0])
    return head + bytes(10)


READS, WRITES = "--rw randread", "--rw randwrite --bs 8k"


@pytest.mark.parametrize(
    ("options", "pdu_type", "damage", "words"),
    [
        (READS, nvme.C2H_DATA, _drop, "0 of 4096 bytes"),
        (READS, nvme.C2H_DATA, _set(12, b"\0\2"), "out of its place"),
        (READS, nvme.C2H_DATA, _set(16, b"\0\2"), "out of its place"),
        (READS, nvme.C2H_DATA, _set(8, b"\xff\xff"), "no Read of ours"),
        (READS, nvme.C2H_DATA, _set(3, b"\x05"), "impossible header"),
        (READS, nvme.C2H_DATA, _set(1, b"\x08"), "SUCCESS without LAST_PDU"),
        (READS, nvme.C2H_DATA, _term, "C2HTermReq, FES 5, FEI 12"),
        (READS, nvme.CAPSULE_RESP, _set(0, b"\x77"), "impossible header"),
        (READS, nvme.CAPSULE_RESP, _set(20, b"\xee\xee"), "no command of ours"),
        (READS, nvme.CAPSULE_RESP, _set(22, b"\x00\x05"), "status 0x280 (Write Fault)"),
        (READS, nvme.CAPSULE_RESP, _set(4, b"\x19"), "impossible header"),
        (READS, nvme.CAPSULE_RESP, _drop, "no answer within 1000 ms"),
        (READS + " --ddgst", nvme.C2H_DATA, _flip_last, "data digest error"),
        (READS + " --hdgst", nvme.CAPSULE_RESP, _flip_last, "header digest error"),
        (WRITES, nvme.R2T, _set(16, b"\1\0\1"), "R2T out of its place"),
        (WRITES, nvme.R2T, _set(12, b"\4"), "R2T out of its place"),
        (WRITES, nvme.R2T, _set(8, b"\xff\xff"), "no Write of ours"),
        (READS, nvme.C2H_DATA, lambda pdu: bytes(pdu) + bytes([nvme.R2T, 0, 24, 0, 24] + [0] * 19), "no Write of ours"),
    ],
)
def test_a_target_at_fault_ends_the_run(
    tree: Tree, bench: Bench, options: str, pdu_type: int, damage: Damage, words: str
) -> None:
    with Proxy(tree.address, pdu_type, damage) as proxy:
        document, err = bench.run(
            tree, *options.split(), "--count", str(COUNT), "--timeout", "1", status=FAILED, address=proxy.address
        )
        assert proxy.damaged == 1
    assert words in err
    assert words in document["error"]


def test_a_target_that_dies_ends_the_run(bench: Bench) -> None:
    with Daemon() as daemon:
        tree = daemon.subsystem(Ns(kind="malloc", blocks=32768, block_size=512))
        command = bench.command(tree, "--time", "50", "--warmup", "0")
        with started(command) as process:
            eventually(lambda: iostat(tree)["num_read_ops"] > 100, "it runs")
            daemon.kill9()
            out, err = process.communicate(timeout=30)
    assert process.returncode == FAILED
    assert json.loads(out)["total"]["ios"] > 0
    assert "closed the connection" in err or "reset by peer" in err or "ended the admin queue" in err


def test_an_error_status_ends_the_run(tree: Tree, bench: Bench) -> None:
    command = bench.command(tree, "--time", "50", "--warmup", "0")
    with started(command) as process:
        eventually(lambda: iostat(tree)["num_read_ops"] > 100, "it runs")
        tree.remove(1)
        _, err = process.communicate(timeout=30)
    assert process.returncode == FAILED
    assert "Read at LBA" in err
    assert "status 0x00b (Invalid Namespace or Format)" in err


def test_an_interrupt_reports_what_there_is(tree: Tree, bench: Bench) -> None:
    command = bench.command(tree, "--time", "50", "--warmup", "0")
    with started(command) as process:
        eventually(lambda: iostat(tree)["num_read_ops"] > 100, "it runs")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED
    document = json.loads(out)
    assert document["interrupted"] is True
    assert 0 < document["elapsed_s"] < 50
    assert document["total"]["iops"] == pytest.approx(document["total"]["ios"] / document["elapsed_s"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ("--subnqn nqn.2026-01.org.example:none", FAILED, "status 0x182"),
        ("--nsid 9", FAILED, "namespace 9"),
        ("--bs 1000", USAGE, "--bs 1000"),
        ("--bs 256k", USAGE, "MDTS"),
        ("--depth 128", USAGE, "CAP.MQES"),
        ("--lba-start 32768", USAGE, "--lba-start"),
        ("--lba-count 32769", USAGE, "--lba-count"),
        ("--queues 3 --lba-count 16", USAGE, "fewer units"),
        ("--depth 0", USAGE, "--depth 0"),
        ("--depth 5x", USAGE, "--depth 5x"),
        ("--rw append", USAGE, "--rw append"),
        ("--verify", USAGE, "--verify"),
        ("--threads 2", USAGE, "2 threads for 1 queues"),
        ("--hostid 12", USAGE, "not a UUID"),
        ("--cpus 1-", USAGE, "--cpus"),
        ("--time nan", USAGE, "--time"),
        ("--queue-size 32 --depth 32", USAGE, "--queue-size 32"),
        ("stray", USAGE, "stray"),
    ],
)
def test_refusals(tree: Tree, bench: Bench, options: str, status: int, words: str) -> None:
    _, err = bench.run(tree, *options.split(), status=status)
    assert words in err


def test_nobody_listens(tree: Tree, bench: Bench) -> None:
    _, err = bench.run(tree, status=FAILED, address=("127.0.0.1", free_port()))
    assert "Connection refused" in err


def test_a_host_that_is_not_allowed(daemon: Daemon, bench: Bench) -> None:
    tree = daemon.subsystem(Ns(kind="malloc", blocks=32768, block_size=512), allow_any_host=False)
    _, err = bench.run(tree, status=FAILED)
    assert "status 0x184 (Connect Invalid Host)" in err
    tree.rpc("nvmf_subsystem_add_host", host="nqn.2026-01.org.example:host")
    options = ["--hostnqn", "nqn.2026-01.org.example:host", "--hostid", "11111111-2222-3333-4444-555555555555"]
    bench.run(tree, *options, "--count", "10")
    tree.delete()
