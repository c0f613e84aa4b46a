"""Data rests in pools: a drive's memory that stands as a file in a made sysfs tree, and emulated ones.

The tests' files are on a drive of that tree by way of their file system's device number; the provider's ``allocate`` is
a file that the data plane maps as it would map a CMB. So everything but the PCI Express below is what it is elsewhere.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from tests.conformance.conftest import MakeDaemon
from tests.support import nvme
from tests.support.daemon import Daemon, RpcError, Tree, eventually
from tests.support.initiator import Host, Queue
from tests.unit.p2p.machines import MIB, Machine, one_switch

PROVIDER = "0000:03:00.0"  # nvme0 of one_switch, whose CMB it is; the tests' files are on nvme1
INTERRUPTED = 0x021
KIB = 1024
BLOCK = 512
COPY_ONE = 0x19


@pytest.fixture
def native(engine: str) -> None:
    """Only the native data plane has pools."""
    if engine != "native":
        pytest.skip("the in-process engine stages in host memory alone")


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Two drives behind one switch; the first one's CMB is a file of 8 MiB."""
    with tempfile.TemporaryDirectory(prefix="nvmetp2p-sys-") as folder:
        number = os.stat(folder).st_dev
        if os.major(number) == 0:
            pytest.skip(f"{folder} is on a file system without a device")
        made = one_switch(Path(folder))
        fill(made, 8 * MIB)
        made.link(f"dev/block/{os.major(number)}:{os.minor(number)}", made.where("nvme1n1"))
        yield made


def memory(machine: Machine) -> Path:
    return machine.places[PROVIDER] / "p2pmem"


def fill(machine: Machine, size: int) -> None:
    """The provider has so many bytes, all of them free, in a file of its own."""
    place = memory(machine)
    new = place / "new"  # each file changes at one moment: the daemon may be looking
    for name in ("size", "available"):
        new.write_text(f"{size}\n")
        new.rename(place / name)
    with new.open("wb") as file:
        file.truncate(size)
    new.rename(place / "allocate")


class Rig:
    """A daemon on that machine, and subsystems whose namespaces are files."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.tree = daemon.subsystem()
        self._names = itertools.count()

    def add(self, size: int = 4 * MIB, content: bytes = b"") -> Path:
        """A namespace on a new file."""
        name = f"f{next(self._names)}"
        path = self.daemon.dir / f"{name}.img"
        path.write_bytes(content)
        os.truncate(path, size)
        self.daemon.rpc("bdev_uring_create", name=name, filename=str(path), block_size=BLOCK)
        self.tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": name})
        return path

    def set(self, policy: str, mode: str = "prefer", **where: Any) -> None:
        self.daemon.rpc("p2p_set_staging", policy=policy, mode=mode, **where)

    def shown(self, nsid: int = 1) -> dict[str, Any]:
        (found,) = self.daemon.rpc("p2p_get_staging", nqn=self.tree.nqn, nsid=nsid)
        assert isinstance(found, dict)
        return found

    def path(self, nsid: int = 1) -> dict[str, Any]:
        """The one listener's policy and choice."""
        (found,) = self.shown(nsid)["paths"]
        assert isinstance(found, dict)
        return found

    def used(self, pool: str, nsid: int = 1) -> dict[str, int]:
        """What of the namespace rested there."""
        for use in self.shown(nsid)["pools"]:
            if use["pool"] == pool:
                return {key: value for key, value in use.items() if isinstance(value, int)}
        return dict.fromkeys(("read_bytes", "write_bytes", "copy_bytes"), 0)

    def pool(self, name: str) -> dict[str, Any]:
        found = {entry["name"]: entry for entry in self.daemon.rpc("p2p_get_pools")}[name]
        assert isinstance(found, dict)
        return found


@pytest.fixture
def rig(native: None, make_daemon: MakeDaemon, machine: Machine) -> Rig:
    return Rig(make_daemon("--sysfs-root", str(machine.root)))


