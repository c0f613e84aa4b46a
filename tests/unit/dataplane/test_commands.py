"""Each I/O command and each status it can have, over a socket against the real engine."""

from __future__ import annotations

import errno

import pytest

from nvmet_p2p import limits
from nvmet_p2p.dataplane.inprocess.execute import NVM_COMMANDS
from nvmet_p2p.dataplane.inprocess.nvm import blocks_of, deac_of, fua_of, slba_of
from nvmet_p2p.wire.nvm import DsmRange
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import NSID_ALL, NvmOpcode, Status
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import DsmCommand, ReadWriteCommand
from tests.unit.dataplane.support import MDTS, malloc, ns, rig, rw, use_gates, view_of

W, R, C, V, Z = NvmOpcode.WRITE, NvmOpcode.READ, NvmOpcode.COMPARE, NvmOpcode.VERIFY, NvmOpcode.WRITE_ZEROES
BLOCKS = 2048


def test_command_fields_are_those_of_the_view() -> None:
    sqe = rw(W, 0x1_0000_0002, 300, fua=True, deac=True)
    view = ReadWriteCommand.of(sqe)
    assert (slba_of(sqe), blocks_of(sqe), fua_of(sqe), deac_of(sqe)) == (view.slba, view.blocks, view.fua, view.deac)


def test_table_has_each_opcode_once() -> None:
    opcodes = [row.opcode for row in NVM_COMMANDS]
    assert len(set(opcodes)) == len(opcodes)
    assert all(row.name and row.section for row in NVM_COMMANDS)


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("blocks", [1, 7, 32])
async def test_what_is_written_is_read(block_size: int, blocks: int) -> None:
    async with rig(malloc(block_size=block_size)) as it:
        host = await it.queue()
        data = bytes(range(251)) * (blocks * block_size // 251 + 1)
        data = data[: blocks * block_size]
        await host.write(5, data, block_size=block_size)
        assert await host.read(5, blocks, block_size=block_size) == data
        assert await host.read(4, 1, block_size=block_size) == bytes(block_size)
        stat = it.engine.iostat("m0")
        assert stat is not None
        assert (stat.num_read_ops, stat.num_write_ops) == (2, 1)
        assert (stat.bytes_read, stat.bytes_written) == (len(data) + block_size, len(data))
        await it.engine.iostat_reset("m0")
        assert it.engine.iostat("m0") is not stat


@pytest.mark.parametrize("opc", [W, R, C, V, Z])
@pytest.mark.parametrize(
    ("slba", "blocks", "ok"),
    [
        (BLOCKS - 1, 1, True),
        (BLOCKS - 4, 4, True),
        (BLOCKS, 1, False),
        (BLOCKS - 3, 4, False),
        (0xFFFF_FFFF_FFFF_FFFF, 1, False),
        (0xFFFF_FFFF_FFFF_FFFE, 4, False),
    ],
)
async def test_lba_range(opc: int, slba: int, blocks: int, ok: bool) -> None:
    async with rig() as it:
        host = await it.queue()
        data = bytes(blocks * 512) if opc in (W, C) else None
        completed = await host.io(rw(opc, slba, blocks), data=data, read_len=blocks * 512 if opc == R else 0)
        assert completed.cqe.status == (0 if ok else Status.LBA_OUT_OF_RANGE)
        assert completed.cqe.dnr is not ok


@pytest.mark.parametrize(
    "opc", [NvmOpcode.WRITE_UNCORRECTABLE, NvmOpcode.RESERVATION_REGISTER, NvmOpcode.CANCEL, 0x30, 0xC1]
)
async def test_opcodes_that_are_not_ours(opc: int) -> None:
    async with rig() as it:
        host = await it.queue()
        assert await host.status(Sqe(opc=opc, nsid=1)) == Status.INVALID_OPCODE


@pytest.mark.parametrize("nsid", [0, 2, NSID_ALL])
async def test_namespace_that_is_not_there(nsid: int) -> None:
    async with rig() as it:
        host = await it.queue()
        assert await host.status(rw(R, 0, 1, nsid=nsid), read_len=512) == Status.INVALID_NAMESPACE_OR_FORMAT


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (1, 0),
        (2, 0),
        (3, Status.ANA_INACCESSIBLE),
        (4, Status.ANA_PERSISTENT_LOSS),
        (15, Status.ANA_TRANSITION),
    ],
)
@pytest.mark.parametrize("opc", [R, NvmOpcode.FLUSH])
async def test_ana_state(state: int, status: int, opc: int) -> None:
    async with rig(view=view_of(ns(ana_state=state))) as it:
        host = await it.queue()
        completed = await host.io(rw(opc, 0, 1), read_len=512 if opc == R else 0)
        assert completed.cqe.status == status
        assert not completed.cqe.dnr


