"""Which RDMA device reaches which provider, on machines made of files."""

from __future__ import annotations

from pathlib import Path

from nvmet_p2p.p2p.doctor import doctor_document
from nvmet_p2p.p2p.rdma import RdmaDevice, rdma_devices, reaches
from tests.unit.p2p.machines import MIB, Machine, bare, one_switch


def test_devices_and_what_is_below_them(tmp_path: Path) -> None:
    machine = one_switch(tmp_path)
    machine.rdma("rxe0", None)
    machine.rdma("rxe1", "0000:05:00.0")  # soft RoCE on a NIC is listed below that
    machine.rdma("mlx5_0", "0000:05:00.0")
    assert rdma_devices(machine.topology()) == (
        RdmaDevice("mlx5_0", "0000:05:00.0", "mlx5_core"), RdmaDevice("rxe0"), RdmaDevice("rxe1")
    )  # fmt: skip
    assert rdma_devices(bare(tmp_path / "bare").topology()) == ()


def test_why_not(tmp_path: Path) -> None:
    """Soft RoCE; a driver that imports nothing; the kernel's nvme driver, which exports nothing."""
    machine = one_switch(tmp_path)
    machine.rdma("rxe0", None)
    machine.rdma("mlx5_0", "0000:05:00.0")
    machine.device("0000:00:04.0", "pci0000:00", (0x15B3, 0x1003), 0x020000, driver="mlx4_core")
    machine.rdma("mlx4_0", "0000:00:04.0")
    found = {reach.device.name: reach for reach in reaches(machine.topology())}
    assert {name: (reach.ok, reach.code, reach.provider) for name, reach in found.items()} == {
        "mlx4_0": (False, "host-bridge-not-listed", "0000:03:00.0"),
        "mlx5_0": (False, "rdma-no-export", "0000:03:00.0"),
        "rxe0": (False, "rdma-software", "0000:03:00.0"),
    }
    assert "from Linux 6.19 on (this is 6.12" in found["mlx5_0"].remedy
    document = doctor_document(machine.topology())
    codes = {finding["code"]: finding for finding in document["findings"]}
    assert codes["rdma-software"]["severity"] == "note"
    assert codes["rdma-software"]["subject"] == "RDMA device rxe0 and provider 0000:03:00.0"
    assert document["ok"]


def test_a_driver_that_imports_no_dma_buf(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.root_port("0000:00:1c.0", machine.host("pci0000:00"))
    ports = machine.switch("0000:00:1c.0", 1, 2, 0)
    machine.nvme("0000:03:00.0", ports[0], 0, cmb=64 * MIB)
    machine.device("0000:04:00.0", ports[1], (0x15B3, 0x1003), 0x020000, driver="mlx4_core")
    machine.rdma("mlx4_0", "0000:04:00.0")
    (reach,) = reaches(machine.topology())
    assert (reach.ok, reach.code) == (False, "rdma-no-import")
