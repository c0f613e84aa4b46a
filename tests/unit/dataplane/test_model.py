"""Random streams of commands against the engine and against a plain byte array: same data, same statuses."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmet_p2p.protocol.tcp_host import HostOptions
from nvmet_p2p.target.config import BdevConfig
from nvmet_p2p.wire.nvm import CopyDescriptor2, DsmRange
from nvmet_p2p.wire.spec import NvmOpcode, Status
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import CopyCommand, DsmCommand
from tests.unit.dataplane.support import UUID, Initiator, malloc, ns, rig, rw, view_of

BLOCKS, SIZE = 24, 512


@dataclass(frozen=True)
class Step:
    """One command: what to send, and which bytes to send with it."""

    name: str
    nsid: int
    slba: int
    blocks: int
    fill: int
    source: tuple[int, int, int] = (1, 0, 1)  # namespace, LBA, blocks


steps = st.builds(
    Step,
    name=st.sampled_from(["read", "write", "zero", "trim", "compare", "pair", "copy", "verify", "flush"]),
    nsid=st.integers(1, 3),
    slba=st.integers(0, BLOCKS),
    blocks=st.integers(1, 10),
    fill=st.integers(0, 3),
    source=st.tuples(st.integers(1, 3), st.integers(0, BLOCKS), st.integers(1, 6)),
)


class Model:
    """What must happen."""

    def __init__(self) -> None:
        self.disks = {nsid: bytearray(BLOCKS * SIZE) for nsid in (1, 2)}

    def range_status(self, nsid: int, slba: int, blocks: int) -> int:
        if nsid not in self.disks:
            return Status.INVALID_NAMESPACE_OR_FORMAT
        return Status.LBA_OUT_OF_RANGE if slba + blocks > BLOCKS else Status.SUCCESS

    def run(self, step: Step) -> tuple[list[int], bytes | None]:
        """The statuses of the step's commands and the data that a read gives."""
        if step.name == "flush":
            return [self.range_status(step.nsid, 0, 1)], None
        status = self.range_status(step.nsid, step.slba, step.blocks)
        data = bytes([step.fill]) * (step.blocks * SIZE)
        if step.name == "copy":
            return [self._copy(step)], None
        if status:
            return ([status, Status.ABORTED_FAILED_FUSED] if step.name == "pair" else [status]), None
        disk, at = self.disks[step.nsid], slice(step.slba * SIZE, (step.slba + step.blocks) * SIZE)
        same = disk[at] == data
        if step.name == "read":
            return [0], bytes(disk[at])
        if step.name == "write":
            disk[at] = data
        elif step.name in ("zero", "trim"):
            disk[at] = bytes(len(data))
        elif step.name == "compare":
            return [0 if same else Status.COMPARE_FAILURE], None
        elif step.name == "pair":
            if not same:
                return [Status.COMPARE_FAILURE, Status.ABORTED_FAILED_FUSED], None
            disk[at] = bytes([step.fill ^ 1]) * len(data)
            return [0, 0], None
        return [0], None

    def _copy(self, step: Step) -> int:
        snsid, slba, blocks = step.source
        status = self.range_status(step.nsid, step.slba, blocks)
        if status:
            return status
        if snsid not in self.disks:
            return Status.INVALID_FIELD
        status = self.range_status(snsid, slba, blocks)
        if status:
            return status
        if snsid == step.nsid and slba < step.slba + blocks and step.slba < slba + blocks:
            return Status.OVERLAPPING_IO_RANGE
        moved = self.disks[snsid][slba * SIZE : (slba + blocks) * SIZE]
        self.disks[step.nsid][step.slba * SIZE : (step.slba + blocks) * SIZE] = moved
        return 0


