"""The verdicts, against values worked out by hand from the kernel's ``calc_map_type_and_dist``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmet_p2p.p2p.distance import Verdict, distance
from nvmet_p2p.p2p.kernel_lists import ALLOW_LIST, Cpu, listed
from nvmet_p2p.p2p.topology import Topology
from tests.unit.p2p import machines


def seen(topology: Topology, provider: str, client: str) -> tuple[int, str]:
    verdict = distance(topology, provider, client)
    return verdict.kernel_distance, verdict.map_type


def test_one_function_is_nothing_away_from_itself(tmp_path: Path) -> None:
    topology = machines.same_device(tmp_path).topology()
    assert seen(topology, "0000:01:00.0", "0000:01:00.0") == (0, "same-device")


def test_two_functions_of_a_device_meet_at_the_port_above(tmp_path: Path) -> None:
    topology = machines.same_device(tmp_path).topology()
    assert seen(topology, "0000:01:00.0", "0000:01:00.1") == (2, "bus-address")


def test_one_switch_is_four_hops_whatever_the_root_complex(tmp_path: Path) -> None:
    topology = machines.one_switch(tmp_path).topology()
    assert seen(topology, "0000:03:00.0", "0000:04:00.0") == (4, "bus-address")
    assert seen(topology, "0000:03:00.0", "0000:05:00.0") == (4, "bus-address")


def test_two_switches_below_a_third(tmp_path: Path) -> None:
    """Device, downstream, upstream, downstream of the third, its upstream port: 4 hops up, and as many down."""
    topology = machines.two_switches(tmp_path).topology()
    assert seen(topology, "0000:12:00.0", "0000:13:00.0") == (4, "bus-address")
    assert seen(topology, "0000:12:00.0", "0000:22:00.0") == (8, "bus-address")


@pytest.mark.parametrize("host", [machines.ICE_LAKE, machines.HASWELL_E])
def test_two_root_ports_of_a_listed_host_bridge(tmp_path: Path, host: tuple[int, int]) -> None:
    topology = machines.two_root_ports(tmp_path, host).topology()
    assert seen(topology, "0000:01:00.0", "0000:02:00.0") == (4, "host-bridge")


def test_two_root_ports_of_an_unlisted_host_bridge(tmp_path: Path) -> None:
    topology = machines.two_root_ports(tmp_path, machines.Q35).topology()
    verdict = distance(topology, "0000:01:00.0", "0000:02:00.0")
    assert (verdict.kernel_distance, verdict.cost, verdict.map_type) == (-1, 4, "none")
    assert verdict.code == "host-bridge-not-listed"
    assert "8086:29c0" in verdict.reason
    assert "switch" in verdict.remedy


@pytest.mark.parametrize(
    ("cpuinfo", "trusted"),
    [(machines.AMD_ZEN, True), (machines.AMD_OLD, False), (machines.HYGON, False), (machines.XEON, False), ("", False)],
)
def test_the_cpu_can_stand_in_for_the_list(tmp_path: Path, cpuinfo: str, trusted: bool) -> None:
    topology = machines.two_root_ports(tmp_path, machines.Q35, cpuinfo).topology()
    assert distance(topology, "0000:01:00.0", "0000:02:00.0").ok is trusted


def test_devices_on_the_root_bus_itself_have_no_bridge_in_common(tmp_path: Path) -> None:
    """QEMU's drive on pcie.0 and one behind a root port: one step and two, no common bridge."""
    machine = machines.Machine(tmp_path, machines.AMD_ZEN)
    machine.root_port("0000:00:04.0", machine.host("pci0000:00"))
    machine.nvme("0000:00:05.0", "pci0000:00", 0, cmb=64 * machines.MIB)
    machine.nvme("0000:01:00.0", "0000:00:04.0", 1)
    assert seen(machine.topology(), "0000:00:05.0", "0000:01:00.0") == (3, "host-bridge")


