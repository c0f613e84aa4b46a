"""Random streams of I/O queue traffic, right and wrong: the same seed gives the same bytes for every data plane.

A stream is a list of steps; a step is independent of the others, so any part of a stream is a stream too, which is what
makes a failing one easy to shorten. Nothing here knows what the right answer is: ``tests.support.replay`` records what
two data planes answer, and the differential test compares.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from tests.support import nvme
from tests.support.initiator import lba_cdw

Kind = Literal["one", "group", "wide", "held", "change", "abort", "capsule", "h2c", "raw", "overflow", "disconnect"]
FATAL: Final = frozenset({"capsule", "h2c", "raw", "overflow", "disconnect"})  # the connection is over behind them
SLOT_BLOCKS: Final = 8  # commands that run together have ranges of their own, of so many blocks
SLOTS: Final = 32
U64: Final = 1 << 64
CONNECT, PROPERTY_GET, AUTH_SEND, DISCONNECT = 0x01, 0x04, 0x05, 0x08


@dataclass(frozen=True, slots=True)
class Space:
    """A namespace: its size in blocks of ``block_size`` bytes. ``ok``: reads and writes are served."""

    nsid: int
    blocks: int
    block_size: int
    ok: bool = True


@dataclass(frozen=True, slots=True)
class World:
    """What is served. ``strange``: NSIDs that are not active. Limits in bytes."""

    spaces: tuple[Space, ...]
    strange: tuple[int, ...]
    mdts: int
    icd_max: int


@dataclass(frozen=True, slots=True)
class Profile:
    """How a queue is connected: fields of ICReq and Connect as on the wire."""

    hdgst: bool = False
    ddgst: bool = False
    hpda: int = 0
    maxr2t: int = 0
    sqsize: int = 31
    cattr: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """An SQE, the data that R2Ts are answered with, the data in the capsule. ``piece``: bytes of an H2CData, 0: all."""

    sqe: bytes
    out: bytes = b""
    capsule: bytes = b""
    bad_digest: bool = False
    piece: int = 0

    @property
    def cid(self) -> int:
        return int.from_bytes(self.sqe[2:4], "little")

    @property
    def opcode(self) -> int:
        return self.sqe[0]

    def __str__(self) -> str:
        opc, flags, cid, nsid = struct.unpack_from("<BBHI", self.sqe)
        address, length, kind = struct.unpack_from("<QI3xB", self.sqe, 24)
        dwords = struct.unpack_from("<6I", self.sqe, 40)
        slba = dwords[1] << 32 | dwords[0]
        text = f"opc {opc:#04x} fuse {flags & 3} psdt {flags >> 6} cid {cid:#x} nsid {nsid:#x} slba {slba:#x} "
        text += f"cdw12 {dwords[2]:#010x} sgl {kind:#04x} {address:#x}+{length}"
        return f"{text} out {len(self.out)} capsule {len(self.capsule)}{' bad digest' if self.bad_digest else ''}"


@dataclass(frozen=True, slots=True)
class Wrong:
    """Bytes of a PDU's header that are replaced; ``fix_digest``: HDGST is made for the changed header."""

    bytes_at: tuple[tuple[int, int], ...] = ()
    fix_digest: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to a namespace: remove, protect (by the host), or an ANA state."""

    nsid: int
    what: str


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do. ``cuts``: where what is sent first is cut into segments. ``profile``: that of its connection.

    one: a command. group: several in one segment. wide: the same on two queues. held: the first waits for its data
    while the others are done. change: so does the configuration, for so long. abort: the first is aborted while it
    waits. capsule, h2c: the last one's last PDU is damaged as ``wrong`` says. raw: ``junk``. overflow: more commands
    than the queue has entries. disconnect: a Disconnect command.
    """

    kind: Kind
    commands: tuple[Command, ...] = ()
    cuts: tuple[int, ...] = ()
    wrong: Wrong = Wrong()
    junk: bytes = b""
    change: Change | None = None
    profile: Profile = Profile()

    def __str__(self) -> str:
        lines = [f"{self.kind}{f' cuts {self.cuts}' if self.cuts else ''}"]
        if self.kind in ("capsule", "h2c"):
            lines[0] += f" {self.wrong}"
        if self.change:
            lines[0] += f" {self.change}"
        if self.junk:
            lines[0] += f" junk {self.junk[:64].hex()} ({len(self.junk)} bytes)"
        lines += [f"    {command}" for command in self.commands]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Stream:
    """``cdfe``: Copy formats that the host enables (Host Behavior Support)."""

    seed: int
    cdfe: int
    steps: tuple[Step, ...]

    def with_steps(self, steps: Sequence[Step]) -> Stream:
        return replace(self, steps=tuple(steps))

    def __str__(self) -> str:
        lines, profile = [f"seed {self.seed}, CDFE {self.cdfe:#x}, {len(self.steps)} steps"], None
        for number, step in enumerate(self.steps):
            if step.profile != profile:
                lines.append(str(step.profile))
            lines.append(f"{number}: {step}")
            profile = step.profile
        return "\n".join(lines)


