"""Each operation: what it does, each refusal with its code, each limit at the limit and one more."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from nvmet_p2p import limits
from nvmet_p2p.state.render import render_config, replay
from nvmet_p2p.target.config import HostConfig, ListenAddress, ReferralConfig, TargetConfig
from nvmet_p2p.target.operations import claims, discovery_filters
from nvmet_p2p.target.validate import DISCOVERY_NQN
from tests.unit.target.changing import NQN, Config, typical

HOST = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"
ADDRESS = {"trtype": "TCP", "adrfam": "ipv4", "traddr": "127.0.0.1", "trsvcid": "4420"}


@pytest.fixture
def config() -> Config:
    return typical()


# -- transports and the target -----------------------------------------------------------------------------------------


def test_transport_defaults_are_spdks() -> None:
    config = Config()
    assert config.do("nvmf_create_transport", trtype="TCP") is True
    transport = config.value.transports["TCP"]
    assert (transport.max_queue_depth, transport.max_io_qpairs_per_ctrlr, transport.in_capsule_data_size) == (
        128,
        127,
        4096,
    )
    assert (transport.max_io_size, transport.max_aq_depth, transport.c2h_success) == (131072, 128, True)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("max_queue_depth", 2, limits.IO_QUEUE_DEPTH_MAX),
        ("max_io_qpairs_per_ctrlr", 1, limits.IO_QUEUES_PER_CONTROLLER_MAX),
        ("max_aq_depth", limits.AQ_DEPTH_MIN, limits.AQ_DEPTH_MAX),
        ("kas", 1, 0xFFFF),
        ("min_kato", 0, 0xFFFFFFFF),
        ("control_msg_num", 0, 0xFFFF),
        ("num_shared_buffers", 0, 0xFFFFFFFF),
    ],
)
def test_transport_limits(name: str, least: int, most: int) -> None:
    for value in (least, most):
        Config().do("nvmf_create_transport", trtype="TCP", **{name: value})
    for value in (least - 1, most + 1):
        Config().refused(-32602, f"params.{name}: expected", "nvmf_create_transport", trtype="TCP", **{name: value})


def test_transport_sizes() -> None:
    Config().do("nvmf_create_transport", trtype="TCP", max_io_size=8192, in_capsule_data_size=8192)
    Config().do("nvmf_create_transport", trtype="TCP", max_io_size=limits.TRANSFER_BYTES_MAX)
    refused = Config().refused
    refused(-32602, "params.max_io_size", "nvmf_create_transport", trtype="TCP", max_io_size=4096)
    refused(-32602, "max_io_size", "nvmf_create_transport", trtype="TCP", max_io_size=limits.TRANSFER_BYTES_MAX * 2)
    refused(-32603, "power of two", "nvmf_create_transport", trtype="TCP", max_io_size=8192 + 16)
    refused(-32602, "multiple of 16", "nvmf_create_transport", trtype="TCP", in_capsule_data_size=8)
    refused(
        -32603,
        "more than max_io_size",
        "nvmf_create_transport",
        trtype="TCP",
        max_io_size=8192,
        in_capsule_data_size=8208,
    )


def test_transport_options_that_are_hints_are_kept() -> None:
    config = Config()
    config.do("nvmf_create_transport", trtype="TCP", io_unit_size=16384, buf_cache_size=7, zcopy=True, no_srq=False)
    transport = config.value.transports["TCP"]
    assert (transport.io_unit_size, transport.iobuf_small_cache_size, transport.zcopy) == (16384, 7, True)


def test_min_kato_is_rounded_up_to_kas() -> None:
    config = Config()
    config.do("nvmf_create_transport", trtype="TCP", kas=3, min_kato=301)
    assert config.value.transports["TCP"].min_kato == 600


def test_rdma_transport() -> None:
    config = Config()
    config.do("nvmf_create_transport", trtype="rdma", acceptor_backlog=-1, no_srq=True, c2h_success=False)
    rdma = config.value.transports["RDMA"]
    assert (rdma.acceptor_backlog, rdma.no_srq, rdma.max_srq_depth, rdma.num_cqe) == (100, True, 4096, 4096)
    assert (rdma.data_wr_pool_size, rdma.no_wr_batching, rdma.c2h_success) == (4095, False, True)
    config.do("nvmf_create_transport", trtype="TCP", data_wr_pool_size=7, no_wr_batching=False)
    assert config.value.transports["TCP"].data_wr_pool_size == 7
    assert list(config.value.transports) == ["RDMA", "TCP"]
    for options, text in (
        ({"in_capsule_data_size": 65536}, "is more than 32768"),
        ({"max_srq_depth": 0}, "max_srq_depth"),
    ):
        code = -32603 if "in_capsule_data_size" in options else -32602
        Config().refused(code, text, "nvmf_create_transport", trtype="RDMA", **options)


def test_transport_refusals() -> None:
    config = Config()
    config.refused(-32602, "no transport type 'PCIE'", "nvmf_create_transport", trtype="PCIE")
    config.refused(-32603, "no target 'other'", "nvmf_create_transport", trtype="TCP", tgt_name="other")
    config.do("nvmf_create_transport", trtype="TCP", tgt_name="nvmf_tgt")
    config.refused(-32603, "exists already", "nvmf_create_transport", trtype="TCP")


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("nvmf_create_transport", {"trtype": "TCP", "dif_insert_or_strip": True}, "dif_insert_or_strip"),
        ("nvmf_create_transport", {"trtype": "TCP", "no_srq": True}, "no_srq"),
        ("nvmf_create_transport", {"trtype": "TCP", "num_cqe": 1}, "num_cqe"),
        ("nvmf_create_transport", {"trtype": "TCP", "sock_priority": 1}, "sock_priority"),
        ("nvmf_create_transport", {"trtype": "TCP", "masked_oncs": ["nvmcmps"]}, "masked_oncs"),
        ("nvmf_create_subsystem", {"nqn": NQN, "passthrough": True}, "passthrough"),
        ("nvmf_create_subsystem", {"nqn": NQN, "enable_nssr": True}, "enable_nssr"),
        ("nvmf_create_subsystem", {"nqn": NQN, "admin_label": "label"}, "admin_label"),
        ("nvmf_create_subsystem", {"nqn": NQN, "dmrsl": 1}, "dmrsl"),
        ("nvmf_subsystem_add_host", {"nqn": NQN, "host": HOST, "psk": "key"}, "psk"),
        ("nvmf_subsystem_add_host", {"nqn": NQN, "host": HOST, "dhchap_key": "key"}, "dhchap_key"),
        ("nvmf_subsystem_add_host", {"nqn": NQN, "host": HOST, "dhchap_ctrlr_key": "key"}, "dhchap_ctrlr_key"),
        (
            "nvmf_subsystem_add_listener",
            {"nqn": NQN, "listen_address": ADDRESS, "secure_channel": True},
            "secure_channel",
        ),
        ("nvmf_subsystem_add_ns", {"nqn": NQN, "namespace": {"bdev_name": "m", "ptpl_file": "/x"}}, "ptpl_file"),
        (
            "nvmf_subsystem_add_ns",
            {"nqn": NQN, "namespace": {"bdev_name": "m", "hide_metadata": True}},
            "hide_metadata",
        ),
        ("nvmf_set_config", {"admin_cmd_passthru": {"sanitize": True}}, "admin_cmd_passthru.sanitize"),
        ("nvmf_set_config", {"dhchap_digests": ["sha256"]}, "dhchap_digests"),
        ("nvmf_set_config", {"dup_host_policy": "restrict_per_listener"}, "dup_host_policy"),
        ("bdev_malloc_create", {"block_size": 512, "num_blocks": 1, "md_size": 8}, "md_size"),
        ("bdev_malloc_create", {"block_size": 512, "num_blocks": 1, "dif_type": 1}, "dif_type"),
        ("bdev_malloc_create", {"block_size": 512, "num_blocks": 1, "numa_id": 0}, "numa_id"),
        (
            "bdev_null_create",
            {"name": "n", "block_size": 512, "num_blocks": 1, "optimal_write_size": 1},
            "optimal_write",
        ),
    ],
)
def test_what_spdk_has_and_we_have_not_is_refused(method: str, params: dict[str, Any], name: str) -> None:
    Config().refused(-95, name, method, **params)


def test_the_neutral_value_of_what_we_have_not_is_taken(config: Config) -> None:
    config.do("bdev_malloc_create", name="m3", block_size=512, num_blocks=1, md_size=0, dif_type=0, numa_id=-1)
    config.do("nvmf_subsystem_add_host", nqn=NQN, host=HOST, psk="", dhchap_key="")
    config.do("nvmf_set_config", admin_cmd_passthru={"sanitize": False}, dup_host_policy="allow", dhchap_digests=[
        "sha256", "sha384", "sha512"
    ])  # fmt: skip


def test_discovery_filter() -> None:
    config = Config()
    assert discovery_filters(config.value) == []
    config.do("nvmf_set_config", discovery_filters=["svcid", "transport"])
    assert (config.value.discovery_filter, discovery_filters(config.value)) == (
        "transport,svcid",
        ["transport", "svcid"],
    )
    config.do("nvmf_set_config", discovery_filter="address")
    assert discovery_filters(config.value) == ["address"]
    config.do("nvmf_set_config")
    assert discovery_filters(config.value) == ["address"]
    for nothing in ("match_any", ""):
        config.do("nvmf_set_config", discovery_filter=nothing)
        assert config.value == TargetConfig()
    config.refused(-32602, "'port' is not one of", "nvmf_set_config", discovery_filters=["port"])


def test_crdt() -> None:
    config = Config()
    config.do("nvmf_set_crdt", crdt1=1, crdt3=0xFFFF)
    assert config.value.crdt == (1, 0, 0xFFFF)
    config.refused(-32602, "params.crdt2", "nvmf_set_crdt", crdt2=0x10000)


def test_max_subsystems() -> None:
    config = Config()
    config.do("nvmf_set_max_subsystems", max_subsystems=1)
    config.do("nvmf_create_subsystem", nqn=NQN)
    config.refused(-32603, "there are 1 subsystems, which is the most", "nvmf_create_subsystem", nqn=NQN + "2")
    config.do("nvmf_set_max_subsystems", max_subsystems=2)
    config.do("nvmf_create_subsystem", nqn=NQN + "2")
    config.refused(-32602, "there are 2 subsystems", "nvmf_set_max_subsystems", max_subsystems=1)
    config.do("nvmf_set_max_subsystems", max_subsystems=limits.SUBSYSTEMS_MAX)
    for value in (0, limits.SUBSYSTEMS_MAX + 1):
        config.refused(-32602, "params.max_subsystems", "nvmf_set_max_subsystems", max_subsystems=value)


def test_referrals() -> None:
    config = Config()
    config.do("nvmf_discovery_add_referral", address=ADDRESS)
    config.do("nvmf_discovery_add_referral", address=ADDRESS, subnqn=NQN, secure_channel=True)
    config.do("nvmf_discovery_add_referral", address={**ADDRESS, "trsvcid": "04420"})  # the first one again
    assert [(r.subnqn, r.secure_channel) for r in config.value.referrals] == [(DISCOVERY_NQN, False), (NQN, True)]
    config.refused(
        -32603, "trsvcid: required", "nvmf_discovery_add_referral", address={"trtype": "TCP", "traddr": "::1"}
    )
    config.refused(-32603, "params.subnqn", "nvmf_discovery_add_referral", address=ADDRESS, subnqn="nqn")
    config.do("nvmf_discovery_remove_referral", address=ADDRESS)
    assert [r.subnqn for r in config.value.referrals] == [NQN]
    config.refused(-32603, "no referral", "nvmf_discovery_remove_referral", address=ADDRESS)


def test_referral_limit() -> None:
    config = Config()
    address = ListenAddress(trtype="TCP", adrfam="IPv4", traddr="192.0.2.1", trsvcid="1")
    many = tuple(ReferralConfig(address=replace(address, trsvcid=str(n))) for n in range(1, limits.REFERRALS_MAX))
    config.value = replace(config.value, referrals=many)
    config.do("nvmf_discovery_add_referral", address=ADDRESS)
    config.refused(-32603, "the most", "nvmf_discovery_add_referral", address={**ADDRESS, "trsvcid": "9"})


# -- subsystems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "nqn",
    [
        "nqn.2026-11.com.example:a",
        "nqn.2026-11.c:a",
        "nqn.2026-11.com.ex-ample.x1:a b/ö:c",
        "nqn.2026-11.com.example:" + "a" * (223 - 24),
        "nqn.2026-11.com.example:" + "ö" * ((223 - 24) // 2),
        f"nqn.2026-11.{'a' * 63}:a",
        "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-AAAAAAAAAAAA",
    ],
)
def test_good_nqns(nqn: str) -> None:
    config = Config()
    config.do("nvmf_create_subsystem", nqn=nqn)
    config.do("nvmf_subsystem_add_host", nqn=nqn, host=nqn)


@pytest.mark.parametrize(
    ("nqn", "text"),
    [
        ("", "11 to 223 bytes"),
        ("nqn.2026-1", "11 to 223 bytes"),
        ("nqn.2026-11.com.example:" + "a" * (224 - 24), "this one has 224"),
        ("nqn.2026-11.com.example:" + "ö" * ((225 - 24) // 2 + 1), "this one has 226"),
        ("iqn.2026-11.com.example:a", "begins with 'nqn.'"),
        ("nqn.202611.com.example:a", "a date must follow"),
        ("nqn.2026-11com.example:a", "a date must follow"),
        ("nqn.2026-11.com.example", "':' and a name"),
        ("nqn.2026-11.com.example:", "':' and a name"),
        ("nqn.2026-11.com..example:a", "no label"),
        ("nqn.2026-11.1com.example:a", "no label"),
        ("nqn.2026-11.com-.example:a", "no label"),
        ("nqn.2026-11.com.example-:a", "no label"),
        ("nqn.2026-11.com.ex_ample:a", "no label"),
        (f"nqn.2026-11.{'a' * 64}:a", "no label"),
        ("nqn.2026-11.com.example:a\x00", "control"),
        ("nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-55555555555", "UUID"),
        ("nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-55555555555g", "UUID"),
    ],
)
def test_bad_nqns(config: Config, nqn: str, text: str) -> None:
    config.refused(-32603, text, "nvmf_create_subsystem", nqn=nqn)
    config.refused(-32603, text, "nvmf_subsystem_add_host", nqn=NQN, host=nqn)


def test_create_subsystem(config: Config) -> None:
    config.do("nvmf_create_subsystem", nqn=NQN + "2", max_namespaces=0, serial_number="S" * 20, model_number="M" * 40)
    made = config.value.subsystems[NQN + "2"]
    assert (made.max_namespaces, made.serial_number, made.model_number) == (32, "S" * 20, "M" * 40)
    config.refused(-32603, "exists already", "nvmf_create_subsystem", nqn=NQN)
    config.refused(-32603, "exists already", "nvmf_create_subsystem", nqn=DISCOVERY_NQN)
    config.refused(-32602, "at most 20", "nvmf_create_subsystem", nqn=NQN + "3", serial_number="S" * 21)
    config.refused(-32602, "at most 40", "nvmf_create_subsystem", nqn=NQN + "3", model_number="M" * 41)
    config.refused(-32602, "printable", "nvmf_create_subsystem", nqn=NQN + "3", serial_number="ö")
    config.refused(-32602, "printable", "nvmf_create_subsystem", nqn=NQN + "3", model_number="a\x7f")
    most = limits.NAMESPACES_PER_SUBSYSTEM_MAX
    config.do("nvmf_create_subsystem", nqn=NQN + "3", max_namespaces=most)
    config.refused(-32602, "params.max_namespaces", "nvmf_create_subsystem", nqn=NQN + "4", max_namespaces=most + 1)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (2, 1), (1, 0xFFF0), (0xFFF0, 0xFFF0)])
def test_bad_cntlid_ranges(least: int, most: int) -> None:
    Config().refused(-32602, "range", "nvmf_create_subsystem", nqn=NQN, min_cntlid=least, max_cntlid=most)


def test_good_cntlid_ranges() -> None:
    config = Config()
    for number, (least, most) in enumerate([(1, 1), (1, 0xFFEF), (0xFFEF, 0xFFEF)]):
        config.do("nvmf_create_subsystem", nqn=f"{NQN}{number}", min_cntlid=least, max_cntlid=most)


def test_delete_subsystem(config: Config) -> None:
    config.do("nvmf_delete_subsystem", nqn=NQN)
    assert config.value.subsystems == {}
    config.refused(-32602, "no subsystem", "nvmf_delete_subsystem", nqn=NQN)
    config.refused(-95, "discovery subsystem", "nvmf_delete_subsystem", nqn=DISCOVERY_NQN)
    config.refused(-32602, "no target", "nvmf_delete_subsystem", nqn=NQN, tgt_name="x")


def test_hosts(config: Config) -> None:
    config.do("nvmf_subsystem_add_host", nqn=NQN, host=HOST)
    assert list(config.one.hosts) == [HOST]
    config.refused(-32603, "on the list", "nvmf_subsystem_add_host", nqn=NQN, host=HOST)
    config.do("nvmf_subsystem_remove_host", nqn=NQN, host=HOST, timeout_ms=10)
    assert config.one.hosts == {}
    config.refused(-32603, "not on the list", "nvmf_subsystem_remove_host", nqn=NQN, host=HOST)
    for _ in range(2):
        config.do("nvmf_subsystem_allow_any_host", nqn=NQN, allow_any_host=True)
        assert config.one.allow_any_host
    config.refused(-32602, "required", "nvmf_subsystem_allow_any_host", nqn=NQN)


def test_controller_model(config: Config) -> None:
    method = "p2p_subsystem_set_controller_model"
    config.do(method, nqn=NQN, controller_model="static")
    assert config.one.controller_model == "static"
    again = replay(TargetConfig(), render_config(config.value), lambda: "unused")
    assert again.subsystems[NQN].controller_model == "static"
    address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4420"}
    config.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=address)
    config.do(method, nqn=NQN, controller_model="static")
    config.refused(-16, "has listeners", method, nqn=NQN, controller_model="dynamic")
    config.refused(-32602, "controller_model", method, nqn=NQN, controller_model="both")
    config.do("nvmf_subsystem_add_listener", nqn=DISCOVERY_NQN, listen_address=address)
    config.refused(-95, "always dynamic", method, nqn=DISCOVERY_NQN, controller_model="static")


def test_host_limit(config: Config) -> None:
    names = [f"{NQN}{n}" for n in range(1, limits.HOSTS_PER_SUBSYSTEM_MAX)]
    full = replace(config.one, hosts={nqn: HostConfig(nqn=nqn) for nqn in names})
    config.value = replace(config.value, subsystems={NQN: full})
    config.do("nvmf_subsystem_add_host", nqn=NQN, host=HOST)
    config.refused(-32603, "the most", "nvmf_subsystem_add_host", nqn=NQN, host=HOST[:-1] + "0")


# -- listeners ---------------------------------------------------------------------------------------------------------


def test_listeners(config: Config) -> None:
    config.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=ADDRESS)
    config.do("nvmf_create_subsystem", nqn=NQN + "2")
    config.do("nvmf_subsystem_add_listener", nqn=NQN + "2", listen_address=ADDRESS)  # an address is shared
    v6 = {"trtype": "tcp", "adrfam": "IPv6", "traddr": "0:0:0::1", "trsvcid": "04420"}
    config.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=v6)
    addresses = [listener.address for listener in config.one.listeners]
    assert addresses[1] == ListenAddress(trtype="TCP", adrfam="IPv6", traddr="::1", trsvcid="4420")
    again = {"trtype": "TCP", "traddr": "::1", "trsvcid": "4420"}
    config.refused(-32602, "already", "nvmf_subsystem_add_listener", nqn=NQN, listen_address=again)
    config.do("nvmf_subsystem_remove_listener", nqn=NQN, listen_address=again)
    assert [listener.address.adrfam for listener in config.one.listeners] == ["IPv4"]
    config.refused(-32602, "does not listen", "nvmf_subsystem_remove_listener", nqn=NQN, listen_address=again)
    config.refused(-32602, "no subsystem", "nvmf_subsystem_remove_listener", nqn=NQN + "x", listen_address=again)


@pytest.mark.parametrize(
    ("address", "code", "text"),
    [
        ({"trtype": "RDMA"}, -32602, "create transport 'RDMA' first"),
        ({"trtype": "FC"}, -32602, "listen_address.trtype"),
        ({"adrfam": "ib"}, -32602, "adrfam"),
        ({"adrfam": "ipv6"}, -32602, "is not an ipv6 address"),
        ({"traddr": "localhost"}, -32602, "is not an IP address"),
        ({"traddr": "127.0.0.1/8"}, -32602, "is not an IP address"),
        ({"trsvcid": ""}, -32602, "trsvcid: required"),
        ({"trsvcid": "0"}, -32602, "from 1 to 65535"),
        ({"trsvcid": "65536"}, -32602, "from 1 to 65535"),
        ({"trsvcid": "http"}, -32602, "from 1 to 65535"),
        ({"trsvcid": 4420}, -32602, "params.listen_address.trsvcid: expected str, got int"),
    ],
)
def test_bad_addresses(config: Config, address: dict[str, Any], code: int, text: str) -> None:
    config.refused(code, text, "nvmf_subsystem_add_listener", nqn=NQN, listen_address=ADDRESS | address)


def test_ports_at_the_limits(config: Config) -> None:
    for port in ("1", "65535"):
        config.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address={**ADDRESS, "trsvcid": port})


def test_a_listener_needs_its_transport() -> None:
    config = Config()
    config.do("nvmf_create_subsystem", nqn=NQN)
    config.refused(
        -32602, "create transport 'TCP' first", "nvmf_subsystem_add_listener", nqn=NQN, listen_address=ADDRESS
    )


def test_listener_limit(config: Config) -> None:
    for port in range(1, limits.LISTENERS_PER_SUBSYSTEM_MAX + 1):
        config.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address={**ADDRESS, "trsvcid": str(port)})
    config.refused(-32602, "the most", "nvmf_subsystem_add_listener", nqn=NQN, listen_address=ADDRESS)


def test_discovery_subsystem_has_listeners_only(config: Config) -> None:
    before = config.value
    config.do("nvmf_subsystem_add_listener", nqn=DISCOVERY_NQN, listen_address=ADDRESS)
    assert config.value.subsystems[DISCOVERY_NQN].subtype == "Discovery"
    assert config.value.subsystems[DISCOVERY_NQN].allow_any_host
    config.refused(-95, "discovery", "nvmf_subsystem_add_host", nqn=DISCOVERY_NQN, host=HOST)
    config.refused(-95, "discovery", "nvmf_subsystem_allow_any_host", nqn=DISCOVERY_NQN, allow_any_host=False)
    config.refused(-95, "discovery", "nvmf_subsystem_add_ns", nqn=DISCOVERY_NQN, namespace={"bdev_name": "m0"})
    config.do("nvmf_subsystem_remove_listener", nqn=DISCOVERY_NQN, listen_address=ADDRESS)
    assert config.value == before


def test_ana_states(config: Config) -> None:
    def set_state(**params: Any) -> None:
        config.do("nvmf_subsystem_listener_set_ana_state", nqn=NQN, listen_address=ADDRESS, **params)

    def states() -> dict[int, str]:
        return config.one.listeners[0].ana_states

    config.do("nvmf_subsystem_add_listener", nqn=NQN, listen_address=ADDRESS, ana_state="non_optimized")
    assert states() == dict.fromkeys(range(1, 5), "non_optimized")
    set_state(ana_state="inaccessible", anagrpid=4)
    set_state(ana_state="optimized", anagrpid=1)
    assert states() == {2: "non_optimized", 3: "non_optimized", 4: "inaccessible"}
    set_state(ana_state="optimized")
    assert states() == {}
    set_state(ana_state="inaccessible", anagrpid=0)
    assert states() == dict.fromkeys(range(1, 5), "inaccessible")


def test_ana_state_refusals(config: Config) -> None:
    method = "nvmf_subsystem_listener_set_ana_state"
    where: dict[str, Any] = {"nqn": NQN, "listen_address": ADDRESS}
    config.refused(-32603, "does not listen", method, **where, ana_state="optimized")
    config.do("nvmf_subsystem_add_listener", **where)
    config.refused(-32603, "not from 1 to 4", method, **where, ana_state="optimized", anagrpid=5)
    config.refused(-32602, "params.ana_state", method, **where, ana_state="change")
    config.refused(-32602, "no subsystem", method, nqn=NQN + "x", listen_address=ADDRESS, ana_state="optimized")
    config.do("nvmf_create_subsystem", nqn=NQN + "2")
    other: dict[str, Any] = {"nqn": NQN + "2", "listen_address": ADDRESS}
    config.refused(-32602, "ana_reporting", "nvmf_subsystem_add_listener", **other, ana_state="inaccessible")
    config.do("nvmf_subsystem_add_listener", **other, ana_state="optimized")
    config.refused(-32603, "ana_reporting", method, **other, ana_state="optimized")


# -- namespaces --------------------------------------------------------------------------------------------------------


def test_namespaces(config: Config) -> None:
    assert config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0", "nsid": 2}) == 2
    assert config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m1"}) == 1
    uuid = config.value.bdevs["m2"].uuid
    assert config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": uuid.upper()}) == 3
    third = config.one.namespaces[3]
    assert (third.bdev_name, third.uuid, third.nguid, third.eui64, third.anagrpid) == (
        "m2",
        uuid,
        uuid.replace("-", ""),
        "",
        3,
    )
    assert claims(config.value) == {"m0": (NQN, 2), "m1": (NQN, 1), "m2": (NQN, 3)}
    config.do("nvmf_subsystem_remove_ns", nqn=NQN, nsid=2)
    assert sorted(config.one.namespaces) == [1, 3]
    config.refused(-32602, "no namespace 2", "nvmf_subsystem_remove_ns", nqn=NQN, nsid=2)
    config.refused(-32602, "no namespace 0", "nvmf_subsystem_remove_ns", nqn=NQN, nsid=0)


def test_namespace_identifiers(config: Config) -> None:
    given = {"nguid": "A" * 32, "eui64": "0123456789ABCDEF", "uuid": "CECCF520-691E-4B46-9546-34AF789907C5"}
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0", "anagrpid": 4, **given})
    first = config.one.namespaces[1]
    assert (first.nguid, first.eui64, first.uuid, first.anagrpid) == (
        "a" * 32,
        "0123456789abcdef",
        "ceccf520-691e-4b46-9546-34af789907c5",
        4,
    )
    for name, value in given.items():
        config.refused(
            -32602,
            f"{name}: namespace 1 has",
            "nvmf_subsystem_add_ns",
            nqn=NQN,
            namespace={"bdev_name": "m1", name: value},
        )
    nil = {"nguid": "0" * 32, "eui64": "0" * 16, "uuid": "00000000-0000-0000-0000-000000000000"}
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m1", **nil})
    second = config.one.namespaces[2]
    assert (second.uuid, second.eui64) == (config.value.bdevs["m1"].uuid, "")


@pytest.mark.parametrize(
    ("namespace", "text"),
    [
        ({"nsid": 5}, "more than max_namespaces 4"),
        ({"nsid": 0xFFFFFFFF}, "more than max_namespaces"),
        ({"nsid": 1}, "has a namespace 1 already"),
        ({"anagrpid": 5}, "not from 1 to 4"),
        ({"bdev_name": "nothing"}, "no bdev 'nothing'"),
        ({"bdev_name": "m0"}, "is namespace 1 of subsystem"),
        ({"nguid": "A" * 31}, "32 hexadecimal digits"),
        ({"nguid": "G" * 32}, "32 hexadecimal digits"),
        ({"eui64": "A" * 17}, "16 hexadecimal digits"),
        ({"uuid": "x"}, "not a UUID"),
        ({"nsid": -1}, "params.namespace.nsid: expected int >= 0"),
        ({"colour": 1}, "params.namespace: there is no parameter 'colour'"),
    ],
)
def test_bad_namespaces(config: Config, namespace: dict[str, Any], text: str) -> None:
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0"})
    config.refused(-32602, text, "nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m1", **namespace})


def test_a_full_subsystem(config: Config) -> None:
    config.do("bdev_null_create", name="n0", block_size=512, num_blocks=1)
    config.do("bdev_null_create", name="n1", block_size=512, num_blocks=1)
    for name in ("m0", "m1", "m2", "n0"):
        config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": name})
    config.refused(-32602, "has 4 namespaces", "nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "n1"})


def test_ana_groups_of_namespaces(config: Config) -> None:
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0"})
    config.do("nvmf_subsystem_set_ns_ana_group", nqn=NQN, nsid=1, anagrpid=4)
    assert config.one.namespaces[1].anagrpid == 4
    for group in (0, 5):
        config.refused(-32602, "not from 1 to 4", "nvmf_subsystem_set_ns_ana_group", nqn=NQN, nsid=1, anagrpid=group)
    config.refused(-32602, "no namespace", "nvmf_subsystem_set_ns_ana_group", nqn=NQN, nsid=2, anagrpid=1)


def test_ana_groups_end_at_their_limit() -> None:
    config = Config()
    config.do("nvmf_create_subsystem", nqn=NQN, max_namespaces=1024, ana_reporting=True)
    config.do("bdev_null_create", name="n", block_size=512, num_blocks=1)
    most = limits.ANA_GROUPS_MAX
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "n", "nsid": most + 1})
    assert config.one.namespaces[most + 1].anagrpid == 1
    config.do("nvmf_subsystem_set_ns_ana_group", nqn=NQN, nsid=most + 1, anagrpid=most)
    config.refused(-32602, "not from 1", "nvmf_subsystem_set_ns_ana_group", nqn=NQN, nsid=most + 1, anagrpid=most + 1)


def test_hosts_of_namespaces(config: Config) -> None:
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0", "no_auto_visible": True})
    for _ in range(2):
        config.do("nvmf_ns_add_host", nqn=NQN, nsid=1, host=HOST)
        assert config.one.namespaces[1].hosts == (HOST,)
    for _ in range(2):
        config.do("nvmf_ns_remove_host", nqn=NQN, nsid=1, host=HOST)
        assert config.one.namespaces[1].hosts == ()
    config.refused(-32602, "params.host", "nvmf_ns_add_host", nqn=NQN, nsid=1, host="host")
    config.refused(-32602, "no namespace", "nvmf_ns_remove_host", nqn=NQN, nsid=2, host=HOST)
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m1"})
    config.refused(-32602, "every host sees it", "nvmf_ns_add_host", nqn=NQN, nsid=2, host=HOST)


def test_limit_of_hosts_of_a_namespace(config: Config) -> None:
    config.do("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0", "no_auto_visible": True})
    hosts = tuple(f"{NQN}{n}" for n in range(1, limits.HOSTS_PER_NAMESPACE_MAX))
    full = replace(config.one, namespaces={1: replace(config.one.namespaces[1], hosts=hosts)})
    config.value = replace(config.value, subsystems={NQN: full})
    config.do("nvmf_ns_add_host", nqn=NQN, nsid=1, host=HOST)
    config.refused(-32602, "the most", "nvmf_ns_add_host", nqn=NQN, nsid=1, host=NQN)
