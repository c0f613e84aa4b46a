"""CRC32C against published values, in one piece and in several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvmet_p2p.protocol.digest import crc32c, digest_bytes


# RFC 3720, appendix B.4, and the check value of the CRC catalogue.
@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"", 0),
    ],
)
def test_published_values(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc
    assert crc32c(bytearray(data)) == crc
    assert crc32c(memoryview(data)) == crc


def test_on_the_wire_it_is_little_endian() -> None:
    assert digest_bytes(b"123456789") == bytes.fromhex("839206e3")


@given(st.binary(max_size=300), st.integers(0, 300))
def test_in_pieces(data: bytes, at: int) -> None:
    assert crc32c(data[at:], crc32c(data[:at])) == crc32c(data)


def test_longer_than_one_piece() -> None:
    data = bytes(range(256)) * 1000
    assert crc32c(memoryview(bytearray(data))) == crc32c(data)
