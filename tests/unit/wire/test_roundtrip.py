"""Every structure: what is built reads back equal, any bytes read, and bytes that were read are stable."""

from __future__ import annotations

import dataclasses
from random import Random
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvmet_p2p.wire.codec import Wire, WireError
from nvmet_p2p.wire.discovery import DiscoveryEntry, DiscoveryHeader, DiscoveryLog
from nvmet_p2p.wire.identify import ControllerList, NamespaceList, NsIdDescriptor, NsIdDescriptorList
from nvmet_p2p.wire.logpages import AnaGroup, AnaGroupHeader, AnaLog, AnaLogHeader, ChangedNamespaceList
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import SglType
from nvmet_p2p.wire.tcp_pdu import TermReq
from tests.support.wire_values import structures, values

ALL = structures()
each_structure = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
LARGE = 2048  # bytes; hypothesis needs long for more


def any_bytes(size: int) -> st.SearchStrategy[bytes]:
    """``size`` bytes from a seed (hypothesis has no room for thousands of its own), or all of one value."""
    from_seed = st.integers(0, 1 << 32).map(lambda seed: Random(seed).randbytes(size))
    return from_seed | st.integers(0, 255).map(lambda octet: bytes([octet]) * size)


class Structure(Protocol):
    """What the hand-made structures share with ``Wire``."""

    def build(self) -> bytes: ...


def test_every_module_has_structures() -> None:
    assert len(ALL) > 60


@each_structure
def test_what_is_built_reads_back_equal(cls: type[Wire]) -> None:
    @settings(max_examples=15 if cls.SIZE >= LARGE else 60)
    @given(values(cls))
    def check(value: Wire) -> None:
        data = value.build()
        assert len(data) == cls.SIZE
        assert cls.parse(data) == value
        assert cls.parse(bytearray(data) + b"more") == value
        assert cls.parse(memoryview(data)) == value

    check()


@each_structure
def test_any_bytes_read_and_are_stable(cls: type[Wire]) -> None:
    """Reserved bits go at the first reading; from then on nothing changes."""

    @settings(max_examples=10 if cls.SIZE >= LARGE else 60)
    @given(any_bytes(cls.SIZE))
    def check(data: bytes) -> None:
        value = cls.parse(data)
        again = value.build()
        assert cls.parse(again) == value
        assert cls.parse(again).build() == again

    check()


@each_structure
def test_a_short_buffer_is_refused(cls: type[Wire]) -> None:
    for length in (0, 1, cls.SIZE - 1):
        with pytest.raises(WireError, match=cls.__name__):
            cls.parse(bytes(length))


@each_structure
def test_struct_and_construct_agree(cls: type[Wire]) -> None:
    """Hot structures go through the struct module; construct must say the same."""

    @settings(max_examples=10)
    @given(values(cls))
    def check(value: Wire) -> None:
        data = cls.codec().build_construct(value)
        assert value.build() == data
        assert cls.codec().parse_construct(data) == value

    check()


@each_structure
def test_values_are_frozen_and_have_no_dict(cls: type[Wire]) -> None:
    value = cls()
    name = dataclasses.fields(cls)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, 0)
    assert not hasattr(value, "__dict__")


u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, (1 << 64) - 1)
nsid = st.integers(1, 0xFFFFFFFF)
sgl_plain = st.builds(
    SglDescriptor,
    st.sampled_from([n for n in range(16) if n != SglType.KEYED_DATA_BLOCK]),
    st.integers(0, 15),
    u64,
    u32,
)
sgl_keyed = st.builds(
    SglDescriptor, st.just(int(SglType.KEYED_DATA_BLOCK)), st.integers(0, 15), u64, st.integers(0, 0xFFFFFF), u32
)
term_req = st.builds(TermReq, u16, u32, st.binary(max_size=128), u8)
ana_group = st.builds(AnaGroup, u32, st.integers(0, 15), u64, st.lists(u32, max_size=6).map(tuple))
discovery_log = st.builds(DiscoveryLog, u64, st.lists(values(DiscoveryEntry), max_size=3).map(tuple), u16)
namespaces = st.lists(nsid, max_size=20).map(tuple)
identifier = st.builds(NsIdDescriptor, st.integers(1, 255), st.binary(max_size=255))

VARIABLE: list[tuple[Any, st.SearchStrategy[Structure]]] = [
    (SglDescriptor, sgl_plain | sgl_keyed),
    (TermReq, term_req),
    (AnaLog, st.builds(AnaLog, u64, st.lists(ana_group, max_size=5).map(tuple))),
    (DiscoveryLog, discovery_log),
    (NamespaceList, st.builds(NamespaceList, namespaces)),
    (ChangedNamespaceList, st.builds(ChangedNamespaceList, namespaces)),
    (ControllerList, st.builds(ControllerList, st.lists(u16, max_size=20).map(tuple))),
    (NsIdDescriptorList, st.builds(NsIdDescriptorList, st.lists(identifier, max_size=15).map(tuple))),
]
each_variable = pytest.mark.parametrize(("cls", "strategy"), VARIABLE, ids=lambda it: getattr(it, "__name__", ""))


@each_variable
def test_variable_structures_read_back_equal(cls: Any, strategy: st.SearchStrategy[Structure]) -> None:
    @given(strategy)
    def check(value: Structure) -> None:
        assert cls.parse(value.build()) == value

    check()


@each_variable
def test_variable_structures_never_fail_but_with_wire_error(cls: Any, strategy: st.SearchStrategy[Structure]) -> None:
    """Cut, stretched and overwritten buffers: read, or WireError; what was read and can be built reads back equal."""
    spoilt = st.builds(_spoil, strategy.map(lambda value: value.build()), st.integers(0, 5000), st.integers(0, 60), u8)

    @given(spoilt | st.binary(max_size=200) | any_bytes(4096))
    def check(data: bytes) -> None:
        try:
            value = cls.parse(data)
        except WireError:
            return
        assert cls.parse(value.build()) == value

    check()


def _spoil(data: bytes, cut: int, place: int, octet: int) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[place % len(changed)] = octet
    return bytes(changed[:cut]) if cut % 3 == 0 else bytes(changed)


def test_huge_counts_are_refused_before_they_cost_memory() -> None:
    with pytest.raises(WireError):
        DiscoveryLog.parse(DiscoveryHeader(numrec=(1 << 64) - 1).build())
    with pytest.raises(WireError):
        AnaLog.parse(AnaLogHeader(ngrps=1).build() + AnaGroupHeader(nnv=0xFFFFFFFF).build())
    with pytest.raises(WireError):
        AnaLog.parse(AnaLogHeader(ngrps=0xFFFF).build())
    with pytest.raises(WireError):
        ControllerList.parse(b"\x00\x08" + bytes(4094))
