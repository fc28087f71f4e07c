"""Every registered implementation of every codec: same vectors, same refusals."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading

import pytest

from dumpfs.codecs import registry
from dumpfs.codecs.base import Codec
from dumpfs.errors import CodecError, CodecUnavailableError
from tests.build import codecs as build

PAGE = 4096
_RNG = random.Random(4)
PAGES = {
    "zeros": bytes(PAGE),
    "ones": b"\xff" * PAGE,
    "text": b"The quick brown fox jumps over the lazy dog. ".ljust(PAGE // 8, b".") * 8,
    "random": _RNG.randbytes(PAGE),
    "half": _RNG.randbytes(PAGE // 2) + bytes(PAGE // 2),
    "pointers": b"".join(
        (0xFFFF888000000000 + _RNG.randrange(1 << 24)).to_bytes(8, "little") for _ in range(PAGE // 8)
    ),
    "one byte": bytes(PAGE - 1) + b"\1",
}
FLAGS = {"zlib": registry.ZLIB, "lzo": registry.LZO, "snappy": registry.SNAPPY, "zstd": registry.ZSTD}
IMPLEMENTATIONS = [c for flag in FLAGS.values() for c in registry.implementations(flag)]
FORMS = [
    ("zlib", "level 1", build.zlib_page),
    ("zlib", "stored blocks", build.zlib_stored_blocks),
    ("lzo", "lzo1x-1", build.lzo_page),
    ("lzo", "literals", build.lzo_literals),
    ("snappy", "snappy", build.snappy_page),
    ("snappy", "literals", build.snappy_literals),
    ("zstd", "level 1", build.zstd_page),
    ("zstd", "without size", build.zstd_without_size),
    ("zstd", "raw block", build.zstd_raw_blocks),
]
ENCODE = {"zlib": build.zlib_page, "lzo": build.lzo_page, "snappy": build.snappy_page, "zstd": build.zstd_page}


def name_of(value: object) -> str | None:
    return f"{value.name}-{value.library}".replace(" ", "-") if isinstance(value, Codec) else None


each = pytest.mark.parametrize("codec", IMPLEMENTATIONS, ids=name_of)


def test_every_library_is_tested_here():
    assert [(c.name, c.library) for c in IMPLEMENTATIONS] == [
        ("zlib", "deflate"),
        ("zlib", "standard library"),
        ("lzo", "lzallright"),
        ("lzo", "python-lzo"),
        ("snappy", "cramjam"),
        ("zstd", "zstandard"),
    ]


@pytest.mark.parametrize(("name", "flag"), [("zlib", 1), ("lzo", 2), ("snappy", 4), ("zstd", 0x20)])
def test_flags_are_those_of_a_page_descriptor(name, flag):
    assert registry.codec(flag).name == name
    assert registry.codec(flag).flag == flag
    assert registry.codec_name(flag) == name


def test_raw_pages_have_a_name_and_other_flags_none():
    assert registry.codec_name(0) == "raw"
    assert registry.codec_name(8) == ""
    assert registry.codec_name(3) == ""


@pytest.mark.parametrize("content", PAGES)
@pytest.mark.parametrize(
    ("codec", "encode"),
    [pytest.param(c, f, id=f"{name_of(c)}-{t}") for c in IMPLEMENTATIONS for n, t, f in FORMS if n == c.name],
)
def test_pages_decode(codec, encode, content):
    page = PAGES[content]
    assert codec.decode_page(encode(page), PAGE) == page


@each
@pytest.mark.parametrize("content", PAGES)
def test_pages_encode(codec, content):
    page = PAGES[content]
    (blob,) = codec.encode([page])
    for other in registry.implementations(codec.flag):
        assert other.decode_page(blob, PAGE) == page


@each
@pytest.mark.parametrize("size", [1024, 16384, 65536, 262144])
def test_other_page_sizes(codec, size):
    page = random.Random(size).randbytes(size // 4) * 2 + bytes(size // 2)
    assert codec.decode_page(ENCODE[codec.name](page), size) == page


@each
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview], ids=lambda k: k.__name__)
def test_any_buffer_is_taken(codec, kind):
    blob = kind(ENCODE[codec.name](PAGES["text"]))
    assert bytes(codec.decode([blob], PAGE)[0]) == PAGES["text"]
    assert codec.decode_page(codec.encode([kind(PAGES["half"])])[0], PAGE) == PAGES["half"]


@each
def test_a_batch_keeps_its_order(codec):
    pages = list(PAGES.values()) * 3
    blobs = codec.encode(pages)
    assert [bytes(p) for p in codec.decode(blobs, PAGE)] == pages


@each
def test_no_pages_are_no_pages(codec):
    assert list(codec.decode([], PAGE)) == []
    assert codec.encode([]) == []


@each
@pytest.mark.parametrize("length", [0, 1, PAGE - 1, PAGE + 1, 2 * PAGE], ids=lambda n: f"{n}-bytes")
def test_what_is_not_exactly_one_page_is_refused(codec, length):
    blob = ENCODE[codec.name](b"ab" * (length // 2) + b"c" * (length % 2))
    with pytest.raises(CodecError):
        codec.decode_page(blob, PAGE)


@each
def test_a_blob_cut_anywhere_is_refused(codec):
    blob = ENCODE[codec.name](PAGES["half"])
    for cut in [*range(40), *range(40, len(blob), 37), *range(len(blob) - 3, len(blob))]:
        with pytest.raises(CodecError):
            codec.decode_page(blob[:cut], PAGE)


@each
def test_one_bad_blob_fails_its_batch(codec):
    good = ENCODE[codec.name](PAGES["text"])
    with pytest.raises(CodecError):
        codec.decode([good, good[:-5], good], PAGE)


@each
def test_random_bytes_are_refused_or_a_page(codec):
    rng = random.Random(11)
    for _ in range(300):
        try:
            page = codec.decode_page(rng.randbytes(rng.randrange(200)), PAGE)
        except CodecError:
            continue
        assert len(page) == PAGE


@each
def test_flipped_bits_are_refused_or_a_page(codec):
    rng = random.Random(12)
    blob = ENCODE[codec.name](PAGES["pointers"])
    for _ in range(300):
        damaged = bytearray(blob)
        damaged[rng.randrange(min(len(blob), 64))] ^= 1 << rng.randrange(8)
        try:
            page = codec.decode_page(damaged, PAGE)
        except CodecError:
            continue
        assert len(page) == PAGE


@each
def test_an_error_names_the_codec(codec):
    with pytest.raises(CodecError, match=f"^{codec.name}: ") as caught:
        codec.decode_page(b"\0", PAGE)
    assert caught.value.codec == codec.name


@each
def test_threads_may_share_a_codec(codec):
    blobs = codec.encode(list(PAGES.values()))
    wrong = []

    def work() -> None:
        for _ in range(50):
            if [bytes(p) for p in codec.decode(blobs, PAGE)] != list(PAGES.values()):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS)
@pytest.mark.parametrize("name", build.bombs())
def test_a_bomb_is_refused_in_little_memory(name, flag):
    bomb_flag, blob = build.bombs()[name]
    if bomb_flag != flag:
        blob = blob[: PAGE - 1]  # another codec's bomb is garbage here
    for codec in registry.implementations(flag):
        with pytest.raises(CodecError):
            codec.decode_page(blob, PAGE)


_BOMBS = """
import resource, sys
from dumpfs.codecs import registry
from dumpfs.errors import CodecError
for flag in (1, 2, 4, 0x20):  # load every library before the limit is set
    for codec in registry.implementations(flag):
        codec.decode(codec.encode([bytes(4096)]), 4096)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * 4096
