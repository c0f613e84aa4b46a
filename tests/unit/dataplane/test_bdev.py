"""Back ends by themselves: sizes, block sizes, zeroes, what the system can and cannot do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from nvmet_p2p.dataplane.inprocess import linux
from nvmet_p2p.dataplane.inprocess.bdev import file, open_bdev
from nvmet_p2p.dataplane.inprocess.bdev.base import Bdev
from nvmet_p2p.dataplane.inprocess.engine import InProcessDataPlane
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.config import BdevConfig, BdevKind
from nvmet_p2p.wire.spec import NvmOpcode, Status
from tests.unit.dataplane.support import UUID, malloc, ns, rig, rw, view_of

MIB = 1 << 20


def config(kind: BdevKind, **options: object) -> BdevConfig:
    return msgspec.convert({"name": "b", "kind": kind, "uuid": UUID, **options}, BdevConfig)


@contextlib.asynccontextmanager
async def opened(kind: BdevKind, **options: object) -> AsyncIterator[Bdev]:
    bdev = await open_bdev(config(kind, **options))
    try:
        yield bdev
    finally:
        await bdev.close()


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    path.write_bytes(b"\xaa" * MIB)
    return str(path)


# -- every kind


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("kind", ["malloc", "aio", "uring"])
async def test_read_write_zero(kind: BdevKind, block_size: int, image: str) -> None:
    options = {"num_blocks": MIB // block_size} if kind == "malloc" else {"filename": image, "fallocate": True}
    async with opened(kind, block_size=block_size, **options) as bdev:
        assert (bdev.facts.block_size, bdev.facts.num_blocks) == (block_size, MIB // block_size)
        await bdev.write(0, b"\x01" * MIB, fua=False)
        await bdev.write(3 * 4096, b"\x02" * 4096, fua=True)
        assert bytes(await bdev.read(2 * 4096, 3 * 4096)) == b"\x01" * 4096 + b"\x02" * 4096 + b"\x01" * 4096
        for unmap in (False, True):
            await bdev.write(0, b"\x01" * MIB, fua=False)
            await bdev.write_zeroes(block_size, 5 * 4096, fua=True, unmap=unmap)
            expected = b"\x01" * block_size + bytes(5 * 4096) + b"\x01" * 4096
            assert bytes(await bdev.read(0, len(expected))) == expected
        await bdev.write_zeroes(0, MIB, fua=False, unmap=False)
        assert bytes(await bdev.read(0, MIB)) == bytes(MIB)
        await bdev.write(0, b"\x03" * 8192, fua=False)
        await bdev.unmap(0, 4096)
        assert bytes(await bdev.read(0, 8192)) == bytes(4096) + b"\x03" * 4096
        await bdev.flush()


async def test_null_never_gives_old_memory() -> None:
    async with opened("null", block_size=512, num_blocks=1 << 40) as bdev:
        await bdev.write(0, b"\xff" * MIB, fua=True)
        assert bytes(await bdev.read(0, 2 * MIB)) == bytes(2 * MIB)
        assert bytes(await bdev.read(1 << 48, 512)) == bytes(512)
        await bdev.write_zeroes(0, 512, fua=False, unmap=False)
        await bdev.unmap(0, 512)
        await bdev.flush()


@pytest.mark.parametrize("kind", ["malloc", "null"])
@pytest.mark.parametrize(("block_size", "num_blocks"), [(0, 10), (511, 10), (256, 10), (1536, 10), (512, 0)])
async def test_geometry_that_cannot_be(kind: BdevKind, block_size: int, num_blocks: int) -> None:
    with pytest.raises(OperatorError) as raised:
        await open_bdev(config(kind, block_size=block_size, num_blocks=num_blocks))
    assert raised.value.code == -errno.EINVAL


async def test_more_memory_than_there_are_addresses() -> None:
    engine = InProcessDataPlane()
    with pytest.raises(OperatorError) as raised:
        await engine.bdev_create(malloc(num_blocks=1 << 60))
    assert raised.value.code == -errno.ENOMEM


@pytest.mark.parametrize("kind", ["malloc", "null"])
async def test_resize_of_memory(kind: BdevKind) -> None:
    before = config(kind, block_size=4096, num_blocks=16)
    async with opened(kind, block_size=4096, num_blocks=16) as bdev:
        await bdev.write(0, b"\x05" * 65536, fua=False)
        for blocks in (4, 32):
            facts = await bdev.rescan(msgspec.structs.replace(before, num_blocks=blocks))
            assert facts.num_blocks == bdev.facts.num_blocks == blocks
        kept = b"\x05" * 16384 if kind == "malloc" else bytes(16384)
        assert bytes(await bdev.read(0, 32 * 4096)) == kept + bytes(28 * 4096)
        with pytest.raises(OperatorError):
            await bdev.rescan(msgspec.structs.replace(before, num_blocks=0))


async def test_memory_made_smaller_under_a_command() -> None:
    before = config("malloc", block_size=512, num_blocks=16)
    async with opened("malloc", block_size=512, num_blocks=16) as bdev:
        await bdev.rescan(msgspec.structs.replace(before, num_blocks=8))
        for operation in (
            bdev.read(4096, 512),
            bdev.write(4096, bytes(512), fua=False),
            bdev.write_zeroes(4096, 512, fua=False, unmap=True),
        ):
            with pytest.raises(OSError, match="past the end"):
                await operation


# -- files


@pytest.mark.parametrize(
    ("kind", "fallocate", "unmap"), [("aio", False, False), ("aio", True, True), ("uring", False, True)]
)
async def test_fallocate_option(kind: BdevKind, fallocate: bool, unmap: bool, image: str) -> None:
    async with opened(kind, filename=image, block_size=512, fallocate=fallocate) as bdev:
        assert bdev.facts.unmap is unmap
        before = os.stat(image).st_blocks
        await bdev.unmap(0, MIB)
        assert os.stat(image).st_size == MIB
        if unmap:
            assert os.stat(image).st_blocks < before
        expected = bytes(MIB) if unmap else b"\xaa" * MIB
        assert bytes(await bdev.read(0, MIB)) == expected


async def test_file_system_that_cannot_fallocate(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(fd: int, mode: int, offset: int, length: int) -> None:
        calls.append(mode)
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(linux, "fallocate", refuse)
    async with opened("uring", filename=image, block_size=512) as bdev:
        await bdev.unmap(0, 4096)
        assert bytes(await bdev.read(0, 4096)) == b"\xaa" * 4096
        await bdev.write_zeroes(512, 4096, fua=False, unmap=True)
        assert bytes(await bdev.read(0, 5120)) == b"\xaa" * 512 + bytes(4096) + b"\xaa" * 512
        assert len(calls) == 1


async def test_fallocate_that_fails_is_an_error(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "no")

    monkeypatch.setattr(linux, "fallocate", refuse)
    async with opened("uring", filename=image, block_size=512) as bdev:
        with pytest.raises(OSError, match="no"):
            await bdev.write_zeroes(0, 4096, fua=False, unmap=False)


async def test_fua_where_the_kernel_has_no_dsync(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    synced: list[int] = []

    def pwritev(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "no")
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    async with opened("aio", filename=image, block_size=512) as bdev:
        await bdev.write(0, b"\x09" * 512, fua=True)
        await bdev.write(512, b"\x08" * 512, fua=False)
        assert len(synced) == 1
        assert bytes(await bdev.read(0, 1024)) == b"\x09" * 512 + b"\x08" * 512


def test_transfers_go_on_after_a_short_one(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, bufs, at: real_read(fd, [bufs[0][:100]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, bufs, at, flags=0: real_write(fd, [bufs[0][:77]], at))
    fd = os.open(image, os.O_RDWR)
    data = bytes(range(256)) * 16
    file.write_full(fd, 512, data)
    assert file.read_full(fd, 512, len(data)) == data
    assert file.read_full(fd, 0, 512) == b"\xaa" * 512
    os.close(fd)


@pytest.mark.parametrize(
    ("size", "block_size", "code"),
    [(0, 512, errno.EINVAL), (1000, 512, errno.EINVAL), (8192, 0, errno.EINVAL), (8192, 1000, errno.EINVAL)],
)
async def test_files_that_do_not_fit(tmp_path: Path, size: int, block_size: int, code: int) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(size))
    with pytest.raises(OperatorError) as raised:
        await open_bdev(config("aio", filename=str(path), block_size=block_size))
    assert raised.value.code == -code
    assert open_descriptors(path) == 0


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


def open_descriptors(path: Path) -> int:
    names = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(name) and os.path.samefile(name, path) for name in names)


async def test_things_that_are_no_file(tmp_path: Path) -> None:
    engine = InProcessDataPlane()
    os.mkfifo(tmp_path / "fifo")
    for path, code in (
        (tmp_path / "absent", errno.ENOENT),
        (tmp_path, errno.EISDIR),
        (tmp_path / "fifo", errno.EINVAL),
        (Path("/dev/null"), errno.EINVAL),
    ):
        with pytest.raises(OperatorError) as raised:
            await engine.bdev_create(config("aio", filename=str(path), block_size=512))
        assert raised.value.code == -code
        assert str(path) in raised.value.message


async def test_file_changes_its_size(image: str) -> None:
    engine = InProcessDataPlane()
    created = config("aio", filename=image, block_size=4096)
    assert (await engine.bdev_create(created)).num_blocks == 256
    os.truncate(image, 2 * MIB + 100)
    assert (await engine.bdev_rescan(created)).num_blocks == 512
    os.truncate(image, 0)
    with pytest.raises(OperatorError) as raised:
        await engine.bdev_rescan(created)
    assert raised.value.code == -errno.ENODEV
    with pytest.raises(OperatorError) as raised:
        await engine.bdev_resize(created)
    assert raised.value.code == -errno.EINVAL
    await engine.stop()


async def test_file_shrunk_under_us_is_an_error_not_zeroes(image: str) -> None:
    view = view_of(ns(1, "b"))
    async with rig(config("aio", filename=image, block_size=512), view=view) as it:
        host = await it.queue()
        os.truncate(image, 4096)
        read = rw(NvmOpcode.READ, 4, 8)
        assert await host.status(read, read_len=4096) == Status.UNRECOVERED_READ_ERROR
        assert await host.read(0, 8) == b"\xaa" * 4096
        stat = it.engine.iostat("b")
        assert stat is not None
        assert stat.io_error == {"aio_error": 1}


async def test_read_only_file(image: str) -> None:
    os.chmod(image, 0o400)
    view = view_of(ns(1, "b"))
    async with rig(config("aio", filename=image, block_size=512, readonly=True), view=view) as it:
        host = await it.queue()
        assert await host.read(0, 1) == b"\xaa" * 512
        write = rw(NvmOpcode.WRITE, 0, 1)
        assert await host.status(write, data=bytes(512)) == Status.NAMESPACE_WRITE_PROTECTED


async def test_a_file_over_a_queue(image: str) -> None:
    async with rig(config("uring", filename=image, block_size=4096), view=view_of(ns(1, "b"))) as it:
        host = await it.queue()
        cids = [
            host.submit(rw(NvmOpcode.WRITE, lba, 1, fua=lba % 2 == 0), data=bytes([lba]) * 4096) for lba in range(64)
        ]
        assert {done.cqe.status for done in await host.wait(*cids)} == {0}
        assert await host.read(0, 32, block_size=4096) == b"".join(bytes([lba]) * 4096 for lba in range(32))
    assert contents(image)[: 64 * 4096] == b"".join(bytes([lba]) * 4096 for lba in range(64))


async def test_names_are_used_once_and_found() -> None:
    engine = InProcessDataPlane()
    await engine.bdev_create(malloc())
    for call, code in (
        (engine.bdev_create(malloc()), errno.EEXIST),
        (engine.bdev_delete("none"), errno.ENODEV),
        (engine.bdev_rescan(malloc("none")), errno.ENODEV),
        (engine.bdev_resize(malloc("none")), errno.ENODEV),
    ):
        with pytest.raises(OperatorError) as raised:
            await call
        assert raised.value.code == -code
    assert engine.iostat("none") is None
    await engine.bdev_delete("m0")
    assert engine.iostat("m0") is None
    await engine.bdev_create(malloc())
    await engine.stop()


async def test_two_opens_of_one_name_at_once() -> None:
    engine = InProcessDataPlane()
    results = await asyncio.gather(*(engine.bdev_create(malloc()) for _ in range(2)), return_exceptions=True)
    assert sorted(isinstance(result, OperatorError) for result in results) == [False, True]
    await engine.stop()


# -- when the system refuses


async def test_what_finds_no_thread_is_refused_and_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def no_thread(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = ThreadPoolExecutor(1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(OSError, match="start new thread") as caught:
            await file._work(executor, done.append, 1)
        assert caught.value.errno == errno.EAGAIN
    await file._work(executor, done.append, 2)
    assert done == [2]
    executor.shutdown()


async def test_a_close_that_fails_still_gives_the_name_back(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int, close: object = os.close) -> None:
        close(fd)  # type: ignore[operator]
        raise OSError(errno.EIO, "Input/output error")

    engine = InProcessDataPlane()
    await engine.bdev_create(config("aio", filename=image, block_size=512))
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", fails)
        await engine.bdev_delete("b")
    await engine.bdev_create(config("aio", filename=image, block_size=512))
    await engine.stop()
