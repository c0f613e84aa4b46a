"""From a back end's path to its drives, and from an address to its NICs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmet_p2p.p2p.clients import Client, Found, Refusal, drives_of, nics_of
from tests.unit.p2p import machines
from tests.unit.p2p.machines import MIB, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Two drives behind a switch, on a kernel that passes peer memory through multipath and md."""
    machine = machines.one_switch(tmp_path)
    machine.kernel = "7.2.12"
    return machine


def drives(machine: Machine, path: str) -> Found:
    return drives_of(machine.topology(), path, stat_path=machine.stat)


def bdfs(found: Found) -> list[str]:
    assert not isinstance(found, Refusal), found
    return [client.bdf for client in found]


def refused(found: Found, code: str) -> Refusal:
    assert isinstance(found, Refusal), found
    assert found.code == code
    assert found.reason
    assert found.remedy
    return found


class TestDrives:
    def test_a_namespace(self, machine: Machine) -> None:
        assert drives(machine, "/dev/nvme1n1") == (Client("0000:04:00.0", "nvme1n1"),)

    def test_a_partition(self, machine: Machine) -> None:
        node = machine.partition("nvme1n1", 2)
        assert drives(machine, node) == (Client("0000:04:00.0", "nvme1n1p2 of nvme1n1"),)

    def test_a_file_on_a_partition(self, machine: Machine) -> None:
        path = machine.file("/srv/disk.img", machine.partition("nvme1n1", 1))
        assert bdfs(drives(machine, path)) == ["0000:04:00.0"]

    @pytest.mark.parametrize("kind", ["tmpfs", "btrfs"])
    def test_a_file_without_a_device(self, machine: Machine, kind: str) -> None:
        machine.mountinfo = f"31 1 259:1 / / rw - ext4 /dev/nvme0n1 rw\n40 31 0:38 / /t rw shared:1 - {kind} x rw\n"
        found = refused(drives(machine, machine.file("/t/disk.img", "0:38")), "no-drive")
        assert f"{kind} file system" in found.reason
        machine.mountinfo = ""
        refused(drives(machine, "/t/disk.img"), "no-drive")

    def test_what_is_not_there(self, machine: Machine) -> None:
        refused(drives(machine, "/dev/nvme7n1"), "absent")
        machine.nodes["/dev/ghost"] = machine.nodes["/dev/nvme0n1"]
        (machine.root / "dev/block/259:1").unlink()
        assert "259:1" in refused(drives(machine, "/dev/ghost"), "absent").reason

    def test_a_character_device(self, machine: Machine) -> None:
        machine.nodes["/dev/null"] = (0o020666, 259)
        refused(drives(machine, "/dev/null"), "not-a-disk")

    def test_a_virtio_disk(self, machine: Machine) -> None:
        machine.device("0000:00:09.0", "pci0000:00", (0x1AF4, 0x1042), 0x010000, driver="virtio-pci")
        machine.disk(machine.places["0000:00:09.0"] / "virtio1/block/vda")
        found = refused(drives(machine, "/dev/vda"), "driver-not-nvme")
        assert "virtio-pci" in found.reason
        assert found.clients == (Client("0000:00:09.0", "vda"),)

    def test_a_disk_of_no_device(self, machine: Machine) -> None:
        machine.disk(machine.root / "devices/virtual/block/zram0")
        refused(drives(machine, "/dev/zram0"), "no-drive")

    def test_a_loop_device(self, machine: Machine) -> None:
        machine.write(machine.disk(machine.root / "devices/virtual/block/loop0") / "loop", backing_file="/srv/a.img")
        assert "/srv/a.img" in refused(drives(machine, "/dev/loop0"), "loop").remedy

    def test_a_remote_namespace(self, machine: Machine) -> None:
        machine.disk(machine.root / "devices/virtual/nvme-fabrics/ctl/nvme4/nvme4n1")
        refused(drives(machine, "/dev/nvme4n1"), "remote-drive")


