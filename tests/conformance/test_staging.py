"""Data rests in pools: what is staged where, by which policy, what is refused, and what is shown of it."""

from __future__ import annotations

import struct

import pytest

from tests.conformance.conftest import MakeDaemon
from tests.support import nvme
from tests.support.daemon import RpcError, Tree, eventually, free_port
from tests.support.initiator import Host
from tests.support.staging import BLOCK, KIB, PROVIDER, Rig, bytes_of, fill, memory, read, write
from tests.unit.p2p.machines import MIB, Machine

COPY_ONE = 0x19


# -- what is staged where ----------------------------------------------------------------------------------------------


def test_named_and_strict(rig: Rig) -> None:
    """Every byte of reads and writes rests in the pool, and what comes back is what was written."""
    path = rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn, nsid=1)
    assert (rig.path()["state"], rig.path()["read"], rig.path()["policy_of"]) == ("pool", PROVIDER, "namespace")
    io = rig.tree.started().io()
    written = 0
    for number, size in enumerate((512, 4096, 12 * KIB, 128 * KIB, 7 * 512, 64 * KIB)):
        data = bytes_of(number, size)
        write(io, 256 * number, data)
        assert read(io, 256 * number, size) == data
        assert path.read_bytes()[256 * number * BLOCK :][:size] == data
        written += size
    use = rig.used(PROVIDER)
    assert (use["read_bytes"], use["write_bytes"], use["read_ops"]) == (written, written, 6)
    assert rig.used("host")["read_bytes"] == rig.used("host")["write_bytes"] == 0
    assert rig.shown()["fallbacks"] == rig.shown()["interrupted"] == 0
    pool = rig.pool(PROVIDER)
    assert (pool["kind"], pool["bytes"], pool["lost"], pool["allowed"]) == ("p2pmem", 8 * MIB, False, ["f0"])
    assert pool["calibrations"]["f0"]["verified"]


def test_auto_decides_by_what_it_has_measured_and_says_so(rig: Rig) -> None:
    rig.add()
    eventually(lambda: rig.shown()["paths"] and rig.path()["copy"] == PROVIDER, "it is measured")
    path = rig.path()
    assert path["policy_of"] == "default"
    assert "of the speed of host memory" in path["reason"]
    assert path["cost"] == 4
    assert path["drives"] == [{"bdf": "0000:04:00.0", "how": "nvme1n1"}]
    io = rig.tree.started().io()
    data = bytes_of(1, 64 * KIB)
    write(io, 0, data)
    assert read(io, 0, len(data)) == data
    for direction in ("read", "write"):
        assert rig.used(path[direction] or "host")[f"{direction}_bytes"] == len(data)


def test_copy_by_way_of_the_pool(rig: Rig) -> None:
    """From one namespace to another, by no network: files on one file system may share their blocks instead."""
    rig.add(content=bytes_of(3, 256 * KIB))
    target = rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn)
    io = rig.tree.started().io()
    descriptor = struct.pack("<8xQH14x", 0, 127)
    assert io.command(COPY_ONE, nsid=1, cdw=(1024, 0, 0), out=descriptor).status == nvme.OK
    assert read(io, 1024, 64 * KIB) == bytes_of(3, 256 * KIB)[: 64 * KIB]
    shown = rig.shown()
    routes = {route: count for route, count in shown["copy_routes"].items() if count}
    assert sum(routes.values()) == 64 * KIB
    assert set(routes) <= {"pool", "reflink"}
    assert rig.used("host")["copy_bytes"] == 0
    assert target.stat().st_size == 4 * MIB


def test_what_a_listener_says_counts_for_those_who_come_by_it(rig: Rig) -> None:

    rig.add()
    second = ("127.0.0.1", free_port())
    rig.tree.listen(second)
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn)
    rig.set("off", nqn=rig.tree.nqn, listen_address=Tree.listen_address(second))
    data = bytes_of(1, 4096)
    write(rig.tree.started().io(), 0, data)
    assert rig.used(PROVIDER)["write_bytes"] == 4096
    write(rig.tree.started(address=second).io(), 0, data)
    assert rig.used(PROVIDER)["write_bytes"] == 4096
    assert rig.used("host")["write_bytes"] == 4096
    states = {path["listen_address"]["trsvcid"]: (path["state"], path["policy_of"]) for path in rig.shown()["paths"]}
    assert states == {str(rig.tree.address[1]): ("pool", "subsystem"), str(second[1]): ("host", "listener")}


