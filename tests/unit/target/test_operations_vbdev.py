"""Delay and error bdevs and limits as configuration: accepted, refused, saved, removed with what is below them."""

from __future__ import annotations

from typing import Any

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.state import reconcile
from nvmet_p2p.state.render import render_config, replay
from nvmet_p2p.target.config import TargetConfig
from nvmet_p2p.target.operations_bdev import OPERATIONS, with_uuid
from nvmet_p2p.target.request_types import decode

UUID = "00000000-0000-4000-8000-0000000000"
LATENCIES = {"avg_read_latency": 1, "p99_read_latency": 2, "avg_write_latency": 3, "p99_write_latency": 4}


class Model:
    """A configuration that is changed call by call."""

    def __init__(self) -> None:
        self.config = TargetConfig()
        self._made = 0

    def uuid(self) -> str:
        self._made += 1
        return f"{UUID}{self._made:02}"

    def call(self, method: str, **params: Any) -> Any:
        operation = OPERATIONS[method]
        change = operation.apply(self.config, with_uuid(decode(operation.request, params), self.uuid))
        self.config = change.config
        return change.result


@pytest.fixture
def model() -> Model:
    made = Model()
    for name in ("b0", "b1"):
        made.call("bdev_malloc_create", name=name, num_blocks=64, block_size=512)
    return made


def test_made_changed_saved_and_deleted_with_the_base(model: Model) -> None:
    assert model.call("bdev_delay_create", name="d", base_bdev_name="b0", **LATENCIES) == "d"
    assert model.call("bdev_error_create", base_name="d") == "EE_d"
    model.call("bdev_delay_update_latency", delay_bdev_name="d", latency_type="p99_write", latency_us=40)
    model.call("bdev_set_qos_limit", name="EE_d", rw_ios_per_sec=1, r_mbytes_per_sec=5)
    assert model.config.bdevs["d"].latencies_us == (1, 2, 3, 40)
    assert model.config.bdevs["EE_d"].rw_ios_per_sec == 1000, "rounded up, as SPDK does"
    assert replay(TargetConfig(), render_config(model.config), model.uuid) == model.config
    model.call("bdev_malloc_delete", name="b0")
    assert set(model.config.bdevs) == {"b1"}


def test_a_limit_that_is_not_given_stays(model: Model) -> None:
    model.call("bdev_set_qos_limit", name="b0", rw_ios_per_sec=5000, w_mbytes_per_sec=2)
    model.call("bdev_set_qos_limit", name="b0", w_mbytes_per_sec=0)
    assert model.config.bdevs["b0"].rw_ios_per_sec == 5000
    assert model.config.bdevs["b0"].w_mbytes_per_sec == 0


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("bdev_delay_create", {"name": "x", "base_bdev_name": "none", **LATENCIES}, -19),
        ("bdev_delay_create", {"name": "b1", "base_bdev_name": "b0", **LATENCIES}, -17),
        ("bdev_delay_create", {"name": "x", "base_bdev_name": "b0", **LATENCIES, "avg_read_latency": 1 << 40}, -22),
        ("bdev_error_create", {"base_name": "none"}, -19),
        ("bdev_delay_update_latency", {"delay_bdev_name": "b0", "latency_type": "avg_read", "latency_us": 1}, -22),
        ("bdev_delay_update_latency", {"delay_bdev_name": "x", "latency_type": "avg_read", "latency_us": 1}, -19),
        ("bdev_set_qos_limit", {"name": "none", "rw_ios_per_sec": 1}, -19),
        ("bdev_set_qos_limit", {"name": "b0"}, -22),
        ("bdev_set_qos_limit", {"name": "b0", "rw_mbytes_per_sec": 1, "r_mbytes_per_sec": 2}, -22),
    ],
)
def test_refused(model: Model, method: str, params: dict[str, Any], code: int) -> None:
    before = model.config
    with pytest.raises(OperatorError) as caught:
        model.call(method, **params)
    assert caught.value.code == code
    assert model.config is before


def test_a_base_serves_one_thing(model: Model) -> None:
    model.call("nvmf_create_subsystem", nqn="nqn.2026-01.org.example:a", allow_any_host=True)
    model.call("bdev_error_create", base_name="b0")
    with pytest.raises(OperatorError, match="below bdev 'EE_b0'"):
        model.call("bdev_delay_create", name="d", base_bdev_name="b0", **LATENCIES)
    with pytest.raises(OperatorError, match="below bdev 'EE_b0'"):
        model.call("nvmf_subsystem_add_ns", nqn="nqn.2026-01.org.example:a", namespace={"bdev_name": "b0"})
    model.call("nvmf_subsystem_add_ns", nqn="nqn.2026-01.org.example:a", namespace={"bdev_name": "b1"})
    with pytest.raises(OperatorError, match="is namespace 1"):
        model.call("bdev_error_create", base_name="b1")


def test_reconcile_tells_size_from_tuning_and_closes_the_upper_first(model: Model) -> None:
    model.call("bdev_null_create", name="n", num_blocks=2048, block_size=512)
    model.call("bdev_error_create", base_name="b0")
    old = model.config
    model.call("bdev_set_qos_limit", name="b1", rw_ios_per_sec=1000)
    model.call("bdev_null_resize", name="n", new_size=2)
    plan = reconcile.plan(old, model.config)
    assert [new.name for _, new in plan.resize_bdevs] == ["n"]
    assert [new.name for _, new in plan.tune_bdevs] == ["b1"]
    before = model.config
    model.call("bdev_malloc_delete", name="b0")
    assert [bdev.name for bdev in reconcile.plan(before, model.config).close_bdevs] == ["EE_b0", "b0"]
