"""The method table against what SPDK 26.09 takes (names, types and which are required, as recorded facts)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server import openrpc
from nvmet_p2p.server.methods import METHODS
from nvmet_p2p.server.schema import Param, params_of
from nvmet_p2p.target.request_types import decode
from nvmet_p2p.target.requests_nvme import MultipathOpts
from nvmet_p2p.target.requests_nvmf import AdminPassthru, ListenAddressParams, NamespaceParams
from tests.unit.server.fake_context import Api

SPDK: dict[str, Any] = json.loads((Path(__file__).parent / "data/spdk_methods.json").read_text())
SPDK_METHODS = [method for method in METHODS.values() if method.spdk]
OBJECTS: dict[str, type[msgspec.Struct]] = {
    "nvmf_listen_address": ListenAddressParams,
    "nvmf_namespace": NamespaceParams,
    "nvmf_admin_cmd_passthru": AdminPassthru,
    "bdev_nvme_multipath_opts": MultipathOpts,
}
SPDK_TYPES = {
    "string": "string",
    "uuid": "string",
    "enum": "string",
    "boolean": "boolean",
    "array": "array",
    "bitmask": "array",
    **{f"{sign}int{bits}": "integer" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def facts(params: list[Param]) -> dict[str, list[Any]]:
    return {param.name: [_type(param), param.required] for param in params}


def _type(param: Param) -> str:
    if "$ref" in param.schema:
        struct = param.schema["$ref"].rpartition("/")[2]
        return next(f"object:{name}" for name, kind in OBJECTS.items() if kind.__name__ == struct)
    return "string" if "enum" in param.schema else str(param.schema["type"])


def expected(recorded: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [SPDK_TYPES.get(kind, kind), required] for name, (kind, required) in recorded.items()}


@pytest.mark.parametrize("method", SPDK_METHODS, ids=lambda method: method.name)
def test_parameters_are_spdks(method: Any) -> None:
    assert facts(params_of(method.params)) == expected(SPDK["methods"][method.name])


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_spdks(name: str) -> None:
    assert facts(params_of(OBJECTS[name])) == expected(SPDK["objects"][name])


def test_every_recorded_method_is_there() -> None:
    assert {method.name for method in SPDK_METHODS} == set(SPDK["methods"])


PROMISED = """
    nvmf_create_transport nvmf_get_transports nvmf_create_subsystem nvmf_delete_subsystem nvmf_get_subsystems
    nvmf_subsystem_add_listener nvmf_subsystem_remove_listener nvmf_subsystem_listener_set_ana_state
    nvmf_subsystem_add_ns nvmf_subsystem_remove_ns nvmf_subsystem_set_ns_ana_group nvmf_subsystem_add_host
    nvmf_subsystem_remove_host nvmf_subsystem_allow_any_host nvmf_ns_add_host nvmf_ns_remove_host
    nvmf_subsystem_get_controllers nvmf_subsystem_get_qpairs nvmf_subsystem_get_listeners
    nvmf_discovery_add_referral nvmf_discovery_remove_referral nvmf_discovery_get_referrals nvmf_get_stats
    nvmf_set_config nvmf_set_crdt nvmf_set_max_subsystems nvmf_get_targets bdev_malloc_create bdev_malloc_delete
    bdev_null_create bdev_null_delete bdev_null_resize bdev_aio_create bdev_aio_delete bdev_aio_rescan
    bdev_uring_create bdev_uring_delete bdev_uring_rescan bdev_get_bdevs bdev_get_iostat bdev_reset_iostat
    save_config load_config save_subsystem_config load_subsystem_config rpc_get_methods spdk_get_version
    framework_get_subsystems framework_get_config framework_start_init framework_wait_init p2p_get_status
    p2p_subsystem_set_controller_model
    bdev_delay_create bdev_delay_delete bdev_delay_update_latency bdev_error_create bdev_error_delete
    bdev_error_inject_error bdev_set_qos_limit bdev_enable_histogram bdev_get_histogram
    bdev_cmb_create bdev_cmb_delete p2p_set_staging p2p_get_staging p2p_get_pools p2p_get_providers p2p_get_map
    p2p_doctor p2p_explain p2p_calibrate p2p_emulated_pool_create p2p_emulated_pool_delete
    bdev_nvme_attach_controller bdev_nvme_detach_controller bdev_nvme_get_controllers bdev_nvme_reset_controller
    bdev_nvme_get_controller_health_info bdev_nvme_set_options bdev_nvme_set_hotplug p2p_nvme_expect_namespace
    rpc.discover
