"""A tree made by the real `spdk-rpc` command, saved, loaded into a fresh daemon, saved again: equal byte for byte."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeDaemon
from tests.support import nvme
from tests.support.daemon import Daemon, free_port
from tests.support.initiator import Host

SPDK_RPC = Path(sys.executable).parent / "spdk-rpc"
NQN1, NQN2 = "nqn.2026-01.org.example:one", "nqn.2026-01.org.example:two"


def spdk_rpc(daemon: Daemon, *arguments: str, stdin: bytes = b"") -> str:
    command = [str(SPDK_RPC), "-s", str(daemon.socket), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, f"{arguments}: {done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout.decode()


def build(daemon: Daemon, ports: tuple[int, int, int]) -> None:
    """Everything that a saved configuration can hold, by the command line alone."""
    disk = daemon.dir / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    first, second, third = (("-t", "TCP", "-a", "127.0.0.1", "-f", "IPv4", "-s", str(port)) for port in ports)
    script = (
        ("nvmf_create_transport", "-t", "TCP", "-q", "64", "-c", "8192", "-m", "16"),
        ("bdev_malloc_create", "-b", "m0", "4", "512"),
        ("bdev_malloc_create", "-b", "m1", "-u", "6f5e4d3c-2b1a-4000-8000-000000000001", "4", "4096"),
        ("bdev_null_create", "n0", "16", "4096"),
        ("bdev_aio_create", str(disk), "a0", "512"),
        ("nvmf_create_subsystem", NQN1, "-s", "SN1", "-d", "Model one", "-m", "8", "-r", "-i", "10", "-I", "90"),
        ("nvmf_create_subsystem", NQN2, "-a", "-s", "SN2"),
        ("nvmf_subsystem_add_ns", NQN1, "m0"),
        ("nvmf_subsystem_add_ns", NQN1, "m1", "-n", "5", "-a", "3", "-i"),
        ("nvmf_subsystem_add_ns", NQN1, "n0", "-g", "00112233445566778899AABBCCDDEEFF", "-e", "0011223344556677"),
        ("nvmf_subsystem_add_ns", NQN2, "a0", "-u", "6f5e4d3c-2b1a-4000-8000-000000000002"),
        ("nvmf_subsystem_add_listener", NQN1, *first),
        ("nvmf_subsystem_add_listener", NQN1, *second, "-n", "inaccessible"),
        ("nvmf_subsystem_add_listener", NQN2, *first),
        ("nvmf_subsystem_add_host", NQN1, nvme.HOST_NQN),
        ("nvmf_subsystem_add_host", NQN1, "nqn.2026-01.org.example:h"),
        ("nvmf_ns_add_host", NQN1, "5", nvme.HOST_NQN),
        ("nvmf_subsystem_listener_set_ana_state", NQN1, *first, "-n", "non_optimized", "-g", "3"),
        ("nvmf_discovery_add_referral", *third),
    )
    spdk_rpc(daemon, stdin="\n".join(map(shlex.join, script)).encode())


def test_save_load_save(make_daemon: MakeDaemon) -> None:
    first = make_daemon()
    build(first, (free_port(), free_port(), free_port()))
    saved = spdk_rpc(first, "save_config")
    assert json.loads(saved)["subsystems"]
    first.stop()
    second = make_daemon()
    spdk_rpc(second, "load_config", stdin=saved.encode())
    assert spdk_rpc(second, "save_config") == saved
    third = second.restart(kill=True)
    assert spdk_rpc(third, "save_config") == saved


def test_save_is_a_fixed_point_of_restart(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    build(daemon, (free_port(), free_port(), free_port()))
    saved = spdk_rpc(daemon, "save_config")
    assert spdk_rpc(daemon, "save_config") == saved
    daemon.restart()
    assert spdk_rpc(daemon, "save_config") == saved


def test_loaded_tree_serves(make_daemon: MakeDaemon) -> None:
    """The same namespaces, identities and rights for the host as before."""
    ports = (free_port(), free_port(), free_port())
    first = make_daemon()
    build(first, ports)
    saved = spdk_rpc(first, "save_config")
    seen = look(ports)
    first.stop()
    second = make_daemon()
    spdk_rpc(second, "load_config", stdin=saved.encode())
    assert look(ports) == seen


def look(ports: tuple[int, int, int]) -> list[bytes]:
    """Identify data of what a host sees through the listeners."""
    found = []
    for nqn, port in ((NQN1, ports[0]), (NQN1, ports[1]), (NQN2, ports[0])):
        with Host(("127.0.0.1", port), nqn) as host:
            admin = host.start().admin
            active = admin.identify(2).data
            found.append(active)
            for at in range(0, 64, 4):
                nsid = int.from_bytes(active[at : at + 4], "little")
                if nsid:
                    found += [admin.identify(0, nsid=nsid).data, admin.identify(3, nsid=nsid).data]
            if nqn == NQN1:
                found.append(admin.get_log(0x0C, 4096).data[10:])
    return found


def test_failed_call_of_the_command_line(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    command = [str(SPDK_RPC), "-s", str(daemon.socket), "nvmf_delete_subsystem", NQN1]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    assert b"error response" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["rpc_get_methods", "spdk_get_version", "nvmf_get_subsystems", "bdev_get_bdevs",
                                     "nvmf_get_stats", "bdev_get_iostat", "nvmf_get_transports"])  # fmt: skip
def test_reading_commands(daemon: Daemon, command: str) -> None:
    json.loads(spdk_rpc(daemon, command))
