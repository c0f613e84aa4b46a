"""The unmodified Linux initiator uses the target: everything that a storage engineer would do on the first day.

Each test ends by looking at the guest's kernel log: an error that the host did not cause itself fails it (``quiet``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from nvmet_p2p.dataplane.native.process import find_program
from tests.lab.host import find_dev
from tests.lab.lab import Guest, Result
from tests.lab.target import SERIAL, LabTarget
from tests.support.daemon import Daemon

NQN = "nqn.2026-11.org.example:lab"

FIND = find_dev(NQN)
FIO_VERIFY = """
fio --name=verify --filename=$dev --rw=randrw --bsrange=512-128k --bs_unaligned=0 --size=24M --io_size=12M \
    --iodepth=64 --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --randrepeat=1 \
    --output-format=json > /tmp/fio.json
jq '.jobs[0].error' /tmp/fio.json
"""
# Messages of a healthy host at work; anything else of level "warning" or worse is a fault.
EXPECTED = re.compile(
    r"creating \d+ I/O queues|mapped \d+/\d+/\d+ default/read/poll queues|new ctrl|Removing ctrl|EXT4-fs|"
    r"resetting controller|using deprecated|nvme_core|loaded|rescanning namespaces|detected capacity change|"
    r"capacity|ANA|Please enable CONFIG|nvme nvme\d+: Property Set error: 880"
)


@pytest.fixture(scope="module", params=["inprocess", "native"])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    if request.param == "native" and find_program() is None:
        why = "nvmet-p2p-dataplane is not built: make native"
        if os.environ.get("NVMET_P2P_NATIVE") == "require":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    with Daemon(engine=request.param) as running:
        yield running


@pytest.fixture
def target(daemon: Daemon) -> Iterator[LabTarget]:
    made = LabTarget(daemon, NQN)
    made.serve()
    yield made
    made.clear()


def quiet(done: Result, allow: str = "") -> None:
    """The kernel said nothing that it does not say on a good day; ``allow`` is one more pattern."""
    odd = [m.text for m in done.messages if m.level <= 4 and not EXPECTED.search(m.text)]
    odd = [text for text in odd if not (allow and re.search(allow, text))]
    assert odd == []
    assert done.splats == ()


def test_discover_and_connect_all(guest: Guest, target: LabTarget) -> None:
    log = guest.run(f"nvme discover -t tcp -a 127.0.0.1 -s {target.discovery_port} -o json").json()
    records = {(record["subtype"], record["subnqn"], record["trsvcid"]) for record in log["records"]}
    assert ("nvme subsystem", NQN, str(target.port)) in records
    current = [record for record in log["records"] if record["subtype"] == "current discovery subsystem"]
    assert [record["trsvcid"] for record in current] == [str(target.discovery_port)]
    # The same log on the I/O port: hosts often look there.
    again = guest.run(f"nvme discover -t tcp -a 127.0.0.1 -s {target.port} -o json").json()
    assert NQN in {record["subnqn"] for record in again["records"]}
    done = guest.run(
        f"nvme connect-all -t tcp -a 127.0.0.1 -s {target.discovery_port} >&2\n{FIND} find_dev 1\n"
        f"nvme list-subsys -o json; nvme disconnect -n {NQN} >&2"
    )
    assert NQN in done.out
    quiet(done)


@pytest.mark.parametrize("digests", ["", "--hdr-digest", "--data-digest", "--hdr-digest --data-digest"])
def test_data_survives_fio_verify(guest: Guest, target: LabTarget, digests: str) -> None:
    """Random mixed block sizes at depth 64 over 4 I/O queues, with each combination of digests."""
    done = guest.run(
        f"{FIND} {target.connect(digests)} >&2; find_dev 1; {FIO_VERIFY}\nnvme disconnect -n {NQN} >&2", timeout=110
    )
    assert done.out.split() == ["0"]
    queues = target.rpc("nvmf_subsystem_get_qpairs", NQN)
    assert queues == []
    quiet(done)


def test_four_io_queues(guest: Guest, target: LabTarget) -> None:
    done = guest.run(f"{FIND} {target.connect()} >&2; find_dev 1; dd if=$dev of=/dev/null bs=4k count=8 iflag=direct")
    assert sorted(pair["qid"] for pair in target.rpc("nvmf_subsystem_get_qpairs", NQN)) == [0, 1, 2, 3, 4]
    (controller,) = target.rpc("nvmf_subsystem_get_controllers", NQN)
    assert controller["num_io_qpairs"] == 4
    assert controller["hostnqn"].startswith("nqn.2014-08.org.nvmexpress:uuid:")
    guest.run(f"nvme disconnect -n {NQN}")
    assert target.rpc("nvmf_subsystem_get_controllers", NQN) == []
    quiet(done)


def test_what_nvme_cli_shows(guest: Guest, target: LabTarget) -> None:
    """What a storage engineer looks at first: each answers, and with the configuration's values."""
    done = guest.run(
        f"""{FIND} {target.connect()} >&2; find_dev 1; ctrl=/dev/$(ls /sys/class/nvme | head -1)
        for c in "list" "list-subsys" "id-ctrl $dev" "id-ns $dev" "ns-descs $dev" "smart-log $dev" "ana-log $dev" \\
            "error-log $dev" "effects-log $ctrl -c 0" "fw-log $dev" "list-ns $dev" "supported-log-pages $dev" \\
            "list-ctrl $dev" "cmdset-ind-id-ns $dev -n 1" "nvm-id-ctrl $dev" "nvm-id-ns $dev" "changed-ns-list-log $dev"
        do
            echo "== $c"; nvme $c -o json || echo "{{\\"failed\\": $?}}"
        done
        for f in 1 2 4 5 7 11 15 22; do echo "== feature $f"; nvme get-feature $dev -f $f | jq -R .; done
        nvme disconnect -n {NQN} >&2""",
        timeout=90,
    )
    parts = dict(part.split("\n", 1) for part in done.out.split("== ")[1:])
    shown: dict[str, Any] = {name.split()[0]: json.loads(text) for name, text in parts.items() if "feature" not in name}
    assert shown["list"]["Devices"][0]["SerialNumber"] == SERIAL
    assert shown["list"]["Devices"][0]["ModelNumber"] == "nvmet_p2p lab"
    assert shown["list"]["Devices"][0]["PhysicalSize"] == 256 << 20
    assert NQN in json.dumps(shown["list-subsys"])
    assert shown["id-ctrl"]["subnqn"] == NQN
    assert shown["id-ctrl"]["sn"].strip() == SERIAL
    assert shown["id-ctrl"]["cntrltype"] == 1
    assert shown["id-ns"]["nsze"] == (256 << 20) // 512
    assert shown["id-ns"]["lbafs"][0]["ds"] == 9
    (namespace,) = target.rpc("nvmf_get_subsystems", NQN)[0]["namespaces"]
    assert namespace["uuid"] in json.dumps(shown["ns-descs"])
    (groups,) = (value for key, value in shown["ana-log"].items() if key.startswith("ANA DESC"))
    assert groups[0]["state"] == "optimized"
    assert shown["list-ns"]["nsid_list"] == [{"nsid": 1}]
    failed = [name for name, value in shown.items() if isinstance(value, dict) and "failed" in value]
    assert failed == []
    assert all("Current value" in parts[f"feature {fid}"] for fid in (1, 2, 4, 5, 7, 11, 15, 22))
    quiet(done)


