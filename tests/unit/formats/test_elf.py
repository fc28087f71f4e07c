"""ELF cores of every producer read as the memory they describe."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumpfs.errors import CorruptDumpError, DumpfsError, SourceError, TruncatedDumpError, UnsupportedFeatureError
from dumpfs.formats.elf import open_elf, probe
from dumpfs.sources.local import MemorySource
from dumpfs.units import PageState
from tests.build import notes as build_notes
from tests.build.elf import EHDR_FIELDS, PHDR_FIELDS, PHDR_SIZE, ElfSpec, Segment, build_elf, fields
from tests.work import bounded_work

PAGE = 4096
SPAN = 6 * PAGE
MEMORY = random.Random(1).randbytes(SPAN)
KINDS = [(w, o) for w in (4, 8) for o in ("little", "big")]
ABSENT, EXCLUDED, LOST, STORED = range(4)


def note(name: str, kind: int, desc: bytes, order: str = "little") -> bytes:
    return build_notes.note(name.encode(), kind, desc, order)


def opened(data: bytes):
    return open_elf([MemorySource(data, "vmcore")])


def segment(paddr: int, memsz: int, filesz: int | None = None, vaddr: int = 0) -> Segment:
    """A segment of `MEMORY`, so that segments that overlap agree."""
    return Segment(paddr, MEMORY[paddr : paddr + (memsz if filesz is None else filesz)], memsz, vaddr)


def expected(segments: list[Segment], present: list[int]) -> list[tuple[PageState, bytes, tuple[int, int] | None]]:
    """State, content and RAM extent of every page; `present` is what the file has of each segment's content."""
    fate = bytearray(SPAN)
    for code, bounds in (
        (EXCLUDED, lambda s, n: (0, s.size)),
        (LOST, lambda s, n: (0, len(s.data))),
        (STORED, lambda s, n: (0, n)),
    ):
        for seg, n in zip(segments, present, strict=True):
            first, stop = bounds(seg, n)
            fate[seg.paddr + first : seg.paddr + stop] = bytes([code]) * (stop - first)
    pages = []
    for base in range(0, SPAN, PAGE):
        part = fate[base : base + PAGE]
        inside = [i for i, code in enumerate(part) if code != ABSENT]
        extent = (inside[0], inside[-1] + 1) if inside else None
        whole = extent == (0, PAGE)
        if not inside:
            state = PageState.ABSENT
        elif LOST in part:
            state = PageState.LOST
        elif STORED in part:
            state = PageState.STORED if whole else PageState.PARTIAL
        else:
            state = PageState.EXCLUDED
        readable = state in (PageState.STORED, PageState.PARTIAL)
        content = bytes(b if c == STORED else 0 for b, c in zip(MEMORY[base : base + PAGE], part, strict=True))
        pages.append((state, content if readable else bytes(PAGE), None if whole else extent))
    return pages


def check(image, pages) -> None:
    """Every way of reading gives the model."""
    count = len(pages)
    states = bytes(s for s, _, _ in pages)
    for first in range(count):
        for n in range(1, count - first + 1):
            data, got = image.read_run(first, n)
            assert got == states[first : first + n]
            assert data == b"".join(c for _, c, _ in pages[first : first + n])
        state, content, _ = pages[first]
        readable = state in (PageState.STORED, PageState.PARTIAL)
        assert image.read_page(first)[:2] == (content if readable else b"", state)
        assert image.state(first) is state
        info = image.info(first)
        assert info.state is state
        assert bool(info.detail) == (state is PageState.LOST)
        assert (first in image.ram) == (state is not PageState.ABSENT)
        assert (first in image.stored) == readable
        blob = image.stored_blobs(first, 1)[0]
        assert (blob.state, blob.flags, blob.data) == (state, 0, content if readable else b"")
    assert image.partial == {i: e for i, (_, _, e) in enumerate(pages) if e is not None}
    assert image.meta.max_pfn == image.ram.stop


