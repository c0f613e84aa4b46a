"""The commands, run in this process against a daemon that answers from a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from nvmet_p2p import __version__
from nvmet_p2p.cli import demo, status
from nvmet_p2p.cli.client import RpcClient
from nvmet_p2p.cli.main import main
from tests.unit.cli.rpc_server import result, serving

NQN = "nqn.2026-11.com.example:a"


class FakeTarget:
    """As much of the admin API as the demonstration and the status need, with SPDK's shapes."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.transports: list[dict[str, Any]] = []
        self.bdevs: list[dict[str, Any]] = []
        self.subsystems: list[dict[str, Any]] = [
            {
                "nqn": demo.DISCOVERY_NQN,
                "subtype": "Discovery",
                "listen_addresses": [],
                "allow_any_host": True,
                "hosts": [],
            }
        ]
        self.controllers: list[dict[str, Any]] = []

    def __call__(self, method: str, params: Any) -> bytes:
        self.calls.append(method)
        handler = getattr(self, method, None)
        if handler is None:
            return json.dumps({"id": 1, "error": {"code": -32601, "message": "Method not found"}}).encode()
        return result(handler(**(params or {})))

    def nvmf_get_transports(self) -> Any:
        return self.transports

    def nvmf_create_transport(self, trtype: str) -> bool:
        self.transports.append({"trtype": trtype})
        return True

    def bdev_get_bdevs(self) -> Any:
        return self.bdevs

    def bdev_aio_create(self, name: str, filename: str, block_size: int) -> str:
        blocks = Path(filename).stat().st_size // block_size
        self.bdevs.append({"name": name, "product_name": "AIO disk", "block_size": block_size, "num_blocks": blocks})
        return name

    def nvmf_get_subsystems(self) -> Any:
        return self.subsystems

    def nvmf_create_subsystem(self, nqn: str, **options: Any) -> bool:
        self.subsystems.append(
            {"nqn": nqn, "subtype": "NVMe", "listen_addresses": [], "namespaces": [], "hosts": [], **options}
        )
        return True

    def nvmf_subsystem_add_ns(self, nqn: str, namespace: dict[str, Any]) -> int:
        self._subsystem(nqn)["namespaces"].append({"nsid": 1, "anagrpid": 1, **namespace})
        return 1

    def nvmf_subsystem_add_listener(self, nqn: str, listen_address: dict[str, Any]) -> bool:
        self._subsystem(nqn)["listen_addresses"].append(listen_address)
        return True

    def nvmf_subsystem_get_controllers(self, nqn: str) -> Any:
        return self.controllers if nqn != demo.DISCOVERY_NQN else []

    def bdev_get_iostat(self) -> Any:
        counters = {"num_read_ops": 11, "bytes_read": 45056, "num_write_ops": 0, "bytes_written": 0, "num_unmap_ops": 0}
        return {"tick_rate": 1, "ticks": 1, "bdevs": [{"name": bdev["name"], **counters} for bdev in self.bdevs]}

    def nvmf_get_stats(self) -> Any:
        group = {"admin_qpairs": 5, "io_qpairs": 9, "current_admin_qpairs": 1, "current_io_qpairs": 4}
        return {"tick_rate": 1, "poll_groups": [group]}

    def p2p_get_status(self) -> Any:
        dataplane = {"engine": "inprocess", "slow": True, "note": "I/O is served in Python."}
        return {"version": "0.1.0", "uptime_s": 90061.5, "dataplane": dataplane}

    def rpc_discover(self) -> Any:
        return {"openrpc": "1.3.2"}

    def _subsystem(self, nqn: str) -> dict[str, Any]:
        return next(subsystem for subsystem in self.subsystems if subsystem["nqn"] == nqn)


setattr(FakeTarget, "rpc.discover", FakeTarget.rpc_discover)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[FakeTarget]:
    fake = FakeTarget()
    with serving(tmp_path / "rpc.sock", fake):
        yield fake


def run(tmp_path: Path, *arguments: str) -> Result:
    command, *rest = arguments
    return CliRunner().invoke(main, [command, "--rpc-socket", str(tmp_path / "rpc.sock"), *rest])


def demonstrate(tmp_path: Path) -> Result:
    return run(tmp_path, "demo", "--listen", "192.0.2.7", "--file", str(tmp_path / "new/demo.img"), "--size-mib", "64")


def test_demo_serves_a_sparse_file_and_says_how_to_connect(tmp_path: Path, target: FakeTarget) -> None:
    done = demonstrate(tmp_path)
    assert done.exit_code == 0, done.output
    assert f"nvme connect -t tcp -a 192.0.2.7 -s 4420 -n {demo.NQN}" in done.output
    assert "nvme discover -t tcp -a 192.0.2.7 -s 8009" in done.output
    file = (tmp_path / "new/demo.img").stat()
    assert (file.st_size, file.st_blocks, file.st_mode & 0o777) == (64 << 20, 0, 0o600)
    assert target._subsystem(demo.NQN)["namespaces"] == [{"nsid": 1, "anagrpid": 1, "bdev_name": "demo0"}]
    assert target._subsystem(demo.DISCOVERY_NQN)["listen_addresses"][0]["trsvcid"] == "8009"


def test_demo_again_changes_nothing(tmp_path: Path, target: FakeTarget) -> None:
    demonstrate(tmp_path)
    target.calls.clear()
    done = demonstrate(tmp_path)
    assert done.exit_code == 0, done.output
    assert not [call for call in target.calls if "_create" in call or "_add_" in call]


