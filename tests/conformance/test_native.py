"""The native data plane as a process: started, killed under I/O, started again; the daemon and its hosts go on."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import MakeDaemon
from tests.support import nvme
from tests.support.conn import PeerClosed
from tests.support.daemon import Daemon, Ns, RpcError, eventually
from tests.support.initiator import Host


@pytest.fixture(autouse=True)
def only_native(engine: str) -> None:
    """These tests are about that process."""
    if engine != "native":
        pytest.skip("the in-process engine has no process of its own")


def dataplane(daemon: Daemon) -> dict[str, Any]:
    """What p2p_get_status says of the data plane."""
    found = daemon.rpc("p2p_get_status")["dataplane"]
    assert isinstance(found, dict)
    return found


def kill_helper(daemon: Daemon, number: signal.Signals = signal.SIGKILL) -> None:
    """Ends the helper and waits until there is another one, with the model."""
    before = dataplane(daemon)
    os.kill(before["pid"], number)
    eventually(
        lambda: (now := dataplane(daemon))["up"] and now["restarts"] > before["restarts"],
        "another helper has the model",
        30.0,
    )


def gone(pid: int) -> bool:
    """The process has ended: not there any more, or waiting for its parent's parent."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_status(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    status = dataplane(daemon)
    assert (status["engine"], status["slow"], status["up"]) == ("native", False, True)
    assert Path(f"/proc/{status['pid']}/comm").read_text().startswith("nvmet-p2p-datap")
    assert Path(status["rpc_socket"]).stat().st_mode & 0o777 == 0o600
    assert daemon.stop() == 0
    assert gone(status["pid"])
    assert not Path(status["rpc_socket"]).exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_helper_ends_under_io(make_daemon: MakeDaemon, number: signal.Signals) -> None:
    """I/O queues end, the controller stays; the host connects its queues again and finds what was acknowledged."""
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio", 4096, 512), Ns("null", 4096, 512))
    host = tree.started()
    io, other = host.io(1), host.io(2)
    written = []
    for lba in range(64):
        assert io.write(lba, 1, bytes([lba]) * 512).status == nvme.OK
        written.append(lba)
    other.submit(nvme.sqe(nvme.READ, nsid=2), expect=512)
    kill_helper(daemon, number)
    with pytest.raises((PeerClosed, OSError)):
        io.read(0, 1, 512)
    io.close()
    other.close()
    assert host.admin.keep_alive().status == nvme.OK
    assert host.admin.identify(1).status == nvme.OK
    again = host.io(1)
    for lba in written:
        assert again.read(lba, 1, 512).data == bytes([lba]) * 512
    assert host.io(2).read(0, 1, 512, nsid=2).status == nvme.OK
    assert number.name in dataplane(daemon)["last_exit"] or number is signal.SIGTERM
    assert "Traceback" not in daemon.log.read_text(errors="replace")


