"""Writes a seed for each kind of PDU into the folder named: python make_corpus.py FOLDER (for fuzz_queue)."""

from __future__ import annotations

import struct
import sys
from pathlib import Path


def response(cid: int, status: int = 0) -> bytes:
    """CapsuleResp."""
    return struct.pack("<BBBBI", 5, 0, 24, 0, 24) + struct.pack("<IIHHHH", 0, 0, 1, 1, cid, status << 1)


def c2h(cid: int, offset: int, data: bytes, flags: int = 4) -> bytes:
    """C2HData without digests."""
    return struct.pack("<BBBBIHHII4x", 7, flags, 24, 24, 24 + len(data), cid, 0, offset, len(data)) + data


def r2t(cid: int, offset: int, length: int) -> bytes:
    """R2T."""
    return struct.pack("<BBBBIHHII4x", 9, 0, 24, 0, 24, cid, 7, offset, length)


def term() -> bytes:
    """C2HTermReq with 8 bytes of the offending header."""
    return struct.pack("<BBBBIHI10x", 3, 0, 24, 0, 32, 1, 4) + bytes(8)


SEEDS = {
    "read": b"\x00\xff" + c2h(0, 0, bytes(8192)) + response(0),
    "read-pieces": b"\x00\x0a" + c2h(1, 0, bytes(4096), 0) + c2h(1, 4096, bytes(4096)) + response(1),
    "read-success": b"\x00\xff" + c2h(2, 0, bytes(8192), 12) + c2h(3, 0, bytes(8192), 12),
    "write-r2t": b"\x01\xff" + r2t(0, 0, 8192) + response(0),
    "write-r2ts": b"\x21\x01" + r2t(0, 0, 4096) + r2t(0, 4096, 4096) + response(0),
    "write-in-capsule": b"\x41\xff" + response(0) + response(1) + response(2),
    "verify": b"\x46\xff" + response(0) + response(1) + response(2) + response(3) + c2h(0, 0, bytes(8192), 12),
    "over-time": b"\x80\x00" + c2h(0, 0, bytes(8192), 12),
    "error": b"\x00\xff" + response(0, 0x280),
    "term": b"\x00\xff" + term(),
}


def main() -> None:
    """Writes the seeds."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, seed in SEEDS.items():
        (folder / name).write_bytes(seed)


if __name__ == "__main__":
    main()