def test_demo_refuses_to_start_a_second_daemon_on_the_socket(tmp_path: Path, target: FakeTarget) -> None:
    done = run(tmp_path, "demo", "--serve", str(tmp_path / "state"))
    assert done.exit_code == 1
    assert "a daemon is already running there" in done.output
    assert not target.calls


def test_demo_without_a_place_for_its_file(tmp_path: Path, target: FakeTarget) -> None:
    (tmp_path / "file").touch()
    done = run(tmp_path, "demo", "--file", str(tmp_path / "file/demo.img"))
    assert done.exit_code == 1
    assert "File exists" in done.output or "Not a directory" in done.output
    assert not target.bdevs


def test_status_as_tables(tmp_path: Path, target: FakeTarget) -> None:
    demonstrate(tmp_path)
    hostile = "nqn.2014-08.org:\x1b[31mred[bold]"
    target.controllers = [{"cntlid": 3, "hostnqn": hostile, "hostid": "0" * 32, "num_io_qpairs": 4}]
    with RpcClient(tmp_path / "rpc.sock") as client:
        facts = status.collect(client)
    console = Console(width=120, record=True, markup=False, emoji=False)
    status.show(facts, console)
    text = console.export_text()
    assert "SLOW ENGINE" in text
    assert "up 1 d 1 h, data plane: inprocess" in text
    assert "192.0.2.7:4420" in text
    assert "bdev demo0, 64 MiB, ANA group 1" in text
    assert r"nqn.2014-08.org:\x1b[31mred[bold]" in text
    assert "controller 3, 4 I/O queues" in text
    assert "44 KiB" in text
    assert "queues connected now: 1 admin, 4 I/O; since start: 5 admin, 9 I/O" in text


def test_status_says_what_is_not_staged_as_was_asked_for() -> None:
    console = Console(width=120, record=True)
    facts = {
        "status": {
            "version": "1",
            "uptime_s": 1,
            "dataplane": {"engine": "native"},
            "staging": {"lost_pools": ["0000:03:00.0"], "degraded": ["namespace 1 of nqn at 192.0.2.7:4420"]},
        },
        "subsystems": [],
        "bdevs": [],
        "iostat": {},
        "stats": {},
    }
    status.show(facts, console)
    text = console.export_text(clear=False)
    assert "STAGING DEGRADED" in text
    assert "pool 0000:03:00.0 was lost" in text
    assert "namespace 1 of nqn at 192.0.2.7:4420: host memory instead" in text


def test_status_says_which_back_end_is_absent(tmp_path: Path, target: FakeTarget) -> None:
    demonstrate(tmp_path)
    target.bdevs.clear()
    assert "bdev demo0: absent" in run(tmp_path, "status").output


def test_status_of_rdma(tmp_path: Path, target: FakeTarget) -> None:
    demonstrate(tmp_path)
    with RpcClient(tmp_path / "rpc.sock") as client:
        facts = status.collect(client)
    facts["status"]["dataplane"]["slow"] = False
    facts["status"]["rdma"] = {
        "devices": [
            {"name": "rxe0", "present": True, "addresses": ["192.0.2.7"]},
            {"name": "mlx5_0", "present": False, "addresses": []},
        ]
    }
    address = {"trtype": "RDMA", "adrfam": "IPv4", "traddr": "192.0.2.8", "trsvcid": "4420"}
    facts["subsystems"][0]["listen_addresses"].append(address)
    facts["status"]["absent_listeners"] = [address]
    console = Console(width=120, record=True, markup=False, emoji=False)
    status.show(facts, console)
    text = console.export_text()
    assert "RDMA devices: rxe0 (192.0.2.7), mlx5_0 (gone)" in text
    assert "RDMA IPv4: absent, tried again every second" in text


def test_status_as_json(tmp_path: Path, target: FakeTarget) -> None:
    done = run(tmp_path, "status", "--json")
    assert json.loads(done.output)["status"]["dataplane"]["engine"] == "inprocess"


def test_rpc(tmp_path: Path, target: FakeTarget) -> None:
    done = run(tmp_path, "rpc", "nvmf_create_transport", '{"trtype": "TCP"}')
    assert json.loads(done.output) is True
    assert target.transports == [{"trtype": "TCP"}]


def test_rpc_refused(tmp_path: Path, target: FakeTarget) -> None:
    done = run(tmp_path, "rpc", "nonsense")
    assert done.exit_code == 1
    assert "nonsense: Method not found (code -32601)" in done.output


def test_rpc_with_broken_json(tmp_path: Path, target: FakeTarget) -> None:
    done = run(tmp_path, "rpc", "nvmf_create_transport", "{")
    assert done.exit_code == 2
    assert not target.calls


def test_openrpc(tmp_path: Path, target: FakeTarget) -> None:
    assert json.loads(run(tmp_path, "openrpc").output) == {"openrpc": "1.3.2"}


def test_no_daemon(tmp_path: Path) -> None:
    done = run(tmp_path, "status")
    assert done.exit_code == 1
    assert "is `nvmet-p2p serve` running" in done.output


def test_version() -> None:
    assert __version__ in CliRunner().invoke(main, ["--version"]).output


def test_serve_with_a_bad_option() -> None:
    done = CliRunner().invoke(main, ["serve", "--dataplane", "fast"])
    assert done.exit_code == 2
    assert "dataplane: Invalid enum value 'fast'" in done.output


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (1 << 62, "4096 PiB")]
)
def test_size(count: int, text: str) -> None:
    assert status.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h"), (90061, "1 d 1 h")])
def test_duration(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text