"""


def test_the_methods_that_the_project_promises() -> None:
    assert set(METHODS) == set(PROMISED.split())
    assert list(METHODS) == sorted(METHODS)


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_everything_is_described(method: Any) -> None:
    assert method.summary.endswith(".")
    assert method.result
    for param in params_of(method.params):
        assert param.description, param.name


def test_openrpc_document() -> None:
    document = openrpc.document(METHODS, "1.2.3")
    assert json.loads(json.dumps(document)) == document
    assert document["openrpc"] == "1.3.2"
    assert document["info"]["version"] == "1.2.3"
    by_name = {method["name"]: method for method in document["methods"]}
    assert set(by_name) == set(METHODS)
    params = {param["name"]: param for param in by_name["nvmf_create_transport"]["params"]}
    assert params["trtype"] == {
        "name": "trtype",
        "description": "Transport type: TCP or RDMA",
        "required": True,
        "schema": {"type": "string"},
    }
    assert params["max_queue_depth"]["schema"] == {"type": "integer", "minimum": 2, "maximum": 1024, "default": 128}
    assert _references(document) <= set(document["components"]["schemas"])


def _references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"].rpartition("/")[2]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(_references(inner) for inner in value.values()))
    return set().union(*(_references(inner) for inner in value)) if isinstance(value, list) else set()


# -- any parameters whatever -------------------------------------------------------------------------------------------

NQN = "nqn.2026-11.com.example:one"
ADDRESS = {"trtype": "TCP", "traddr": "127.0.0.1", "trsvcid": "4420"}
likely = st.sampled_from(
    [
        NQN,
        "TCP",
        "m0",
        "n0",
        "ipv4",
        "4420",
        "all",
        "optimized",
        "/file",
        "nvmf_tgt",
        "bdev",
        "ceccf520-691e-4b46-9546-34af789907c5",
        ADDRESS,
        {"bdev_name": "m0"},
        [],
        ["m0"],
        [{"config": [{"method": "nvmf_set_crdt", "params": {}}]}],
    ]
)
anything = st.recursive(
    likely
    | st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 512, 4096, 65535, 65536, 2**32, 2**63, 2**64])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, Any]:
    method = METHODS[draw(st.sampled_from([name for name in METHODS if name != "bdev_get_bdevs"]))]
    if draw(st.integers(0, 9)) == 0:
        return method.name, draw(anything)
    params = params_of(method.params)
    names = [param.name for param in params if param.required]
    names += draw(st.lists(st.sampled_from([*(param.name for param in params), "colour"]), max_size=3))
    return method.name, {name: draw(anything) for name in names}


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(calls(), max_size=6))
async def test_no_parameters_can_break_anything(requests: list[tuple[str, Any]]) -> None:
    """Each call gets an answer; what is refused has changed nothing; what is accepted can be saved and loaded."""
    api = Api()
    api.context.files["/file"] = 1 << 20
    for method, params in (
        ("nvmf_create_transport", {"trtype": "TCP"}),
        ("nvmf_create_subsystem", {"nqn": NQN, "ana_reporting": True}),
        ("bdev_malloc_create", {"name": "m0", "block_size": 512, "num_blocks": 8}),
        *requests,
    ):
        before = api.context.config
        text = msgspec.json.encode({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})
        answer = await api.dispatcher.handle(text)
        response = json.loads(answer.data)
        assert not answer.close
        assert response["id"] == 7
        if "error" in response:
            assert response["error"]["code"] < 0
            assert response["error"]["message"]
            assert api.context.config is before
    saved = await api.call("save_config")
    fresh = Api()
    fresh.context.files = api.context.files
    await fresh.call("load_config", **saved)
    assert fresh.context.config == api.context.config


@given(st.sampled_from(sorted(METHODS)), anything)
def test_decoding_refuses_and_never_breaks(name: str, params: Any) -> None:
    refusal = None
    try:
        decode(METHODS[name].params, params)
    except OperatorError as error:
        refusal = error
    assert refusal is None or (refusal.code in (-32602, -95) and "params" in refusal.message)
