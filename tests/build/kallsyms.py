"""Encode a kernel's symbol table as scripts/kallsyms.c lays it out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

_PREFIX = {"little": "<", "big": ">"}
TOKENS = 256


@dataclass
class Tables:
    """Addresses of the tables, and all bytes from `start` on."""

    start: int
    data: bytes = b""
    places: dict[str, int] = field(default_factory=dict)

    def vmcoreinfo(self) -> bytes:
        """The lines that VMCOREINFO would have."""
        lines = [f"SYMBOL(kallsyms_{name})={vaddr:x}" for name, vaddr in self.places.items()]
        return ("\n".join(lines) + "\n").encode()


def make_tokens() -> list[bytes]:
    """256 tokens: every printable character for itself, words elsewhere."""
    words = [b"sys_lock", b"__x64_", b"schedul", b"er", b"_", b"init"]
    tokens = []
    for code in range(TOKENS):
        plain = 0x21 <= code < 0x7F
        tokens.append(bytes([code]) if plain else words[code % len(words)] + b"%d" % code)
    return tokens


def pack_name(text: bytes, tokens: Sequence[bytes]) -> bytes:
    """A type and name as token numbers behind their count; one word is packed, all else letter by letter."""
    out = bytearray()
    words = {tokens[t]: t for t in range(TOKENS)}
    at = 0
    while at < len(text):
        size = 9 if text[at : at + 9] in words else 1
        out.append(words[text[at : at + size]])
        at += size
    count = len(out)
    head = bytes([count]) if count < 0x80 else bytes([count & 0x7F | 0x80, count >> 7])
    return head + bytes(out)


def build_kallsyms(
    symbols: Sequence[tuple[int, str, str]],
    start: int,
    scheme: str = "percpu",
    order: str = "old",
    byteorder: str = "little",
    word: int = 8,
) -> Tables:
    """Tables of (address, type, name) symbols.

    Args:
        symbols: in the table's order.
        start: virtual address of the first byte, a multiple of the word.
        scheme: absolute, percpu, relative or self.
        order: old (addresses first) or new (since 6.4).
        byteorder: of the kernel.
        word: bytes of its pointers.
    """
    prefix = _PREFIX[byteorder]
    code = "Q" if word == 8 else "I"
    tokens = make_tokens()
    names = b"".join(pack_name((kind + name).encode(), tokens) for _, kind, name in symbols)
    offsets, position = [], 0
    for token in tokens:
        offsets.append(position)
        position += len(token) + 1
    base = min(a for a, kind, _ in symbols if kind != "A")
    place_of_offsets: list[int] = []

    def addresses(at: int) -> bytes:
        place_of_offsets.append(at)
        out = b""
        for index, (address, kind, _) in enumerate(symbols):
            if scheme == "absolute":
                out += struct.pack(prefix + code, address)
            elif scheme == "percpu":
                value = address if kind == "A" else base - 1 - address
                out += struct.pack(prefix + "i", value)
            elif scheme == "relative":
                out += struct.pack(prefix + "I", address - base)
            else:
                out += struct.pack(prefix + "i", address - (at + 4 * index))
        return out

    markers = b"".join(struct.pack(prefix + "I", 0) for _ in range(len(symbols) // 256 + 1))
    table = b"".join(token + b"\0" for token in tokens)
    index_bytes = struct.pack(f"{prefix}{TOKENS}H", *offsets)
    name_of_addresses = "addresses" if scheme == "absolute" else "offsets"
    middle = [
        ("num_syms", lambda _: struct.pack(prefix + "I", len(symbols))),
        ("names", lambda _: names),
        ("markers", lambda _: markers),
        ("token_table", lambda _: table),
        ("token_index", lambda _: index_bytes),
    ]
    ends = [(name_of_addresses, addresses)]
    if scheme in ("percpu", "relative"):
        ends.append(("relative_base", lambda _: struct.pack(prefix + code, base)))
    out = bytearray()
    places = {}
    for name, make in [*ends, *middle] if order == "old" else [*middle, *ends]:
        out += bytes(-len(out) % word)
        places[name] = start + len(out)
        out += make(start + len(out))
    places.pop("markers")
    return Tables(start, bytes(out), places)
