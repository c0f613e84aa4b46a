"""What an interrupted probe has overwritten: put back, left alone, or the reason why its drive stays closed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from nvmet_p2p.errors import OperatorError
from nvmet_p2p.protocol.digest import crc32c
from nvmet_p2p.state.journal import HEADER_BYTES, Journal, Journals, identity
from nvmet_p2p.target.config import BdevConfig

SIZE = 1 << 20
OFFSET = 64 * 1024
DATA = bytes(range(256)) * 64


def build(path: str, *, offset: int = OFFSET, data: bytes = DATA, size: int = SIZE) -> bytes:
    """A journal as native/src/calibrate.c writes it (struct calibrate_journal)."""

    def header(crc: int) -> bytes:
        fixed = struct.pack("<16sIIQQQ", b"nvmet-p2p probe\n", 1, crc, offset, len(data), size)
        names = struct.pack("256s256s1024s", b"b0", b"0000:03:00.0", path.encode())
        return (fixed + names).ljust(HEADER_BYTES, b"\0")

    return header(crc32c(header(0) + data)) + data


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """A file full of a probe's pattern."""
    path = tmp_path / "drive"
    path.write_bytes(b"\xa5" * SIZE)
    return path


@pytest.fixture
def journals(tmp_path: Path) -> Journals:
    return Journals(tmp_path / "state")


def bdev(path: Path) -> BdevConfig:
    return BdevConfig(name="b0", kind="uring", uuid="", filename=str(path))


def leave(journals: Journals, drive: Path, raw: bytes) -> Path:
    with journals.reserved(str(drive)) as path:
        path.write_bytes(raw)
    assert journals.is_left(str(drive))
    return path


def test_what_was_overwritten_is_put_back(journals: Journals, drive: Path) -> None:
    path = leave(journals, drive, build(str(drive)))
    journals.restore(bdev(drive))
    content = drive.read_bytes()
    assert content[OFFSET : OFFSET + len(DATA)] == DATA
    assert content[:OFFSET] == b"\xa5" * OFFSET
    assert content[OFFSET + len(DATA) :] == b"\xa5" * (SIZE - OFFSET - len(DATA))
    assert not path.exists()
    assert not journals.is_left(str(drive))
    journals.restore(bdev(drive))


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, HEADER_BYTES + len(DATA) - 1])
def test_one_that_is_too_short_closes_the_drive(journals: Journals, drive: Path, length: int) -> None:
    """It had its name, so it was whole once."""
    path = leave(journals, drive, build(str(drive))[:length])
    with pytest.raises(OperatorError, match="damaged"):
        journals.restore(bdev(drive))
    assert drive.read_bytes() == b"\xa5" * SIZE
    assert path.exists()


def test_one_that_never_got_its_name(journals: Journals, drive: Path) -> None:
    """The drive was not written to; the next probe finds nothing in its way."""
    with journals.reserved(str(drive)) as path:
        incomplete = path.with_name(f"{path.name}.new")
        incomplete.write_bytes(build(str(drive))[:100])
    assert not journals.is_left(str(drive))
    journals.restore(bdev(drive))
    assert drive.read_bytes() == b"\xa5" * SIZE
    with journals.reserved(str(drive)):
        assert not incomplete.exists()


@pytest.mark.parametrize("at", [0, 16, 20, 24, 40, 60, 300, 700, 4000, 4096, HEADER_BYTES + len(DATA) - 1])
def test_a_damaged_one_closes_the_drive(journals: Journals, drive: Path, at: int) -> None:
    raw = bytearray(build(str(drive)))
    raw[at] ^= 1
    path = leave(journals, drive, bytes(raw))
    with pytest.raises(OperatorError, match="damaged") as caught:
        journals.restore(bdev(drive))
    assert str(path) in caught.value.message
    assert str(drive) in caught.value.message
    assert drive.read_bytes() == b"\xa5" * SIZE
    assert path.read_bytes() == raw


@pytest.mark.parametrize("tail", [b"x", bytes(4096)])
def test_one_with_more_behind_it_is_damaged(journals: Journals, drive: Path, tail: bytes) -> None:
    leave(journals, drive, build(str(drive)) + tail)
    with pytest.raises(OperatorError, match="damaged"):
        journals.restore(bdev(drive))


