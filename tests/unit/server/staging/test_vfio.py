"""Namespaces on drives that the data plane drives itself, and pools in such drives' memory."""

from __future__ import annotations

import dataclasses
import errno
import struct
from pathlib import Path

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.vfio import VfioMemory
from nvmet_p2p.protocol.digest import crc32c
from nvmet_p2p.server.staging import show
from nvmet_p2p.state.journal import JournalError, Journals
from nvmet_p2p.state.render import address_params
from nvmet_p2p.target.config import BdevFacts, ListenAddress
from nvmet_p2p.target.effects import Placement
from tests.unit.p2p.machines import MIB, Machine
from tests.unit.server.staging.rig import FAST, NQN, FakePools, Rig

A, B, K = "0000:03:00.0", "0000:04:00.0", "0000:05:00.0"
CMB = VfioMemory("cmb", "spdk", 2, 64 * MIB, "uncached", True, "")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Behind one switch: A, which has a CMB, and B on vfio-pci, K the kernel's."""
    machine = Machine(tmp_path / "sys")
    machine.root_port("0000:00:1c.0", machine.host("pci0000:00"))
    ports = machine.switch("0000:00:1c.0", 1, 3, 0)
    machine.nvme(A, ports[0], 0, driver="vfio-pci", iommu="7")
    machine.nvme(B, ports[1], 1, driver="vfio-pci", iommu="8")
    machine.nvme(K, ports[2], 2)
    return machine


@pytest.fixture
def rig(machine: Machine, tmp_path: Path) -> Rig:
    """Namespace 1 is on B, which is attached, as A is."""
    pools = FakePools()
    pools.drives[A] = CMB
    pools.room[A] = 64 * MIB
    made = Rig(machine, tmp_path, pools=pools)
    made.subsystem()
    for name, bdf in (("NvmeA", A), ("NvmeB", B)):
        made.do("bdev_nvme_attach_controller", name=name, trtype="PCIe", traddr=bdf)
    made.do("p2p_nvme_expect_namespace", name="NvmeBn1")
    made.facts["NvmeBn1"] = BdevFacts(name="NvmeBn1", block_size=512, num_blocks=2048)
    made.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "NvmeBn1", "nsid": 1})
    return made


def told(rig: Rig, word: str) -> list[str]:
    assert rig.pools is not None
    return rig.pools.told(word)


async def test_auto_takes_the_cmb_of_an_attached_drive(rig: Rig) -> None:
    async with rig.running():
        assert rig.placement() == Placement(A, A, A)
        assert told(rig, "create") == [f"{A} 0"]  # all of it
        assert told(rig, "calibrate") == [f"{A} NvmeBn1"]
        assert sorted(told(rig, "probe")) == [A, B]
        assert rig.manager.keeper is not None
        assert rig.manager.keeper.mapped[A].kind == "spdk_cmb"
        topology = await rig.manager.topology()
        (shown,) = await show.pools(rig.manager, rig.config, rig.pools, topology)
        assert (shown["kind"], shown["users"]) == ("spdk_cmb", 1)
        (namespace,) = show.namespaces(rig.manager, rig.config, rig.pools)
        assert namespace["paths"][0]["drives"] == [{"bdf": B, "how": "namespace 1 of NvmeB"}]


async def test_the_size_that_the_settings_allow(machine: Machine, tmp_path: Path) -> None:
    pools = FakePools()
    pools.drives[A] = CMB
    rig = Rig(machine, tmp_path, pools=pools, cmb_mib=16)
    rig.subsystem()
    rig.do("bdev_nvme_attach_controller", name="NvmeA", trtype="PCIe", traddr=A)
    rig.do("p2p_nvme_expect_namespace", name="NvmeAn1")
    rig.facts["NvmeAn1"] = BdevFacts(name="NvmeAn1", block_size=512, num_blocks=2048)
    rig.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "NvmeAn1", "nsid": 1})
    async with rig.running():
        assert told(rig, "create") == [f"{A} {16 * MIB}"]
        assert rig.decision().choice.cost == 0


async def test_a_drive_of_the_kernel_is_refused_with_the_reason(rig: Rig) -> None:
    rig.drive("b2", "nvme2n1", nsid=2)
    with pytest.raises(OperatorError, match="EFAULT") as refused:
        await rig.commit("p2p_set_staging", nqn=NQN, nsid=2, policy=A, mode="strict")
    assert refused.value.code == -errno.EHOSTUNREACH
    async with rig.running():
        assert rig.placement(nsid=2) == Placement()
        assert rig.placement(nsid=1).read == A


async def test_a_remote_namespace_is_staged_in_host_memory(rig: Rig) -> None:
    rig.do("bdev_nvme_attach_controller", name="Far", trtype="TCP", traddr="192.0.2.9", trsvcid="4420", adrfam="IPv4",
           subnqn="nqn.2026-11.com.example:far")  # fmt: skip
    rig.do("p2p_nvme_expect_namespace", name="Farn1")
    rig.facts["Farn1"] = BdevFacts(name="Farn1", block_size=512, num_blocks=2048)
    rig.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "Farn1", "nsid": 5})
    async with rig.running():
        assert rig.placement(nsid=5) == Placement()
        assert "another machine" in str(rig.decision(nsid=5).choice.rejected[A])


async def test_nobody_looks_at_a_drive_that_is_not_named(machine: Machine, tmp_path: Path) -> None:
    pools = FakePools()
    pools.drives[A] = CMB
    rig = Rig(machine, tmp_path, pools=pools)
    rig.subsystem()
    rig.drive("b2", "nvme2n1")
    async with rig.running():
        assert told(rig, "probe") == []
        rig.do("p2p_set_staging", nqn=NQN, policy=A)
        await rig.settle()
        assert told(rig, "probe") == [A]
        assert "EFAULT" in rig.decision().choice.reason


