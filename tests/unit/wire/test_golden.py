"""Bytes written by hand from the specifications' figures, and what the classes make of them."""

from __future__ import annotations

import pytest

from nvmet_p2p.wire.cqe import Cqe
from nvmet_p2p.wire.discovery import DiscoveryEntry, DiscoveryLog, RdmaTsas, TcpTsas
from nvmet_p2p.wire.fabrics import (
    AuthSend,
    ConnectCommand,
    ConnectData,
    ConnectInvalid,
    ConnectSuccess,
    PropertyGet,
    PropertySet,
)
from nvmet_p2p.wire.identify import IdentifyController, NamespaceList, NsIdDescriptorList
from nvmet_p2p.wire.logpages import AnaGroup, AnaLog, ErrorInformationEntry
from nvmet_p2p.wire.nvm import CopyDescriptor2, DsmRange, parse_copy_descriptors
from nvmet_p2p.wire.rdma_cm import CmReject, CmRequest
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import AdminOpcode, AuthRequirement, ConnectAttribute, DigestFlag, PduFlag, Status
from nvmet_p2p.wire.sqe import Sqe
from nvmet_p2p.wire.tcp_pdu import R2T, C2HData, CapsuleResp, IcReq, IcResp, TermReq

NQN = "nqn.2014-08.org.nvmexpress.discovery"


def h(text: str) -> bytes:
    """Hexadecimal with blanks; ``00*n`` stands for n zeros."""
    out = b""
    for word in text.split():
        octets, _, count = word.partition("*")
        out += bytes.fromhex(octets) * int(count or 1)
    return out


CONNECT = ConnectCommand(
    cid=0x1234,
    dptr=SglDescriptor.in_capsule(1024).build(),
    qid=1,
    sqsize=127,
    cattr=ConnectAttribute.DISABLE_SQ_FLOW_CONTROL,
    kato=15000,
)

GOLDEN = [
    (
        IcReq(hpda=1, dgst=DigestFlag.HDGST | DigestFlag.DDGST, maxr2t=3),
        "00 00 80 00 80000000 0000 01 03 03000000 00*112",
    ),
    (IcResp(cpda=2, dgst=DigestFlag.DDGST, maxh2cdata=0x20000), "01 00 80 00 80000000 0000 02 02 00000200 00*112"),
    (TermReq(fes=1, fei=0x01020304, data=b"\xaa\xbb"), "03 00 18 00 1a000000 0100 04030201 00*10 aabb"),
    (TermReq(fes=2, pdu_type=2), "02 00 18 00 18000000 0200 00000000 00*10"),
    (CapsuleResp(cqe=bytes(range(16))), "05 00 18 00 18000000 000102030405060708090a0b0c0d0e0f"),
    (
        C2HData(flags=PduFlag.LAST_PDU | PduFlag.SUCCESS, pdo=24, plen=24 + 512, cccid=7, datao=0x1000, datal=512),
        "07 0c 18 18 18020000 0700 0000 00100000 00020000 00*4",
    ),
    (R2T(cccid=7, ttag=9, r2to=0x2000, r2tl=0x1000), "09 00 18 00 18000000 0700 0900 00200000 00100000 00*4"),
    (CONNECT, "7f 40 3412 01 00*19 0000000000000000 00040000 000000 01 0000 0100 7f00 04 00 983a0000 00*12"),
    (PropertyGet(cid=2, attrib=1, ofst=0), "7f 40 0200 04 00*35 01 00*3 00000000 00*16"),
    (PropertySet(cid=3, ofst=0x14, value=0x460001), "7f 40 0300 00 00*35 00 00*3 14000000 0100460000000000 00*8"),
    (AuthSend(cid=4, tl=0x50), "7f 40 0400 05 00*35 00 01 01 e9 50000000 00*16"),
    (ConnectSuccess(cntlid=5, authreq=AuthRequirement.ATR), "0500 0200"),
    (ConnectInvalid(ipo=256, iattr=1), "0001 01 00"),
    (CmRequest(qid=1, hrqsize=128, hsqsize=127, cntlid=3), "0000 0100 8000 7f00 0300 00*22"),
    (CmReject(sts=6), "0000 0600"),
    (SglDescriptor.in_capsule(4096, 64), "4000000000000000 00100000 000000 01"),
    (SglDescriptor.transport(0x20000), "0000000000000000 00000200 000000 5a"),
    (SglDescriptor.keyed(0x1122334455667788, 0x012345, 0xA1B2C3D4), "8877665544332211 452301 d4c3b2a1 40"),
    (SglDescriptor.keyed(0, 16, 1, invalidate=True), "0000000000000000 100000 01000000 4f"),
    (Cqe(dw0=1, dw1=2, sqhd=3, sqid=4, cid=5, status=0x182, dnr=True), "01000000 02000000 0300 0400 0500 0483"),
    (DsmRange(attributes=0x400, nlb=8, slba=0x100), "00040000 08000000 0001000000000000"),
    (
        CopyDescriptor2(snsid=2, slba=0x10, nlb=7, sopt=0x8000),
        "02000000 00*4 1000000000000000 0700 00 00 0000 0080 00*8",
    ),
    (
        AnaLog(chgcnt=1, groups=(AnaGroup(1, 0xF, 2, (3, 4)),)),
        "0100000000000000 0100 00*6 01000000 02000000 0200000000000000 0f 00*15 03000000 04000000",
    ),
]


