"""The lab shown to work, without our target: scripts, failures of scripts and guests, network, real NVMe/TCP."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.lab.__main__ import main
from tests.lab.lab import Guest, GuestDied, ScriptFailed
from tests.lab.machine import Machine
from tests.lab.monitor import KernelMessage, Qmp, splats

DEVICE = "nvme list -o json | jq -r '.Devices[].DevicePath'"
NQN = "nqn.2026-01.io.nvmet-p2p:lab"


# Scripts


def test_a_script_gives_output_and_exit_code(guest: Guest) -> None:
    done = guest.run("echo out; echo err >&2; echo $VALUE; exit 7", check=False, env={"VALUE": "it's $HOME"})
    assert (done.out, done.err, done.code, done.timed_out) == ("out\nit's $HOME\n", "err\n", 7, False)


def test_a_failed_script_raises_with_all_that_is_known(guest: Guest) -> None:
    with pytest.raises(ScriptFailed) as failure:
        guest.run("echo some output; echo some complaint >&2; echo '<3>a kernel message' > /dev/kmsg; exit 3")
    assert failure.value.result.code == 3
    for part in ("exit code 3", "some output", "some complaint", "a kernel message"):
        assert part in str(failure.value)


def test_large_output_is_complete(guest: Guest) -> None:
    assert guest.run("seq 100000").out == "".join(f"{n}\n" for n in range(1, 100001))


def test_state_stays_from_script_to_script(guest: Guest) -> None:
    boots = guest.boots
    guest.run("echo kept > /tmp/kept")
    assert guest.run("cat /tmp/kept; rm /tmp/kept").out == "kept\n"
    assert guest.boots == boots


def test_scripts_run_at_the_same_time(guest: Guest) -> None:
    waiting = guest.start("echo ready; until [ -e /tmp/go ]; do sleep 0.1; done; rm /tmp/go; echo went")
    waiting.wait_for("^ready$")
    assert not waiting.done()
    guest.run("touch /tmp/go")
    assert waiting.wait(10).out == "ready\nwent\n"


def test_files_are_shared_with_the_host(guest: Guest) -> None:
    (guest.files / "question").write_text("42")
    guest.run("expr $(cat /lab/files/question) + 1 > /lab/files/answer")
    assert (guest.files / "answer").read_text() == "43\n"


def test_tools_are_at_hand(guest: Guest) -> None:
    tools = "nvme fio mkfs.ext4 fsck.ext4 e2fsck mount umount blkdiscard jq python3 strace ip nft ss tcpdump dd lsblk"
    assert guest.run(f"for t in {tools}; do command -v $t > /dev/null || echo $t; done").out == ""
    assert guest.run("nvme version").out.startswith("nvme version 2.13")


# Failures


def test_a_hung_script_is_killed_with_all_it_started(guest: Guest) -> None:
    boots = guest.boots
    done = guest.run(
        "echo started; setsid sleep 1234 & sleep 1234 & trap '' TERM INT; sleep 1234", timeout=1, check=False
    )
    assert (done.code, done.timed_out, done.out) == (124, True, "started\n")
    assert guest.run("pgrep -f 'sleep 1234'", check=False).out == ""
    assert guest.boots == boots


def test_what_a_script_leaves_running_ends_with_it_unless_kept(guest: Guest) -> None:
    guest.run("sleep 2345 & setsid sleep 2345 &")
    assert guest.run("pgrep -f 'sleep 2345'", check=False).code == 1
    guest.run("setsid sleep 3456 > /dev/null 2>&1 &", keep=True)
    assert guest.run("pgrep -f 'sleep 3456' | wc -l").out == "1\n"
    guest.reset()
    assert guest.run("pgrep -f 'sleep 3456'", check=False).code == 1


@pytest.mark.parametrize("how", ["", "exec "], ids=["its child is stuck", "itself is stuck"])
def test_a_script_that_cannot_be_killed_costs_the_guest_not_the_session(guest: Guest, how: str) -> None:
    boots, usual = guest.boots, guest.kill_timeout
    guest.kill_timeout = 3
    try:
        done = guest.run(
            f"""
            truncate -s 16M /dev/shm/disk; loop=$(losetup -f --show /dev/shm/disk)
            dmsetup create stuck --table "0 32768 linear $loop 0"; dmsetup suspend stuck
            echo suspended; {how}dd if=/dev/dm-0 of=/dev/null iflag=direct bs=4k count=1
            """,
            timeout=3,
            check=False,
        )
    finally:
        guest.kill_timeout = usual
    assert (done.code, done.timed_out, done.out) == (124, True, "suspended\n")
    guest.reset()
    assert guest.run("echo usable").out == "usable\n"
    assert guest.boots == boots + 1


def test_a_panic_is_seen_at_once(guest: Guest) -> None:
    boots, started = guest.boots, time.monotonic()
    with pytest.raises(GuestDied, match="sysrq triggered crash"):
        guest.run("echo c > /proc/sysrq-trigger", timeout=100)
    assert time.monotonic() - started < 30
    assert guest.run("echo usable").out == "usable\n"
    assert guest.boots == boots + 1


def test_a_boot_that_panics_is_seen_at_once() -> None:
    started = time.monotonic()
    with (
        Guest(Machine(append="rdinit=/nothing root=/dev/none")) as guest,
        pytest.raises(GuestDied, match="Kernel panic"),
    ):
        guest.run("echo never")
    assert time.monotonic() - started < 60


def test_a_wrong_qemu_option_is_seen_at_once() -> None:
    with Guest(Machine(qemu_args=("-device nonsense",))) as guest, pytest.raises(GuestDied, match="nonsense"):
        guest.boot()


def test_a_monitor_that_ended_is_closed_whole() -> None:
    ours, its = socket.socketpair()
    its.close()
    monitor = Qmp(ours)  # its file keeps what QEMU did not take, and fails to write it once more when it is closed
    monitor.close()
    assert ours.fileno() == -1


# The kernel's log


def test_kernel_messages_belong_to_their_script(guest: Guest) -> None:
    guest.run("echo '<4>before' > /dev/kmsg")
    done = guest.run("echo '<6>during, informational' > /dev/kmsg; echo '<4>during, a warning' > /dev/kmsg")
    assert [m.text for m in done.messages] == ["during, informational", "during, a warning"]
    assert [m.text for m in done.warnings] == ["during, a warning"]
    assert "before" in guest.dmesg()
    assert "Linux version" in guest.dmesg()


def test_kernel_faults_are_told_from_other_messages(guest: Guest) -> None:
    done = guest.run("echo 'nvme nvme0: reconnecting in 10 seconds' > /dev/kmsg")
    assert done.splats == ()
    texts = (
        "WARNING: CPU: 0 PID: 1 at x.c:1",
        "BUG: kernel NULL pointer",
        "INFO: task dd:1 blocked for more than 120 seconds.",
    )
    faults = tuple(KernelMessage(4, n, 0.0, text) for n, text in enumerate(texts))
    assert splats(faults) == faults


# The network


class Greeter(threading.Thread):
    """Says hello to whoever connects to a port of the host's loopback address."""

    def __init__(self, family: socket.AddressFamily, address: str) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server((address, 0), family=family)
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"hello from the host\n")

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join()


