"""A tree that several tests only read."""

from __future__ import annotations

import pytest

from tests.unit.p2p import machines


@pytest.fixture(scope="session")
def chassis(tmp_path_factory: pytest.TempPathFactory) -> machines.Machine:
    """24 drives with a CMB each."""
    return machines.chassis(tmp_path_factory.mktemp("chassis"))