def test_file_system(guest: Guest, target: LabTarget) -> None:
    done = guest.run(
        f"""{FIND} {target.connect()} >&2; find_dev 1
        mkfs.ext4 -q $dev >&2; mkdir -p /mnt/fs; mount -o discard $dev /mnt/fs
        for i in $(seq 60); do head -c $((i * 3000)) /dev/urandom > /mnt/fs/file$i; done
        (cd /mnt/fs; md5sum file*) > /tmp/sums; rm /mnt/fs/file1?; sync; fstrim /mnt/fs; umount /mnt/fs
        fsck.ext4 -fn $dev >&2; mount $dev /mnt/fs
        (cd /mnt/fs; grep -v 'file1.$' /tmp/sums | md5sum -c --quiet) && echo same; umount /mnt/fs
        nvme disconnect -n {NQN} >&2; {target.connect()} >&2; find_dev 1; mount $dev /mnt/fs
        (cd /mnt/fs; grep -v 'file1.$' /tmp/sums | md5sum -c --quiet) && echo same after reconnect; umount /mnt/fs
        nvme disconnect -n {NQN} >&2""",
        timeout=110,
    )
    assert done.out.splitlines() == ["same", "same after reconnect"]
    quiet(done)


def test_io_commands(guest: Guest, target: LabTarget) -> None:
    """flush, write, read, compare (equal and not), write-zeroes, dsm, blkdiscard, verify, copy with nvme-cli."""
    done = guest.run(
        f"""{FIND} {target.connect()} >&2; find_dev 1
        head -c 8192 /dev/urandom > /tmp/a; head -c 8192 /dev/urandom > /tmp/b
        nvme write $dev -s 64 -c 15 -z 8192 -d /tmp/a >&2; nvme flush $dev -n 1 >&2
        nvme read $dev -s 64 -c 15 -z 8192 -d /tmp/r >&2; cmp /tmp/a /tmp/r && echo read
        nvme compare $dev -s 64 -c 15 -z 8192 -d /tmp/a >&2 && echo equal
        nvme compare $dev -s 64 -c 15 -z 8192 -d /tmp/b > /tmp/out 2>&1 || grep -io 'compare failure' /tmp/out
        nvme verify $dev -s 64 -c 15 >&2 && echo verified
        nvme copy $dev -d 1024 -s 64,72 -b 7,7 >&2 && nvme read $dev -s 1024 -c 15 -z 8192 -d /tmp/r >&2
        cmp /tmp/a /tmp/r && echo copied
        nvme write-zeroes $dev -s 64 -c 7 >&2; nvme read $dev -s 64 -c 7 -z 4096 -d /tmp/z >&2
        cmp <(head -c 4096 /dev/zero) /tmp/z && echo zeroes
        nvme dsm $dev -n 1 -d -s 72 -b 8 >&2 && echo deallocated
        blkdiscard $dev && blkdiscard -z -l 1M $dev && echo discarded
        nvme read $dev -s 1024 -c 15 -z 8192 -d /tmp/r >&2; cmp <(head -c 8192 /dev/zero) /tmp/r && echo empty
        nvme disconnect -n {NQN} >&2""",
        timeout=90,
    )
    assert [line.lower() for line in done.out.splitlines()] == [
        "read", "equal", "compare failure", "verified", "copied", "zeroes", "deallocated", "discarded", "empty",
    ]  # fmt: skip
    quiet(done, allow=r"Compare\(0x5\).*Compare Failure|operation not supported")