@pytest.fixture
def greeter() -> Iterator[Greeter]:
    thread = Greeter(socket.AF_INET, "127.0.0.1")
    yield thread
    thread.stop()


@pytest.mark.parametrize("address", ["10.0.2.2", "127.0.0.1"])
def test_the_host_is_reached_at(guest: Guest, greeter: Greeter, address: str) -> None:
    assert guest.run(f"cat < /dev/tcp/{address}/{greeter.port}").out == "hello from the host\n"


def test_the_host_is_reached_over_ipv6(guest: Guest) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    thread = Greeter(socket.AF_INET6, "::1")
    try:
        assert guest.run(f"cat < /dev/tcp/fec0::2/{thread.port}").out == "hello from the host\n"
    finally:
        thread.stop()


def test_127_0_0_1_can_be_the_guests_own(guest: Guest, greeter: Greeter) -> None:
    script = f"loopback guest; cat < /dev/tcp/127.0.0.1/{greeter.port}"
    done = guest.run(script, check=False)
    assert done.code != 0
    assert "refused" in done.err


# NVMe/TCP, with the kernel's own target


def test_nvme_tcp_round_trip(guest: Guest) -> None:
    """Linux initiator and Linux target: discovery, a file system, verified data, discard; nothing of it is ours."""
    done = guest.run(
        f"""
        set -e
        nvmet-serve {NQN} 127.0.0.2 4420 64M
        nvme discover -t tcp -a 127.0.0.2 -s 4420 | grep -q {NQN}
        nvme connect -t tcp -a 127.0.0.2 -s 4420 -n {NQN} --nr-io-queues=2 >&2
        dev=$({DEVICE})
        mkfs.ext4 -q $dev; mkdir -p /mnt/fs; mount $dev /mnt/fs
        seq 10000 > /mnt/fs/numbers; umount /mnt/fs; fsck.ext4 -fn $dev >&2; mount $dev /mnt/fs
        md5sum < /mnt/fs/numbers; seq 10000 | md5sum; umount /mnt/fs
        fio --name=v --filename=$dev --rw=randwrite --bsrange=4k-64k --size=8M --iodepth=16 --direct=1 \\
            --ioengine=libaio --verify=crc32c --output-format=json > /tmp/fio.json; jq '.jobs[0].error' /tmp/fio.json
        blkdiscard $dev; nvme flush $dev >&2
        nvme disconnect -n {NQN}
        """,
        timeout=100,
    )
    first, second, error = done.out.splitlines()[0], done.out.splitlines()[1], done.out.splitlines()[2]
    assert first == second
    assert error == "0"
    assert done.splats == ()


