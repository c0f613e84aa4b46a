"""Get Log Page (Base 5.1.12): the pages hosts read, their offsets and lengths, and what is refused."""

from __future__ import annotations

import struct

import pytest

from tests.support import nvme
from tests.support.daemon import Ns, Tree
from tests.support.initiator import Host, Queue

PAGES = {0x00: 1024, 0x01: 64, 0x02: 512, 0x03: 512, 0x04: 4096, 0x05: 4096, 0x12: 1024}


def log(admin: Queue, lid: int, size: int, **params: int) -> bytes:
    done = admin.get_log(lid, size, **params)  # type: ignore[arg-type]
    assert done.status == nvme.OK, f"LID {lid:#x}: status {done.status:#x}"
    assert len(done.data) == size
    return done.data


@pytest.mark.parametrize(("lid", "size"), list(PAGES.items()))
def test_whole_page(admin: Queue, lid: int, size: int) -> None:
    log(admin, lid, size)


@pytest.mark.parametrize(("lid", "size"), list(PAGES.items()))
def test_every_offset_gives_the_same_bytes(admin: Queue, lid: int, size: int) -> None:
    """Supported pages do not change between two reads here; RAE keeps the reads from clearing anything."""
    whole = log(admin, lid, size, rae=True)
    assert b"".join(log(admin, lid, 16, offset=at, rae=True) for at in range(0, size, 16)) == whole


@pytest.mark.parametrize("lid", PAGES)
def test_offset_beyond_the_page(admin: Queue, lid: int) -> None:
    """An offset greater than the page's size: Invalid Field in Command (Base 5.1.12, LPOL)."""
    for offset in (1 << 20, (1 << 32) - 4, 1 << 32, (1 << 63), (1 << 64) - 4):
        assert admin.get_log(lid, 512, offset=offset).status == nvme.INVALID_FIELD


@pytest.mark.parametrize("offset", [1, 2, 3, 511])
def test_unaligned_offset(admin: Queue, offset: int) -> None:
    assert admin.get_log(2, 64, offset=offset).status == nvme.INVALID_FIELD


@pytest.mark.parametrize("lid", [0x06, 0x0D, 0x0E, 0x6F, 0x71, 0x80, 0x81, 0xC0, 0xFF])
def test_unknown_page(admin: Queue, lid: int) -> None:
    assert admin.get_log(lid, 512).status == nvme.INVALID_LOG_PAGE


def test_discovery_page_is_not_for_io_controllers(admin: Queue) -> None:
    assert admin.get_log(0x70, 1024).status == nvme.INVALID_LOG_PAGE


def test_numd_and_the_sgl_must_agree(admin: Queue) -> None:
    """NUMD says 512 bytes, the SGL has room for less: Data SGL Length Invalid; nothing is sent."""
    done = admin.command(nvme.GET_LOG, nsid=0xFFFFFFFF, cdw=(2 | 127 << 16,), expect=256)
    assert done.status == nvme.DATA_SGL_LENGTH
    assert not done.data


def test_huge_numd(admin: Queue) -> None:
    """NUMD of 16 GiB with an SGL of 4 KiB, and with one of 4 GiB."""
    cdw = (2 | 0xFFFF << 16, 0xFFFF)
    assert admin.command(nvme.GET_LOG, nsid=0xFFFFFFFF, cdw=cdw, expect=4096).status != nvme.OK
    assert admin.command(nvme.GET_LOG, nsid=0xFFFFFFFF, cdw=cdw, expect=0xFFFFFFFC).status != nvme.OK
    log(admin, 2, 512)


def test_smart(admin: Queue) -> None:
    data = log(admin, 2, 512)
    assert data[0] == 0, "no critical warning"
    assert 200 < int.from_bytes(data[1:3], "little") < 400, "composite temperature in kelvin"
    assert data[3] <= 100, "available spare"


def test_smart_counts_commands(host: Host) -> None:
    io = host.io()
    before = log(host.admin, 2, 512)
    for _ in range(4):
        assert io.write(0, 1, bytes(512)).status == nvme.OK
        assert io.read(0, 1, 512).status == nvme.OK
    after = log(host.admin, 2, 512)
    for offset in (64, 80):  # host read commands, host write commands
        assert int.from_bytes(after[offset : offset + 16], "little") >= int.from_bytes(
            before[offset : offset + 16], "little"
        )


def test_smart_of_a_namespace(admin: Queue) -> None:
    """LPA bit 0 says whether SMART is kept for each namespace; if not, another NSID is an invalid field."""
    lpa = admin.identify(1).data[261]
    done = admin.get_log(2, 512, nsid=1)
    assert done.status == (nvme.OK if lpa & 1 else nvme.INVALID_FIELD)


