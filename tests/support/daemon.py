"""A real daemon process for a test, configured over JSON-RPC by SPDK's own client, and what /proc says of it."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from spdk.rpc.client import JSONRPCClient, JSONRPCException

from tests.support.conn import Address
from tests.support.initiator import Host, HostOptions

START_S = 60.0  # bound on start-up on a loaded machine, not an expectation
STOP_S = 20.0
POLL_S = 0.02
MIB = 1 << 20
ROOT = Path(__file__).parents[2]
_names = itertools.count(1)
_ports = itertools.count((os.getpid() * 61) % 9000)


class RpcError(Exception):
    """A JSON-RPC error object."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, outside the range that the kernel gives to clients."""
    for _ in range(500):
        port = 20000 + next(_ports) % 9000
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


def eventually(check: Any, what: str, timeout: float = 30.0) -> Any:
    """Calls ``check`` until it gives something true; the bound is there to end a failed test, nothing is timed."""
    deadline = time.monotonic() + timeout
    while True:
        value = check()
        if value:
            return value
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Ns:
    """A namespace to be made: ``kind`` malloc, null or aio (a sparse file), ``blocks`` of ``block_size`` bytes."""

    kind: str = "malloc"
    blocks: int = 4096
    block_size: int = 512
    readonly: bool = False
    params: dict[str, Any] = field(default_factory=dict)  # more members of nvmf_subsystem_add_ns' namespace


