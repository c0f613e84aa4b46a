"""A configuration is saved as calls and comes back from them, whatever was done to it before."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.state.render import render_config, render_subsystem, replay, replay_subsystem
from nvmet_p2p.target.config import TargetConfig
from nvmet_p2p.target.operations_bdev import OPERATIONS, with_uuid
from nvmet_p2p.target.request_types import decode
from nvmet_p2p.target.validate import DISCOVERY_NQN

NQNS = [f"nqn.2026-11.com.example:{n}" for n in range(3)]
HOSTS = [f"nqn.2026-11.com.host:{n}" for n in range(3)]
BDEVS = ["m0", "m1", "n0", "a0", "u0"]
ADDRESSES = [
    {"trtype": "TCP", "adrfam": "IPv4", "traddr": "192.0.2.1", "trsvcid": "4420"},
    {"trtype": "tcp", "traddr": "::1", "trsvcid": "8009"},
    {"trtype": "RDMA", "adrfam": "IPv4", "traddr": "192.0.2.1", "trsvcid": "4420"},
]
STATES = ["optimized", "non_optimized", "inaccessible"]

nqns = st.sampled_from([*NQNS, DISCOVERY_NQN])
hosts = st.sampled_from(HOSTS)
bdevs = st.sampled_from(BDEVS)
addresses = st.sampled_from(ADDRESSES)
nsids = st.integers(0, 4)


class Configuration(RuleBasedStateMachine):
    """Any sequence of calls, refused ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.config = TargetConfig()
        self._uuids = 0

    def uuid(self) -> str:
        self._uuids += 1
        return f"00000000-0000-4000-8000-{self._uuids:012x}"

    def do(self, method: str, **params: Any) -> None:
        operation = OPERATIONS[method]
        try:
            request = with_uuid(decode(operation.request, params), self.uuid)
            self.config = operation.apply(self.config, request).config
        except OperatorError:
            pass

    @rule(
        kas=st.integers(1, 20), kato=st.integers(0, 5000), unit=st.sampled_from([131072, 8192]), small=st.integers(0, 9)
    )
    def create_transport(self, kas: int, kato: int, unit: int, small: int) -> None:
        self.do("nvmf_create_transport", trtype="TCP", kas=kas, min_kato=kato, io_unit_size=unit, buf_cache_size=small)

    @rule(srq=st.none() | st.integers(1, 65535), no_srq=st.none() | st.booleans(), cqe=st.none() | st.integers(1, 9000))
    def create_rdma_transport(self, srq: int | None, no_srq: bool | None, cqe: int | None) -> None:
        given = {"max_srq_depth": srq, "no_srq": no_srq, "num_cqe": cqe}
        self.do("nvmf_create_transport", trtype="RDMA", **{name: v for name, v in given.items() if v is not None})

    @rule(words=st.lists(st.sampled_from(["transport", "address", "svcid"])))
    def set_config(self, words: list[str]) -> None:
        self.do("nvmf_set_config", discovery_filters=words)

    @rule(value=st.integers(0, 9))
    def set_numbers(self, value: int) -> None:
        self.do("nvmf_set_crdt", crdt2=value)
        self.do("nvmf_set_max_subsystems", max_subsystems=value)

    @rule(nqn=nqns, ana=st.booleans(), any_host=st.booleans(), most=st.integers(0, 3))
    def create_subsystem(self, nqn: str, ana: bool, any_host: bool, most: int) -> None:
        self.do("nvmf_create_subsystem", nqn=nqn, ana_reporting=ana, allow_any_host=any_host, max_namespaces=most)

    @rule(nqn=nqns)
    def delete_subsystem(self, nqn: str) -> None:
        self.do("nvmf_delete_subsystem", nqn=nqn)

    @rule(nqn=nqns, address=addresses, state=st.sampled_from(STATES))
    def add_listener(self, nqn: str, address: dict[str, str], state: str) -> None:
        self.do("nvmf_subsystem_add_listener", nqn=nqn, listen_address=address, ana_state=state)

    @rule(nqn=nqns, address=addresses)
    def remove_listener(self, nqn: str, address: dict[str, str]) -> None:
        self.do("nvmf_subsystem_remove_listener", nqn=nqn, listen_address=address)

    @rule(nqn=nqns, address=addresses, state=st.sampled_from(STATES), group=nsids)
    def set_ana_state(self, nqn: str, address: dict[str, str], state: str, group: int) -> None:
        self.do(
            "nvmf_subsystem_listener_set_ana_state", nqn=nqn, listen_address=address, ana_state=state, anagrpid=group
        )

    @rule(
        name=bdevs, size=st.sampled_from([512, 4096]), blocks=st.integers(1, 2000), physical=st.sampled_from([0, 4096])
    )
    def create_bdev(self, name: str, size: int, blocks: int, physical: int) -> None:
        sizes = {"name": name, "block_size": size, "num_blocks": blocks, "physical_block_size": physical}
        match name[0]:
            case "m":
                self.do("bdev_malloc_create", **sizes, optimal_io_boundary=blocks)
            case "n":
                self.do("bdev_null_create", **sizes)
            case "a":
                self.do("bdev_aio_create", name=name, filename=f"/{name}", block_size=size * (physical > 0))
            case _:
                self.do("bdev_uring_create", name=name, filename=f"/{name}", block_size=size * (physical > 0))

    @rule(name=bdevs)
    def delete_bdev(self, name: str) -> None:
        kind = {"m": "malloc", "n": "null", "a": "aio", "u": "uring"}[name[0]]
        self.do(f"bdev_{kind}_delete", name=name)

    @rule(size=st.integers(0, 3))
    def resize(self, size: int) -> None:
        self.do("bdev_null_resize", name="n0", new_size=size)

    @rule(nqn=nqns, bdev=bdevs, nsid=nsids, group=nsids, hidden=st.booleans(), eui64=st.sampled_from(["0", "A", "b"]))
    def add_namespace(self, nqn: str, bdev: str, nsid: int, group: int, hidden: bool, eui64: str) -> None:
        namespace = {"bdev_name": bdev, "nsid": nsid, "anagrpid": group, "no_auto_visible": hidden, "eui64": eui64 * 16}
        self.do("nvmf_subsystem_add_ns", nqn=nqn, namespace=namespace)

    @rule(nqn=nqns, nsid=nsids, group=nsids)
    def change_namespace(self, nqn: str, nsid: int, group: int) -> None:
        self.do("nvmf_subsystem_set_ns_ana_group", nqn=nqn, nsid=nsid, anagrpid=group)
        if group == 0:
            self.do("nvmf_subsystem_remove_ns", nqn=nqn, nsid=nsid)

    @rule(nqn=nqns, nsid=nsids, host=hosts, method=st.sampled_from(["add", "remove"]))
    def namespace_host(self, nqn: str, nsid: int, host: str, method: str) -> None:
        self.do(f"nvmf_ns_{method}_host", nqn=nqn, nsid=nsid, host=host)

    @rule(nqn=nqns, host=hosts, method=st.sampled_from(["add", "remove"]))
    def host(self, nqn: str, host: str, method: str) -> None:
        self.do(f"nvmf_subsystem_{method}_host", nqn=nqn, host=host)

    @rule(address=addresses, nqn=nqns, secure=st.booleans(), method=st.sampled_from(["add", "remove"]))
    def referral(self, address: dict[str, str], nqn: str, secure: bool, method: str) -> None:
        extra = {"secure_channel": secure} if method == "add" else {}
        self.do(f"nvmf_discovery_{method}_referral", address=address, subnqn=nqn, **extra)

    @invariant()
    def saved_and_loaded_is_the_same(self) -> None:
        saved = json.dumps(render_config(self.config), indent=2)
        loaded = replay(TargetConfig(), json.loads(saved), no_uuid)
        assert loaded == self.config
        assert json.dumps(render_config(loaded), indent=2) == saved
        batches = render_config(self.config, with_batches=True)
        assert replay(TargetConfig(), batches, no_uuid) == self.config