@st.composite
def segment_lists(draw) -> list[Segment]:
    """Segments that overlap, touch, lie inside one page or cut pages, with and without content."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        grain = draw(st.sampled_from([1, 1024, PAGE]))
        paddr = draw(st.integers(0, (SPAN - 1) // grain)) * grain
        memsz = min(max(draw(st.integers(1, SPAN // grain)) * grain, 1), SPAN - paddr)
        filesz = draw(st.sampled_from([0, memsz, draw(st.integers(0, memsz))]))
        found.append(segment(paddr, memsz, filesz))
    return found


@given(segment_lists(), st.sampled_from(KINDS), st.sampled_from(["kernel", "makedumpfile", "qemu"]), st.booleans())
def test_any_segments_read_as_the_memory_they_describe(segments, kind, style, xnum):
    spec = ElfSpec(word=kind[0], byteorder=kind[1], style=style, xnum=xnum)
    image = opened(build_elf(segments, spec).data)
    check(image, expected(segments, [len(s.data) for s in segments]))
    assert image.meta.complete
    assert (image.meta.word_size, image.meta.byteorder) == kind


@given(segment_lists(), st.sampled_from(KINDS), st.data())
def test_file_cut_anywhere_loses_what_lay_beyond(segments, kind, data):
    built = build_elf(segments, ElfSpec(word=kind[0], byteorder=kind[1], style="makedumpfile"))
    cut = data.draw(st.integers(built.places["data"], len(built.data)))
    image = opened(built.data[:cut])
    present = [max(min(size, cut - offset), 0) for offset, size in (built.blobs[i] for i in range(len(segments)))]
    check(image, expected(segments, present))
    assert image.meta.complete == (cut == len(built.data))
    assert ("file ends at" in image.meta.incomplete_reason) == (cut < len(built.data))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_file_cut_inside_headers_or_notes_never_crashes(kind):
    notes = note("CORE", 1, bytes(144), kind[1]) + note("VMCOREINFO", 0, b"OSRELEASE=6.1\n", kind[1])
    built = build_elf([segment(0, SPAN)], ElfSpec(word=kind[0], byteorder=kind[1], style="makedumpfile", notes=notes))
    for cut in range(built.places["data"]):
        try:
            image = opened(built.data[:cut])
        except DumpfsError:
            assert cut < built.places["phdrs"] + PHDR_SIZE[kind[0]]
        else:
            assert not image.meta.complete


HOSTILE = [0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0xFFFE, 1 << 31, (1 << 32) - 1, 1 << 55, (1 << 63) - 1, (1 << 64) - 1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hostile_header_fields_are_refused_or_read_sanely(kind):
    """Every header field at 0, its maximum and in between: an error or an image, quickly and in little memory."""
    word, order = kind
    spec = ElfSpec(word=word, byteorder=order, xnum=True, notes=note("CORE", 1, bytes(144), order))
    built = build_elf([segment(0, SPAN, SPAN - 100), segment(PAGE, 2 * PAGE)], spec)
    tables = [(0, EHDR_FIELDS[word])] + [
        (built.places["phdrs"] + i * PHDR_SIZE[word], PHDR_FIELDS[word]) for i in (0, 1)
    ]
    for base, table in tables:
        for offset, code in fields(table).values():
            size = struct.calcsize("=" + code)
            for value in HOSTILE:
                raw = (value & (1 << 8 * size) - 1).to_bytes(size, order)
                with bounded_work(100_000):  # measured: at most 9,600
                    try:
                        image = opened(built.poked(base + offset, raw))
                    except DumpfsError as exc:
                        assert str(exc).startswith("vmcore: ")  # noqa: PT017
                        continue
                    image.read_run(0, 8)
                    image.info(image.meta.max_pfn)
                    image.notes()


def test_program_headers_are_found_where_qemu_puts_them():
    built = build_elf([segment(0, SPAN)], ElfSpec(style="qemu", notes=note("QEMU", 0, bytes(440))))
    assert built.places["phdrs"] == 192
    image = opened(built.data)
    assert image.meta.variant == "QEMU"
    assert image.read_run(0, 6)[0] == MEMORY


def test_bytes_left_out_by_makedumpfile_are_excluded():
    image = opened(build_elf([segment(0, 4 * PAGE, PAGE), segment(4 * PAGE, 2 * PAGE, 0)]).data)
    assert image.read_run(0, 6)[1] == bytes([PageState.STORED] + [PageState.EXCLUDED] * 5)


def test_segment_with_content_hides_one_without():
    image = opened(build_elf([segment(0, SPAN, 0), segment(PAGE, PAGE), segment(0, SPAN, 0)]).data)
    assert image.read_run(0, 3)[1] == bytes([PageState.EXCLUDED, PageState.STORED, PageState.EXCLUDED])


def test_ram_range_of_one_kib_grain_ends_inside_a_page():
    image = opened(build_elf([segment(PAGE, 3 * PAGE + 0xC00)]).data)
    assert image.partial == {4: (0, 0xC00)}
    data, state, _ = image.read_page(4)
    assert state is PageState.PARTIAL
    assert data == MEMORY[4 * PAGE : 4 * PAGE + 0xC00] + bytes(0x400)


def test_run_inside_an_alias_is_one_read_of_the_longer_segment():
    class Counting(MemorySource):
        reads = 0

        def read_at(self, offset, size):
            self.reads += 1
            return super().read_at(offset, size)

    built = build_elf([segment(2 * PAGE, PAGE), segment(0, SPAN)])
    source = Counting(built.data)
    image = open_elf([source])
    source.reads = 0
    assert image.read_run(0, 6)[0] == MEMORY
    assert source.reads == 1


@pytest.mark.parametrize("word", [4, 8])
@pytest.mark.parametrize("variant", ["all ones", "wraps to zero"])
def test_virtual_only_segments_say_nothing_of_physical_memory(word, variant):
    """As in /proc/kcore, and in our own /vmcore."""
    top = 1 << 8 * word
    paddr = top - 1 if variant == "all ones" else top - 2 * PAGE
    virtual = Segment(paddr, bytes(2 * PAGE), vaddr=top - 64 * PAGE)
    image = opened(build_elf([virtual, segment(0, PAGE, vaddr=top // 2)], ElfSpec(word=word)).data)
    if word == 4 and variant == "wraps to zero":  # in 32 bits memory may really end there
        assert image.ram.stop == 1 << 20
    else:
        assert list(image.ram.runs()) == [(0, 1)]
        assert image.meta.virtual_loads == ((top // 2, 0, PAGE),)
    assert image.notices == ()


def test_segment_beyond_all_physical_memory_is_ignored_with_a_notice():
    segments = [Segment(1 << 57, b"x" * PAGE), Segment(0, b"", (1 << 64) - 1), segment(0, PAGE)]
    image = opened(build_elf(segments).data)
    assert list(image.ram.runs()) == [(0, 1)]
    assert len(image.notices) == 2
    assert "0x200000000000000" in image.notices[0]


def test_many_impossible_segments_give_few_notices():
    image = opened(build_elf([Segment(1 << 57, b"") for _ in range(3)] + [Segment(1 << 57, b"x")] * 50).data)
    assert len(image.notices) == 5
    assert image.notices[3] == "47 more PT_LOADs are ignored for the same reason"


def test_memory_of_petabytes_costs_nothing():
    image = opened(build_elf([Segment(0, b"x", 1 << 55), segment(PAGE, PAGE)]).data)
    assert image.ram.count() == 1 << 43
    assert image.stored.count() == 2
    assert image.read_run((1 << 43) - 1, 2)[1] == bytes([PageState.EXCLUDED, PageState.ABSENT])


@pytest.mark.parametrize("flags", [1, 3])
def test_flag_of_makedumpfile_marks_the_dump_incomplete(flags):
    image = opened(build_elf([segment(0, PAGE)], ElfSpec(e_flags=flags)).data)
    assert not image.meta.complete
    assert "marked it so" in image.meta.incomplete_reason


def test_flag_of_ppc64_is_its_abi():
    assert opened(build_elf([segment(0, PAGE)], ElfSpec(e_flags=1, machine=21)).data).meta.complete


def test_program_headers_never_written_are_counted():
    built = build_elf([segment(0, PAGE), segment(PAGE, PAGE)], ElfSpec(e_flags=1))
    data = built.poked(built.places["phdrs"] + 2 * PHDR_SIZE[8], bytes(PHDR_SIZE[8]))
    image = opened(data)
    assert "1 of its 3 program headers were never written" in image.meta.incomplete_reason
    assert list(image.ram.runs()) == [(0, 1)]


@pytest.mark.parametrize("segments", [[], [segment(0, SPAN, 0)]], ids=["no PT_LOAD", "all left out"])
def test_dump_without_any_page_opens_and_says_so(segments):
    image = opened(build_elf(segments).data)
    assert image.stored.count() == 0
    assert image.notices == ("the dump holds no page at all",)


def test_more_program_headers_than_a_half_word_counts():
    count = 66_000
    segments = [
        Segment(i * 2 * PAGE, b"") if i % 1000 else Segment(i * 2 * PAGE, bytes([i // 1000])) for i in range(count)
    ]
    segments = [s if s.data else Segment(s.paddr, b"", PAGE) for s in segments]
    image = opened(build_elf(segments, ElfSpec(xnum=True)).data)
    assert image.ram.count() == count
    assert image.stored.count() == 66
    assert image.read_page(65_000 * 2)[0] == bytes([65]).ljust(PAGE, b"\0")


NOTES = (
    note("CORE", 1, bytes(336))
    + note("CORE", 1, bytes(336))
    + note("VMCOREINFO", 0, b"OSRELEASE=6.1.0-test\nPAGESIZE=16384\nCRASHTIME=1700000000\n")
    + note("ERASEINFO", 0, b"erase secret 8\n\0")
)


def test_facts_come_from_the_notes():
    image = opened(build_elf([segment(0, SPAN)], ElfSpec(notes=NOTES)).data)
    assert image.notes() == NOTES
    assert image.meta.nr_cpus == 2
    assert image.meta.block_size == 16384
    assert image.meta.timestamp == 1700000000.0
    assert image.meta.uts.release == "6.1.0-test"
    assert image.vmcoreinfo_text() == b"OSRELEASE=6.1.0-test\nPAGESIZE=16384\nCRASHTIME=1700000000\n"
    assert image.eraseinfo() == b"erase secret 8\n"


@pytest.mark.parametrize("text", [b"PAGESIZE=1000\n", b"PAGESIZE=zz\n", b"PAGESIZE=1048576\n", b"PAGESIZE=1024\n", b""])
def test_page_size_that_is_none_falls_back_to_the_smallest(text):
    notes = note("VMCOREINFO", 0, text)
    assert opened(build_elf([segment(0, SPAN)], ElfSpec(notes=notes)).data).meta.block_size == 4096


@pytest.mark.parametrize("text", [b"CRASHTIME=0", b"CRASHTIME=x y", b"CRASHTIME=-5", b"CRASHTIME=" + b"9" * 5000])
def test_impossible_crash_time_is_none(text):
    notes = note("VMCOREINFO", 0, text + b"\n")
    assert opened(build_elf([segment(0, SPAN)], ElfSpec(notes=notes)).data).meta.timestamp is None


def test_notes_of_several_segments_are_joined_without_their_padding():
    first, second = note("CORE", 1, bytes(16)) + bytes(8), note("VMCOREINFO", 0, b"OSRELEASE=1\n")
    built = build_elf([segment(0, PAGE)], ElfSpec(notes=first + second))
    places = struct.pack("<IIQQQQQQ", 4, 0, built.places["notes"], 0, 0, len(first), 0, 0)
    data = built.poked(built.places["phdrs"], places)
    more = struct.pack("<IIQQQQQQ", 4, 0, built.places["notes"] + len(first), 0, 0, len(second), 0, 0)
    third = built.places["phdrs"] + 2 * PHDR_SIZE[8]
    data = data[:third] + more + data[third + len(more) :]
    data = data[:56] + struct.pack("<H", 3) + data[58:]
    image = opened(data)
    assert image.notes() == first[:-8] + second
    assert image.meta.uts.release == "1"


@pytest.mark.parametrize(
    ("machine", "order", "name"),
    [
        (62, "little", "x86_64"),
        (3, "little", "i686"),
        (21, "big", "ppc64"),
        (21, "little", "ppc64le"),
        (9999, "big", ""),
    ],
)
def test_machine_is_named_as_uname_does(machine, order, name):
    image = opened(build_elf([segment(0, PAGE)], ElfSpec(machine=machine, byteorder=order)).data)
    assert image.meta.machine == name


def test_core_of_a_process_is_refused():
    notes = note("CORE", 1, bytes(336)) + note("CORE", 6, bytes(320))
    with pytest.raises(UnsupportedFeatureError, match="core of a process"):
        opened(build_elf([segment(0, PAGE)], ElfSpec(notes=notes)).data)


def test_segments_all_at_address_zero_are_refused():
    segments = [Segment(0, b"x" * PAGE, vaddr=vaddr) for vaddr in (0x400000, 0x600000, 0x800000)]
    with pytest.raises(UnsupportedFeatureError, match="physical address 0"):
        opened(build_elf(segments).data)


def test_kernel_at_the_beginning_of_memory_is_not_refused():
    image = opened(build_elf([segment(0, PAGE, vaddr=0x100000), segment(0, SPAN)], ElfSpec(machine=22)).data)
    assert image.read_run(0, 6)[0] == MEMORY


@pytest.mark.parametrize("kind", [2, 3])
def test_vmlinux_is_refused_with_the_option_that_takes_it(kind):
    built = build_elf([segment(0, PAGE)])
    with pytest.raises(UnsupportedFeatureError, match="is a vmlinux") as caught:
        opened(built.poked(16, struct.pack("<H", kind)))
    assert "-o vmlinux=vmcore" in caught.value.hint


def test_file_of_impossible_class_is_corrupt():
    with pytest.raises(CorruptDumpError, match="class 9"):
        opened(build_elf([]).poked(4, b"\x09"))


def test_claimed_table_larger_than_the_file_is_read_as_far_as_it_goes():
    built = build_elf([segment(0, PAGE)], ElfSpec(xnum=True))
    data = built.poked(built.places["shdr"] + 44, struct.pack("<I", 0xFFFFFFFF))
    image = opened(data)
    assert "inside its program headers" in image.meta.incomplete_reason
    assert image.read_page(0)[0] == MEMORY[:PAGE]


def test_file_without_its_first_program_header_is_truncated():
    with pytest.raises(TruncatedDumpError, match="before its program headers"):
        opened(build_elf([segment(0, PAGE)]).data[:64])


class Failing(MemorySource):
    """A disk with one bad sector, or a file that shrank."""

    bad = range(0)

    def shrink(self, size):
        self._data = self._data[:size]

    def read_at(self, offset, size):
        if offset < self.bad.stop and offset + size > self.bad.start:
            raise SourceError(self.name, "reading failed: Input/output error")
        return super().read_at(offset, size)

    def read_into(self, offset, buffer):
        data = self.read_at(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def change(self):
        return "truncated"


def test_bad_sector_loses_its_page_alone():
    built = build_elf([segment(0, SPAN)])
    source = Failing(built.data, "vmcore")
    image = open_elf([source])
    start = built.blobs[0][0] + 2 * PAGE + 100
    source.bad = range(start, start + 512)
    data, states = image.read_run(0, 6)
    assert states == bytes([0, 0, PageState.LOST, 0, 0, 0])
    assert data == MEMORY[: 2 * PAGE] + bytes(PAGE) + MEMORY[3 * PAGE :]
    assert image.read_page(2) == (b"", PageState.LOST, "vmcore: reading failed: Input/output error")


def test_pages_of_a_file_cut_while_open_are_lost():
    built = build_elf([segment(0, SPAN)])
    source = Failing(built.data, "vmcore")
    image = open_elf([source])
    source.shrink(built.blobs[0][0] + 3 * PAGE + 5)
    data, states = image.read_run(1, 5)
    assert states == bytes([0, 0] + [PageState.LOST] * 3)
    assert data == MEMORY[PAGE : 3 * PAGE] + bytes(3 * PAGE)
    assert image.info(4).state is PageState.LOST
    assert image.info(4).detail
    assert image.changes() == ["vmcore: truncated"]


def test_info_says_where_a_page_lies():
    built = build_elf([segment(PAGE, 2 * PAGE + 100)])
    image = opened(built.data)
    assert image.info(2)[:5] == (PageState.STORED, "raw", built.blobs[0][0] + PAGE, PAGE, 0)
    assert image.info(3)[:5] == (PageState.PARTIAL, "raw", built.blobs[0][0] + 2 * PAGE, 100, 0)
    assert image.info(0)[:5] == (PageState.ABSENT, "", 0, 0, 0)


@pytest.mark.parametrize(("head", "answer"), [(b"\x7fELF\x02", True), (b"\x7fEL", False), (b"", False)])
def test_probe_never_raises(head, answer):
    assert probe(head) is answer


def test_notes_that_are_named_again_and_again_are_read_once():
    spec = ElfSpec(notes=note("CORE", 1, bytes(336), "little"))
    built = build_elf([segment(0, SPAN)], spec)
    data = bytearray(built.data)
    phdrs, size = built.places["phdrs"], PHDR_SIZE[8]
    many = data[phdrs : phdrs + size] * 3000 + data[phdrs + size : phdrs + 2 * size]
    at = len(data)
    data += many
    data[32:40] = at.to_bytes(8, "little")
    data[56:58] = (3001).to_bytes(2, "little")
    image = opened(bytes(data))
    assert image.meta.nr_cpus == 1
    assert len(image.notes()) < 1000


@pytest.mark.parametrize("order", ["<", ">"])
def test_program_headers_of_a_sloppy_writer_are_read_as_its_class_has_them(order):
    """e_phentsize is 56 in a 32-bit file, whose one header of 32 bytes ends the file."""
    ident = b"\x7fELF" + bytes([1, 1 if order == "<" else 2, 1]) + bytes(9)
    machine = 3 if order == "<" else 22
    header = struct.pack(order + "HHIIIIIHHHHHH", 4, machine, 1, 0, 0x1000, 0, 0, 64, 56, 1, 64, 0, 0)
    data = (ident + header).ljust(0x1000, b"\0") + struct.pack(order + "8I", 1, *bytes(7))
    image = opened(data)
    assert image.stored.count() == 0
    assert any("e_phentsize is 56" in notice for notice in image.notices)


@pytest.mark.parametrize("cut", [0, 8, 24])
def test_of_the_last_program_header_only_its_own_bytes_are_needed(cut):
    """Headers 56 bytes long, 80 apart: the file ends behind the second, wherever a third would begin."""
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 80, 2, 0, 0, 0)
    phdr = struct.pack("<IIQQQQQQ", 1, 0, 0, 0, 0x1000, 0, 0x1000, 0)
    image = opened(ident + header + phdr + bytes(24) + phdr + bytes(24 - cut))
    assert image.meta.complete
    assert image.ram.count() == 1
