"""Bytes to typed values and back, each structure declared once.

A structure is a frozen dataclass whose fields are declared by *where they are on the wire*::

    @layout(24)
    @dataclass(frozen=True, slots=True)
    class R2T(Wire):
        cccid: int = u16(8)
        ...

``layout`` turns the declaration into a ``construct.Struct`` (gaps become padding: reserved bytes are written as zero
and ignored when read), compiles it and ties it to the class. Fields must be declared in ascending order and may not
overlap; a mistake shows at import. All integers are little endian.

Compiled construct needs about three times as long as the ``struct`` module for a submission queue entry.
``layout(..., hot=True)`` derives a ``struct.Struct`` from the *same* declaration, for the few structures that are
handled once a command; a test holds the two to be equal.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, ClassVar, Final, Self, TypeVar

import construct

from nvmet_p2p.errors import InvariantError, NvmetP2PError

BytesLike = bytes | bytearray | memoryview

_METADATA_KEY: Final = "wire"
_SUBCON: Final = {
    1: construct.Int8ul,
    2: construct.Int16ul,
    3: construct.Int24ul,
    4: construct.Int32ul,
    6: construct.BytesInteger(6, swapped=True),
    8: construct.Int64ul,
    16: construct.BytesInteger(16, swapped=True),
}
_STRUCT_CODE: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


class WireError(NvmetP2PError, ValueError):
    """Bytes that cannot be the structure asked for, or a value that has no place in it."""


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """Where one field lies and how its value is made; ``width`` > 0 marks a bit field inside a word."""

    offset: int
    size: int
    subcon: Any
    code: str | None = None  # struct module's code, when there is one
    shift: int = 0
    width: int = 0
    decode: Callable[[Any], Any] | None = None
    encode: Callable[[Any], Any] | None = None
    nested: type[Wire] | None = None
    count: int = 0  # > 0: an array of ``nested`` or of integers


def _field(default: object, spec: FieldSpec) -> Any:
    return dataclasses.field(default=default, metadata={_METADATA_KEY: spec})


def _unsigned(offset: int, size: int, default: int) -> Any:
    limit = 1 << (8 * size)

    def check(value: int) -> int:
        if not 0 <= value < limit:
            raise WireError(f"{value} does not fit in {size} bytes")
        return value

    return _field(default, FieldSpec(offset, size, _SUBCON[size], _STRUCT_CODE.get(size), encode=check))


def u8(offset: int, default: int = 0) -> Any:
    """An unsigned integer of one byte."""
    return _unsigned(offset, 1, default)


def u16(offset: int, default: int = 0) -> Any:
    """An unsigned integer of two bytes."""
    return _unsigned(offset, 2, default)


def u24(offset: int, default: int = 0) -> Any:
    """An unsigned integer of three bytes."""
    return _unsigned(offset, 3, default)


def u32(offset: int, default: int = 0) -> Any:
    """An unsigned integer of four bytes."""
    return _unsigned(offset, 4, default)


def u48(offset: int, default: int = 0) -> Any:
    """An unsigned integer of six bytes."""
    return _unsigned(offset, 6, default)


def u64(offset: int, default: int = 0) -> Any:
    """An unsigned integer of eight bytes."""
    return _unsigned(offset, 8, default)


def u128(offset: int, default: int = 0) -> Any:
    """An unsigned integer of sixteen bytes."""
    return _unsigned(offset, 16, default)


def bits(offset: int, size: int, shift: int, width: int, default: int = 0) -> Any:
    """``width`` bits of the ``size``-byte word at ``offset``; ``bool`` fields are ``bits(..., 1)`` through ``flag``."""
    return _field(default, FieldSpec(offset, size, _SUBCON[size], _STRUCT_CODE.get(size), shift, width))


def flag(offset: int, size: int, shift: int, default: bool = False) -> Any:
    """One bit as a ``bool``."""
    spec = FieldSpec(offset, size, _SUBCON[size], _STRUCT_CODE.get(size), shift, 1, decode=bool)
    return _field(default, spec)


def raw(offset: int, size: int) -> Any:
    """Exactly ``size`` bytes, kept as they are; zeros when nothing is given."""

    def check(value: BytesLike) -> bytes:
        if len(value) != size:
            raise WireError(f"{len(value)} bytes given, the field has {size}")
        return bytes(value)

    return _field(bytes(size), FieldSpec(offset, size, construct.Bytes(size), f"{size}s", encode=check))


def text(offset: int, size: int, pad: bytes, encoding: str, also_strip: bytes = b"") -> Any:
    """A string, left-justified and padded with ``pad``.

    Reading never fails and loses nothing but padding: bytes that are not in the encoding become lone surrogates.
    ``also_strip`` names further padding that peers are known to use.
    """

    def decode(value: bytes) -> str:
        return bytes(value).rstrip(pad + also_strip).decode(encoding, "surrogateescape")

    def encode(value: str) -> bytes:
        try:
            data = value.encode(encoding, "surrogateescape")
        except UnicodeEncodeError as error:
            raise WireError(f"{value!r} is not {encoding}") from error
        if len(data) > size:
            raise WireError(f"{value!r} is longer than the field's {size} bytes")
        return data.ljust(size, pad)

    return _field("", FieldSpec(offset, size, construct.Bytes(size), f"{size}s", decode=decode, encode=encode))


def ascii_text(offset: int, size: int) -> Any:
    """An "ASCII string" of the specifications: padded with spaces (NVMe base, section 1.4). NUL padding is read too."""
    return text(offset, size, b" ", "ascii", b"\0")


def utf8_text(offset: int, size: int) -> Any:
    """A "UTF-8 string": padded with NULs."""
    return text(offset, size, b"\0", "utf-8")


def integers(offset: int, size: int, count: int) -> Any:
    """``count`` unsigned integers of ``size`` bytes each, as a tuple; a shorter sequence is filled up with zeros."""
    limit = 1 << (8 * size)

    def check(values: Sequence[int]) -> list[int]:
        if len(values) > count:
            raise WireError(f"{len(values)} values given, the array has {count}")
        if any(not 0 <= value < limit for value in values):
            raise WireError(f"a value does not fit in {size} bytes")
        return [*values, *[0] * (count - len(values))]

    subcon = construct.Array(count, _SUBCON[size])
    spec = FieldSpec(offset, size * count, subcon, decode=tuple, encode=check, count=count)
    return _field((0,) * count, spec)


def nested(offset: int, cls: type[Wire]) -> Any:
    """Another structure in place."""
    codec = cls.codec()
    spec = FieldSpec(
        offset, cls.SIZE, codec.members, decode=codec.from_container, encode=codec.to_container, nested=cls
    )
    return _field(cls(), spec)


def array(offset: int, cls: type[Wire], count: int) -> Any:
    """``count`` structures one after another, as a tuple; a shorter sequence is filled up with empty ones."""
    codec = cls.codec()
    empty = cls()

    def decode(containers: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(map(codec.from_container, containers))

    def encode(values: Sequence[Any]) -> list[Any]:
        if len(values) > count:
            raise WireError(f"{len(values)} values given, the array has {count}")
        return [*map(codec.to_container, values), *[codec.to_container(empty)] * (count - len(values))]

    subcon = construct.Array(count, codec.members)
    spec = FieldSpec(offset, cls.SIZE * count, subcon, decode=decode, encode=encode, nested=cls, count=count)
    return _field((empty,) * count, spec)


def _read_step(spec: FieldSpec) -> Callable[[Any], Any] | None:
    if not spec.width:
        return spec.decode
    shift, mask, decode = spec.shift, (1 << spec.width) - 1, spec.decode
    if decode is not None:
        return lambda word: decode(word >> shift & mask)
    return lambda word: word >> shift & mask


@dataclass(frozen=True, slots=True)
class _Member:
    """One member of the construct: a field, or a word that several bit fields share."""

    name: str
    spec: FieldSpec
    fields: tuple[tuple[str, FieldSpec], ...]

    def value(self, obj: object) -> Any:
        """What construct is to write for this member."""
        if not self.spec.width:
            value = getattr(obj, self.name)
            return self.spec.encode(value) if self.spec.encode else value
        word = 0
        for name, spec in self.fields:
            part = int(getattr(obj, name))
            if part >> spec.width:
                raise WireError(f"{name}: {part} does not fit in {spec.width} bits")
            word |= part << spec.shift
        return word


def _members(cls: type[Wire], size: int) -> list[_Member]:
    """The declaration as construct members, checked: ascending, no overlap, inside ``size``."""
    found: list[_Member] = []
    end = 0
    used_bits = 0
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]  # every Wire is one, mypy cannot know
        spec: FieldSpec = item.metadata[_METADATA_KEY]
        same_word = found and spec.width and found[-1].spec.width and found[-1].spec.offset == spec.offset
        if same_word:
            last = found.pop()
            if last.spec.size != spec.size or used_bits >> spec.shift:
                raise InvariantError(f"{cls.__name__}.{item.name}: bits overlap or are not in ascending order")
            found.append(_Member(last.name, last.spec, (*last.fields, (item.name, spec))))
        else:
            if spec.offset < end:
                raise InvariantError(f"{cls.__name__}.{item.name} at {spec.offset} lies before {end}")
            found.append(_Member(item.name, spec, ((item.name, spec),)))
            used_bits = 0
        used_bits |= ((1 << spec.width) - 1) << spec.shift
        end = spec.offset + spec.size
        if end > size:
            raise InvariantError(f"{cls.__name__}.{item.name} ends at {end}, beyond {size}")
    return found


class Codec:
    """Reads and writes one structure."""

    def __init__(self, cls: type[Wire], size: int, hot: bool) -> None:
        self.cls = cls
        self.size = size
        self._list = _members(cls, size)
        self.members = self._construct_struct()
        self.compiled = self.members.compile()
        self._names = [member.name for member in self._list]
        get = itemgetter(*self._names)
        self._get: Callable[[Any], Sequence[Any]] = get if len(self._names) > 1 else lambda c: (get(c),)
        steps = [(i, _read_step(spec)) for i, member in enumerate(self._list) for _, spec in member.fields]
        self._steps = steps if any(step for _, step in steps) else None
        self._fast = self._struct() if hot else None

    def _construct_struct(self) -> Any:
        subcons = []
        position = 0
        for member in self._list:
            if member.spec.offset > position:
                subcons.append(construct.Padding(member.spec.offset - position))
            subcons.append(member.name / member.spec.subcon)
            position = member.spec.offset + member.spec.size
        if position < self.size:
            subcons.append(construct.Padding(self.size - position))
        return construct.Struct(*subcons)

    def _struct(self) -> struct.Struct:
        codes = ["<"]
        position = 0
        for member in self._list:
            if member.spec.code is None:
                raise InvariantError(f"{self.cls.__name__}.{member.name} cannot be in a hot structure")
            codes.append(f"{member.spec.offset - position}x{member.spec.code}")
            position = member.spec.offset + member.spec.size
        codes.append(f"{self.size - position}x")
        return struct.Struct("".join(codes))

    def _make(self, values: Sequence[Any]) -> Any:
        if self._steps is None:
            return self.cls(*values)
        return self.cls(*[values[i] if step is None else step(values[i]) for i, step in self._steps])

    def from_container(self, container: Mapping[str, Any]) -> Any:
        """The value for what construct has read."""
        return self._make(self._get(container))

    def to_container(self, obj: object) -> dict[str, Any]:
        """What construct is to write for a value."""
        return {member.name: member.value(obj) for member in self._list}

    def parse(self, buf: BytesLike) -> Any:
        """Read the structure at the start of ``buf``; what follows it is ignored."""
        if len(buf) < self.size:
            raise WireError(f"{self.cls.__name__} needs {self.size} bytes, {len(buf)} are there")
        if self._fast is not None:
            return self._make(self._fast.unpack_from(buf))
        return self.parse_construct(buf)

    def parse_construct(self, buf: BytesLike) -> Any:
        """As ``parse`` for a long enough buffer, always through construct."""
        return self.from_container(self.compiled.parse(bytes(buf[: self.size])))

    def build(self, obj: object) -> bytes:
        """The ``size`` bytes of a value; WireError when a field does not fit."""
        if self._fast is not None:
            return self._fast.pack(*[member.value(obj) for member in self._list])
        return self.build_construct(obj)

    def build_construct(self, obj: object) -> bytes:
        """As ``build``, always through construct."""
        data: bytes = self.compiled.build(self.to_container(obj))
        if len(data) != self.size:
            raise InvariantError(f"{self.cls.__name__} became {len(data)} bytes, not {self.size}")
        return data


class Wire:
    """Base of every fixed-size structure; ``layout`` completes the class."""

    __slots__ = ()
    SIZE: ClassVar[int]
    _codec: ClassVar[Codec]

    @classmethod
    def codec(cls) -> Codec:
        """How this structure is read and written."""
        return cls._codec

    @classmethod
    def parse(cls, buf: BytesLike) -> Self:
        """Read the structure at the start of ``buf``. Raises WireError when ``buf`` is too short."""
        value: Self = cls._codec.parse(buf)
        return value

    def build(self) -> bytes:
        """The ``SIZE`` bytes of the structure. Raises WireError when a field's value has no place in it."""
        return self._codec.build(self)