def test_configuration_changes_reach_the_helper_that_comes(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    tree = daemon.subsystem(Ns(), Ns())
    host = tree.started()
    os.kill(dataplane(daemon)["pid"], signal.SIGKILL)
    tree.remove(2)
    assert tree.add(Ns("null", 64, 512), nsid=3) == 3
    io = host.io()
    assert io.read(0, 1, 512, nsid=3).status == nvme.OK
    assert io.read(0, 1, 512, nsid=2).status == nvme.INVALID_NAMESPACE
    assert dataplane(daemon)["restarts"] == 1


def test_helper_that_is_killed_again_and_again(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    tree = daemon.subsystem(Ns())
    host = tree.started()
    for count in range(1, 5):
        kill_helper(daemon)
        io = host.io()
        assert io.write(0, 1, bytes([count]) * 512).status == nvme.OK
        io.close()
    assert dataplane(daemon)["restarts"] == 4
    before = daemon.fd_count()
    kill_helper(daemon)
    assert daemon.fd_count() <= before


def test_daemon_that_is_killed_takes_its_helper_along(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    tree = daemon.subsystem(Ns("aio"))
    assert tree.started().io().write(0, 1, bytes(512)).status == nvme.OK
    helper = dataplane(daemon)["pid"]
    daemon.kill9()
    eventually(lambda: gone(helper), "the helper ends as nobody can reach it any more", 30.0)
    daemon.start()
    assert dataplane(daemon)["pid"] != helper
    assert tree.started().io().read(0, 1, 512).status == nvme.OK


def test_limits_delay_and_errors(make_daemon: MakeDaemon) -> None:
    """They are configuration: shown, saved, there again after a restart of either process. Injected errors are not."""
    daemon = make_daemon()
    tree = daemon.subsystem()
    for name in ("b0", "b1"):
        daemon.rpc("bdev_malloc_create", name=name, num_blocks=64, block_size=512)
    latencies = {f"{kind}_latency": 1000 for kind in ("avg_read", "p99_read", "avg_write", "p99_write")}
    assert daemon.rpc("bdev_delay_create", name="d", base_bdev_name="b0", **latencies) == "d"
    assert daemon.rpc("bdev_error_create", base_name="b1") == "EE_b1"
    with pytest.raises(RpcError, match="below"):
        daemon.rpc("bdev_error_create", base_name="b0")
    daemon.rpc("bdev_set_qos_limit", name="d", rw_ios_per_sec=100_000)
    for name in ("d", "EE_b1"):
        tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": name})
    daemon.rpc("bdev_delay_update_latency", delay_bdev_name="d", latency_type="avg_read", latency_us=2000)
    saved = daemon.rpc("framework_get_config", name="bdev")
    kill_helper(daemon)
    daemon.restart(kill=True)
    assert daemon.rpc("framework_get_config", name="bdev") == saved
    shown = {bdev["name"]: bdev for bdev in daemon.rpc("bdev_get_bdevs")}
    assert shown["d"]["assigned_rate_limits"]["rw_ios_per_sec"] == 100_000
    assert shown["d"]["driver_specific"]["delay"]["avg_read_latency"] == 2000
    assert shown["b0"]["claimed"] is True
    io = tree.started().io()
    assert io.read(0, 1, 512).status == nvme.OK
    daemon.rpc("bdev_error_inject_error", name="EE_b1", io_type="read", error_type="failure", num=1)
    assert io.read(0, 1, 512, nsid=2).status != nvme.OK
    assert io.read(0, 1, 512, nsid=2).status == nvme.OK
    daemon.rpc("bdev_enable_histogram", name="d", enable=True)
    assert io.read(0, 1, 512).status == nvme.OK
    assert daemon.rpc("bdev_get_histogram", name="d")["granularity"] == 7
    daemon.rpc("bdev_malloc_delete", name="b0")
    assert {bdev["name"] for bdev in daemon.rpc("bdev_get_bdevs")} == {"b1", "EE_b1"}


def test_counters(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    tree = daemon.subsystem(Ns())
    io = tree.started().io()
    for lba in range(10):
        assert io.write(lba, 1, bytes(512)).status == nvme.OK
    (name, _) = tree.bdevs[1]
    (stat,) = daemon.rpc("bdev_get_iostat", names=[name])["bdevs"]
    assert (stat["num_write_ops"], stat["bytes_written"]) == (10, 5120)
    daemon.rpc("bdev_reset_iostat", name=name)
    (stat,) = daemon.rpc("bdev_get_iostat", names=[name])["bdevs"]
    assert stat["num_write_ops"] == 0


def test_external_data_plane(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """One that was started elsewhere: it outlives the daemon, and the next daemon takes over its back ends."""
    import subprocess
    import tempfile

    from nvmet_p2p.dataplane.native.process import find_program

    program = find_program()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="nvmetp2p-") as short:
        channel = Path(short) / "channel.sock"
        sockets = ["--rpc-socket", f"{short}/rpc.sock", "--channel-socket", str(channel)]
        with subprocess.Popen([program, *sockets, "--log-level", "warning"]) as helper:
            try:
                eventually(channel.exists, "the data plane listens")
                daemon = make_daemon("--dataplane", "external", "--dataplane-socket", str(channel))
                assert dataplane(daemon)["pid"] == helper.pid
                tree = daemon.subsystem(Ns())
                assert tree.started().io().write(3, 1, b"x" * 512).status == nvme.OK
                tree.close_hosts()
                daemon.kill9()
                assert helper.poll() is None
                daemon.start()
                host: Host = tree.started()
                assert host.io().read(3, 1, 512).data == b"x" * 512, "the malloc bdev has lived on"
                assert daemon.stop() == 0
                assert helper.poll() is None
            finally:
                helper.terminate()
        assert helper.returncode == 0