async def test_back_end_that_is_absent() -> None:
    async with rig(view=view_of(ns(bdev_name="elsewhere"))) as it:
        host = await it.queue()
        completed = await host.io(rw(R, 0, 1), read_len=512)
        assert completed.cqe.status == Status.NAMESPACE_NOT_READY
        assert not completed.cqe.dnr


@pytest.mark.parametrize("by_bdev", [True, False])
async def test_write_protection(by_bdev: bool) -> None:
    async with rig(malloc(readonly=by_bdev), view=view_of(ns(write_protected=not by_bdev))) as it:
        host = await it.queue()
        protected = Status.NAMESPACE_WRITE_PROTECTED
        assert await host.status(rw(W, 0, 1), data=bytes(512)) == protected
        assert await host.status(rw(Z, 0, 1)) == protected
        deallocate = Sqe(opc=NvmOpcode.DATASET_MANAGEMENT, nsid=1, **DsmCommand(nr=0, attributes=4).dwords())
        assert await host.status(deallocate, data=DsmRange(nlb=1).build()) == protected
        assert await host.status(rw(NvmOpcode.COPY, 0, 1), data=bytes(32)) == protected
        assert await host.status(rw(NvmOpcode.FLUSH, 0, 1)) == 0
        assert await host.status(rw(C, 0, 1), data=bytes(512)) == 0
        assert await host.read(0, 1) == bytes(512)


