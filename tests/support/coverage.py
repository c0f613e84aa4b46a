"""Which conformance test sent which command: the "tests" column of docs/coverage.md is what was seen to happen.

``NVMET_P2P_COVERAGE=FILE`` writes the record when the conformance suite ends (``make coverage`` runs it so).
"""

from __future__ import annotations

import json
from pathlib import Path

FABRICS = 0x7F
PROPERTY_FCTYPES = (0x00, 0x04)  # Property Set and Get: the offset is in dword 11
ADMIN_PARTS = {0x06: ("identify", 40), 0x02: ("log", 40), 0x09: ("feature", 40), 0x0A: ("feature", 40)}

_current: list[str] = []
_seen: dict[str, set[str]] = {}


def enter(test: str) -> None:
    """``test``, as ``module::function``, runs from now on."""
    _current[:] = [test]


def record(sqe: bytes, qid: int) -> None:
    """A command is being sent on queue ``qid``."""
    if not _current or len(sqe) < 64:
        return
    for key in keys(sqe, qid):
        _seen.setdefault(key, set()).add(_current[0])


def keys(sqe: bytes, qid: int) -> list[str]:
    """The rows of the tables that a command belongs to."""
    opcode = sqe[0]
    if opcode == FABRICS:
        found = [f"fabrics:{sqe[4]:02x}"]
        if sqe[4] in PROPERTY_FCTYPES:
            found.append(f"property:{sqe[44]:02x}")
        return found
    if qid:
        return [f"io:{opcode:02x}"]
    found = [f"admin:{opcode:02x}"]
    if opcode in ADMIN_PARTS:
        kind, at = ADMIN_PARTS[opcode]
        found.append(f"{kind}:{sqe[at]:02x}")
    return found


def save(path: Path) -> None:
    """Writes what was seen, sorted."""
    table = {key: sorted(tests) for key, tests in sorted(_seen.items())}
    path.write_text(json.dumps(table, indent=1) + "\n")