class TestAcs:
    def test_redirection_below_a_trusted_root_complex_is_a_detour(self, tmp_path: Path) -> None:
        topology = machines.one_switch(tmp_path, acs=machines.REDIRECT, cpuinfo=machines.AMD_ZEN).topology()
        verdict = distance(topology, "0000:03:00.0", "0000:04:00.0")
        assert (verdict.kernel_distance, verdict.map_type) == (4, "host-bridge")
        assert verdict.redirects == ("0000:02:00.0", "0000:02:01.0")
        assert any("pci=disable_acs_redir=0000:02:00.0;0000:02:01.0" in caution for caution in verdict.cautions)

    def test_redirection_below_another_one_is_refused_with_the_parameter(self, tmp_path: Path) -> None:
        topology = machines.one_switch(tmp_path, acs=machines.REDIRECT).topology()
        verdict = distance(topology, "0000:03:00.0", "0000:04:00.0")
        assert (verdict.kernel_distance, verdict.map_type, verdict.code) == (-1, "none", "acs-redirect")
        assert "0000:02:00.0, 0000:02:01.0" in verdict.reason
        assert "pci=disable_acs_redir=0000:02:00.0;0000:02:01.0" in verdict.remedy

    @pytest.mark.parametrize(("control", "redirects"), [(0x04, True), (0x08, True), (0x20, True), (0x53, False)])
    def test_the_bits_that_redirect(self, tmp_path: Path, control: int, redirects: bool) -> None:
        topology = machines.one_switch(tmp_path, acs=control).topology()
        assert distance(topology, "0000:03:00.0", "0000:04:00.0").ok is not redirects

    def test_the_common_port_counts_and_what_is_above_it_does_not(self, tmp_path: Path) -> None:
        """The walk from the provider looks at each function up to and with the common one."""
        machine = machines.Machine(tmp_path, machines.XEON)
        machine.root_port("0000:00:1c.0", machine.host("pci0000:00"), acs=machines.REDIRECT)
        ports = machine.switch("0000:00:1c.0", 1, 2, 0)
        machine.nvme("0000:03:00.0", ports[0], 0)
        machine.nvme("0000:04:00.0", ports[1], 1)
        machine.nvme("0000:03:00.1", ports[0], 2)
        assert seen(machine.topology(), "0000:03:00.0", "0000:04:00.0") == (4, "bus-address")
        machine.places["0000:01:00.0"].joinpath("config").write_bytes(machines.config_space(None, machines.REDIRECT))
        verdict = distance(machine.topology(), "0000:03:00.0", "0000:04:00.0")
        assert verdict.redirects == ("0000:01:00.0",)
        assert not verdict.ok
        assert distance(machine.topology(), "0000:03:00.0", "0000:03:00.1").kernel_distance == 2

    def test_a_function_that_redirects_itself(self, tmp_path: Path) -> None:
        """A multi-function drive with ACS on its functions: even its own memory is reached through the root complex."""
        machine = machines.Machine(tmp_path, machines.XEON)
        machine.root_port("0000:00:01.0", machine.host("pci0000:00"))
        machine.nvme("0000:01:00.0", "0000:00:01.0", 0, acs=0x04)
        verdict = distance(machine.topology(), "0000:01:00.0", "0000:01:00.0")
        assert (verdict.kernel_distance, verdict.cost, verdict.redirects) == (-1, 0, ("0000:01:00.0",))

    def test_on_a_way_without_a_common_port_it_is_not_asked_for(self, tmp_path: Path) -> None:
        machine = machines.Machine(tmp_path, machines.XEON)
        machine.host("pci0000:00", machines.ICE_LAKE)
        machine.root_port("0000:00:02.0", "pci0000:00", acs=machines.REDIRECT)
        machine.root_port("0000:00:03.0", "pci0000:00", acs=machines.REDIRECT)
        machine.nvme("0000:01:00.0", "0000:00:02.0", 0)
        machine.nvme("0000:02:00.0", "0000:00:03.0", 1)
        verdict = distance(machine.topology(), "0000:01:00.0", "0000:02:00.0")
        assert (verdict.kernel_distance, verdict.map_type, verdict.redirects) == (4, "host-bridge", ())

    def test_it_is_unknown_to_an_unprivileged_reader(self, tmp_path: Path) -> None:
        machine = machines.Machine(tmp_path, machines.XEON, unprivileged=True)
        machine.root_port("0000:00:1c.0", machine.host("pci0000:00"))
        ports = machine.switch("0000:00:1c.0", 1, 2, machines.REDIRECT)
        machine.nvme("0000:03:00.0", ports[0], 0, cmb=64 * machines.MIB)
        machine.nvme("0000:04:00.0", ports[1], 1)
        verdict = distance(machine.topology(), "0000:03:00.0", "0000:04:00.0")
        assert verdict.ok
        assert not verdict.certain
        assert any("CAP_SYS_ADMIN" in caution for caution in verdict.cautions)