def test_a_change_of_policy_under_io(rig: Rig) -> None:
    """No command fails or is lost while the namespace moves to a pool and back."""
    rig.add()
    rig.set("off")
    io = rig.tree.started().io()
    for number in range(6):
        policy = PROVIDER if number % 2 else "off"
        cids = [
            (lba, io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=(lba, 0, 7)), out=bytes_of(number * 100 + lba, 4096)))
            for lba in range(0, 128, 8)
        ]
        rig.set(policy)
        for lba, cid in cids:
            assert io.wait(cid).status == nvme.OK
            assert read(io, lba, 4096) == bytes_of(number * 100 + lba, 4096)
    assert rig.used(PROVIDER)["write_bytes"] + rig.used("host")["write_bytes"] == 6 * 16 * 4096
    assert rig.used(PROVIDER)["read_bytes"] == 3 * 16 * 4096


def test_a_small_pool_is_shared_and_the_rest_goes_by_host_memory(rig: Rig, machine: Machine) -> None:
    fill(machine, 256 * KIB)
    rig.add()
    rig.set(PROVIDER, nqn=rig.tree.nqn)
    io = rig.tree.started().io()
    size = 128 * KIB
    cids = [
        io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=(lba * 256, 0, 255)), out=bytes_of(lba, size)) for lba in range(16)
    ]
    assert [io.wait(cid).status for cid in cids] == [nvme.OK] * 16
    for lba in range(16):
        assert read(io, lba * 256, size) == bytes_of(lba, size)
    pool, host = rig.used(PROVIDER), rig.used("host")
    assert pool["write_bytes"] + host["write_bytes"] == 16 * size
    assert pool["write_bytes"] > 0
    assert rig.shown()["fallbacks"] >= host["write_ops"] > 0


def test_strict_waits_for_a_small_pool(rig: Rig, machine: Machine) -> None:
    fill(machine, 256 * KIB)
    rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn)
    io = rig.tree.started().io()
    size = 128 * KIB
    cids = [
        io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=(lba * 256, 0, 255)), out=bytes_of(lba, size)) for lba in range(16)
    ]
    assert [io.wait(cid).status for cid in cids] == [nvme.OK] * 16
    for lba in range(16):
        assert read(io, lba * 256, size) == bytes_of(lba, size)
    assert rig.used(PROVIDER)["write_bytes"] == rig.used(PROVIDER)["read_bytes"] == 16 * size
    assert rig.used("host")["write_bytes"] == rig.shown()["fallbacks"] == 0


def test_a_second_host_never_sees_the_first_ones_bytes(rig: Rig, machine: Machine) -> None:
    """Two hosts and one small pool: what the one has left in it is wiped before the other reads through it."""
    fill(machine, 256 * KIB)
    rig.add(size=8 * MIB)
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn)
    first = rig.tree.started(hostnqn="nqn.2026-11.com.example:first").io()
    second = rig.tree.started(hostnqn="nqn.2026-11.com.example:second").io()
    secret = b"\xc5" * (128 * KIB)
    before = rig.pool(PROVIDER)["wiped_bytes"]
    for lba in range(0, 4096, 256):
        write(first, lba, secret)
    for lba in range(4096, 16384, 256):
        assert read(second, lba, 128 * KIB) == bytes(128 * KIB)
    assert rig.pool(PROVIDER)["wiped_bytes"] > before
    assert rig.used("host")["read_bytes"] == 0


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_strict_is_refused_with_reason_and_remedy(rig: Rig, machine: Machine) -> None:
    rig.add()
    saved = rig.daemon.rpc("save_config")
    for code, text, params in (
        (-19, "no such device", {"policy": "0000:77:00.0"}),
        (-19, "0000:04:00.0", {"policy": "0000:04:00.0"}),
        (-19, "neither a PCI address", {"policy": "nobody"}),
        (-32602, "strict says nothing", {"policy": "off"}),
    ):
        with pytest.raises(RpcError) as caught:
            rig.set(mode="strict", nqn=rig.tree.nqn, **params)
        assert (caught.value.code, text in caught.value.message) == (code, True), caught.value
    fill(machine, 128 * KIB)
    with pytest.raises(RpcError, match="less than one transfer of 131072"):
        rig.set(PROVIDER, "strict", nqn=rig.tree.nqn)
    memory(machine).rename(memory(machine).with_name("was"))
    eventually(lambda: not any(entry["usable"] for entry in rig.daemon.rpc("p2p_get_providers")), "it has left")
    with pytest.raises(RpcError):
        rig.set(PROVIDER, "strict", nqn=rig.tree.nqn)
    assert rig.daemon.rpc("save_config") == saved
    assert rig.tree.started().io().read(0, 1, BLOCK).status == nvme.OK