@pytest.mark.parametrize("opc", [W, R, C])
async def test_mdts(opc: int) -> None:
    async with rig() as it:
        host = await it.queue()
        for blocks, status in ((MDTS // 512, 0), (MDTS // 512 + 1, Status.INVALID_FIELD)):
            size = blocks * 512
            data = bytes(size) if opc != R else None
            assert await host.status(rw(opc, 0, blocks), data=data, read_len=size if opc == R else 0) == status


@pytest.mark.parametrize("opc", [W, R, C, V, Z])
@pytest.mark.parametrize("prinfo", [1, 8])
async def test_protection_information_is_not_there(opc: int, prinfo: int) -> None:
    async with rig() as it:
        host = await it.queue()
        data = bytes(512) if opc in (W, C) else None
        sqe = rw(opc, 0, 1, prinfo=prinfo)
        assert await host.status(sqe, data=data, read_len=512 if opc == R else 0) == Status.INVALID_PROTECTION_INFO


@pytest.mark.parametrize("delta", [-512, 512, -1])
async def test_sgl_length_must_be_the_transfer(delta: int) -> None:
    async with rig() as it:
        host = await it.queue()
        wrong = SglDescriptor.transport(2 * 512 + delta).build()
        for opc in (R, W):
            sqe = Sqe(opc=opc, nsid=1, cdw12=1, dptr=wrong)
            assert await host.status(sqe) == Status.SGL_INVALID_DATA_LENGTH


async def test_force_unit_access(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        for sqe, data in (
            (rw(W, 0, 1, fua=True), bytes(512)),
            (rw(R, 0, 1, fua=True), None),
            (rw(Z, 0, 1, fua=True), None),
            (rw(Z, 0, 1, deac=True), None),
            (rw(V, 0, 1, fua=True), None),
        ):
            assert await host.status(sqe, data=data, read_len=512 if sqe.opc == R else 0) == 0
        assert gates["m0"].calls == [
            *("write_fua", "flush", "read", "write_zeroes_fua", "write_zeroes_unmap", "flush", "read")
        ]


async def test_flush_of_one_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    gates = use_gates(monkeypatch)
    view = view_of(ns(1, "a"), ns(2, "b"), ns(3, "c", ana_state=3))
    async with rig(malloc("a"), malloc("b"), malloc("c"), view=view) as it:
        host = await it.queue()
        assert await host.status(Sqe(opc=NvmOpcode.FLUSH, nsid=2)) == 0
        assert [gates[name].calls for name in "abc"] == [[], ["flush"], []]
        assert await host.status(Sqe(opc=NvmOpcode.FLUSH, nsid=NSID_ALL)) == 0
        assert [gates[name].calls for name in "abc"] == [["flush"], ["flush"] * 2, []]
        gates["a"].fail["flush"] = OSError(errno.EIO, "no")
        assert await host.status(Sqe(opc=NvmOpcode.FLUSH, nsid=NSID_ALL)) == Status.WRITE_FAULT


async def test_write_zeroes_of_the_most_blocks() -> None:
    async with rig(malloc(num_blocks=70_000)) as it:
        host = await it.queue()
        await host.write(3, b"\xaa" * 512)
        await host.write(65535, b"\xbb" * 1024)
        assert await host.status(rw(Z, 0, 65536)) == 0
        assert await host.read(3, 1) == bytes(512)
        assert await host.read(65535, 2) == bytes(512) + b"\xbb" * 512


async def test_verify_reads_everything() -> None:
    async with rig(malloc(num_blocks=70_000)) as it:
        host = await it.queue()
        assert await host.status(rw(V, 0, 65536)) == 0
        stat = it.engine.iostat("m0")
        assert stat is not None
        assert stat.bytes_read == 65536 * 512


async def test_compare() -> None:
    async with rig() as it:
        host = await it.queue()
        await host.write(1, b"\x01" * 1024)
        assert await host.status(rw(C, 1, 2), data=b"\x01" * 1024) == 0
        assert await host.status(rw(C, 1, 2), data=b"\x01" * 1023 + b"\x02") == Status.COMPARE_FAILURE
        stat = it.engine.iostat("m0")
        assert stat is not None
        assert stat.io_error == {"miscompare": 1}


def dsm(*ranges: tuple[int, int], attributes: int = 4) -> tuple[Sqe, bytes]:
    data = b"".join(DsmRange(slba=slba, nlb=nlb).build() for slba, nlb in ranges)
    view = DsmCommand(nr=len(ranges) - 1, attributes=attributes)
    return Sqe(opc=NvmOpcode.DATASET_MANAGEMENT, nsid=1, **view.dwords()), data


async def test_deallocate() -> None:
    async with rig() as it:
        host = await it.queue()
        await host.write(0, b"\xff" * 512 * 8)
        sqe, data = dsm((1, 2), (5, 0), (7, 1))
        assert await host.status(sqe, data=data) == 0
        expected = b"".join(bytes(512) if lba in (1, 2, 7) else b"\xff" * 512 for lba in range(8))
        assert await host.read(0, 8) == expected
        stat = it.engine.iostat("m0")
        assert stat is not None
        assert (stat.num_unmap_ops, stat.bytes_unmapped) == (2, 3 * 512)


@pytest.mark.parametrize("bad", [(BLOCKS, 1), (0, BLOCKS + 1), (0xFFFF_FFFF_FFFF_FFFF, 2)])
@pytest.mark.parametrize("attributes", [0, 4])
async def test_deallocate_out_of_range_changes_nothing(bad: tuple[int, int], attributes: int) -> None:
    async with rig() as it:
        host = await it.queue()
        await host.write(0, b"\xff" * 512)
        sqe, data = dsm((0, 1), bad, attributes=attributes)
        assert await host.status(sqe, data=data) == Status.LBA_OUT_OF_RANGE
        assert await host.read(0, 1) == b"\xff" * 512


async def test_other_attributes_are_advice() -> None:
    async with rig() as it:
        host = await it.queue()
        await host.write(0, b"\xff" * 512)
        sqe, data = dsm((0, 1), attributes=3)
        assert await host.status(sqe, data=data) == 0
        assert await host.read(0, 1) == b"\xff" * 512


async def test_deallocate_of_the_most_ranges_and_a_longer_buffer() -> None:
    async with rig() as it:
        host = await it.queue()
        sqe, data = dsm(*((lba, 1) for lba in range(limits.DSM_RANGES_MAX)))
        assert await host.status(sqe, data=data) == 0
        sqe, data = dsm((0, 1))
        assert await host.status(sqe, data=data + bytes(4080)) == 0  # as Linux sends it
        assert await host.status(sqe, data=data[:8]) == Status.SGL_INVALID_DATA_LENGTH


@pytest.mark.parametrize(
    ("code", "read", "write"),
    [
        (errno.EIO, Status.UNRECOVERED_READ_ERROR, Status.WRITE_FAULT),
        (errno.ENOSPC, Status.CAPACITY_EXCEEDED, Status.CAPACITY_EXCEEDED),
        (errno.ENODEV, Status.NAMESPACE_NOT_READY, Status.NAMESPACE_NOT_READY),
        (errno.EROFS, Status.NAMESPACE_WRITE_PROTECTED, Status.NAMESPACE_WRITE_PROTECTED),
        (errno.EACCES, Status.ACCESS_DENIED, Status.ACCESS_DENIED),
        (errno.ENOMEM, Status.COMMAND_INTERRUPTED, Status.COMMAND_INTERRUPTED),
        (errno.ENOTTY, Status.INTERNAL_ERROR, Status.INTERNAL_ERROR),
    ],
)
async def test_errors_of_the_back_end(monkeypatch: pytest.MonkeyPatch, code: int, read: int, write: int) -> None:
    gates = use_gates(monkeypatch)
    async with rig() as it:
        host = await it.queue()
        gates["m0"].fail = {name: OSError(code, "no") for name in ("read", "write", "write_zeroes", "unmap")}
        assert await host.status(rw(R, 0, 1), read_len=512) == read
        assert await host.status(rw(C, 0, 1), data=bytes(512)) == read
        assert await host.status(rw(V, 0, 1)) == read
        assert await host.status(rw(W, 0, 1), data=bytes(512)) == write
        assert await host.status(rw(Z, 0, 1)) == write
        sqe, data = dsm((0, 1))
        assert await host.status(sqe, data=data) == write
        stat = it.engine.iostat("m0")
        assert stat is not None
        assert sum(stat.io_error.values()) == 6
        assert (stat.num_read_ops, stat.num_write_ops) == (0, 0)