def test_namespaces_come_grow_and_go_under_a_mounted_file_system(guest: Guest, target: LabTarget) -> None:
    guest.run(
        f"""{FIND} {target.connect()} >&2; find_dev 1
        mkfs.ext4 -q $dev >&2; mkdir -p /mnt/fs; mount $dev /mnt/fs""",
        keep=True,
    )
    work = guest.start(
        """set -e; n=0; until [ -e /tmp/stop ]; do
        head -c 200000 /dev/urandom > /mnt/fs/f; sync; md5sum < /mnt/fs/f > /tmp/s1; echo 1 > /proc/sys/vm/drop_caches
        md5sum < /mnt/fs/f | cmp /tmp/s1; n=$((n + 1)); done; echo rounds $n"""
    )
    target.add_bdev("second", 64, 4096)
    target.rpc("nvmf_subsystem_add_ns", NQN, "second", "-n", "2")
    found = guest.run(f"{FIND} find_dev 2; blockdev --getsize64 --getss $dev")
    assert found.out.split() == [str(64 << 20), "4096"]
    second = target.daemon.dir / "second.img"
    with second.open("r+b") as image:
        image.truncate(96 << 20)
    target.rpc("bdev_aio_rescan", "second")
    guest.run(
        f"""{FIND} find_dev 2; for _ in {{1..100}}; do [ $(blockdev --getsize64 $dev) = {96 << 20} ] && exit; sleep 0.1
        done; exit 1"""
    )
    target.rpc("nvmf_subsystem_remove_ns", NQN, "2")
    guest.run("for _ in {1..100}; do ls /dev/nvme?n2 > /dev/null 2>&1 || exit 0; sleep 0.1; done; exit 1")
    guest.run("touch /tmp/stop")
    done = work.wait(60)
    assert int(done.out.split()[1]) > 0
    quiet(done)
    quiet(
        guest.run(f"rm /tmp/stop; umount /mnt/fs; {FIND} find_dev 1; fsck.ext4 -fn $dev >&2; nvme disconnect -n {NQN}")
    )


