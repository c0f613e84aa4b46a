"""One daemon for the session and each engine; a fresh subsystem for each test."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nvmet_p2p.dataplane.native.process import find_program
from tests.support import coverage
from tests.support.daemon import Daemon, Ns, Tree
from tests.support.initiator import Host, Queue
from tests.support.spdk import SpdkDaemon, built_with_spdk
from tests.support.staging import Rig, make_machine
from tests.unit.p2p.machines import Machine

ENGINES = ("inprocess", "native")  # both must pass all of it
SPDK = "spdk"  # the native one whose back ends SPDK reaches; where it is built with SPDK
NOT_OVER_SPDK = (
    "NOT RUN OVER SPDK: nvmet-p2p-dataplane is built without it, so nothing says that bdev_nvme_* serves rightly"
)
OWN_DAEMON = frozenset({"make_daemon", "native", "only_native", "rig", "machine", "victim", "target", "roomy"})
MakeDaemon = Callable[..., Daemon]
MakeTree = Callable[..., Tree]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is sent from now on is put down to this test."""
    coverage.enter(f"{item.path.stem}::{getattr(item, 'originalname', None) or item.name}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leaves the record for docs/coverage.md where NVMET_P2P_COVERAGE says."""
    where = os.environ.get("NVMET_P2P_COVERAGE")
    if where and not session.testsfailed:
        coverage.save(Path(where))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Over SPDK goes what uses the shared daemon; the rest of the suite is about daemons and engines themselves."""
    over = [item for item in items if _engine_of(item) == SPDK or item.get_closest_marker("spdk")]
    if not over:
        return
    there = built_with_spdk()
    config.stash[MISSED] = not there
    wanted = {item for item in over if there and _on_shared(item)}
    left_out = [item for item in over if item not in wanted]
    config.hook.pytest_deselected(items=left_out)
    dropped = set(left_out)
    items[:] = [item for item in items if item not in dropped]


def _on_shared(item: pytest.Item) -> bool:
    fixtures = {*getattr(item, "fixturenames", ())}
    return item.get_closest_marker("spdk") is not None or ("daemon" in fixtures and not OWN_DAEMON & fixtures)


MISSED = pytest.StashKey[bool]()


def _engine_of(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return str(callspec.params.get("engine", "")) if callspec is not None else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line that cannot be overlooked."""
    if config.stash.get(MISSED, False):
        terminalreporter.section("SPDK", yellow=True, bold=True)
        terminalreporter.write_line(NOT_OVER_SPDK, yellow=True)


@pytest.fixture(scope="session", params=(*ENGINES, SPDK))
def engine(request: pytest.FixtureRequest) -> str:
    """Which data plane serves the I/O queues. Without the native one its tests are skipped (or fail: in CI)."""
    if request.param == "native" and find_program() is None:
        why = "nvmet-p2p-dataplane is not built: make native"
        if os.environ.get("NVMET_P2P_NATIVE") == "require":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    return str(request.param)


@pytest.fixture(scope="session")
def daemon(engine: str) -> Iterator[Daemon]:
    """The daemon that most tests share."""
    with SpdkDaemon() if engine == SPDK else Daemon(engine=engine) as running:
        running.transport()
        yield running
        assert running.process is not None
        assert running.process.poll() is None, f"the daemon died:\n{running.log_text()}"
        assert running.stop() == 0
        assert "Traceback" not in running.log.read_text(errors="replace"), running.log_text()


@pytest.fixture
def make_daemon(engine: str) -> Iterator[MakeDaemon]:
    """Daemons of a test's own: ``make_daemon(*options, nofile=0)`` starts one."""
    with ExitStack() as running:  # one that does not end leaves none of the others behind

        def make(*options: str, nofile: int = 0, start: bool = True) -> Daemon:
            made = Daemon(*options, engine=engine, nofile=nofile)
            running.callback(made.close)
            return made.start() if start else made

        yield make


@pytest.fixture
def make_tree(daemon: Daemon) -> Iterator[MakeTree]:
    """``make_tree(Ns(), ..., **subsystem_options)`` on the shared daemon; removed at the end."""
    trees: list[Tree] = []

    def make(*namespaces: Ns, **options: object) -> Tree:
        trees.append(daemon.subsystem(*namespaces, **options))
        return trees[-1]

    yield make
    for tree in trees:
        tree.delete()


@pytest.fixture
def tree(make_tree: MakeTree) -> Tree:
    """NSID 1: malloc, 4096 blocks of 512 bytes; NSID 2: malloc, 1024 blocks of 4096 bytes."""
    return make_tree(Ns(), Ns(blocks=1024, block_size=4096))


@pytest.fixture
def host(tree: Tree) -> Host:
    """A host with an enabled controller on ``tree``."""
    return tree.started()


@pytest.fixture
def admin(host: Host) -> Queue:
    return host.admin


@pytest.fixture
def io(host: Host) -> Queue:
    """I/O queue 1 of ``host``."""
    return host.io()


@pytest.fixture
def native(engine: str) -> None:
    """For tests of what only the native data plane has: pools."""
    if engine != "native":
        pytest.skip("the in-process engine stages in host memory alone")


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A made machine whose drive 0 has a CMB; the tests' files are on its drive 1."""
    with tempfile.TemporaryDirectory(prefix="nvmetp2p-sys-") as folder:
        if os.major(os.stat(folder).st_dev) == 0:
            pytest.skip(f"{folder} is on a file system without a device")
        yield make_machine(Path(folder))


@pytest.fixture
def rig(native: None, make_daemon: MakeDaemon, machine: Machine) -> Rig:
    """A daemon on ``machine``, and a subsystem without namespaces."""
    return Rig(make_daemon("--sysfs-root", str(machine.root)))
