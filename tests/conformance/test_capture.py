"""A good run, captured on the loopback interface: tshark finds no malformed frame and no wrong digest."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.daemon import Ns, Tree, eventually
from tests.support.initiator import Host

CHECK_DIGESTS = ("-o", "nvme-tcp.check_hdgst:TRUE", "-o", "nvme-tcp.check_ddgst:TRUE")


@contextmanager
def capture(path: Path, port: int) -> Iterator[None]:
    """Captures that port's traffic on lo; skips, loudly, where that is not permitted."""
    if shutil.which("tshark") is None or shutil.which("dumpcap") is None:
        pytest.skip("tshark is not installed: the traffic was NOT checked by an independent dissector")
    errors = path.with_suffix(".log")
    command = ["dumpcap", "-q", "-i", "lo", "-f", f"tcp port {port}", "-w", str(path), "-B", "64"]
    with errors.open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        eventually(lambda: process.poll() is not None or b"File:" in errors.read_bytes(), "dumpcap has started")
        if process.poll() is not None:
            pytest.skip(f"no permission to capture, the traffic was NOT checked: {errors.read_text(errors='replace')}")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)


def tshark(path: Path, port: int, *options: str) -> list[str]:
    """Its lines about the capture, with that port decoded as NVMe/TCP."""
    command = ["tshark", "-r", str(path), "-d", f"tcp.port=={port},nvme-tcp", *CHECK_DIGESTS, *options]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return done.stdout.decode().splitlines()


def good_run(tree: Tree, *, hdgst: bool, ddgst: bool, hpda: int) -> None:
    """What a host does: connect, look around, write, read, change a feature, hear of an event, leave."""
    rng = random.Random(1)
    host: Host = tree.started(hdgst=hdgst, ddgst=ddgst, hpda=hpda, kato=10_000)
    admin = host.admin
    for cns, nsid in ((1, 0), (2, 0), (0, 1), (3, 1), (8, 1), (5, 1), (6, 0), (0x1C, 0)):
        assert admin.identify(cns, nsid=nsid, cntid=0xFFFF if cns == 0x1C else 0).status == nvme.OK
    # Not page 01h: tshark 4.0 reads two bytes beyond an Error Information entry and calls its own mistake malformed.
    for lid, size in ((2, 512), (3, 512), (5, 4096)):
        assert admin.get_log(lid, size).status == nvme.OK
    assert admin.set_features(7, 1 << 16 | 1).status == nvme.OK
    assert admin.set_features(0x0B, 1 << 8).status == nvme.OK
    event = admin.aer()
    for qid, cattr in ((1, 0), (2, 4)):
        io = host.io(qid, cattr=cattr)
        for blocks in (1, 8, 64):
            data = rng.randbytes(blocks * 512)
            for in_capsule in (True, False):
                if in_capsule and len(data) > io.icd_max:
                    continue
                assert io.write(blocks, blocks, data, in_capsule=in_capsule).status == nvme.OK
            assert io.read(blocks, blocks, len(data)).data == data
        assert io.command(nvme.FLUSH, nsid=1).status == nvme.OK
        assert io.read(1 << 40, 1, 512).status == nvme.LBA_RANGE
    tree.add(Ns())
    assert admin.wait(event).status == nvme.OK
    assert admin.keep_alive().status == nvme.OK
    admin.property_set(nvme.CC, nvme.CC_ENABLE | 1 << 14)
    host.wait_csts(0xC, 0x8)
    host.close()


@pytest.mark.parametrize(
    ("hdgst", "ddgst", "hpda"),
    [(False, False, 0), (True, False, 0), (False, True, 0), (True, True, 0), (True, True, 7)],
    ids=["plain", "hdgst", "ddgst", "both", "both-aligned"],
)
def test_good_run(make_tree: MakeTree, tmp_path: Path, hdgst: bool, ddgst: bool, hpda: int) -> None:
    tree = make_tree(Ns())
    path, port = tmp_path / "run.pcapng", tree.address[1]
    with capture(path, port):
        good_run(tree, hdgst=hdgst, ddgst=ddgst, hpda=hpda)
        eventually(lambda: tshark_sees_the_end(path, port), "the capture holds the end of the connections")
    assert tshark(path, port, "-Y", "_ws.malformed") == []
    assert tshark(path, port, "-Y", "nvme-tcp.hdgst.status == 0") == []
    if hpda == 0:  # tshark 4.0 takes padding before the data for data; the initiator has checked those digests itself
        assert tshark(path, port, "-Y", "nvme-tcp.ddgst.status == 0") == []
    types = {
        kind for line in tshark(path, port, "-T", "fields", "-e", "nvme-tcp.type") for kind in line.split(",") if kind
    }
    assert {int(kind) for kind in types} == {0, 1, 4, 5, 6, 7, 9}, "all kinds of PDU but TermReq"
    for wanted, name in ((hdgst, "hdgst"), (ddgst, "ddgst")):
        good = tshark(path, port, "-Y", f"nvme-tcp.{name}.status == 1")
        assert bool(good) == wanted, f"{name}: {len(good)} frames with a good digest"


def tshark_sees_the_end(path: Path, port: int) -> bool:
    """Three connections were made and have been closed by the host."""
    try:
        ends = tshark(
            path, port, "-Y", f"tcp.flags.fin == 1 && tcp.dstport == {port}", "-T", "fields", "-e", "tcp.stream"
        )
    except subprocess.CalledProcessError:  # the file ends inside a record while it is being written
        return False
    return len(set(ends)) == 3
