"""`make run`: the demonstration on a daemon of its own, started, stopped and started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from nvmet_p2p.cli.demo import BDEV, NQN

COMMAND = [sys.executable, "-m", "nvmet_p2p"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _until_serving(child: subprocess.Popen[str]) -> str:
    """What it said up to its last line before it waits; fails with all that came if it ends before."""
    said = ""
    assert child.stdout is not None
    for line in child.stdout:
        said += line
        if line.startswith("Serving until"):
            return said
    raise AssertionError(f"it ended:\n{said}")


def _status(rpc_socket: Path) -> dict[str, list[dict[str, object]]]:
    command = [*COMMAND, "status", "--json", "--rpc-socket", str(rpc_socket)]
    document: dict[str, list[dict[str, object]]] = json.loads(subprocess.check_output(command))
    return document


def test_demonstration(tmp_path: Path) -> None:
    rpc_socket = tmp_path / "rpc.sock"
    port = _free_port()
    command = [
        *COMMAND,
        "demo",
        "--rpc-socket",
        str(rpc_socket),
        "--serve",
        str(tmp_path / "state"),
        "--port",
        str(port),
    ]
    command += ["--discovery-port", str(_free_port()), "--listen", "127.0.0.1"]
    command += ["--file", str(tmp_path / "demo.img"), "--size-mib", "64"]
    seen = []
    for stop in (signal.SIGTERM, signal.SIGINT):
        # A process group of its own, as a shell makes one: Ctrl-C goes to both processes.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as child:
            try:
                said = _until_serving(child)
                assert ("SLOW ENGINE" in said) == ("data plane: inprocess" in said), "the slow engine says so"
                assert "data plane: " in said
                assert f"nvme connect -t tcp -a 127.0.0.1 -s {port} -n {NQN}\n" in said
                status = _status(rpc_socket)
                assert [bdev["name"] for bdev in status["bdevs"]] == [BDEV]
                seen.append([subsystem["namespaces"] for subsystem in status["subsystems"] if subsystem["nqn"] == NQN])
                with socket.create_connection(("127.0.0.1", port)):
                    pass
                if stop == signal.SIGINT:
                    os.killpg(child.pid, stop)
                else:
                    child.send_signal(stop)
                assert child.wait() == 0
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
    assert seen[0] == seen[1]
