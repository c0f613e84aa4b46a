"""``nvmet-p2p p2p staging``, ``set`` and ``calibrate``: what is asked for and what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from nvmet_p2p.cli.main import main
from nvmet_p2p.p2p.render_text import staging_text
from tests.unit.cli.rpc_server import result, serving

NQN = "nqn.2026-11.com.example:a"
POOL = "0000:03:00.0"
PATH = {
    "listen_address": {"trtype": "TCP", "adrfam": "IPv4", "traddr": "192.0.2.7", "trsvcid": "4420"},
    "state": "pool",
    "policy": "auto",
    "strict": False,
    "read": None,
    "write": POOL,
    "copy": POOL,
    "cost": 4,
    "reason": "it is the nearest",
    "runner_up": "0000:04:00.0",
    "rejected": {},
    "refused": None,
    "policy_of": "target",
    "drives": [],
    "drives_refused": None,
}
NOTHING = {"read_bytes": 0, "write_bytes": 0, "copy_bytes": 0, "read_ops": 0, "write_ops": 0, "copy_ops": 0}
NAMESPACE = {
    "nqn": NQN,
    "nsid": 1,
    "bdev": "disk0",
    "paths": [PATH],
    "pools": [
        {"pool": "host", "kind": "host", **NOTHING, "read_bytes": 3 << 20},
        {"pool": POOL, "kind": "p2pmem", **NOTHING, "write_bytes": 1536, "copy_bytes": 1 << 30},
        {"pool": "trial", "kind": "emulated", **NOTHING, "write_bytes": 1},
        {"pool": "idle", "kind": "p2pmem", **NOTHING},
    ],
    "fallbacks": 1,
    "interrupted": 2,
    "copy_routes": {"device": 0, "reflink": 0, "pool": 1 << 30, "host": 0},
}
MEASURED = {
    "pool": POOL,
    "bdev": "disk0",
    "verified": True,
    "cpu_write_mib_s": 900.0,
    "cpu_read_mib_s": 50.0,
    "host_write_mib_s": 9000.0,
    "host_read_mib_s": 8000.0,
    "drive_to_pool_mib_s": 3000.0,
    "drive_to_host_mib_s": 3100.0,
    "reason": "",
}


class Daemon:
    """Keeps what it was asked for."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, method: str, params: Any) -> bytes:
        self.asked.append((method, params))
        if method not in self.answers:
            return json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": -95, "message": "no pools"}}).encode()
        return result(self.answers[method])


def run(tmp_path: Path, daemon: Daemon, command: str, *arguments: str) -> Result:
    with serving(tmp_path / "rpc.sock", daemon):
        return CliRunner().invoke(main, ["p2p", command, "--rpc-socket", str(tmp_path / "rpc.sock"), *arguments])


def test_staging(tmp_path: Path) -> None:
    daemon = Daemon(p2p_get_staging=[NAMESPACE])
    done = run(tmp_path, daemon, "staging", "--nqn", NQN, "--nsid", "1")
    assert daemon.asked == [("p2p_get_staging", {"nqn": NQN, "nsid": 1})]
    assert done.output.splitlines() == [
        f"{NQN} namespace 1 (disk0)",
        f"  192.0.2.7:4420: reads host memory, writes {POOL}, copies {POOL} "
        "(policy auto,prefer of target, next 0000:04:00.0)",
        "    it is the nearest",
        "  so far: 3 MiB read by host memory",
        f"  so far: 1.5 KiB written, 1 GiB copied by {POOL}",
        "  so far: 1 B written by trial (EMULATED: host memory)",
        "  so far: Copy moved 1 GiB by pool",
        "  so far: 1 command fell back to host memory",
        "  so far: 2 commands had to be sent again",
    ]
    (tmp_path / "again").mkdir()
    assert json.loads(run(tmp_path / "again", daemon, "staging", "--json").output) == [NAMESPACE]


def test_pools(tmp_path: Path) -> None:
    pool = {
        "name": POOL,
        "kind": "p2pmem",
        "bytes": 1 << 20,
        "free": 1 << 19,
        "users": 2,
        "lost": False,
        "why": "",
        "failure": "",
        "calibrations": {},
    }
    gone = {**pool, "name": "trial", "kind": "emulated", "lost": True, "why": "canary", "failure": "it was lost"}
    daemon = Daemon(p2p_get_pools=[pool, gone])
    text = run(tmp_path, daemon, "pools").output
    assert f"  {POOL}  peer memory, 512 KiB of 1 MiB free, used by 2 views\n" in text
    assert "  trial  EMULATED, host memory, LOST: canary, used by 2 views\n" in text
    assert "  trial could not be had: it was lost\n" in text
    (tmp_path / "again").mkdir()
    assert "no pool" in run(tmp_path / "again", Daemon(p2p_get_pools=[]), "pools").output


