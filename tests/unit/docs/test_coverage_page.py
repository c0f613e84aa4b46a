"""docs/coverage.md is what its tool writes, and every row that says "supported" has a test that was seen to use it."""

from __future__ import annotations

import json

from tests.tools import gen_coverage


def test_the_page_is_current() -> None:
    record = json.loads(gen_coverage.RECORD.read_text())
    assert gen_coverage.PAGE.read_text() == gen_coverage.page(record), "make docs"


def test_everything_supported_is_tested() -> None:
    record = json.loads(gen_coverage.RECORD.read_text())
    rows = {f"{s.kind}:{gen_coverage.code_of(row):02x}" for s in gen_coverage.SECTIONS for row in s.rows}
    assert sorted(rows - record.keys()) == [], "no conformance test sends these; make coverage records them"


def test_a_code_without_a_handler_says_how_it_is_refused() -> None:
    text = gen_coverage.page({})
    assert "| 0Dh | Namespace management |  |  | Invalid Opcode (01h) |  |" in text
    assert "| 06h | Identify |" in text
