"""Two data planes, one stream of commands: every status, every byte of data and what the namespaces hold must agree.

``NVMET_P2P_DIFF_SECONDS=N`` goes on for N seconds, from ``NVMET_P2P_DIFF_SEED`` (default 1000) upwards. A seed that
differs is made as short as possible and printed; ``NVMET_P2P_DIFF_SEED=S NVMET_P2P_DIFF_SECONDS=1`` plays it again.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from nvmet_p2p.dataplane.native.process import find_program
from tests.support import nvme
from tests.support.daemon import Daemon, Ns, Tree
from tests.support.replay import Player, Transcript
from tests.support.streams import Space, Step, Stream, World, stream

SECONDS = float(os.environ.get("NVMET_P2P_DIFF_SECONDS", "0"))
FIRST_SEED = int(os.environ.get("NVMET_P2P_DIFF_SEED", "1000"))
SEEDS = 50  # of each configuration in a normal run
STEPS = 120
SHRINK_PLAYS = 60
READ_ONLY, INACCESSIBLE, PROTECTED, LARGE = 6, 7, 9, 10
NAMESPACES = {
    1: Ns("malloc", 1024, 512),
    2: Ns("malloc", 256, 4096),
    3: Ns("aio", 1024, 512),
    4: Ns("aio", 256, 4096),
    5: Ns("null", 4096, 512),
    READ_ONLY: Ns("aio", 512, 512, readonly=True),
    INACCESSIBLE: Ns("malloc", 512, 512),
    8: Ns("malloc", 512, 512, params={"no_auto_visible": True}),
    PROTECTED: Ns("malloc", 512, 512),
    LARGE: Ns("null", 1 << 40, 512),
}
STRANGE = (0, 8, 11, 33, 0xFFFFFFFE, 0xFFFFFFFF)
UNSERVED = {READ_ONLY, INACCESSIBLE, 8, PROTECTED}
TRANSPORTS: dict[str, dict[str, Any]] = {
    "usual": {},
    "roomy": {"max_io_size": 1 << 20, "in_capsule_data_size": 8192, "c2h_success": False},
}


@dataclass(frozen=True)
class Pair:
    """The same subsystem twice; the first is the oracle."""

    players: tuple[Player, Player]
    world: World

    def difference(self, given: Stream) -> tuple[int, list[str], list[str]] | None:
        """The first step whose answers differ, or are wrong in themselves, and the answers."""
        ours, theirs = (player.play(given, 10.0) for player in self.players)
        return first_difference(ours, theirs)


def first_difference(ours: Transcript, theirs: Transcript) -> tuple[int, list[str], list[str]] | None:
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a != b or any(line.startswith("!") for line in (*a, *b)):
            return number, a, b
    return None


@pytest.fixture(scope="module", params=list(TRANSPORTS))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if find_program() is None:
        why = "NOT COMPARED: nvmet-p2p-dataplane is not built (make native), so nothing says that both engines agree"
        if os.environ.get("NVMET_P2P_NATIVE") == "require":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    options = TRANSPORTS[request.param]
    spaces = [
        Space(nsid, ns.blocks, ns.block_size, nsid not in UNSERVED) for nsid, ns in NAMESPACES.items() if nsid != 8
    ]
    world = World(tuple(spaces), STRANGE, options.get("max_io_size", 131072), options.get("in_capsule_data_size", 4096))
    with ExitStack() as stack:
        cores = () if request.param == "usual" else ("--cpumask", "0x3")
        daemons = [stack.enter_context(Daemon(engine="inprocess"))]
        daemons.append(stack.enter_context(Daemon(*cores, engine="native")))
        trees = [served(daemon, options) for daemon in daemons]
        yield Pair((Player(trees[0], world), Player(trees[1], world)), world)
        for daemon in daemons:
            assert daemon.process is not None
            assert daemon.process.poll() is None, f"the daemon died:\n{daemon.log_text()}"
            assert daemon.stop() == 0
            assert "Traceback" not in daemon.log.read_text(errors="replace"), daemon.log_text()
        assert_files_agree(trees)


def served(daemon: Daemon, options: dict[str, Any]) -> Tree:
    """The namespaces on a daemon that has none yet."""
    daemon.transport(**options)
    tree = daemon.subsystem(ana_reporting=True)
    for nsid, ns in NAMESPACES.items():
        tree.add(ns, nsid)
    (daemon.dir / f"{tree.bdevs[READ_ONLY][0]}.img").write_bytes(random.Random(0).randbytes(512 * 512))
    address = tree.listen_address(tree.address)
    tree.rpc(
        "nvmf_subsystem_listener_set_ana_state", listen_address=address, anagrpid=INACCESSIBLE, ana_state="inaccessible"
    )
    host = tree.started()
    assert host.admin.set_features(0x84, 1, nsid=PROTECTED).status == nvme.OK
    tree.close_hosts()
    return tree


def assert_files_agree(trees: Sequence[Tree]) -> None:
    """What is in the files when both daemons have ended."""
    for nsid, ns in NAMESPACES.items():
        if ns.kind == "aio":
            first, second = (tree.daemon.dir / f"{tree.bdevs[nsid][0]}.img" for tree in trees)
            assert first.read_bytes() == second.read_bytes(), f"the files of namespace {nsid} differ"


def shortest(pair: Pair, failing: Stream, at: int) -> Stream:
    """Fewer steps with which the two still differ: ever smaller pieces are left out, for a bounded number of plays."""
    best = failing.with_steps(failing.steps[: at + 1])
    plays, size = 0, max(1, len(best.steps) // 2)
    if pair.difference(best) is None:
        return failing
    while plays < SHRINK_PLAYS:
        start = 0
        while start < len(best.steps) and len(best.steps) > 1 and plays < SHRINK_PLAYS:
            steps: tuple[Step, ...] = best.steps[:start] + best.steps[start + size :]
            plays += 1
            if steps and pair.difference(best.with_steps(steps)) is not None:
                best = best.with_steps(steps)
            else:
                start += size
        if size == 1:
            break
        size //= 2
    return best


def compare(pair: Pair, seed: int) -> None:
    """One seed on both; fails with the shortest stream found and what was answered to it."""
    whole = stream(seed, pair.world, STEPS)
    found = pair.difference(whole)
    if found is None:
        return
    short = shortest(pair, whole, found[0])
    number, a, b = pair.difference(short) or found
    where = f"step {number}" if number < len(short.steps) else "the content of the namespaces"
    lines = [f"SEED {seed}: {where} of this stream differs", str(short), "inprocess:", *a, "native:", *b]
    pytest.fail("\n".join(lines), pytrace=False)


@pytest.mark.timeout(max(300.0, 4 * SECONDS))
def test_both_engines_agree(pair: Pair) -> None:
    if not SECONDS:
        for seed in range(SEEDS):
            compare(pair, seed)
        return
    started = time.monotonic()
    for seed in itertools.count(FIRST_SEED):
        compare(pair, seed)
        if time.monotonic() - started > SECONDS / len(TRANSPORTS):
            print(f"seeds {FIRST_SEED} to {seed} agree")
            break


def test_a_stream_is_the_same_every_time(pair: Pair) -> None:
    assert str(stream(7, pair.world, 40)) == str(stream(7, pair.world, 40))
