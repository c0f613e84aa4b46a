"""Pools through restarts, loss and return; pools and disks of memory that is emulated; probes that were interrupted."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import google_crc32c
import pytest

from tests.conformance.conftest import MakeDaemon
from tests.support import nvme
from tests.support.daemon import Daemon, RpcError, Tree, eventually
from tests.support.staging import BLOCK, KIB, PROVIDER, Rig, bytes_of, calibrations, fill, memory, read, write
from tests.unit.p2p.machines import MIB, Machine

# -- restarts ----------------------------------------------------------------------------------------------------------


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
    eventually(lambda: rig.path()["state"] == "degraded", "the control plane hears of it")
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