async def send(host: Initiator, step: Step) -> tuple[list[int], bytes | None]:
    """The same on the engine."""
    length = step.blocks * SIZE
    data = bytes([step.fill]) * length
    plain = {"write": NvmOpcode.WRITE, "compare": NvmOpcode.COMPARE}
    if step.name == "read":
        cids = [host.submit(rw(NvmOpcode.READ, step.slba, step.blocks, nsid=step.nsid), read_len=length)]
    elif step.name in plain:
        cids = [host.submit(rw(plain[step.name], step.slba, step.blocks, nsid=step.nsid), data=data)]
    elif step.name == "pair":
        new = bytes([step.fill ^ 1]) * length
        cids = [
            host.submit(rw(NvmOpcode.COMPARE, step.slba, step.blocks, nsid=step.nsid, fuse=1), data=data),
            host.submit(rw(NvmOpcode.WRITE, step.slba, step.blocks, nsid=step.nsid, fuse=2), data=new),
        ]
    elif step.name in ("zero", "verify"):
        opc = NvmOpcode.WRITE_ZEROES if step.name == "zero" else NvmOpcode.VERIFY
        cids = [host.submit(rw(opc, step.slba, step.blocks, nsid=step.nsid, deac=step.name == "zero"))]
    elif step.name == "trim":
        sqe = Sqe(opc=NvmOpcode.DATASET_MANAGEMENT, nsid=step.nsid, **DsmCommand(attributes=4).dwords())
        cids = [host.submit(sqe, data=DsmRange(slba=step.slba, nlb=step.blocks).build())]
    elif step.name == "copy":
        snsid, slba, blocks = step.source
        sqe = Sqe(opc=NvmOpcode.COPY, nsid=step.nsid, **CopyCommand(sdlba=step.slba, desfmt=2).dwords())
        cids = [host.submit(sqe, data=CopyDescriptor2(snsid=snsid, slba=slba, nlb=blocks - 1).build())]
    else:
        cids = [host.submit(Sqe(opc=NvmOpcode.FLUSH, nsid=step.nsid))]
    completed = await host.wait(*cids)
    statuses = [done.cqe.status for done in completed]
    return statuses, bytes(completed[0].data) if step.name == "read" and statuses == [0] else None


def files(folder: Path) -> list[BdevConfig]:
    made = []
    for name in ("a", "b"):
        (folder / name).write_bytes(bytes(BLOCKS * SIZE))
        made.append(
            BdevConfig(name=name, kind="uring", uuid=UUID, block_size=SIZE, filename=str(folder / name), fallocate=True)
        )
    return made


def memory(folder: Path) -> list[BdevConfig]:
    return [malloc(name, num_blocks=BLOCKS) for name in ("a", "b")]


OPTIONS = st.builds(
    HostOptions, hdgst=st.booleans(), ddgst=st.booleans(), hpda=st.sampled_from([0, 7]), maxr2t=st.sampled_from([0, 2])
)


@pytest.mark.parametrize("bdevs", [memory, files])
@settings(max_examples=40)
@given(stream=st.lists(steps, min_size=1, max_size=40), icd_max=st.sampled_from([0, 1024, 8192]), options=OPTIONS)
def test_engine_does_what_the_model_does(
    bdevs: Callable[[Path], list[BdevConfig]], stream: list[Step], icd_max: int, options: HostOptions
) -> None:
    async def scenario(folder: Path) -> None:
        async with rig(*bdevs(folder), view=view_of(ns(1, "a"), ns(2, "b"))) as it:
            host, model = await it.queue(icd_max=icd_max, options=options), Model()
            for step in stream:
                assert await send(host, step) == model.run(step)
            for nsid, disk in model.disks.items():
                assert await host.read(0, BLOCKS, nsid=nsid) == disk

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))


@settings(max_examples=30)
@given(stream=st.lists(steps, min_size=1, max_size=60))
def test_concurrent_streams_on_blocks_of_their_own(stream: list[Step]) -> None:
    """The same stream on four queues, each with namespaces of its own, all at once."""

    async def scenario() -> None:
        names = [f"m{index}" for index in range(8)]
        view = view_of(*(ns(index + 1, name) for index, name in enumerate(names)))
        async with rig(*(malloc(name, num_blocks=BLOCKS) for name in names), view=view) as it:

            async def one(base: int) -> None:
                host, model = await it.queue(), Model()
                for step in stream:
                    if step.nsid == 3 or step.source[0] == 3:
                        continue
                    snsid, slba, blocks = step.source
                    moved = Step(
                        step.name,
                        base + step.nsid,
                        step.slba,
                        step.blocks,
                        step.fill,
                        (base + snsid, slba, blocks),
                    )
                    assert await send(host, moved) == model.run(step)

            await asyncio.gather(*(one(2 * index) for index in range(4)))

    asyncio.run(scenario())
