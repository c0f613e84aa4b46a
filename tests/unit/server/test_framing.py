"""The splitter: any chunking gives the same texts, each byte is looked at once, limits hold exactly."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmet_p2p.server.framing import WORD_BYTES_MAX, Broken, JsonSplitter

BIG = 1 << 20


def split(data: bytes, bytes_max: int = BIG, nesting_max: int = 32) -> list[bytes | Broken]:
    splitter = JsonSplitter(bytes_max, nesting_max)
    return splitter.feed(data) + splitter.end()


def split_bytewise(data: bytes, bytes_max: int = BIG, nesting_max: int = 32) -> list[bytes | Broken]:
    splitter = JsonSplitter(bytes_max, nesting_max)
    events: list[bytes | Broken] = []
    for index in range(len(data)):
        events += splitter.feed(data[index : index + 1])
    return events + splitter.end()


@pytest.mark.parametrize(
    ("stream", "texts"),
    [
        (b"", []),
        (b" \r\n\t", []),
        (b"{}", [b"{}"]),
        (b"{}{}\n[] {}", [b"{}", b"{}", b"[]", b"{}"]),
        (b'{\n  "a": [1, {"b": "}"}]\n}{"c":"\\"]}"}', [b'{\n  "a": [1, {"b": "}"}]\n}', b'{"c":"\\"]}"}']),
        (b'"a{"true 1 -2.5e+3null', [b'"a{"', b"true", b"1", b"-2.5e+3null"]),
        (b'{"a": tru}', [b'{"a": tru}']),  # the decoder's business
        (b"[}", [b"[}"]),
    ],
)
def test_texts(stream: bytes, texts: list[bytes]) -> None:
    if texts and texts[-1] == b"-2.5e+3null":  # two words need something between them
        assert split(stream)[:3] == texts[:3]
        assert isinstance(split(stream)[3], Broken)
        return
    assert split(stream) == texts
    assert split_bytewise(stream) == texts


@pytest.mark.parametrize("stream", [b"}", b"]", b":", b"\x00", b"GET / HTTP/1.1", b"nul ", b"01 ", b"\xff{}", b"'a'"])
def test_what_is_no_text_ends_it(stream: bytes) -> None:
    for splitter in (split, split_bytewise):
        events = splitter(b"{}" + stream + b"{}")
        assert events[0] == b"{}"
        assert [type(event) for event in events[1:]] == [Broken]


def test_garbage_is_told_at_once() -> None:
    splitter = JsonSplitter(BIG, 32)
    assert splitter.feed(b"hello") != []
    assert splitter.dead
    assert splitter.feed(b"{}") == []
    assert splitter.end() == []


@pytest.mark.parametrize("stream", [b"{", b'"a', b'{"a', b'{"a\\', b"[[]"])
def test_the_stream_ends_inside_a_text(stream: bytes) -> None:
    assert split(stream) == [Broken("the stream ends inside a JSON text")]


@pytest.mark.parametrize("text", [b'{"a":1}', b'["]\\""]', b'"abcde"'])
def test_size_limit(text: bytes) -> None:
    for splitter in (split, split_bytewise):
        assert splitter(text + text, bytes_max=len(text)) == [text, text]
        assert splitter(text, bytes_max=len(text) - 1) == [Broken(f"a JSON text of more than {len(text) - 1} bytes")]


def test_size_limit_of_an_unfinished_text() -> None:
    splitter = JsonSplitter(8, 32)
    assert splitter.feed(b'{"aaaaaa') == []
    assert splitter.pending == 8
    assert splitter.feed(b"a") == [Broken("a JSON text of more than 8 bytes")]
    assert splitter.pending == 0


def test_nesting_limit() -> None:
    for splitter in (split, split_bytewise):
        assert splitter(b"[" * 4 + b"]" * 4, nesting_max=4) == [b"[[[[]]]]"]
        assert splitter(b"[" * 5, nesting_max=4) == [Broken("more than 4 brackets within each other")]


def test_word_limit() -> None:
    for splitter in (split, split_bytewise):
        assert splitter(b"1" * WORD_BYTES_MAX) == [b"1" * WORD_BYTES_MAX]
        assert [type(event) for event in splitter(b"1" * (WORD_BYTES_MAX + 1))] == [Broken]


def test_a_long_text_is_scanned_once() -> None:
    """Work is counted, not timed: after each chunk everything has been looked at, and nothing is looked at again."""
    splitter = JsonSplitter(BIG, 32)
    assert splitter.feed(b'["') == []
    for size in range(2, 2002, 2):
        assert splitter._scan == splitter.pending == size
        assert splitter.feed(b"a]") == []
    assert splitter.feed(b'"]') == [b'["' + b"a]" * 1000 + b'"]']


pieces = st.lists(
    st.sampled_from([b"{", b"}", b"[", b"]", b'"', b"\\", b" ", b"1", b"-", b"t", b"rue", b"null", b":", b",", b"{}"])
    | st.binary(max_size=3)
).map(b"".join)


@given(pieces, st.integers(1, 12), st.integers(1, 4))
def test_whole_and_bytewise_are_equal(stream: bytes, bytes_max: int, nesting_max: int) -> None:
    assert split(stream, bytes_max, nesting_max) == split_bytewise(stream, bytes_max, nesting_max)


@given(st.binary(), st.data())
def test_any_chunking_is_equal(stream: bytes, data: st.DataObject) -> None:
    splitter = JsonSplitter(BIG, 8)
    events: list[bytes | Broken] = []
    rest = stream
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        events += splitter.feed(rest[:size])
        rest = rest[size:]
    assert events + splitter.end() == split(stream, nesting_max=8)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), json_values) | st.lists(json_values)), st.sampled_from([None, 2]))
def test_every_json_document_comes_back(documents: list[object], indent: int | None) -> None:
    """What SPDK's client sends: json.dumps(indent=2), back to back or with a newline between."""
    texts = [json.dumps(document, indent=indent).encode() for document in documents]
    assert split(b"".join(texts)) == texts
    assert split_bytewise(b"\n".join(texts)) == texts
