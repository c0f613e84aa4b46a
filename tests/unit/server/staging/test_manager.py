"""Where data comes to rest: what is chosen, made, proven, allowed and given back, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.choice import Calibration
from nvmet_p2p.server.staging.plan import Surveyor
from nvmet_p2p.state.render import address_params
from nvmet_p2p.target.config import BdevConfig, BdevFacts, ListenAddress, TargetConfig
from nvmet_p2p.target.effects import Placement
from tests.unit.p2p.machines import MIB, XEON, Machine, bare, chassis, one_switch
from tests.unit.server.staging.rig import ADDRESS, FAST, NQN, FakePools, Rig

PROVIDER = "0000:03:00.0"  # of one_switch
FREE = 64 * MIB - 16 * 4096
SLOW = dataclasses.replace(FAST, cpu_read_mib_s=20, drive_to_pool_mib_s=900)
WRONG = Calibration(verified=False, reason="drive to pool: 4096 of 1048576 bytes arrived wrong")
Make = Callable[..., Rig]


def told(rig: Rig, word: str) -> list[str]:
    assert rig.pools is not None
    return rig.pools.told(word)


async def test_auto_takes_the_provider_that_is_as_fast(rig: Rig) -> None:
    async with rig.running():
        assert rig.pools is not None
        assert rig.pools.log == [f"create {PROVIDER} {FREE}", f"calibrate {PROVIDER} b1", f"allow {PROVIDER} b1"]
        assert rig.placement() == Placement(PROVIDER, PROVIDER, PROVIDER, strict=False)
        decision = rig.decision()
        assert (decision.choice.cost, decision.want.effective.level) == (4, "default")
        assert "1.00 of the speed" in decision.choice.reason


async def test_auto_reads_from_host_memory_where_the_cpu_reads_slowly(rig: Rig) -> None:
    assert rig.pools is not None
    rig.pools.results[PROVIDER, "b1"] = SLOW
    async with rig.running():
        assert rig.placement() == Placement("", PROVIDER, PROVIDER)


async def test_a_named_pool_serves_both_directions_whatever_its_speed(rig: Rig) -> None:
    assert rig.pools is not None
    rig.pools.results[PROVIDER, "b1"] = SLOW
    rig.do("p2p_set_staging", nqn=NQN, nsid=1, policy="03:00.0")
    async with rig.running():
        assert rig.placement() == Placement(PROVIDER, PROVIDER, PROVIDER)
        assert rig.decision().want.effective.level == "namespace"


async def test_off_makes_no_pool(rig: Rig) -> None:
    rig.do("p2p_set_staging", policy="off")
    async with rig.running():
        assert told(rig, "create") == []
        assert rig.placed == {}
        rig.do("p2p_set_staging", policy="inherit")
        await rig.settle()
        assert rig.placement().write == PROVIDER
        rig.do("p2p_set_staging", policy="off")
        await rig.settle()
        assert told(rig, "delete") == [PROVIDER], "nothing uses it any more"


async def test_the_setting_counts_where_nothing_was_set(tmp_path: Path) -> None:
    rig = Rig(one_switch(tmp_path / "sys"), tmp_path, pools=FakePools(), staging="off")
    rig.subsystem()
    rig.drive("b1", "nvme1n1")
    async with rig.running():
        assert rig.placed == {}
        assert rig.decision().want.effective.level == "default"
        rig.do("p2p_set_staging", nqn=NQN, policy="auto")
        await rig.settle()
        assert rig.placement().write == PROVIDER


async def test_no_more_than_is_asked_for_of_a_provider(tmp_path: Path) -> None:
    rig = Rig(one_switch(tmp_path / "sys"), tmp_path, pools=FakePools(), cmb_mib=8)
    rig.subsystem()
    rig.drive("b1", "nvme1n1")
    async with rig.running():
        assert told(rig, "create") == [f"{PROVIDER} {8 * MIB}"]


async def test_memory_in_pieces(rig: Rig) -> None:
    """The kernel gives one piece or none: less is asked for, until there is one."""
    assert rig.pools is not None
    rig.pools.room[PROVIDER] = 20 * MIB
    async with rig.running():
        sizes = [int(line.split()[1]) for line in told(rig, "create")]
        assert sizes[0] == FREE
        assert all(later <= earlier // 2 for earlier, later in itertools.pairwise(sizes))
        assert MIB <= sizes[-1] <= 20 * MIB
        assert rig.placement().write == PROVIDER


async def test_data_that_arrives_wrong_refuses_the_pool(rig: Rig) -> None:
    assert rig.pools is not None
    rig.pools.results[PROVIDER, "b1"] = WRONG
    async with rig.running():
        assert rig.placed == {}
        assert "arrived wrong" in rig.decision().choice.reason
        assert not rig.pools.allowed
        assert told(rig, "delete") == [PROVIDER]
        count = len(told(rig, "calibrate"))
        rig.manager.wake()
        await rig.settle()
        assert len(told(rig, "calibrate")) == count == 1, "it is known for this boot"
        rig.pools.results.clear()
        assert [result.verified for _, _, result in await rig.manager.calibrate(PROVIDER, "b1")] == [True]
        await rig.settle()
        assert rig.placement().write == PROVIDER


async def test_what_is_known_of_this_boot_is_not_measured_again(rig: Rig, tmp_path: Path) -> None:
    async with rig.running():
        pass
    again = Rig(rig.machine, tmp_path, pools=FakePools())
    again.config, again.facts = rig.config, rig.facts
    async with again.running():
        assert told(again, "calibrate") == []
        assert again.placement().write == PROVIDER
    memory = rig.machine.places[PROVIDER] / "p2pmem"
    (memory / "allocate").rename(memory / "was")
    (memory / "allocate").touch()
    bound_anew = Rig(rig.machine, tmp_path, pools=FakePools())
    bound_anew.config, bound_anew.facts = rig.config, rig.facts
    async with bound_anew.running():
        assert told(bound_anew, "calibrate") == [f"{PROVIDER} b1"]


async def test_served_from_host_memory_while_it_is_measured(rig: Rig) -> None:
    assert rig.pools is not None
    rig.pools.gate.clear()
    await rig.manager.start()
    task = asyncio.create_task(rig.manager.work())
    while not told(rig, "calibrate"):  # noqa: ASYNC110 - the fake has no event for it
        await asyncio.sleep(0)
    assert rig.placed == {}
    assert not await rig.manager.settled(0.0)
    rig.pools.gate.set()
    await rig.settle()
    assert rig.placement().write == PROVIDER
    rig.manager.stop()
    task.cancel()


async def test_a_back_end_that_comes_later(rig: Rig) -> None:
    del rig.facts["b1"]
    async with rig.running():
        assert rig.placed == {}
        assert "absent" in rig.decision().choice.reason
        rig.facts["b1"] = BdevFacts(name="b1", block_size=512, num_blocks=2048)
        rig.manager.wake()
        await rig.settle()
        assert rig.placement().write == PROVIDER


async def test_layers_use_what_their_base_may(rig: Rig) -> None:
    assert rig.pools is not None
    (rig.folder / "b2.img").write_bytes(bytes(MIB))
    rig.do("bdev_uring_create", name="b2", filename=str(rig.folder / "b2.img"))
    rig.do("bdev_error_create", base_name="b2")
    for name in ("b2", "EE_b2"):
        rig.facts[name] = BdevFacts(name=name, block_size=512, num_blocks=2048)
    rig.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "EE_b2"})
    async with rig.running():
        assert (PROVIDER, "b2") in rig.pools.allowed
        assert rig.placement(2).write == PROVIDER


async def test_two_bdevs_on_one_file_are_not_probed(rig: Rig) -> None:
    """A probe keeps the hosts of one bdev waiting, not those of the other."""
    rig.do("bdev_aio_create", name="again", filename=str(rig.folder / "b1.img"))
    async with rig.running():
        assert rig.placed == {}
        assert "'again' lies on the same blocks" in rig.decision().choice.reason
        assert told(rig, "calibrate") == []
        rig.do("bdev_aio_delete", name="again")
        await rig.settle()
        assert rig.placement().write == PROVIDER


async def test_a_write_protected_namespace_is_not_probed(rig: Rig) -> None:
    """A probe writes; what was measured before the protection came stays good."""
    subsystem = rig.config.subsystems[NQN]

    def protect(state: bool) -> None:
        namespace = msgspec.structs.replace(subsystem.namespaces[1], write_protected=state)
        changed = msgspec.structs.replace(subsystem, namespaces={**subsystem.namespaces, 1: namespace})
        rig.config = msgspec.structs.replace(rig.config, subsystems={**rig.config.subsystems, NQN: changed})
        rig.manager.wake()

    protect(True)
    async with rig.running():
        assert rig.placed == {}
        assert "write protected" in rig.decision().choice.reason
        assert told(rig, "calibrate") == []
        for state in (False, True):
            protect(state)
            await rig.settle()
            assert rig.placement().write == PROVIDER
        assert len(told(rig, "calibrate")) == 1


async def test_memory_is_not_staged(rig: Rig) -> None:
    rig.do("bdev_malloc_create", name="m", num_blocks=8, block_size=512)
    rig.facts["m"] = BdevFacts(name="m", block_size=512, num_blocks=8)
    rig.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m"})
    async with rig.running():
        assert rig.placement(2) == Placement()
        assert "is memory" in rig.decision(2).choice.reason
        with pytest.raises(OperatorError, match="is memory") as caught:
            await rig.commit("p2p_set_staging", nqn=NQN, nsid=2, policy="auto", mode="strict")
        assert caught.value.code == -errno.ENOTSUP
        await rig.commit("p2p_set_staging", nqn=NQN, policy="auto", mode="strict")


async def test_equal_providers_share_the_namespaces_and_always_in_the_same_way(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "sys", XEON)
    machine.root_port("0000:00:1c.0", machine.host("pci0000:00"))
    ports = machine.switch("0000:00:1c.0", 1, 4, 0)
    providers = [machine.nvme(f"0000:{3 + n:02x}:00.0", ports[n], n, cmb=64 * MIB) for n in range(3)]
    machine.nvme("0000:06:00.0", ports[3], 3)
    rig = Rig(machine, tmp_path, pools=FakePools())
    rig.subsystem()
    for nsid in range(1, 5):
        rig.drive(f"b{nsid}", "nvme3n1", nsid=nsid)
    async with rig.running():
        used = [rig.placement(nsid).write for nsid in range(1, 5)]
        assert used == [*providers, providers[0]]
        choice = rig.decision(1).choice
        assert (choice.runner_up, choice.cost) == (providers[1], 4)
        assert "equal in all" in choice.rejected[providers[1]]
        assert len(told(rig, "calibrate")) == 4, "only what is used is measured"
        before = [decision.choice for decision in rig.manager.decisions.values()]
        rig.manager.wake()
        await rig.settle()
        assert [decision.choice for decision in rig.manager.decisions.values()] == before


async def test_a_drives_own_memory_is_nearest(tmp_path: Path) -> None:
    rig = Rig(chassis(tmp_path / "sys", drives=3, per_switch=3), tmp_path, pools=FakePools())
    rig.subsystem()
    rig.drive("b", "nvme2n1")
    async with rig.running():
        choice = rig.decision().choice
        assert (choice.write, choice.cost, choice.runner_up) == ("0000:14:00.0", 0, "0000:12:00.0")
        assert "farther: 4 to 0" in choice.rejected["0000:12:00.0"]


# -- strict ------------------------------------------------------------------------------------------------------------


async def refused(rig: Rig, code: int, text: str, **params: object) -> None:
    before = rig.config
    with pytest.raises(OperatorError) as caught:
        await rig.commit("p2p_set_staging", mode="strict", **params)
    assert (caught.value.code, text in caught.value.message) == (-code, True), caught.value
    assert rig.config is before


async def test_strict_is_in_force_when_it_is_answered(rig: Rig) -> None:
    rig.do("p2p_set_staging", policy="off")
    async with rig.running():
        await rig.commit("p2p_set_staging", nqn=NQN, nsid=1, policy=PROVIDER, mode="strict")
        assert rig.placement() == Placement(PROVIDER, PROVIDER, PROVIDER, strict=True)
        await rig.settle()
        assert rig.placement() == Placement(PROVIDER, PROVIDER, PROVIDER, strict=True)
        assert told(rig, "delete") == []


async def test_a_new_namespace_under_a_strict_policy(rig: Rig) -> None:
    """It is placed before the first host can see it; one that cannot be placed is not added."""
    assert rig.pools is not None
    async with rig.running():
        await rig.commit("p2p_set_staging", policy=PROVIDER, mode="strict")
        for name in ("b2", "b3"):
            (rig.folder / f"{name}.img").write_bytes(bytes(MIB))
            await rig.commit("bdev_uring_create", name=name, filename=str(rig.folder / f"{name}.img"))
            rig.facts[name] = BdevFacts(name=name, block_size=512, num_blocks=2048)
        await rig.commit("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "b2"})
        assert rig.placement(2) == Placement(PROVIDER, PROVIDER, PROVIDER, strict=True)
        rig.pools.results[PROVIDER, "b3"] = WRONG
        with pytest.raises(OperatorError, match=r"namespace 3 of .*arrived wrong"):
            await rig.commit("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "b3"})
        assert set(rig.config.subsystems[NQN].namespaces) == {1, 2}


async def test_strict_refusals(rig: Rig) -> None:
    assert rig.pools is not None
    async with rig.running():
        await refused(rig, errno.ENODEV, "no such device", policy="0000:99:00.0")
        await refused(rig, errno.ENODEV, "no Controller Memory Buffer", nqn=NQN, policy="0000:04:00.0")
        rig.pools.results[PROVIDER, "b1"] = WRONG
        await rig.manager.calibrate(PROVIDER, "b1")
        await refused(rig, errno.EINVAL, "arrived wrong", nqn=NQN, nsid=1, policy=PROVIDER)
        await refused(rig, errno.ENODEV, "arrived wrong", nqn=NQN, nsid=1, policy="auto")
        rig.pools.results.clear()
        await rig.manager.calibrate(PROVIDER, "b1")
        rig.do("bdev_uring_delete", name="b1")
        rig.drive("b1", "nvme1n1", opened=False)
        del rig.facts["b1"]
        rig.pools.allowed.clear()  # with the bdev
        await rig.settle()
        await refused(rig, errno.EINVAL, "absent", nqn=NQN, nsid=1, policy=PROVIDER)


async def test_strict_needs_room_for_one_transfer(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "sys", XEON)
    machine.root_port("0000:00:1c.0", machine.host("pci0000:00"))
    ports = machine.switch("0000:00:1c.0", 1, 2, 0)
    machine.nvme(PROVIDER, ports[0], 0, cmb=2 * MIB, available=128 * 1024)
    machine.nvme("0000:04:00.0", ports[1], 1)
    rig = Rig(machine, tmp_path, pools=FakePools())
    rig.subsystem()
    rig.drive("b1", "nvme1n1")
    async with rig.running():
        assert rig.placement().write == PROVIDER, "prefer takes it for what fits"
        await refused(rig, errno.EINVAL, "less than one transfer of 131072", nqn=NQN, policy=PROVIDER)


async def test_strict_and_a_drive_that_cannot_reach_it(tmp_path: Path) -> None:
    rig = Rig(one_switch(tmp_path / "sys", acs=0x1D), tmp_path, pools=FakePools())
    rig.subsystem()
    rig.drive("b1", "nvme1n1")
    async with rig.running():
        assert "ACS" in rig.decision().choice.reason
        await refused(rig, errno.EHOSTUNREACH, "ACS", nqn=NQN, nsid=1, policy=PROVIDER)
        assert told(rig, "create") == [], "no pool for what nobody reaches"


async def test_a_file_that_is_on_no_drive(rig: Rig) -> None:
    machine_disk = rig.machine.stacked("dm-0", "nvme1n1")
    rig.machine.write(machine_disk / "dm", name="vg-data")
    rig.number((rig.folder / "b1.img").stat().st_dev, "dm-0")
    async with rig.running():
        assert rig.placed == {}
        await refused(rig, errno.ENOTSUP, "device mapper", nqn=NQN, nsid=1, policy=PROVIDER)


async def test_without_pools_in_the_data_plane(tmp_path: Path) -> None:
    rig = Rig(one_switch(tmp_path / "sys"), tmp_path)
    rig.subsystem()
    rig.drive("b1", "nvme1n1")
    rig.do("p2p_set_staging", nqn=NQN, nsid=1, policy=PROVIDER)
    async with rig.running():
        assert rig.decision().degraded
        assert "host memory alone" in rig.decision().choice.reason
        await refused(rig, errno.ENOTSUP, "host memory alone", policy="auto")
        with pytest.raises(OperatorError, match="host memory alone"):
            await rig.commit("p2p_emulated_pool_create", name="pretend", bytes=MIB)
        with pytest.raises(OperatorError, match="host memory alone"):
            await rig.manager.calibrate(None, None)


async def test_rdma_listeners_have_host_memory(rig: Rig) -> None:
    """The RDMA device does the DMA there, and it knows nothing of a pool: never silently, strict is refused."""
    address = ListenAddress(trtype="RDMA", adrfam="IPv4", traddr="192.0.2.1", trsvcid="4420")
    rig.do("nvmf_create_transport", trtype="RDMA")
    rig.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=address_params(address))
    async with rig.running():
        assert rig.placement().write == PROVIDER
        assert (1, address) not in rig.placed[NQN]
        assert "cannot be registered with RDMA devices" in rig.decision(address=address).choice.reason
        await refused(rig, errno.EINVAL, "cannot be registered with RDMA devices", nqn=NQN, nsid=1, policy=PROVIDER)


async def test_a_machine_without_any_provider(tmp_path: Path) -> None:
    rig = Rig(bare(tmp_path / "sys"), tmp_path, pools=FakePools())
    rig.subsystem()
    (tmp_path / "b.img").write_bytes(bytes(MIB))
    rig.do("bdev_uring_create", name="b", filename=str(tmp_path / "b.img"))
    rig.facts["b"] = BdevFacts(name="b", block_size=512, num_blocks=2048)
    rig.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "b"})
    async with rig.running():
        assert "no device offers peer memory" in rig.decision().choice.reason
        assert not rig.decision().degraded
        await refused(rig, errno.ENODEV, "no such device", policy=PROVIDER)
        await refused(rig, errno.ENODEV, "no device offers", nqn=NQN, nsid=1, policy="auto")


# -- emulated pools and cmb bdevs --------------------------------------------------------------------------------------


async def test_emulated_pools_are_used_only_by_name(tmp_path: Path) -> None:
    rig = Rig(bare(tmp_path / "sys"), tmp_path, pools=FakePools())
    rig.subsystem()
    (tmp_path / "b.img").write_bytes(bytes(MIB))
    rig.do("bdev_uring_create", name="b", filename=str(tmp_path / "b.img"))
    rig.facts["b"] = BdevFacts(name="b", block_size=512, num_blocks=2048)
    rig.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "b"})
    rig.do("p2p_emulated_pool_create", name="pretend", bytes=MIB)
    async with rig.running():
        assert told(rig, "create") == []
        await rig.commit("p2p_set_staging", policy="pretend", mode="strict")
        assert rig.placement() == Placement("pretend", "pretend", "pretend", strict=True)
        assert "EMULATED" in rig.decision().choice.reason
        await rig.commit("p2p_set_staging", policy="inherit")
        await rig.commit("p2p_emulated_pool_delete", name="pretend")
        await rig.settle()
        assert told(rig, "delete") == ["pretend"]
        assert rig.placed == {}


async def test_the_pool_of_a_cmb_bdev_stays(rig: Rig) -> None:
    rig.do("p2p_set_staging", policy="off")
    async with rig.running():
        rig.do("bdev_cmb_create", name="c0", provider=PROVIDER, num_blocks=16)
        await rig.manager.provide(rig.config.bdevs["c0"], rig.config)
        rig.manager.release()
        await rig.settle()
        assert told(rig, "create") == [f"{PROVIDER} {FREE}"]
        assert told(rig, "delete") == []
        rig.do("bdev_cmb_delete", name="c0")
        await rig.settle()
        assert told(rig, "delete") == [PROVIDER]
        rig.do("bdev_cmb_create", name="c1", provider="0000:77:00.0", num_blocks=16)
        with pytest.raises(OperatorError, match="no device 0000:77:00") as caught:
            await rig.manager.provide(rig.config.bdevs["c1"], rig.config)
        assert caught.value.code == -errno.ENODEV


async def test_two_listeners_two_policies(rig: Rig) -> None:
    second = {"trtype": "TCP", "traddr": "192.0.2.2", "trsvcid": "4420"}
    rig.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=second)
    rig.do("p2p_set_staging", nqn=NQN, listen_address=second, policy="off")
    async with rig.running():
        assert rig.placement().write == PROVIDER
        other = replace(ADDRESS, traddr=second["traddr"])
        assert (1, other) not in rig.placed[NQN]
        assert rig.decision(address=other).want.effective.level == "listener"


def test_what_a_bdev_lies_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk shares its blocks with each of its partitions, and these with none of the others."""
    machine = one_switch(tmp_path / "sys")
    nodes = ["/dev/nvme1n1", machine.partition("nvme1n1", 1), machine.partition("nvme1n1", 2)]
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: machine.stat(path) if path in nodes else real(path, **more))
    names = ("whole", "one", "two")
    bdevs = {
        name: BdevConfig(name=name, kind="uring", uuid="", filename=node)
        for name, node in zip(names, nodes, strict=True)
    }
    for served, shared in (
        ({"whole"}, ["", "", ""]),
        ({"one", "two"}, ["", "", ""]),
        (set(names), ["one", "whole", "whole"]),
    ):
        surveyor = Surveyor(machine.topology())
        surveyor.wants(TargetConfig(bdevs={name: bdev for name, bdev in bdevs.items() if name in served}), "auto")
        found = [surveyor.backing(bdevs[name]).shared if name in served else "" for name in names]
        assert found == shared