def test_a_drive_that_has_shrunk(journals: Journals, drive: Path) -> None:
    leave(journals, drive, build(str(drive)))
    os.truncate(drive, SIZE // 2)
    with pytest.raises(OperatorError, match="smaller"):
        journals.restore(bdev(drive))
    assert drive.stat().st_size == SIZE // 2


def test_blocks_behind_the_end(journals: Journals, drive: Path) -> None:
    leave(journals, drive, build(str(drive), offset=SIZE - len(DATA) + 512))
    with pytest.raises(OperatorError, match="behind the end"):
        journals.restore(bdev(drive))


def test_another_file_of_the_same_name(journals: Journals, drive: Path) -> None:
    """It may be the one that was probed, brought back from elsewhere, or not: a person must say."""
    leave(journals, drive, build(str(drive)))
    drive.rename(drive.with_name("old"))
    drive.write_bytes(bytes(SIZE))
    with pytest.raises(OperatorError, match="another one now"):
        journals.restore(bdev(drive))
    assert drive.read_bytes() == bytes(SIZE)
    other = drive.with_name("other")
    other.write_bytes(bytes(SIZE))
    journals.restore(bdev(other))  # none of its business


def test_a_name_that_leads_to_the_same_file(journals: Journals, drive: Path, tmp_path: Path) -> None:
    leave(journals, drive, build(str(drive)))
    link = tmp_path / "link"
    link.symlink_to(drive)
    journals.restore(bdev(link))
    assert drive.read_bytes()[OFFSET : OFFSET + len(DATA)] == DATA


def test_nothing_to_do(journals: Journals, tmp_path: Path) -> None:
    journals.restore(bdev(tmp_path / "absent"))
    journals.restore(BdevConfig(name="m", kind="malloc", uuid=""))
    assert not journals.is_left(str(tmp_path / "absent"))
    with pytest.raises(OperatorError), journals.reserved(str(tmp_path / "absent")):
        pytest.fail("there is no such file")


def test_read_only(journals: Journals, drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be written back closes the drive; the journal stays."""
    path = leave(journals, drive, build(str(drive)))

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OperatorError, match="cannot be put back"):
        journals.restore(bdev(drive))
    assert path.exists()


def test_identities_of_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drive is known by what it says of itself, a partition by its number on it, and others for this boot only."""
    nodes = {"/dev/nvme0n1": (259, 0), "/dev/nvme0n1p2": (259, 2), "/dev/vdb": (254, 16)}
    root = tmp_path / "sys"
    for place, attributes in {
        "devices/pci/nvme0n1": {"wwid": "eui.0025385b71b0c1d2"},
        "devices/pci/nvme0n1/nvme0n1p2": {"partition": "2"},
        "devices/virtio/vdb": {},
    }.items():
        (root / place).mkdir(parents=True)
        for name, text in attributes.items():
            (root / place / name).write_text(f"{text}\n")
    (root / "dev/block").mkdir(parents=True)
    for number, place in {"259:0": "nvme0n1", "259:2": "nvme0n1/nvme0n1p2"}.items():
        (root / "dev/block" / number).symlink_to(root / "devices/pci" / place)
    (root / "dev/block/254:16").symlink_to(root / "devices/virtio/vdb")

    def stat(path: str) -> os.stat_result:
        return os.stat_result([0o060660, 1, 5, 1, 0, 0, 0, 0, 0, 0], {"st_rdev": os.makedev(*nodes[path])})

    monkeypatch.setattr("nvmet_p2p.state.journal.os.stat", stat)
    assert identity("/dev/nvme0n1", root) == "drive wwid eui.0025385b71b0c1d2 part 0"
    assert identity("/dev/nvme0n1p2", root) == "drive wwid eui.0025385b71b0c1d2 part 2"
    assert identity("/dev/vdb", root).startswith("device 254:16 of boot ")


def test_the_parts_of_a_journal(drive: Path) -> None:
    found = Journal.parse(build("/dev/nvme9n1"))
    assert found == Journal(OFFSET, SIZE, "b0", "0000:03:00.0", "/dev/nvme9n1", DATA)