@pytest.mark.parametrize(("value", "text"), GOLDEN, ids=lambda it: type(it).__name__ if not isinstance(it, str) else "")
def test_golden(value: Sqe, text: str) -> None:
    data = h(text)
    assert value.build() == data
    assert type(value).parse(data) == value


def test_connect_as_an_sqe() -> None:
    command = CONNECT.sqe()
    assert (command.opc, command.fctype, command.cid, command.is_fabrics) == (0x7F, 1, 0x1234, True)
    assert command.psdt == 1
    assert command.sgl == SglDescriptor.in_capsule(1024) == CONNECT.sgl
    assert ConnectCommand.of(command) == CONNECT
    assert ConnectSuccess(cntlid=5, authreq=AuthRequirement.ATR).dw0 == 1 << 17 | 5
    assert ConnectSuccess.of(1 << 18 | 9) == ConnectSuccess(cntlid=9, authreq=AuthRequirement.ASCR)


def test_connect_data() -> None:
    data = ConnectData(hostid=bytes(range(16)), subnqn=NQN, hostnqn="nqn.h").build()
    assert data[:18] == bytes(range(16)) + b"\xff\xff"
    assert data[18:256] == bytes(238)
    assert data[256:512] == NQN.encode().ljust(256, b"\0")
    assert data[512:] == b"nqn.h".ljust(512, b"\0")


def test_property_results_are_64_bits() -> None:
    assert Cqe(dw0=0x55667788, dw1=0x11223344).result64 == 0x1122334455667788


def test_identify_controller_by_hand() -> None:
    """Strings padded as the specification wants them, the OUI least significant byte first."""
    data = IdentifyController(
        sn="S1", mn="M", fr="1.0", ieee=0x5CD2E4, ver=0x020100, tnvmcap=1 << 64, subnqn="nqn.x"
    ).build()
    assert data[4:24] == b"S1".ljust(20)
    assert data[24:64] == b"M".ljust(40)
    assert data[64:72] == b"1.0     "
    assert data[73:76] == h("e4d25c")
    assert data[80:84] == h("00010200")
    assert data[280:296] == h("00*8 01 00*7")
    assert data[768:1024] == b"nqn.x".ljust(256, b"\0")


def test_namespace_identifiers() -> None:
    uuid = bytes(range(16))
    found = NsIdDescriptorList.of(uuid=uuid, nguid=b"g" * 16, eui64=b"e" * 8, csi=0)
    data = found.build()
    assert data[:53] == h("01080000") + b"e" * 8 + h("02100000") + b"g" * 16 + h("03100000") + uuid + h("04")
    assert data[53:57] == h("01000000")
    assert data[57:] == bytes(4096 - 57)
    assert found.get(3) == uuid
    assert NsIdDescriptorList().get(3) is None


def test_lists() -> None:
    assert NamespaceList((1, 0x01020304)).build() == h("01000000 04030201 00*4088")
    full = NamespaceList(tuple(range(1, 1025)))
    assert NamespaceList.parse(full.build()) == full


def test_discovery_log() -> None:
    tcp = DiscoveryEntry(adrfam=1, portid=1, cntlid=0xFFFF, asqsz=32, trsvcid="4420", subnqn=NQN, traddr="10.0.0.2")
    rdma = DiscoveryEntry(trtype=1, subtype=1, tsas=RdmaTsas().build())
    data = DiscoveryLog(genctr=7, entries=(tcp, rdma)).build()
    assert len(data) == 3072
    assert data[:24] == h("0700000000000000 0200000000000000 0000 00*6")
    assert data[1024:1036] == h("03 01 02 00 0100 ffff 2000 0000")
    assert data[1056:1088] == b"4420".ljust(32)
    assert data[1536:1792] == b"10.0.0.2".ljust(256)
    assert data[1792:2048] == TcpTsas().build() == bytes(256)
    assert data[2816:2826] == h("01 01 01 00*5 0000")


def test_error_entry_status() -> None:
    """The status field of the log has the CQE's layout, phase tag included."""
    entry = ErrorInformationEntry(status_field=ErrorInformationEntry.for_status(Status.INVALID_FIELD, dnr=True))
    assert entry.status_field == 0x8004
    assert entry.status == Status.INVALID_FIELD


def test_copy_descriptors_have_the_length_of_their_format() -> None:
    assert len(parse_copy_descriptors(0, bytes(64), 2)) == 2
    assert len(parse_copy_descriptors(1, bytes(80), 2)) == 2
    for desfmt, data in ((0, bytes(63)), (1, bytes(79)), (3, bytes(64)), (4, bytes(400))):
        with pytest.raises(ValueError):
            parse_copy_descriptors(desfmt, data, 2)


def test_status_numbers() -> None:
    named = [
        Status.INVALID_OPCODE,
        Status.TRANSIENT_TRANSPORT_ERROR,
        Status.CONNECT_INVALID_PARAM,
        Status.COMPARE_FAILURE,
        Status.ANA_INACCESSIBLE,
        AdminOpcode.KEEP_ALIVE,
    ]
    assert [int(status) for status in named] == [0x001, 0x022, 0x182, 0x285, 0x302, 0x18]
