"""Identify (Base 5.1.13, NVM 4.1.5): each CNS that hosts use, and what the fields promise about the rest."""

from __future__ import annotations

import struct
import uuid

import pytest

from tests.conformance.conftest import MakeTree
from tests.support import nvme
from tests.support.daemon import Ns, Tree
from tests.support.initiator import Host, Queue

BROADCAST = 0xFFFFFFFF


def identified(admin: Queue, cns: int, **params: int) -> bytes:
    done = admin.identify(cns, **params)
    assert done.status == nvme.OK, f"CNS {cns:#x} {params}: status {done.status:#x}"
    assert len(done.data) == 4096
    return done.data


def u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def nsids(data: bytes) -> list[int]:
    """A namespace list; behind the first zero there must be nothing."""
    entries = list(struct.unpack("<1024I", data))
    count = entries.index(0) if 0 in entries else 1024
    assert not any(entries[count:])
    return entries[:count]


def test_controller(host: Host) -> None:
    data = identified(host.admin, 1)
    assert data[4:24].decode("ascii").startswith("SN")
    assert data[4:24] == data[4:24].rstrip(b" \0").ljust(20, b" "), "SN is padded with spaces"
    assert data[24:64].decode("ascii").strip()
    assert b"\0" not in data[24:72], "MN and FR are padded with spaces"
    assert u16(data, 78) == host.cntlid
    assert data[111] == 1, "CNTRLTYPE: I/O controller"
    assert u16(data, 320) > 0, "KAS: mandatory with Fabrics"
    assert (data[512], data[513]) == (0x66, 0x44), "SQES, CQES"
    assert u32(data, 516) >= 2, "NN"
    sgls = u32(data, 536)
    assert sgls & 3, "SGLs are mandatory with Fabrics"
    assert sgls >> 20 & 1, "offsets into the capsule (TCP 3.3.2.1)"
    assert data[768:1024].rstrip(b"\0").decode() == host.subnqn
    assert u32(data, 1792) >= 4, "IOCCSZ, 16-byte units"
    assert u32(data, 1796) == 1, "IORCSZ"
    assert u16(data, 1800) == 0, "ICDOFF"
    assert data[1802] & 1 == 0, "FCATT: dynamic controller model"
    assert data[1803] >= 1, "MSDBD"


def test_optional_commands_are_announced(admin: Queue) -> None:
    data = identified(admin, 1)
    oncs = u16(data, 520)
    for bit, name in {0: "Compare", 2: "DSM", 3: "Write Zeroes", 7: "Verify", 8: "Copy"}.items():
        assert oncs >> bit & 1, f"ONCS: {name}"
    assert u16(data, 522) & 1, "FUSES: Compare and Write"
    assert u16(data, 534) & 0xF == 0xF, "OCFS: Copy formats 0 to 3"
    assert data[525] & 1 in (0, 1), "VWC"


def test_events_are_announced(admin: Queue) -> None:
    oaes = u32(identified(admin, 1), 92)
    assert oaes >> 8 & 1, "OAES: namespace attribute notices"


def test_ana_is_announced_exactly_where_it_is_on(make_tree: MakeTree) -> None:
    for reporting in (False, True):
        data = identified(make_tree(Ns(), ana_reporting=reporting).started().admin, 1)
        assert bool(data[76] >> 3 & 1) == reporting, "CMIC bit 3"
        assert bool(u32(data, 92) >> 11 & 1) == reporting, "OAES bit 11"
        if reporting:
            assert data[342] > 0, "ANATT"
            assert data[343] & 7, "ANACAP"
            assert 0 < u32(data, 348) <= u32(data, 344), "NANAGRPID <= ANAGRPMAX"


