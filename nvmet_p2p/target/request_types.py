"""What the parameters of admin requests are made of: SPDK's types, and the marks that a parameter can carry.

A request is a ``msgspec.Struct``; a field's description, range and marks are read by the validation, the OpenRPC
document and the reference page alike. The marks:

- ``only``: values that are accepted; SPDK has more. Another one is refused with -ENOTSUP and the reason, so that
  nothing that was asked for is dropped in silence.
- ``hint``: kept and shown again, without an effect in this target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from msgspec.inspect import Metadata, StructType, Type, type_info

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.target.validate import TARGET_NAME, invalid, unsupported

U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
U64 = Annotated[int, Meta(ge=0, le=2**63 - 1)]  # no size or time needs the last bit, and msgspec cannot bound it
I32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]

AnaStateName = Literal["optimized", "non_optimized", "inaccessible"]


def doc(text: str) -> Meta:
    """A field's description."""
    return Meta(description=text)


def hint(text: str) -> Meta:
    """A field that is kept and shown, without an effect here."""
    return Meta(description=f"{text} (kept and shown; it changes nothing in this target)", extra={"hint": True})


def only(values: tuple[Any, ...], text: str, reason: str) -> Meta:
    """A field of SPDK of which only ``values`` (and leaving it out) are accepted; ``reason`` says why."""
    return Meta(description=f"{text} ({reason})", extra={"only": values, "reason": reason})


def refused(text: str, reason: str) -> Meta:
    """A string of SPDK that may only be left out (or empty)."""
    return only(("",), text, reason)


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of one method."""


class TargetRequest(Request, frozen=True, kw_only=True):
    """Parameters of a method that may name the target; there is one, and this is its name."""

    tgt_name: Annotated[str, doc(f"Name of the target; there is one, {TARGET_NAME!r}")] = TARGET_NAME


class NoParams(Request, frozen=True, kw_only=True):
    """A method without parameters."""


def check_supported(request: msgspec.Struct, where: str = "params") -> None:
    """Raises -ENOTSUP for the first field whose value is not one that this target has."""
    for name, (values, reason, nested) in _marks(type(request)).items():
        value = getattr(request, name)
        if isinstance(value, UnsetType):
            continue
        if nested and isinstance(value, msgspec.Struct):
            check_supported(value, f"{where}.{name}")
        elif values is not None and value not in values:
            allowed = " or ".join(msgspec.json.encode(choice).decode() for choice in values if choice != "")
            accepted = f"only {allowed} is supported" if allowed else "this parameter is not supported"
            raise unsupported(f"{where}.{name}: {accepted}: {reason}")


def decode(kind: type[Request], params: Any) -> Request:
    """Checked parameters of a request. Raises -32602 with the name and what was expected, or -ENOTSUP."""
    try:
        request = msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise explain(error) from None
    check_supported(request)
    return request


def explain(error: msgspec.ValidationError) -> OperatorError:
    """``Expected `int`, got `str` - at `$.n` `` -> ``params.n: expected int, got str``."""
    message, _, path = str(error).partition(" - at `$")
    where = "params" + path.rstrip("`")
    text = message.replace("`", "")
    if text.startswith("Object missing required field "):
        return invalid(f"{where}.{text.rpartition(' ')[2]}: required, and missing")
    if text.startswith("Object contains unknown field "):
        return invalid(f"{where}: there is no parameter {text.rpartition(' ')[2]!r}")
    return invalid(f"{where}: {text[:1].lower()}{text[1:]}")


_Mark = tuple[tuple[Any, ...] | None, str, bool]
_MARKS: dict[type[msgspec.Struct], Mapping[str, _Mark]] = {}


def _marks(kind: type[msgspec.Struct]) -> Mapping[str, _Mark]:
    """The fields of ``kind`` that need a look: (accepted values or None, reason, is itself a struct)."""
    found = _MARKS.get(kind)
    if found is None:
        info = type_info(kind)
        assert isinstance(info, StructType)
        marks: dict[str, _Mark] = {}
        for field in info.fields:
            extra = field_extra(field.type)
            nested = _is_struct(field.type)
            if nested or "only" in extra:
                marks[field.name] = (extra.get("only"), extra.get("reason", ""), nested)
        found = _MARKS[kind] = marks
    return found


def field_extra(kind: Type) -> dict[str, Any]:
    """The marks of a field."""
    if isinstance(kind, Metadata):
        return (kind.extra or {}) | field_extra(kind.type)
    return {}


def _is_struct(kind: Type) -> bool:
    while isinstance(kind, Metadata):
        kind = kind.type
    return isinstance(kind, StructType)


__all__ = [
    "I32",
    "U8",
    "U16",
    "U32",
    "U64",
    "UNSET",
    "AnaStateName",
    "NoParams",
    "Request",
    "TargetRequest",
    "UnsetType",
    "check_supported",
    "decode",
    "doc",
    "explain",
    "field_extra",
    "hint",
    "only",
    "refused",
]