def test_discovery_of_a_target_on_the_hosts_loopback(guest: Guest, boot: Callable[[Machine], Guest]) -> None:
    """The log of a discovery controller on the host's 127.0.0.1 names that address: connect-all works with it as it is.

    The target is the kernel's, in a second guest behind a forwarded port; it listens on 127.0.0.1 there.
    """
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    forward = f"-netdev user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:{port} -device virtio-net-pci,netdev=net0,romfile="
    peer = boot(Machine(net=False, memory="512M", qemu_args=(forward,)))
    peer.run(
        f"""
        set -e
        loopback guest
        modprobe -a nft_chain_nat nft_nat
        nft add table ip in
        nft 'add chain ip in in {{ type nat hook prerouting priority -100; }}'
        nft add rule ip in in tcp dport {port} dnat to 127.0.0.1
        nvmet-serve {NQN} 127.0.0.1 {port} 16M
        """
    )
    log = guest.run(f"nvme discover -t tcp -a 10.0.2.2 -s {port} -o json").json()
    assert {record["traddr"] for record in log["records"]} == {"127.0.0.1"}
    guest.run(f"nvme connect-all -t tcp -a 10.0.2.2 -s {port}")
    paths = guest.run("nvme list-subsys -o json").out
    assert NQN in paths
    assert f"traddr=127.0.0.1,trsvcid={port}" in paths
    device = guest.run(DEVICE).out.strip()
    guest.run(
        f"head -c 1M /dev/urandom > /tmp/a; dd if=/tmp/a of={device} bs=64k oflag=direct\ncmp -n 1M /tmp/a {device}"
    )


