"""Reads that leave without a copy, which they never do on loopback: an emulated Intel NIC fetches them itself.

The host is on this machine, behind QEMU's user network. What it has not acknowledged can be sent again at any time, so
it must still be what it was, whatever the target has done since.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.inside import InsideTarget, drives
from tests.support import nvme
from tests.support.daemon import eventually
from tests.support.initiator import Host, HostOptions, Queue, lba_cdw

NQN = "nqn.2026-11.org.example:zero-copy"
GUEST = "10.0.2.15"  # any but the network's own
PORT = 4420
LARGE = 256  # blocks of 512 bytes: 128 KiB
BYTES = LARGE * 512
READS = 16  # places on the drive
PATIENCE_S = 60.0
NETWORK = f"""
modprobe e1000e
for _ in {{1..100}}; do [ -e /sys/class/net/eth0 ] && break; sleep 0.1; done
set -e; ip link set eth0 up; ip addr add {GUEST}/24 dev eth0; ip route add default via 10.0.2.2
"""


@pytest.fixture
def forwarded(inside: InsideTarget) -> Iterator[int]:
    """A port of this machine that leads to the target's."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = int(unused.getsockname()[1])
    forward = f"tcp:127.0.0.1:{port}"
    inside.guest.run(NETWORK)
    inside.guest.hmp(f"hostfwd_add net0 {forward}-{GUEST}:{PORT}")
    yield port
    inside.guest.hmp(f"hostfwd_remove net0 {forward}")
    inside.guest.run("nft delete table ip lost 2>/dev/null; modprobe -r e1000e")


@pytest.fixture
def hosts(inside: InsideTarget, forwarded: int) -> Iterator[Callable[[], Host]]:
    """``hosts()``: one more, with an enabled controller."""
    inside.rpc("bdev_uring_create", name="a", filename=drives(inside.guest)["A"].device)
    inside.serve(NQN, {1: "a"})
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": GUEST, "trsvcid": str(PORT)}
    inside.rpc("nvmf_subsystem_add_listener", nqn=NQN, listen_address=address)
    made: list[Host] = []

    def make() -> Host:
        made.append(Host(("127.0.0.1", forwarded), NQN, HostOptions(timeout=PATIENCE_S)))
        return made[-1].start()

    free = reactor(inside)["pool_free_bytes"]
    yield make
    for host in made:
        host.close()
    eventually(lambda: idle(inside) == (0, free), "staging memory has been given back", PATIENCE_S)


def reactor(inside: InsideTarget) -> dict[str, Any]:
    (only,) = inside.dataplane_rpc("p2p_get_reactors")
    assert isinstance(only, dict)
    return only


def idle(inside: InsideTarget) -> tuple[int, int]:
    """Queues, and bytes of staging memory that are free."""
    now = reactor(inside)
    return now["queues"], now["pool_free_bytes"]


def pattern(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(BYTES) for _ in range(READS)]


def fill(io: Queue, content: list[bytes]) -> None:
    for place, data in enumerate(content):
        assert io.write(place * LARGE, LARGE, data).status == nvme.OK


def submit_read(io: Queue, place: int) -> int:
    return io.submit(nvme.sqe(nvme.READ, nsid=1, cdw=lba_cdw(place * LARGE, LARGE)), expect=BYTES)


def lose(inside: InsideTarget) -> None:
    """Data to the I/O queues of now is lost from now on; what they send is not, nor are short packets."""
    ports = [queue["peer"].rpartition(":")[2] for queue in inside.dataplane_rpc("p2p_get_queues")]
    inside.guest.run(
        f"""set -e; nft add table ip lost
        nft 'add chain ip lost out {{ type filter hook postrouting priority 0; }}'
        nft 'add rule ip lost out tcp dport {{ {", ".join(ports)} }} ip length gt 200 drop'"""
    )


def held(inside: InsideTarget, free: int, count: int) -> None:
    """Waits until so many reads are being sent, and for no acknowledgement."""
    eventually(lambda: reactor(inside)["pool_free_bytes"] == free - count * BYTES, "they are being sent", PATIENCE_S)


def test_not_copied(inside: InsideTarget, hosts: Callable[[], Host]) -> None:
    """By what the kernel itself says (IORING_NOTIF_USAGE_ZC_COPIED), and every byte is right."""
    io, content = hosts().io(), pattern(1)
    fill(io, content)
    for cid, place in {submit_read(io, place): place for place in range(READS)}.items():
        assert io.wait(cid).data == content[place]
    (queue,) = eventually(
        lambda: [q for q in inside.dataplane_rpc("p2p_get_queues") if q["zero_copy_bytes"] >= READS // 2 * BYTES],
        "half of the reads at least were sent without a copy",
        PATIENCE_S,
    )
    assert queue["copied_after_all_bytes"] == 0
    assert "Sent without a copy" in inside.cli("status").out


def test_sent_again(inside: InsideTarget, hosts: Callable[[], Host]) -> None:
    """Nothing of it arrives at first. Meanwhile another host writes and reads; then it is sent again, as it was."""
    content, later, free = pattern(2), pattern(3), reactor(inside)["pool_free_bytes"]
    io = hosts().io()
    fill(io, content)
    lose(inside)
    sent = {submit_read(io, place): place for place in range(3)}
    held(inside, free, 3)
    other = hosts().io()
    fill(other, later)
    for place in range(READS):
        assert other.read(place * LARGE, LARGE, BYTES).data == later[place]
    held(inside, free, 3)
    assert io.in_flight == 3
    inside.guest.run("nft delete table ip lost")
    for cid, place in sent.items():
        assert io.wait(cid).data == content[place]


def test_never_acknowledged(inside: InsideTarget, hosts: Callable[[], Host]) -> None:
    """Queues end while the kernel has their memory: in some seconds their connections are reset, and it comes back."""
    free = reactor(inside)["pool_free_bytes"]
    resets, leaves = hosts(), hosts()
    queues = resets.io(), leaves.io()
    lose(inside)
    for io in queues:
        submit_read(io, 0)
        submit_read(io, 1)
    held(inside, free, 4)
    resets.admin.property_set(nvme.CC, 0)
    leaves.close()
    eventually(lambda: idle(inside) == (0, free), "the queues are over and their memory is back", PATIENCE_S)
    inside.guest.run("nft delete table ip lost")
