"""NVMe/RDMA on soft RoCE: target and hosts in one guest. rdma_rxe is slow under emulation, hence the small volumes.

The hosts: Linux with nvme-cli, and ``rdma_host.c``, which says what no host should.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from nvmet_p2p.cli import bench_tool
from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.fabrics import ConnectCommand, ConnectData, PropertyGet, PropertySet
from nvmet_p2p.wire.rdma_cm import CmAccept, CmReject, CmRequest
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import AdminOpcode, NvmOpcode, Status
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.views import IdentifyCommand, ReadWriteCommand
from tests.lab.inside import InsideTarget
from tests.lab.lab import Guest, Result
from tests.lab.monitor import splats
from tests.lab.rdma import ADDRESS, ADDRESS6, PORT, serving
from tests.lab.test_linux_host import FIND, NQN, quiet
from tests.support.daemon import RpcError

pytestmark = pytest.mark.rdma

TCP_PORT: Final = 4421
HOSTNQN: Final = "nqn.2026-11.org.example:raw"
MIB: Final = 1 << 20
FIO: Final = """
fio --name=verify --filename=$dev --rw=randrw --bsrange=512-128k --bs_unaligned=0 --size=4M --io_size=1M \
    --iodepth=16 --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --randrepeat=1 \
    --output-format=json > /tmp/fio.json
