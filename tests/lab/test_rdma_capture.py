"""tshark reads a capture of NVMe/RDMA on soft RoCE: nothing is malformed, and every field is what was sent.

Soft RoCE does not put on a network what goes to the device's own address. So there are two devices, on the ends of a
veth pair, and rules by which the guest takes the address of either for one that is beyond the other.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.lab.inside import InsideTarget
from tests.lab.rdma import PORT, RdmaGuest, serving
from tests.lab.rdma_host import Bridge, RdmaDaemon
from tests.support import nvme
from tests.support.daemon import Ns
from tests.support.nvme import Cqe

pytestmark = pytest.mark.rdma

HERE: Final = "10.0.1.1"
THERE: Final = "10.0.1.2"
WIRE: Final = f"""
ip link add wire1 type veth peer name wire2
sysctl -qw net.ipv4.conf.all.rp_filter=0
for n in 1 2; do
    sysctl -qw net.ipv4.conf.wire$n.rp_filter=0 net.ipv4.conf.wire$n.accept_local=1 net.ipv6.conf.wire$n.disable_ipv6=1
    ip link set wire$n mtu 4200 up; ip addr add 10.0.1.$n/32 dev wire$n
    ip route add local 10.0.1.$n dev wire$n table 1$n; ip rule add pref 1 iif wire$n to 10.0.1.$n lookup 1$n
done
ip route add {HERE} dev wire2 src {THERE} table 21; ip rule add pref 2 to {HERE} lookup 21
ip route add {THERE} dev wire1 src {HERE} table 22; ip rule add pref 2 to {THERE} lookup 22
ip rule add pref 100 lookup local; ip rule del pref 0
for n in 1 2; do rdma link add rxw$n type rxe netdev wire$n; done
"""
UNWIRE: Final = """
ip rule add pref 0 lookup local; ip rule del pref 100
while ip rule del pref 1 2> /dev/null || ip rule del pref 2 2> /dev/null; do :; done
rdma link delete rxw2; rdma link delete rxw1; ip link del wire1
"""


@pytest.fixture
def wired(rdma_guest: RdmaGuest, rdma_daemon: InsideTarget, rdma_program: str) -> Iterator[RdmaDaemon]:
    """The daemon with a host that is on another device."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed: the traffic was NOT checked by an independent dissector")
    assert rdma_program
    target = serving(rdma_daemon)
    rdma_guest.run(WIRE, keep=True)
    bridge = Bridge(target, rdma_guest.host_socket, (HERE, PORT))
    yield RdmaDaemon(target, bridge, (HERE, PORT))
    bridge.close()
    rdma_guest.run("kill $(cat /run/rdma_host.pid); true")
    target.clear()
    rdma_guest.run(UNWIRE, timeout=30)


def tshark(path: Path, shown: str, *fields: str) -> list[list[str]]:
    """The fields of the frames that the filter shows."""
    command = ["tshark", "-r", str(path), "-Y", shown, "-T", "fields", "-E", "separator=|", "-E", "occurrence=f"]
    for field in fields or ("frame.number",):
        command += ["-e", field]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return [line.split("|") for line in done.stdout.decode().splitlines()]


def talk(daemon: RdmaDaemon) -> bytes:
    """What a host does, good and bad; what the target had to fetch from its memory."""
    tree = daemon.subsystem(Ns())
    rng = random.Random(1)
    host = tree.started(kato=300_000)
    assert host.admin.identify(1).status == nvme.OK
    assert host.admin.get_log(2, 512).status == nvme.OK
    assert host.admin.command(0x7E).status == nvme.INVALID_OPCODE
    assert host.admin.set_features(0x0B, 1 << 8).status == nvme.OK
    event = host.admin.aer()
    io = host.io()
    fetched = nvme.connect_data(tree.nqn)
    for blocks, in_capsule in ((1, True), (8, False), (40, False)):
        data = rng.randbytes(blocks * 512)
        fetched += b"" if in_capsule else data
        assert io.write(blocks, blocks, data, in_capsule=in_capsule).status == nvme.OK
        assert io.read(blocks, blocks, len(data)).data == data
    assert io.read(1 << 40, 1, 512).status == nvme.LBA_RANGE
    assert io.read(0, 2, 512).status == nvme.DATA_SGL_LENGTH
    tree.add(Ns())
    assert host.admin.wait(event).status == nvme.OK
    assert host.admin.keep_alive().status == nvme.OK
    host.admin.property_set(nvme.CC, nvme.CC_ENABLE | 1 << 14)
    host.wait_csts(0xC, 0x8)
    tree.delete()
    return fetched


