"""Controllers of the data plane's own as configuration: SPDK's parameters, refusals, and there and back."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.state import reconcile
from nvmet_p2p.state.render import render_config, replay
from nvmet_p2p.target.config import BdevFacts, NvmeHotplug, NvmeOptions, TargetConfig
from nvmet_p2p.target.operations_nvme import with_identities
from tests.unit.target.test_operations_vbdev import Model

DRIVE = {"name": "Nvme0", "trtype": "PCIe", "traddr": "04:00.0"}
TARGET = {
    "name": "Far", "trtype": "tcp", "traddr": "192.0.2.9", "adrfam": "ipv4", "trsvcid": "4420",
    "subnqn": "nqn.2026-11.com.example:far",
}  # fmt: skip
NQN = "nqn.2026-11.com.example:one"


@pytest.fixture
def model() -> Model:
    return Model()


def refused(model: Model, method: str, code: int, text: str, **params: Any) -> None:
    before = model.config
    with pytest.raises(OperatorError) as caught:
        model.call(method, **params)
    assert caught.value.code == -code
    assert text in caught.value.message
    assert model.config is before


class TestAttach:
    def test_a_drive(self, model: Model) -> None:
        assert model.call("bdev_nvme_attach_controller", **DRIVE) == []
        drive = model.config.nvme_controllers["Nvme0"]
        assert (drive.trtype, drive.traddr) == ("PCIe", "0000:04:00.0")

    def test_a_target(self, model: Model) -> None:
        model.call("bdev_nvme_attach_controller", **TARGET, hdgst=True, hostnqn="nqn.2026-11.com.example:us")
        far = model.config.nvme_controllers["Far"]
        assert (far.trtype, far.adrfam, far.hdgst, far.hostnqn) == ("TCP", "IPv4", True, "nqn.2026-11.com.example:us")

    @pytest.mark.parametrize(
        ("change", "code", "text"),
        [
            ({"trtype": "floppy"}, errno.EINVAL, "Failed to parse trtype: floppy"),
            ({"trtype": "rdma"}, errno.ENOTSUP, "only PCIe and TCP are"),
            ({"traddr": "nvme0"}, errno.EINVAL, "is not a PCI address"),
            ({"trsvcid": "4420"}, errno.EINVAL, "a drive on PCI Express has none"),
            ({"max_bdevs": 0}, errno.EINVAL, "max_bdevs cannot be zero"),
            ({"num_io_queues": 0}, errno.EINVAL, "num_io_queues out of bounds, min: 1 max: 65536"),
            ({"name": ""}, errno.EINVAL, "a name has 1 to"),
            ({"name": "x" * 64}, errno.EINVAL, "at most 63 bytes"),
            ({"prchk_guard": True}, errno.ENOTSUP, "params.prchk_guard"),
            ({"psk": "key0"}, errno.ENOTSUP, "params.psk"),
            ({"multipath_opts": {"policy": "active_active"}}, errno.ENOTSUP, "a controller has one path"),
            ({"ctrlr_loss_timeout_sec": 5}, errno.EINVAL, "reconnect_delay_sec is neither 0"),
            ({"ctrlr_loss_timeout_sec": -1}, errno.EINVAL, "reconnect_delay_sec is not 0"),
            ({"reconnect_delay_sec": 1}, errno.EINVAL, "with ctrlr_loss_timeout_sec 0"),
            (
                {"ctrlr_loss_timeout_sec": 9, "reconnect_delay_sec": 3, "fast_io_fail_timeout_sec": 2},
                errno.EINVAL,
                "fast_io_fail_timeout_sec is between",
            ),
        ],
    )
    def test_what_is_refused_of_a_drive(self, model: Model, change: dict[str, Any], code: int, text: str) -> None:
        refused(model, "bdev_nvme_attach_controller", code, text, **DRIVE | change)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"traddr": "example.com"}, "is not an IP address"),
            ({"adrfam": "ib"}, "Failed to parse adrfam: ib"),
            ({"adrfam": "ipv6"}, "is not an address of ipv6"),
            ({"trsvcid": "0"}, "is not a TCP port"),
            ({"subnqn": "nqn.2014-08.org.nvmexpress.discovery"}, "has no namespaces"),
            ({"subnqn": ""}, "params.subnqn"),
            ({"hostnqn": "me"}, "params.hostnqn"),
        ],
    )
    def test_what_is_refused_of_a_target(self, model: Model, change: dict[str, str], text: str) -> None:
        refused(model, "bdev_nvme_attach_controller", errno.EINVAL, text, **TARGET | change)

    def test_a_name_that_is_taken(self, model: Model) -> None:
        model.call("bdev_nvme_attach_controller", **TARGET)
        attach = "bdev_nvme_attach_controller"
        same = "A controller named Far already exists with the specified network path"
        refused(model, attach, errno.EALREADY, same, **TARGET)
        disabled = "A controller named Far already exists and multipath is disabled"
        refused(model, attach, errno.EALREADY, disabled, **TARGET, multipath="disable")
        other = TARGET | {"traddr": "192.0.2.10"}
        refused(model, attach, errno.ENOTSUP, "a controller has one path", **other)
        text = f"already exists, but uses a different subnqn ({TARGET['subnqn']})"
        refused(model, attach, errno.EINVAL, text, **other | {"subnqn": NQN})
        refused(model, attach, errno.EEXIST, "controller 'Far' is there already", **TARGET | {"name": "Near"})

    def test_a_bdev_that_has_the_name_of_a_namespace(self, model: Model) -> None:
        model.call("bdev_null_create", name="Nvme0n1", block_size=512, num_blocks=8)
        refused(model, "bdev_nvme_attach_controller", errno.EEXIST, "bdev 'Nvme0n1' has the name", **DRIVE)


class TestNamespaces:
    def test_they_are_bdevs(self, model: Model) -> None:
        model.call("bdev_nvme_attach_controller", **DRIVE)
        assert model.call("p2p_nvme_expect_namespace", name="Nvme0n1") == "Nvme0n1"
        bdev = model.config.bdevs["Nvme0n1"]
        assert (bdev.kind, bdev.controller, bdev.nsid) == ("nvme", "Nvme0", 1)
        model.call("nvmf_create_subsystem", nqn=NQN)
        model.call("bdev_delay_create", name="d", base_bdev_name="Nvme0n1", avg_read_latency=1, p99_read_latency=1,
                   avg_write_latency=1, p99_write_latency=1)  # fmt: skip
        assert model.call("nvmf_subsystem_add_ns", nqn=NQN, namespace={"bdev_name": "d"}) == 1

    @pytest.mark.parametrize("name", ["Nvme0n0", "Nvme1n1", "Nvme0", "Nvme0n4294967295", "Nvme0nx"])
    def test_names_that_are_none(self, model: Model, name: str) -> None:
        model.call("bdev_nvme_attach_controller", **DRIVE)
        refused(model, "p2p_nvme_expect_namespace", errno.ENODEV, "is no namespace of a controller", name=name)

    def test_its_uuid(self, model: Model) -> None:
        model.call("bdev_nvme_attach_controller", **DRIVE)
        call, name = "p2p_nvme_expect_namespace", "Nvme0n1"
        model.call(call, name=name)
        model.call(call, name="Nvme0n2")
        first, second = (model.config.bdevs[name].uuid for name in ("Nvme0n1", "Nvme0n2"))
        new = "99999999-2222-4333-8444-555555555555"
        assert model.call(call, name=name, uuid=first.upper()) == name
        refused(model, call, errno.EEXIST, "bdev 'Nvme0n2' has the UUID", name=name, uuid=second)
        model.call(call, name=name, uuid=new)
        assert model.config.bdevs[name].uuid == new
        model.call("bdev_error_create", base_name=name)
        refused(model, call, errno.EBUSY, "is in use with UUID", name=name, uuid=first)

    def test_its_identity(self, model: Model) -> None:
        model.call("bdev_nvme_attach_controller", **DRIVE)
        call, name = "p2p_nvme_expect_namespace", "Nvme0n1"
        model.call(call, name=name)
        model.call(call, name=name, identity="1b36.S1")
        model.call(call, name="Nvme0n2", identity="1b36.S1")  # the serial number of a drive is that of all of them
        model.call(call, name=name)
        assert model.config.bdevs[name].identity == "1b36.S1"
        refused(model, call, errno.ENODEV, "'1b36.S2' instead of '1b36.S1'", name=name, identity="1b36.S2")
        refused(model, call, 32602, "params.identity", name=name, identity=80 * "x")
        found = [BdevFacts(name=n, block_size=512, num_blocks=8, identity="other") for n in (name, "Nvme0n3", "x")]
        assert with_identities(model.config, found) is model.config
        model.call(call, name="Nvme0n3")
        assert with_identities(model.config, found).bdevs["Nvme0n3"].identity == "other"

    def test_detached_with_all_that_is_on_it(self, model: Model) -> None:
        self.test_they_are_bdevs(model)
        refused(model, "bdev_nvme_detach_controller", errno.ENODEV, "there is no controller", name="Nvme9")
        refused(model, "bdev_nvme_detach_controller", errno.ENXIO, "no path with", name="Nvme0", traddr="05:00.0")
        before = model.config
        assert model.call("bdev_nvme_detach_controller", name="Nvme0", trtype="pcie", traddr="04:00.0") is True
        assert not model.config.bdevs
        assert not model.config.nvme_controllers
        assert not model.config.subsystems[NQN].namespaces
        plan = reconcile.plan(before, model.config)
        assert [bdev.name for bdev in plan.close_bdevs] == ["d", "Nvme0n1"]
        assert plan.detach == ("Nvme0",)


class TestOptions:
    def test_what_is_not_given_stays(self, model: Model) -> None:
        model.call("bdev_nvme_set_options", timeout_us=5_000_000, action_on_timeout="reset", delay_cmd_submit=True)
        model.call("bdev_nvme_set_options", bdev_retry_count=-1)
        options = model.config.nvme_options
        assert options == NvmeOptions(
            timeout_us=5_000_000, action_on_timeout="reset", bdev_retry_count=-1, hints={"delay_cmd_submit": True}
        )
        assert reconcile.plan(TargetConfig(), model.config).nvme_options == options

    def test_refusals(self, model: Model) -> None:
        call = "bdev_nvme_set_options"
        refused(model, call, errno.EINVAL, "not without timeout_us", timeout_admin_us=1)
        refused(model, call, errno.EINVAL, "-1 or more", bdev_retry_count=-2)
        refused(model, call, errno.EINVAL, "with ctrlr_loss_timeout_sec 0", reconnect_delay_sec=1)
        model.call("bdev_nvme_attach_controller", **DRIVE)
        text = "RPC not permitted with nvme controllers already attached"
        refused(model, call, errno.EPERM, text, timeout_us=1)

    def test_they_are_the_defaults_of_a_controller(self, model: Model) -> None:
        model.call("bdev_nvme_set_options", ctrlr_loss_timeout_sec=10, reconnect_delay_sec=2)
        model.call("bdev_nvme_attach_controller", **DRIVE, fast_io_fail_timeout_sec=5)
        refused(model, "bdev_nvme_attach_controller", errno.EINVAL, "between", **TARGET, fast_io_fail_timeout_sec=1)

    def test_hotplug(self, model: Model) -> None:
        model.call("bdev_nvme_set_hotplug", enable=True, period_us=100_000)
        assert model.config.nvme_hotplug == NvmeHotplug(enable=True, period_us=100_000)
        assert reconcile.plan(TargetConfig(), model.config).nvme_hotplug == model.config.nvme_hotplug
        with pytest.raises(OperatorError, match=r"params\.period_us"):
            model.call("bdev_nvme_set_hotplug", enable=True, period_us=10_000_001)


class TestSaved:
    def test_there_and_back(self, model: Model) -> None:
        model.call("bdev_nvme_set_options", timeout_us=9, dhchap_digests=["sha256"], multipath_opts={"min_io": 4})
        model.call("bdev_malloc_create", name="m", block_size=512, num_blocks=8)
        model.call("bdev_nvme_attach_controller", **DRIVE, max_bdevs=4, multipath="multipath", num_io_queues=8)
        model.call("p2p_nvme_expect_namespace", name="Nvme0n2", identity="1b36.S 1/'x")
        model.call(
            "bdev_nvme_attach_controller", **TARGET, ddgst=True, ctrlr_loss_timeout_sec=-1, reconnect_delay_sec=2
        )
        model.call("bdev_error_create", base_name="Nvme0n2")
        model.call("p2p_nvme_expect_namespace", name="Farn1")
        model.call("bdev_set_qos_limit", name="Farn1", rw_mbytes_per_sec=7)
        model.call("bdev_nvme_set_hotplug", enable=True)
        saved = render_config(model.config)
        again = replay(TargetConfig(), saved, model.uuid)
        assert again == model.config
        assert render_config(again) == saved
        calls = [call["method"] for call in saved["subsystems"][0]["config"]]
        assert calls[0] == "bdev_nvme_set_options"
        assert calls[-1] == "bdev_nvme_set_hotplug"

    def test_what_spdk_saved_names_namespaces_that_it_finds(self, model: Model) -> None:
        """SPDK's file has no call for a namespace; what names one declares it."""
        attach = {"method": "bdev_nvme_attach_controller", "params": DRIVE | {
            "prchk_reftag": False, "prchk_guard": False, "ctrlr_loss_timeout_sec": 0, "reconnect_delay_sec": 0,
            "fast_io_fail_timeout_sec": 0, "hostnqn": "nqn.2014-08.org.nvmexpress:uuid:0", "hdgst": False,
            "ddgst": False, "multipath": "multipath", "fabrics_connect_timeout_us": 1, "num_io_queues": 1024,
            "disable_sq_flow_control": False, "multipath_opts": {"policy": "active_passive"},
        }}  # fmt: skip
        namespace = {"nsid": 1, "bdev_name": "Nvme0n3"}
        document = {
            "subsystems": [
                {
                    "subsystem": "bdev",
                    "config": [
                        attach,
                        {"method": "bdev_set_qos_limit", "params": {"name": "Nvme0n1", "rw_mbytes_per_sec": 1}},
                        {"method": "bdev_error_create", "params": {"base_name": "Nvme0n2"}},
                    ],
                },
                {
                    "subsystem": "nvmf",
                    "config": [
                        {"method": "nvmf_create_subsystem", "params": {"nqn": NQN}},
                        {"method": "nvmf_subsystem_add_ns", "params": {"nqn": NQN, "namespace": namespace}},
                    ],
                },
            ]
        }
        config = replay(model.config, document, model.uuid)
        assert list(config.bdevs) == ["Nvme0n1", "Nvme0n2", "EE_Nvme0n2", "Nvme0n3"]
        assert config.subsystems[NQN].namespaces[1].bdev_name == "Nvme0n3"

    def test_one_that_is_attached_is_not_replaced(self, model: Model) -> None:
        model.call("bdev_nvme_attach_controller", **DRIVE)
        calls = [
            {"method": "bdev_nvme_detach_controller", "params": {"name": "Nvme0"}},
            {"method": "bdev_nvme_attach_controller", "params": DRIVE | {"traddr": "05:00.0"}},
        ]
        with pytest.raises(OperatorError, match="controller 'Nvme0' is there until all calls"):
            replay(model.config, {"subsystems": [{"subsystem": "bdev", "config": calls}]}, model.uuid)
