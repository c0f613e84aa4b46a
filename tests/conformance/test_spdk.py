"""NVMe controllers of the data plane's own: attached, lost, back, reset and detached under I/O; restarts of all parts.

The other end is a second instance of this target, reached with SPDK's NVMe/TCP driver. Drives on vfio-pci: tests/lab.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import nvme
from tests.support.conn import PeerClosed
from tests.support.daemon import Ns, RpcError, Tree, eventually
from tests.support.spdk import SpdkDaemon

pytestmark = pytest.mark.spdk
BLOCK = 512


@pytest.fixture
def front() -> Iterator[SpdkDaemon]:
    daemon = SpdkDaemon()
    try:
        daemon.start()
        daemon.transport()
        yield daemon
        assert "Traceback" not in daemon.log.read_text(errors="replace"), daemon.log_text()
    finally:
        daemon.close()


def controller(front: SpdkDaemon, name: str) -> dict[str, Any]:
    (shown,) = front.rpc("bdev_nvme_get_controllers", name=name)
    found: dict[str, Any] = shown["ctrlrs"][0]
    return found


def bdevs(front: SpdkDaemon) -> dict[str, dict[str, Any]]:
    return {bdev["name"]: bdev for bdev in front.rpc("bdev_get_bdevs")}


def serve(front: SpdkDaemon, *names: str) -> Tree:
    """A subsystem of the front target with these bdevs."""
    tree = front.subsystem()
    for name in names:
        tree.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": name})
    return tree


def pattern(number: int, blocks: int = 1) -> bytes:
    return bytes([number & 0xFF, 0x5A]) * (BLOCK * blocks // 2)


class Load(threading.Thread):
    """Writes and reads back until it is told to stop; keeps the first thing that went wrong."""

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.io = tree.started().io()
        self.stopping = threading.Event()
        self.rounds = 0
        self.fault = ""

    def run(self) -> None:
        try:
            while not self.stopping.is_set() and not self.fault:
                self._round()
        except (OSError, PeerClosed, AssertionError) as error:
            self.fault = repr(error)

    def _round(self) -> None:
        lba, data = self.rounds % 64, pattern(self.rounds)
        wrote = self.io.write(lba, 1, data)
        read = self.io.read(lba, 1, BLOCK)
        if wrote.status or read.status:
            self.fault = f"status {wrote.status:#x} {read.status:#x}"
        elif read.data != data:
            self.fault = f"other data at {lba}"
        self.rounds += 1

    def end(self) -> None:
        self.stopping.set()
        self.join(60)
        assert not self.is_alive(), "an I/O hangs"


def test_data_is_in_the_other_target(front: SpdkDaemon) -> None:
    behind = front.back.subsystem(Ns())
    assert front.attach("Far", behind) == ["Farn1"]
    io, straight = serve(front, "Farn1").started().io(), behind.started().io()
    assert io.write(7, 8, pattern(1, 8)).status == nvme.OK
    assert straight.read(7, 8, 8 * BLOCK).data == pattern(1, 8)
    assert straight.write(9, 1, pattern(2)).status == nvme.OK
    assert io.read(9, 1, BLOCK).data == pattern(2)


def test_what_is_refused(front: SpdkDaemon) -> None:
    behind = front.back.subsystem(Ns())
    saved = front.rpc("save_config")
    traddr, port = behind.address
    there = {"trtype": "TCP", "traddr": traddr, "trsvcid": str(port), "subnqn": behind.nqn}
    for change, codes in (
        ({"subnqn": f"{behind.nqn}-other"}, ()),
        ({"trsvcid": "1"}, ()),
        ({"trtype": "PCIe", "traddr": "0000:ff:1f.6", "trsvcid": ""}, (-19, -12)),  # -12: before 25.09
    ):
        with pytest.raises(RpcError) as caught:
            front.rpc("bdev_nvme_attach_controller", name="Far", **there | change)
        assert not codes or caught.value.code in codes, change
        assert caught.value.code < 0
        assert front.rpc("save_config") == saved
    assert front.attach("Far", behind) == ["Farn1"]
    with pytest.raises(RpcError, match="already exists with the specified network path"):
        front.attach("Far", behind)
    with pytest.raises(RpcError, match="already attached"):
        front.rpc("bdev_nvme_set_options", timeout_us=1)


def test_saved_and_loaded(front: SpdkDaemon) -> None:
    behind = front.back.subsystem(Ns(), Ns(blocks=1024, block_size=4096))
    assert front.attach("Far", behind) == ["Farn1", "Farn2"]
    front.rpc("bdev_error_create", base_name="Farn2")
    front.rpc("bdev_set_qos_limit", name="Farn1", rw_ios_per_sec=1_000_000)
    serve(front, "Farn1", "EE_Farn2")
    saved = front.rpc("save_config")
    for subsystem in front.rpc("nvmf_get_subsystems"):
        if subsystem["subtype"] == "NVMe":
            front.rpc("nvmf_delete_subsystem", nqn=subsystem["nqn"])
    front.rpc("bdev_nvme_detach_controller", name="Far")
    assert bdevs(front) == {}
    calls = [call for part in saved["subsystems"] for call in part["config"]]
    for call in [call for call in calls if call["method"] != "nvmf_create_transport"]:
        front.rpc(call["method"], **call["params"])
    assert front.rpc("save_config") == saved


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_the_daemon_comes_again(front: SpdkDaemon, kill: bool) -> None:
    front.attach("Far", front.back.subsystem(Ns()))
    tree = serve(front, "Farn1")
    assert tree.started().io().write(3, 1, pattern(3)).status == nvme.OK
    before = bdevs(front)
    tree.close_hosts()
    front.restart(kill=kill)
    after = bdevs(front)
    assert after.keys() == before.keys()
    assert after["Farn1"]["uuid"] == before["Farn1"]["uuid"]
    assert tree.started().io().read(3, 1, BLOCK).data == pattern(3)


def test_the_data_plane_dies(front: SpdkDaemon) -> None:
    front.attach("Far", front.back.subsystem(Ns()))
    tree = serve(front, "Farn1")
    host = tree.started()
    assert host.io().write(3, 1, pattern(3)).status == nvme.OK
    before = front.rpc("p2p_get_status")["dataplane"]
    os.kill(before["pid"], signal.SIGKILL)
    eventually(
        lambda: (now := front.rpc("p2p_get_status")["dataplane"])["up"] and now["restarts"] > before["restarts"],
        "another data plane has the model",
        60.0,
    )
    again = tree.started().io()
    assert again.read(3, 1, BLOCK).data == pattern(3)


def test_absent_at_the_start(front: SpdkDaemon) -> None:
    front.attach("Far", front.back.subsystem(Ns()))
    tree = serve(front, "Farn1")
    front.back.stop()
    front.restart()
    status = front.rpc("p2p_get_status")
    assert status["absent_bdevs"] == ["Farn1"]
    assert list(status["spdk"]["absent_controllers"]) == ["Far"]
    assert controller(front, "Far")["state"] == "failed"
    assert tree.started().io().read(0, 1, BLOCK).status == nvme.INVALID_NAMESPACE
    front.back.start()
    eventually(lambda: "Farn1" in bdevs(front), "it is attached when it is there", 60.0)
    assert tree.started().io().read(0, 1, BLOCK).status == nvme.OK


def test_the_other_target_goes_and_returns(front: SpdkDaemon) -> None:
    """Nothing hangs, nobody is told of a success that was none, and the namespace is back by itself."""
    front.attach("Far", front.back.subsystem(Ns()))
    io = serve(front, "Farn1").started().io()
    assert io.write(0, 1, pattern(1)).status == nvme.OK
    front.back.kill9()
    eventually(lambda: io.read(0, 1, BLOCK).status != nvme.OK, "the loss is told", 60.0)
    front.back.start()
    eventually(lambda: io.write(0, 1, pattern(2)).status == nvme.OK, "the namespace is back", 60.0)
    assert io.read(0, 1, BLOCK).data == pattern(2)


def test_reset_under_load(front: SpdkDaemon) -> None:
    front.attach("Far", front.back.subsystem(Ns()))
    load = Load(serve(front, "Farn1"))
    load.start()
    for number in range(5):
        rounds = load.rounds
        assert front.rpc("bdev_nvme_reset_controller", name="Far") is True
        eventually(lambda at=rounds: load.rounds > at + 2 or load.fault, f"I/O goes on after reset {number}", 30.0)
    load.end()
    assert load.fault == ""
    assert controller(front, "Far")["resets"] == 5


def test_detached_under_load(front: SpdkDaemon) -> None:
    behind = front.back.subsystem(Ns(), Ns())
    front.attach("Far", behind)
    tree = serve(front, "Farn1", "Farn2")
    load = Load(tree)
    load.start()
    eventually(lambda: load.rounds > 5, "there is I/O", 30.0)
    assert front.rpc("bdev_nvme_detach_controller", name="Far") is True
    load.join(30)
    assert not load.is_alive(), "an I/O hangs"
    assert load.fault.startswith("status")
    assert bdevs(front) == {}
    assert front.attach("Far", behind) == ["Farn1", "Farn2"]


def test_layers_limits_and_counters(front: SpdkDaemon) -> None:
    front.attach("Far", front.back.subsystem(Ns()))
    front.rpc("bdev_set_qos_limit", name="Farn1", rw_mbytes_per_sec=100)
    front.rpc("bdev_enable_histogram", name="Farn1", enable=True)
    front.rpc("bdev_error_create", base_name="Farn1")
    io = serve(front, "EE_Farn1").started().io()
    assert io.write(0, 1, pattern(1)).status == nvme.OK
    front.rpc("bdev_error_inject_error", name="EE_Farn1", io_type="read", error_type="failure", num=1)
    assert io.read(0, 1, BLOCK).status != nvme.OK
    assert io.read(0, 1, BLOCK).data == pattern(1)
    counters = {entry["name"]: entry for entry in front.rpc("bdev_get_iostat")["bdevs"]}
    assert counters["EE_Farn1"]["num_write_ops"] == 1
    assert front.rpc("bdev_get_histogram", name="Farn1")["histogram"]


def test_a_timeout_is_for_what_hangs(front: SpdkDaemon) -> None:
    """Admin commands, whose own time is not set, have that of I/O commands."""
    front.rpc("bdev_nvme_set_options", timeout_us=30_000_000, action_on_timeout="reset")
    front.attach("Far", front.back.subsystem(Ns()))
    io = serve(front, "Farn1").started().io()
    for lba in range(16):
        assert io.write(lba, 1, pattern(lba)).status == nvme.OK
    front.rpc("bdev_nvme_get_controller_health_info", name="Far")
    shown = controller(front, "Far")
    assert (shown["timeouts"], shown["resets"], shown["retries"]) == (0, 0, 0)


def test_health(front: SpdkDaemon) -> None:
    front.attach("Far", front.back.subsystem(Ns()))
    shown = front.rpc("bdev_nvme_get_controller_health_info", name="Far")
    assert shown["serial_number"] == controller(front, "Far")["serial_number"]
    assert {"temperature_celsius", "percentage_used", "data_units_read", "num_err_log_entries"} <= shown.keys()


def test_namespaces_come_and_change(front: SpdkDaemon) -> None:
    """What the other target's asynchronous events tell: a new namespace becomes a bdev, a larger one has its size."""
    behind = front.back.subsystem(Ns("null", 4096, BLOCK))
    front.attach("Far", behind)
    name = behind.bdevs[1][0]
    front.back.rpc("bdev_null_resize", name=name, new_size=4)
    eventually(lambda: bdevs(front)["Farn1"]["num_blocks"] == (4 << 20) // BLOCK, "the new size is seen", 60.0)
    assert behind.add(Ns()) == 2
    eventually(lambda: "Farn2" in bdevs(front), "the new namespace is a bdev", 60.0)
    behind.remove(2)
    eventually(lambda: "Farn2" not in bdevs(front), "it is gone", 60.0)
    with contextlib.suppress(RpcError):
        front.rpc("bdev_nvme_reset_controller", name="Far")
    assert list(bdevs(front)) == ["Farn1"]


def test_another_namespace_in_its_place(front: SpdkDaemon) -> None:
    """Hosts never see its bytes, also not after a restart of all parts; the right one is welcome again."""
    behind = front.back.subsystem(Ns())
    right = behind.bdevs[1][0]
    front.attach("Far", behind)
    tree = serve(front, "Farn1")
    assert tree.started().io().write(0, 1, pattern(1)).status == nvme.OK
    behind.remove(1)
    eventually(lambda: "Farn1" not in bdevs(front), "it is gone", 60.0)
    assert behind.add(Ns()) == 1
    assert behind.started().io().write(0, 1, pattern(9)).status == nvme.OK
    eventually(lambda: "refused_namespaces" in controller(front, "Far"), "another one is there", 60.0)
    assert front.rpc("p2p_get_status")["absent_bdevs"] == ["Farn1"]
    assert tree.started().io().read(0, 1, BLOCK).status == nvme.INVALID_NAMESPACE
    front.restart()  # now it is another one than the configuration says
    assert "is another one than before" in controller(front, "Far")["reason"]
    assert front.rpc("p2p_get_status")["absent_bdevs"] == ["Farn1"]
    assert tree.started().io().read(0, 1, BLOCK).status == nvme.INVALID_NAMESPACE
    behind.remove(1)
    behind.rpc("nvmf_subsystem_add_ns", namespace={"bdev_name": right})
    eventually(lambda: "Farn1" in bdevs(front), "the right one is back", 60.0)
    assert tree.started().io().read(0, 1, BLOCK).data == pattern(1)