class TestStacked:
    def test_every_path_of_a_multipath_head(self, machine: Machine) -> None:
        node = machine.multipath("nvme5n1", ("nvme0", 0), ("nvme1", 1))
        assert drives(machine, node) == (
            Client("0000:03:00.0", "nvme5c0n1 of nvme5n1"),
            Client("0000:04:00.0", "nvme5c1n1 of nvme5n1"),
        )

    def test_only_the_head_s_own_paths(self, machine: Machine) -> None:
        """nvme5n11 and nvme55n1 are others; nvme5n1's path is on nvme0 alone."""
        node = machine.multipath("nvme5n1", ("nvme0", 0))
        other = (machine.root / "class/nvme/nvme1").resolve()
        for name in ("nvme5c1n11", "nvme55c1n1", "nvme5n1"):
            machine.write(other / name, size=1)
        (machine.root / "devices/virtual/nvme-subsystem/nvme-subsys0/nvme1").symlink_to(other)
        assert bdfs(drives(machine, node)) == ["0000:03:00.0"]

    def test_a_partition_of_a_head(self, machine: Machine) -> None:
        machine.multipath("nvme5n1", ("nvme0", 0), ("nvme1", 1))
        assert bdfs(drives(machine, machine.partition("nvme5n1", 3))) == ["0000:03:00.0", "0000:04:00.0"]

    def test_multipath_on_a_kernel_that_does_not(self, machine: Machine) -> None:
        machine.kernel = "6.12.107"
        found = refused(drives(machine, machine.multipath("nvme5n1", ("nvme0", 0), ("nvme1", 1))), "multipath-kernel")
        assert "multipath=N" in found.remedy
        assert bdfs(found.clients) == ["0000:03:00.0", "0000:04:00.0"]

    def test_a_head_without_paths(self, machine: Machine) -> None:
        refused(drives(machine, machine.multipath("nvme5n1")), "no-path")

    def test_a_head_with_a_path_over_the_network(self, machine: Machine) -> None:
        node = machine.multipath("nvme5n1", ("nvme0", 0))
        remote = machine.write(machine.root / "devices/virtual/nvme-fabrics/ctl/nvme9", transport="tcp")
        machine.write(remote / "nvme5c9n1", size=1)
        (machine.root / "devices/virtual/nvme-subsystem/nvme-subsys0/nvme9").symlink_to(remote)
        refused(drives(machine, node), "remote-drive")

    @pytest.mark.parametrize("level", ["raid0", "raid1", "raid10"])
    def test_md_over_partitions(self, machine: Machine, level: str) -> None:
        for disk in ("nvme0n1", "nvme1n1"):
            machine.partition(disk, 1)
        machine.write(machine.stacked("md0", "nvme0n1p1", "nvme1n1p1") / "md", level=level)
        found = drives(machine, "/dev/md0")
        assert bdfs(found) == ["0000:03:00.0", "0000:04:00.0"]
        assert not isinstance(found, Refusal)
        assert found[0].how == "nvme0n1p1 of nvme0n1 of md0"

    def test_a_drive_twice_is_one_client(self, machine: Machine) -> None:
        for number in (1, 2):
            machine.partition("nvme0n1", number)
        machine.write(machine.stacked("md0", "nvme0n1p1", "nvme0n1p2") / "md", level="raid0")
        assert bdfs(drives(machine, "/dev/md0")) == ["0000:03:00.0"]

    def test_md_that_computes_parity(self, machine: Machine) -> None:
        machine.write(machine.stacked("md0", "nvme0n1", "nvme1n1") / "md", level="raid5")
        assert len(refused(drives(machine, "/dev/md0"), "md-level").clients) == 2

    def test_md_on_a_kernel_that_does_not(self, machine: Machine) -> None:
        machine.kernel = "6.12.107"
        machine.write(machine.stacked("md0", "nvme0n1", "nvme1n1") / "md", level="raid1")
        assert "7.2" in refused(drives(machine, "/dev/md0"), "md-kernel").remedy

    def test_md_with_a_leg_that_cannot(self, machine: Machine) -> None:
        machine.device("0000:00:09.0", "pci0000:00", (0x8086, 0xA352), 0x010601, driver="ahci")
        machine.disk(machine.places["0000:00:09.0"] / "ata1/host0/target0:0:0/0:0:0:0/block/sda")
        machine.write(machine.stacked("md0", "nvme0n1", "sda") / "md", level="raid1")
        found = refused(drives(machine, "/dev/md0"), "driver-not-nvme")
        assert "sda is served by driver ahci" in found.reason
        assert [client.bdf for client in found.clients] == ["0000:03:00.0", "0000:00:09.0"]

    def test_md_that_is_not_assembled(self, machine: Machine) -> None:
        machine.write(machine.stacked("md0") / "md", level="raid1")
        refused(drives(machine, "/dev/md0"), "no-drive")

    def test_device_mapper(self, machine: Machine) -> None:
        machine.write(machine.stacked("dm-0", "nvme0n1") / "dm", name="vg0-lv0")
        found = refused(drives(machine, "/dev/dm-0"), "device-mapper")
        assert "vg0-lv0" in found.reason
        assert [client.bdf for client in found.clients] == ["0000:03:00.0"]

    def test_stacked_too_deep(self, machine: Machine) -> None:
        below = "nvme0n1"
        for number in range(12):
            machine.write(machine.stacked(f"md{number}", below) / "md", level="raid1")
            below = f"md{number}"
        refused(drives(machine, f"/dev/{below}"), "too-deep")


