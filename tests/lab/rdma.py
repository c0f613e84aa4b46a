"""The guest with soft RoCE that all NVMe/RDMA tests share: its network, the target in it, the host on raw verbs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.lab import rdma_host
from tests.lab.inside import InsideTarget
from tests.lab.lab import Guest
from tests.lab.machine import Machine

ADDRESS: Final = "10.0.0.1"
ADDRESS6: Final = "fd00::1"
PORT: Final = 4420
SETUP: Final = f"""
modprobe -a rdma_rxe ib_uverbs rdma_ucm nvme_rdma nvme_tcp dummy
ip link show rdma0 > /dev/null 2>&1 && exit 0
ip link add rdma0 type dummy; ip addr add {ADDRESS}/24 dev rdma0; ip link set rdma0 up
ip addr add {ADDRESS6}/64 dev rdma0 nodad
rdma link add rxe0 type rxe netdev rdma0
"""


class RdmaGuest(Guest):
    """A guest with a port for ``rdma_host``; ``host_socket`` is its end on this side."""

    host_socket: Path


@pytest.fixture(scope="session")
def rdma_guest() -> Iterator[RdmaGuest]:
    from tests.lab.conftest import _need_lab, need_dataplane

    _need_lab()
    need_dataplane()
    with tempfile.TemporaryDirectory(prefix="nvmetp2p-") as folder:
        with RdmaGuest(Machine(target=True, net=False, qemu_args=rdma_host.qemu_args(Path(folder)))) as guest:
            guest.host_socket = Path(folder) / "host"
            guest.boot()
            yield guest


@pytest.fixture(scope="session")
def rdma_daemon(rdma_guest: RdmaGuest) -> Iterator[InsideTarget]:
    made = InsideTarget(rdma_guest)
    yield made
    made.close()


@pytest.fixture(scope="session")
def rdma_program(rdma_guest: RdmaGuest) -> str:
    """The host on raw verbs, built here and run with this machine's libraries."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = Path(__file__).with_name("rdma_host.c")
    made = rdma_guest.files / "rdma_host"
    command = [compiler, "-std=gnu17", "-O1", "-o", str(made), str(source), "-lrdmacm", "-libverbs"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"rdma_host.c cannot be built: {done.stderr[-300:]}")
    return str(made)


def serving(target: InsideTarget) -> InsideTarget:
    """The target up in its guest, with both transports; skips where it has no NVMe/RDMA."""
    target.guest.run(SETUP, keep=True)
    target.start()
    status = target.rpc("p2p_get_status")
    if not status["rdma"]["available"]:
        pytest.skip(f"no NVMe/RDMA: {status['rdma']['reason']}")
    if not target.rpc("nvmf_get_transports"):
        target.rpc("nvmf_create_transport", trtype="RDMA")
        target.rpc("nvmf_create_transport", trtype="TCP")
    return target
