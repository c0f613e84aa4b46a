"""The target inside the guest, beside the drives that it serves: daemon and data plane of this checkout (runtime.py).

    target = InsideTarget(guest)
    target.start()
    target.rpc("bdev_uring_create", name="a", filename="/dev/nvme0n1")
    target.cli("status").out

Calls of the admin API come through a virtio port, at native speed on this side; ``cli`` runs the commands themselves.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import socket
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tests.lab.lab import Guest, Result
from tests.lab.runtime import PYTHON
from tests.support.daemon import RpcError

ADDRESS = "127.0.0.2"  # 127.0.0.1 is the host's (guest/loopback)
PORT = 4420
START_S = 300.0  # bound on a start under emulation on a loaded machine
SOCKET = "/run/nvmet-p2p/rpc.sock"
STATE = "/run/nvmet-p2p/state"
COMMAND = [PYTHON, "-m", "nvmet_p2p"]


class Unreachable(Exception):
    """The daemon in the guest does not answer, and why."""


@dataclass(frozen=True, slots=True)
class Drive:
    """An emulated NVMe drive as the guest's kernel knows it."""

    id: str
    """Its name in the machine's ``nvme``; also its serial number."""
    nsid: int
    bdf: str
    device: str
    """/dev/nvme0n1"""
    controller: str
    """nvme0"""
    bars: tuple[tuple[int, int], ...]
    """Address ranges of its memory BARs, as CPU and bus see them: first and last byte."""
    cmb: int
    """Bytes of published CMB, 0 without one."""


_FACTS = """
modprobe nvme
want=%d
for _ in {1..100}; do [ $(ls -d /dev/nvme?n1 2>/dev/null | wc -l) -ge $want ] && break; sleep 0.1; done
cd /sys/class/nvme
for c in nvme*; do
    [ "$(<$c/transport)" = pcie ] || continue
    p=$(readlink -f $c/device); n=$(ls -d $c/nvme*n* 2>/dev/null | head -1)
    echo $(<$c/serial) $c ${p##*/} /dev/${n##*/} $(cat $p/p2pmem/size 2>/dev/null || echo 0)
    awk '$1 != "0x0000000000000000" && !/^0x0+ 0x0+/ {print "bar", $1, $2}' $p/resource
done
"""


def drives(guest: Guest, wanted: Collection[str] = ()) -> dict[str, Drive]:
    """The guest's drives by name, the driver loaded and all of the machine's namespaces there, or so many as wanted."""
    names = [spec.split(":")[0] for spec in guest.machine.nvme]
    found: dict[str, Drive] = {}
    ident = ""
    for line in guest.run(_FACTS % (len(wanted) or len(names))).out.splitlines():
        words = line.split()
        if words[0] == "bar":
            drive = found[ident]
            bars = (*drive.bars, (int(words[1], 16), int(words[2], 16)))
            found[ident] = Drive(ident, drive.nsid, drive.bdf, drive.device, drive.controller, bars, drive.cmb)
        else:
            ident, controller, bdf, device, cmb = words
            found[ident] = Drive(ident, names.index(ident) + 1, bdf, device, controller, (), int(cmb))
    return found


