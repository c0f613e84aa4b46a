"""Copy (NVM 3.3.2, TP4065, TP4130): descriptor formats 0 to 3, limits, and each refusal."""

from __future__ import annotations

import random
import struct

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.daemon import Ns, Tree
from tests.support.initiator import Completion, Host, Queue

CROSS = 0b1100  # CDFE bits of Host Behavior Support that enable formats 2 and 3


def descriptor(fmt: int, lba: int, blocks: int, snsid: int = 0) -> bytes:
    """Source range entry: 32 bytes (formats 0, 2) or 40 (1, 3); ``blocks`` is a count."""
    head = struct.pack("<I4xQH", snsid if fmt in (2, 3) else 0, lba, blocks - 1)
    return head.ljust(40 if fmt in (1, 3) else 32, b"\0")


def copy(
    io: Queue, to: int, *entries: bytes, fmt: int = 0, nsid: int = 1, nr: int = 0, in_capsule: bool | None = None
) -> Completion:
    count = (nr or len(entries)) - 1
    cdw = (to & 0xFFFFFFFF, to >> 32, count & 0xFF | fmt << 8)
    return io.command(nvme.COPY, nsid=nsid, cdw=cdw, out=b"".join(entries), in_capsule=in_capsule)


def enable_cross(host: Host) -> None:
    behavior = bytearray(512)
    behavior[4] = CROSS
    assert host.admin.set_features(0x16, out=bytes(behavior)).status == nvme.OK


def fill(io: Queue, lba: int, blocks: int, seed: int = 1, nsid: int = 1, size: int = 512) -> bytes:
    data = random.Random(seed).randbytes(blocks * size)
    assert io.write(lba, blocks, data, nsid=nsid).status == nvme.OK
    return data


def test_one_range(io: Queue) -> None:
    data = fill(io, 10, 16)
    assert copy(io, 100, descriptor(0, 10, 16)).status == nvme.OK
    assert io.read(100, 16, 8192).data == data
    assert io.read(10, 16, 8192).data == data
    assert io.read(99, 1, 512).data == io.read(116, 1, 512).data == bytes(512)


def test_ranges_are_joined_in_order(io: Queue) -> None:
    data = fill(io, 0, 16)
    entries = [descriptor(0, lba, 2) for lba in (14, 0, 8)]
    assert copy(io, 200, *entries).status == nvme.OK
    assert io.read(200, 6, 3072).data == data[14 * 512 :] + data[:1024] + data[8 * 512 : 10 * 512]


def limits(host: Host, nsid: int = 1) -> tuple[int, int, int]:
    """(MSSRL, MCL, MSRC + 1), in blocks and ranges."""
    data = host.admin.identify(0, nsid=nsid).data
    mssrl, mcl, msrc = struct.unpack_from("<HIB", data, 74)
    return mssrl, mcl, msrc + 1


def test_most_ranges(host: Host, io: Queue) -> None:
    most = limits(host)[2]
    data = fill(io, 0, 8) + fill(io, 8, 8, 2)
    entries = [descriptor(0, number % 16, 1) for number in range(most)]
    assert copy(io, 1000, *entries).status == nvme.OK
    got = b"".join(io.read(1000 + at, 1, 512).data for at in range(most))
    assert got == b"".join(data[number % 16 * 512 : (number % 16 + 1) * 512] for number in range(most))
    if most < 256:
        done = copy(io, 1000, *entries, descriptor(0, 0, 1))
        assert done.status == nvme.SIZE_LIMIT
        assert done.dnr


def test_descriptors_by_r2t(io: Queue) -> None:
    data = fill(io, 0, 4)
    assert copy(io, 50, descriptor(0, 0, 4), in_capsule=False).status == nvme.OK
    assert io.read(50, 4, 2048).data == data


def test_range_longer_than_mssrl(make_tree: MakeTree) -> None:
    host = make_tree(Ns("null", blocks=1 << 20)).started()
    mssrl, mcl, _ = limits(host)
    io = host.io()
    if mssrl < 0xFFFF:
        assert copy(io, 0, descriptor(0, 0, mssrl + 1)).status == nvme.SIZE_LIMIT
    entries: list[bytes] = []
    left = mcl + 1
    while left > 0 and len(entries) < limits(host)[2]:
        entries.append(descriptor(0, 0, min(left, mssrl)))
        left -= mssrl
    if left <= 0:
        assert copy(io, 0, *entries).status == nvme.SIZE_LIMIT


@pytest.mark.parametrize("fmt", [2, 3])
def test_across_namespaces(make_tree: MakeTree, fmt: int) -> None:
    tree = make_tree(Ns(), Ns("aio"))
    host = tree.started()
    enable_cross(host)
    io = host.io()
    data = fill(io, 4, 16, nsid=1)
    done = copy(io, 64, descriptor(fmt, 4, 16, snsid=1), fmt=fmt, nsid=2)
    if fmt == 3:
        # Format 3 is for 32b and 64b guards (TP4130); a target may take it for namespaces without any or refuse it.
        assert done.status in (nvme.OK, nvme.INVALID_FIELD, nvme.INVALID_NAMESPACE)
        return
    assert done.status == nvme.OK
    assert io.read(64, 16, 8192, nsid=2).data == data


