"""Fused Compare and Write (Base 3.4.4, NVM 2.1.6): both, or neither."""

from __future__ import annotations

import itertools

import pytest

from tests.support import nvme
from tests.support.initiator import Completion, Queue, lba_cdw

FIRST, SECOND = 1, 2
OLD, NEW = b"\x11" * 512, b"\x22" * 512


def pair(
    io: Queue, compare: bytes, write: bytes, *, lbas: tuple[int, int] = (0, 0), in_capsule: bool = True
) -> tuple[Completion, Completion]:
    cids = [
        io.submit(nvme.sqe(opc, nsid=1, fuse=fuse, cdw=lba_cdw(lba, len(data) // 512)), out=data, in_capsule=in_capsule)
        for opc, fuse, lba, data in (
            (nvme.COMPARE, FIRST, lbas[0], compare),
            (nvme.WRITE, SECOND, lbas[1], write),
        )
    ]
    return io.wait(cids[0]), io.wait(cids[1])


@pytest.fixture
def prepared(io: Queue) -> Queue:
    assert io.write(0, 1, OLD).status == nvme.OK
    return io


@pytest.mark.parametrize("in_capsule", [True, False], ids=["in-capsule", "r2t"])
def test_both(prepared: Queue, in_capsule: bool) -> None:
    compare, write = pair(prepared, OLD, NEW, in_capsule=in_capsule)
    assert (compare.status, write.status) == (nvme.OK, nvme.OK)
    assert prepared.read(0, 1, 512).data == NEW


@pytest.mark.parametrize("in_capsule", [True, False], ids=["in-capsule", "r2t"])
def test_neither(prepared: Queue, in_capsule: bool) -> None:
    compare, write = pair(prepared, NEW, NEW, in_capsule=in_capsule)
    assert (compare.status, write.status) == (nvme.COMPARE_FAILURE, nvme.FAILED_FUSED)
    assert prepared.read(0, 1, 512).data == OLD


def test_ranges_differ(prepared: Queue) -> None:
    """The ranges shall be the same; otherwise Invalid Field (NVM 2.1.6), and nothing is written."""
    compare, write = pair(prepared, OLD, NEW, lbas=(0, 1))
    assert nvme.INVALID_FIELD in (compare.status, write.status)
    assert {compare.status, write.status} <= {nvme.INVALID_FIELD, nvme.FAILED_FUSED, nvme.MISSING_FUSED}
    assert prepared.read(0, 2, 1024).data == OLD + bytes(512)


def test_second_alone(prepared: Queue) -> None:
    done = prepared.command(nvme.WRITE, nsid=1, cdw=lba_cdw(0, 1), out=NEW, fuse=SECOND)
    assert done.status == nvme.MISSING_FUSED
    assert prepared.read(0, 1, 512).data == OLD


def test_first_followed_by_another_command(prepared: Queue) -> None:
    cid = prepared.submit(nvme.sqe(nvme.COMPARE, nsid=1, fuse=FIRST, cdw=lba_cdw(0, 1)), out=OLD)
    assert prepared.read(0, 1, 512).status == nvme.OK
    assert prepared.wait(cid).status == nvme.MISSING_FUSED


def test_first_twice(prepared: Queue) -> None:
    one = prepared.submit(nvme.sqe(nvme.COMPARE, nsid=1, fuse=FIRST, cdw=lba_cdw(0, 1)), out=OLD)
    compare, write = pair(prepared, OLD, NEW)
    assert prepared.wait(one).status == nvme.MISSING_FUSED
    assert (compare.status, write.status) == (nvme.OK, nvme.OK)


def test_reversed(prepared: Queue) -> None:
    """Write as the first and Compare as the second is no fused operation that exists."""
    first = prepared.submit(nvme.sqe(nvme.WRITE, nsid=1, fuse=FIRST, cdw=lba_cdw(0, 1)), out=NEW)
    second = prepared.submit(nvme.sqe(nvme.COMPARE, nsid=1, fuse=SECOND, cdw=lba_cdw(0, 1)), out=OLD)
    refused = {nvme.INVALID_FIELD, nvme.MISSING_FUSED, nvme.FAILED_FUSED}
    assert prepared.wait(first).status in refused
    assert prepared.wait(second).status in refused
    assert prepared.read(0, 1, 512).data == OLD


def test_reserved_fuse(prepared: Queue) -> None:
    done = prepared.command(nvme.READ, nsid=1, cdw=lba_cdw(0, 1), expect=512, fuse=3)
    assert done.status == nvme.INVALID_FIELD


def test_first_without_a_second_and_then_the_connection_ends(prepared: Queue) -> None:
    prepared.submit(nvme.sqe(nvme.COMPARE, nsid=1, fuse=FIRST, cdw=lba_cdw(0, 1)), out=OLD)
    prepared.close()


def test_many_pairs_in_flight(prepared: Queue) -> None:
    """A chain in which each write makes the next compare true, all sent before the first answer is read."""
    values = [bytes([value]) * 512 for value in range(1, 13)]
    assert prepared.write(0, 1, values[0]).status == nvme.OK
    cids = []
    for old, new in itertools.pairwise(values):
        for opc, fuse, data in ((nvme.COMPARE, FIRST, old), (nvme.WRITE, SECOND, new)):
            cids.append(prepared.submit(nvme.sqe(opc, nsid=1, fuse=fuse, cdw=lba_cdw(0, 1)), out=data))
    statuses = [prepared.wait(cid).status for cid in cids]
    assert statuses == [nvme.OK] * len(cids)
    assert prepared.read(0, 1, 512).data == values[-1]