class InsideTarget:
    """The daemon in a guest whose machine has ``target=True``."""

    def __init__(self, guest: Guest, engine: str = "native") -> None:
        self.guest = guest
        self.engine = engine
        self.start_seconds = 0.0
        self._ids = itertools.count(1)
        self._link: socket.socket | None = None
        self._boot = 0
        self._pending = b""

    # Life

    def start(self, *options: str) -> InsideTarget:
        """Starts the daemon with an empty state unless one runs; waits until it answers."""
        if self.up():
            return self
        self._relay()
        words = ["target-enter", *COMMAND, "serve", "--rpc-socket", SOCKET, "--state-dir", STATE]
        words += ["--dataplane", self.engine, *options]
        started = time.monotonic()
        (self.guest.files / "target.ended").unlink(missing_ok=True)
        self.guest.run(_DETACHED.format(command=shlex.join(words), name="target", pid="/run/nvmet-p2p/pid"), keep=True)
        while not self.up():
            if (self.guest.files / "target.ended").exists():
                raise Unreachable(f"the daemon in the guest has ended\n{self.log()}")
            if time.monotonic() > started + START_S:
                raise Unreachable(f"the daemon in the guest does not answer after {START_S:.0f} s\n{self.log()}")
            time.sleep(0.3)  # each look costs the guest some of its time
        self.start_seconds = time.monotonic() - started
        # what the traces show is then what a test asks for, not a measurement of the pools that "auto" could use
        self.rpc("p2p_set_staging", policy="off")
        return self

    def up(self) -> bool:
        """Whether the daemon answers."""
        if not self.guest.alive or self._boot != self.guest.boots:
            return False
        try:
            return bool(self.rpc("rpc_get_methods", timeout_s=5.0))
        except Unreachable:
            return False

    def stop(self, signal: str = "TERM") -> None:
        """Ends the daemon and waits for its end."""
        self.guest.run(
            f"""p=$(cat /run/nvmet-p2p/pid) || exit 0; kill -{signal} $p
            for _ in {{1..200}}; do [ -e /proc/$p ] || exit 0; sleep 0.1; done; kill -9 $p; exit 1"""
        )

    def forget(self) -> None:
        """Removes the state of an ended daemon: the next start is with nothing configured."""
        self.guest.run(f"rm -rf {STATE}")

    def log(self) -> str:
        """The end of the daemon's log, that of its data plane included."""
        try:
            return (self.guest.files / "target.log").read_text(errors="replace")[-8000:]
        except FileNotFoundError:
            return ""

    # Calls

    def _relay(self) -> None:
        """target-rpc runs in the guest, and we are connected with it."""
        if self._boot == self.guest.boots and self.guest.alive:
            return
        self.guest.boot()
        self.guest.run(_DETACHED.format(command="target-rpc", name="target-rpc", pid="/run/target-rpc.pid"), keep=True)
        if self._link is not None:
            self._link.close()
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(str(self.guest.folder / "rpc"))
        self._pending = b""
        self._boot = self.guest.boots

    def close(self) -> None:
        """Lets go of the port; the guest may go on."""
        if self._link is not None:
            self._link.close()
            self._link = None
            self._boot = 0

    def rpc(self, method: str, *, timeout_s: float = 60.0, **params: Any) -> Any:
        """One call; ``RpcError`` if the daemon refuses, ``Unreachable`` if there is no daemon."""
        return self.call(SOCKET, method, params, timeout_s)

    def dataplane_rpc(self, method: str, *, timeout_s: float = 60.0, **params: Any) -> Any:
        """The same of the data plane, behind the daemon's back."""
        return self.call(f"{SOCKET}.dp", method, params, timeout_s)

    def call(self, path: str, method: str, params: dict[str, Any], timeout_s: float = 60.0) -> Any:
        """One call to whatever answers JSON-RPC at that path in the guest."""
        self._relay()
        assert self._link is not None
        ident = next(self._ids)
        order = {"id": ident, "socket": path, "method": method, "params": params, "timeout": timeout_s}
        self._link.settimeout(timeout_s + 10)
        self._link.sendall(json.dumps(order).encode() + b"\n")
        while True:
            line, newline, rest = self._pending.partition(b"\n")
            if not newline:
                try:
                    more = self._link.recv(1 << 20)
                except TimeoutError:
                    raise Unreachable(f"no answer to {method}") from None
                if not more:
                    raise Unreachable("the guest is gone")
                self._pending += more
                continue
            self._pending = rest
            answer = json.loads(line)
            if answer["id"] != ident:  # of a call that was given up
                continue
            error = answer.get("error")
            if isinstance(error, str):
                raise Unreachable(f"{method}: {error}")
            if error is not None:
                raise RpcError(error["code"], error["message"])
            return answer["result"]

    def cli(self, *words: str, timeout: float = 60.0, check: bool = True) -> Result:
        """The ``nvmet-p2p`` command in the guest; the option with which it finds the daemon is added."""
        line = [*COMMAND, *words, "--rpc-socket", SOCKET]
        return self.guest.run(f"exec target-enter {shlex.join(line)}", timeout=timeout, check=check)

    def spdk_rpc(self, *words: str, timeout: float = 60.0, check: bool = True) -> Result:
        """The ``spdk-rpc`` command of the PyPI package in the guest."""
        line = [PYTHON, f"{sys.prefix}/bin/spdk-rpc", "-s", SOCKET, *words]
        return self.guest.run(f"exec target-enter {shlex.join(line)}", timeout=timeout, check=check)

    # Configuration

    def serve(self, nqn: str, bdevs: dict[int, str], port: int = PORT, **options: Any) -> None:
        """A subsystem, open to every host, with these back ends by NSID, and a listener on 127.0.0.2."""
        if not self.rpc("nvmf_get_transports"):
            self.rpc("nvmf_create_transport", trtype="TCP")
        options = {"allow_any_host": True, "serial_number": "INSIDE01", "max_namespaces": 32, **options}
        self.rpc("nvmf_create_subsystem", nqn=nqn, **options)
        for nsid, bdev in bdevs.items():
            self.rpc("nvmf_subsystem_add_ns", nqn=nqn, namespace={"nsid": nsid, "bdev_name": bdev})
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": ADDRESS, "trsvcid": str(port)}
        self.rpc("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address)

    def clear(self) -> None:
        """Takes away all subsystems, back ends and controllers."""
        for subsystem in self.rpc("nvmf_get_subsystems"):
            if subsystem["subtype"] == "NVMe":
                self.rpc("nvmf_delete_subsystem", nqn=subsystem["nqn"])
        if "bdev_nvme_get_controllers" in self.rpc("rpc_get_methods"):
            for controller in self.rpc("bdev_nvme_get_controllers"):
                self.rpc("bdev_nvme_detach_controller", name=controller["name"])
        for bdev in reversed(self.rpc("bdev_get_bdevs")):
            kind = re.split(r"\W", bdev["product_name"].lower())[0]
            self.rpc(f"bdev_{kind}_delete", name=bdev["name"])

    @staticmethod
    def connect(nqn: str, *options: str, port: int = PORT) -> str:
        """The guest's ``nvme connect`` line."""
        words = [
            "nvme",
            "connect",
            "-t",
            "tcp",
            "-a",
            ADDRESS,
            "-s",
            str(port),
            "-n",
            nqn,
            "--nr-io-queues=2",
            *options,
        ]
        return " ".join(words)


# A command that no job's end ends; its output and then its exit code go where the host can read them.
_DETACHED = """set -e
group=/sys/fs/cgroup/target; mkdir -p $group /run/nvmet-p2p; echo $$ > $group/cgroup.procs
trap '' HUP; rm -f {pid}
(
    {command} < /dev/null >> /lab/files/{name}.log 2>&1 & echo $! > {pid}
    set +e; wait $!; echo $? > /lab/files/{name}.ended
) > /dev/null 2>&1 &
until [ -s {pid} ]; do sleep 0.1; done
"""