@pytest.mark.parametrize(("nsid", "lbads", "blocks"), [(1, 9, 4096), (2, 12, 1024)])
def test_namespace(admin: Queue, nsid: int, lbads: int, blocks: int) -> None:
    data = identified(admin, 0, nsid=nsid)
    size, capacity, used = struct.unpack_from("<QQQ", data)
    assert (size, capacity) == (blocks, blocks)
    assert used <= capacity
    current = (data[26] & 0xF) | (data[26] >> 5 & 3) << 4
    assert current <= data[25], "FLBAS names an existing format"
    metadata, lba_shift = struct.unpack_from("<HB", data, 128 + 4 * current)
    assert (metadata, lba_shift) == (0, lbads)
    assert data[30] & 1, "NMIC: shared"
    assert any(data[104:128]) or data[104:128] == bytes(24)
    assert u16(data, 74) > 0, "MSSRL, as Copy is supported"
    assert u32(data, 76) >= u16(data, 74), "MCL"


@pytest.mark.parametrize("cns", [0, 8])
@pytest.mark.parametrize("nsid", [0, 0xFFFFFFFE])
def test_invalid_namespace(admin: Queue, cns: int, nsid: int) -> None:
    assert admin.identify(cns, nsid=nsid).status == nvme.INVALID_NAMESPACE


def test_inactive_namespace_is_zeroes(admin: Queue) -> None:
    """A valid NSID without a namespace: a structure of zeroes (Base 5.1.13.2.1)."""
    assert not any(identified(admin, 0, nsid=3))


def test_beyond_nn(admin: Queue) -> None:
    nn = u32(identified(admin, 1), 516)
    assert admin.identify(0, nsid=nn + 1).status == nvme.INVALID_NAMESPACE


def test_broadcast_namespace(admin: Queue) -> None:
    """Without Namespace Management the broadcast NSID is invalid here (Base 5.1.13.2.1)."""
    oacs = u16(identified(admin, 1), 256)
    if oacs >> 3 & 1:
        pytest.skip("Namespace Management is supported: FFFFFFFFh returns common capabilities")
    assert admin.identify(0, nsid=BROADCAST).status == nvme.INVALID_NAMESPACE


def test_active_list(admin: Queue) -> None:
    assert nsids(identified(admin, 2)) == [1, 2]
    assert nsids(identified(admin, 2, nsid=1)) == [2], "only those greater than the NSID given"
    assert nsids(identified(admin, 2, nsid=2)) == []


@pytest.mark.parametrize("nsid", [0xFFFFFFFE, 0xFFFFFFFF])
def test_active_list_from_an_invalid_nsid(admin: Queue, nsid: int) -> None:
    assert admin.identify(2, nsid=nsid).status == nvme.INVALID_NAMESPACE


def test_active_list_with_gaps(make_tree: MakeTree) -> None:
    tree = make_tree()
    for nsid in (7, 1, 32):
        tree.add(Ns(), nsid)
    assert nsids(identified(tree.started().admin, 2)) == [1, 7, 32]