class TestNics:
    @pytest.fixture
    def machine(self, tmp_path: Path) -> Machine:
        machine = machines.two_sockets(tmp_path)
        machine.route += (
            "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
            "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
            "eth1\t800200C0\t00000000\t0001\t0\t0\t0\tC0FFFFFF\t0\t0\t0\n"
        )
        machine.if_inet6 = "20010db8000000000000000000000007 03 40 00 80     eth1\n"
        return machine

    @pytest.mark.parametrize(
        ("address", "bdf"),
        [
            ("192.0.2.7", "0000:02:00.0"),
            ("192.0.2.130", "0000:82:00.0"),
            ("2001:db8::7", "0000:82:00.0"),
            ("2001:0db8:0:0::7%eth1", "0000:82:00.0"),
        ],
    )
    def test_by_the_texts_of_proc(self, machine: Machine, address: str, bdf: str) -> None:
        assert bdfs(nics_of(machine.topology(), address)) == [bdf]

    def test_given_addresses_decide(self, machine: Machine) -> None:
        given = {"eth1": ("192.0.2.7", "fe80::1%eth1"), "lo": ("127.0.0.1",)}
        topology = machine.topology()
        assert bdfs(nics_of(topology, "192.0.2.7", addresses=given)) == ["0000:82:00.0"]
        assert bdfs(nics_of(topology, "fe80::1", addresses=given)) == ["0000:82:00.0"]
        refused(nics_of(topology, "192.0.2.8", addresses=given), "no-nic")

    @pytest.mark.parametrize("address", ["0.0.0.0", "::"])
    def test_all_addresses_are_all_nics(self, machine: Machine, address: str) -> None:
        assert bdfs(nics_of(machine.topology(), address)) == ["0000:02:00.0", "0000:82:00.0"]

    def test_a_vlan_on_a_bond(self, machine: Machine) -> None:
        machine.stack("bond0", "eth0", "eth1")
        machine.stack("bond0.7", "bond0")
        found = nics_of(machine.topology(), "192.0.2.9", addresses={"bond0.7": ("192.0.2.9",)})
        assert bdfs(found) == ["0000:02:00.0", "0000:82:00.0"]
        assert not isinstance(found, Refusal)
        assert found[0].how == "eth0 of bond0 of bond0.7"

    def test_what_is_no_nic(self, machine: Machine) -> None:
        machine.stack("dummy0")
        topology = machine.topology()
        for address in ("127.0.0.1", "::1", "host.example", "198.51.100.1", "2001:db8::8"):
            refused(nics_of(topology, address), "no-nic")
        found = refused(nics_of(topology, "192.0.2.9", addresses={"dummy0": ("192.0.2.9",)}), "no-nic")
        assert "dummy0" in found.reason


def test_all_legs_count_in_a_machine_of_many(tmp_path: Path) -> None:
    """The namespace of a dual-ported drive: both of its functions must reach the pool."""
    machine = machines.two_root_ports(tmp_path)
    machine.kernel = "7.2.12"
    machine.nvme("0000:01:00.1", "0000:00:02.0", 7, cmb=2 * MIB)
    node = machine.multipath("nvme9n1", ("nvme0", 0), ("nvme1", 1), ("nvme7", 7))
    assert bdfs(drives(machine, node)) == ["0000:01:00.0", "0000:02:00.0", "0000:01:00.1"]
