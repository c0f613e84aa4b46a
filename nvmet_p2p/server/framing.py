"""Cuts a byte stream into JSON texts: SPDK's wire form, objects and arrays back to back with nothing between them.

Sans-IO. A byte is looked at once, however the stream is chunked: the state is the bracket depth and whether a string is
open. What is between the outermost brackets is not judged here; the decoder does that with the whole text. Any chunking
of a stream gives the same events. After ``Broken`` there is no place from which to go on, and nothing more comes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

_BRACKET = re.compile(rb'[][{}"]')
_QUOTE = re.compile(rb'["\\]')
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_WORD_END = re.compile(rb"[^0-9A-Za-z.+-]")
_WORD = re.compile(rb"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_START = re.compile(rb"-?([0-9][0-9.eE+-]*)?")
_LITERALS: Final = (b"true", b"false", b"null")
WORD_BYTES_MAX: Final = 64  # a number that is no request anyway


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream is no sequence of JSON texts, or one text is over a limit."""

    reason: str


class _State(Enum):
    BETWEEN = auto()  # outside of any text
    NESTED = auto()  # inside brackets
    NESTED_STRING = auto()  # inside a string inside brackets
    STRING = auto()  # inside a string that is itself the text
    WORD = auto()  # inside a number or literal that is itself the text
    DEAD = auto()


class JsonSplitter:
    """One direction of one connection. ``bytes_max`` bounds a text, ``nesting_max`` its bracket depth."""

    def __init__(self, bytes_max: int, nesting_max: int) -> None:
        self._bytes_max = bytes_max
        self._nesting_max = nesting_max
        self._buffer = bytearray()
        self._start = 0  # where the open text begins
        self._scan = 0  # everything before has been looked at
        self._depth = 0
        self._state = _State.BETWEEN
        self._events: list[bytes | Broken] = []

    @property
    def dead(self) -> bool:
        """``Broken`` has been given; nothing more comes."""
        return self._state is _State.DEAD

    @property
    def pending(self) -> int:
        """Bytes of a text that has begun."""
        return 0 if self._state in (_State.BETWEEN, _State.DEAD) else len(self._buffer) - self._start

    def feed(self, data: bytes) -> list[bytes | Broken]:
        """Texts that are complete now, in order."""
        if self.dead:
            return []
        self._buffer += data
        self._events = []
        while self._step():
            pass
        if self._state is not _State.WORD and self.pending > self._bytes_max:
            self._too_long()
        del self._buffer[: self._start]
        self._scan = max(0, self._scan - self._start)
        self._start = 0
        return self._events

    def end(self) -> list[bytes | Broken]:
        """The stream has ended: a number is complete only now, and what has begun otherwise will never be."""
        if self._state in (_State.BETWEEN, _State.DEAD):
            return []
        self._events = []
        if self._state is _State.WORD:
            self._word(len(self._buffer))
        else:
            self._break("the stream ends inside a JSON text")
        return self._events

    def _step(self) -> bool:
        """Goes on to the next byte that matters; ``False`` when it has not come yet."""
        match self._state:
            case _State.BETWEEN:
                return self._between()
            case _State.NESTED:
                return self._nested()
            case _State.NESTED_STRING | _State.STRING:
                return self._string()
            case _State.WORD:
                return self._in_word()
            case _State.DEAD:
                return False

    def _between(self) -> bool:
        found = _NOT_SPACE.search(self._buffer, self._scan)
        if found is None:
            self._start = self._scan = len(self._buffer)
            return False
        self._start = found.start()
        self._scan = self._start + 1
        byte = found.group()
        if byte in b"{[":
            self._depth = 1
            self._state = _State.NESTED
        elif byte == b'"':
            self._state = _State.STRING
        elif _WORD_END.match(byte) is None:
            self._state = _State.WORD
        else:
            self._break(f"no JSON text begins with byte {byte[0]:#04x}")
        return True

    def _nested(self) -> bool:
        found = _BRACKET.search(self._buffer, self._scan)
        if found is None:
            self._scan = len(self._buffer)
            return False
        if self._past_limit(found.start()):
            return False
        self._scan = found.end()
        byte = found.group()
        if byte == b'"':
            self._state = _State.NESTED_STRING
        elif byte in b"{[":
            self._depth += 1
            if self._depth > self._nesting_max:
                self._break(f"more than {self._nesting_max} brackets within each other")
        else:
            self._depth -= 1
            if self._depth == 0:
                self._emit(found.end())
        return True

    def _string(self) -> bool:
        found = _QUOTE.search(self._buffer, self._scan)
        if found is None:
            self._scan = max(self._scan, len(self._buffer))
            return False
        if self._past_limit(found.start()):
            return False
        if found.group() == b"\\":
            self._scan = found.end() + 1  # whatever it is, it does not end the string; it may not have come yet
        elif self._state is _State.STRING:
            self._emit(found.end())
        else:
            self._scan = found.end()
            self._state = _State.NESTED
        return True

    def _in_word(self) -> bool:
        found = _WORD_END.search(self._buffer, self._scan)
        if found is not None:
            self._word(found.start())
            return True
        self._scan = len(self._buffer)
        word = bytes(self._buffer[self._start : self._start + WORD_BYTES_MAX + 1])
        could_be = _NUMBER_START.fullmatch(word) or any(literal.startswith(word) for literal in _LITERALS)
        if not could_be or len(word) > min(WORD_BYTES_MAX, self._bytes_max):
            self._break_word()
        return False

    def _word(self, end: int) -> None:
        length = end - self._start
        if length > min(WORD_BYTES_MAX, self._bytes_max) or not _WORD.fullmatch(self._buffer, self._start, end):
            self._break_word()
        else:
            self._emit(end)

    def _past_limit(self, position: int) -> bool:
        if position - self._start < self._bytes_max:
            return False
        self._too_long()
        return True

    def _too_long(self) -> None:
        self._break(f"a JSON text of more than {self._bytes_max} bytes")

    def _break_word(self) -> None:
        self._break("neither a JSON object nor a JSON array")

    def _emit(self, end: int) -> None:
        self._events.append(bytes(self._buffer[self._start : end]))
        self._start = self._scan = end
        self._state = _State.BETWEEN

    def _break(self, reason: str) -> None:
        self._events.append(Broken(reason))
        self._state = _State.DEAD
        self._start = len(self._buffer)