class TestTwoSockets:
    @pytest.mark.parametrize(
        ("host", "cpuinfo", "distance_across"),
        [
            (machines.HASWELL_E, machines.XEON, -1),
            (machines.ICE_LAKE, machines.XEON, 4),
            (machines.Q35, machines.XEON, -1),
            (machines.Q35, machines.AMD_ZEN, 4),
        ],
    )
    def test_across(self, tmp_path: Path, host: tuple[int, int], cpuinfo: str, distance_across: int) -> None:
        topology = machines.two_sockets(tmp_path, host, cpuinfo).topology()
        assert distance(topology, "0000:01:00.0", "0000:81:00.0").kernel_distance == distance_across

    def test_the_reason_names_both_bridges_and_the_flag(self, tmp_path: Path) -> None:
        topology = machines.two_sockets(tmp_path).topology()
        verdict = distance(topology, "0000:01:00.0", "0000:81:00.0")
        assert verdict.code == "two-host-bridges"
        for text in ("pci0000:00", "pci0000:80", "only within one host bridge"):
            assert text in verdict.reason

    def test_an_accepted_crossing_is_cautioned(self, tmp_path: Path) -> None:
        topology = machines.two_sockets(tmp_path, machines.ICE_LAKE).topology()
        assert any("NUMA node" in caution for caution in distance(topology, "0000:01:00.0", "0000:81:00.0").cautions)

    def test_one_listed_bridge_of_two_is_not_enough(self, tmp_path: Path) -> None:
        machine = machines.Machine(tmp_path, machines.XEON)
        for bus, host in (("pci0000:00", machines.ICE_LAKE), ("pci0000:80", machines.Q35)):
            machine.host(bus, host)
            base = bus[-2:]
            machine.root_port(f"0000:{base}:02.0", bus)
            machine.nvme(f"0000:{int(base, 16) + 1:02x}:00.0", f"0000:{base}:02.0", int(base))
        topology = machine.topology()
        for pair in (("0000:01:00.0", "0000:81:00.0"), ("0000:81:00.0", "0000:01:00.0")):
            verdict = distance(topology, *pair)
            assert not verdict.ok
            assert "8086:29c0" in verdict.reason


class TestHostBridge:
    def test_a_root_port_may_speak_for_the_bridge(self, tmp_path: Path) -> None:
        """Skylake-E has no 00.0: its first root port, at whatever slot, is the device that is listed."""
        machine = machines.Machine(tmp_path, machines.XEON)
        machine.root_port("0000:17:02.0", "pci0000:17", machines.SKYLAKE_PORT)
        machine.root_port("0000:17:03.0", "pci0000:17", (0x8086, 0x2033))
        machine.nvme("0000:18:00.0", "0000:17:02.0", 0)
        machine.nvme("0000:19:00.0", "0000:17:03.0", 1)
        topology = machine.topology()
        assert topology.host_bridges["pci0000:17"].first == "0000:17:02.0"
        assert seen(topology, "0000:18:00.0", "0000:19:00.0") == (4, "host-bridge")

    def test_anything_else_that_comes_first_may_not(self, tmp_path: Path) -> None:
        """The first device is an endpoint, not 00.0: the kernel looks no further, although a listed port follows."""
        machine = machines.Machine(tmp_path, machines.XEON)
        machine.device("0000:17:01.0", "pci0000:17", (0x8086, 0x2030), 0x088000)
        machine.root_port("0000:17:02.0", "pci0000:17", machines.SKYLAKE_PORT)
        machine.root_port("0000:17:03.0", "pci0000:17", (0x8086, 0x2033))
        machine.nvme("0000:18:00.0", "0000:17:02.0", 0)
        machine.nvme("0000:19:00.0", "0000:17:03.0", 1)
        verdict = distance(machine.topology(), "0000:18:00.0", "0000:19:00.0")
        assert not verdict.ok
        assert "nothing on pci0000:17" in verdict.reason

    def test_below_a_vmd_controller_begins_a_bus_of_its_own(self, tmp_path: Path) -> None:
        machine = machines.Machine(tmp_path, machines.XEON)
        machine.host("pci0000:00", machines.ICE_LAKE)
        machine.device("0000:00:05.5", "pci0000:00", (0x8086, 0x201D), 0x010400, driver="vmd")
        bus = "pci0000:00/0000:00:05.5/pci10000:00"
        machine.root_port("10000:00:02.0", bus, (0x8086, 0x347A))
        machine.nvme("10000:01:00.0", "10000:00:02.0", 0)
        machine.root_port("0000:00:02.0", "pci0000:00")
        machine.nvme("0000:01:00.0", "0000:00:02.0", 1)
        topology = machine.topology()
        assert topology.devices["10000:01:00.0"].bridges == ("10000:00:02.0",)
        assert topology.devices["10000:01:00.0"].host_bridge == "pci10000:00"
        verdict = distance(topology, "10000:01:00.0", "0000:01:00.0")
        assert verdict.code == "two-host-bridges"
        assert "8086:347a" in verdict.reason

    def test_the_table(self) -> None:
        """As counted in Debian's 7.2.12 kernel: 21 rows, four of them for one host bridge only."""
        assert len(ALLOW_LIST) == 21
        assert [row.device for row in ALLOW_LIST if row.same_host_bridge_only] == [0x3C00, 0x3C01, 0x2F00, 0x2F01]
        assert listed(0x8086, 0x0B25, (6, 12)) is None
        assert listed(0x8086, 0x0B25, (7, 2)) is not None
        assert listed(0x1AE0, 0x1234, (7, 1)) is not None
        assert listed(0x1AE0, 0x1234, None) is not None
        assert sum(row.since <= (6, 12) for row in ALLOW_LIST) == 10

    @pytest.mark.parametrize(
        ("text", "cpu"),
        [
            (machines.AMD_ZEN, Cpu("AuthenticAMD", 25, "AMD EPYC 9354")),
            ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\n", Cpu()),
            ("vendor_id : AuthenticAMD\ncpu family : x\n", Cpu("AuthenticAMD")),
        ],
    )
    def test_cpuinfo(self, text: str, cpu: Cpu) -> None:
        assert Cpu.parse(text) == cpu