W = TypeVar("W", bound=Wire)


def layout(size: int, *, hot: bool = False) -> Callable[[type[W]], type[W]]:
    """Tie a frozen dataclass of declared fields to its ``size`` bytes on the wire."""

    def decorate(cls: type[W]) -> type[W]:
        cls.SIZE = size
        cls._codec = Codec(cls, size, hot)
        return cls

    return decorate


class Dword(Wire):
    """A structure of four bytes that travels as a number: a command dword, dword 0 of a completion, a log entry."""

    __slots__ = ()

    @classmethod
    def of(cls, value: int) -> Self:
        """Read the number."""
        return cls.parse((value & 0xFFFFFFFF).to_bytes(4, "little"))

    @property
    def value(self) -> int:
        """The structure as a number."""
        return int.from_bytes(self.build(), "little")


def parse_many(cls: type[W], buf: BytesLike, count: int | None = None) -> tuple[W, ...]:
    """``count`` structures one after another, or all that fit. Raises WireError when ``buf`` is too short."""
    if count is None:
        count = len(buf) // cls.SIZE
    if len(buf) < count * cls.SIZE:
        raise WireError(f"{count} x {cls.__name__} need {count * cls.SIZE} bytes, {len(buf)} are there")
    view = memoryview(buf)
    return tuple(cls.parse(view[i * cls.SIZE : (i + 1) * cls.SIZE]) for i in range(count))