def test_the_in_process_engine_refuses(engine: str, make_daemon: MakeDaemon, machine: Machine) -> None:
    if engine != "inprocess":
        pytest.skip("the native data plane has pools")
    rig = Rig(make_daemon("--sysfs-root", str(machine.root)))
    rig.add()
    for call, params in (
        ("p2p_set_staging", {"policy": "auto", "mode": "strict"}),
        ("p2p_set_staging", {"policy": PROVIDER, "mode": "strict", "nqn": rig.tree.nqn, "nsid": 1}),
        ("p2p_emulated_pool_create", {"name": "pretend", "bytes": MIB}),
        ("bdev_cmb_create", {"name": "c", "provider": PROVIDER, "num_blocks": 8}),
        ("p2p_calibrate", {}),
    ):
        with pytest.raises(RpcError, match="native") as caught:
            rig.daemon.rpc(call, **params)
        assert caught.value.code == -95
    rig.set(PROVIDER)
    path = rig.path()
    assert (path["state"], path["read"]) == ("degraded", None)
    assert "host memory alone" in path["reason"]
    assert rig.daemon.rpc("p2p_get_pools") == []
    assert rig.daemon.rpc("p2p_get_map")["providers"][0]["usable"]
    assert rig.daemon.rpc("p2p_doctor")["ok"] is False
    assert rig.tree.started().io().read(0, 1, BLOCK).status == nvme.OK


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_what_the_machine_offers(rig: Rig) -> None:
    rig.add()
    rig.set(PROVIDER, nqn=rig.tree.nqn)
    providers = {entry["bdf"]: entry for entry in rig.daemon.rpc("p2p_get_providers")}
    assert providers[PROVIDER]["usable"]
    assert providers[PROVIDER]["mapped"] == 8 * MIB
    assert not providers["0000:04:00.0"]["usable"]
    assert providers["0000:04:00.0"]["reason"]
    document = rig.daemon.rpc("p2p_get_map")
    assert [entry["choice"]["read"] for entry in document["namespaces"]] == [PROVIDER]
    assert [pool["name"] for pool in document["pools"]] == [PROVIDER]
    found = rig.daemon.rpc("p2p_explain", provider="03:00.0", client="0000:04:00.0")
    assert (found["reachable"], found["cost"]) == (True, 4)
    assert found["verdicts"][0]["map_type"] == "bus-address"
    found = rig.daemon.rpc("p2p_explain", provider=PROVIDER, nqn=rig.tree.nqn, nsid=1)
    assert (found["reachable"], found["cost"], found["paths"][0]["read"]) == (True, 4, PROVIDER)
    for params in ({"provider": "x", "client": PROVIDER}, {"provider": PROVIDER}, {"provider": PROVIDER, "nsid": 1}):
        with pytest.raises(RpcError) as caught:
            rig.daemon.rpc("p2p_explain", **params)
        assert caught.value.code == -32602
    for params in ({"nqn": "nqn.2026-11.com.example:none"}, {"nqn": rig.tree.nqn, "nsid": 9}):
        with pytest.raises(RpcError) as caught:
            rig.daemon.rpc("p2p_get_staging", **params)
        assert caught.value.code == -32602


def test_metrics(native: None, make_daemon: MakeDaemon, machine: Machine) -> None:
    import urllib.request

    port = free_port()
    rig = Rig(make_daemon("--sysfs-root", str(machine.root), "--metrics-listen", f"127.0.0.1:{port}"))
    rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn)
    write(rig.tree.started().io(), 0, bytes_of(1, 8192))
    labels = f'direction="write",kind="p2pmem",nqn="{rig.tree.nqn}",nsid="1",pool="{PROVIDER}"'

    def exposed() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            text = answer.read().decode()
        return f"nvmet_p2p_staged_bytes_total{{{labels}}} 8192.0" in text and (
            f'nvmet_p2p_pool_lost{{kind="p2pmem",pool="{PROVIDER}"}} 0.0' in text
        )

    eventually(exposed, "the counters are shown")


def test_host_is_unused(rig: Rig) -> None:
    """A host that is only connected holds nothing of a pool."""
    rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn)
    host: Host = rig.tree.started()
    host.io()
    pool = rig.pool(PROVIDER)
    assert pool["free"] == pool["bytes"] - 4096
