"""Fixtures of the tests of staging."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.p2p.machines import one_switch
from tests.unit.server.staging.rig import FakePools, Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """Two drives behind one switch, the first with a CMB; namespace 1 is on the second."""
    made = Rig(one_switch(tmp_path / "sys"), tmp_path, pools=FakePools())
    made.subsystem()
    made.drive("b1", "nvme1n1")
    return made