def bytes_of(seed: int, size: int) -> bytes:
    """Some bytes that tell where they belong."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def write(io: Queue, lba: int, data: bytes, nsid: int = 1) -> None:
    """As a host does it: a command that was interrupted is sent again."""
    for _ in range(5):
        done = io.write(lba, len(data) // BLOCK, data, nsid=nsid)
        if done.status != INTERRUPTED:
            break
        assert not done.dnr
    assert done.status == nvme.OK, hex(done.status)


def read(io: Queue, lba: int, size: int, nsid: int = 1) -> bytes:
    for _ in range(5):
        done = io.read(lba, size // BLOCK, size, nsid=nsid)
        if done.status != INTERRUPTED:
            break
        assert not done.dnr
    assert done.status == nvme.OK, hex(done.status)
    return done.data


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
    from tests.support.daemon import free_port

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


# -- restarts ----------------------------------------------------------------------------------------------------------


def calibrations(daemon: Daemon) -> int:
    """How often something was measured so far."""
    return daemon.log.read_text(errors="replace").count("pool.calibrated")


def test_a_policy_outlives_the_daemon_and_nothing_is_measured_again(rig: Rig) -> None:
    rig.add()
    rig.daemon.rpc("p2p_emulated_pool_create", name="pretend", bytes=MIB)
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn, nsid=1)
    rig.set("off")
    saved = rig.daemon.rpc("save_config")
    measured = calibrations(rig.daemon)
    assert measured >= 1
    for kill in (False, True):
        rig.tree.close_hosts()
        rig.daemon.restart(kill=kill)
        assert rig.daemon.rpc("save_config") == saved
        eventually(lambda: rig.shown()["paths"] and rig.path()["state"] == "pool", "it is staged again")
        io = rig.tree.started().io()
        write(io, 0, bytes_of(1, 4096))
        assert rig.used(PROVIDER)["write_bytes"] == 4096
    assert calibrations(rig.daemon) == measured


def test_a_strict_provider_that_is_absent_at_the_start(rig: Rig, machine: Machine) -> None:
    """The call was answered, so the namespace is served; from host memory, loudly, until the provider is there."""
    rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn, nsid=1)
    rig.tree.close_hosts()
    rig.daemon.stop()
    memory(machine).rename(memory(machine).with_name("was"))
    rig.daemon.start()
    io = rig.tree.started().io()
    write(io, 0, bytes_of(1, 4096))
    assert rig.path()["state"] == "degraded"
    assert "staging.degraded" in rig.daemon.log.read_text(errors="replace")
    assert rig.used("host")["write_bytes"] == 4096
    memory(machine).with_name("was").rename(memory(machine))
    eventually(lambda: rig.path()["state"] == "pool", "it is noticed")
    write(io, 8, bytes_of(2, 4096))
    assert rig.used(PROVIDER)["write_bytes"] == 4096


def test_a_helper_that_is_killed(rig: Rig) -> None:
    """The next one has the pools, who may use them, and the views."""
    import signal

    rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn, nsid=1)
    host = rig.tree.started()
    io = host.io()
    write(io, 0, bytes_of(1, 64 * KIB))
    measured = calibrations(rig.daemon)
    before = rig.daemon.rpc("p2p_get_status")["dataplane"]
    os.kill(before["pid"], signal.SIGKILL)
    eventually(
        lambda: (now := rig.daemon.rpc("p2p_get_status")["dataplane"])["up"] and now["restarts"] == 1, "another one"
    )
    io.close()
    io = host.io()
    assert read(io, 0, 64 * KIB) == bytes_of(1, 64 * KIB)
    assert rig.used(PROVIDER)["read_bytes"] == 64 * KIB
    assert rig.used("host")["read_bytes"] == 0
    assert calibrations(rig.daemon) == measured
    assert "Traceback" not in rig.daemon.log.read_text(errors="replace")


# -- loss and return ---------------------------------------------------------------------------------------------------


def test_the_provider_leaves_under_io_and_comes_back(rig: Rig, machine: Machine) -> None:
    """Its memory is cut off under the data plane (SIGBUS). No command fails, nothing wrong is read."""
    rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn, nsid=1)
    io = rig.tree.started().io()
    for lba in range(0, 64, 8):
        write(io, lba, bytes_of(lba, 4096))
    os.truncate(memory(machine) / "allocate", 0)
    for lba in range(0, 128, 8):
        write(io, lba, bytes_of(lba + 1, 4096))
        assert read(io, lba, 4096) == bytes_of(lba + 1, 4096)
    assert rig.path()["state"] == "degraded"
    assert "was lost" in rig.path()["reason"]
    assert rig.daemon.log.read_text(errors="replace").count("pool.lost") >= 1
    assert rig.used("host")["write_bytes"] >= 15 * 4096
    findings = rig.daemon.rpc("p2p_doctor")["findings"]
    (found,) = [entry for entry in findings if entry["code"].startswith("strict-")]
    assert "was lost" in found["reason"]
    fill(machine, 8 * MIB)
    eventually(lambda: rig.path()["state"] == "pool", "it is used again")
    before = rig.used(PROVIDER)["write_bytes"]
    write(io, 0, bytes_of(9, 4096))
    assert read(io, 0, 4096) == bytes_of(9, 4096)
    assert rig.used(PROVIDER)["write_bytes"] == before + 4096
    assert calibrations(rig.daemon) == 2, "it is not trusted for what it was before"


def test_the_provider_is_unbound_while_nothing_happens(rig: Rig, machine: Machine) -> None:
    rig.add()
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn, nsid=1)
    memory(machine).rename(memory(machine).with_name("was"))
    eventually(lambda: rig.path()["state"] == "degraded", "sysfs is looked at")
    write(rig.tree.started().io(), 0, bytes_of(1, 4096))
    assert rig.used("host")["write_bytes"] == 4096
    names = [entry["name"] for entry in rig.daemon.rpc("p2p_get_pools") if not entry["lost"]]
    assert names == []


# -- emulated pools, and namespaces on a CMB ---------------------------------------------------------------------------


def test_an_emulated_pool_says_what_it_is(native: None, make_daemon: MakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    rig = Rig(make_daemon("--sysfs-root", str(tmp_path / "sys")))
    rig.add()
    assert rig.daemon.rpc("p2p_emulated_pool_create", name="pretend", bytes=4 * MIB) == "pretend"
    rig.set("pretend", "strict", nqn=rig.tree.nqn)
    io = rig.tree.started().io()
    write(io, 0, bytes_of(1, 128 * KIB))
    assert read(io, 0, 128 * KIB) == bytes_of(1, 128 * KIB)
    assert rig.used("pretend")["read_bytes"] == rig.used("pretend")["write_bytes"] == 128 * KIB
    assert "EMULATED" in rig.path()["reason"]
    assert "EMULATED" in rig.pool("pretend")["note"]
    assert {use["pool"]: use["kind"] for use in rig.shown()["pools"]} == {"host": "host", "pretend": "emulated"}
    assert any(entry["code"] == "emulated" for entry in rig.daemon.rpc("p2p_doctor")["findings"])
    with pytest.raises(RpcError, match="names pool 'pretend'"):
        rig.daemon.rpc("p2p_emulated_pool_delete", name="pretend")
    rig.set("inherit", nqn=rig.tree.nqn)
    rig.daemon.rpc("p2p_emulated_pool_delete", name="pretend")
    eventually(lambda: rig.daemon.rpc("p2p_get_pools") == [], "it is given back")
    assert read(io, 0, 128 * KIB) == bytes_of(1, 128 * KIB)


def test_saved_and_loaded_elsewhere(rig: Rig, make_daemon: MakeDaemon, machine: Machine) -> None:
    import json

    rig.add()
    rig.daemon.rpc("p2p_emulated_pool_create", name="pretend", bytes=MIB)
    rig.daemon.rpc("bdev_cmb_create", name="c", provider="pretend", num_blocks=64, block_size=4096)
    rig.set(PROVIDER, "strict", nqn=rig.tree.nqn, nsid=1)
    rig.set("auto", "strict", nqn=rig.tree.nqn, listen_address=Tree.listen_address(rig.tree.address))
    rig.set("off")
    saved = rig.daemon.rpc("save_config")
    files = {path.name: path.read_bytes() for path in rig.daemon.dir.glob("*.img")}
    rig.tree.close_hosts()
    rig.daemon.stop()
    other = make_daemon("--sysfs-root", str(machine.root))
    for name, content in files.items():
        (other.dir / name).write_bytes(content)
    moved = json.loads(json.dumps(saved).replace(str(rig.daemon.dir), str(other.dir)))
    assert other.rpc("load_config", **moved) is True
    assert other.rpc("save_config") == moved
    (shown,) = other.rpc("p2p_get_staging")
    assert [path["state"] for path in shown["paths"]] == ["pool"], "strict was checked before it was answered"


def test_a_namespace_on_a_provider(rig: Rig, machine: Machine) -> None:
    """A small, fast and volatile disk; its data is gone when its provider is, and it is there again after that."""
    rig.daemon.rpc("bdev_cmb_create", name="c", provider=PROVIDER, num_blocks=256, block_size=4096)
    rig.tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": "c"})
    host = rig.tree.started()
    io = host.io()
    data = bytes_of(1, 64 * KIB)
    assert io.write(0, 16, data).status == nvme.OK
    assert io.read(0, 16, len(data)).data == data
    with pytest.raises(RpcError):
        rig.daemon.rpc("bdev_cmb_create", name="d", provider=PROVIDER, num_blocks=1 << 20, block_size=4096)
    (shown,) = rig.daemon.rpc("bdev_get_bdevs", name="c")
    assert shown["driver_specific"]["cmb"] == {"provider": PROVIDER, "volatile": True}
    os.truncate(memory(machine) / "allocate", 0)
    done = io.read(0, 16, len(data))
    assert done.status != nvme.OK or done.data == data
    eventually(lambda: rig.daemon.rpc("p2p_get_status")["absent_bdevs"] == ["c"], "it is gone with its provider")
    fill(machine, 8 * MIB)
    eventually(lambda: rig.daemon.rpc("p2p_get_status")["absent_bdevs"] == [], "and there again", 30.0)
    eventually(lambda: io.read(0, 16, len(data)).status == nvme.OK, "it is served", 30.0)
    rig.daemon.rpc("bdev_cmb_delete", name="c")


# -- probes that were interrupted --------------------------------------------------------------------------------------


def journal(path: Path, offset: int, data: bytes) -> bytes:
    """What native/src/calibrate.c would have left."""

    def header(crc: int) -> bytes:
        size = path.stat().st_size
        fixed = struct.pack("<16sIIQQQ", b"nvmet-p2p probe\n", 1, crc, offset, len(data), size)
        names = struct.pack("256s256s1024s", b"f0", PROVIDER.encode(), str(path).encode())
        return (fixed + names).ljust(4096, b"\0")

    return header(google_crc32c.value(header(0) + data)) + data


def leave(daemon: Daemon, path: Path, content: bytes) -> Path:
    name = hashlib.sha256(f"file {path.resolve()} {path.stat().st_ino}".encode()).hexdigest()[:32]
    folder = daemon.state / "calibration"
    folder.mkdir(exist_ok=True)
    left = folder / f"{name}.journal"
    left.write_bytes(content)
    return left


@pytest.mark.parametrize("damaged", [False, True])
def test_what_an_interrupted_probe_has_overwritten(make_daemon: MakeDaemon, machine: Machine, damaged: bool) -> None:
    """It is put back before anybody is served; a journal that is damaged keeps the drive closed."""
    rig = Rig(make_daemon("--sysfs-root", str(machine.root)))
    path = rig.add(content=b"\xa5" * (1 * MIB), size=1 * MIB)
    rig.tree.close_hosts()
    rig.daemon.stop()
    original = bytes_of(5, 64 * KIB)
    content = bytearray(journal(path, 512 * KIB, original))
    if damaged:
        content[-1] ^= 1
    left = leave(rig.daemon, path, bytes(content))
    rig.daemon.start()
    if damaged:
        assert rig.daemon.rpc("p2p_get_status")["absent_bdevs"] == ["f0"]
        assert str(left) in rig.daemon.log.read_text(errors="replace")
        assert rig.tree.started().io().read(0, 1, BLOCK).status == nvme.INVALID_NAMESPACE
        assert path.read_bytes() == b"\xa5" * MIB
        left.unlink()
        eventually(lambda: rig.daemon.rpc("p2p_get_status")["absent_bdevs"] == [], "a person has decided")
        return
    io = rig.tree.started().io()
    assert read(io, 1024, 64 * KIB) == original
    assert read(io, 1024 - 128, 64 * KIB) == b"\xa5" * (64 * KIB)
    assert not left.exists()


def test_a_probe_leaves_the_medium_as_it_was_and_hosts_do_not_notice(rig: Rig) -> None:
    content = bytes_of(7, 4 * MIB)
    path = rig.add(content=content)
    rig.set(PROVIDER, nqn=rig.tree.nqn)
    io = rig.tree.started().io()
    middle = 2 * MIB // BLOCK
    cids = [io.submit(nvme.sqe(nvme.READ, nsid=1, cdw=(middle + n * 64, 0, 63)), expect=32 * KIB) for n in range(-8, 8)]
    (result,) = rig.daemon.rpc("p2p_calibrate")
    assert (result["pool"], result["bdev"], result["verified"]) == (PROVIDER, "f0", True)
    assert result["drive_to_pool_mib_s"] > 0
    for number, cid in zip(range(-8, 8), cids, strict=True):
        at = (middle + number * 64) * BLOCK
        assert io.wait(cid).data == content[at : at + 32 * KIB]
    assert path.read_bytes() == content
    assert list((rig.daemon.state / "calibration").iterdir()) == []
    with pytest.raises(RpcError, match="there is no bdev"):
        rig.daemon.rpc("p2p_calibrate", bdev="nobody")


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

    from tests.support.daemon import free_port

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
