"""Keep Alive (Base 3.9, 5.1.14): expiry ends the association, traffic keeps it where TBKAS is announced.

Times here are bounds with room for a loaded machine, in one direction only: an association must not end early, and
must end at last. KATO is 1 s, the shortest that leaves the first of the two decidable.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.support import nvme
from tests.support.conn import PeerClosed
from tests.support.daemon import Tree
from tests.support.initiator import Host, Queue

KATO_S = 1.0
PATIENCE_S = 20.0
TBKAS = 1 << 6


def run_for(seconds: float, step: Callable[[], object], pause: float = 0.1) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        step()
        time.sleep(pause)


def expires(host: Host, io: Queue) -> None:
    for queue in (host.admin, io):
        queue.conn.sock.settimeout(PATIENCE_S)
        with pytest.raises(PeerClosed):
            queue.conn.recv_exact(1)


def test_keep_alive(admin: Queue) -> None:
    assert admin.keep_alive().status == nvme.OK


def test_keep_alive_with_timer_off(tree: Tree) -> None:
    admin = tree.started(kato=0).admin
    assert admin.keep_alive().status == nvme.OK


def test_expiry_ends_the_association(tree: Tree) -> None:
    host = tree.started(kato=int(KATO_S * 1000))
    io = host.io()
    began = time.monotonic()
    expires(host, io)
    assert time.monotonic() - began > KATO_S / 2, "ended before the timeout"
    assert all(c["cntlid"] != host.cntlid for c in tree.rpc("nvmf_subsystem_get_controllers"))


def test_keep_alive_commands_keep_it(tree: Tree) -> None:
    host = tree.started(kato=int(KATO_S * 1000))
    io = host.io()
    run_for(2.5 * KATO_S, host.admin.keep_alive)
    assert io.read(0, 1, 512).status == nvme.OK
    expires(host, io)


def test_io_keeps_it_with_tbkas(tree: Tree) -> None:
    host = tree.started(kato=int(KATO_S * 1000))
    if not int.from_bytes(host.admin.identify(1).data[96:100], "little") & TBKAS:
        pytest.skip("CTRATT: no traffic based keep alive")
    io = host.io()
    run_for(3 * KATO_S, lambda: io.read(0, 1, 512))
    assert host.admin.keep_alive().status == nvme.OK
    expires(host, io)


def test_admin_commands_keep_it_with_tbkas(tree: Tree) -> None:
    host = tree.started(kato=int(KATO_S * 1000))
    if not int.from_bytes(host.admin.identify(1).data[96:100], "little") & TBKAS:
        pytest.skip("CTRATT: no traffic based keep alive")
    run_for(3 * KATO_S, lambda: host.admin.property_get(nvme.CSTS))
    assert host.admin.keep_alive().status == nvme.OK


def test_set_features_starts_the_timer(tree: Tree) -> None:
    host = tree.started(kato=0)
    io = host.io()
    assert host.admin.set_features(0x0F, int(KATO_S * 1000)).status == nvme.OK
    expires(host, io)


def test_set_features_stops_the_timer(tree: Tree) -> None:
    host = tree.started(kato=int(KATO_S * 1000))
    assert host.admin.set_features(0x0F, 0).status == nvme.OK
    assert host.admin.conn.is_silent(2.5 * KATO_S)
    assert host.admin.keep_alive().status == nvme.OK


def test_expiry_of_one_host_leaves_the_others(tree: Tree) -> None:
    dying, living = tree.started(kato=int(KATO_S * 1000)), tree.started(kato=0)
    io = living.io()
    expires(dying, dying.admin)
    assert io.read(0, 1, 512).status == nvme.OK
    assert living.admin.keep_alive().status == nvme.OK


def test_controller_that_is_never_enabled_expires_too(tree: Tree) -> None:
    host = tree.host(kato=int(KATO_S * 1000)).connect()
    expires(host, host.admin)
