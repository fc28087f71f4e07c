"""Every way to compress a batch gives pages that decode to what they were."""

from __future__ import annotations

import random

import pytest

from dumpfs.codecs.packers import CodecPacker, LzoPacker, Packer, SnappyPacker, packer
from dumpfs.codecs.registry import CODEC_FLAGS, codec

PAGE = 4096


def packers() -> list[tuple[int, Packer]]:
    return [
        *((flag, CodecPacker(codec(flag))) for flag in CODEC_FLAGS),
        *((flag, packer(flag)) for flag in CODEC_FLAGS),
    ]


def names() -> list[str]:
    return [f"{type(found).__name__}-{flag:#x}" for flag, found in packers()]


@pytest.mark.parametrize(("flag", "found"), packers(), ids=names())
def test_pages_decode_to_what_they_were(flag, found):
    rng = random.Random(4)
    pages = [rng.choice([b"text %d " % i * 600, rng.randbytes(PAGE), bytes(PAGE)])[:PAGE] for i in range(40)]
    wanted = [i * PAGE for i in range(40) if i % 3]
    blob, sizes = found.pack(b"".join(pages), wanted, PAGE)
    assert len(blob) == sum(sizes)
    position = 0
    for offset, size in zip(wanted, sizes, strict=True):
        stored = blob[position : position + size]
        position += size
        page = pages[offset // PAGE]
        assert (stored if size == PAGE else codec(flag).decode_page(stored, PAGE)) == page


@pytest.mark.parametrize("flag", CODEC_FLAGS)
def test_nothing_to_pack_gives_nothing(flag):
    assert packer(flag).pack(b"", [], PAGE) == (b"", [])


def test_library_called_directly_gives_what_its_binding_gives():
    data = b"".join(b"text %d " % i * 600 for i in range(8))
    data = data[: len(data) // PAGE * PAGE]
    offsets = list(range(0, len(data), PAGE))
    for flag, direct in ((2, LzoPacker), (4, SnappyPacker)):
        try:
            found = direct()
        except OSError:
            pytest.skip("needs liblzo2")
        assert found.pack(data, offsets, PAGE) == CodecPacker(codec(flag)).pack(data, offsets, PAGE)