def no_uuid() -> str:
    raise AssertionError("a saved configuration has all UUIDs")


TestConfiguration = Configuration.TestCase


def test_an_empty_configuration() -> None:
    assert render_config(TargetConfig()) == {
        "subsystems": [
            {"subsystem": "bdev", "config": []},
            {
                "subsystem": "nvmf",
                "config": [
                    {"method": "nvmf_set_config", "params": {"discovery_filters": []}},
                    {"method": "nvmf_set_max_subsystems", "params": {"max_subsystems": 1024}},
                    {"method": "nvmf_set_crdt", "params": {"crdt1": 0, "crdt2": 0, "crdt3": 0}},
                ],
            },
        ]
    }


def test_batches_join_calls_of_one_method() -> None:
    machine = Configuration()
    for kind, name in (("malloc", "m0"), ("malloc", "m1"), ("null", "n0")):
        machine.do(f"bdev_{kind}_create", name=name, block_size=512, num_blocks=8)
    methods = [
        [call["method"] for call in batch] for batch in render_subsystem(machine.config, "bdev", with_batches=True)
    ]
    assert methods == [["bdev_malloc_create"] * 2, ["bdev_null_create"]]


def test_unknown_part() -> None:
    with pytest.raises(OperatorError, match="no subsystem 'keyring'"):
        render_subsystem(TargetConfig(), "keyring")