def number(text: str) -> int:
    return int(text, 0) if text else 0


def test_every_field_is_what_was_sent(wired: RdmaDaemon) -> None:
    guest, bridge = wired.target.guest, wired.bridge
    path = guest.files / "roce.pcap"
    capture = guest.start(f"exec tcpdump -Z root -i wire1 -s 0 -U -w /lab/files/{path.name} udp port 4791 2>&1")
    capture.wait_for("listening on")
    bridge.said = []
    fetched = talk(wired)
    guest.run("sleep 0.5; pkill -INT tcpdump")  # the last packets are on their way
    assert "0 packets dropped by kernel" in capture.wait(20).out

    assert tshark(path, "_ws.malformed") == []
    assert tshark(path, "nvme-rdma.unknown_data") == []
    said = [(words, answer) for words, answer in bridge.said if answer not in ("put", "nothing")]
    requests = [bytes.fromhex(words[2]) for words, _ in said if words[0] == "connect"]
    found = tshark(path, "infiniband.cm.req.ip_cm.private", "infiniband.cm.req.ip_cm.private")
    assert [bytes.fromhex(private.replace(":", ""))[:32] for (private,) in found] == requests
    found = tshark(path, "nvme-rdma.cm.rsp.crqsize", "nvme-rdma.cm.rsp.recfmt", "nvme-rdma.cm.rsp.crqsize")
    assert [tuple(map(number, row)) for row in found] == [(0, 32), (0, 64)]

    sqes = [bytes.fromhex(words[2]) for words, answer in said if answer == "sent"]
    commands = tshark(
        path, "nvme.cmd.opc || nvme.fabrics.cmd.opc", "nvme.cmd.opc", "nvme.fabrics.cmd.opc", "nvme.cmd.cid",
        "nvme.fabrics.cmd.cid", "nvme.cmd.nsid", "nvme.fabrics.cmd.fctype", "nvme.cmd.sgl1.len", "nvme.cmd.slba",
        "nvme.cmd.nlb",
    )  # fmt: skip
    assert len(commands) == len(sqes)
    for sqe, (opc, fabrics, cid, fabrics_cid, nsid, fctype, length, slba, nlb) in zip(sqes, commands, strict=True):
        assert (number(opc) if opc else int(fabrics, 16)) == sqe[0]
        assert number(cid or fabrics_cid) == int.from_bytes(sqe[2:4], "little")
        assert number(nsid or fctype) == int.from_bytes(sqe[4:8], "little")
        if length:
            assert number(length) == int.from_bytes(sqe[32:36] if sqe[39] < 0x40 else sqe[32:35], "little")
        if slba:
            assert number(slba) == int.from_bytes(sqe[40:48], "little")
            assert number(nlb) == int.from_bytes(sqe[48:50], "little") + 1

    answers = [Cqe.parse(bytes.fromhex(answer.split()[1])) for _, answer in said if answer.startswith("cqe")]
    responses = tshark(
        path, "nvme.cqe.cid", "nvme.cqe.cid", "nvme.cqe.sqid", "nvme.cqe.sqhd", "nvme.cqe.status.sct",
        "nvme.cqe.status.sc", "nvme.cqe.status.dnr",
    )  # fmt: skip
    assert [tuple(map(number, row)) for row in responses] == [
        (each.cid, each.sqid, each.sqhd, each.status >> 8, each.status & 0xFF, int(each.dnr)) for each in answers
    ]
    pulled = tshark(path, "nvme-rdma.read_from_host_resp", "nvme-rdma.read_from_host_resp")
    assert b"".join(bytes.fromhex(data.replace(":", "")) for (data,) in pulled) == fetched
