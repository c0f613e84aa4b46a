"""Machines on which peer-to-peer cannot be had, or must not be: everything works, and the reason is told."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import trace as traces
from tests.lab.conftest import serving
from tests.lab.inside import InsideTarget, drives
from tests.lab.machine import Machine
from tests.lab.staging import HOST, NQN, Staged
from tests.lab.test_linux_host import FIO_VERIFY, quiet
from tests.support.daemon import RpcError

pytestmark = [pytest.mark.p2p, pytest.mark.timeout(400, func_only=True)]


def works(staged: Staged) -> None:
    """fio verify, all of it through host memory."""
    done = staged.guest.run(f"{staged.connect()} {FIO_VERIFY}\nnvme disconnect -n {NQN} >&2", timeout=110)
    assert done.out.split() == ["0"]
    quiet(done, "keep[ _]?alive")
    uses = staged.uses()
    assert uses[HOST].read > 0
    assert {name for name, use in uses.items() if use.read or use.write} == {HOST}


@pytest.fixture
def without_cmb() -> Iterator[InsideTarget]:
    with serving(Machine(nvme=("A:rp:64", "B:sw1:64"), target=True, net=False, trace=traces.EVENTS)) as inside:
        yield inside


def test_no_cmb_at_all(without_cmb: InsideTarget) -> None:
    """Everything works, the doctor says what is missing, strict is refused when it is asked for."""
    staged = Staged(without_cmb, drives(without_cmb.guest))
    staged.policy("auto")
    assert staged.state() == "host"
    for policy in ("B", "auto"):
        with pytest.raises(RpcError) as refused:
            staged.policy(policy, "strict")
        assert refused.value.code in {-errno.ENODEV, -errno.EHOSTUNREACH}, refused.value
    assert staged.namespace()["paths"][0]["policy"] == "auto"
    works(staged)
    doctor = without_cmb.cli("p2p", "doctor", check=False)
    assert doctor.code == 1
    assert "CMB" in doctor.out
    assert without_cmb.cli("p2p", "map").out


def contents(image: Path) -> str:
    """A drive's content, from QEMU's side."""
    return hashlib.sha256(image.read_bytes()).hexdigest()


@pytest.fixture
def with_iommu() -> Iterator[InsideTarget]:
    machine = Machine(
        nvme=("A:sw1:64:64", "B:sw1:64:64", "C:rp:64:64"),
        qemu_args=("-device intel-iommu,intremap=on,caching-mode=on,eim=off",),
        machine_type="q35,kernel-irqchip=split",
        append="intel_iommu=on",
        target=True,
        net=False,
        trace=traces.EVENTS,
    )
    with serving(machine) as inside:
        yield inside


def test_an_iommu_above_a_switch(with_iommu: InsideTarget) -> None:
    """QEMU translates what Linux takes for a bus address: I/O succeeds and moves wrong bytes. Calibration finds that
    out before anything of a host is staged, and puts back what was on the drive."""
    guest = with_iommu.guest
    found = drives(guest)
    image = guest.folder / "A.img"
    image.write_bytes(os.urandom(64 << 20))
    before = contents(image)
    wrong = guest.run(f"p2p-io {found['B'].bdf} {found['A'].device}").out.strip()
    assert wrong.startswith("wrong")  # else this test shows nothing
    assert contents(image) == before
    staged = Staged(with_iommu, found)
    with pytest.raises(RpcError) as refused:
        staged.policy("B", "strict")
    assert refused.value.code == -errno.EINVAL, refused.value
    assert contents(image) == before
    staged.policy("B", "prefer")
    (path,) = staged.namespace()["paths"]
    assert path["state"] == "degraded"
    assert path["reason"], path
    assert contents(image) == before
    works(staged)
    # through the root complex the IOMMU does what it is for
    staged.policy("C", "strict")
    assert staged.state() == "pool"