def test_sources_in_several_namespaces(make_tree: MakeTree) -> None:
    tree = make_tree(Ns(), Ns(), Ns())
    host = tree.started()
    enable_cross(host)
    io = host.io()
    parts = [fill(io, 0, 8, seed, nsid=seed) for seed in (1, 2)]
    entries = [descriptor(2, 0, 8, snsid=nsid) for nsid in (2, 1)]
    assert copy(io, 0, *entries, fmt=2, nsid=3).status == nvme.OK
    assert io.read(0, 16, 8192, nsid=3).data == parts[1] + parts[0]


@pytest.mark.parametrize("fmt", [2, 3])
def test_cross_formats_must_be_enabled_by_the_host(io: Queue, fmt: int) -> None:
    """CDFE (Host Behavior Support): a format that the host did not enable is an Invalid Field."""
    assert copy(io, 0, descriptor(fmt, 8, 1, snsid=1), fmt=fmt).status == nvme.INVALID_FIELD


@pytest.mark.parametrize("fmt", [4, 5, 15])
def test_unknown_format(host: Host, io: Queue, fmt: int) -> None:
    enable_cross(host)
    assert copy(io, 0, descriptor(0, 8, 1), fmt=fmt).status == nvme.INVALID_FIELD


def test_block_sizes_differ(host: Host, io: Queue) -> None:
    """LBA formats of source and destination: Incompatible Namespace or Format (NVM 3.3.2)."""
    enable_cross(host)
    assert copy(io, 0, descriptor(2, 0, 1, snsid=1), fmt=2, nsid=2).status == nvme.INCOMPATIBLE_NS


@pytest.mark.parametrize("snsid", [0, 3, 33, 0xFFFFFFFE, 0xFFFFFFFF])
def test_source_namespace_invalid(host: Host, io: Queue, snsid: int) -> None:
    enable_cross(host)
    done = copy(io, 0, descriptor(2, 0, 1, snsid=snsid), fmt=2)
    assert done.status in (nvme.INVALID_NAMESPACE, nvme.INVALID_FIELD)


@pytest.mark.parametrize(
    ("lba", "blocks", "to"),
    [(4096, 1, 0), (4095, 2, 0), ((1 << 64) - 1, 2, 0), (0, 2, 4095), (0, 1, 4096), (0, 1, (1 << 64) - 1)],
    ids=["source-end", "source-across", "source-wrap", "to-across", "to-end", "to-wrap"],
)
def test_range_beyond_the_namespace(io: Queue, lba: int, blocks: int, to: int) -> None:
    assert copy(io, to, descriptor(0, lba, blocks)).status == nvme.LBA_RANGE


def test_a_bad_range_after_good_ones(io: Queue) -> None:
    """Nothing may be written before all ranges are known to be good: dword 0 then says 0 ranges were copied."""
    fill(io, 0, 8)
    done = copy(io, 100, descriptor(0, 0, 8), descriptor(0, 4096, 1))
    assert done.status == nvme.LBA_RANGE
    if done.dw0 & 0xFFFF == 0:
        assert io.read(100, 8, 4096).data in (bytes(4096), io.read(0, 8, 4096).data)


@pytest.mark.parametrize("nr", [2, 5, 256])
def test_fewer_descriptors_than_nr_says(io: Queue, nr: int) -> None:
    assert copy(io, 0, descriptor(0, 8, 1), nr=nr).status in (nvme.DATA_SGL_LENGTH, nvme.SIZE_LIMIT)


def test_overlap(io: Queue) -> None:
    """Source and destination overlap: done as if by way of a buffer, or refused with Overlapping I/O Range."""
    data = fill(io, 0, 8)
    done = copy(io, 4, descriptor(0, 0, 8))
    assert done.status in (nvme.OK, nvme.OVERLAPPING)
    if done.status == nvme.OK:
        assert io.read(4, 8, 4096).data == data


def test_neighbours_do_not_overlap(host: Host, io: Queue) -> None:
    """A source that ends where the destination begins, and one that begins where it ends."""
    enable_cross(host)
    data = fill(io, 8, 8)
    for fmt in (0, 2):
        for to in (0, 16):
            assert copy(io, to, descriptor(fmt, 8, 8, snsid=1), fmt=fmt).status == nvme.OK
            assert io.read(to, 8, 4096).data == data


def test_enabled_formats_hold_from_the_completion_on(host: Host, io: Queue) -> None:
    """When Set Features has completed, the I/O queues know of it: no command that follows may see the old setting."""
    for _ in range(30):
        enable_cross(host)
        assert copy(io, 64, descriptor(2, 0, 1, snsid=1), fmt=2).status == nvme.OK
        assert host.admin.set_features(0x16, out=bytes(512)).status == nvme.OK
        assert copy(io, 64, descriptor(2, 0, 1, snsid=1), fmt=2).status == nvme.INVALID_FIELD


def test_to_a_read_only_namespace(make_tree: MakeTree) -> None:
    host = make_tree(Ns(), Ns("aio", readonly=True)).started()
    enable_cross(host)
    io = host.io()
    assert copy(io, 0, descriptor(2, 0, 1, snsid=1), fmt=2, nsid=2).status == nvme.NS_WRITE_PROTECTED
    assert copy(io, 8, descriptor(2, 0, 1, snsid=2), fmt=2, nsid=1).status == nvme.OK


def test_from_a_namespace_that_the_host_may_not_see(make_tree: MakeTree) -> None:
    tree: Tree = make_tree(Ns(), Ns(params={"no_auto_visible": True}))
    host = tree.started()
    enable_cross(host)
    done = copy(host.io(), 0, descriptor(2, 0, 1, snsid=2), fmt=2)
    assert done.status in (nvme.INVALID_NAMESPACE, nvme.INVALID_FIELD)