class Daemon:
    """``nvmet-p2p serve`` in a directory of its own."""

    def __init__(self, *options: str, engine: str = "inprocess", nofile: int = 0) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="nvmetp2p-"))  # short: a Unix socket's path has at most 107 bytes
        self.socket = self.dir / "rpc.sock"
        self.state = self.dir / "state"
        self.log = self.dir / "log"
        self.options = ("--dataplane", engine, *options)
        self.nofile = nofile
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self._trees: list[Tree] = []

    def __enter__(self) -> Daemon:
        try:
            return self.start()
        except BaseException:  # nobody else would end it
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Life

    def spawn(self) -> None:
        """Starts the process without waiting for it."""
        command = [sys.executable, "-m", "nvmet_p2p", "serve", "--rpc-socket", str(self.socket)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--state-dir", str(self.state), *self.options],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if self.nofile:
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (self.nofile, self.nofile))

    def start(self) -> Daemon:
        self.spawn()
        eventually(self._ready, "the daemon answers on its socket", START_S)
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log_text()}"
        with socket.socket(socket.AF_UNIX) as probe:  # SPDK's client leaves its socket open when it cannot connect
            if probe.connect_ex(str(self.socket)):
                return False
        try:
            return bool(self.rpc("rpc_get_methods"))
        except (JSONRPCException, OSError):
            self.drop_client()
            return False

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        return self._end(signal.SIGTERM)

    def kill9(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        self.drop_client()
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Waits for the process to end by itself; its exit status."""
        assert self.process is not None
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon did not end:\n{self.log_text()}") from None

    def restart(self, *, kill: bool = False) -> Daemon:
        if kill:
            self.kill9()
        else:
            self.stop()
        return self.start()

    def close(self) -> None:
        """Closes the hosts of its subsystems, ends the process in whatever state it is, and removes its directory."""
        for tree in self._trees:
            tree.close_hosts()
        self.drop_client()
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
        finally:
            shutil.rmtree(self.dir, ignore_errors=True)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")[-8000:]

    # JSON-RPC

    def client(self) -> Any:
        """SPDK's client, connected."""
        if self._client is None:
            self._client = JSONRPCClient(str(self.socket), timeout=30.0)
        return self._client

    def drop_client(self) -> None:
        """Forgets the connection to the daemon; the next call makes another."""
        client, self._client = self._client, None
        sock = getattr(client, "sock", None) if client is not None else None
        if sock is not None:
            sock.close()
            client.sock = None

    def rpc(self, method: str, **params: Any) -> Any:
        """One call; a JSON-RPC error becomes ``RpcError``."""
        try:
            return self.client().call(method, params)
        except JSONRPCException as error:
            _, _, text = str(error.message).partition("response:\n")
            if "JSON-RPC error response" not in str(error.message):
                self.drop_client()
                raise
            answer = json.loads(text)
            raise RpcError(answer["code"], answer["message"]) from error

    # What the process uses

    def rss_kib(self) -> int:
        return self._status("VmRSS")

    def _status(self, key: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1])
        raise AssertionError(f"no {key} in /proc/{self.pid}/status")

    def fd_count(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def task_count(self) -> int | None:
        """asyncio tasks as ``p2p_get_status`` counts them, or None if it does not say."""
        tasks = self.rpc("p2p_get_status").get("tasks")
        return tasks if isinstance(tasks, int) else None

    # Configuration

    def transport(self, **options: Any) -> None:
        """The TCP transport, if it is not there."""
        if not any(t["trtype"] == "TCP" for t in self.rpc("nvmf_get_transports")):
            self.rpc("nvmf_create_transport", trtype="TCP", **options)

    def bdev(self, ns: Ns) -> str:
        """A back end; its name."""
        name = f"b{next(_names)}"
        if ns.kind == "malloc":
            self.rpc("bdev_malloc_create", name=name, num_blocks=ns.blocks, block_size=ns.block_size)
        elif ns.kind == "null":
            self.rpc("bdev_null_create", name=name, num_blocks=ns.blocks, block_size=ns.block_size)
        else:
            path = self.dir / f"{name}.img"
            with path.open("wb") as file:
                file.truncate(ns.blocks * ns.block_size)
            self.rpc("bdev_aio_create", name=name, filename=str(path), block_size=ns.block_size, readonly=ns.readonly)
        return name

    def delete_bdev(self, name: str, ns: Ns) -> None:
        """Deletes what ``bdev`` has made."""
        self.rpc(f"bdev_{ns.kind}_delete", name=name)

    def grow(self, name: str, ns: Ns, blocks: int) -> None:
        """Makes a null or aio bdev that ``bdev`` has made larger: whole MiB."""
        if ns.kind == "null":
            self.rpc("bdev_null_resize", name=name, new_size=blocks * ns.block_size // MIB)
            return
        with (self.dir / f"{name}.img").open("r+b") as file:
            file.truncate(blocks * ns.block_size)
        self.rpc("bdev_aio_rescan", name=name)

    def subsystem(self, *namespaces: Ns, **options: Any) -> Tree:
        """A subsystem with these namespaces (NSID 1 and on) that listens on a free port. It allows any host."""
        self.transport()
        number = next(_names)
        tree = Tree(self, f"nqn.2026-01.org.example:s{number}", ("127.0.0.1", free_port()))
        listen = bool(options.pop("listen", True))
        options = {"allow_any_host": True, "serial_number": f"SN{number:05}", "max_namespaces": 32} | options
        self._trees.append(tree)
        self.rpc("nvmf_create_subsystem", nqn=tree.nqn, **options)
        for ns in namespaces:
            tree.add(ns)
        if listen:
            tree.listen()
        return tree


class Tree:
    """A subsystem of a test and the back ends below it."""

    def __init__(self, daemon: Daemon, nqn: str, address: Address) -> None:
        self.daemon = daemon
        self.nqn = nqn
        self.address = address
        self.bdevs: dict[int, tuple[str, Ns]] = {}  # by NSID
        self.hosts: list[Host] = []

    def rpc(self, method: str, **params: Any) -> Any:
        """A call about this subsystem."""
        return self.daemon.rpc(method, nqn=self.nqn, **params)

    @staticmethod
    def listen_address(address: Address) -> dict[str, str]:
        return {"trtype": "TCP", "adrfam": "IPv4", "traddr": address[0], "trsvcid": str(address[1])}

    def listen(self, address: Address | None = None, **params: Any) -> None:
        self.rpc("nvmf_subsystem_add_listener", listen_address=self.listen_address(address or self.address), **params)

    def add(self, ns: Ns, nsid: int = 0) -> int:
        """Adds a namespace on a new back end; its NSID."""
        name = self.daemon.bdev(ns)
        namespace: dict[str, Any] = {"bdev_name": name, **ns.params}
        if nsid:
            namespace["nsid"] = nsid
        given = int(self.rpc("nvmf_subsystem_add_ns", namespace=namespace))
        self.bdevs[given] = (name, ns)
        return given

    def remove(self, nsid: int) -> None:
        self.rpc("nvmf_subsystem_remove_ns", nsid=nsid)

    def host(self, **options: Any) -> Host:
        """A host's association, not connected yet; closed with the tree."""
        address = options.pop("address", self.address)
        host = Host(address, options.pop("subnqn", self.nqn), HostOptions(**options))
        self.hosts.append(host)
        return host

    def started(self, **options: Any) -> Host:
        """A connected host with an enabled controller."""
        return self.host(**options).start()

    def close_hosts(self) -> None:
        for host in self.hosts:
            host.close()
        self.hosts.clear()

    def delete(self) -> None:
        """Removes all of it; a tree that the test has already removed is left alone."""
        self.close_hosts()
        if any(subsystem["nqn"] == self.nqn for subsystem in self.daemon.rpc("nvmf_get_subsystems")):
            self.rpc("nvmf_delete_subsystem")
        names = {bdev["name"] for bdev in self.daemon.rpc("bdev_get_bdevs")}
        for name, ns in self.bdevs.values():
            if name in names:
                self.daemon.delete_bdev(name, ns)
