"""The NVM command set on each back end and block size (NVM 3.2, 3.3): data, ranges, statuses."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.daemon import Ns, Tree
from tests.support.initiator import Host, Queue, lba_cdw

BLOCKS = 2048
FUA, LIMITED_RETRY, DEAC = 1 << 30, 1 << 31, 1 << 25
BACKENDS = [pytest.param(kind, size, id=f"{kind}-{size}") for kind in ("malloc", "aio") for size in (512, 4096)]
EVERY = [*BACKENDS, pytest.param("null", 512, id="null-512"), pytest.param("null", 4096, id="null-4096")]


def pattern(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def queue(make_tree: MakeTree, request: pytest.FixtureRequest) -> tuple[Queue, int]:
    """An I/O queue of a controller whose NSID 1 is (kind, block size); and the block size."""
    kind, size = request.param
    return make_tree(Ns(kind, BLOCKS, size)).started().io(), size


def each(params: list[object]) -> pytest.MarkDecorator:
    joined = [pytest.param(param.values, id=param.id) for param in params]  # type: ignore[attr-defined]
    return pytest.mark.parametrize("queue", joined, indirect=True)


@each(BACKENDS)  # type: ignore[arg-type]
@pytest.mark.parametrize("in_capsule", [True, False], ids=["in-capsule", "r2t"])
def test_write_then_read(queue: tuple[Queue, int], in_capsule: bool) -> None:
    io, size = queue
    data = pattern(4096)
    assert io.write(7, 4096 // size, data, in_capsule=in_capsule).status == nvme.OK
    assert io.read(7, 4096 // size, 4096).data == data
    assert io.read(6, 1, size).data == bytes(size), "the neighbour before"
    assert io.read(7 + 4096 // size, 1, size).data == bytes(size), "the neighbour after"


@each(BACKENDS)  # type: ignore[arg-type]
def test_first_and_last_block(queue: tuple[Queue, int]) -> None:
    io, size = queue
    for lba in (0, BLOCKS - 1):
        data = pattern(size, lba)
        assert io.write(lba, 1, data).status == nvme.OK
        assert io.read(lba, 1, size).data == data


@each(EVERY)  # type: ignore[arg-type]
@pytest.mark.parametrize(
    ("lba", "blocks"),
    [(BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS - 8, 16), (1 << 32, 1), ((1 << 64) - 1, 1), ((1 << 64) - 1, 2)],
    ids=["end", "across", "across-8", "4G", "last-lba", "wrap"],
)
def test_range_beyond_the_namespace(queue: tuple[Queue, int], lba: int, blocks: int) -> None:
    io, size = queue
    cdw = lba_cdw(lba, blocks)
    assert io.read(lba, blocks, blocks * size).status == nvme.LBA_RANGE
    assert io.write(lba, blocks, bytes(blocks * size)).status == nvme.LBA_RANGE
    assert io.write(lba, blocks, bytes(blocks * size), in_capsule=False).status == nvme.LBA_RANGE
    assert io.command(nvme.COMPARE, nsid=1, cdw=cdw, out=bytes(blocks * size)).status == nvme.LBA_RANGE
    assert io.command(nvme.WRITE_ZEROES, nsid=1, cdw=cdw).status == nvme.LBA_RANGE
    assert io.command(nvme.VERIFY, nsid=1, cdw=cdw).status == nvme.LBA_RANGE
    assert io.read(BLOCKS - 1, 1, size).status == nvme.OK


@each(BACKENDS)  # type: ignore[arg-type]
def test_large_transfers(queue: tuple[Queue, int]) -> None:
    io, size = queue
    for length in (8192, 32768, 131072):
        data = pattern(length, length)
        done = io.write(3, length // size, data, in_capsule=False)
        assert done.status == nvme.OK
        assert done.r2ts >= 1
        assert io.read(3, length // size, length).data == data


@each(BACKENDS)  # type: ignore[arg-type]
def test_force_unit_access(queue: tuple[Queue, int]) -> None:
    io, size = queue
    data = pattern(size)
    assert io.write(5, 1, data, cdw12=FUA | LIMITED_RETRY).status == nvme.OK
    assert io.read(5, 1, size, cdw12=FUA).data == data


@each(EVERY)  # type: ignore[arg-type]
def test_flush(queue: tuple[Queue, int]) -> None:
    io, _ = queue
    assert io.command(nvme.FLUSH, nsid=1).status == nvme.OK


def test_flush_of_all_namespaces(host: Host, io: Queue) -> None:
    """VWC bits 2:1 say what the broadcast NSID does: 11b flushes all, 10b is refused."""
    behavior = host.admin.identify(1).data[525] >> 1 & 3
    done = io.command(nvme.FLUSH, nsid=0xFFFFFFFF)
    if behavior == 3:
        assert done.status == nvme.OK
    elif behavior == 2:
        assert done.status == nvme.INVALID_NAMESPACE


@each(BACKENDS)  # type: ignore[arg-type]
def test_compare(queue: tuple[Queue, int]) -> None:
    io, size = queue
    data = pattern(4096)
    assert io.write(0, 4096 // size, data).status == nvme.OK
    cdw = lba_cdw(0, 4096 // size)
    for in_capsule in (True, False):
        assert io.command(nvme.COMPARE, nsid=1, cdw=cdw, out=data, in_capsule=in_capsule).status == nvme.OK
        wrong = data[:-1] + bytes([data[-1] ^ 1])
        done = io.command(nvme.COMPARE, nsid=1, cdw=cdw, out=wrong, in_capsule=in_capsule)
        assert done.status == nvme.COMPARE_FAILURE


@each(BACKENDS)  # type: ignore[arg-type]
@pytest.mark.parametrize("flags", [0, DEAC, FUA], ids=["plain", "deallocate", "fua"])
def test_write_zeroes(queue: tuple[Queue, int], flags: int) -> None:
    io, size = queue
    data = pattern(16 * size)
    for at in range(16):
        assert io.write(at, 1, data[at * size : (at + 1) * size]).status == nvme.OK
    assert io.command(nvme.WRITE_ZEROES, nsid=1, cdw=lba_cdw(4, 8, flags)).status == nvme.OK
    assert io.read(0, 16, 16 * size).data == data[: 4 * size] + bytes(8 * size) + data[12 * size :]


@each(BACKENDS)  # type: ignore[arg-type]
def test_write_zeroes_of_the_whole_namespace(queue: tuple[Queue, int]) -> None:
    """Write Zeroes moves no data, so MDTS does not bound it (WZSL 0: no limit)."""
    io, size = queue
    assert io.write(BLOCKS - 1, 1, pattern(size)).status == nvme.OK
    assert io.command(nvme.WRITE_ZEROES, nsid=1, cdw=lba_cdw(0, BLOCKS)).status == nvme.OK
    assert io.read(BLOCKS - 1, 1, size).data == bytes(size)


@each(EVERY)  # type: ignore[arg-type]
def test_verify(queue: tuple[Queue, int]) -> None:
    io, _ = queue
    assert io.command(nvme.VERIFY, nsid=1, cdw=lba_cdw(0, 64)).status == nvme.OK


def ranges(*entries: tuple[int, int]) -> bytes:
    """Dataset Management ranges: (LBA, blocks)."""
    return b"".join(bytes(4) + blocks.to_bytes(4, "little") + lba.to_bytes(8, "little") for lba, blocks in entries)


DEALLOCATE = 1 << 2


@each(BACKENDS)  # type: ignore[arg-type]
def test_deallocate(queue: tuple[Queue, int]) -> None:
    """What was deallocated reads as zeroes or as before, never as anything else (NVM 3.3.3.2.1, DLFEAT)."""
    io, size = queue
    data = pattern(32 * size)
    for at in range(32):
        assert io.write(at, 1, data[at * size : (at + 1) * size]).status == nvme.OK
    done = io.command(nvme.DSM, nsid=1, cdw=(1, DEALLOCATE), out=ranges((2, 4), (16, 8)))
    assert done.status == nvme.OK
    for lba in range(32):
        got = io.read(lba, 1, size).data
        old = data[lba * size : (lba + 1) * size]
        inside = 2 <= lba < 6 or 16 <= lba < 24
        assert got in ((old, bytes(size)) if inside else (old,)), f"LBA {lba}"


def test_deallocated_blocks_read_as_dlfeat_says(host: Host, io: Queue) -> None:
    if host.admin.identify(0, nsid=1).data[33] & 7 != 1:
        pytest.skip("DLFEAT does not promise zeroes")
    assert io.write(0, 8, pattern(4096)).status == nvme.OK
    assert io.command(nvme.DSM, nsid=1, cdw=(0, DEALLOCATE), out=ranges((0, 8))).status == nvme.OK
    assert io.read(0, 8, 4096).data == bytes(4096)


def test_deallocate_all_ranges(io: Queue) -> None:
    """256 ranges, the most there can be; 4,096 bytes of descriptors."""
    many = ranges(*((lba * 8, 1) for lba in range(256)))
    assert io.command(nvme.DSM, nsid=1, cdw=(255, DEALLOCATE), out=many).status == nvme.OK
    assert io.command(nvme.DSM, nsid=1, cdw=(255, DEALLOCATE), out=many, in_capsule=False).status == nvme.OK


def test_deallocate_beyond_the_namespace(io: Queue) -> None:
    for lba, blocks in ((4096, 1), (4095, 2), (0, 0xFFFFFFFF), ((1 << 64) - 1, 0xFFFFFFFF)):
        done = io.command(nvme.DSM, nsid=1, cdw=(0, DEALLOCATE), out=ranges((lba, blocks)))
        assert done.status == nvme.LBA_RANGE


def test_dsm_hints_are_accepted(io: Queue) -> None:
    """IDR and IDW are hints; so are context attributes. A range of 0 blocks is nothing."""
    assert io.command(nvme.DSM, nsid=1, cdw=(0, 3), out=ranges((0, 8))).status == nvme.OK
    assert io.command(nvme.DSM, nsid=1, cdw=(0, DEALLOCATE), out=ranges((0, 0))).status == nvme.OK


def test_dsm_length(io: Queue) -> None:
    done = io.command(nvme.DSM, nsid=1, cdw=(3, DEALLOCATE), out=ranges((0, 1)))
    assert done.status == nvme.DATA_SGL_LENGTH


@pytest.mark.parametrize("nsid", [0, 3, 33, 0xFFFFFFFE, 0xFFFFFFFF])
def test_invalid_namespace(io: Queue, nsid: int) -> None:
    assert io.read(0, 1, 512, nsid=nsid).status == nvme.INVALID_NAMESPACE
    assert io.write(0, 1, bytes(512), nsid=nsid).status == nvme.INVALID_NAMESPACE
    assert io.write(0, 1, bytes(512), nsid=nsid, in_capsule=False).status == nvme.INVALID_NAMESPACE
    assert io.command(nvme.WRITE_ZEROES, nsid=nsid, cdw=lba_cdw(0, 1)).status == nvme.INVALID_NAMESPACE


@pytest.mark.parametrize("opcode", [0x03, 0x06, 0x0A, 0x1C, 0x7E, 0x80, 0xFF])
def test_unknown_opcode(io: Queue, opcode: int) -> None:
    assert io.command(opcode, nsid=1).status == nvme.INVALID_OPCODE


def test_mdts(host: Host) -> None:
    """MDTS is a power of two of 4 KiB; a transfer beyond it is an Invalid Field (Base, Identify Controller MDTS)."""
    mdts = host.admin.identify(1).data[77]
    assert mdts, "a target with staging buffers has a limit"
    limit = 4096 << mdts
    io = host.io()
    if limit // 4096 <= 1024:
        assert io.read(0, limit // 4096, limit, nsid=2).status == nvme.OK
        data = pattern(limit)
        assert io.write(0, limit // 4096, data, nsid=2, in_capsule=False).status == nvme.OK
        assert io.read(0, limit // 4096, limit, nsid=2).data == data
        done = io.read(0, limit // 4096 + 1, limit + 4096, nsid=2)
        assert done.status == nvme.INVALID_FIELD or limit // 4096 == 1024
        big = bytes(limit + 4096)
        assert io.write(0, limit // 4096 + 1, big, nsid=2, in_capsule=False).status == nvme.INVALID_FIELD
    assert io.read(0, 1, 4096, nsid=2).status == nvme.OK


@pytest.mark.parametrize("length", [0, 4, 511, 513, 1024, 1 << 20, 0xFFFFFFFF])
def test_sgl_length_is_not_that_of_the_range(io: Queue, length: int) -> None:
    """SGLS bit 18 is 0: shorter and longer are both Data SGL Length Invalid."""
    assert io.read(0, 1, length).status == nvme.DATA_SGL_LENGTH


@pytest.mark.parametrize("length", [4, 511, 513, 1024, 4096])
@pytest.mark.parametrize("in_capsule", [True, False], ids=["in-capsule", "r2t"])
def test_sgl_length_of_a_write(io: Queue, length: int, in_capsule: bool) -> None:
    assert io.write(0, 1, bytes(length), in_capsule=in_capsule).status == nvme.DATA_SGL_LENGTH
    assert io.write(0, 1, b"\1" * 512).status == nvme.OK


def test_read_only_namespace(make_tree: MakeTree) -> None:
    """Namespace is Write Protected (20h); NSATTR bit 0 says so beforehand."""
    host = make_tree(Ns("aio", readonly=True)).started()
    assert host.admin.identify(0, nsid=1).data[99] & 1
    io = host.io()
    protected = {nvme.NS_WRITE_PROTECTED}
    assert io.write(0, 1, bytes(512)).status in protected
    assert io.write(0, 16, bytes(8192), in_capsule=False).status in protected
    assert io.command(nvme.WRITE_ZEROES, nsid=1, cdw=lba_cdw(0, 1)).status in protected
    assert io.command(nvme.DSM, nsid=1, cdw=(0, DEALLOCATE), out=ranges((0, 1))).status in protected
    assert io.read(0, 1, 512).status == nvme.OK
    assert io.command(nvme.COMPARE, nsid=1, cdw=lba_cdw(0, 1), out=bytes(512)).status == nvme.OK
    assert io.command(nvme.FLUSH, nsid=1).status == nvme.OK


def test_full_queue(host: Host) -> None:
    """As many commands in flight as the queue has entries, answered each exactly once."""
    io = host.io(sqsize=31)
    cids = [
        io.submit(nvme.sqe(nvme.READ, nsid=1, cdw=lba_cdw(at, 1)), expect=512) for at in range(31)
    ]  # a queue of 32 entries holds 31
    assert {io.wait(cid).status for cid in cids} == {nvme.OK}


def test_mixed_load(host: Host) -> None:
    """Random ranges at depth, against a model; two queues, each with its own half of the namespace."""
    rng = random.Random(2)
    model = bytearray(4096 * 512)
    queues = [host.io(1), host.io(2)]
    writes: list[tuple[Queue, int]] = []
    for number, io in itertools.product(range(24), queues):
        half = 2048 * queues.index(io)
        blocks = rng.choice((1, 3, 8, 9, 40))
        lba = half + 84 * number
        data = rng.randbytes(blocks * 512)
        model[lba * 512 : (lba + blocks) * 512] = data
        writes.append((io, io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=lba_cdw(lba, blocks)), out=data)))
    assert {io.wait(cid).status for io, cid in writes} == {nvme.OK}
    for io in queues:
        lba = rng.randrange(4096 - 128)
        assert io.read(lba, 128, 65536).data == model[lba * 512 : (lba + 128) * 512]


def test_null_reads_zeroes_or_anything_but_never_others_data(make_tree: MakeTree) -> None:
    """A null back end keeps nothing. Its reads must not show what was in the buffer before."""
    tree = make_tree(Ns(), Ns("null"))
    io = tree.started().io()
    secret = b"\xa5" * 4096
    for _ in range(8):
        assert io.write(0, 8, secret).status == nvme.OK
        assert io.read(0, 8, 4096).data == secret
        assert io.read(0, 8, 4096, nsid=2).data == bytes(4096)


def test_data_survives_for_other_hosts(tree: Tree) -> None:
    data = pattern(512)
    tree.started().io().write(9, 1, data)
    assert tree.started().io().read(9, 1, 512).data == data
