"""Every fixed-size wire structure, and values for it made from its own declaration."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

import nvmet_p2p.wire
from nvmet_p2p.wire.codec import FieldSpec, Wire


def structures() -> list[type[Wire]]:
    """Every class that ``layout`` has tied to bytes, in a fixed order."""
    for module in pkgutil.iter_modules(nvmet_p2p.wire.__path__):
        importlib.import_module(f"nvmet_p2p.wire.{module.name}")
    found = {cls for cls in _subclasses(Wire) if "_codec" in vars(cls)}
    return sorted(found, key=lambda cls: (cls.__module__, cls.__name__))


def _subclasses(cls: type[Wire]) -> Iterator[type[Wire]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def declared(cls: type[Wire]) -> list[tuple[str, FieldSpec]]:
    """The fields of a structure and where they lie."""
    return [(item.name, item.metadata["wire"]) for item in dataclasses.fields(cls)]  # type: ignore[arg-type]


def _default(cls: type[Wire], name: str) -> Any:
    return next(item.default for item in dataclasses.fields(cls) if item.name == name)  # type: ignore[arg-type]


def values(cls: type[Wire]) -> st.SearchStrategy[Any]:
    """Any value of a structure. Strings have no trailing padding, which no padded field can keep apart."""
    return st.builds(cls, **{name: _field_values(cls, name, spec) for name, spec in declared(cls)})


def _field_values(cls: type[Wire], name: str, spec: FieldSpec) -> st.SearchStrategy[Any]:
    default = _default(cls, name)
    if spec.nested is not None:
        one = values(spec.nested)
        return st.tuples(*[one] * spec.count) if spec.count <= 8 else st.lists(one, max_size=3).map(_fill(spec))
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(0, (1 << (spec.width or 8 * spec.size)) - 1)
    if isinstance(default, bytes):
        return st.binary(min_size=spec.size, max_size=spec.size)
    if isinstance(default, str):
        characters = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
        return st.text(characters, max_size=spec.size)
    width = 8 * spec.size // spec.count
    few = st.lists(st.integers(0, (1 << width) - 1), max_size=spec.count if spec.count <= 8 else 5)
    return few.map(lambda given: (*given, *[0] * (spec.count - len(given))))


def _fill(spec: FieldSpec) -> Any:
    assert spec.nested is not None
    empty = spec.nested()
    return lambda given: (*given, *[empty] * (spec.count - len(given)))


def full(cls: type[Wire], name: str) -> Any:
    """The value of one field that sets every bit of it (strings: a character that is not padding)."""
    spec = dict(declared(cls))[name]
    default = _default(cls, name)
    if spec.nested is not None:
        return tuple(_all_full(spec.nested) for _ in range(spec.count))
    if isinstance(default, bool):
        return True
    if isinstance(default, int):
        return (1 << (spec.width or 8 * spec.size)) - 1
    if isinstance(default, bytes):
        return b"\xff" * spec.size
    if isinstance(default, str):
        return "x" * spec.size
    return ((1 << (8 * spec.size // spec.count)) - 1,) * spec.count


def _all_full(cls: type[Wire]) -> Wire:
    return cls(**{name: full(cls, name) for name, _ in declared(cls)})


def empty(cls: type[Wire]) -> Wire:
    """The value with every integer zero, whatever the defaults are."""
    zero: dict[str, Any] = {}
    for name, _ in declared(cls):
        default = _default(cls, name)
        if isinstance(default, bool):
            zero[name] = False
        elif isinstance(default, int):
            zero[name] = 0
    return cls(**zero)


def pattern(cls: type[Wire], **given: Any) -> Any:
    """A value whose every field differs from its neighbours and is not zero; ``given`` fields are as given."""
    made: dict[str, Any] = {}
    for number, (name, spec) in enumerate(declared(cls)):
        default = _default(cls, name)
        octets = bytes((37 * number + 11 * place) % 251 + 1 for place in range(spec.size))
        if name in given or spec.nested is not None:
            continue
        if isinstance(default, bool):
            made[name] = True
        elif isinstance(default, int):
            made[name] = int.from_bytes(octets, "little") & ((1 << (spec.width or 8 * spec.size)) - 1) or 1
        elif isinstance(default, bytes):
            made[name] = octets
        elif isinstance(default, str):
            made[name] = "".join(chr(0x41 + octet % 26) for octet in octets)[: spec.size - 1]
        else:
            made[name] = tuple(number + index for index in range(spec.count))
    return cls(**made, **given)