jq '.jobs[0].error' /tmp/fio.json
"""


@pytest.fixture
def inside(rdma_daemon: InsideTarget) -> Iterator[InsideTarget]:
    """A target that serves one namespace of 32 MiB over RDMA; what is left behind is undone."""
    target, guest = serving(rdma_daemon), rdma_daemon.guest
    boots, before = guest.boots, len(guest.messages())
    target.rpc("bdev_malloc_create", name="m", num_blocks=65536, block_size=512)
    target.rpc(
        "nvmf_create_subsystem", nqn=NQN, allow_any_host=True, serial_number="RDMA01", ana_reporting=True,
        max_namespaces=8,
    )  # fmt: skip
    target.rpc("nvmf_subsystem_add_ns", nqn=NQN, namespace={"nsid": 1, "bdev_name": "m"})
    listen(target)
    yield target
    faults = splats(guest.messages()[before if guest.boots == boots else 0 :])
    guest.reset()
    if guest.alive and target.up():
        target.clear()
    assert faults == ()


def listen(target: InsideTarget, trtype: str = "RDMA", traddr: str = ADDRESS, port: int = PORT) -> dict[str, str]:
    address = {
        "trtype": trtype, "adrfam": "IPv6" if ":" in traddr else "IPv4", "traddr": traddr, "trsvcid": str(port)
    }  # fmt: skip
    target.rpc("nvmf_subsystem_add_listener", nqn=NQN, listen_address=address)
    return address


def connect(*options: str, queues: int = 1, trtype: str = "rdma", traddr: str = ADDRESS, port: int = PORT) -> str:
    words = ["nvme", "connect", "-t", trtype, "-a", traddr, "-s", str(port), "-n", NQN, f"--nr-io-queues={queues}"]
    return " ".join([*words, *options])


def healthy(done: Result) -> None:
    """As ``quiet``; a dummy device has no speed, and a Keep Alive may be under way when a slow guest disconnects."""
    quiet(done, allow="speed is unknown|long keepalive RTT|failed nvme_keep_alive_end_io error=4")


def no_queue_is_left(target: InsideTarget) -> None:
    """Every queue of every host is gone, in both processes, and no connection waits."""
    (group,) = target.rpc("nvmf_get_stats")["poll_groups"]
    assert (group["current_admin_qpairs"], group["current_io_qpairs"], group["current_unassociated_qpairs"]) == (
        0,
        0,
        0,
    )


# -- Linux -------------------------------------------------------------------------------------------------------------


def test_discover(inside: InsideTarget) -> None:
    log = inside.guest.run(f"nvme discover -t rdma -a {ADDRESS} -s {PORT} -o json").json()
    (entry,) = (record for record in log["records"] if record["subnqn"] == NQN)
    assert (entry["trtype"], entry["adrfam"], entry["traddr"], entry["trsvcid"]) == (
        "rdma", "ipv4", ADDRESS, str(PORT),
    )  # fmt: skip
    assert "connected" in str(entry) or "rdma_qptype" in str(entry)
    no_queue_is_left(inside)


def test_data_survives_fio_verify(inside: InsideTarget) -> None:
    """Mixed sizes up to MDTS over 4 I/O queues."""
    done = inside.guest.run(
        f"""{FIND} {connect(queues=2)} --nr-write-queues=2 >&2; find_dev 1; {FIO}
        cat /sys/block/${{dev#/dev/}}/queue/max_hw_sectors_kb""",
        timeout=110, keep=True,
    )  # fmt: skip
    assert done.out.split() == ["0", "128"]
    pairs = inside.rpc("nvmf_subsystem_get_qpairs", nqn=NQN)
    assert sorted(pair["qid"] for pair in pairs) == [0, 1, 2, 3, 4]
    assert {pair["listen_address"]["trtype"] for pair in pairs} == {"RDMA"}
    stats = inside.rpc("nvmf_get_stats")["poll_groups"][0]
    (transport,) = (each for each in stats["transports"] if each["trtype"] == "RDMA")
    (device,) = transport["devices"]
    assert device["name"] == "rxe0"
    assert device["completions"] > 0
    assert "rxe0" in inside.cli("status").out
    healthy(inside.guest.run(f"nvme disconnect -n {NQN} >&2"))
    no_queue_is_left(inside)


def test_file_system_over_ipv6(inside: InsideTarget) -> None:
    listen(inside, traddr=ADDRESS6)
    done = inside.guest.run(
        f"""{FIND} {connect(traddr=ADDRESS6)} >&2; find_dev 1
        mkfs.ext4 -q -N 128 $dev 8M >&2; mkdir -p /mnt/fs; mount $dev /mnt/fs
        for i in $(seq 10); do head -c $((i * 3000)) /dev/urandom > /mnt/fs/file$i; done
        (cd /mnt/fs; md5sum file*) > /tmp/sums; umount /mnt/fs
        fsck.ext4 -fn $dev >&2; echo 3 > /proc/sys/vm/drop_caches; mount $dev /mnt/fs
        (cd /mnt/fs; md5sum -c --quiet /tmp/sums) && echo same; umount /mnt/fs; nvme disconnect -n {NQN} >&2""",
        timeout=110,
    )
    assert done.out == "same\n"
    healthy(done)


def test_reset_under_load(inside: InsideTarget) -> None:
    done = inside.guest.run(
        f"""{FIND} {connect()} >&2; find_dev 1
        fio --name=v --filename=$dev --rw=randrw --bs=4k --size=1M --time_based --runtime=12 --iodepth=4 --direct=1 \\
            --ioengine=libaio --verify=crc32c --verify_backlog=16 --output-format=json > /tmp/fio.json &
        for _ in 1 2; do sleep 3; nvme reset /dev/$(ls /sys/class/nvme | head -1); done
        wait; jq '.jobs[0].error' /tmp/fio.json; nvme disconnect -n {NQN} >&2""",
        timeout=110,
    )
    assert done.out.split()[-1] == "0"
    no_queue_is_left(inside)


def memory_of(inside: InsideTarget) -> tuple[int, int]:
    """Resident KiB and open files of the data plane."""
    pid = inside.rpc("p2p_get_status")["dataplane"]["pid"]
    found = inside.guest.run(f"awk '/VmRSS/ {{print $2}}' /proc/{pid}/status; ls /proc/{pid}/fd | wc -l")
    resident, files = map(int, found.out.split())
    return resident, files


@pytest.mark.slow
@pytest.mark.timeout(900, func_only=True)
def test_200_connects_leave_nothing(inside: InsideTarget) -> None:
    cycle = f"{connect()} > /dev/null || exit 1; nvme disconnect -n {NQN} > /dev/null"
    inside.guest.run(f"for i in {{1..10}}; do {cycle}; done", timeout=200)
    resident, files = memory_of(inside)
    for _ in range(10):
        inside.guest.run(f"for i in {{1..20}}; do {cycle}; done", timeout=300)
    after, files_after = memory_of(inside)
    assert files_after <= files
    assert after <= resident + 2048
    no_queue_is_left(inside)


def test_tcp_and_rdma_paths_with_an_ana_switch(inside: InsideTarget) -> None:
    tcp = listen(inside, "TCP", "127.0.0.2", TCP_PORT)
    rdma = {"trtype": "RDMA", "adrfam": "IPv4", "traddr": ADDRESS, "trsvcid": str(PORT)}

    def state(address: dict[str, str], ana: str) -> None:
        inside.rpc("nvmf_subsystem_listener_set_ana_state", nqn=NQN, listen_address=address, ana_state=ana)

    state(tcp, "inaccessible")
    inside.guest.run(
        f"{FIND} {connect()} >&2; {connect(trtype='tcp', traddr='127.0.0.2', port=TCP_PORT)} >&2; find_dev 1", keep=True
    )
    work = inside.guest.start(
        f"""{FIND} find_dev 1
        fio --name=v --filename=$dev --rw=randrw --bs=4k --size=1M --time_based --runtime=15 --iodepth=4 --direct=1 \\
            --ioengine=libaio --verify=crc32c --verify_backlog=16 --output-format=json > /tmp/fio.json
        jq '.jobs[0].error' /tmp/fio.json"""
    )
    states = "cat /sys/class/nvme/nvme*/nvme*c*n1/ana_state | sort | uniq -c"
    for up, down in ((tcp, rdma), (rdma, tcp)):
        state(up, "optimized")
        state(down, "inaccessible")
        found = inside.guest.run(
            f'for _ in {{1..80}}; do [ "$({states} | wc -l)" = 2 ] && exit; sleep 0.1; done; {states}; exit 1'
        )
        assert found.code == 0
    assert work.wait(90).out.split() == ["0"]
    inside.guest.run(f"nvme disconnect -n {NQN} >&2")
    no_queue_is_left(inside)


def test_the_data_plane_is_killed(inside: InsideTarget) -> None:
    """Admin queues go with it too; it comes back, listens again, and the host connects again by itself."""
    guest = inside.guest
    guest.run(f"{FIND} {connect('--reconnect-delay=1', '--keep-alive-tmo=5')} >&2; find_dev 1", keep=True)
    pid = inside.rpc("p2p_get_status")["dataplane"]["pid"]
    guest.run(
        f"""{FIND} find_dev 1; kill -9 {pid}
        dd if=/dev/zero of=$dev bs=4k count=4 oflag=direct status=none; nvme disconnect -n {NQN} >&2""",
        timeout=100,
    )
    status = inside.rpc("p2p_get_status")["dataplane"]
    assert status["restarts"] == 1
    assert status["pid"] != pid
    assert inside.rpc("p2p_get_status")["absent_listeners"] == []


def test_an_address_without_a_device(inside: InsideTarget) -> None:
    inside.guest.run("ip link add plain0 type dummy; ip addr add 10.9.9.1/24 dev plain0; ip link set plain0 up")
    for traddr, why in (("10.9.9.1", "no RDMA device has this address"), ("192.0.2.200", "Cannot assign requested")):
        with pytest.raises(RpcError) as caught:
            listen(inside, traddr=traddr)
        assert why in caught.value.message
        assert caught.value.code == -32602  # as SPDK answers


def test_the_device_is_deleted_and_comes_back(inside: InsideTarget) -> None:
    """With a host connected; soft RoCE's driver waits until nobody has the device open any more."""
    guest = inside.guest
    restarts = inside.rpc("p2p_get_status")["dataplane"]["restarts"]
    guest.run(f"{FIND} {connect('--ctrl-loss-tmo=0')} >&2; find_dev 1", keep=True)
    guest.run("timeout 20 rdma link delete rxe0; nvme disconnect-all >&2")
    no_queue_is_left(inside)
    guest.run("rdma link add rxe0 type rxe netdev rdma0")
    done = guest.run(
        f"""{FIND} for _ in {{1..40}}; do {connect()} >&2 && break; sleep 0.25; done; find_dev 1
        dd if=/dev/zero of=$dev bs=4k count=4 oflag=direct status=none; nvme disconnect -n {NQN} >&2; echo written"""
    )
    assert done.out == "written\n"
    assert inside.rpc("p2p_get_status")["dataplane"]["restarts"] == restarts


# -- the load generator ------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(inside: InsideTarget) -> str:
    """Our load generator at work in the guest, up to the NQN."""
    shutil.copy2(bench_tool.find_binary(), inside.guest.files / "bench")
    return f"target-enter /lab/files/bench --trtype rdma --traddr {ADDRESS} --quiet --json - --subnqn"


def test_bench_reads_writes_and_verifies(inside: InsideTarget, bench: str) -> None:
    """In the capsule and by RDMA READ, on two queues; and against the kernel's target: it is a host like others."""
    peer = "nqn.2026-11.org.example:kernel"
    small, large = "--rw randrw --bs 4k --depth 8 --queues 2 --count 100", "--rw randrw --bs 64k --depth 4 --count 8"
    done = inside.guest.run(
        f"""{bench} {NQN} --verify {small}; {bench} {NQN} --verify {large}
        {bench} {NQN} {small} --rw randwrite --no-icd
        nvmet-serve {peer} {ADDRESS} {PORT + 10} 16m rdma >&2
        {bench} {peer} --trsvcid {PORT + 10} --verify {small}; nvmet-clear""",
        timeout=90,
    )
    results = [json.loads(line) for line in done.out.splitlines()]
    assert [each["total"]["ios"] for each in results] == [100, 8, 100, 100]
    assert [each["target"]["model"] for each in results] == ["nvmet_p2p Controller"] * 3 + ["Linux"]
    assert all(each["error"] is None and each["target"]["trtype"] == "rdma" for each in results)
    assert [each["verified"] > 0 for each in results] == [True, True, False, True]
    no_connection_stays(inside)


def test_bench_says_why_it_cannot(inside: InsideTarget, bench: str) -> None:
    done = inside.guest.run(f"{bench} nqn.none || {bench} {NQN} --trsvcid 9", check=False)
    assert done.code == 1
    assert "Connect: status 0x182" in done.err
    assert "nobody listens there" in done.err


# -- nvmeof, an initiator of others ------------------------------------------------------------------------------------

NVMEOF: Final = f"""
import ctypes, glob, os
for library in glob.glob("/lab/files/site/lib/*"):
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
import nvmeof
with nvmeof.Controller.connect("{ADDRESS}", "{NQN}", port={PORT}, queue_depth=16) as controller:
    namespace = controller.namespace(1)
    print(namespace.lba_size, namespace.info.size_lbas, controller.max_transfer_bytes)
    with controller.allocate(200 << 10) as out, controller.allocate(200 << 10) as back:
        out.write(os.urandom(200 << 10))
        namespace.write(out, 24)
        namespace.flush()
        namespace.read(back, 24)
        print(out.read() == back.read())
"""


def test_nvmeof_reads_and_writes(inside: InsideTarget) -> None:
    """The PyPI package, an NVMe/RDMA initiator in Python that knows nothing of this project."""
    if importlib.util.find_spec("nvmeof") is None:
        pytest.skip("the PyPI package nvmeof is not installed: make setup")
    site = inside.guest.files / "site"
    for name in ("nvmeof", "ibverbs"):
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        shutil.copytree(Path(found.origin).parent, site / name, dirs_exist_ok=True)
    libraries = site / "lib"  # of its extension module; the target's own Python does without some of them
    libraries.mkdir(exist_ok=True)
    for module in (site / "ibverbs").glob("*.so"):
        linked = subprocess.run(["ldd", str(module)], check=True, capture_output=True, text=True).stdout
        for path in re.findall(r"=> (/\S+)", linked):
            if "libc.so" not in path:
                shutil.copy2(path, libraries)
    (inside.guest.files / "nvmeof.py").write_text(NVMEOF)
    done = inside.guest.run(
        f"PYTHONPATH=/lab/files/site exec target-enter {sys.prefix}/bin/python -P /lab/files/nvmeof.py",
        timeout=100,
    )
    assert done.out.split() == ["512", "65536", "131072", "True"]
    no_connection_stays(inside)


# -- A host that says what it should not -------------------------------------------------------------------------------


def with_dptr(sqe: Sqe, cid: int, dptr: bytes = bytes(15) + b"\x40", psdt: int = 1) -> bytes:
    raw = bytearray(sqe.build())
    raw[1] = raw[1] & 0x3F | psdt << 6
    raw[2:4] = cid.to_bytes(2, "little")
    raw[24:40] = dptr
    return bytes(raw)


@dataclass
class Orders:
    """What ``rdma_host`` is to do, and what it said."""

    guest: Guest
    lines: list[str]

    def __call__(self, *words: object) -> int:
        """Adds an order; the index of its answer."""
        self.lines.append(" ".join(str(w.hex() or "-") if isinstance(w, bytes) else str(w) for w in words))
        return len(self.lines) - 1

    def run(self, timeout: float = 90) -> list[str]:
        (self.guest.files / "orders").write_text("".join(f"{line}\n" for line in self.lines))
        done = self.guest.run(
            f"target-enter /lab/files/rdma_host {ADDRESS} {PORT} < /lab/files/orders", timeout=timeout
        )
        answers = done.out.splitlines()
        assert len(answers) == len(self.lines), str(done)
        return answers

    # the beginning of an association

    def admin(self, slot: int = 0) -> None:
        """Connection and Connect of an admin queue, and the controller enabled."""
        self("connect", slot, CmRequest(qid=0, hrqsize=32, hsqsize=31).build(), 1, 1)
        self("put", 0, connect_data())
        self("keyed", slot, with_dptr(ConnectCommand(sqsize=31).sqe(), 1), 1024, 0, 0, 0)
        self("answer", slot, 20000)
        for cid, sqe in enumerate((PropertySet(ofst=0x14, value=0x460001).sqe(), PropertyGet(ofst=0x1C).sqe()), 2):
            self("send", slot, with_dptr(sqe, cid), "-")
            self("answer", slot, 20000)

    def io(self, slot: int, cntlid: int, sqsize: int = 31) -> None:
        """An I/O queue, its Connect data in the capsule."""
        self("connect", slot, CmRequest(qid=slot, hrqsize=sqsize + 1, hsqsize=sqsize, cntlid=cntlid).build(), 1, 1)
        sqe = ConnectCommand(qid=slot, sqsize=sqsize).sqe()
        self("send", slot, with_dptr(sqe, 1, SglDescriptor.in_capsule(1024).build()), connect_data(cntlid))
        self("answer", slot, 20000)


def connect_data(cntlid: int = 0xFFFF) -> bytes:
    return ConnectData(
        hostid=bytes(range(16)), cntlid=cntlid, subnqn_raw=NQN.encode(), hostnqn_raw=HOSTNQN.encode()
    ).build()


def cqe(line: str) -> Cqe:
    assert line.startswith("cqe "), line
    return Cqe.parse(bytes.fromhex(line.split()[1]))


@pytest.fixture
def order(inside: InsideTarget, rdma_program: str) -> Orders:
    assert rdma_program
    return Orders(inside.guest, [])


GOOD: Final = {"qid": 0, "hrqsize": 32, "hsqsize": 31}


def test_each_refusal_of_the_connection_manager(inside: InsideTarget, order: Orders) -> None:
    cases: Sequence[tuple[dict[str, int], int, set[int]]] = (
        ({"recfmt": 1}, 1, {2}),
        ({"qid": 0xFFFF}, 1, {3}),
        ({"hsqsize": 0}, 1, {4}),
        ({"hsqsize": 1000, "hrqsize": 1001}, 1, {4}),
        ({"hrqsize": 0}, 1, {5}),
        ({"hrqsize": 5}, 1, {5}),
        ({"qid": 1, "cntlid": 0xFFF5}, 1, {9}),
        ({}, 0, {7, 8}),
    )
    for changes, ird, _ in cases:
        order("connect", 0, CmRequest(**(GOOD | changes)).build(), 1, ird)
    short = order("connect", 0, CmRequest(**GOOD).build()[:4], 1, 1)
    good = order("connect", 0, CmRequest(**GOOD).build(), 1, 1)
    answers = order.run()
    for (changes, _, statuses), line in zip(cases, answers, strict=False):
        verb, reason, private = line.split()
        assert (verb, reason) == ("rejected", "28"), (changes, line)
        refusal = CmReject.parse(bytes.fromhex(private))
        assert refusal.recfmt == 0
        assert refusal.sts in statuses, (changes, line)
    assert answers[short].startswith("rejected 28")  # the CM pads what it carries: zeroes are no queue sizes
    assert answers[good].startswith("accepted")
    accept = CmAccept.parse(bytes.fromhex(answers[good].split()[1]))
    assert accept.recfmt == 0
    assert accept.crqsize >= 31
    inside.guest.run("true")
    no_connection_stays(inside)


def no_connection_stays(inside: InsideTarget) -> None:
    inside.guest.run("sleep 0.5")
    no_queue_is_left(inside)


def test_capsules_that_cannot_be(inside: InsideTarget, order: Orders) -> None:
    """Wrong descriptors are answered, and the queue goes on; each with the status that the specification has."""
    order.admin()
    identify = Sqe(opc=AdminOpcode.IDENTIFY, **IdentifyCommand(cns=1).dwords())
    cases = {
        "type": (with_dptr(identify, 10, SglDescriptor.transport(4096).build()), b"", {Status.SGL_INVALID_TYPE}),
        "psdt": (with_dptr(identify, 11, psdt=0), b"", {Status.INVALID_FIELD}),
        "capsule": (with_dptr(identify, 12, SglDescriptor.in_capsule(64).build()), bytes(64), {Status.INVALID_FIELD}),
        "opcode": (with_dptr(Sqe(opc=0x7E), 13), b"", {Status.INVALID_OPCODE}),
    }
    asked: dict[str, int] = {}
    for name, (sqe, icd, _) in cases.items():
        order("send", 0, sqe, icd)
        asked[name] = order("answer", 0, 20000)
    order("keyed", 0, with_dptr(identify, 14), 512, 0, 0, 0)
    length = order("answer", 0, 20000)
    order("put", 0, bytes(4096))
    order("keyed", 0, with_dptr(identify, 15), 4096, 0, 0, 0)
    good = order("answer", 0, 20000)
    data = order("get", 0, 4096)
    order("close", 0)
    answers = order.run()
    for name, (_, _, statuses) in cases.items():
        assert cqe(answers[asked[name]]).status in statuses, name
    assert cqe(answers[length]).status == Status.SGL_INVALID_DATA_LENGTH
    assert cqe(answers[good]).ok
    assert b"nvmet_p2p" in bytes.fromhex(answers[data]) or b"RDMA01" in bytes.fromhex(answers[data])
    no_connection_stays(inside)


def write(cid: int, lba: int, blocks: int) -> Sqe:
    return Sqe(opc=NvmOpcode.WRITE, nsid=1, **ReadWriteCommand(slba=lba, nlb=blocks - 1).dwords())


def test_io_by_keyed_sgls_and_in_the_capsule(inside: InsideTarget, order: Orders) -> None:
    order.admin()
    order.io(1, 1)
    pattern = bytes(range(256)) * 16
    order("put", 0, pattern)
    order("keyed", 1, with_dptr(write(2, 0, 8), 2), 4096, 0, 0, 0)
    wrote = order("answer", 1, 20000)
    inline = with_dptr(write(3, 8, 2), 3, SglDescriptor.in_capsule(1024).build())
    order("send", 1, inline, pattern[:1024])
    wrote_inline = order("answer", 1, 20000)
    read = Sqe(opc=NvmOpcode.READ, nsid=1, **ReadWriteCommand(slba=0, nlb=9).dwords())
    order("keyed", 1, with_dptr(read, 4), 5120, 8192, 0, 0)
    got = order("answer", 1, 20000)
    data = order("get", 8192, 5120)
    beyond = with_dptr(write(5, 8, 2), 5, SglDescriptor.in_capsule(1024, 8192).build())
    order("send", 1, beyond, pattern[:1024])
    offset = order("answer", 1, 20000)
    order("keyed", 1, with_dptr(write(6, 0, 8), 6), 512, 0, 0, 0)
    length = order("answer", 1, 20000)
    answers = order.run()
    assert all(cqe(answers[n]).ok for n in (wrote, wrote_inline, got)), answers
    assert answers[got].split()[2] == "0", "nobody has asked for the key to be invalidated"
    assert bytes.fromhex(answers[data]) == pattern + pattern[:1024]
    assert cqe(answers[offset]).status in (Status.SGL_INVALID_OFFSET, Status.SGL_INVALID_DATA_LENGTH)
    assert cqe(answers[length]).status == Status.SGL_INVALID_DATA_LENGTH
    no_connection_stays(inside)


@pytest.mark.parametrize("what", ["short", "key", "length", "kill", "flood"])
def test_a_fault_ends_its_queue_alone(inside: InsideTarget, order: Orders, what: str) -> None:
    """A capsule shorter than an SQE, a key that is none, more than the region has, a QP in error, too many commands."""
    restarts = inside.rpc("p2p_get_status")["dataplane"]["restarts"]
    order.admin()
    order.io(1, 1)
    order.io(2, 1)
    order("put", 0, bytes(4096))
    if what == "short":
        order("send", 1, bytes(40), "-")
    elif what in ("key", "length"):
        offset = 0 if what == "key" else (2 << 20) - 512
        order("keyed", 1, with_dptr(write(2, 0, 8), 2), 4096, offset, "5a5a00" if what == "key" else 0, 0)
    elif what == "kill":
        order("keyed", 1, with_dptr(write(2, 0, 128), 2), 65536, 0, 0, 0)
        order("kill", 1)
    else:
        for cid in range(100, 240):
            order("keyed", 1, with_dptr(write(cid, 0, 8), cid), 4096, 0, 0, 0)
    first = order("answer", 1, 20000)
    order("keyed", 2, with_dptr(write(3, 0, 8), 3), 4096, 0, 0, 0)
    other = order("answer", 2, 30000)
    order("send", 0, with_dptr(Sqe(opc=AdminOpcode.KEEP_ALIVE), 50), "-")
    admin = order("answer", 0, 20000)
    order("connect", 3, CmRequest(qid=0, hrqsize=32, hsqsize=31).build(), 1, 1)
    answers = order.run()
    assert answers[first].startswith(("closed", "cqe")), answers
    if what in ("short", "kill"):
        assert answers[first] == "closed"
    elif answers[first] != "closed" and what != "flood":
        assert not cqe(answers[first]).ok
    assert cqe(answers[other]).ok, answers
    assert cqe(answers[admin]).ok, answers
    assert answers[-1].startswith("accepted")
    assert inside.rpc("p2p_get_status")["dataplane"]["restarts"] == restarts
    no_connection_stays(inside)


def test_a_host_that_vanishes(inside: InsideTarget, order: Orders) -> None:
    """Its process ends with commands in flight: everything of it is given back."""
    order.admin()
    for slot in (1, 2):
        order.io(slot, 1)
        for cid in range(10, 20):
            order("keyed", slot, with_dptr(write(cid, 0, 128), cid), 65536, 0, 0, 0)
    order.run()
    for _ in range(40):
        (group,) = inside.rpc("nvmf_get_stats")["poll_groups"]
        if group["current_admin_qpairs"] == 0:
            break
        inside.guest.run("sleep 0.25")
    no_queue_is_left(inside)
