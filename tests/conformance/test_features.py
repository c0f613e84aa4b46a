"""Get and Set Features (Base 5.1.11, 5.1.25, NVM 4.1.3)."""

from __future__ import annotations

import pytest

from tests.support import nvme
from tests.support.daemon import Tree
from tests.support.initiator import Host, Queue

NUM_QUEUES, AEC, KATO, HOST_ID, HOST_BEHAVIOR, VWC = 0x07, 0x0B, 0x0F, 0x81, 0x16, 0x06


def test_number_of_queues(admin: Queue) -> None:
    done = admin.set_features(NUM_QUEUES, 3 << 16 | 3)
    assert done.status == nvme.OK
    granted = (done.dw0 & 0xFFFF, done.dw0 >> 16)
    assert granted[0] == granted[1] >= 3, "0's based; at least what was asked for, as there is no shortage"
    assert admin.get_features(NUM_QUEUES).dw0 == done.dw0


def test_more_queues_than_there_are(admin: Queue) -> None:
    """SPDK's host asks for 1,024: it gets what there is."""
    done = admin.set_features(NUM_QUEUES, 1023 << 16 | 1023)
    assert done.status == nvme.OK
    assert 0 < done.dw0 & 0xFFFF <= 1023


@pytest.mark.parametrize("value", [0xFFFF, 0xFFFF << 16, 0xFFFFFFFF])
def test_number_of_queues_invalid(admin: Queue, value: int) -> None:
    assert admin.set_features(NUM_QUEUES, value).status == nvme.INVALID_FIELD


def test_number_of_queues_after_a_queue_exists(host: Host, io: Queue) -> None:
    assert host.admin.set_features(NUM_QUEUES, 0).status == nvme.COMMAND_SEQUENCE


def test_granted_queues_can_all_be_connected(host: Host) -> None:
    granted = (host.admin.set_features(NUM_QUEUES, 7 << 16 | 7).dw0 & 0xFFFF) + 1
    for qid in range(1, min(granted, 8) + 1):
        assert host.io(qid, sqsize=15, icd_max=0).read(0, 1, 512).status == nvme.OK


def test_asynchronous_event_configuration(admin: Queue) -> None:
    assert admin.set_features(AEC, 1 << 8).status == nvme.OK
    assert admin.get_features(AEC).dw0 == 1 << 8


@pytest.mark.parametrize(("asked", "given"), [(10_000, 10_000), (1, 100), (0, 0), (15_001, 15_100)])
def test_keep_alive_timer(admin: Queue, asked: int, given: int) -> None:
    """KATO is rounded up to the granularity that KAS announces (Base 5.1.25.1.8)."""
    unit = int.from_bytes(admin.identify(1).data[320:322], "little") * 100
    assert admin.set_features(KATO, asked).status == nvme.OK
    assert admin.get_features(KATO).dw0 in (-(-given // unit) * unit, asked)
    assert admin.set_features(KATO, 0).status == nvme.OK


def test_kato_of_connect_can_be_read(tree: Tree) -> None:
    assert tree.started(kato=30_000).admin.get_features(KATO).dw0 == 30_000


def test_host_identifier(tree: Tree) -> None:
    identifier = bytes(range(0x40, 0x50))
    admin = tree.started(hostid=identifier).admin
    done = admin.get_features(HOST_ID, cdw11=1, expect=16)
    assert (done.status, done.data) == (nvme.OK, identifier)


def test_host_identifier_of_64_bits_is_not_for_fabrics(admin: Queue) -> None:
    assert admin.get_features(HOST_ID, cdw11=0, expect=8).status == nvme.INVALID_FIELD


def test_host_identifier_cannot_be_set(admin: Queue) -> None:
    """With Fabrics it comes in Connect: Command Sequence Error (Base 5.1.25.1.27.1)."""
    done = admin.command(nvme.SET_FEATURES, cdw=(HOST_ID, 1), out=bytes(16))
    assert done.status in (nvme.COMMAND_SEQUENCE, nvme.NOT_CHANGEABLE)


def test_host_behavior_support(admin: Queue) -> None:
    behavior = bytearray(512)
    behavior[4] = 0b1100  # CDFE: Copy descriptor formats 2 and 3
    assert admin.set_features(HOST_BEHAVIOR, out=bytes(behavior)).status == nvme.OK
    done = admin.get_features(HOST_BEHAVIOR, expect=512)
    assert (done.status, done.data[4]) == (nvme.OK, 0b1100)


def test_write_cache_feature_follows_vwc(admin: Queue) -> None:
    present = admin.identify(1).data[525] & 1
    done = admin.get_features(VWC)
    assert done.status == (nvme.OK if present else nvme.INVALID_FIELD)


@pytest.mark.parametrize("fid", [0x00, 0x03, 0x0C, 0x7F, 0x84 + 0x20, 0xC0, 0xFF])
def test_unknown_feature(admin: Queue, fid: int) -> None:
    assert admin.get_features(fid, expect=4096).status == nvme.INVALID_FIELD
    assert admin.set_features(fid).status == nvme.INVALID_FIELD


@pytest.mark.parametrize("fid", [NUM_QUEUES, AEC, KATO])
@pytest.mark.parametrize("sel", [1, 3])
def test_default_and_capabilities(admin: Queue, fid: int, sel: int) -> None:
    """SEL needs ONCS bit 4; supported capabilities: bit 0 saveable, 1 namespace specific, 2 changeable."""
    done = admin.get_features(fid, sel=sel)
    if not int.from_bytes(admin.identify(1).data[520:522], "little") >> 4 & 1:
        pytest.skip("ONCS: Save and Select are not supported")
    assert done.status == nvme.OK
    if sel == 3:
        assert done.dw0 & 4, "changeable"
        assert done.dw0 & ~7 == 0


def test_save_is_refused_where_nothing_is_saveable(admin: Queue) -> None:
    done = admin.set_features(KATO, 10_000, save=True)
    assert done.status in (nvme.NOT_SAVEABLE, nvme.INVALID_FIELD)


def test_get_reserved_select(admin: Queue) -> None:
    assert admin.get_features(KATO, sel=7).status == nvme.INVALID_FIELD


def test_features_go_back_to_default_with_a_reset(host: Host) -> None:
    """AEC is a property of the controller's enabled life (Base 3.6.2: features return to default unless saved)."""
    host.admin.set_features(AEC, 1 << 8)
    host.admin.property_set(nvme.CC, 0)
    host.wait_csts(1, 0)
    host.enable()
    default = host.admin.get_features(AEC).dw0
    assert default in (0, host.admin.get_features(AEC, sel=1).dw0)
