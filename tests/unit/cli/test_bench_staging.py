"""``nvmet-p2p bench --staging``: which calls it makes, in which order, and that the policy is put back."""

from __future__ import annotations

from typing import Any

import pytest

from nvmet_p2p.cli import bench
from nvmet_p2p.cli.bench_staging import Switch
from nvmet_p2p.cli.bench_tool import BenchError, Target

NQN = "nqn.2026-11.com.example:a"
PLACE = {"nqn": NQN, "nsid": 3}


class Daemon:
    """Answers; remembers what it was told to set."""

    def __init__(self, path: dict[str, Any] | None, usable: tuple[str, ...] = ()) -> None:
        self.path = path
        self.usable = usable
        self.told: list[dict[str, Any]] = []

    def call(self, method: str, params: Any = None) -> Any:
        if method == "p2p_get_staging":
            assert params == PLACE
            return [] if self.path is None else [{"paths": [self.path]}]
        if method == "p2p_get_providers":
            return [{"bdf": bdf, "usable": True} for bdf in self.usable] + [{"bdf": "0000:09:00.0", "usable": False}]
        assert method == "p2p_set_staging"
        self.told.append({key: value for key, value in params.items() if key not in PLACE})
        assert {key: params[key] for key in PLACE} == PLACE
        return True


def path(policy: str = "auto", level: str = "default", *, write: str = "", strict: bool = False) -> dict[str, Any]:
    return {"policy": policy, "policy_of": level, "strict": strict, "read": "", "write": write}


def test_runs_alternate_and_the_policy_is_put_back() -> None:
    daemon = Daemon(path(write="0000:03:00.0"))
    target = Target("192.0.2.1", "4420", NQN)
    document = {
        "interrupted": False,
        "total": {"ios": 10, "iops": 1.0, "latency_us": {"mean": 1.0, "p50": 1.0, "p99": 1.0}},
    }
    document |= {"options": {"depth": 1, "queues": 1}}
    plan = bench.Plan((target, target), (1,), (), 2, ("host", "cmb"))
    with Switch(daemon, NQN, 3) as switch:
        result = bench.measure(plan, lambda target, arguments: document, switch.to)
    off, peer = {"policy": "off", "mode": "prefer"}, {"policy": "0000:03:00.0", "mode": "strict"}
    assert daemon.told == [off, peer, off, peer, {"policy": "inherit"}]
    assert result["targets"] == [f"{target} staged in host", f"{target} staged in cmb"]


def test_an_own_policy_comes_back_also_after_an_error() -> None:
    daemon = Daemon(path("emu", "namespace", strict=True))

    def run() -> None:
        with Switch(daemon, NQN, 3) as switch:
            switch.to("other")
            raise BenchError("no answer")

    with pytest.raises(BenchError, match="no answer"):
        run()
    assert daemon.told == [{"policy": "other", "mode": "strict"}, {"policy": "emu", "mode": "strict"}]


@pytest.mark.parametrize("usable", [(), ("0000:03:00.0", "0000:04:00.0")])
def test_cmb_must_be_clear(usable: tuple[str, ...]) -> None:
    daemon = Daemon(path(), usable)
    with pytest.raises(BenchError, match=f"{len(usable)} providers can be used"), Switch(daemon, NQN, 3) as switch:
        switch.to("cmb")


def test_the_only_provider_is_cmb() -> None:
    daemon = Daemon(path(), ("0000:03:00.0",))
    with Switch(daemon, NQN, 3) as switch:
        switch.to("cmb")
    assert daemon.told[0] == {"policy": "0000:03:00.0", "mode": "strict"}


def test_a_namespace_that_is_not_there() -> None:
    with pytest.raises(BenchError, match="there is no namespace 3"), Switch(Daemon(None), NQN, 3):
        pass