async def test_a_refusal_is_looked_at_again(rig: Rig) -> None:
    assert rig.pools is not None
    del rig.pools.drives[A]
    async with rig.running():
        assert rig.placement() == Placement()
        assert rig.decision().choice.rejected[A] == "it has no Controller Memory Buffer"
        rig.pools.drives[A] = CMB
        rig.manager.wake()
        await rig.settle()
        assert told(rig, "probe").count(A) == 1
        rig.clock.now += 60
        rig.manager.wake()
        await rig.settle()
        assert rig.placement().read == A


async def test_a_controller_that_is_absent_is_not_opened_otherwise(rig: Rig) -> None:
    """SPDK could not have it then. It is looked at again by itself."""
    assert rig.pools is not None
    rig.pools.absent.add(A)
    async with rig.running():
        assert rig.decision().choice.rejected[A] == "its controller is not attached now"
        assert told(rig, "create") == []
        rig.pools.absent.clear()
        rig.clock.now += 3
        rig.manager._due()
        await rig.settle()
        assert rig.placement().read == A


async def test_the_pool_goes_when_its_drive_changes_hands(rig: Rig) -> None:
    async with rig.running():
        async with rig.manager.changing_hands(A):
            assert rig.pools is not None
            assert A not in rig.pools.specs
            assert rig.placement() == Placement()
            rig.clock.now += 60
            rig.manager.wake()
            await rig.settle()
            assert rig.placement() == Placement()
            assert told(rig, "probe").count(A) == 1
        await rig.settle()
        assert rig.placement().read == A  # SPDK has it now; it is looked at again
        assert told(rig, "probe").count(A) == 2
        async with rig.manager.changing_hands(K):  # nobody's
            assert rig.placement().read == A


async def test_another_driver_is_a_loss(rig: Rig, machine: Machine) -> None:
    async with rig.running():
        link = machine.places[A] / "driver"
        link.unlink()
        rig.manager._machine_changed()
        await rig.settle()
        assert rig.manager.keeper is not None
        assert "another driver" in rig.manager.keeper.lost[A]
        assert rig.manager.provider_kind(A) == "spdk_cmb"
        assert rig.placement() == Placement()


def journal_of(path: Path, drive: str) -> None:
    def header(crc: int) -> bytes:
        return struct.pack(
            "<16sIIQQQ256s256s1024s2512x", b"nvmet-p2p probe\n", 1, crc, 0, 512, MIB, b"NvmeBn1", b"p", drive.encode()
        )

    data = bytes(512)
    path.write_bytes(header(crc32c(data, crc32c(header(0)))) + data)


def test_journals_of_drives_without_a_file(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    assert journals.left_on_nvme("NvmeBn1") == []
    with journals.reserved("", bdev="NvmeBn1") as own:
        assert own == journals.path_of_bdev("NvmeBn1")
    other = own.with_name("0.journal")
    journal_of(own, "nvme nqn model serial namespace 1")
    journal_of(other, "nvme nqn model serial2 namespace 1")
    journal_of(own.with_name("1.journal"), "/dev/nvme0n1")
    own.with_name("2.journal").write_bytes(b"damaged: another drive's")
    assert journals.left_on_nvme("NvmeBn1") == [own, other]
    own.write_bytes(b"damaged")
    with pytest.raises(JournalError, match="is damaged"):
        journals.left_on_nvme("NvmeBn1")


RDMA = ListenAddress(trtype="RDMA", adrfam="IPv4", traddr="192.0.2.1", trsvcid="4420")
NIC = "0000:06:00.0"


@pytest.fixture
def over_rdma(rig: Rig, machine: Machine) -> Rig:
    """Namespace 1 is reached over RDMA, too, by a device that makes regions of dma-bufs."""
    machine.root_port("0000:00:1d.0", "pci0000:00")
    machine.nic(NIC, "0000:00:1d.0", "eth0")
    machine.rdma("mlx5_0", NIC)
    machine.route += "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    rig.do("nvmf_create_transport", trtype="RDMA")
    rig.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=address_params(RDMA))
    return rig


async def test_rdma_goes_straight_to_the_cmb(over_rdma: Rig) -> None:
    """The CPU touches nothing there: how slowly it reads is of no account."""
    assert over_rdma.pools is not None
    over_rdma.pools.results[A, "NvmeBn1"] = dataclasses.replace(FAST, cpu_read_mib_s=10, cpu_write_mib_s=10)
    async with over_rdma.running():
        assert over_rdma.placed[NQN][1, RDMA] == Placement(A, A, A)
        assert over_rdma.placement() == Placement("", "", A)  # over TCP it does


async def test_rdma_without_a_dma_buf(over_rdma: Rig) -> None:
    assert over_rdma.pools is not None
    over_rdma.pools.drives[A] = dataclasses.replace(CMB, dma_buf=False, no_dma_buf="an old kernel")
    async with over_rdma.running():
        assert (1, RDMA) not in over_rdma.placed[NQN]
        assert over_rdma.decision(address=RDMA).choice.rejected[A] == "an old kernel"
        with pytest.raises(OperatorError, match="an old kernel"):
            await over_rdma.commit("p2p_set_staging", nqn=NQN, nsid=1, policy=A, mode="strict")


async def test_rdma_by_software(rig: Rig) -> None:
    rig.do("nvmf_create_transport", trtype="RDMA")
    rig.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=address_params(RDMA))
    async with rig.running():
        assert (1, RDMA) not in rig.placed[NQN]
        assert "no RDMA device" in rig.decision(address=RDMA).choice.rejected[A]
