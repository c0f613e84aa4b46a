"""The independent judge: SPDK's own Python client and its ``spdk-rpc`` command, unmodified, on our socket."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spdk.rpc.client import JSONRPCClient, JSONRPCException

from nvmet_p2p.server.admin_socket import AdminServer
from nvmet_p2p.server.dispatcher import Dispatcher
from nvmet_p2p.server.methods import METHODS
from tests.unit.server.fake_context import FakeContext

SPDK_RPC = Path(sys.executable).parent / "spdk-rpc"
NQN = "nqn.2026-11.com.example:one"
OTHER = "nqn.2026-11.com.example:other"
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
HOST = "nqn.2026-11.com.example:host"


class Daemon:
    """The admin API on an event loop in a thread of its own, as its clients block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.context = FakeContext()
        self.context.files |= {"/disk/a": 1 << 24, "/disk/u": 1 << 20}
        self._loop = asyncio.new_event_loop()
        self._server = AdminServer(Dispatcher(self.context, METHODS), path)
        self._thread = threading.Thread(target=self._loop.run_forever)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._server.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def rpc(self, *arguments: str, stdin: str | None = None) -> str:
        """Runs ``spdk-rpc``; it must succeed."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SPDK_RPC), "-s", str(self.path), *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[list[Daemon]]:
    both = [Daemon(tmp_path / "a.sock"), Daemon(tmp_path / "b.sock")]
    for daemon in both:
        daemon.start()
    yield both
    for daemon in both:
        daemon.stop()


@pytest.fixture
def daemon(daemons: list[Daemon]) -> Daemon:
    return daemons[0]


def build_tree(client: Any) -> None:
    """A bit of everything, through SPDK's client, which names a method as an attribute."""
    client.nvmf_set_config(discovery_filters=["transport", "svcid"])
    client.nvmf_set_max_subsystems(max_subsystems=16)
    client.nvmf_set_crdt(crdt1=1, crdt2=2, crdt3=3)
    client.nvmf_create_transport(trtype="TCP", in_capsule_data_size=8192, io_unit_size=16384, no_srq=False)
    client.bdev_malloc_create(name="m0", block_size=512, num_blocks=2048, optimal_io_boundary=8)
    client.bdev_null_create(name="n0", block_size=4096, num_blocks=256)
    client.bdev_aio_create(name="a0", filename="/disk/a", block_size=4096, readonly=True)
    client.bdev_uring_create(name="u0", filename="/disk/u")
    client.nvmf_create_subsystem(nqn=OTHER, allow_any_host=True, serial_number="SN", max_namespaces=1)
    client.nvmf_create_subsystem(nqn=NQN, ana_reporting=True, max_namespaces=8, min_cntlid=2, max_cntlid=9)
    address = {"trtype": "TCP", "adrfam": "ipv4", "traddr": "192.0.2.1", "trsvcid": "4420"}
    v6 = {"trtype": "TCP", "adrfam": "ipv6", "traddr": "2001:db8::1", "trsvcid": "4420"}
    client.nvmf_subsystem_add_listener(nqn=DISCOVERY_NQN, listen_address=address | {"trsvcid": "8009"})
    client.nvmf_subsystem_add_listener(nqn=NQN, listen_address=v6, ana_state="non_optimized")
    client.nvmf_subsystem_add_listener(nqn=NQN, listen_address=address)
    client.nvmf_subsystem_add_listener(nqn=OTHER, listen_address=address)
    where = {"nqn": NQN, "listen_address": address}
    client.nvmf_subsystem_listener_set_ana_state(**where, ana_state="inaccessible", anagrpid=3)
    client.nvmf_subsystem_add_ns(nqn=NQN, namespace={"bdev_name": "u0", "nsid": 5, "no_auto_visible": True})
    assert client.nvmf_subsystem_add_ns(nqn=NQN, namespace={"bdev_name": "m0", "eui64": "0123456789abcdef"}) == 1
    client.nvmf_subsystem_add_ns(nqn=OTHER, namespace={"bdev_name": "a0", "nguid": "1" * 32, "anagrpid": 1})
    client.nvmf_ns_add_host(nqn=NQN, nsid=5, host=HOST)
    client.nvmf_subsystem_add_host(nqn=NQN, host=HOST)
    client.nvmf_subsystem_add_host(nqn=NQN, host=HOST + "2")
    client.nvmf_subsystem_set_ns_ana_group(nqn=NQN, nsid=1, anagrpid=3)
    client.nvmf_discovery_add_referral(address=v6 | {"trsvcid": "8009"}, secure_channel=True)
    client.nvmf_discovery_add_referral(address=address, subnqn=OTHER)


