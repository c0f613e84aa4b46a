"""The documents of map and doctor, and what is rendered from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from nvmet_p2p.p2p.choice import Calibration, candidates_for, choose
from nvmet_p2p.p2p.clients import Client, Refusal, drives_of
from nvmet_p2p.p2p.doctor import doctor_document, exit_code
from nvmet_p2p.p2p.policy import Effective, StagingPolicy
from nvmet_p2p.p2p.render_svg import map_svg
from nvmet_p2p.p2p.render_text import doctor_text, map_text, size
from nvmet_p2p.p2p.report import PoolState, Staged, map_document
from tests.tools import gen_p2p_map
from tests.unit.p2p import machines
from tests.unit.p2p.machines import MIB, Machine

SVG = "{http://www.w3.org/2000/svg}"
NQN = "nqn.2026-11.com.example:a"
GOOD = Calibration(True, 5000, 5000, 5000, 5000, 3000, 3000)
SLOW_READS = Calibration(True, 5000, 40, 5000, 5000, 3000, 3000)
WRONG = Calibration(False, reason="other bytes came back")
PROVIDER, DRIVE = "0000:03:00.0", "0000:04:00.0"


def staged(machine: Machine, policy: str, calibration: Calibration | None = GOOD, path: str = "/dev/nvme1n1") -> Staged:
    """A namespace on the drive beside the provider of ``one_switch``."""
    topology = machine.topology()
    drives = drives_of(topology, path, stat_path=machine.stat)
    chosen = StagingPolicy.parse(policy)
    found = () if isinstance(drives, Refusal) else drives
    calibrations = {PROVIDER: calibration} if calibration else {}
    choice = choose(candidates_for(topology, found, calibrations=calibrations), chosen)
    return Staged(NQN, 1, "disk0", drives, Effective(chosen, "namespace"), choice, "192.0.2.7:4420")


def codes(document: dict[str, Any], severity: str = "problem") -> list[str]:
    return [finding["code"] for finding in document["findings"] if finding["severity"] == severity]


def shapes(root: Path) -> Iterator[Machine]:
    yield machines.bare(root / "bare")
    yield machines.same_device(root / "same")
    yield machines.one_switch(root / "switch", acs=machines.REDIRECT)
    yield machines.two_switches(root / "switches")
    yield machines.two_root_ports(root / "ports", machines.Q35)
    yield machines.two_sockets(root / "sockets")
    yield machines.chassis(root / "chassis", drives=4, per_switch=1)
    unprivileged = Machine(root / "unprivileged", unprivileged=True)
    unprivileged.nvme("0000:01:00.0", unprivileged.host("pci0000:00"), 0, cmb=2 * MIB)
    yield unprivileged
    yield Machine(root / "empty")


class TestMap:
    def test_every_shape_is_json_text_and_a_picture(self, tmp_path: Path) -> None:
        for machine in shapes(tmp_path):
            document = map_document(machine.topology())
            assert msgspec.json.decode(msgspec.json.encode(document)) == document
            assert map_text(document) == map_text(msgspec.json.decode(msgspec.json.encode(document)))
            ElementTree.fromstring(map_svg(document))
            findings = doctor_document(machine.topology())
            assert msgspec.json.decode(msgspec.json.encode(findings)) == findings
            assert doctor_text(findings)

    def test_the_tree_holds_what_leads_to_something(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path)
        machine.root_port("0000:00:1d.0", "pci0000:00")  # nothing below it
        (host,) = map_document(machine.topology())["tree"]
        (root_port,) = host["children"]
        (upstream,) = root_port["children"]
        assert (root_port["kind"], upstream["kind"]) == ("root port", "switch upstream port")
        assert [port["bdf"] for port in upstream["children"]] == ["0000:02:00.0", "0000:02:01.0", "0000:02:02.0"]
        leaf = upstream["children"][0]["children"][0]
        assert (leaf["bdf"], leaf["kind"], leaf["names"]) == (PROVIDER, "drive", ["nvme0"])
        assert leaf["provider"]["cmb"]["supports"] == ["SQS", "RDS", "WDS"]

    def test_a_verdict_for_each_pair(self, chassis: Machine) -> None:
        document = map_document(chassis.topology())
        assert len(document["verdicts"]) == 24 * 28
        assert {verdict["distance"] for verdict in document["verdicts"]} == {0, 4, 8}

    def test_memory_that_the_kernel_did_not_take_is_shown_without_distances(self, tmp_path: Path) -> None:
        machine = machines.two_root_ports(tmp_path)
        machine.root_port("0000:00:04.0", "pci0000:00")
        machine.nvme("0000:03:00.0", "0000:00:04.0", 3, cmb=MIB, registered=False)
        machine.write(machine.places["0000:03:00.0"] / "nvme/nvme3", cmbloc=0x62, cmbsz=0x121D)
        document = map_document(machine.topology())
        assert {verdict["provider"] for verdict in document["verdicts"]} == {"0000:01:00.0"}
        assert "0000:03:00.0  nvme3  (CMB 1 MiB: cmb-not-aligned)" in map_text(document)

    def test_virtual_functions_of_nics_are_not_drawn(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path)
        machine.nic("0000:05:00.1", "0000:02:02.0", "eth0v0")
        (machine.places["0000:05:00.1"] / "physfn").symlink_to("../0000:05:00.0")
        assert "0000:05:00.1" not in map_text(map_document(machine.topology()))

    def test_text(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path, acs=machines.REDIRECT)
        text = map_text(map_document(machine.topology()))
        assert "│  └─ 0000:03:00.0  nvme0  * CMB 64 MiB, 63.9 MiB free" in text
        assert text.count("[ACS redirects to the root complex]") == 3
        assert "0000:03:00.0  nvme0    0=\n0000:04:00.0  nvme1     -\n" in text
        assert "pci=disable_acs_redir=0000:02:00.0;0000:02:01.0" in text

    def test_text_of_many_providers_has_numbered_columns(self, chassis: Machine) -> None:
        lines = map_text(map_document(chassis.topology())).splitlines()
        (head,) = (line for line in lines if "#1 " in line and "#24" in line and "nvme" not in line)
        assert head.split() == [f"#{number}" for number in range(1, 25)]
        row = next(line for line in lines if line.startswith("#7 "))
        assert row.split()[:3] == ["#7", "0000:32:00.0", "nvme6"]
        assert row.split()[3 + 6] == "0="
        assert max(map(len, lines)) <= 130

    def test_namespaces_and_pools(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path)
        pool = PoolState(PROVIDER, "p2pmem", 63 * MIB, 60 * MIB, 1, calibrations={"disk0": SLOW_READS})
        trial = PoolState("ram", "emulated", MIB, MIB, lost=True, why="taken away")
        entries = [staged(machine, "auto", SLOW_READS), staged(machine, "off")]
        document = map_document(machine.topology(), staged=entries, pools=[pool, trial])
        text = map_text(document)
        assert "reads host memory, writes 0000:03:00.0, copies 0000:03:00.0 (policy auto,prefer of namespace)" in text
        assert "(disk0) on 192.0.2.7:4420: host memory (policy off of namespace)" in text
        assert "CPU reads 40 MiB/s (host memory 5000)" in text
        assert "ram  EMULATED, host memory, LOST: taken away, used by 0 views" in text
        assert "read host memory, write 0000:03:00.0" in map_svg(document)

    def test_svg(self, chassis: Machine) -> None:
        image = map_svg(map_document(chassis.topology()))
        root = ElementTree.fromstring(image)
        assert "prefers-color-scheme:dark" in image
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for shape in root.iter(f"{SVG}rect"):
            left, top = float(shape.get("x", 0)), float(shape.get("y", 0))
            assert left + float(shape.attrib["width"]) <= width
            assert top + float(shape.attrib["height"]) <= height
        cells = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") in ("same-device", "bus-address")]
        assert len(cells) == 24 + 24 * 6 + 2  # own, five neighbours and the NIC each; two in the legend
        assert sum(text.text == "8!" for text in root.iter(f"{SVG}text")) == 24 * 14  # the other socket's

    def test_the_picture_of_the_documentation_is_up_to_date(self) -> None:
        assert gen_p2p_map.PICTURE.read_text(encoding="utf-8") == gen_p2p_map.render(), "run make docs"

    def test_names_of_the_machine_are_escaped(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path)
        machine.cpuinfo = "vendor_id\t: GenuineIntel\nmodel name\t: <script>alert('&')</script>\n"
        image = map_svg(map_document(machine.topology()))
        assert "<script>" not in image
        ElementTree.fromstring(image)

    @pytest.mark.parametrize(
        ("count", "text"),
        [(0, "0 B"), (1536, "1.5 KiB"), (64 * MIB, "64 MiB"), (3 << 40, "3 TiB"), (1 << 60, "1048576 TiB")],
    )
    def test_size(self, count: int, text: str) -> None:
        assert size(count) == text


class TestDoctor:
    def test_all_fine(self, tmp_path: Path) -> None:
        document = doctor_document(machines.chassis(tmp_path, drives=6).topology())
        assert (document["ok"], document["findings"], exit_code(document)) == (True, [], 0)
        assert doctor_text(document) == "No problem found.\n"

    def test_a_machine_with_nothing(self, tmp_path: Path) -> None:
        document = doctor_document(machines.bare(tmp_path / "bare").topology())
        assert codes(document) == ["no-drives"]
        assert exit_code(document) == 1
        assert codes(doctor_document(Machine(tmp_path / "empty").topology())) == ["no-pci"]

    def test_drives_without_a_cmb(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path)
        machine.host("pci0000:00")
        for number in range(6):
            machine.nvme(f"0000:00:{number + 1:02x}.0", "pci0000:00", number)
        document = doctor_document(machine.topology())
        assert codes(document) == ["no-provider"]
        assert codes(document, "note") == ["no-cmb"]
        assert document["findings"][1]["subject"].endswith("and 2 more")

    def test_the_kernel_is_said_once(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, kernel="5.15.0", config="# CONFIG_PCI_P2PDMA is not set\n")
        machine.host("pci0000:00")
        for number in range(3):
            machine.nvme(f"0000:00:{number + 1:02x}.0", "pci0000:00", number)
        document = doctor_document(machine.topology())
        assert codes(document) == ["kernel-too-old", "no-p2pdma", "no-provider"]
        assert codes(document, "note") == []

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"cmb": 512 << 10, "registered": False}, "cmb-not-aligned"),
            ({"cmb": 64 * MIB, "published": False}, "not-published"),
        ],
    )
    def test_memory_that_cannot_be_used(self, tmp_path: Path, fields: dict[str, Any], code: str) -> None:
        machine = Machine(tmp_path)
        machine.nvme("0000:00:01.0", machine.host("pci0000:00"), 0, **fields)
        document = doctor_document(machine.topology())
        assert codes(document) == ["no-provider", code]
        assert "0000:00:01.0 (nvme0)" in doctor_text(document)

    def test_a_drive_in_other_hands_is_a_note(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path)
        machine.nvme("0000:00:09.0", "pci0000:00", 9, driver="vfio-pci")
        machine.nvme("0000:00:0a.0", "pci0000:00", 10, driver="uio_pci_generic")
        document = doctor_document(machine.topology())
        assert document["ok"]
        assert {"driver-not-nvme", "vfio-unseen"} <= set(codes(document, "note"))

    def test_what_others_took_and_what_is_small(self, tmp_path: Path) -> None:
        machine = machines.one_switch(tmp_path)
        machine.write(machine.places[PROVIDER] / "p2pmem", size=512 << 10, available=256 << 10)
        document = doctor_document(machine.topology())
        assert {"partly-taken", "small"} <= set(codes(document, "note"))
        assert "use_cmb_sqes=0" in doctor_text(document)
        mine = PoolState(PROVIDER, "p2pmem", 256 << 10, 0)
        assert "partly-taken" not in codes(doctor_document(machine.topology(), pools=[mine]), "note")

    def test_our_own_pool_having_it_all_is_no_problem(self, tmp_path: Path) -> None:
        machine = machines.same_device(tmp_path)
        machine.write(machine.places["0000:01:00.0"] / "p2pmem", available=0)
        assert codes(doctor_document(machine.topology())) == ["nothing-left"]
        pool = PoolState("0000:01:00.0", "p2pmem", 64 * MIB, 64 * MIB)
        assert codes(doctor_document(machine.topology(), pools=[pool])) == []

    def test_acs(self, tmp_path: Path) -> None:
        document = doctor_document(machines.one_switch(tmp_path / "intel", acs=machines.REDIRECT).topology())
        assert codes(document) == ["acs-redirect"]
        (finding,) = (found for found in document["findings"] if found["severity"] == "problem")
        assert finding["subject"] == "0000:04:00.0 (nvme1)"
        assert "pci=disable_acs_redir=0000:02:00.0;0000:02:01.0" in finding["remedy"]
        machine = machines.one_switch(tmp_path / "amd", acs=machines.REDIRECT, cpuinfo=machines.AMD_ZEN)
        document = doctor_document(machine.topology())
        assert document["ok"]
        assert "acs-detour" in codes(document, "note")

    def test_an_unlisted_root_complex(self, tmp_path: Path) -> None:
        document = doctor_document(machines.two_root_ports(tmp_path, machines.Q35).topology())
        assert codes(document) == ["host-bridge-not-listed"]

    def test_two_sockets_each_with_its_own_are_fine(self, tmp_path: Path) -> None:
        document = doctor_document(machines.two_sockets(tmp_path).topology())
        assert document["ok"]
        assert codes(document, "note") == ["two-host-bridges"]
        assert "and 1 more pair" in document["findings"][0]["subject"]

    def test_crossing_nodes(self, tmp_path: Path) -> None:
        document = doctor_document(machines.two_sockets(tmp_path, machines.ICE_LAKE).topology())
        assert codes(document, "note") == ["crosses-nodes"]

    def test_an_iommu_above_a_switch(self, tmp_path: Path) -> None:
        document = doctor_document(machines.one_switch(tmp_path, iommu="DMA").topology())
        assert document["ok"]
        assert "iommu-above-switch" in codes(document, "note")

    def test_without_privilege(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, unprivileged=True)
        machine.nvme("0000:00:01.0", machine.host("pci0000:00"), 0, cmb=2 * MIB)
        assert codes(doctor_document(machine.topology())) == ["not-privileged"]

    def test_pools(self, tmp_path: Path) -> None:
        pools = [
            PoolState(PROVIDER, "p2pmem", MIB, MIB, calibrations={"disk0": WRONG, "disk1": GOOD}),
            PoolState("0000:09:00.0", "p2pmem", MIB, MIB, lost=True, why="unplugged"),
            PoolState("ram", "emulated", MIB, MIB),
        ]
        document = doctor_document(machines.one_switch(tmp_path).topology(), pools=pools)
        assert codes(document) == ["not-verified", "pool-lost"]
        assert "emulated" in codes(document, "note")
        assert "0000:03:00.0 with bdev disk0" in doctor_text(document)
        assert "other bytes came back" in doctor_text(document)

    @pytest.mark.parametrize(
        ("policy", "calibration", "problems", "note"),
        [
            ("off", None, [], None),
            ("auto", GOOD, [], None),
            ("auto", SLOW_READS, [], "measured-slower"),
            ("auto", WRONG, [], "host-memory"),
            ("auto,strict", WRONG, ["strict-no-pool"], None),
            (PROVIDER, SLOW_READS, [], None),
            (PROVIDER, WRONG, ["named-pool-unusable"], None),
            ("0000:99:00.0,strict", GOOD, ["strict-no-pool"], None),
        ],
    )
    def test_namespaces(
        self, tmp_path: Path, policy: str, calibration: Calibration | None, problems: list[str], note: str | None
    ) -> None:
        machine = machines.one_switch(tmp_path)
        document = doctor_document(machine.topology(), staged=[staged(machine, policy, calibration)])
        assert codes(document) == problems
        assert codes(document, "note") == ["no-cmb", *([note] if note else [])]

    @pytest.mark.parametrize(("policy", "severity"), [("auto", "note"), (PROVIDER, "problem")])
    def test_a_namespace_without_a_drive(self, tmp_path: Path, policy: str, severity: str) -> None:
        machine = machines.one_switch(tmp_path)
        machine.file("/t/disk.img", "0:38")
        document = doctor_document(machine.topology(), staged=[staged(machine, policy, path="/t/disk.img")])
        assert "no-drive" in codes(document, severity)
        assert f"{NQN} namespace 1 on 192.0.2.7:4420" in doctor_text(document)

    def test_every_finding_has_a_reason_and_a_remedy(self, tmp_path: Path) -> None:
        for machine in shapes(tmp_path):
            for finding in doctor_document(machine.topology())["findings"]:
                assert all(finding.values()), finding


def test_a_client_may_be_refused_and_still_be_shown(tmp_path: Path) -> None:
    machine = machines.one_switch(tmp_path)
    node = machine.multipath("nvme5n1", ("nvme0", 0), ("nvme1", 1))
    document = map_document(machine.topology(), staged=[staged(machine, "auto", path=node)])
    (entry,) = document["namespaces"]
    assert [client["bdf"] for client in entry["drives"]] == [PROVIDER, DRIVE]
    assert entry["drives_refused"]["code"] == "multipath-kernel"
    assert "passes no peer memory" in map_text(document)
    assert Client(PROVIDER, "nvme5c0n1 of nvme5n1").how == entry["drives"][0]["how"]