def test_error_log(host: Host) -> None:
    """A failed command leaves an entry with its queue, CID, status and location (Base 5.1.12.1.2)."""
    done = host.admin.command(nvme.IDENTIFY, cdw=(0xFE,), expect=4096)
    assert done.status == nvme.INVALID_FIELD
    count, sqid, cid, status, location = struct.unpack_from("<QHHHH", log(host.admin, 1, 64))
    assert count > 0
    assert (sqid, cid, location) == (0, done.cid, 40)
    assert status >> 1 & 0x7FF == nvme.INVALID_FIELD


def test_error_log_has_no_io_errors(host: Host) -> None:
    """The page is the controller's, whose errors the data plane does not report; so it says nothing of More either."""
    io = host.io()
    before = log(host.admin, 1, 64)
    done = io.command(nvme.READ, nsid=1, cdw=(0xFFFFFFF0, 0, 0), expect=512)
    assert done.status == nvme.LBA_RANGE
    assert done.cqe is not None
    assert not done.cqe.more
    assert log(host.admin, 1, 64) == before


def test_error_log_of_an_admin_command(admin: Queue) -> None:
    done = admin.identify(0xFF)
    data = log(admin, 1, 64)
    count, sqid, cid, status = struct.unpack_from("<QHHH", data)
    assert count > 0
    assert (sqid, cid, status >> 1 & 0x7FF) == (0, done.cid, nvme.INVALID_FIELD)


def test_firmware_slot(admin: Queue) -> None:
    data = log(admin, 3, 512)
    slot = data[0] & 7
    assert 1 <= slot <= 7
    assert data[8 * slot : 8 * slot + 8] == admin.identify(1).data[64:72]


def test_effects(admin: Queue) -> None:
    """Each command that is announced as supported there is; one that is not is refused (Base 5.1.12.1.6)."""
    data = log(admin, 5, 4096)
    admin_effects = struct.unpack_from("<256I", data)
    io_effects = struct.unpack_from("<256I", data, 1024)
    for opcode in (
        nvme.GET_LOG,
        nvme.IDENTIFY,
        nvme.ABORT,
        nvme.SET_FEATURES,
        nvme.GET_FEATURES,
        nvme.AER,
        nvme.KEEP_ALIVE,
    ):
        assert admin_effects[opcode] & 1, f"admin opcode {opcode:#x}"
    commands = (
        nvme.FLUSH, nvme.WRITE, nvme.READ, nvme.COMPARE, nvme.WRITE_ZEROES, nvme.DSM, nvme.VERIFY, nvme.COPY
    )  # fmt: skip
    for opcode in commands:
        assert io_effects[opcode] & 1, f"I/O opcode {opcode:#x}"
    assert io_effects[nvme.WRITE] & 2, "LBCC: Write changes logical blocks"
    for opcode in (0x00, 0x01, 0x04, 0x05):
        assert not admin_effects[opcode] & 1, "queue commands do not exist with Fabrics"


def test_supported_pages_tell_the_truth(admin: Queue) -> None:
    supported = struct.unpack("<256I", log(admin, 0, 1024))
    for lid in range(256):
        status = admin.get_log(lid, 64, rae=True).status
        assert (status != nvme.INVALID_LOG_PAGE) == bool(supported[lid] & 1), f"LID {lid:#x}: status {status:#x}"


def test_supported_features_tell_the_truth(admin: Queue) -> None:
    effects = struct.unpack("<256I", log(admin, 0x12, 1024))
    for fid in (0x07, 0x0B, 0x0F, 0x81):
        assert effects[fid] & 1, f"feature {fid:#x}"


def changed(admin: Queue, **params: int) -> list[int]:
    entries = struct.unpack("<1024I", log(admin, 4, 4096, **params))
    return [nsid for nsid in entries if nsid]


def test_changed_namespace_list(tree: Tree, admin: Queue) -> None:
    changed(admin)
    nsid = tree.add(Ns())
    assert changed(admin, rae=1) == [nsid]
    assert changed(admin) == [nsid], "RAE kept it"
    assert changed(admin) == [], "read without RAE clears it"


def test_pages_do_not_leak_memory(admin: Queue) -> None:
    """What follows the entries of a page is zero, however much is asked for."""
    data = log(admin, 1, 4096)
    valid = sum(1 for at in range(0, 4096, 64) if any(data[at : at + 8]))
    assert not any(data[64 * valid :])


def test_size_of_the_error_log(admin: Queue) -> None:
    """ELPE is 0's based: that many entries and one can be read, and none behind them."""
    entries = admin.identify(1).data[262] + 1
    assert admin.get_log(1, 64, offset=64 * (entries - 1)).status == nvme.OK
    assert admin.get_log(1, 64, offset=64 * (entries + 1)).status == nvme.INVALID_FIELD
