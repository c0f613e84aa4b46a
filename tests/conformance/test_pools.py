"""Payload in a pool of peer memory (an emulated one): hosts find what they have written, whatever becomes of it."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import MakeDaemon
from tests.conformance.test_copy import copy, descriptor, enable_cross
from tests.support import nvme
from tests.support.daemon import Daemon, Ns, RpcError, Tree, eventually
from tests.support.initiator import Queue, lba_cdw

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 512
BLOCKS = 8192
POOL = "pretend"
FILES = (Ns("aio", BLOCKS, BLOCK), Ns("aio", BLOCKS, BLOCK))
MakeStaged = Callable[..., tuple[Daemon, Tree]]


@pytest.fixture(autouse=True)
def only_native(engine: str) -> None:
    """The in-process engine has host memory only."""
    if engine != "native":
        pytest.skip("the in-process engine has no pools")


@pytest.fixture
def make_staged(make_daemon: MakeDaemon) -> MakeStaged:
    """A daemon and a subsystem, NSID 1 and 2 files, whose payload rests in an emulated pool of ``size`` bytes."""

    def make(size: int = MIB, mode: str = "prefer") -> tuple[Daemon, Tree]:
        daemon = make_daemon()
        daemon.transport()
        assert daemon.rpc("p2p_emulated_pool_create", name=POOL, bytes=size) == POOL
        tree = daemon.subsystem(*FILES)
        assert daemon.rpc("p2p_set_staging", policy=POOL, mode=mode, nqn=tree.nqn) is True
        return daemon, tree

    return make


def staging(tree: Tree, nsid: int = 1) -> dict[str, Any]:
    """What p2p_get_staging says of a namespace."""
    (found,) = tree.daemon.rpc("p2p_get_staging", nqn=tree.nqn, nsid=nsid)
    assert isinstance(found, dict)
    return found


def staged(tree: Tree, pool: str, nsid: int = 1) -> dict[str, int]:
    """A namespace's counters of one pool, or of host memory; nothing but zeroes where it was never used."""
    for counters in staging(tree, nsid)["pools"]:
        if counters["pool"] == pool:
            return {key: value for key, value in counters.items() if isinstance(value, int)}
    return dict.fromkeys(("read_bytes", "read_ops", "write_bytes", "write_ops", "copy_bytes", "copy_ops"), 0)