def test_staging_of_what_cannot_be_staged() -> None:
    refused = {"code": "loop", "reason": "loop0 is a loop device", "remedy": "use the file"}
    host = {**PATH, "state": "degraded", "read": None, "write": None, "copy": None, "runner_up": None, "strict": True}
    path = {**host, "listen_address": None, "reason": "host memory: lost", "drives_refused": refused}
    text = staging_text([{**NAMESPACE, "paths": [path], "pools": [], "copy_routes": {}, "fallbacks": 0}])
    assert "  without a listener: DEGRADED, host memory (policy auto,strict of target)\n" in text
    assert "    host memory: lost\n    loop0 is a loop device\n" in text
    off = {**path, "policy": "off", "strict": False, "state": "host"}
    assert "loop0" not in staging_text([{**NAMESPACE, "paths": [off]}])
    assert staging_text([]) == "no namespace\n"


@pytest.mark.parametrize(
    ("arguments", "params"),
    [
        (("auto",), {"policy": "auto", "mode": "prefer"}),
        (("03:00.0", "--strict"), {"policy": "03:00.0", "mode": "strict"}),
        (("inherit", "--nqn", NQN, "--nsid", "7"), {"policy": "inherit", "mode": "prefer", "nqn": NQN, "nsid": 7}),
        (
            ("off", "--nqn", NQN, "--listener", "[2001:db8::7]:4420"),
            {
                "policy": "off",
                "mode": "prefer",
                "nqn": NQN,
                "listen_address": {"trtype": "TCP", "traddr": "2001:db8::7", "trsvcid": "4420"},
            },
        ),
    ],
)
def test_set(tmp_path: Path, arguments: tuple[str, ...], params: dict[str, Any]) -> None:
    daemon = Daemon(p2p_set_staging=True, p2p_get_staging=[NAMESPACE])
    done = run(tmp_path, daemon, "set", *arguments)
    assert done.exit_code == 0
    assert daemon.asked[0] == ("p2p_set_staging", params)
    assert daemon.asked[1] == ("p2p_get_staging", {key: params[key] for key in ("nqn", "nsid") if key in params})
    assert "it is the nearest" in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("auto", "--nsid", "1"), "name it with --nqn"),
        (("auto", "--listener", "192.0.2.7:4420"), "name it with --nqn"),
        (("auto", "--nqn", NQN, "--nsid", "1", "--listener", "192.0.2.7:4420"), "exclude each other"),
        (("auto", "--nqn", NQN, "--listener", "192.0.2.7"), "ADDRESS:PORT"),
        ((), "Missing argument"),
    ],
)
def test_set_what_cannot_be_meant(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    daemon = Daemon()
    done = run(tmp_path, daemon, "set", *arguments)
    assert (done.exit_code, daemon.asked) == (2, [])
    assert words in done.output


def test_set_refused(tmp_path: Path) -> None:
    done = run(tmp_path, Daemon(), "set", "auto", "--strict")
    assert done.exit_code == 1
    assert "no pools" in done.output


class TestCalibrate:
    def test_all_verified(self, tmp_path: Path) -> None:
        daemon = Daemon(p2p_calibrate=[MEASURED])
        done = run(tmp_path, daemon, "calibrate", "--pool", POOL)
        assert daemon.asked == [("p2p_calibrate", {"pool": POOL})]
        assert done.exit_code == 0
        assert done.output == (
            f"{POOL} with disk0: verified, CPU writes 900 MiB/s (host memory 9000), "
            "CPU reads 50 MiB/s (host memory 8000), drive writes 3000 MiB/s (host memory 3100)\n"
        )

    def test_one_that_is_not(self, tmp_path: Path) -> None:
        wrong = {**MEASURED, "verified": False, "reason": "other bytes came back"}
        done = run(tmp_path, Daemon(p2p_calibrate=[MEASURED, wrong]), "calibrate", "--bdev", "disk0")
        assert done.exit_code == 1
        assert "NOT VERIFIED: other bytes came back" in done.output

    def test_none_in_use(self, tmp_path: Path) -> None:
        done = run(tmp_path, Daemon(p2p_calibrate=[]), "calibrate")
        assert (done.exit_code, done.output) == (0, "no pool is in use\n")

    def test_a_daemon_without_pools(self, tmp_path: Path) -> None:
        assert run(tmp_path, Daemon(), "calibrate").exit_code == 2
