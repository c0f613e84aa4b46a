"""Staging policies, emulated pools and cmb bdevs as configuration: accepted, refused, saved, loaded again."""

from __future__ import annotations

import errno
import json
from typing import Any

import pytest

from nvmet_p2p import limits
from nvmet_p2p.state.render import render_config, replay
from nvmet_p2p.state.store import decode, encode
from nvmet_p2p.target.config import StagingConfig, TargetConfig
from nvmet_p2p.target.validate import DISCOVERY_NQN
from tests.unit.target.changing import NQN, Config, typical

ADDRESS = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "192.0.2.1", "trsvcid": "4420"}
MIB = 1 << 20


@pytest.fixture
def config() -> Config:
    """NSID 1 on m0, one listener, one emulated pool."""
    made = typical()
    made.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0"})
    made.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=ADDRESS)
    assert made.do("p2p_emulated_pool_create", name="pretend", bytes=MIB) == "pretend"
    return made


def test_each_level_has_a_policy_of_its_own(config: Config) -> None:
    assert config.do("p2p_set_staging", policy="off") is True
    config.do("p2p_set_staging", nqn=NQN, policy="auto", mode="strict")
    config.do("p2p_set_staging", nqn=NQN, nsid=1, policy="03:0A.1")
    config.do("p2p_set_staging", nqn=NQN, listen_address=ADDRESS, policy="pretend", mode="strict")
    assert config.value.staging == StagingConfig(policy="off")
    assert config.one.staging == StagingConfig(policy="auto", strict=True)
    assert config.one.namespaces[1].staging == StagingConfig(policy="0000:03:0a.1")
    assert config.one.listeners[0].staging == StagingConfig(policy="pretend", strict=True)
    for where in ({}, {"nqn": NQN}, {"nqn": NQN, "nsid": 1}, {"nqn": NQN, "listen_address": ADDRESS}):
        config.do("p2p_set_staging", policy="inherit", **where)
    assert [config.value.staging, config.one.staging, config.one.listeners[0].staging] == [None] * 3
    assert config.one.namespaces[1].staging is None


@pytest.mark.parametrize(
    ("code", "text", "params"),
    [
        (-errno.ENODEV, "params.policy: 'nobody' is neither", {"policy": "nobody"}),
        (-errno.ENODEV, "neither a PCI address", {"policy": "0000:03:00.8"}),
        (-errno.ENODEV, "neither", {"policy": ""}),
        (-errno.ENODEV, "neither", {"policy": "host"}),
        (-32602, "params.mode: strict says nothing", {"policy": "off", "mode": "strict"}),
        (-32602, "params.mode: strict says nothing", {"policy": "inherit", "mode": "strict"}),
        (-32602, "params.nqn: required with nsid", {"policy": "auto", "nsid": 1}),
        (-32602, "params.nqn: required with listen_address", {"policy": "auto", "listen_address": ADDRESS}),
        (-32602, "only one of them", {"policy": "auto", "nqn": NQN, "nsid": 1, "listen_address": ADDRESS}),
        (-32602, "has no namespace 2", {"policy": "auto", "nqn": NQN, "nsid": 2}),
        (-32602, "there is no subsystem", {"policy": "auto", "nqn": "nqn.2026-11.com.example:other"}),
        (-32602, "does not listen", {"policy": "auto", "nqn": NQN, "listen_address": ADDRESS | {"trsvcid": "1"}}),
        (-errno.ENOTSUP, "discovery", {"policy": "auto", "nqn": DISCOVERY_NQN}),
        (-32602, "params.mode", {"policy": "auto", "mode": "maybe"}),
        (-32602, "required", {"mode": "strict"}),
    ],
)
def test_refused_policies(config: Config, code: int, text: str, params: dict[str, Any]) -> None:
    config.refused(code, text, "p2p_set_staging", **params)


@pytest.mark.parametrize(
    ("code", "text", "params"),
    [
        (-errno.EEXIST, "there is an emulated pool", {"name": "pretend", "bytes": MIB}),
        (-32602, "params.name", {"name": "", "bytes": MIB}),
        (-32602, "params.name", {"name": "a b", "bytes": MIB}),
        (-32602, "params.name", {"name": "x" * 64, "bytes": MIB}),
        (-32602, "means something else", {"name": "auto", "bytes": MIB}),
        (-32602, "means something else", {"name": "host", "bytes": MIB}),
        (-32602, "not 1 to 63", {"name": "0000:03:00.0", "bytes": MIB}),
        (-32602, "params.bytes", {"name": "p", "bytes": limits.POOL_BYTES_MIN - 4096}),
        (-32602, "params.bytes", {"name": "p", "bytes": MIB + 1}),
        (-32602, "params.bytes", {"name": "p", "bytes": limits.EMULATED_POOL_BYTES_MAX + 4096}),
    ],
)
def test_refused_pools(config: Config, code: int, text: str, params: dict[str, Any]) -> None:
    config.refused(code, text, "p2p_emulated_pool_create", **params)


