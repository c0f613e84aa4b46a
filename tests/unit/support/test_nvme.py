"""The conformance tests' own byte layouts against values written out by hand from the specifications."""

from __future__ import annotations

import struct

from tests.support import nvme
from tests.support.conn import Params, RawConn


def test_crc32c_of_the_check_string() -> None:
    assert nvme.crc32c(b"123456789") == 0xE3069283  # RFC 3720 B.4 / the CRC's check value


def test_crc32c_of_zeroes() -> None:
    assert nvme.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720 B.4: 32 bytes of zeroes


def test_icreq() -> None:
    pdu = nvme.icreq(hpda=3, dgst=3, maxr2t=7)
    assert pdu.hex() == "00008000" + "80000000" + "0000" + "03" + "03" + "07000000" + "00" * 112


def test_connect_sqe() -> None:
    sqe = nvme.connect_sqe(cid=0x1234, qid=1, sqsize=127, cattr=4, kato=10_000)
    assert len(sqe) == 64
    assert sqe[:5].hex() == "7f40341201"
    assert sqe[24:40].hex() == "00" * 8 + "00040000" + "000000" + "01"
    assert sqe[40:52].hex() == "0000" + "0100" + "7f00" + "04" + "00" + "10270000"


def test_connect_data() -> None:
    data = nvme.connect_data("nqn.s", "nqn.h", bytes([0xAA]) * 16, 0x1122)
    assert len(data) == 1024
    assert data[:18].hex() == "aa" * 16 + "2211"
    assert data[256:262] == b"nqn.s\0"
    assert data[512:518] == b"nqn.h\0"
    assert not any(data[18:256])
    assert not any(data[768:])


def test_property_sqes() -> None:
    get = nvme.property_get_sqe(*nvme.CAP)
    put = nvme.property_set_sqe(*nvme.CC, 0x460001)
    assert (len(get), len(put)) == (64, 64)
    assert (get[0], get[4], get[40]) == (0x7F, 4, 1)
    assert get[44:48].hex() == "00000000"
    assert (put[0], put[4], put[40]) == (0x7F, 0, 0)
    assert put[44:56].hex() == "14000000" + "0100460000000000"


def test_sqe() -> None:
    raw = nvme.sqe(nvme.READ, cid=5, nsid=1, fuse=2, cdw=(1, 2, 3), dptr=nvme.sgl(nvme.SGL_TRANSPORT, 512))
    assert len(raw) == 64
    assert raw[:8].hex() == "02420500" + "01000000"
    assert raw[24:40].hex() == "00" * 8 + "00020000" + "000000" + "5a"
    assert raw[40:64] == struct.pack("<6I", 1, 2, 3, 0, 0, 0)


def test_cqe() -> None:
    cqe = nvme.Cqe.parse(struct.pack("<IIHHHH", 0x10100, 0, 7, 1, 9, 0x8000 | 1 << 9 | 0x82 << 1))
    assert (cqe.status, cqe.dnr, cqe.more, cqe.crd, cqe.phase) == (nvme.CONNECT_PARAM, True, False, 0, 0)
    assert (cqe.sqhd, cqe.sqid, cqe.cid) == (7, 1, 9)


def bare_conn(**params: object) -> RawConn:
    conn = RawConn.__new__(RawConn)
    conn.params = Params(**params)  # type: ignore[arg-type]
    return conn


def test_capsule_without_data() -> None:
    pdu = bare_conn().capsule(bytes(64))
    assert pdu.hex() == "04004800" + "48000000" + "00" * 64


def test_capsule_with_digests_and_padding() -> None:
    pdu = bare_conn(hdgst=True, ddgst=True, cpda=16).capsule(bytes(64), b"abcd")
    assert pdu[:8].hex() == "04034850" + f"{80 + 4 + 4:02x}000000"
    assert struct.unpack_from("<I", pdu, 72)[0] == nvme.crc32c(pdu[:72])
    assert not any(pdu[76:80])
    assert pdu[80:84] == b"abcd"
    assert struct.unpack_from("<I", pdu, 84)[0] == nvme.crc32c(b"abcd")
    assert len(pdu) == 88


def test_h2c_data() -> None:
    pdu = bare_conn().h2c_data(3, 4, 512, b"xy")
    assert pdu.hex() == "06041818" + "1a000000" + "0300" + "0400" + "00020000" + "02000000" + "00000000" + b"xy".hex()
