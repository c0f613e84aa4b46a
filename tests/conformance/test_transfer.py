"""How data travels: R2T, MAXR2T, MAXH2CDATA, pieces of H2CData, in-capsule data, SUCCESS (NVMe/TCP 3.3.2, 3.4)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support import nvme
from tests.support.daemon import Daemon, Ns, Tree
from tests.support.initiator import Host, Queue, lba_cdw

MIB = 1 << 20


def start_write(io: Queue, lba: int, data: bytes, nsid: int = 1, block: int = 512) -> int:
    cdw = lba_cdw(lba, len(data) // block)
    return io.submit(nvme.sqe(nvme.WRITE, nsid=nsid, cdw=cdw), out=data, in_capsule=False)


@pytest.mark.parametrize("piece", [1, 3, 4, 512, 1000, 4096])
def test_data_in_pieces_of_any_size(io: Queue, piece: int) -> None:
    """The host may split what an R2T asked for as it likes; LAST_PDU is on the last piece."""
    data = random.Random(piece).randbytes(2048 if piece < 512 else 16384)
    cid = start_write(io, 0, data)
    done = 0
    while done < len(data):
        _, ttag, offset, length = io.recv_r2t()
        assert offset == done
        io.send_h2c(cid, ttag, offset, data[offset : offset + length], piece)
        done += length
    assert io.wait(cid).status == nvme.OK
    assert io.read(0, len(data) // 512, len(data)).data == data


def test_r2ts_answered_in_another_order(host: Host) -> None:
    """Writes wait side by side; each is complete when its own data is, whatever came first."""
    io = host.io(sqsize=31)
    writes = {start_write(io, 16 * number, bytes([number + 1]) * 8192): number for number in range(8)}
    asked = [io.recv_r2t() for _ in writes]
    assert len({ttag for _, ttag, _, _ in asked}) == 8, "a TTAG stands for one R2T"
    for cid, ttag, offset, length in reversed(asked):
        io.send_h2c(cid, ttag, offset, bytes([writes[cid] + 1]) * length)
        assert io.wait(cid).status == nvme.OK
    for number in range(8):
        assert io.read(16 * number, 16, 8192).data == bytes([number + 1]) * 8192


def test_pieces_of_two_writes_interleaved(io: Queue) -> None:
    """The pieces of one R2T stay in order; between them there may be pieces of another."""
    cids = [start_write(io, 0, bytes(8192)), start_write(io, 16, bytes(8192))]
    tags = {cid: ttag for cid, ttag, _, _ in (io.recv_r2t(), io.recv_r2t())}
    for at in range(0, 8192, 1024):
        for cid in cids:
            last = at == 8192 - 1024
            part = bytes([cid & 0xFF]) * 1024
            io.conn.send(io.conn.h2c_data(cid, tags[cid], at, part, last=last))
    for lba, cid in zip((0, 16), cids, strict=True):
        assert io.wait(cid).status == nvme.OK
        assert io.read(lba, 16, 8192).data == bytes([cid & 0xFF]) * 8192


def test_commands_between_the_pieces(io: Queue) -> None:
    """A Write that waits for data holds up no other command."""
    cid = start_write(io, 0, b"\x31" * 8192)
    _, ttag, _, length = io.recv_r2t()
    io.conn.send(io.conn.h2c_data(cid, ttag, 0, b"\x31" * 4096, last=False))
    assert io.read(100, 1, 512).status == nvme.OK
    assert io.write(101, 1, b"\x32" * 512).status == nvme.OK
    io.conn.send(io.conn.h2c_data(cid, ttag, 4096, b"\x31" * (length - 4096)))
    assert io.wait(cid).status == nvme.OK


def test_byte_by_byte(tree: Tree) -> None:
    """TCP keeps no borders: a whole conversation in single bytes."""
    host = tree.started(hdgst=True, ddgst=True)
    io = host.io()
    sqe = nvme.sqe(nvme.WRITE, cid=77, nsid=1, dptr=nvme.sgl(nvme.SGL_IN_CAPSULE, 512))
    io.expect_response(77)
    for value in io.conn.capsule(sqe, b"\x44" * 512):
        io.conn.send(bytes([value]))
    assert io.wait(77).status == nvme.OK
    cid = start_write(io, 1, b"\x45" * 512)
    _, ttag, _, _ = io.recv_r2t()
    for value in io.conn.h2c_data(cid, ttag, 0, b"\x45" * 512):
        io.conn.send(bytes([value]))
    assert io.wait(cid).status == nvme.OK
    assert io.read(0, 2, 1024).data == b"\x44" * 512 + b"\x45" * 512


def test_many_capsules_in_one_segment(host: Host) -> None:
    io = host.io(sqsize=63)
    segment = b""
    for number in range(48):
        cid = 100 + number
        sqe = nvme.sqe(
            nvme.WRITE, cid=cid, nsid=1, cdw=lba_cdw(number, 1), dptr=nvme.sgl(nvme.SGL_IN_CAPSULE, 512)
        )  # fmt: skip
        segment += io.conn.capsule(sqe, bytes([number + 1]) * 512)
        io.expect_response(cid)
    io.conn.send(segment)
    assert {io.wait(100 + number).status for number in range(48)} == {nvme.OK}
    assert io.read(0, 48, 48 * 512).data == b"".join(bytes([number + 1]) * 512 for number in range(48))


def test_largest_in_capsule_data(host: Host) -> None:
    """IOCCSZ says how much fits: that much is taken."""
    size = host.ioccsz * 16 - 64
    if size < 512:
        pytest.skip("no in-capsule data")
    io = host.io()
    data = random.Random(4).randbytes(size // 512 * 512)
    assert io.write(0, len(data) // 512, data, in_capsule=True).status == nvme.OK
    assert io.read(0, len(data) // 512, len(data)).data == data


@pytest.mark.parametrize("maxr2t", [0, 1, 3, 15, 0xFFFFFFFF])
def test_maxr2t(tree: Tree, maxr2t: int) -> None:
    """Never more R2Ts of one command outstanding than the host allows (MAXR2T is 0's based)."""
    io = tree.started(maxr2t=maxr2t).io()
    data = random.Random(maxr2t).randbytes(131072)
    cid = start_write(io, 0, data)
    waiting: list[tuple[int, int, int, int]] = [io.recv_r2t()]
    while waiting:
        while not io.conn.is_silent(0.05):  # whatever it sends without data from us
            waiting.append(io.recv_r2t())
            assert len(waiting) <= maxr2t + 1
        _, ttag, offset, length = waiting.pop(0)
        io.send_h2c(cid, ttag, offset, data[offset : offset + length])
        if offset + length < len(data) and not waiting:
            waiting.append(io.recv_r2t())
    assert io.wait(cid).status == nvme.OK
    assert io.read(0, 256, 131072).data == data


@pytest.fixture(scope="module")
def roomy(engine: str) -> Iterator[Tree]:
    """A transport with 1 MiB transfers, 8 KiB in capsules, and no SUCCESS in C2HData."""
    with Daemon(engine=engine) as daemon:
        daemon.transport(max_io_size=MIB, in_capsule_data_size=8192, c2h_success=False, max_queue_depth=256)
        yield daemon.subsystem(Ns(blocks=8192, block_size=512))


@pytest.mark.parametrize(("hdgst", "ddgst"), [(False, False), (True, True)])
def test_megabyte(roomy: Tree, hdgst: bool, ddgst: bool) -> None:
    host = roomy.started(hdgst=hdgst, ddgst=ddgst)
    io = host.io()
    data = random.Random(9).randbytes(MIB)
    assert 4096 << host.admin.identify(1).data[77] == MIB, "MDTS is max_io_size"
    done = io.write(16, 2048, data, in_capsule=False)
    assert done.status == nvme.OK
    assert io.read(16, 2048, MIB).data == data


def test_in_capsule_size_of_the_transport(roomy: Tree) -> None:
    host = roomy.started()
    assert host.ioccsz * 16 - 64 == 8192
    io = host.io()
    assert io.write(0, 16, b"\x99" * 8192, in_capsule=True).status == nvme.OK
    assert io.read(0, 16, 8192).data == b"\x99" * 8192


def test_queue_depth_of_the_transport(roomy: Tree) -> None:
    assert roomy.started().admin.property_get(nvme.CAP) & 0xFFFF == 255, "MQES is 0's based"


def test_success_can_be_turned_off(roomy: Tree) -> None:
    io = roomy.started().io(cattr=4)
    assert not io.read(0, 1, 512).by_success


def test_success_replaces_the_response(host: Host) -> None:
    """Only for a host that disabled SQ flow control: otherwise SQHD would be lost (TCP 3.4.2; the initiator checks)."""
    assert host.io(1, cattr=4).read(0, 8, 4096).by_success
    assert not host.io(2).read(0, 8, 4096).by_success


def test_failed_read_sends_no_data(io: Queue) -> None:
    done = io.read(4095, 2, 1024)
    assert (done.status, done.data) == (nvme.LBA_RANGE, b"")


def test_a_host_that_does_not_read_is_held_back(tree: Tree) -> None:
    """Reads without end by a host that takes nothing: the target's memory is bounded by the queue, not by the host."""
    host = tree.started()
    other = tree.started()
    io = host.io(sqsize=63)
    quick = other.io()
    before = tree.daemon.rss_kib()
    for _ in range(63):
        io.submit(nvme.sqe(nvme.READ, nsid=1, cdw=lba_cdw(0, 256)), expect=131072)
    for lba in range(50):
        assert quick.read(lba, 1, 512).status == nvme.OK, "another host is not held up"
    assert tree.daemon.rss_kib() - before < 64 * 1024
    while io.in_flight:
        io.serve_one()
    assert {done.status for done in io.completed.values()} == {nvme.OK}
