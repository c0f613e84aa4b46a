"""What was measured is known until the machine is booted again, and no longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvmet_p2p.p2p.choice import Calibration
from nvmet_p2p.state.calibrations import FILE_NAME, Calibrations, this_boot

GOOD = Calibration(verified=True, cpu_write_mib_s=123.5)
BAD = Calibration(verified=False, reason="wrong")


def make(folder: Path, boot: str = "boot 1") -> Calibrations:
    made = Calibrations(folder, boot)
    made.load()
    return made


def test_kept_for_this_boot(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.put("pool", "client", GOOD)
    first.put("pool", "other", BAD)
    again = make(tmp_path)
    assert again.get("pool", "client") == GOOD
    assert again.get("pool", "other") == BAD
    assert again.get("other", "client") is None
    assert make(tmp_path, "boot 2").get("pool", "client") is None


def test_forgotten(tmp_path: Path) -> None:
    first = make(tmp_path)
    for client in ("a", "b"):
        for pool in ("p", "q"):
            first.put(pool, client, GOOD)
    first.forget("p", "a")
    first.forget("q")
    again = make(tmp_path)
    known = [(pool, client) for pool in "pq" for client in "ab" if again.get(pool, client) is not None]
    assert known == [("p", "b")]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"boot": "boot 1", "results": [{"pool": 1}]}', b"\xff"])
def test_a_file_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    made = make(tmp_path)
    assert made.get("pool", "client") is None
    made.put("pool", "client", GOOD)
    assert make(tmp_path).get("pool", "client") == GOOD


def test_a_folder_that_cannot_be_written_costs_the_memory_of_it_only(tmp_path: Path) -> None:
    made = Calibrations(tmp_path / "absent", "boot 1")
    made.load()
    made.put("pool", "client", GOOD)
    assert made.get("pool", "client") == GOOD


def test_without_a_name_for_the_boot_nothing_is_kept(tmp_path: Path) -> None:
    assert this_boot(tmp_path / "absent") == ""
    made = make(tmp_path, "")
    made.put("pool", "client", GOOD)
    assert made.get("pool", "client") == GOOD
    assert list(tmp_path.iterdir()) == []


def test_this_boot(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("11111111-2222\n")
    assert this_boot(tmp_path / "boot_id").startswith("11111111-2222 ")
