"""Copy between files of a file system that can share extents: no data moves, and hosts cannot tell."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeTree
from tests.conformance.test_copy import copy, descriptor, enable_cross
from tests.support import nvme
from tests.support.daemon import Ns, Tree
from tests.support.initiator import Host, Queue

BLOCK = 512
BLOCKS = 32768  # 16 MiB
PART = 4096  # 2 MiB, more than the smallest extent that is worth it
FIEMAP = 0xC020660B
SHARED, LAST = 0x2000, 1
MKFS = {"btrfs": ["mkfs.btrfs", "-q"], "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"]}


@pytest.fixture(autouse=True)
def only_native(engine: str) -> None:
    """The in-process engine copies through memory."""
    if engine != "native":
        pytest.skip("the in-process engine shares no extents")


@pytest.fixture(params=list(MKFS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty file system of that kind."""
    mkfs = MKFS[request.param]
    if os.geteuid() or not shutil.which(mkfs[0]):
        pytest.skip(f"needs root and {mkfs[0]}")
    image, mount = tmp_path / "image", tmp_path / "mnt"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    mount.mkdir()
    subprocess.run([*mkfs, str(image)], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True, check=False).returncode:
        pytest.skip(f"no {request.param} or no loop device in this kernel")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def host(make_tree: MakeTree, folder: Path) -> Iterator[Host]:
    """NSID 1 and 2: files in that file system."""
    tree: Tree = make_tree(Ns(), listen=True)
    tree.remove(1)
    names = []
    for nsid in (1, 2):
        with (folder / f"f{nsid}").open("wb") as file:
            file.truncate(BLOCKS * BLOCK)
        names.append(f"reflink{nsid}")
        tree.daemon.rpc("bdev_aio_create", name=names[-1], filename=str(folder / f"f{nsid}"), block_size=BLOCK)
        tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": names[-1], "nsid": nsid})
    made = tree.started()
    enable_cross(made)
    yield made
    tree.delete()
    for name in names:
        tree.daemon.rpc("bdev_aio_delete", name=name)


def shared_bytes(path: Path) -> int:
    """Bytes of a file in extents that other places share (FIEMAP)."""
    request = bytearray(struct.pack("<QQIIII", 0, 1 << 62, 1, 0, 500, 0)) + bytearray(500 * 56)
    with path.open("rb") as file:
        fcntl.ioctl(file, FIEMAP, request)
    count = struct.unpack_from("<I", request, 20)[0]
    total = 0
    for at in range(32, 32 + count * 56, 56):
        _logical, _physical, length, _, _, flags = struct.unpack_from("<5QI", request, at)
        total += length if flags & SHARED else 0
    return total


def write(io: Queue, nsid: int, lba: int, data: bytes) -> None:
    for at in range(0, len(data), 65536):
        part = data[at : at + 65536]
        assert io.write(lba + at // BLOCK, len(part) // BLOCK, part, nsid=nsid).status == nvme.OK


def read(io: Queue, nsid: int, lba: int, blocks: int) -> bytes:
    parts = [
        io.read(lba + at, min(128, blocks - at), min(128, blocks - at) * BLOCK, nsid=nsid)
        for at in range(0, blocks, 128)
    ]
    assert {part.status for part in parts} == {nvme.OK}
    return b"".join(part.data for part in parts)


def test_extents_are_shared(host: Host, folder: Path) -> None:
    io = host.io()
    data = random.Random(1).randbytes(PART * BLOCK)
    write(io, 1, 0, data)
    assert shared_bytes(folder / "f1") == 0
    assert copy(io, 8192, descriptor(2, 0, PART, 1), fmt=2, nsid=2).status == nvme.OK  # another file
    assert copy(io, 8192, descriptor(0, 0, PART), nsid=1).status == nvme.OK  # the same
    assert shared_bytes(folder / "f1") == 2 * PART * BLOCK
    assert shared_bytes(folder / "f2") == PART * BLOCK
    assert read(io, 2, 8192, PART) == read(io, 1, 8192, PART) == data
    # what is written to one of them is not seen in the others
    write(io, 1, 8, b"\7" * 4096)
    assert read(io, 1, 0, PART) == data[:4096] + b"\7" * 4096 + data[8192:]
    assert read(io, 2, 8192, PART) == read(io, 1, 8192, PART) == data


def test_odd_ends(host: Host, folder: Path) -> None:
    """Ranges that begin and end between two blocks of the file system, by the same on both sides."""
    io = host.io()
    data = random.Random(2).randbytes(PART * BLOCK)
    write(io, 1, 0, data)
    write(io, 2, 8000, b"\xee" * (PART * BLOCK))
    assert copy(io, 8003, descriptor(2, 3, 2000, 1), fmt=2, nsid=2).status == nvme.OK
    assert read(io, 2, 8000, 2008) == (b"\xee" * (3 * BLOCK) + data[3 * BLOCK : 2003 * BLOCK] + b"\xee" * (5 * BLOCK))
    assert 0 < shared_bytes(folder / "f2") <= 2000 * BLOCK


def test_among_writes(host: Host) -> None:
    """Writes before, between and after copies, at random, some in flight: as if all of it were done one by one."""
    io = host.io()
    rng = random.Random(3)
    model = {nsid: bytearray(BLOCKS * BLOCK) for nsid in (1, 2)}
    for step in range(120):
        nsid, lba = rng.choice((1, 2)), rng.randrange(0, BLOCKS - 2048)
        if rng.random() < 0.5:
            blocks = rng.choice((1, 8, 128))
            data = rng.randbytes(blocks * BLOCK)
            write(io, nsid, lba, data)
            model[nsid][lba * BLOCK : (lba + blocks) * BLOCK] = data
            continue
        source, from_lba = rng.choice((1, 2)), rng.randrange(0, BLOCKS - 2048) // 8 * 8
        blocks, lba = rng.choice((8, 300, 1024)), lba // 8 * 8 + rng.choice((0, 0, 0, 3))
        if source == nsid and abs(lba - from_lba) < 1024:
            continue
        away = 0 if min(lba, from_lba) >= 1024 else BLOCKS - 8  # in flight with the copy, where it does not look
        cid = io.submit(nvme.sqe(nvme.WRITE, nsid=nsid, cdw=(away, 0, 7)), out=bytes([step]) * 4096, in_capsule=True)
        assert copy(io, lba, descriptor(2, from_lba, blocks, source), fmt=2, nsid=nsid).status == nvme.OK
        assert io.wait(cid).status == nvme.OK
        model[nsid][lba * BLOCK : (lba + blocks) * BLOCK] = model[source][
            from_lba * BLOCK : (from_lba + blocks) * BLOCK
        ]
        model[nsid][away * BLOCK : away * BLOCK + 4096] = bytes([step]) * 4096
    for nsid in (1, 2):
        assert read(io, nsid, 0, BLOCKS) == model[nsid]
