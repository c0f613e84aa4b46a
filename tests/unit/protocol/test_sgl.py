"""The transfer plan: every way a data pointer can be right or wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmet_p2p.errors import NvmeStatusError
from nvmet_p2p.protocol.sgl import NO_DATA, Direction, LengthRule, Plan, PlanKind, plan
from nvmet_p2p.wire.sgl import SglDescriptor
from nvmet_p2p.wire.spec import SglSubtype, SglType, Status
from tests.unit.protocol.pair import sqe

H2C, C2H, NONE = Direction.H2C, Direction.C2H, Direction.NONE
ICD_MAX = 8192
PSDT, ADDRESS, LENGTH, TYPE = 1, 24, 32, 39


def in_capsule(length: int, offset: int = 0) -> SglDescriptor:
    return SglDescriptor.in_capsule(length, offset)


@pytest.mark.parametrize(
    ("sgl", "direction", "expected", "icd", "wanted"),
    [
        (SglDescriptor.transport(4096), C2H, 4096, 0, Plan(PlanKind.TRANSPORT, 0, 4096)),
        (SglDescriptor.transport(4096), H2C, 4096, 0, Plan(PlanKind.TRANSPORT, 0, 4096)),
        (in_capsule(1024), H2C, 1024, 1024, Plan(PlanKind.IN_CAPSULE, 0, 1024)),
        (in_capsule(8192), H2C, 8192, 8192, Plan(PlanKind.IN_CAPSULE, 0, 8192)),
        (in_capsule(512, 512), H2C, 512, 1024, Plan(PlanKind.IN_CAPSULE, 512, 512)),
        (SglDescriptor.transport(0), NONE, 0, 0, NO_DATA),
        (SglDescriptor(0, 0), NONE, 0, 0, NO_DATA),
        (SglDescriptor(SglType.KEYED_DATA_BLOCK, 0), NONE, 0, 0, NO_DATA),
        (SglDescriptor.transport(0), H2C, 0, 0, NO_DATA),
        # the address of a transport SGL means nothing
        (SglDescriptor(5, 0xA, 0xDEAD, 16), C2H, 16, 0, Plan(PlanKind.TRANSPORT, 0, 16)),
    ],
)
def test_sound(sgl: SglDescriptor, direction: Direction, expected: int, icd: int, wanted: Plan) -> None:
    assert plan(sqe(1, sgl=sgl), direction, expected, icd, ICD_MAX) == wanted


@pytest.mark.parametrize(
    ("sgl", "direction", "expected", "icd", "status", "location"),
    [
        # length
        (SglDescriptor.transport(4095), C2H, 4096, 0, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (SglDescriptor.transport(4097), C2H, 4096, 0, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (SglDescriptor.transport(0xFFFFFFFF), H2C, 4096, 0, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (SglDescriptor.transport(0), H2C, 512, 0, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (SglDescriptor.transport(1), NONE, 0, 0, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (SglDescriptor.transport(1), H2C, 0, 0, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (in_capsule(512), H2C, 512, 0, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (in_capsule(512), H2C, 512, 511, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (in_capsule(512), H2C, 512, 513, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (in_capsule(512), H2C, 1024, 512, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (in_capsule(512, 1), H2C, 512, 512, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        (in_capsule(0), H2C, 0, 16, Status.SGL_INVALID_DATA_LENGTH, LENGTH),
        # offset
        (in_capsule(512, 513), H2C, 512, 512, Status.SGL_INVALID_OFFSET, ADDRESS),
        (in_capsule(8193), H2C, 8193, 8192, Status.SGL_INVALID_OFFSET, ADDRESS),
        (in_capsule(1, 8192), H2C, 1, 8192, Status.SGL_INVALID_OFFSET, ADDRESS),
        (in_capsule(512, 0xFFFFFFFFFFFFFFFF), H2C, 512, 512, Status.SGL_INVALID_OFFSET, ADDRESS),
        # type
        (SglDescriptor(SglType.DATA_BLOCK, SglSubtype.ADDRESS, 0, 512), H2C, 512, 0, Status.SGL_INVALID_TYPE, TYPE),
        (SglDescriptor(SglType.BIT_BUCKET, 0, 0, 512), C2H, 512, 0, Status.SGL_INVALID_TYPE, TYPE),
        (SglDescriptor(SglType.SEGMENT, 1, 0, 16), H2C, 512, 16, Status.SGL_INVALID_TYPE, TYPE),
        (SglDescriptor.keyed(0, 512, 7), H2C, 512, 0, Status.SGL_INVALID_TYPE, TYPE),
        (SglDescriptor(SglType.TRANSPORT_DATA_BLOCK, 0, 0, 512), C2H, 512, 0, Status.SGL_INVALID_TYPE, TYPE),
        (SglDescriptor(SglType.VENDOR, 0xF, 0, 512), C2H, 512, 0, Status.SGL_INVALID_TYPE, TYPE),
        # data in the capsule that cannot be
        (in_capsule(512), C2H, 512, 512, Status.INVALID_FIELD, TYPE),
        (SglDescriptor.transport(512), H2C, 512, 512, Status.INVALID_FIELD, TYPE),
    ],
)
def test_unsound(
    sgl: SglDescriptor, direction: Direction, expected: int, icd: int, status: Status, location: int
) -> None:
    with pytest.raises(NvmeStatusError) as caught:
        plan(sqe(1, sgl=sgl), direction, expected, icd, ICD_MAX)
    assert (caught.value.status, caught.value.error_loc, caught.value.dnr) == (status, location, True)


@pytest.mark.parametrize("psdt", [0, 2, 3])
def test_psdt_must_be_01(psdt: int) -> None:
    with pytest.raises(NvmeStatusError) as caught:
        plan(sqe(1, psdt=psdt, sgl=SglDescriptor.transport(0)), NONE, 0, 0, ICD_MAX)
    assert (caught.value.status, caught.value.error_loc) == (Status.INVALID_FIELD, PSDT)


@pytest.mark.parametrize(
    ("sgl", "icd", "wanted"),
    [
        (SglDescriptor.transport(16), 0, Plan(PlanKind.TRANSPORT, 0, 16)),
        (SglDescriptor.transport(4096), 0, Plan(PlanKind.TRANSPORT, 0, 16)),
        (in_capsule(4096), 4096, Plan(PlanKind.IN_CAPSULE, 0, 16)),
    ],
)
def test_a_longer_buffer_where_that_is_allowed(sgl: SglDescriptor, icd: int, wanted: Plan) -> None:
    assert plan(sqe(1, sgl=sgl), H2C, 16, icd, ICD_MAX, LengthRule.AT_LEAST) == wanted


def test_a_shorter_buffer_never() -> None:
    with pytest.raises(NvmeStatusError) as caught:
        plan(sqe(1, sgl=SglDescriptor.transport(15)), H2C, 16, 0, ICD_MAX, LengthRule.AT_LEAST)
    assert caught.value.status == Status.SGL_INVALID_DATA_LENGTH


@given(
    st.binary(min_size=16, max_size=16),
    st.sampled_from(Direction),
    st.integers(0, 9000),
    st.integers(0, 8192),
    st.sampled_from(LengthRule),
)
def test_any_descriptor(dptr: bytes, direction: Direction, expected: int, icd: int, rule: LengthRule) -> None:
    """Whatever the descriptor says, a plan stays inside the capsule and never moves more than was expected."""
    command = sqe(1, sgl=SglDescriptor.parse(dptr))
    try:
        made = plan(command, direction, expected, icd, ICD_MAX, rule)
    except NvmeStatusError:
        return
    assert made.length == (expected if made.kind is not PlanKind.NONE else 0)
    assert made.kind is not PlanKind.IN_CAPSULE or made.offset + made.length <= icd
