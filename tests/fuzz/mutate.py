"""Damage, from a number alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.fuzz.bases import Base, Zone

_EXTREMES = (
    *(0, 1, 2, 7, 8, 0xFF, 0xFFF, 0x1000, 0x4000, 0x7FFF, 0xFFFF, 0x10000, 1 << 20, 1 << 24, 1 << 30),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 40, 1 << 47, (1 << 63) - 1, 1 << 63),
    *((1 << 64) - 1, (1 << 64) - 8, (1 << 64) - 4096),
)
_TEXT_VALUES = (
    *(b"", b"-1", b"nan", b"1e400", b"0x", b"9" * 5000, b"\xff\xfe", b"\x1b[31m", b"=", b" ", b"0b1", b"1_000"),
    *("٣".encode(), b"ffffffffffffffff", b"\0"),
)
_NAMES = (
    b"\x1b]0;PWN\x07", b"a\nend\npython x", b"\x1b[31mred\x1b[0m", b"$(id)", b"`id`;x", b"../../etc", b"a\xe2\x80\xaeb",
    b"\xff\xfe\x80", b"[red]x", b"\\n\\\\\"'", b"a\r\x1b[2Kb", b"\x9b31mX", b"\x1b]52;c;cm0gLXJm\x07", b".", b"..", b"",
    b"x 1 0 - Live 0x0\nfake 99 0 - Live 0xffffffffc0000000", b"a/b", b"\xc2\x9b31m", b"A" * 55,
)  # fmt: skip


@dataclass
class Damage:
    """What is changed in a base."""

    patches: list[tuple[int, bytes]] = field(default_factory=list)
    """(offset, bytes), in this order."""
    cut: int | None = None
    """Length that the file keeps."""
    tail: bytes = b""
    """What is appended."""

    def patch(self, offset: int, data: bytes, limit: int) -> None:
        """Overwrite, but never beyond `limit`."""
        if 0 <= offset < limit:
            self.patches.append((offset, bytes(data[: limit - offset])))


def damage_of(base: Base, seed: int) -> Damage:
    """The damage with this number."""
    return _Mutator(base, random.Random(f"{base.name}:{seed}")).damage()


class _Mutator:
    def __init__(self, base: Base, rng: random.Random) -> None:
        self.base, self.rng, self.made = base, rng, Damage()

    def damage(self) -> Damage:
        rng = self.rng
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
            zone = rng.choices(self.base.zones, [z.weight for z in self.base.zones])[0]
            {"numbers": self.numbers, "text": self.text, "memory": self.memory, "names": self.names}[zone.kind](zone)
        memory = self.base.zones[0].kind == "memory"
        if not memory and rng.random() < 0.08:
            self.made.cut = self.length()
        elif not memory and rng.random() < 0.02:
            self.made.tail = rng.choice((bytes(4096), rng.randbytes(700), self.base.data[:4096]))
        return self.made

    def length(self) -> int:
        size, zone = len(self.base.data), self.rng.choice(self.base.zones)
        near = self.rng.choice((zone.first, zone.stop)) + self.rng.choice((-1, 0, 1, 8, -8))
        return max(0, min(self.rng.choice((self.rng.randrange(size), near, near)), size))

    def put(self, offset: int, data: bytes) -> None:
        self.made.patch(offset, data, len(self.base.data))

    def number(self, width: int, current: int) -> int:
        rng, roll = self.rng, self.rng.random()
        if roll < 0.55:
            value = rng.choice(_EXTREMES)
        elif roll < 0.75:
            value = current + rng.choice((1, -1, 8, -8, 4096, -4096, 0x100))
        elif roll < 0.85:
            value = current ^ 1 << rng.randrange(8 * width)
        elif roll < 0.9:
            value = current * rng.choice((2, 16, 4096)) + rng.randrange(3)
        else:
            value = rng.getrandbits(8 * width)
        return value & (1 << 8 * width) - 1

    def place(self, zone: Zone, width: int) -> int:
        count = max((zone.stop - zone.first) // width, 1)
        return zone.first + width * self.rng.randrange(count)

    def numbers(self, zone: Zone) -> None:
        rng, data = self.rng, self.base.data
        order = "big" if zone.big else "little"
        roll = rng.random()
        if roll < 0.7:
            for _ in range(rng.choice((1, 1, 2, 5))):
                width = rng.choice(zone.widths)
                at = self.place(zone, width)
                current = int.from_bytes(data[at : at + width], order)
                self.put(at, self.number(width, current).to_bytes(width, order))
        elif roll < 0.8:
            self.put(self.place(zone, 1), rng.choice((bytes, rng.randbytes, b"\xff".__mul__))(rng.randrange(1, 64)))
        elif roll < 0.9:  # something else that is well formed, at the wrong place
            width = rng.choice((8, 16, 24, 56))
            source = self.place(rng.choice(self.base.zones), width)
            self.put(self.place(zone, width), data[source : source + width])
        else:
            self.put(self.place(zone, 1), bytes((data[self.place(zone, 1)] ^ 1 << rng.randrange(8),)))

    def text(self, zone: Zone) -> None:
        rng = self.rng
        before = self.base.data[zone.first : zone.stop]
        lines = before.split(b"\n")
        for _ in range(rng.choice((1, 2, 4))):
            self.line(lines)
        after = b"\n".join(lines)
        self.put(zone.first, after[: len(before)].ljust(len(before), rng.choice((b"\0", b"\n"))))

    def line(self, lines: list[bytes]) -> None:
        rng, number = self.rng, self.rng.randrange(len(lines))
        key, _, value = lines[number].partition(b"=")
        roll = rng.random()
        if roll < 0.5:
            hexadecimal = key.startswith((b"SYMBOL", b"KERNELOFFSET"))
            try:
                current = int(value, 16 if hexadecimal else 10)
            except ValueError:
                current = 0
            changed = self.number(8, current & (1 << 64) - 1)
            signed = changed - (1 << 64) if rng.random() < 0.1 else changed
            lines[number] = key + b"=" + (b"%x" % changed if hexadecimal else b"%d" % signed)
        elif roll < 0.65:
            lines[number] = key + b"=" + rng.choice(_TEXT_VALUES)
        elif roll < 0.75 and len(lines) > 1:
            del lines[number]
        elif roll < 0.85:
            lines.insert(number, rng.choice(lines))
        elif roll < 0.95:
            lines[number] = rng.randbytes(30)
        else:
            lines[number] = lines[number][: rng.randrange(len(lines[number]) + 1)]

    def memory(self, zone: Zone) -> None:
        rng, size = self.rng, zone.stop - zone.first
        roll = rng.random()
        if roll < 0.75:
            width = rng.choice((8, 8, 8, 4, 4, 2, 1))
            if size < width:
                width = 1
            at = self.place(zone, width)
            current = int.from_bytes(self.base.data[at : at + width], "little")
            if width == 8 and rng.random() < 0.5:
                value = rng.choice(self.base.pointers) + rng.choice((0, 0, 0, 8, 16, -8)) & (1 << 64) - 1
            else:
                value = self.number(width, current)
            self.put(at, value.to_bytes(width, "little"))
        elif roll < 0.85:
            self.put(zone.first, (rng.choice(self.base.pointers).to_bytes(8, "little") * (size // 8 + 1))[:size])
        elif roll < 0.92:
            other = rng.choice(self.base.zones)
            self.put(zone.first, self.base.data[other.first : min(other.stop, other.first + size)])
        else:
            self.put(zone.first, bytes((rng.choice((0, 1, 0x41, 0x7F, 0x80, 0xFF)),)) * size)

    def names(self, zone: Zone) -> None:
        size = zone.stop - zone.first
        self.put(zone.first, self.rng.choice(_NAMES)[: size - 1].ljust(size, b"\0"))
