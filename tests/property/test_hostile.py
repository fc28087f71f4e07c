"""Damaged files: each field at its extremes, and the file cut at each boundary."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.build import codecs
from tests.build.elf import EHDR_FIELDS, PHDR_FIELDS, PHDR_SIZE, fields
from tests.build.flat import END_MARK, HEADER_SIZE, flat_header, record
from tests.build.kdump import MAIN_FIELDS, SUB_FIELDS, build_kdump, poke, read_field
from tests.build.model import Kind, Memory, Page
from tests.property import samples
from tests.property.hostile import attempt, bounded_memory, interesting


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    samples.everything()
    codecs.bombs()
    with bounded_memory():
        yield


@pytest.mark.parametrize("name", samples.everything())
def test_the_undamaged_file_opens(tmp_path, name):
    assert attempt(tmp_path, samples.everything()[name]) is not None


@pytest.mark.parametrize("name", samples.KDUMPS)
def test_kdump_header_fields(tmp_path, name):
    built, spec = samples.kdump(name), samples.KDUMPS[name]
    for field in [*MAIN_FIELDS[spec.word], *SUB_FIELDS[spec.layout]]:
        value, width = read_field(built, spec, field)
        for other in interesting(value, width):
            attempt(tmp_path, poke(built, spec, field, other), what=f"{field} {value:#x} -> {other:#x}")


@pytest.mark.parametrize("name", ["x86_64", "s390x"])
def test_page_descriptors(tmp_path, name):
    built, spec = samples.kdump(name), samples.KDUMPS[name]
    offsets = list(built.descriptors.values())
    for position in (offsets[0], offsets[len(offsets) // 2], offsets[-1]):
        for at, width in ((0, 8), (8, 4), (12, 4), (16, 8)):
            value = int.from_bytes(built.data[position + at : position + at + width], spec.byteorder)
            for other in interesting(value, width):
                data = built.poked(position + at, other.to_bytes(width, spec.byteorder))
                assert attempt(tmp_path, data, what=f"descriptor at {position:#x}+{at} {other:#x}") is not None


@pytest.mark.parametrize("name", samples.ELFS)
def test_elf_headers(tmp_path, name):
    built, spec = samples.elf(name), samples.ELFS[name]
    places = [(0, n, o, c) for n, (o, c) in fields(EHDR_FIELDS[spec.word]).items()]
    for index in range(4):
        base = built.places["phdrs"] + index * PHDR_SIZE[spec.word]
        places += [(base, n, o, c) for n, (o, c) in fields(PHDR_FIELDS[spec.word]).items()]
    for base, field, offset, code in places:
        width = struct.calcsize("=" + code)
        value = int.from_bytes(built.data[base + offset : base + offset + width], spec.byteorder)
        for other in interesting(value, width):
            data = built.poked(base + offset, other.to_bytes(width, spec.byteorder))
            attempt(tmp_path, data, what=f"{field} at {base:#x} {value:#x} -> {other:#x}")


def test_elf_identification(tmp_path):
    built = samples.elf("vmcore")
    for offset in range(16):
        for value in (0, 1, 2, 3, 0x7F, 0xFF):
            attempt(tmp_path, built.poked(offset, bytes((value,))), what=f"e_ident[{offset}] {value}")


def test_section_header_that_counts_the_program_headers(tmp_path):
    built = samples.elf("xnum")
    for offset in range(0, 64, 4):
        for value in interesting(0, 4):
            attempt(tmp_path, built.poked(built.places["shdr"] + offset, value.to_bytes(4, "little")))


def test_notes(tmp_path):
    for built in (samples.elf("vmcore"), samples.kdump("x86_64")):
        for position in (built.places["notes"], built.places["notes"] + 356):
            for at in (0, 4, 8):
                value = int.from_bytes(built.data[position + at : position + at + 4], "little")
                for other in interesting(value, 4):
                    attempt(
                        tmp_path, built.poked(position + at, other.to_bytes(4, "little")), what=f"note {at} {other:#x}"
                    )


def test_lime_headers(tmp_path):
    data = samples.lime()
    for base in (0, 32 + 0x5000):
        for at, width in ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8)):
            value = int.from_bytes(data[base + at : base + at + width], "little")
            for other in interesting(value, width):
                poked = data[: base + at] + other.to_bytes(width, "little") + data[base + at + width :]
                attempt(tmp_path, poked, what=f"lime {base:#x}+{at} {other:#x}")


def flat_records(data: bytes) -> list[int]:
    """File offsets of the records of a flattened file."""
    found, position = [], HEADER_SIZE
    while position + 16 <= len(data):
        found.append(position)
        offset, size = struct.unpack_from(">qq", data, position)
        if offset == -1:
            break
        position += 16 + size
    return found


def test_flattened_records(tmp_path):
    data = samples.flat()
    positions = flat_records(data)
    for position in (positions[0], positions[len(positions) // 2], positions[-2], positions[-1]):
        for at in (0, 8):
            value = int.from_bytes(data[position + at : position + at + 8], "big")
            for other in interesting(value, 8):
                poked = data[: position + at] + other.to_bytes(8, "big") + data[position + at + 8 :]
                attempt(tmp_path, poked, what=f"record at {position:#x}+{at} {other:#x}")


def test_flattened_header(tmp_path):
    data = samples.flat()
    for at in (16, 24):
        for other in interesting(1, 8):
            assert attempt(tmp_path, data[:at] + other.to_bytes(8, "big") + data[at + 8 :]) is None


def test_flattened_records_that_promise_a_huge_file(tmp_path):
    header = samples.kdump("x86_64").data[:464]
    for far in (1 << 40, 1 << 62, (1 << 63) - 10):
        attempt(tmp_path, flat_header() + record(0, header) + record(far, b"x") + END_MARK, what=f"record at {far:#x}")


def test_a_million_tiny_records(tmp_path):
    tiny = b"".join(struct.pack(">qqB", i, 1, 0x4B) for i in range(200000))
    assert attempt(tmp_path, flat_header() + tiny + END_MARK) is None


def cuts_of(places: dict[str, int], size: int) -> list[int]:
    """Lengths around each boundary."""
    spots = {0, 1, 7, 8, 16, 100, 411, 463, 464, 511, 512, size // 2, size - 1}
    for place in places.values():
        spots |= {place - 1, place, place + 1, place + 23, place + 24, place + 103, place + 104, place + 500}
    return sorted(s for s in spots if 0 <= s < size)


@pytest.mark.parametrize("name", samples.KDUMPS)
def test_kdump_cut_at_every_boundary(tmp_path, name):
    built = samples.kdump(name)
    for cut in cuts_of(built.places, len(built.data)):
        image = attempt(tmp_path, built.data[:cut], what=f"cut at {cut:#x}")
        assert image is None or not image.meta.complete or cut >= built.places["eraseinfo"]


@pytest.mark.parametrize("name", samples.ELFS)
def test_elf_cut_at_every_boundary(tmp_path, name):
    built = samples.elf(name)
    places = built.places | {f"segment{i}": offset for i, (offset, _) in built.blobs.items()}
    for cut in cuts_of(places, len(built.data)):
        image = attempt(tmp_path, built.data[:cut], what=f"cut at {cut:#x}")
        assert image is None or not image.meta.complete


def test_flattened_cut_at_every_boundary(tmp_path):
    data = samples.flat()
    places = {str(p): p for p in flat_records(data)[::7]}
    for cut in cuts_of(places, len(data)):
        image = attempt(tmp_path, data[:cut], what=f"cut at {cut:#x}")
        assert image is None or not image.meta.complete


def test_lime_cut_at_every_boundary(tmp_path):
    data = samples.lime()
    for cut in cuts_of({"second": 32 + 0x5000, "data": 64 + 0x5000}, len(data)):
        image = attempt(tmp_path, data[:cut], what=f"cut at {cut:#x}")
        assert image is None or not image.meta.complete or cut == 32 + 0x5000  # a whole range: nothing tells


@pytest.mark.parametrize("name", codecs.bombs())
def test_a_bomb_in_a_dump_is_one_corrupt_page(tmp_path, name):
    flags, blob = codecs.bombs()[name]
    good = Page(b"good".ljust(4096, b"\0"), codec="zlib")
    pages = dict.fromkeys(range(20), good)
    pages[7] = Page(kind=Kind.CORRUPT, stored_form=(flags, blob))
    data = build_kdump(Memory(4096, 20, pages)).data
    image = attempt(tmp_path, data)
    assert image is not None
    assert image.meta.complete


def test_a_header_of_zeros_or_ones_behind_the_signature(tmp_path):
    for fill in (b"\0", b"\xff", b"\x7f", b"\x80"):
        for size in (8, 464, 512, 4096, 65536):
            assert attempt(tmp_path, b"KDUMP   ".ljust(size, fill)) is None
            attempt(tmp_path, b"\x7fELF\2\1\1".ljust(size, fill))
            attempt(tmp_path, b"EMiL".ljust(size, fill))
            attempt(tmp_path, flat_header() + fill * size)


def test_parts_that_do_not_belong_together(tmp_path):
    one, whole, other = samples.kdump("split").data, samples.kdump("x86_64").data, samples.kdump("s390x").data
    assert attempt(tmp_path, one, one) is None
    assert attempt(tmp_path, one, whole) is None
    assert attempt(tmp_path, whole, other) is None
    assert attempt(tmp_path, one, samples.elf("vmcore").data) is None
