"""``nvmet-p2p demo``: one subsystem with one namespace on a sparse file, made over JSON-RPC like anybody would."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from nvmet_p2p.cli import status
from nvmet_p2p.cli.client import RpcClient, RpcConnectionError
from nvmet_p2p.errors import NvmetP2PError

NQN = "nqn.2026-11.com.example:nvmet-p2p-demo"
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
BDEV = "demo0"
BLOCK_BYTES = 4096
START_TIMEOUT_S = 30.0


class DemoError(NvmetP2PError):
    """The demonstration cannot be set up."""


@dataclass(frozen=True)
class Plan:
    """What to serve and where: ``addresses`` are IP addresses, the first one is named to the user."""

    file: Path
    size_bytes: int
    addresses: list[str]
    port: str
    discovery_port: str


def addresses(listen: str | None) -> list[str]:
    """The address asked for; without one, that of the default route (if any) and loopback."""
    if listen:
        return [listen]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1; connecting a datagram socket sends nothing
        except OSError:
            return ["127.0.0.1"]
        address: str = probe.getsockname()[0]
    return [address, "127.0.0.1"] if address != "127.0.0.1" else [address]


def set_up(client: RpcClient, plan: Plan) -> None:
    """Makes what is not there yet. Raises RpcError when the daemon refuses, DemoError when the file cannot be made."""
    if not any(transport["trtype"].upper() == "TCP" for transport in client.call("nvmf_get_transports")):
        client.call("nvmf_create_transport", {"trtype": "TCP"})
    if not any(bdev["name"] == BDEV for bdev in client.call("bdev_get_bdevs")):
        _make_sparse(plan.file, plan.size_bytes)
        client.call("bdev_aio_create", {"name": BDEV, "filename": str(plan.file), "block_size": BLOCK_BYTES})
    if NQN not in _subsystems(client):
        client.call("nvmf_create_subsystem", {"nqn": NQN, "serial_number": "NVMETP2PDEMO", "allow_any_host": True})
    if not _subsystems(client)[NQN]["namespaces"]:
        client.call("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": BDEV}})
    for address in plan.addresses:
        _listen(client, NQN, address, plan.port)
        _listen(client, DISCOVERY_NQN, address, plan.discovery_port)


def present(client: RpcClient, plan: Plan) -> None:
    """Sets up, then says what there is and how to use it."""
    set_up(client, plan)
    status.show(status.collect(client))
    address = plan.addresses[0]
    click.echo("\nOn a host (nvme-cli, kernel module nvme-tcp):\n")
    click.echo(f"  nvme discover -t tcp -a {address} -s {plan.discovery_port}")
    click.echo(f"  nvme connect -t tcp -a {address} -s {plan.port} -n {NQN}\n")


def serve_and_present(rpc_socket: Path, state_dir: Path, plan: Plan) -> None:
    """Runs ``nvmet-p2p serve`` as a child for as long as this process lives, and shows the demonstration on it."""
    if _answers(rpc_socket):
        raise DemoError(f"{rpc_socket}: a daemon is already running there; stop it or choose another --rpc-socket")
    command = [
        sys.executable,
        "-m",
        "nvmet_p2p",
        "serve",
        "--rpc-socket",
        str(rpc_socket),
        "--state-dir",
        str(state_dir),
    ]
    with subprocess.Popen(command) as child:
        # Ctrl-C reaches the whole process group, so the child stops by itself; a SIGTERM comes to us alone.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            with _connect_to_child(child, rpc_socket) as client:
                present(client, plan)
            click.echo(f"Its admin socket is {rpc_socket} (nvmet-p2p status, spdk-rpc -s {rpc_socket} ...).")
            click.echo("Serving until Ctrl-C.")
        except BaseException:
            child.terminate()
            raise
        code = child.wait()
    if code not in (0, -signal.SIGTERM, -signal.SIGINT):
        raise DemoError(f"the daemon ended with exit status {code}")


def _connect_to_child(child: subprocess.Popen[bytes], rpc_socket: Path) -> RpcClient:
    waited_s = 0.0
    while True:
        try:
            return RpcClient(rpc_socket, wait_s=0.5)
        except RpcConnectionError:
            waited_s += 0.5
            if child.poll() is not None:
                raise DemoError("the daemon did not start; its message is above") from None
            if waited_s >= START_TIMEOUT_S:
                raise


def _answers(rpc_socket: Path) -> bool:
    try:
        RpcClient(rpc_socket).close()
    except RpcConnectionError:
        return False
    return True


def _subsystems(client: RpcClient) -> dict[str, Any]:
    return {subsystem["nqn"]: subsystem for subsystem in client.call("nvmf_get_subsystems")}


def _listen(client: RpcClient, nqn: str, address: str, port: str) -> None:
    wanted = {
        "trtype": "TCP",
        "adrfam": "IPv6" if ":" in address else "IPv4",
        "traddr": address,
        "trsvcid": port,
    }
    for present_address in _subsystems(client).get(nqn, {}).get("listen_addresses", []):
        if all(present_address.get(key, "").lower() == value.lower() for key, value in wanted.items()):
            return
    client.call("nvmf_subsystem_add_listener", {"nqn": nqn, "listen_address": wanted})


def _make_sparse(file: Path, size_bytes: int) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < size_bytes:
                os.ftruncate(descriptor, size_bytes)
        finally:
            os.close(descriptor)
    except OSError as error:
        hint = " (use --size-mib)" if error.errno in (errno.EFBIG, errno.ENOSPC) else ""
        raise DemoError(f"{file}: {error.strerror}{hint}") from error
