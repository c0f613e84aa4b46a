"""Whatever a host sends: no exception, and every command completes exactly once or waits for a reason."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from nvmet_p2p.target.command import Direction
from nvmet_p2p.target.effects import AbortIo, CloseIoQueues
from nvmet_p2p.target.queue import Request
from nvmet_p2p.wire.spec import AdminOpcode, FabricsType
from nvmet_p2p.wire.sqe import Sqe
from tests.unit.target.harness import Host, World

BYTES = st.binary(min_size=64, max_size=64)
KNOWN = st.sampled_from([*(int(opcode) for opcode in AdminOpcode)])
DWORD = st.one_of(st.integers(0, 0x100), st.integers(0, 0xFFFFFFFF), st.sampled_from([0xFFFFFFFF, 0xFFFFFFFE, 1 << 31]))


@st.composite
def plausible(draw: st.DrawFn) -> bytes:
    """A command that gets further than its opcode."""
    opc = draw(KNOWN)
    nsid = draw(st.one_of(st.integers(0, 4), DWORD))
    if opc == AdminOpcode.FABRICS:
        nsid = draw(st.sampled_from([int(fctype) for fctype in FabricsType]))
    cid = draw(st.integers(0, 7))
    dwords = [draw(DWORD) for _ in range(6)]
    return (
        struct.pack("<BBHI", opc, draw(st.sampled_from([0x40, 0x41, 0])), cid, nsid)
        + bytes(32)
        + struct.pack("<6I", *dwords)
    )


STATES = ["unconnected", "connected", "ready", "discovery", "shut down", "gone"]


def host_in(state: str) -> Host:
    world = World()
    if state == "unconnected":
        return world.host()
    if state == "connected":
        return world.connected()
    host = world.discovery() if state == "discovery" else world.started()
    if state == "ready":
        host.io(1)
    if state == "shut down":
        host.set_cc(0x00464001)
    if state == "gone":
        host.queue.close(0.0)
    return host


def send(host: Host, raw: bytes, data: bytes) -> Request:
    """As a session does it: the data that the command wants, if it wants any."""
    sqe = Sqe.parse(raw)
    request = host.queue.prepare(sqe, host.world.now)
    if request.error is not None:
        assert request.transfer.length == 0
        host.queue.fail(request, request.error, host.world.now)
    elif request.transfer.direction is Direction.HOST_TO_CONTROLLER:
        wanted = request.transfer.length
        host.queue.execute(request, data[:wanted].ljust(wanted, b"\0"), host.world.now)
    else:
        host.queue.execute(request, b"", host.world.now)
    return request


@settings(max_examples=400)
@given(
    state=st.sampled_from(STATES),
    commands=st.lists(st.tuples(st.one_of(plausible(), BYTES), st.binary(max_size=1024)), min_size=1, max_size=12),
)
def test_any_command(state: str, commands: list[tuple[bytes, bytes]]) -> None:
    host = host_in(state)
    dropped: list[int] = []
    host.queue.on_drop = dropped.append
    already = len(host.done)
    requests = [send(host, raw, data) for raw, data in commands]
    for effect in host.world.effects:
        if isinstance(effect, AbortIo):
            effect.done(True)
        elif isinstance(effect, CloseIoQueues):
            effect.done()
    completed = [done.request for done in host.done[already:]]
    assert len(set(map(id, completed))) == len(completed), "none twice"
    for done in host.done[already:]:
        assert done.cqe.cid == done.request.cid
        wanted = done.request.transfer
        to_host = wanted.length if wanted.direction is Direction.CONTROLLER_TO_HOST else 0
        assert len(done.data) == (to_host if done.cqe.ok else 0), "exactly the transfer, or nothing"
    for request in requests:
        if not any(request is one for one in completed):
            waiting = request.sqe.opc == AdminOpcode.ASYNC_EVENT_REQUEST and not request.done
            assert waiting or request.cid in dropped, f"lost: {request.sqe}"
    host.queue.close(host.world.now)
    assert not host.world.target.controllers()
    assert host.world.target.next_timer() is None


@settings(max_examples=200)
@given(raw=BYTES, data=st.binary(min_size=1024, max_size=1024))
def test_any_connect(raw: bytes, data: bytes) -> None:
    """Connect with any fields and any data."""
    host = World().host()
    fabrics = bytes([0x7F, raw[1] & 0xFC]) + raw[2:4] + bytes([1, 0, 0, 0]) + raw[8:]
    send(host, fabrics, data)
    assert len(host.done) == 1
