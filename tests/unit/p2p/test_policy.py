"""What operators write, and which of several levels counts."""

from __future__ import annotations

import itertools

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.p2p.policy import DEFAULT, StagingPolicy, effective

POOL = "0000:03:00.0"


@pytest.mark.parametrize(
    ("mode", "fallback", "policy"),
    [
        ("off", "prefer", StagingPolicy("off", False)),
        ("AUTO", "strict", StagingPolicy("auto", True)),
        ("auto,strict", "prefer", StagingPolicy("auto", True)),
        (" 03:00.0 , prefer ", "strict", StagingPolicy(POOL, False)),
        ("0000:AF:00.1", "prefer", StagingPolicy("0000:af:00.1", False)),
        ("trial", "strict", StagingPolicy("trial", True)),
    ],
)
def test_parse(mode: str, fallback: str, policy: StagingPolicy) -> None:
    assert StagingPolicy.parse(mode, fallback) == policy
    assert StagingPolicy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("mode", "fallback", "word"),
    [
        ("off", "strict", "'strict' forbids"),
        ("off,strict", "prefer", "'strict' forbids"),
        ("auto", "never", "'never'"),
        ("auto,", "prefer", "''"),
        ("", "prefer", "''"),
        ("a pool", "prefer", "'a pool'"),
        ("x" * 64, "prefer", "neither"),
        ("../etc", "prefer", "neither"),
    ],
)
def test_refused(mode: str, fallback: str, word: str) -> None:
    with pytest.raises(OperatorError, match="staging:") as error:
        StagingPolicy.parse(mode, fallback)
    assert word in str(error.value)
    assert error.value.code == -22


def test_the_nearest_level_counts() -> None:
    levels = ("namespace", "listener", "subsystem", "target")
    policies = {level: StagingPolicy(f"pool-{level}") for level in levels}
    for chosen in itertools.chain.from_iterable(itertools.combinations(levels, count) for count in range(5)):
        found = effective(**{level: policies[level] for level in chosen})
        assert found.level == (chosen[0] if chosen else "default")
        assert found.policy == (policies[chosen[0]] if chosen else DEFAULT)
    assert StagingPolicy("auto", False) == DEFAULT
    assert DEFAULT.pool is None
    assert policies["target"].pool == "pool-target"
