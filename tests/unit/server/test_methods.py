"""What the methods answer, in SPDK's form, and what a refused one leaves as it was."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from nvmet_p2p import limits
from nvmet_p2p.dataplane.port import IoStat, RdmaStatus
from nvmet_p2p.errors import OperatorError
from nvmet_p2p.server.context import ControllerInfo, QpairInfo, QueueStats
from nvmet_p2p.server.methods import METHODS
from nvmet_p2p.server.methods.nvmf import DEVICE_COUNTERS
from nvmet_p2p.target.config import BdevFacts, ListenAddress
from tests.unit.server.fake_context import Api

NQN = "nqn.2026-11.com.example:one"
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
HOST = "nqn.2026-11.com.example:host"
ADDRESS = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": "4420"}
UUID = "ceccf520-691e-4b46-9546-34af789907c5"


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
async def full(api: Api) -> Api:
    """A subsystem with ANA, two listeners (one of them the discovery subsystem's too), a namespace, a host."""
    await api.call("nvmf_create_transport", trtype="TCP")
    await api.call("nvmf_create_subsystem", nqn=NQN, ana_reporting=True, max_namespaces=2, serial_number="SN1")
    await api.call("bdev_malloc_create", name="m0", block_size=4096, num_blocks=256, uuid=UUID)
    await api.call("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "m0", "eui64": "0123456789abcdef"})
    await api.call("nvmf_subsystem_add_host", nqn=NQN, host=HOST)
    await api.call("nvmf_subsystem_add_listener", nqn=NQN, listen_address=ADDRESS)
    await api.call("nvmf_subsystem_add_listener", nqn=DISCOVERY_NQN, listen_address={**ADDRESS, "trsvcid": "8009"})
    await api.call("nvmf_subsystem_add_listener", nqn=DISCOVERY_NQN, listen_address=ADDRESS)
    return api


async def refused(api: Api, code: int, text: str, method: str, **params: Any) -> None:
    before = api.context.config
    with pytest.raises(OperatorError, match=text) as caught:
        await api.call(method, **params)
    assert caught.value.code == code
    assert api.context.config is before


# -- nvmf --------------------------------------------------------------------------------------------------------------


async def test_get_subsystems(full: Api) -> None:
    discovery, one = await full.call("nvmf_get_subsystems")
    assert discovery == {
        "nqn": DISCOVERY_NQN,
        "subtype": "Discovery",
        "listen_addresses": [{**ADDRESS, "trsvcid": "8009"}, ADDRESS],
        "allow_any_host": True,
        "hosts": [],
    }
    assert one == {
        "nqn": NQN,
        "subtype": "NVMe",
        "listen_addresses": [ADDRESS],
        "allow_any_host": False,
        "hosts": [{"nqn": HOST}],
        "serial_number": "SN1",
        "model_number": "nvmet_p2p Controller",
        "max_namespaces": 2,
        "passthrough": False,
        "min_cntlid": 1,
        "max_cntlid": 65519,
        "namespaces": [
            {
                "nsid": 1,
                "bdev_name": "m0",
                "name": "m0",
                "nguid": "CECCF520691E4B46954634AF789907C5",
                "eui64": "0123456789ABCDEF",
                "uuid": UUID,
                "anagrpid": 1,
            }
        ],
    }
    assert await full.call("nvmf_get_subsystems", nqn=NQN) == [one]
    await refused(full, -32602, "no subsystem", "nvmf_get_subsystems", nqn=NQN + "x")
    await refused(full, -32602, "no target", "nvmf_get_subsystems", tgt_name="x")


async def test_the_discovery_subsystem_is_always_there(api: Api) -> None:
    (discovery,) = await api.call("nvmf_get_subsystems")
    assert (discovery["nqn"], discovery["listen_addresses"]) == (DISCOVERY_NQN, [])
    for method in ("controllers", "qpairs", "listeners"):
        assert await api.call(f"nvmf_subsystem_get_{method}", nqn=DISCOVERY_NQN) == []


async def test_get_transports(full: Api) -> None:
    (transport,) = await full.call("nvmf_get_transports")
    assert list(transport) == [
        "trtype",
        "max_queue_depth",
        "max_io_qpairs_per_ctrlr",
        "in_capsule_data_size",
        "max_io_size",
        "max_aq_depth",
        "iobuf_small_cache_size",
        "iobuf_large_cache_size",
        "dif_insert_or_strip",
        "zcopy",
        "c2h_success",
        "sock_priority",
        "abort_timeout_sec",
        "ack_timeout",
        "data_wr_pool_size",
        "disable_command_passthru",
        "kas",
        "min_kato",
    ]
    assert await full.call("nvmf_get_transports", trtype="tcp") == [transport]
    await refused(full, -19, "No such device", "nvmf_get_transports", trtype="RDMA")
    await refused(full, -32603, "no target", "nvmf_get_transports", tgt_name="x")


async def test_get_listeners(full: Api) -> None:
    where = {"nqn": NQN, "listen_address": ADDRESS}
    await full.call("nvmf_subsystem_listener_set_ana_state", **where, ana_state="inaccessible", anagrpid=2)
    assert await full.call("nvmf_subsystem_get_listeners", nqn=NQN) == [
        {
            "address": ADDRESS,
            "ana_states": [
                {"ana_group": 1, "ana_state": "optimized"},
                {"ana_group": 2, "ana_state": "inaccessible"},
            ],
        }
    ]
    assert await full.call("nvmf_subsystem_get_listeners", nqn=DISCOVERY_NQN) == [
        {"address": {**ADDRESS, "trsvcid": "8009"}},
        {"address": ADDRESS},
    ]


async def test_controllers_and_qpairs(full: Api) -> None:
    listener = ListenAddress(**ADDRESS)
    peer = ListenAddress(trtype="TCP", adrfam="IPv4", traddr="192.0.2.9", trsvcid="50000")
    full.context.controller_list = [
        ControllerInfo(subnqn=NQN, cntlid=7, hostnqn=HOST, hostid=UUID, num_io_qpairs=2),
        ControllerInfo(subnqn=DISCOVERY_NQN, cntlid=1, hostnqn=HOST, hostid=UUID, cntrltype="discovery"),
    ]
    full.context.qpair_list = [
        QpairInfo(subnqn=NQN, cntlid=7, qid=1, hostnqn=HOST, listen_address=listener, peer=peer),
    ]
    assert await full.call("nvmf_subsystem_get_controllers", nqn=NQN) == [
        {"cntlid": 7, "cntrltype": "io", "hostnqn": HOST, "hostid": UUID, "num_io_qpairs": 2}
    ]
    (discovery,) = await full.call("nvmf_subsystem_get_controllers", nqn=DISCOVERY_NQN)
    assert discovery["cntrltype"] == "discovery"
    assert await full.call("nvmf_subsystem_get_qpairs", nqn=NQN) == [
        {
            "cntlid": 7,
            "qid": 1,
            "state": "enabled",
            "thread": "fake",
            "hostnqn": HOST,
            "listen_address": ADDRESS,
            "peer_address": {**ADDRESS, "traddr": "192.0.2.9", "trsvcid": "50000"},
        }
    ]


async def test_referrals_and_targets(api: Api) -> None:
    await api.call("nvmf_discovery_add_referral", address=ADDRESS, secure_channel=True)
    assert await api.call("nvmf_discovery_get_referrals") == [
        {"address": ADDRESS, "secure_channel": True, "subnqn": DISCOVERY_NQN}
    ]
    assert await api.call("nvmf_get_targets") == ["nvmf_tgt"]


async def test_stats_and_status_of_rdma(full: Api) -> None:
    await full.call("nvmf_create_transport", trtype="RDMA")
    device = {"name": "rxe0", "present": True, "addresses": ["192.0.2.1"], "polls": 7, "total_send_wrs": 9, "odp": True}
    full.context.fake_dataplane.rdma = RdmaStatus(True, "", 5, (device,))
    (group,) = (await full.call("nvmf_get_stats"))["poll_groups"]
    (shown,) = (transport for transport in group["transports"] if transport["trtype"] == "RDMA")
    assert shown["pending_data_buffer"] == 5
    counters = shown["devices"][0]
    assert (counters["name"], counters["polls"], counters["total_send_wrs"], counters["completions"]) == (
        "rxe0",
        7,
        9,
        0,
    )
    assert list(counters) == ["name", *DEVICE_COUNTERS]  # SPDK's names in SPDK's order
    status = await full.call("p2p_get_status")
    assert status["rdma"]["devices"] == [{"name": "rxe0", "present": True, "addresses": ["192.0.2.1"]}]
    (transport,) = await full.call("nvmf_get_transports", trtype="rdma")
    assert [name for name in transport if name in ("max_srq_depth", "no_srq", "acceptor_backlog", "c2h_success")] == [
        "max_srq_depth", "no_srq", "acceptor_backlog",
    ]  # fmt: skip


async def test_stats(full: Api) -> None:
    full.context.stats = QueueStats(admin_qpairs=3, io_qpairs=5, current_admin_qpairs=1, current_io_qpairs=4)
    assert await full.call("nvmf_get_stats") == {
        "tick_rate": 1_000_000_000,
        "poll_groups": [
            {
                "name": "fake",
                "admin_qpairs": 3,
                "io_qpairs": 5,
                "current_admin_qpairs": 1,
                "current_io_qpairs": 4,
                "current_unassociated_qpairs": 0,
                "pending_bdev_io": 0,
                "completed_nvme_io": 0,
                "transports": [{"trtype": "TCP"}],
            }
        ],
    }


async def test_an_address_that_cannot_be_bound(full: Api) -> None:
    taken = {**ADDRESS, "trsvcid": "4421"}
    full.context.taken.add(ListenAddress(**taken))
    await refused(full, -32602, "Address already in use", "nvmf_subsystem_add_listener", nqn=NQN, listen_address=taken)


async def test_what_changes_nothing_is_not_committed(full: Api) -> None:
    commits = full.context.commits
    await full.call("nvmf_subsystem_allow_any_host", nqn=NQN, allow_any_host=False)
    await full.call("nvmf_set_config")
    assert full.context.commits == commits


# -- bdev --------------------------------------------------------------------------------------------------------------


async def test_get_bdevs(full: Api) -> None:
    (bdev,) = await full.call("bdev_get_bdevs", name="m0")
    assert {key: bdev[key] for key in list(bdev)[:6]} == {
        "name": "m0",
        "aliases": [UUID],
        "product_name": "Malloc disk",
        "block_size": 4096,
        "num_blocks": 256,
        "uuid": UUID,
    }
    assert (bdev["claimed"], bdev["claim_type"], bdev["zoned"]) == (True, "exclusive_write", False)
    assert bdev["supported_io_types"]["write"]
    assert not bdev["supported_io_types"]["zcopy"]
    assert await full.call("bdev_get_bdevs", name=UUID.upper()) == [bdev]
    await refused(full, -19, "No such device: there is no bdev 'x'", "bdev_get_bdevs", name="x")


async def test_files(api: Api) -> None:
    api.context.files |= {"/a": 1 << 20, "/u": 4096, str(Path.cwd() / "rel"): 512}
    await api.call("bdev_aio_create", name="a", filename="/a", block_size=4096, readonly=True)
    await api.call("bdev_uring_create", name="u", filename="/u")
    assert await api.call("bdev_aio_create", name="r", filename="rel") == "r"
    aio, uring, relative = await api.call("bdev_get_bdevs")
    assert aio["driver_specific"] == {
        "aio": {
            "filename": "/a",
            "block_size_override": True,
            "readonly": True,
            "fallocate": False,
            "nowait": False,
        }
    }
    assert (aio["num_blocks"], aio["claimed"], aio["supported_io_types"]["write"]) == (256, False, False)
    assert uring["driver_specific"] == {"uring": {"filename": "/u"}}
    assert relative["driver_specific"]["aio"]["filename"] == str(Path.cwd() / "rel")
    await refused(api, -2, "No such file", "bdev_aio_create", name="b", filename="/b")
    await refused(api, -2, "No such file", "bdev_uring_create", name="b", filename="/b")


async def test_rescan(api: Api) -> None:
    api.context.files["/a"] = 1 << 20
    await api.call("bdev_aio_create", name="a", filename="/a")
    api.context.files["/a"] = 1 << 21
    assert await api.call("bdev_aio_rescan", name="a") is True
    assert (await api.call("bdev_get_bdevs", name="a"))[0]["num_blocks"] == 4096
    await refused(api, -19, "kind aio", "bdev_uring_rescan", name="a")
    await refused(api, -19, "no bdev", "bdev_aio_rescan", name="x")


async def test_resize(api: Api) -> None:
    await api.call("bdev_null_create", name="n", block_size=512, num_blocks=2048)
    await api.call("bdev_null_resize", name="n", new_size=2)
    assert (await api.call("bdev_get_bdevs", name="n"))[0]["num_blocks"] == 4096


async def test_an_absent_bdev_is_not_shown_and_is_waited_for(full: Api) -> None:
    facts = full.context.facts.pop("m0")
    assert await full.call("bdev_get_bdevs") == []
    await refused(full, -19, "is absent", "bdev_get_bdevs", name="m0")
    assert (await full.call("p2p_get_status"))["absent_bdevs"] == ["m0"]
    waiting = asyncio.create_task(full.call("bdev_get_bdevs", name="m0", timeout=limits.RPC_WAIT_MAX_MS))
    await asyncio.sleep(0)
    full.context.facts["m0"] = facts
    assert [bdev["name"] for bdev in await waiting] == ["m0"]
    await refused(full, -32602, "timeout", "bdev_get_bdevs", name="m0", timeout=limits.RPC_WAIT_MAX_MS + 1)
    await refused(full, -19, "no bdev", "bdev_get_bdevs", name="x", timeout=1)


async def test_iostat(full: Api) -> None:
    full.context.fake_dataplane.stats["m0"] = IoStat(bytes_read=4096, num_read_ops=1, read_latency_ns=77)
    answer = await full.call("bdev_get_iostat")
    assert answer["tick_rate"] == 1_000_000_000
    (bdev,) = answer["bdevs"]
    assert (bdev["name"], bdev["bytes_read"], bdev["num_read_ops"], bdev["read_latency_ticks"]) == ("m0", 4096, 1, 77)
    assert bdev["io_error"] == {}
    assert (await full.call("bdev_get_iostat", names=[UUID], reset_mode="all"))["bdevs"] == [bdev]
    assert (await full.call("bdev_get_iostat"))["bdevs"][0]["bytes_read"] == 0
    await refused(full, -19, "no bdev 'x'", "bdev_get_iostat", names=["m0", "x"])
    await refused(full, -95, "one channel", "bdev_get_iostat", names=["m0"], per_channel=True)
    await refused(full, -95, "reset_mode", "bdev_get_iostat", reset_mode="maxmin")
    await refused(full, -32602, "reset_mode", "bdev_get_iostat", reset_mode="some")
    await full.call("bdev_get_iostat", names=["m0"] * 1024)
    await refused(full, -32602, "params.names", "bdev_get_iostat", names=["m0"] * 1025)


async def test_reset_iostat(full: Api) -> None:
    full.context.fake_dataplane.stats["m0"] = IoStat(bytes_read=1)
    await full.call("bdev_reset_iostat", mode="none")
    assert full.context.fake_dataplane.stats["m0"].bytes_read == 1
    await full.call("bdev_reset_iostat", name="m0")
    assert full.context.fake_dataplane.stats["m0"].bytes_read == 0
    await refused(full, -19, "no bdev", "bdev_reset_iostat", name="x")


async def test_delete_of_a_bdev_in_use_takes_the_namespace_along(full: Api) -> None:
    commits = full.context.commits
    await full.call("bdev_malloc_delete", name="m0")
    assert full.context.commits == commits + 1
    assert (await full.call("nvmf_get_subsystems", nqn=NQN))[0]["namespaces"] == []
    assert await full.call("bdev_get_bdevs") == []


# -- the daemon --------------------------------------------------------------------------------------------------------


async def test_names(api: Api) -> None:
    names = await api.call("rpc_get_methods")
    assert names == list(METHODS)
    current = await api.call("rpc_get_methods", current=True, include_aliases=True)
    assert set(names) - set(current) == {"framework_start_init"}


async def test_status_and_version(full: Api) -> None:
    status = await full.call("p2p_get_status")
    assert (status["version"], status["pid"], status["uptime_s"]) == ("0.0.test", os.getpid(), 12.5)
    assert status["dataplane"]["engine"] == "fake"
    assert status["dataplane"]["slow"] is True
    assert status["dataplane"]["note"]
    assert (status["subsystems"], status["bdevs"], status["absent_bdevs"]) == (1, 1, [])
    version = await full.call("spdk_get_version")
    assert version["fields"] == {"major": 26, "minor": 9, "patch": 0, "suffix": ""}
    assert "0.0.test" in version["version"]


async def test_framework(api: Api) -> None:
    assert await api.call("framework_get_subsystems") == [
        {"subsystem": "bdev", "depends_on": []},
        {"subsystem": "nvmf", "depends_on": ["bdev"]},
    ]
    assert await api.call("framework_wait_init") is True
    assert await api.call("framework_start_init") is True
    await refused(api, -32602, "no subsystem 'x'", "framework_get_config", name="x")


async def test_save_and_load(full: Api) -> None:
    saved = await full.call("save_config")
    assert [part["subsystem"] for part in saved["subsystems"]] == ["bdev", "nvmf"]
    assert saved["subsystems"][1]["config"] == await full.call("framework_get_config", name="nvmf")
    part = await full.call("save_subsystem_config", name="bdev")
    assert part == saved["subsystems"][0]
    fresh = Api()
    assert await fresh.call("load_config", **saved) is True
    assert fresh.context.commits == 1
    assert await fresh.call("save_config") == saved
    assert fresh.context.config == full.context.config
    other = Api()
    await other.call("load_subsystem_config", **part)
    assert list(other.context.config.bdevs) == ["m0"]
    batches = await full.call("save_config", with_batches=True)
    assert isinstance(batches["subsystems"][0]["config"][0], list)
    await other.call("bdev_malloc_delete", name="m0")
    await other.call("load_config", **batches)
    assert other.context.config == full.context.config


async def test_load_is_all_or_nothing(full: Api) -> None:
    saved = await full.call("save_config")
    await refused(full, -17, r"subsystems\[0\].config\[0\] \(bdev_malloc_create\): File exists", "load_config", **saved)
    fresh = Api()
    saved["subsystems"][1]["config"].append({"method": "nvmf_set_crdt", "params": {"crdt1": -1}})
    await refused(fresh, -32602, r"\(nvmf_set_crdt\): params.crdt1", "load_config", **saved)
    assert fresh.context.commits == 0
    saved["subsystems"][1]["config"][-1] = {"method": "bdev_get_bdevs"}
    await refused(fresh, -32601, "does not change", "load_config", **saved)


async def test_openrpc(api: Api) -> None:
    document = await api.call("rpc.discover")
    assert document["info"]["version"] == "0.0.test"
    assert len(document["methods"]) == len(METHODS)


async def test_facts_of_the_data_plane_are_shown(full: Api) -> None:
    full.context.facts["m0"] = BdevFacts(name="m0", block_size=4096, num_blocks=9, unmap=True)
    (bdev,) = await full.call("bdev_get_bdevs")
    assert (bdev["num_blocks"], bdev["supported_io_types"]["unmap"]) == (9, True)
