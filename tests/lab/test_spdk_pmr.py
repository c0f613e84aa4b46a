"""The Persistent Memory Region of a drive on vfio-pci as a pool: all payload of other drives rests in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.lab.conftest import _need_lab, need_dataplane
from tests.lab.lab import Guest
from tests.lab.staging import MIB, NQN, grown
from tests.lab.test_linux_host import FIO_VERIFY, quiet
from tests.lab.trace import OTHER, READ, WRITE
from tests.lab.vfio import VFIO_MACHINE, UserStaged, VfioLab, need_spdk, vfio_guest

pytestmark = [pytest.mark.p2p, pytest.mark.spdk, pytest.mark.timeout(600, func_only=True)]
PMR_MIB = 64
PMRS = ("P", "Q")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VfioLab]:
    """A has no memory of its own; P and Q have a PMR, which the kernel's driver says nothing of."""
    _need_lab()
    need_dataplane()
    need_spdk()
    folder = tmp_path_factory.mktemp("pmr")
    memory = "-object memory-backend-file,id=pmr{0},share=on,pmem=off,mem-path={1}/{0}.pmr,size={2}M"
    machine = replace(
        VFIO_MACHINE,
        nvme=("A:rp:300", *(f"{name}:rp:64:0:pmrdev=pmr{name}" for name in PMRS)),
        qemu_args=tuple(memory.format(name, folder, PMR_MIB) for name in PMRS),
    )
    with Guest(machine) as guest, vfio_guest(guest, ("A", *PMRS)) as made:
        # so that the trace is read with their BARs in mind
        made.drives |= {name: replace(made.drives[name], cmb=PMR_MIB * MIB) for name in PMRS}
        yield made


@pytest.fixture
def clean(lab: VfioLab) -> Iterator[VfioLab]:
    lab.inside.start()
    yield lab
    lab.guest.reset()
    lab.inside.clear()


# P: vfio-pci alone has it; Q: a controller of the data plane's
@pytest.mark.parametrize("provider", PMRS)
def test_strict_keeps_all_payload_in_the_pmr(clean: VfioLab, provider: str) -> None:
    """fio verify: every byte that drive A moves is in the provider's BAR, by the IOMMU's translations in QEMU."""
    staged = UserStaged(clean, ["A", "Q"])
    staged.policy(provider, "strict")
    assert staged.state() == "pool"
    device = staged.pool(provider)["device"]
    assert (device["region"], device["via"]) == ("pmr", "spdk" if provider == "Q" else "vfio")
    before = staged.uses()
    staged.trace.mark()
    done = staged.guest.run(f"{staged.connect()} {FIO_VERIFY}\nnvme disconnect -n {NQN} >&2", timeout=350)
    assert done.out.split() == ["0"]
    quiet(done, "keep[ _]?alive")
    traffic, use = staged.traffic(), grown(before, staged.uses())
    assert use.keys() == {provider}
    assert use[provider].read > 6 * MIB
    assert traffic.of("A", READ) == {provider: use[provider].read}
    assert traffic.of("A", WRITE) == {provider: use[provider].write}


# of its own PMR a drive names the place where that is for the controller (CBA): the IOMMU sees nothing of it
@pytest.mark.parametrize(("provider", "place"), [("P", "P"), ("Q", OTHER)])
def test_a_drive_with_a_pmr_itself(clean: VfioLab, provider: str, place: str) -> None:
    """Drive Q's own payload, through another PMR and through its own."""
    staged = UserStaged(clean, ["A", "Q"])
    staged.policy(provider, "strict")
    staged.trace.mark()
    done = staged.guest.run(
        f"""{staged.connect()} find_dev 2; head -c 4M /dev/urandom > /tmp/q
        dd if=/tmp/q of=$dev bs=256k oflag=direct status=none
        dd if=$dev of=/tmp/r bs=256k count=16 iflag=direct status=none
        cmp /tmp/q /tmp/r && echo same; nvme disconnect -n {NQN} >&2""",
        timeout=250,
    )
    assert done.out.splitlines() == ["same"]
    traffic = staged.traffic()
    assert traffic.of("Q", WRITE) == {place: 4 * MIB}
    assert traffic.of("Q", READ).keys() == {place}
    assert traffic.of("Q", READ)[place] >= 4 * MIB