def test_saved_loaded_into_a_fresh_daemon_and_saved_again(daemons: list[Daemon]) -> None:
    first, second = daemons
    with JSONRPCClient(str(first.path)) as client:
        build_tree(client)
    saved = first.rpc("save_config")
    second.rpc("load_config", stdin=saved)
    assert second.rpc("save_config") == saved
    assert second.context.config == first.context.config
    assert len(saved) > 5000


def test_saved_with_batches_and_in_parts(daemons: list[Daemon]) -> None:
    first, second = daemons
    with JSONRPCClient(str(first.path)) as client:
        build_tree(client)
    second.rpc("load_subsystem_config", stdin=first.rpc("save_subsystem_config", "-n", "bdev"))
    assert second.context.config.bdevs == first.context.config.bdevs
    second.rpc("load_subsystem_config", stdin=first.rpc("save_subsystem_config", "-n", "nvmf", "--with-batches"))
    assert second.context.config == first.context.config


def test_an_empty_daemon(daemons: list[Daemon]) -> None:
    first, second = daemons
    saved = first.rpc("save_config")
    second.rpc("load_config", stdin=saved)
    assert second.rpc("save_config") == saved
    second.rpc("load_config", stdin='{"subsystems": []}')
    second.rpc("framework_wait_init")


def test_the_command_as_people_type_it(daemon: Daemon) -> None:
    rpc = daemon.rpc
    rpc("nvmf_create_transport", "-t", "TCP", "-m", "8", "-c", "8192", "-i", "131072")
    assert json.loads(rpc("nvmf_get_transports"))[0]["max_io_qpairs_per_ctrlr"] == 8
    assert rpc("bdev_malloc_create", "-b", "Malloc0", "64", "512").strip() == "Malloc0"
    assert rpc("bdev_null_create", "Null0", "8", "4096").strip() == "Null0"
    assert rpc("bdev_aio_create", "/disk/a", "Aio0", "512").strip() == "Aio0"
    assert rpc("bdev_uring_create", "/disk/u", "Uring0", "512").strip() == "Uring0"
    rpc("bdev_null_resize", "Null0", "16")
    rpc("bdev_aio_rescan", "Aio0")
    rpc("nvmf_create_subsystem", NQN, "-a", "-s", "SPDK00000000000001", "-d", "Model", "-m", "4", "-r")
    rpc("nvmf_subsystem_add_ns", NQN, "Malloc0")
    rpc("nvmf_subsystem_add_ns", NQN, "Null0", "-n", "4", "--no-auto-visible")
    rpc("nvmf_ns_add_host", NQN, "4", HOST)
    rpc("nvmf_ns_remove_host", NQN, "4", HOST)
    rpc("nvmf_subsystem_set_ns_ana_group", NQN, "4", "1")
    where = ("-t", "tcp", "-a", "127.0.0.1", "-s", "4420", "-f", "ipv4")
    rpc("nvmf_subsystem_add_listener", NQN, *where)
    rpc("nvmf_subsystem_add_listener", "discovery", "-t", "tcp", "-a", "127.0.0.1", "-s", "8009")
    rpc("nvmf_subsystem_listener_set_ana_state", NQN, *where, "-n", "non_optimized")
    rpc("nvmf_subsystem_add_host", NQN, HOST)
    rpc("nvmf_subsystem_remove_host", NQN, HOST)
    rpc("nvmf_subsystem_allow_any_host", NQN, "--no-allow-any-host")
    rpc("nvmf_discovery_add_referral", "-t", "tcp", "-a", "127.0.0.2", "-s", "8009")
    assert len(json.loads(rpc("nvmf_discovery_get_referrals"))) == 1
    rpc("nvmf_discovery_remove_referral", "-t", "tcp", "-a", "127.0.0.2", "-s", "8009")
    for method in ("controllers", "qpairs"):
        assert json.loads(rpc(f"nvmf_subsystem_get_{method}", NQN)) == []
    assert {s["ana_state"] for s in json.loads(rpc("nvmf_subsystem_get_listeners", NQN))[0]["ana_states"]} == {
        "non_optimized"
    }
    assert [bdev["name"] for bdev in json.loads(rpc("bdev_get_bdevs"))] == ["Malloc0", "Null0", "Aio0", "Uring0"]
    assert [bdev["name"] for bdev in json.loads(rpc("bdev_get_iostat", "--names", "Null0"))["bdevs"]] == ["Null0"]
    rpc("bdev_reset_iostat", "-b", "Null0", "-m", "all")
    assert [subsystem["nqn"] for subsystem in json.loads(rpc("nvmf_get_subsystems"))] == [DISCOVERY_NQN, NQN]
    json.loads(rpc("nvmf_get_stats"))
    assert "nvmf_get_stats" in json.loads(rpc("rpc_get_methods"))
    assert json.loads(rpc("spdk_get_version"))["fields"]["major"] == 26
    rpc("nvmf_subsystem_remove_listener", NQN, *where)
    rpc("nvmf_subsystem_remove_ns", NQN, "1")
    rpc("nvmf_delete_subsystem", NQN)
    for kind in ("Malloc", "Null", "Aio", "Uring"):
        rpc(f"bdev_{kind.lower()}_delete", f"{kind}0")
    assert not daemon.context.config.bdevs