blobs = [(int(f), bytes.fromhex(b)) for f, b in (line.split() for line in sys.stdin)]
resource.setrlimit(resource.RLIMIT_AS, (size + (40 << 20),) * 2)
for flag, blob in blobs:
    for codec in registry.implementations(flag):
        try:
            codec.decode_page(blob, 4096)
        except CodecError:
            continue
        sys.exit(f"{codec.library} took a bomb")
print("all refused")
"""


def test_bombs_fit_into_forty_megabytes():
    lines = "".join(f"{flag} {blob.hex()}\n" for flag, blob in build.bombs().values())
    done = subprocess.run(
        [sys.executable, "-c", _BOMBS], input=lines, capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert (done.stdout, done.returncode) == ("all refused\n", 0), done.stderr


@pytest.mark.parametrize(
    ("flag", "modules", "package"),
    [
        (registry.LZO, ["lzo", "lzallright"], "lzo"),
        (registry.SNAPPY, ["cramjam"], "cramjam"),
        (registry.ZSTD, ["zstandard"], "zstandard"),
    ],
    ids=["lzo", "snappy", "zstd"],
)
def test_a_missing_library_costs_only_its_codec(monkeypatch, flag, modules, package):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(registry, "_opened", {})
    with pytest.raises(CodecUnavailableError) as caught:
        registry.codec(flag)
    assert package in str(caught.value.hint)
    assert registry.codec(registry.ZLIB).decode_page(build.zlib_page(PAGES["text"]), PAGE) == PAGES["text"]


@pytest.mark.parametrize(
    ("flag", "missing", "library"),
    [(registry.ZLIB, "deflate", "standard library"), (registry.LZO, "lzallright", "python-lzo")],
    ids=["zlib", "lzo"],
)
def test_the_next_library_takes_over(monkeypatch, flag, missing, library):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(registry, "_opened", {})
    assert registry.codec(flag).library == library