def descriptors(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while data[at + 1]:
        kind, length = data[at], data[at + 1]
        assert kind not in found, f"descriptor {kind} twice"
        found[kind] = data[at + 4 : at + 4 + length]
        at += 4 + length
    assert not any(data[at:])
    return found


def test_namespace_descriptors(make_tree: MakeTree) -> None:
    name = uuid.UUID("12345678-9abc-4def-8123-456789abcdef")
    nguid, eui64 = "0123456789ABCDEF0123456789ABCDEF", "0011223344556677"
    tree = make_tree(Ns(params={"uuid": str(name), "nguid": nguid, "eui64": eui64}))
    admin = tree.started().admin
    found = descriptors(identified(admin, 3, nsid=1))
    assert found == {1: bytes.fromhex(eui64), 2: bytes.fromhex(nguid), 3: name.bytes, 4: b"\0"}
    data = identified(admin, 0, nsid=1)
    assert (data[104:120], data[120:128]) == (bytes.fromhex(nguid), bytes.fromhex(eui64))


def test_every_namespace_has_a_unique_identifier(admin: Queue) -> None:
    found = [descriptors(identified(admin, 3, nsid=nsid)) for nsid in (1, 2)]
    assert all(any(entry.get(3, b"")) for entry in found), "a UUID"
    assert found[0][3] != found[1][3]


@pytest.mark.parametrize("nsid", [0, 3, 0xFFFFFFFE, 0xFFFFFFFF])
def test_descriptors_of_no_namespace(admin: Queue, nsid: int) -> None:
    """Base 5.1.13.2.3 refers to 3.2.1.5: an inactive NSID is Invalid Field, an invalid one Invalid Namespace."""
    assert admin.identify(3, nsid=nsid).status == (nvme.INVALID_FIELD if nsid == 3 else nvme.INVALID_NAMESPACE)


def test_independent_of_the_command_set(admin: Queue) -> None:
    data = identified(admin, 8, nsid=1)
    assert data[1] & 1, "NMIC: shared"
    assert data[14] & 1, "NSTAT: ready"


def test_command_set_specific(admin: Queue) -> None:
    identified(admin, 5, nsid=1, csi=0)
    data = identified(admin, 6, csi=0)
    assert data[0] == 0 or data[0] <= 20, "VSL"
    assert u64_bit(identified(admin, 0x1C, cntid=0xFFFF), 0), "I/O command set vector 0 has NVM"


def u64_bit(data: bytes, bit: int) -> bool:
    return bool(struct.unpack_from("<Q", data)[0] >> bit & 1)


@pytest.mark.parametrize("cns", [5, 6])
@pytest.mark.parametrize("csi", [1, 2, 0x80, 0xFF])
def test_unsupported_command_set(admin: Queue, cns: int, csi: int) -> None:
    """Neither Key Value nor Zoned nor vendor specific: Invalid Field in Command (Base 5.1.13)."""
    assert admin.identify(cns, nsid=1, csi=csi).status == nvme.INVALID_FIELD


@pytest.mark.parametrize("cns", [0x04, 0x0F, 0x1D, 0x50, 0xC0, 0xFF])
def test_unsupported_cns(admin: Queue, cns: int) -> None:
    done = admin.identify(cns, nsid=1)
    if cns == 0x04 and done.status == nvme.OK:
        return  # NVM Set List: allowed, though nobody needs it
    assert done.status == nvme.INVALID_FIELD


def test_controller_list(tree: Tree) -> None:
    hosts = sorted((tree.started() for _ in range(3)), key=lambda host: host.cntlid)
    data = identified(hosts[0].admin, 0x13)
    entries = struct.unpack_from(f"<{1 + u16(data, 0)}H", data)[1:]
    assert list(entries) == sorted(entries)
    assert {host.cntlid for host in hosts} <= set(entries)
    later = identified(hosts[0].admin, 0x13, cntid=hosts[1].cntlid)
    assert hosts[0].cntlid not in struct.unpack_from(f"<{1 + u16(later, 0)}H", later)[1:]


@pytest.mark.parametrize("length", [0, 512, 4092, 8192])
def test_data_length(admin: Queue, length: int) -> None:
    """Identify transfers 4096 bytes; an SGL of another length is wrong, and SGLS bit 18 does not allow a longer one."""
    done = admin.identify(1, expect=length)
    assert done.status == nvme.DATA_SGL_LENGTH or (length > 4096 and done.status == nvme.OK and len(done.data) == 4096)


@pytest.mark.parametrize("opcode", [0x03, 0x07, 0x0B, 0x1D, 0x7E, 0x80, 0xC0, 0xFF])
def test_unknown_admin_opcode(admin: Queue, opcode: int) -> None:
    assert admin.command(opcode).status == nvme.INVALID_OPCODE


@pytest.mark.parametrize("opcode", [0x00, 0x01, 0x04, 0x05])
def test_queue_commands_are_not_for_fabrics(admin: Queue, opcode: int) -> None:
    """Create/Delete I/O SQ/CQ do not exist with Fabrics (Base 3.1.3.4)."""
    assert admin.command(opcode).status == nvme.INVALID_OPCODE


def test_fused_admin_command(admin: Queue) -> None:
    """No fused admin commands exist: Invalid Field in Command."""
    assert admin.command(nvme.IDENTIFY, cdw=(1,), expect=4096, fuse=1).status == nvme.INVALID_FIELD
