"""Property Get and Set, and the controller's life by CC and CSTS (Base 3.1.4, 3.5.1, 3.6.2)."""

from __future__ import annotations

import pytest

from tests.support import nvme
from tests.support.conn import PeerClosed
from tests.support.daemon import Tree
from tests.support.initiator import Host, Queue


def test_cap(admin: Queue) -> None:
    cap = admin.property_get(nvme.CAP)
    assert cap & 0xFFFF >= 31, "MQES"
    assert cap >> 16 & 1 == 1, "CQR: contiguous queues, always with Fabrics"
    assert cap >> 24 & 0xFF > 0, "TO"
    assert cap >> 32 & 0xF == 0, "DSTRD is 0 with Fabrics"
    assert cap >> 37 & 1 == 1, "CSS: NVM command set"
    assert cap >> 48 & 0xF == 0, "MPSMIN: 4 KiB"
    assert cap >> 56 & 3 == 0, "no PMR, no CMB"


def test_version_is_the_one_of_identify(admin: Queue) -> None:
    version = admin.property_get(nvme.VS)
    assert version >= 0x00010400
    assert version == int.from_bytes(admin.identify(1).data[80:84], "little")


def test_cc_reads_back(admin: Queue) -> None:
    assert admin.property_get(nvme.CC) == nvme.CC_ENABLE


def test_no_subsystem_reset(admin: Queue) -> None:
    """CAP.NSSRS is 0: NSSR reads as 0 and takes no write (Base 3.1.4.7)."""
    assert admin.property_get(nvme.CAP) >> 36 & 1 == 0
    assert admin.property_get(nvme.NSSR) == 0
    assert admin.property_set(nvme.NSSR, 0x4E564D65).status == nvme.INVALID_FIELD
    assert admin.property_get(nvme.CSTS) & 1 == 1


def test_ready_timeout_is_that_of_cap(admin: Queue) -> None:
    """CRTO.CRWMT is no shorter than what CAP.TO can say of it (Base 3.1.4.23)."""
    crto = admin.property_get(nvme.CRTO)
    timeout = admin.property_get(nvme.CAP) >> 24 & 0xFF
    assert crto & 0xFFFF == timeout or timeout == 0xFF


@pytest.mark.parametrize(
    "sqe",
    [
        nvme.property_get_sqe(0x10, 4),  # INTMS/INTMC are not for Fabrics... 0Ch and 10h are reserved
        nvme.property_get_sqe(0x24, 4),
        nvme.property_get_sqe(0x15, 4),
        nvme.property_get_sqe(0xFFFFFFF8, 8),
        nvme.property_get_sqe(0x08, 8),
        nvme.property_get_sqe(0x1C, 8),
        nvme.property_get_sqe(0x14, 4, attrib=2),
        nvme.property_get_sqe(0x14, 4, attrib=7),
    ],
    ids=["reserved-10h", "aqa", "unaligned", "far", "vs-8", "csts-8", "size-2", "size-7"],
)
def test_get_refused(admin: Queue, sqe: bytes) -> None:
    assert admin.wait(admin.submit(sqe)).status == nvme.INVALID_FIELD


@pytest.mark.parametrize(
    ("offset", "size"), [(0x00, 8), (0x08, 4), (0x1C, 4), (0x14, 8), (0x16, 4), (0x1000, 4)],
    ids=["cap", "vs", "csts", "cc-8", "unaligned", "unknown"],
)  # fmt: skip
def test_set_refused(admin: Queue, offset: int, size: int) -> None:
    assert admin.wait(admin.submit(nvme.property_set_sqe(offset, size, 1))).status == nvme.INVALID_FIELD
    assert admin.property_get(nvme.CC) == nvme.CC_ENABLE


def test_disabled_controller_refuses_admin_commands(tree: Tree) -> None:
    """Before CSTS.RDY only Fabrics commands (Base 3.5.1): Command Sequence Error."""
    host = tree.host().connect()
    assert host.admin.property_get(nvme.CSTS) & 1 == 0
    assert host.admin.identify(1).status == nvme.COMMAND_SEQUENCE
    assert len(host.enable().admin.identify(1).data) == 4096


@pytest.mark.parametrize(
    "cc",
    [0x00470001, 0x00450001, 0x00560001, 0x00360001, 0x00460081, 0x00460801, 0x00460011],
    ids=["iosqes-7", "iosqes-5", "iocqes-5", "iocqes-3", "mps-1", "ams-1", "css-1"],
)
def test_enable_with_an_unsupported_configuration(tree: Tree, cc: int) -> None:
    """CSTS.CFS is set and RDY stays 0, as nvmet does (Base: the result of an unsupported value is undefined)."""
    host = tree.host().connect()
    assert host.admin.property_set(nvme.CC, cc).status == nvme.OK
    assert host.admin.property_get(nvme.CSTS) & 3 == 2
    assert host.admin.property_set(nvme.CC, 0).status == nvme.OK
    host.enable()


@pytest.mark.parametrize("css", [0, 6])
def test_command_sets(tree: Tree, css: int) -> None:
    host = tree.host().connect()
    if css == 6 and not host.admin.property_get(nvme.CAP) >> 43 & 1:
        pytest.skip("CAP.CSS: no I/O command sets")
    host.enable(nvme.CC_ENABLE | css << 4)
    assert host.io().read(0, 1, 512).status == nvme.OK


def test_reset(host: Host, io: Queue) -> None:
    """EN 1 to 0: RDY falls, the I/O queues end, the admin queue stays and can enable again."""
    assert host.admin.property_set(nvme.CC, nvme.CC_ENABLE & ~1).status == nvme.OK
    host.wait_csts(1, 0)
    with pytest.raises(PeerClosed):
        io.conn.recv_exact(1)
    host.enable()
    assert host.io().read(0, 1, 512).status == nvme.OK


def test_reset_again_and_again(host: Host) -> None:
    for _ in range(10):
        host.admin.property_set(nvme.CC, 0)
        host.wait_csts(1, 0)
        host.enable()
    assert host.io().read(0, 1, 512).status == nvme.OK


@pytest.mark.parametrize("shn", [1, 2], ids=["normal", "abrupt"])
def test_shutdown(host: Host, io: Queue, shn: int) -> None:
    assert io.write(0, 1, b"\x5a" * 512).status == nvme.OK
    assert host.admin.property_set(nvme.CC, nvme.CC_ENABLE | shn << 14).status == nvme.OK
    host.wait_csts(0xC, 0x8)


def test_controller_works_after_shutdown_and_reset(host: Host) -> None:
    host.admin.property_set(nvme.CC, nvme.CC_ENABLE | 1 << 14)
    host.wait_csts(0xC, 0x8)
    host.admin.property_set(nvme.CC, 0)
    host.wait_csts(1, 0)
    assert host.admin.property_get(nvme.CSTS) & 0xC == 0, "SHST is cleared by a reset"
    host.enable()
    assert host.io().read(0, 1, 512).status == nvme.OK


def test_property_commands_are_for_the_admin_queue(io: Queue) -> None:
    done = io.wait(io.submit(nvme.property_get_sqe(*nvme.CSTS)))
    assert done.status in (nvme.INVALID_OPCODE, nvme.INVALID_FIELD)


@pytest.mark.parametrize("fctype", [0x02, 0x07, 0x10, 0xC0, 0xFF])
def test_unknown_fabrics_command(admin: Queue, fctype: int) -> None:
    done = admin.wait(admin.submit(nvme.sqe(nvme.FABRICS, nsid=fctype)))
    assert done.status in (nvme.INVALID_FIELD, nvme.INVALID_OPCODE)