def test_reset_under_load(guest: Guest, target: LabTarget) -> None:
    done = guest.run(
        f"""{FIND} {target.connect()} >&2; find_dev 1
        fio --name=v --filename=$dev --rw=randrw --bs=4k --size=8M --time_based --runtime=8 --iodepth=16 --direct=1 \\
            --ioengine=libaio --verify=crc32c --verify_backlog=64 --output-format=json > /tmp/fio.json &
        for _ in 1 2 3; do sleep 1.5; nvme reset /dev/$(ls /sys/class/nvme | head -1); done
        wait; jq '.jobs[0].error' /tmp/fio.json; nvme disconnect -n {NQN} >&2""",
        timeout=100,
    )
    assert done.out.split()[-1] == "0"
    quiet(done, allow="no usable path - requeuing I/O|callbacks suppressed")  # one path, and it is being reset


def test_persistent_discovery_follows_changes(guest: Guest, target: LabTarget) -> None:
    """A persistent discovery controller gets the event and the new log when a listener is added."""
    guest.run(f"nvme discover -t tcp -a 127.0.0.1 -s {target.discovery_port} --persistent >&2")
    before = guest.run("ls /sys/class/nvme").out.split()
    assert len(before) == 1
    other = target.port + 1
    mark = guest.run("cat /proc/uptime").out
    assert mark
    target.listen(NQN, other)
    log = guest.run(f"nvme discover -d {before[0]} -o json").json()
    assert str(other) in {record["trsvcid"] for record in log["records"]}
    done = guest.run("nvme disconnect-all; ls /sys/class/nvme")
    assert done.out.split() == []
    quiet(done)


def test_ana_change_moves_io_to_the_other_path(guest: Guest, target: LabTarget) -> None:
    """Two paths; each in turn becomes inaccessible under fio verify, and the host loses nothing."""
    other = target.port + 1
    target.listen(NQN, other)

    def state(port: int, ana: str) -> None:
        address = ("-t", "TCP", "-f", "ipv4", "-a", "127.0.0.1", "-s", str(port))
        target.rpc("nvmf_subsystem_listener_set_ana_state", NQN, *address, "-n", ana)

    state(other, "inaccessible")
    guest.run(f"{FIND} {target.connect()} >&2; {target.connect(port=other)} >&2; find_dev 1", keep=True)
    work = guest.start(
        f"""{FIND} find_dev 1
        fio --name=v --filename=$dev --rw=randrw --bs=4k --size=8M --time_based --runtime=12 --iodepth=16 --direct=1 \\
            --ioengine=libaio --verify=crc32c --verify_backlog=64 --output-format=json > /tmp/fio.json
        jq '.jobs[0].error' /tmp/fio.json"""
    )
    states = "cat /sys/class/nvme-subsystem/*/nvme*/nvme*c*n1/ana_state /sys/class/nvme/nvme*/nvme*c*n1/ana_state"
    for _ in range(2):
        state(other, "optimized")
        state(target.port, "inaccessible")
        guest.run(
            f"for _ in {{1..80}}; do {states} 2>/dev/null | grep -c inaccessible && exit; sleep 0.1; done; exit 1"
        )
        state(target.port, "optimized")
        state(other, "inaccessible")
    done = work.wait(80)
    assert done.out.split() == ["0"]
    quiet(done)
    quiet(guest.run(f"nvme disconnect -n {NQN}"))


def test_daemon_killed_under_a_mounted_file_system(guest: Guest, target: LabTarget) -> None:
    """``kill -9`` and a new daemon on the same state: the host reconnects by itself, nothing written is lost."""
    guest.run(
        f"""{FIND} {target.connect("--reconnect-delay=1", "--keep-alive-tmo=5")} >&2; find_dev 1
        mkfs.ext4 -q $dev >&2; mkdir -p /mnt/fs; mount $dev /mnt/fs""",
        keep=True,
    )
    work = guest.start(
        """set -e; for n in $(seq 30); do head -c 100000 /dev/urandom > /mnt/fs/f$n; sync; md5sum /mnt/fs/f$n; done \
        > /tmp/sums; echo written"""
    )
    guest.run("until [ -e /mnt/fs/f5 ]; do sleep 0.1; done", timeout=40)
    target.daemon.restart(kill=True)
    assert work.wait(100).out == "written\n"
    done = guest.run(
        f"""{FIND} echo 3 > /proc/sys/vm/drop_caches; md5sum -c --quiet /tmp/sums && echo same; umount /mnt/fs
        find_dev 1; fsck.ext4 -fn $dev >&2; nvme disconnect -n {NQN} >&2"""
    )
    assert done.out == "same\n"
    assert done.splats == ()
