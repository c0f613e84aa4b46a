"""Copy from drive to drive by nvme-cli, for both kinds of drives: the kernel's and those of the data plane itself.

The initiator is Linux 6.18: a later host driver keeps Host Behavior Support to itself (7.2 refuses
Set Features 16h with EACCES), and a host that has not enabled descriptor format 2 there cannot name another namespace.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.lab.staging import FIND_DEV, MIB, NQN, Staged, Use, grown
from tests.lab.test_linux_host import quiet
from tests.lab.trace import READ, WRITE, Trace, Traffic

KERNEL = "6.18.15+deb13-amd64"
# Host Behavior Support with the copy descriptor formats 2 and 3 enabled (CDFE, byte 4)
ENABLE_FORMATS = r"""
printf '\0\0\0\0\014' > /tmp/behavior; truncate -s 512 /tmp/behavior
nvme set-feature ${dev%n*} -f 0x16 -l 512 -d /tmp/behavior >&2
"""


def copy_a_to_b(
    staged: Staged, provider: str, mib: int, trace: Trace, traffic: Callable[[], Traffic], into: str | None = None
) -> None:
    """Copies the first MiB of drive A (namespace 1), which hold something, to B (2) through a CMB, and looks at
    everything that moved.

    traffic: since the trace's mark. into: where the trace shows B's part, if that is not the provider's name.
    """
    guest, moved = staged.guest, mib * MIB
    staged.policy(provider, "strict")
    limits = guest.run(
        f"{staged.connect()} find_dev 2; {ENABLE_FORMATS}\nnvme id-ns $dev -o json", keep=True, timeout=120
    ).json()
    most = min(limits["mcl"], limits["mssrl"]) // 8 * 8
    uses = staged.uses(1), staged.uses(2)
    routes = staged.namespace(2)["copy_routes"]
    trace.mark()
    done = guest.run(
        f"""{FIND_DEV} find_dev 2; sent=/sys/class/net/lo/statistics/tx_bytes; before=$(<$sent)
        for (( at = 0, end = {mib * 2048}; at < end; at += n )); do
            n=$(( end - at < {most} ? end - at : {most} ))
            nvme copy $dev --format=2 --sdlba=$at --slbs=$at --blocks=$((n - 1)) --snsids=1 >&2
        done
        echo $(( $(<$sent) - before ))""",
        timeout=350,
    )
    quiet(done, "keep[ _]?alive")
    guest.run(f"nvme disconnect -n {NQN}")
    was = traffic()
    assert was.of("A", READ) == {provider: moved}
    assert was.of("B", WRITE) == {into or provider: moved}
    assert was.of("A", WRITE) == was.of("B", READ) == {}
    assert int(done.out) < 65536  # capsules and their responses; keep alives
    copied = [grown(before, staged.uses(nsid)).get(provider, Use()).copy for nsid, before in enumerate(uses, 1)]
    assert sum(copied) == moved, copied
    after = staged.namespace(2)["copy_routes"]
    assert {key: after[key] - routes[key] for key in after if after[key] != routes[key]} == {"pool": moved}
    with (guest.folder / "A.img").open("rb") as source, (guest.folder / "B.img").open("rb") as target:
        content = source.read(moved)
        assert content.count(0) < moved // 2
        assert content == target.read(moved)