def test_a_change_of_the_discovery_log_connects_by_itself(guest: Guest) -> None:
    """A persistent discovery controller with `autoconnect`, which does what udev does on a real host."""
    guest.run(f"nvmet-serve {NQN} 127.0.0.2 4420 16M; nvme discover -p -t tcp -a 127.0.0.2 -s 4420")
    watch = guest.start("exec autoconnect")
    watch.wait_for("^listening$")
    guest.run(
        f"""
        set -e
        cd /sys/kernel/config/nvmet
        mkdir subsystems/{NQN}.2; echo 1 > subsystems/{NQN}.2/attr_allow_any_host
        ln -s /sys/kernel/config/nvmet/subsystems/{NQN}.2 ports/0/subsystems/
        for _ in {{1..100}}; do nvme list-subsys | grep -q {NQN}.2 && exit; sleep 0.1; done; exit 1
        """
    )
    watch.wait_for("^nvme connect-all --device=nvme0 --transport=tcp --traddr=127.0.0.2 --trsvcid=4420$")
    watch.kill()
    assert watch.wait(check=False).code == 137


# Other hardware


@pytest.mark.p2p
def test_drives_with_a_cmb_behind_a_switch(boot: Callable[[Machine], Guest]) -> None:
    """The topology that peer-to-peer tests need, a trace of QEMU, and the ways to its monitor."""
    guest = boot(Machine(nvme=("A:sw1:64:64", "B:sw1:64:64", "C:rc:64", "D:rp:64:16"), trace=("pci_nvme_read",)))
    guest.run("modprobe nvme; for _ in {1..50}; do [ $(ls -d /dev/nvme?n1 | wc -l) = 4 ] && break; sleep 0.1; done")
    found = guest.run(
        "cd /sys/class/nvme\n"
        "for d in *; do echo $(<$d/serial) $(cat $d/device/p2pmem/size) $(readlink -f $d/device); done"
    )
    rows = {words[0]: words[1:] for words in map(str.split, found.out.splitlines())}
    assert {serial: words[0] for serial, words in rows.items() if len(words) == 2} == {
        "A": str(64 << 20),
        "B": str(64 << 20),
        "D": str(16 << 20),
    }
    assert rows["A"][1].rsplit("/", 4)[0] == rows["B"][1].rsplit("/", 4)[0]
    guest.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct")
    assert "pci_nvme_read" in (guest.folder / "trace").read_text()
    assert "running" in guest.hmp("info status")
    done = guest.run(
        "exec 4<>/dev/virtio-ports/lab.ctl; echo 'hmp device_del D' >&4; read -r -t 10 answer <&4; echo \"$answer\"\n"
        "for _ in {1..100}; do [ $(ls -d /dev/nvme?n1 | wc -l) = 3 ] && exit; sleep 0.1; done; exit 1"
    )
    assert done.out == '{"return": ""}\n'


@pytest.mark.slow
def test_debian_13s_own_kernel(boot: Callable[[Machine], Guest]) -> None:
    guest = boot(Machine(kernel="stable"))
    assert guest.run("uname -r; modprobe -a nvme_tcp nvmet_tcp nvme").out.startswith("6.12.")


# The command line


def test_command_line_runs_one_command(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--no-net", "--mem", "512M", "--", "echo out; echo err >&2; ip -br a | wc -l; exit 3"]) == 3
    out, err = capfdbinary.readouterr()
    assert out == b"out\n1\n"
    assert b"err\n" in err


def test_command_line_reports_a_timeout(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--timeout", "1", "--", "echo begun; sleep 100"]) == 124
    assert capfdbinary.readouterr().out == b"begun\n"


def test_shell_on_a_terminal() -> None:
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "vt100"}
    command = [sys.executable, "-m", "tests.lab", "--shell", "--no-net", "--mem", "512M"]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        try:
            shown = _read_until(master, b"lab:~# ")
            assert b"10.0.2.2" in shown
            os.write(master, b"echo $((6 * 7)) $TERM; exit\n")
            assert b"42 vt100" in _read_until(master, b"exit\r\n")
            assert process.wait(30) == 0
        finally:
            process.terminate()
            os.close(master)


def _read_until(terminal: int, end: bytes) -> bytes:
    seen = b""
    while not seen.endswith(end):
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the other side has closed it
            break
    return seen
