"""What all tests share: marks by folder, and hypothesis profiles that give the same examples on every run."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent

settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test below tests/lab is a lab test; nobody has to remember the mark."""
    for item in items:
        if (TESTS / "lab") in item.path.parents:
            item.add_marker(pytest.mark.lab)
