"""Writes pcap files of TCP conversations for a packet analyser to judge, and asks tshark for its view."""

from __future__ import annotations

import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NVME_TCP_PORT = 4420
_HOST = bytes([10, 0, 0, 1])
_TARGET = bytes([10, 0, 0, 2])
_MSS = 60000  # one PDU, one segment: keeps the analyser's fields inside one packet
_SYN, _ACK, _PSH = 0x02, 0x10, 0x08


def _checksum(data: bytes) -> int:
    """The internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass
class Conversation:
    """One TCP connection between a host and a target; each ``host`` or ``target`` call becomes segments of its own."""

    host_port: int = 50000
    target_port: int = NVME_TCP_PORT
    frames: list[bytes] = field(default_factory=list)
    _next: dict[bool, int] = field(default_factory=lambda: {True: 1000, False: 2000})

    def __post_init__(self) -> None:
        self._segment(True, b"", _SYN)
        self._segment(False, b"", _SYN | _ACK)
        self._segment(True, b"", _ACK)

    def host(self, data: bytes) -> None:
        """Bytes from the host."""
        self._send(True, data)

    def target(self, data: bytes) -> None:
        """Bytes from the target."""
        self._send(False, data)

    def _send(self, from_host: bool, data: bytes) -> None:
        for start in range(0, len(data), _MSS):
            self._segment(from_host, data[start : start + _MSS], _PSH | _ACK)

    def _segment(self, from_host: bool, data: bytes, flags: int) -> None:
        source, destination = (_HOST, _TARGET) if from_host else (_TARGET, _HOST)
        ports = (self.host_port, self.target_port) if from_host else (self.target_port, self.host_port)
        ack = self._next[not from_host] if flags & _ACK else 0
        tcp = struct.pack(">HHIIBBHHH", *ports, self._next[from_host], ack, 5 << 4, flags, 0xFFFF, 0, 0)
        pseudo = source + destination + struct.pack(">BBH", 0, 6, len(tcp) + len(data))
        tcp = tcp[:16] + struct.pack(">H", _checksum(pseudo + tcp + data)) + tcp[18:]
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp) + len(data), len(self.frames), 0x4000, 64, 6, 0)
        ip += source + destination
        ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
        self.frames.append(b"\x02\0\0\0\0\x02" + b"\x02\0\0\0\0\x01" + b"\x08\0" + ip + tcp + data)
        self._next[from_host] += len(data) + bool(flags & _SYN)


def write_pcap(path: Path, conversations: list[Conversation]) -> None:
    """All frames of all conversations, one after another, a millisecond apart."""
    out = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0x40000, 1)]
    frames = [frame for conversation in conversations for frame in conversation.frames]
    for number, frame in enumerate(frames):
        seconds, milliseconds = divmod(number, 1000)
        out.append(struct.pack("<IIII", seconds, milliseconds * 1000, len(frame), len(frame)) + frame)
    path.write_bytes(b"".join(out))


@dataclass(frozen=True)
class Seen:
    """One field as tshark saw it: its name, its display text and its bytes (``None`` where it has none of its own)."""

    name: str
    show: str
    label: str
    value: bytes | None


@dataclass(frozen=True)
class Packet:
    """All the fields of one frame."""

    fields: tuple[Seen, ...]

    def all(self, name: str) -> list[Seen]:
        """Every field of that name, in order."""
        return [seen for seen in self.fields if seen.name == name]

    def has(self, name: str) -> bool:
        """Is there such a field."""
        return bool(self.all(name))

    def number(self, name: str) -> int:
        """The displayed number of the only field of that name."""
        (seen,) = self.all(name)
        return int(seen.show, 0)


def _walk(element: ET.Element) -> Iterator[Seen]:
    for child in element:
        raw = child.get("unmaskedvalue") or child.get("value") or ""
        try:
            value = bytes.fromhex(raw) if raw else None
        except ValueError:
            value = None
        yield Seen(child.get("name", ""), child.get("show", ""), child.get("showname", ""), value)
        yield from _walk(child)


def dissect(path: Path, *options: str) -> list[Packet]:
    """What tshark makes of a pcap file, frame by frame. Skips the test, loudly, where tshark is not installed."""
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("tshark is not installed: NVMe/TCP PDUs were NOT checked by an independent dissector")
    command = [tshark, "-r", str(path), "-d", f"tcp.port=={NVME_TCP_PORT},nvme-tcp", "-T", "pdml", *options]
    result = subprocess.run(command, capture_output=True, check=True, timeout=60)
    root = ET.fromstring(result.stdout)
    return [Packet(tuple(_walk(packet))) for packet in root.iter("packet")]