CALL = {"method": "bdev_null_create", "params": {"name": "n", "block_size": 512, "num_blocks": 1}}


@pytest.mark.parametrize(
    ("document", "code", "text"),
    [
        ([], -32602, "params.subsystems"),
        ({}, -32602, "params.subsystems"),
        ({"subsystems": {}}, -32602, "params.subsystems"),
        ({"subsystems": [1]}, -32602, r"params.subsystems\[0\].config: expected a list"),
        ({"subsystems": [{"config": [1]}]}, -32602, r"config\[0\]: expected an object"),
        ({"subsystems": [{"config": [{"method": 1}]}]}, -32602, r"config\[0\]"),
        ({"subsystems": [{"config": [{"method": "nvmf_get_stats"}]}]}, -32601, "'nvmf_get_stats' does not change"),
        ({"subsystems": [{"config": [{"method": "nvmf_set_crdt", "params": 1}]}]}, -32602, "params: expected object"),
        ({"subsystems": [{"config": [[CALL, CALL]]}]}, -17, r"config\[0\] \(bdev_null_create\): File exists"),
    ],
)
def test_bad_documents(document: Any, code: int, text: str) -> None:
    with pytest.raises(OperatorError, match=text) as caught:
        replay(TargetConfig(), document, Configuration().uuid)
    assert caught.value.code == code


def test_a_subsystem_with_nothing_to_say() -> None:
    assert replay_subsystem(TargetConfig(), {"subsystem": "iobuf", "config": None}, no_uuid) == TargetConfig()


def test_a_bdev_is_not_replaced_by_another_one_of_its_name_within_one_load() -> None:
    uuid = Configuration().uuid
    made = {"name": "m0", "num_blocks": 8, "block_size": 512}
    calls = [{"method": "bdev_null_create", "params": made}]
    there = replay_subsystem(TargetConfig(), {"config": calls}, uuid)
    again = [{"method": "bdev_null_delete", "params": {"name": "m0"}}, {"method": "bdev_malloc_create", "params": made}]
    with pytest.raises(OperatorError, match=r"config\[1\]: bdev 'm0' is there") as caught:
        replay_subsystem(there, {"config": again}, uuid)
    assert caught.value.code == -17
    with pytest.raises(OperatorError, match=r"subsystems\[1\].config\[0\]: bdev 'm0' is there"):
        replay(there, {"subsystems": [{"config": again[:1]}, {"config": again[1:]}]}, uuid)
    new = [{"method": "bdev_null_create", "params": made | {"name": "m1"}}]
    gone = [{"method": "bdev_null_delete", "params": {"name": "m1"}}]
    assert replay_subsystem(there, {"config": [*new, *gone, *new]}, uuid).bdevs.keys() == {"m0", "m1"}