def stream(seed: int, world: World, steps: int) -> Stream:
    """The stream of a seed."""
    return _Maker(random.Random(seed), world).stream(seed, steps)


def descriptor(fmt: int, lba: int, blocks: int, snsid: int) -> bytes:
    """Copy source range entry; ``blocks`` is a count."""
    head = struct.pack("<I4xQH", snsid & 0xFFFFFFFF, lba % U64, (blocks - 1) & 0xFFFF)
    return head.ljust(40 if fmt & 1 else 32, b"\0")


@dataclass(slots=True)
class _Shape:
    """A command before it is built: what a defect can still change."""

    opc: int
    nsid: int
    cdw: list[int]
    out: bytes = b""
    expect: int = 0
    fuse: int = 0
    space: Space | None = None


@dataclass(slots=True)
class _Maker:
    rng: random.Random
    world: World
    profile: Profile = Profile()
    written: list[tuple[int, int, bytes]] = field(default_factory=list)  # (NSID, LBA, data) of late
    slots: Iterator[int] | None = None

    def stream(self, seed: int, steps: int) -> Stream:
        self.profile = self.some_profile()
        cdfe = self.rng.choice((0, 0b0100, 0b1000, 0b1100, 0b1100, 0b1100))
        return Stream(seed, cdfe, tuple(self.step() for _ in range(steps)))

    def some_profile(self) -> Profile:
        rng = self.rng
        return Profile(
            hdgst=rng.random() < 0.4,
            ddgst=rng.random() < 0.4,
            hpda=rng.choice((0, 0, 1, 3, 15, 31)),
            maxr2t=rng.choice((0, 0, 1, 3, 0xFFFFFFFF)),
            sqsize=rng.choice((1, 3, 15, 31, 63, 127)),
            cattr=rng.choice((0, 4)),
        )

    # -- steps

    def step(self) -> Step:
        weights: dict[Kind, float] = {
            "one": 70, "group": 10, "wide": 3, "held": 7, "change": 2, "abort": 2, "capsule": 2.5, "h2c": 2.5, "raw": 1,
            "overflow": 0.7, "disconnect": 0.5,
        }  # fmt: skip
        (kind,) = self.rng.choices(list(weights), list(weights.values()))
        made: dict[Kind, Callable[[], Step]] = {
            "one": self.one,
            "group": self.pair if self.rng.random() < 0.4 else self.burst,
            "wide": lambda: replace(self.burst(), kind="wide"),
            "held": self.held,
            "change": self.change,
            "abort": lambda: Step("abort", (self.waiting(nvme.WRITE),)),
            "capsule": self.bad_capsule,
            "h2c": self.bad_h2c,
            "raw": self.raw,
            "overflow": lambda: Step("overflow", self.too_many()),
            "disconnect": lambda: Step("disconnect", (Command(nvme.disconnect_sqe(cid=self.cid())),)),
        }
        step = replace(made[kind](), profile=self.profile)
        if step.kind in FATAL:
            self.profile = self.some_profile()
        return step

    def one(self) -> Step:
        return Step("one", (self.build(self.command(), fuse=(*[0] * 30, 2, 3)),), cuts=self.cuts())

    def cuts(self) -> tuple[int, ...]:
        rng = self.rng
        if rng.random() < 0.7:
            return ()
        return tuple(sorted(rng.sample(range(1, rng.choice((12, 80, 300, 4000))), rng.randint(1, 4))))

    def burst(self) -> Step:
        """Commands that do not touch each other's blocks, sent together."""
        rng = self.rng
        order = list(range(SLOTS))
        rng.shuffle(order)
        self.slots = iter(order)
        most = max(1, min(self.profile.sqsize, 12))
        cids = rng.sample(range(0x10000), most)
        count = rng.randint(min(2, most), most)
        made = tuple(self.build(self.command(), cid=cids[number]) for number in range(count))
        self.slots = None
        return Step("group", made, cuts=self.cuts())

    def pair(self) -> Step:
        """A fused Compare and Write, or what a host makes of it in error; a command that is not fused ends it."""
        rng = self.rng
        self.slots = iter(rng.sample(range(10, 20), 10))  # away from the blocks that ``written`` is likely to have
        shapes = self.fused()
        match rng.randint(0, 11):
            case 0:
                shapes[0] = replace(self.command(), fuse=1)
            case 1:
                shapes[1] = replace(self.command(), fuse=2)
            case 2:
                shapes[1].cdw[rng.randint(0, 2)] ^= 1
            case 3:
                shapes[1].nsid ^= rng.choice((1, 2, 8))
            case 4:
                shapes[1].fuse = rng.choice((0, 1, 3))
            case 5:
                shapes.insert(rng.randint(0, 1), replace(self.command()))
            case 6:
                shapes.pop(0)
            case 7:
                shapes += self.fused()
        if shapes[-1].fuse == 1:
            shapes.append(self.rw(nvme.READ, self.space()))
        del shapes[self.profile.sqsize + 1 :]
        if shapes[-1].fuse == 1:
            shapes = [self.rw(nvme.READ, self.space())]
        cids = rng.sample(range(0x10000), len(shapes))
        clean = rng.random() < 0.8
        built = [self.build(shape, cid=cid, clean=clean) for shape, cid in zip(shapes, cids, strict=True)]
        self.slots = None
        return Step("group", tuple(built), cuts=self.cuts())

    def fused(self) -> list[_Shape]:
        """Compare and Write of the same blocks."""
        slots = self.slots
        if self.written and self.rng.random() < 0.6:
            self.slots = None
        first = self.rw(nvme.COMPARE, self.space())
        self.slots = slots
        assert first.space is not None
        data = self.data(len(first.out), first.space.block_size)
        return [replace(first, fuse=1), replace(first, opc=nvme.WRITE, cdw=list(first.cdw), out=data, fuse=2)]

    def held(self) -> Step:
        first = self.waiting(nvme.WRITE if self.rng.random() < 0.8 else nvme.COMPARE)
        count = self.rng.randint(1, min(3, self.profile.sqsize))
        others = [self.build(self.command()) for _ in range(count)]
        if self.rng.random() < 0.4:  # its identifier is in flight
            others[-1] = self.build(self.command(), cid=first.cid)
        else:
            others = [each if each.cid != first.cid else self.build(self.command(), cid=~first.cid & 0xFFFF)
                      for each in others]  # fmt: skip
        return Step("held", (first, *others))

    def change(self) -> Step:
        rng = self.rng
        space = rng.choice([each for each in self.world.spaces if each.ok])
        what = rng.choice(("remove", "protect", "inaccessible", "non_optimized"))
        first = self.waiting(rng.choice((nvme.WRITE, nvme.COMPARE)), space)
        cids = rng.sample([cid for cid in range(1000) if cid != first.cid], min(self.profile.sqsize, 4))
        others = [self.build(self.command(space if rng.random() < 0.7 else None), cid=cid) for cid in cids]
        return Step("change", (first, *others), change=Change(space.nsid, what))

    def waiting(self, opc: int, space: Space | None = None) -> Command:
        """A sound command whose data comes by R2T."""
        space = space or self.rng.choice([each for each in self.world.spaces if each.ok])
        shape = self.rw(opc, space, odd=False)
        return replace(self.build(shape, clean=True, in_capsule=False), bad_digest=self.rng.random() < 0.1)

    def too_many(self) -> tuple[Command, ...]:
        count = self.profile.sqsize + 2
        one = self.waiting(nvme.COMPARE)
        return tuple(replace(one, sqe=one.sqe[:2] + struct.pack("<H", cid) + one.sqe[4:]) for cid in range(count))

    # -- damage. Only commands that change nothing, since the answer may or may not come before the end.

    def bad_capsule(self) -> Step:
        rng = self.rng
        opc = rng.choice((nvme.READ, nvme.COMPARE, nvme.FLUSH, nvme.VERIFY))
        one = self.build(self.rw(opc, self.space()), clean=rng.random() < 0.7)
        if rng.random() < 0.15:  # more in the capsule than fits
            one = replace(one, capsule=rng.randbytes(self.world.icd_max + rng.choice((1, 4, 512))), out=b"")
        return Step("capsule", (one,), cuts=self.cuts(), wrong=self.damage(8))

    def bad_h2c(self) -> Step:
        commands = [self.waiting(nvme.COMPARE) for _ in range(self.rng.randint(1, 3))]
        commands[:-1] = [replace(each, bad_digest=False) for each in commands[:-1]]
        return Step("h2c", tuple(commands), wrong=self.damage(20))

    def damage(self, size: int) -> Wrong:
        rng = self.rng
        values = (0, 0, 1, 2, 3, 4, 6, 8, 24, 72, 73, 127, 128, 254, 255, rng.randrange(256))
        places = rng.sample(range(size), rng.choice((1, 1, 1, 2)))
        if size > 8 and rng.random() < 0.4:  # DATAO or DATAL
            at, value = rng.choice((12, 16)), rng.choice((0, 0, 4, 100, 512, 1000, 4096, 0xFFFFFFFC))
            return Wrong(tuple(enumerate(struct.pack("<I", value), at)), rng.random() < 0.9)
        return Wrong(tuple((at, rng.choice(values)) for at in places), rng.random() < 0.8)

    def raw(self) -> Step:
        rng = self.rng
        kind = rng.choice((0x02, 0x02, rng.randrange(256)))
        plen = rng.choice((24, 24, 32, 152, 153, 8, rng.randrange(1 << 32)))
        flags, hlen = rng.choice((0, 0, 0, rng.randrange(16))), rng.choice((24, 24, 24, 128, 72, rng.randrange(256)))
        return Step("raw", junk=struct.pack("<BBBBI", kind, flags, hlen, 0, plen) + rng.randbytes(144))

    # -- commands

    def cid(self) -> int:
        return self.rng.choice((0, 1, 0xFFFF, 0x7FFF, self.rng.randrange(0x10000), self.rng.randrange(0x10000)))

    def space(self) -> Space:
        served = self.rng.random() < 0.85
        return self.rng.choice([space for space in self.world.spaces if space.ok or not served])

    def command(self, space: Space | None = None) -> _Shape:
        """Any command, as a host means it."""
        opcodes = (nvme.READ, nvme.WRITE, nvme.COMPARE, nvme.WRITE_ZEROES, nvme.VERIFY, nvme.FLUSH, nvme.DSM, nvme.COPY)
        (opc,) = self.rng.choices((*opcodes, -1), (20, 20, 12, 8, 5, 4, 9, 16, 5))
        space = space or self.space()
        if opc == nvme.FLUSH:
            nsid = self.rng.choice((space.nsid, space.nsid, 0xFFFFFFFF))
            return _Shape(opc, nsid, [0, 0, 0], space=space)
        if opc == nvme.DSM:
            return self.dsm(space)
        if opc == nvme.COPY:
            return self.copy(space)
        if opc < 0:
            return self.unknown(space)
        return self.rw(opc, space)

    def blocks(self, space: Space) -> int:
        rng = self.rng
        count = rng.choice((1, 1, 1, 2, 3, 4, 8))
        return count if self.slots else rng.choice((count, count, count, count, count, rng.randint(1, 32)))

    def range(self, space: Space, *, odd: bool = True) -> tuple[int, int]:
        """LBA and count; ``odd`` allows what does not fit."""
        rng, n, count = self.rng, space.blocks, self.blocks(space)
        if odd and rng.random() < 0.08:
            beyond = (n, n + 1, n - count + 1, 1 << 32, (1 << 32) + 3, U64 - 1, U64 - count, 1 << 63, 1 << 55, 1 << 61)
            return rng.choice(beyond), count
        if self.slots is not None:
            slot = next(self.slots)
            return slot * SLOT_BLOCKS + rng.randint(0, SLOT_BLOCKS - count), count
        most = self.world.mdts // space.block_size
        if odd and rng.random() < 0.04:
            return 0, rng.choice((most, most + 1, 65536, min(n, 65536)))
        if rng.random() < 0.05:
            return n - count, count
        return rng.randrange(40), count

    def data(self, size: int, block_size: int) -> bytes:
        rng = self.rng
        if rng.random() < 0.5:
            return bytes([rng.choice((0, 0x11, 0xFF))]) * size
        return random.Random(rng.randrange(4)).randbytes(size)

    def rw(self, opc: int, space: Space, *, odd: bool = True) -> _Shape:
        """Read, Write, Compare, Write Zeroes, Verify."""
        rng = self.rng
        lba, count = self.range(space, odd=odd)
        size = count * space.block_size
        data = b""
        if opc == nvme.COMPARE and self.written and self.slots is None and odd and rng.random() < 0.6:
            nsid, lba, data = rng.choice(self.written)
            space = next(each for each in self.world.spaces if each.nsid == nsid)
            count, size = len(data) // space.block_size, len(data)
            if rng.random() < 0.3:
                at = rng.randrange(size)
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        high = rng.choice((0, 0, 1 << 30, 1 << 31, 1 << 24))
        if opc == nvme.WRITE_ZEROES:
            high |= rng.choice((0, 1 << 25))
        shape = _Shape(opc, space.nsid, [*lba_cdw(lba % U64, count, high)], space=space)
        if opc in (nvme.WRITE, nvme.COMPARE) and size <= 4 * self.world.mdts:
            shape.out = data or self.data(size, space.block_size)
        if opc == nvme.WRITE and odd and len(shape.out) == size and lba + count <= space.blocks:
            self.written = [*self.written[-5:], (space.nsid, lba, shape.out)]
        if opc == nvme.READ:
            shape.expect = size
        return shape

    def dsm(self, space: Space) -> _Shape:
        rng = self.rng
        lba, count = self.range(space)
        ranges = [(lba, count)]
        for _ in range(rng.choice((0, 0, 1, 3, 20))):
            ranges.append((lba + rng.randrange(max(count, 1)), 1) if self.slots else self.range(space))
        if rng.random() < 0.1:
            ranges.append((rng.choice((0, lba, space.blocks, space.blocks + 1)), 0))
        if rng.random() < 0.05:
            ranges.append((0, 0xFFFFFFFF))
        nr = len(ranges) - 1 if rng.random() < 0.95 else rng.choice((0, 255))
        out = b"".join(struct.pack("<IIQ", rng.choice((0, 0x2F)), n, at % U64) for at, n in ranges)
        wide = rng.choice((0, 0, 4096 - len(out)))  # Linux always gives room for 256 ranges
        return _Shape(
            nvme.DSM, space.nsid, [nr, rng.choice((4, 4, 4, 0, 1, 2, 7))], out.ljust(len(out) + max(wide, 0), b"\0")
        )

    def copy(self, space: Space) -> _Shape:
        rng = self.rng
        fmt = rng.choice((0, 0, 0, 1, 2, 2, 2, 3, 3, rng.randrange(16)))
        total, entries = 0, []
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8)) if self.slots is None else 1):
            source = space if rng.random() < 0.5 else self.space()
            snsid = source.nsid if rng.random() < 0.93 else rng.choice(self.world.strange)
            lba, count = self.range(source if fmt in (2, 3) else space)
            total += count
            entries.append(descriptor(fmt, lba, count, snsid))
        to = self.range(space)[0] if self.slots is None or not entries else next(self.slots) * SLOT_BLOCKS
        if self.slots is None and rng.random() < 0.1:
            to = space.blocks - total + rng.choice((0, 0, 1))
        nr = len(entries) - 1 if rng.random() < 0.95 else rng.choice((0, 127, 128, 255))
        high = rng.choice((0, 0, 1 << 30, 1 << 31, 0xF << 26, 0xF << 12, 1 << 25))
        to %= U64
        return _Shape(nvme.COPY, space.nsid, [to & 0xFFFFFFFF, to >> 32, nr | fmt << 8 | high], b"".join(entries))

    def unknown(self, space: Space) -> _Shape:
        """Opcodes that are not supported, reservations, Fabrics commands that do not belong here."""
        rng = self.rng
        if rng.random() < 0.3:
            fctype = rng.choice((0, CONNECT, PROPERTY_GET, AUTH_SEND, 6, 7, 0xFF))
            return _Shape(nvme.FABRICS, fctype, [rng.randrange(4), 0, 0])
        opc = rng.choice((nvme.WRITE_UNC, 3, 6, 7, 0x0D, 0x0E, 0x11, 0x12, 0x15, 0x18, 0x1D, 0x20, 0x7D, 0x80, 0xFF))
        size = rng.choice((0, 0, 64, 512, 4096))
        way = rng.random() < 0.5
        return _Shape(opc, space.nsid, [rng.randrange(8), 0, 0], bytes(size if way else 0), 0 if way else size)

    # -- the bytes, with defects

    def build(
        self,
        shape: _Shape,
        *,
        cid: int | None = None,
        fuse: tuple[int, ...] = (0,),
        clean: bool = False,
        in_capsule: bool | None = None,
    ) -> Command:
        """The command; unless ``clean`` every fourth or so has something wrong with it."""
        rng = self.rng
        out, size = shape.out, len(shape.out) or shape.expect
        if in_capsule is None:
            in_capsule = 0 < len(out) <= self.world.icd_max and rng.random() < 0.6
        sgl = [nvme.SGL_IN_CAPSULE if in_capsule else nvme.SGL_TRANSPORT, size, 0]
        capsule = out if in_capsule else b""
        nsid, psdt, more = shape.nsid, 1, {"cdw2": 0, "cdw3": 0, "mptr": 0}
        cdw = [*shape.cdw, *([0] * (6 - len(shape.cdw)))]
        shape_fuse = shape.fuse or rng.choice(fuse)
        bad_digest = not clean and rng.random() < 0.02
        for _ in range(0 if clean else rng.choice((0, 0, 0, 0, 0, 0, 1, 1, 2))):
            match rng.randint(0, 10):
                case 0 if shape.opc != nvme.FABRICS:  # of those it would be FCTYPE, and 8 is Disconnect
                    nsid = rng.choice(self.world.strange)
                case 1:
                    psdt = rng.choice((0, 2, 3))
                case 2:
                    sgl[0] = rng.choice((0x00, 0x10, 0x20, 0x30, 0x40, 0x4A, 0x5F, 0x50, 0x51, 0x5A, 0x01, 0x02, 0xF0))
                case 3 if sgl[1] < 1 << 20:
                    sgl[1] = max(0, rng.choice((sgl[1] + 4, sgl[1] - 4, sgl[1] + 512, sgl[1] * 2, 0, 0xFFFFFFFF)))
                case 4:
                    sgl[2] = rng.choice((4, 512, self.world.icd_max, self.world.icd_max + 1, U64 - 512, U64 - 1))
                case 5 if len(capsule) + 64 <= self.world.icd_max:
                    ahead = rng.choice((1, 4, 64))  # the data begins behind something else: SGL offset
                    capsule, sgl = bytes(ahead) + capsule, [sgl[0], sgl[1], ahead if rng.random() < 0.8 else 0]
                case 6 if not capsule:
                    capsule = rng.randbytes(rng.choice((1, 4, 512)))
                case 7:
                    bits = (1 << 26, 1 << 29, 0xF << 26, 1 << 25, 1 << 16, 1 << 24)
                    cdw[2] ^= rng.choice(bits if self.slots else (*bits, 0xFFFF, 1, 1 << 8))
                case 8 if self.slots is None:
                    cdw[rng.choice((0, 1))] ^= rng.choice((1, 1 << 31, 0xFFFFFFFF, 1 << 23))
                case 9:
                    more = {"cdw2": rng.getrandbits(32), "cdw3": rng.getrandbits(32), "mptr": rng.getrandbits(64)}
                    cdw[3:] = [rng.getrandbits(32) for _ in range(3)]
                case 10 if capsule:
                    capsule = capsule[: rng.choice((1, len(capsule) // 2 or 1, len(capsule)))]
        sqe = nvme.sqe(
            shape.opc, cid=self.cid() if cid is None else cid, nsid=nsid, fuse=shape_fuse, psdt=psdt,
            dptr=nvme.sgl(sgl[0], sgl[1] & 0xFFFFFFFF, sgl[2]), cdw=tuple(cdw), **more,
        )  # fmt: skip
        return Command(
            sqe, b"" if capsule else out, capsule, bad_digest, rng.choice((0, 0, 0, 4, 100, 512, 1000, 4096))
        )