class Model:
    """What a namespace must hold, as the host remembers it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.data = bytearray(BLOCKS * BLOCK)

    def span(self, most: int = 256) -> tuple[int, int]:
        """(first block, number of blocks), within the first half of the namespace."""
        blocks = self.rng.choice((1, 7, 8, 16, 63, 64, 255, 256))
        blocks = min(blocks, most)
        return self.rng.randrange(BLOCKS // 2 - blocks), blocks

    def of(self, lba: int, blocks: int) -> bytes:
        return bytes(self.data[lba * BLOCK : (lba + blocks) * BLOCK])

    def write(self, lba: int, data: bytes) -> None:
        self.data[lba * BLOCK : lba * BLOCK + len(data)] = data


@pytest.mark.parametrize("digests", [False, True])
def test_reads_and_writes(make_staged: MakeStaged, digests: bool) -> None:
    """In capsules and by R2T, aligned to granules or not; each byte is counted where it was, and once."""
    _, tree = make_staged()
    io = tree.started(hdgst=digests, ddgst=digests).io()
    model = Model(1)
    read = written = 0
    for _ in range(150):
        lba, blocks = model.span()
        if model.rng.random() < 0.5:
            data = model.rng.randbytes(blocks * BLOCK)
            assert io.write(lba, blocks, data).status == nvme.OK
            model.write(lba, data)
            written += len(data)
        else:
            assert io.read(lba, blocks, blocks * BLOCK).data == model.of(lba, blocks)
            read += blocks * BLOCK
    pool, host = staged(tree, POOL), staged(tree, "host")
    assert (pool["read_bytes"], pool["write_bytes"]) == (read, written)
    assert not any(host.values())
    assert staging(tree)["fallbacks"] == staging(tree)["interrupted"] == 0


def test_other_commands_stay_in_host_memory(make_staged: MakeStaged) -> None:
    _, tree = make_staged()
    io = tree.started().io()
    data = random.Random(2).randbytes(4096)
    assert io.write(0, 8, data).status == nvme.OK
    assert io.command(nvme.COMPARE, nsid=1, cdw=lba_cdw(0, 8), out=data).status == nvme.OK
    assert io.command(nvme.WRITE_ZEROES, nsid=1, cdw=lba_cdw(0, 8)).status == nvme.OK
    assert io.read(0, 8, 4096).data == bytes(4096)
    assert staged(tree, "host")["read_bytes"] == 4096  # what Compare compared with
    assert staged(tree, "host")["write_bytes"] == 0
    assert staged(tree, POOL)["write_bytes"] == staged(tree, POOL)["read_bytes"] == 4096


def test_copy(make_staged: MakeStaged) -> None:
    """Across namespaces; no payload on the network, all of it in the pool."""
    _, tree = make_staged()
    host = tree.started()
    enable_cross(host)
    io = host.io()
    data = random.Random(3).randbytes(128 * KIB)
    for at in range(0, 2048, 256):
        assert io.write(at, 256, data, nsid=2).status == nvme.OK
    done = copy(io, 100, descriptor(2, 0, 2048, snsid=2), descriptor(2, 5, 1, snsid=2), fmt=2)
    assert done.status == nvme.OK
    for at in range(0, 2048, 256):
        assert io.read(100 + at, 256, 128 * KIB).data == data
    assert io.read(2148, 1, BLOCK).data == data[5 * BLOCK : 6 * BLOCK]
    assert staged(tree, POOL)["copy_bytes"] + staging(tree)["copy_routes"]["reflink"] == 2049 * BLOCK
    assert staged(tree, "host")["copy_bytes"] == 0


def mixed_load(io: Queue, model: Model, rounds: int) -> int:
    """Many commands at a time on ranges of their own; those that are interrupted are sent again. How many were."""
    again = 0
    for _ in range(rounds):
        todo: list[tuple[int, bytes]] = []
        for slot in range(16):
            lba, blocks = slot * 256, model.rng.choice((8, 64, 200, 256))
            todo.append((lba, model.rng.randbytes(blocks * BLOCK)))
        for write in (True, False):
            left = list(todo)
            while left:
                cids = [send(io, lba, data, write) for lba, data in left]
                done = [io.wait(cid) for cid in cids]
                assert {each.status for each in done} <= {nvme.OK, nvme.COMMAND_INTERRUPTED}
                assert not any(each.dnr for each in done)
                for (_, data), each in zip(left, done, strict=True):
                    assert write or each.status or each.data == data
                left = [entry for entry, each in zip(left, done, strict=True) if each.status]
                again += len(left)
        for lba, data in todo:
            model.write(lba, data)
    return again


def send(io: Queue, lba: int, data: bytes, write: bool) -> int:
    cdw = lba_cdw(lba, len(data) // BLOCK)
    if write:
        return io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=cdw), out=data)
    return io.submit(nvme.sqe(nvme.READ, nsid=1, cdw=cdw), expect=len(data))


@pytest.mark.parametrize("mode", ["prefer", "strict"])
def test_pool_smaller_than_what_is_in_flight(make_staged: MakeStaged, mode: str) -> None:
    """16 times up to 128 KiB at once and a pool of two of them: host memory, or waiting, never an error."""
    daemon, tree = make_staged(260 * KIB, mode)
    io = tree.started().io()
    model = Model(4)
    assert mixed_load(io, model, 6) == 0
    for lba in range(0, 4096, 256):
        assert io.read(lba, 256, 128 * KIB).data == model.of(lba, 256)
    found = staging(tree)
    (pool,) = daemon.rpc("p2p_get_pools")
    assert staged(tree, POOL)["write_bytes"] > 0
    if mode == "strict":
        assert found["fallbacks"] == 0
        assert pool["waits"] > 0
        assert not any(staged(tree, "host").values())
    else:
        assert found["fallbacks"] > 0
        assert staged(tree, "host")["write_bytes"] > 0
    assert pool["free"] == 256 * KIB


def test_strict_and_a_pool_that_cannot_do(make_daemon: MakeDaemon) -> None:
    """Too small for the largest transfer, or nothing that a drive can reach: refused, and nothing has changed."""
    daemon = make_daemon()
    daemon.transport()
    daemon.rpc("p2p_emulated_pool_create", name=POOL, bytes=64 * KIB)
    tree = daemon.subsystem(Ns("aio", BLOCKS, BLOCK))
    with pytest.raises(RpcError):
        daemon.rpc("p2p_set_staging", policy=POOL, mode="strict", nqn=tree.nqn)
    io = tree.started().io()
    assert io.write(0, 8, bytes(4096)).status == nvme.OK
    assert staged(tree, POOL)["write_bytes"] == 0


def error_bdev(daemon: Daemon, tree: Tree) -> None:
    """NSID 3: a file behind an error bdev."""
    below = daemon.bdev(Ns("aio", BLOCKS, BLOCK))
    daemon.rpc("bdev_error_create", base_name=below)
    tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": f"EE_{below}", "nsid": 3})
    eventually(lambda: [path["read"] for path in staging(tree, 3)["paths"]] == [POOL], "the pool is proven for it", 30)
    eventually(lambda: daemon.rpc("p2p_get_pools")[0]["free"] == 256 * KIB, "and given back by its calibration")
    daemon.rpc("bdev_error_inject_error", name=f"EE_{below}", io_type="read", error_type="not_transferred", num=1000)


def test_another_host_never_sees_what_was_in_the_pool(make_staged: MakeStaged) -> None:
    """A drive says that it has read and has moved nothing: what comes is zeroes, not the first host's bytes."""
    daemon, tree = make_staged(260 * KIB)
    error_bdev(daemon, tree)
    secret = b"\x5e" * (128 * KIB)
    first = tree.started().io()
    other = tree.started(hostnqn="nqn.2014-08.org.example:another", hostid=bytes(range(16))).io()
    for _ in range(4):
        assert first.write(0, 256, secret).status == nvme.OK
        assert first.read(0, 256, 128 * KIB).data == secret
        got = other.read(0, 256, 128 * KIB, nsid=3)
        assert got.status == nvme.OK
        assert got.data == bytes(128 * KIB)
    assert staged(tree, POOL, 3)["read_bytes"] == 4 * 128 * KIB
    (pool,) = daemon.rpc("p2p_get_pools")
    assert pool["wiped_bytes"] >= 4 * 128 * KIB


