"""What was accepted survives `kill -9`; what cannot be trusted is refused and left as it is."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spdk.rpc.client import JSONRPCException

from tests.conformance.conftest import MakeDaemon
from tests.support import nvme
from tests.support.conn import PeerClosed
from tests.support.daemon import Daemon, Ns, Tree, eventually, free_port
from tests.support.initiator import Host, lba_cdw

NQN = "nqn.2026-01.org.example:persist"


def listen(port: int) -> dict[str, str]:
    return Tree.listen_address(("127.0.0.1", port))


def calls(daemon: Daemon) -> Iterator[tuple[str, dict[str, Any]]]:
    """One of each kind of change, in an order in which each is accepted."""
    port, second = free_port(), free_port()
    image = daemon.dir / "disk.img"
    image.write_bytes(bytes(1 << 20))
    yield "nvmf_create_transport", {"trtype": "TCP"}
    yield "bdev_malloc_create", {"name": "m", "num_blocks": 2048, "block_size": 512}
    yield "bdev_null_create", {"name": "n", "num_blocks": 2048, "block_size": 4096}
    yield "bdev_aio_create", {"name": "a", "filename": str(image), "block_size": 512}
    yield "bdev_null_resize", {"name": "n", "new_size": 16}
    yield "nvmf_create_subsystem", {"nqn": NQN, "serial_number": "SN1", "ana_reporting": True}
    yield "nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "m"}}
    yield "nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "a", "nsid": 5, "no_auto_visible": True}}
    yield "nvmf_subsystem_add_listener", {"nqn": NQN, "listen_address": listen(port)}
    yield "nvmf_subsystem_add_host", {"nqn": NQN, "host": nvme.HOST_NQN}
    yield "nvmf_ns_add_host", {"nqn": NQN, "nsid": 5, "host": nvme.HOST_NQN}
    yield "nvmf_subsystem_set_ns_ana_group", {"nqn": NQN, "nsid": 1, "anagrpid": 2}
    states = {"listen_address": listen(port), "ana_state": "inaccessible", "anagrpid": 2}
    yield "nvmf_subsystem_listener_set_ana_state", {"nqn": NQN, **states}
    yield "nvmf_discovery_add_referral", {"address": listen(second)}
    yield "nvmf_subsystem_allow_any_host", {"nqn": NQN, "allow_any_host": True}
    yield "nvmf_subsystem_remove_ns", {"nqn": NQN, "nsid": 5}
    yield "nvmf_subsystem_remove_host", {"nqn": NQN, "host": nvme.HOST_NQN}
    yield "nvmf_discovery_remove_referral", {"address": listen(second)}
    yield "bdev_aio_delete", {"name": "a"}


def block(value: int) -> bytes:
    """512 bytes that say which write they come from."""
    return value.to_bytes(4, "little") * 128


def view(daemon: Daemon) -> dict[str, Any]:
    """All that an operator can see of the configuration."""
    bdevs = [
        {key: bdev.get(key) for key in ("name", "uuid", "num_blocks", "block_size")}
        for bdev in daemon.rpc("bdev_get_bdevs")
    ]
    return {
        "subsystems": daemon.rpc("nvmf_get_subsystems"),
        "bdevs": bdevs,
        "transports": daemon.rpc("nvmf_get_transports"),
        "referrals": daemon.rpc("nvmf_discovery_get_referrals"),
        "config": daemon.rpc("framework_get_config", name="nvmf"),
    }


def test_killed_after_each_accepted_call(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    for method, params in calls(daemon):
        daemon.rpc(method, **params)
        before = view(daemon)
        daemon.restart(kill=True)
        assert view(daemon) == before, f"after {method}"


def create_until_it_dies(daemon: Daemon, number: int) -> int:
    """Creates subsystems one after another; how many calls were accepted."""
    accepted = 0
    while True:
        nqn = f"{NQN}-{number + accepted:05}"
        try:
            daemon.rpc("nvmf_create_subsystem", nqn=nqn, serial_number="S", allow_any_host=True)
        except (JSONRPCException, OSError):
            return accepted
        accepted += 1


def test_killed_at_random_moments(make_daemon: MakeDaemon) -> None:
    """The state is that after the last accepted call or after the one in flight, never anything else."""
    daemon = make_daemon()
    rng = random.Random(7)
    accepted = 0
    for _ in range(5):
        killer = threading.Timer(rng.uniform(0.02, 0.25), daemon.process.kill)  # type: ignore[union-attr]
        killer.start()
        accepted += create_until_it_dies(daemon, accepted)
        killer.join()
        daemon.wait()
        daemon.drop_client()
        daemon.start()
        found = sorted(s["nqn"] for s in daemon.rpc("nvmf_get_subsystems") if s["nqn"].startswith(NQN))
        assert found == [f"{NQN}-{number:05}" for number in range(len(found))]
        assert len(found) in (accepted, accepted + 1)
        accepted = len(found)
    assert accepted > 0


def test_hosts_come_back(make_daemon: MakeDaemon) -> None:
    """Acknowledged writes to a file are there after `kill -9`, on the same address, for a host that reconnects."""
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio"))
    host = tree.started()
    io = host.io()
    data = random.Random(3).randbytes(4096)
    assert io.write(8, 8, data).status == nvme.OK
    identity = host.admin.identify(3, nsid=1).data
    daemon.kill9()
    with pytest.raises(PeerClosed):
        io.conn.recv_exact(1)
    daemon.start()
    again = tree.started()
    assert again.io().read(8, 8, 4096).data == data
    assert again.admin.identify(3, nsid=1).data == identity, "the same namespace for the host"


def test_stop_is_clean(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio"))
    host = tree.started()
    io = host.io()
    assert io.write(0, 8, b"\x77" * 4096).status == nvme.OK
    assert daemon.stop() == 0
    for queue in (host.admin, io):
        with pytest.raises(PeerClosed):
            queue.conn.recv_exact(1)
    assert not daemon.socket.exists(), "the socket is removed"
    assert "Traceback" not in daemon.log_text()
    daemon.start()
    assert tree.started().io().read(0, 8, 4096).data == b"\x77" * 4096


def test_stop_while_io_runs(make_daemon: MakeDaemon) -> None:
    """Nothing that was acknowledged is lost, and the daemon does not wait for hosts that keep sending."""
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio"))
    io = tree.started().io()
    acknowledged = []
    stopper = threading.Timer(0.3, daemon.process.terminate)  # type: ignore[union-attr]
    stopper.start()
    with contextlib.suppress(PeerClosed):
        for lba in range(1 << 20):
            if io.write(lba % 4096, 1, block(lba)).status == nvme.OK:
                acknowledged.append(lba)
    stopper.join()
    assert daemon.wait() == 0
    assert acknowledged
    daemon.drop_client()
    daemon.start()
    again = tree.started().io()
    for lba in acknowledged[-8:]:
        assert again.read(lba % 4096, 1, 512).data in (
            lba.to_bytes(4, "little") * 128,
            (lba + 4096).to_bytes(4, "little") * 128,
        )


def state_file(daemon: Daemon) -> Path:
    """The file that holds the configuration: the largest one in the state directory."""
    return max((path for path in daemon.state.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)


def newer(text: bytes) -> bytes:
    document = json.loads(text)
    document["version"] = document["version"] + 1
    return json.dumps(document).encode()


SPOILED = {
    "empty": lambda text: b"",
    "half": lambda text: text[: len(text) // 2],
    "last-byte-lost": lambda text: text.rstrip()[:-1],
    "zeroes": lambda text: bytes(len(text)),
    "one-bit": lambda text: text.replace(b"SN", b"SO", 1),
    "another-format": lambda text: b'{"hello": "world"}',
    "a-list": lambda text: b"[]",
    "newer-version": newer,
}


@pytest.mark.parametrize("spoil", list(SPOILED.values()), ids=list(SPOILED))
def test_state_that_cannot_be_trusted(make_daemon: MakeDaemon, spoil: Any) -> None:
    daemon = make_daemon()
    daemon.subsystem(Ns())
    daemon.stop()
    path = state_file(daemon)
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    spoiled = path.read_bytes()
    assert spoiled != whole
    daemon.log.write_bytes(b"")
    daemon.spawn()
    assert daemon.wait() != 0
    assert path.read_bytes() == spoiled, "left untouched"
    assert str(path) in daemon.log_text(), "the message names the file"
    assert "Traceback" not in daemon.log_text()
    path.write_bytes(whole)
    daemon.start()
    assert len(daemon.rpc("nvmf_get_subsystems")) >= 1


def test_state_directory_is_for_one_daemon(make_daemon: MakeDaemon) -> None:
    first, second = make_daemon(), make_daemon(start=False)
    second.state = first.state
    second.spawn()
    assert second.wait() != 0
    assert "Traceback" not in second.log_text()
    assert first.rpc("rpc_get_methods")


def test_files_are_for_the_owner_alone(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    daemon.subsystem(Ns())
    assert state_file(daemon).stat().st_mode & 0o077 == 0
    assert daemon.socket.stat().st_mode & 0o777 == 0o600


def test_absent_back_end_comes_later(make_daemon: MakeDaemon) -> None:
    """A disk that is not there at start does not stop the rest; its namespace comes when it does."""
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio"), Ns())
    io = tree.started().io()
    assert io.write(0, 1, b"\x33" * 512).status == nvme.OK
    tree.close_hosts()
    image = daemon.dir / f"{tree.bdevs[1][0]}.img"
    away = image.with_suffix(".away")
    daemon.stop()
    image.rename(away)
    daemon.start()
    host = tree.started()
    host.admin.set_features(0x0B, 1 << 8)
    cid = host.admin.aer()
    io = host.io()
    assert io.write(0, 1, bytes(512), nsid=2).status == nvme.OK, "the other namespace works"
    assert io.read(0, 1, 512).status != nvme.OK
    away.rename(image)
    assert host.admin.wait(cid).dw0 == 0x040002, "namespace attribute changed"
    eventually(lambda: io.read(0, 1, 512).status == nvme.OK, "the namespace is there")
    assert io.read(0, 1, 512).data == b"\x33" * 512


def test_absent_back_end_is_not_forgotten(make_daemon: MakeDaemon) -> None:
    """While it is absent, changes and another restart keep its place in the configuration."""
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio"))
    image = daemon.dir / f"{tree.bdevs[1][0]}.img"
    away = image.with_suffix(".away")
    daemon.stop()
    image.rename(away)
    daemon.start()
    tree.add(Ns())
    daemon.restart(kill=True)
    away.rename(image)
    io = tree.started().io()
    eventually(lambda: io.read(0, 1, 512).status == nvme.OK, "the namespace is there")


def test_killed_under_load(make_daemon: MakeDaemon) -> None:
    """Hosts with commands in flight while the daemon dies; they come back and find what was acknowledged."""
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio"))
    rng = random.Random(11)
    model: dict[int, int] = {}
    for round_number in range(3):
        host: Host = tree.started()
        io = host.io()
        killer = threading.Timer(rng.uniform(0.05, 0.3), daemon.process.kill)  # type: ignore[union-attr]
        killer.start()
        in_flight: dict[int, tuple[int, int]] = {}
        with contextlib.suppress(PeerClosed):
            while True:
                lba, value = rng.randrange(4096), round_number << 24 | rng.getrandbits(20) | 1
                if any(lba == other for other, _ in in_flight.values()):
                    continue
                data = block(value)
                cid = io.submit(nvme.sqe(nvme.WRITE, nsid=1, cdw=lba_cdw(lba, 1)), out=data)
                in_flight[cid] = (lba, value)
                while len(in_flight) >= 16 or (io.completed and in_flight):
                    if not io.completed:
                        io.serve_one()
                    for done in list(io.completed):
                        assert io.completed.pop(done).status == nvme.OK
                        written = in_flight.pop(done)
                        model[written[0]] = written[1]
        killer.join()
        daemon.wait()
        daemon.drop_client()
        daemon.start()
        check = tree.started().io()
        unsure = {lba for lba, _ in in_flight.values()}
        for lba, value in model.items():
            got = check.read(lba, 1, 512).data
            if lba not in unsure:
                assert got == block(value)
        for lba, value in in_flight.values():
            got = check.read(lba, 1, 512).data
            assert got in (block(value), block(model.get(lba, 0)))
            model[lba] = int.from_bytes(got[:4], "little")


def test_write_protection_outlives_the_daemon(make_daemon: MakeDaemon) -> None:
    """Feature 84h is set by a host, not by an operator; once answered it holds after ``kill -9`` (Base 8.1.16)."""
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio"), Ns())
    host = tree.started()
    assert host.admin.set_features(0x84, 1, nsid=1).status == nvme.OK
    assert host.io().write(0, 1, block(1)).status == nvme.NS_WRITE_PROTECTED
    host.close()
    tree.rpc("nvmf_subsystem_remove_ns", nsid=2)  # a change of the operator's afterwards does not undo it
    daemon.restart(kill=True)
    with tree.started() as again:
        assert again.admin.get_features(0x84, nsid=1).dw0 == 1
        assert again.io().write(0, 1, block(1)).status == nvme.NS_WRITE_PROTECTED
        assert again.admin.set_features(0x84, 0, nsid=1).status == nvme.OK
        assert again.io(2).write(0, 1, block(1)).status == nvme.OK
