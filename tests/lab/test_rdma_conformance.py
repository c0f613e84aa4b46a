"""Tests of the conformance suite as they stand, over NVMe/RDMA on soft RoCE: the same commands and expectations.

``rdma_host.py`` is the host. What speaks of NVMe/TCP's PDUs is left out (``OF_TCP``); ``test_rdma.py`` has what speaks
of capsules, keys and the connection manager. All the rest takes minutes under emulation and runs where
``NVMET_P2P_RDMA_SUITE=all`` asks for it; otherwise a few of each file do (``SOME``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Final

import pytest

from tests.conformance import (
    test_abort,
    test_aer,
    test_connect,
    test_copy,
    test_features,
    test_fused,
    test_identify,
    test_io,
    test_keepalive,
    test_log_pages,
    test_properties,
)
from tests.conformance.conftest import MakeTree, admin, host, io
from tests.conformance.test_fused import prepared
from tests.conformance.test_io import queue
from tests.lab.inside import InsideTarget
from tests.lab.monitor import splats
from tests.lab.rdma import ADDRESS, PORT, RdmaGuest, serving
from tests.lab.rdma_host import Bridge, RdmaDaemon
from tests.support.daemon import Ns, Tree

__all__ = ["admin", "host", "io", "prepared", "queue"]

pytestmark = pytest.mark.rdma

ALL: Final = os.environ.get("NVMET_P2P_RDMA_SUITE") == "all"
MODULES: Final = (
    test_abort,
    test_aer,
    test_connect,
    test_copy,
    test_features,
    test_fused,
    test_identify,
    test_io,
    test_keepalive,
    test_log_pages,
    test_properties,
)
OF_TCP: Final = {
    "abort.write_that_waits_for_its_data": "R2T",
    "connect.data_length": "data in the capsule of an admin command",
    "connect.io_connect_through_another_port": "a port of this machine",
    "connect.static_controller_model": "a port of this machine",
    "io.large_transfers": "R2T",
}
FRESH: Final = {"test_fused_ranges_differ", "test_io_mixed_load"}
"""These look at blocks that nobody has written."""
SOME: Final = """
    abort.event_request abort.many_at_once aer.limit aer.namespace_added
    connect.admin_connect connect.disconnect connect.duplicate_queue connect.second_connect
    connect.without_sq_flow_control copy.one_range features.number_of_queues fused.reversed identify.controller
    identify.active_list io.deallocate_all_ranges io.full_queue io.data_survives_for_other_hosts io.dsm_length
    keepalive.keep_alive_with_timer_off log_pages.error_log log_pages.numd_and_the_sgl_must_agree properties.reset
""".split()  # noqa: SIM905


def chosen(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The tests of a file, by a name that says which file."""
    short = module.__name__.rpartition("test_")[2]
    for name, test in vars(module).items():
        known = f"{short}.{name.removeprefix('test_')}"
        if name.startswith("test_") and known not in OF_TCP and (ALL or known in SOME):
            yield f"test_{short}_{name.removeprefix('test_')}", test


for _module in MODULES:
    globals().update(chosen(_module))


@pytest.fixture(scope="module")
def daemon(rdma_guest: RdmaGuest, rdma_daemon: InsideTarget, rdma_program: str) -> Iterator[RdmaDaemon]:
    """The daemon in the guest, and the host beside it."""
    assert rdma_program
    target = serving(rdma_daemon)
    before = len(rdma_guest.messages())
    bridge = Bridge(target, rdma_guest.host_socket, (ADDRESS, PORT))
    yield RdmaDaemon(target, bridge, (ADDRESS, PORT))
    bridge.close()
    rdma_guest.run("kill $(cat /run/rdma_host.pid); true")
    target.clear()
    assert splats(rdma_guest.messages()[before:]) == ()


@pytest.fixture
def make_tree(daemon: RdmaDaemon) -> Iterator[MakeTree]:
    trees: list[Tree] = []

    def make(*namespaces: Ns, **options: object) -> Tree:
        trees.append(daemon.subsystem(*namespaces, **options))
        return trees[-1]

    yield make
    for made in trees:
        made.delete()


@pytest.fixture(scope="module")
def shared(daemon: RdmaDaemon) -> Iterator[list[Tree]]:
    """The subsystem that tests share, or none: each takes seconds to make."""
    kept: list[Tree] = []
    yield kept
    for made in kept:
        made.delete()


@pytest.fixture
def tree(daemon: RdmaDaemon, shared: list[Tree], request: pytest.FixtureRequest) -> Iterator[Tree]:
    """As the suite's; made anew after a test that did not leave it as it was."""

    def shown() -> object:
        found = [each for each in daemon.rpc("nvmf_get_subsystems") if shared and each["nqn"] == shared[0].nqn]
        return found[0] if found else None

    if shared and request.node.originalname in FRESH:
        shared.pop().delete()
    if not shared:
        shared.append(daemon.subsystem(Ns(), Ns(blocks=1024, block_size=4096)))
    made, before = shared[0], shown()
    yield made
    made.close_hosts()
    if shown() != before:
        made.delete()
        shared.clear()


@pytest.mark.skipif(ALL, reason="all of it runs")
def test_the_rest() -> None:
    """Not in silence: what was not run."""
    pytest.skip("the rest of the conformance suite over RDMA: NVMET_P2P_RDMA_SUITE=all")