@contextlib.contextmanager
def memory_of(daemon: Daemon) -> Iterator[int]:
    """The file that an emulated pool lies in, as the helper has it open."""
    pid = daemon.rpc("p2p_get_status")["dataplane"]["pid"]
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(link).startswith("/memfd:nvmet-p2p emulated CMB"):
                fd = os.open(link, os.O_RDWR)
                yield fd
                os.close(fd)
                return
    raise AssertionError("no emulated pool in the helper")


@pytest.mark.parametrize("mode", ["prefer", "strict"])
@pytest.mark.parametrize("digests", [False, True])
def test_pool_lost_under_load(make_staged: MakeStaged, mode: str, digests: bool) -> None:
    """Its memory is taken away: commands are done, or interrupted and done when sent again; no byte is lost."""
    daemon, tree = make_staged(520 * KIB, mode)
    io = tree.started(hdgst=digests).io()
    model = Model(5)
    assert mixed_load(io, model, 2) == 0
    cids = [send(io, slot * 256, model.of(slot * 256, 256), True) for slot in range(16)]
    with memory_of(daemon) as memory:
        os.ftruncate(memory, 0)
    for slot, cid in enumerate(cids):
        done = io.wait(cid)
        assert done.status in (nvme.OK, nvme.COMMAND_INTERRUPTED)
        if done.status:
            assert io.write(slot * 256, 256, model.of(slot * 256, 256)).status == nvme.OK
    mixed_load(io, model, 3)
    for lba in range(0, 4096, 256):
        assert io.read(lba, 256, 128 * KIB).data == model.of(lba, 256)
    assert staging(tree)["fallbacks"] > 0
    eventually(lambda: "pool" in daemon.log_text() and "lost" in daemon.log_text(), "the loss is in the log")
    assert "Traceback" not in daemon.log.read_text(errors="replace")