def test_as_many_pools_as_there_may_be(config: Config) -> None:
    for number in range(1, limits.EMULATED_POOLS_MAX):
        config.do("p2p_emulated_pool_create", name=f"p{number}", bytes=limits.POOL_BYTES_MIN)
    config.refused(-errno.ENOSPC, "the most", "p2p_emulated_pool_create", name="more", bytes=MIB)


def test_a_pool_that_is_named_stays(config: Config) -> None:
    config.do("p2p_set_staging", nqn=NQN, nsid=1, policy="pretend")
    config.refused(-errno.EBUSY, "namespace 1 of subsystem", "p2p_emulated_pool_delete", name="pretend")
    config.do("p2p_set_staging", nqn=NQN, nsid=1, policy="inherit")
    config.do("bdev_cmb_create", name="c0", provider="pretend", num_blocks=16)
    config.refused(-errno.EBUSY, "bdev 'c0'", "p2p_emulated_pool_delete", name="pretend")
    config.do("bdev_cmb_delete", name="c0")
    config.do("p2p_emulated_pool_delete", name="pretend")
    assert config.value.emulated_pools == {}
    config.refused(-errno.ENODEV, "no emulated pool", "p2p_emulated_pool_delete", name="pretend")


def test_cmb_bdevs(config: Config) -> None:
    assert config.do("bdev_cmb_create", name="c0", provider="03:00.0", num_blocks=16) == "c0"
    made = config.value.bdevs["c0"]
    assert (made.kind, made.provider, made.block_size, made.num_blocks) == ("cmb", "0000:03:00.0", 4096, 16)
    config.refused(-errno.ENODEV, "params.provider", "bdev_cmb_create", name="c1", provider="none", num_blocks=1)
    config.refused(-errno.EINVAL, "num_blocks", "bdev_cmb_create", name="c1", provider="pretend", num_blocks=0)
    config.refused(
        -errno.EINVAL, "block_size", "bdev_cmb_create", name="c1", provider="pretend", num_blocks=1, block_size=1000
    )
    config.refused(-errno.EEXIST, "c0", "bdev_cmb_create", name="c0", provider="pretend", num_blocks=1)
    config.refused(-errno.ENODEV, "of kind cmb", "bdev_null_delete", name="c0")


def test_saved_and_loaded_byte_for_byte(config: Config) -> None:
    config.do("bdev_cmb_create", name="c0", provider="pretend", num_blocks=16, block_size=512)
    config.do("p2p_set_staging", policy="auto", mode="strict")
    config.do("p2p_set_staging", nqn=NQN, policy="off")
    config.do("p2p_set_staging", nqn=NQN, listen_address=ADDRESS, policy="03:00.0")
    config.do("p2p_set_staging", nqn=NQN, nsid=1, policy="pretend", mode="strict")
    saved = render_config(config.value)
    again = replay(TargetConfig(), saved, lambda: pytest.fail("every UUID is in the document"))
    assert again == config.value
    assert json.dumps(render_config(again)) == json.dumps(saved)
    assert replay(TargetConfig(), render_config(config.value, with_batches=True), str) == config.value
    assert decode(encode(config.value), "state") == config.value
    first = saved["subsystems"][0]["config"][0]
    assert first == {"method": "p2p_emulated_pool_create", "params": {"name": "pretend", "bytes": MIB}}
    assert [call["params"].get("policy") for call in saved["subsystems"][1]["config"][-4:]] == [
        "auto",
        "off",
        "0000:03:00.0",
        "pretend",
    ]


def test_a_state_file_from_before_there_was_staging() -> None:
    """Fields that it does not have are at their defaults."""
    old = json.loads(encode(TargetConfig()))
    import hashlib

    for name in ("staging", "emulated_pools"):
        del old["config"][name]
    body = json.dumps(old["config"], separators=(",", ":")).encode()
    old["sha256"] = hashlib.sha256(body).hexdigest()
    assert decode(json.dumps(old).encode(), "state") == TargetConfig()
