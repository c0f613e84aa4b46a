"""Memory of drives on vfio-pci: who offers it, who reaches it, and what is said where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmet_p2p.p2p.choice import Calibration, candidates_for, choose
from nvmet_p2p.p2p.clients import Client
from nvmet_p2p.p2p.distance import distance
from nvmet_p2p.p2p.doctor import doctor_document
from nvmet_p2p.p2p.policy import StagingPolicy
from nvmet_p2p.p2p.rdma import reaches
from nvmet_p2p.p2p.report import map_document
from nvmet_p2p.p2p.topology import Topology
from nvmet_p2p.p2p.vfio import VfioMemory, is_vfio, with_probes
from tests.unit.p2p.machines import AMD_ZEN, MIB, XEON, Machine

A, B, K = "0000:03:00.0", "0000:04:00.0", "0000:05:00.0"
CMB = VfioMemory("cmb", "spdk", 2, 64 * MIB, "uncached", True, "")


def machine_with(folder: Path, cpuinfo: str = AMD_ZEN) -> Machine:
    """Behind one switch: A and B on vfio-pci, K and its CMB the kernel's."""
    machine = Machine(folder, cpuinfo)
    machine.root_port("0000:00:1c.0", machine.host("pci0000:00"))
    ports = machine.switch("0000:00:1c.0", 1, 3, 0)
    machine.nvme(A, ports[0], 0, driver="vfio-pci", iommu="7")
    machine.nvme(B, ports[1], 1, driver="vfio-pci", iommu="8")
    machine.nvme(K, ports[2], 2, cmb=64 * MIB)
    return machine


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    return with_probes(machine_with(tmp_path).topology(), {A: CMB, B: "it has no Controller Memory Buffer", K: CMB})


def test_names_of_drivers() -> None:
    assert is_vfio("vfio-pci")
    assert is_vfio("mlx5_vfio_pci")
    assert not is_vfio("nvme")
    assert not is_vfio(None)


def test_the_answer_of_the_data_plane() -> None:
    answer = {
        "region": "pmr", "via": "vfio", "bar": 4, "bytes": 4096, "mapping": "uncached", "spdk": False, "dma_buf": False,
        "no_dma_buf": "an old kernel",
    }  # fmt: skip
    assert VfioMemory.parse(answer) == VfioMemory("pmr", "vfio", 4, 4096, "uncached", False, "an old kernel")


def test_what_the_data_plane_has_found_makes_a_provider(topology: Topology) -> None:
    found = topology.providers[A]
    assert (found.usable, found.kind, found.size, found.vfio) == (True, "spdk_cmb", 64 * MIB, CMB)
    none = topology.providers[B]
    assert (none.usable, none.code, none.reason) == (False, "vfio-no-memory", "it has no Controller Memory Buffer")
    kernel = topology.providers[K]  # a probe says nothing of the kernel's drives
    assert (kernel.kind, kernel.vfio) == ("p2pmem", None)


def test_nobody_looks_unasked(tmp_path: Path) -> None:
    found = machine_with(tmp_path).topology().providers[A]
    assert (found.usable, found.code, found.kind) == (False, "vfio-unseen", "spdk_cmb")
    assert "virtual machine" in found.reason


def test_drives_of_the_kernel_and_of_user_space_do_not_meet(topology: Topology) -> None:
    kernel = distance(topology, A, K)
    assert (kernel.ok, kernel.code) == (False, "kernel-drive")
    assert "EFAULT" in kernel.reason
    assert "setup bind" in kernel.remedy
    user = distance(topology, K, A)
    assert (user.ok, user.code) == (False, "vfio-drive")
    assert f"bind {K} to vfio-pci" in user.remedy


def test_on_vfio_it_goes_by_the_root_complex(tmp_path: Path, topology: Topology) -> None:
    near = distance(topology, A, B)
    assert (near.ok, near.map_type, near.cost, near.cautions) == (True, "host-bridge", 4, ())
    assert distance(topology, A, A).map_type == "same-device"
    unlisted = machine_with(tmp_path / "xeon", cpuinfo=XEON).topology()
    doubtful = distance(unlisted, A, B)
    assert doubtful.ok
    assert "calibration decides" in doubtful.cautions[0]


def test_the_choice_for_a_drive_on_vfio(topology: Topology) -> None:
    fast = Calibration(True, 900, 900, 900, 900, 900, 900)
    candidates = candidates_for(topology, [Client(B, "x")], calibrations={A: fast, K: fast})
    assert {candidate.pool: candidate.kind for candidate in candidates} == {A: "spdk_cmb", B: "spdk_cmb", K: "p2pmem"}
    chosen = choose(candidates, StagingPolicy("auto"))
    assert chosen.pools == (A,)
    assert "does not reach" in chosen.rejected[K]
    kernel = choose(candidates_for(topology, [Client(K, "x")], calibrations={A: fast, K: fast}), StagingPolicy("auto"))
    assert kernel.pools == (K,)
    refused = choose(candidates_for(topology, [Client(K, "x")]), StagingPolicy(A, strict=True)).refused
    assert refused is not None
    assert "EFAULT" in refused.reason


def test_the_doctor_and_the_map(topology: Topology) -> None:
    document = doctor_document(topology)
    findings = {finding["code"]: finding for finding in document["findings"]}
    assert findings["vfio-no-memory"]["severity"] == "note"
    assert not {"kernel-drive", "vfio-drive"} & set(findings)  # nobody asked for such a pair
    shown = {provider["bdf"]: provider for provider in map_document(topology)["providers"]}
    assert shown[A]["kind"] == "spdk_cmb"
    assert shown[A]["vfio"]["mapping"] == "uncached"
    assert shown[K]["vfio"] is None


def test_rdma_devices_take_what_is_exported(tmp_path: Path) -> None:
    machine = machine_with(tmp_path)
    machine.device("0000:00:04.0", "pci0000:00", (0x15B3, 0x1017), 0x020000, driver="mlx5_core")
    machine.rdma("mlx5_0", "0000:00:04.0")
    without = VfioMemory("cmb", "vfio", 2, 64 * MIB, "uncached", False, "this kernel's VFIO exports no dma-buf")
    codes = {
        reach.provider: (reach.ok, reach.code)
        for reach in reaches(with_probes(machine.topology(), {A: CMB, B: without}))
    }
    assert codes == {A: (True, "ok"), B: (False, "rdma-no-export"), K: (False, "rdma-no-export")}
