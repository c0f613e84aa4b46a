"""Writes the seeds of the corpora of the capsule channel and of JSON-RPC: valid messages, and each kind of mistake."""

from __future__ import annotations

import json
import struct
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAGIC = 0x4332504E


def message(kind: int, body: bytes, *, version: int = 1, extra: int = 0) -> bytes:
    """A channel message; ``extra`` is added to its length field."""
    return struct.pack("<IHHII", MAGIC, version, kind, 16 + len(body) + extra, 0) + body


def packet(data: bytes, *, fds: int = 0, upcall: bool = False) -> bytes:
    """A packet of the harness's input."""
    return struct.pack("<BH", fds | (8 if upcall else 0), len(data)) + data


HELLO = packet(message(1, struct.pack("<II", 0, 1)))
RESET = packet(message(1, struct.pack("<II", 1, 1)))


def adopt(response: bytes = b"", *, flags: int = 15, slot: int = 3, peer: bytes = b"192.0.2.1:1") -> bytes:
    """An ADOPT message."""
    fixed = struct.pack("<QQHHHHBBHIIII", 5, 7, 1, 31, 1, flags, 0, 0, 0, 3, 131072, 4096, slot)
    return message(2, fixed + peer.ljust(64, b"\0") + struct.pack("<I", len(response)) + response)


def done(token: int) -> bytes:
    """An UPCALL_DONE message."""
    return message(6, struct.pack("<QHHI", token, 0x4001 & 0x7FF, 3, 0))


CHANNEL = {
    "hello": HELLO,
    "reset": RESET,
    "version": packet(message(1, bytes(8), version=2)),
    "adopt": HELLO + packet(adopt(bytes(24)), fds=1),
    "adopt-twice": HELLO + packet(adopt(), fds=1) + packet(adopt(flags=0), fds=1),
    "adopt-no-descriptor": HELLO + packet(adopt()),
    "adopt-many": HELLO + packet(adopt(), fds=7),
    "adopt-slot": HELLO + packet(adopt(slot=99), fds=1),
    "upcall": HELLO + packet(b"", upcall=True) + packet(done(1)),
    "upcalls": HELLO + packet(message(3, b""), upcall=True),
    "upcall-unknown": HELLO + packet(done(9)),
    "empty-with-descriptors": packet(b"", fds=2),
    "short": packet(b"NP2C"),
    "length": packet(message(1, bytes(8), extra=1)),
}

METHODS = [
    ("rpc_get_methods", {}),
    ("bdev_malloc_create", {"name": "m", "num_blocks": 8, "block_size": 512, "uuid": "u"}),
    ("bdev_aio_create", {"name": "a", "filename": "/x", "readonly": True}),
    ("bdev_delay_create", {"name": "d", "base_bdev_name": "m", "avg_read_latency": 1, "p99_read_latency": 2,
                           "avg_write_latency": 3, "p99_write_latency": 4}),
    ("bdev_error_create", {"base_name": "m"}),
    ("bdev_error_inject_error", {"name": "EE_m", "io_type": "all", "error_type": "failure", "num": 3}),
    ("bdev_delay_update_latency", {"delay_bdev_name": "d", "latency_type": "avg_read", "latency_us": 9}),
    ("bdev_set_qos_limit", {"name": "m", "rw_ios_per_sec": 1000}),
    ("bdev_null_resize", {"name": "m", "new_size": 1}),
    ("bdev_aio_rescan", {"name": "a"}),
    ("bdev_get_bdevs", {"name": "m"}),
    ("bdev_get_iostat", {"names": ["m", "a"]}),
    ("bdev_get_histogram", {"name": "m"}),
    ("p2p_controller_set", {"key": 1, "mdts_bytes": 131072, "copy_formats": 3, "namespaces": [
        {"nsid": 1, "bdev": "m", "anagrpid": 1, "ana_state": 1, "write_protected": False}]}),
    ("p2p_queue_abort", {"key": 1, "qid": 1, "cid": 7}),
    ("p2p_queue_close", {"key": 1}),
    ("p2p_controller_remove", {"key": 1}),
    ("p2p_get_queues", {}),
    ("p2p_get_info", {}),
    ("bdev_malloc_delete", {"name": "m"}),
]  # fmt: skip
REQUESTS = [{"jsonrpc": "2.0", "id": n, "method": name, "params": params} for n, (name, params) in enumerate(METHODS)]

RPC = {
    "all": b"\0" + "".join(json.dumps(request) for request in REQUESTS).encode(),
    "bytes": b"\1" + json.dumps(REQUESTS[1], indent=2).encode(),
    "batch": b"\0" + json.dumps(REQUESTS).encode(),
    "odd": b'\0{"id":[],"method":1}{"method":"x"}[1,[]] {}[]',
    "wrong": b'\0{"id":1,"method":"bdev_null_create","params":{"name":null,"num_blocks":-1,"block_size":1e9}}',
    "escape": b'\3{"id":"\\"}","method":"\\u0000\\ud800"}',
    **{name: b"\0" + json.dumps(request).encode() for (name, _), request in zip(METHODS, REQUESTS, strict=True)},
}

if __name__ == "__main__":
    for folder, seeds in {"fuzz_channel": CHANNEL, "fuzz_rpc": RPC}.items():
        (HERE / "corpus" / folder).mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (HERE / "corpus" / folder / name).write_bytes(data)