def test_errors_reach_the_user(daemon: Daemon) -> None:
    done = daemon.run("bdev_malloc_delete", "nothing")
    assert done.returncode != 0
    assert '"code": -19' in done.stdout + done.stderr
    assert "No such device" in done.stdout + done.stderr
    done = daemon.run("nvmf_create_transport", "-t", "PCIE")
    assert "there is no transport type" in done.stdout + done.stderr
    with JSONRPCClient(str(daemon.path)) as client:
        with pytest.raises(JSONRPCException) as caught:
            client.call("nvmf_delete_subsystem", {"nqn": 3})
        assert "params.nqn: expected str, got int" in caught.value.message
        assert client.call("nvmf_get_targets") == ["nvmf_tgt"]  # the same connection goes on


def test_several_requests_before_the_first_answer(daemon: Daemon) -> None:
    with JSONRPCClient(str(daemon.path)) as client:
        for number in range(3):
            client.add_request("bdev_null_create", {"name": f"n{number}", "block_size": 512, "num_blocks": 1})
        client.flush()  # json.dumps(indent=2), a newline between
        assert [client.recv()["result"] for _ in range(3)] == ["n0", "n1", "n2"]


def test_batch(daemon: Daemon) -> None:
    with JSONRPCClient(str(daemon.path), batch_mode=True) as client:
        batch = [
            {"method": "bdev_null_create", "params": {"name": f"n{number}", "block_size": 512, "num_blocks": number}}
            for number in range(3)
        ]
        results, errors = client.call_batch(batch)
    assert results == ["n1", "n2"]
    assert [error["code"] for error in errors] == [-22]


def test_broken_json(daemon: Daemon) -> None:
    with JSONRPCClient(str(daemon.path)) as client:
        client.sock.sendall(b'{"jsonrpc": "2.0", "method": ]}')
        assert client.recv()["error"]["code"] == -32700
        assert client.sock.recv(1) == b""