def test_an_iommu_above_a_switch_is_cautioned(tmp_path: Path) -> None:
    for name, kind, cautioned in (("a", "DMA", True), ("b", "DMA-FQ", True), ("c", "identity", False)):
        topology = machines.one_switch(tmp_path / name, iommu=kind).topology()
        verdict = distance(topology, "0000:03:00.0", "0000:04:00.0")
        assert verdict.ok
        assert any("calibration decides" in caution for caution in verdict.cautions) is cautioned


def test_an_absent_device_is_a_reason(tmp_path: Path) -> None:
    topology = machines.one_switch(tmp_path).topology()
    for pair in (("0000:03:00.0", "0000:99:00.0"), ("0000:99:00.0", "0000:03:00.0")):
        verdict = distance(topology, *pair)
        assert (verdict.code, verdict.kernel_distance) == ("absent", -1)
        assert "0000:99:00.0" in verdict.reason


REFUSED = "EINVAL"
RECORDED = {
    # Linux 7.2.12 in QEMU, -cpu Nehalem: an O_DIRECT read of each drive into 4 KiB of each provider's memory.
    "0000:00:06.0": (0, REFUSED, REFUSED, REFUSED, REFUSED, REFUSED),
    "0000:03:00.0": (REFUSED, 0, 4, 4, REFUSED, REFUSED),
    "0000:04:00.0": (REFUSED, 4, 0, 4, REFUSED, REFUSED),
    "0000:06:00.0": (REFUSED, REFUSED, REFUSED, REFUSED, 0, REFUSED),
}
RECORDED_TRUSTED = {
    # The same with an AMD CPU of family 23 and an IOMMU, so that the root ports' ACS redirects: every read went well.
    "0000:00:06.0": (0, 5, 5, 5, 3, 3),
    "0000:03:00.0": (5, 0, 4, 4, 6, 6),
    "0000:04:00.0": (5, 4, 0, 4, 6, 6),
    "0000:06:00.0": (3, 6, 6, 6, 0, 4),
}


