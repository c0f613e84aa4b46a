"""Reading a tree: sysfs itself, configuration space, providers and why there is none."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmet_p2p.p2p.acs import Acs, PortType, read_facts
from nvmet_p2p.p2p.cmb import REGISTERS_BYTES, CmbCaps, PmrCaps, decode_registers
from nvmet_p2p.p2p.providers import Provider
from nvmet_p2p.p2p.sysfs import ConfigSpace, Proc, Sysfs, normal_bdf
from nvmet_p2p.p2p.topology import Topology
from tests.unit.p2p import machines
from tests.unit.p2p.machines import MIB, Machine


class TestSysfs:
    def test_what_is_not_there_is_an_answer(self, tmp_path: Path) -> None:
        sysfs = Sysfs(tmp_path)
        assert sysfs.text("no") is None
        assert sysfs.number("no") is None
        assert sysfs.names("no") == ()
        assert sysfs.link("no") is None
        assert sysfs.real("no") is None
        assert not sysfs.exists("no")
        assert Topology.read(sysfs).devices == {}

    def test_values(self, tmp_path: Path) -> None:
        (tmp_path / "hex").write_text("0x1af4\n")
        (tmp_path / "minus").write_text("-1\n")
        (tmp_path / "word").write_text("unknown\n")
        (tmp_path / "folder").mkdir()
        sysfs = Sysfs(tmp_path)
        assert (sysfs.number("hex"), sysfs.number("minus"), sysfs.number("word")) == (0x1AF4, -1, None)
        assert sysfs.text("folder") is None
        assert sysfs.names() == ("folder", "hex", "minus", "word")

    def test_a_link_out_of_the_root_leads_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        (tmp_path / "root-secret").mkdir()
        (tmp_path / "root/out").symlink_to("../root-secret")
        assert Sysfs(tmp_path / "root").real("out") is None

    @pytest.mark.parametrize(
        ("text", "bdf"),
        [
            ("03:00.0", "0000:03:00.0"),
            ("0000:AF:1F.7", "0000:af:1f.7"),
            (" 10000:01:00.0\n", "10000:01:00.0"),
            ("auto", None),
            ("0000:03:20.0", None),
            ("0000:03:00.8", None),
            ("3:0.0", None),
        ],
    )
    def test_addresses(self, text: str, bdf: str | None) -> None:
        assert normal_bdf(text) == bdf


class TestProc:
    def test_a_machine_s_texts(self, tmp_path: Path) -> None:
        proc, boot = tmp_path / "proc", tmp_path / "boot"
        (proc / "sys/kernel").mkdir(parents=True)
        (proc / "sys/kernel/osrelease").write_text("6.12.107+deb13-amd64\n")
        (proc / "cpuinfo").write_text(machines.AMD_ZEN + "\n" + machines.XEON)
        boot.mkdir()
        (boot / "config-6.12.107+deb13-amd64").write_text("CONFIG_PCI=y\nCONFIG_PCI_P2PDMA=y\n")
        read = Proc.read(proc, boot)
        assert read.kernel == (6, 12)
        assert "Xeon" not in read.cpuinfo
        assert read.config_has("CONFIG_PCI_P2PDMA") is True
        assert read.config_has("CONFIG_PCI_P2P") is False
        (proc / "config.gz").write_bytes(gzip.compress(b"# CONFIG_PCI_P2PDMA is not set\n"))
        assert Proc.read(proc, boot).config_has("CONFIG_PCI_P2PDMA") is False
        (proc / "config.gz").write_bytes(b"not gzip")
        assert Proc.read(proc, boot).config_has("CONFIG_PCI_P2PDMA") is True

    def test_nothing_is_known_of_nothing(self, tmp_path: Path) -> None:
        read = Proc.read(tmp_path, tmp_path)
        assert read == Proc()
        assert read.kernel is None
        assert read.config_has("CONFIG_PCI_P2PDMA") is None


class TestConfigSpace:
    def facts(self, path: Path, data: bytes) -> tuple[bool, PortType | None, Acs | None]:
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            facts = read_facts(ConfigSpace(fd))
        finally:
            os.close(fd)
        return facts.known, facts.port_type, facts.acs

    def test_capabilities(self, tmp_path: Path) -> None:
        data = machines.config_space(PortType.DOWNSTREAM, 0x5D)
        assert self.facts(tmp_path / "c", data) == (True, PortType.DOWNSTREAM, Acs(0x7F, 0x5D))
        assert Acs(0x7F, 0x5D).redirects
        assert Acs(0x7F, 0x5D).names() == ("SrcValid", "ReqRedir", "CmpltRedir", "UpstreamFwd", "DirectTrans")

    def test_acs_may_come_first(self, tmp_path: Path) -> None:
        data = machines.config_space(PortType.UPSTREAM, 0x04, aer=False)
        assert self.facts(tmp_path / "c", data) == (True, PortType.UPSTREAM, Acs(0x7F, 0x04))

    def test_none_and_conventional_pci(self, tmp_path: Path) -> None:
        data = machines.config_space(PortType.ENDPOINT, None)
        assert self.facts(tmp_path / "c", data) == (True, PortType.ENDPOINT, None)
        assert self.facts(tmp_path / "c", machines.config_space(None, None, express=False)) == (True, None, None)

    def test_cut_short(self, tmp_path: Path) -> None:
        assert self.facts(tmp_path / "c", machines.config_space(PortType.UPSTREAM, 4)[:64]) == (False, None, None)
        assert self.facts(tmp_path / "c", b"") == (False, None, None)

    def test_a_circle_of_capabilities_ends(self, tmp_path: Path) -> None:
        data = bytearray(4096)
        struct.pack_into("<H", data, 0x06, 0x10)
        data[0x34] = 0x40
        struct.pack_into("<BB", data, 0x40, 0x01, 0x40)
        struct.pack_into("<I", data, 0x100, 0x0001 | 1 << 16 | 0x100 << 20)
        assert self.facts(tmp_path / "c", bytes(data)) == (True, None, None)

    @given(data=st.binary(max_size=700))
    def test_any_bytes(self, tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
        known, _, _ = self.facts(tmp_path_factory.getbasetemp() / "any-config", data)
        assert known is (len(data) >= 68)


class TestRegisters:
    def test_cmb(self) -> None:
        caps = CmbCaps.decode(0x0000_2022, 0x0004_021D)
        assert caps == CmbCaps(2, 2 * MIB, 64 * MIB, True, False, True, True, True, True)
        assert caps.names() == ("SQS", "LISTS", "RDS", "WDS")
        assert caps.for_data

    @pytest.mark.parametrize(
        ("unit", "size"), list(enumerate([4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20, 4 << 30]))
    )
    def test_units(self, unit: int, size: int) -> None:
        caps = CmbCaps.decode(3 << 12, unit << 8 | 3 << 12)
        assert caps is not None
        assert (caps.size, caps.offset) == (3 * size, 3 * size)

    def test_none_and_reserved(self) -> None:
        assert CmbCaps.decode(0, 0) is None
        assert CmbCaps.decode(0, 0x0000_1700) is None

    def test_registers_of_a_drive_in_other_hands(self) -> None:
        registers = bytearray(REGISTERS_BYTES)
        struct.pack_into("<Q", registers, 0, 1 << 56)
        struct.pack_into("<II", registers, 0x38, 0x2, 0x0000_1218)
        struct.pack_into("<I", registers, 0xE00, 4 << 5 | 1 << 4 | 1 << 3)
        cmb, pmr = decode_registers(bytes(registers))
        assert cmb is not None
        assert (cmb.size, cmb.for_data, cmb.mixed_lists) == (MIB, True, False)
        assert pmr == PmrCaps(4, True, True)
        assert decode_registers(bytes(registers[:64])) == (None, None)
        assert PmrCaps.decode(0, 0xFFFFFFFF) is None


def provider(machine: Machine, bdf: str = "0000:01:00.0") -> Provider:
    return machine.topology().providers[bdf]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path, machines.XEON)
    machine.root_port("0000:00:01.0", machine.host("pci0000:00"))
    return machine


class TestProviders:
    def test_a_published_one(self, machine: Machine) -> None:
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=64 * MIB, available=60 * MIB)
        found = provider(machine)
        assert (found.usable, found.code, found.size, found.available) == (True, "ok", 64 * MIB, 60 * MIB)
        assert found.allocate == str(machine.root.resolve() / "bus/pci/devices/0000:01:00.0/p2pmem/allocate")
        assert found.cmb is not None
        assert found.cmb.for_data

    def test_one_that_takes_no_data_one_way(self, machine: Machine) -> None:
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=64 * MIB, published=False)
        found = provider(machine)
        assert (found.usable, found.code) == (False, "not-published")
        assert "no WDS" in found.reason
        assert "RDS" not in found.reason

    def test_a_kernel_without_allocate(self, machine: Machine) -> None:
        machine.kernel = "6.1.0-42-amd64"
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=64 * MIB, allocate=False)
        found = provider(machine)
        assert (found.usable, found.code, found.allocate) == (False, "kernel-too-old", None)
        assert "6.2" in found.remedy

    def test_one_that_somebody_has_all_of_is_usable_for_him(self, machine: Machine) -> None:
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=2 * MIB, available=0)
        assert (provider(machine).usable, provider(machine).available) == (True, 0)

    def test_a_cmb_of_512_kib_is_not_taken_by_the_kernel(self, machine: Machine) -> None:
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=512 << 10, registered=False)
        found = provider(machine)
        assert (found.usable, found.code) == (False, "cmb-not-aligned")
        assert "524288 bytes" in found.reason
        assert "2 MiB" in found.reason

    def test_a_bar_that_lies_crooked(self, machine: Machine) -> None:
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=4 * MIB, registered=False, bar_start=0xF010_0000)
        found = provider(machine)
        assert found.code == "cmb-not-aligned"
        assert "0xf0100000" in found.reason
        assert "BIOS" in found.remedy

    def test_crooked_by_the_drive_s_own_word(self, machine: Machine) -> None:
        """A kernel that shows CMBSZ of a CMB that it did not take."""
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=4 * MIB, registered=False, bar_start=0xF010_0000)
        machine.write(machine.places["0000:01:00.0"] / "nvme/nvme0", cmbloc=0x2, cmbsz=4 << 12 | 2 << 8 | 0x18)
        found = provider(machine)
        assert found.code == "cmb-not-aligned"
        assert "which holds its CMB" in found.reason
        machine.write(machine.places["0000:01:00.0"] / "nvme/nvme0", cmbsz=1 << 12 | 2 << 8 | 0x18)
        assert "its CMB has 1048576 bytes" in provider(machine).reason

    def test_one_that_failed_to_register(self, machine: Machine) -> None:
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=4 * MIB, registered=False)
        machine.write(machine.places["0000:01:00.0"] / "nvme/nvme0", cmbloc=0x2, cmbsz=4 << 12 | 2 << 8 | 0x18)
        found = provider(machine)
        assert found.code == "cmb-not-registered"
        assert "dmesg" in found.remedy

    def test_a_kernel_without_p2pdma(self, machine: Machine) -> None:
        machine.config = "# CONFIG_PCI_P2PDMA is not set\n"
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=64 * MIB, registered=False)
        assert provider(machine).code == "no-p2pdma"

    def test_a_kernel_that_shows_its_types_alone(self, machine: Machine) -> None:
        """Without /proc/config.gz and /boot, as in a container: BTF tells it."""
        machine.config = ""
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0)
        assert machine.topology().p2pdma is None
        types = machine.write(machine.root / "kernel/btf") / "vmlinux"
        types.write_bytes(b"\x9f\xeb\x01\0" + b"\0p2pdma\0")
        assert provider(machine).code == "no-p2pdma"
        types.write_bytes(b"\x9f\xeb\x01\0" + b"\0p2pmem_published\0")
        assert (machine.topology().p2pdma, provider(machine).code) == (True, "no-cmb")
        types.write_bytes(b"something else")
        assert machine.topology().p2pdma is None

    def test_an_old_kernel(self, machine: Machine) -> None:
        machine.kernel, machine.config = "5.15.0", ""
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0)
        assert provider(machine).code == "kernel-too-old"

    @pytest.mark.parametrize(("driver", "holder"), [("vfio-pci", "driver vfio-pci"), ("", "no driver")])
    def test_a_drive_in_other_hands(self, machine: Machine, driver: str, holder: str) -> None:
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, cmb=64 * MIB, driver=driver)
        found = provider(machine)
        assert found.code == ("vfio-unseen" if driver else "driver-not-nvme")
        assert found.reason.startswith(holder)
        registers = bytearray(REGISTERS_BYTES)
        struct.pack_into("<II", registers, 0x38, 0x2, 0x0004_0218)
        told = Topology.read(machine.sysfs, proc=machine.proc, registers={"0000:01:00.0": bytes(registers)})
        assert told.providers["0000:01:00.0"].size == 64 * MIB

    def test_a_drive_without(self, machine: Machine) -> None:
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0)
        assert provider(machine).code == "no-cmb"

    def test_memory_of_something_else_than_a_drive(self, machine: Machine) -> None:
        machine.device("0000:01:00.0", "0000:00:01.0", (0x1DE5, 0x1000), 0x120000, port_type=PortType.ENDPOINT)
        place = machine.places["0000:01:00.0"] / "p2pmem"
        machine.write(place, size=8 * MIB, available=8 * MIB, published=1)
        (place / "allocate").touch()
        found = provider(machine)
        assert (found.usable, found.cmb) == (True, None)


class TestDevices:
    def test_what_is_told_of_one(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path, iommu="DMA-FQ")
        device = machine.topology().devices["0000:04:00.0"]
        assert device.bridges == ("0000:02:01.0", "0000:01:00.0", "0000:00:1c.0")
        assert (device.driver, device.names, device.host_bridge) == ("nvme", ("nvme1",), "pci0000:00")
        assert (device.iommu_group, device.translated, device.numa_node) == ("1", True, None)
        assert device.port_type == PortType.ENDPOINT
        assert [bar.index for bar in machine.topology().devices["0000:03:00.0"].bars] == [0, 2]

    def test_a_virtio_nic_has_its_interface_s_name(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path)
        machine.device("0000:00:03.0", machine.host("pci0000:00"), (0x1AF4, 0x1041), machines.NIC, driver="virtio-pci")
        place = machine.write(machine.places["0000:00:03.0"] / "virtio2/net/ens3", operstate="up")
        (place / "device").symlink_to("../..")
        machine.link("class/net/ens3", place)
        assert machine.topology().devices["0000:00:03.0"].names == ("ens3",)

    def test_one_that_leaves_meanwhile_is_left_out(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path)
        (machine.places["0000:04:00.0"] / "vendor").unlink()
        (machine.root / "bus/pci/devices/0000:77:00.0").symlink_to("../../../devices/gone")
        topology = machine.topology()
        assert "0000:04:00.0" not in topology.devices
        assert "0000:77:00.0" not in topology.devices
        assert "0000:03:00.0" in topology.providers

    def test_files_read_grow_with_the_devices_alone(self, chassis: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        """So that 24 drives take well under a second of CPU: some ten files a device, whatever the rest."""
        opened = 0
        real_open = os.open

        def counting(path: str, flags: int) -> int:
            nonlocal opened
            opened += 1
            return real_open(path, flags)

        monkeypatch.setattr(os, "open", counting)
        topology = chassis.topology()
        assert len(topology.devices) == 66
        assert len(topology.providers) == 24
        assert opened < 12 * 66
