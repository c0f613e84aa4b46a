"""The codec itself: declarations that cannot be, values that have no place, strings and NQN fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from nvmet_p2p.errors import InvariantError, NvmetP2PError
from nvmet_p2p.wire.codec import (
    Wire,
    WireError,
    array,
    ascii_text,
    bits,
    integers,
    layout,
    parse_many,
    raw,
    u8,
    u16,
    u24,
    u32,
    u128,
    utf8_text,
)
from nvmet_p2p.wire.fabrics import ConnectData, NqnError, NqnFault
from nvmet_p2p.wire.identify import ControllerList, LbaFormat, NamespaceList, NsIdDescriptor, NsIdDescriptorList
from nvmet_p2p.wire.logpages import AnaGroup, ChangedNamespaceList
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.tcp_pdu import TermReq, TermReqHeader


@layout(64)
@dataclass(frozen=True, slots=True)
class Sample(Wire):
    """One field of each kind."""

    low: int = bits(0, 1, 0, 4)
    high: int = bits(0, 1, 4, 4)
    three: int = u24(1)
    octets: bytes = raw(4, 4)
    name: str = ascii_text(8, 8)
    utf: str = utf8_text(16, 8)
    many: tuple[int, ...] = integers(24, 2, 4)
    wide: int = u128(32)
    formats: tuple[LbaFormat, ...] = array(48, LbaFormat, 2)


@pytest.mark.parametrize(
    "bad",
    [
        {"low": 16},
        {"high": -1},
        {"three": 1 << 24},
        {"octets": b"abc"},
        {"octets": b"abcde"},
        {"name": "longer than it"},
        {"name": "ü"},
        {"utf": "üüüüü"},
        {"many": (1, 2, 3, 4, 5)},
        {"many": (1 << 16,)},
        {"wide": 1 << 128},
        {"wide": -1},
        {"formats": (LbaFormat(),) * 3},
        {"formats": (LbaFormat(lbads=256),)},
    ],
    ids=str,
)
def test_a_value_without_a_place_is_refused(bad: dict[str, Any]) -> None:
    value = Sample(**bad)
    with pytest.raises(WireError):
        value.build()


def test_wire_error_is_a_value_error_and_ours() -> None:
    assert issubclass(WireError, ValueError)
    assert issubclass(WireError, NvmetP2PError)


def test_short_sequences_are_filled_up() -> None:
    value = Sample.parse(Sample(many=(7,), formats=(LbaFormat(lbads=9),)).build())
    assert value.many == (7, 0, 0, 0)
    assert value.formats == (LbaFormat(lbads=9), LbaFormat())


def test_strings_keep_what_is_not_padding() -> None:
    data = bytearray(Sample().build())
    data[8:16] = b"a \xff b\0 \0"
    data[16:24] = b" \xc3\x28\0x \0\0"
    value = Sample.parse(data)
    assert value.name == "a \udcff b"
    assert value.utf == " \udcc3(\0x "
    assert value.build()[16:24] == data[16:24]


def _declare(size: int, **fields: Any) -> None:
    namespace = {"__annotations__": dict.fromkeys(fields, "int"), "__slots__": (), **fields}
    namespace.pop("__slots__")
    layout(size)(dataclass(frozen=True, slots=True)(type("Bad", (Wire,), namespace)))


@pytest.mark.parametrize(
    "fields",
    [
        {"a": u16(0), "b": u8(1)},  # overlap
        {"a": u8(4), "b": u8(0)},  # not ascending
        {"a": u32(5)},  # beyond the end
        {"a": bits(0, 1, 0, 4), "b": bits(0, 1, 3, 2)},  # bits overlap
        {"a": bits(0, 1, 4, 4), "b": bits(0, 1, 0, 4)},  # bits not ascending
        {"a": bits(0, 1, 0, 4), "b": bits(0, 2, 4, 4)},  # one word, two sizes
    ],
    ids=["overlap", "descending", "beyond", "bits overlap", "bits descending", "two sizes"],
)
def test_an_impossible_declaration_shows_at_import(fields: dict[str, Any]) -> None:
    with pytest.raises(InvariantError):
        _declare(8, **fields)


def test_a_possible_declaration_is_taken() -> None:
    _declare(8, a=u16(0), b=bits(2, 1, 0, 4), c=bits(2, 1, 4, 4))


def test_parse_many() -> None:
    data = LbaFormat(lbads=9).build() + LbaFormat(lbads=12).build() + b"x"
    assert [item.lbads for item in parse_many(LbaFormat, data)] == [9, 12]
    assert len(parse_many(LbaFormat, data, 1)) == 1
    with pytest.raises(WireError):
        parse_many(LbaFormat, data, 3)


GOOD = "nqn.2014-08.org.nvmexpress:uuid:00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize(
    ("octets", "fault"),
    [
        (b"", NqnFault.EMPTY),
        (b"\0garbage", NqnFault.EMPTY),
        (b"n" * 256, NqnFault.UNTERMINATED),
        (b"n" * 255, NqnFault.TOO_LONG),
        (b"n" * 224, NqnFault.TOO_LONG),
        (b"nqn.\xff", NqnFault.NOT_UTF8),
        (b"nqn.\xed\xa0\x80", NqnFault.NOT_UTF8),  # a surrogate half
    ],
)
def test_an_unusable_nqn_is_told_apart(octets: bytes, fault: NqnFault) -> None:
    data = ConnectData.parse(ConnectData(subnqn_raw=octets, hostnqn=GOOD).build())
    assert data.hostnqn == GOOD
    with pytest.raises(NqnError, match="SUBNQN") as caught:
        data.subnqn
    assert (caught.value.fault, caught.value.offset) == (fault, 256)
    data = ConnectData(subnqn=GOOD, hostnqn_raw=octets)
    assert data.subnqn == GOOD
    with pytest.raises(NqnError, match="HOSTNQN") as caught:
        data.hostnqn
    assert (caught.value.fault, caught.value.offset) == (fault, 512)


def test_usable_nqns() -> None:
    longest = "n" * 223
    assert ConnectData(subnqn=longest).subnqn == longest
    assert ConnectData(subnqn="nqn.2020-01.de.müller").subnqn == "nqn.2020-01.de.müller"
    assert ConnectData(subnqn_raw=b"nqn.x\0garbage").subnqn == "nqn.x"


def test_connect_data_can_be_changed() -> None:
    data = ConnectData(hostid=b"h" * 16, subnqn=GOOD, hostnqn=GOOD)
    other = replace(data, cntlid=7)
    assert (other.cntlid, other.subnqn, other.hostnqn, other.hostid) == (7, GOOD, GOOD, b"h" * 16)
    assert replace(data, subnqn="nqn.y").subnqn == "nqn.y"  # type: ignore[call-arg]  # of __init__, not a field


def test_connect_data_that_does_not_fit() -> None:
    with pytest.raises(WireError):
        ConnectData(subnqn="n" * 257)
    with pytest.raises(WireError):
        ConnectData(hostnqn="\ud800")
    with pytest.raises(WireError):
        ConnectData(hostid=b"short").build()


@pytest.mark.parametrize(
    "value",
    [
        SglDescriptor(0, 1, 0, 1 << 32),
        SglDescriptor(0, 1, 0, 4, key=1),
        SglDescriptor(4, 0, 0, 1 << 24),
        SglDescriptor(4, 0, 0, 4, key=1 << 32),
        SglDescriptor(16, 0),
        SglDescriptor(0, 16),
        SglDescriptor(0, 0, 1 << 64),
        SglDescriptor(0, 0, -1),
        TermReq(fes=1, data=bytes(129)),
        NamespaceList((0,)),
        NamespaceList((1,) * 1025),
        ControllerList((1,) * 2048),
        ControllerList((0x10000,)),
        NsIdDescriptorList((NsIdDescriptor(0, b"x"),)),
        NsIdDescriptorList((NsIdDescriptor(1, bytes(256)),)),
        NsIdDescriptorList((NsIdDescriptor(1, bytes(255)),) * 16),
        AnaGroup(1, 1, 0, (1 << 32,)),
        AnaGroup(1, 16),
    ],
    ids=repr,
)
def test_variable_structures_refuse_what_does_not_fit(value: SglDescriptor) -> None:
    with pytest.raises(WireError):
        value.build()


def test_a_term_req_of_impossible_length_is_refused() -> None:
    for plen in (0, 23, 153, 0xFFFFFFFF):
        with pytest.raises(WireError):
            TermReq.parse(TermReqHeader(plen=plen).build() + bytes(200))
    with pytest.raises(WireError):
        TermReq.parse(TermReqHeader(plen=30).build() + bytes(5))


def test_a_namespace_identifier_beyond_the_end_is_refused() -> None:
    data = (b"\x01\xff\0\0" + bytes(255)) * 15 + b"\x01\xff\0\0"
    with pytest.raises(WireError):
        NsIdDescriptorList.parse(data.ljust(4096, b"\0"))


def test_too_many_changed_namespaces() -> None:
    page = ChangedNamespaceList.parse(ChangedNamespaceList.overflow().build())
    assert page.nsids == (0xFFFFFFFF,)