@pytest.mark.parametrize(
    ("cpuinfo", "acs", "recorded"),
    [(machines.XEON, 0, RECORDED), (machines.AMD_ZEN, machines.REDIRECT, RECORDED_TRUSTED)],
)
def test_what_a_kernel_did_on_the_same_tree(
    tmp_path: Path, cpuinfo: str, acs: int, recorded: dict[str, tuple[int | str, ...]]
) -> None:
    """The kernel says yes or no; the numbers beside its yes are the hops counted by hand."""
    machine = machines.Machine(tmp_path, cpuinfo)
    machine.nvme("0000:00:06.0", machine.host("pci0000:00"), 0, cmb=64 * machines.MIB)
    for port in ("0000:00:10.0", "0000:00:11.0", "0000:00:12.0"):
        machine.root_port(port, "pci0000:00", (0x1B36, 0x000C), acs=acs)
    ports = machine.switch("0000:00:10.0", 1, 3, None)
    for number, (bdf, under, cmb) in enumerate(
        (
            ("0000:03:00.0", ports[0], 64),
            ("0000:04:00.0", ports[1], 64),
            ("0000:05:00.0", ports[2], 0),
            ("0000:06:00.0", "0000:00:11.0", 64),
            ("0000:07:00.0", "0000:00:12.0", 0),
        ),
        1,
    ):
        machine.nvme(bdf, under, number, cmb=cmb * machines.MIB)
    topology = machine.topology()
    drives = [bdf for bdf, device in topology.devices.items() if device.is_nvme]
    for provider, answers in recorded.items():
        for client, answer in zip(drives, answers, strict=True):
            assert distance(topology, provider, client).kernel_distance == (-1 if answer == REFUSED else answer)


@st.composite
def trees(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """For each new bridge its parent (0: the root bus), for each drive its bridge, and whether the CPU is trusted."""
    bridges = tuple(draw(st.integers(0, at)) for at in range(draw(st.integers(1, 8))))
    drives = tuple(draw(st.lists(st.integers(1, len(bridges)), min_size=2, max_size=4)))
    return bridges, drives, draw(st.booleans())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees(), redirecting=st.sets(st.integers(1, 8), max_size=2))
def test_any_tree(
    tmp_path_factory: pytest.TempPathFactory, tree: tuple[tuple[int, ...], tuple[int, ...], bool], redirecting: set[int]
) -> None:
    """Symmetric in cost and verdict; a refusal is one way or both; the cost is that of the plain algorithm."""
    bridges, drives, trusted = tree
    machine = machines.Machine(tmp_path_factory.mktemp("tree"), machines.AMD_ZEN if trusted else machines.XEON)
    bus = machine.host("pci0000:00")
    names = [bus]
    for number, parent in enumerate(bridges, 1):
        acs = machines.REDIRECT if number in redirecting else None
        bdf = f"0000:00:{number:02x}.0" if parent == 0 else f"0000:{0x10 + number:02x}:00.0"
        names.append(machine.device(bdf, names[parent], acs=acs))
    found = [machine.nvme(f"0000:{0x40 + number:02x}:00.0", names[at], number) for number, at in enumerate(drives)]
    topology = machine.topology()
    for one in found:
        for other in found:
            there, back = distance(topology, one, other), distance(topology, other, one)
            assert (there.ok, there.cost, there.map_type) == (back.ok, back.cost, back.map_type)
            assert there == plain(topology, there)
            assert (there.cost == 0) is (one == other)


def plain(topology: Topology, verdict: Verdict) -> Verdict:
    """Ok, cost and map type by the kernel's loops written down as they are, for comparison; the words are copied."""

    def redirects_at(bdf: str) -> bool:
        acs = topology.devices[bdf].acs
        return acs is not None and acs.redirects

    redirects: list[str] = []
    mine, theirs = topology.devices[verdict.provider].path, topology.devices[verdict.client].path
    dist_a, common = 0, None
    while dist_a < len(mine) and common is None:
        if redirects_at(mine[dist_a]):
            redirects.append(mine[dist_a])
        if mine[dist_a] in theirs:
            common = mine[dist_a]
        else:
            dist_a += 1
    if common is None:
        cost, kind = len(mine) + len(theirs), "host-bridge"
        redirects = []
    else:
        cost = dist_a + theirs.index(common)
        redirects += [bdf for bdf in theirs[: theirs.index(common)] if redirects_at(bdf)]
        kind = "host-bridge" if redirects else "same-device" if cost == 0 else "bus-address"
    ok = kind != "host-bridge" or topology.cpu.passes_peer_to_peer
    return Verdict(
        verdict.provider,
        verdict.client,
        ok,
        cost,
        kind if ok else "none",  # type: ignore[arg-type]
        verdict.code,
        verdict.reason,
        verdict.remedy,
        tuple(redirects),
        verdict.cautions,
        verdict.certain,
    )
