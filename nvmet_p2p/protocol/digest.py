"""CRC32C, the digest of NVMe/TCP (TCP transport specification 1.0, section 3.3.1.1).

Check value: ``crc32c(b"123456789") == 0xE3069283``. The C extension takes ``bytes`` only, so another buffer goes
through it in pieces: what is copied is small and short-lived, whatever the length of the data.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

import google_crc32c

Buffer = bytes | bytearray | memoryview

DIGEST_BYTES: Final = 4
_PIECE_BYTES: Final = 64 * 1024
_WORD: Final = Struct("<I")


def crc32c(data: Buffer, crc: int = 0) -> int:
    """The CRC32C of ``data``, or, given the ``crc`` of what came before, of the whole."""
    if isinstance(data, bytes):
        return int(google_crc32c.extend(crc, data))
    view = memoryview(data)
    for start in range(0, len(view), _PIECE_BYTES):
        crc = google_crc32c.extend(crc, bytes(view[start : start + _PIECE_BYTES]))
    return int(crc)


def digest_bytes(data: Buffer, crc: int = 0) -> bytes:
    """The digest as it stands on the wire: 4 bytes, little-endian."""
    return _WORD.pack(crc32c(data, crc))
