"""The target for lab tests: a daemon on this machine, every bit of it configured by the ``spdk-rpc`` command.

Only the Linux initiator is in the guest; the guest's 127.0.0.1 is this machine's (see ``guest/loopback``).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from tests.support.daemon import Daemon, free_port

SERIAL = "LAB0001"
MIB = 1 << 20


def spdk_rpc_command() -> str:
    """Where the PyPI package ``spdk`` put its command."""
    beside = Path(sysconfig.get_path("scripts")) / "spdk-rpc"
    found = str(beside) if beside.exists() else shutil.which("spdk-rpc")
    assert found, "spdk-rpc of the PyPI package spdk is not installed"
    return found


class LabTarget:
    """One subsystem on a sparse file, with a discovery service beside it."""

    def __init__(self, daemon: Daemon, nqn: str) -> None:
        self.daemon = daemon
        self.nqn = nqn
        self.port = free_port()
        self.discovery_port = free_port()
        self.command = spdk_rpc_command()

    def rpc(self, *arguments: str) -> Any:
        """One call of the ``spdk-rpc`` command; its answer, decoded where it is JSON."""
        done = subprocess.run(
            [self.command, "-s", str(self.daemon.socket), *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"spdk-rpc {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        try:
            return json.loads(done.stdout)
        except ValueError:
            return done.stdout.strip()

    def file(self, name: str, mib: int) -> Path:
        """A sparse file of ``mib`` MiB for a back end."""
        path = self.daemon.dir / f"{name}.img"
        with path.open("wb") as image:
            image.truncate(mib * MIB)
        return path

    def serve(self, mib: int = 256, block_size: int = 512) -> None:
        """Transport, subsystem with namespace 1 on a file, a listener, and the discovery service."""
        if not self.rpc("nvmf_get_transports"):
            self.rpc("nvmf_create_transport", "-t", "TCP")
        self.add_bdev("disk", mib, block_size)
        self.rpc("nvmf_create_subsystem", self.nqn, "-a", "-s", SERIAL, "-d", "nvmet_p2p lab", "-r", "-m", "8")
        self.rpc("nvmf_subsystem_add_ns", self.nqn, "disk", "-n", "1")
        self.listen(self.nqn, self.port)
        self.listen("discovery", self.discovery_port)

    def add_bdev(self, name: str, mib: int, block_size: int = 512) -> Path:
        path = self.file(name, mib)
        self.rpc("bdev_aio_create", str(path), name, str(block_size))
        return path

    def listen(self, nqn: str, port: int) -> None:
        """A listener on this machine's 127.0.0.1; ``discovery`` stands for the discovery subsystem."""
        subsystem = "nqn.2014-08.org.nvmexpress.discovery" if nqn == "discovery" else nqn
        self.rpc(
            "nvmf_subsystem_add_listener", subsystem, "-t", "TCP", "-f", "ipv4", "-a", "127.0.0.1", "-s", str(port)
        )

    def clear(self) -> None:
        """Takes away what ``serve`` and the tests made."""
        for subsystem in self.rpc("nvmf_get_subsystems"):
            if subsystem["subtype"] == "NVMe":
                self.rpc("nvmf_delete_subsystem", subsystem["nqn"])
            else:
                for address in subsystem["listen_addresses"]:
                    self.rpc(
                        "nvmf_subsystem_remove_listener", subsystem["nqn"], "-t", address["trtype"], "-a",
                        address["traddr"], "-s", address["trsvcid"], "-f", address["adrfam"],
                    )  # fmt: skip
        for bdev in self.rpc("bdev_get_bdevs"):
            self.rpc("bdev_aio_delete", bdev["name"])

    # What the guest types

    def connect(self, *options: str, port: int = 0) -> str:
        """The ``nvme connect`` line. Two CPUs in the guest: 2 read and 2 write queues are the 4 I/O queues."""
        words = ["nvme", "connect", "-t", "tcp", "-a", "127.0.0.1", "-s", str(port or self.port), "-n", self.nqn]
        return " ".join([*words, "--nr-io-queues=2", "--nr-write-queues=2", *options])
