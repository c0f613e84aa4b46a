"""Pieces of shell for the guest as a Linux host of a target."""

from __future__ import annotations


def find_dev(nqn: str) -> str:
    """Defines ``find_dev NSID``: $dev is the namespace's block device (the multipath head), once it is there.

    It goes by the NSID: the kernel looks at several namespaces at a time and numbers their devices as they come.
    """
    return f"""
find_dev() {{
    for _ in {{1..300}}; do
        for n in /sys/class/nvme-subsystem/*/nvme*n*; do
            [ -e "$n" ] || continue  # the pattern itself, where nothing has matched
            [ "$(cat ${{n%/*}}/subsysnqn 2>/dev/null)" = {nqn} ] && [ "$(cat $n/nsid 2>/dev/null)" = $1 ] || continue
            dev=/dev/${{n##*/}} && [ -b $dev ] && return 0
        done
        sleep 0.1
    done
    echo "no namespace $1" >&2; return 1
}}
set -e
"""
